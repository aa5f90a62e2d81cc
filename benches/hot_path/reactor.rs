//! Requests in a reactor: cut into pieces and submitted, and completed and given back. The engine is simulated, and done with
//! everything at once.

// Private to the crate, as it should be; compiled once more to be measured.
#[allow(unused, reason = "a part of it is measured, and its tests are run elsewhere")]
#[path = "../../src/reactor/ring/mod.rs"]
mod ring;

#[allow(unused, clippy::duplicate_mod, reason = "a part of it is needed; the tests of `ring` have it, too")]
#[path = "../../tests/common/guest.rs"]
mod guest;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use spanblk::base::aligned::AlignedBuf;
use spanblk::base::clock::Nanos;
use spanblk::base::ids::{DiskId, ReactorId, VhdId};
use spanblk::base::units::{BlockMask, ExtentIndex, Generation, Geometry, SlotIndex};
use spanblk::engine::{Completion, Engine, EngineFull, Op, OpTag};
use spanblk::placement::view::VhdMap;
use spanblk::placement::{Replica, ReplicaSet, ReplicaState};
use spanblk::shared::{DiskState, VhdSettings, VhdState};
use spanblk::store::change::{Change, CommitRequest};
use spanblk::virtio::request::{RequestKind, Segment, Status};
// Under these names, `ring` finds them.
use spanblk::reactor::{messages, pipeline};

use super::Bench;
use guest::{Guest, READ, WRITE};
use messages::{Outbox, OwnerRequest, ReactorMessage, RingAddresses, RingConfig, RingKey};
use pipeline::{Pipeline, Token};
use ring::Ring;

const REACTOR: ReactorId = ReactorId(0);
const NOW: Nanos = Nanos(0);
const EXTENT: u64 = 256 << 10;
const EXTENTS: u32 = 1024;
const PAGE_EXTENTS: u32 = spanblk::base::limits::EXTENTS_PER_PAGE as u32;
const DISKS: u32 = 4;
/// Requests at a time.
const BATCH: u16 = 32;
const ENGINE_SLOTS: usize = 1024;

/// Has done everything as soon as it is submitted.
struct AtOnce {
    done: VecDeque<Completion>,
}

impl Engine for AtOnce {
    fn available(&self) -> usize {
        ENGINE_SLOTS - self.done.len()
    }

    unsafe fn submit(&mut self, _op: Op<'_>, tag: OpTag) -> Result<(), EngineFull> {
        if self.available() == 0 {
            return Err(EngineFull);
        }
        self.done.push_back(Completion { tag, result: Ok(()) });
        Ok(())
    }

    fn take_completion(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }
}

/// Everything is placed and present, and there is one reactor: nobody is asked or told anything.
struct Nobody;

impl Outbox for Nobody {
    fn to_owner(&mut self, message: OwnerRequest) {
        panic!("{message:?}");
    }

    fn change(&mut self, change: Change) {
        panic!("{change:?}");
    }

    fn commit(&mut self, request: CommitRequest) {
        panic!("{request:?}");
    }

    fn to_reactor(&mut self, _reactor: ReactorId, _message: ReactorMessage) {
        panic!("there is one reactor");
    }

    fn room_for_mover(&mut self) {
        panic!("there is no mover");
    }
}

fn vhd(replicas: u32) -> Arc<VhdState> {
    let map = VhdMap::new(EXTENTS);
    for extent in 0..EXTENTS {
        let mut set = ReplicaSet::ABSENT;
        for copy in 0..replicas {
            let disk = DiskId(((extent + copy) % DISKS) as u8);
            set.push(Replica { disk, slot: SlotIndex(extent / DISKS), state: ReplicaState::InSync });
        }
        map.restore(ExtentIndex(extent), set, BlockMask::ALL, Generation(0));
    }
    (0..EXTENTS).for_each(|extent| map.set_intent(extent / PAGE_EXTENTS));
    let settings = VhdSettings {
        id: VhdId(1),
        uuid: uuid::Uuid::nil(),
        geometry: Geometry::new(EXTENT).unwrap(),
        block_size: 512,
        read_only: false,
        thick: false,
        checksums: false,
    };
    Arc::new(VhdState::new(settings, u64::from(EXTENTS) * EXTENT, map, 1))
}

fn pipeline_with(requests: usize, shared: bool) -> Pipeline<AtOnce, Nobody> {
    let mut pipeline = Pipeline::new(REACTOR, AtOnce { done: VecDeque::with_capacity(ENGINE_SLOTS) }, Nobody);
    for disk in 0..DISKS as u8 {
        let disk = DiskState::new(DiskId(disk), format!("d{disk}"), 0, EXTENTS, 512, 512);
        disk.shares.switch(shared);
        pipeline.add_disk(Arc::new(disk));
    }
    pipeline.reserve(requests);
    pipeline
}

/// Requests that are handed to the pipeline as if they had just been parsed.
struct Requests {
    name: &'static str,
    is_write: bool,
    /// Byte offset of the first; each next one begins a number of extents later.
    offset: u64,
    len: u64,
    segments: u64,
    replicas: u32,
    /// Whether the disks are shared out.
    shared: bool,
}

pub fn measure_split(bench: &Bench) {
    let read = |name, offset, len, segments| Requests {
        name,
        is_write: false,
        offset,
        len,
        segments,
        replicas: 1,
        shared: false,
    };
    let write =
        |name, replicas| Requests { name, is_write: true, offset: 0, len: 4096, segments: 1, replicas, shared: false };
    for requests in [
        read("split: read of 4 KiB in one extent", 0, 4096, 1),
        read("split: read of 128 KiB in one extent, 32 segments", 0, 128 << 10, 32),
        read("split: read of 128 KiB over the border of two extents", EXTENT - (64 << 10), 128 << 10, 1),
        read("split: the same in 32 segments", EXTENT - (64 << 10), 128 << 10, 32),
        read("split: read of 1 MiB over four extents", 0, 4 * EXTENT, 1),
        write("split: write of 4 KiB in one extent", 1),
        write("split: write of 4 KiB to two copies", 2),
        Requests { shared: true, ..read("split: read of 4 KiB from a disk that is shared out", 0, 4096, 1) },
        Requests { shared: true, ..write("split: write of 4 KiB to two copies on disks that are shared out", 2) },
    ] {
        measure_requests(bench, &requests);
    }
}

fn measure_requests(bench: &Bench, requests: &Requests) {
    let &Requests { name, is_write, offset, len, segments, replicas, shared } = requests;
    let vhd = vhd(replicas);
    let mut pipeline = pipeline_with(usize::from(BATCH), shared);
    let memory = AlignedBuf::zeroed(usize::try_from(len).unwrap());
    let segment_len = len / segments;
    let segment = |i: u64| Segment {
        ptr: memory.as_ptr().wrapping_add(usize::try_from(i * segment_len).unwrap()),
        len: u32::try_from(segment_len).unwrap(),
    };
    let completed = format!("{name}: its completion");
    bench.run([name, &completed], |stopwatch| {
        stopwatch.start();
        for i in 0..u64::from(BATCH) {
            let slot = pipeline.prepare().unwrap();
            let offset = offset + i * 8 * EXTENT;
            let kind = if is_write { RequestKind::Write { offset, len } } else { RequestKind::Read { offset, len } };
            let request = pipeline.request_mut(slot);
            request.reset(kind);
            (0..segments).for_each(|i| assert!(request.push_segment(segment(i))));
            pipeline.start(slot, &vhd, false, Token(i), NOW);
        }
        let started = stopwatch.lap();
        pipeline.poll(NOW);
        let mut done = 0;
        while let Some(finished) = pipeline.next_finished() {
            assert_eq!(finished.status, Status::Ok);
            done += 1;
        }
        let completed = stopwatch.lap();
        assert_eq!(done, BATCH);
        [(started, usize::from(BATCH)), (completed, usize::from(BATCH))]
    });
}

fn open(guest: &Guest, vhd: &Arc<VhdState>) -> Ring {
    let (descriptors, available, used) = guest.addresses();
    let config = RingConfig {
        key: RingKey(1),
        vhd: Arc::clone(vhd),
        index: 0,
        size: guest.size,
        addresses: RingAddresses { descriptors, available, used },
        next_available: 0,
        inflight: None,
        log: None,
        event_idx: guest.uses_event_idx(),
        indirect: false,
        writeback: Arc::new(AtomicBool::new(true)),
        features: 0,
        load: Arc::default(),
        memory: Arc::clone(&guest.memory),
        kick: None,
        call: None,
        error: None,
    };
    Ring::open(&config).unwrap()
}

pub fn measure_complete(bench: &Bench) {
    measure_ring(bench, "read of 4 KiB, 32 at a time", READ, 1, BATCH);
    measure_ring(bench, "read of 4 KiB, one at a time", READ, 1, 1);
    measure_ring(bench, "write of 4 KiB to two copies, 32 at a time", WRITE, 2, BATCH);
}

/// The whole way of a request through ring and pipeline, as a reactor has it, in its parts.
fn measure_ring(bench: &Bench, what: &str, kind: u32, replicas: u32, batch: u16) {
    let vhd = vhd(replicas);
    let mut guest = Guest::new(BATCH, 4096, true);
    let mut ring = open(&guest, &vhd);
    let mut pipeline = pipeline_with(ring.slots(), false);
    let mut finished = Vec::with_capacity(usize::from(batch));
    let names = [
        format!("ring: {what}: popped, parsed, started"),
        format!("complete: {what}: in the pipeline"),
        format!("complete: {what}: status and used entry"),
        format!("complete: {what}: published, once for all"),
    ];
    bench.run(names.each_ref().map(String::as_str), |stopwatch| {
        for slot in 0..batch {
            guest.submit(slot, kind, u64::from(slot) * (EXTENT / 512), 4096, 0);
        }
        guest.arm_interrupt();
        stopwatch.start();
        while ring.has_available() {
            ring.pop(&mut pipeline, REACTOR, |head| Token(u64::from(head)), NOW).unwrap();
        }
        let popped = stopwatch.lap();
        pipeline.poll(NOW);
        finished.extend(std::iter::from_fn(|| pipeline.next_finished()));
        let completed = stopwatch.lap();
        for done in finished.drain(..) {
            ring.complete(done.token.0 as u16, &done).unwrap();
        }
        let put = stopwatch.lap();
        let interrupts = ring.publish().unwrap();
        let published = stopwatch.lap();
        assert!(interrupts, "the guest asked for it");
        for _ in 0..batch {
            assert_eq!(guest.take().unwrap().1, Status::Ok as u8);
        }
        let count = usize::from(batch);
        [(popped, count), (completed, count), (put, count), (published, 1)]
    });
}
