//! Making the ring: what the kernel has, with what it lacks left out.

use std::io;

use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode, register};

use crate::base::limits::{COMPLETION_ENTRIES, DISKS_MAX, IO_WORKERS_MAX, SUBMISSION_ENTRIES};

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The kernel refuses or lacks io_uring.
    #[error(
        "cannot create an io_uring: {0}; it needs Linux 5.19 or newer, sysctl kernel.io_uring_disabled = 0, and a \
         seccomp profile that allows it"
    )]
    Create(#[source] io::Error),
    /// A part of the ring could not be set up.
    #[error("cannot set up the io_uring ({step}): {source}; it needs Linux 5.19 or newer")]
    Register {
        /// Which part.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The operations that the ring may run. It is never asked for others; this is for the case that somebody finds a way.
const OPCODES: [u8; 8] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::PollAdd::CODE,
    opcode::PollRemove::CODE,
    opcode::AsyncCancel::CODE,
];

/// `IORING_REGISTER_FILES_UPDATE`, the one registration needed after the ring is enabled: disks are added at run time.
const REGISTER_FILES_UPDATE: u8 = 6;

/// A ring of the calling thread, with a sparse table of [`DISKS_MAX`] fixed files.
pub(super) fn create() -> Result<IoUring, SetupError> {
    let ring = build()?;
    let submitter = ring.submitter();
    let failed = |step| move |source| SetupError::Register { step, source };
    let disks = u32::try_from(DISKS_MAX).expect("a small number");
    submitter.register_files_sparse(disks).map_err(failed("file table"))?;
    // Syncs always block a worker, and so do writes that must allocate in the file below. The default (four per CPU) would
    // let a disk that hangs use up the workers of the others.
    submitter.register_iowq_max_workers(&mut [IO_WORKERS_MAX, 0]).map_err(failed("worker limit"))?;
    let mut allowed: Vec<register::Restriction> =
        OPCODES.iter().map(|&code| register::Restriction::sqe_op(code)).collect();
    allowed.push(register::Restriction::register_op(REGISTER_FILES_UPDATE));
    allowed.push(register::Restriction::sqe_flags_allowed(FLAGS_ALLOWED));
    submitter.register_restrictions(&mut allowed).map_err(failed("restrictions"))?;
    submitter.register_enable_rings().map_err(failed("enable"))?;
    Ok(ring)
}

/// Fixed files for disks, plain ones for eventfds; workers from the start, and silence about success, where asked for.
const FLAGS_ALLOWED: u8 = Flags::FIXED_FILE.bits() | Flags::ASYNC.bits() | Flags::SKIP_SUCCESS.bits();

/// The ring with the best way of running completions that this kernel has: in our own `io_uring_enter` only (6.1), without
/// interrupting us (5.19), or any time.
fn build() -> Result<IoUring, SetupError> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_cqsize(COMPLETION_ENTRIES).setup_r_disabled();
    let plain = builder.clone();
    builder.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
    let cooperative = builder.clone();
    let mut deferred = plain.clone();
    deferred.setup_submit_all().setup_taskrun_flag().setup_single_issuer().setup_defer_taskrun();
    deferred
        .build(SUBMISSION_ENTRIES)
        .or_else(|_| cooperative.build(SUBMISSION_ENTRIES))
        .or_else(|_| plain.build(SUBMISSION_ENTRIES))
        .map_err(SetupError::Create)
}
