//! The marks that formats leave, and where.

use super::{Finding, Foreign, Samples};

/// A format that is known by fixed bytes at a fixed place.
struct Magic {
    what: Foreign,
    offset: u64,
    bytes: &'static [u8],
    /// Where its label is: offset and length.
    label: Option<(u64, usize)>,
}

const fn magic(what: Foreign, offset: u64, bytes: &'static [u8]) -> Magic {
    Magic { what, offset, bytes, label: None }
}

const fn labelled(what: Foreign, offset: u64, bytes: &'static [u8], label: (u64, usize)) -> Magic {
    Magic { what, offset, bytes, label: Some(label) }
}

const BCACHE: [u8; 16] =
    [0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81];
const BCACHEFS: [u8; 16] =
    [0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef];
/// Metadata of DRBD 8.3, 8.4 and 9.
const DRBD_MAGICS: std::ops::RangeInclusive<u32> = 0x8374_026b..=0x8374_026d;

/// Marks near the start of a disk.
const MAGICS: &[Magic] = &[
    labelled(Foreign::Xfs, 0, b"XFSB", (108, 12)),
    labelled(Foreign::Btrfs, 0x1_0040, b"_BHRfS_M", (0x1_012b, 256)),
    magic(Foreign::Bcachefs, 4096 + 24, &BCACHEFS),
    magic(Foreign::Bcachefs, 7 * 512, &BCACHEFS),
    magic(Foreign::Bcache, 4096 + 24, &BCACHE),
    magic(Foreign::F2fs, 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    magic(Foreign::Reiserfs, 65_588, b"ReIsEr"),
    magic(Foreign::Reiserfs, 8_244, b"ReIsEr"),
    magic(Foreign::Gfs2, 65_536, &[0x01, 0x16, 0x19, 0x70]),
    magic(Foreign::Ocfs2, 8192, b"OCFSV2"),
    magic(Foreign::Ocfs2, 1024, b"OCFSV2"),
    magic(Foreign::Ocfs2, 4096, b"OCFSV2"),
    magic(Foreign::Squashfs, 0, b"hsqs"),
    magic(Foreign::Erofs, 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    magic(Foreign::Ntfs, 3, b"NTFS    "),
    magic(Foreign::Exfat, 3, b"EXFAT   "),
    magic(Foreign::BitLocker, 3, b"-FVE-FS-"),
    labelled(Foreign::Fat, 54, b"FAT12   ", (43, 11)),
    labelled(Foreign::Fat, 54, b"FAT16   ", (43, 11)),
    labelled(Foreign::Fat, 82, b"FAT32   ", (71, 11)),
    labelled(Foreign::Iso9660, 32_769, b"CD001", (32_808, 32)),
    magic(Foreign::Udf, 32_769, b"BEA01"),
    magic(Foreign::Lvm2, 0, b"LABELONE"),
    magic(Foreign::Lvm2, 512, b"LABELONE"),
    magic(Foreign::Lvm2, 1024, b"LABELONE"),
    magic(Foreign::Lvm2, 1536, b"LABELONE"),
    magic(Foreign::Luks, 0, b"LUKS\xba\xbe"),
    magic(Foreign::Luks, 0x4000, b"SKUL\xba\xbe"),
    magic(Foreign::Luks, 0x8000, b"SKUL\xba\xbe"),
    magic(Foreign::Luks, 0x1_0000, b"SKUL\xba\xbe"),
    magic(Foreign::CephBluestore, 0, b"bluestore block device"),
    magic(Foreign::Qcow2, 0, b"QFI\xfb"),
    magic(Foreign::Vmdk, 0, b"KDMV"),
    magic(Foreign::Vhdx, 0, b"vhdxfile"),
];

/// Page sizes that swap space is made with.
const SWAP_PAGES: [u64; 5] = [4096, 8192, 16_384, 32_768, 65_536];

const MD_MAGIC: u32 = 0xa92b_4efc;
const ZFS_UBERBLOCK: u64 = 0x00ba_b10c;
const ZFS_LABEL: u64 = 256 << 10;

/// Everything foreign that the samples show, each format once. Empty if they are all zeros.
#[must_use]
pub fn detect(samples: Samples<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(partition_table(samples));
    found.extend(MAGICS.iter().filter_map(|magic| known_bytes(samples, magic)));
    found.extend(ext(samples));
    found.extend(swap(samples));
    found.extend(md_raid(samples));
    found.extend(zfs(samples));
    found.extend(drbd(samples));
    let mut seen = Vec::new();
    found.retain(|finding| {
        let first = !seen.contains(&finding.what);
        seen.push(finding.what);
        first
    });
    // A FAT or NTFS boot sector ends like an MBR.
    if found.len() > 1 {
        found.retain(|finding| finding.what != Foreign::BootSector);
    }
    if found.is_empty() {
        found.extend(first_non_zero(samples));
    }
    found
}

impl Samples<'_> {
    /// `len` bytes at an offset of the disk, if the samples have them.
    fn at(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let slice = |sample: &'_ [u8], start: u64| -> Option<std::ops::Range<usize>> {
            let from = usize::try_from(offset.checked_sub(start)?).ok()?;
            let end = from.checked_add(len)?;
            (end <= sample.len()).then_some(from..end)
        };
        let tail_start = self.size.saturating_sub(self.tail.len() as u64);
        if let Some(range) = slice(self.head, 0) {
            return Some(&self.head[range]);
        }
        slice(self.tail, tail_start).map(|range| &self.tail[range])
    }

    fn u32_at(&self, offset: u64) -> Option<u32> {
        self.at(offset, 4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes")))
    }

    fn u64_at(&self, offset: u64) -> Option<[u8; 8]> {
        self.at(offset, 8).map(|b| b.try_into().expect("eight bytes"))
    }

    fn text_at(&self, offset: u64, len: usize) -> Option<String> {
        let bytes = self.at(offset, len)?;
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(len);
        let printable = |b: &u8| if b.is_ascii_graphic() || *b == b' ' { char::from(*b) } else { '?' };
        let text: String = bytes[..end].iter().map(printable).collect();
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }
}

fn finding(what: Foreign, offset: u64) -> Finding {
    Finding { what, offset, label: None }
}

fn known_bytes(samples: Samples<'_>, magic: &Magic) -> Option<Finding> {
    if samples.at(magic.offset, magic.bytes.len())? != magic.bytes {
        return None;
    }
    let label = magic.label.and_then(|(offset, len)| samples.text_at(offset, len));
    Some(Finding { what: magic.what, offset: magic.offset, label })
}

fn partition_table(samples: Samples<'_>) -> Option<Finding> {
    let backup = |block: u64| samples.size.checked_sub(block);
    let places = [Some(512), Some(4096), backup(512), backup(4096)];
    let is_gpt = |place: &u64| samples.at(*place, 8) == Some(b"EFI PART");
    if let Some(place) = places.into_iter().flatten().find(is_gpt) {
        return Some(finding(Foreign::Gpt, place));
    }
    if samples.at(510, 2)? != [0x55, 0xaa] {
        return None;
    }
    let entries: Vec<&[u8]> = (0..4).filter_map(|i| samples.at(446 + 16 * i, 16)).collect();
    let legal = entries.iter().all(|entry| matches!(entry[0], 0 | 0x80));
    let used = entries.iter().any(|entry| entry[4] != 0);
    let what = if legal && used { Foreign::Mbr } else { Foreign::BootSector };
    Some(finding(what, 510))
}

fn ext(samples: Samples<'_>) -> Option<Finding> {
    const SUPERBLOCK: u64 = 1024;
    if samples.at(SUPERBLOCK + 56, 2)? != [0x53, 0xef] {
        return None;
    }
    let (compat, incompat, ro_compat) =
        (samples.u32_at(SUPERBLOCK + 92)?, samples.u32_at(SUPERBLOCK + 96)?, samples.u32_at(SUPERBLOCK + 100)?);
    // What ext3 knows: of the incompatible filetype, recover, journal_dev, meta_bg; of the others sparse_super, large_file,
    // btree_dir.
    let what = if incompat & !0x1e != 0 || ro_compat & !0x7 != 0 {
        Foreign::Ext4
    } else if compat & 0x4 != 0 {
        Foreign::Ext3
    } else {
        Foreign::Ext2
    };
    Some(Finding { what, offset: SUPERBLOCK + 56, label: samples.text_at(SUPERBLOCK + 120, 16) })
}

fn swap(samples: Samples<'_>) -> Option<Finding> {
    let marked = |page: &u64| {
        samples.at(page - 10, 10).is_some_and(|mark| matches!(mark, b"SWAPSPACE2" | b"SWAP-SPACE" | b"S1SUSPEND\0"))
    };
    let page = SWAP_PAGES.into_iter().find(marked)?;
    Some(Finding { what: Foreign::Swap, offset: page - 10, label: samples.text_at(1024 + 28, 16) })
}

fn md_raid(samples: Samples<'_>) -> Option<Finding> {
    let sectors = samples.size / 512;
    // 1.0 is at the end, 1.1 at the start, 1.2 at 4 KiB.
    let version_1_0 = sectors.checked_sub(16).map(|sector| (sector & !7) * 512);
    for place in [version_1_0, Some(0), Some(4096)].into_iter().flatten() {
        if samples.u32_at(place) == Some(MD_MAGIC) && samples.u32_at(place + 4) == Some(1) {
            let label = samples.text_at(place + 32, 32);
            return Some(Finding { what: Foreign::MdRaid1, offset: place, label });
        }
    }
    let place = (samples.size & !0xffff).checked_sub(0x1_0000)?;
    let number = samples.u32_at(place)?;
    (number == MD_MAGIC || number.swap_bytes() == MD_MAGIC).then(|| finding(Foreign::MdRaid090, place))
}

/// Four labels of 256 KiB, two at each end; the second half of each is an array of uberblocks.
fn zfs(samples: Samples<'_>) -> Option<Finding> {
    let end = samples.size / ZFS_LABEL * ZFS_LABEL;
    let labels = [Some(0), Some(ZFS_LABEL), end.checked_sub(2 * ZFS_LABEL), end.checked_sub(ZFS_LABEL)];
    let uberblocks =
        labels.into_iter().flatten().flat_map(|label| (0..128).map(move |i| label + (128 << 10) + i * 1024));
    let is_uberblock = |place: &u64| {
        samples.u64_at(*place).is_some_and(|bytes| {
            u64::from_le_bytes(bytes) == ZFS_UBERBLOCK || u64::from_be_bytes(bytes) == ZFS_UBERBLOCK
        })
    };
    uberblocks.into_iter().find(is_uberblock).map(|place| finding(Foreign::Zfs, place))
}

/// Internal metadata of DRBD: the magic stands 60 bytes into the last 4 KiB.
fn drbd(samples: Samples<'_>) -> Option<Finding> {
    let place = (samples.size / 4096 * 4096).checked_sub(4096)?;
    let magic = samples.u32_at(place + 60)?.swap_bytes();
    DRBD_MAGICS.contains(&magic).then(|| finding(Foreign::Drbd, place + 60))
}

fn first_non_zero(samples: Samples<'_>) -> Option<Finding> {
    let place = |sample: &[u8]| sample.iter().position(|&b| b != 0).map(|i| i as u64);
    let tail_start = samples.size.saturating_sub(samples.tail.len() as u64);
    let offset = place(samples.head).or_else(|| Some(place(samples.tail)? + tail_start))?;
    Some(finding(Foreign::Unknown, offset))
}
