//! Latency targets, which narrow the window further than throughput does.
//!
//! A client with a target narrows it if more of its requests are late than a percentile allows, for as long as that is so. Each is looked at
//! by itself, and the narrowest window that one of them needs holds: what one cannot have says nothing of what another one can.
//!
//! If the narrowest one hardly helps, the target is beyond the disk: it is given up for a while, because the others would get little for
//! nothing. If it helps, and much is late all the same, the window becomes wider again as far as that makes no more of them late: nobody has
//! anything of the rest. A client may want little, or nothing any more, and must not keep the window narrow by that: so it becomes wider by
//! time, too.

use std::collections::BTreeMap;

use crate::base::clock::Nanos;
use crate::base::ids::VhdId;

/// Requests of a client with a target that are looked at together, unless so many of them are late; fewer are enough if they are a large
/// part of those that there were.
const TARGET_SAMPLE: u64 = 250;
const TARGET_LATE: u64 = 4;
const TARGET_LATE_EVIDENT: u64 = 2;

/// Of a thousand requests with a target: more late ones narrow the window, fewer than the second widen it.
const LATE_MANY: u64 = 8;
const LATE_FEW: u64 = 4;

/// As many more as are late of a thousand, as much narrower the window becomes, in percent of what it was. One that is far too wide has made
/// more requests late than a percentile allows for a long time, if it takes many steps until it is not.
const NARROWS: [(u64, u64); 3] = [(300, 50), (40, 70), (LATE_MANY, 88)];
const LATE_EVIDENT: u64 = 80;

/// If with the narrowest window at least this part of those are late that were before, in percent, and are so often in a row, the target
/// is given up for so long, then for twice as long, and so on.
const HELPS_LITTLE: u64 = 50;
const HOPELESS: u32 = 4;
const GIVE_UP_MIN_NS: u64 = 30_000_000_000;
const GIVE_UP_MAX_NS: u64 = 600_000_000_000;

/// If more than this are late of a thousand with the narrowest window as often, the target is missed by far. For as long, more are late only
/// if it is more than this part of them, in percent, and less than the second part are few.
const MISSED_BY_FAR: u64 = 30;
const AS_MANY: u64 = 150;
const HARDLY_MORE: u64 = 125;

/// It does not become wider sooner than this long after it became wider, or requests were late.
const WIDENS_NS: u64 = 500_000_000;

/// As wide as it was when requests were late it does not become for this long, then, if that was too wide again, for twice as long, and so on.
const CALM_MIN_NS: u64 = 2_000_000_000;
const CALM_MAX_NS: u64 = 32_000_000_000;

/// Without any request of a client with a target for so long, it is not there, and the window need not be narrow for it.
const TARGETS_QUIET_NS: u64 = 3_000_000_000;

/// What had begun before the window became narrower is waited for, but not for longer than this.
const SETTLES_MAX_NS: u64 = 1_000_000_000;

/// What has completed of a client with a latency target since the last look.
#[derive(Clone, Copy, Debug)]
pub struct Targeted {
    /// Whose requests they are.
    pub client: VhdId,
    /// All of them.
    pub requests: u64,
    /// Those that took longer.
    pub late: u64,
}

/// What there is to know of the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    /// What may be in flight without targets, and at least.
    pub wide: u64,
    pub min: u64,
    /// Where requests hardly wait for one another, if that is known.
    pub knee: Option<u64>,
    /// The work of an operation of those that most is done of.
    pub operation: u64,
    /// Work of all that has completed since the last look, and most in flight meanwhile.
    pub done: u64,
    pub peak: u64,
}

/// All clients with targets.
#[derive(Debug, Default)]
pub(super) struct Targets {
    clients: BTreeMap<VhdId, Target>,
    allowed: Option<u64>,
}

impl Targets {
    /// What they allow to be in flight; `None`: as much as else.
    pub fn allowed(&self) -> Option<u64> {
        self.allowed
    }

    /// What has completed of them since the last look.
    pub fn look(&mut self, seen: &[Targeted], disk: Disk, now: Nanos) {
        for seen in seen {
            self.clients.entry(seen.client).or_insert_with(|| Target::new(now)).add(seen, now);
        }
        let allowed = self.allowed;
        self.clients.values_mut().for_each(|target| target.look(disk, allowed, now));
        self.clients.retain(|_, target| !target.is_over(now));
        self.allowed = self.clients.values().filter_map(|target| target.allowed).min();
    }
}

/// One client with a target.
#[derive(Debug)]
struct Target {
    /// What it allows to be in flight; `None`: it is met.
    allowed: Option<u64>,
    requests: u64,
    late: u64,
    /// It has had some since the last look.
    is_asking: bool,
    /// When it had some last, and when one of them was late or the window became wider.
    seen_at: Nanos,
    eventful_at: Nanos,
    /// The width at which requests were late last.
    late_at: u64,
    /// As much is to complete, or so much time to pass, until what completes has begun in a window as narrow as it is now.
    settles: Option<(u64, Nanos)>,
    /// It became wider after requests were late last.
    has_widened: bool,
    /// When it became narrower or wider last.
    changed_at: Nanos,
    calm_ns: u64,
    /// Late ones of a thousand before anything was done about it.
    late_before: u64,
    /// Looks in a row at which the narrowest window has hardly helped.
    hopeless: u32,
    /// Those in a row at which it has been missed by far all the same, with so many requests and late ones.
    missed: u32,
    missed_of: (u64, u64),
    /// So many of a thousand are late whatever is done.
    late_anyway: Option<u64>,
    /// It asks for nothing, or for no more than that, until then; and the next time for so long.
    given_up_until: Nanos,
    give_up_ns: u64,
}

impl Target {
    fn new(now: Nanos) -> Target {
        Target {
            allowed: None,
            requests: 0,
            late: 0,
            is_asking: false,
            seen_at: now,
            eventful_at: now,
            late_at: u64::MAX,
            settles: None,
            has_widened: false,
            changed_at: now,
            calm_ns: CALM_MIN_NS,
            late_before: 0,
            hopeless: 0,
            missed: 0,
            missed_of: (0, 0),
            late_anyway: None,
            given_up_until: Nanos(0),
            give_up_ns: GIVE_UP_MIN_NS,
        }
    }

    fn add(&mut self, seen: &Targeted, now: Nanos) {
        (self.requests, self.late) = (self.requests + seen.requests, self.late + seen.late);
        if seen.requests > 0 {
            (self.is_asking, self.seen_at) = (true, now);
        }
        if seen.late > 0 {
            self.eventful_at = now;
        }
    }

    /// Whether nothing need be known of it any more.
    fn is_over(&self, now: Nanos) -> bool {
        now.since(self.seen_at) >= TARGETS_QUIET_NS && now >= self.given_up_until
    }

    fn look(&mut self, disk: Disk, in_force: Option<u64>, now: Nanos) {
        let is_asking = std::mem::take(&mut self.is_asking);
        if now.since(self.seen_at) >= TARGETS_QUIET_NS {
            (self.requests, self.late) = (0, 0);
            (self.allowed, self.calm_ns) = (None, CALM_MIN_NS);
            (self.hopeless, self.missed, self.missed_of) = (0, 0, (0, 0));
            return;
        }
        if let Some((left, until)) = self.settles {
            // What has completed since had begun when the window was wider.
            (self.requests, self.late) = (0, 0);
            self.settles = (disk.done < left && now < until).then(|| (left - disk.done, until));
            return;
        }
        let late = of_thousand((self.requests, self.late));
        let is_evident = self.late >= TARGET_LATE_EVIDENT && late > LATE_EVIDENT && !self.is_exhausted(disk);
        // Whether more are late than are late anyway, only many can tell.
        let is_enough = self.late_anyway.is_none() && (self.late >= TARGET_LATE || is_evident);
        if self.requests < TARGET_SAMPLE && !is_enough {
            // Few requests take long to say something; that none of them was late says enough.
            if is_asking && self.may_widen(self.eventful_at, disk, now) {
                self.widen(disk, now);
            }
            return;
        }
        let sample = (std::mem::take(&mut self.requests), std::mem::take(&mut self.late));
        if now >= self.given_up_until {
            self.late_anyway = None;
        } else if self.late_anyway.is_none() {
            return;
        }
        let (many, few) = self.bounds();
        if late > many {
            self.narrow(sample, disk, in_force, now);
        } else {
            (self.hopeless, self.missed, self.missed_of) = (0, 0, (0, 0));
            if late < few && self.may_widen(self.changed_at, disk, now) {
                self.widen(disk, now);
            }
        }
    }

    /// Of a thousand requests, more late ones than the first are too many, and fewer than the second few.
    fn bounds(&self) -> (u64, u64) {
        let anyway = |late: u64| (late * AS_MANY / 100, late * HARDLY_MORE / 100);
        self.late_anyway.map_or((LATE_MANY, LATE_FEW), anyway)
    }

    /// Whether it has made the window as narrow as can be.
    fn is_exhausted(&self, disk: Disk) -> bool {
        self.allowed == Some(disk.min)
    }

    /// Whether it has been long enough since then for the window to become wider.
    fn may_widen(&self, since: Nanos, disk: Disk, now: Nanos) -> bool {
        let is_known = self.allowed.is_some_and(|allowed| wider(allowed, disk) < self.late_at);
        now.since(since) >= if is_known { WIDENS_NS } else { self.calm_ns }
    }

    /// Of so many requests so many were late.
    fn narrow(&mut self, sample: (u64, u64), disk: Disk, in_force: Option<u64>, now: Nanos) {
        let late = of_thousand(sample);
        let was_exhausted = self.is_exhausted(disk);
        if self.allowed.is_none() {
            self.late_before = late;
        }
        if was_exhausted && self.helps_too_little(sample, now) {
            return;
        }
        let allowed = self.allowed.or(in_force).map_or(disk.wide, |allowed| allowed.min(disk.wide));
        let percent = NARROWS.iter().find(|(least, _)| late > *least).map_or(100, |(_, percent)| *percent);
        let fewer = (allowed / disk.operation * disk.operation).saturating_sub(1);
        // Beyond the knee requests wait for one another: at once as narrow as that, if that is the matter.
        let knee = disk.knee.filter(|_| self.allowed.is_none() && late > LATE_EVIDENT).unwrap_or(u64::MAX);
        self.allowed = Some((allowed / 100 * percent).min(fewer).min(knee).max(disk.min));
        if std::mem::take(&mut self.has_widened) {
            self.calm_ns = (self.calm_ns * 2).min(CALM_MAX_NS);
        }
        // Those that are late with the narrowest say nothing of how wide it may be.
        if !was_exhausted {
            self.late_at = allowed;
        }
        self.changed_at = now;
        self.settles = Some((disk.peak, Nanos(now.0.saturating_add(SETTLES_MAX_NS))));
    }

    /// So many were late with the narrowest window: if that is often so, nothing, or no more, is asked for from now on.
    fn helps_too_little(&mut self, sample: (u64, u64), now: Nanos) -> bool {
        let late = of_thousand(sample);
        let helps = late * 100 < self.late_before * HELPS_LITTLE;
        self.hopeless = if helps { 0 } else { self.hopeless + 1 };
        let is_missed = late > MISSED_BY_FAR;
        let (missed, (requests, of_them)) = if is_missed { (self.missed, self.missed_of) } else { (0, (0, 0)) };
        (self.missed, self.missed_of) = (missed + u32::from(is_missed), (requests + sample.0, of_them + sample.1));
        let is_known = self.missed >= HOPELESS && self.missed_of.0 >= TARGET_SAMPLE;
        if self.hopeless < HOPELESS && !is_known {
            return false;
        }
        let anyway = of_thousand(self.missed_of);
        (self.late_anyway, self.allowed) =
            if self.hopeless < HOPELESS { (Some(anyway), self.allowed) } else { (None, None) };
        (self.hopeless, self.missed, self.missed_of) = (0, 0, (0, 0));
        (self.calm_ns, self.late_at) = (CALM_MIN_NS, u64::MAX);
        self.given_up_until = Nanos(now.0.saturating_add(self.give_up_ns));
        self.give_up_ns = (self.give_up_ns * 2).min(GIVE_UP_MAX_NS);
        true
    }

    fn widen(&mut self, disk: Disk, now: Nanos) {
        let Some(allowed) = self.allowed else { return };
        (self.eventful_at, self.changed_at) = (now, now);
        if allowed >= self.late_at {
            // What made requests late here has gone.
            (self.late_at, self.calm_ns) = (u64::MAX, CALM_MIN_NS);
        }
        let wider = wider(allowed, disk);
        self.allowed = (wider < disk.wide).then_some(wider);
        self.has_widened = true;
        if self.allowed.is_none() && self.late_anyway.is_none() {
            (self.calm_ns, self.give_up_ns) = (CALM_MIN_NS, GIVE_UP_MIN_NS);
        }
    }
}

/// Late ones of a thousand, if of so many requests so many were late.
fn of_thousand((requests, late): (u64, u64)) -> u64 {
    late * 1000 / requests.max(1)
}

/// The next wider window: by at least one operation, or it would be the same.
fn wider(allowed: u64, disk: Disk) -> u64 {
    allowed.saturating_add(allowed / 32).max(((allowed / disk.operation).max(1) + 1).saturating_mul(disk.operation))
}
