//! The policy at work: a desk with what is wanted and what is remembered, which looks at the pool every half minute.
//!
//! `observe`: what it is told. `carry`: from a proposal to an order. `keep`: what it remembers, as notes. `kept`: what is wanted, as a row
//! of the store. `place`: where a new VHD comes. `turn`: who waits for whom. What is decided, and why, is all in [`crate::policy`].
//!
//! A look asks the owner for what is, as anybody could, and orders as anybody could: a policy that is wrong is slow, never unsafe.

mod carry;
mod keep;
mod kept;
mod kind;
mod observe;
mod place;
mod turn;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::events::EventLog;
use super::stats::StatsBook;
use super::wire::{EventDetail, Severity};
use crate::base::ids::VhdId;
use crate::base::limits::{POLICY_KEEP_SECS, POLICY_REST_LOOK_SECS, POLICY_TELL_SECS};
use crate::owner::command::StartJob;
use crate::policy::judge::judge;
use crate::policy::observe::Pool;
use crate::policy::proposal::{Proposal, Rule, Standing, Subject};
use crate::policy::rules::Rules;
use crate::policy::say::{Names, Said};
use crate::policy::state::{NoProposal, State};
use crate::policy::why::{Why, why};
use crate::store::thread::StoreHandle;

pub use kept::{Kept, kept_rules};
pub use observe::Answers;
#[cfg(test)]
pub(in crate::control) use observe::tests::pool_of;
pub use place::Ground;
pub use turn::Turns;

/// What is wanted, what is remembered, and what was seen last.
pub struct Desk {
    inner: Mutex<Inner>,
    /// What is gone by when a VHD is made: apart, so that nobody waits there for a look that is under way.
    ground: Mutex<Arc<Ground>>,
    /// VHDs that were made where the policy said, until somebody takes them to what is remembered; apart for the same reason.
    placed: Mutex<BTreeSet<VhdId>>,
    stats: Arc<StatsBook>,
    events: Arc<EventLog>,
    store: Option<StoreHandle>,
}

struct Inner {
    rules: Rules,
    /// What [`Kept::problem`] says, as long as nobody has said anew what is wanted.
    problem: Option<String>,
    state: State,
    seen: Option<Pool>,
    rest: Option<Rest>,
    edition: u64,
    /// When the state was kept last, by the wall clock.
    kept: u64,
    /// VHDs have been placed since.
    has_placed: bool,
    /// About what events told of proposals, and when, by the policy's time.
    told: BTreeMap<(Rule, Subject), u64>,
}

/// A look that found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rest {
    /// When, by the wall clock.
    since: u64,
    happened: Happened,
}

/// Numbers that are others once something has happened that the policy looks at: loads, and events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Happened {
    stirs: u64,
    events: u64,
}

/// A proposal that is to be carried out now.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// Its number.
    pub number: u32,
    /// What to tell the owner; `None` if what it is about is gone.
    pub start: Option<StartJob>,
}

/// What the policy has to say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Advice {
    /// Proposals, each with what it is and how it is said.
    pub proposals: Vec<(Proposal, Said)>,
    /// What came of those that were carried out, the last one first.
    pub outcomes: Vec<(u32, String)>,
    /// Bytes whose moves were started in the last 24 hours.
    pub spent_bytes: u64,
    /// Bytes that may be moved in 24 hours.
    pub budget_bytes: u64,
    /// See [`Kept::problem`].
    pub problem: Option<String>,
}

impl Desk {
    /// With what has been kept ([`kept_rules`]). What cannot be read of it is told, and forgotten.
    #[must_use]
    pub fn new(
        kept: Kept,
        notes: Vec<(u32, Vec<u8>)>,
        stats: Arc<StatsBook>,
        events: Arc<EventLog>,
        store: Option<StoreHandle>,
    ) -> Desk {
        let (edition, bytes) = keep::last_of(notes).unwrap_or_default();
        let state = if bytes.is_empty() { Ok(State::default()) } else { State::decode(&bytes) };
        let tell = |severity, message: String| {
            log::warn!("{message}");
            events.record(severity, EventDetail::Note { message });
        };
        let state = state.unwrap_or_else(|error| {
            tell(Severity::Warning, format!("what the policy remembers cannot be read, and is forgotten: {error}"));
            State::default()
        });
        let Kept { rules, problem } = kept;
        problem.iter().for_each(|problem| tell(Severity::Error, problem.clone()));
        let (seen, rest, told) = (None, None, BTreeMap::new());
        let inner = Inner { rules, problem, state, seen, rest, edition, kept: 0, has_placed: false, told };
        let ground = Mutex::new(Arc::new(Ground { rules: inner.rules.clone(), seen: None }));
        Desk { inner: Mutex::new(inner), ground, placed: Mutex::default(), stats, events, store }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic aborts the process.
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        inner.has_placed |= !placed.is_empty();
        inner.state.placed.append(&mut placed);
        drop(placed);
        inner
    }

    /// What is wanted.
    #[must_use]
    pub fn rules(&self) -> Rules {
        self.lock().rules.clone()
    }

    /// What is wanted, and whether that is what was kept.
    #[must_use]
    pub fn wanted(&self) -> Kept {
        let inner = self.lock();
        Kept { rules: inner.rules.clone(), problem: inner.problem.clone() }
    }

    /// From now on this is wanted; it is durable already.
    pub fn set_rules(&self, rules: Rules) {
        let mut inner = self.lock();
        self.lay_ground(Ground { rules: rules.clone(), seen: inner.seen.clone() });
        (inner.rules, inner.problem, inner.rest) = (rules, None, None);
    }

    /// What the policy goes by when a VHD is made. Takes no time, whatever else is done here.
    #[must_use]
    pub fn ground(&self) -> Arc<Ground> {
        Arc::clone(&self.ground.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lay_ground(&self, ground: Ground) {
        *self.ground.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(ground);
    }

    /// A VHD was made where the policy said. Takes no time; what is remembered is written down after the next look.
    pub fn note_placed(&self, vhd: VhdId) {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner).insert(vhd);
    }

    /// What has happened so far: what comes between this and the end of a look is for the next one.
    #[must_use]
    pub fn happened(&self) -> Happened {
        Happened { stirs: self.stats.stirs(), events: self.events.next_seq() }
    }

    /// Whether a look could find something: the last one has, or something has happened since, or it was long ago.
    #[must_use]
    pub fn is_due(&self, wall_secs: u64) -> bool {
        let rest = self.lock().rest;
        rest.is_none_or(|rest| {
            rest.happened != self.happened() || wall_secs.abs_diff(rest.since) >= POLICY_REST_LOOK_SECS
        })
    }

    /// What is there now, as far as it matters for these rules; for whoever only wants to know. May read maps: takes a while.
    #[must_use]
    pub fn observe(&self, answers: &Answers, rules: &Rules, wall_secs: u64) -> Pool {
        answers.observe(&self.stats, rules, wall_secs)
    }

    /// Looks at the pool, and tells what has been found. `happened`: before the owner gave these answers. Returns what is to be carried out
    /// now.
    pub fn look(&self, answers: &Answers, happened: Happened, wall_secs: u64) -> Vec<Order> {
        let rules = self.rules();
        let pool = answers.observe(&self.stats, &rules, wall_secs);
        let mut inner = self.lock();
        // One that came after these answers is there, too.
        let is_there = |vhd: VhdId| {
            vhd >= answers.pool.record.next_vhd_id || answers.vhds.iter().any(|known| known.record.id == vhd)
        };
        inner.state.placed.retain(|vhd| is_there(*vhd));
        let before = std::mem::take(&mut inner.state);
        let judgement = judge(&pool, &inner.rules, &before);
        inner.state = judgement.state;
        let Inner { state, told, .. } = &mut *inner;
        self.tell(&pool, &before, state, told);
        let rest = inner.rules.rest_secs;
        let mut orders = Vec::new();
        for number in judgement.start {
            if let Ok(proposal) = inner.state.apply(number, rest) {
                orders.push(Order { number, start: carry::order(&proposal.action, &pool, wall_secs) });
            }
        }
        self.lay_ground(Ground { rules: inner.rules.clone(), seen: Some(pool.clone()) });
        inner.seen = Some(pool);
        inner.rest = inner.state.is_at_rest().then_some(Rest { since: wall_secs, happened });
        let is_due = !orders.is_empty() || inner.has_placed || wall_secs.abs_diff(inner.kept) >= POLICY_KEEP_SECS;
        if is_due {
            self.keep(&mut inner, wall_secs);
        }
        orders
    }

    /// Takes a proposal that an administrator wants to be carried out.
    ///
    /// # Errors
    /// There is none of this number.
    pub fn apply(&self, number: u32, wall_secs: u64) -> Result<Order, NoProposal> {
        let mut inner = self.lock();
        let rest = inner.rules.rest_secs;
        let proposal = inner.state.apply(number, rest)?;
        let start = inner.seen.as_ref().and_then(|pool| carry::order(&proposal.action, pool, wall_secs));
        self.keep(&mut inner, wall_secs);
        Ok(Order { number, start })
    }

    /// The proposal could not be carried out.
    pub fn refused(&self, number: u32, why: &str, wall_secs: u64) {
        let mut inner = self.lock();
        inner.state.refused(number);
        self.keep(&mut inner, wall_secs);
        drop(inner);
        let message = format!("proposal {number} of the policy could not be carried out: {why}");
        self.events.record(Severity::Warning, EventDetail::Note { message });
    }

    /// A proposal is not wanted.
    ///
    /// # Errors
    /// There is none of this number.
    pub fn dismiss(&self, number: u32, wall_secs: u64) -> Result<Proposal, NoProposal> {
        let mut inner = self.lock();
        let proposal = inner.state.dismiss(number)?;
        self.keep(&mut inner, wall_secs);
        Ok(proposal)
    }

    /// What there is to say.
    #[must_use]
    pub fn advice(&self) -> Advice {
        let inner = self.lock();
        let problem = inner.problem.clone();
        let Some(pool) = &inner.seen else { return Advice { problem, ..Advice::default() } };
        let names = Names(pool);
        let open = inner.state.open.iter();
        let applied = inner.state.applied.iter().rev();
        Advice {
            proposals: open.map(|proposal| (proposal.clone(), names.proposal(proposal))).collect(),
            outcomes: applied.map(|applied| (applied.number, names.outcome(applied))).collect(),
            spent_bytes: inner.state.spent_bytes(),
            budget_bytes: crate::policy::judge::budget(pool, &inner.rules),
            problem,
        }
    }

    /// Why a VHD lies where it lies; `None` if there is none of this number.
    #[must_use]
    pub fn why(&self, pool: &Pool, vhd: VhdId) -> Option<Why> {
        let inner = self.lock();
        why(pool, &inner.rules, &inner.state, vhd)
    }

    fn keep(&self, inner: &mut Inner, wall_secs: u64) {
        (inner.kept, inner.has_placed) = (wall_secs, false);
        if let Some(store) = &self.store {
            inner.edition += 1;
            store.note(keep::notes_of(inner.edition, &inner.state.encode()));
        }
    }

    /// Tells of proposals that are new, and of promises that have been measured. Of those that wait for somebody, about the same thing
    /// once an hour: while the load swings each look may have another one.
    fn tell(&self, pool: &Pool, before: &State, after: &State, told: &mut BTreeMap<(Rule, Subject), u64>) {
        let (names, now) = (Names(pool), after.clock.secs);
        told.retain(|_, at| now.saturating_sub(*at) < POLICY_TELL_SECS);
        for proposal in after.open.iter().filter(|proposal| proposal.number > before.proposed) {
            let key = (proposal.rule, proposal.subject);
            if proposal.standing == Standing::Start || !told.contains_key(&key) {
                told.insert(key, now);
                self.tell_proposal(pool, proposal);
            }
        }
        let measured = |applied: &&crate::policy::outcome::Applied| {
            let old = before.applied.iter().find(|old| old.number == applied.number);
            applied.measured.is_some() && old.is_some_and(|old| old.measured.is_none())
        };
        for applied in after.applied.iter().filter(measured) {
            let (proposal, vhd) = (applied.number, names.vhd(applied.action.vhd()));
            let message = names.outcome(applied);
            self.events.record(Severity::Info, EventDetail::ProposalMeasured { proposal, vhd, message });
        }
    }

    fn tell_proposal(&self, pool: &Pool, proposal: &Proposal) {
        let names = Names(pool);
        let said = names.proposal(proposal);
        let detail = EventDetail::Proposal {
            proposal: proposal.number,
            vhd: names.vhd(proposal.action.vhd()),
            what: said.what,
            because: said.because,
            command: said.command,
            waits: proposal.standing != Standing::Start,
        };
        self.events.record(Severity::Info, detail);
        if let (Rule::Neighbour, Some(aggressor), Subject::Vhd(victim)) =
            (proposal.rule, proposal.aggressor, proposal.effect.subject)
        {
            let disk = common_disk(pool, aggressor, victim).map(|disk| names.disk(disk)).unwrap_or_default();
            let (vhd, aggressor) = (names.vhd(victim), names.vhd(aggressor));
            self.events.record(Severity::Warning, EventDetail::NoisyNeighbour { vhd, aggressor, disk });
        }
    }
}

/// The busiest disk that has something of both.
fn common_disk(pool: &Pool, one: VhdId, other: VhdId) -> Option<crate::base::ids::DiskId> {
    let on = |vhd: VhdId| pool.vhds.iter().find(|known| known.id == vhd).map(|known| &known.extents);
    let (one, other) = (on(one)?, on(other)?);
    let both = one.iter().map(|(disk, _)| *disk).filter(|disk| other.iter().any(|(with, _)| with == disk));
    let busy = |id| pool.disks.iter().find(|disk| disk.id == id).map_or(0.0, |disk| disk.busy);
    both.max_by(|a, b| busy(*a).total_cmp(&busy(*b)))
}

#[cfg(test)]
mod tests;
