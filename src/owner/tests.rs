//! The owner with everything around it played by the test.

mod allocation;
mod bad_places;
mod cache_mode;
mod capacity;
mod checked;
mod closed;
mod degraded;
mod differing;
mod governor;
mod grow;
mod hang;
mod health;
mod hint;
mod lifecycle;
mod limits;
mod mending;
mod missed;
mod moves;
mod random;
mod remove;
mod replace;
mod replicas;
mod resize;
mod scrub;
mod vms;

use std::collections::BTreeMap;

use super::command::{CommandError, CreateVhd, LayoutRequest, Outcome, Reply, VhdInfo};
use super::outbox::SlotRun;
use super::*;
use crate::base::ids::{DiskId, ReactorId};
use crate::base::limits::REPLICAS_MAX;
use crate::base::units::{BlockMask, ExtentIndex, SlotIndex};
use crate::mover::messages::{MoverMessage, MoverReport};
use crate::placement::record::{Accept, DiskRecord, WhenFull};
use crate::reactor::messages::AllocateError;
use crate::store::change::{Change, ChangeKind};
use crate::store::edit::StoreEdit;

/// Everything the owner made happen.
#[derive(Default)]
struct Mail {
    reactors: Vec<(ReactorId, ReactorMessage)>,
    mover: Vec<MoverMessage>,
    excused: Vec<(VhdId, crate::shared::disk::SyncPoint)>,
    changes: Vec<Change>,
    edits: Vec<(EditId, Vec<StoreEdit>)>,
    commits: u32,
    punches: Vec<(DiskId, SlotRun)>,
    opened: Vec<Arc<VhdState>>,
    changed: Vec<String>,
    closed: Vec<VhdId>,
    added: Vec<DiskId>,
    removed: Vec<DiskId>,
    replies: BTreeMap<CommandId, Result<Reply, CommandError>>,
    events: Vec<Event>,
}

impl OwnerOutbox for Mail {
    fn to_reactor(&mut self, reactor: ReactorId, message: ReactorMessage) {
        self.reactors.push((reactor, message));
    }

    fn to_mover(&mut self, message: MoverMessage) {
        self.mover.push(message);
    }

    fn change(&mut self, change: Change) {
        self.changes.push(change);
    }

    fn edit(&mut self, edit: EditId, rows: Vec<StoreEdit>) {
        let moves = rows.iter().filter_map(|row| match row {
            StoreEdit::Move { moves, .. } => Some(moves),
            _ => None,
        });
        for moved in moves.flatten() {
            assert!((1..=REPLICAS_MAX).contains(&moved.replicas.len()), "no row has room for {moved:?}");
        }
        self.edits.push((edit, rows));
    }

    fn excuse(&mut self, vhd: VhdId, point: crate::shared::disk::SyncPoint) {
        self.excused.push((vhd, point));
    }

    fn commit(&mut self) {
        self.commits += 1;
    }

    fn punch(&mut self, disk: DiskId, run: SlotRun) {
        self.punches.push((disk, run));
    }

    fn open_vhd(&mut self, state: &Arc<VhdState>) {
        self.opened.push(Arc::clone(state));
    }

    fn vhd_changed(&mut self, record: &VhdRecord) {
        self.changed.push(record.name.clone());
    }

    fn close_vhd(&mut self, vhd: VhdId) {
        self.closed.push(vhd);
    }

    fn disk_added(&mut self, disk: DiskId) {
        self.added.push(disk);
    }

    fn disk_removed(&mut self, disk: DiskId) {
        self.removed.push(disk);
    }

    fn reply(&mut self, command: CommandId, result: Result<Reply, CommandError>) {
        let before = self.replies.insert(command, result);
        assert!(before.is_none() || command == CommandId::NOBODY, "a command is answered once");
    }

    fn event(&mut self, event: Event) {
        self.events.push(event);
    }
}

const EXTENT: u64 = 1 << 20;

fn disk_record(id: u8, slots: u32) -> DiskRecord {
    DiskRecord {
        id: DiskId(id),
        uuid: uuid::Uuid::from_u128(u128::from(id) + 100),
        name: format!("d{id}"),
        slots,
        data_offset: 1 << 20,
        accept: Accept::Any,
        failure_domain: format!("domain{id}"),
    }
}

fn disk_state(record: &DiskRecord) -> Arc<DiskState> {
    Arc::new(DiskState::new(record.id, record.name.clone(), record.data_offset, record.slots, 512, 4))
}

fn create(name: &str, extents: u64, layout: LayoutRequest) -> CreateVhd {
    CreateVhd {
        name: name.to_owned(),
        uuid: uuid::Uuid::from_u128(name.bytes().fold(0, |hash, byte| hash * 257 + u128::from(byte))),
        created: 1,
        size: extents * EXTENT,
        layout,
        hint: None,
        replicas: 1,
        thick: false,
        checksums: false,
        read_only: false,
        block_size: 512,
        queues: 1,
        vm: None,
        socket_owner: None,
        socket_mode: 0o660,
        when_full: WhenFull::Queue { secs: 60 },
        expand: None,
        limits: crate::placement::limits::IoLimits::default(),
        sharing: crate::placement::sharing::Sharing::default(),
        capacity: crate::placement::capacity::Capacity::default(),
    }
}

const ISOLATED: LayoutRequest = LayoutRequest::Isolated { disk: None };
const SPANNED: LayoutRequest = LayoutRequest::Spanned { disks: None, width: None };

/// An owner and its mail. Nothing happens by itself.
struct World {
    owner: Owner,
    mail: Mail,
    now: Nanos,
    next_command: u64,
}

impl World {
    /// A pool with disks of these many slots.
    fn new(slots: &[u32], reactors: u16) -> World {
        let records: Vec<DiskRecord> = (0..).zip(slots).map(|(id, slots)| disk_record(id, *slots)).collect();
        World::with(PoolRecord::new(uuid::Uuid::from_u128(1), EXTENT, records), Vec::new(), reactors)
    }

    fn with(pool: PoolRecord, vhds: Vec<(VhdRecord, Arc<VhdState>)>, reactors: u16) -> World {
        let disks = pool.disks.iter().map(disk_state).collect();
        let mut owner = Owner::new(pool, disks, vhds, reactors).unwrap();
        let mut mail = Mail::default();
        owner.start(&mut mail);
        World { owner, mail, now: Nanos(0), next_command: 0 }
    }

    fn command(&mut self, command: Command) -> CommandId {
        let id = CommandId(self.next_command);
        self.next_command += 1;
        self.owner.handle_command(id, command, &mut self.mail);
        id
    }

    /// Makes all rows durable, and those that are asked for then.
    fn commit_edits(&mut self) {
        while !self.mail.edits.is_empty() {
            for (edit, _) in std::mem::take(&mut self.mail.edits) {
                self.owner.handle_store(StoreReport::EditDone { edit, result: Ok(()) }, &mut self.mail);
            }
        }
    }

    /// A command from beginning to end.
    fn run(&mut self, command: Command) -> Result<Reply, CommandError> {
        let id = self.command(command);
        self.commit_edits();
        self.mail.replies.remove(&id).expect("an answer once all is durable")
    }

    /// A question, answered at once.
    fn ask(&mut self, question: Command) -> Result<Reply, CommandError> {
        let id = self.command(question);
        self.mail.replies.remove(&id).expect("questions are answered at once")
    }

    fn create(&mut self, create: CreateVhd) -> VhdInfo {
        match self.run(Command::CreateVhd(Box::new(create))).unwrap() {
            Reply::Vhd { outcome: Outcome::Created, vhd } => *vhd,
            other => panic!("{other:?}"),
        }
    }

    fn refuse(&mut self, command: Command) -> CommandError {
        let error = self.run(command).unwrap_err();
        assert!(!error.to_string().is_empty() && !error.code().is_empty());
        error
    }

    /// Reactor 0 asks for a place; the answer, if there is one.
    fn allocate(&mut self, vhd: &VhdInfo, extent: u32) -> Option<Result<(), AllocateError>> {
        let ticket = 1000 + u64::from(extent);
        let request =
            OwnerRequest::Allocate { reactor: ReactorId(0), ticket, vhd: vhd.record.id, extent: ExtentIndex(extent) };
        self.owner.handle_reactor(request, self.now, &mut self.mail);
        self.allocated(ticket)
    }

    /// The answer to an allocation, taken.
    fn allocated(&mut self, wanted: u64) -> Option<Result<(), AllocateError>> {
        let is_it = |m: &(ReactorId, ReactorMessage)| matches!(m.1, ReactorMessage::Allocated { ticket, .. } if ticket == wanted);
        let at = self.mail.reactors.iter().position(is_it)?;
        let ReactorMessage::Allocated { result, .. } = self.mail.reactors.remove(at).1 else { unreachable!() };
        Some(result)
    }

    /// Reactor 0 discards a whole extent.
    fn discard(&mut self, vhd: &VhdInfo, extent: u32) {
        let extent = ExtentIndex(extent);
        let map = &vhd.state.map;
        map.claim_and_clear(extent, BlockMask::ALL, map.lookup(extent).version).unwrap();
        let request = OwnerRequest::Free { reactor: ReactorId(0), ticket: 5, vhd: vhd.record.id, extent };
        self.owner.handle_reactor(request, self.now, &mut self.mail);
        assert!(matches!(self.mail.reactors.pop(), Some((ReactorId(0), ReactorMessage::Freed { ticket: 5 }))));
        map.release(extent, BlockMask::ALL, BlockMask::NONE);
    }

    /// Makes all changes durable.
    fn commit_changes(&mut self) {
        let mut slots = Vec::new();
        for change in std::mem::take(&mut self.mail.changes) {
            if let ChangeKind::Freed { freed } = change.kind {
                slots.extend(freed.iter().map(|replica| (replica.disk, replica.slot)));
            }
        }
        self.owner.handle_store(StoreReport::Freed { slots }, &mut self.mail);
    }

    /// The fences that have been sent to a reactor, taken.
    fn fences(&mut self, reactor: u16) -> Vec<(u64, DiskId)> {
        let mut fences = Vec::new();
        self.mail.reactors.retain(|(to, message)| match message {
            ReactorMessage::Fence { fence, disk } if to.0 == reactor => {
                fences.push((*fence, *disk));
                false
            }
            _ => true,
        });
        fences
    }

    /// The mover has nothing in flight.
    fn mover_reaches_fences(&mut self) {
        let fence = |message: &MoverMessage| match message {
            MoverMessage::Fence { fence, .. } => Some(*fence),
            _ => None,
        };
        let fences: Vec<u64> = self.mail.mover.iter().filter_map(fence).collect();
        self.mail.mover.retain(|message| fence(message).is_none());
        for fence in fences {
            self.owner.handle_mover(MoverReport::FenceReached { fence }, self.now, &mut self.mail);
        }
    }

    fn reach(&mut self, reactor: u16, fence: u64) {
        self.mover_reaches_fences();
        let request = OwnerRequest::FenceReached { reactor: ReactorId(reactor), fence };
        self.owner.handle_reactor(request, self.now, &mut self.mail);
    }

    fn punched(&mut self) {
        for (disk, run) in std::mem::take(&mut self.mail.punches) {
            self.owner.handle_punched(disk, run, &mut self.mail);
        }
    }

    /// Lets everything happen that is under way.
    fn settle(&mut self) {
        loop {
            self.commit_edits();
            self.commit_changes();
            for reactor in 0..self.owner.reactors {
                for (fence, _) in self.fences(reactor) {
                    self.reach(reactor, fence);
                }
            }
            if self.mail.punches.is_empty() {
                return;
            }
            self.punched();
        }
    }

    fn advance(&mut self, millis: u64) {
        self.now = self.now.after(std::time::Duration::from_millis(millis));
        self.owner.tick(self.now, &mut self.mail);
    }

    fn free_slots(&self, disk: u8) -> u32 {
        self.owner.space.disk(DiskId(disk)).free()
    }

    fn place_of(vhd: &VhdInfo, extent: u32) -> Option<(DiskId, SlotIndex)> {
        let replica = vhd.state.map.lookup(ExtentIndex(extent)).replicas.iter().next();
        replica.map(|replica| (replica.disk, replica.slot))
    }

    fn check(&self) {
        let report = self.owner.check();
        assert!(report.is_consistent(), "{:?}", report.violations);
    }
}
