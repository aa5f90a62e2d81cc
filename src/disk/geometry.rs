//! How a disk is divided: label, metadata region, slots. Pure.
//!
//! ```text
//! 0       4 KiB     8 KiB        1 MiB                1 MiB+M, up to an extent border     last 4 KiB of the disk
//! | zeros | label A | zeros      | metadata region (M) | slot 0 | slot 1 | ... | (rest)   | label B |
//! ```
//!
//! **Size of the metadata region.** In the worst case each slot of the pool holds an extent that has a row of the table of
//! its own: [`TABLE_BYTES_PER_EXTENT`] for the extent at 3 replicas and [`TABLE_ROW_OVERHEAD`] for the row (key, stamps, its
//! share of a half-filled tree page). The region is three times that, because the database needs room for the old and
//! the new state of a large commit and grows in doublings. It is never smaller than [`METADATA_LEN_MIN`], below which the
//! database has no room to work, and which leaves most of a 256 MiB disk for data. For 1 MiB extents that is 0.03 % of the
//! pool's capacity.

use crate::base::limits::EXTENT_SIZE_MIN;
use crate::base::units::Geometry;

/// Where the metadata region starts.
pub const METADATA_OFFSET: u64 = 1 << 20;

/// Bytes of one label copy.
pub const LABEL_LEN: u64 = 4096;

/// Where label copy A is.
pub const LABEL_A_OFFSET: u64 = 4096;

/// Smallest metadata region, in bytes.
pub const METADATA_LEN_MIN: u64 = 16 << 20;

/// Granularity of the metadata region's length, in bytes.
const METADATA_LEN_STEP: u64 = 1 << 20;

/// Bytes of one extent with three replicas in the table.
pub const TABLE_BYTES_PER_EXTENT: u64 = 32;

/// Bytes that a row of the table costs besides its extents.
pub const TABLE_ROW_OVERHEAD: u64 = 64;

/// Metadata region per worst-case table.
const REGION_PER_TABLE: u64 = 3;

/// What a disk is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Data, and the placement store if the disk is chosen for it.
    #[default]
    Any,
    /// The placement store only.
    MetadataOnly,
    /// Data only.
    DataOnly,
}

/// How one disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLayout {
    /// Bytes of the metadata region at [`METADATA_OFFSET`]; 0 if there is none.
    pub metadata_len: u64,
    /// Where slot 0 starts: a multiple of the extent size.
    pub data_offset: u64,
    /// Number of slots.
    pub slots: u32,
}

/// The disk cannot hold what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it has {size} bytes and needs at least {needed}: 1 MiB for the label, {metadata_len} for the metadata region, {data_len} \
     for one extent, 4 KiB for the second label; use a larger disk{}",
    if *.metadata_len > 0 && *.data_len > 0 { " or make it data-only" } else { "" }
)]
pub struct TooSmall {
    /// Its size in bytes.
    pub size: u64,
    /// The smallest size that would do, in bytes.
    pub needed: u64,
    /// Bytes of the metadata region it should hold.
    pub metadata_len: u64,
    /// Bytes of data it should hold at least.
    pub data_len: u64,
}

/// Metadata region for a pool of `capacity` bytes: see the module documentation.
#[must_use]
pub fn metadata_len(capacity: u64, geometry: Geometry) -> u64 {
    let extents = capacity.div_ceil(geometry.extent_size());
    let table = extents.saturating_mul(TABLE_BYTES_PER_EXTENT + TABLE_ROW_OVERHEAD);
    let region = table.saturating_mul(REGION_PER_TABLE).max(METADATA_LEN_MIN);
    region.div_ceil(METADATA_LEN_STEP).saturating_mul(METADATA_LEN_STEP)
}

/// Where label copy B of a disk of `size` bytes is: its last whole 4 KiB.
///
/// # Panics
/// If the disk is smaller than two labels (never one that was accepted).
#[must_use]
pub fn label_b_offset(size: u64) -> u64 {
    assert!(size >= LABEL_A_OFFSET + 2 * LABEL_LEN, "a disk of {size} bytes has no room for two labels");
    size / LABEL_LEN * LABEL_LEN - LABEL_LEN
}

/// Divides a disk of `size` bytes; `metadata_len` bytes are for the store (0: it is no store member), and there are slots
/// only if `with_data`.
///
/// # Errors
/// [`TooSmall`], with the numbers.
pub fn divide(size: u64, metadata_len: u64, with_data: bool, geometry: Geometry) -> Result<DiskLayout, TooSmall> {
    let extent = geometry.extent_size();
    let metadata_end = METADATA_OFFSET.saturating_add(metadata_len);
    let data_offset = metadata_end.div_ceil(extent).saturating_mul(extent);
    let data_len = if with_data { extent } else { 0 };
    let used = if with_data { data_offset } else { metadata_end };
    // Not the last 4 KiB but the last *whole* 4 KiB: a disk of 512-byte blocks may end beyond it.
    let needed = used.saturating_add(data_len).saturating_add(LABEL_LEN);
    if size < needed.div_ceil(LABEL_LEN).saturating_mul(LABEL_LEN) {
        return Err(TooSmall { size, needed, metadata_len, data_len });
    }
    let room = label_b_offset(size).saturating_sub(data_offset) / extent;
    let slots = if with_data { u32::try_from(room).unwrap_or(u32::MAX) } else { 0 };
    let layout = DiskLayout { metadata_len, data_offset, slots };
    assert!(!with_data || slots > 0);
    assert!(data_offset.is_multiple_of(extent) && data_offset >= metadata_end);
    assert!(slots == 0 || data_offset + u64::from(slots) * extent <= label_b_offset(size));
    Ok(layout)
}

const _: () = assert!(METADATA_OFFSET >= LABEL_A_OFFSET + LABEL_LEN);
const _: () = assert!(METADATA_OFFSET.is_multiple_of(EXTENT_SIZE_MIN));

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn geometry(extent_size: u64) -> Geometry {
        Geometry::new(extent_size).unwrap()
    }

    #[test]
    fn a_256_mib_disk_is_mostly_data() {
        let geometry = geometry(MIB);
        let len = metadata_len(4 * 256 * MIB, geometry);
        assert_eq!(len, METADATA_LEN_MIN);
        let layout = divide(256 * MIB, len, true, geometry).unwrap();
        assert_eq!((layout.data_offset, layout.slots), (17 * MIB, 238));
    }

    #[test]
    fn roles_have_what_they_are_for() {
        let geometry = geometry(MIB);
        let data = divide(64 * MIB, 0, true, geometry).unwrap();
        assert_eq!((data.metadata_len, data.data_offset, data.slots), (0, MIB, 62));
        let metadata = divide(64 * MIB, 16 * MIB, false, geometry).unwrap();
        assert_eq!((metadata.metadata_len, metadata.slots), (16 * MIB, 0));
    }

    #[test]
    fn the_region_grows_with_the_pool() {
        let one_tib = metadata_len(1 << 40, geometry(MIB));
        assert_eq!(one_tib, 288 * MIB);
        assert!(metadata_len(10 << 40, geometry(MIB)) >= 10 * one_tib - MIB);
        assert!(metadata_len(1 << 40, geometry(256 << 10)) >= 4 * one_tib - MIB);
    }

    #[test]
    fn a_small_disk_is_told_how_small() {
        let geometry = geometry(MIB);
        let error = divide(16 * MIB, 16 * MIB, true, geometry).unwrap_err();
        assert_eq!((error.size, error.needed), (16 * MIB, 18 * MIB + 4096));
        let text = error.to_string();
        assert!(text.contains("16777216") && text.contains("18878464") && text.contains("data-only"), "{text}");
        assert!(divide(error.needed, 16 * MIB, true, geometry).is_ok());
        assert!(divide(0, 0, true, geometry).is_err() && divide(0, 0, false, geometry).is_err());
    }

    proptest! {
        #[test]
        fn nothing_overlaps(
            size in 0u64..1 << 50,
            shift in 18u32..=24,
            metadata in 0u64..1 << 30,
            with_data: bool,
        ) {
            let geometry = geometry(1 << shift);
            match divide(size, metadata, with_data, geometry) {
                Ok(layout) => {
                    let end = layout.data_offset + u64::from(layout.slots) * geometry.extent_size();
                    prop_assert!(METADATA_OFFSET + metadata <= layout.data_offset);
                    prop_assert!(label_b_offset(size) >= METADATA_OFFSET + metadata);
                    prop_assert!(layout.slots == 0 || end <= label_b_offset(size));
                    prop_assert_eq!(layout.slots > 0, with_data);
                }
                Err(error) => prop_assert!(size < error.needed + LABEL_LEN),
            }
        }
    }
}
