//! The owner: decides where extents go and how VHDs begin and end. Typed commands and messages in, effects out.
//!
//! * [`command`]: commands, their answers and errors. [`outbox`]: what the owner makes happen.
//! * `allocate`: requests of reactors. `reuse`: how freed slots become free. `space`, `vhds`: what there is.
//! * `moves`: extents on their way to other disks. `replicas`: those that missed something. `jobs`: what moves them, and why.
//! * `hang`: disks that do not answer. `governor`: disks that are shared out.
//! * `vms`: groups of VHDs, and commands about them. `quota`, `reservation`: how much room VHDs and VMs may have, and always can.
//! * `commands`, `create`, `resize`, `fill`, `remove`, `fail`: commands step by step. `info`: answers to questions. `usage`,
//!   `health`: warnings.
//!
//! No thread, no clock, no disk: time is an argument, effects go to an [`outbox::OwnerOutbox`]. The simulation runs the
//! very code that runs in production.
//!
//! Invariants:
//! * A slot is used by at most one extent, and free only after the whole of `reuse`.
//! * A command that changes something has two phases: rows to the committer, and once they are durable the change in
//!   memory and the answer. Such commands follow one another, in the order in which they came.
//! * Nobody who waits for room could be given some.
//!
//! Uses `base`, `placement`, `shared`, `store::{change, edit}` and `reactor::messages`.

mod allocate;
pub mod command;
mod commands;
mod create;
mod domains;
pub mod error;
mod fail;
mod fill;
mod governor;
mod grow;
mod hang;
mod health;
mod info;
mod jobs;
mod limits;
mod moves;
pub mod outbox;
mod place;
mod quota;
mod remove;
mod replicas;
mod reservation;
mod resize;
mod reuse;
mod space;
mod sums;
mod usage;
mod vhds;
mod vms;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, VhdId};
use crate::base::units::Geometry;
use crate::engine::IoError;
use crate::placement::Replica;
use crate::placement::job::JobRecord;
use crate::placement::record::{PoolRecord, RecordError, VhdRecord};
use crate::placement::view::Keep;
use crate::policy::rules::Rules;
use crate::reactor::messages::{OwnerRequest, ReactorMessage};
use crate::shared::disk::{SyncNumber, SyncPoint};
use crate::shared::{DiskState, VhdState};
use crate::store::change::{Change, ChangeKind};
use crate::store::edit::{EditId, StoreReport};

use allocate::Waiter;
use command::{Command, CommandId};
use commands::Current;
use fill::Fill;
use governor::Governor;
use hang::Hangs;
use jobs::Jobs;
use limits::VmBuckets;
use moves::wave::{Missed, Waves};
use outbox::{Event, OwnerOutbox};
use replicas::{Intents, Repairs, Restore, Stale};
use reservation::Capacities;
use reuse::Reuse;
use space::Space;
use usage::Usage;
use vhds::{Vhd, Vhds};
use vms::Vms;

pub use vhds::vhd_state;

/// Why the owner cannot begin with what the store says. `spanblk check` on the disks tells everything that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The pool record is not usable.
    #[error("the pool record of the placement store cannot be used")]
    Record(#[from] RecordError),
    /// A disk of the pool was not given.
    #[error("disk '{disk}' of the pool is missing")]
    DiskMissing {
        /// Its name.
        disk: String,
    },
    /// The layout of a VHD names a disk that the pool does not have.
    #[error(
        "the placement store is damaged: VHD '{vhd}' may be on disk #{disk}, which is none of the pool; run `spanblk check` on \
         the disks"
    )]
    LayoutDisk {
        /// Name of the VHD.
        vhd: String,
        /// Identifier of the disk.
        disk: u8,
    },
    /// Two VHDs have one name or identifier.
    #[error("the placement store has two VHDs '{vhd}': run `spanblk check` on the disks")]
    TwinVhds {
        /// The name.
        vhd: String,
    },
    /// Two VMs have one name or identifier.
    #[error("the placement store has two VMs '{vm}': run `spanblk check` on the disks")]
    TwinVms {
        /// The name of one of them.
        vm: String,
    },
    /// A slot does not exist or belongs to two extents.
    #[error(
        "the placement store is damaged: extent {extent} of VHD '{vhd}' is in slot {slot} of disk '{disk}', which does not \
         exist or holds another extent; run `spanblk check` on the disks"
    )]
    SlotTaken {
        /// Name of the VHD.
        vhd: String,
        /// The extent.
        extent: u32,
        /// Name of the disk.
        disk: String,
        /// The slot.
        slot: u32,
    },
}

/// What the committer last said about the metadata region.
#[derive(Clone, Copy, Debug, Default)]
struct Metadata {
    used: u64,
    size: u64,
    low: bool,
}

/// The owner. See the module.
pub struct Owner {
    pool: PoolRecord,
    geometry: Geometry,
    reactors: u16,
    vhds: Vhds,
    vms: Vms,
    vm_buckets: VmBuckets,
    space: Space,
    reuse: Reuse,
    usage: Usage,
    capacity: Capacities,
    waiters: Vec<Waiter>,
    waves: Waves,
    stale: Stale,
    intents: Intents,
    repairs: Repairs,
    restore: Restore,
    hangs: Hangs,
    governor: Governor,
    jobs: Jobs,
    fills: BTreeMap<VhdId, Fill>,
    metadata: Metadata,
    queue: VecDeque<(CommandId, Command)>,
    current: Option<Current>,
    next_edit: u64,
    wall_secs: u64,
    now: Nanos,
    /// Where maps of new VHDs are kept for the next daemon.
    keep: Option<Arc<dyn Keep>>,
    /// What administrators want of the policy: what it may change by itself grows by itself, too.
    wanted: Rules,
    /// Changes that an earlier daemon had not made durable.
    recovered: Vec<Change>,
}

impl Owner {
    /// An owner of the pool as the store has it. `disks`: every disk of the pool (one that is missing: as a failed one).
    /// `vhds`: every VHD, made by [`vhd_state`], its map restored. Call [`Owner::start`] before anything else.
    ///
    /// Reads all maps once: about 0.7 s for 10 million placed extents.
    ///
    /// # Errors
    /// If the records or maps contradict each other.
    pub fn new(
        pool: PoolRecord,
        disks: Vec<Arc<DiskState>>,
        vhds: Vec<(VhdRecord, Arc<VhdState>)>,
        reactors: u16,
    ) -> Result<Owner, OpenError> {
        let geometry = pool.geometry()?;
        let mut space = Space::new();
        for record in &pool.disks {
            let state = disks.iter().find(|state| state.id == record.id);
            let state = state.ok_or_else(|| OpenError::DiskMissing { disk: record.name.clone() })?;
            space.add(Arc::clone(state), record, true);
            space.disk_mut(record.id).missing = state.is_failed();
        }
        let mut owner = Owner {
            pool,
            geometry,
            reactors,
            vhds: Vhds::default(),
            vms: Vms::default(),
            vm_buckets: VmBuckets::new(),
            space,
            reuse: Reuse::new(reactors),
            usage: Usage::new(geometry),
            capacity: Capacities::default(),
            waiters: Vec::new(),
            waves: Waves::default(),
            stale: Stale::default(),
            intents: Intents::default(),
            repairs: Repairs::default(),
            restore: Restore::default(),
            hangs: Hangs::default(),
            governor: Governor::default(),
            jobs: Jobs::default(),
            fills: BTreeMap::new(),
            metadata: Metadata::default(),
            queue: VecDeque::new(),
            current: None,
            next_edit: 1,
            wall_secs: 0,
            now: Nanos(0),
            keep: None,
            wanted: Rules::default(),
            recovered: Vec::new(),
        };
        for (record, state) in vhds {
            owner.adopt(record, state)?;
        }
        Ok(owner)
    }

    fn adopt(&mut self, record: VhdRecord, state: Arc<VhdState>) -> Result<(), OpenError> {
        assert_eq!((record.id, record.extents(self.geometry)), (state.id(), state.map.extents()));
        if self.vhds.id_of(&record.name).is_some() || self.vhds.get(record.id).is_some() {
            return Err(OpenError::TwinVhds { vhd: record.name });
        }
        if let Some(unknown) = record.layout.disks().iter().find(|disk| self.space.get(*disk).is_none()) {
            return Err(OpenError::LayoutDisk { vhd: record.name, disk: unknown.0 });
        }
        let mut vhd = Vhd::new(record, state, true, &self.space);
        vhd.adopt(&mut self.space).map_err(|(extent, replica)| OpenError::SlotTaken {
            vhd: vhd.record.name.clone(),
            extent: extent.0,
            disk: self.pool.disk_name(replica.disk),
            slot: replica.slot.0,
        })?;
        // What an earlier daemon completed may not be synced yet, and a guest that reconnects flushes as if nothing had
        // happened. (Nothing can be waited for on a disk that has failed; its reads and writes fail.)
        let works = |disk: &DiskId| !self.space.disk(*disk).state.is_failed();
        for disk in vhd.slots().into_keys().filter(works) {
            vhd.state.note_written(SyncPoint { disk, number: SyncNumber(1) });
        }
        self.vhds.insert(vhd);
        Ok(())
    }

    /// Takes over the jobs that the store has. Before [`Owner::start`].
    #[must_use]
    pub fn with_jobs(mut self, jobs: Vec<JobRecord>) -> Owner {
        self.jobs = Jobs::new(jobs);
        self
    }

    /// After how long a disk that does not answer has failed, and one that is missing is rebuilt; `None`: never.
    #[must_use]
    pub fn with_patience(mut self, hang: Option<Duration>, rebuild: Option<Duration>) -> Owner {
        self.hangs.patience = hang;
        self.restore.delay = rebuild;
        self
    }

    /// Keeps the maps of VHDs for the next daemon, should this one be killed; and takes over what an earlier one had not made
    /// durable, which the maps have already. Before [`Owner::start`].
    ///
    /// # Errors
    /// A slot that is to be freed holds something, or does not exist.
    pub fn with_kept(mut self, keep: Option<Arc<dyn Keep>>, recovered: Vec<Change>) -> Result<Owner, OpenError> {
        for change in &recovered {
            let ChangeKind::Freed { freed } = change.kind else { continue };
            for Replica { disk, slot, .. } in freed.iter() {
                // It cannot be used before the table says that it is free (ordering rule 2).
                if !self.space.adopt(disk, slot) {
                    let vhd = self.vhds.get(change.vhd).map_or_else(String::new, |vhd| vhd.record.name.clone());
                    let disk = self.pool.disk_name(disk);
                    return Err(OpenError::SlotTaken { vhd, extent: change.extent.0, disk, slot: slot.0 });
                }
                self.space.give_back(disk, slot);
            }
        }
        // On a disk that has failed no sync will come: a FLUSH asks whether it can do without. (For the others see `adopt`.)
        for change in &recovered {
            if let (ChangeKind::Written { needs, .. }, Some(vhd)) = (change.kind, self.vhds.get(change.vhd)) {
                needs.iter().flatten().for_each(|need| vhd.state.note_written(*need));
            }
        }
        (self.keep, self.recovered) = (keep, recovered);
        Ok(self)
    }

    /// Begins: hands over what an earlier daemon left pending, limits rates, reports how full disks are, gives thick VHDs the room that a crash
    /// kept from them, looks for replicas that may differ, and goes on with jobs.
    pub fn start(&mut self, out: &mut impl OwnerOutbox) {
        for change in std::mem::take(&mut self.recovered) {
            if let Some(vhd) = self.vhds.get(change.vhd) {
                vhd.state.change_handed_over();
                out.change(change);
                out.commit();
            }
        }
        self.limit_all(out);
        for record in &self.pool.disks {
            self.usage.update(&self.space, record.id, out);
        }
        self.refresh_holds();
        let wanting = |vhd: &&Vhd| vhd.record.thick && vhd.absent() > 0;
        let wanting: Vec<VhdId> = self.vhds.iter().filter(wanting).map(|vhd| vhd.record.id).collect();
        for id in wanting {
            self.resume_fill(id, out);
        }
        self.tell_reservations(out);
        self.look_for_doubt(out);
        self.look_at_redundancy(None);
        self.resume_jobs(out);
    }

    /// Takes a message of a reactor.
    pub fn handle_reactor(&mut self, request: OwnerRequest, now: Nanos, out: &mut impl OwnerOutbox) {
        match request {
            OwnerRequest::Allocate { reactor, ticket, vhd, extent } => {
                self.allocate(Waiter { reactor, ticket, vhd, extent, deadline: now, grows: false }, now, out);
            }
            OwnerRequest::Free { reactor, ticket, vhd, extent } => {
                self.free(vhd, extent, now, out);
                out.to_reactor(reactor, ReactorMessage::Freed { ticket });
            }
            OwnerRequest::FenceReached { reactor, fence } => {
                if let Some(reached) = self.reuse.reached(reactor, fence, out) {
                    self.fence_reached(reached, out);
                }
            }
            OwnerRequest::Turned { reactor } => self.turned(reactor),
            OwnerRequest::Stirred => self.governor.stir(),
            OwnerRequest::LimitHit { vhd, by } => self.limit_hit(vhd, by, out),
            OwnerRequest::Intend { reactor, ticket, vhd, extent } => self.intend((reactor, ticket), vhd, extent, out),
            OwnerRequest::ReadFailed { vhd, extent, disk } => self.read_failed(vhd, extent, disk, out),
            OwnerRequest::ReplicasDiffer { vhd, extent } => self.replicas_differ(vhd, extent, out),
            OwnerRequest::DiskError { disk, error, sync } => {
                self.disk_error(disk, error, sync, out);
                self.watch_disk(disk, now, out);
            }
            OwnerRequest::CopyMissed { reactor, vhd, disk, by } => {
                self.copy_missed(Missed { reactor, vhd, disk, by }, out);
            }
        }
    }

    /// Takes a message of the committer.
    pub fn handle_store(&mut self, report: StoreReport, out: &mut impl OwnerOutbox) {
        match report {
            StoreReport::Freed { slots } => {
                let mut by_disk: BTreeMap<_, Vec<_>> = BTreeMap::new();
                for (disk, slot) in slots {
                    by_disk.entry(disk).or_default().push(slot);
                }
                for (disk, slots) in by_disk {
                    self.reuse.freed_durably(disk, slots, out);
                }
            }
            StoreReport::EditDone { edit, result } => self.edit_done(edit, result, out),
            StoreReport::MemberDropped { disk, sync_failed } => {
                // Without a failed sync only the store has lost the disk, which the committer has logged.
                if sync_failed && self.space.get(disk).is_some() {
                    self.disk_error(disk, IoError::Os(libc::EIO), true, out);
                }
            }
            StoreReport::Fill { used, size, low } => {
                let was_low = std::mem::replace(&mut self.metadata, Metadata { used, size, low }).low;
                if low != was_low {
                    out.event(Event::MetadataLow { low, used, size });
                    self.retry_waiters(out);
                }
            }
        }
    }

    /// A frontend has attached (`Some`: its process, 0 if that is not known) or left.
    pub fn handle_attached(&mut self, vhd: VhdId, pid: Option<u32>, out: &mut impl OwnerOutbox) {
        let Some(vhd) = self.vhds.get_mut(vhd) else { return };
        if std::mem::replace(&mut vhd.attached, pid) == pid {
            return;
        }
        let vhd = vhd.record.name.clone();
        out.event(match pid {
            Some(pid) => Event::VhdAttached { vhd, pid },
            None => Event::VhdDetached { vhd },
        });
    }

    /// Lets time pass. Call when [`Owner::next_deadline`] has come; oftener does no harm.
    pub fn tick(&mut self, now: Nanos, out: &mut impl OwnerOutbox) {
        self.expire_waiters(now, out);
        self.reuse.ask_for_commit(now, !self.waiters.is_empty(), out);
        self.clean_intents(now, out);
        self.look_for_hangs(now, out);
        self.restore_redundancy(now, out);
        self.govern(now, out);
    }

    /// Moves that ended before they were durable (dropped content, deleted VHDs, cancelled jobs, failed disks), by the step of
    /// [`command::MOVE_STEPS`] that they were at.
    #[must_use]
    pub fn moves_ended_early(&self) -> [u64; command::MOVE_STEPS.len()] {
        self.waves.ended_early
    }

    /// What the time is for people, in seconds since the Unix epoch: for records.
    pub fn set_wall_secs(&mut self, secs: u64) {
        self.wall_secs = secs;
    }

    /// When [`Owner::tick`] has something to do; `None`: only after another message.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.waiters
            .iter()
            .map(|request| request.deadline)
            .chain(self.reuse.due())
            .chain(self.intents.due())
            .chain(self.hangs.due())
            .chain(self.restore.due())
            .chain(self.governor.due())
            .min()
    }

    fn next_edit(&mut self) -> EditId {
        let edit = EditId(self.next_edit);
        self.next_edit += 1;
        edit
    }
}
#[cfg(test)]
mod tests;
