use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::*;
use crate::base::rng::Rng;
use crate::disk::BlockDev;
use crate::disk::identity::{Host, Overlap};

const MIB: u64 = 1 << 20;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A loop device; `None` (said loudly) where the system has none to give.
pub(crate) struct LoopDevice {
    pub(crate) path: PathBuf,
}

impl LoopDevice {
    pub(crate) fn new(file: &Path, block_size: u32) -> Option<LoopDevice> {
        let out = Command::new("losetup").args(["--find", "--show", "-b", &block_size.to_string()]).arg(file).output();
        match out {
            Ok(out) if out.status.success() => {
                Some(LoopDevice { path: String::from_utf8(out.stdout).unwrap().trim_end().into() })
            }
            other => {
                println!("SKIPPED: no loop device of {block_size}-byte blocks here: {other:?}");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.path).status();
    }
}

#[test]
fn what_goes_through_it_is_awaited_for_as_long_as_it_lasts() {
    let dir = dir();
    let disk = FileDisk::create(&dir.path().join("d"), MIB).unwrap();
    let lately = || disk.awaited().take_lately();
    disk.read_at(5, &mut [0; 10]).unwrap();
    assert!(lately() && !lately());
    disk.write_at(5, &[0; 10]).unwrap();
    assert!(lately() && !lately());
    disk.sync().unwrap();
    assert!(lately() && !lately());
    disk.read_at(MIB, &mut [0; 10]).unwrap_err();
    assert!(!disk.awaited().is_under_way());
}

fn random_io_agrees_with_a_model(disk: &FileDisk, len: usize, rounds: u32) {
    let mut model = vec![0u8; len];
    let mut rng = Rng::new(42);
    for _ in 0..rounds {
        let offset = rng.index(len);
        let mut bytes = vec![0; (1 + rng.index(len - offset)).min(1 + rng.index(20_000))];
        rng.fill(&mut bytes);
        disk.write_at(offset as u64, &bytes).unwrap();
        model[offset..offset + bytes.len()].copy_from_slice(&bytes);
        let from = rng.index(len);
        let mut read = vec![0; rng.index(len - from)];
        disk.read_at(from as u64, &mut read).unwrap();
        assert!(read == model[from..from + read.len()], "read {} at {from}", read.len());
    }
    disk.sync().unwrap();
    let mut all = AlignedBuf::zeroed(len);
    disk.read_at(0, &mut all).unwrap();
    assert!(all[..] == model);
}

#[test]
fn a_created_file_is_sparse_zero_private_and_any_io_works() {
    let dir = dir();
    let path = dir.path().join("d.img");
    let disk = FileDisk::create(&path, 4 * MIB).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::blocks(&meta), 0);
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777, 0o600);
    assert_eq!((disk.size(), disk.is_device()), (4 * MIB, false));
    random_io_agrees_with_a_model(&disk, 4 << 20, 60);
}

#[test]
fn pieces_larger_than_the_bounce_buffer_are_whole() {
    let dir = dir();
    let disk = FileDisk::create(&dir.path().join("d.img"), 8 * MIB).unwrap();
    let mut bytes = vec![0; (3 << 20) + 77];
    Rng::new(1).fill(&mut bytes);
    disk.write_at(1001, &bytes).unwrap();
    let mut read = vec![0; bytes.len() + 2];
    disk.read_at(1000, &mut read).unwrap();
    assert!(read[1..=bytes.len()] == bytes && read[0] == 0 && read[read.len() - 1] == 0);
}

#[test]
fn reads_and_writes_beyond_the_end_are_refused_and_change_nothing() {
    let dir = dir();
    let disk = FileDisk::create(&dir.path().join("d.img"), MIB).unwrap();
    for result in [disk.write_at(MIB - 1, &[1, 2]), disk.read_at(u64::MAX, &mut [0]), disk.punch(MIB, 4096)] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
    assert_eq!(fs::metadata(disk.path()).unwrap().len(), MIB);
}

#[test]
fn nothing_comes_to_a_disk_that_is_retired() {
    let dir = dir();
    let disk = FileDisk::create(&dir.path().join("d"), 1 << 20).unwrap();
    disk.write_at(0, &[1; 4096]).unwrap();
    // What the kernel has is waited for.
    let under_way = disk.begin().unwrap();
    assert!(disk.is_in_use());
    assert!(!disk.retire(Duration::from_millis(1)));
    assert!(disk.write_at(0, &[2; 4096]).is_err(), "from then on, not only from its end");
    drop(under_way);
    assert!(disk.retire(Duration::ZERO) && !disk.is_in_use());
    let (mut found, refused) = ([0; 4096], "another daemon's");
    for error in [
        disk.read_at(0, &mut found).unwrap_err(),
        disk.write_at(0, &[2; 4096]).unwrap_err(),
        disk.write_at(512, &[2; 100]).unwrap_err(),
        disk.sync().unwrap_err(),
        disk.punch(0, 4096).unwrap_err(),
    ] {
        assert!(error.to_string().contains(refused), "{error}");
    }
    assert!(!disk.failed().is_failed(), "the disk is well");
    drop(disk);
    FileDisk::open(&dir.path().join("d"), Access::Read).unwrap().read_at(0, &mut found).unwrap();
    assert!(found == [1; 4096]);
}

#[test]
fn punching_gives_the_backing_back_and_keeps_the_neighbours() {
    let dir = dir();
    let disk = FileDisk::create(&dir.path().join("d.img"), 4 * MIB).unwrap();
    disk.write_at(0, &vec![7; 4 << 20]).unwrap();
    disk.sync().unwrap();
    let blocks = || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(disk.path()).unwrap());
    let before = blocks();
    match disk.punch(MIB, 2 * MIB) {
        Err(e) if e.kind() == ErrorKind::Unsupported => return println!("SKIPPED: no hole punching here"),
        result => result.unwrap(),
    }
    assert!(blocks() < before);
    let mut byte = [0];
    for at in [MIB - 1, 3 * MIB] {
        disk.read_at(at, &mut byte).unwrap();
        assert_eq!(byte, [7]);
    }
    assert_eq!(disk.size(), 4 * MIB);
}

#[test]
fn a_second_writer_is_refused_with_our_pid_and_probing_is_not() {
    let dir = dir();
    let path = dir.path().join("d.img");
    let disk = FileDisk::create(&path, MIB).unwrap();
    let error = FileDisk::open(&path, Access::Write).unwrap_err();
    assert!(matches!(error, OpenError::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{error:?}");
    assert!(error.to_string().contains("this process"), "{error}");
    assert!(matches!(FileDisk::open(&path, Access::Read), Err(OpenError::Locked { .. })));
    FileDisk::open(&path, Access::Probe).unwrap();
    // The lock is the description's, not the object's: it goes with the last duplicate.
    let fd = Arc::clone(disk.fd());
    drop(disk);
    assert!(matches!(FileDisk::open(&path, Access::Write), Err(OpenError::Locked { .. })));
    drop(fd);
    let reader = FileDisk::open(&path, Access::Read).unwrap();
    FileDisk::open(&path, Access::Read).unwrap();
    assert!(reader.write_at(0, &[1]).is_err());
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let dir = dir();
    let path = dir.path().join("none.img");
    let error = FileDisk::open(&path, Access::Write).unwrap_err();
    assert!(error.to_string().contains("none.img") && error.to_string().contains("check the path"), "{error}");
    assert!(matches!(FileDisk::open(dir.path(), Access::Write), Err(OpenError::WrongKind { .. })));
    assert!(matches!(FileDisk::open(Path::new("/dev/null"), Access::Write), Err(OpenError::WrongKind { .. })));
    let error = FileDisk::open(Path::new("/proc/version"), Access::Probe).unwrap_err();
    assert!(matches!(error, OpenError::NoDirectIo { .. }), "{error}");
    fs::write(&path, "mine").unwrap();
    assert!(matches!(FileDisk::create(&path, MIB), Err(OpenError::Exists { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    let error = FileDisk::create(&dir.path().join("no/where.img"), MIB).unwrap_err();
    assert!(matches!(error, OpenError::Create { .. }), "{error}");
}

#[test]
fn a_link_to_a_file_is_the_same_disk() {
    let dir = dir();
    let path = dir.path().join("d.img");
    let disk = FileDisk::create(&path, MIB).unwrap();
    let link = dir.path().join("link");
    symlink(&path, &link).unwrap();
    let other = FileDisk::open(&link, Access::Probe).unwrap();
    assert_eq!(Host::default().overlap(*disk.identity(), *other.identity()), Some(Overlap::Same));
}

#[test]
fn an_odd_size_is_rounded_down_to_whole_blocks() {
    let dir = dir();
    let disk = FileDisk::create(&dir.path().join("d.img"), MIB + 700).unwrap();
    assert!(disk.size().is_multiple_of(u64::from(disk.block_size())) && disk.size() <= MIB + 512);
}

#[test]
fn real_block_devices_of_both_block_sizes() {
    let dir = dir();
    for block_size in [512, 4096] {
        let path = dir.path().join(format!("loop-{block_size}.img"));
        fs::File::create(&path).unwrap().set_len(8 * MIB).unwrap();
        let Some(device) = LoopDevice::new(&path, block_size) else { return };
        let disk = FileDisk::open(&device.path, Access::Write).unwrap();
        assert!(disk.is_device());
        assert_eq!((disk.size(), disk.block_size()), (8 * MIB, block_size));
        random_io_agrees_with_a_model(&disk, 8 << 20, 30);
        match disk.punch(MIB, MIB) {
            Err(e) if e.kind() == ErrorKind::Unsupported => println!("SKIPPED: the loop device cannot discard"),
            result => result.unwrap(),
        }
        let error = FileDisk::open(&device.path, Access::Write).unwrap_err();
        assert!(matches!(error, OpenError::Busy { .. } | OpenError::Locked { .. }), "{error}");
        assert!(matches!(FileDisk::open(&device.path, Access::Read), Err(OpenError::Locked { .. })));
        let file = FileDisk::open(&path, Access::Probe).unwrap();
        let host = Host::default();
        assert_eq!(host.overlap(*disk.identity(), *file.identity()), Some(Overlap::FirstOnSecond));
        assert_eq!(host.failure_domain(*disk.identity()), host.failure_domain(*file.identity()));
        drop(disk);
        let readers = [(); 2].map(|()| FileDisk::open(&device.path, Access::Read).unwrap());
        assert!(readers[0].write_at(0, &[0; 4096]).is_err());
    }
}

#[test]
fn a_failed_sync_is_never_tried_again_with_success() {
    let dir = dir();
    let disk = FileDisk::create(&dir.path().join("disk"), MIB).unwrap();
    disk.sync().unwrap();
    // A label, the store or the end of the daemon is told.
    disk.synced(Err(io::Error::from_raw_os_error(libc::EIO))).unwrap_err();
    assert!(disk.failed().is_failed(), "reactors know at once");
    assert!(disk.sync().is_err());
    // A reactor is told.
    let other = FileDisk::create(&dir.path().join("other"), MIB).unwrap();
    other.sync().unwrap();
    other.failed().fail();
    assert!(other.sync().is_err(), "a store member there no longer counts");
}

/// A zram device; `None` (said loudly) where the system has none to give.
struct ZramDevice(String);

impl ZramDevice {
    fn new(size: u64) -> Option<ZramDevice> {
        match fs::read_to_string("/sys/class/zram-control/hot_add") {
            Ok(number) => {
                let zram = ZramDevice(number.trim().to_owned());
                fs::write(format!("/sys/block/zram{}/disksize", zram.0), size.to_string()).unwrap();
                Some(zram)
            }
            Err(error) => {
                println!("SKIPPED: no zram device here: {error}");
                None
            }
        }
    }
}

impl Drop for ZramDevice {
    fn drop(&mut self) {
        let _ = fs::write("/sys/class/zram-control/hot_remove", &self.0);
    }
}

/// zram takes memory that is aligned to 512 bytes, and writes whole blocks.
#[test]
fn nothing_is_read_past_a_buffer() {
    let Some(zram) = ZramDevice::new(16 * MIB) else { return };
    {
        let disk = FileDisk::open(Path::new(&format!("/dev/zram{}", zram.0)), Access::Write).unwrap();
        let mut content = AlignedBuf::zeroed(16 << 10);
        Rng::new(1).fill(&mut content);
        disk.write_at(0, &content).unwrap();
        for shift in [0, 16, 512, 2048] {
            let mut memory = AlignedBuf::zeroed(64 << 10);
            memory.fill(0xaa);
            let buffer = (8 << 10) + shift..(16 << 10) + shift;
            disk.read_at(4096, &mut memory[buffer.clone()]).unwrap();
            assert!(memory[buffer.clone()] == content[4096..12 << 10], "shift {shift}");
            assert!(memory[..buffer.start].iter().all(|byte| *byte == 0xaa), "before, shift {shift}");
            assert!(memory[buffer.end..].iter().all(|byte| *byte == 0xaa), "behind, shift {shift}");
            disk.write_at(4096, &memory[buffer]).unwrap();
        }
        let mut found = vec![0; 16 << 10];
        disk.read_at(0, &mut found).unwrap();
        assert!(found == content[..]);
    }
}

#[test]
fn a_file_is_numbered_like_the_device_that_it_lies_on() {
    // Not in TMPDIR, which may be in memory.
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = dir.path().join("d.img");
    let disk = FileDisk::create(&path, MIB).unwrap();
    let device = std::os::unix::fs::MetadataExt::dev(&fs::metadata(&path).unwrap());
    let (major, minor) = sys::major_minor(device);
    let told = |place: &str| fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{place}")).ok();
    match told("diskseq").or_else(|| told("../diskseq")) {
        Some(told) => assert_eq!(disk.sequence().to_string(), told.trim_end()),
        None => assert_eq!(disk.sequence(), 0),
    }
}
