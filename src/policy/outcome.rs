//! What came of a change: promised and measured, side by side.
//!
//! A change is looked at some time after its VHD has stopped moving. If its guest asks for much more or less by then, nobody can
//! say what the change did. A rule that breaks its promises often becomes more careful: what it proposes has to be worth more, and to
//! have been so for longer. One VHD that was given more and took all of it is not given more again for a while.

use serde::{Deserialize, Serialize};

use super::model::Model;
use super::observe::Vhd;
use super::proposal::{Action, Effect, Metric, Proposal, Rule, Subject};
use super::rules::Rules;
use super::state::State;
use crate::base::ids::VhdId;
use crate::base::limits::{POLICY_BUDGET_SECS, POLICY_OUTCOMES_MAX};

/// Of what was promised so much must have come: a promise kept, and one kept in part.
const KEPT: f64 = 0.7;
const PARTLY: f64 = 0.25;

/// A guest whose load has changed by more than this part tells nothing.
const OTHER_LOAD: f64 = 0.4;

/// Disks are as busy as they can be from here on.
pub(super) const SATURATED: f64 = 0.9;

/// Outcomes of a rule that count.
const RECENT: usize = 8;

/// What came of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// What was promised.
    Kept,
    /// Some of it.
    Partly,
    /// Little, nothing or the contrary.
    Missed,
    /// Nobody can tell: the load is another one, or what it was about is gone.
    Unclear,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// The value of the metric that was promised.
    pub value: f64,
    /// What that means.
    pub verdict: Verdict,
    /// When, by the policy's time.
    pub at: u64,
}

/// A change that was started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Applied {
    /// Number of the proposal.
    pub number: u32,
    /// Why.
    pub rule: Rule,
    /// About whom.
    pub subject: Subject,
    /// What.
    pub action: Action,
    /// What was promised.
    pub effect: Effect,
    /// Bytes that it was to copy.
    pub bytes: u64,
    /// See [`Proposal::more_disks`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more_disks: bool,
    /// When, by the policy's time.
    pub started: u64,
    /// Units of work a second that its VHD asked for, or its aggressor's victim; `None` before the first look after that.
    pub load: Option<f64>,
    /// When its VHD was seen to have stopped moving, by the policy's time.
    pub settled: Option<u64>,
    /// What came of it.
    pub measured: Option<Measured>,
}

impl Applied {
    pub(super) fn new(proposal: &Proposal, now: u64) -> Applied {
        Applied {
            number: proposal.number,
            rule: proposal.rule,
            subject: proposal.subject,
            action: proposal.action.clone(),
            effect: proposal.effect.clone(),
            bytes: proposal.cost.bytes,
            more_disks: proposal.more_disks,
            started: now,
            load: None,
            settled: None,
            measured: None,
        }
    }
}

/// How often a rule kept its promises.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The last verdicts that were clear, the oldest first.
    pub recent: Vec<Verdict>,
}

impl Record {
    /// How many times as much something has to be worth, and as long it has to hold: 1, or 2 if half of the last promises were missed,
    /// or 4 if three quarters were. Fewer than four tell nothing.
    #[must_use]
    pub fn care(&self) -> u32 {
        let missed = self.recent.iter().filter(|verdict| **verdict == Verdict::Missed).count();
        match self.recent.len() {
            known if known < RECENT / 2 => 1,
            known if 4 * missed >= 3 * known => 4,
            known if 2 * missed >= known => 2,
            _ => 1,
        }
    }

    fn add(&mut self, verdict: Verdict) {
        if verdict != Verdict::Unclear {
            self.recent.push(verdict);
            let old = self.recent.len().saturating_sub(RECENT);
            self.recent.drain(..old);
        }
    }
}

/// Looks at changes whose time has come: that long after they have ended, or as long as what is looked at reaches back.
pub(super) fn measure(state: &mut State, rules: &Rules, model: &Model, vhds: &[&Vhd], jobs: &[VhdId]) {
    let after_secs = rules.outcome_secs.max(rules.window_secs());
    let now = state.clock.secs;
    let mut verdicts = Vec::new();
    for applied in state.applied.iter_mut().filter(|applied| applied.measured.is_none()) {
        let moved = applied.action.vhd();
        let index = model.find(moved);
        let asks = model.find(asks_for(applied));
        let load = asks.map_or(0.0, |index| model.vhds[index].work_each * model.vhds[index].total() as f64);
        if applied.load.is_none() {
            // It was begun, so whatever was in the way of the like of it is not any more.
            state.refusals.remove(&(applied.rule, applied.subject, moved));
        }
        let before = *applied.load.get_or_insert(load);
        if jobs.contains(&moved) {
            applied.settled = None;
            continue;
        }
        let settled = *applied.settled.get_or_insert(now);
        if now.saturating_sub(settled) < after_secs {
            continue;
        }
        let value = value(model, vhds, applied.effect.metric, applied.effect.subject);
        let verdict = match value {
            Some(value) if index.is_some() => verdict_under(&applied.effect, value, before, load),
            _ => Verdict::Unclear,
        };
        applied.measured = Some(Measured { value: value.unwrap_or(0.0), verdict, at: now });
        let gave_more = matches!(applied.rule, Rule::Rate | Rule::Latency | Rule::Neighbour) && applied.more_disks;
        let took_all = index.is_some_and(|index| {
            let on = &model.vhds[index].on;
            !on.is_empty() && on.iter().all(|(place, _)| model.disks[*place].busy >= SATURATED)
        });
        verdicts.push((applied.rule, verdict, (gave_more && took_all).then_some(moved)));
    }
    for (rule, verdict, insatiable) in verdicts {
        state.records.entry(rule).or_default().add(verdict);
        if let Some(vhd) = insatiable {
            // What it was given in vain can be taken back for those who suffer from that, without waiting for its rest to end.
            state.rests.remove(&vhd);
            state.insatiable.insert(vhd, now.saturating_add(POLICY_BUDGET_SECS));
        }
    }
    let old = state.applied.len().saturating_sub(POLICY_OUTCOMES_MAX);
    state.applied.drain(..old);
}

/// The VHD whose load tells whether it is still as it was. Who was parted from an aggressor is served better whatever that does now, and
/// an aggressor on fewer disks does less.
fn asks_for(applied: &Applied) -> VhdId {
    match (applied.rule, applied.effect.subject) {
        (Rule::Neighbour, Subject::Vhd(victim)) => victim,
        _ => applied.action.vhd(),
    }
}

/// As [`verdict`], unless the load explains what came: it was `before` units of work a second, and is `load` now. Who is served faster asks
/// for more; that is no reason to doubt that it is served faster. That somebody asks for less is one.
fn verdict_under(promised: &Effect, value: f64, before: f64, load: f64) -> Verdict {
    let said = verdict(promised, value);
    let (fell, rose) = (load < before * (1.0 - OTHER_LOAD), load > before * (1.0 + OTHER_LOAD));
    let is_explained = match promised.metric {
        Metric::Latency | Metric::Busy => {
            if said == Verdict::Missed {
                rose
            } else {
                fell
            }
        }
        Metric::Iops => fell || rose,
        _ => false,
    };
    if is_explained { Verdict::Unclear } else { said }
}

/// What a measured value says of a promise.
#[must_use]
pub fn verdict(promised: &Effect, value: f64) -> Verdict {
    let (wanted, came) = (promised.after - promised.before, value - promised.before);
    match came / wanted {
        part if part >= KEPT => Verdict::Kept,
        part if part >= PARTLY => Verdict::Partly,
        part if part.is_nan() => Verdict::Unclear,
        _ => Verdict::Missed,
    }
}

/// What a metric is now; `None` if whom it is about is gone. `vhds`: by identifier, as in the model.
pub(super) fn value(model: &Model, vhds: &[&Vhd], metric: Metric, subject: Subject) -> Option<f64> {
    let seen = |vhd: VhdId| model.find(vhd).map(|index| (index, vhds[index]));
    Some(match (metric, subject) {
        (Metric::Imbalance, _) => model.imbalance(),
        (Metric::Fill, Subject::Disk(disk)) => model.disks[model.place_of(disk)?].fill(),
        (Metric::Busy, Subject::Disk(disk)) => model.disks[model.place_of(disk)?].busy,
        (Metric::Busy, Subject::Vhd(vhd)) => {
            let (index, _) = seen(vhd)?;
            let on = &model.vhds[index].on;
            on.iter().map(|(place, _)| model.part(index, *place)).fold(0.0, f64::max)
        }
        (Metric::Exposed, Subject::Vhd(vhd)) => model.exposed(seen(vhd)?.0),
        (Metric::Survives, Subject::Vhd(vhd)) => f64::from(seen(vhd)?.1.survives?),
        (Metric::Latency, Subject::Vhd(vhd)) => seen(vhd)?.1.latency.mean_ns as f64,
        (Metric::Iops, Subject::Vhd(vhd)) => seen(vhd)?.1.flow.iops,
        (Metric::Disks, Subject::Vhd(vhd)) => model.vhds[seen(vhd)?.0].width() as f64,
        (Metric::Disks, Subject::Vm(vm)) => {
            let index = vhds.iter().position(|vhd| vhd.vm == Some(vm))?;
            f64::from(model.group_mask(model.vhds[index].group).count_ones())
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
