//! What API handlers need of the daemon and the owner does not know.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::daemon::{UsableDisk, announcement, announcement_to_mover, start_worker};
use super::error_kinds::{change_error, open_error};
use super::views::ViewDir;
use crate::base::clock;
use crate::base::ids::{DiskId, VhdId};
use crate::control::convert::impact::Votes;
use crate::control::convert::{OpenDisk, OpenDisks};
use crate::control::http::{Connections, Host};
use crate::control::owner_thread::{NewDisk, OwnerInput, OwnerSender};
use crate::control::service::Problems;
use crate::control::wire::{DiskAdd, ErrorInfo, ErrorKind, MemberHealth, StoreInfo, StoreMember};
use crate::disk::BlockDev;
use crate::disk::file::{Access, FileDisk, OpenError};
use crate::disk::geometry::Role;
use crate::disk::identity::Host as HostFacts;
use crate::disk::paths::{DiskPaths, OwnRights};
use crate::disk::pool::{
    AddOptions, DiskSettings, NewDisk as UnlabelledDisk, OpenDisk as PoolDisk, OpenPool, OpenedDisk, RemovedDisk,
};
use crate::owner::command::{AddDisk, JoiningDisk, PoolInfo};
use crate::placement::record::{DiskRecord, SocketOwner};
use crate::shared::DiskState;
use crate::store::mirror::MemberStatus;
use crate::store::thread::StoreHandle;
use crate::vhost_user::{ReactorStatus, SocketError, VhdStatus, VhostUserServer};

/// How long a disk that was removed may take until nobody has it open any more.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// How long wiping its label may take.
const WIPE_PATIENCE: Duration = Duration::from_secs(20);

/// As long as this lives, nobody writes labels.
pub struct HeldLabels<'a>(MutexGuard<'a, OpenPool<FileDisk>>);

impl HeldLabels<'_> {
    /// Every disk of the pool that is here, by another descriptor of the same open file.
    pub fn disks(&self) -> std::io::Result<Vec<OpenedDisk>> {
        let open = |disk: &PoolDisk<FileDisk>| {
            let fd = disk.dev.fd().try_clone()?;
            Ok(OpenedDisk { path: disk.path.clone(), fd, works: !disk.dev.failed().is_failed() })
        };
        self.0.disks.iter().map(open).collect()
    }

    /// The disks themselves.
    pub fn devices(&self) -> Vec<Arc<FileDisk>> {
        self.0.disks.iter().map(|disk| Arc::clone(&disk.dev)).collect()
    }
}

/// A disk that is not used any more, and not kept open.
struct LeftDisk {
    state: Arc<DiskState>,
    device: Weak<FileDisk>,
}

impl LeftDisk {
    fn new(disk: &UsableDisk) -> LeftDisk {
        LeftDisk { state: Arc::clone(&disk.state), device: Arc::downgrade(&disk.device) }
    }

    /// Whether the kernel has still something of it to answer.
    fn is_in_use(&self) -> bool {
        self.state.is_in_use() || self.device.upgrade().is_some_and(|device| device.is_in_use())
    }
}

/// The open disks of the pool.
pub struct DaemonHost {
    /// Locked by one API request at a time, off the event loop: labels are written under it, and a disk may hang.
    pool: Mutex<OpenPool<FileDisk>>,
    /// What is told of the disks; never locked for longer than it takes to copy it.
    known: Mutex<OpenDisks>,
    /// The disks that hold data; never locked for longer than that, either.
    usable: Mutex<BTreeMap<DiskId, UsableDisk>>,
    /// Disks that have left the pool: the kernel may still have something of theirs to answer.
    left: Mutex<Vec<LeftDisk>>,
    owner: OwnerSender,
    pub(super) store: StoreHandle,
    server: Arc<VhostUserServer>,
    problems: Arc<Problems>,
    disks: Arc<dyn DiskPaths>,
    facts: HostFacts,
    kept: Option<Arc<ViewDir>>,
}

impl DaemonHost {
    /// The open disks of the pool.
    #[must_use]
    pub fn new(
        pool: OpenPool<FileDisk>,
        disks: Vec<UsableDisk>,
        owner: OwnerSender,
        store: StoreHandle,
        server: Arc<VhostUserServer>,
        problems: Arc<Problems>,
    ) -> DaemonHost {
        let known = Mutex::new(pool.disks.iter().map(known).collect());
        let usable = Mutex::new(disks.into_iter().map(|disk| (disk.state.id, disk)).collect());
        DaemonHost {
            pool: Mutex::new(pool),
            known,
            usable,
            left: Mutex::default(),
            owner,
            store,
            server,
            problems,
            disks: Arc::new(OwnRights),
            facts: HostFacts::default(),
            kept: None,
        }
    }

    /// Disks are opened by `paths` from now on, not with the rights of this process.
    #[must_use]
    pub fn with_paths(mut self, paths: Arc<dyn DiskPaths>) -> DaemonHost {
        self.disks = paths;
        self
    }

    /// Views are kept there, which must know of every disk.
    #[must_use]
    pub fn with_views(mut self, kept: Option<Arc<ViewDir>>) -> DaemonHost {
        self.kept = kept;
        self
    }

    /// The disks that are here now.
    #[must_use]
    pub fn usable_disks(&self) -> Vec<UsableDisk> {
        self.usable().values().cloned().collect()
    }

    /// Keeps everybody from writing labels; `None`: somebody is doing that.
    pub fn hold_labels(&self) -> Option<HeldLabels<'_>> {
        self.pool.try_lock().ok().map(HeldLabels)
    }

    /// A disk that has failed, or has left the pool, and of which the kernel has still something to answer.
    pub fn one_that_hangs(&self) -> Option<Arc<DiskState>> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(LeftDisk::is_in_use);
        let failed = self.usable_disks().into_iter().filter(|disk| disk.state.is_failed());
        let mut in_use = failed.filter(|disk| LeftDisk::new(disk).is_in_use());
        left.first().map(|disk| Arc::clone(&disk.state)).or_else(|| in_use.next().map(|disk| disk.state))
    }

    fn usable(&self) -> MutexGuard<'_, BTreeMap<DiskId, UsableDisk>> {
        self.usable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, OpenDisks> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_left(&self, disk: DiskId) {
        if let Some(kept) = &self.kept {
            kept.mark().note_left(disk);
        }
    }

    fn pool(&self) -> MutexGuard<'_, OpenPool<FileDisk>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for DaemonHost {
    fn prepare_disk(&self, request: &DiskAdd, info: &PoolInfo, replaces: Option<DiskId>) -> Result<AddDisk, ErrorInfo> {
        let mut pool = self.pool();
        let (file, made) = self.open_or_create(request)?;
        let id = self.label(&mut pool, file, request, info, replaces).inspect_err(|_| {
            if made {
                self.disks.discard(Path::new(&request.path));
            }
        })?;
        let disk = pool.disk(id).expect("just added");
        self.known().extend([known(disk)]);
        if let Some(kept) = &self.kept {
            kept.note_disk(id, &disk.dev);
        }
        let record = super::disk_record(disk);
        let state = DiskState::new(
            id,
            record.name.clone(),
            record.data_offset,
            record.slots,
            disk.dev.block_size(),
            disk.dev.memory_alignment(),
        );
        let state = state.failing_with(disk.dev.failed()).with_metadata_work(disk.dev.work());
        let state = Arc::new(state.awaiting_with(disk.dev.awaited()));
        self.store.add_disk(&state);
        let usable = UsableDisk { state: Arc::clone(&state), device: Arc::clone(&disk.dev) };
        self.hand_over(&usable, pool.extent_size)?;
        self.usable().insert(id, usable);
        Ok(AddDisk { record, state })
    }

    fn probe_disk(
        &self,
        request: &DiskAdd,
        info: &PoolInfo,
        replaces: Option<DiskId>,
    ) -> Result<JoiningDisk, ErrorInfo> {
        let pool = self.pool();
        let (file, made) = self.open_or_create(request)?;
        let joining = self.new_disk(file, request, info, replaces).and_then(|(new, options)| {
            let label = pool.label_of(&new, &options, &self.facts).map_err(|error| change_error(&error))?;
            let (accept, failure_domain) = (request.accept.into(), new.failure_domain.to_string());
            Ok(JoiningDisk { name: new.name, slots: label.layout.slots, accept, failure_domain })
        });
        if made {
            // It was made to be looked at.
            self.disks.discard(Path::new(&request.path));
        }
        joining
    }

    fn succeed_in_store(&self, old: DiskId, new: DiskId) -> Result<Vec<String>, ErrorInfo> {
        let mut pool = self.pool();
        let carries = |id: DiskId| pool.membership.members.iter().any(|member| member.id == id);
        let successor = if carries(new) { None } else { pool.disk(new) };
        let successor = successor.filter(|disk| disk.metadata_region().is_some()).map(|disk| disk.id);
        self.leave_store_of(&mut pool, old, successor)
    }

    fn disk_at(&self, path: &str) -> Option<DiskId> {
        let identity = self.disks.identity(Path::new(path)).ok()?;
        self.pool().disks.iter().find(|disk| disk.identity == identity).map(|disk| disk.id)
    }

    fn forget_disk(&self, name: &str) {
        let mut pool = self.pool();
        let Some(id) = pool.disks.iter().find(|disk| disk.name == name).map(|disk| disk.id) else { return };
        self.owner.send(OwnerInput::ForgetDisk(id));
        self.known().remove(&id);
        self.usable().remove(&id);
        self.note_left(id);
        let removed = pool.remove_disk(id);
        drop(pool);
        match removed {
            Ok(removed) => {
                let warnings = removed.map(let_go_of).unwrap_or_default();
                warnings.iter().for_each(|warning| log::error!("disk '{name}' was not added: {warning}"));
            }
            Err(error) => log::error!("disk '{name}' was not added, and its label could not be wiped: {error}"),
        }
    }

    fn leave_store(&self, disk: DiskId) -> Result<Vec<String>, ErrorInfo> {
        self.leave_store_of(&mut self.pool(), disk, None)
    }

    fn fill_store(&self) -> Vec<String> {
        self.fill_store_of(&mut self.pool())
    }

    fn remove_disk(&self, disk: DiskId) -> Vec<String> {
        self.known().remove(&disk);
        let left = self.usable().remove(&disk).map(|disk| LeftDisk::new(&disk));
        self.left.lock().unwrap_or_else(PoisonError::into_inner).extend(left);
        self.note_left(disk);
        // The lock on the pool ends here: a disk that hangs must not keep others from coming and going.
        let removed = self.pool().remove_disk(disk);
        match removed {
            Ok(Some(removed)) => let_go_of(removed),
            Ok(None) => {
                vec!["it is not here, so that its label is not wiped: 'spanblk disk wipe' does that".to_owned()]
            }
            Err(error) => vec![format!(
                "its label is not wiped, because not enough of the others could be told ({error}): restart the daemon, then \
                 use 'spanblk disk wipe'"
            )],
        }
    }

    fn open_disks(&self) -> OpenDisks {
        self.known().clone()
    }

    fn store_info(&self) -> StoreInfo {
        let status = self.store.status();
        let known = self.open_disks();
        let name = |disk: DiskId| known.get(&disk).map_or_else(|| format!("#{}", disk.0), |disk| disk.name.clone());
        let member = |member: &MemberStatus| StoreMember {
            disk: name(member.disk),
            health: if member.lost.is_none() { MemberHealth::InSync } else { MemberHealth::Failed },
            region_bytes: member.region_len,
            problem: member.lost.clone(),
        };
        StoreInfo {
            epoch: status.stamp.epoch,
            commit: status.stamp.commit,
            failed: status.failed,
            members: status.members.iter().map(member).collect(),
            ..StoreInfo::default()
        }
    }

    fn votes(&self) -> Votes {
        Votes::from(&self.store.status())
    }

    fn connections(&self) -> Vec<Connections> {
        let of = |status: VhdStatus| Connections {
            vhd: status.name,
            accepted: status.connections,
            refused: status.refused,
            faults: status.faults,
        };
        self.server.statuses().into_iter().map(of).collect()
    }

    fn reactors(&self) -> ReactorStatus {
        self.server.reactor_status()
    }

    fn disk_changed(&self, disk: &DiskRecord) {
        let mut pool = self.pool();
        let Some(open) = pool.disk(disk.id) else { return };
        let (accept, domain) = (super::label_accept(disk.accept), disk.failure_domain.clone());
        let named = open.failure_domain.to_string() != domain;
        let mut changed = if open.label.accept == accept { Ok(()) } else { pool.set_accept(disk.id, accept) };
        if named {
            changed = changed.and_then(|()| pool.set_failure_domain(disk.id, &domain));
        }
        if let Err(error) = changed {
            log::warn!("disk '{}': its label does not follow its settings: {error}", disk.name);
        }
    }

    fn check_socket_name(&self, name: &str) -> Result<(), ErrorInfo> {
        self.server.check_name(name).map_err(|error| socket_error(&error))
    }

    fn check_socket_owner(&self, owner: &SocketOwner) -> Result<(), ErrorInfo> {
        self.server.check_owner(owner).map_err(|error| socket_error(&error))
    }

    fn socket_problem(&self, vhd: VhdId) -> Option<String> {
        self.problems.of(vhd)
    }

    fn dump(&self) -> Result<String, ErrorInfo> {
        self.store.dump().map_err(|error| ErrorInfo::new(ErrorKind::Failed, crate::control::error_chain(&error)))
    }
}

impl DaemonHost {
    /// The disk, and whether its file had to be made.
    fn open_or_create(&self, request: &DiskAdd) -> Result<(FileDisk, bool), ErrorInfo> {
        let path = Path::new(&request.path);
        if !path.is_absolute() {
            let message = format!("field 'path': {} is not absolute", request.path);
            return Err(ErrorInfo::new(ErrorKind::Invalid, message));
        }
        let made = match request.size_bytes.map(|size| self.disks.create(path, size)) {
            None | Some(Err(OpenError::Exists { .. })) => None,
            Some(made) => Some(made.map_err(|error| open_error(&error))?),
        };
        let is_made = made.is_some();
        let fd = made.map_or_else(|| self.disks.open(path, Access::Write), Ok);
        let opened = fd.and_then(|fd| FileDisk::from_fd(path, fd, Access::Write));
        let disk = opened.map_err(|error| {
            if is_made {
                self.disks.discard(path);
            }
            open_error(&error)
        })?;
        Ok((disk, is_made))
    }

    /// Labels a new disk and makes it known to the others.
    fn label(
        &self,
        pool: &mut OpenPool<FileDisk>,
        file: FileDisk,
        request: &DiskAdd,
        info: &PoolInfo,
        replaces: Option<DiskId>,
    ) -> Result<DiskId, ErrorInfo> {
        let (new, options) = self.new_disk(file, request, info, replaces)?;
        let warnings = pool.add_disk(new, &options, &self.facts).map_err(|error| change_error(&error))?;
        warnings.iter().for_each(|warning| log::warn!("{warning}"));
        Ok(options.id)
    }

    /// What is known of a disk before it is labelled, and how it is to be.
    fn new_disk(
        &self,
        file: FileDisk,
        request: &DiskAdd,
        info: &PoolInfo,
        replaces: Option<DiskId>,
    ) -> Result<(UnlabelledDisk<FileDisk>, AddOptions), ErrorInfo> {
        let taken: Vec<String> = info.record.disks.iter().map(|disk| disk.name.clone()).collect();
        let settings = DiskSettings {
            name: request.name.clone(),
            role: Role::Any,
            accept: super::label_accept(request.accept.into()),
            failure_domain: request.failure_domain.clone(),
        };
        let new = UnlabelledDisk::from_file(file, settings, &taken, &self.facts);
        if taken.contains(&new.name) {
            let message = format!("the pool has a disk '{}' already: choose another name", new.name);
            return Err(ErrorInfo::new(ErrorKind::Conflict, message));
        }
        let id = info
            .next_disk
            .ok_or_else(|| ErrorInfo::new(ErrorKind::Conflict, "the pool has all the disks it can have"))?;
        let (uuid, now) = (uuid::Uuid::new_v4(), clock::wall_secs());
        Ok((new, AddOptions { id, uuid, replaces, force: request.force, now }))
    }

    /// Gives the owner's thread what it needs once the owner has taken the disk.
    fn hand_over(&self, disk: &UsableDisk, extent_size: u64) -> Result<(), ErrorInfo> {
        let worker = start_worker(disk, extent_size, &self.owner)
            .map_err(|error| ErrorInfo::new(ErrorKind::Failed, format!("cannot start the disk's thread: {error}")))?;
        let announce = Box::new(announcement(disk));
        let announce_to_mover = announcement_to_mover(disk);
        let new = NewDisk { id: disk.state.id, worker, announce, announce_to_mover };
        self.owner.send(OwnerInput::Disk(Box::new(new)));
        Ok(())
    }
}

/// Wipes the label of a disk that has left the pool, and closes it. Returns what a person should know.
fn let_go_of(removed: RemovedDisk<FileDisk>) -> Vec<String> {
    let (dev, path) = (Arc::clone(&removed.dev), removed.path.display().to_string());
    let mut warnings = Vec::new();
    let wiped = if removed.works && !dev.failed().is_failed() {
        let (tell, told) = std::sync::mpsc::channel();
        let wipe = move || drop(tell.send(removed.wipe().map_err(|error| error.to_string())));
        let started = std::thread::Builder::new().name("spanblk-wipe".to_owned()).spawn(wipe);
        started
            .map_err(|error| error.to_string())
            .and_then(|_| told.recv_timeout(WIPE_PATIENCE).unwrap_or_else(|_| Err(format!("{path} does not answer"))))
    } else {
        // It has the file, too, which is to be closed.
        drop(removed);
        Err(format!("{path} has failed"))
    };
    if let Err(error) = wiped {
        warnings.push(format!(
            "its label is not wiped: {error}; it is none of the pool's all the same: 'spanblk disk wipe' wipes it"
        ));
    }
    if !dev.close(CLOSE_PATIENCE) {
        warnings.push(format!("{path} stays locked until requests that it has not answered come to an end"));
    }
    warnings
}

fn socket_error(error: &SocketError) -> ErrorInfo {
    let kind = match error {
        SocketError::TooLong { .. } | SocketError::NoSuchOwner { .. } => ErrorKind::Invalid,
        SocketError::Taken(_) | SocketError::NotASocket(_) => ErrorKind::Conflict,
        SocketError::System { .. } | SocketError::OwnerLookup { .. } | SocketError::Chown { .. } => ErrorKind::Failed,
    };
    ErrorInfo::new(kind, error.to_string())
}

/// What is told of a disk.
fn known(disk: &PoolDisk<FileDisk>) -> (DiskId, OpenDisk) {
    let (name, path) = (disk.name.clone(), disk.path.display().to_string());
    (disk.id, OpenDisk { name, path, metadata_bytes: disk.label.layout.metadata_len })
}
