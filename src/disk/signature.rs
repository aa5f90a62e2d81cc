//! Whose data is on a disk? Recognises what other software leaves at the start and at the end of a disk, so that it is
//! never overwritten unasked. Pure, apart from [`probe`].

mod detect;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;

use super::BlockDev;
pub use detect::detect;

/// Bytes looked at from the start, and from the end, of a disk.
pub const PROBE_LEN: u64 = 1 << 20;

/// Something that is on a disk and is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub what: Foreign,
    /// Byte offset of the mark that gave it away.
    pub offset: u64,
    /// Its label or name, where it has one.
    pub label: Option<String>,
}

/// Kinds of foreign content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names of the formats say it")]
pub enum Foreign {
    Gpt,
    Mbr,
    BootSector,
    Ext2,
    Ext3,
    Ext4,
    Xfs,
    Btrfs,
    Bcachefs,
    Bcache,
    F2fs,
    Reiserfs,
    Gfs2,
    Ocfs2,
    Squashfs,
    Erofs,
    Ntfs,
    Exfat,
    Fat,
    BitLocker,
    Iso9660,
    Udf,
    Lvm2,
    MdRaid090,
    MdRaid1,
    Luks,
    Swap,
    Zfs,
    CephBluestore,
    Drbd,
    Qcow2,
    Vmdk,
    Vhdx,
    /// Bytes that are not zero and that nothing above explains.
    Unknown,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Foreign::Gpt => "a GPT partition table",
            Foreign::Mbr => "an MBR partition table",
            Foreign::BootSector => "a boot sector",
            Foreign::Ext2 => "an ext2 filesystem",
            Foreign::Ext3 => "an ext3 filesystem",
            Foreign::Ext4 => "an ext4 filesystem",
            Foreign::Xfs => "an XFS filesystem",
            Foreign::Btrfs => "a Btrfs filesystem",
            Foreign::Bcachefs => "a bcachefs filesystem",
            Foreign::Bcache => "a bcache device",
            Foreign::F2fs => "an F2FS filesystem",
            Foreign::Reiserfs => "a ReiserFS filesystem",
            Foreign::Gfs2 => "a GFS2 filesystem",
            Foreign::Ocfs2 => "an OCFS2 filesystem",
            Foreign::Squashfs => "a SquashFS image",
            Foreign::Erofs => "an EROFS image",
            Foreign::Ntfs => "an NTFS filesystem",
            Foreign::Exfat => "an exFAT filesystem",
            Foreign::Fat => "a FAT filesystem",
            Foreign::BitLocker => "a BitLocker volume",
            Foreign::Iso9660 => "an ISO 9660 image",
            Foreign::Udf => "a UDF filesystem",
            Foreign::Lvm2 => "an LVM physical volume",
            Foreign::MdRaid090 => "a Linux RAID member (metadata 0.90)",
            Foreign::MdRaid1 => "a Linux RAID member (metadata 1.x)",
            Foreign::Luks => "a LUKS volume",
            Foreign::Swap => "swap space",
            Foreign::Zfs => "a ZFS pool member",
            Foreign::CephBluestore => "a Ceph BlueStore device",
            Foreign::Drbd => "DRBD metadata",
            Foreign::Qcow2 => "a qcow2 image",
            Foreign::Vmdk => "a VMDK image",
            Foreign::Vhdx => "a VHDX image",
            Foreign::Unknown => "unknown data",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if let Some(label) = &self.label {
            write!(f, " '{label}'")?;
        }
        write!(f, " (at byte {})", self.offset)
    }
}

/// What of a disk is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Samples<'a> {
    /// The first bytes.
    pub head: &'a [u8],
    /// The last bytes; may overlap the first on a small disk.
    pub tail: &'a [u8],
    /// Size of the disk in bytes.
    pub size: u64,
}

/// Looks at a disk.
///
/// # Errors
/// What reading it said.
pub fn probe<D: BlockDev + ?Sized>(disk: &D) -> io::Result<Vec<Finding>> {
    let len = disk.size().min(PROBE_LEN);
    let bytes = usize::try_from(len).expect("a MiB fits in memory");
    let (mut head, mut tail) = (vec![0; bytes], vec![0; bytes]);
    disk.read_at(0, &mut head)?;
    disk.read_at(disk.size() - len, &mut tail)?;
    Ok(detect(Samples { head: &head, tail: &tail, size: disk.size() }))
}
