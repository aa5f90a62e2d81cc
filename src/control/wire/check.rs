//! Consistency checks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckReport {
    /// Whether nothing is wrong.
    pub consistent: bool,
    /// VHDs looked at.
    pub vhds: u64,
    /// Placed extents looked at.
    pub extents: u64,
    /// Slots in use.
    pub slots_used: u64,
    /// What is wrong, for people.
    pub findings: Vec<String>,
}
