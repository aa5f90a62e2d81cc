//! What users want of the policy: for the pool, for VMs, for VHDs; and which wishes contradict each other or cannot be met.
//!
//! Defaults that others have used for long: disks at most 80 % full, differences of 5 %, 15 ms on average.

mod check;
mod text;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::observe::{Moment, Vhd};
use crate::base::ids::{VhdId, VmId};
use crate::base::limits::{POLICY_LOOK_SECS, POLICY_LOOK_SECS_MIN, POLICY_WINDOW_SECS_MAX, POLICY_WINDOW_SECS_MIN};

pub use check::RuleError;
pub use text::{SETTINGS, Scope, SettingError};

/// How far the policy may go with an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It is not looked at.
    Off,
    /// Changes are proposed.
    #[default]
    Advise,
    /// Changes are carried out.
    Auto,
}

/// What is wanted for the VHDs of a VM, or for one; `None`: as the level above says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// How far the policy may go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Nanoseconds that a request may take on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ns: Option<u64>,
    /// Requests a second that it should get served if it asks for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Failure domains whose loss it should survive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub survives: Option<u8>,
}

/// What is wanted for one VHD, all levels considered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// See [`Wish::mode`].
    pub mode: Mode,
    /// See [`Wish::latency_ns`].
    pub latency_ns: u64,
    /// See [`Wish::iops`]; `None`: what it gets is enough.
    pub iops: Option<u64>,
    /// See [`Wish::survives`]; 0: any disk that fails may take it along.
    pub survives: u8,
}

/// Hours in which nothing is started that can wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quiet {
    /// First minute of the day.
    pub from: u16,
    /// The minute after the last one; may be before `from`: then midnight is in between.
    pub to: u16,
}

impl Quiet {
    /// Whether it is quiet then.
    #[must_use]
    pub fn contains(self, at: Moment) -> bool {
        let minute = at.minute_of_day;
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

/// All wishes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// For all VHDs that do not say otherwise.
    pub all: Wish,
    /// For the VHDs of a VM.
    #[serde(with = "super::pairs")]
    pub vms: BTreeMap<VmId, Wish>,
    /// For single VHDs.
    #[serde(with = "super::pairs")]
    pub vhds: BTreeMap<VhdId, Wish>,
    /// Part of a disk's slots that may be taken.
    pub space: f64,
    /// By how much less than a limit something must be for that to be over.
    pub difference: f64,
    /// Standard deviation of how busy disks are that is borne.
    pub imbalance: f64,
    /// Seconds for which something must be so before anything is proposed.
    pub hold_secs: u64,
    /// The same for what only makes things nicer.
    pub comfort_hold_secs: u64,
    /// Seconds for which a VHD rests that has been moved.
    pub rest_secs: u64,
    /// Seconds after the end of a change until it is measured what came of it. Not written down while it is the default, so that programs
    /// which do not know it can read the rest.
    #[serde(default = "outcome_secs_default", skip_serializing_if = "is_outcome_secs_default")]
    pub outcome_secs: u64,
    /// What may be moved in any 24 hours, as part of the pool's capacity.
    pub moved_a_day: f64,
    /// Moves that the policy has in flight at most.
    pub moves_max: u32,
    /// When nothing is started that can wait.
    pub quiet: Option<Quiet>,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            all: Wish::default(),
            vms: BTreeMap::new(),
            vhds: BTreeMap::new(),
            space: 0.80,
            difference: 0.05,
            imbalance: 0.05,
            hold_secs: 600,
            comfort_hold_secs: 3600,
            rest_secs: 6 * 3600,
            outcome_secs: outcome_secs_default(),
            moved_a_day: 0.01,
            moves_max: 2,
            quiet: None,
        }
    }
}

fn outcome_secs_default() -> u64 {
    1800
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the serializer hands it over like that")]
fn is_outcome_secs_default(secs: &u64) -> bool {
    *secs == outcome_secs_default()
}

/// Latency that is borne where nobody says: 15 ms.
pub const LATENCY_NS_DEFAULT: u64 = 15_000_000;

impl Rules {
    /// What is wanted for a VHD.
    #[must_use]
    pub fn of(&self, vhd: &Vhd) -> Wanted {
        let levels = || self.levels(vhd.id, vhd.vm);
        Wanted {
            mode: self.mode(vhd.id, vhd.vm),
            latency_ns: levels().find_map(|wish| wish.latency_ns).unwrap_or(LATENCY_NS_DEFAULT),
            iops: levels().find_map(|wish| wish.iops),
            survives: levels().find_map(|wish| wish.survives).unwrap_or(0),
        }
    }

    /// Seconds that count as "now" when rates and latencies are looked at. As long as something must be so, for the two have the same
    /// purpose: whoever wants to see an aggressor within a minute does not want a mean over five. Not less than a few samples.
    #[must_use]
    pub fn window_secs(&self) -> u64 {
        self.hold_secs.clamp(POLICY_WINDOW_SECS_MIN, POLICY_WINDOW_SECS_MAX)
    }

    /// Seconds from one look at the pool to the next: whoever wants something to be mended that has been so for half a minute does not
    /// want to wait as long again until somebody looks.
    #[must_use]
    pub fn look_secs(&self) -> u64 {
        (self.hold_secs / 3).clamp(POLICY_LOOK_SECS_MIN, POLICY_LOOK_SECS)
    }

    /// How far the policy may go with a VHD of that VM, if it belongs to one.
    #[must_use]
    pub fn mode(&self, vhd: VhdId, vm: Option<VmId>) -> Mode {
        self.levels(vhd, vm).find_map(|wish| wish.mode).unwrap_or_default()
    }

    /// How far the policy may go with a VHD that does not exist yet, of that VM.
    #[must_use]
    pub fn mode_of_new(&self, vm: Option<VmId>) -> Mode {
        let of_vm = vm.and_then(|vm| self.vms.get(&vm)).and_then(|wish| wish.mode);
        of_vm.or(self.all.mode).unwrap_or_default()
    }

    /// The wishes that count for a VHD, its own first.
    fn levels(&self, vhd: VhdId, vm: Option<VmId>) -> impl Iterator<Item = &Wish> {
        [self.vhds.get(&vhd), vm.and_then(|vm| self.vms.get(&vm)), Some(&self.all)].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests;
