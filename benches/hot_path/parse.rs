//! A chain of descriptors from the available ring to a request.

use std::hint::black_box;

use spanblk::base::units::Geometry;
use spanblk::virtio::device::DeviceLimits;
use spanblk::virtio::parse::parse;
use spanblk::virtio::request::{Request, RequestKind};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Bench;

/// Descriptor flags.
const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;
const INDIRECT: u16 = 4;

const QUEUE_SIZE: u16 = 256;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x1_0000;
const USED: u64 = 0x2_0000;
/// Per chain, a page for the header, the status and an indirect table.
const PAGES: u64 = 0x10_0000;
const STATUS: u64 = 64;
const TABLE: u64 = 128;
/// Per chain, the data.
const DATA: u64 = 0x100_0000;
const DATA_LEN: u64 = 128 << 10;
const BLOCK: u32 = 4096;

/// A ring full of requests of one kind.
struct Chains {
    memory: GuestMemoryMmap,
    queue: Queue,
    count: u16,
}

impl Chains {
    /// As many requests as there are descriptors for: of type `number` with `segments` blocks of data.
    fn new(number: u32, segments: u16, indirect: bool) -> Chains {
        let per_chain = if indirect { 1 } else { segments + 2 };
        let count = QUEUE_SIZE / per_chain;
        let len = DATA + u64::from(count) * DATA_LEN;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(len).unwrap())]).unwrap();
        let data_flags = if number == 0 { DEVICE_WRITES } else { 0 };
        for chain in 0..count {
            let page = PAGES + u64::from(chain) * 4096;
            let head = chain * per_chain;
            memory.write_obj(number.to_le(), GuestAddress(page)).unwrap();
            memory.write_obj((u64::from(chain) * 1024).to_le(), GuestAddress(page + 8)).unwrap();
            let (table, first) = if indirect { (page + TABLE, 0) } else { (DESCRIPTORS, head) };
            let put = |index: u16, address: u64, len: u32, flags: u16| {
                let (index, is_last) = (first + index, index == segments + 1);
                let flags = if is_last { flags } else { flags | NEXT };
                let at = GuestAddress(table + u64::from(index) * 16);
                memory.write_obj(Descriptor::new(address, len, flags, index + 1), at).unwrap();
            };
            put(0, page, 16, 0);
            for segment in 0..segments {
                let address = DATA + u64::from(chain) * DATA_LEN + u64::from(segment) * u64::from(BLOCK);
                put(1 + segment, address, BLOCK, data_flags);
            }
            put(segments + 1, page + STATUS, 1, DEVICE_WRITES);
            if indirect {
                let descriptor = Descriptor::new(page + TABLE, u32::from(segments + 2) * 16, INDIRECT, 0);
                memory.write_obj(descriptor, GuestAddress(DESCRIPTORS + u64::from(head) * 16)).unwrap();
            }
            memory.write_obj(head.to_le(), GuestAddress(AVAILABLE + 4 + u64::from(chain) * 2)).unwrap();
        }
        memory.write_obj(count.to_le(), GuestAddress(AVAILABLE + 2)).unwrap();
        let mut queue = Queue::new(QUEUE_SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(DESCRIPTORS)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_ready(true);
        Chains { memory, queue, count }
    }
}

pub fn measure(bench: &Bench) {
    for (name, number, segments, indirect) in [
        ("parse: read of 4 KiB, 3 descriptors", 0, 1, false),
        ("parse: read of 4 KiB, indirect table of 3", 0, 1, true),
        ("parse: write of 128 KiB, 32 segments in 34 descriptors", 1, 32, false),
        ("parse: write of 128 KiB, indirect table of 34", 1, 32, true),
    ] {
        let mut chains = Chains::new(number, segments, indirect);
        let device = DeviceLimits::new(1 << 30, 512, false, Geometry::new(1 << 20).unwrap(), 0);
        let mut request = Request::default();
        bench.run([name], |stopwatch| {
            chains.queue.set_next_avail(0);
            stopwatch.start();
            for _ in 0..chains.count {
                let chain = chains.queue.iter(&chains.memory).unwrap().next().unwrap();
                black_box(parse(chain, &chains.memory, &device, black_box(&mut request)).unwrap());
            }
            let time = stopwatch.lap();
            let len = u64::from(segments) * u64::from(BLOCK);
            let offset = u64::from(chains.count - 1) * 1024 * 512;
            let expected =
                if number == 0 { RequestKind::Read { offset, len } } else { RequestKind::Write { offset, len } };
            assert_eq!((request.kind, request.segments().len()), (expected, usize::from(segments)));
            [(time, usize::from(chains.count))]
        });
    }
}
