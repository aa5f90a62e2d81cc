//! Resizing a VHD.
//!
//! Growing: the record is durable, then the view has the extents, then guests are told of the bytes. A thick VHD gets the room for
//! its new extents in between (`fill`). Guests go on meanwhile, and jobs too: they plan again when a pass is over.
//!
//! Shrinking takes data away, so nobody may use the VHD: its door is closed from the first check until all is done. Record and
//! rows go in one commit, the slots then take the way of all slots (`reuse`).

use std::sync::Arc;

use super::Owner;
use super::command::{CommandError, CommandId, Outcome, ResizeVhd};
use super::commands::{Action, Step, not_found};
use super::create::check_size;
use super::fill::{Fill, quota_for};
use super::outbox::{Event, OwnerOutbox};
use super::reuse::SlotRuns;
use super::space::Space;
use super::vhds::{PerDisk, Vhd};
use crate::base::ids::VhdId;
use crate::base::units::{BlockMask, ExtentIndex, Geometry};
use crate::placement::record::VhdRecord;
use crate::placement::view::VhdMap;
use crate::store::edit::StoreEdit;

/// A VHD whose new size is being written.
#[derive(Debug)]
pub(super) struct Resize {
    /// As it will be.
    record: VhdRecord,
    old_bytes: u64,
    /// Room reserved for a thick one that grows.
    quota: Option<PerDisk>,
}

impl Resize {
    /// The VHD, if it loses extents.
    pub fn shrinking(&self) -> Option<VhdId> {
        self.shrinks().then_some(self.record.id)
    }

    fn shrinks(&self) -> bool {
        self.record.size < self.old_bytes
    }
}

impl Owner {
    pub(super) fn begin_resize(&mut self, id: CommandId, resize: &ResizeVhd) -> Result<Step, CommandError> {
        let vhd = self.vhds.find(&resize.vhd).ok_or_else(|| not_found("VHD", &resize.vhd))?;
        check_size(resize.size, vhd.record.block_size, self.geometry)?;
        let (vhd_id, old_bytes) = (vhd.record.id, vhd.record.size);
        if let Some(fill) = self.fills.get_mut(&vhd_id) {
            if resize.size != old_bytes {
                return Err(CommandError::BeingFilled { vhd: vhd.record.name.clone() });
            }
            fill.asked.push((id, Outcome::Unchanged));
            return Ok(Step::Joined);
        }
        if resize.size == old_bytes {
            return Ok(Step::Done(self.vhd_reply(vhd, Outcome::Unchanged)));
        }
        let record = VhdRecord { size: resize.size, ..vhd.record.clone() };
        let mut rows = vec![StoreEdit::PutVhd(record.clone())];
        let quota = if resize.size > old_bytes {
            self.reserve_growth(&record, old_bytes)?
        } else {
            self.check_reservable(&record)?;
            rows.push(self.close_to_shrink(vhd, &record, resize.force)?);
            None
        };
        Ok(Step::Commit { rows, action: Action::Resize(Box::new(Resize { record, old_bytes, quota })) })
    }

    /// Makes sure that the VHD can grow. Nothing of it shows before the record is durable.
    fn reserve_growth(&mut self, record: &VhdRecord, old_bytes: u64) -> Result<Option<PerDisk>, CommandError> {
        let vhd = self.vhds.get(record.id).expect("just found");
        let (before, after) = (vhd.state.map.extents(), record.extents(self.geometry));
        let name = || record.name.clone();
        if record.thick && self.metadata.low {
            return Err(CommandError::MetadataFull { used: self.metadata.used, size: self.metadata.size });
        }
        let state = Arc::clone(&vhd.state);
        let grow = || state.map.reserve(after).map_err(|_| CommandError::GrownTooOften { vhd: name() });
        if !record.thick {
            return grow().map(|()| None);
        }
        self.reserve_for(record, |owner| {
            owner.make_room(&[(record.id, record.layout.disks(), after - before, record.replicas)]);
            let bytes = |extents: u64| extents * owner.geometry.extent_size();
            let quota = quota_for(&owner.space, record.layout.disks(), after - before, record.replicas);
            let quota = quota.map_err(|free| CommandError::NoRoomToGrow {
                vhd: name(),
                by: record.size - old_bytes,
                needed: bytes(u64::from(after - before) * u64::from(record.replicas)),
                free: bytes(free),
            })?;
            grow()?;
            owner.reserve(&quota);
            Ok(quota)
        })
    }

    /// Makes sure that the VHD can shrink, and that nobody uses it until it has. Returns what the store is to forget.
    fn close_to_shrink(&self, vhd: &Vhd, record: &VhdRecord, force: bool) -> Result<StoreEdit, CommandError> {
        let name = || record.name.clone();
        let block = self.geometry.block_size();
        if !record.size.is_multiple_of(block) {
            return Err(CommandError::ShrinkMisaligned {
                vhd: name(),
                size: record.size,
                block,
                next: record.size.next_multiple_of(block),
            });
        }
        if let Some(job) = self.jobs.about(record.id) {
            let (job, kind) = (job.record.id.0, job.record.kind.word());
            return Err(CommandError::JobExists { vhd: name(), job, kind });
        }
        let (extents, last) = tail(record, self.geometry);
        if !force {
            let written = written_beyond(&vhd.state.map, extents, last) * block;
            return Err(CommandError::ShrinkLoses { vhd: name(), size: record.size, written });
        }
        if let Some(job) = self.jobs.scrub_of(record.id) {
            return Err(CommandError::ScrubExists { vhd: name(), job: job.record.id.0 });
        }
        // Copies on their way hold claims, and new ones must not begin before it is over.
        let is_copied = self.jobs.is_being_read(record.id) || self.repairs.knows(record.id);
        if is_copied || self.waves.is_moving(record.id) || self.is_mending(record.id) {
            return Err(CommandError::MovesEnding { vhd: name() });
        }
        if let Some(pid) = vhd.attached {
            return Err(CommandError::Attached { vhd: name(), pid, hint: ", then shrink it" });
        }
        // It may have been attached just now.
        if !vhd.state.door.close() {
            return Err(CommandError::Attached { vhd: name(), pid: 0, hint: ", then shrink it" });
        }
        Ok(StoreEdit::Shrink { vhd: record.id, extents, last })
    }

    /// The record could not be written.
    pub(super) fn cancel_resize(&mut self, resize: &Resize) {
        if let Some(quota) = &resize.quota {
            self.unreserve(quota);
        }
        if resize.shrinks()
            && let Some(vhd) = self.vhds.get_mut(resize.record.id)
        {
            vhd.frozen = false;
            vhd.state.door.open();
        }
    }

    pub(super) fn apply_resize(&mut self, command: CommandId, resize: Resize, out: &mut impl OwnerOutbox) {
        let shrinks = resize.shrinks();
        let Resize { record, old_bytes, quota } = resize;
        let id = record.id;
        let extents = record.extents(self.geometry);
        let asked = vec![(command, Outcome::Changed)];
        self.vhds.replace_record(record, &self.space);
        if shrinks {
            self.shrink(id, old_bytes, &asked, out);
            return;
        }
        let map = &self.vhds.get(id).expect("commands follow one another").state.map;
        let first_new = map.extents();
        map.grow(extents);
        match quota {
            Some(quota) => {
                self.fills.insert(id, Fill::of_growth(quota, first_new, old_bytes, asked));
                self.continue_fill(id, out);
            }
            None => self.resized(id, old_bytes, &asked, out),
        }
    }

    fn shrink(&mut self, id: VhdId, old_bytes: u64, asked: &[(CommandId, Outcome)], out: &mut impl OwnerOutbox) {
        let vhd = self.vhds.get_mut(id).expect("commands follow one another");
        let (extents, last) = tail(&vhd.record, self.geometry);
        let runs = give_back_from(&vhd.state.map, ExtentIndex(extents), &mut self.space);
        for (disk, runs) in runs.iter() {
            vhd.counts[disk.index()] -= runs.iter().map(|run| run.count).sum::<u32>();
        }
        vhd.frozen = false;
        vhd.state.map.shrink(extents, last);
        vhd.recount();
        vhd.state.set_size(vhd.record.size);
        vhd.state.door.open();
        self.forget_pages_beyond(id, extents);
        self.drop_waiters_beyond(id, ExtentIndex(extents), out);
        self.resized(id, old_bytes, asked, out);
        self.reuse_runs(runs, out);
    }

    /// The VHD has all that belongs to its new size: guests may address it, and whoever asked is answered.
    pub(super) fn resized(
        &mut self,
        id: VhdId,
        old_bytes: u64,
        asked: &[(CommandId, Outcome)],
        out: &mut impl OwnerOutbox,
    ) {
        let vhd = self.vhds.get(id).expect("a VHD that has just been resized");
        let new_bytes = vhd.record.size;
        vhd.state.set_size(new_bytes);
        if vhd.ready {
            out.vhd_changed(&vhd.record);
        }
        for (command, outcome) in asked {
            out.reply(*command, Ok(self.vhd_reply(vhd, *outcome)));
        }
        out.event(Event::VhdResized { vhd: vhd.record.name.clone(), old_bytes, new_bytes });
    }

    /// Slots that are free in the durable table go on to be used again.
    pub(super) fn reuse_runs(&mut self, runs: SlotRuns, out: &mut impl OwnerOutbox) {
        for (disk, runs) in runs {
            self.reuse.freed_runs_durably(disk, runs, out);
            self.usage.update(&self.space, disk, out);
        }
    }
}

/// Extents that stay, and blocks of the last of them that do.
fn tail(record: &VhdRecord, geometry: Geometry) -> (u32, BlockMask) {
    let extents = record.extents(geometry);
    let start = u64::from(extents - 1) * geometry.extent_size();
    (extents, geometry.blocks(0, record.size - start))
}

/// Blocks that a VHD would lose.
fn written_beyond(map: &VhdMap, extents: u32, last: BlockMask) -> u64 {
    let partial = map.lookup(ExtentIndex(extents - 1)).present.without(last);
    u64::from(partial.len()) + map.present_blocks_from(ExtentIndex(extents))
}

/// Gives back the slots of all extents from `from` on. The view still has them.
pub(super) fn give_back_from(map: &VhdMap, from: ExtentIndex, space: &mut Space) -> SlotRuns {
    let mut runs = SlotRuns::new();
    for extent in map.placed_from(from) {
        for replica in map.lookup(extent).replicas.iter() {
            space.give_back(replica.disk, replica.slot);
            super::reuse::push_slot(runs.entry(replica.disk).or_default(), replica.slot);
        }
    }
    runs
}
