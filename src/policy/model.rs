//! A copy of the pool in which changes can be tried: what each disk would do, and what the whole would be worth.
//!
//! *Load.* How much of a disk's time a VHD takes is not measured; it follows from how busy the disk is, and from the requests and
//! bytes of each VHD, in proportion to its extents there. On another disk the same requests take the time that requests take there; where
//! a disk does too little to tell, what such disks usually need. That one extent may be asked for more often than another is not known here.
//!
//! *Cost.* One number tells states of a pool apart, the less the better. Of how busy disks are the square of the difference from their
//! average is summed, so that load is better spread than piled up, on fast disks and on slow ones as well; above 70 % busy much more, as
//! queues get long from there. What is summed is the square to be expected: loads swing, and those of one VHD on one disk swing together,
//! those of many cancel out. So a VHD that does much is better spread, and a hundred that do little need not be. Of room likewise, above
//! the limit. And every disk that a VM depends on counts, since each of them can take it along.

use std::collections::BTreeMap;

use super::observe::{Disk, DiskKind, Flow, Health, Pool, Vhd};
use crate::base::ids::{DiskId, VhdId};
use crate::base::limits::DISKS_MAX;
use crate::placement::record::{Accept, Layout};
use crate::plan::{Goal, GoalDisk, shares_of_new};

/// Busier than this, queues get long.
pub(super) const BUSY: f64 = 0.7;

/// What a disk on which a VM depends costs, as much as a disk of 6 % load: VMs are worth keeping together, but not at the price of
/// disks that do nothing beside others that do much.
const DEPENDENCE: f64 = 0.004;

/// Bytes whose transfer takes about as long as a request.
const UNIT_BYTES: f64 = 65_536.0;

/// A disk that is less busy tells nothing of what a request takes there.
const TELLING_BUSY: f64 = 0.02;

/// By how much the extents of a disk can be asked for more or less often than others: more is a measurement that is wrong.
const ODD: f64 = 3.0;

/// By how much the load of a VHD swings: the square of its standard deviation, as part of the square of its mean. That is less over a
/// day, but what neighbours feel are the minutes in which it asks for a multiple. Found by trying, with `spanblk simulate`: more of it
/// spreads more VHDs, and so makes more VMs depend on each disk.
const SWINGS: f64 = 0.5;

/// Which rates to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// The last minutes.
    Now,
    /// The last day.
    Usual,
}

/// A disk.
#[derive(Clone, Debug)]
pub(super) struct DiskLoad {
    pub id: DiskId,
    pub kind: DiskKind,
    pub domain: u32,
    pub slots: u32,
    pub works: bool,
    pub accept: Accept,
    /// Slots that are taken.
    pub used: u64,
    /// Part of its time that guests take.
    pub busy: f64,
    /// Seconds of its time that a unit of work takes of what is there.
    pub unit_secs: f64,
    /// The same of what comes.
    pub new_secs: f64,
}

impl DiskLoad {
    /// How much busier it is with so many more replicas, or fewer, that get so much work each.
    pub fn adds(&self, work_each: f64, more: f64) -> f64 {
        work_each * more * if more > 0.0 { self.new_secs } else { self.unit_secs }
    }

    pub fn fill(&self) -> f64 {
        self.used as f64 / f64::from(self.slots.max(1))
    }
}

/// A VHD.
#[derive(Clone, Debug)]
pub(super) struct VhdLoad {
    pub id: VhdId,
    /// Index in [`Model::groups`].
    pub group: usize,
    pub replicas: u8,
    /// Extents that have a place.
    pub placed: u64,
    /// Replicas by place of the disk in [`Model::disks`], ascending.
    pub on: Vec<(usize, u64)>,
    /// Units of work a second that each replica gets.
    pub work_each: f64,
    /// The same in the last minutes.
    now_each: f64,
    /// Replicas by which it grows in a day, and by which it can.
    pub growth: f64,
    pub rest: f64,
    /// A job is about it.
    pub moves: bool,
    /// It takes all there is of whatever disks it is on: on fewer disks it takes less, and no disk is busier than it can be.
    pub takes_all: bool,
}

impl VhdLoad {
    pub fn mask(&self) -> u64 {
        self.on.iter().fold(0, |mask, (place, _)| mask | 1 << place)
    }

    pub fn width(&self) -> usize {
        self.on.len()
    }

    pub fn total(&self) -> u64 {
        self.on.iter().map(|(_, count)| count).sum()
    }

    pub fn count_on(&self, place: usize) -> u64 {
        self.on.iter().find(|(at, _)| *at == place).map_or(0, |(_, count)| *count)
    }
}

/// A change of where a VHD is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Move {
    /// Index of the VHD.
    pub vhd: usize,
    /// Where it is afterwards: as [`VhdLoad::on`].
    pub to: Vec<(usize, u64)>,
    /// Replicas afterwards.
    pub replicas: u8,
}

/// The pool.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub extent_size: u64,
    /// By identifier.
    pub disks: Vec<DiskLoad>,
    /// By identifier.
    pub vhds: Vec<VhdLoad>,
    /// The VHDs of each VM, and each VHD that belongs to none.
    pub groups: Vec<Vec<usize>>,
    /// Part of a disk's slots that may be taken.
    space: f64,
    /// Place of each disk.
    place: [Option<usize>; DISKS_MAX],
}

impl Model {
    pub fn new(pool: &Pool, space: f64, window: Window) -> Model {
        let mut seen: Vec<&Disk> = pool.disks.iter().collect();
        seen.sort_by_key(|disk| disk.id);
        let mut place = [None; DISKS_MAX];
        seen.iter().enumerate().for_each(|(at, disk)| place[disk.id.index()] = Some(at));
        let disks = seen.iter().map(|disk| disk_load(disk)).collect();
        let (vhds, groups) = (Vec::new(), Vec::new());
        let mut model = Model { extent_size: pool.extent_size, disks, vhds, groups, space, place };
        model.add_vhds(pool, window);
        model.measure_units(&seen);
        model.finish_moves(pool);
        model
    }

    /// How long a unit of work takes: what disks of a kind took for all that they did in the last minutes. Where the extents of a disk
    /// take more or less than that, they are asked for more or less often than others; what comes from elsewhere need not be.
    fn measure_units(&mut self, seen: &[&Disk]) {
        let mut work = vec![(0.0, 0.0); self.disks.len()];
        for vhd in &self.vhds {
            for (place, count) in &vhd.on {
                work[*place].0 += vhd.now_each * *count as f64;
                work[*place].1 += vhd.work_each * *count as f64;
            }
        }
        let mut kinds: BTreeMap<DiskKind, (f64, f64)> = BTreeMap::new();
        for (disk, (now, _)) in seen.iter().zip(&work) {
            let busy = guests_busy(disk);
            if busy >= TELLING_BUSY && *now > 0.0 {
                let sums = kinds.entry(disk.kind).or_default();
                *sums = (sums.0 + busy, sums.1 + now);
            }
        }
        for ((disk, seen), (now, work)) in self.disks.iter_mut().zip(seen).zip(work) {
            if let Some((busy, work)) = kinds.get(&disk.kind) {
                disk.new_secs = busy / work;
            }
            let own = if now > 0.0 { guests_busy(seen) / (now * disk.new_secs) } else { 1.0 };
            disk.unit_secs = disk.new_secs * own.clamp(1.0 / ODD, ODD);
            disk.busy = work * disk.unit_secs;
        }
    }

    fn add_vhds(&mut self, pool: &Pool, window: Window) {
        let mut seen: Vec<&Vhd> = pool.vhds.iter().collect();
        seen.sort_by_key(|vhd| vhd.id);
        let mut group_of = BTreeMap::new();
        for (index, vhd) in seen.into_iter().enumerate() {
            let group = match vhd.vm {
                Some(vm) => *group_of.entry(vm).or_insert(self.groups.len()),
                None => self.groups.len(),
            };
            if group == self.groups.len() {
                self.groups.push(Vec::new());
            }
            self.groups[group].push(index);
            let there = vhd.extents.iter().filter(|(_, count)| *count > 0);
            let mut on: Vec<(usize, u64)> =
                there.filter_map(|(disk, count)| Some((self.place[disk.index()]?, u64::from(*count)))).collect();
            on.sort_unstable();
            let work = |flow: Flow| flow.iops + flow.bytes / UNIT_BYTES;
            let total: u64 = on.iter().map(|(_, count)| count).sum();
            // A read goes to one replica, a write to all.
            let copies = total as f64 / f64::from(vhd.placed.max(1));
            let each = (vhd.read_share / copies.max(1.0) + 1.0 - vhd.read_share) / f64::from(vhd.placed.max(1));
            let now_each = each * work(vhd.flow);
            let work_each = if window == Window::Now { now_each } else { each * work(vhd.usual) };
            let growth = vhd.growth / self.extent_size as f64 * copies;
            let (placed, replicas) = (u64::from(vhd.placed), vhd.replicas);
            let rest = (vhd.size.div_ceil(self.extent_size).saturating_sub(placed)) as f64 * copies;
            let id = vhd.id;
            self.vhds.push(VhdLoad {
                id,
                group,
                replicas,
                placed,
                on,
                work_each,
                now_each,
                growth,
                rest,
                moves: false,
                takes_all: false,
            });
        }
    }

    /// What is on its way counts as if it were there.
    fn finish_moves(&mut self, pool: &Pool) {
        for vhd in &pool.vhds {
            if !pool.jobs.contains(&vhd.id) {
                continue;
            }
            let Some(index) = self.find(vhd.id) else { continue };
            let disks: Vec<usize> = vhd.layout.disks().iter().filter_map(|disk| self.place[disk.index()]).collect();
            let to = self.even(u64::from(vhd.placed) * u64::from(vhd.replicas), &disks);
            if !to.is_empty() {
                self.apply(&Move { vhd: index, to, replicas: vhd.replicas });
            }
            self.vhds[index].moves = true;
        }
    }

    pub fn find(&self, vhd: VhdId) -> Option<usize> {
        self.vhds.binary_search_by_key(&vhd, |vhd| vhd.id).ok()
    }

    pub fn place_of(&self, disk: DiskId) -> Option<usize> {
        self.place[disk.index()]
    }

    /// Part of a disk's time that a VHD takes.
    pub fn part(&self, vhd: usize, place: usize) -> f64 {
        let vhd = &self.vhds[vhd];
        vhd.work_each * vhd.count_on(place) as f64 * self.disks[place].unit_secs
    }

    /// Part of the replicas of a VHD that are on disks which do not work, or may not for long.
    pub fn exposed(&self, vhd: usize) -> f64 {
        let vhd = &self.vhds[vhd];
        let bad = vhd.on.iter().filter(|(place, _)| !self.disks[*place].works);
        bad.map(|(_, count)| *count).sum::<u64>() as f64 / vhd.total().max(1) as f64
    }

    /// So many replicas on these disks in proportion to their size; disks that get none are left out.
    pub fn even(&self, replicas: u64, places: &[usize]) -> Vec<(usize, u64)> {
        let slots: u64 = places.iter().map(|place| u64::from(self.disks[*place].slots)).sum();
        let (mut left, mut slots) = (replicas, slots);
        let mut sorted = places.to_vec();
        sorted.sort_unstable();
        let share = |place: usize| {
            let own = u64::from(self.disks[place].slots);
            let count = u64::try_from(u128::from(left) * u128::from(own) / u128::from(slots.max(1))).unwrap_or(left);
            (left, slots) = (left - count, slots - own);
            (place, count)
        };
        sorted.into_iter().map(share).filter(|(_, count)| *count > 0).collect()
    }

    /// Where a VHD would be on these disks, if the planner agrees and no disk gets fuller than it may.
    pub fn legal(&self, vhd: usize, places: &[usize], replicas: u8) -> Option<Move> {
        let load = &self.vhds[vhd];
        let spanned = places.len() > 1;
        let open = |disk: &DiskLoad| disk.works && if spanned { disk.accept.spanned() } else { disk.accept.isolated() };
        if places.is_empty() || !places.iter().all(|place| open(&self.disks[*place])) {
            return None;
        }
        let goal_disk = |place: &usize| {
            let disk = &self.disks[*place];
            let most = u64::from(disk.slots).saturating_sub(disk.used);
            GoalDisk {
                disk: disk.id,
                slots: disk.slots,
                free: u32::try_from(most + load.count_on(*place)).unwrap_or(u32::MAX),
                domain: disk.domain,
                closed: false,
            }
        };
        let goal = Goal { disks: places.iter().map(goal_disk).collect(), replicas: usize::from(replicas) };
        let shares = shares_of_new(load.placed, &goal).ok()?;
        let mut left = load.placed * u64::from(replicas) - shares.iter().map(|share| share.least).sum::<u64>();
        let mut to = Vec::new();
        for (share, place) in shares.iter().zip(places) {
            let more = left.min(share.most - share.least);
            left -= more;
            let (count, had, disk) = (share.least + more, load.count_on(*place), &self.disks[*place]);
            let after = (disk.used - had.min(disk.used) + count) as f64 / f64::from(disk.slots.max(1));
            if count > had && after > self.space {
                return None;
            }
            if count > 0 {
                to.push((*place, count));
            }
        }
        to.sort_unstable();
        Some(Move { vhd, to, replicas })
    }

    /// Extents that are copied.
    pub fn copies(&self, step: &Move) -> u64 {
        let vhd = &self.vhds[step.vhd];
        step.to.iter().map(|(place, count)| count.saturating_sub(vhd.count_on(*place))).sum()
    }

    /// Bytes that are copied, at most.
    pub fn bytes(&self, step: &Move) -> u64 {
        self.copies(step).saturating_mul(self.extent_size)
    }

    /// What a change takes off the cost; negative if it adds to it.
    pub fn worth(&self, step: &Move) -> f64 {
        let vhd = &self.vhds[step.vhd];
        let (mut worth, mut more_busy) = (0.0, 0.0);
        let mut look = |place: usize, had: u64, gets: u64| {
            let disk = &self.disks[place];
            let more = gets as f64 - had as f64;
            let had_part = vhd.work_each * had as f64 * disk.unit_secs;
            let mut part = had_part + disk.adds(vhd.work_each, more);
            let mut busy = (disk.busy - had_part + part).max(0.0);
            if vhd.takes_all && more > 0.0 {
                let most = busy.min(disk.busy.max(1.0));
                (part, busy) = (part - (busy - most), most);
            }
            worth += SWINGS * (had_part * had_part - part * part);
            let fill = (disk.used as f64 + more).max(0.0) / f64::from(disk.slots.max(1));
            worth += busy_cost(disk.busy) - busy_cost(busy);
            more_busy += if disk.works { busy - disk.busy } else { 0.0 };
            worth += self.fill_cost(disk.fill()) - self.fill_cost(fill);
        };
        for (place, count) in &step.to {
            look(*place, vhd.count_on(*place), *count);
        }
        for (place, count) in &vhd.on {
            if step.to.iter().all(|(at, _)| at != place) {
                look(*place, *count, 0);
            }
        }
        // The sum of the squares less this is that of the squares of the differences from the average.
        let working = || self.disks.iter().filter(|disk| disk.works).map(|disk| disk.busy);
        let (all, count) = (working().sum::<f64>(), working().count().max(1) as f64);
        worth += ((all + more_busy).powi(2) - all.powi(2)) / count;
        let after = if step.replicas > 1 { 0 } else { step.to.iter().fold(0, |mask, (place, _)| mask | 1 << place) };
        let depends = |own: u64| f64::from((self.others_mask(step.vhd) | own).count_ones());
        worth + DEPENDENCE * (depends(self.own_mask(step.vhd)) - depends(after))
    }

    /// Disks that can take the VHD along; none if it has replicas.
    fn own_mask(&self, vhd: usize) -> u64 {
        let vhd = &self.vhds[vhd];
        if vhd.replicas > 1 { 0 } else { vhd.mask() }
    }

    /// Disks that can take the other VHDs of its VM along.
    pub fn others_mask(&self, vhd: usize) -> u64 {
        let group = &self.groups[self.vhds[vhd].group];
        group.iter().filter(|other| **other != vhd).fold(0, |mask, other| mask | self.own_mask(*other))
    }

    /// Disks that can take something of a VM along.
    pub fn group_mask(&self, group: usize) -> u64 {
        self.groups[group].iter().fold(0, |mask, vhd| mask | self.own_mask(*vhd))
    }

    fn fill_cost(&self, fill: f64) -> f64 {
        let over = (fill - self.space).max(0.0);
        0.02 * fill * fill + 8.0 * over * over
    }

    /// Standard deviation of how busy the disks are that work.
    pub fn imbalance(&self) -> f64 {
        deviation(self.disks.iter().filter(|disk| disk.works).map(|disk| disk.busy))
    }

    /// Carries out a change.
    pub fn apply(&mut self, step: &Move) {
        let vhd = &mut self.vhds[step.vhd];
        let before = std::mem::replace(&mut vhd.on, step.to.clone());
        vhd.replicas = step.replicas;
        let (each, takes_all) = (vhd.work_each, vhd.takes_all);
        let gets = |place: usize| step.to.iter().find(|(at, _)| *at == place).map_or(0, |(_, count)| *count);
        let had = |place: usize| before.iter().find(|(at, _)| *at == place).map_or(0, |(_, count)| *count);
        let mut change = |place: usize| {
            let disk = &mut self.disks[place];
            disk.used = (disk.used + gets(place)).saturating_sub(had(place));
            let more = gets(place) as f64 - had(place) as f64;
            let most = if takes_all && more > 0.0 { disk.busy.max(1.0) } else { f64::INFINITY };
            disk.busy = (disk.busy + disk.adds(each, more)).clamp(0.0, most);
        };
        step.to.iter().for_each(|(place, _)| change(*place));
        let left = before.iter().filter(|(place, _)| gets(*place) == 0);
        left.for_each(|(place, _)| change(*place));
    }

    /// The layout's disks, as places.
    pub fn places(&self, layout: &Layout) -> Vec<usize> {
        layout.disks().iter().filter_map(|disk| self.place[disk.index()]).collect()
    }
}

/// Standard deviation.
pub(super) fn deviation(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    (values.map(|value| (value - mean) * (value - mean)).sum::<f64>() / count).sqrt()
}

fn busy_cost(busy: f64) -> f64 {
    let over = (busy - BUSY).max(0.0);
    busy * busy + 4.0 * over * over
}

fn disk_load(disk: &Disk) -> DiskLoad {
    DiskLoad {
        id: disk.id,
        kind: disk.kind,
        domain: disk.domain,
        slots: disk.slots,
        works: disk.health == Health::Works,
        accept: disk.accept,
        used: u64::from(disk.slots.saturating_sub(disk.free)),
        busy: 0.0,
        unit_secs: 1.0 / disk.kind.usual_iops(),
        new_secs: 1.0 / disk.kind.usual_iops(),
    }
}

/// Part of its time that a disk works for guests.
fn guests_busy(disk: &Disk) -> f64 {
    let work = |flow: Flow| flow.iops + flow.bytes / UNIT_BYTES;
    let (guests, jobs) = (work(disk.guests), work(disk.background));
    if guests + jobs > 0.0 { disk.busy * guests / (guests + jobs) } else { 0.0 }
}

#[cfg(test)]
mod tests;
