//! In steady state the I/O path allocates nothing: counted on the reactors' threads, under reads, writes, flushes and
//! misaligned requests of VHDs of every layout, whose blocks are all present. And without requests, a reactor sleeps.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "common/guest.rs"]
mod guest;
#[path = "common/host.rs"]
mod host;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use guest::{FLUSH, GET_ID, Guest, READ, WRITE};
use host::{Connection, EXTENT, Host, poll};
use spanblk::base::ids::DiskId;
use spanblk::base::rng::Rng;
use spanblk::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
use spanblk::placement::{Replica, ReplicaSet, ReplicaState};
use spanblk::qos::shares::Work;
use spanblk::reactor::messages::RingConfig;

/// Reactors of a host.
const REACTORS: u16 = 2;

/// The threads whose allocations are counted.
static WATCHED: [AtomicI64; REACTORS as usize] = [const { AtomicI64::new(0) }; REACTORS as usize];
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

fn count() {
    if WATCHED[0].load(Ordering::Relaxed) == 0 {
        return;
    }
    // SAFETY: takes no arguments.
    let thread = unsafe { libc::syscall(libc::SYS_gettid) };
    if WATCHED.iter().any(|watched| watched.load(Ordering::Relaxed) == thread) {
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

fn reactor_thread(number: u16) -> i64 {
    let name = format!("spanblk-r{number}");
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let is_reactor = |path: &std::path::Path| std::fs::read_to_string(path.join("comm")).unwrap().trim() == name;
    let reactor = tasks.map(|task| task.path()).find(|path| is_reactor(path)).unwrap();
    reactor.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// Extents of a VHD that are placed and present; behind them is one that is absent.
const PLACED: u32 = 8;
/// Requests at a time.
const SLOTS: u16 = 16;

/// What requests are like, in percent.
#[derive(Clone, Copy)]
struct Mix {
    flushes: u64,
    /// Data in pieces that direct I/O does not take.
    odd: u64,
    /// Reads and writes of the first blocks, where they overlap.
    crowded: u64,
}

/// What a guest does on an ordinary day.
const USUAL: Mix = Mix { flushes: 5, odd: 20, crowded: 20 };

fn submit(guest: &mut Guest, slot: u16, rng: &mut Rng, mix: Mix) {
    if rng.below(100) < mix.flushes {
        return guest.submit(slot, FLUSH, 0, 0, 0);
    }
    if rng.below(50) == 0 {
        return guest.submit(slot, GET_ID, 0, 20, 0);
    }
    let len = (rng.index(128) + 1) * 512;
    let (kind, extents) = if rng.chance(1, 2) { (READ, PLACED + 1) } else { (WRITE, PLACED) };
    let sectors = u64::from(extents) * EXTENT / 512 - 128;
    let within = if rng.below(100) < mix.crowded { 128 } else { sectors };
    let sector = rng.below(within);
    let cut = if rng.below(100) < mix.odd { rng.index(len) } else { rng.index(len / 512) * 512 };
    guest.submit(slot, kind, sector, len, cut);
}

fn load_with(connections: &mut [Connection], rng: &mut Rng, mix: Mix, requests: u32) {
    for _ in 0..requests / u32::from(SLOTS) {
        for connection in &mut *connections {
            if poll(&connection.call, Duration::ZERO) {
                let _ = connection.call.read(&mut [0; 8]);
            }
            connection.guest.arm_interrupt();
            (0..SLOTS).for_each(|slot| submit(&mut connection.guest, slot, rng, mix));
            connection.kick();
        }
        for connection in &mut *connections {
            assert!(poll(&connection.call, Duration::from_secs(10)), "no interrupt in ten seconds");
            for _ in 0..SLOTS {
                assert_eq!(connection.take().1, 0);
            }
        }
    }
}

fn load(connection: &mut Connection, rng: &mut Rng, requests: u32) {
    load_with(std::slice::from_mut(connection), rng, USUAL, requests);
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
    let vhd = host.prefilled_vhd(1, PLACED + 1, 0);
    let mut connection = host.connect(Guest::new(SLOTS, 64 << 10, true), &vhd, 0);
    load(&mut connection, &mut Rng::new(2), 500);
    // A ring that was polled, and is broken: nobody looks at it any more.
    let mut polled = host.connect_with(Guest::new(16, 4096, false), &vhd, 0, |config| config.kick = None);
    polled.guest.set_available_index(1000);
    assert!(poll(&polled.error, Duration::from_secs(10)));
    load(&mut connection, &mut Rng::new(3), 16);
    std::thread::sleep(Duration::from_millis(200));
    let before = naps(reactor_thread(0));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(naps(reactor_thread(0)) - before, 0, "it has been awake");
    polled.stop();
    connection.stop();
    host.shut_down();
}

/// Disks of a host.
const DISKS: u8 = 4;

/// A VHD, and how its guest uses it.
struct Case {
    name: &'static str,
    copies: fn(extent: u32) -> ReplicaSet,
    /// Reactors that serve a queue of it each.
    reactors: u16,
    event_idx: bool,
    writeback: bool,
    /// The guest's VMM made its call descriptor one that can make us wait.
    blocking_call: bool,
    /// Reactors wait for each other's claims, and are told of their release: by messages, for which there is room in lots.
    messages: bool,
    /// Disks are shared out, so that requests wait for their turn.
    shared: bool,
}

/// Messages that a queue between reactors has room for after one allocation (`crossbeam_channel`, unbounded).
const MESSAGES_PER_ALLOCATION: u64 = 31;

const CASES: &[Case] = &[
    Case {
        name: "isolated",
        copies: |extent| copies(0, extent, &[ReplicaState::InSync]),
        reactors: 2,
        event_idx: true,
        writeback: true,
        blocking_call: false,
        messages: false,
        shared: false,
    },
    Case {
        name: "isolated, writethrough, with a call descriptor that can make us wait",
        copies: |extent| copies(1, extent, &[ReplicaState::InSync]),
        reactors: 1,
        event_idx: true,
        writeback: false,
        blocking_call: true,
        messages: false,
        shared: false,
    },
    Case {
        name: "spanned",
        copies: |extent| copies(extent, extent, &[ReplicaState::InSync]),
        reactors: 2,
        event_idx: false,
        writeback: true,
        blocking_call: false,
        messages: false,
        shared: false,
    },
    Case {
        name: "spanned, two copies",
        copies: |extent| copies(extent, extent, &[ReplicaState::InSync; 2]),
        reactors: 1,
        event_idx: true,
        writeback: true,
        blocking_call: false,
        messages: false,
        shared: false,
    },
    Case {
        name: "spanned, two copies, on two reactors that write to the same blocks",
        copies: |extent| copies(extent, extent, &[ReplicaState::InSync; 2]),
        reactors: 2,
        event_idx: true,
        writeback: true,
        blocking_call: false,
        messages: true,
        shared: false,
    },
    Case {
        name: "three copies, writethrough",
        copies: |extent| copies(0, extent, &[ReplicaState::InSync; 3]),
        reactors: 1,
        event_idx: true,
        writeback: false,
        blocking_call: false,
        messages: false,
        shared: false,
    },
    Case {
        name: "spanned, while every extent is being moved",
        copies: |extent| {
            let states = [ReplicaState::Syncing, ReplicaState::Sealing];
            copies(extent, extent, &[ReplicaState::InSync, states[extent as usize % 2]])
        },
        reactors: 1,
        event_idx: true,
        writeback: true,
        blocking_call: false,
        messages: false,
        shared: false,
    },
    Case {
        name: "isolated, on a disk that is shared out",
        copies: |extent| copies(0, extent, &[ReplicaState::InSync]),
        reactors: 1,
        event_idx: true,
        writeback: true,
        blocking_call: false,
        messages: false,
        shared: true,
    },
    Case {
        name: "spanned, two copies, on disks that are shared out",
        copies: |extent| copies(extent, extent, &[ReplicaState::InSync; 2]),
        reactors: 1,
        event_idx: true,
        writeback: true,
        blocking_call: false,
        messages: false,
        shared: true,
    },
    Case {
        name: "isolated, on a disk that two reactors share",
        copies: |extent| copies(0, extent, &[ReplicaState::InSync]),
        reactors: 2,
        event_idx: true,
        writeback: true,
        blocking_call: false,
        messages: true,
        shared: true,
    },
];

/// Copies in slot `slot` of consecutive disks.
fn copies(disk: u32, slot: u32, states: &[ReplicaState]) -> ReplicaSet {
    let mut set = ReplicaSet::ABSENT;
    for (disk, &state) in (disk..).zip(states) {
        let disk = DiskId(u8::try_from(disk % u32::from(DISKS)).unwrap());
        set.push(Replica { disk, slot: SlotIndex(slot), state });
    }
    set
}

fn connect(host: &mut Host, case: &Case) -> Vec<Connection> {
    if case.shared {
        for disk in &host.states {
            disk.shares.switch(true);
            disk.shares.set_window(Work::of_all(2, 8192));
        }
    }
    let vhd = host.vhd(1, PLACED + 1, &[0]);
    for extent in 0..PLACED {
        vhd.map.restore(ExtentIndex(extent), (case.copies)(extent), BlockMask::ALL, Generation(0));
    }
    // As after the first write to several replicas: all extents are of one page.
    vhd.map.set_intent(0);
    let change = |config: &mut RingConfig| {
        config.writeback = Arc::new(AtomicBool::new(case.writeback));
        config.inflight = Some(host::inflight(config.size));
        // Some are about to be migrated.
        config.log = (!case.writeback).then(|| host::dirty_log(config.addresses.used));
        if let (true, Some(call)) = (case.blocking_call, &config.call) {
            // SAFETY: takes no pointer.
            assert_eq!(unsafe { libc::fcntl(call.as_raw_fd(), libc::F_SETFL, 0) }, 0);
        }
    };
    let guest = || Guest::new(SLOTS, 64 << 10, case.event_idx);
    (0..case.reactors).map(|reactor| host.connect_with(guest(), &vhd, reactor, change)).collect()
}

fn watch(threads: [i64; REACTORS as usize]) {
    for (watched, thread) in WATCHED.iter().zip(threads) {
        watched.store(thread, Ordering::SeqCst);
    }
}

#[test]
fn the_io_path_allocates_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for case in CASES {
        let directory = tempfile::tempdir().unwrap();
        let mut host = Host::new(directory.path(), DISKS, PLACED + 1, REACTORS);
        let mut connections = connect(&mut host, case);
        let mut rng = Rng::new(1);
        // The rings have started.
        load_with(&mut connections, &mut rng, USUAL, 160);
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        watch([reactor_thread(0), reactor_thread(1)]);
        // Many wait: for syncs, for bounce buffers, for the claims of others, for all of them.
        let mut requests = 0;
        for (flushes, odd, crowded) in [(50, 0, 0), (100, 0, 0), (0, 100, 0), (0, 0, 100), (20, 50, 50), (5, 20, 20)] {
            load_with(&mut connections, &mut rng, Mix { flushes, odd, crowded }, 800);
            requests += 800 * u64::from(case.reactors);
        }
        let count = ALLOCATIONS.load(Ordering::SeqCst) - before;
        // One message a request at most: the release of what it had claimed, or that it is the turn of another one.
        let allowed = if case.messages { requests / MESSAGES_PER_ALLOCATION } else { 0 };
        assert!(count <= allowed, "{count} allocations for {requests} requests ({})", case.name);
        // The counter counts: starting a ring does allocate.
        for reactor in 0..REACTORS {
            let before = ALLOCATIONS.load(Ordering::SeqCst);
            let vhd = host.prefilled_vhd(2, PLACED + 1, 0);
            let mut second = host.connect(Guest::new(SLOTS, 64 << 10, true), &vhd, reactor);
            load(&mut second, &mut rng, 16);
            assert!(ALLOCATIONS.load(Ordering::SeqCst) > before);
            second.stop();
        }
        watch([0; REACTORS as usize]);
        for connection in &connections {
            connection.stop();
        }
        host.shut_down();
    }
}
