//! Proposals as sentences: what was observed, by which rule, what to do, what it brings and what it takes.

use serde::Serialize;

use super::observe::Pool;
use super::outcome::{Applied, Verdict};
use super::proposal::{Action, Alternative, Effect, Fact, Metric, Objection, Proposal, Rule, Standing, Subject};
use crate::base::ids::{DiskId, VhdId, VmId};
use crate::base::size::human_size;

/// A proposal for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Said {
    /// Its number.
    pub number: u32,
    /// What to do.
    pub what: String,
    /// As a command.
    pub command: String,
    /// What was observed, and which rule that breaks.
    pub because: String,
    /// What it brings.
    pub brings: String,
    /// What it takes.
    pub costs: String,
    /// What was not chosen, and why.
    pub instead: Vec<String>,
    /// What becomes of it.
    pub standing: &'static str,
}

/// Names for identifiers.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a>(pub &'a Pool);

impl Names<'_> {
    /// Name of a VHD; its number if it is gone.
    #[must_use]
    pub fn vhd(&self, id: VhdId) -> String {
        self.0.vhds.iter().find(|vhd| vhd.id == id).map_or_else(|| format!("#{}", id.0), |vhd| vhd.name.clone())
    }

    /// Name of a disk; its number if it is gone.
    #[must_use]
    pub fn disk(&self, id: DiskId) -> String {
        self.0.disks.iter().find(|disk| disk.id == id).map_or_else(|| format!("#{}", id.0), |disk| disk.name.clone())
    }

    /// The VHDs of a VM, as what it is known by here.
    #[must_use]
    pub fn vm(&self, id: VmId) -> String {
        let vhds = self.0.vhds.iter().filter(|vhd| vhd.vm == Some(id)).map(|vhd| vhd.name.as_str());
        format!("the VM of {}", vhds.collect::<Vec<_>>().join(", "))
    }

    fn subject(&self, subject: Subject) -> String {
        match subject {
            Subject::Pool => "the pool".to_owned(),
            Subject::Disk(disk) => format!("disk {}", self.disk(disk)),
            Subject::Vhd(vhd) => format!("VHD {}", self.vhd(vhd)),
            Subject::Vm(vm) => self.vm(vm),
        }
    }

    fn disks(&self, disks: &[DiskId]) -> String {
        disks.iter().map(|disk| self.disk(*disk)).collect::<Vec<_>>().join(",")
    }

    /// An action as the command that carries it out.
    #[must_use]
    pub fn command(&self, action: &Action) -> String {
        let vhd = self.vhd(action.vhd());
        match action {
            Action::Span { disks, .. } => format!("spanblk vhd span {vhd} --disks {}", self.disks(disks)),
            Action::Unspan { disk, .. } => format!("spanblk vhd unspan {vhd} --disk {}", self.disk(*disk)),
            Action::Migrate { disk, .. } => format!("spanblk vhd migrate {vhd} --disk {}", self.disk(*disk)),
            Action::Replicas { replicas, .. } => format!("spanblk vhd set {vhd} --replicas {replicas}"),
            Action::Settle { .. } => format!("spanblk vhd settle {vhd}"),
        }
    }

    fn what(&self, action: &Action) -> String {
        let vhd = self.vhd(action.vhd());
        match action {
            Action::Span { disks, .. } => format!("put VHD {vhd} on {} disks: {}", disks.len(), self.disks(disks)),
            Action::Unspan { disk, .. } | Action::Migrate { disk, .. } => {
                format!("put VHD {vhd} on disk {}", self.disk(*disk))
            }
            Action::Replicas { replicas, .. } => format!("keep {replicas} replicas of VHD {vhd}"),
            Action::Settle { .. } => format!("bring VHD {vhd} back to the disks of its layout"),
        }
    }

    /// A proposal for people.
    #[must_use]
    pub fn proposal(&self, proposal: &Proposal) -> Said {
        let facts: Vec<String> = proposal.facts.iter().map(|fact| self.fact(fact)).collect();
        let blame = proposal.aggressor.map(|vhd| format!(" VHD {} takes so much.", self.vhd(vhd)));
        let Cost { bytes, budget, wear } = Cost::of(proposal);
        Said {
            number: proposal.number,
            what: self.what(&proposal.action),
            command: self.command(&proposal.action),
            because: format!("{}: {}.{}", rule(proposal.rule), facts.join("; "), blame.unwrap_or_default()),
            brings: self.effect(&proposal.effect),
            costs: format!(
                "{bytes} to copy: {budget} of the day's budget, {wear} of the writes that its disks bear in a day"
            ),
            instead: proposal.alternatives.iter().map(|other| self.alternative(other)).collect(),
            standing: standing(proposal.standing),
        }
    }

    fn fact(&self, fact: &Fact) -> String {
        let (value, target) = (amount(fact.metric, fact.value), amount(fact.metric, fact.target));
        let of = self.subject(fact.subject);
        match (fact.metric, fact.subject) {
            (Metric::Survives, _) => format!("{of} survives the loss of {value} failure domains and should {target}"),
            (Metric::Exposed, _) => {
                format!("{of} has {value} of its extents on disks that are suspect, and no other copy of them")
            }
            (Metric::Fill, _) => format!("{of} is {value} full, the limit is {target}"),
            (Metric::Busy, Subject::Vhd(_)) => format!("{of} takes {value} of the disk's time, {target} would be fair"),
            (Metric::Busy, _) => format!("{of} is busy for {value} of the time, queues get long from {target} on"),
            (Metric::Latency, _) => format!("requests of {of} take {value}, they should take {target}"),
            (Metric::Imbalance, _) => format!("disks are busy by {value} differently, {target} is borne"),
            (Metric::Disks, _) => format!("{of} depends on {value} disks, {target} would do"),
            (Metric::Iops, _) => format!("{of} gets {value} requests a second served and should get {target}"),
        }
    }

    fn effect(&self, effect: &Effect) -> String {
        let (before, after) = (amount(effect.metric, effect.before), amount(effect.metric, effect.after));
        format!("{} of {}: {before} becomes {after}", word(effect.metric), self.subject(effect.subject))
    }

    fn alternative(&self, other: &Alternative) -> String {
        let why = match other.objection {
            Objection::Dearer => "costs more for what it brings",
            Objection::TooLittle => "would bring too little",
            Objection::HurtsOthers => "would hurt others",
            Objection::Illegal => "has no room, or would put replicas into one failure domain",
            Objection::NotAllowed => "may not be moved now",
        };
        format!("{} ({}) {why}", self.what(&other.action), human_size(other.bytes))
    }

    /// What became of a change.
    #[must_use]
    pub fn outcome(&self, applied: &Applied) -> String {
        let what = self.what(&applied.action);
        let promised = self.effect(&applied.effect);
        match applied.measured {
            None => format!("{what}; promised: {promised}; not measured yet"),
            Some(measured) => {
                let verdict = match measured.verdict {
                    Verdict::Kept => "kept",
                    Verdict::Partly => "kept in part",
                    Verdict::Missed => "missed",
                    Verdict::Unclear => "unclear, as the load is another one",
                };
                let value = amount(applied.effect.metric, measured.value);
                format!("{what}; promised: {promised}; measured: {value} ({verdict})")
            }
        }
    }
}

/// A cost in words.
struct Cost {
    bytes: String,
    budget: String,
    wear: String,
}

impl Cost {
    fn of(proposal: &Proposal) -> Cost {
        let percent = |part: f64| format!("{:.1} %", 100.0 * part);
        let cost = proposal.cost;
        Cost { bytes: human_size(cost.bytes), budget: percent(cost.budget), wear: percent(cost.wear) }
    }
}

/// What a rule says, when it is broken.
#[must_use]
pub fn rule(rule: Rule) -> &'static str {
    match rule {
        Rule::Tolerance => "it survives too little",
        Rule::Suspect => "its disk is suspect",
        Rule::Space => "room runs out",
        Rule::Neighbour => "a neighbour takes too much",
        Rule::Latency => "it is served too slowly",
        Rule::Rate => "it needs more than its disks have",
        Rule::Imbalance => "some disks do much more than others",
        Rule::Together => "a VM depends on more disks than it needs",
        Rule::Contract => "it is on more disks than it needs",
    }
}

fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Start => "starts now",
        Standing::Advice => "waits for you: 'spanblk apply N' or 'spanblk dismiss N'",
        Standing::InFlight => "waits for other moves to end",
        Standing::Budget => "waits for the budget of the day",
        Standing::Quiet => "waits for the end of the quiet hours",
    }
}

fn word(metric: Metric) -> &'static str {
    match metric {
        Metric::Survives => "failure domains survived",
        Metric::Exposed => "part on suspect disks",
        Metric::Fill => "fill",
        Metric::Busy => "busy time",
        Metric::Latency => "latency",
        Metric::Imbalance => "imbalance",
        Metric::Disks => "disks",
        Metric::Iops => "requests a second",
    }
}

/// An amount with its unit.
#[must_use]
pub fn amount(metric: Metric, value: f64) -> String {
    match metric {
        Metric::Exposed | Metric::Fill | Metric::Busy | Metric::Imbalance => format!("{:.1} %", 100.0 * value),
        Metric::Latency => format!("{:.2} ms", value / 1e6),
        Metric::Survives | Metric::Disks | Metric::Iops => format!("{value:.0}"),
    }
}
