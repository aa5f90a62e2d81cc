//! The ways to mend something: VHDs on other disks, tried in a copy of the pool.

use std::collections::BTreeSet;

use super::super::model::{Model, Move};
use super::super::proposal::{Action, Alternative, Effect, Metric, Objection, Proposal, Rule, Subject};
use super::super::state::State;
use super::Look;
use super::needs::{How, Need};
use crate::base::ids::DiskId;
use crate::base::limits::REPLICAS_MAX;
use crate::placement::record::Layout;

/// What a change must be worth at least, in the model's cost: less is within what measuring gets wrong.
const WORTH_LEAST: f64 = 0.001;

/// What the budget of a day is worth.
const PRICE: f64 = 0.1;

/// What any change takes besides what it copies, as part of the budget of a day: its VHD rests afterwards, and moves in flight are few.
/// Without it a change that copies nearly nothing would come before all others, however little it brings.
const FIXED: f64 = 0.1;

/// Part by which what is promised has to become less.
const BETTER: f64 = 0.02;

/// By how much a change may make the pool worse in the last minutes, if it makes it better otherwise.
const HURT: f64 = 0.01;

/// By which factor another VHD may wait longer afterwards, if it waits longer than it should then.
const LONGER: f64 = 1.1;

/// What it is worth that a VHD which is too slow is served at once.
const RELIEF: f64 = 0.1;

/// By how much, in the key by which disks are ordered, others must be better than those of a proposal which is open; and of what it is
/// worth, how much of that must be left. Otherwise each look would make another proposal of what measuring gets wrong.
const STEADY: f64 = 0.05;
const STEADY_PART: f64 = 0.8;

/// Numbers of disks that are tried, besides all.
const WIDTHS: [usize; 7] = [2, 3, 4, 6, 8, 12, 16];

/// Other ways that are told.
const ALTERNATIVES: usize = 3;

/// A way.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub step: Move,
    /// Where its replicas were.
    pub had: Vec<(usize, u64)>,
    pub action: Action,
    pub effect: Effect,
    pub bytes: u64,
    pub worth: f64,
    /// What it is worth after its price.
    pub net: f64,
    pub alternatives: Vec<Alternative>,
}

/// What is looked for, and where.
pub(super) struct Ways<'a> {
    pub look: &'a Look<'a>,
    pub state: &'a State,
    pub need: &'a Need,
    /// VHDs about which there is a proposal.
    pub moved: &'a BTreeSet<usize>,
    /// Bytes that may still be moved.
    pub left: u64,
}

/// A way that has been looked at in passing.
struct Sketch {
    vhd: usize,
    places: Vec<usize>,
    replicas: u8,
    bytes: u64,
    /// By which ways are compared: see [`Ways::rank`].
    rank: f64,
    objection: Option<Objection>,
}

impl Ways<'_> {
    /// The best way; `None` if there is none that is worth it.
    pub fn best(&self) -> Option<Draft> {
        let mut sketches: Vec<Sketch> = Vec::new();
        for (vhd, how) in &self.need.movers {
            if self.may_move(*vhd) {
                sketches.extend(
                    self.targets(*vhd, how).into_iter().map(|(places, replicas)| self.sketch(*vhd, places, replicas)),
                );
            }
        }
        // What can be had today is better than what is best and cannot.
        sketches.sort_by(|a, b| {
            let today = |sketch: &Sketch| sketch.bytes <= self.left;
            let order = today(b).cmp(&today(a)).then(b.rank.total_cmp(&a.rank)).then(a.vhd.cmp(&b.vhd));
            order.then_with(|| a.places.cmp(&b.places))
        });
        self.keep_open_first(&mut sketches);
        let mut chosen = None;
        for sketch in sketches.iter_mut().filter(|sketch| sketch.objection.is_none()) {
            match self.draft(sketch) {
                Ok(draft) => {
                    chosen = Some(draft);
                    break;
                }
                Err(objection) => sketch.objection = Some(objection),
            }
        }
        let mut draft = chosen?;
        draft.alternatives = self.alternatives(&sketches, &draft);
        Some(draft)
    }

    /// What has been proposed of this need, and is still open.
    fn open(&self) -> Option<&Action> {
        let is_same = |open: &&Proposal| (open.rule, open.subject) == (self.need.rule, self.need.subject);
        self.state.open.iter().find(is_same).map(|open| &open.action)
    }

    /// The open proposal stays as long as no other way is clearly better.
    fn keep_open_first(&self, sketches: &mut [Sketch]) {
        let Some(open) = self.open() else { return };
        let good = |sketch: &Sketch| sketch.objection.is_none();
        let same = |sketch: &Sketch| self.action(sketch.vhd, &sketch.places, sketch.replicas) == *open;
        let found = sketches.iter().position(|sketch| good(sketch) && same(sketch));
        let (Some(at), Some(best)) = (found, sketches.iter().find(|sketch| good(sketch))) else { return };
        let is_as_soon = sketches[at].bytes <= self.left || best.bytes > self.left;
        if is_as_soon && sketches[at].rank >= best.rank - ((1.0 - STEADY_PART) * best.rank).max(WORTH_LEAST / FIXED) {
            sketches[..=at].rotate_right(1);
        }
    }

    fn model(&self) -> &Model {
        self.look.model(self.need.window)
    }

    fn may_move(&self, vhd: usize) -> bool {
        let id = self.look.vhds[vhd].id;
        let rests = self.state.rests.contains_key(&id);
        let may_rest = !self.need.urgent && !self.need.rule.is_about_safety();
        let is_refused = self.state.is_refused(self.need.rule, self.need.subject, id);
        !(self.moved.contains(&vhd) || is_refused || rests && may_rest)
    }

    /// Sets of disks to try, each with a number of replicas.
    fn targets(&self, vhd: usize, how: &How) -> Vec<(Vec<usize>, u8)> {
        let (model, load) = (self.model(), &self.model().vhds[vhd]);
        let replicas = load.replicas.max(1);
        if let How::Survive(survives) = how {
            return self.surviving(vhd, *survives);
        }
        if let How::Near(mask) = how {
            if load.width() > 1 || replicas > 1 {
                return Vec::new();
            }
            let near = (0..model.disks.len()).filter(|place| mask >> place & 1 == 1);
            return near.map(|place| (vec![place], 1)).collect();
        }
        let mut order = self.order();
        let width = load.width().max(1);
        let mut widest = order.len();
        // Who takes all there is leaves the disk where others wait, and keeps the others: on fewer it would be served worse for nothing.
        let keeps = matches!(how, How::Away(_)) && self.look.now.vhds[vhd].takes_all;
        let own_widths = if keeps { [width - 1, width] } else { [order.len(); 2] };
        if let How::Away(place) = how {
            order.retain(|other| other != place);
            // Whoever took all that there was when it got more is kept to as many disks as it has.
            let insatiable = self.state.insatiable.contains_key(&self.look.vhds[vhd].id);
            widest = if insatiable { width } else { 4 * width };
        }
        let fits = |wide: usize| match how {
            How::NotWider => wide <= width,
            // Step by step: whoever takes all that there is takes little more than before.
            How::Wider => wide > width && wide <= 2 * width,
            How::Narrower => wide < width,
            How::Away(_) => wide <= widest && (!keeps || wide + 1 >= width),
            How::Any | How::Near(_) | How::Survive(_) => true,
        };
        let mut targets: Vec<(Vec<usize>, u8)> = Vec::new();
        if replicas == 1 && fits(1) {
            targets.extend(order.iter().map(|place| (vec![*place], 1)));
        }
        let own: Vec<usize> = order.iter().copied().filter(|place| load.count_on(*place) > 0).collect();
        let others = order.iter().copied().filter(|place| load.count_on(*place) == 0);
        let kept: Vec<usize> = own.iter().copied().chain(others).collect();
        let wide = |wide: &usize| *wide <= order.len() && *wide >= usize::from(replicas).max(2) && fits(*wide);
        for width in WIDTHS.into_iter().chain(own_widths).chain([order.len()]).filter(wide) {
            for from in [&order, &kept] {
                let mut places = from[..width].to_vec();
                places.sort_unstable();
                if !targets.iter().any(|(other, _)| *other == places) {
                    targets.push((places, replicas));
                }
            }
        }
        targets
    }

    /// Disks that work, those that do least first, those of an open proposal a little before they would come.
    fn order(&self) -> Vec<usize> {
        let disks = &self.model().disks;
        let mut order: Vec<usize> = (0..disks.len()).filter(|place| disks[*place].works).collect();
        let open = self.open().map_or(&[][..], Action::disks);
        let key = |place: usize| {
            let disk = &disks[place];
            disk.busy + 0.1 * disk.fill() - if open.contains(&disk.id) { STEADY } else { 0.0 }
        };
        order.sort_by(|a, b| key(*a).total_cmp(&key(*b)).then(a.cmp(b)));
        order
    }

    /// Disks of as many failure domains as it takes: its own first, those that do least.
    fn surviving(&self, vhd: usize, survives: u8) -> Vec<(Vec<usize>, u8)> {
        let (model, load) = (self.model(), &self.model().vhds[vhd]);
        let needed = (usize::from(survives) + 1).min(REPLICAS_MAX);
        let replicas = u8::try_from(needed).unwrap_or(1).max(load.replicas);
        let mut order = self.order();
        // Most of it on top, so that little is moved; the sort is stable.
        order.sort_by_key(|place| std::cmp::Reverse(load.count_on(*place)));
        let (mut places, mut domains) = (Vec::new(), BTreeSet::new());
        for place in order {
            let fresh = domains.insert(model.disks[place].domain);
            if fresh && places.len() < usize::from(replicas).max(load.width()) {
                places.push(place);
            }
        }
        places.sort_unstable();
        if places.len() < usize::from(replicas) { Vec::new() } else { vec![(places, replicas)] }
    }

    /// What a way would bring, without a look at whether the planner agrees.
    fn sketch(&self, vhd: usize, places: Vec<usize>, replicas: u8) -> Sketch {
        let model = self.model();
        let to = model.even(model.vhds[vhd].placed * u64::from(replicas), &places);
        let step = Move { vhd, to, replicas };
        let bytes = model.bytes(&step);
        let worth = self.worth(&step);
        let net = worth - PRICE * bytes as f64 / self.look.budget.max(1) as f64;
        let care = self.state.records.get(&self.need.rule).map_or(1, |record| record.care());
        let least = WORTH_LEAST * f64::from(care);
        let must = must(self.need);
        let objection = if self.need.rule.is_about_safety() || self.need.urgent {
            None
        } else if bytes > self.look.budget {
            Some(Objection::Dearer)
        } else if worth < least && !must {
            Some(Objection::TooLittle)
        } else if net <= 0.0 && !must {
            Some(Objection::Dearer)
        } else if self.look.now.worth(&step) < -HURT || self.look.usual.worth(&step) < -HURT || self.makes_wait(&step) {
            Some(Objection::HurtsOthers)
        } else {
            None
        };
        let rank = self.rank(net, bytes);
        Sketch { vhd, places, replicas, bytes, rank, objection }
    }

    /// What a way brings for each part of the budget that it takes: the budget is what there is least of, so that a small VHD which is
    /// asked for much is moved before a large one which is asked for a little more. What brings nothing keeps its order.
    fn rank(&self, net: f64, bytes: u64) -> f64 {
        let takes = bytes as f64 / self.look.budget.max(1) as f64 + FIXED;
        if net > 0.0 { net / takes } else { net }
    }

    /// What a change is worth for this need.
    fn worth(&self, step: &Move) -> f64 {
        let mut worth = self.model().worth(step);
        if self.need.rule == Rule::Latency || self.need.rule == Rule::Neighbour {
            worth += RELIEF * (1.0 - self.slower(step));
        }
        worth
    }

    /// The way in full, if it is legal and brings what is promised.
    fn draft(&self, sketch: &Sketch) -> Result<Draft, Objection> {
        let model = self.model();
        let step = model.legal(sketch.vhd, &sketch.places, sketch.replicas).ok_or(Objection::Illegal)?;
        // Only further replicas take what is not counted yet.
        let (seen, more) =
            (self.look.vhds[sketch.vhd], sketch.replicas.saturating_sub(model.vhds[sketch.vhd].replicas));
        if seen.quota_left.is_some_and(|left| u64::from(seen.placed) * u64::from(more) > left) {
            return Err(Objection::Illegal);
        }
        let effect = self.effect(&step);
        let (before, after) = (effect.before, effect.after);
        let better = if effect.metric.is_gain() { after > before } else { after <= before * (1.0 - BETTER) };
        if !better || model.copies(&step) == 0 {
            return Err(Objection::TooLittle);
        }
        let (bytes, worth) = (model.bytes(&step), self.worth(&step));
        let net = worth - PRICE * bytes as f64 / self.look.budget.max(1) as f64;
        let had = model.vhds[step.vhd].on.clone();
        let action = self.action(sketch.vhd, &sketch.places, sketch.replicas);
        Ok(Draft { step, had, action, effect, bytes, worth, net, alternatives: Vec::new() })
    }

    /// The order for the daemon. Of a change of both layout and replicas the layout comes first; the replicas are for the next look.
    fn action(&self, vhd: usize, places: &[usize], replicas: u8) -> Action {
        let seen = self.look.vhds[vhd];
        let mut disks: Vec<DiskId> = places.iter().map(|place| self.model().disks[*place].id).collect();
        disks.sort_unstable();
        let same = seen.layout.disks() == disks.iter().copied().collect();
        match (&seen.layout, &disks[..]) {
            _ if same && replicas != seen.replicas => Action::Replicas { vhd: seen.id, replicas },
            _ if same => Action::Settle { vhd: seen.id },
            (Layout::Isolated { .. }, [disk]) => Action::Migrate { vhd: seen.id, disk: *disk },
            (Layout::Spanned { .. }, [disk]) => Action::Unspan { vhd: seen.id, disk: *disk },
            _ => Action::Span { vhd: seen.id, disks },
        }
    }

    /// What was promised, before and after.
    fn effect(&self, step: &Move) -> Effect {
        let (metric, subject) = self.need.promise;
        let model = self.model();
        let before = self.value(model, metric, subject);
        let after = match (metric, subject) {
            (Metric::Survives, _) => f64::from(step.replicas.saturating_sub(1)),
            (Metric::Latency, _) => before * self.slower(step),
            _ => self.value(&with(model, step), metric, subject),
        };
        Effect { metric, subject, before, after }
    }

    /// By which factor the VHD that the promise is made to waits longer afterwards; 1 if it is about nobody's latency.
    fn slower(&self, step: &Move) -> f64 {
        let (Metric::Latency, Subject::Vhd(victim)) = self.need.promise else { return 1.0 };
        let model = self.model();
        model.find(victim).map_or(1.0, |victim| slower_of(model, victim, step))
    }

    /// Whether another VHD would be served too slowly where this one goes, that is not now. The pool as a whole can be better off with
    /// somebody who takes much of every disk; those who ask for little would not be.
    fn makes_wait(&self, step: &Move) -> bool {
        let model = &self.look.now;
        let comes = |place: usize| {
            step.to.iter().any(|(at, count)| *at == place && *count > model.vhds[step.vhd].count_on(place))
        };
        let is_hurt = |other: usize| {
            let seen = self.look.vhds[other];
            let mean = if seen.latency.mean_ns > 0 { seen.latency.mean_ns } else { seen.usual_latency.mean_ns };
            if other == step.vhd || mean == 0 || !model.vhds[other].on.iter().any(|(place, _)| comes(*place)) {
                return false;
            }
            let longer = slower_of(model, other, step);
            longer > LONGER && mean as f64 * longer > self.look.limit_ns(other)
        };
        (0..model.vhds.len()).any(is_hurt)
    }

    fn value(&self, model: &Model, metric: Metric, subject: Subject) -> f64 {
        super::super::outcome::value(model, &self.look.vhds, metric, subject).unwrap_or(0.0)
    }

    fn alternatives(&self, sketches: &[Sketch], draft: &Draft) -> Vec<Alternative> {
        let mut told: Vec<Alternative> = Vec::new();
        for sketch in sketches {
            let action = self.action(sketch.vhd, &sketch.places, sketch.replicas);
            if told.len() == ALTERNATIVES {
                break;
            }
            if action != draft.action && told.iter().all(|other| other.action != action) {
                let objection = sketch.objection.unwrap_or(Objection::Dearer);
                told.push(Alternative { action, objection, bytes: sketch.bytes });
            }
        }
        told
    }

    /// Whether a draft is legal and worth something after what was started since it was made.
    pub fn is_still_good(look: &Look, need: &Need, draft: &Draft) -> bool {
        let model = look.model(need.window);
        let places: Vec<usize> = draft.step.to.iter().map(|(place, _)| *place).collect();
        let legal = model.legal(draft.step.vhd, &places, draft.step.replicas).is_some();
        legal && (must(need) || model.worth(&draft.step) >= 0.5 * draft.worth)
    }
}

/// Whether it has to be mended, whatever that is worth to the pool as a whole: a limit that somebody has set is broken.
fn must(need: &Need) -> bool {
    need.rule.is_about_safety() || need.rule == Rule::Space || need.urgent
}

fn with(model: &Model, step: &Move) -> Model {
    let mut after = model.clone();
    after.apply(step);
    after
}

/// By which factor a VHD waits longer after a move.
fn slower_of(model: &Model, victim: usize, step: &Move) -> f64 {
    let (on, moved) = (&model.vhds[victim].on, &model.vhds[step.vhd]);
    let after = if victim == step.vhd { &step.to } else { on };
    let gets = |place: usize| step.to.iter().find(|(at, _)| *at == place).map_or(0, |(_, count)| *count) as f64;
    let busy_then = |place: usize| {
        let disk = &model.disks[place];
        let more = gets(place) - moved.count_on(place) as f64;
        // Who takes all of several disks takes all of one more. One disk tells nothing: who takes all of it may need little more.
        if moved.takes_all && moved.width() > 1 && more > 0.0 {
            return disk.busy.max(1.0);
        }
        (disk.busy + disk.adds(moved.work_each, more)).max(0.0)
    };
    let before = waits(model, on, |place| model.disks[place].busy);
    if before > 0.0 { waits(model, after, busy_then) / before } else { 1.0 }
}

/// Nanoseconds that requests take on these disks, if they are so busy; up to a factor, which is the same before and after.
fn waits(model: &Model, on: &[(usize, u64)], busy: impl Fn(usize) -> f64) -> f64 {
    let total: u64 = on.iter().map(|(_, count)| count).sum();
    let at = |(place, count): &(usize, u64)| {
        let idle = model.disks[*place].kind.usual_latency_ns() as f64;
        *count as f64 / total.max(1) as f64 * idle / (1.0 - busy(*place).min(0.98))
    };
    on.iter().map(at).sum()
}
