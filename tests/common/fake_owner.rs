//! An owner that knows two disks and two VHDs and forgets what it is told.

mod fake_vms;

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use spanblk::base::ids::{DiskId, JobId, VhdId};
use spanblk::base::units::{BlockMask, ExtentIndex, Generation, Geometry, SlotIndex};
use spanblk::control::convert::impact::Votes;
use spanblk::control::convert::{OpenDisk, OpenDisks};
use spanblk::control::events::EventLog;
use spanblk::control::http::{Api, Connections, Host};
use spanblk::control::owner_link::OwnerLink;
use spanblk::control::policy::{Desk, Kept};
use spanblk::control::wire::{DiskAdd, ErrorInfo, ErrorKind, StoreInfo};
use spanblk::owner::command::{
    AddDisk, CapacityUse, Command, CommandError, DiskInfo, DiskShare, JobInfo, JobRequest, JoiningDisk, LostData,
    Outcome, PlanInfo, PlannedVhd, PoolInfo, RemovalStep, Replacement, Reply, Space, StartJob, VhdInfo,
};
use spanblk::placement::ReplicaSet;
use spanblk::placement::check::CheckReport;
use spanblk::placement::job::{JobKind, JobRecord, JobState};
use spanblk::placement::record::{
    Accept, DiskRecord, Layout, PoolRecord, RECORD_VERSION, SocketOwner, VhdRecord, WhenFull,
};
use spanblk::placement::view::VhdMap;
use spanblk::shared::{DiskState, VhdSettings, VhdState};
use uuid::Uuid;

const EXTENT: u64 = 1 << 20;

/// What the tests vary.
#[derive(Clone, Copy, Debug, Default)]
pub struct Script {
    pub refuse_disks: bool,
    pub stopping: bool,
}

static FORGOTTEN: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());

/// Disks that were forgotten since the last call.
pub fn forgotten() -> Vec<String> {
    std::mem::take(&mut FORGOTTEN.lock().unwrap())
}

static RELABELLED: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());

/// Whether the label of a disk was ever told to follow its record.
pub fn was_relabelled(disk: &str) -> bool {
    RELABELLED.lock().unwrap().iter().any(|name| name == disk)
}

/// The API over a fake owner.
pub fn api() -> Api {
    api_with(|_| ())
}

/// The API over a fake owner with a script.
pub fn api_with(change: impl FnOnce(&mut Script)) -> Api {
    let mut script = Script::default();
    change(&mut script);
    api_over(OwnerLink::new(move |asked| {
        if !script.stopping {
            let _ = asked.answer.send(answer(asked.command, script));
        }
    }))
}

/// What the fake owner says.
pub fn usual_answer(command: Command) -> Result<Reply, CommandError> {
    answer(command, Script::default())
}

/// The API over any owner.
pub fn api_over(owner: OwnerLink) -> Api {
    Api {
        owner,
        host: Arc::new(FakeHost),
        events: Arc::new(EventLog::default()),
        socket_dir: PathBuf::from("/run/spanblk/vhost"),
        changing_disks: Arc::default(),
        takeovers: tokio::sync::mpsc::channel(1).0,
        stats: Arc::default(),
        policy: Arc::new(Desk::new(Kept::default(), Vec::new(), Arc::default(), Arc::default(), None)),
        changing_policy: Arc::default(),
        placing: Arc::default(),
    }
}

fn answer(command: Command, script: Script) -> Result<Reply, CommandError> {
    let known = |name: &str| {
        let found = [vhd("old", None), vhd("busy", Some(4711))].into_iter().find(|vhd| vhd.record.name == name);
        found.ok_or(CommandError::NotFound { what: "VHD", name: name.to_owned() })
    };
    let one = |outcome, vhd| Ok(Reply::Vhd { outcome, vhd: Box::new(vhd) });
    match command {
        Command::CreateVhd(create) => match known(&create.name) {
            Ok(old) if old.record.size == create.size => one(Outcome::Unchanged, old),
            Ok(old) => Err(CommandError::Conflict {
                vhd: create.name,
                field: "size",
                existing: old.record.size.to_string(),
                asked: create.size.to_string(),
            }),
            Err(_) => {
                let mut new = vhd(&create.name, None);
                new.record.block_size = create.block_size;
                new.record.queues = create.queues;
                new.record.socket_mode = create.socket_mode;
                new.record.when_full = create.when_full;
                new.record.capacity = create.capacity;
                one(Outcome::Created, new)
            }
        },
        Command::Restore { .. } => unreachable!("only the owner gives this command"),
        Command::DeleteVhd { vhd, force } => match known(&vhd)?.attached {
            Some(pid) if !force => Err(CommandError::Attached { vhd, pid, hint: ", or use --force" }),
            _ => Ok(Reply::Deleted { id: VhdId(1), name: vhd }),
        },
        Command::RenameVhd { vhd, to } => {
            let mut renamed = known(&vhd)?;
            renamed.record.name = to;
            one(Outcome::Changed, renamed)
        }
        Command::ResizeVhd(resize) => {
            let mut resized = known(&resize.vhd)?;
            let (vhd, size) = (resize.vhd, resize.size);
            match (size.cmp(&resized.record.size), resize.force) {
                (Ordering::Equal, _) => one(Outcome::Unchanged, resized),
                (Ordering::Less, false) => Err(CommandError::ShrinkLoses { vhd, size, written: 32768 }),
                _ => {
                    resized.record.size = size;
                    one(Outcome::Changed, resized)
                }
            }
        }
        Command::SetVhd(set) => {
            let mut changed = known(&set.vhd)?;
            changed.record.queues = set.queues.unwrap_or(changed.record.queues);
            one(Outcome::Changed, changed)
        }
        Command::SetCacheMode { .. } => one(Outcome::Unchanged, vhd("old", None)),
        Command::ShowVhd { vhd } => one(Outcome::Unchanged, known(&vhd)?),
        Command::ListVhds => Ok(Reply::Vhds(vec![vhd("old", None), vhd("busy", Some(4711))])),
        Command::ShowVm { .. }
        | Command::ListVms
        | Command::CreateVm(_)
        | Command::SetVm(_)
        | Command::DeleteVm { .. } => {
            fake_vms::answer(command, &mut pool().record, vec![vhd("old", None), vhd("busy", Some(4711))])
        }
        Command::ShowPool => Ok(Reply::Pool(Box::new(pool()))),
        Command::AddDisk(add) if script.refuse_disks => Err(CommandError::DiskIdTaken { disk: add.record.name }),
        Command::AddDisk(add) => {
            Ok(Reply::Disk { outcome: Outcome::Created, disk: Box::new(disk_info(add.record.id.0)) })
        }
        Command::RemoveDisk { disk, step } => match (disk.as_str(), step) {
            ("d1", RemovalStep::Hold) => Ok(Reply::Disk { outcome: Outcome::Unchanged, disk: Box::new(disk_info(1)) }),
            ("d0", _) => Err(CommandError::DiskNotEmpty {
                disk,
                extents: 2,
                bytes: 2 * EXTENT,
                vhds: vec!["old".to_owned()],
                failed: false,
            }),
            ("d1", RemovalStep::Take) => Ok(Reply::DiskRemoved { id: DiskId(1), name: "d1".to_owned() }),
            _ => Err(CommandError::NotFound { what: "disk", name: disk }),
        },
        Command::SetDisk(set) => {
            let id = pool().record.find_disk(&set.disk).map(|disk| disk.id.0);
            let id = id.ok_or(CommandError::NotFound { what: "disk", name: set.disk })?;
            Ok(Reply::Disk { outcome: Outcome::Changed, disk: Box::new(disk_info(id)) })
        }
        Command::FailDisk { disk } => {
            let id = pool().record.find_disk(&disk).map(|disk| disk.id.0);
            let id = id.ok_or(CommandError::NotFound { what: "disk", name: disk })?;
            Ok(Reply::Disk { outcome: Outcome::Changed, disk: Box::new(disk_info(id)) })
        }
        Command::SetPool { .. } => Ok(Reply::Pool(Box::new(pool()))),
        Command::KeepPolicy(_) => Ok(Reply::PolicyKept),
        Command::ListJobs => Ok(Reply::Jobs(vec![job(1, JobState::Running)])),
        Command::ShowJob(JobId(1)) => job_reply(Outcome::Unchanged, JobState::Running),
        Command::ShowJob(JobId(id)) => Err(CommandError::NoJob { job: id }),
        Command::StartJob(start) => start_job(&start),
        Command::SetJob(set) if set.job == JobId(1) => job_reply(Outcome::Changed, JobState::Paused),
        Command::SetJob(set) => Err(CommandError::NoJob { job: set.job.0 }),
        Command::CancelJob { job: JobId(1), .. } => job_reply(Outcome::Changed, JobState::Cancelled),
        Command::CancelJob { job, .. } => Err(CommandError::JobEnded { job: job.0, state: "done" }),
        Command::Check => Ok(Reply::Check(Box::new(CheckReport {
            vhds: 2,
            extents: 3,
            replicas: 3,
            used: BTreeMap::new(),
            violations: Vec::new(),
        }))),
    }
}

/// The VHD `busy` is being moved, `old` can be, and what is about no VHD finds nothing to do.
fn start_job(start: &StartJob) -> Result<Reply, CommandError> {
    let vhd = match &start.request {
        JobRequest::Span { vhd, .. }
        | JobRequest::Unspan { vhd, .. }
        | JobRequest::Migrate { vhd, .. }
        | JobRequest::Settle { vhd }
        | JobRequest::Replicas { vhd, .. } => vhd,
        JobRequest::Evacuate { disk, .. } if disk == "d0" => return job_reply(Outcome::Created, JobState::Running),
        JobRequest::Evacuate { disk, .. } => return Err(CommandError::NotFound { what: "disk", name: disk.clone() }),
        JobRequest::Replace { by, accept_loss, .. } => return start_replacement(by, *accept_loss),
        JobRequest::Rebuild { disk } if disk == "d0" => return Err(CommandError::DiskWorks { disk: disk.clone() }),
        JobRequest::Rebuild { disk } => return Err(CommandError::NotFound { what: "disk", name: disk.clone() }),
        JobRequest::Resync { .. } | JobRequest::Scrub { .. } | JobRequest::Rebalance => {
            return Ok(Reply::Plan(Box::default()));
        }
    };
    match (vhd.as_str(), start.dry_run) {
        ("busy", _) => Err(CommandError::JobExists { vhd: vhd.clone(), job: 1, kind: "rebalance" }),
        ("old", true) => Ok(Reply::Plan(Box::new(plan()))),
        ("old", false) => {
            let mut job = job(1, JobState::Running);
            (job.record.max_rate, job.record.urgent) = (start.speed.max_rate, start.speed.urgent);
            Ok(Reply::Job { outcome: Outcome::Created, job: Box::new(job) })
        }
        _ => Err(CommandError::NotFound { what: "VHD", name: vhd.clone() }),
    }
}

/// The disk that is replaced has failed, and has what is nowhere else.
fn start_replacement(by: &Replacement, accept_loss: bool) -> Result<Reply, CommandError> {
    match by {
        Replacement::Joining(disk) if disk.slots < 3 => Err(CommandError::NoRoomOn {
            disk: disk.name.clone(),
            needed: 3 * EXTENT,
            free: u64::from(disk.slots) * EXTENT,
        }),
        _ if !accept_loss => {
            Err(CommandError::LosesData { disk: "d0".to_owned(), lost: vec![("old".to_owned(), EXTENT)] })
        }
        Replacement::Joining(_) => {
            let mut plan = plan();
            plan.vhds[0].lost = LostData { bytes: EXTENT, ranges: std::iter::once(0..EXTENT).collect() };
            Ok(Reply::Plan(Box::new(plan)))
        }
        Replacement::Disk { .. } => {
            let mut job = job(1, JobState::Running);
            (job.disk, job.replacement) = (Some("d0".to_owned()), Some("d1".to_owned()));
            let (disk, by) = (DiskId(0), DiskId(1));
            job.record.kind =
                JobKind::Replace { disk, uuid: disk_record(0).uuid, by, gives_up: vec![disk], keep: false };
            Ok(Reply::Job { outcome: Outcome::Created, job: Box::new(job) })
        }
    }
}

fn plan() -> PlanInfo {
    let share = |disk: &str, before, after| DiskShare { disk: disk.to_owned(), before, after };
    let vhd = PlannedVhd {
        vhd: "old".to_owned(),
        layout: Layout::Isolated { disk: DiskId(1), chosen: true },
        extents: 2,
        bytes: 2 * EXTENT,
        disks: vec![share("d0", 2, 0), share("d1", 1, 3)],
        lost: LostData::default(),
    };
    PlanInfo { vhds: vec![vhd] }
}

fn job(id: u32, state: JobState) -> JobInfo {
    let record = JobRecord {
        version: RECORD_VERSION,
        id: JobId(id),
        kind: JobKind::Rebalance,
        vhds: vec![VhdId(1)],
        state,
        max_rate: None,
        urgent: false,
        created: 7,
        ended: None,
        bytes_moved: 3 << 20,
        reason: None,
    };
    JobInfo {
        record,
        vhds: vec!["old".to_owned()],
        vhds_done: 0,
        disk: None,
        replacement: None,
        bytes_left: 10 << 20,
        rate: 1 << 20,
        waits: 5,
        waiting: false,
        unreadable: 0,
    }
}

fn job_reply(outcome: Outcome, state: JobState) -> Result<Reply, CommandError> {
    Ok(Reply::Job { outcome, job: Box::new(job(1, state)) })
}

fn pool() -> PoolInfo {
    let record = PoolRecord::new(Uuid::from_u128(1), EXTENT, (0..2).map(disk_record).collect());
    let space = Space { capacity: 2 << 30, free: 2 << 30, provisioned: 1 << 30, ..Space::default() };
    PoolInfo {
        record,
        space,
        disks: (0..2).map(disk_info).collect(),
        next_disk: Some(DiskId(2)),
        vhds: 2,
        waiting: 0,
        metadata_used: 1 << 20,
        metadata_size: 64 << 20,
        metadata_low: false,
        moves: [32, 0, 0, 31, 0],
        moves_ended_early: [0, 2, 0, 0, 1],
        made_stale: 3,
        repaired: 5,
        not_repaired: 1,
    }
}

fn disk_record(id: u8) -> DiskRecord {
    DiskRecord {
        id: DiskId(id),
        uuid: Uuid::from_u128(100 + u128::from(id)),
        name: format!("d{id}"),
        slots: 1024,
        data_offset: 65 << 20,
        accept: Accept::Any,
        failure_domain: "controller-1".to_owned(),
    }
}

fn disk_state(id: u8) -> Arc<DiskState> {
    Arc::new(DiskState::new(DiskId(id), format!("d{id}"), 65 << 20, 1024, 512, 512))
}

fn disk_info(id: u8) -> DiskInfo {
    DiskInfo {
        record: disk_record(id),
        state: disk_state(id),
        space: Space { capacity: 1 << 30, free: 1 << 30, ..Space::default() },
        vhds: vec!["old".to_owned()],
        errors: 0,
        suspicion: (id == 1).then(|| "3 errors in the last 10 minutes".to_owned()),
        shares_domain_with: Vec::new(),
    }
}

fn vhd(name: &str, attached: Option<u32>) -> VhdInfo {
    let geometry = Geometry::new(EXTENT).unwrap();
    let uuid = Uuid::from_u128(7);
    let settings =
        VhdSettings { id: VhdId(1), uuid, geometry, block_size: 512, read_only: false, thick: false, checksums: false };
    let map = VhdMap::new(1024);
    for (extent, disk, slot) in [(0, 0, 5), (1, 0, 6), (7, 1, 0)] {
        let replicas = ReplicaSet::single(DiskId(disk), SlotIndex(slot));
        map.restore(ExtentIndex(extent), replicas, BlockMask(1), Generation(2));
    }
    VhdInfo {
        record: VhdRecord {
            version: RECORD_VERSION,
            id: VhdId(1),
            name: name.to_owned(),
            uuid,
            size: 1 << 30,
            layout: Layout::Spanned { disks: vec![DiskId(0), DiskId(1)], width: None, chosen: false },
            replicas: 1,
            thick: false,
            checksums: false,
            read_only: false,
            block_size: 512,
            queues: 4,
            vm: None,
            socket_owner: None,
            socket_mode: 0o660,
            when_full: WhenFull::default(),
            expand: None,
            limits: spanblk::placement::limits::IoLimits::default(),
            sharing: spanblk::placement::sharing::Sharing::default(),
            capacity: spanblk::placement::capacity::Capacity::default(),
            created: 0,
            writeback: true,
        },
        state: Arc::new(VhdState::new(settings, 1 << 30, map, 1)),
        attached,
        ready: true,
        slots: [(DiskId(0), 2), (DiskId(1), 1)].into_iter().collect(),
        allocated: 3 << 20,
        sharing: spanblk::placement::sharing::Settled::default(),
        capacity: CapacityUse { charged: 3 << 20, ..CapacityUse::default() },
        growth: Default::default(),
    }
}

struct FakeHost;

impl Host for FakeHost {
    fn prepare_disk(
        &self,
        request: &DiskAdd,
        pool: &PoolInfo,
        _replaces: Option<DiskId>,
    ) -> Result<AddDisk, ErrorInfo> {
        if request.path.contains("foreign") {
            return Err(ErrorInfo::new(ErrorKind::Conflict, "there is an ext4 filesystem"));
        }
        let id = pool.next_disk.unwrap();
        Ok(AddDisk { record: disk_record(id.0), state: disk_state(id.0) })
    }

    fn probe_disk(
        &self,
        request: &DiskAdd,
        _pool: &PoolInfo,
        _replaces: Option<DiskId>,
    ) -> Result<JoiningDisk, ErrorInfo> {
        if request.path.contains("foreign") {
            return Err(ErrorInfo::new(ErrorKind::Conflict, "there is an ext4 filesystem"));
        }
        let slots = if request.path.contains("small") { 1 } else { 100 };
        let (name, accept) = (request.name.clone().unwrap_or("new".to_owned()), request.accept.into());
        Ok(JoiningDisk { name, slots, accept, failure_domain: "x".to_owned() })
    }

    fn succeed_in_store(&self, _old: DiskId, _new: DiskId) -> Result<Vec<String>, ErrorInfo> {
        Ok(Vec::new())
    }

    fn disk_at(&self, path: &str) -> Option<DiskId> {
        (path == "/srv/d1.img").then_some(DiskId(1))
    }

    fn forget_disk(&self, disk: &str) {
        FORGOTTEN.lock().unwrap().push(disk.to_owned());
    }

    fn leave_store(&self, _disk: DiskId) -> Result<Vec<String>, ErrorInfo> {
        Ok(vec!["two disks carry the placement table".to_owned()])
    }

    fn fill_store(&self) -> Vec<String> {
        Vec::new()
    }

    fn remove_disk(&self, _disk: DiskId) -> Vec<String> {
        Vec::new()
    }

    fn open_disks(&self) -> OpenDisks {
        let open = |id: u8| {
            (DiskId(id), OpenDisk { name: format!("d{id}"), path: format!("/srv/d{id}.img"), metadata_bytes: 64 << 20 })
        };
        (0..3).map(open).collect::<HashMap<_, _>>()
    }

    fn store_info(&self) -> StoreInfo {
        StoreInfo::default()
    }

    fn votes(&self) -> Votes {
        Votes { members: [DiskId(0), DiskId(1)].into_iter().collect(), needed: 2 }
    }

    fn connections(&self) -> Vec<Connections> {
        vec![Connections { vhd: "old".to_owned(), accepted: 3, refused: 1, faults: 0 }]
    }

    fn reactors(&self) -> spanblk::vhost_user::ReactorStatus {
        spanblk::vhost_user::ReactorStatus { busy_ns: vec![1_500_000_000, 7], ring_moves: 2 }
    }

    fn disk_changed(&self, disk: &DiskRecord) {
        RELABELLED.lock().unwrap().push(disk.name.clone());
    }

    fn check_socket_name(&self, name: &str) -> Result<(), ErrorInfo> {
        let taken = || Err(ErrorInfo::new(ErrorKind::Conflict, "another process listens there"));
        if name == "taken" { taken() } else { Ok(()) }
    }

    fn check_socket_owner(&self, owner: &SocketOwner) -> Result<(), ErrorInfo> {
        let nobody = || Err(ErrorInfo::new(ErrorKind::Invalid, format!("there is no user '{}'", owner.user)));
        if owner.user == "stranger" { nobody() } else { Ok(()) }
    }

    fn socket_problem(&self, _vhd: VhdId) -> Option<String> {
        None
    }

    fn dump(&self) -> Result<String, ErrorInfo> {
        Ok("{\"line\":1}\n".to_owned())
    }
}
