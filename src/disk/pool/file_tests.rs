//! Pools on real files and loop devices.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::disk::BlockDev;
use crate::disk::file::Access;
use crate::disk::file::tests::LoopDevice;
use crate::disk::label::LabelError;

const MIB: u64 = 1 << 20;

struct Lab {
    dir: tempfile::TempDir,
    host: Host,
}

impl Lab {
    fn new() -> Lab {
        Lab { dir: tempfile::tempdir().unwrap(), host: Host::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn create(&self, names: &[&str]) -> Result<OpenPool<FileDisk>, CreateError> {
        let disks = names.iter().map(|name| FileDisk::create(&self.path(name), 64 * MIB).unwrap()).collect();
        self.create_on(disks)
    }

    fn create_on(&self, disks: Vec<FileDisk>) -> Result<OpenPool<FileDisk>, CreateError> {
        let mut list: Vec<NewDisk<FileDisk>> = Vec::new();
        for disk in disks {
            let taken: Vec<String> = list.iter().map(|new| new.name.clone()).collect();
            list.push(NewDisk::from_file(disk, DiskSettings::default(), &taken, &self.host));
        }
        let options = CreateOptions { extent_size: MIB, members: None, force: false, now: 1 };
        create_pool(list, &options, &self.host, &mut Uuid::new_v4)
    }

    fn open(&self, names: &[&str]) -> Result<OpenPool<FileDisk>, FindError> {
        self.open_with(names, &OpenOptions::default())
    }

    fn open_with(&self, names: &[&str], options: &OpenOptions) -> Result<OpenPool<FileDisk>, FindError> {
        let paths: Vec<String> = names.iter().map(|name| self.text(name)).collect();
        open_pool(&paths, options, &self.host)
    }
}

#[test]
fn a_pool_of_files_is_found_by_pattern_and_by_path_in_any_order() {
    let lab = Lab::new();
    let made = lab.create(&["b.img", "a.img", "c.img"]).unwrap();
    let names: Vec<&str> = made.disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["b", "a", "c"]);
    // One filesystem: one failure domain, said loudly.
    assert!(made.warnings().iter().any(|w| matches!(w, Warning::MembersShareDomain(_))));
    let uuid = made.uuid;
    drop(made);

    fs::write(lab.path("notes.txt"), "not a disk").unwrap();
    fs::create_dir(lab.path("directory")).unwrap();
    symlink(lab.path("a.img"), lab.path("link-to-a")).unwrap();
    let pool = lab.open(&["*"]).unwrap();
    assert_eq!((pool.uuid, pool.disks.len(), pool.rejected.len()), (uuid, 3, 0), "{:?}", pool.rejected);
    drop(pool);
    let pool = lab.open(&["c.img", "link-to-a", "a.img", "b.img", "notes.txt", "gone.img", "*.raw"]).unwrap();
    assert_eq!(pool.disks.len(), 3);
    let told: Vec<String> = pool.rejected.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 3);
    for part in ["notes.txt", "gone.img", "*.raw"] {
        assert!(told.iter().any(|text| text.contains(part)), "{part}: {told:?}");
    }
    // The data is where it was: through the label, not through the path.
    pool.disks[0].dev.write_at(pool.disks[0].label.layout.data_offset, b"hello").unwrap();
    drop(pool);
    fs::rename(lab.path("b.img"), lab.path("renamed")).unwrap();
    let pool = lab.open(&["a.img", "renamed", "c.img"]).unwrap();
    let mut read = [0; 5];
    pool.disks[0].dev.read_at(pool.disks[0].label.layout.data_offset, &mut read).unwrap();
    assert_eq!((&read, &pool.disks[0].name[..]), (b"hello", "b"));
}

#[test]
fn an_open_pool_is_not_opened_again() {
    let lab = Lab::new();
    let pool = lab.create(&["a.img", "b.img", "c.img"]).unwrap();
    let error = lab.open(&["*.img"]).unwrap_err();
    assert!(matches!(error, FindError::Open(OpenError::Locked { .. })), "{error}");
    let look = OpenOptions { read_only: true, ..OpenOptions::default() };
    assert!(matches!(lab.open_with(&["*.img"], &look), Err(FindError::Open(OpenError::Locked { .. }))));
    drop(pool);
    let one = lab.open_with(&["*.img"], &look).unwrap();
    let other = lab.open_with(&["*.img"], &look).unwrap();
    assert!(one.read_only && other.disks[0].dev.access() == Access::Read);
    assert!(matches!(lab.open(&["*.img"]), Err(FindError::Open(OpenError::Locked { .. }))));
}

/// As another process gets it: the lock never lapses.
#[test]
fn an_open_pool_is_gone_on_with_by_its_descriptors() {
    let lab = Lab::new();
    lab.create(&["a", "b", "c"]).unwrap();
    let before = lab.open(&["a", "b", "c"]).unwrap();
    let again = |works: bool| -> Vec<OpenedDisk> {
        let open = |disk: &OpenDisk<FileDisk>| {
            let fd = disk.dev.fd().try_clone().unwrap();
            OpenedDisk { path: disk.path.clone(), fd, works }
        };
        before.disks.iter().map(open).collect()
    };
    let reopen = |disks| reopen_pool(disks, Duration::from_secs(10), &OpenOptions::default(), &Host::default());
    let (working, failed) = (again(true), again(false));
    for disks in [working, failed] {
        let next = reopen(disks).unwrap();
        assert_eq!((next.uuid, next.disks.len(), next.rejected.len()), (before.uuid, 3, 0));
    }
    assert!(matches!(reopen(Vec::new()), Err(FindError::NoDisk(_))));
    // One whose label is gone is told by its path, and the others make the pool.
    let disks = again(true);
    let path = disks[1].path.clone();
    let spoilt = fs::File::options().write(true).open(&path).unwrap();
    let len = spoilt.metadata().unwrap().len();
    [0, len - (64 << 10)].iter().for_each(|at| {
        std::os::unix::fs::FileExt::write_all_at(&spoilt, &[0; 64 << 10], *at).unwrap();
    });
    drop(before);
    let next = reopen(disks).unwrap();
    assert_eq!((next.disks.len(), next.rejected.len(), &next.rejected[0].path), (2, 1, &path));
    assert!(matches!(lab.open(&["a", "b", "c"]), Err(FindError::Open(OpenError::Locked { .. }))));
}

#[test]
fn what_cannot_be_opened_is_told_with_reasons() {
    let lab = Lab::new();
    drop(lab.create(&["a.img", "b.img", "c.img"]).unwrap());
    let error = lab.open(&["nothing.img"]).unwrap_err();
    assert!(matches!(error, FindError::NoDisk(_)) && error.to_string().contains("nothing.img"), "{error}");
    assert!(matches!(lab.open(&["[x"]), Err(FindError::Pattern { .. })));

    // A damaged disk is told beside the majority it would have made.
    for at in [4096, 64 * MIB - 4096] {
        let disk = FileDisk::open(&lab.path("b.img"), Access::Write).unwrap();
        disk.write_at(at + 30, b"damage").unwrap();
    }
    let error = lab.open(&["a.img", "b.img"]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("only 1 of the 3") && text.contains("b.img: both copies"), "{text}");
    let pool = lab.open(&["*.img"]).unwrap();
    assert_eq!((pool.disks.len(), pool.missing.len(), pool.rejected.len()), (2, 1, 1));
    drop(pool);

    // A label of a later version is no disk to guess at.
    let mut label = fs::read(lab.path("a.img")).unwrap();
    label.truncate(8192);
    label[4096 + 12] = 9;
    label[4096 + 8..4096 + 12].fill(0);
    let crc = crc32c::crc32c(&label[4096..]);
    let disk = FileDisk::open(&lab.path("a.img"), Access::Write).unwrap();
    label[4096 + 8..4096 + 12].copy_from_slice(&crc.to_le_bytes());
    disk.write_at(4096, &label[4096..]).unwrap();
    drop(disk);
    let error = lab.open(&["a.img"]).unwrap_err();
    let FindError::NoDisk(rejected) = &error else { panic!("{error}") };
    let newer = |reason: &Rejection| {
        matches!(reason, Rejection::Label { source: ReadError::Format(LabelError::NewerVersion { found: 9 }), .. })
    };
    assert!(newer(&rejected[0].reason) && error.to_string().contains("newer spanblk"), "{error}");
}

#[test]
fn a_copied_file_is_refused_by_name() {
    let lab = Lab::new();
    drop(lab.create(&["a.img"]).unwrap());
    fs::copy(lab.path("a.img"), lab.path("copy.img")).unwrap();
    let error = lab.open(&["*.img"]).unwrap_err();
    assert!(matches!(error, FindError::Assemble { source: AssembleError::Copies { .. }, .. }), "{error}");
    assert!(error.to_string().contains("a.img") && error.to_string().contains("copy.img"), "{error}");
}

#[test]
fn pools_are_told_apart() {
    let lab = Lab::new();
    let one = lab.create(&["a.img"]).unwrap().uuid;
    drop(lab.create(&["b.img"]).unwrap());
    let error = lab.open(&["*.img"]).unwrap_err();
    assert!(matches!(error, FindError::Assemble { source: AssembleError::SeveralPools(_), .. }), "{error}");
    let options = OpenOptions { pool: Some(one), ..OpenOptions::default() };
    let pool = lab.open_with(&["*.img"], &options).unwrap();
    assert_eq!((pool.uuid, pool.disks.len()), (one, 1));
    // The other pool's disks are not even locked.
    lab.open(&["b.img"]).unwrap();
}

#[test]
fn names_of_files_do_not_collide() {
    let lab = Lab::new();
    fs::create_dir(lab.path("x")).unwrap();
    let pool = lab.create(&["a.img", "x/a.img", "a.raw"]).unwrap();
    let names: Vec<&str> = pool.disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["a", "a-2", "a-3"]);
}

fn loop_device(lab: &Lab, name: &str, block_size: u32) -> Option<LoopDevice> {
    fs::File::create(lab.path(name)).unwrap().set_len(64 * MIB).unwrap();
    LoopDevice::new(&lab.path(name), block_size)
}

#[test]
fn pools_on_block_devices_of_both_block_sizes() {
    let lab = Lab::new();
    for block_size in [512, 4096] {
        let file = |i| format!("loop-{block_size}-{i}.img");
        let (Some(one), Some(two)) = (loop_device(&lab, &file(1), block_size), loop_device(&lab, &file(2), block_size))
        else {
            return;
        };
        let paths = [one.path.to_str().unwrap().to_owned(), two.path.to_str().unwrap().to_owned()];
        let open = |path: &PathBuf| FileDisk::open(path, Access::Write).unwrap();
        let made = lab.create_on(vec![open(&one.path), open(&two.path)]).unwrap();
        assert_eq!(made.disks[0].label.block_size, block_size);
        let uuid = made.uuid;
        drop(made);
        let mut pool = open_pool(&paths, &OpenOptions::default(), &lab.host).unwrap();
        assert_eq!(pool.uuid, uuid);
        pool.write_membership(&[DiskId(0), DiskId(1)]).unwrap();
        pool.set_accept(DiskId(1), Accept::Spanned).unwrap();
        // The file below is the same disk by another path.
        let below = FileDisk::open(&lab.path(&file(1)), Access::Probe).unwrap();
        let below = NewDisk::from_file(below, DiskSettings::default(), &[], &lab.host);
        let options = AddOptions { id: DiskId(2), uuid: Uuid::new_v4(), replaces: None, force: true, now: 1 };
        let error = pool.add_disk(below, &options, &lab.host).unwrap_err();
        assert!(matches!(error, ChangeError::Add(CreateError::SameDisk { .. })), "{error}");
        drop(pool);
        assert_eq!(
            open_pool(&paths, &OpenOptions::default(), &lab.host).unwrap().disks[1].label.accept,
            Accept::Spanned
        );
        for path in [&one.path, &two.path] {
            wipe(&open(path), Path::new(path), false).unwrap();
        }
        assert!(matches!(open_pool(&paths, &OpenOptions::default(), &lab.host), Err(FindError::NoDisk(_))));
    }
}

#[test]
fn block_sizes_do_not_mix() {
    let lab = Lab::new();
    let (Some(small), Some(large)) = (loop_device(&lab, "512.img", 512), loop_device(&lab, "4096.img", 4096)) else {
        return;
    };
    let open = |device: &LoopDevice| FileDisk::open(&device.path, Access::Write).unwrap();
    let error = lab.create_on(vec![open(&small), open(&large)]).unwrap_err();
    assert!(matches!(error, CreateError::MixedBlockSizes { first_size: 512, second_size: 4096, .. }), "{error}");
    assert!(error.to_string().contains("nvme format"));
}
