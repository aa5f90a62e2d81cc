//! VHDs.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::limits::{IoLimits, IoLimitsUpdate};
use super::sharing::{Sharing, SharingInEffect, SharingUpdate};
use crate::base::limits::WHEN_FULL_WAIT_SECS_DEFAULT;

/// What the placement of a VHD should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// All extents on one host disk: no neighbour's load or failing disk can reach it.
    Isolated,
    /// Neighbouring extents on different host disks.
    Spanned,
}

/// Whether a VHD grows onto another disk by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Expand {
    /// It stays on the disks of its layout.
    Never,
    /// When they have no room for a write, it grows onto the disk with the most room that accepts spanned VHDs.
    Auto,
}

/// Who says whether a VHD grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExpandsBy {
    /// A setting of its own.
    Vhd,
    /// The setting of the pool.
    Pool,
    /// The policy may change it (mode `auto`).
    Policy,
    /// Nobody: spanned VHDs do, isolated ones do not.
    #[default]
    Layout,
}

/// What a write does that needs room when there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum WhenFull {
    /// Waits for room, then fails.
    Queue {
        /// How long.
        #[serde(default = "default_wait_secs")]
        wait_secs: u64,
    },
    /// Fails at once.
    Error {},
}

fn default_wait_secs() -> u64 {
    WHEN_FULL_WAIT_SECS_DEFAULT
}

impl Default for WhenFull {
    fn default() -> WhenFull {
        WhenFull::Queue { wait_secs: WHEN_FULL_WAIT_SECS_DEFAULT }
    }
}

/// Creates a VHD. Creating one that exists with the same parameters changes nothing and succeeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VhdCreate {
    /// Unique name: 1 to 64 letters, digits, '-', '_' or '.', starting with a letter or digit.
    pub name: String,
    /// Size the guest sees; a multiple of the block size.
    pub size_bytes: u64,
    /// What its placement should be. When absent, the policy says it if it is in mode `auto` for the pool or the VM and has seen the pool; else
    /// it is `isolated` on the disk with the most room, or `spanned` over all if it has replicas, or that disk has no room for all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// Names or UUIDs of the host disks it may use: one for `isolated`, two or more for `spanned`. Chosen when absent:
    /// that of an isolated VHD by the policy in mode `auto`, else by room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<Vec<String>>,
    /// `spanned` without `disks`: over how many host disks; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u8>,
    /// Replicas of each extent, 1 to 3, no two on disks that fail together; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u8>,
    /// Allocates every extent at once, so that no later write can find the pool full.
    #[serde(default)]
    pub thick: bool,
    /// Keeps a checksum of each block (1/32 of an extent), so that what a host disk silently gets wrong is noticed: each read
    /// reads whole blocks and compares them.
    #[serde(default)]
    pub checksums: bool,
    /// Refuses guest writes.
    #[serde(default)]
    pub read_only: bool,
    /// Logical block size the guest sees: 512 or 4096; 512 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<u32>,
    /// Virtqueues, the most a guest can use; 4 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Name of the VM it belongs to; it is made if there is none of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Owner of its socket, `USER:GROUP` by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_owner: Option<String>,
    /// Mode of its socket in octal; `0660` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_mode: Option<String>,
    /// What a write does that finds the pool full.
    #[serde(default)]
    pub when_full: WhenFull,
    /// Whether it grows onto other disks when its own have no room for a write. When absent, as the pool says; if that says nothing, a
    /// spanned one does, and an isolated one while the policy may change it (mode `auto`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expand: Option<Expand>,
    /// What it is limited to.
    #[serde(default, skip_serializing_if = "IoLimits::is_none")]
    pub limits: IoLimits,
    /// What it asks of host disks that others want at the same time.
    #[serde(default, skip_serializing_if = "Sharing::is_none")]
    pub sharing: Sharing,
    /// The most slots that it may take, in bytes, rounded up to whole extents: with two replicas each extent takes two. A write beyond it
    /// finds no room. No limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// Slots that it can always take on its disks, whatever others take, in bytes, rounded up to whole extents. Nothing when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation_bytes: Option<u64>,
}

/// Changes settings of a VHD. What is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VhdUpdate {
    /// Name of the VM it belongs to, which is made if there is none of that name; `null` for none.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub vm: Option<Option<String>>,
    /// Owner of its socket, `USER:GROUP`; `null` for the daemon's own user.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub socket_owner: Option<Option<String>>,
    /// Mode of its socket, in octal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_mode: Option<String>,
    /// What a write does that finds the pool full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_full: Option<WhenFull>,
    /// Virtqueues. Refused while attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Whether it grows onto other disks when its own have no room for a write; `null` for what the pool
    /// says; if that says nothing, a spanned one does, and an isolated one while the policy may change it (mode `auto`).
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Expand>)]
    pub expand: Option<Option<Expand>>,
    /// What it is limited to.
    #[serde(default, skip_serializing_if = "IoLimitsUpdate::is_none")]
    pub limits: IoLimitsUpdate,
    /// What it asks of host disks that others want at the same time.
    #[serde(default, skip_serializing_if = "SharingUpdate::is_none")]
    pub sharing: SharingUpdate,
    /// The most slots that it may take, in bytes, rounded up to whole extents; `null` for no limit. What is more already stays.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub quota_bytes: Option<Option<u64>>,
    /// Slots that it can always take on its disks, in bytes, rounded up to whole extents; `null` for none.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub reservation_bytes: Option<Option<u64>>,
}

/// Tells `null` (clear it) from absent (leave it).
pub(super) fn given<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::<T>::deserialize(deserializer).map(Some)
}

/// Gives a VHD another name; its socket moves with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VhdRename {
    /// The new name.
    pub name: String,
}

/// Gives a VHD another size. Its guest sees a larger one at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VhdResize {
    /// The new size; a multiple of the block size.
    pub size_bytes: u64,
    /// Even if it becomes smaller, and what is written beyond its new end is lost. Not while it is attached.
    #[serde(default)]
    pub force: bool,
}

/// A VHD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VhdInfo {
    /// Unique name.
    pub name: String,
    /// UUID; its first 20 hex digits are the serial number that the guest sees.
    pub uuid: Uuid,
    /// Size the guest sees.
    pub size_bytes: u64,
    /// Logical block size the guest sees.
    pub block_bytes: u32,
    /// What its placement should be.
    pub layout: Layout,
    /// Names of the host disks it may use.
    pub disks: Vec<String>,
    /// Whether the user named the disks.
    pub disks_chosen: bool,
    /// Replicas that each extent should have, on disks that do not fail together.
    pub replicas: u8,
    /// Extents that have fewer readable replicas than that.
    pub degraded_extents: u64,
    /// Whether all of it can be read and written.
    pub health: VhdHealth,
    /// What is wrong with it, which disk that comes from, and what to do; absent if it is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether every extent was allocated at creation.
    pub thick: bool,
    /// Whether its blocks have checksums.
    pub checksums: bool,
    /// Whether it is served; false while room for a thick VHD is still being given.
    pub ready: bool,
    /// Whether guest writes are refused.
    pub read_only: bool,
    /// Virtqueues.
    pub queues: u16,
    /// Name of the VM it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Path of its vhost-user socket.
    pub socket: String,
    /// Why the socket is not there; absent if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_problem: Option<String>,
    /// Owner of its socket, if not the daemon's own user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_owner: Option<String>,
    /// Mode of its socket, in octal.
    pub socket_mode: String,
    /// What a write does that finds the pool full.
    pub when_full: WhenFull,
    /// Its own setting of whether it grows onto other disks when its own have no room for a write; absent: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expand: Option<Expand>,
    /// Whether it grows, as things are now.
    #[serde(default)]
    pub expands: bool,
    /// Who says so.
    #[serde(default)]
    pub expands_by: ExpandsBy,
    /// What it is limited to; absent: nothing. Its VM may be limited, too.
    #[serde(default, skip_serializing_if = "IoLimits::is_none")]
    pub limits: IoLimits,
    /// What it asks itself of host disks that others want at the same time; absent: nothing.
    #[serde(default, skip_serializing_if = "Sharing::is_none")]
    pub sharing: Sharing,
    /// What holds: what it does not ask itself comes from its VM.
    #[serde(default)]
    pub sharing_in_effect: SharingInEffect,
    /// The cache mode that its guest last chose: writeback, or writethrough.
    pub writeback: bool,
    /// The frontend that is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<Attachment>,
    /// Room taken, whole extents counted.
    pub allocated_bytes: u64,
    /// Blocks written, whole blocks counted.
    pub written_bytes: u64,
    /// Its quota and reservation, and how much of them is used.
    #[serde(default)]
    pub capacity: CapacityInfo,
    /// Where its extents are now.
    pub placement: Vec<DiskUse>,
    /// When it was created, seconds since 1970.
    pub created_secs: u64,
}

/// Quota and reservation of a VHD, or of all VHDs of a VM together. Bytes of slots, all replicas counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CapacityInfo {
    /// The most that may be taken; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// What can always be taken; absent: nothing is promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation_bytes: Option<u64>,
    /// What counts against the quota: extents that have room (of a thick VHD all) with all the replicas that they should have. Copies that
    /// jobs make do not count.
    pub charged_bytes: u64,
    /// What is kept free for the part of the reservation that is not used.
    pub held_bytes: u64,
    /// What should be kept free as well, and cannot: disks have failed, or replicas that they had were made anew where it was kept.
    pub short_bytes: u64,
}

/// Whether all of a VHD can be read and written. In ascending order of how bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VhdHealth {
    /// All of it.
    Healthy,
    /// All of it can be read, but disks that are failed or missing have replicas of it, or room that it wants.
    Degraded,
    /// Disks that are failed or missing have the only replicas of some of it: reads and writes fail there, and only there.
    Partial,
}

/// The frontend that is connected to a VHD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attachment {
    /// Process id of the frontend, if the kernel told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Process id of another frontend, which is connected and waits until this one has stopped its virtqueues: the destination of a
    /// live migration (0: the kernel did not tell).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u32>,
}

/// Extents of a VHD on one host disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskUse {
    /// Name of the disk.
    pub disk: String,
    /// Extents there.
    pub extents: u64,
}

/// All VHDs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VhdList {
    /// Sorted by name.
    pub vhds: Vec<VhdInfo>,
}

/// A VHD after a request that may have changed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VhdResult {
    /// Whether anything changed; false if it was as asked for already.
    pub changed: bool,
    /// The VHD now.
    pub vhd: VhdInfo,
}

/// A VHD that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VhdDeleted {
    /// The name it had.
    pub name: String,
}

/// Where the extents of a VHD are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VhdMapInfo {
    /// Name of the VHD.
    pub name: String,
    /// Bytes of an extent.
    pub extent_bytes: u64,
    /// Extents of the VHD, absent ones included.
    pub extents: u32,
    /// Names of the disks that appear in `runs`, in the order of the pool's disk table.
    pub disks: Vec<String>,
    /// Runs of extents that lie on one disk in consecutive slots. Extents in no run are absent and read as zeros.
    pub runs: Vec<MapRun>,
    /// Where to go on (as `?from=`), if there are more runs than an answer carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_extent: Option<u32>,
}

/// Consecutive extents in consecutive slots of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MapRun {
    /// First extent.
    pub extent: u32,
    /// Number of extents.
    pub count: u32,
    /// Name of the disk.
    pub disk: String,
    /// Slot of the first extent.
    pub slot: u32,
    /// Blocks written in these extents.
    pub blocks_written: u64,
}
