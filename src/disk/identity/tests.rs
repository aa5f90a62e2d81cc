use std::os::unix::fs::symlink;

use super::*;

fn device(major: u32, minor: u32) -> DiskIdentity {
    DiskIdentity::Device { number: sys::device_number(major, minor) }
}

/// A made-up host: sda with two partitions, dm-0 on sda1 and sdb, loop0 on a file, two NVMe namespaces of one controller.
struct Fake {
    dir: tempfile::TempDir,
    host: Host,
}

impl Fake {
    fn new() -> Fake {
        let dir = tempfile::tempdir().unwrap();
        let host = Host {
            sysfs: dir.path().join("sys"),
            by_id: dir.path().join("by-id"),
            mountinfo: dir.path().join("mountinfo"),
        };
        let fake = Fake { dir, host };
        fs::create_dir_all(fake.host.sysfs.join("dev/block")).unwrap();
        fs::create_dir_all(&fake.host.by_id).unwrap();
        fs::write(&fake.host.mountinfo, "").unwrap();
        fake.add("sda", 8, 0);
        fake.add("sda/sda1", 8, 1);
        fake.add("sda/sda2", 8, 2);
        fake.write("sda/sda1/partition", "1\n");
        fake.write("sda/sda2/partition", "2\n");
        fake.add("sdb", 8, 16);
        fake.add("dm-0", 253, 0);
        fake.link("dm-0/slaves/sda1", "sda/sda1");
        fake.link("dm-0/slaves/sdb", "sdb");
        fake.add("nvme0n1", 259, 0);
        fake.add("nvme0n2", 259, 1);
        fs::create_dir_all(fake.path("nvme0")).unwrap();
        fake.link("nvme0n1/device", "nvme0");
        fake.link("nvme0n2/device", "nvme0");
        fake
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("sys/devices").join(name)
    }

    fn add(&self, name: &str, major: u32, minor: u32) {
        self.write(&format!("{name}/dev"), &format!("{major}:{minor}\n"));
        symlink(self.path(name), self.host.sysfs.join(format!("dev/block/{major}:{minor}"))).unwrap();
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn link(&self, name: &str, to: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        symlink(self.path(to), self.path(name)).unwrap();
    }
}

#[test]
fn a_disk_and_its_partition_overlap_but_two_partitions_do_not() {
    let host = Fake::new();
    let host = &host.host;
    let (sda, sda1, sda2, dm) = (device(8, 0), device(8, 1), device(8, 2), device(253, 0));
    assert_eq!(host.overlap(sda, sda), Some(Overlap::Same));
    assert_eq!(host.overlap(sda1, sda), Some(Overlap::FirstOnSecond));
    assert_eq!(host.overlap(sda, sda1), Some(Overlap::SecondOnFirst));
    assert_eq!(host.overlap(sda1, sda2), None);
    assert_eq!(host.overlap(dm, sda1), Some(Overlap::FirstOnSecond));
    assert_eq!(host.overlap(dm, sda), Some(Overlap::FirstOnSecond));
    assert_eq!(host.overlap(dm, sda2), None);
    assert_eq!(host.overlap(dm, device(8, 16)), Some(Overlap::FirstOnSecond));
}

#[test]
fn a_file_has_the_sequence_of_the_whole_device_beneath() {
    let fake = Fake::new();
    fake.write("sda/diskseq", "17\n");
    fake.write("dm-0/diskseq", "18\n");
    fake.write("sdb/diskseq", "nonsense");
    let file = |major, minor| DiskIdentity::File { device: sys::device_number(major, minor), inode: 5 };
    let sequence = |disk| fake.host.sequence_beneath(disk);
    assert_eq!([(8, 0), (8, 2), (253, 0)].map(|(major, minor)| sequence(file(major, minor))), [17, 17, 18]);
    // Old kernels, and filesystems without a block device.
    assert_eq!([(8, 16), (259, 0), (0, 45)].map(|(major, minor)| sequence(file(major, minor))), [0; 3]);
    assert_eq!(sequence(device(8, 0)), 0, "it tells itself");
}

#[test]
fn failure_domains_are_the_physical_devices_below() {
    let host = Fake::new();
    let domain = |id| host.host.failure_domain(id).to_string();
    assert_eq!(domain(device(8, 0)), "sda");
    assert_eq!(domain(device(8, 2)), "sda");
    assert_eq!(domain(device(253, 0)), "sda+sdb");
    assert_eq!(domain(device(259, 0)), "nvme0");
    assert_eq!(domain(device(77, 7)), "device-77:7");
    let file = DiskIdentity::File { device: sys::device_number(8, 2), inode: 5 };
    assert_eq!(domain(file), "sda");
}

#[test]
fn a_file_on_a_filesystem_without_device_is_named_by_its_mount() {
    let host = Fake::new();
    fs::write(&host.host.mountinfo, "36 25 0:45 / /mnt/nfs rw - nfs4 server:/export rw,vers=4.2\n").unwrap();
    let domain = |minor| {
        let file = DiskIdentity::File { device: sys::device_number(0, minor), inode: 5 };
        host.host.failure_domain(file).to_string()
    };
    assert_eq!(domain(45), "nfs4:server:/export");
    assert_eq!(domain(46), "device-0:46");
}

#[test]
fn a_loop_device_lies_on_its_file() {
    let fake = Fake::new();
    let file = fake.dir.path().join("backing.img");
    fs::write(&file, "").unwrap();
    fake.add("loop0", 7, 0);
    fake.write("loop0/loop/backing_file", &format!("{}\n", file.display()));
    let meta = fs::metadata(&file).unwrap();
    let file = DiskIdentity::File { device: meta.dev(), inode: meta.ino() };
    assert_eq!(fake.host.overlap(device(7, 0), file), Some(Overlap::FirstOnSecond));
}

#[test]
fn sharing_names_every_group_that_one_device_takes() {
    let domains = ["sda", "sdb", "sda+sdb", "sdc"].map(FailureDomain::parse);
    let disks: Vec<_> = ["a", "b", "ab", "c"].into_iter().zip(&domains).collect();
    let found = sharing(&disks);
    let expect = |domain: &str, disks: [&str; 2]| Sharing {
        domain: domain.to_owned(),
        disks: disks.map(str::to_owned).to_vec(),
    };
    assert_eq!(found, [expect("sda", ["a", "ab"]), expect("sdb", ["b", "ab"])]);
    assert!(domains[0].shares_with(&domains[2]) && !domains[0].shares_with(&domains[1]));
    assert_eq!(FailureDomain::parse(&domains[2].to_string()), domains[2]);
}

#[test]
fn names_are_made_valid_and_unique() {
    let taken = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
    assert_eq!(unique_name("disk0", &[]), "disk0");
    assert_eq!(unique_name("disk0", &taken(&["disk0", "disk0-2"])), "disk0-3");
    assert_eq!(unique_name("__größe 1", &[]), "gr--e-1");
    assert_eq!(unique_name("...", &taken(&["disk"])), "disk-2");
    let long = "x".repeat(100);
    let cut = unique_name(&long, &[]);
    assert_eq!(cut.len(), NAME_LEN_MAX);
    assert_eq!(unique_name(&long, &[cut]).len(), NAME_LEN_MAX);
}

#[test]
fn default_names_come_from_the_file_or_the_device() {
    let fake = Fake::new();
    let file = DiskIdentity::File { device: 1, inode: 1 };
    let name = |path: &str, id| fake.host.default_name(Path::new(path), id, &[]);
    assert_eq!(name("/pool/fast-0.img", file), "fast-0");
    assert_eq!(name("/pool/fast.1", file), "fast.1");
    assert_eq!(name("/dev/whatever", device(8, 1)), "sda1");
}

#[test]
fn the_readable_lasting_link_wins() {
    let fake = Fake::new();
    // Links to /dev/null: any node with a device number will do.
    let null = fs::metadata("/dev/null").unwrap().rdev();
    for link in ["wwn-0x1", "nvme-Maker_SSD_S1_1", "nvme-Maker_SSD_S1", "nvme-eui.2"] {
        symlink("/dev/null", fake.host.by_id.join(link)).unwrap();
    }
    symlink("/dev/zero", fake.host.by_id.join("a")).unwrap();
    let name = fake.host.default_name(Path::new("/dev/x"), DiskIdentity::Device { number: null }, &[]);
    assert_eq!(name, "nvme-Maker_SSD_S1");
}
