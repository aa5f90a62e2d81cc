//! What happened, as it happens.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::impact::ImpactInfo;
use super::job::ByteRange;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Counts up from 1, also over restarts.
    pub seq: u64,
    /// When, seconds since 1970.
    pub time_secs: u64,
    /// How bad it is.
    pub severity: Severity,
    /// What.
    #[serde(flatten)]
    pub detail: EventDetail,
}

/// How bad an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Normal operation.
    Info,
    /// Look at it soon.
    Warning,
    /// Something failed.
    Error,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventDetail {
    /// The pool is open and every VHD is served.
    DaemonReady {
        /// VHDs served.
        vhds: u64,
    },
    /// The daemon drains and stops.
    DaemonStopping {},
    /// A VHD was created.
    VhdCreated {
        /// Its name.
        vhd: String,
    },
    /// A VHD was deleted.
    VhdDeleted {
        /// Its name.
        vhd: String,
    },
    /// A VHD has another name.
    VhdRenamed {
        /// The new name.
        vhd: String,
        /// The old name.
        old_name: String,
    },
    /// A VHD has another size.
    VhdResized {
        /// Its name.
        vhd: String,
        /// The size it had.
        old_bytes: u64,
        /// The size it has.
        new_bytes: u64,
    },
    /// Settings of a VHD changed.
    VhdChanged {
        /// Its name.
        vhd: String,
    },
    /// A VM was created, by itself or with the first VHD that names it.
    VmCreated {
        /// Its name.
        vm: String,
    },
    /// A VM was deleted.
    VmDeleted {
        /// Its name.
        vm: String,
    },
    /// A VM has another name, and its VHDs say so.
    VmRenamed {
        /// The new name.
        vm: String,
        /// The old name.
        old_name: String,
    },
    /// Labels or owner of a VM changed.
    VmChanged {
        /// Its name.
        vm: String,
    },
    /// A frontend connected.
    VhdAttached {
        /// Name of the VHD.
        vhd: String,
        /// Process id of the frontend.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
    },
    /// The frontend went away.
    VhdDetached {
        /// Name of the VHD.
        vhd: String,
    },
    /// A limit of rates holds back what the guest asks. Sent once until none has done so for a minute.
    LimitHit {
        /// Name of the VHD.
        vhd: String,
        /// The limit: `vhd_iops`, `vhd_bytes_per_sec`, `vm_iops`, `vm_bytes_per_sec`.
        limit: String,
    },
    /// The disks of the VHD's layout have no room: it has grown onto another one.
    VhdExpanded {
        /// Name of the VHD.
        vhd: String,
        /// Name of the disk.
        disk: String,
    },
    /// Replicas of the VHD on that disk missed a write, or may have: they are not read until they are filled again. Sent once until
    /// they are.
    VhdDegraded {
        /// Name of the VHD.
        vhd: String,
        /// Name of the disk.
        disk: String,
    },
    /// A write waits for room. Sent once until none of the VHD's writes waits any more.
    WaitingForRoom {
        /// Name of the VHD.
        vhd: String,
    },
    /// A write failed for want of room. Sent once until the VHD gets room again.
    OutOfRoom {
        /// Name of the VHD.
        vhd: String,
    },
    /// A write was to take more slots than the VHD's quota allows, or its VM's: it waits or fails, as the VHD's `when_full` says. Sent once
    /// until there is room again.
    QuotaReached {
        /// Name of the VHD.
        vhd: String,
        /// Name of its VM, if it is the VM's quota.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vm: Option<String>,
        /// The quota.
        quota_bytes: u64,
        /// What is used of it; of a VM's quota, with what its VHDs have reserved for themselves, if that is in the way.
        used_bytes: u64,
    },
    /// A reservation cannot be kept any more, because disks have failed, or replicas that they had were made anew where it was kept. Sent
    /// once until it can be.
    ReservationShort {
        /// Name of the VHD whose it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vhd: Option<String>,
        /// Name of the VM whose it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vm: Option<String>,
        /// What cannot be kept free for it.
        short_bytes: u64,
    },
    /// A reservation can be kept again.
    ReservationKept {
        /// Name of the VHD whose it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vhd: Option<String>,
        /// Name of the VM whose it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vm: Option<String>,
    },
    /// A thick VHD could not be given all its room: it is served as if it were thin.
    ThickIncomplete {
        /// Name of the VHD.
        vhd: String,
        /// Extents without room.
        missing_extents: u64,
    },
    /// Written data of a VHD that only failed disks had was given up, as asked: it reads as zeros from now on.
    DataLost {
        /// Name of the VHD.
        vhd: String,
        /// Name of the disk that was emptied.
        disk: String,
        /// Bytes.
        bytes: u64,
        /// Where they are in the VHD: the first ranges, if there are many.
        ranges: Vec<ByteRange>,
    },
    /// A disk was added.
    DiskAdded {
        /// Its name.
        disk: String,
    },
    /// A disk left the pool.
    DiskRemoved {
        /// Its name.
        disk: String,
    },
    /// A disk of the pool was not found when the pool was opened.
    DiskMissing {
        /// Its name.
        disk: String,
        /// Names of the VHDs that have extents on it or may have.
        vhds: Vec<String>,
        /// What that means.
        impact: Box<ImpactInfo>,
    },
    /// Settings of a disk changed.
    DiskChanged {
        /// Its name.
        disk: String,
    },
    /// A disk gave an error. Sent for the 1st, 2nd, 4th, 8th and so on.
    DiskError {
        /// Its name.
        disk: String,
        /// What it said.
        message: String,
        /// Errors so far.
        count: u64,
    },
    /// A disk failed: nothing more is sent to it until the pool is opened again.
    DiskFailed {
        /// Its name.
        disk: String,
        /// What it said.
        message: String,
        /// What that means. Absent if the daemon could not work it out: see `/disks/{disk}/impact`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        impact: Option<Box<ImpactInfo>>,
    },
    /// A disk gave errors, or took very long, several times lately. It is used as before, but new VHDs that the policy places
    /// come elsewhere, and it proposes to move what only this disk has.
    DiskSuspect {
        /// Its name.
        disk: String,
        /// Why.
        message: String,
    },
    /// A suspect disk has given no reason for that for a while.
    DiskHealthy {
        /// Its name.
        disk: String,
    },
    /// Allocation rose above a threshold, or fell well below it again.
    Fill {
        /// The disk; absent for the pool as a whole.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk: Option<String>,
        /// The threshold: 80, 90 or 95.
        percent: u32,
        /// Whether it rose above.
        above: bool,
        /// Room taken.
        allocated_bytes: u64,
        /// Room there is.
        total_bytes: u64,
    },
    /// A job was created, or changed its state.
    Job {
        /// Its number.
        job: u32,
        /// What it does: span, unspan, migrate, settle, replicas, evacuate, replace, rebalance, rebuild, resync, scrub.
        kind: String,
        /// Its state now: running, paused, stopped, done, cancelled.
        state: String,
        /// Why it stopped.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Names of the VHDs that it is about; the first ones, if there are many.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        vhds: Vec<String>,
    },
    /// The policy proposes something it has not proposed before. 'spanblk advise' shows it with all that speaks for it.
    Proposal {
        /// Its number.
        proposal: u32,
        /// Name of the VHD that would be moved.
        vhd: String,
        /// What to do.
        what: String,
        /// What was observed.
        because: String,
        /// The command that does it.
        command: String,
        /// Whether it waits: for an administrator, the budget, other moves or the end of the quiet hours.
        waits: bool,
    },
    /// It has been measured what a change brought that the policy proposed.
    ProposalMeasured {
        /// Number of the proposal.
        proposal: u32,
        /// Name of the VHD that was moved.
        vhd: String,
        /// What was promised, and what came.
        message: String,
    },
    /// A VHD is served too slowly because another one takes so much of a disk.
    NoisyNeighbour {
        /// Name of the VHD that suffers.
        vhd: String,
        /// Name of the VHD that takes so much.
        aggressor: String,
        /// Name of the disk.
        disk: String,
    },
    /// The metadata region passed its low-water mark, in either direction.
    MetadataLow {
        /// Whether no extent can be placed now.
        low: bool,
        /// Bytes used.
        used_bytes: u64,
        /// Bytes there are.
        region_bytes: u64,
    },
    /// A region of the placement store was dropped or is back.
    StoreMember {
        /// Name of its disk.
        disk: String,
        /// Whether it takes part.
        in_sync: bool,
        /// Why.
        message: String,
    },
    /// Anything else worth a line.
    Note {
        /// What, for people.
        message: String,
    },
}
