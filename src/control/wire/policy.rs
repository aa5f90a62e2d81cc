//! The policy: what is wanted of it, what it proposes, and why a VHD lies where it lies.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::job::JobInfo;

/// What is wanted of the policy. Settings are written as they are set: `15ms`, `80%`, `auto`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PolicyInfo {
    /// Of the pool, and of all VHDs that do not say otherwise.
    pub pool: BTreeMap<String, String>,
    /// Of VMs, by name: only what they have of their own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vms: BTreeMap<String, BTreeMap<String, String>>,
    /// Of VHDs, by name: only what they have of their own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vhds: BTreeMap<String, BTreeMap<String, String>>,
    /// Why this is not what was kept, and what to do. Absent if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Changes what is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyUpdate {
    /// Name or UUID of the VM that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Name or UUID of the VHD that it is for. Without either it is for the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhd: Option<String>,
    /// By name of the setting; null: as the level above says, or the default.
    pub settings: BTreeMap<String, Option<String>>,
}

/// What the policy proposes, and what came of what it proposed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AdviceInfo {
    /// Proposals, the most urgent first.
    pub proposals: Vec<ProposalInfo>,
    /// What came of those that were carried out, the last one first.
    pub outcomes: Vec<OutcomeInfo>,
    /// Bytes whose moves were started in the last 24 hours.
    pub spent_bytes: u64,
    /// Bytes that may be moved in 24 hours.
    pub budget_bytes: u64,
    /// Why the policy does not go by what was wanted of it before, and what to do. Absent if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A proposal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProposalInfo {
    /// By which it is applied and dismissed.
    pub number: u32,
    /// The rule: tolerance, suspect, space, neighbour, latency, rate, imbalance, together, contract.
    pub rule: String,
    /// What to do.
    pub what: String,
    /// As a command.
    pub command: String,
    /// What was observed.
    pub because: String,
    /// What it brings.
    pub brings: String,
    /// What it takes.
    pub costs: String,
    /// What was not chosen, and why.
    pub instead: Vec<String>,
    /// What becomes of it: start, advice, inflight, budget, quiet.
    pub standing: String,
    /// The same in words.
    pub standing_text: String,
    /// Bytes to copy.
    pub bytes: u64,
    /// What is promised: the value before.
    pub before: f64,
    /// What is promised: the value after.
    pub after: f64,
    /// What is promised: of which metric.
    pub metric: String,
}

/// What came of a proposal that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutcomeInfo {
    /// Number of the proposal.
    pub number: u32,
    /// What was promised, and what came.
    pub text: String,
}

/// A proposal was applied or dismissed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AdviceResult {
    /// Its number.
    pub proposal: u32,
    /// The job that carries it out. Absent if there was nothing to move, or it was dismissed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobInfo>,
}

/// Why a VHD lies where it lies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WhyInfo {
    /// Its name.
    pub vhd: String,
    /// Disk by disk.
    pub disks: Vec<WhyDisk>,
    /// The same for people, with what was decided.
    pub sentences: Vec<String>,
}

/// What of a VHD is on one disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WhyDisk {
    /// Name of the disk.
    pub disk: String,
    /// Replicas of extents.
    pub replicas: u64,
    /// Part of the disk's time that the VHD takes.
    pub busy: f64,
    /// How busy the disk is in all.
    pub disk_busy: f64,
    /// VHDs of other VMs there.
    pub strangers: u64,
}
