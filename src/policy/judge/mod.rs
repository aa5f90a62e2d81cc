//! From observations to proposals: what is not as it should be, the best way to mend it, and whether that may be started now.
//!
//! 1. `needs`: every rule looks whether its limit has been exceeded for long enough.
//! 2. `ways`: for each need the VHDs whose move could help are tried on other disks, in a copy of the pool (`model`), and the one is
//!    chosen that is worth most after its price: what is copied has to be worth it.
//! 3. Here: modes, quiet hours, moves in flight and the budget decide what becomes of it. What is started counts as done for what follows.
//!
//! It comes to rest: each change makes one measure of the pool smaller (the model's cost) by more than a minimum, whatever rule asked for
//! it; so no two rules undo each other's work as long as the load stays as it is. If the load swings, holds, rests and the budget bound
//! what is moved.

mod needs;
mod ways;

use std::collections::BTreeSet;

use super::model::{Model, Window};
use super::observe::{Disk, Pool, Vhd};
use super::proposal::{Cost, Proposal, Rule, Standing, Subject};
use super::rules::{Mode, Rules, Wanted};
use super::state::{ClockStep, State};
use super::{number, outcome};
use crate::base::ids::VhdId;
use crate::base::limits::POLICY_PROPOSALS_MAX;
use needs::Need;
use ways::{Draft, Ways};

/// Part of the budget that comfort may use: the rest is for what is urgent. What comfort has evened out does not become urgent later.
const COMFORT_PART: f64 = 0.9;

/// Times its usual latency at which a VHD is served worse than it is used to, if that is more than a millisecond.
const FORMER: f64 = 3.0;
const FORMER_NS: f64 = 1e6;

/// What the policy says.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// What is to be remembered. All proposals are in [`State::open`].
    pub state: State,
    /// Numbers of those that are to be started now. Whoever does that calls [`State::apply`] for each, and [`State::refused`] if it could
    /// not be begun.
    pub start: Vec<u32>,
    /// What the clock did.
    pub clock: ClockStep,
}

/// Everything that is looked at.
struct Look<'a> {
    pool: &'a Pool,
    rules: &'a Rules,
    /// By identifier, as in the models.
    disks: Vec<&'a Disk>,
    /// By identifier, as in the models.
    vhds: Vec<&'a Vhd>,
    wanted: Vec<Wanted>,
    /// By the rates of the last minutes.
    now: Model,
    /// By those of the last day.
    usual: Model,
    /// Bytes that may be moved in a day.
    budget: u64,
}

impl<'a> Look<'a> {
    fn new(pool: &'a Pool, rules: &'a Rules) -> Look<'a> {
        let mut disks: Vec<&Disk> = pool.disks.iter().collect();
        disks.sort_by_key(|disk| disk.id);
        let mut vhds: Vec<&Vhd> = pool.vhds.iter().collect();
        vhds.sort_by_key(|vhd| vhd.id);
        let wanted = vhds.iter().map(|vhd| rules.of(vhd)).collect();
        let [now, usual] = [Window::Now, Window::Usual].map(|window| Model::new(pool, rules.space, window));
        Look { pool, rules, disks, vhds, wanted, now, usual, budget: budget(pool, rules) }
    }

    /// Whether a VHD gets as much as its disks can do, and would take more: whatever it is on is as busy as it can be.
    fn is_limited_by_disks(&self, vhd: VhdId) -> bool {
        let on = self.now.find(vhd).map_or(&[][..], |vhd| &self.now.vhds[vhd].on);
        !on.is_empty() && on.iter().all(|(place, _)| self.now.disks[*place].busy >= outcome::SATURATED)
    }

    /// Nanoseconds that requests of a VHD may take on average before it is served too slowly: its target, or what it is used to several
    /// times over, if that is less.
    fn limit_ns(&self, vhd: usize) -> f64 {
        let (usual, target) = (self.vhds[vhd].usual_latency.mean_ns, self.wanted[vhd].latency_ns.max(1) as f64);
        if usual > 0 { target.min((usual as f64 * FORMER).max(FORMER_NS)) } else { target }
    }

    fn model(&self, window: Window) -> &Model {
        if window == Window::Now { &self.now } else { &self.usual }
    }
}

/// Bytes that may be moved in any 24 hours.
#[must_use]
pub fn budget(pool: &Pool, rules: &Rules) -> u64 {
    let slots: u64 = pool.disks.iter().map(|disk| u64::from(disk.slots)).sum();
    number::whole(slots as f64 * pool.extent_size as f64 * rules.moved_a_day)
}

/// Looks at a pool.
///
/// # Panics
/// If a disk or VHD is listed twice (a bug: there is one of each).
#[must_use]
pub fn judge(pool: &Pool, rules: &Rules, state: &State) -> Judgement {
    let mut state = state.clone();
    let clock = state.clock.advance(pool.at);
    if clock != ClockStep::On {
        // Nobody knows what was meanwhile: what has not held for long enough begins anew.
        state.conditions.retain(|_, condition| condition.holds);
    }
    let mut look = Look::new(pool, rules);
    assert!(look.disks.is_sorted_by(|a, b| a.id < b.id) && look.vhds.is_sorted_by(|a, b| a.id < b.id), "listed twice");
    state.forget(|subject| match subject {
        Subject::Pool => true,
        Subject::Disk(disk) => look.now.place_of(disk).is_some(),
        Subject::Vhd(vhd) => look.now.find(vhd).is_some(),
        Subject::Vm(vm) => look.vhds.iter().any(|vhd| vhd.vm == Some(vm)),
    });
    outcome::measure(&mut state, rules, &look.now, &look.vhds, &pool.jobs);
    let needs = needs::find(&look, &mut state);
    let takes_all = |need: &Need| need.asks_for_more(&look).filter(|vhd| look.is_limited_by_disks(*vhd));
    let takes_all = needs.iter().filter_map(takes_all).chain(state.insatiable.keys().copied());
    let takes_all: BTreeSet<usize> = takes_all.filter_map(|vhd| look.now.find(vhd)).collect();
    for vhd in takes_all {
        (look.now.vhds[vhd].takes_all, look.usual.vhds[vhd].takes_all) = (true, true);
    }
    let mut bench = Bench { moved: BTreeSet::new(), started: 0, spent: state.spent_bytes().max(pool.moved_bytes) };
    let mut open = Vec::new();
    for rule in Rule::ALL {
        let mut drafts: Vec<(&Need, Draft)> = Vec::new();
        for need in needs.iter().filter(|need| need.rule == rule) {
            let ways = Ways { look: &look, state: &state, need, moved: &bench.moved, left: bench.left(&look, rule) };
            drafts.extend(ways.best().map(|draft| (need, draft)));
        }
        // What brings most for its price comes first; among equals the subject decides, so that the order is always the same.
        drafts.sort_by(|(a, x), (b, y)| {
            b.urgent.cmp(&a.urgent).then(y.net.total_cmp(&x.net)).then(a.subject.cmp(&b.subject))
        });
        for (need, draft) in drafts {
            open.extend(bench.settle(&mut look, &state, need, draft));
        }
    }
    open.truncate(POLICY_PROPOSALS_MAX);
    state.propose(open);
    Judgement { start: state.to_start(), state, clock }
}

/// What has been decided in this look.
struct Bench {
    /// VHDs about which there is a proposal.
    moved: BTreeSet<usize>,
    started: usize,
    spent: u64,
}

impl Bench {
    /// Bytes that may still be moved for this rule.
    fn left(&self, look: &Look, rule: Rule) -> u64 {
        let part = if rule.is_comfort() { COMFORT_PART } else { 1.0 };
        number::whole(look.budget as f64 * part).saturating_sub(self.spent)
    }

    /// Makes a proposal of a draft; `None` if what was decided meanwhile has made it pointless.
    fn settle(&mut self, look: &mut Look, state: &State, need: &Need, draft: Draft) -> Option<Proposal> {
        if self.moved.contains(&draft.step.vhd) {
            return None;
        }
        if self.started > 0 && !Ways::is_still_good(look, need, &draft) {
            return None;
        }
        // It is not done, so that it takes nobody's place, nor keeps its VHD from what another rule asks for.
        if state.is_dismissed(need.rule, need.subject, need.facts.first().map_or(0.0, |fact| fact.value)) {
            return None;
        }
        let standing = self.standing(look, need, &draft);
        self.moved.insert(draft.step.vhd);
        if standing == Standing::Start {
            look.now.apply(&draft.step);
            look.usual.apply(&draft.step);
            self.started += 1;
            self.spent = self.spent.saturating_add(draft.bytes);
        }
        Some(Proposal {
            number: 0,
            rule: need.rule,
            subject: need.subject,
            facts: need.facts.clone(),
            aggressor: need.aggressor,
            cost: cost(look, &draft),
            action: draft.action,
            more_disks: draft.step.to.len() > draft.had.len(),
            effect: draft.effect,
            worth: draft.worth,
            alternatives: draft.alternatives,
            standing,
        })
    }

    fn standing(&self, look: &Look, need: &Need, draft: &Draft) -> Standing {
        let can_wait = !need.urgent && !need.rule.is_about_safety();
        if look.wanted[draft.step.vhd].mode != Mode::Auto {
            Standing::Advice
        } else if look.pool.in_flight + self.started >= look.rules.moves_max as usize {
            Standing::InFlight
        } else if can_wait && look.rules.quiet.is_some_and(|quiet| quiet.contains(look.pool.at)) {
            Standing::Quiet
        } else if draft.bytes > self.left(look, need.rule) {
            Standing::Budget
        } else {
            Standing::Start
        }
    }
}

/// What a draft takes.
fn cost(look: &Look, draft: &Draft) -> Cost {
    let writes = |(place, count): &(usize, u64)| {
        let disk = &look.now.disks[*place];
        let comes = count.saturating_sub(draft.had.iter().find(|(at, _)| at == place).map_or(0, |(_, had)| *had));
        let per_day = disk.kind.writes_a_day()? * f64::from(disk.slots.max(1));
        Some(comes as f64 / per_day)
    };
    let wear = draft.step.to.iter().filter_map(writes).fold(0.0, f64::max);
    Cost { bytes: draft.bytes, budget: draft.bytes as f64 / (look.budget.max(1)) as f64, wear }
}

#[cfg(test)]
pub(crate) mod tests;
