//! Every request and response of the HTTP API, used by the server and by our own command line.
//!
//! Sizes are integers in bytes, named `*_bytes`; times are seconds, named `*_secs`. Requests refuse unknown fields.

mod check;
mod disk;
mod error;
mod event;
mod impact;
mod job;
mod limits;
mod policy;
mod pool;
mod sharing;
mod stats;
mod vhd;
mod vm;

pub use crate::base::size;

pub use check::CheckReport;
pub use disk::{
    Accept, DiskAdd, DiskHealth, DiskInfo, DiskIo, DiskList, DiskRemoved, DiskReplace, DiskReplaced, DiskResult,
    DiskUpdate, IoStats,
};
pub use error::{ErrorBody, ErrorInfo, ErrorKind};
pub use event::{Event, EventDetail, Severity};
pub use impact::{
    DiskFail, DiskFailed, ExtentSum, Fate, GoneDisk, ImpactInfo, ImpactSum, ImpactTotals, StoreImpact, VhdImpact,
    VmImpact,
};
pub use job::{
    ByteRange, JobCancel, JobCreate, JobInfo, JobList, JobResult, JobState, JobUpdate, JobWish, PlanInfo, PlannedDisk,
    PlannedVhd, Scrubbed,
};
pub use limits::{IoLimits, IoLimitsUpdate, RateLimit};
pub use policy::{AdviceInfo, AdviceResult, OutcomeInfo, PolicyInfo, PolicyUpdate, ProposalInfo, WhyDisk, WhyInfo};
pub use pool::{DomainWarning, MemberHealth, PoolInfo, PoolUpdate, SpaceInfo, StoreInfo, StoreMember};
pub use sharing::{Sharing, SharingInEffect, SharingPriority, SharingUpdate};
pub use stats::{HotExtent, StatsInfo, StatsList, StatsSample};
pub use vhd::{
    Attachment, CapacityInfo, DiskUse, Expand, ExpandsBy, Layout, MapRun, VhdCreate, VhdDeleted, VhdHealth, VhdInfo,
    VhdList, VhdMapInfo, VhdRename, VhdResize, VhdResult, VhdUpdate, WhenFull,
};
pub use vm::{VmCreate, VmDeleted, VmInfo, VmIo, VmIoStats, VmList, VmResult, VmUpdate, VmVhd};

/// What the path prefix of every versioned route is.
pub const API_PREFIX: &str = "/api/v1";
