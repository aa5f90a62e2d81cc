//! What the placement store says about each VM: a named group of VHDs. A VHD says by name which VM it belongs to
//! ([`VhdRecord::vm`]).
//!
//! Before there were records of VMs, that name was all there was: [`adopt`] makes the records that such a pool lacks.
//!
//! Stored as the other records are: see [`super::record`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::capacity::Capacity;
use super::limits::IoLimits;
use super::record::{PoolRecord, RECORD_VERSION, RecordError, VhdRecord, decode, impossible};
use super::sharing::Sharing;
use crate::base::ids::{self, VmId};
use crate::base::limits::{LABEL_KEY_LEN_MAX, LABEL_VALUE_LEN_MAX, LABELS_MAX};

/// Why a VM cannot have these labels, or this owner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// The key breaks the rules.
    #[error(
        "the key {key:?} of a label is not valid: give 1 to {LABEL_KEY_LEN_MAX} letters, digits, '-', '_', '.' or '/', and start with a \
         letter or digit"
    )]
    Key {
        /// The key, its end left out if it is too long.
        key: String,
    },
    /// The value breaks the rules.
    #[error(
        "the value of label '{key}' is not valid: give 1 to {LABEL_VALUE_LEN_MAX} bytes of text without control characters (it has {len} \
         bytes)"
    )]
    Value {
        /// The key.
        key: String,
        /// Bytes of the value.
        len: usize,
    },
    /// There are too many.
    #[error("{count} labels are too many: a VM can have {LABELS_MAX}")]
    TooMany {
        /// How many there would be.
        count: usize,
    },
    /// The owner breaks the rules.
    #[error(
        "the owner of a VM is 1 to {LABEL_VALUE_LEN_MAX} bytes of text without control characters (this one has {len} bytes)"
    )]
    Owner {
        /// Bytes of it.
        len: usize,
    },
}

/// What the store says about one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Its identifier in the pool; never reused.
    pub id: VmId,
    /// Its UUID; follows from the pool's UUID and the identifier.
    pub uuid: Uuid,
    /// Name, unique among the VMs of the pool.
    pub name: String,
    /// What people and programs want to find it by; nothing follows from them here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whose it is, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What its VHDs together are limited to.
    #[serde(default, skip_serializing_if = "IoLimits::is_none")]
    pub limits: IoLimits,
    /// What each of its VHDs asks of disks that others want, too, if it says nothing itself.
    #[serde(default, skip_serializing_if = "Sharing::is_none")]
    pub sharing: Sharing,
    /// Quota and reservation of its VHDs together.
    #[serde(default, skip_serializing_if = "Capacity::is_unset")]
    pub capacity: Capacity,
    /// When it was created, in seconds since the Unix epoch. Of one that was adopted: when that was.
    pub created: u64,
}

impl VmRecord {
    /// The next VM of the pool, which counts it. `created`: seconds since the Unix epoch.
    ///
    /// # Panics
    /// After 4 billion VMs in one pool.
    #[must_use]
    pub fn next(pool: &mut PoolRecord, name: &str, created: u64) -> VmRecord {
        let id = pool.next_vm_id;
        pool.next_vm_id = VmId(id.0.checked_add(1).expect("4 billion VMs in one pool"));
        let (uuid, name) = (uuid_of(pool.uuid, id), name.to_owned());
        let (version, labels) = (RECORD_VERSION, BTreeMap::new());
        let (limits, sharing, capacity) = (IoLimits::default(), Sharing::default(), Capacity::default());
        VmRecord { version, id, uuid, name, labels, owner: None, limits, sharing, capacity, created }
    }

    /// The bytes for the store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record of plain fields is always JSON")
    }

    /// Reads what [`VmRecord::encode`] wrote.
    ///
    /// # Errors
    /// If it is not a valid record of this version.
    pub fn decode(bytes: &[u8]) -> Result<VmRecord, RecordError> {
        let record: VmRecord = decode("VM", bytes)?;
        ids::check_name(&record.name).map_err(|source| RecordError::Name { what: "VM", source })?;
        record.check().map_err(|error| {
            let field = if matches!(error, LabelError::Owner { .. }) { "owner" } else { "set of labels" };
            impossible(&record.name, field, error)
        })?;
        record.limits.check().map_err(|error| impossible(&record.name, "limit", error))?;
        record.sharing.check().map_err(|error| impossible(&record.name, "share", error))?;
        record.capacity.check(&record.name)?;
        Ok(record)
    }

    /// Whether its labels and its owner keep the rules.
    ///
    /// # Errors
    /// The first rule that they break.
    pub fn check(&self) -> Result<(), LabelError> {
        if self.labels.len() > LABELS_MAX {
            return Err(LabelError::TooMany { count: self.labels.len() });
        }
        for (key, value) in &self.labels {
            check_key(key)?;
            if !is_text(value) {
                return Err(LabelError::Value { key: key.clone(), len: value.len() });
            }
        }
        match &self.owner {
            Some(owner) if !is_text(owner) => Err(LabelError::Owner { len: owner.len() }),
            _ => Ok(()),
        }
    }
}

/// Whether a label can have this key.
///
/// # Errors
/// If not.
pub fn check_key(key: &str) -> Result<(), LabelError> {
    let legal = |(i, c): (usize, char)| c.is_ascii_alphanumeric() || (i > 0 && matches!(c, '-' | '_' | '.' | '/'));
    if key.is_empty() || key.len() > LABEL_KEY_LEN_MAX || !key.char_indices().all(legal) {
        return Err(LabelError::Key { key: key.chars().take(LABEL_KEY_LEN_MAX).collect() });
    }
    Ok(())
}

fn is_text(text: &str) -> bool {
    !text.is_empty() && text.len() <= LABEL_VALUE_LEN_MAX && !text.chars().any(char::is_control)
}

/// An odd number, its bits well mixed (the golden ratio): by it identifiers next to each other become UUIDs that look different.
const SPREAD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

/// Identifiers are never given twice in a pool, and pools have random UUIDs: so there are no two such UUIDs, and whoever makes a VM
/// along with something else needs no randomness for that.
fn uuid_of(pool: Uuid, id: VmId) -> Uuid {
    let mixed = pool.as_u128() ^ u128::from(id.0).wrapping_mul(SPREAD);
    uuid::Builder::from_random_bytes(mixed.to_be_bytes()).into_uuid()
}

/// Makes records of the VMs that VHDs name and that have none, in the order of their names; `pool` counts them. That is so in a pool
/// that no program has served which knows records of VMs, or where this was interrupted: then those that `vms` has are not counted yet.
/// `now`: seconds since the Unix epoch.
#[must_use]
pub fn adopt(pool: &mut PoolRecord, vhds: &[VhdRecord], vms: &[VmRecord], now: u64) -> Vec<VmRecord> {
    let known: BTreeSet<&str> = vms.iter().map(|vm| vm.name.as_str()).collect();
    let counted = vms.iter().map(|vm| VmId(vm.id.0.saturating_add(1))).max();
    pool.next_vm_id = counted.map_or(pool.next_vm_id, |next| next.max(pool.next_vm_id));
    let named: BTreeSet<&str> = vhds.iter().filter_map(|vhd| vhd.vm.as_deref()).collect();
    named.difference(&known).map(|name| VmRecord::next(pool, name, now)).collect()
}

#[cfg(test)]
mod tests;
