//! A disk whose faults are the kernel's own answers: a sync that fails, a place that cannot be written. It is a file that nbdkit serves and
//! nbdfuse mounts; without these programs the tests say so and do nothing.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "common/daemon_host.rs"]
mod daemon_host;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use daemon_host::{Host, pattern, read};

const MIB: usize = 1 << 20;
const SIZE: usize = 256 * MIB;
const OTHERS: [&str; 3] = ["d1.img", "d2.img", "d3.img"];
const ALL: [&str; 4] = ["m/disk", "d1.img", "d2.img", "d3.img"];

/// Arguments of the scripts: a handle, then bytes and offset.
const READ: &str = "dd if=image skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none";
const WRITE: &str = "if [ -e bad ] && [ $4 -le $(cat bad) ] && [ $(cat bad) -lt $(($4+$3)) ]; then
  cat > /dev/null; echo EIO bad place >&2; exit 1
fi
dd of=image seek=$4 conv=notrunc oflag=seek_bytes status=none";
const FLUSH: &str = "if [ -e lost ]; then echo EIO lost >&2; exit 1; fi";

/// The programs that make the disk, which end with it.
struct FaultyDisk([Child; 2]);

impl FaultyDisk {
    /// Disk `m/disk` of a host, its bytes in `image`: no sync of it succeeds while there is a file `lost`, nor a write over the byte
    /// whose offset is in the file `bad`. `None` if that cannot be had here.
    fn mount(host: &Host) -> Option<FaultyDisk> {
        let has = |program: &str| Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
        if !has("nbdkit") || !has("nbdfuse") || !Path::new("/dev/fuse").exists() {
            eprintln!("SKIP: no nbdkit, nbdfuse or FUSE");
            return None;
        }
        let directory = host.directory.path();
        File::create(host.path("image")).unwrap().set_len(SIZE as u64).unwrap();
        std::fs::create_dir(host.path("m")).unwrap();
        File::create(host.path("m/disk")).unwrap();
        let script = |what: &str, script: &str| format!("{what}=cd {}; {script}", directory.display());
        let server = Command::new("nbdkit")
            .args(["-f", "-U"])
            .arg(host.path("n.sock"))
            .arg("eval")
            .arg(format!("get_size=echo {SIZE}"))
            .args([script("pread", READ), script("pwrite", WRITE), script("flush", FLUSH)])
            .args(["can_write=exit 0", "can_flush=exit 0"])
            .spawn()
            .unwrap();
        wait_for(&host.path("n.sock"), |path| path.exists());
        let mount =
            Command::new("nbdfuse").arg(host.path("m/disk")).arg("--unix").arg(host.path("n.sock")).spawn().unwrap();
        wait_for(&host.path("m/disk"), |path| path.metadata().is_ok_and(|metadata| metadata.len() == SIZE as u64));
        Some(FaultyDisk([server, mount]))
    }
}

impl FaultyDisk {
    /// Lets it hang, or answer again.
    fn signal(&self, signal: &str) {
        let pid = self.0[0].id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        // The mount first, which is gone then.
        for child in self.0.iter_mut().rev() {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }
}

fn wait_for(path: &Path, is_there: impl Fn(&Path) -> bool) {
    for _ in 0..500 {
        if is_there(path) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("no {}", path.display());
}

/// A host that serves the faulty disk, as d0, and three others.
fn host(options: &[&str]) -> Option<(Host, FaultyDisk)> {
    let mut host = Host::empty();
    let disk = FaultyDisk::mount(&host)?;
    host.ok(&[&["pool", "create", "--size", "256MiB"], &OTHERS[..]].concat());
    host.serve(&[&["--disk-dir", "m"], options].concat(), &OTHERS);
    host.ok(&["disk", "add", host.path("m/disk").to_str().unwrap(), "--name", "d0"]);
    for disk in ["d0", "d1"] {
        host.ok(&["disk", "set", disk, "--failure-domain", disk]);
    }
    Some((host, disk))
}

/// Offsets in the image at which these bytes are, by sectors of 4 KiB.
fn places(host: &Host, bytes: &[u8]) -> Vec<u64> {
    let mut image = vec![0; SIZE];
    File::open(host.path("image")).unwrap().read_exact_at(&mut image, 0).unwrap();
    let sectors = (0_u64..).step_by(4096).zip(image.chunks(4096));
    sectors.filter(|(_, sector)| bytes.chunks(4096).any(|bytes| bytes == *sector)).map(|(at, _)| at).collect()
}

#[test]
fn a_daemon_that_is_killed_right_after_a_failed_sync_has_told_the_next_one() {
    let Some((mut host, _disk)) = host(&[]) else { return };
    host.ok(&["vhd", "create", "v", "--size", "8MiB", "--layout", "isolated", "--disks", "d0"]);
    let data = pattern(1, 2 * MIB);
    let mut client = host.attach("v").unwrap();
    client.write_at(0, &data[..MIB / 2]).unwrap();
    client.flush().unwrap();
    client.write_at(MIB as u64 / 2, &data[MIB / 2..]).unwrap();
    File::create(host.path("lost")).unwrap();
    client.flush().unwrap_err();
    host.kill();
    drop(client);
    std::fs::remove_file(host.path("lost")).unwrap();
    // What the slots hold then is what they held before, for somebody else.
    let lost = places(&host, &data[MIB / 2..]);
    assert_eq!(lost.len() * 4096, data.len() - MIB / 2);
    let image = File::options().write(true).open(host.path("image")).unwrap();
    lost.iter().for_each(|at| image.write_all_at(&[0xee; 4096], *at).unwrap());
    host.serve(&[], &ALL);
    let mut client = host.attach_soon("v");
    assert!(read(&mut client, 0, MIB / 2) == data[..MIB / 2], "what was flushed");
    assert!(read(&mut client, MIB as u64 / 2, 3 * MIB / 2) == vec![0; 3 * MIB / 2], "log:\n{}", host.log());
    drop(client);
    host.ok(&["check"]);
    host.stop();
}

#[test]
fn what_was_in_a_bad_place_is_whole_again_in_another_one() {
    let Some((mut host, _disk)) = host(&[]) else { return };
    host.ok(&["vhd", "create", "v", "--size", "8MiB", "--layout", "spanned", "--disks", "d0,d1", "--replicas", "2"]);
    let mut client = host.attach("v").unwrap();
    let old = pattern(1, 4 * MIB);
    client.write_at(0, &old).unwrap();
    client.flush().unwrap();
    let bad = places(&host, &old[MIB..MIB + 4096])[0];
    std::fs::write(host.path("bad"), (bad + 512).to_string()).unwrap();
    let data = pattern(2, 4 * MIB);
    client.write_at(0, &data).unwrap();
    client.flush().unwrap();
    for _ in 0..600 {
        if places(&host, &data[MIB..2 * MIB]).len() == MIB / 4096 && host.ok(&["job", "list"]).contains("done") {
            break;
        }
        client.write_at(MIB as u64, &data[MIB..MIB + 512]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    let now = places(&host, &data[MIB..MIB + 4096]);
    assert!(now.len() == 1 && now[0] / MIB as u64 != bad / MIB as u64, "{now:?}, not {bad}; log:\n{}", host.log());
    assert!(host.ok(&["events"]).contains("extent 1 of VHD 'v' is to go to another slot"), "{}", host.log());
    drop(client);
    host.ok(&["check"]);
    host.stop();
    // As if there were no other copy.
    host.serve(&[], &["m/disk", "d2.img", "d3.img"]);
    assert!(read(&mut host.attach_soon("v"), 0, data.len()) == data, "log:\n{}", host.log());
    host.ok(&["check"]);
    host.stop();
}

/// What a disk that hangs has still to answer would land under the feet of another daemon.
#[test]
fn nobody_takes_over_while_a_disk_hangs_and_everybody_goes_on() {
    let options = ["--disk-dir", "m", "--hang-timeout", "1"];
    let Some((mut host, disk)) = host(&options[2..]) else { return };
    host.ok(&["vhd", "create", "v", "--size", "8MiB", "--layout", "spanned", "--disks", "d0,d1", "--replicas", "2"]);
    let mut client = host.attach("v").unwrap();
    let data = pattern(1, 8 * MIB);
    client.write_at(0, &data[..2 * MIB]).unwrap();
    client.flush().unwrap();
    disk.signal("-STOP");
    // It waits until the disk has failed.
    client.write_at(0, &data[..4 * MIB]).unwrap();
    assert!(host.ok(&["disk", "show", "d0"]).contains("failed"));
    for round in 4..6 {
        let pid = host.pid();
        let refused = host.refused_takeover(&options, &ALL);
        assert!(refused.contains("disk 'd0' has failed and still has not answered"), "{refused}");
        client.write_at(round * MIB as u64, &data[4 * MIB..5 * MIB]).unwrap();
        assert!(read(&mut client, 0, 4 * MIB) == data[..4 * MIB]);
        assert!(host.runs() && host.pid() == pid);
    }
    disk.signal("-CONT");
    // Once it has answered, it is a disk that has failed like others.
    for _ in 0..600 {
        if host.try_take_over(&options, &ALL) {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(host.log().matches("has taken over").count(), 1, "log:\n{}", host.log());
    assert!(read(&mut client, 0, 4 * MIB) == data[..4 * MIB], "log:\n{}", host.log());
    let healthy = |host: &Host| host.json(&["vhd", "show", "v"])["health"] == "healthy";
    for _ in 0..600 {
        if healthy(&host) {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(healthy(&host), "log:\n{}", host.log());
    assert!(read(&mut client, 0, 4 * MIB) == data[..4 * MIB]);
    host.ok(&["check"]);
    host.stop();
}
