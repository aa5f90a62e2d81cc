//! Every bound of the program, in one file, tied together by const assertions.

use super::units::{BLOCKS_PER_EXTENT, SECTOR_SIZE};

/// Host disks in one pool. A set of disks fits one `u64` mask.
pub const DISKS_MAX: usize = 64;

/// Replicas of one extent.
pub const REPLICAS_MAX: usize = 3;

/// Copies of one extent in memory: its replicas, and one more while it is being moved.
pub const COPIES_MAX: usize = REPLICAS_MAX + 1;

/// Regions that carry the placement store.
pub const STORE_MEMBERS_MAX: usize = 3;

/// Commits that one store member may be behind the others before they wait for it. It catches up with many at once.
pub const STORE_MEMBER_QUEUE: usize = 4096;

/// Rows of the placement table that it may be behind before they wait for it: some hundred bytes of memory each.
pub const STORE_ROWS_BEHIND_MAX: usize = 65_536;

/// Seconds that they wait at most without seeing it get on.
pub const STORE_BEHIND_SECS: u64 = 5;

/// Seconds that filling a new store member may take: whoever asked for it waits.
pub const STORE_FILLING_SECS: u64 = 45;

/// Seconds that a store member may take for one commit before it is given up.
pub const STORE_MEMBER_TIMEOUT_SECS: u64 = 30;

/// Rows of the placement table that one commit changes at most; fewer on small metadata regions.
pub const STORE_ROWS_PER_COMMIT_MAX: usize = 4096;

/// Bytes of a note: a row of the placement store that nobody's data depends on.
pub const NOTE_LEN_MAX: usize = 8 << 10;

/// Notes that one commit takes along.
pub const NOTES_PER_COMMIT_MAX: usize = 8;

/// Notes that wait to be taken along. Beyond it the oldest are given up.
pub const NOTES_WAITING_MAX: usize = 4096;

/// Bytes of samples and heat that go along with one commit, so that no FLUSH waits for more.
pub const HISTORY_BYTES_PER_COMMIT_MAX: usize = 64 << 10;

/// Bytes of samples and heat that wait for commits.
pub const HISTORY_BYTES_WAITING_MAX: usize = 16 << 20;

/// Samples and heat take one part in so many of a metadata region at most.
pub const HISTORY_REGION_SHARE: u64 = 16;

/// Seconds of the longest time that can be asked for what was done in it: a year, and what its samples have more.
pub const STATS_WINDOW_SECS_MAX: u64 = 372 * 86_400;

/// Extents of a VHD that are named as its hottest.
pub const HOTTEST_EXTENTS: usize = 16;

/// Milliseconds between two commits of what nobody asked to commit.
pub const STORE_COMMIT_INTERVAL_MILLIS: u64 = 1000;

/// Smallest extent, in bytes.
pub const EXTENT_SIZE_MIN: u64 = 256 << 10;

/// Largest extent, in bytes.
pub const EXTENT_SIZE_MAX: u64 = 16 << 20;

/// Extent size of a new pool, in bytes.
pub const EXTENT_SIZE_DEFAULT: u64 = 1 << 20;

/// Extents described by one row of the placement store.
pub const EXTENTS_PER_PAGE: u64 = 64;

/// Largest VHD, in bytes (the virtio capacity field counts 512-byte sectors; extents are counted in `u32`).
pub const VHD_SIZE_MAX: u64 = 1 << 50;

/// Length of a disk, VHD or VM name, in bytes.
pub const NAME_LEN_MAX: usize = 64;

/// Labels of one VM.
pub const LABELS_MAX: usize = 32;

/// Length of the key of a label, in bytes.
pub const LABEL_KEY_LEN_MAX: usize = 64;

/// Length of the value of a label, and of the owner of a VM, in bytes.
pub const LABEL_VALUE_LEN_MAX: usize = 256;

/// Virtqueues of one VHD.
pub const QUEUES_MAX: usize = 64;

/// Descriptors of one virtqueue.
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// Data segments of one guest request (`seg_max`): a 128-entry ring less header and status.
pub const SEGMENTS_MAX: usize = 126;

/// Descriptors of one chain that are looked at; a longer chain (an indirect table may name 65535) is refused unanswered.
pub const CHAIN_DESCRIPTORS_MAX: usize = QUEUE_SIZE_MAX as usize;

/// Largest data length of one guest request, in bytes.
pub const REQUEST_LEN_MAX: u64 = 32 << 20;

/// I/O vectors of one engine operation: the guest's segments plus zero padding before and behind.
pub const IOVECS_MAX: usize = SEGMENTS_MAX + 2;

/// Operations one reactor's engine can have in flight.
pub const ENGINE_SLOTS: usize = 1024;

/// Entries of a reactor's submission queue: every engine slot once, and as many polls and interrupts.
pub const SUBMISSION_ENTRIES: u32 = 2048;

/// Entries of a reactor's completion queue; the kernel keeps what does not fit until there is room.
pub const COMPLETION_ENTRIES: u32 = 2 * SUBMISSION_ENTRIES;

/// Kernel threads that one reactor's io_uring may use for operations that block: syncs, writes into file holes, and whatever
/// finds the queue of a block device full. One for every operation, so that a disk that hangs cannot use up those that the
/// syncs of the others need.
#[allow(clippy::cast_possible_truncation, reason = "ENGINE_SLOTS is far below 2^32")]
pub const IO_WORKERS_MAX: u32 = ENGINE_SLOTS as u32;

/// Times that an operation interrupted or refused for lack of kernel resources is submitted again.
pub const IO_RETRIES_MAX: u8 = 32;

/// Chains popped from one virtqueue before they are submitted, what is done is given back, and the next virtqueue has its turn.
/// Few, so that where requests complete as they are submitted the guest works on some while the reactor works on others.
pub const POP_BATCH: usize = 16;

/// Bytes that these chains may ask for before the next virtqueue has its turn: what was never written is answered at once with
/// zeros, which takes a reactor's time. The last chain may exceed it.
pub const POP_BYTES: u64 = 4 << 20;

/// What looking at a descriptor, or at an extent to discard, counts among [`POP_BYTES`]: it takes about as long.
pub const POP_STEP_BYTES: u64 = 1 << 10;

/// Bytes that the chains in flight of one virtqueue read and write together. What is more stays in the guest's ring, so a VHD never has
/// more in flight than this times its queues, and reactors share no counter for it. Half of it is 256 requests of 128 KiB, which keep every
/// disk busy and so are never held up; the other half is room for the largest request, as a ring pops without knowing what comes. More
/// would make no disk faster: it would keep guest memory pinned, and what others ask of the same disk waiting behind it.
pub const RING_BYTES_MAX: u64 = (256 * (128 << 10)) + REQUEST_LEN_MAX;

/// Messages that a reactor takes before it looks at its rings again.
pub const MESSAGES_PER_TURN: usize = 256;

/// Operations one reactor may have in flight on one host disk, even if nothing else goes on.
pub const DISK_IN_FLIGHT_MAX: usize = 512;

/// Reactor threads. A set of reactors, and the mover, fits one `u64` mask.
pub const REACTORS_MAX: usize = 63;

/// Bounce buffers of one reactor, each [`BOUNCE_LEN`] bytes.
pub const BOUNCE_BUFFERS: usize = 16;

/// Length of one bounce buffer, in bytes.
pub const BOUNCE_LEN: usize = 256 << 10;

/// Bytes of never-written data that a read is given before others have their turn.
pub const ZERO_LEN_MAX: u64 = 1 << 20;

/// Bytes that the mover copies at a time: writes that overlap them wait.
pub const COPY_CHUNK_LEN: u64 = 256 << 10;

/// Memory for a chunk: at least one block of the largest extents.
#[allow(clippy::cast_possible_truncation, reason = "small constants")]
pub const COPY_BUFFER_LEN: usize = {
    let block_max = EXTENT_SIZE_MAX / BLOCKS_PER_EXTENT as u64;
    (if block_max > COPY_CHUNK_LEN { block_max } else { COPY_CHUNK_LEN }) as usize
};

/// Chunks that the mover copies at the same time.
pub const COPY_CHUNKS_MAX: usize = 16;

/// Chunks that it copies at the same time on one disk while guests use it: they wait behind each of them.
pub const COPY_CHUNKS_BUSY: usize = 2;

/// The same of an urgent job: guests keep a share of a disk that it has to do all it can.
pub const COPY_CHUNKS_URGENT: usize = 4;

/// Extents of one job that are moved together: they share fences, a sync and a commit.
pub const WAVE_EXTENTS: usize = 32;

/// Rows of one commit that makes replicas stale.
pub const STALE_ROWS_MAX: usize = 64;

/// Replicas of one scrub that are read at the same time.
pub const SCRUBS_MAX: usize = 8;

/// Places of one disk that are remembered as bad because they could not be written, and extents that one job leaves out for that reason
/// before it stops: a disk with more of them is not worth filling.
pub const BAD_PLACES_MAX: usize = 32;

/// Replicas that are made equal again at the same time, and those that wait for it.
pub const REPAIRS_MAX: usize = 8;

/// Replicas that wait to be made equal again; more that cannot be read are found when somebody reads them, and pages in which more differ
/// are in doubt.
pub const REPAIRS_WAITING_MAX: usize = 4096;

/// Milliseconds between two looks for disks that do not answer.
pub const HANG_LOOK_MILLIS: u64 = 1000;

/// Milliseconds between two looks for replicas to bring back.
pub const RESTORE_LOOK_MILLIS: u64 = 1000;

/// Seconds after which a job that was to bring replicas back, and stopped, is tried again.
pub const RESTORE_RETRY_SECS: u64 = 60;

/// Milliseconds without a write after which the write intent of a page is taken back, at the earliest.
pub const INTENT_IDLE_MILLIS: u64 = 10_000;

/// Groups of extents of one job on their way at the same time, so that one is copied while another is made durable.
pub const WAVES_MAX: usize = 3;

/// Milliseconds that a guest's write or FLUSH waits for the target of a move before the move is given up.
pub const COPY_PATIENCE_MILLIS: u64 = 2000;

/// Milliseconds that writers of an extent stand back for the copier before they need not any more.
pub const COPY_TURN_MILLIS: u64 = 50;

/// Requests a second that a VHD or VM can be limited to: more than any has.
pub const IOPS_LIMIT_MAX: u64 = 10_000_000;

/// Requests that it can be allowed at once.
pub const IOPS_BURST_MAX: u64 = 1_000_000_000;

/// Bytes a second that a VHD or VM can be limited to. Such a bucket counts for eight years.
pub const BYTES_LIMIT_MAX: u64 = 64 << 30;

/// Bytes that it can be allowed at once.
pub const BYTES_BURST_MAX: u64 = 1 << 50;

/// Seconds without being held back by a limit after which a VHD that is held back again is reported again.
pub const LIMIT_QUIET_SECS: u64 = 60;

/// Microseconds of the shortest latency target: what a fast disk takes, more or less.
pub const LATENCY_TARGET_MIN_MICROS: u64 = 50;

/// Microseconds of the longest one.
pub const LATENCY_TARGET_MAX_MICROS: u64 = 10_000_000;

/// Milliseconds between two looks at which disks several clients want.
pub const SHARES_COUNT_MILLIS: u64 = 200;

/// Milliseconds between two looks at disks that are shared out, while something happens there.
pub const SHARES_LOOK_MILLIS: u64 = 20;

/// Seconds after which a client that gets nothing from a disk, and does not wait for it, does not count there any more. A disk that is
/// overloaded may take long.
pub const CLIENT_QUIET_SECS: u64 = 5;

/// What may be in flight on a disk that is shared out, at most, in bytes: more than any disk needs.
pub const SHARES_WINDOW_MAX: u64 = 64 << 20;

/// Milliseconds between two looks at what waits for a disk.
pub const TICK_MILLIS: u64 = 250;

/// Ranges in one discard or write-zeroes request.
pub const DISCARD_RANGES_MAX: u32 = 32;

/// Extents that one discard or write-zeroes range can cover.
pub const RANGE_EXTENTS_MAX: u64 = 256;

/// Connections to the API that are served at the same time, per socket; more wait to be accepted.
pub const API_CONNECTIONS_MAX: usize = 128;

/// Readers that follow the events, the daemon itself being one. They keep their connections for ever, also if they read nothing: half
/// of all is left to others.
pub const API_FOLLOWERS_MAX: usize = API_CONNECTIONS_MAX / 2;

/// VHDs that the event of a job names.
pub const EVENT_VHDS_MAX: usize = 16;

/// Body of one API request, in bytes.
pub const API_BODY_MAX: usize = 64 << 10;

/// A message between processes of ours, in bytes: the longest is the state of a VHD with all its queues and two frontends.
pub const FRAME_MESSAGE_MAX: usize = 1 << 20;

/// Descriptors that go with such a message.
pub const FRAME_FDS_MAX: usize = 4096;

/// Descriptors that the service manager passes on to a daemon which starts.
pub const PASSED_FDS_MAX: usize = 4096;

/// Guest memory regions of one frontend.
pub const MEM_SLOTS_MAX: usize = 509;

/// Guest memory regions of all frontends together. The kernel allows a process about as many mappings.
pub const WATCHED_REGIONS_MAX: usize = 1 << 16;

/// Commands that wait for the one before them.
pub const COMMANDS_WAITING_MAX: usize = 1024;

/// Threads for vhost-user messages. Each connection uses at most one at a time, and only while a message is being handled;
/// one that waits for a hung disk keeps its thread.
pub const VHOST_USER_THREADS_MAX: usize = 1024;

/// Guest memory that one frontend can map, in bytes, so that no frontend can use up the address space.
pub const GUEST_MEMORY_MAX: u64 = 16 << 40;

/// How long a VHD's frontend that has stopped its virtqueues may take to start them again (firmware, then a kernel; a reboot) before
/// another one that has been waiting goes on.
pub const TURN_GRACE_MILLIS: u64 = 3000;

/// Milliseconds that the frontend whose rings ran before a restart has, once it has connected again, to start them.
pub const TURN_RETURN_MILLIS: u64 = 10_000;

/// How often a frontend that waits for a process to connect again looks whether that has ended.
pub const TURN_LOOK_MILLIS: u64 = 500;

/// Bytes of a dirty log: enough for 32 TiB of guest address space.
pub const DIRTY_LOG_MAX: u64 = 1 << 30;

/// Guest memory that all frontends together can map, in bytes: half of the address space, so that the daemon itself has room.
pub const GUEST_MEMORY_TOTAL_MAX: usize = 64 << 40;

/// Slots in one punch request, so that a disk worker is never busy for long.
pub const PUNCH_SLOTS_MAX: u32 = 1024;

/// Extents of a thick VHD that are given room in one edit of the store.
pub const FILL_EXTENTS: usize = 16_384;

/// Percentages of a disk, or of the pool, above which its filling is reported.
pub const FILL_THRESHOLDS: [u32; 3] = [80, 90, 95];

/// Percent below a threshold at which it is reported to be over.
pub const FILL_HYSTERESIS: u32 = 2;

/// Milliseconds after which freed extents are committed, if no guest asks for a commit before.
pub const FREE_COMMIT_MILLIS: u64 = 1000;

/// Milliseconds that a write waits for slots that are on their way back, even if its VHD does not want to wait for room.
pub const RECLAIM_WAIT_MILLIS: u64 = 2000;

/// How often a VHD can be given more room in the placement view, between two starts of the daemon. Each time there is a
/// quarter to spare, so that it takes a thousandfold growth to get there.
pub const GROWTHS_MAX: usize = 32;

/// Ranges of lost data that are named, per VHD.
pub const LOST_RANGES_MAX: usize = 64;

/// VHDs that an event about a lost disk names; the totals are of all.
pub const IMPACT_EVENT_VHDS_MAX: usize = 64;

/// Seconds between two looks at the errors and latencies of disks.
pub const HEALTH_LOOK_SECS: u64 = 10;

/// Seconds in which a disk must not give errors or be slow too often.
pub const HEALTH_WINDOW_SECS: u64 = 600;

/// Errors in that time that make a disk suspect. One may be a cable; what retries of a bad sector give are more.
pub const SUSPECT_ERRORS: u64 = 3;

/// Slow operations in that time that make a disk suspect.
pub const SUSPECT_SLOW: u64 = 5;

/// Latency buckets from this one on are slow: at least 8.4 seconds. The longest queue of one reactor ([`DISK_IN_FLIGHT_MAX`]) takes
/// a hard disk about five.
pub const SLOW_BUCKET: usize = 24;

/// Generations of an extent: one that has been placed and dropped this often keeps its slot, so that they never wrap (which
/// would make every later change look older than what is durable).
pub const GENERATION_MAX: u32 = 1 << 28;

/// Seconds by which the policy's own time goes on at most between two looks, whatever the clock of the host says.
pub const POLICY_STEP_SECS_MAX: u64 = 900;

/// Seconds between two looks of the policy, at most and at least: more often than counters are looked at nothing is new.
pub const POLICY_LOOK_SECS: u64 = 30;
/// See [`POLICY_LOOK_SECS`].
pub const POLICY_LOOK_SECS_MIN: u64 = 10;

/// The same while nothing happens, and the last look found nothing.
pub const POLICY_REST_LOOK_SECS: u64 = 300;

/// Seconds after which what the policy remembers is kept again if nothing has happened.
pub const POLICY_KEEP_SECS: u64 = 600;

/// Seconds for which what the policy has moved counts among its budget.
pub const POLICY_BUDGET_SECS: u64 = 24 * 3600;

/// Seconds that the policy calls "now": at least, which is three samples, and at most.
pub const POLICY_WINDOW_SECS_MIN: u64 = 30;
/// See [`POLICY_WINDOW_SECS_MIN`].
pub const POLICY_WINDOW_SECS_MAX: u64 = 300;

/// Changes whose outcome is remembered.
pub const POLICY_OUTCOMES_MAX: usize = 256;

/// Entries of each kind in the state of the policy.
pub const POLICY_ENTRIES_MAX: usize = 1 << 16;

/// Seconds for which the policy does not ask again for what the owner refused: at first, and at most. They double with each refusal.
pub const POLICY_REFUSED_SECS: u64 = 600;
/// See [`POLICY_REFUSED_SECS`].
pub const POLICY_REFUSED_SECS_MAX: u64 = 6 * 3600;

/// Seconds for which something may have to be so, or a VHD may have to rest: longer is as good as never.
pub const POLICY_WAIT_SECS_MAX: u64 = 365 * 24 * 3600;

/// Seconds in which events tell of proposals about the same thing once.
pub const POLICY_TELL_SECS: u64 = 3600;

/// Proposals that are open at the same time: more than anybody reads.
pub const POLICY_PROPOSALS_MAX: usize = 256;

/// Seconds that a write into a full pool waits for room, unless the VHD says otherwise.
pub const WHEN_FULL_WAIT_SECS_DEFAULT: u64 = 60;

const _: () = assert!(REACTORS_MAX < u64::BITS as usize);
const _: () = assert!(DISKS_MAX <= u64::BITS as usize);
const _: () = assert!(EXTENT_SIZE_MIN / BLOCKS_PER_EXTENT as u64 >= 4096);
const _: () = assert!(SECTOR_SIZE == 512);
const _: () = assert!(EXTENT_SIZE_MIN.is_power_of_two() && EXTENT_SIZE_MAX.is_power_of_two());
const _: () = assert!(SEGMENTS_MAX + 2 <= IOVECS_MAX);
const _: () = assert!(CHAIN_DESCRIPTORS_MAX >= SEGMENTS_MAX + 2);
const _: () = assert!(REQUEST_LEN_MAX <= u32::MAX as u64);
const _: () = assert!(RING_BYTES_MAX >= REQUEST_LEN_MAX, "every request fits a ring in which nothing is in flight");
const _: () = assert!(RANGE_EXTENTS_MAX * EXTENT_SIZE_MAX / SECTOR_SIZE <= u32::MAX as u64);
const _: () = assert!(VHD_SIZE_MAX / EXTENT_SIZE_MIN <= u32::MAX as u64 + 1);
const _: () = assert!(SUBMISSION_ENTRIES as usize >= 2 * ENGINE_SLOTS);
const _: () = assert!(ENGINE_SLOTS <= u16::MAX as usize && IOVECS_MAX <= u8::MAX as usize);
const _: () = assert!(IO_WORKERS_MAX as usize >= ENGINE_SLOTS);
const _: () = assert!(BOUNCE_BUFFERS >= 2 * COPIES_MAX);
