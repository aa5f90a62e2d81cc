//! What the policy remembers from one look to the next, and over restarts of the daemon.
//!
//! *Time.* The wall clock may jump, and a daemon may be away for a week. So holds, rests and budgets go by a time of the policy's own,
//! which goes on by what has passed since the last look, but never back and never more than a few minutes at a look. A clock that jumps
//! can make things wait longer, and can neither give a budget back nor spend one.

mod codec;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::observe::Moment;
use super::outcome::{Applied, Record};
use super::proposal::{Action, Proposal, Rule, Standing, Subject};
use crate::base::ids::VhdId;
use crate::base::limits::{POLICY_BUDGET_SECS, POLICY_REFUSED_SECS, POLICY_REFUSED_SECS_MAX, POLICY_STEP_SECS_MAX};

pub use codec::StateError;

/// How much what was observed must change, as part of it, before something that was dismissed is proposed again.
const CHANGED: f64 = 0.2;

/// The policy's own time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clock {
    /// Seconds that it has been at work.
    pub secs: u64,
    /// The wall clock at the last look, in seconds since the Unix epoch; `None` before the first.
    pub seen: Option<u64>,
}

/// What the clock did between two looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockStep {
    /// It went on.
    On,
    /// It went back by so many seconds.
    Back(u64),
    /// It went far ahead, or nobody has looked for so many seconds.
    Far(u64),
}

impl Clock {
    pub(super) fn advance(&mut self, at: Moment) -> ClockStep {
        let before = self.seen.replace(at.unix_secs).unwrap_or(at.unix_secs);
        match at.unix_secs.checked_sub(before) {
            None => ClockStep::Back(before - at.unix_secs),
            Some(passed) => {
                self.secs = self.secs.saturating_add(passed.min(POLICY_STEP_SECS_MAX));
                if passed > POLICY_STEP_SECS_MAX { ClockStep::Far(passed) } else { ClockStep::On }
            }
        }
    }
}

/// Something that is so, or was so a little while ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Since when, by the policy's time.
    pub since: u64,
    /// Whether it has been so for long enough.
    pub holds: bool,
}

/// What was dismissed, and on the grounds of what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dismissal {
    /// What was proposed.
    pub action: Action,
    /// The first thing that was observed.
    pub value: f64,
}

/// What the owner would not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// How often, one after the other.
    pub times: u32,
    /// Until when it is not asked again, by the policy's time.
    pub until: u64,
}

/// All that is remembered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The time.
    pub clock: Clock,
    /// What is so.
    #[serde(with = "super::pairs")]
    pub conditions: BTreeMap<(Rule, Subject), Condition>,
    /// What has been proposed and is still right.
    pub open: Vec<Proposal>,
    /// Proposals that there have been.
    pub proposed: u32,
    /// What was dismissed.
    #[serde(with = "super::pairs")]
    pub dismissed: BTreeMap<(Rule, Subject), Dismissal>,
    /// What was refused: of which need, the move of which VHD. Not written down while there is none, so that programs which do not know
    /// it can read the rest.
    #[serde(default, rename = "refused", with = "super::pairs", skip_serializing_if = "BTreeMap::is_empty")]
    pub refusals: BTreeMap<(Rule, Subject, VhdId), Refusal>,
    /// Bytes by hour of the policy's time in which moves of them were started.
    #[serde(with = "super::pairs")]
    pub spent: BTreeMap<u64, u64>,
    /// Until when VHDs that have been moved rest.
    #[serde(with = "super::pairs")]
    pub rests: BTreeMap<VhdId, u64>,
    /// VHDs that took all there was when they were given more, and until when they are given no more.
    #[serde(with = "super::pairs")]
    pub insatiable: BTreeMap<VhdId, u64>,
    /// VHDs that lie where the policy said when they were created. Not written down while there is none, so that programs which do not know it
    /// can read the rest.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub placed: BTreeSet<VhdId>,
    /// Changes that were started, and what came of them; the oldest first.
    pub applied: Vec<Applied>,
    /// How often each rule kept its promises.
    #[serde(with = "super::pairs")]
    pub records: BTreeMap<Rule, Record>,
}

/// Why a proposal cannot be applied or dismissed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no proposal {number}: it was applied or dismissed, or is not right any more; see `spanblk advise` for those that are"
)]
pub struct NoProposal {
    /// What was asked for.
    pub number: u32,
}

impl State {
    /// Whether nothing is proposed or on the way to that, and nothing waits to be measured: as long as nothing happens, nothing will be.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let is_measured = |applied: &Applied| applied.measured.is_some();
        self.open.is_empty() && self.conditions.is_empty() && self.applied.iter().all(is_measured)
    }

    /// Bytes whose moves were started in the last 24 hours. Hours are counted whole, so that it may be a little more, never less.
    #[must_use]
    pub fn spent_bytes(&self) -> u64 {
        let oldest = self.clock.secs.saturating_sub(POLICY_BUDGET_SECS) / SECS_PER_HOUR;
        self.spent.range(oldest..).fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Takes a proposal that is to be carried out now, by whomever: its bytes are spent, its VHD rests from now on, and it is looked at
    /// later. `rest_secs`: for how long.
    ///
    /// # Errors
    /// If there is no such proposal.
    pub fn apply(&mut self, number: u32, rest_secs: u64) -> Result<Proposal, NoProposal> {
        let proposal = self.take(number)?;
        let spent = self.spent.entry(self.clock.secs / SECS_PER_HOUR).or_default();
        *spent = spent.saturating_add(proposal.cost.bytes);
        self.rests.insert(proposal.action.vhd(), self.clock.secs.saturating_add(rest_secs));
        self.applied.push(Applied::new(&proposal, self.clock.secs));
        Ok(proposal)
    }

    /// What was applied could not be begun: its bytes are there again, and its promise is forgotten. Its VHD rests all the same, and for
    /// the same reason it is not proposed to move it for a while, longer each time: rests do not count for what is urgent, and whatever the
    /// owner refuses now it would refuse at every look. Other VHDs whose move could help may be moved.
    pub fn refused(&mut self, number: u32) {
        let Some(at) = self.applied.iter().position(|applied| applied.number == number) else { return };
        let applied = self.applied.remove(at);
        if let Some(spent) = self.spent.get_mut(&(applied.started / SECS_PER_HOUR)) {
            *spent = spent.saturating_sub(applied.bytes);
        }
        let key = (applied.rule, applied.subject, applied.action.vhd());
        let before = self.refusals.get(&key).map_or(0, |refusal| refusal.times);
        let longer = 1_u64.checked_shl(before).unwrap_or(u64::MAX);
        let secs = POLICY_REFUSED_SECS.saturating_mul(longer).min(POLICY_REFUSED_SECS_MAX);
        let refusal = Refusal { times: before.saturating_add(1), until: self.clock.secs.saturating_add(secs) };
        self.refusals.insert(key, refusal);
    }

    /// Whether it is too early to propose again that a VHD is moved for something, which was refused.
    pub(super) fn is_refused(&self, rule: Rule, subject: Subject, vhd: VhdId) -> bool {
        self.refusals.get(&(rule, subject, vhd)).is_some_and(|refusal| refusal.until > self.clock.secs)
    }

    /// A proposal is not wanted: the same is not proposed again until what was observed has changed by a fifth.
    ///
    /// # Errors
    /// If there is no such proposal.
    pub fn dismiss(&mut self, number: u32) -> Result<Proposal, NoProposal> {
        let proposal = self.take(number)?;
        let value = proposal.facts.first().map_or(0.0, |fact| fact.value);
        let dismissal = Dismissal { action: proposal.action.clone(), value };
        self.dismissed.insert((proposal.rule, proposal.subject), dismissal);
        Ok(proposal)
    }

    fn take(&mut self, number: u32) -> Result<Proposal, NoProposal> {
        let at = self.open.iter().position(|open| open.number == number).ok_or(NoProposal { number })?;
        Ok(self.open.remove(at))
    }

    /// Whether this was dismissed, on grounds that are still about the same.
    pub(super) fn is_dismissed(&self, rule: Rule, subject: Subject, value: f64) -> bool {
        let same = |dismissal: &Dismissal| (value - dismissal.value).abs() <= CHANGED * dismissal.value.abs();
        self.dismissed.get(&(rule, subject)).is_some_and(same)
    }

    /// Whether something has been so for long enough. `begins`: it is beyond its limit; `lasts`: it has not come back below the
    /// limit by the difference yet.
    pub(super) fn holds(&mut self, rule: Rule, subject: Subject, begins: bool, lasts: bool, secs: u64) -> bool {
        let now = self.clock.secs;
        let before = self.conditions.get(&(rule, subject)).copied();
        let so = match before {
            Some(condition) if condition.holds => begins || lasts,
            _ => begins,
        };
        if !so {
            self.conditions.remove(&(rule, subject));
            return false;
        }
        let since = before.map_or(now, |condition| condition.since);
        let holds = before.is_some_and(|condition| condition.holds) || now.saturating_sub(since) >= secs;
        self.conditions.insert((rule, subject), Condition { since, holds });
        holds
    }

    /// Gives the proposals their numbers: one that is as before keeps its own.
    pub(super) fn propose(&mut self, mut fresh: Vec<Proposal>) {
        for proposal in &mut fresh {
            let is_same = |old: &&Proposal| {
                (old.rule, old.subject, &old.action) == (proposal.rule, proposal.subject, &proposal.action)
            };
            proposal.number = match self.open.iter().find(is_same) {
                Some(old) => old.number,
                None => {
                    self.proposed = self.proposed.saturating_add(1);
                    self.proposed
                }
            };
        }
        self.open = fresh;
    }

    /// The proposals that are to be started.
    pub fn to_start(&self) -> Vec<u32> {
        self.open.iter().filter(|open| open.standing == Standing::Start).map(|open| open.number).collect()
    }

    /// Forgets what is over, and what is about something that is gone.
    pub(super) fn forget(&mut self, is_there: impl Fn(Subject) -> bool) {
        let now = self.clock.secs;
        let oldest = now.saturating_sub(POLICY_BUDGET_SECS) / SECS_PER_HOUR;
        self.spent = self.spent.split_off(&oldest);
        self.rests.retain(|vhd, until| *until > now && is_there(Subject::Vhd(*vhd)));
        self.insatiable.retain(|vhd, until| *until > now && is_there(Subject::Vhd(*vhd)));
        self.dismissed.retain(|(_, subject), _| is_there(*subject));
        self.conditions.retain(|(_, subject), _| is_there(*subject));
        // For as long again it is known how often it was refused.
        let is_recent = |refusal: &Refusal| refusal.until.saturating_add(POLICY_REFUSED_SECS_MAX) > now;
        let are_there = |subject: Subject, vhd: VhdId| is_there(subject) && is_there(Subject::Vhd(vhd));
        self.refusals.retain(|(_, subject, vhd), refusal| is_recent(refusal) && are_there(*subject, *vhd));
    }
}

const SECS_PER_HOUR: u64 = 3600;

#[cfg(test)]
mod tests;
