//! From a byte range of a request to buffers, and copies between guest buffers and our own memory. The arithmetic is pure;
//! the copies touch guest memory.

use crate::engine::Buffer;
use crate::virtio::request::Segment;

/// Calls `each` with the parts of `segments` that make up `len` bytes from byte `start` of the whole.
///
/// # Panics
/// If the segments are shorter than that (a bug: a parsed request's length is that of its segments).
fn for_parts(segments: &[Segment], start: u64, len: u64, mut each: impl FnMut(*mut u8, usize)) {
    let mut skip = start;
    let mut left = len;
    for segment in segments {
        if left == 0 {
            break;
        }
        let segment_len = u64::from(segment.len);
        if skip >= segment_len {
            skip -= segment_len;
            continue;
        }
        let part = (segment_len - skip).min(left);
        let offset = usize::try_from(skip).expect("a segment fits memory");
        each(segment.ptr.wrapping_add(offset), usize::try_from(part).expect("a segment fits memory"));
        skip = 0;
        left -= part;
    }
    assert!(left == 0, "a request is as long as its segments");
}

/// Appends the buffers of `len` bytes from byte `start` of a request.
pub(super) fn gather(segments: &[Segment], start: u64, len: u64, into: &mut Vec<Buffer>) {
    for_parts(segments, start, len, |ptr, len| into.push(Buffer { ptr, len }));
}

/// Whether direct I/O takes all of these buffers as they are.
pub(super) fn is_aligned(buffers: &[Buffer], memory_alignment: u32, block_size: u32) -> bool {
    let memory_mask = memory_alignment as usize - 1;
    let length_mask = block_size as usize - 1;
    buffers.iter().all(|b| b.ptr.addr() & memory_mask == 0 && b.len & length_mask == 0)
}

/// Zeroes `len` bytes of the guest's buffers from byte `start` of the request.
pub(super) fn zero(segments: &[Segment], start: u64, len: u64) {
    for_parts(segments, start, len, |ptr, len| {
        // SAFETY: segments lie in guest memory that the ring keeps mapped until the request has finished; the guest may
        // race with us, which makes its own data undefined and nothing else.
        unsafe { std::ptr::write_bytes(ptr, 0, len) };
    });
}

/// Copies `from` into the guest's buffers, beginning at byte `start` of the request.
pub(super) fn scatter_into(segments: &[Segment], start: u64, from: &[u8]) {
    let mut done = 0;
    for_parts(segments, start, from.len() as u64, |ptr, len| {
        let part = &from[done..done + len];
        // SAFETY: as in `zero`; `part` has `len` bytes and is our own memory.
        unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), ptr, len) };
        done += len;
    });
}

/// Copies from the guest's buffers, beginning at byte `start` of the request, into `into`.
pub(super) fn gather_from(segments: &[Segment], start: u64, into: &mut [u8]) {
    let mut done = 0;
    for_parts(segments, start, into.len() as u64, |ptr, len| {
        let part = &mut into[done..done + len];
        // SAFETY: as in `zero`; `part` has `len` bytes and is our own memory.
        unsafe { std::ptr::copy_nonoverlapping(ptr, part.as_mut_ptr(), len) };
        done += len;
    });
}
