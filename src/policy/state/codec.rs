//! The state as bytes: JSON, since it is small and a person may have to read it, and four bytes of checksum behind it.

use serde::{Deserialize, Serialize};

use super::super::proposal::Subject;
use super::State;
use crate::base::ids::DiskId;
use crate::base::limits::{DISKS_MAX, POLICY_ENTRIES_MAX, POLICY_REFUSED_SECS_MAX};

/// Version of the form. Raised when a field changes its meaning or a new one must not be ignored.
const VERSION: u32 = 1;

/// Why bytes are not a state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// They are too few.
    #[error("{len} bytes are no state of the policy: it begins anew without them")]
    TooShort {
        /// How many there are.
        len: usize,
    },
    /// Some of them have changed.
    #[error(
        "the state of the policy is damaged (checksum {found:08x} instead of {expected:08x}): it begins anew without it"
    )]
    Checksum {
        /// What is written there.
        found: u32,
        /// What would be right.
        expected: u32,
    },
    /// Not JSON, or not this.
    #[error("the state of the policy cannot be read")]
    Syntax(#[source] serde_json::Error),
    /// Written by another version.
    #[error(
        "the state of the policy has format version {found}, this program knows version {VERSION}: use the version of spanblk that wrote it, \
         or a newer one"
    )]
    Version {
        /// The version that was found.
        found: u32,
    },
    /// Something in it cannot be.
    #[error("the state of the policy has an impossible {field}: {value}")]
    Impossible {
        /// What.
        field: &'static str,
        /// Its value.
        value: String,
    },
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    state: &'a State,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    #[allow(dead_code, reason = "looked at before the rest is read")]
    version: u32,
    state: State,
}

/// Only the version, whatever else there is.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl State {
    /// The bytes to keep.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let written = Written { version: VERSION, state: self };
        let mut bytes = serde_json::to_vec(&written).expect("a state of plain fields is always JSON");
        let sum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads what [`State::encode`] wrote.
    ///
    /// # Errors
    /// If it is not a state of this version, or says what cannot be.
    pub fn decode(bytes: &[u8]) -> Result<State, StateError> {
        let Some((text, sum)) = bytes.split_last_chunk::<4>() else {
            return Err(StateError::TooShort { len: bytes.len() });
        };
        let (found, expected) = (u32::from_le_bytes(*sum), crc32c::crc32c(text));
        if found != expected {
            return Err(StateError::Checksum { found, expected });
        }
        let Version { version: found } = serde_json::from_slice(text).map_err(StateError::Syntax)?;
        if found != VERSION {
            return Err(StateError::Version { found });
        }
        let mut written: serde_json::Value = serde_json::from_slice(text).map_err(StateError::Syntax)?;
        // Once these were not of single VHDs. They are over in some hours.
        if let Some(state) = written.get_mut("state").and_then(serde_json::Value::as_object_mut) {
            state.remove("refusals");
        }
        let Read { state, .. } = serde_json::from_value(written).map_err(StateError::Syntax)?;
        state.check()?;
        Ok(state)
    }

    fn check(&self) -> Result<(), StateError> {
        let impossible = |field, value: String| Err(StateError::Impossible { field, value });
        let lens = [
            ("number of conditions", self.conditions.len()),
            ("number of proposals", self.open.len()),
            ("number of dismissals", self.dismissed.len()),
            ("number of refusals", self.refusals.len()),
            ("number of hours", self.spent.len()),
            ("number of resting VHDs", self.rests.len() + self.insatiable.len()),
            ("number of placed VHDs", self.placed.len()),
            ("number of outcomes", self.applied.len()),
        ];
        if let Some((field, len)) = lens.into_iter().find(|(_, len)| *len > POLICY_ENTRIES_MAX) {
            return impossible(field, len.to_string());
        }
        let late = self.times().into_iter().find(|at| *at > self.clock.secs);
        if let Some(at) = late {
            return impossible("time", at.to_string());
        }
        if let Some(open) = self.open.iter().find(|open| open.number > self.proposed) {
            return impossible("proposal", open.number.to_string());
        }
        match self.named_disks().into_iter().find(|DiskId(disk)| usize::from(*disk) >= DISKS_MAX) {
            Some(DiskId(disk)) => impossible("disk", disk.to_string()),
            None => Ok(()),
        }
    }

    /// What it says to have been.
    fn times(&self) -> Vec<u64> {
        let mut times: Vec<u64> = self.conditions.values().map(|condition| condition.since).collect();
        for applied in &self.applied {
            times.push(applied.started);
            times.extend(applied.settled);
            times.extend(applied.measured.map(|measured| measured.at));
        }
        // Whatever was refused was so before now.
        times.extend(self.refusals.values().map(|refusal| refusal.until.saturating_sub(POLICY_REFUSED_SECS_MAX)));
        times
    }

    /// All disks that it names.
    fn named_disks(&self) -> Vec<DiskId> {
        let mut disks: Vec<DiskId> = Vec::new();
        let keys = self.conditions.keys().chain(self.dismissed.keys());
        let mut subjects: Vec<Subject> = keys.map(|key| key.1).chain(self.refusals.keys().map(|key| key.1)).collect();
        for open in &self.open {
            disks.extend(open.action.disks());
            disks.extend(open.alternatives.iter().flat_map(|other| other.action.disks()));
            subjects.extend(open.facts.iter().map(|fact| fact.subject).chain([open.subject, open.effect.subject]));
        }
        disks.extend(self.dismissed.values().flat_map(|dismissal| dismissal.action.disks()));
        for applied in &self.applied {
            disks.extend(applied.action.disks());
            subjects.extend([applied.subject, applied.effect.subject]);
        }
        disks.extend(subjects.into_iter().filter_map(|subject| match subject {
            Subject::Disk(disk) => Some(disk),
            Subject::Pool | Subject::Vhd(_) | Subject::Vm(_) => None,
        }));
        disks
    }
}
