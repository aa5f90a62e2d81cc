//! What a chain means, worked out slowly and without regard to order.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::REGIONS;
use crate::base::limits::{CHAIN_DESCRIPTORS_MAX, DISCARD_RANGES_MAX, SEGMENTS_MAX};
use crate::virtio::device::DeviceLimits;
use crate::virtio::request::{Range, RequestKind, Status};

/// What the parser must say.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The guest cannot be told anything.
    Unanswerable,
    /// One of these statuses, at this address.
    Faulty { statuses: Vec<Status>, at: usize },
    /// This request.
    Valid(Expected),
}

/// A valid request.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) kind: RequestKind,
    pub(super) status: usize,
    pub(super) writable_len: u64,
    pub(super) data: Vec<(usize, usize)>,
    pub(super) ranges: Vec<Range>,
}

/// Addresses and lengths, neighbours joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pieces(pub(super) Vec<(usize, usize)>);

impl Pieces {
    pub(super) fn push(&mut self, address: usize, len: usize) {
        match self.0.last_mut() {
            Some((start, have)) if *start + *have == address => *have += len,
            _ => self.0.push((address, len)),
        }
    }

    fn total(&self) -> u64 {
        self.0.iter().map(|piece| piece.1 as u64).sum()
    }

    fn without_first(&self, mut drop: usize) -> Pieces {
        let mut rest = Pieces::default();
        for &(address, len) in &self.0 {
            let skip = drop.min(len);
            drop -= skip;
            if len > skip {
                rest.push(address + skip, len - skip);
            }
        }
        rest
    }

    fn without_last(&self) -> Pieces {
        let mut rest = self.clone();
        if let Some(last) = rest.0.pop()
            && last.1 > 1
        {
            rest.0.push((last.0, last.1 - 1));
        }
        rest
    }
}

/// The host addresses of a guest buffer, one piece per region; `None` if a byte of it is outside.
fn resolve(memory: &GuestMemoryMmap, descriptor: &Descriptor) -> Option<Vec<(usize, usize)>> {
    let start = u128::from(descriptor.addr().0);
    let end = start + u128::from(descriptor.len());
    let mut pieces = Vec::new();
    let mut covered = 0;
    for (region, len) in REGIONS {
        let from = start.max(u128::from(region));
        let to = end.min(u128::from(region) + len as u128);
        if from < to {
            let address = GuestAddress(u64::try_from(from).ok()?);
            let len = usize::try_from(to - from).ok()?;
            pieces.push((memory.get_host_address(address).ok()?.addr(), len));
            covered += to - from;
        }
    }
    (covered == end - start).then_some(pieces)
}

pub(super) fn judge(chain: &[Descriptor], memory: &GuestMemoryMmap, device: &DeviceLimits) -> Verdict {
    let Some(last) = chain.last() else { return Verdict::Unanswerable };
    let whole = !last.has_next() && chain.len() <= CHAIN_DESCRIPTORS_MAX && last.is_write_only();
    let holder = chain.iter().rev().find(|descriptor| descriptor.len() > 0);
    let status = holder.filter(|holder| whole && holder.is_write_only()).and_then(|holder| resolve(memory, holder));
    let Some(&(address, len)) = status.as_ref().and_then(|pieces| pieces.last()) else { return Verdict::Unanswerable };
    let at = address + len - 1;

    let side = |writable: bool| chain.iter().filter(move |descriptor| descriptor.is_write_only() == writable);
    let mut faults = Vec::new();
    if chain.iter().any(|descriptor| descriptor.len() == 0 || resolve(memory, descriptor).is_none()) {
        faults.push(Status::IoError);
    }
    if chain.iter().any(|descriptor| !descriptor.is_write_only() && resolve(memory, descriptor).is_none()) {
        // What is left of header and ranges can be wrong in other ways, which may be noticed first.
        faults.push(Status::Unsupported);
    }
    let mut non_empty = chain.iter().filter(|descriptor| descriptor.len() > 0);
    if non_empty.by_ref().any(Descriptor::is_write_only) && !non_empty.all(Descriptor::is_write_only) {
        faults.push(Status::IoError);
    }
    let gather = |writable: bool| {
        let mut pieces = Pieces::default();
        side(writable)
            .flat_map(|descriptor| resolve(memory, descriptor).unwrap_or_default())
            .for_each(|(a, l)| pieces.push(a, l));
        pieces
    };
    let bytes: Vec<u8> = side(false).flat_map(|descriptor| first_bytes(memory, descriptor)).collect();
    let Some(header) = bytes.first_chunk::<16>() else {
        faults.push(Status::IoError);
        return Verdict::Faulty { statuses: faults, at };
    };
    let pieces_of = |writable| side(writable).flat_map(|descriptor| resolve(memory, descriptor).unwrap_or_default());
    let segments_in = pieces_of(true).count() - usize::from(len == 1);
    let segments_out = pieces_of(false).fold((16, 0), |(skip, count), (_, len)| match len {
        len if len > skip => (0, count + 1),
        len => (skip - len, count),
    });
    let segments = if header[0] == 1 { segments_out.1 } else { segments_in };
    let sides = Sides { header, out: &bytes[16..], readable: gather(false), writable: gather(true), segments };
    match sides.request(device, &mut faults) {
        Some((kind, data, ranges)) if faults.is_empty() => {
            Verdict::Valid(Expected { kind, status: at, writable_len: sides.writable.total(), data: data.0, ranges })
        }
        _ => Verdict::Faulty { statuses: faults, at },
    }
}

/// Up to 1 KiB of a readable buffer; nothing if it is outside memory. (Headers and ranges are shorter than that.)
fn first_bytes(memory: &GuestMemoryMmap, descriptor: &Descriptor) -> Vec<u8> {
    let mut bytes = vec![0; descriptor.len().min(1024) as usize];
    match resolve(memory, descriptor).map(|_| memory.read_slice(&mut bytes, descriptor.addr())) {
        Some(Ok(())) => bytes,
        _ => Vec::new(),
    }
}

struct Sides<'a> {
    header: &'a [u8; 16],
    out: &'a [u8],
    readable: Pieces,
    writable: Pieces,
    /// Pieces of data that become segments.
    segments: usize,
}

type Meaning = (RequestKind, Pieces, Vec<Range>);

impl Sides<'_> {
    fn request(&self, device: &DeviceLimits, faults: &mut Vec<Status>) -> Option<Meaning> {
        let number = u32::from_le_bytes(*self.header.first_chunk()?);
        let data_out = self.readable.without_first(16);
        let data_in = self.writable.without_last();
        let mut bad = |wrong: bool, status: Status| {
            if wrong {
                faults.push(status);
            }
        };
        bad(device.read_only && [1, 11, 13].contains(&number), Status::IoError);
        bad(number == 11 && !device.discard, Status::Unsupported);
        bad(number == 13 && !device.write_zeroes, Status::Unsupported);
        bad(![0, 1, 4, 8, 11, 13].contains(&number), Status::Unsupported);
        bad([0, 8].contains(&number) && data_out.total() > 0, Status::IoError);
        bad([1, 11, 13].contains(&number) && data_in.total() > 0, Status::IoError);
        bad(number == 8 && data_in.total() < 20, Status::IoError);
        match number {
            0 | 1 => {
                let data = if number == 0 { data_in } else { data_out };
                let len = data.total();
                let offset = self.transfer(device, len, &mut bad);
                bad(self.segments > SEGMENTS_MAX, Status::IoError);
                let kind =
                    if number == 0 { RequestKind::Read { offset, len } } else { RequestKind::Write { offset, len } };
                Some((kind, data, Vec::new()))
            }
            4 => Some((RequestKind::Flush, Pieces::default(), Vec::new())),
            8 => Some((RequestKind::GetId, data_in, Vec::new())),
            11 | 13 => {
                let kind = if number == 11 { RequestKind::Discard } else { RequestKind::WriteZeroes };
                let ranges = self.ranges(device, data_out.total(), number == 13, &mut bad);
                Some((kind, Pieces::default(), ranges))
            }
            _ => None,
        }
    }

    fn transfer(&self, device: &DeviceLimits, len: u64, bad: &mut impl FnMut(bool, Status)) -> u64 {
        let sector = u64::from_le_bytes(*self.header.last_chunk().unwrap_or(&[0; 8]));
        let offset = u128::from(sector) * 512;
        let block = u128::from(device.block_size);
        bad(len == 0 || len > 32 << 20, Status::IoError);
        bad(!u128::from(len).is_multiple_of(block) || !offset.is_multiple_of(block), Status::IoError);
        bad(offset + u128::from(len) > u128::from(device.capacity), Status::IoError);
        u64::try_from(offset).unwrap_or(u64::MAX)
    }

    fn ranges(&self, device: &DeviceLimits, len: u64, zeroes: bool, bad: &mut impl FnMut(bool, Status)) -> Vec<Range> {
        bad(len == 0 || !len.is_multiple_of(16) || len > u64::from(DISCARD_RANGES_MAX) * 16, Status::IoError);
        let mut ranges = Vec::new();
        for range in self.out.chunks_exact(16).take(DISCARD_RANGES_MAX as usize) {
            let number = |at: usize, len: usize| {
                range[at..at + len].iter().rev().fold(0_u128, |value, byte| value << 8 | u128::from(*byte))
            };
            let (offset, len, flags) = (number(0, 8) * 512, number(8, 4) * 512, number(12, 4));
            let block = u128::from(device.block_size);
            bad(flags > 1 || (flags == 1 && !zeroes), Status::Unsupported);
            bad(offset + len > u128::from(device.capacity), Status::IoError);
            bad(len > u128::from(device.range_len_max), Status::IoError);
            bad(!offset.is_multiple_of(block) || !len.is_multiple_of(block), Status::IoError);
            if len > 0 {
                let narrow = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
                ranges.push(Range { offset: narrow(offset), len: narrow(len), unmap: flags == 1 });
            }
        }
        ranges
    }
}
