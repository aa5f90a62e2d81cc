//! The virtio-blk request parser: a model on random chains, an encoder, and every malformed chain we know by name.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use proptest::prelude::*;
use spanblk::base::units::Geometry;
use spanblk::virtio::device::DeviceLimits;
use spanblk::virtio::parse::{ParseError, Parsed, Rejected, parse};
use spanblk::virtio::request::{Range, Request, RequestKind, Status};
use spanblk::virtio::{features, fuzz};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const HEADER: u64 = 0x8000;
const RANGES: u64 = 0x9000;
const STATUS: u64 = 0xa000;
/// Data buffers: 48 MiB of untouched memory.
const DATA: u64 = 0x10_0000;
const END: u64 = DATA + (48 << 20);

fn seeded_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn parser_agrees_with_the_model_on_seeded_chains() {
    let rounds = std::env::var("SPANBLK_FUZZ_ROUNDS").map_or(10_000, |rounds| rounds.parse().unwrap());
    let valid = (0..rounds).filter(|&seed| fuzz::run(&seeded_bytes(seed, 400))).count() as u64;
    assert!(valid > rounds / 10 && valid < rounds * 9 / 10, "{valid} of {rounds} chains are valid: the mix is off");
}

proptest! {
    #[test]
    fn parser_agrees_with_the_model(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzz::run(&data);
    }

    #[test]
    fn what_was_encoded_is_parsed(request in wanted(), framing in proptest::collection::vec(1..5000_u32, 1..40)) {
        let chain = encode(&request, &framing);
        let mut guest = Guest::new();
        guest.set_ranges(&request.raw_ranges());
        let parsed = guest.header(request.number(), request.sector()).run(&chain).unwrap();
        prop_assert_eq!(guest.request.kind, request.kind);
        prop_assert_eq!(guest.request.ranges(), &request.ranges[..]);
        let (len, reads) = request.data();
        let got: u64 = guest.request.segments().iter().map(|segment| u64::from(segment.len)).sum();
        prop_assert_eq!(got, len);
        let mut at = guest.host(DATA);
        for segment in guest.request.segments() {
            prop_assert_eq!(segment.ptr, at);
            at = at.wrapping_add(segment.len as usize);
        }
        prop_assert_eq!(parsed.status.as_ptr(), guest.host(STATUS));
        prop_assert_eq!(u64::from(parsed.writable_len), 1 + if reads { len } else { 0 });
    }
}

/// A request to encode.
#[derive(Clone, Debug)]
struct Wanted {
    kind: RequestKind,
    ranges: Vec<Range>,
}

impl Wanted {
    fn number(&self) -> u32 {
        match self.kind {
            RequestKind::Read { .. } => 0,
            RequestKind::Write { .. } => 1,
            RequestKind::Flush => 4,
            RequestKind::GetId => 8,
            RequestKind::Discard => 11,
            RequestKind::WriteZeroes => 13,
        }
    }

    fn sector(&self) -> u64 {
        match self.kind {
            RequestKind::Read { offset, .. } | RequestKind::Write { offset, .. } => offset / 512,
            _ => 0,
        }
    }

    fn raw_ranges(&self) -> Vec<(u64, u32, u32)> {
        self.ranges.iter().map(|r| (r.offset / 512, u32::try_from(r.len / 512).unwrap(), u32::from(r.unmap))).collect()
    }

    /// Length of the data, and whether the device writes it.
    fn data(&self) -> (u64, bool) {
        match self.kind {
            RequestKind::Read { len, .. } => (len, true),
            RequestKind::Write { len, .. } => (len, false),
            RequestKind::GetId => (20, true),
            _ => (0, false),
        }
    }
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let transfer = (0..1_u64 << 20, 1..=64_u64).prop_map(|(sector, blocks)| (sector * 512, blocks * 512));
    let range = (0..1_u64 << 20, 1..=4096_u64, any::<bool>());
    let ranges = proptest::collection::vec(range, 1..=32);
    prop_oneof![
        transfer.clone().prop_map(|(offset, len)| Wanted { kind: RequestKind::Read { offset, len }, ranges: vec![] }),
        transfer.prop_map(|(offset, len)| Wanted { kind: RequestKind::Write { offset, len }, ranges: vec![] }),
        Just(Wanted { kind: RequestKind::Flush, ranges: vec![] }),
        Just(Wanted { kind: RequestKind::GetId, ranges: vec![] }),
        (ranges, any::<bool>()).prop_map(|(ranges, zeroes)| Wanted {
            kind: if zeroes { RequestKind::WriteZeroes } else { RequestKind::Discard },
            ranges: ranges
                .into_iter()
                .map(|(sector, sectors, unmap)| Range {
                    offset: sector * 512,
                    len: sectors * 512,
                    unmap: unmap && zeroes
                })
                .collect(),
        }),
    ]
}

/// Frames the request: cuts header, ranges and data into pieces of the given lengths.
fn encode(request: &Wanted, framing: &[u32]) -> Vec<(u64, u32, u16)> {
    let mut lens = framing.iter().copied().cycle();
    let mut chain = Vec::new();
    let mut cut = |address: u64, len: u64, flags: u16, least: u32| {
        let mut at = 0;
        while at < len {
            let piece = u64::from(lens.next().unwrap().max(least)).min(len - at);
            chain.push((address + at, u32::try_from(piece).unwrap(), flags));
            at += piece;
        }
    };
    cut(HEADER, 16, 0, 1);
    cut(RANGES, request.ranges.len() as u64 * 16, 0, 1);
    let (len, reads) = request.data();
    // Large enough for a request of 64 sectors to fit the segments there are.
    cut(DATA, len, if reads { WRITE } else { 0 }, 300);
    chain.push((STATUS, 1, WRITE));
    chain
}

/// A guest with a queue, and a VHD of 1 GiB that it may use in every way.
struct Guest {
    memory: GuestMemoryMmap,
    device: DeviceLimits,
    request: Request,
    queue_size: u16,
}

impl Guest {
    fn new() -> Guest {
        let all = features::DISCARD | features::WRITE_ZEROES | features::FLUSH;
        Guest {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(END).unwrap())]).unwrap(),
            device: DeviceLimits::new(1 << 30, 512, false, Geometry::new(1 << 20).unwrap(), all),
            request: Request::default(),
            queue_size: 1024,
        }
    }

    fn host(&self, address: u64) -> *mut u8 {
        self.memory.get_host_address(GuestAddress(address)).unwrap()
    }

    fn header(&mut self, number: u32, sector: u64) -> &mut Guest {
        self.memory.write_obj(number, GuestAddress(HEADER)).unwrap();
        self.memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        self
    }

    fn set_ranges(&mut self, ranges: &[(u64, u32, u32)]) -> &mut Guest {
        for (i, &(sector, sectors, flags)) in ranges.iter().enumerate() {
            let at = RANGES + i as u64 * 16;
            self.memory.write_obj(sector, GuestAddress(at)).unwrap();
            self.memory.write_obj(sectors, GuestAddress(at + 8)).unwrap();
            self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        }
        self
    }

    fn put(&mut self, table: u64, index: usize, descriptor: Descriptor) {
        self.memory.write_obj(descriptor, GuestAddress(table + index as u64 * 16)).unwrap();
    }

    /// Writes the chain to the descriptor table, linked in order, and parses it.
    fn run(&mut self, chain: &[(u64, u32, u16)]) -> Result<Parsed, Rejected> {
        for (i, &(address, len, flags)) in chain.iter().enumerate() {
            let flags = if i + 1 < chain.len() { flags | NEXT } else { flags };
            self.put(0, i, Descriptor::new(address, len, flags, u16::try_from(i + 1).unwrap()));
        }
        self.parse_from(0)
    }

    fn parse_from(&mut self, head: u16) -> Result<Parsed, Rejected> {
        let mut queue = Queue::new(self.queue_size).unwrap();
        queue.try_set_desc_table_address(GuestAddress(0)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(0x4000)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(0x5000)).unwrap();
        queue.set_ready(true);
        self.memory.write_obj(head, GuestAddress(0x4004)).unwrap();
        self.memory.write_obj(1_u16, GuestAddress(0x4002)).unwrap();
        let chain = queue.pop_descriptor_chain(&self.memory).unwrap();
        parse(chain, &self.memory, &self.device, &mut self.request)
    }

    /// Parses a chain that is wrong, and checks that the guest hears of it as it must.
    #[track_caller]
    fn refuses(&mut self, chain: &[(u64, u32, u16)], error: ParseError, status: Status) {
        let rejected = self.run(chain).unwrap_err();
        assert_eq!(rejected.error, error);
        let answer = rejected.answer.expect("the status byte is there");
        assert_eq!(answer.status, status);
        let &(address, len, _) = chain.last().unwrap();
        assert_eq!(answer.at.as_ptr(), self.host(address + u64::from(len) - 1));
    }

    #[track_caller]
    fn cannot_answer(&mut self, chain: &[(u64, u32, u16)], error: ParseError) {
        let rejected = self.run(chain).unwrap_err();
        assert_eq!((rejected.error, rejected.answer), (error, None));
    }
}

const H: (u64, u32, u16) = (HEADER, 16, 0);
const S: (u64, u32, u16) = (STATUS, 1, WRITE);
const READ_4K: (u64, u32, u16) = (DATA, 4096, WRITE);
const WRITE_4K: (u64, u32, u16) = (DATA, 4096, 0);

#[test]
fn valid_requests() {
    let mut guest = Guest::new();
    let parsed = guest.header(0, 8).run(&[H, READ_4K, S]).unwrap();
    assert_eq!(guest.request.kind, RequestKind::Read { offset: 4096, len: 4096 });
    assert_eq!(parsed.used_len(guest.request.kind, Status::Ok), 4097);
    assert_eq!(parsed.used_len(guest.request.kind, Status::IoError), 0);

    let parsed = guest.header(1, (1 << 21) - 8).run(&[H, WRITE_4K, S]).unwrap();
    assert_eq!(guest.request.kind, RequestKind::Write { offset: (1 << 30) - 4096, len: 4096 });
    assert_eq!(parsed.used_len(guest.request.kind, Status::Ok), 1);
    // SAFETY: the guest's memory is still mapped.
    unsafe { parsed.status.write(Status::Unsupported) };
    assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), 2);

    // All in two descriptors; the status is the last writable byte.
    let parsed = guest.header(0, 0).run(&[H, (DATA, 513, WRITE)]).unwrap();
    assert_eq!(parsed.status.as_ptr(), guest.host(DATA + 512));
    assert_eq!(guest.request.segments()[0].len, 512);
    let parsed = guest.header(8, 0).run(&[H, (DATA, 512, WRITE), S]).unwrap();
    assert_eq!(guest.request.kind, RequestKind::GetId);
    assert_eq!(parsed.used_len(guest.request.kind, Status::Ok), 20);
}

#[test]
fn a_flush_may_carry_data_which_is_ignored() {
    let mut guest = Guest::new();
    for chain in [&[H, S][..], &[H, WRITE_4K, S], &[H, READ_4K, S]] {
        guest.header(4, 77).run(chain).unwrap();
        assert_eq!((guest.request.kind, guest.request.segments().len()), (RequestKind::Flush, 0));
    }
}

#[test]
fn headers() {
    let mut guest = Guest::new();
    guest.header(0, 0);
    guest.refuses(&[(HEADER, 1, 0), READ_4K, S], ParseError::ShortHeader { len: 1 }, Status::IoError);
    guest.refuses(&[(HEADER, 15, 0), READ_4K, S], ParseError::ShortHeader { len: 15 }, Status::IoError);
    guest.refuses(&[READ_4K, S], ParseError::ShortHeader { len: 0 }, Status::IoError);
    guest.refuses(&[(HEADER, 16, WRITE), READ_4K, S], ParseError::ShortHeader { len: 0 }, Status::IoError);
    guest.refuses(&[(HEADER, 17, 0), READ_4K, S], ParseError::WrongDirection, Status::IoError);
    let outside = ParseError::OutsideMemory { address: END - 8, len: 16 };
    guest.refuses(&[(END - 8, 16, 0), READ_4K, S], outside, Status::IoError);
    for number in [2, 3, 5, 9, 10, 14, 15, 16, 0x8000_0000, u32::MAX] {
        guest.header(number, 0);
        guest.refuses(&[H, READ_4K, S], ParseError::UnknownType { number }, Status::Unsupported);
    }
}

#[test]
fn directions_and_order() {
    let mut guest = Guest::new();
    guest.header(1, 0);
    guest.refuses(&[H, READ_4K, S], ParseError::WrongDirection, Status::IoError);
    guest.refuses(&[H, WRITE_4K, READ_4K, S], ParseError::WrongDirection, Status::IoError);
    guest.header(0, 0);
    guest.refuses(&[H, WRITE_4K, S], ParseError::WrongDirection, Status::IoError);
    guest.refuses(&[H, READ_4K, WRITE_4K, S], ParseError::ReadableAfterWritable, Status::IoError);
    guest.cannot_answer(&[H, READ_4K, (STATUS, 1, 0)], ParseError::NoStatus);
    guest.cannot_answer(&[H], ParseError::NoStatus);
    guest.header(4, 0).cannot_answer(&[H], ParseError::NoStatus);
}

#[test]
fn lengths_and_bounds() {
    let mut guest = Guest::new();
    guest.header(0, 0);
    guest.refuses(&[H, S], ParseError::NoData, Status::IoError);
    guest.refuses(&[H, (DATA, 511, WRITE), S], ParseError::Misaligned { sector: 0, len: 511 }, Status::IoError);
    guest.refuses(&[H, (DATA, 0, WRITE), S], ParseError::EmptyDescriptor, Status::IoError);
    let half = (16 << 20, DATA);
    let halves = [H, (half.1, half.0, WRITE), (half.1, half.0, WRITE), S];
    guest.run(&halves).unwrap();
    let more = [H, (half.1, half.0, WRITE), (half.1, half.0, WRITE), (DATA, 512, WRITE), S];
    guest.refuses(&more, ParseError::TooLong { len: (32 << 20) + 512 }, Status::IoError);
    for sector in [(1 << 21) - 7, 1 << 21, 1 << 55, 1 << 54, (1 << 55) - 8, u64::MAX, u64::MAX - 7] {
        for (number, data) in [(0, READ_4K), (1, WRITE_4K)] {
            guest.header(number, sector);
            guest.refuses(&[H, data, S], ParseError::OutOfBounds { sector, len: 4096 }, Status::IoError);
        }
    }
    guest.device.block_size = 4096;
    guest.header(1, 1);
    guest.refuses(&[H, WRITE_4K, S], ParseError::Misaligned { sector: 1, len: 4096 }, Status::IoError);
    guest.header(1, 8);
    guest.refuses(&[H, (DATA, 512, 0), S], ParseError::Misaligned { sector: 8, len: 512 }, Status::IoError);
}

#[test]
fn segments() {
    let mut guest = Guest::new();
    guest.header(0, 0);
    let mut chain = vec![H];
    chain.extend([(DATA, 512, WRITE); 126]);
    chain.push(S);
    guest.run(&chain).unwrap();
    assert_eq!(guest.request.segments().len(), 126);
    chain.push(S);
    chain[127] = (DATA, 512, WRITE);
    guest.refuses(&chain, ParseError::TooManySegments, Status::IoError);
    // As many, but the status is in the last of them.
    chain.pop();
    chain[127] = (DATA, 513, WRITE);
    guest.refuses(&chain, ParseError::TooManySegments, Status::IoError);
    // Longer than any queue: nobody looks for its end.
    let mut table = vec![(DATA, 512, WRITE); 1100];
    table[0] = H;
    put_indirect(&mut guest, &table);
    let rejected = guest.parse_from(0).unwrap_err();
    assert_eq!((rejected.error, rejected.answer), (ParseError::TooManyDescriptors, None));
}

/// Puts `table` behind descriptor 0, as an indirect table.
fn put_indirect(guest: &mut Guest, table: &[(u64, u32, u16)]) {
    const AT: u64 = 0x2_0000;
    guest.put(0, 0, Descriptor::new(AT, u32::try_from(table.len()).unwrap() * 16, INDIRECT, 0));
    for (i, &(address, len, flags)) in table.iter().enumerate() {
        let flags = if i + 1 < table.len() { flags | NEXT } else { flags };
        guest.put(AT, i, Descriptor::new(address, len, flags, u16::try_from(i + 1).unwrap()));
    }
}

#[test]
fn memory_outside_the_guest() {
    let mut guest = Guest::new();
    guest.header(0, 0);
    for address in [END - 4095, END, 1 << 40, u64::MAX - 4095, u64::MAX] {
        let outside = ParseError::OutsideMemory { address, len: 4096 };
        guest.refuses(&[H, (address, 4096, WRITE), S], outside, Status::IoError);
        guest.cannot_answer(&[H, READ_4K, (address.max(END), 1, WRITE)], ParseError::StatusUnreachable);
    }
    // More than 4 GiB in total ends the chain early.
    guest.cannot_answer(&[H, (DATA, u32::MAX, WRITE), (DATA, u32::MAX, WRITE), S], ParseError::Truncated);
}

#[test]
fn broken_chains() {
    let mut guest = Guest::new();
    guest.header(0, 0);
    let rejected = |guest: &mut Guest| {
        let rejected = guest.parse_from(0).unwrap_err();
        assert_eq!(rejected.answer, None);
        rejected.error
    };
    guest.put(0, 0, Descriptor::new(HEADER, 16, NEXT, 1));
    // A loop, next indices outside the table.
    guest.put(0, 1, Descriptor::new(DATA, 512, NEXT | WRITE, 1));
    assert_eq!(rejected(&mut guest), ParseError::Truncated);
    for next in [1024, u16::MAX] {
        guest.put(0, 1, Descriptor::new(DATA, 513, NEXT | WRITE, next));
        assert_eq!(rejected(&mut guest), ParseError::Truncated);
    }
    // Indirect tables: not whole, outside memory, one in another, empty.
    for (address, len) in [(0x2_0000, 17), (END, 32), (u64::MAX - 15, 32), (0x2_0000, 0), (0x2_0000, 16 << 16)] {
        guest.put(0, 1, Descriptor::new(address, len, INDIRECT, 0));
        assert_eq!(rejected(&mut guest), ParseError::Truncated);
        guest.put(0, 0, Descriptor::new(address, len, INDIRECT, 0));
        assert_eq!(rejected(&mut guest), ParseError::Empty);
        guest.put(0, 0, Descriptor::new(HEADER, 16, NEXT, 1));
    }
    put_indirect(&mut guest, &[H, (0x2_0000, 32, INDIRECT), S]);
    assert_eq!(rejected(&mut guest), ParseError::Truncated);
    // A head outside the table.
    let rejected = guest.parse_from(2000).unwrap_err();
    assert_eq!((rejected.error, rejected.answer), (ParseError::Empty, None));
}

#[test]
fn device_id() {
    let mut guest = Guest::new();
    guest.header(8, 0);
    guest.refuses(&[H, S], ParseError::IdTooShort { len: 0 }, Status::IoError);
    guest.refuses(&[H, (DATA, 19, WRITE), S], ParseError::IdTooShort { len: 19 }, Status::IoError);
    guest.refuses(&[H, (DATA, 20, WRITE)], ParseError::IdTooShort { len: 19 }, Status::IoError);
    guest.refuses(&[H, (DATA, 20, 0), S], ParseError::WrongDirection, Status::IoError);
    guest.run(&[H, (DATA, 20, WRITE), S]).unwrap();
}

#[test]
fn ranges() {
    let mut guest = Guest::new();
    let of = |count: u32| [H, (RANGES, count * 16, 0), S];
    let discard = |guest: &mut Guest, range: (u64, u32, u32)| {
        guest.header(11, 0).set_ranges(&[range]);
    };
    for (range, error, status) in [
        ((1 << 21, 1, 0), ParseError::OutOfBounds { sector: 1 << 21, len: 512 }, Status::IoError),
        ((1 << 55, 8, 0), ParseError::OutOfBounds { sector: 1 << 55, len: 4096 }, Status::IoError),
        ((u64::MAX, u32::MAX, 0), ParseError::OutOfBounds { sector: u64::MAX, len: 0x1ff_ffff_fe00 }, Status::IoError),
        ((0, 524_289, 0), ParseError::RangeTooLong { len: 524_289 * 512 }, Status::IoError),
        ((0, 8, 1), ParseError::UnmapOnDiscard, Status::Unsupported),
        ((0, 8, 2), ParseError::UnknownRangeFlags { flags: 2 }, Status::Unsupported),
    ] {
        discard(&mut guest, range);
        guest.refuses(&of(1), error, status);
    }
    discard(&mut guest, (0, 8, 0));
    guest.refuses(&[H, S], ParseError::RangesCutShort { len: 0 }, Status::IoError);
    guest.refuses(&[H, (RANGES, 15, 0), S], ParseError::RangesCutShort { len: 15 }, Status::IoError);
    guest.refuses(&[H, (RANGES, 17, 0), S], ParseError::RangesCutShort { len: 17 }, Status::IoError);
    guest.refuses(&[H, (RANGES, 16, WRITE), S], ParseError::WrongDirection, Status::IoError);
    guest.refuses(&of(33), ParseError::TooManyRanges { len: 528 }, Status::IoError);
    guest.refuses(&[H, (DATA, 1 << 20, 0), S], ParseError::TooManyRanges { len: 1 << 20 }, Status::IoError);
    guest.run(&of(1)).unwrap();
    // Nothing to do is not an error.
    discard(&mut guest, (5, 0, 0));
    guest.run(&of(1)).unwrap();
    assert!(guest.request.ranges().is_empty());
    // Write-zeroes knows one flag more; the status of bad flags wins over other errors.
    guest.header(13, 0).set_ranges(&[(0, 8, 1), (1 << 60, 8, 0), (0, 8, 3)]);
    guest.refuses(&of(3), ParseError::UnknownRangeFlags { flags: 3 }, Status::Unsupported);
    guest.run(&of(1)).unwrap();
    assert!(guest.request.ranges()[0].unmap);
    guest.device.block_size = 4096;
    discard(&mut guest, (1, 8, 0));
    guest.refuses(&of(1), ParseError::Misaligned { sector: 1, len: 4096 }, Status::IoError);
}

#[test]
fn what_the_device_does_not_do() {
    let mut guest = Guest::new();
    guest.set_ranges(&[(0, 8, 0)]);
    let ranges = [H, (RANGES, 16, 0), S];
    guest.device = DeviceLimits { discard: false, write_zeroes: false, ..guest.device };
    guest.header(11, 0).refuses(&ranges, ParseError::NotOffered { number: 11 }, Status::Unsupported);
    guest.header(13, 0).refuses(&ranges, ParseError::NotOffered { number: 13 }, Status::Unsupported);
    guest.device.read_only = true;
    guest.header(1, 0).refuses(&[H, WRITE_4K, S], ParseError::ReadOnly, Status::IoError);
    guest.header(11, 0).refuses(&ranges, ParseError::ReadOnly, Status::IoError);
    guest.header(13, 0).refuses(&ranges, ParseError::ReadOnly, Status::IoError);
    guest.header(0, 0).run(&[H, READ_4K, S]).unwrap();
}
