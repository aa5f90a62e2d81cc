//! Reactors without threads on in-memory disks, and an owner that answers when told to.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use crate::base::aligned::AlignedBuf;
use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, DiskSet, ReactorId, VhdId};
use crate::base::rng::Rng;
use crate::base::units::{ExtentIndex, Geometry, SlotIndex};
use crate::engine::IoError;
use crate::placement::ReplicaSet;
use crate::placement::view::VhdMap;
use crate::qos::shares::Work;
use crate::reactor::messages::{Outbox, OwnerRequest, ReactorMessage};
use crate::reactor::pipeline::{Finished, Pipeline, PipelineMessage, RequestSlot, Token};
use crate::shared::{DiskState, VhdSettings, VhdState};
use crate::store::change::{Change, ChangeKind, CommitRequest};
use crate::virtio::request::{Request, RequestKind, Status};

pub use super::engine::Kind;
pub use super::guest::Guest;

use super::engine::{Disks, Image, TestEngine};

pub const EXTENT: u64 = 256 << 10;
pub const BLOCK: u64 = EXTENT / 32;
const DATA_OFFSET: u64 = 1 << 20;
/// What disks hold before anybody writes: must never reach a guest.
pub const GARBAGE: u8 = 0xEE;

#[derive(Default)]
pub struct Mail {
    pub owner: VecDeque<OwnerRequest>,
    pub changes: Vec<Change>,
    pub commits: VecDeque<CommitRequest>,
    pub reactors: VecDeque<(ReactorId, ReactorMessage)>,
}

#[derive(Clone)]
pub struct TestOutbox {
    mail: Rc<RefCell<Mail>>,
    vhd: Arc<VhdState>,
}

/// What must hold whenever a change is handed over: it was counted before, and the blocks are claimed, so that whoever
/// changes them next hands over later.
pub fn check_change(vhd: &VhdState, change: &Change) {
    assert!(vhd.has_pending_changes(), "a change is counted before it is handed over");
    let (ChangeKind::Written { blocks, .. } | ChangeKind::Cleared { blocks }) = change.kind else { return };
    let seen = vhd.map.lookup(change.extent);
    assert_eq!(seen.generation, change.generation, "a change belongs to the extent as it is");
    assert!(blocks.without(seen.claimed).is_empty(), "the claim is given up after the change is handed over");
    assert!(blocks.and(seen.present).is_empty(), "nobody sees a block before its change is handed over");
    if let ChangeKind::Written { replicas, needs, .. } = change.kind {
        let synced: DiskSet = needs.iter().flatten().map(|need| need.disk).collect();
        assert!(replicas.iter().all(|replica| synced.contains(replica.disk)), "a sync for every replica");
    }
}

impl Outbox for TestOutbox {
    fn to_owner(&mut self, message: OwnerRequest) {
        self.mail.borrow_mut().owner.push_back(message);
    }
    fn change(&mut self, change: Change) {
        check_change(&self.vhd, &change);
        self.mail.borrow_mut().changes.push(change);
    }
    fn commit(&mut self, request: CommitRequest) {
        self.mail.borrow_mut().commits.push_back(request);
    }
    fn to_reactor(&mut self, reactor: ReactorId, message: ReactorMessage) {
        self.mail.borrow_mut().reactors.push_back((reactor, message));
    }
    fn room_for_mover(&mut self) {
        unreachable!("there is no mover");
    }
}

pub struct World {
    pub pipelines: Vec<Pipeline<TestEngine, TestOutbox>>,
    pub vhd: Arc<VhdState>,
    pub disks: Vec<Arc<DiskState>>,
    pub mail: Rc<RefCell<Mail>>,
    pub freed: Vec<ReplicaSet>,
    /// Disks on which nothing completes.
    pub hung: DiskSet,
    next_slot: u32,
    next_token: u64,
    finished: HashMap<Token, Finished>,
    /// Memory that the engine may still use.
    in_use: Vec<Rc<AlignedBuf>>,
}

pub struct Options {
    pub reactors: u16,
    pub disks: u8,
    pub extents: u32,
    /// Bytes that the last extent is shorter.
    pub short_by: u64,
    pub disk_block: u32,
    pub guest_block: u32,
    pub memory_alignment: u32,
    pub engine_slots: usize,
    pub thick: bool,
    pub checksums: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            reactors: 1,
            disks: 2,
            extents: 4,
            short_by: 0,
            disk_block: 512,
            guest_block: 512,
            memory_alignment: 512,
            engine_slots: 64,
            thick: false,
            checksums: false,
        }
    }
}

pub fn vhd_state(options: &Options) -> VhdState {
    let settings = VhdSettings {
        id: VhdId(7),
        uuid: uuid::Uuid::from_u128(0x1234),
        geometry: Geometry::new(EXTENT).unwrap(),
        block_size: options.guest_block,
        read_only: false,
        thick: options.thick,
        checksums: options.checksums,
    };
    let size = u64::from(options.extents) * EXTENT - options.short_by;
    let map = if options.checksums { VhdMap::checked } else { VhdMap::new };
    VhdState::new(settings, size, map(options.extents), options.reactors)
}

impl World {
    pub fn new(options: &Options) -> World {
        let vhd = Arc::new(vhd_state(options));
        let images: Disks = Rc::default();
        let disks: Vec<_> = (0..options.disks)
            .map(|i| {
                let (block, align) = (options.disk_block, options.memory_alignment);
                let state = Arc::new(DiskState::new(DiskId(i), format!("d{i}"), DATA_OFFSET, 128, block, align));
                let image = Image { state: Arc::clone(&state), bytes: Vec::new(), syncs: 0 };
                images.borrow_mut().insert(DiskId(i), image);
                state
            })
            .collect();
        let outbox = TestOutbox { mail: Rc::default(), vhd: Arc::clone(&vhd) };
        let mail = Rc::clone(&outbox.mail);
        let pipelines = (0..options.reactors)
            .map(|i| {
                let engine = TestEngine {
                    pending: Vec::new(),
                    done: VecDeque::new(),
                    disks: Rc::clone(&images),
                    capacity: options.engine_slots,
                    block: u64::from(options.disk_block),
                    alignment: options.memory_alignment as usize,
                };
                let mut pipeline = Pipeline::new(ReactorId(i), engine, outbox.clone());
                disks.iter().for_each(|d| pipeline.add_disk(Arc::clone(d)));
                pipeline.reserve(64);
                pipeline
            })
            .collect();
        World {
            pipelines,
            vhd,
            disks,
            mail,
            freed: Vec::new(),
            hung: DiskSet::default(),
            next_slot: 0,
            next_token: 0,
            finished: HashMap::new(),
            in_use: Vec::new(),
        }
    }

    /// Shares the disks out, with so much in flight on each.
    pub fn share(&self, window: Work) {
        for disk in &self.disks {
            disk.shares.switch(true);
            disk.shares.set_window(window);
        }
    }

    fn begin(&mut self, reactor: usize, writethrough: bool, fill: impl FnOnce(&mut Request)) -> Token {
        let vhd = Arc::clone(&self.vhd);
        self.begin_of(&vhd, reactor, writethrough, fill)
    }

    fn begin_of(
        &mut self,
        vhd: &Arc<VhdState>,
        reactor: usize,
        writethrough: bool,
        fill: impl FnOnce(&mut Request),
    ) -> Token {
        let pipeline = &mut self.pipelines[reactor];
        let slot: RequestSlot = pipeline.prepare().expect("reserved");
        fill(pipeline.request_mut(slot));
        self.next_token += 1;
        let token = Token(self.next_token);
        pipeline.start(slot, vhd, writethrough, token, Nanos(0));
        token
    }

    pub fn start(&mut self, reactor: usize, kind: RequestKind, guest: &Guest) -> Token {
        self.start_as(reactor, kind, guest, false)
    }

    /// A read or write of another VHD on the same disks.
    pub fn start_of(&mut self, vhd: &Arc<VhdState>, reactor: usize, kind: RequestKind, guest: &Guest) -> Token {
        let segments = guest.segments.clone();
        self.in_use.push(Rc::clone(&guest.memory));
        self.begin_of(vhd, reactor, false, |request| {
            request.reset(kind);
            assert!(segments.iter().all(|s| request.push_segment(*s)));
        })
    }

    pub fn start_as(&mut self, reactor: usize, kind: RequestKind, guest: &Guest, writethrough: bool) -> Token {
        let segments = guest.segments.clone();
        self.in_use.push(Rc::clone(&guest.memory));
        self.begin(reactor, writethrough, |request| {
            request.reset(kind);
            assert!(segments.iter().all(|s| request.push_segment(*s)));
        })
    }

    pub fn flush(&mut self, reactor: usize) -> Token {
        self.begin(reactor, false, |request| request.reset(RequestKind::Flush))
    }

    pub fn clear(&mut self, reactor: usize, kind: RequestKind, offset: u64, len: u64) -> Token {
        self.begin(reactor, false, |request| {
            request.reset(kind);
            assert!(request.push_range(crate::virtio::request::Range { offset, len, unmap: true }));
        })
    }

    /// What a request reported, if it has.
    pub fn status(&mut self, token: Token) -> Option<Status> {
        for pipeline in &mut self.pipelines {
            while let Some(finished) = pipeline.next_finished() {
                assert!(self.finished.insert(finished.token, finished).is_none(), "finished twice");
            }
        }
        self.finished.get(&token).map(|f| f.status)
    }

    /// Whether a request that has reported says that its guest's memory is gone.
    pub fn has_lost_memory(&self, token: Token) -> bool {
        self.finished[&token].memory_lost
    }

    pub fn finish_op(&mut self, reactor: usize, index: usize, result: Result<(), IoError>) {
        self.pipelines[reactor].engine.finish(index, result);
        self.pipelines[reactor].poll(Nanos(0));
    }

    /// The owner answers its oldest request. Returns false if there is none.
    pub fn answer_owner(&mut self) -> bool {
        let Some(request) = self.mail.borrow_mut().owner.pop_front() else { return false };
        match request {
            OwnerRequest::Allocate { reactor, ticket, extent, .. } => {
                self.place(extent);
                self.tell(reactor, PipelineMessage::Allocated { ticket, result: Ok(()) });
            }
            OwnerRequest::Free { reactor, ticket, extent, .. } => {
                let freed = self.vhd.map.lookup(extent).replicas;
                self.vhd.map.drop_extent(extent);
                self.freed.push(freed);
                self.vhd.change_handed_over();
                let generation = self.vhd.map.lookup(extent).generation;
                let change = Change { vhd: VhdId(7), extent, generation, kind: ChangeKind::Freed { freed } };
                self.mail.borrow_mut().changes.push(change);
                self.tell(reactor, PipelineMessage::Freed { ticket });
            }
            OwnerRequest::Intend { reactor, ticket, extent, .. } => {
                self.vhd.map.set_intent(extent.0 / 64);
                self.tell(reactor, PipelineMessage::Allocated { ticket, result: Ok(()) });
            }
            // It was the only place.
            OwnerRequest::CopyMissed { reactor, disk, by, .. } => {
                self.tell(reactor, PipelineMessage::CopyDropped { by, disk, ok: false });
            }
            OwnerRequest::FenceReached { .. }
            | OwnerRequest::ReadFailed { .. }
            | OwnerRequest::ReplicasDiffer { .. }
            | OwnerRequest::Turned { .. }
            | OwnerRequest::Stirred
            | OwnerRequest::LimitHit { .. }
            | OwnerRequest::DiskError { .. } => {}
        }
        true
    }

    pub fn place(&mut self, extent: ExtentIndex) {
        if self.vhd.map.lookup(extent).replicas.is_absent() {
            let disks = u32::try_from(self.disks.len()).unwrap();
            let disk = DiskId(u8::try_from(self.next_slot % disks).unwrap());
            self.vhd.map.place(extent, ReplicaSet::single(disk, SlotIndex(self.next_slot / disks)));
            self.next_slot += 1;
        }
    }

    fn with_slot<R>(&self, disk: DiskId, slot: u32, work: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut disks = self.pipelines[0].engine.disks.borrow_mut();
        let bytes = &mut disks.get_mut(&disk).unwrap().bytes;
        let [start, end] =
            [slot, slot + 1].map(|slot| usize::try_from(DATA_OFFSET + u64::from(slot) * EXTENT).unwrap());
        bytes.resize(bytes.len().max(end), GARBAGE);
        work(&mut bytes[start..end])
    }

    /// Changes a byte of a slot, as disks do that lie.
    pub fn damage(&self, disk: DiskId, slot: u32, offset: u64) {
        self.with_slot(disk, slot, |bytes| bytes[usize::try_from(offset).unwrap()] ^= 1);
    }

    /// What a slot holds.
    pub fn image(&self, disk: DiskId, slot: u32) -> Vec<u8> {
        self.with_slot(disk, slot, |bytes| bytes.to_vec())
    }

    pub fn set_image(&self, disk: DiskId, slot: u32, image: &[u8]) {
        self.with_slot(disk, slot, |bytes| bytes.copy_from_slice(image));
    }

    /// The committer takes everything handed over, and answers one commit request.
    pub fn answer_commit(&mut self, ok: bool) -> bool {
        let Some(request) = self.mail.borrow_mut().commits.pop_front() else { return false };
        if ok {
            let count = self.mail.borrow_mut().changes.drain(..).count() as u64;
            self.vhd.changes_committed(count);
        }
        self.tell(request.reactor, PipelineMessage::Committed { ticket: request.ticket, ok });
        true
    }

    /// Delivers one message between reactors.
    pub fn deliver(&mut self) -> bool {
        let Some((reactor, message)) = self.mail.borrow_mut().reactors.pop_front() else { return false };
        match message {
            ReactorMessage::ClaimReleased { vhd } => self.tell(reactor, PipelineMessage::ClaimReleased { vhd }),
            ReactorMessage::Room => _ = self.pipelines[usize::from(reactor.0)].poll(Nanos(0)),
            _ => panic!("reactors say nothing else to each other"),
        }
        true
    }

    pub fn tell(&mut self, reactor: ReactorId, message: PipelineMessage) {
        let pipeline = &mut self.pipelines[usize::from(reactor.0)];
        pipeline.handle(message, Nanos(0));
        pipeline.poll(Nanos(0));
    }

    /// Does one thing of all that can happen, chosen by `rng`. Returns false if nothing can.
    pub fn step(&mut self, rng: &mut Rng) -> bool {
        let count = self.pipelines.len();
        for _ in 0..8 {
            match rng.below(4 + count as u64) {
                0 if self.answer_owner() => return true,
                1 if self.answer_commit(true) => return true,
                2 if self.deliver() => return true,
                3 => {}
                choice if choice > 3 => {
                    let reactor = usize::try_from(choice - 4).unwrap();
                    let movable = self.movable(reactor);
                    if !movable.is_empty() {
                        self.finish_op(reactor, movable[rng.index(movable.len())], Ok(()));
                        return true;
                    }
                }
                _ => {}
            }
        }
        if self.answer_owner() || self.answer_commit(true) || self.deliver() {
            return true;
        }
        for reactor in 0..count {
            if let Some(&index) = self.movable(reactor).first() {
                self.finish_op(reactor, index, Ok(()));
                return true;
            }
            if self.pipelines[reactor].poll(Nanos(0)) {
                return true;
            }
        }
        // A reactor that looks may tell another one to, or submit something and wait again.
        self.deliver() || (0..count).any(|reactor| !self.movable(reactor).is_empty())
    }

    /// The fences that the owner was told of and has not looked at.
    pub fn fences_reached(&self) -> Vec<u64> {
        let mail = self.mail.borrow();
        let fence = |message: &OwnerRequest| match message {
            OwnerRequest::FenceReached { fence, .. } => Some(*fence),
            _ => None,
        };
        mail.owner.iter().filter_map(fence).collect()
    }

    /// The operations of a reactor that can complete.
    fn movable(&self, reactor: usize) -> Vec<usize> {
        let pending = self.pipelines[reactor].engine.pending.iter().enumerate();
        pending.filter(|(_, op)| !self.hung.contains(op.disk)).map(|(index, _)| index).collect()
    }

    /// Lets everything happen, in an order chosen by `rng`.
    pub fn settle(&mut self, rng: &mut Rng) {
        while self.step(rng) {}
        if self.hung.is_empty() {
            assert!(self.pipelines.iter().all(Pipeline::is_idle), "a request is stuck");
            self.in_use.clear();
        }
    }

    /// Writes and waits.
    pub fn write(&mut self, offset: u64, guest: &Guest) -> Status {
        let len = guest.segments.iter().map(|s| u64::from(s.len)).sum();
        let token = self.start(0, RequestKind::Write { offset, len }, guest);
        self.settle(&mut Rng::new(1));
        self.status(token).expect("finished")
    }

    /// Reads and waits.
    pub fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let guest = Guest::filled(len, 0x55);
        let token = self.start(0, RequestKind::Read { offset, len: len as u64 }, &guest);
        self.settle(&mut Rng::new(1));
        assert_eq!(self.status(token), Some(Status::Ok));
        guest.bytes()
    }
}
