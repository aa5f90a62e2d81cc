//! Guest memory that its frontend may take away under us.
//!
//! A frontend can truncate the file behind a region at any time. The kernel's accesses then fail with EFAULT; ours raise
//! SIGBUS, which would end the process and with it every other guest. The handler here puts zeros in the place of what is
//! gone, so that whoever touched it goes on, and marks the region: rings look at the mark and break.
//!
//! Unsafe: the signal handler, which uses atomics and one system call and nothing else.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::base::limits::{GUEST_MEMORY_TOTAL_MAX, WATCHED_REGIONS_MAX};

/// A watched region. Free while `start` is 0.
struct Slot {
    start: AtomicUsize,
    len: AtomicUsize,
    page: AtomicUsize,
    lost: AtomicBool,
}

impl Slot {
    const fn new() -> Slot {
        Slot {
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
        }
    }

    /// What is gone if touching `address` failed: from its page to the end of the region, since a file is cut at its end.
    fn gone_from(&self, address: usize) -> Option<(usize, usize)> {
        let start = self.start.load(Ordering::Acquire);
        let (len, page) = (self.len.load(Ordering::Relaxed), self.page.load(Ordering::Relaxed));
        // The second look is for a slot that was given to another region between the first and the length.
        let ours = start != 0 && address >= start && address - start < len;
        let same = self.start.load(Ordering::Acquire) == start;
        (ours && same).then(|| {
            let from = address & !(page - 1);
            (from, (start + len).next_multiple_of(page) - from)
        })
    }
}

/// All of them, where a signal handler can find them: it may neither lock nor allocate.
static SLOTS: [Slot; WATCHED_REGIONS_MAX] = [const { Slot::new() }; WATCHED_REGIONS_MAX];

/// Slots that have ever been used; the others need not be looked at.
static USED: AtomicUsize = AtomicUsize::new(0);

/// What is taken. Locked when memory is mapped and unmapped only.
static TAKEN: Mutex<Taken> = Mutex::new(Taken { free: Vec::new(), bytes: 0 });

struct Taken {
    /// Slots below [`USED`] that are free.
    free: Vec<usize>,
    /// Bytes of all regions.
    bytes: usize,
}

/// How often something was lost.
static LOSSES: AtomicU64 = AtomicU64::new(0);

/// What handled SIGBUS before us.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Why a region cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// No slot.
    #[error("more than {WATCHED_REGIONS_MAX} regions of all guests together")]
    TooMany,
    /// No room.
    #[error("more than {GUEST_MEMORY_TOTAL_MAX} bytes of all guests together")]
    TooMuch,
    /// No handler.
    #[error("SIGBUS cannot be handled: {0}")]
    Handler(#[source] io::Error),
}

/// A region of mapped guest memory that may go away. Drop it before the region is unmapped.
#[derive(Debug)]
pub struct Watch(usize);

impl Watch {
    /// Watches `len` bytes from `start`, mapped in pages of `page` bytes.
    ///
    /// # Errors
    /// Too many regions, or the system refuses the signal handler.
    pub fn new(start: *const u8, len: usize, page: usize) -> Result<Watch, WatchError> {
        assert!(!start.is_null() && page.is_power_of_two() && start.addr().is_multiple_of(page));
        install().map_err(WatchError::Handler)?;
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = taken.bytes.checked_add(len).filter(|bytes| *bytes <= GUEST_MEMORY_TOTAL_MAX);
        let bytes = bytes.ok_or(WatchError::TooMuch)?;
        let index = taken.free.pop().unwrap_or_else(|| USED.load(Ordering::Relaxed));
        let slot = SLOTS.get(index).ok_or(WatchError::TooMany)?;
        taken.bytes = bytes;
        slot.len.store(len, Ordering::Relaxed);
        slot.page.store(page, Ordering::Relaxed);
        slot.lost.store(false, Ordering::Relaxed);
        slot.start.store(start.addr(), Ordering::Release);
        USED.fetch_max(index + 1, Ordering::Release);
        Ok(Watch(index))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &SLOTS[self.0];
        slot.start.store(0, Ordering::Release);
        taken.bytes -= slot.len.load(Ordering::Relaxed);
        taken.free.push(self.0);
    }
}

/// How often guest memory was lost. As long as it stays the same, nothing was lost.
#[must_use]
pub fn losses() -> u64 {
    LOSSES.load(Ordering::Acquire)
}

/// Whether something is lost of a region that is `ours`, which is told its first address.
pub fn is_lost(ours: impl Fn(usize) -> bool) -> bool {
    let used = &SLOTS[..USED.load(Ordering::Acquire)];
    used.iter().any(|slot| slot.lost.load(Ordering::Acquire) && ours(slot.start.load(Ordering::Acquire)))
}

/// Marks regions that are `ours`, as a signal would: the kernel, which reads and writes guest memory for disks, has found something missing
/// and does not say where. Who calls this has them mapped.
pub fn mark_lost(ours: impl Fn(usize) -> bool) {
    // So that no slot is given to another region between the look and the mark.
    let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let used = &SLOTS[..USED.load(Ordering::Acquire)];
    let is_ours = |slot: &&Slot| ours(slot.start.load(Ordering::Acquire));
    used.iter().filter(is_ours).for_each(|slot| slot.lost.store(true, Ordering::Release));
    LOSSES.fetch_add(1, Ordering::AcqRel);
    drop(taken);
}

/// Handles SIGBUS from now on.
fn install() -> io::Result<()> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _alone = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if PREVIOUS.get().is_some() {
        return Ok(());
    }
    // SAFETY: all-zero is a value of this struct of integers.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only asks, and writes one struct.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut ours = previous;
    ours.sa_sigaction = on_sigbus as extern "C" fn(_, _, _) as usize;
    // On the alternate stack, which a handler for stack overflows needs, too.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // Known before the handler can run.
    let _ = PREVIOUS.set(previous);
    // SAFETY: the handler is for this signal and takes three arguments, as its flags say.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives the handler a valid `siginfo_t`.
    let info_ref = unsafe { &*info };
    if matches!(info_ref.si_code, libc::BUS_ADRERR | libc::BUS_OBJERR | libc::BUS_MCEERR_AR) {
        // SAFETY: with these codes, the address is there.
        let address = unsafe { info_ref.si_addr() }.addr();
        if replace(address) {
            return;
        }
    }
    pass_on(signal, info, context);
}

/// Puts zeros where guest memory is gone. False if `address` is not in guest memory.
fn replace(address: usize) -> bool {
    let used = &SLOTS[..USED.load(Ordering::Acquire)];
    let Some((slot, (from, len))) = used.iter().find_map(|slot| Some((slot, slot.gone_from(address)?))) else {
        return false;
    };
    // Marked first: nobody is to take the zeros for the guest's.
    slot.lost.store(true, Ordering::Release);
    LOSSES.fetch_add(1, Ordering::AcqRel);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: the address of this thread's `errno`, which the interrupted code may be about to read.
    let errno = unsafe { *libc::__errno_location() };
    let at = std::ptr::without_provenance_mut(from);
    // SAFETY: replaces pages of one region of guest memory, which stays mapped while it is watched; their content is
    // accessed through raw pointers only, and is gone.
    let mapped = unsafe { libc::mmap(at, len, protection, flags, -1, 0) };
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    mapped != libc::MAP_FAILED
}

/// Leaves the signal to who handled it before: it is not about guest memory.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = PREVIOUS.get().filter(|previous| previous.sa_flags & libc::SA_SIGINFO != 0);
    let Some(handler) = previous.map(|previous| previous.sa_sigaction).filter(|&handler| handler > libc::SIG_IGN)
    else {
        // SAFETY: takes no pointer; what raised the signal is done again, and ends the process as it would have before.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        return;
    };
    // SAFETY: with SA_SIGINFO, the handler is a function of these three arguments.
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
        unsafe { std::mem::transmute(handler) };
    handler(signal, info, context);
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

    use super::*;

    const PAGE: usize = 4096;

    fn map(file: &File, len: usize) -> (GuestMemoryMmap, Watch) {
        let file = FileOffset::new(file.try_clone().unwrap(), 0);
        let memory = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), len, Some(file))]).unwrap();
        let watch = Watch::new(start(&memory), len, PAGE).unwrap();
        (memory, watch)
    }

    fn start(memory: &GuestMemoryMmap) -> *const u8 {
        let region = memory.iter().next().unwrap();
        region.get_host_address(vm_memory::MemoryRegionAddress(0)).unwrap()
    }

    fn lost(memory: &GuestMemoryMmap) -> bool {
        is_lost(|address| address == start(memory).addr())
    }

    #[test]
    fn what_is_truncated_reads_as_zeros_and_is_marked() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 * PAGE as u64).unwrap();
        let (memory, _watch) = map(&file, 16 * PAGE);
        let (other, _other_watch) = map(&tempfile_of(PAGE), PAGE);
        memory.write_slice(&[7; 16 * PAGE], GuestAddress(0)).unwrap();
        file.set_len(4 * PAGE as u64).unwrap();
        let before = losses();
        let mut bytes = [1; 16 * PAGE];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        assert!(bytes[..4 * PAGE].iter().all(|byte| *byte == 7), "what is left is the guest's");
        assert!(bytes[4 * PAGE..].iter().all(|byte| *byte == 0));
        assert!(losses() > before);
        assert!(lost(&memory) && !lost(&other));
        // Everything behind the first byte that was missed is there again: one loss, however much is touched.
        let after = losses();
        memory.write_slice(&[9; 12 * PAGE], GuestAddress(4 * PAGE as u64)).unwrap();
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        assert!(bytes[4 * PAGE..].iter().all(|byte| *byte == 9));
        assert!(losses() - after < 2, "others may lose something meanwhile, but not that often");
    }

    fn tempfile_of(len: usize) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len as u64).unwrap();
        file
    }

    #[test]
    fn what_the_kernel_has_found_missing_is_marked_and_nothing_else() {
        let (memory, _watch) = map(&tempfile_of(PAGE), PAGE);
        let (other, _other_watch) = map(&tempfile_of(PAGE), PAGE);
        let before = losses();
        mark_lost(|address| address == start(&memory).addr());
        assert!(losses() > before && lost(&memory) && !lost(&other));
    }

    #[test]
    fn slots_are_used_again_and_forget() {
        let file = tempfile_of(PAGE);
        let (memory, watch) = map(&file, PAGE);
        file.set_len(0).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(8)).unwrap(), 0);
        assert!(lost(&memory));
        drop(watch);
        assert!(!lost(&memory));
        let watch = Watch::new(start(&memory), PAGE, PAGE).unwrap();
        assert!(!lost(&memory));
        drop(watch);
    }
}
