//! The ranges of discard and write-zeroes requests.

use virtio_bindings::virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP as UNMAP;

use super::ParseError;
use crate::base::limits::DISCARD_RANGES_MAX;
use crate::base::units::SECTOR_SIZE;
use crate::virtio::device::DeviceLimits;
use crate::virtio::request::{Range, Request};

/// Bytes of one range: le64 sector, le32 sectors, le32 flags.
pub(super) const RANGE_LEN: usize = 16;

/// Bytes of the longest list of ranges.
pub(super) const PAYLOAD_MAX: usize = DISCARD_RANGES_MAX as usize * RANGE_LEN;

/// Adds the ranges in `payload` to the request. A range of no sectors is checked and left out, so that a request can end
/// up with none: it is done at once.
pub(super) fn parse_ranges(
    payload: &[u8],
    device: &DeviceLimits,
    may_unmap: bool,
    request: &mut Request,
) -> Result<(), ParseError> {
    let (ranges, rest) = payload.as_chunks::<RANGE_LEN>();
    if ranges.is_empty() || !rest.is_empty() {
        return Err(ParseError::RangesCutShort { len: payload.len() as u64 });
    }
    // Flags first, for every range: the specification gives them a status of their own.
    ranges.iter().try_for_each(|range| check_flags(range, may_unmap))?;
    for range in ranges {
        if let Some(range) = parse_range(range, device)? {
            let fits = request.push_range(range);
            assert!(fits, "a payload holds at most {DISCARD_RANGES_MAX} ranges");
        }
    }
    Ok(())
}

fn check_flags(bytes: &[u8; RANGE_LEN], may_unmap: bool) -> Result<(), ParseError> {
    match flags(bytes) {
        flags if flags & !UNMAP != 0 => Err(ParseError::UnknownRangeFlags { flags }),
        flags if flags & UNMAP != 0 && !may_unmap => Err(ParseError::UnmapOnDiscard),
        _ => Ok(()),
    }
}

fn flags(bytes: &[u8; RANGE_LEN]) -> u32 {
    let [.., a, b, c, d] = *bytes;
    u32::from_le_bytes([a, b, c, d])
}

fn parse_range(bytes: &[u8; RANGE_LEN], device: &DeviceLimits) -> Result<Option<Range>, ParseError> {
    let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *bytes;
    let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let sectors = u32::from_le_bytes([i, j, k, l]);
    let len = u64::from(sectors) * SECTOR_SIZE;
    let out_of_bounds = ParseError::OutOfBounds { sector, len };
    let offset = sector.checked_mul(SECTOR_SIZE).ok_or(out_of_bounds)?;
    let end = offset.checked_add(len).ok_or(out_of_bounds)?;
    if end > device.capacity {
        return Err(out_of_bounds);
    }
    if len > device.range_len_max {
        return Err(ParseError::RangeTooLong { len });
    }
    let block = u64::from(device.block_size);
    if !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
        return Err(ParseError::Misaligned { sector, len });
    }
    Ok((len > 0).then_some(Range { offset, len, unmap: flags(bytes) & UNMAP != 0 }))
}
