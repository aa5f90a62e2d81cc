//! What VHDs and host disks did: their histories, in memory, for the API and for whoever decides something by them.
//!
//! * `reading`: from counters to a reading. `sampler`: the thread that takes one every ten seconds, and has the store keep them.
//!
//! **Whoever decides by it** asks [`StatsBook::window`] for plain numbers of one VHD or disk, and [`Summary::join`]s those of the VHDs of a
//! VM. How hot an extent is, its map says ([`heat`](crate::placement::view::VhdMap::heat)).
//!
//! **Room.** All rows together take a sixteenth of the smallest metadata region at most, each subject the same part of it: then older blocks
//! are not stored, those of the coarsest resolution last. Heat takes a quarter of a subject's part at most, or is not stored.

mod reading;
mod sampler;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::clock::{self, Nanos};
use crate::base::ids::{DiskId, VhdId};
use crate::base::limits::HISTORY_REGION_SHARE;
use crate::disk::BlockDev;
use crate::metrics::heat::{self, ROW_EXTENTS, Window};
use crate::metrics::history::{History, Reading, Row, Sample, Summary, Tier};
use crate::owner::command::{DiskInfo, VhdInfo};
use crate::placement::record::VhdRecord;
use crate::shared::VhdState;
use crate::store::history::{HistoryRow, Part, Subject};
use crate::store::member::Member;
use reading::{Mark, Touched, disk_reading, rested, vhd_reading};
pub use sampler::Sampler;

/// Extents of a row of heat.
#[allow(clippy::cast_possible_truncation, reason = "a small constant")]
const HEAT_ROW: u32 = ROW_EXTENTS as u32;

/// A quarter of what a subject has room for may be heat.
const HEAT_PART: u64 = 4;

/// Records of nothing that are put off at most: those of five minutes.
const PUT_OFF_MAX: usize = 30;

/// The histories of all VHDs and disks.
#[derive(Debug, Default)]
pub struct StatsBook {
    subjects: Mutex<Subjects>,
    /// Records at which something had happened since the one before.
    stirs: AtomicU64,
}

/// What is known of all of them.
#[derive(Debug, Default)]
struct Subjects {
    known: BTreeMap<Subject, Known>,
    /// When, by both clocks, VHDs were to be recorded and none had done anything. That is made up for all at once, before anybody reads
    /// or something happens: while hundreds are idle nearly all of the work would be to fetch what is known of each.
    put_off: Vec<(Nanos, u64)>,
}

/// What is known of one subject.
#[derive(Debug, Default)]
struct Known {
    history: History,
    touched: Touched,
    /// As it was recorded last.
    mark: Mark,
    /// Whether something has happened since its samples were stored.
    stirred: bool,
    /// Rows of heat as they were stored last: their checksums and lengths.
    heat: HashMap<u32, (u32, usize)>,
}

impl StatsBook {
    /// What the store has kept. What is damaged is logged and left out, and so is what is of nobody.
    #[must_use]
    pub fn load<D: BlockDev + ?Sized + 'static>(
        members: &[(DiskId, Member<D>)],
        vhds: &[(VhdRecord, Arc<VhdState>)],
    ) -> StatsBook {
        let book = StatsBook::default();
        let states: HashMap<VhdId, &Arc<VhdState>> = vhds.iter().map(|(record, state)| (record.id, state)).collect();
        for (disk, member) in members {
            let mut last = None;
            let loaded = member.for_each_history(|key, bytes| {
                if last.is_none_or(|last| last < key) {
                    book.take_row(&states, key, bytes);
                    last = Some(key);
                }
            });
            match loaded {
                Ok(()) => break,
                Err(error) => log::warn!("disk #{}: history cannot be read, and is left out: {error}", disk.0),
            }
        }
        book
    }

    fn take_row(&self, states: &HashMap<VhdId, &Arc<VhdState>>, (subject, part): (u32, u32), bytes: &[u8]) {
        let (subject, part) = (Subject::of_code(subject), Part::of_code(part));
        let state = match subject {
            Subject::Vhd(vhd) => match states.get(&vhd) {
                Some(state) => Some(*state),
                None => return,
            },
            Subject::Disk(_) => None,
        };
        let mut subjects = self.subjects();
        let known = subjects.known.entry(subject).or_default();
        let taken = match (part, state) {
            (Part::Samples(tier, block), _) => {
                known.history.restore(tier, block, bytes).map_err(|error| error.to_string())
            }
            (Part::Heat(row), Some(state)) => known.take_heat(row, bytes, state),
            (Part::Heat(_), None) => Ok(()),
        };
        if let Err(error) = taken {
            log::warn!("a part of the history of {subject:?} is left out: {error}");
        }
    }

    fn subjects(&self) -> MutexGuard<'_, Subjects> {
        self.subjects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With all that was put off.
    fn caught_up(&self) -> MutexGuard<'_, Subjects> {
        let mut subjects = self.subjects();
        subjects.catch_up();
        subjects
    }

    /// Takes what the counters of all VHDs and disks say now. Those that are not among them any more are forgotten.
    pub fn record(&self, vhds: &[VhdInfo], disks: &[DiskInfo], now: Nanos, wall_secs: u64) {
        let mut subjects = self.subjects();
        let mut stirred = false;
        if subjects.can_put_off(vhds, disks) {
            subjects.put_off.push((now, wall_secs));
        } else {
            subjects.catch_up();
            stirred = subjects.record_vhds(vhds, disks, now, wall_secs);
        }
        for disk in disks {
            let known = subjects.known.entry(Subject::Disk(disk.record.id)).or_default();
            stirred |= known.take(Mark::of_disk(disk), &disk_reading(disk, now), wall_secs);
        }
        self.stirs.fetch_add(u64::from(stirred), Ordering::Relaxed);
    }

    /// A number that is another one once a guest or a job has done something, and that has been recorded.
    #[must_use]
    pub fn stirs(&self) -> u64 {
        self.stirs.load(Ordering::Relaxed)
    }

    /// What a subject did between two points in time, in seconds since the Unix epoch: plain numbers. `None` if nobody knows of it yet.
    #[must_use]
    pub fn window(&self, subject: Subject, from: u64, to: u64) -> Option<Summary> {
        Some(self.caught_up().known.get(&subject)?.history.window(from, to))
    }

    /// As [`StatsBook::window`], from samples of one resolution.
    #[must_use]
    pub fn window_in(&self, subject: Subject, tier: Tier, from: u64, to: u64) -> Option<Summary> {
        Some(self.caught_up().known.get(&subject)?.history.window_in(tier, from, to))
    }

    /// The finest resolution that reaches back so far.
    #[must_use]
    pub fn resolution(&self, subject: Subject, from: u64) -> Option<Tier> {
        Some(self.caught_up().known.get(&subject)?.history.tier_since(from))
    }

    /// Its samples in that time, each by itself with its beginning, in one resolution; `None`: the finest one that reaches back so far.
    #[must_use]
    pub fn samples(&self, subject: Subject, tier: Option<Tier>, from: u64, to: u64) -> Vec<Summary> {
        let subjects = self.caught_up();
        let Some(history) = subjects.known.get(&subject).map(|known| &known.history) else { return Vec::new() };
        let tier = tier.unwrap_or_else(|| history.tier_since(from));
        let one = |(begins, sample): (u64, Sample)| Summary::of_sample(begins, tier, &sample);
        history.samples(tier, from, to).map(one).collect()
    }

    /// Rows to be stored of the subjects among the `vhds` and disks for which `is_due`. `region_len`: bytes of the smallest metadata region.
    /// Where nothing has happened since the last time, nothing is.
    fn rows(&self, vhds: &[VhdInfo], region_len: u64, is_due: impl Fn(Subject) -> Due) -> Vec<HistoryRow> {
        let mut subjects = self.subjects();
        if subjects.known.iter().any(|(subject, known)| known.has_due(is_due(*subject))) {
            subjects.catch_up();
        }
        let subjects = &mut subjects.known;
        let room = region_len / HISTORY_REGION_SHARE / (subjects.len() as u64).max(1);
        let states: HashMap<Subject, &Arc<VhdState>> =
            vhds.iter().map(|vhd| (Subject::Vhd(vhd.record.id), &vhd.state)).collect();
        let mut rows = Vec::new();
        for (subject, known) in subjects.iter_mut() {
            let due = is_due(*subject);
            if let (true, Some(state)) = (due.heat, states.get(subject)) {
                rows.extend(known.heat_rows(*subject, state, room / HEAT_PART));
            }
            if known.has_due(due) {
                known.stirred = false;
                let room = usize::try_from(room.saturating_sub(known.heat_bytes())).unwrap_or(usize::MAX);
                let row = |Row { tier, block, bytes, kept }| HistoryRow {
                    subject: *subject,
                    part: Part::Samples(tier, block),
                    bytes,
                    kept,
                };
                rows.extend(known.history.take_unsaved(room).into_iter().map(row));
            }
        }
        rows
    }
}

/// What of a subject is to be stored now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    /// Samples, if something has happened.
    samples: bool,
    /// Samples, whether or not something has happened.
    quiet: bool,
    heat: bool,
}

impl Subjects {
    /// Whether a record of these VHDs could wait: nothing has happened to any, and neither they nor disks have come or gone.
    fn can_put_off(&self, vhds: &[VhdInfo], disks: &[DiskInfo]) -> bool {
        let is_quiet = |vhd: &VhdInfo| {
            let known = self.known.get(&Subject::Vhd(vhd.record.id));
            known.is_some_and(|known| known.history.last().is_some() && known.mark == Mark::of_vhd(vhd))
        };
        let is_known = |disk: &DiskInfo| self.known.contains_key(&Subject::Disk(disk.record.id));
        let are_those = || self.known.len() == vhds.len() + disks.len() && disks.iter().all(is_known);
        self.put_off.len() < PUT_OFF_MAX && vhds.iter().all(is_quiet) && are_those()
    }

    /// Records what was put off.
    fn catch_up(&mut self) {
        if self.put_off.is_empty() {
            return;
        }
        for (_, known) in self.known.iter_mut().filter(|(subject, _)| matches!(subject, Subject::Vhd(_))) {
            self.put_off.iter().for_each(|(now, wall_secs)| known.rest(*now, *wall_secs));
        }
        self.put_off.clear();
    }

    /// What the counters of VHDs say now. Whether something has happened. What is neither among these nor among the disks is forgotten.
    fn record_vhds(&mut self, vhds: &[VhdInfo], disks: &[DiskInfo], now: Nanos, wall_secs: u64) -> bool {
        let of_vhds = vhds.iter().map(|vhd| Subject::Vhd(vhd.record.id));
        let there: HashSet<Subject> = of_vhds.chain(disks.iter().map(|disk| Subject::Disk(disk.record.id))).collect();
        self.known.retain(|subject, _| there.contains(subject));
        let mut stirred = false;
        for vhd in vhds {
            let known = self.known.entry(Subject::Vhd(vhd.record.id)).or_default();
            let mark = Mark::of_vhd(vhd);
            if known.history.last().is_some() && known.mark == mark {
                known.rest(now, wall_secs);
            } else {
                let reading = vhd_reading(vhd, &mut known.touched, now);
                stirred |= known.take(mark, &reading, wall_secs);
            }
        }
        stirred
    }
}

impl Known {
    /// Whether samples of it are to be stored.
    fn has_due(&self, due: Due) -> bool {
        due.samples && self.stirred || due.quiet
    }

    /// Records that nothing has happened to it, which has been recorded before.
    fn rest(&mut self, now: Nanos, wall_secs: u64) {
        if let Some(before) = self.history.last() {
            let reading = rested(before, self.mark, &mut self.touched, now);
            self.history.record(&reading, wall_secs);
        }
    }

    /// Records a reading. Whether something has happened since the last one; the first one only begins.
    fn take(&mut self, mark: Mark, reading: &Reading, wall_secs: u64) -> bool {
        let stirred = self.history.last().is_some() && self.mark != mark;
        (self.mark, self.stirred) = (mark, self.stirred || stirred);
        self.history.record(reading, wall_secs);
        stirred
    }

    fn take_heat(&mut self, row: u32, bytes: &[u8], state: &VhdState) -> Result<(), String> {
        let heats = heat::decode(row, bytes).map_err(|error| error.to_string())?;
        let first = row.checked_mul(HEAT_ROW).ok_or("it is of extents that no VHD has")?;
        state.map.restore_heat(first, &heats, Window::at(clock::now().0));
        self.heat.insert(row, (crc32c::crc32c(bytes), bytes.len()));
        Ok(())
    }

    fn heat_bytes(&self) -> u64 {
        self.heat.values().map(|(_, len)| *len as u64).sum()
    }

    /// The rows of heat that have changed, as far as there is room for them. What is not hot any more is let go of in any case.
    fn heat_rows(&mut self, subject: Subject, state: &VhdState, room: u64) -> Vec<HistoryRow> {
        let (window, extents) = (Window::at(clock::now().0), state.map.extents());
        let last = extents.saturating_sub(1) / HEAT_ROW;
        self.heat.retain(|row, _| *row <= last);
        let mut rows = Vec::new();
        for row in 0..=last {
            let first = row * HEAT_ROW;
            let heats = state.map.sweep_heat(first..first.saturating_add(HEAT_ROW), window);
            let bytes = heat::encode(row, heats);
            let stored = self.heat.get(&row).copied();
            if stored.is_none() && heat::is_cold(&bytes) || stored.is_some_and(|(crc, _)| crc == crc32c::crc32c(&bytes))
            {
                continue;
            }
            let others = self.heat_bytes() - stored.map_or(0, |(_, len)| len as u64);
            if others + bytes.len() as u64 > room && !heat::is_cold(&bytes) {
                continue;
            }
            self.heat.insert(row, (crc32c::crc32c(&bytes), bytes.len()));
            rows.push(HistoryRow { subject, part: Part::Heat(row), bytes, kept: (0, last) });
        }
        rows
    }
}

#[cfg(test)]
pub(super) mod tests;
