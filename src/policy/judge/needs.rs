//! What is not as it should be: each rule, its limit, and for how long that has been exceeded.

use std::collections::{BTreeMap, BTreeSet};

use super::super::model::{BUSY, Window};
use super::super::observe::Health;
use super::super::proposal::{Fact, Metric, Rule, Subject};
use super::super::rules::Mode;
use super::super::state::State;
use super::Look;
use crate::base::ids::VhdId;

/// A disk that will be full within so many days cannot wait, nor can one that is so full; one that will be within more is looked at.
const FULL_SOON_DAYS: f64 = 2.0 / 24.0;
const FULL_AHEAD_DAYS: f64 = 8.0 / 24.0;
const FULL: f64 = 0.95;

/// Times its target at which a VHD waits so much that half of the usual time is enough to be sure.
const VERY_SLOW: f64 = 1.5;

/// Part of a disk's load from which a VHD is called an aggressor, and times its fair part.
const AGGRESSOR_PART: f64 = 0.25;
const ABOVE_FAIR: f64 = 1.5;

/// Part of a disk's time that one VHD may need by itself.
const OWN_PART: f64 = 0.5;

/// A VHD that would take no more than this of one disk does not need several.
const FEW_BUSY: f64 = 0.15;

/// VHDs of a disk that are looked at, those that take most of it.
const MOVERS: usize = 8;

/// A limit as a number of times itself, below which it is over.
const OVER: f64 = 0.8;

/// In which ways a VHD may be moved.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum How {
    /// Any.
    Any,
    /// To no more disks than it is on.
    NotWider,
    /// Away from the disk with this place.
    Away(usize),
    /// To more disks.
    Wider,
    /// To fewer disks.
    Narrower,
    /// To one of these disks.
    Near(u64),
    /// So that it survives so many failure domains.
    Survive(u8),
}

/// Something to mend.
#[derive(Clone, Debug)]
pub(super) struct Need {
    pub rule: Rule,
    pub subject: Subject,
    /// It cannot wait for holds, rests and quiet hours.
    pub urgent: bool,
    pub window: Window,
    pub facts: Vec<Fact>,
    pub aggressor: Option<VhdId>,
    /// What is promised, and of whom.
    pub promise: (Metric, Subject),
    /// The VHDs whose move could help.
    pub movers: Vec<(usize, How)>,
}

impl Need {
    /// The VHD that would take more than it gets, if its disks could do more.
    pub fn asks_for_more(&self, look: &Look) -> Option<VhdId> {
        match (self.aggressor, self.rule, &self.movers[..]) {
            (None, Rule::Rate, [(vhd, _)]) => Some(look.vhds[*vhd].id),
            (aggressor, ..) => aggressor,
        }
    }
}

/// For how long something must have been so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Haste {
    /// As the rules say, and longer if the rule has often been wrong.
    Usual,
    /// Half as long.
    Soon,
    /// Not at all.
    AtOnce,
}

/// All needs, by rule.
pub(super) fn find(look: &Look, state: &mut State) -> Vec<Need> {
    let mut finder = Finder { look, state, needs: Vec::new(), asked: BTreeSet::new(), hurting: BTreeSet::new() };
    finder.tolerance();
    finder.suspect();
    finder.space();
    finder.slow();
    finder.rate();
    finder.imbalance();
    finder.together();
    finder.contract();
    let Finder { needs, asked, state, .. } = finder;
    // What nobody has asked for any more, such as of a disk that works again, is no condition.
    state.conditions.retain(|key, _| asked.contains(key));
    needs
}

struct Finder<'a> {
    look: &'a Look<'a>,
    state: &'a mut State,
    needs: Vec<Need>,
    asked: BTreeSet<(Rule, Subject)>,
    /// VHDs that take so much of a disk that another one waits too long there, or nearly so.
    hurting: BTreeSet<usize>,
}

fn fact(metric: Metric, subject: Subject, value: f64, target: f64) -> Fact {
    Fact { metric, subject, value, target }
}

impl Finder<'_> {
    fn holds(&mut self, rule: Rule, subject: Subject, begins: bool, lasts: bool, urgent: bool) -> bool {
        let haste = if urgent { Haste::AtOnce } else { Haste::Usual };
        self.holds_in(rule, subject, begins, lasts, haste)
    }

    fn holds_in(&mut self, rule: Rule, subject: Subject, begins: bool, lasts: bool, haste: Haste) -> bool {
        self.asked.insert((rule, subject));
        let rules = self.look.rules;
        let secs = if rule.is_comfort() { rules.comfort_hold_secs } else { rules.hold_secs };
        let care = self.state.records.get(&rule).map_or(1, |record| record.care());
        let secs = match haste {
            Haste::AtOnce => 0,
            Haste::Soon => secs / 2,
            Haste::Usual => secs.saturating_mul(u64::from(care)),
        };
        self.state.holds(rule, subject, begins, lasts, secs)
    }

    /// Whether the policy may look at a VHD and no job is about it.
    fn is_free(&self, vhd: usize) -> bool {
        self.look.wanted[vhd].mode != Mode::Off && !self.look.now.vhds[vhd].moves
    }

    fn tolerance(&mut self) {
        for vhd in 0..self.look.vhds.len() {
            let (seen, wanted) = (self.look.vhds[vhd], self.look.wanted[vhd]);
            let survives = seen.survives.unwrap_or(wanted.survives);
            let lacks = survives < wanted.survives && self.is_free(vhd);
            let subject = Subject::Vhd(seen.id);
            if !self.holds(Rule::Tolerance, subject, lacks, lacks, false) {
                continue;
            }
            let (value, target) = (f64::from(survives), f64::from(wanted.survives));
            self.needs.push(Need {
                rule: Rule::Tolerance,
                subject,
                urgent: false,
                window: Window::Now,
                facts: vec![fact(Metric::Survives, subject, value, target)],
                aggressor: None,
                promise: (Metric::Survives, subject),
                movers: vec![(vhd, How::Survive(wanted.survives))],
            });
        }
    }

    /// What only a disk has that is suspect: it may be gone with the next error. Where there are replicas, they are made anew.
    fn suspect(&mut self) {
        let (look, model) = (self.look, &self.look.now);
        for (vhd, load) in model.vhds.iter().enumerate().filter(|(_, load)| load.replicas <= 1) {
            let suspect = load.on.iter().filter(|(place, _)| look.disks[*place].health == Health::Suspect);
            let worst = suspect.max_by_key(|(place, count)| (*count, std::cmp::Reverse(*place)));
            let (subject, is_so) = (Subject::Vhd(load.id), worst.is_some() && self.is_free(vhd));
            // That it lasts whoever says that a disk is suspect has seen to: the suspicion may end before a usual hold does.
            let holds = self.holds_in(Rule::Suspect, subject, is_so, is_so, Haste::AtOnce);
            let Some((place, _)) = worst.filter(|_| holds) else { continue };
            let facts = vec![fact(Metric::Exposed, subject, model.exposed(vhd), 0.0)];
            let (promise, movers) = ((Metric::Exposed, subject), vec![(vhd, How::Away(*place))]);
            self.push_now(Rule::Suspect, subject, facts, promise, movers, None);
        }
    }

    fn space(&mut self) {
        let (model, rules) = (&self.look.now, self.look.rules);
        for (place, disk) in model.disks.iter().enumerate() {
            let fill = disk.fill();
            let free = f64::from(disk.slots) - disk.used as f64;
            let full_within = |days: f64| {
                let comes = model.vhds.iter().filter(|vhd| vhd.growth > 0.0).map(|vhd| {
                    (vhd.growth * days).min(vhd.rest) * vhd.count_on(place) as f64 / vhd.total().max(1) as f64
                });
                comes.sum::<f64>() >= free
            };
            let urgent = disk.works && (fill >= FULL || full_within(FULL_SOON_DAYS));
            let begins = disk.works && (fill >= rules.space || full_within(FULL_AHEAD_DAYS));
            let lasts = disk.works && fill >= rules.space - rules.difference;
            let subject = Subject::Disk(disk.id);
            if self.holds(Rule::Space, subject, begins, lasts, urgent) {
                self.needs.push(Need {
                    rule: Rule::Space,
                    subject,
                    urgent,
                    window: Window::Usual,
                    facts: vec![fact(Metric::Fill, subject, fill, rules.space)],
                    aggressor: None,
                    promise: (Metric::Fill, subject),
                    movers: self.movers_of(place, &How::Any, |vhd| model.vhds[vhd].count_on(place) as f64),
                });
            }
        }
    }

    /// The VHDs on a disk of which there is most.
    fn movers_of(&self, place: usize, how: &How, most: impl Fn(usize) -> f64) -> Vec<(usize, How)> {
        let there = |vhd: &usize| self.look.now.vhds[*vhd].count_on(place) > 0 && self.is_free(*vhd);
        let mut movers: Vec<usize> = (0..self.look.vhds.len()).filter(there).collect();
        movers.sort_by(|a, b| most(*b).total_cmp(&most(*a)).then(a.cmp(b)));
        movers.truncate(2 * MOVERS);
        movers.into_iter().map(|vhd| (vhd, how.clone())).collect()
    }

    /// VHDs that are served too slowly: on disks that are busy the worst of each disk, on others each by itself.
    fn slow(&mut self) {
        let mut slow_on: BTreeMap<usize, Vec<(usize, f64)>> = BTreeMap::new();
        for vhd in 0..self.look.vhds.len() {
            let Some(slow) = self.slowness(vhd) else { continue };
            let Some(place) = self.busiest_of(vhd) else { continue };
            if self.look.now.disks[place].busy >= BUSY {
                slow_on.entry(place).or_default().push((vhd, slow));
            } else {
                self.slow_alone(vhd, slow);
            }
        }
        for place in 0..self.look.now.disks.len() {
            self.slow_disk(place, slow_on.get(&place).map_or(&[], Vec::as_slice));
        }
    }

    /// How many times longer than they should the requests of a VHD take, if that is too long or nearly so.
    fn slowness(&self, vhd: usize) -> Option<f64> {
        let (seen, wanted) = (self.look.vhds[vhd], self.look.wanted[vhd]);
        let mean = seen.latency.mean_ns as f64;
        if wanted.mode == Mode::Off || seen.flow.iops < 0.1 {
            return None;
        }
        Some(mean / self.look.limit_ns(vhd)).filter(|slow| *slow >= OVER)
    }

    /// The disk for which a VHD waits most.
    fn busiest_of(&self, vhd: usize) -> Option<usize> {
        let model = &self.look.now;
        let waits = |(place, count): &(usize, u64)| *count as f64 * model.disks[*place].busy;
        model.vhds[vhd].on.iter().max_by(|a, b| waits(a).total_cmp(&waits(b)).then(b.0.cmp(&a.0))).map(|on| on.0)
    }

    /// A VHD whose disks are not busy, and still too slow.
    fn slow_alone(&mut self, vhd: usize, slow: f64) {
        let subject = Subject::Vhd(self.look.vhds[vhd].id);
        let mean = self.look.vhds[vhd].latency.mean_ns as f64;
        if self.holds(Rule::Latency, subject, slow >= 1.0, slow >= OVER, false) && self.is_free(vhd) {
            let facts = vec![fact(Metric::Latency, subject, mean, mean / slow)];
            let promise = (Metric::Latency, subject);
            self.push_now(Rule::Latency, subject, facts, promise, vec![(vhd, How::Any)], None);
        }
    }

    /// A disk that is busy, and the VHDs that it makes wait.
    fn slow_disk(&mut self, place: usize, waiting: &[(usize, f64)]) {
        let disk = &self.look.now.disks[place];
        let subject = Subject::Disk(disk.id);
        let worst = |other_than: Option<usize>| {
            let others = waiting.iter().copied().filter(|(vhd, _)| Some(*vhd) != other_than);
            others.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
        };
        // Whoever takes most suffers as well, and is nobody's victim.
        let aggressor = self.aggressor(place).filter(|(vhd, _)| worst(Some(*vhd)).is_some());
        self.hurting.extend(aggressor.map(|(vhd, _)| vhd));
        let (victim, slow) = worst(aggressor.map(|(vhd, _)| vhd)).unwrap_or_default();
        let haste = if slow >= VERY_SLOW { Haste::Soon } else { Haste::Usual };
        let mut holds = |rule, is: bool| self.holds_in(rule, subject, is && slow >= 1.0, is && slow >= OVER, haste);
        let hurts = holds(Rule::Neighbour, aggressor.is_some());
        let crowded = holds(Rule::Latency, aggressor.is_none());
        if !(hurts || crowded) {
            return;
        }
        let of = Subject::Vhd(self.look.vhds[victim].id);
        let mean = self.look.vhds[victim].latency.mean_ns as f64;
        let mut facts =
            vec![fact(Metric::Latency, of, mean, mean / slow), fact(Metric::Busy, subject, disk.busy, BUSY)];
        let promise = (Metric::Latency, of);
        let part = |vhd: usize| self.look.now.part(vhd, place);
        match aggressor {
            Some((aggressor, fair)) => {
                let id = self.look.vhds[aggressor].id;
                facts.push(fact(Metric::Busy, Subject::Vhd(id), part(aggressor), fair));
                let both = [aggressor, victim].into_iter().filter(|vhd| self.is_free(*vhd));
                let movers = both.map(|vhd| (vhd, How::Away(place))).collect();
                self.push_now(Rule::Neighbour, subject, facts, promise, movers, Some(id));
            }
            None => {
                let mut movers = self.movers_of(place, &How::NotWider, part);
                movers.truncate(MOVERS);
                movers.retain(|(vhd, _)| *vhd != victim);
                if self.is_free(victim) && !self.is_insatiable(victim) {
                    movers.push((victim, How::Any));
                }
                self.push_now(Rule::Latency, subject, facts, promise, movers, None);
            }
        }
    }

    /// The VHD that takes far more than its fair part of a disk, and that fair part.
    fn aggressor(&self, place: usize) -> Option<(usize, f64)> {
        let model = &self.look.now;
        let parts = (0..model.vhds.len()).map(|vhd| (vhd, model.part(vhd, place))).filter(|(_, part)| *part > 0.0);
        let parts: Vec<(usize, f64)> = parts.collect();
        let fair = model.disks[place].busy / parts.len().max(1) as f64;
        let (most, part) = parts.into_iter().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))?;
        let takes_much = part >= ABOVE_FAIR * fair && part >= AGGRESSOR_PART * model.disks[place].busy;
        takes_much.then_some((most, fair))
    }

    fn is_insatiable(&self, vhd: usize) -> bool {
        self.state.insatiable.contains_key(&self.look.vhds[vhd].id)
    }

    /// VHDs that get less than they should, or need most of a disk for themselves.
    fn rate(&mut self) {
        let model = &self.look.usual;
        for vhd in 0..self.look.vhds.len() {
            let (seen, wanted) = (self.look.vhds[vhd], self.look.wanted[vhd]);
            let subject = Subject::Vhd(seen.id);
            let own = model.vhds[vhd].on.iter().map(|(place, _)| (model.part(vhd, *place), *place));
            let Some((part, place)) = own.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1))) else { continue };
            let busy = model.disks[place].busy;
            let starves = wanted.iops.is_some_and(|least| seen.flow.iops < 0.9 * least as f64)
                && self.busiest_of(vhd).is_some_and(|place| self.look.now.disks[place].busy >= 0.9);
            // Who makes others wait gets no other disks where it would do the same, before they have been parted.
            let hurts = self.hurting.contains(&vhd);
            let begins = starves || (part >= OWN_PART && busy >= BUSY && !hurts);
            let lasts = starves || (part >= OVER * OWN_PART && busy >= OVER * BUSY && !hurts);
            let free = self.is_free(vhd) && !self.is_insatiable(vhd);
            if !self.holds(Rule::Rate, subject, begins && free, lasts && free, false) {
                continue;
            }
            let disk = Subject::Disk(model.disks[place].id);
            let mut facts = vec![fact(Metric::Busy, subject, part, OWN_PART), fact(Metric::Busy, disk, busy, BUSY)];
            if let Some(least) = wanted.iops.filter(|_| starves) {
                facts.insert(0, fact(Metric::Iops, subject, seen.flow.iops, least as f64));
            }
            self.push(Need {
                rule: Rule::Rate,
                subject,
                urgent: false,
                window: Window::Usual,
                facts,
                aggressor: None,
                promise: (Metric::Busy, disk),
                movers: vec![(vhd, How::Wider)],
            });
        }
    }

    fn imbalance(&mut self) {
        let (model, limit) = (&self.look.usual, self.look.rules.imbalance);
        let value = model.imbalance();
        if !self.holds(Rule::Imbalance, Subject::Pool, value >= limit, value >= OVER * limit, false) {
            return;
        }
        let mut busiest: Vec<usize> = (0..model.disks.len()).filter(|place| model.disks[*place].works).collect();
        busiest.sort_by(|a, b| model.disks[*b].busy.total_cmp(&model.disks[*a].busy).then(a.cmp(b)));
        let mut movers: Vec<(usize, How)> = Vec::new();
        for place in busiest.into_iter().take(3) {
            for mover in self.movers_of(place, &How::Any, |vhd| model.part(vhd, place)).into_iter().take(MOVERS) {
                if !movers.contains(&mover) && !self.is_insatiable(mover.0) {
                    movers.push(mover);
                }
            }
        }
        self.push(Need {
            rule: Rule::Imbalance,
            subject: Subject::Pool,
            urgent: false,
            window: Window::Usual,
            facts: vec![fact(Metric::Imbalance, Subject::Pool, value, limit)],
            aggressor: None,
            promise: (Metric::Imbalance, Subject::Pool),
            movers,
        });
    }

    fn together(&mut self) {
        let model = &self.look.usual;
        for (index, group) in model.groups.iter().enumerate() {
            let Some(vm) = self.look.vhds[group[0]].vm else { continue };
            let single = group.iter().filter(|vhd| model.vhds[**vhd].replicas <= 1);
            let widest = single.map(|vhd| model.vhds[*vhd].width()).max().unwrap_or(0);
            let disks = model.group_mask(index).count_ones() as usize;
            let apart = disks > widest;
            let subject = Subject::Vm(vm);
            if !self.holds(Rule::Together, subject, apart, apart, false) {
                continue;
            }
            let near = |vhd: &usize| (*vhd, How::Near(model.others_mask(*vhd)));
            let movers = group.iter().filter(|vhd| self.is_free(**vhd)).map(near).collect();
            self.push(Need {
                rule: Rule::Together,
                subject,
                urgent: false,
                window: Window::Usual,
                facts: vec![fact(Metric::Disks, subject, disks as f64, widest as f64)],
                aggressor: None,
                promise: (Metric::Disks, subject),
                movers,
            });
        }
    }

    fn contract(&mut self) {
        let model = &self.look.usual;
        for (vhd, load) in model.vhds.iter().enumerate() {
            let subject = Subject::Vhd(load.id);
            // What it would take of the disk among its own that does least.
            let cheapest = load.on.iter().map(|(place, _)| model.disks[*place].unit_secs).fold(f64::INFINITY, f64::min);
            let needs = load.work_each * load.total() as f64 * cheapest;
            let wide = load.width() > usize::from(load.replicas.max(1)) && self.is_free(vhd);
            let (begins, lasts) = (wide && needs <= FEW_BUSY, wide && needs <= FEW_BUSY / OVER);
            if self.holds(Rule::Contract, subject, begins, lasts, false) {
                let facts = vec![
                    fact(Metric::Disks, subject, load.width() as f64, f64::from(load.replicas.max(1))),
                    fact(Metric::Busy, subject, needs, FEW_BUSY),
                ];
                self.push(Need {
                    rule: Rule::Contract,
                    subject,
                    urgent: false,
                    window: Window::Usual,
                    facts,
                    aggressor: None,
                    promise: (Metric::Disks, subject),
                    movers: vec![(vhd, How::Narrower)],
                });
            }
        }
    }

    fn push_now(
        &mut self,
        rule: Rule,
        subject: Subject,
        facts: Vec<Fact>,
        promise: (Metric, Subject),
        movers: Vec<(usize, How)>,
        aggressor: Option<VhdId>,
    ) {
        self.push(Need { rule, subject, urgent: false, window: Window::Now, facts, aggressor, promise, movers });
    }

    fn push(&mut self, need: Need) {
        if !need.movers.is_empty() {
            self.needs.push(need);
        }
    }
}
