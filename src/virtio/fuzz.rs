//! The body of the parser's fuzz target: bytes become a chain in real guest memory, and what [`parse`] makes of it is held
//! against a slow model that looks at the same descriptors the obvious way. Panics if they disagree.
//!
//! A library function, so that `cargo test` runs it on seeded bytes and a fuzzer runs it on its own.

pub mod changing;
mod model;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use self::model::Verdict;
use super::device::DeviceLimits;
use super::features;
use super::parse::{Parsed, Rejected, parse};
use super::request::{Request, Segment};
use crate::base::units::Geometry;

const QUEUE_SIZE: u16 = 256;
const TABLE: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const INDIRECT: u64 = 0x4000;
const INDIRECT_LEN: u16 = 512;
const HEADER: u64 = 0x7000;

/// Guest memory: two regions side by side, a hole, and a third.
pub const REGIONS: [(u64, usize); 3] = [(0, 0x1_0000), (0x1_0000, 0x1_0000), (0x4_0000, 0x1_0000)];

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT_FLAG: u16 = 4;

/// Builds a chain from `data`, parses it and checks the result. Returns whether it was a valid request.
///
/// # Panics
/// If the parser and the model disagree: a bug in one of them.
pub fn run(data: &[u8]) -> bool {
    let memory = memory();
    let mut input = Input(data);
    let device = device(&mut input);
    let head = build(&mut input, &memory, &device);
    let chain = pop(&memory, head);
    let descriptors: Vec<Descriptor> = chain.clone().collect();
    let mut request = Request::default();
    let result = parse(chain, &memory, &device, &mut request);
    check(&model::judge(&descriptors, &memory, &device), &result, &request);
    result.is_ok()
}

fn memory() -> GuestMemoryMmap {
    let ranges = REGIONS.map(|(start, len)| (GuestAddress(start), len));
    GuestMemoryMmap::from_ranges(&ranges).expect("three small regions")
}

fn check(verdict: &Verdict, result: &Result<Parsed, Rejected>, request: &Request) {
    match (verdict, result) {
        (Verdict::Unanswerable, Err(rejected)) => {
            assert_eq!((rejected.answer, rejected.error.status()), (None, None), "{verdict:?}");
        }
        (Verdict::Faulty { statuses, at }, Err(rejected)) => {
            let answer = rejected.answer.unwrap_or_else(|| panic!("{rejected} goes unanswered, but {verdict:?}"));
            assert_eq!(answer.at.as_ptr().addr(), *at, "{rejected}");
            assert_eq!(Some(answer.status), rejected.error.status());
            assert!(statuses.contains(&answer.status), "{rejected} gives {:?}, but {verdict:?}", answer.status);
        }
        (Verdict::Valid(expected), Ok(parsed)) => {
            assert_eq!(request.kind, expected.kind);
            assert_eq!(parsed.status.as_ptr().addr(), expected.status);
            assert_eq!(u64::from(parsed.writable_len), expected.writable_len);
            assert_eq!(joined(request.segments()), expected.data);
            assert_eq!(request.ranges(), expected.ranges);
            assert!(request.segments().iter().all(|segment| segment.len > 0));
        }
        _ => panic!("the parser says {result:?}, the model {verdict:?}"),
    }
}

/// Segments as (address, length) with neighbours joined.
fn joined(segments: &[Segment]) -> Vec<(usize, usize)> {
    let mut pieces = model::Pieces::default();
    segments.iter().for_each(|segment| pieces.push(segment.ptr.addr(), segment.len as usize));
    pieces.0
}

/// Puts the chain that starts at descriptor `head` into an available ring and pops it.
fn pop(memory: &GuestMemoryMmap, head: u16) -> DescriptorChain<&GuestMemoryMmap> {
    let mut queue = Queue::new(QUEUE_SIZE).expect("a power of two");
    queue.try_set_desc_table_address(GuestAddress(TABLE)).expect("aligned");
    queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).expect("aligned");
    queue.try_set_used_ring_address(GuestAddress(USED)).expect("aligned");
    queue.set_ready(true);
    memory.write_obj(head, GuestAddress(AVAILABLE + 4)).expect("in memory");
    memory.write_obj(1_u16, GuestAddress(AVAILABLE + 2)).expect("in memory");
    queue.pop_descriptor_chain(memory).expect("one chain is available")
}

/// The fuzzer's bytes, zeros after their end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes([(); 8].map(|()| self.byte()))
    }

    fn half(&mut self) -> u16 {
        u16::from_le_bytes([(); 2].map(|()| self.byte()))
    }

    /// One of the choices.
    fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }
}

fn device(input: &mut Input<'_>) -> DeviceLimits {
    let bits = input.byte();
    let block_size = if bits & 1 == 0 { 512 } else { 4096 };
    let acknowledged = input.choose(&[3, 3, 3, 3, 0, 1, 2]) * features::DISCARD;
    let geometry = Geometry::new(256 << 10).expect("the smallest extent");
    let size = input.choose(&[1 << 20, 64 << 10, 1 << 30, 1 << 50]);
    DeviceLimits::new(size, block_size, bits >> 3 == 31, geometry, acknowledged)
}

/// Writes a chain into guest memory, mostly a plausible one, and returns its head.
fn build(input: &mut Input<'_>, memory: &GuestMemoryMmap, device: &DeviceLimits) -> u16 {
    let number = input.choose(&[0_u32, 1, 0, 1, 0, 1, 0, 1, 0, 1, 4, 8, 11, 13, 11, 13, 11, 13, 2, u32::MAX]);
    let sector = sector(input, device);
    write_header(memory, number, sector);
    let mut chain = Vec::new();
    describe_header(input, &mut chain);
    match number {
        0 => describe_data(input, &mut chain, WRITE),
        1 => {
            describe_data(input, &mut chain, 0);
            if input.byte() > 240 {
                describe_data(input, &mut chain, WRITE);
            }
        }
        8 => chain.push((buffer(input, 20), input.choose(&[20, 20, 21, 19, 512, 7]), WRITE)),
        11 | 13 => describe_ranges(input, &mut chain, memory, device),
        _ if input.byte() > 200 => describe_data(input, &mut chain, 0),
        _ => {}
    }
    describe_status(input, &mut chain);
    spoil(input, &mut chain);
    store(input, memory, &chain)
}

fn sector(input: &mut Input<'_>, device: &DeviceLimits) -> u64 {
    let last = device.capacity / 512;
    let near = u64::from(input.byte());
    let evil = [1 << 55, u64::MAX, u64::MAX - 7, 1 << 63];
    match input.byte() {
        0..=150 => near & !7,
        151..=190 => near,
        191..=230 => last.saturating_sub(near & !7),
        231..=245 => input.choose(&evil),
        _ => input.word(),
    }
}

fn write_header(memory: &GuestMemoryMmap, number: u32, sector: u64) {
    memory.write_obj(number, GuestAddress(HEADER)).expect("in memory");
    memory.write_obj(0_u32, GuestAddress(HEADER + 4)).expect("in memory");
    memory.write_obj(sector, GuestAddress(HEADER + 8)).expect("in memory");
}

type Entry = (u64, u32, u16);

fn describe_header(input: &mut Input<'_>, chain: &mut Vec<Entry>) {
    let total = input.choose(&[16, 16, 16, 16, 16, 16, 16, 16, 15, 17, 1]);
    let mut at = 0;
    while at < total {
        let len = if input.byte() < 160 { total - at } else { (1 + u32::from(input.byte() % 15)).min(total - at) };
        chain.push((HEADER + u64::from(at), len, 0));
        at += len;
    }
}

fn describe_data(input: &mut Input<'_>, chain: &mut Vec<Entry>, flags: u16) {
    let count = input.choose(&[1, 1, 1, 2, 3, 4, 0, 125, 126, 127, 130]);
    for _ in 0..count {
        let len = input.choose(&[512, 4096, 4096, 8192, 1024, 1024, 3584]);
        chain.push((buffer(input, len), len, flags));
    }
    // The same bytes in another framing: move the border between two buffers.
    if count > 1 && input.byte() > 128 {
        let shift = u32::from(input.byte());
        let last = chain.len() - 1;
        chain[last].1 = chain[last].1.saturating_sub(shift);
        chain[last - 1].1 += shift;
    }
}

/// An address for `len` bytes: mostly inside memory, sometimes across two regions, over an edge or in the hole.
fn buffer(input: &mut Input<'_>, len: u32) -> u64 {
    let offset = u64::from(input.half());
    let room = 0x8000_u64.saturating_sub(u64::from(len)).max(1);
    match input.byte() {
        0..=120 => 0x1_0000 + offset % room,
        121..=180 => 0x4_0000 + offset % room,
        181..=235 => 0x1_0000_u64.saturating_sub(offset % u64::from(len)),
        236..=243 => 0x5_0000_u64.saturating_sub(offset % 600),
        244..=249 => 0x2_0000 + offset,
        _ => input.word(),
    }
}

fn describe_ranges(input: &mut Input<'_>, chain: &mut Vec<Entry>, memory: &GuestMemoryMmap, device: &DeviceLimits) {
    let count = input.choose(&[1_u32, 1, 1, 2, 3, 0, 31, 32, 33]);
    let at = 0x8000;
    for i in 0..count {
        let sectors = input.choose(&[8_u32, 8, 64, 0, 1, 2048, 131_072, 131_080, u32::MAX]);
        let flags = input.choose(&[0_u32, 0, 0, 0, 1, 1, 2, u32::MAX]);
        let address = GuestAddress(at + u64::from(i) * 16);
        memory.write_obj(sector(input, device), address).expect("in memory");
        memory.write_obj(sectors, GuestAddress(address.0 + 8)).expect("in memory");
        memory.write_obj(flags, GuestAddress(address.0 + 12)).expect("in memory");
    }
    let total = (count * 16 + u32::from(input.byte() > 240)).saturating_sub(u32::from(input.byte() > 240));
    let first = if input.byte() > 128 { u32::from(input.byte()).min(total) } else { total };
    for (start, len) in [(0, first), (first, total - first)] {
        if len > 0 {
            chain.push((at + u64::from(start), len, 0));
        }
    }
}

fn describe_status(input: &mut Input<'_>, chain: &mut Vec<Entry>) {
    match (input.byte(), chain.last_mut()) {
        (0..=20, Some(last)) if last.2 == WRITE => last.1 += 1,
        (21..=25, _) => {}
        _ => chain.push((buffer(input, 1), 1, WRITE)),
    }
}

/// Breaks a descriptor, sometimes.
fn spoil(input: &mut Input<'_>, chain: &mut [Entry]) {
    while input.byte() > 220 && !chain.is_empty() {
        let which = usize::from(input.byte()) % chain.len();
        match input.byte() % 4 {
            0 => chain[which].2 ^= WRITE,
            1 => chain[which].1 = input.choose(&[0, 1, u32::MAX, 0x1_0000, 0x10_0000]),
            2 => chain[which].0 = buffer(input, 1),
            _ => chain.swap(which, 0),
        }
    }
}

/// Stores the chain in the table, or the part after `split` in an indirect table; returns its head.
fn store(input: &mut Input<'_>, memory: &GuestMemoryMmap, chain: &[Entry]) -> u16 {
    let split = match input.byte() {
        0..=120 => chain.len().min(usize::from(QUEUE_SIZE)),
        121..=220 => 0,
        _ => usize::from(input.byte()) % (chain.len() + 1),
    };
    let evil_next = input.byte();
    let mut index = 0;
    for (table, part) in [(TABLE, &chain[..split]), (INDIRECT, &chain[split..])] {
        if table == INDIRECT && !part.is_empty() {
            let entries = u32::try_from(part.len()).expect("short").min(u32::from(INDIRECT_LEN));
            let len = entries * 16 + u32::from(input.byte() == 7);
            let flags = INDIRECT_FLAG | u16::from(input.byte() & 3);
            put(memory, TABLE, u16::try_from(split).expect("short"), Descriptor::new(INDIRECT, len, flags, 0));
        }
        for (i, &(address, len, flags)) in part.iter().enumerate() {
            let position = u16::try_from(i).expect("short");
            let last = index + 1 == chain.len();
            let next = if evil_next == 255 && input.byte() > 200 { input.half() } else { position + 1 };
            let flags = flags | if last && evil_next != 254 { 0 } else { NEXT };
            put(memory, table, position, Descriptor::new(address, len, flags, next));
            index += 1;
        }
    }
    if evil_next == 253 { input.half() % QUEUE_SIZE } else { 0 }
}

fn put(memory: &GuestMemoryMmap, table: u64, index: u16, descriptor: Descriptor) {
    memory.write_obj(descriptor, GuestAddress(table + u64::from(index) * 16)).expect("tables are in memory");
}
