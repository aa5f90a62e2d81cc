//! One descriptor chain in, one valid [`Request`] out.
//!
//! The guest can change its memory while we read it, so every descriptor and every header or range byte is read once, and
//! only what was read is checked and used. Any framing is accepted, as VERSION_1 demands: header, ranges and data may be
//! spread over descriptors in any way.
//!
//! `virtio_queue::DescriptorChain` bounds loops by the table's size, but ends silently wherever a chain is broken (next
//! index outside the table, a table outside memory, a table within a table, more than 4 GiB). A chain cut short could pass
//! for a valid one: the last descriptor it yields then still says that another follows, which is what [`parse`] looks at.

#![deny(clippy::indexing_slicing)]

mod error;
mod ranges;

pub use error::{Answer, ParseError, Rejected};
use virtio_bindings::virtio_blk;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use self::ranges::{PAYLOAD_MAX, parse_ranges};
use super::device::DeviceLimits;
use super::request::{Request, RequestKind, Segment, Status};
use crate::base::limits::{CHAIN_DESCRIPTORS_MAX, REQUEST_LEN_MAX};
use crate::base::units::SECTOR_SIZE;

/// Bytes of the request header: type, reserved, sector.
pub const HEADER_LEN: usize = 16;

/// Bytes of the answer to GET_ID.
pub const ID_LEN: u64 = virtio_blk::VIRTIO_BLK_ID_BYTES as u64;

/// Where the status of a request goes: one byte of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusByte(*mut u8);

// SAFETY: an address in guest memory, which the ring's memory map keeps mapped; nothing is tied to a thread.
unsafe impl Send for StatusByte {}

impl StatusByte {
    /// Tells the guest how its request went.
    ///
    /// # Safety
    /// The guest memory that the chain was parsed against is still mapped.
    pub unsafe fn write(self, status: Status) {
        // SAFETY: `parse` found the byte inside guest memory, which the caller vouches is still mapped.
        unsafe { self.0.write_volatile(status as u8) }
    }

    /// The byte's address in our memory.
    #[must_use]
    pub fn as_ptr(self) -> *mut u8 {
        self.0
    }
}

/// What a chain holds besides the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Where the status goes.
    pub status: StatusByte,
    /// Device-writable bytes of the chain: the guest's data buffers, if it reads, and the status.
    pub writable_len: u32,
}

impl Parsed {
    /// The length for the used ring: how many writable bytes, counted from the first, are written when the request ends
    /// with `status`. A failed read wrote the status, which is the last byte, but promises nothing of the ones before.
    #[must_use]
    pub fn used_len(&self, kind: RequestKind, status: Status) -> u32 {
        let id_len = u32::try_from(ID_LEN).expect("a small constant");
        match (status, kind) {
            (Status::Ok, RequestKind::GetId) if self.writable_len > id_len + 1 => id_len,
            (Status::Ok, RequestKind::Read { .. } | RequestKind::GetId) => self.writable_len,
            _ if self.writable_len == 1 => 1,
            _ => 0,
        }
    }
}

/// Parses one chain into `request`, which is overwritten; its content means nothing after an error.
///
/// # Errors
/// The first rule that the chain breaks, with the place for a status byte if the guest can be told.
pub fn parse(
    chain: impl IntoIterator<Item = Descriptor>,
    memory: &GuestMemoryMmap,
    device: &DeviceLimits,
    request: &mut Request,
) -> Result<Parsed, Rejected> {
    request.reset(RequestKind::Flush);
    let mut walk = Walk::new(memory, device, request);
    let mut last: Option<Descriptor> = None;
    for (count, descriptor) in chain.into_iter().enumerate() {
        if count == CHAIN_DESCRIPTORS_MAX {
            return Err(ParseError::TooManyDescriptors.unanswered());
        }
        walk.take(&descriptor);
        last = Some(descriptor);
    }
    let last = last.ok_or(ParseError::Empty.unanswered())?;
    if last.has_next() {
        return Err(ParseError::Truncated.unanswered());
    }
    if !last.is_write_only() {
        return Err(ParseError::NoStatus.unanswered());
    }
    walk.finish()
}

/// What the request type asks of the bytes that follow the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
}

#[allow(clippy::wildcard_enum_match_arm, reason = "any other number is an unknown type")]
fn operation(number: u32, device: &DeviceLimits) -> Result<Operation, ParseError> {
    let changes_data = |operation, offered: bool| match (device.read_only, offered) {
        (true, _) => Err(ParseError::ReadOnly),
        (false, true) => Ok(operation),
        (false, false) => Err(ParseError::NotOffered { number }),
    };
    match number {
        virtio_blk::VIRTIO_BLK_T_IN => Ok(Operation::Read),
        virtio_blk::VIRTIO_BLK_T_OUT => changes_data(Operation::Write, true),
        virtio_blk::VIRTIO_BLK_T_FLUSH => Ok(Operation::Flush),
        virtio_blk::VIRTIO_BLK_T_GET_ID => Ok(Operation::GetId),
        virtio_blk::VIRTIO_BLK_T_DISCARD => changes_data(Operation::Discard, device.discard),
        virtio_blk::VIRTIO_BLK_T_WRITE_ZEROES => changes_data(Operation::WriteZeroes, device.write_zeroes),
        _ => Err(ParseError::UnknownType { number }),
    }
}

/// The state of one pass over a chain.
struct Walk<'a> {
    memory: &'a GuestMemoryMmap,
    device: &'a DeviceLimits,
    request: &'a mut Request,
    header: [u8; HEADER_LEN],
    /// Readable bytes so far, the header included.
    readable: u64,
    /// Writable bytes so far, the status included.
    writable: u64,
    operation: Option<Operation>,
    payload: [u8; PAYLOAD_MAX],
    /// The last piece, if writable, held back from the request: its last byte is the status if no other piece follows.
    tail: Option<Segment>,
    /// The first rule broken. The walk goes on, to find the status byte.
    fault: Option<ParseError>,
}

impl<'a> Walk<'a> {
    fn new(memory: &'a GuestMemoryMmap, device: &'a DeviceLimits, request: &'a mut Request) -> Walk<'a> {
        Walk {
            memory,
            device,
            request,
            header: [0; HEADER_LEN],
            readable: 0,
            writable: 0,
            operation: None,
            payload: [0; PAYLOAD_MAX],
            tail: None,
            fault: None,
        }
    }

    fn note(&mut self, fault: ParseError) {
        self.fault.get_or_insert(fault);
    }

    fn take(&mut self, descriptor: &Descriptor) {
        let (address, len) = (descriptor.addr(), descriptor.len());
        if len == 0 {
            self.note(ParseError::EmptyDescriptor);
            return;
        }
        if descriptor.is_write_only() {
            if self.operation.is_none() {
                self.note(ParseError::ShortHeader { len: self.readable });
            }
        } else if self.writable > 0 {
            self.note(ParseError::ReadableAfterWritable);
            self.tail = None;
        }
        let access = if descriptor.is_write_only() { Permissions::Write } else { Permissions::Read };
        let memory = self.memory;
        let Ok(slices) = memory.get_slices(address, len as usize, access) else { return self.lose(address, len) };
        for slice in slices {
            let Ok(slice) = slice else { return self.lose(address, len) };
            let piece_len = u32::try_from(slice.len()).expect("a piece of a descriptor, whose length is a u32");
            let piece = Segment { ptr: slice.ptr_guard_mut().as_ptr(), len: piece_len };
            if descriptor.is_write_only() {
                self.take_writable(piece);
            } else {
                self.take_readable(piece, |at, into| slice.offset(at).map_or(0, |rest| rest.copy_to(into)));
            }
        }
    }

    /// A descriptor leaves guest memory; if it was to hold the status, there is none.
    fn lose(&mut self, address: GuestAddress, len: u32) {
        self.note(ParseError::OutsideMemory { address: address.0, len });
        self.tail = None;
    }

    fn take_writable(&mut self, piece: Segment) {
        let before = self.tail.replace(piece);
        self.push(before);
        self.writable += u64::from(piece.len);
    }

    /// Takes a readable piece; `copy` fills a buffer from an offset within it.
    fn take_readable(&mut self, piece: Segment, copy: impl Fn(usize, &mut [u8]) -> usize) {
        let had = usize::try_from(self.readable).unwrap_or(usize::MAX);
        self.readable += u64::from(piece.len);
        let mut used = 0;
        if let Some(room) = self.header.get_mut(had..) {
            used = copy(0, room);
        }
        if self.operation.is_none() && self.readable >= HEADER_LEN as u64 {
            let number = self.header_type();
            match operation(number, self.device) {
                Ok(operation) => self.operation = Some(operation),
                Err(fault) => self.note(fault),
            }
        }
        let rest = piece.len as usize - used;
        if rest == 0 {
            return;
        }
        match self.operation {
            Some(Operation::Write) => {
                let len = u32::try_from(rest).expect("a part of a piece, whose length is a u32");
                self.push(Some(Segment { ptr: piece.ptr.wrapping_add(used), len }));
            }
            Some(Operation::Discard | Operation::WriteZeroes) => {
                let at = had.saturating_sub(HEADER_LEN);
                // What does not fit makes the payload too long, which `finish` sees by its length.
                if let Some(room) = self.payload.get_mut(at..) {
                    copy(used, room);
                }
            }
            Some(Operation::Read | Operation::GetId) => self.note(ParseError::WrongDirection),
            // A driver should not add data to a flush, but may: it is ignored. Without an operation there is a fault.
            Some(Operation::Flush) | None => {}
        }
    }

    /// Adds a data segment, if data goes this way.
    fn push(&mut self, segment: Option<Segment>) {
        let Some(segment) = segment else { return };
        let is_data = matches!(self.operation, Some(Operation::Read | Operation::Write | Operation::GetId));
        if is_data && !self.request.push_segment(segment) {
            self.note(ParseError::TooManySegments);
        }
    }

    fn header_type(&self) -> u32 {
        let [a, b, c, d, ..] = self.header;
        u32::from_le_bytes([a, b, c, d])
    }

    fn sector(&self) -> u64 {
        let [_, _, _, _, _, _, _, _, sector @ ..] = self.header;
        u64::from_le_bytes(sector)
    }

    fn finish(mut self) -> Result<Parsed, Rejected> {
        let Some(tail) = self.tail.take() else { return Err(ParseError::StatusUnreachable.unanswered()) };
        assert!(tail.len > 0, "memory slices are not empty");
        let status = StatusByte(tail.ptr.wrapping_add(tail.len as usize - 1));
        let reads = matches!(self.operation, Some(Operation::Read | Operation::GetId));
        if reads && tail.len > 1 {
            self.push(Some(Segment { len: tail.len - 1, ..tail }));
        }
        match self.check() {
            Ok(kind) => {
                self.request.kind = kind;
                let writable_len = u32::try_from(self.writable).expect("a chain is shorter than 4 GiB");
                Ok(Parsed { status, writable_len })
            }
            Err(error) => Err(error.answered(status)),
        }
    }

    /// The rules that need the whole chain.
    fn check(&mut self) -> Result<RequestKind, ParseError> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let operation = self.operation.expect("a chain without a whole header has a fault");
        let data_out = self.readable - HEADER_LEN as u64;
        let data_in = self.writable - 1;
        match operation {
            Operation::Read => {
                let offset = self.check_transfer(data_in)?;
                Ok(RequestKind::Read { offset, len: data_in })
            }
            Operation::Write if data_in > 0 => Err(ParseError::WrongDirection),
            Operation::Write => {
                let offset = self.check_transfer(data_out)?;
                Ok(RequestKind::Write { offset, len: data_out })
            }
            Operation::Flush => Ok(RequestKind::Flush),
            Operation::GetId if data_in < ID_LEN => Err(ParseError::IdTooShort { len: data_in }),
            Operation::GetId => Ok(RequestKind::GetId),
            Operation::Discard | Operation::WriteZeroes if data_in > 0 => Err(ParseError::WrongDirection),
            Operation::Discard => self.check_ranges(data_out, false).map(|()| RequestKind::Discard),
            Operation::WriteZeroes => self.check_ranges(data_out, true).map(|()| RequestKind::WriteZeroes),
        }
    }

    fn check_ranges(&mut self, len: u64, may_unmap: bool) -> Result<(), ParseError> {
        let read = usize::try_from(len).ok().and_then(|len| self.payload.get(..len));
        let payload = read.ok_or(ParseError::TooManyRanges { len })?;
        parse_ranges(payload, self.device, may_unmap, self.request)
    }

    /// Checks a read or write of `len` bytes; returns its byte offset.
    fn check_transfer(&self, len: u64) -> Result<u64, ParseError> {
        let sector = self.sector();
        let block = u64::from(self.device.block_size);
        if len == 0 {
            return Err(ParseError::NoData);
        }
        if len > REQUEST_LEN_MAX {
            return Err(ParseError::TooLong { len });
        }
        // A shift would lose the upper bits: sector 2^55 is not byte 0.
        let out_of_bounds = ParseError::OutOfBounds { sector, len };
        let offset = sector.checked_mul(SECTOR_SIZE).ok_or(out_of_bounds)?;
        let end = offset.checked_add(len).ok_or(out_of_bounds)?;
        if !len.is_multiple_of(block) || !offset.is_multiple_of(block) {
            return Err(ParseError::Misaligned { sector, len });
        }
        if end > self.device.capacity {
            return Err(out_of_bounds);
        }
        Ok(offset)
    }
}
