//! The keys of table `history`: samples and heat of VHDs and host disks.
//!
//! | key | value |
//! |---|---|
//! | (VHD, part) | see [`Part`] |
//! | (`0xffffff00` + disk, part) | the same of a host disk, which has no heat |
//!
//! Nothing that is promised to anybody depends on this table: rows that are lost or damaged are missing, and that is all. So they are
//! written when there is a commit anyway, a few at a time, and not once the region is more than half full.

use std::ops::RangeInclusive;

use super::edit::BYTES_PER_ROW;
use crate::base::ids::{DiskId, VhdId};
use crate::metrics::history::Tier;

/// Disks come behind all VHDs, of which there are never so many.
const DISKS: u32 = 0xffff_ff00;

/// The two highest bits of a part say what it is, the others which one.
const NUMBER_BITS: u32 = 30;
const NUMBER_MAX: u32 = (1 << NUMBER_BITS) - 1;
const HEAT: u32 = 3;

/// Whose rows they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A VHD.
    Vhd(VhdId),
    /// A host disk.
    Disk(DiskId),
}

impl Subject {
    /// The first halves of keys of all disks.
    pub(super) const DISKS: RangeInclusive<u32> = DISKS..=u32::MAX;

    /// The first half of its keys.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Subject::Vhd(vhd) => vhd.0,
            Subject::Disk(disk) => DISKS + u32::from(disk.0),
        }
    }

    /// Whose keys begin with that.
    #[must_use]
    pub fn of_code(code: u32) -> Subject {
        match code.checked_sub(DISKS).and_then(|disk| u8::try_from(disk).ok()) {
            Some(disk) => Subject::Disk(DiskId(disk)),
            None => Subject::Vhd(VhdId(code)),
        }
    }
}

/// Whether the checksum at the end of a row matches, which rows of both kinds have.
#[must_use]
pub(super) fn is_whole(row: &[u8]) -> bool {
    row.split_last_chunk::<4>().is_some_and(|(body, crc)| crc32c::crc32c(body).to_le_bytes() == *crc)
}

/// What a row has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A block of samples of one resolution: see [`crate::metrics::history`].
    Samples(Tier, u32),
    /// The heat of consecutive extents: see [`crate::metrics::heat`].
    Heat(u32),
}

impl Part {
    /// The second half of a key.
    #[must_use]
    pub fn code(self) -> u32 {
        let (kind, number) = match self {
            Part::Samples(tier, block) => (tier as u32, block),
            Part::Heat(run) => (HEAT, run),
        };
        kind << NUMBER_BITS | number.min(NUMBER_MAX)
    }

    /// The part whose keys end with that.
    #[must_use]
    pub fn of_code(code: u32) -> Part {
        let number = code & NUMBER_MAX;
        match Tier::ALL.get((code >> NUMBER_BITS) as usize) {
            Some(tier) => Part::Samples(*tier, number),
            None => Part::Heat(number),
        }
    }

    /// The same kind with another number.
    fn numbered(self, number: u32) -> Part {
        match self {
            Part::Samples(tier, _) => Part::Samples(tier, number),
            Part::Heat(_) => Part::Heat(number),
        }
    }
}

/// A row to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryRow {
    /// Whose.
    pub subject: Subject,
    /// Which part.
    pub part: Part,
    /// Its value.
    pub bytes: Vec<u8>,
    /// The first and the last number of this kind of part that are to stay; those of the same subject outside of that are deleted.
    pub kept: (u32, u32),
}

impl HistoryRow {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> (u32, u32) {
        (self.subject.code(), self.part.code())
    }

    /// So many rows of extents are about as long.
    pub(super) fn rows(&self) -> usize {
        self.bytes.len() / BYTES_PER_ROW + 1
    }

    /// The keys of the parts of its kind that do not stay: those before, and those behind. Hardly ever is there any.
    pub(super) fn outside(&self) -> impl Iterator<Item = RangeInclusive<(u32, u32)>> {
        let key = |number| (self.subject.code(), self.part.numbered(number).code());
        let before = self.kept.0.checked_sub(1).map(|last| key(0)..=key(last));
        let behind = (self.kept.1 < NUMBER_MAX).then(|| key(self.kept.1 + 1)..=key(NUMBER_MAX));
        before.into_iter().chain(behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_what_they_are_of() {
        let subjects = [
            Subject::Vhd(VhdId(0)),
            Subject::Vhd(VhdId(DISKS - 1)),
            Subject::Disk(DiskId(0)),
            Subject::Disk(DiskId(63)),
        ];
        for subject in subjects {
            assert_eq!(Subject::of_code(subject.code()), subject);
        }
        let numbers = [0, 1, NUMBER_MAX];
        let parts = numbers.into_iter().flat_map(|number| {
            Tier::ALL.into_iter().map(move |tier| Part::Samples(tier, number)).chain([Part::Heat(number)])
        });
        for part in parts {
            assert_eq!(Part::of_code(part.code()), part);
        }
    }
}
