//! A daemon that is killed while a disk is away, and one whose disks are not those, or not as old, as they were: what was kept of its
//! views is used as far as it is true.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "common/daemon_host.rs"]
mod daemon_host;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use daemon_host::{Host, pattern, read};
use spanblk::base::ids::DiskId;
use spanblk::control::serve::serving::ServingMark;
use spanblk::shared::failure::FAILED;

const MIB: usize = 1 << 20;
const DISKS: [&str; 3] = ["d0.img", "d1.img", "d2.img"];
/// Moments at which an opening is killed.
const KILLED_OPENINGS: u32 = 64;
const WITHOUT_D0: [&str; 2] = ["d1.img", "d2.img"];

/// Directories in shared memory that belong to the pool.
fn kept(host: &Host) -> Vec<PathBuf> {
    let pool = host.json(&["pool", "show"])["uuid"].as_str().unwrap().to_owned();
    let of_pool = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(&format!("spanblk-{pool}-"));
    std::fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().path()).filter(of_pool).collect()
}

/// As after a power cut: without what was kept.
fn kill_and_forget(host: &mut Host) {
    let kept = kept(host);
    host.kill();
    kept.iter().for_each(|path| std::fs::remove_dir_all(path).unwrap());
}

/// A host with a VHD that has a first part flushed.
fn host_with(vhd: &[&str]) -> (Host, Vec<u8>) {
    let mut host = Host::with_pool(3);
    host.serve(&[], &DISKS);
    for disk in ["d0", "d1", "d2"] {
        host.ok(&["disk", "set", disk, "--failure-domain", disk]);
    }
    host.ok(&[&["vhd", "create", "v", "--size", "8MiB"], vhd].concat());
    let data = pattern(1, 2 * MIB);
    let mut client = host.attach("v").unwrap();
    client.write_at(0, &data[..MIB / 2]).unwrap();
    client.flush().unwrap();
    (host, data)
}

/// A replica is stale, or was there when the daemon was killed and is not any more; then what was written first and flushed after that
/// outlives the view, whether the daemon is killed then or stopped.
fn with_two_replicas(stale: bool, stopped: bool) {
    let (mut host, data) = host_with(&["--layout", "spanned", "--disks", "d0,d1", "--replicas", "2"]);
    if stale {
        host.ok(&["disk", "fail", "d0", "--yes"]);
        let mut client = host.attach_soon("v");
        client.write_at(0, &data[..4096]).unwrap();
        client.flush().unwrap();
    }
    // First writes, to an extent that is there and to one that is not.
    let mut client = host.attach_soon("v");
    client.write_at(MIB as u64 / 2, &data[MIB / 2..]).unwrap();
    host.kill();
    host.serve(&[], &WITHOUT_D0);
    let mut client = host.attach_soon("v");
    assert!(read(&mut client, 0, data.len()) == data, "what was seen before");
    client.flush().unwrap();
    drop(client);
    if stopped {
        let kept = kept(&host);
        host.stop();
        assert!(!kept[0].exists(), "nothing is pending; log:\n{}", host.log());
    } else {
        kill_and_forget(&mut host);
    }
    host.serve(&[], &WITHOUT_D0);
    assert!(read(&mut host.attach_soon("v"), 0, data.len()) == data, "what was flushed; log:\n{}", host.log());
    host.ok(&["check"]);
    host.stop();
}

#[test]
fn a_flush_without_a_stale_replica_is_durable_after_a_sigkill() {
    with_two_replicas(true, false);
}

#[test]
fn a_flush_without_a_stale_replica_is_durable_after_a_stop() {
    with_two_replicas(true, true);
}

#[test]
fn a_flush_without_a_missing_replica_is_durable_after_a_sigkill() {
    with_two_replicas(false, false);
}

#[test]
fn a_flush_without_a_missing_replica_is_durable_after_a_stop() {
    with_two_replicas(false, true);
}

#[test]
fn what_only_a_missing_disk_has_fails_a_flush_and_is_kept_until_it_is_back() {
    let (mut host, data) = host_with(&["--layout", "isolated", "--disks", "d0"]);
    host.attach_soon("v").write_at(MIB as u64 / 2, &data[MIB / 2..]).unwrap();
    host.kill();
    host.serve(&[], &WITHOUT_D0);
    let mut client = host.attach_soon("v");
    assert!(client.flush().is_err(), "what was written is on a disk that is not there");
    drop(client);
    let of_this_life = kept(&host);
    host.stop();
    assert!(of_this_life[0].exists() && host.log().contains("is not durable"), "{}", host.log());
    host.serve(&[], &DISKS);
    let mut client = host.attach_soon("v");
    assert!(read(&mut client, 0, data.len()) == data, "log:\n{}", host.log());
    client.flush().unwrap();
    drop(client);
    kill_and_forget(&mut host);
    host.serve(&[], &DISKS);
    assert!(read(&mut host.attach_soon("v"), 0, data.len()) == data);
    host.ok(&["check"]);
    host.stop();
}

fn copy(host: &Host, from: &str, to: &str) {
    for disk in 0..3 {
        let [from, to] = [from, to].map(|name| host.path(&format!("{name}{disk}.img")));
        assert!(Command::new("cp").arg("--sparse=always").args([from, to]).status().unwrap().success());
    }
}

/// Serves disks whose daemon was killed, and for which what was kept must not be used.
fn serve_by_table_alone(host: &mut Host, options: &[&str], disks: &[&str], data: &[u8], why: &str) {
    host.serve(options, disks);
    let mut client = host.attach_soon("v");
    assert!(read(&mut client, 0, MIB / 2) == data[..MIB / 2], "what was flushed");
    assert!(read(&mut client, MIB as u64 / 2, MIB) == vec![0; MIB], "of other disks, or another time");
    drop(client);
    host.ok(&["check"]);
    assert_eq!(kept(host).len(), 1, "that of this serving");
    assert!(host.log().contains(why), "{}", host.log());
}

#[test]
fn what_was_kept_is_not_used_for_a_copy_of_the_disks() {
    let (mut host, data) = host_with(&["--layout", "spanned"]);
    host.attach_soon("v").write_at(MIB as u64 / 2, &data[MIB / 2..]).unwrap();
    host.kill();
    copy(&host, "d", "c");
    serve_by_table_alone(&mut host, &[], &["c0.img", "c1.img", "c2.img"], &data, "is another device or file");
    host.stop();
}

#[test]
fn what_was_kept_is_not_used_for_an_older_state_of_the_disks() {
    let (mut host, data) = host_with(&["--layout", "spanned"]);
    copy(&host, "d", "c");
    let mut client = host.attach_soon("v");
    client.write_at(MIB as u64 / 2, &data[MIB / 2..MIB]).unwrap();
    client.flush().unwrap();
    client.write_at(MIB as u64, &data[MIB..]).unwrap();
    host.kill();
    // The same files, with what they had before.
    copy(&host, "c", "d");
    serve_by_table_alone(&mut host, &[], &DISKS, &data, "put back to an older state");
    host.stop();
}

#[test]
fn what_was_kept_is_not_used_with_a_table_that_was_accepted_as_stale() {
    let (mut host, data) = host_with(&["--layout", "spanned"]);
    host.attach_soon("v").write_at(MIB as u64 / 2, &data[MIB / 2..]).unwrap();
    host.kill();
    serve_by_table_alone(&mut host, &["--accept-stale"], &DISKS, &data, "with --accept-stale");
    host.stop();
}

/// Puts other bytes in the place of `lost` on a disk: what a failed sync takes back may leave what the slots held for somebody else.
fn take_back(host: &Host, disk: &str, lost: &[u8]) {
    let image = File::options().read(true).write(true).open(host.path(disk)).unwrap();
    let mut bytes = vec![0; usize::try_from(image.metadata().unwrap().len()).unwrap()];
    image.read_exact_at(&mut bytes, 0).unwrap();
    let mut taken = 0;
    for (at, sector) in bytes.chunks(4096).enumerate() {
        if lost.chunks(4096).any(|lost| lost == sector) {
            image.write_all_at(&[0xee; 4096], at as u64 * 4096).unwrap();
            taken += 1;
        }
    }
    assert_eq!(taken * 4096, lost.len(), "it was on {disk}");
}

/// As if a daemon that was killed had got as far as to note this of disk d0.
fn note(kept: &[PathBuf], what: u64) {
    let mark = format!("{}.0.1", uuid::Uuid::nil());
    let file = File::options().read(true).write(true).open(kept[0].join(mark)).unwrap();
    ServingMark::open(file).unwrap().notes_of(DiskId(0))[0].store(what, Ordering::SeqCst);
}

#[test]
fn what_only_a_failed_disk_had_is_not_shown_if_it_was_not_flushed() {
    let (mut host, data) = host_with(&["--layout", "isolated", "--disks", "d0"]);
    host.ok(&["vhd", "create", "w", "--size", "8MiB", "--layout", "isolated", "--disks", "d1"]);
    for vhd in ["v", "w"] {
        host.attach_soon(vhd).write_at(MIB as u64 / 2, &data[MIB / 2..]).unwrap();
    }
    host.ok(&["disk", "fail", "d0", "--yes"]);
    host.kill();
    take_back(&host, "d0.img", &data[MIB / 2..]);
    host.serve(&[], &DISKS);
    let mut client = host.attach_soon("v");
    assert!(read(&mut client, 0, MIB / 2) == data[..MIB / 2], "what was flushed");
    assert!(read(&mut client, MIB as u64 / 2, 3 * MIB / 2) == vec![0; 3 * MIB / 2], "nobody's bytes");
    assert!(read(&mut host.attach_soon("w"), MIB as u64 / 2, 3 * MIB / 2) == data[MIB / 2..], "the other disk is well");
    let lost = "VHD 'v': 48 blocks (1536 KiB) that its guest wrote for the first time and did not flush";
    assert!(host.ok(&["events"]).contains(lost) && host.log().contains("disk 'd0' has failed"), "{}", host.log());
    host.ok(&["check"]);
    // It is as good as any other from here on.
    client.write_at(MIB as u64 / 2, &data[MIB / 2..]).unwrap();
    drop(client);
    host.kill();
    host.serve(&[], &DISKS);
    assert!(read(&mut host.attach_soon("v"), 0, data.len()) == data, "log:\n{}", host.log());
    host.ok(&["check"]);
    host.stop();
}

#[test]
fn what_a_failed_disk_had_is_not_shown_when_it_is_back_after_it_was_missing() {
    let (mut host, data) = host_with(&["--layout", "isolated", "--disks", "d0"]);
    host.attach_soon("v").write_at(MIB as u64 / 2, &data[MIB / 2..]).unwrap();
    host.ok(&["disk", "fail", "d0", "--yes"]);
    host.kill();
    take_back(&host, "d0.img", &data[MIB / 2..]);
    for disks in [&WITHOUT_D0[..], &DISKS] {
        host.serve(&[], disks);
        host.kill();
    }
    host.serve(&[], &DISKS);
    let mut client = host.attach_soon("v");
    assert!(read(&mut client, 0, MIB / 2) == data[..MIB / 2], "what was flushed");
    assert!(read(&mut client, MIB as u64 / 2, 3 * MIB / 2) == vec![0; 3 * MIB / 2], "nobody's bytes");
    drop(client);
    host.ok(&["check"]);
    host.stop();
}

#[test]
fn a_disk_that_was_missing_and_is_another_one_when_it_is_back_has_what_was_flushed() {
    let (mut host, data) = host_with(&["--layout", "isolated", "--disks", "d0"]);
    host.attach_soon("v").write_at(MIB as u64 / 2, &data[MIB / 2..]).unwrap();
    host.kill();
    host.serve(&[], &WITHOUT_D0);
    host.kill();
    copy(&host, "d", "c");
    take_back(&host, "c0.img", &data[MIB / 2..]);
    let why = "disk 'd0' is another device or file";
    serve_by_table_alone(&mut host, &[], &["c0.img", "d1.img", "d2.img"], &data, why);
    host.stop();
}

/// What was written to d0 before the daemon was killed is lost, or may be: it is read from d1, and comes back to d0 unless another job
/// keeps it from that.
fn without_what_d0_had(d0: &str, note_of_d0: Option<u64>, comes_back: bool) {
    let (mut host, old) = host_with(&["--layout", "spanned", "--disks", "d0,d1", "--replicas", "2"]);
    let mut client = host.attach_soon("v");
    client.write_at(MIB as u64 / 2, &old[MIB / 2..]).unwrap();
    client.flush().unwrap();
    if !comes_back {
        host.ok(&["vhd", "span", "v", "--disks", "d0,d1,d2", "--max-rate", "1KiB"]);
        host.ok(&["job", "pause", "1"]);
    }
    // Over what was flushed, and where nothing was.
    let data = pattern(2, 3 * MIB);
    client.write_at(0, &data).unwrap();
    drop(client);
    let kept = kept(&host);
    host.kill();
    if let Some(what) = note_of_d0 {
        note(&kept, what);
    }
    copy(&host, "d", "c");
    take_back(&host, d0, &data);
    host.serve(&[], &[d0, "d1.img", "d2.img"]);
    let mut client = host.attach_soon("v");
    for _ in 0..8 {
        assert!(read(&mut client, 0, data.len()) == data, "the other replica has it; log:\n{}", host.log());
    }
    assert!(host.log().contains("VHD 'v': replicas of "), "{}", host.log());
    client.flush().unwrap();
    drop(client);
    if comes_back {
        resynced(&host);
        kill_and_forget(&mut host);
        host.serve(&[], &[d0, "d2.img"]);
        assert!(read(&mut host.attach_soon("v"), 0, data.len()) == data, "filled again; log:\n{}", host.log());
    } else {
        kill_and_forget(&mut host);
        host.serve(&[], &[d0, "d1.img", "d2.img"]);
        let mut client = host.attach_soon("v");
        for _ in 0..8 {
            assert!(read(&mut client, 0, data.len()) == data, "the table knows; log:\n{}", host.log());
        }
    }
    host.ok(&["check"]);
    host.stop();
}

/// Waits until no replica is stale, and no job is under way that fills one.
fn resynced(host: &Host) {
    for _ in 0..600 {
        let jobs = host.json(&["job", "list"]);
        let done = |job: &serde_json::Value| job["kind"] == "resync" && job["state"] == "done";
        if jobs["jobs"].as_array().unwrap().iter().any(done) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{}\n{}", host.ok(&["job", "list"]), host.log());
}

#[test]
fn replicas_on_a_disk_that_has_failed_are_filled_from_others() {
    without_what_d0_had("d0.img", Some(FAILED), true);
}

#[test]
fn the_table_knows_of_stale_replicas_before_anybody_is_served() {
    without_what_d0_had("d0.img", Some(FAILED), false);
}

#[test]
fn replicas_on_a_disk_of_which_the_table_was_not_told_are_filled_from_others() {
    // Any other note says that an opening was killed before it had told the table.
    without_what_d0_had("d0.img", Some(FAILED << 1), true);
}

#[test]
fn replicas_on_a_disk_that_is_a_copy_are_filled_from_others() {
    without_what_d0_had("c0.img", None, true);
}

/// Whenever an opening is killed, the next one knows of the disk what that one knew, or can read it in the table.
#[test]
fn an_opening_may_be_killed_at_any_moment() {
    let (mut host, _) = host_with(&["--layout", "spanned", "--disks", "d0,d1", "--replicas", "2"]);
    host.attach_soon("v").write_at(0, &pattern(1, 3 * MIB)).unwrap();
    let began = Instant::now();
    host.kill();
    host.serve(&[], &DISKS);
    let opening = began.elapsed();
    // A job that is paused keeps what is stale from being filled again.
    host.ok(&["vhd", "span", "v", "--disks", "d0,d1,d2", "--max-rate", "1KiB"]);
    host.ok(&["job", "pause", "1"]);
    let data = pattern(2, 3 * MIB);
    host.attach_soon("v").write_at(0, &data).unwrap();
    let first = kept(&host);
    host.kill();
    note(&first, FAILED);
    take_back(&host, "d0.img", &data);
    for part in 1..=KILLED_OPENINGS {
        let mut daemon = host.command(&Host::serve_args(&[], &DISKS)).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(opening * part / KILLED_OPENINGS);
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
    host.serve(&[], &DISKS);
    let mut client = host.attach_soon("v");
    for _ in 0..8 {
        assert!(read(&mut client, 0, data.len()) == data, "log:\n{}", host.log());
    }
    drop(client);
    host.ok(&["check"]);
    host.stop();
}
