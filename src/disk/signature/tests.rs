use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;
use crate::disk::sim::SimDisk;

const SIZE: u64 = 16 << 20;

/// What is found on a disk of zeros with these bytes at these places.
fn found(marks: &[(u64, &[u8])]) -> Vec<Foreign> {
    let disk = SimDisk::new(SIZE, 512);
    for (offset, bytes) in marks {
        disk.poke(*offset, bytes);
    }
    probe(&disk).unwrap().into_iter().map(|finding| finding.what).collect()
}

#[test]
fn zeros_are_nothing() {
    assert_eq!(found(&[]), []);
    // Shorter than a sample, and without any byte.
    assert_eq!(probe(&SimDisk::new(8192, 512)).unwrap(), []);
    assert_eq!(detect(Samples { head: &[], tail: &[], size: 0 }), []);
}

#[test]
fn any_stray_byte_at_either_end_is_unknown_data() {
    for offset in [0, 5000, (1 << 20) - 1, SIZE - (1 << 20), SIZE - 1] {
        let disk = SimDisk::new(SIZE, 512);
        disk.poke(offset, &[1]);
        let finding = Finding { what: Foreign::Unknown, offset, label: None };
        assert_eq!(probe(&disk).unwrap(), [finding]);
    }
    // The middle is not looked at.
    assert_eq!(found(&[(8 << 20, &[1])]), []);
}

#[test]
fn fixed_marks_are_recognised() {
    let cases: &[(Foreign, u64, &[u8])] = &[
        (Foreign::Xfs, 0, b"XFSB"),
        (Foreign::Btrfs, 65_600, b"_BHRfS_M"),
        (Foreign::Bcachefs, 4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
        (Foreign::Bcache, 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
        (Foreign::Ntfs, 0, b"\xebR\x90NTFS    "),
        (Foreign::Exfat, 0, b"\xebv\x90EXFAT   "),
        (Foreign::Fat, 82, b"FAT32   "),
        (Foreign::Iso9660, 32_769, b"CD001"),
        (Foreign::Lvm2, 512, b"LABELONE"),
        (Foreign::Luks, 0, b"LUKS\xba\xbe\x00\x02"),
        (Foreign::Qcow2, 0, b"QFI\xfb\0\0\0\x03"),
        (Foreign::CephBluestore, 0, b"bluestore block device\n"),
        (Foreign::Swap, 4086, b"SWAPSPACE2"),
        (Foreign::Swap, 65_526, b"SWAPSPACE2"),
        (Foreign::Gpt, 512, b"EFI PART"),
        (Foreign::Gpt, 4096, b"EFI PART"),
        (Foreign::Gpt, SIZE - 512, b"EFI PART"),
        (Foreign::Gpt, SIZE - 4096, b"EFI PART"),
        (Foreign::MdRaid1, 4096, &[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]),
        (Foreign::MdRaid1, 0, &[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]),
        (Foreign::MdRaid1, SIZE - 8192, &[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]),
        (Foreign::MdRaid090, SIZE - 65_536, &[0xfc, 0x4e, 0x2b, 0xa9, 0, 0, 0, 0]),
        (Foreign::Zfs, 131_072 + 5 * 1024, &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0]),
        (Foreign::Zfs, SIZE - 131_072, &[0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c]),
        (Foreign::Drbd, SIZE - 4036, &[0x83, 0x74, 0x02, 0x6d]),
    ];
    for (what, offset, bytes) in cases {
        assert_eq!(found(&[(*offset, bytes)]), [*what], "{what:?} at {offset}");
    }
}

#[test]
fn a_boot_sector_is_an_mbr_only_with_a_partition() {
    let signature: (u64, &[u8]) = (510, &[0x55, 0xaa]);
    assert_eq!(found(&[signature]), [Foreign::BootSector]);
    assert_eq!(found(&[signature, (446, &[0x80, 0, 0, 0, 0x83])]), [Foreign::Mbr]);
    assert_eq!(found(&[signature, (446, &[0x33, 0, 0, 0, 0x83])]), [Foreign::BootSector]);
    assert_eq!(found(&[signature, (446, &[0, 0, 0, 0, 0xee]), (512, b"EFI PART")]), [Foreign::Gpt]);
    assert_eq!(found(&[signature, (82, b"FAT32   ")]), [Foreign::Fat]);
}

#[test]
fn ext_generations_differ_by_their_features() {
    let ext = |compat: u32, incompat: u32| {
        let mut features = compat.to_le_bytes().to_vec();
        features.extend(incompat.to_le_bytes());
        found(&[(1024 + 56, &[0x53, 0xef]), (1024 + 92, &features)])
    };
    assert_eq!(ext(0, 0x2), [Foreign::Ext2]);
    assert_eq!(ext(0x4, 0x2), [Foreign::Ext3]);
    assert_eq!(ext(0x4, 0x42), [Foreign::Ext4]);
}

#[test]
fn what_is_found_is_named_with_its_label_and_place() {
    let disk = SimDisk::new(SIZE, 512);
    disk.poke(0, b"XFSB");
    disk.poke(108, b"data\0");
    disk.poke(SIZE - 512, b"EFI PART");
    let found = probe(&disk).unwrap();
    let text: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(text, ["a GPT partition table (at byte 16776704)", "an XFS filesystem 'data' (at byte 0)"]);
}

/// What real tools make is recognised; tools that are not installed are skipped, said loudly.
#[test]
fn real_tools() {
    let cases: &[(Foreign, u64, &[&str])] = &[
        (Foreign::Ext4, 16, &["mkfs.ext4", "-q", "-F", "-L", "data"]),
        (Foreign::Ext3, 16, &["mkfs.ext3", "-q", "-F", "-L", "data"]),
        (Foreign::Ext2, 16, &["mkfs.ext2", "-q", "-F", "-L", "data"]),
        (Foreign::Xfs, 512, &["mkfs.xfs", "-q", "-f", "-L", "data"]),
        (Foreign::Btrfs, 256, &["mkfs.btrfs", "-q", "-f", "-L", "data"]),
        (Foreign::Swap, 16, &["mkswap", "-q", "-L", "data"]),
        (Foreign::Fat, 16, &["mkfs.vfat", "-n", "DATA"]),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (what, mib, command) in cases {
        let path = dir.path().join(format!("{what:?}"));
        File::create(&path).unwrap().set_len(mib << 20).unwrap();
        if !run(Command::new(command[0]).args(&command[1..]).arg(&path)) {
            println!("SKIPPED: {} is not here", command[0]);
            continue;
        }
        let finding = probe_file(&path);
        assert_eq!(finding.what, *what);
        assert_eq!(finding.label.unwrap().to_lowercase(), "data", "{what:?}");
    }
    let path = dir.path().join("qcow2");
    if run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&path).arg("16M")) {
        assert_eq!(probe_file(&path).what, Foreign::Qcow2);
    } else {
        println!("SKIPPED: qemu-img is not here");
    }
}

fn run(command: &mut Command) -> bool {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    command.env("PATH", path).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn probe_file(path: &Path) -> Finding {
    let bytes = std::fs::read(path).unwrap();
    let len = bytes.len().min(1 << 20);
    let found = detect(Samples { head: &bytes[..len], tail: &bytes[bytes.len() - len..], size: bytes.len() as u64 });
    found.into_iter().next().unwrap()
}
