//! A proposal: what to do, for which reason, with which effect, at what cost.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::ids::{DiskId, VhdId, VmId};

/// What makes a container insufficient, or too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// A VHD would not survive as many disks as it should.
    Tolerance,
    /// A VHD without replicas is on a disk that is suspect.
    Suspect,
    /// A disk runs out of room.
    Space,
    /// One VHD takes so much of a disk that another one is served too slowly.
    Neighbour,
    /// A VHD is served too slowly.
    Latency,
    /// A VHD gets fewer requests served than it should, or needs most of a disk by itself.
    Rate,
    /// Some disks do much more than others.
    Imbalance,
    /// The VHDs of a VM are on more disks than they need.
    Together,
    /// A VHD is on more disks than it needs.
    Contract,
}

impl Rule {
    /// All of them, the most urgent first.
    pub const ALL: [Rule; 9] = [
        Rule::Tolerance,
        Rule::Suspect,
        Rule::Space,
        Rule::Neighbour,
        Rule::Latency,
        Rule::Rate,
        Rule::Imbalance,
        Rule::Together,
        Rule::Contract,
    ];

    /// The word for people and programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Rule::Tolerance => "tolerance",
            Rule::Suspect => "suspect",
            Rule::Space => "space",
            Rule::Neighbour => "neighbour",
            Rule::Latency => "latency",
            Rule::Rate => "rate",
            Rule::Imbalance => "imbalance",
            Rule::Together => "together",
            Rule::Contract => "contract",
        }
    }

    /// Whether it is about data that could be lost: such changes wait for no rest and no quiet hours, whatever they do for the load.
    #[must_use]
    pub fn is_about_safety(self) -> bool {
        matches!(self, Rule::Tolerance | Rule::Suspect)
    }

    /// Whether it only makes things nicer: such changes have a part of the budget, and wait longer.
    #[must_use]
    pub fn is_comfort(self) -> bool {
        matches!(self, Rule::Imbalance | Rule::Together | Rule::Contract)
    }
}

/// Whom something is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// The pool.
    Pool,
    /// A disk.
    Disk(DiskId),
    /// A VHD.
    Vhd(VhdId),
    /// A VM.
    Vm(VmId),
}

/// What can be measured before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Failure domains that a VHD survives.
    Survives,
    /// Part of the replicas of a VHD that are on disks which are suspect or have failed.
    Exposed,
    /// Part of a disk's slots that are taken.
    Fill,
    /// Part of the time that a disk is busy.
    Busy,
    /// Nanoseconds that requests of a VHD take, on average.
    Latency,
    /// Standard deviation of how busy the disks of the pool are.
    Imbalance,
    /// Disks that a VHD or VM is on.
    Disks,
    /// Requests of a VHD a second.
    Iops,
}

impl Metric {
    /// Whether more is better.
    #[must_use]
    pub fn is_gain(self) -> bool {
        matches!(self, Metric::Survives | Metric::Iops)
    }
}

/// Something that was observed, and what it was compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    /// What.
    pub metric: Metric,
    /// Of whom.
    pub subject: Subject,
    /// How much: parts of 1, nanoseconds or a number.
    pub value: f64,
    /// The target, or what it was compared with.
    pub target: f64,
}

/// What is promised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Effect {
    /// What will change.
    pub metric: Metric,
    /// Of whom.
    pub subject: Subject,
    /// What it is.
    pub before: f64,
    /// What it will be.
    pub after: f64,
}

/// What it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Bytes to copy, if all extents are written all over.
    pub bytes: u64,
    /// Which part of the day's budget that is.
    pub budget: f64,
    /// Which part of a day's writes it is that the target disks are made for; 0 where writing does not wear them out.
    pub wear: f64,
}

/// An order that the daemon can carry out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Action {
    /// Over just these disks: more, fewer or other ones.
    Span {
        /// The VHD.
        vhd: VhdId,
        /// The disks, ascending.
        disks: Vec<DiskId>,
    },
    /// A spanned VHD onto one disk.
    Unspan {
        /// The VHD.
        vhd: VhdId,
        /// The disk.
        disk: DiskId,
    },
    /// An isolated VHD to another disk.
    Migrate {
        /// The VHD.
        vhd: VhdId,
        /// The disk.
        disk: DiskId,
    },
    /// Another number of replicas.
    Replicas {
        /// The VHD.
        vhd: VhdId,
        /// How many.
        replicas: u8,
    },
    /// To where its layout wants it.
    Settle {
        /// The VHD.
        vhd: VhdId,
    },
}

impl Action {
    /// The VHD that is moved.
    #[must_use]
    pub fn vhd(&self) -> VhdId {
        match self {
            Action::Span { vhd, .. }
            | Action::Unspan { vhd, .. }
            | Action::Migrate { vhd, .. }
            | Action::Replicas { vhd, .. }
            | Action::Settle { vhd } => *vhd,
        }
    }

    /// The disks that it names.
    #[must_use]
    pub fn disks(&self) -> &[DiskId] {
        match self {
            Action::Span { disks, .. } => disks,
            Action::Unspan { disk, .. } | Action::Migrate { disk, .. } => std::slice::from_ref(disk),
            Action::Replicas { .. } | Action::Settle { .. } => &[],
        }
    }
}

/// Why another way was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objection {
    /// It costs more for what it brings.
    Dearer,
    /// It would bring too little.
    TooLittle,
    /// It would help this one and hurt others more.
    HurtsOthers,
    /// There is no room, or failure domains would be shared: the planner refuses it.
    Illegal,
    /// The mode of that VHD is off, a job is about it already, or it has been moved lately.
    NotAllowed,
}

/// Another way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alternative {
    /// What could be done instead.
    pub action: Action,
    /// Why it was not chosen.
    pub objection: Objection,
    /// Bytes that it would copy.
    pub bytes: u64,
}

/// What becomes of a proposal now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// To be started now.
    Start,
    /// It waits for an administrator: the mode is "advise".
    Advice,
    /// It waits: so many moves are in flight as may be.
    InFlight,
    /// It waits for the budget of the day.
    Budget,
    /// It waits for the end of the quiet hours.
    Quiet,
}

/// What should be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// By which it can be applied and dismissed; never given twice.
    pub number: u32,
    /// Why.
    pub rule: Rule,
    /// About whom.
    pub subject: Subject,
    /// What.
    pub action: Action,
    /// Whether its VHD is on more disks afterwards. Not written down unless it is, so that programs which do not know it can read the rest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more_disks: bool,
    /// What was observed.
    pub facts: Vec<Fact>,
    /// Who takes so much that others suffer, if somebody does.
    pub aggressor: Option<VhdId>,
    /// What it brings.
    pub effect: Effect,
    /// What it takes.
    pub cost: Cost,
    /// What it is worth to the pool as a whole, in points of the policy's own measure ([`super::judge`]); only to compare proposals with.
    pub worth: f64,
    /// The best of the ways that were not taken.
    pub alternatives: Vec<Alternative>,
    /// What becomes of it.
    pub standing: Standing,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
