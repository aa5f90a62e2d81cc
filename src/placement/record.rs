//! What the placement store says about the pool and about each VHD, apart from where extents are. Jobs: [`super::job`]. VMs:
//! [`super::vm`].
//!
//! Records are stored as JSON: they are few, small, read once, and a person may have to read them in a metadata dump.
//! Unknown fields are refused: an older program must not drop what a newer one wrote.

use serde::{Deserialize, Serialize};

use super::capacity::Capacity;
use super::limits::IoLimits;
use super::sharing::Sharing;
use crate::base::ids::{self, DiskId, DiskSet, JobId, NameError, VhdId, VmId};
use crate::base::limits::{DISKS_MAX, QUEUES_MAX, REPLICAS_MAX, VHD_SIZE_MAX, WHEN_FULL_WAIT_SECS_DEFAULT};
use crate::base::units::Geometry;

/// Version of all record formats. Raised when a field changes its meaning or a new one must not be ignored.
pub const RECORD_VERSION: u32 = 1;

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not JSON, or not this record.
    #[error("a {what} record of the placement store cannot be read")]
    Syntax {
        /// "pool", "VHD", "VM" or "job".
        what: &'static str,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// Written by another version.
    #[error(
        "a {what} record has format version {found}, this program knows version {RECORD_VERSION}: \
         use the version of spanblk that wrote it, or a newer one"
    )]
    Version {
        /// "pool", "VHD", "VM" or "job".
        what: &'static str,
        /// The version in the record.
        found: u32,
    },
    /// A name breaks the rules.
    #[error("a {what} record has a bad name")]
    Name {
        /// "disk", "VHD" or "VM".
        what: &'static str,
        /// Which rule.
        source: NameError,
    },
    /// A field has a value that no command could have given it.
    #[error("the record of {subject} has an impossible {field}: {value}")]
    Impossible {
        /// Name of the pool, disk, VHD or VM, or the number of the job.
        subject: String,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
    },
}

/// Which VHDs may be put on a host disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accept {
    /// Isolated VHDs only.
    Isolated,
    /// Spanned VHDs only.
    Spanned,
    /// Both.
    #[default]
    Any,
    /// No new VHD.
    None,
}

impl Accept {
    /// Whether isolated VHDs may be put there.
    #[must_use]
    pub fn isolated(self) -> bool {
        matches!(self, Accept::Isolated | Accept::Any)
    }

    /// Whether spanned VHDs may be put there.
    #[must_use]
    pub fn spanned(self) -> bool {
        matches!(self, Accept::Spanned | Accept::Any)
    }

    /// The word of the command line and the API.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Accept::Isolated => "isolated",
            Accept::Spanned => "spanned",
            Accept::Any => "any",
            Accept::None => "none",
        }
    }
}

/// One host disk of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRecord {
    /// Its place in the pool's disk table. Once a disk has left the pool, another one may get it, after a restart.
    pub id: DiskId,
    /// UUID in its label.
    pub uuid: uuid::Uuid,
    /// Name, unique in the pool.
    pub name: String,
    /// Slots for extents.
    pub slots: u32,
    /// Byte offset of slot 0.
    pub data_offset: u64,
    /// Which VHDs may be put there.
    pub accept: Accept,
    /// What fails together with it: replicas never share one.
    pub failure_domain: String,
}

/// What the store says about the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// UUID of the pool.
    pub uuid: uuid::Uuid,
    /// Bytes of an extent.
    pub extent_size: u64,
    /// Identifier of the next VHD. Identifiers are never reused, so that a late change for a deleted VHD cannot hit another.
    pub next_vhd_id: VhdId,
    /// Identifier of the next job; never reused either. Left out before the first job, so that programs which know no jobs
    /// read the pools that have had none, and refuse the others.
    #[serde(default = "first_job", skip_serializing_if = "is_first_job")]
    pub next_job_id: JobId,
    /// Identifier of the next VM; never reused either. Left out before the first VM, so that programs which know no records of VMs
    /// read the pools that have had none, and refuse the others.
    #[serde(default = "first_vm", skip_serializing_if = "is_first_vm")]
    pub next_vm_id: VmId,
    /// Whether VHDs that do not say grow onto other disks; `None`: spanned ones do, isolated ones do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expand: Option<Expand>,
    /// The disks, by identifier.
    pub disks: Vec<DiskRecord>,
}

fn first_job() -> JobId {
    JobId(1)
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_first_job(id: &JobId) -> bool {
    *id == first_job()
}

fn first_vm() -> VmId {
    VmId(1)
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_first_vm(id: &VmId) -> bool {
    *id == first_vm()
}

impl PoolRecord {
    /// A pool without VHDs, VMs and jobs.
    #[must_use]
    pub fn new(uuid: uuid::Uuid, extent_size: u64, disks: Vec<DiskRecord>) -> PoolRecord {
        let (next_vhd_id, next_job_id, next_vm_id) = (VhdId(1), first_job(), first_vm());
        let (version, expand) = (RECORD_VERSION, None);
        PoolRecord { version, uuid, extent_size, next_vhd_id, next_job_id, next_vm_id, expand, disks }
    }

    /// The disk with this identifier.
    #[must_use]
    pub fn disk(&self, id: DiskId) -> Option<&DiskRecord> {
        self.disks.iter().find(|disk| disk.id == id)
    }

    /// The disk with this name or (in text) this UUID.
    #[must_use]
    pub fn find_disk(&self, name_or_uuid: &str) -> Option<&DiskRecord> {
        let uuid = uuid::Uuid::try_parse(name_or_uuid).ok();
        let by_name = self.disks.iter().find(|disk| disk.name == name_or_uuid);
        by_name.or_else(|| self.disks.iter().find(|disk| Some(disk.uuid) == uuid))
    }

    /// Name of a disk for people; its number if it is unknown.
    #[must_use]
    pub fn disk_name(&self, id: DiskId) -> String {
        self.disk(id).map_or_else(|| format!("#{}", id.0), |disk| disk.name.clone())
    }

    /// The geometry.
    ///
    /// # Errors
    /// If the extent size is not legal.
    pub fn geometry(&self) -> Result<Geometry, RecordError> {
        Geometry::new(self.extent_size).ok_or_else(|| impossible("the pool", "extent size", self.extent_size))
    }

    /// The bytes for the store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record of plain fields is always JSON")
    }

    /// Reads what [`PoolRecord::encode`] wrote.
    ///
    /// # Errors
    /// If it is not a valid record of this version.
    pub fn decode(bytes: &[u8]) -> Result<PoolRecord, RecordError> {
        let record: PoolRecord = decode("pool", bytes)?;
        record.check()?;
        Ok(record)
    }

    fn check(&self) -> Result<(), RecordError> {
        self.geometry()?;
        let mut seen = DiskSet::default();
        for (i, disk) in self.disks.iter().enumerate() {
            ids::check_name(&disk.name).map_err(|source| RecordError::Name { what: "disk", source })?;
            if usize::from(disk.id.0) >= DISKS_MAX || seen.contains(disk.id) {
                return Err(impossible(&disk.name, "identifier", disk.id.0));
            }
            seen.insert(disk.id);
            let twin = self.disks[..i].iter().find(|other| other.name == disk.name || other.uuid == disk.uuid);
            if twin.is_some() {
                return Err(impossible(&disk.name, "twin", disk.uuid));
            }
        }
        Ok(())
    }
}

/// Where the extents of a VHD should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Layout {
    /// All on one disk.
    Isolated {
        /// The disk.
        disk: DiskId,
        /// Whether the user named it.
        chosen: bool,
    },
    /// Over several disks.
    Spanned {
        /// The disks, ascending.
        disks: Vec<DiskId>,
        /// How many the user asked for; `None`: all that accepted spanned VHDs, or those that were named.
        width: Option<u32>,
        /// Whether the user named them.
        chosen: bool,
    },
}

impl Layout {
    /// The disks.
    #[must_use]
    pub fn disks(&self) -> DiskSet {
        match self {
            Layout::Isolated { disk, .. } => [*disk].into_iter().collect(),
            Layout::Spanned { disks, .. } => disks.iter().copied().collect(),
        }
    }

    /// Number of disks.
    #[must_use]
    pub fn width(&self) -> usize {
        match self {
            Layout::Isolated { .. } => 1,
            Layout::Spanned { disks, .. } => disks.len(),
        }
    }

    /// The word of the command line and the API.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Layout::Isolated { .. } => "isolated",
            Layout::Spanned { .. } => "spanned",
        }
    }

    /// Checks the layout in the record of `subject`.
    pub(super) fn check(&self, subject: &str) -> Result<(), RecordError> {
        let ids: &[DiskId] = match self {
            Layout::Isolated { disk, .. } => std::slice::from_ref(disk),
            Layout::Spanned { disks, .. } => disks,
        };
        let in_range = ids.iter().all(|id| usize::from(id.0) < DISKS_MAX);
        if ids.is_empty() || !in_range || !ids.is_sorted_by(|a, b| a < b) {
            return Err(impossible(subject, "set of disks", format!("{ids:?}")));
        }
        Ok(())
    }
}

/// What becomes of a write that finds no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum WhenFull {
    /// It waits this long for room, then fails.
    Queue {
        /// Seconds.
        secs: u64,
    },
    /// It fails.
    Error,
}

impl Default for WhenFull {
    fn default() -> WhenFull {
        WhenFull::Queue { secs: WHEN_FULL_WAIT_SECS_DEFAULT }
    }
}

/// Whether a VHD grows onto another disk by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expand {
    /// It stays on the disks of its layout.
    Never,
    /// When they have no room for a write, the extent goes to the disk with the most room, if its role allows it.
    Auto,
}

/// Who owns a vhost-user socket: names or numbers, resolved when the socket is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketOwner {
    /// User name or number.
    pub user: String,
    /// Group name or number.
    pub group: String,
}

/// What the store says about one VHD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VhdRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Its identifier in the pool; never reused.
    pub id: VhdId,
    /// Name, unique in the pool.
    pub name: String,
    /// UUID; its text, shortened, is the serial number that the guest reads.
    pub uuid: uuid::Uuid,
    /// Bytes; a multiple of the block size.
    pub size: u64,
    /// Where its extents should be.
    pub layout: Layout,
    /// Replicas of each extent, 1 to [`REPLICAS_MAX`], on disks that do not fail together. Left out where there is one, so that
    /// programs which know no replicas read the pools that have none, and refuse the others.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub replicas: u8,
    /// Whether all extents have slots from the start.
    pub thick: bool,
    /// Whether its blocks have checksums. Left out where they have none, so that programs which know no checksums read the pools
    /// that have none, and refuse the others.
    #[serde(default, skip_serializing_if = "is_false")]
    pub checksums: bool,
    /// Whether guest writes are refused.
    pub read_only: bool,
    /// Logical block size that the guest sees, in bytes (512 or 4096).
    pub block_size: u32,
    /// Virtqueues.
    pub queues: u16,
    /// Name of the VM it belongs to. That has a record ([`super::vm`]) once the pool has been served by a program which knows them.
    pub vm: Option<String>,
    /// Owner of its socket; `None`: the daemon's own.
    pub socket_owner: Option<SocketOwner>,
    /// Permission bits of its socket.
    pub socket_mode: u32,
    /// What becomes of a write that finds no room.
    pub when_full: WhenFull,
    /// Whether it grows onto other disks; `None`: as the pool says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expand: Option<Expand>,
    /// What it is limited to. Left out where there is no limit, so that programs which know none read the pools that have none, and refuse
    /// the others.
    #[serde(default, skip_serializing_if = "IoLimits::is_none")]
    pub limits: IoLimits,
    /// What it asks of disks that others want, too. Left out where it is nothing, as limits are.
    #[serde(default, skip_serializing_if = "Sharing::is_none")]
    pub sharing: Sharing,
    /// Its quota and reservation.
    #[serde(default, skip_serializing_if = "Capacity::is_unset")]
    pub capacity: Capacity,
    /// When it was created, in seconds since the Unix epoch.
    pub created: u64,
    /// The cache mode that its guest last chose; true is writeback. It outlives the daemon, so that a guest which chose
    /// writethrough goes on having it; and the frontend, since nobody can say that a guest is gone rather than about to
    /// reconnect. A new guest that finds writethrough is merely slower, and may switch.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub writeback: bool,
}

fn one() -> u8 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_one(value: &u8) -> bool {
    *value == 1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_true(value: &bool) -> bool {
    *value
}

impl VhdRecord {
    /// The bytes for the store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record of plain fields is always JSON")
    }

    /// Reads what [`VhdRecord::encode`] wrote.
    ///
    /// # Errors
    /// If it is not a valid record of this version.
    pub fn decode(bytes: &[u8]) -> Result<VhdRecord, RecordError> {
        let record: VhdRecord = decode("VHD", bytes)?;
        record.check()?;
        Ok(record)
    }

    /// Number of extents.
    ///
    /// # Panics
    /// If the size is beyond the limit (a bug: commands and records are checked).
    #[must_use]
    pub fn extents(&self, geometry: Geometry) -> u32 {
        geometry.extents_for(self.size).expect("the size of a VHD is within its limit")
    }

    fn check(&self) -> Result<(), RecordError> {
        ids::check_name(&self.name).map_err(|source| RecordError::Name { what: "VHD", source })?;
        if let Some(vm) = &self.vm {
            ids::check_name(vm).map_err(|source| RecordError::Name { what: "VM", source })?;
        }
        let bad = |field, value: u64| Err(impossible(&self.name, field, value));
        if !matches!(self.block_size, 512 | 4096) {
            return bad("block size", self.block_size.into());
        }
        if self.size == 0 || self.size > VHD_SIZE_MAX || !self.size.is_multiple_of(u64::from(self.block_size)) {
            return bad("size", self.size);
        }
        if !(1..=REPLICAS_MAX).contains(&usize::from(self.replicas)) {
            return bad("number of replicas", self.replicas.into());
        }
        if self.queues == 0 || usize::from(self.queues) > QUEUES_MAX {
            return bad("number of queues", self.queues.into());
        }
        if self.socket_mode & !0o777 != 0 {
            return bad("socket mode", self.socket_mode.into());
        }
        self.limits.check().map_err(|error| impossible(&self.name, "limit", error))?;
        self.sharing.check().map_err(|error| impossible(&self.name, "share", error))?;
        self.capacity.check(&self.name)?;
        self.layout.check(&self.name)
    }
}

pub(super) fn impossible(subject: &str, field: &'static str, value: impl ToString) -> RecordError {
    RecordError::Impossible { subject: subject.to_owned(), field, value: value.to_string() }
}

/// Only the version, whatever else there is: a record of another version is called that, not "unknown field".
#[derive(Deserialize)]
struct Version {
    version: u32,
}

pub(super) fn decode<T: for<'a> Deserialize<'a>>(what: &'static str, bytes: &[u8]) -> Result<T, RecordError> {
    let syntax = |source| RecordError::Syntax { what, source };
    let Version { version } = serde_json::from_slice(bytes).map_err(syntax)?;
    if version != RECORD_VERSION {
        return Err(RecordError::Version { what, found: version });
    }
    serde_json::from_slice(bytes).map_err(syntax)
}

#[cfg(test)]
mod tests;
