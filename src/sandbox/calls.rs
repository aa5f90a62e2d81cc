//! The system calls of a daemon that serves: what its threads do, and what they need to start others like them.
//!
//! Not here, on purpose: `execve`, `fork`, `socket`, `bind`, `connect`, opening for writing, changing names, owners and modes of files,
//! memory that is writable and executable, `ptrace`, `io_uring_setup` (the rings that there are allow a few operations only).

use libc::c_long;

/// Condition on one argument, by its low 32 bits.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg {
    /// The argument has this value.
    Is(u8, u32),
    /// The argument has this value under the mask.
    Masked(u8, u32, u32),
}

/// A system call and when it is allowed: if one of the conditions holds, or always if there is none.
pub(super) type Call = (c_long, &'static [Arg]);

/// Threads, signals, time and memory.
const PROCESS: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// Open descriptors: disks, sockets, eventfds, memory of guests. A call that takes a path is here if it only looks.
const DESCRIPTORS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_io_uring_enter,
    libc::SYS_listen,
    libc::SYS_lseek,
    libc::SYS_memfd_create,
    libc::SYS_newfstatat,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Those that newer architectures do without.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] =
    &[libc::SYS_access, libc::SYS_lstat, libc::SYS_poll, libc::SYS_readlink, libc::SYS_stat, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[c_long] = &[];

const PROT_EXEC: u32 = libc::PROT_EXEC.cast_unsigned();
const CLONE_THREAD: u32 = libc::CLONE_THREAD.cast_unsigned();

/// Whatever opens for more than reading.
const OPENS_FOR_WRITING: u32 =
    (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND).cast_unsigned() | O_TMPFILE_BIT;
const O_TMPFILE_BIT: u32 = (libc::O_TMPFILE & !libc::O_DIRECTORY).cast_unsigned();

/// `IORING_REGISTER_FILES_UPDATE`: disks come and go.
const REGISTER_FILES_UPDATE: u32 = 6;

const AF_UNIX: u32 = libc::AF_UNIX.cast_unsigned();

/// `PR_SET_VMA`: the C library names its memory.
const PR_SET_VMA: u32 = 0x5356_4d41;

const CONDITIONAL: &[Call] = &[
    (libc::SYS_mmap, &[Arg::Masked(2, PROT_EXEC, 0)]),
    (libc::SYS_mprotect, &[Arg::Masked(2, PROT_EXEC, 0)]),
    // Threads, not processes. The newer `clone3` cannot be looked into: see [`REFUSED`].
    (libc::SYS_clone, &[Arg::Masked(0, CLONE_THREAD, CLONE_THREAD)]),
    (libc::SYS_clone3, &[]),
    (libc::SYS_openat, &[Arg::Masked(2, OPENS_FOR_WRITING, 0)]),
    (libc::SYS_io_uring_register, &[Arg::Is(1, REGISTER_FILES_UPDATE)]),
    // A connection of the process with itself: how the protocol library learns what a frontend of an earlier daemon has said.
    (libc::SYS_socketpair, &[Arg::Is(0, AF_UNIX)]),
    (libc::SYS_prctl, &[Arg::Is(0, libc::PR_SET_NAME.cast_unsigned()), Arg::Is(0, PR_SET_VMA)]),
    // Asking is fine: the new limit would be the third argument, whose low half is zero for a null pointer.
    (libc::SYS_prlimit64, &[Arg::Is(2, 0)]),
    (
        libc::SYS_ioctl,
        &[
            Arg::Is(1, FIONREAD),
            Arg::Is(1, FIONBIO),
            Arg::Is(1, BLKSSZGET),
            Arg::Is(1, BLKGETSIZE64),
            Arg::Is(1, BLKDISCARD),
            Arg::Is(1, BLKGETDISKSEQ),
            Arg::Is(1, TCGETS),
        ],
    ),
];

const FIONREAD: u32 = 0x541b;
const FIONBIO: u32 = 0x5421;
const TCGETS: u32 = 0x5401;
const BLKSSZGET: u32 = 0x1268;
const BLKDISCARD: u32 = 0x1277;
const BLKGETSIZE64: u32 = 0x8008_1272;
const BLKGETDISKSEQ: u32 = 0x8008_1280;

/// Calls that are answered with ENOSYS, as an older kernel would: the C library then takes one that can be looked into.
pub(super) const REFUSED: &[c_long] = &[libc::SYS_clone3];

/// Calls that may only name the process itself, as first argument.
pub(super) const ON_ITSELF: &[c_long] = &[libc::SYS_tgkill];

/// All that is allowed, but for [`ON_ITSELF`].
pub(super) fn allowed() -> impl Iterator<Item = Call> {
    let plain = [PROCESS, DESCRIPTORS, OLD].into_iter().flatten().map(|&call| (call, [].as_slice()));
    plain.chain(CONDITIONAL.iter().copied())
}
