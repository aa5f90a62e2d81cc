//! A disk takes the place of another one, and what nobody can read any more.
//!
//! If the disk that goes has failed, extents that have a replica elsewhere are copied from there. What only failed disks have is
//! lost: it is named, and if that is accepted, the extents are dropped, as if their guest had discarded them. They read as
//! zeros then, and can be written again.

use super::super::Owner;
use super::super::command::{CommandError, LostData, Replacement};
use super::super::outbox::{Event, OwnerOutbox};
use super::super::vhds::Vhd;
use super::goal::Wanted;
use crate::base::ids::{DiskId, DiskSet, JobId, ReactorId, VhdId};
use crate::base::limits::LOST_RANGES_MAX;
use crate::base::units::{BlockMask, ExtentIndex, Geometry};
use crate::placement::ReplicaState;
use crate::placement::job::JobKind;
use crate::placement::record::{Accept, Layout};
use crate::placement::view::Lookup;
use crate::reactor::messages::ReactorMessage;

/// A disk that is to take the place of another one.
pub(super) struct StandIn {
    pub id: DiskId,
    accept: Accept,
    name: String,
}

impl Owner {
    /// Whether the disk can take the place of `old`.
    pub(super) fn stand_in(&self, old: DiskId, by: &Replacement) -> Result<StandIn, CommandError> {
        match by {
            Replacement::Joining(disk) => {
                let id = self.next_disk_id().ok_or(CommandError::TooManyDisks)?;
                Ok(StandIn { id, accept: disk.accept, name: disk.name.clone() })
            }
            Replacement::Disk { name } => {
                let id = self.disk_named(name)?;
                let (space, name) = (self.space.disk(id), self.pool.disk_name(id));
                if id == old {
                    return Err(CommandError::ReplacedByItself { disk: name });
                }
                if space.state.is_failed() {
                    return Err(CommandError::DiskFailed { disk: name });
                }
                Ok(StandIn { id, accept: space.accepts(), name })
            }
        }
    }

    /// Everything that is on `old` or may be put there to `by`, the largest first.
    pub(super) fn replaced(&self, old: DiskId, by: &StandIn) -> Result<Vec<Wanted>, CommandError> {
        let mut here: Vec<&Vhd> = self.vhds.iter().filter(|vhd| vhd.is_on(old)).collect();
        here.sort_by_key(|vhd| (std::cmp::Reverse(vhd.counts[old.index()]), vhd.record.id));
        here.into_iter().map(|vhd| Ok(Wanted::layout(vhd, with(&vhd.record.layout, old, by)?))).collect()
    }

    /// Per VHD, extents with written data that only failed disks have, if the job empties one of those.
    pub(super) fn lost_of(&self, kind: &JobKind, wanted: &[Wanted]) -> Vec<Vec<ExtentIndex>> {
        let lost = |wanted: &Wanted| match (kind.empties(), self.vhds.get(wanted.vhd)) {
            (Some(disk), Some(vhd)) => self.lost_extents(vhd, disk, DiskSet(u64::MAX)),
            _ => Vec::new(),
        };
        wanted.iter().map(lost).collect()
    }

    /// Whether a disk may be replaced although data is lost with it. (Evacuating moves what can be read, and stops then.)
    pub(super) fn check_loss(
        &self,
        kind: &JobKind,
        wanted: &[Wanted],
        lost: &[Vec<ExtentIndex>],
    ) -> Result<(), CommandError> {
        let JobKind::Replace { disk, gives_up, .. } = kind else { return Ok(()) };
        if !gives_up.is_empty() {
            return Ok(());
        }
        let amount = |(wanted, lost): (&Wanted, &Vec<ExtentIndex>)| {
            let vhd = self.vhds.get(wanted.vhd).filter(|_| !lost.is_empty())?;
            Some((vhd.record.name.clone(), self.lost_data(vhd, lost).bytes))
        };
        let lost: Vec<(String, u64)> = wanted.iter().zip(lost).filter_map(amount).collect();
        if lost.is_empty() { Ok(()) } else { Err(CommandError::LosesData { disk: self.pool.disk_name(*disk), lost }) }
    }

    /// The disks that have failed, if `disk` has and the loss is accepted.
    pub(super) fn given_up(&self, disk: DiskId, accept_loss: bool) -> Vec<DiskId> {
        if !accept_loss || !self.space.disk(disk).state.is_failed() {
            return Vec::new();
        }
        self.space.iter().filter(|disk| disk.state.is_failed()).map(|disk| disk.state.id).collect()
    }

    /// Extents of the VHD with written data that only disks `among` have, which have failed, and `disk` is one of them.
    fn lost_extents(&self, vhd: &Vhd, disk: DiskId, among: DiskSet) -> Vec<ExtentIndex> {
        if vhd.counts[disk.index()] == 0 || !self.space.disk(disk).state.is_failed() {
            return Vec::new();
        }
        let map = &vhd.state.map;
        map.placed_from(ExtentIndex(0)).filter(|extent| self.is_lost(&map.lookup(*extent), disk, among)).collect()
    }

    fn is_lost(&self, seen: &Lookup, disk: DiskId, among: DiskSet) -> bool {
        let is_gone = |disk| among.contains(disk) && self.space.disk(disk).state.is_failed();
        // What missed a write is no replica of what is there.
        let mut in_sync = seen.replicas.iter().filter(|replica| replica.state == ReplicaState::InSync);
        seen.replicas.settled().on(disk).is_some()
            && in_sync.all(|replica| is_gone(replica.disk))
            && !seen.present.is_empty()
    }

    /// What would be lost with these extents.
    pub(super) fn lost_data(&self, vhd: &Vhd, extents: &[ExtentIndex]) -> LostData {
        let mut lost = LostData::default();
        for extent in extents {
            let present = vhd.state.map.lookup(*extent).present;
            note_lost(&mut lost, self.geometry, *extent, present, vhd.record.size);
        }
        lost
    }

    /// Drops what only the disks have that had failed when the job was ordered, if it is to be given up. An extent that a request
    /// of a guest is just about stays until the job comes by again.
    pub(super) fn give_up_lost(&mut self, job: JobId, id: VhdId, out: &mut impl OwnerOutbox) {
        let kind = self.jobs.get(job).map(|job| &job.record.kind);
        let Some((disk, kind)) = kind.and_then(|kind| Some((kind.empties()?, kind))) else { return };
        let among: DiskSet = kind.gives_up().iter().copied().collect();
        let Some(vhd) = self.vhds.get(id) else { return };
        let extents = self.lost_extents(vhd, disk, among);
        let (name, size, state) = (vhd.record.name.clone(), vhd.record.size, vhd.state.clone());
        let mut lost = LostData::default();
        for extent in extents {
            let seen = state.map.lookup(extent);
            let Ok(present) = state.map.claim_and_clear(extent, BlockMask::ALL, seen.version) else { continue };
            note_lost(&mut lost, self.geometry, extent, present, size);
            self.drop_claimed(id, extent, out);
            state.map.release(extent, BlockMask::ALL, BlockMask::NONE);
            self.job_readable(job, id, extent);
        }
        if lost.bytes == 0 {
            return;
        }
        let mut waiters = state.take_release_waiters();
        while waiters != 0 {
            let reactor = u16::try_from(waiters.trailing_zeros()).expect("a bit of a u64");
            waiters &= waiters - 1;
            out.to_reactor(ReactorId(reactor), ReactorMessage::ClaimReleased { vhd: id });
        }
        out.commit();
        out.event(Event::DataLost { vhd: name, disk: self.pool.disk_name(disk), lost });
    }
}

/// The layout with `by` in the place of `old`.
fn with(layout: &Layout, old: DiskId, by: &StandIn) -> Result<Layout, CommandError> {
    if !layout.disks().contains(old) {
        return Ok(layout.clone());
    }
    let accepts = match layout {
        Layout::Isolated { .. } => by.accept.isolated(),
        Layout::Spanned { .. } => by.accept.spanned(),
    };
    if !accepts {
        let (disk, accept) = (by.name.clone(), by.accept);
        return Err(CommandError::DiskRefuses { disk, layout: layout.word(), accept });
    }
    Ok(match layout {
        Layout::Isolated { chosen, .. } => Layout::Isolated { disk: by.id, chosen: *chosen },
        Layout::Spanned { disks, width, chosen } => {
            let mut disks: Vec<DiskId> = disks.iter().copied().filter(|disk| *disk != old && *disk != by.id).collect();
            disks.push(by.id);
            disks.sort_unstable();
            Layout::Spanned { disks, width: *width, chosen: *chosen }
        }
    })
}

/// Adds what is present of an extent.
fn note_lost(lost: &mut LostData, geometry: Geometry, extent: ExtentIndex, present: BlockMask, size: u64) {
    let (block, start) = (geometry.block_size(), u64::from(extent.0) * geometry.extent_size());
    for index in (0..BlockMask::ALL.len()).filter(|block| present.has(*block)) {
        let from = start + u64::from(index) * block;
        let to = (from + block).min(size);
        lost.bytes += to - from;
        let is_full = lost.ranges.len() == LOST_RANGES_MAX;
        match lost.ranges.last_mut() {
            Some(last) if last.end == from => last.end = to,
            _ if is_full => {}
            _ => lost.ranges.push(from..to),
        }
    }
}
