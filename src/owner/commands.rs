//! Commands that change something: one at a time, rows to the committer first, the change and the answer once they are
//! durable.

use std::sync::Arc;

use super::Owner;
use super::command::{AddDisk, Command, CommandError, CommandId, Outcome, Reply, SetDisk, SetVhd};
use super::create::Creation;
use super::jobs::commands::JobStart;
use super::outbox::{Event, OwnerOutbox};
use super::quota::vhd_subject;
use super::resize::{Resize, give_back_from};
use super::reuse::Reached;
use super::vms::{NewVm, VmChange};
use crate::base::ids::{DiskId, VhdId, VmId, check_name};
use crate::base::limits::{COMMANDS_WAITING_MAX, DISKS_MAX, QUEUES_MAX};
use crate::base::units::ExtentIndex;
use crate::placement::record::{DiskRecord, Expand, PoolRecord, VhdRecord};
use crate::policy::rules::Rules;
use crate::shared::DiskState;
use crate::store::edit::{EditFailed, EditId, StoreEdit};

/// The command in progress.
#[derive(Debug)]
pub(super) struct Current {
    command: CommandId,
    edit: EditId,
    action: Action,
}

/// What to do once its rows are durable.
#[derive(Debug)]
pub(super) enum Action {
    Create(Box<Creation>),
    Delete {
        vhd: VhdId,
    },
    Resize(Box<Resize>),
    ChangeVhd {
        record: Box<VhdRecord>,
        event: Event,
        /// The VM that it belongs to from now on, if there was none of that name.
        vm: Option<Box<NewVm>>,
    },
    ChangeVm(Box<VmChange>),
    KeepPolicy(Box<Rules>),
    DeleteVm {
        vm: VmId,
    },
    ChangeCacheMode {
        record: Box<VhdRecord>,
    },
    AddDisk {
        pool: PoolRecord,
        record: Box<DiskRecord>,
        state: Arc<DiskState>,
    },
    /// The disk is added and being made known to the reactors.
    OpenDisk {
        disk: DiskId,
    },
    ChangeDisk {
        pool: PoolRecord,
        disk: DiskId,
    },
    RemoveDisk {
        pool: PoolRecord,
        disk: DiskId,
    },
    ChangePool {
        pool: PoolRecord,
    },
    StartJob(Box<JobStart>),
}

/// What a command comes to, at first.
pub(super) enum Step {
    /// Nothing is to be done (any more).
    Done(Reply),
    /// These rows are to be written.
    Commit { rows: Vec<StoreEdit>, action: Action },
    /// The answer comes with something that is in progress already.
    Joined,
}

impl Owner {
    /// Takes a command. Answered with `id`, at once or later.
    pub fn handle_command(&mut self, id: CommandId, command: Command, out: &mut impl OwnerOutbox) {
        match command {
            Command::ShowVhd { vhd } => {
                let found = self.vhds.find(&vhd).ok_or_else(|| not_found("VHD", &vhd));
                let info = found.map(|vhd| self.vhd_info(vhd));
                out.reply(id, info.map(|vhd| Reply::Vhd { outcome: Outcome::Unchanged, vhd: Box::new(vhd) }));
            }
            Command::ListVhds => {
                out.reply(id, Ok(Reply::Vhds(self.vhds.by_name().map(|vhd| self.vhd_info(vhd)).collect())));
            }
            Command::ShowVm { vm } => out.reply(id, self.show_vm(&vm)),
            Command::ListVms => out.reply(id, Ok(Reply::Vms(self.vm_infos()))),
            Command::ShowPool => out.reply(id, Ok(Reply::Pool(Box::new(self.pool_info())))),
            Command::ListJobs => out.reply(id, Ok(Reply::Jobs(self.job_infos()))),
            Command::ShowJob(job) => {
                let found = self.jobs.get(job).map(|_| self.job_info(job)).ok_or(CommandError::NoJob { job: job.0 });
                out.reply(id, found.map(|job| Reply::Job { outcome: Outcome::Unchanged, job: Box::new(job) }));
            }
            Command::Check => out.reply(id, Ok(Reply::Check(Box::new(self.check())))),
            Command::FailDisk { disk } => {
                let reply = self.fail_disk(&disk, out);
                out.reply(id, reply);
            }
            ref change
                if self.queue.len() >= COMMANDS_WAITING_MAX && !matches!(change, Command::SetCacheMode { .. }) =>
            {
                out.reply(id, Err(CommandError::Busy));
            }
            change => {
                self.queue.push_back((id, change));
                self.next_command(out);
            }
        }
    }

    /// Begins commands until one has something to wait for.
    fn next_command(&mut self, out: &mut impl OwnerOutbox) {
        while self.current.is_none() {
            let Some((command, change)) = self.queue.pop_front() else { return };
            match self.begin(command, change, out) {
                Ok(Step::Done(reply)) => out.reply(command, Ok(reply)),
                Ok(Step::Joined) => {}
                Ok(Step::Commit { rows, action }) => {
                    let edit = self.next_edit();
                    let deleted = if let Action::Delete { vhd } = action { Some(vhd) } else { None };
                    let cut = if let Action::Resize(resize) = &action { resize.shrinking() } else { None };
                    if let Some(vhd) = deleted.or(cut).and_then(|vhd| self.vhds.get_mut(vhd)) {
                        vhd.frozen = true;
                    }
                    self.current = Some(Current { command, edit, action });
                    out.edit(edit, rows);
                    if let Some(vhd) = deleted {
                        self.leave_jobs(vhd, out);
                    }
                }
                Err(error) => {
                    self.settle_reservations(out);
                    out.reply(command, Err(error));
                }
            }
        }
    }

    fn begin(&mut self, id: CommandId, command: Command, out: &mut impl OwnerOutbox) -> Result<Step, CommandError> {
        match command {
            Command::CreateVhd(create) => self.begin_create(id, &create),
            Command::DeleteVhd { vhd, force } => self.begin_delete(&vhd, force, out),
            Command::RenameVhd { vhd, to } => self.begin_rename(&vhd, &to),
            Command::ResizeVhd(resize) => self.begin_resize(id, &resize),
            Command::SetVhd(set) => self.begin_set_vhd(&set),
            Command::SetCacheMode { vhd, writeback } => self.begin_set_cache_mode(vhd, writeback),
            Command::CreateVm(create) => self.begin_create_vm(&create),
            Command::SetVm(set) => self.begin_set_vm(set),
            Command::DeleteVm { vm } => self.begin_delete_vm(&vm),
            Command::AddDisk(add) => self.begin_add_disk(*add),
            Command::RemoveDisk { disk, step } => self.begin_remove_disk(&disk, step, out),
            Command::SetPool { expand } => self.begin_set_pool(expand),
            Command::KeepPolicy(rules) => Ok(Owner::begin_keep_policy(rules)),
            Command::SetDisk(set) => self.begin_set_disk(&set),
            Command::StartJob(start) => self.begin_start_job(&start),
            Command::SetJob(set) => self.begin_set_job(&set, out),
            Command::Restore { disk, what } => self.begin_restore(disk, what),
            Command::CancelJob { job, revert, now } => self.begin_cancel_job(job, revert, now, out),
            Command::ShowVhd { .. }
            | Command::ListVhds
            | Command::ShowVm { .. }
            | Command::ListVms
            | Command::ShowPool
            | Command::ShowJob(_)
            | Command::ListJobs
            | Command::FailDisk { .. }
            | Command::Check => {
                unreachable!("answered at once")
            }
        }
    }

    fn begin_delete(&mut self, name: &str, force: bool, out: &mut impl OwnerOutbox) -> Result<Step, CommandError> {
        let vhd = self.vhds.find(name).ok_or_else(|| not_found("VHD", name))?;
        if let (Some(pid), false) = (vhd.attached, force) {
            let vhd = vhd.record.name.clone();
            return Err(CommandError::Attached { vhd, pid, hint: ", or delete it with --force" });
        }
        let id = vhd.record.id;
        // No part of it may be written after its deletion.
        let deleted = CommandError::Deleted { vhd: vhd.record.name.clone() };
        self.stop_fill(id, &deleted, out);
        Ok(Step::Commit { rows: vec![StoreEdit::DeleteVhd(id)], action: Action::Delete { vhd: id } })
    }

    fn begin_rename(&mut self, name: &str, to: &str) -> Result<Step, CommandError> {
        let vhd = self.vhds.find(name).ok_or_else(|| not_found("VHD", name))?;
        check_name(to).map_err(|source| CommandError::InvalidName { what: "VHD", source })?;
        if vhd.record.name == to {
            return Ok(Step::Done(self.vhd_reply(vhd, Outcome::Unchanged)));
        }
        if self.vhds.id_of(to).is_some() {
            return Err(CommandError::NameTaken { what: "VHD", name: to.to_owned() });
        }
        let mut record = vhd.record.clone();
        let from = std::mem::replace(&mut record.name, to.to_owned());
        Ok(change_vhd(record, Event::VhdRenamed { from, to: to.to_owned() }, None))
    }

    fn begin_set_vhd(&mut self, set: &SetVhd) -> Result<Step, CommandError> {
        let vhd = self.vhds.find(&set.vhd).ok_or_else(|| not_found("VHD", &set.vhd))?;
        let mut record = vhd.record.clone();
        let mut new_vm = None;
        if let Some(vm) = &set.vm {
            new_vm = self.new_vm(vm.as_deref(), self.wall_secs)?;
            record.vm.clone_from(vm);
        }
        if let Some(owner) = &set.socket_owner {
            record.socket_owner.clone_from(owner);
        }
        if let Some(mode) = set.socket_mode {
            record.socket_mode = check_mode(mode)?;
        }
        if let Some(when_full) = set.when_full {
            record.when_full = when_full;
        }
        if let Some(expand) = set.expand {
            record.expand = expand;
        }
        record.limits = record.limits.with(set.limits);
        record.limits.check()?;
        record.sharing = record.sharing.with(set.sharing);
        record.sharing.check()?;
        if let Some(queues) = set.queues {
            record.queues = check_queues(queues)?;
            if let (Some(pid), true) = (vhd.attached, queues != vhd.record.queues) {
                return Err(CommandError::Attached { vhd: record.name, pid, hint: " to change its queues" });
            }
        }
        record.capacity = self.new_capacity(|| vhd_subject(&vhd.record.name), record.capacity, set.capacity)?;
        if record == vhd.record {
            return Ok(Step::Done(self.vhd_reply(vhd, Outcome::Unchanged)));
        }
        self.check_capacity(&record)?;
        self.hold_for(std::slice::from_ref(&record), None, None)?;
        let event = Event::VhdChanged { vhd: record.name.clone() };
        Ok(change_vhd(record, event, new_vm))
    }

    fn begin_set_cache_mode(&mut self, id: VhdId, writeback: bool) -> Result<Step, CommandError> {
        let vhd = self.vhds.get(id).ok_or_else(|| not_found("VHD", &format!("#{}", id.0)))?;
        if vhd.record.writeback == writeback {
            return Ok(Step::Done(self.vhd_reply(vhd, Outcome::Unchanged)));
        }
        let record = VhdRecord { writeback, ..vhd.record.clone() };
        let rows = vec![StoreEdit::PutVhd(record.clone())];
        Ok(Step::Commit { rows, action: Action::ChangeCacheMode { record: Box::new(record) } })
    }

    fn begin_set_pool(&mut self, expand: Option<Option<Expand>>) -> Result<Step, CommandError> {
        let pool = PoolRecord { expand: expand.unwrap_or(self.pool.expand), ..self.pool.clone() };
        if pool == self.pool {
            return Ok(Step::Done(Reply::Pool(Box::new(self.pool_info()))));
        }
        let rows = vec![StoreEdit::PutPool(pool.clone())];
        Ok(Step::Commit { rows, action: Action::ChangePool { pool } })
    }

    fn begin_set_disk(&mut self, set: &SetDisk) -> Result<Step, CommandError> {
        let disk = self.pool.find_disk(&set.disk).ok_or_else(|| not_found("disk", &set.disk))?;
        let id = disk.id;
        let mut pool = self.pool.clone();
        let record = pool.disks.iter_mut().find(|disk| disk.id == id).expect("found above");
        if let Some(accept) = set.accept {
            record.accept = accept;
        }
        if let Some(domain) = &set.failure_domain {
            // The label of the disk has the same rule.
            check_name(domain).map_err(|source| CommandError::InvalidName { what: "failure domain", source })?;
            if record.failure_domain != *domain {
                self.check_domain(id, domain)?;
            }
            record.failure_domain.clone_from(domain);
        }
        if pool == self.pool {
            return Ok(Step::Done(self.disk_reply(id, Outcome::Unchanged)));
        }
        let rows = vec![StoreEdit::PutPool(pool.clone())];
        Ok(Step::Commit { rows, action: Action::ChangeDisk { pool, disk: id } })
    }

    fn begin_add_disk(&mut self, add: AddDisk) -> Result<Step, CommandError> {
        let AddDisk { record, state } = add;
        if let Some(known) = self.pool.disks.iter().find(|disk| disk.uuid == record.uuid) {
            return Ok(Step::Done(self.disk_reply(known.id, Outcome::Unchanged)));
        }
        check_name(&record.name).map_err(|source| CommandError::InvalidName { what: "disk", source })?;
        if self.pool.find_disk(&record.name).is_some() {
            return Err(CommandError::NameTaken { what: "disk", name: record.name });
        }
        if self.pool.disks.len() >= DISKS_MAX {
            return Err(CommandError::TooManyDisks);
        }
        if self.next_disk_id() != Some(record.id) {
            return Err(CommandError::DiskIdTaken { disk: record.name });
        }
        if let Some(other) = self.space.iter().find(|disk| disk.state.block_size != state.block_size) {
            let pool = other.state.block_size;
            return Err(CommandError::BlockSizesMixed { disk: record.name, block_size: state.block_size, pool });
        }
        assert_eq!((state.id, state.slots), (record.id, record.slots), "state and record describe one disk");
        let mut pool = self.pool.clone();
        pool.disks.push(record.clone());
        let rows = vec![StoreEdit::PutPool(pool.clone())];
        Ok(Step::Commit { rows, action: Action::AddDisk { pool, record: Box::new(record), state } })
    }

    /// Rows of a command, or of a fill, are durable, or failed.
    pub(super) fn edit_done(&mut self, edit: EditId, result: Result<(), EditFailed>, out: &mut impl OwnerOutbox) {
        let Some(Current { command, action, .. }) = self.current.take_if(|current| current.edit == edit) else {
            let is_done = self.wave_edit_done(edit, result, out)
                || self.stale_edit_done(edit, result, out)
                || self.intent_edit_done(edit, result, out);
            if !is_done {
                self.fill_edit_done(edit, result, out);
            }
            return;
        };
        self.capacity.coming = None;
        match result {
            Ok(()) => {
                self.apply(command, action, out);
                self.settle_reservations(out);
            }
            Err(failed) => {
                match action {
                    Action::Create(creation) => self.cancel_creation(&creation),
                    Action::Resize(resize) => self.cancel_resize(&resize),
                    Action::RemoveDisk { disk, .. } => self.space.disk_mut(disk).open = true,
                    _ => {}
                }
                self.settle_reservations(out);
                out.reply(command, Err(failed.into()));
            }
        }
        self.next_command(out);
    }

    fn apply(&mut self, command: CommandId, action: Action, out: &mut impl OwnerOutbox) {
        match action {
            Action::Create(creation) => self.apply_creation(command, *creation, out),
            Action::Delete { vhd } => self.apply_delete(command, vhd, out),
            Action::Resize(resize) => self.apply_resize(command, *resize, out),
            Action::ChangeVm(change) => self.apply_vm_change(command, *change, out),
            Action::DeleteVm { vm } => self.apply_delete_vm(command, vm, out),
            Action::KeepPolicy(rules) => self.apply_policy(command, *rules, out),
            Action::ChangeVhd { record, event, vm } => {
                let id = record.id;
                if let Some(vm) = vm {
                    self.apply_vm_of_vhd(*vm, out);
                }
                self.vhds.replace_record(*record, &self.space);
                self.limit_vhd(id, out);
                // It may grow onto other disks now.
                self.retry_waiters(out);
                let vhd = self.vhds.get(id).expect("just changed");
                if vhd.ready {
                    out.vhd_changed(&vhd.record);
                }
                out.reply(command, Ok(self.vhd_reply(vhd, Outcome::Changed)));
                out.event(event);
            }
            // No event: a guest may switch as often as it likes, and must not drown what an administrator wants to see.
            Action::ChangeCacheMode { record } => {
                let id = record.id;
                self.vhds.replace_record(*record, &self.space);
                let vhd = self.vhds.get(id).expect("just changed");
                out.reply(command, Ok(self.vhd_reply(vhd, Outcome::Changed)));
            }
            Action::AddDisk { pool, record, state } => {
                self.pool = pool;
                self.space.add(state, &record, false);
                out.disk_added(record.id);
                out.event(Event::DiskAdded { disk: record.name.clone() });
                let action = Action::OpenDisk { disk: record.id };
                self.current = Some(Current { command, edit: EditId(0), action });
                if let Some(reached) = self.reuse.open_disk(record.id, out) {
                    self.open_disk(&reached, out);
                }
            }
            Action::ChangeDisk { pool, disk } => {
                self.pool = pool;
                let record = self.pool.disk(disk).expect("the disk is in the pool");
                let space = self.space.disk_mut(disk);
                space.accept = record.accept;
                space.failure_domain.clone_from(&record.failure_domain);
                out.event(Event::DiskChanged { disk: record.name.clone() });
                out.reply(command, Ok(self.disk_reply(disk, Outcome::Changed)));
            }
            Action::RemoveDisk { pool, disk } => {
                let reply = self.apply_remove_disk(pool, disk, out);
                out.reply(command, Ok(reply));
            }
            Action::ChangePool { pool } => {
                self.pool = pool;
                out.reply(command, Ok(Reply::Pool(Box::new(self.pool_info()))));
                self.retry_waiters(out);
            }
            Action::StartJob(start) => {
                let reply = self.apply_start_job(*start, out);
                out.reply(command, Ok(reply));
            }
            Action::OpenDisk { .. } => unreachable!("a disk is opened by a fence, not by rows"),
        }
    }

    fn apply_delete(&mut self, command: CommandId, id: VhdId, out: &mut impl OwnerOutbox) {
        let vhd = self.vhds.remove(id).expect("commands follow one another");
        // From here on no reactor looks up a place of this VHD; the fences that follow wait for those that did before.
        vhd.state.mark_deleted();
        vhd.state.map.forget();
        let runs = give_back_from(&vhd.state.map, ExtentIndex(0), &mut self.space);
        self.space.forget(id);
        self.drop_waiters(id, out);
        out.close_vhd(id);
        let name = vhd.record.name;
        out.event(Event::VhdDeleted { vhd: name.clone() });
        out.reply(command, Ok(Reply::Deleted { id, name }));
        self.forget_waves(id, out);
        self.answer_missed(out);
        self.reuse_runs(runs, out);
    }

    /// A fence was reached: if it was that of a new disk, the disk is in use from now on.
    pub(super) fn fence_reached(&mut self, reached: Reached, out: &mut impl OwnerOutbox) {
        // A VHD that was moved away must not depend on the disk any more.
        for vhd in self.vhds.iter().filter(|vhd| vhd.counts[reached.disk.index()] == 0) {
            vhd.state.leave_disk(reached.disk);
        }
        for wave in &reached.waves {
            if !self.cleaning_passed(*wave, reached.disk, out) {
                self.wave_fence_reached(*wave, reached.disk, out);
            }
        }
        if reached.closes {
            self.close_disk(reached.disk, out);
        }
        if reached.opens {
            self.open_disk(&reached, out);
            self.next_command(out);
        }
    }

    fn open_disk(&mut self, reached: &Reached, out: &mut impl OwnerOutbox) {
        self.space.disk_mut(reached.disk).open = true;
        self.usage.update(&self.space, reached.disk, out);
        let current = self.current.take().expect("a disk is opened by the command in progress");
        assert!(matches!(current.action, Action::OpenDisk { disk } if disk == reached.disk));
        // Reservations that are short come before who waits for room.
        self.settle_reservations(out);
        self.run_jobs(out);
        out.reply(current.command, Ok(self.disk_reply(reached.disk, Outcome::Created)));
    }
}

fn change_vhd(record: VhdRecord, event: Event, vm: Option<NewVm>) -> Step {
    let mut rows: Vec<StoreEdit> = vm.iter().flat_map(NewVm::rows).collect();
    rows.push(StoreEdit::PutVhd(record.clone()));
    Step::Commit { rows, action: Action::ChangeVhd { record: Box::new(record), event, vm: vm.map(Box::new) } }
}

pub(super) fn not_found(what: &'static str, name: &str) -> CommandError {
    CommandError::NotFound { what, name: name.to_owned() }
}

pub(super) fn check_mode(mode: u32) -> Result<u32, CommandError> {
    if mode & !0o777 == 0 { Ok(mode) } else { Err(CommandError::InvalidSocketMode { mode }) }
}

pub(super) fn check_queues(queues: u16) -> Result<u16, CommandError> {
    let legal = queues > 0 && usize::from(queues) <= QUEUES_MAX;
    if legal { Ok(queues) } else { Err(CommandError::InvalidQueues { queues }) }
}
