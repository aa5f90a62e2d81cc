//! Why a command was refused. The text is what a user sees: what is wrong, and what to do next.

mod capacity;

use crate::base::ids::NameError;
use crate::base::limits::{COMMANDS_WAITING_MAX, DISKS_MAX, GROWTHS_MAX, QUEUES_MAX, REPLICAS_MAX, VHD_SIZE_MAX};
use crate::placement::limits::LimitError;
use crate::placement::record::Accept;
use crate::placement::sharing::SharingError;
use crate::placement::vm::LabelError;
use crate::store::edit::EditFailed;

pub use capacity::CapacityError;

/// What kind of refusal it is: decides exit codes and HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The command can never succeed as it is.
    Invalid,
    /// It names something that does not exist.
    NotFound,
    /// It contradicts what there is.
    Conflict,
    /// There is not enough room.
    NoRoom,
    /// It is right, and failed; or it cannot be done just now.
    Failed,
}

/// Why a command was refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are what the message says they are")]
pub enum CommandError {
    /// There is no such VHD, VM or disk.
    #[error("there is no {what} '{name}'")]
    NotFound { what: &'static str, name: String },
    /// A VHD of that name exists and differs.
    #[error(
        "VHD '{vhd}' exists with another {field}: it is {existing}, not {asked}; \
         choose another name, or ask for the same {field}"
    )]
    Conflict { vhd: String, field: &'static str, existing: String, asked: String },
    /// The name is in use.
    #[error("the name '{name}' belongs to another {what}: choose another name")]
    NameTaken { what: &'static str, name: String },
    /// The name breaks the rules.
    #[error("bad {what} name: {source}")]
    InvalidName { what: &'static str, source: NameError },
    /// The size is not a multiple of the block size, or 0.
    #[error("a VHD cannot have {size} bytes: give a multiple of its block size, {block_size}, above 0")]
    InvalidSize { size: u64, block_size: u32 },
    /// The size is beyond the limit.
    #[error("a VHD cannot have {size} bytes: the most is {VHD_SIZE_MAX}")]
    SizeTooLarge { size: u64 },
    /// The block size is not supported.
    #[error("the block size cannot be {block_size}: use 512 or 4096")]
    InvalidBlockSize { block_size: u32 },
    /// Blocks would be too large to be read as a whole for every request.
    #[error("a pool with extents of {} MiB has no VHDs with checksums: their blocks would be too large; make the pool with extents of at most 8 MiB", extent_size >> 20)]
    ChecksumsTooCoarse { extent_size: u64 },
    /// The number of queues is not supported.
    #[error("a VHD cannot have {queues} queues: give 1 to {QUEUES_MAX}")]
    InvalidQueues { queues: u16 },
    /// The socket mode has bits other than rwx.
    #[error("the socket mode cannot be {mode:#o}: give permission bits, 0 to 0777")]
    InvalidSocketMode { mode: u32 },
    /// A width of 0.
    #[error("a spanned VHD cannot have width 0: give the number of disks, or leave it out for all")]
    InvalidWidth,
    /// Replicas are limited.
    #[error("a VHD has 1 to {REPLICAS_MAX} replicas of each extent, not {replicas}")]
    InvalidReplicas { replicas: u8 },
    /// Width and list of disks disagree.
    #[error("width {width} disagrees with the {named} disks that are named: leave one of the two out")]
    WidthDisagrees { width: u32, named: usize },
    /// Not enough disks for the width.
    #[error(
        "width {width} asks for more disks than there are: {accepting} of the pool's {disks} disks accept spanned VHDs and \
         work; give a smaller width, add disks, or change a disk's role"
    )]
    WidthTooLarge { width: u32, accepting: usize, disks: usize },
    /// No disk at all.
    #[error(
        "none of the pool's {disks} disks accepts {layout} VHDs and works: add a disk, or change a disk's role with \
         `spanblk disk set NAME --accept any`"
    )]
    NoDiskAccepts { layout: &'static str, disks: usize },
    /// A disk is named twice.
    #[error("disk '{disk}' is named twice")]
    DiskTwice { disk: String },
    /// No disk is named.
    #[error("the list of disks is empty: name at least one disk, or leave the list out")]
    NoDisks,
    /// The named disk does not take such VHDs.
    #[error("disk '{disk}' does not accept {layout} VHDs, its role is '{}': name another disk, or change its role", accept.word())]
    DiskRefuses { disk: String, layout: &'static str, accept: Accept },
    /// Only what has failed can be rebuilt.
    #[error(
        "disk '{disk}' works: `spanblk disk resync {disk}` fills what it missed, `spanblk disk evacuate {disk}` moves everything \
         away from it"
    )]
    DiskWorks { disk: String },
    /// The named disk has failed.
    #[error("disk '{disk}' has failed: name another disk")]
    DiskFailed { disk: String },
    /// Spanning is onto more disks.
    #[error("VHD '{vhd}' is on {now} disks, more than {width}: use `spanblk vhd unspan {vhd} --width {width}`")]
    SpanNarrower { vhd: String, width: u32, now: usize },
    /// Unspanning is onto fewer disks.
    #[error("VHD '{vhd}' is on {now} disks, fewer than {width}: use `spanblk vhd span {vhd} --width {width}`")]
    UnspanWider { vhd: String, width: u32, now: usize },
    /// Only isolated VHDs migrate.
    #[error("VHD '{vhd}' is spanned: use `spanblk vhd unspan {vhd} --disk DISK` to put all of it on one disk")]
    NotIsolated { vhd: String },
    /// A job is about the VHD already.
    #[error(
        "VHD '{vhd}' is being moved by job {job} ({kind}): wait for it (`spanblk job show {job}`), or end it \
         (`spanblk job cancel {job}`)"
    )]
    JobExists { vhd: String, job: u32, kind: &'static str },
    /// The VHD is being scrubbed already.
    #[error(
        "VHD '{vhd}' is being scrubbed by job {job}: wait for it (`spanblk job wait {job}`), or end it (`spanblk job cancel {job}`)"
    )]
    ScrubExists { vhd: String, job: u32 },
    /// There is no such job.
    #[error("there is no job {job}: `spanblk job list` shows all")]
    NoJob { job: u32 },
    /// The job has ended.
    #[error("job {job} has ended: it is {state}")]
    JobEnded { job: u32, state: &'static str },
    /// The job has no layout to go back to.
    #[error("job {job} ({kind}) cannot be taken back: cancel it without --revert, and say where its VHDs shall be")]
    NoRevert { job: u32, kind: &'static str },
    /// The target has not enough room.
    #[error(
        "VHD '{vhd}' does not fit there: its extents take {needed} bytes, and the disks have room for {room}; name more or \
         other disks"
    )]
    NoRoomFor { vhd: String, needed: u64, room: u64 },
    /// One disk has not enough room for all that would go there.
    #[error("disk '{disk}' has not enough room: {needed} bytes would be moved there, and it has {free} bytes free")]
    NoRoomOn { disk: String, needed: u64, free: u64 },
    /// Replicas need failure domains of their own.
    #[error(
        "VHD '{vhd}' cannot have {replicas} replicas there: disks that fail together hold one of them, and those disks are of \
         {domains} failure domain(s); put it on more disks (`spanblk vhd span {vhd} --width N`), give it fewer replicas \
         (`spanblk vhd set {vhd} --replicas N`), or say which disks do not fail together \
         (`spanblk disk set DISK --failure-domain NAME`)"
    )]
    TooFewDomains { vhd: String, domains: usize, replicas: usize },
    /// Replicas that are apart would not be any more.
    #[error(
        "disk '{disk}' cannot be in failure domain '{domain}': VHD '{vhd}' has replicas of one extent there and on disk \
         '{other}', which is in it; move one of them away (`spanblk disk evacuate {disk}`), or give the VHD fewer replicas"
    )]
    ReplicasTogether { disk: String, domain: String, vhd: String, other: String },
    /// A thick VHD does not fit.
    #[error(
        "a thick VHD of {needed} bytes does not fit: its disks have {free} bytes free; \
         create it thin, smaller, on other disks, or over several (`--layout spanned`)"
    )]
    NoRoom { needed: u64, free: u64 },
    /// A thick VHD cannot grow.
    #[error(
        "VHD '{vhd}' is thick, and to grow it by {by} bytes takes {needed} bytes of room: its disks have {free} bytes free; \
         grow it by less, or span it onto more disks first (`spanblk vhd span {vhd}`)"
    )]
    NoRoomToGrow { vhd: String, by: u64, needed: u64, free: u64 },
    /// No further growth fits the placement view.
    #[error(
        "VHD '{vhd}' has grown {GROWTHS_MAX} times since the daemon started, which is the most: restart the daemon, and grow it \
         again"
    )]
    GrownTooOften { vhd: String },
    /// A thick VHD is being given its room.
    #[error("VHD '{vhd}' is being given the room that it was last asked to have: wait for that, then try again")]
    BeingFilled { vhd: String },
    /// Shrinking within a block.
    #[error(
        "VHD '{vhd}' cannot shrink to {size} bytes, which is within a block: give a multiple of {block}, such as {next}"
    )]
    ShrinkMisaligned { vhd: String, size: u64, block: u64, next: u64 },
    /// Shrinking without being told that data may be lost.
    #[error(
        "VHD '{vhd}' would become smaller: {written} bytes written beyond {size} would be lost; to shrink it all the same, \
         detach it and repeat with --force"
    )]
    ShrinkLoses { vhd: String, size: u64, written: u64 },
    /// A job has ended, its moves have not.
    #[error("extents of VHD '{vhd}' are still being moved, or moved back: try again in a moment")]
    MovesEnding { vhd: String },
    /// The metadata region is nearly full.
    #[error("the metadata region is nearly full ({used} of {size} bytes): delete VHDs that are not needed")]
    MetadataFull { used: u64, size: u64 },
    /// A frontend has the VHD.
    #[error("VHD '{vhd}' is attached to process {pid}: detach it first{hint}")]
    Attached { vhd: String, pid: u32, hint: &'static str },
    /// The VHD was deleted while the command waited.
    #[error("VHD '{vhd}' was deleted meanwhile")]
    Deleted { vhd: String },
    /// Something is on the disk, or may be put there.
    #[error(
        "disk '{disk}' is not empty: {extents} extents ({bytes} bytes) are on it, and these VHDs are on it or may be put there: \
         {}; {}",
        list(vhds),
        next_step(disk, *failed)
    )]
    DiskNotEmpty { disk: String, extents: u64, bytes: u64, vhds: Vec<String>, failed: bool },
    /// A job is about the disk.
    #[error(
        "job {job} ({kind}), which is {state}, needs disk '{disk}': wait for it (`spanblk job wait {job}`), or end it \
         (`spanblk job cancel {job}`)"
    )]
    DiskOfJob { disk: String, job: u32, kind: &'static str, state: &'static str },
    /// A disk cannot take its own place.
    #[error("disk '{disk}' cannot take its own place: name another one")]
    ReplacedByItself { disk: String },
    /// Data would be given up.
    #[error(
        "disk '{disk}' has failed or is missing, and these VHDs have written data that is nowhere else: {}; nothing was changed.          Bring the disk back if you can, or move what can be read: `spanblk disk evacuate {disk}`. With --accept-loss the rest          is given up, and reads as zeros: restore it from a backup then",
        amounts(lost)
    )]
    LosesData { disk: String, lost: Vec<(String, u64)> },
    /// Slots of the disk are on their way.
    #[error("the room of disk '{disk}' is still being given back: try again in a moment")]
    DiskBusy { disk: String },
    /// There is no other disk.
    #[error(
        "disk '{disk}' is the only one of the pool: add another one first, or stop the daemon and use `spanblk pool destroy`"
    )]
    LastDisk { disk: String },
    /// The pool has all the disks it can have.
    #[error("the pool has {DISKS_MAX} disks, which is the most: it cannot take another")]
    TooManyDisks,
    /// The identifier of a new disk is not the pool's next one.
    #[error("disk '{disk}' was labelled while another disk was being added: wipe it and add it again")]
    DiskIdTaken { disk: String },
    /// Block sizes cannot be mixed in a pool.
    #[error("disk '{disk}' has blocks of {block_size} bytes, the pool's disks have {pool}: they cannot be mixed")]
    BlockSizesMixed { disk: String, block_size: u32, pool: u32 },
    /// A VM of that name exists and differs.
    #[error(
        "VM '{vm}' exists with other settings: {field} {existing}, not {asked}; change them with `spanblk vm set {vm}`, or take another name"
    )]
    VmConflict { vm: String, field: &'static str, existing: String, asked: String },
    /// Labels or owner of a VM break the rules.
    #[error(transparent)]
    InvalidLabels(#[from] LabelError),
    /// There cannot be such limits of rates.
    #[error(transparent)]
    InvalidLimits(#[from] LimitError),
    /// Disks cannot be shared out that way.
    #[error(transparent)]
    InvalidSharing(#[from] SharingError),
    /// A quota or reservation is in the way, or cannot be had.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    /// VHDs belong to the VM.
    #[error(
        "VM '{vm}' has VHDs: {}; delete them (`spanblk vhd delete NAME`), or take them out of it (`spanblk vhd set NAME --vm ''`), then \
         delete it",
        list(vhds)
    )]
    VmNotEmpty { vm: String, vhds: Vec<String> },
    /// Too many commands wait.
    #[error("{COMMANDS_WAITING_MAX} commands are waiting already: try again later")]
    Busy,
    /// The store could not commit.
    #[error("the change could not be made durable")]
    Store(#[from] EditFailed),
}

/// Names that are listed in full.
const NAMES_MAX: usize = 8;

fn list(names: &[String]) -> String {
    let shown = names.iter().take(NAMES_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn amounts(lost: &[(String, u64)]) -> String {
    list(&lost.iter().map(|(vhd, bytes)| format!("{vhd} ({bytes} bytes)")).collect::<Vec<_>>())
}

fn next_step(disk: &str, failed: bool) -> String {
    if failed {
        format!("the disk has failed or is missing: `spanblk disk replace {disk} NEW` moves what can be read")
    } else {
        format!("move everything away first: `spanblk disk evacuate {disk} --wait`")
    }
}

impl CommandError {
    /// What kind of refusal it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        use CommandError as E;
        match self {
            E::Capacity(error) => error.kind(),
            E::NotFound { .. } | E::NoJob { .. } => ErrorKind::NotFound,
            E::Conflict { .. }
            | E::VmConflict { .. }
            | E::VmNotEmpty { .. }
            | E::NameTaken { .. }
            | E::Attached { .. }
            | E::Deleted { .. }
            | E::DiskIdTaken { .. }
            | E::DiskRefuses { .. }
            | E::DiskWorks { .. }
            | E::DiskFailed { .. }
            | E::NoDiskAccepts { .. }
            | E::WidthTooLarge { .. }
            | E::BlockSizesMixed { .. }
            | E::JobExists { .. }
            | E::ScrubExists { .. }
            | E::JobEnded { .. }
            | E::NotIsolated { .. }
            | E::SpanNarrower { .. }
            | E::UnspanWider { .. }
            | E::TooFewDomains { .. }
            | E::ReplicasTogether { .. }
            | E::ShrinkLoses { .. }
            | E::GrownTooOften { .. }
            | E::DiskNotEmpty { .. }
            | E::LosesData { .. }
            | E::DiskOfJob { .. }
            | E::LastDisk { .. }
            | E::TooManyDisks => ErrorKind::Conflict,
            E::InvalidName { .. }
            | E::InvalidLabels(_)
            | E::InvalidLimits(_)
            | E::InvalidSharing(_)
            | E::ReplacedByItself { .. }
            | E::ShrinkMisaligned { .. }
            | E::InvalidSize { .. }
            | E::SizeTooLarge { .. }
            | E::InvalidBlockSize { .. }
            | E::ChecksumsTooCoarse { .. }
            | E::InvalidQueues { .. }
            | E::InvalidSocketMode { .. }
            | E::InvalidWidth
            | E::InvalidReplicas { .. }
            | E::WidthDisagrees { .. }
            | E::DiskTwice { .. }
            | E::NoRevert { .. }
            | E::NoDisks => ErrorKind::Invalid,
            E::NoRoom { .. }
            | E::NoRoomToGrow { .. }
            | E::NoRoomFor { .. }
            | E::NoRoomOn { .. }
            | E::MetadataFull { .. } => ErrorKind::NoRoom,
            E::Busy | E::BeingFilled { .. } | E::MovesEnding { .. } | E::DiskBusy { .. } | E::Store(_) => {
                ErrorKind::Failed
            }
        }
    }

    /// A stable word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        use CommandError as E;
        match self {
            E::Capacity(error) => error.code(),
            E::NotFound { .. } => "not_found",
            E::Conflict { .. } | E::VmConflict { .. } => "differs",
            E::InvalidLabels(_) => "invalid_labels",
            E::InvalidLimits(_) => "invalid_limits",
            E::InvalidSharing(_) => "invalid_sharing",
            E::VmNotEmpty { .. } => "vm_not_empty",
            E::NameTaken { .. } => "name_taken",
            E::InvalidName { .. } => "invalid_name",
            E::InvalidSize { .. } => "invalid_size",
            E::SizeTooLarge { .. } => "size_too_large",
            E::InvalidBlockSize { .. } => "invalid_block_size",
            E::ChecksumsTooCoarse { .. } => "checksums_too_coarse",
            E::InvalidQueues { .. } => "invalid_queues",
            E::InvalidSocketMode { .. } => "invalid_socket_mode",
            E::InvalidWidth => "invalid_width",
            E::InvalidReplicas { .. } => "invalid_replicas",
            E::WidthDisagrees { .. } => "width_disagrees",
            E::WidthTooLarge { .. } => "width_too_large",
            E::NoDiskAccepts { .. } => "no_disk_accepts",
            E::DiskTwice { .. } => "disk_twice",
            E::NoDisks => "no_disks",
            E::DiskRefuses { .. } => "disk_refuses",
            E::DiskWorks { .. } => "disk_works",
            E::DiskFailed { .. } => "disk_failed",
            E::NoRoom { .. } | E::NoRoomToGrow { .. } | E::NoRoomFor { .. } | E::NoRoomOn { .. } => "no_room",
            E::GrownTooOften { .. } => "grown_too_often",
            E::BeingFilled { .. } => "being_filled",
            E::ShrinkMisaligned { .. } => "shrink_misaligned",
            E::ShrinkLoses { .. } => "shrink_loses",
            E::MovesEnding { .. } => "moves_ending",
            E::NoJob { .. } => "no_job",
            E::JobExists { .. } | E::ScrubExists { .. } => "job_exists",
            E::JobEnded { .. } => "job_ended",
            E::NoRevert { .. } => "no_revert",
            E::NotIsolated { .. } => "not_isolated",
            E::SpanNarrower { .. } => "span_narrower",
            E::UnspanWider { .. } => "unspan_wider",
            E::TooFewDomains { .. } => "too_few_failure_domains",
            E::ReplicasTogether { .. } => "replicas_together",
            E::MetadataFull { .. } => "metadata_full",
            E::Attached { .. } => "attached",
            E::Deleted { .. } => "deleted",
            E::DiskNotEmpty { .. } => "disk_not_empty",
            E::DiskOfJob { .. } => "disk_of_job",
            E::LosesData { .. } => "loses_data",
            E::ReplacedByItself { .. } => "replaced_by_itself",
            E::DiskBusy { .. } => "disk_busy",
            E::LastDisk { .. } => "last_disk",
            E::TooManyDisks => "too_many_disks",
            E::DiskIdTaken { .. } => "disk_id_taken",
            E::BlockSizesMixed { .. } => "block_sizes_mixed",
            E::Busy => "busy",
            E::Store(_) => "store_failed",
        }
    }
}
