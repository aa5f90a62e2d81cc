//! In steady state the I/O path allocates nothing: counted on the reactor's thread, under reads, writes, flushes and
//! misaligned requests of a VHD whose blocks are all present. And without requests, the thread sleeps.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "common/guest.rs"]
mod guest;
#[path = "common/host.rs"]
mod host;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use guest::{FLUSH, Guest, READ, WRITE};
use host::{Connection, EXTENT, Host, poll};
use spanblk::base::rng::Rng;

/// The thread whose allocations are counted.
static WATCHED: AtomicI64 = AtomicI64::new(0);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

fn count() {
    let watched = WATCHED.load(Ordering::Relaxed);
    // SAFETY: takes no arguments.
    if watched != 0 && unsafe { libc::syscall(libc::SYS_gettid) } == watched {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: hands everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(ptr, layout) };
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promised.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn reactor_thread() -> i64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let is_reactor =
        |path: &std::path::Path| std::fs::read_to_string(path.join("comm")).unwrap().trim() == "spanblk-r0";
    let reactor = tasks.map(|task| task.path()).find(|path| is_reactor(path)).unwrap();
    reactor.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

fn load(connection: &mut Connection, rng: &mut Rng, requests: u32) {
    const SLOTS: u16 = 16;
    let sectors = 8 * EXTENT / 512 - 256;
    for _ in 0..requests / u32::from(SLOTS) {
        for slot in 0..SLOTS {
            let len = (rng.index(128) + 1) * 512;
            match rng.below(20) {
                0 => connection.guest.submit(slot, FLUSH, 0, 0, 0),
                n => {
                    let kind = if n % 2 == 0 { READ } else { WRITE };
                    connection.guest.submit(slot, kind, rng.below(sectors), len, rng.index(len / 512) * 512);
                }
            }
        }
        connection.kick();
        for _ in 0..SLOTS {
            assert_eq!(connection.take().1, 0);
        }
    }
}

/// One host at a time: the reactor is found by its name.
static ALONE: Mutex<()> = Mutex::new(());

/// How often a thread has gone to sleep, and been made to.
fn naps(thread: i64) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
    let counts = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
    counts.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum()
}

#[test]
fn an_idle_reactor_sleeps() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::new(directory.path(), 1, 16, 1);
    let vhd = host.prefilled_vhd(1, 8, 0);
    let mut connection = host.connect(Guest::new(16, 64 << 10, true), &vhd, 0);
    load(&mut connection, &mut Rng::new(2), 500);
    // A ring that was polled, and is broken: nobody looks at it any more.
    let mut polled = host.connect_with(Guest::new(16, 4096, false), &vhd, 0, |config| config.kick = None);
    polled.guest.set_available_index(1000);
    assert!(poll(&polled.error, Duration::from_secs(10)));
    load(&mut connection, &mut Rng::new(3), 16);
    std::thread::sleep(Duration::from_millis(200));
    let before = naps(reactor_thread());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(naps(reactor_thread()) - before, 0, "it has been awake");
    polled.stop();
    connection.stop();
    host.shut_down();
}

#[test]
fn the_io_path_allocates_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::new(directory.path(), 1, 16, 1);
    let vhd = host.prefilled_vhd(1, 8, 0);
    let mut connection = host.connect(Guest::new(16, 64 << 10, true), &vhd, 0);
    let mut rng = Rng::new(1);
    // Queues and tables reach their size.
    load(&mut connection, &mut rng, 2000);
    WATCHED.store(reactor_thread(), Ordering::SeqCst);
    load(&mut connection, &mut rng, 5000);
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst), 0);
    // The counter counts: starting a ring does allocate.
    let mut second = host.connect(Guest::new(16, 64 << 10, true), &vhd, 0);
    load(&mut second, &mut rng, 16);
    WATCHED.store(0, Ordering::SeqCst);
    assert!(ALLOCATIONS.load(Ordering::SeqCst) > 0);
    connection.stop();
    host.shut_down();
}
