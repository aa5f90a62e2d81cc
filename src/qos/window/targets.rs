//! Latency targets, which narrow the window further than throughput does.
//!
//! Clients with a target narrow it if more of their requests are late than a percentile allows, for as long as
//! that is so. If the narrowest one hardly helps, the target is beyond the disk: it is given up for a while, because the others would get
//! little for nothing. Such a client may want little, or nothing any more, and must not keep the window narrow by that: so it becomes wider
//! by time, too.

use super::{Counted, Window};
use crate::base::clock::Nanos;

/// Requests of clients with targets that are looked at together, unless so many of them are late; fewer are enough if they are a large
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
pub(super) const GIVE_UP_MIN_NS: u64 = 30_000_000_000;
const GIVE_UP_MAX_NS: u64 = 600_000_000_000;

/// It does not become wider sooner than this long after it became wider, or requests were late.
const WIDENS_NS: u64 = 500_000_000;

/// As wide as it was when requests were late it does not become for this long, then, if that was too wide again, for twice as long, and so on.
pub(super) const CALM_MIN_NS: u64 = 2_000_000_000;
const CALM_MAX_NS: u64 = 32_000_000_000;

/// Without any request of a client with a target for so long, nobody is there for whom the window would have to be narrow.
const TARGETS_QUIET_NS: u64 = 3_000_000_000;

impl Window {
    pub(super) fn look_at_targets(&mut self, counted: Counted, now: Nanos) {
        self.targeted += counted.targeted;
        self.late += counted.late;
        if counted.targeted > 0 {
            self.targeted_at = now;
        } else if now.since(self.targeted_at) >= TARGETS_QUIET_NS {
            (self.targeted, self.late) = (0, 0);
            (self.allowed, self.hopeless, self.calm_ns) = (None, 0, CALM_MIN_NS);
            return;
        }
        if counted.late > 0 {
            self.eventful_at = now;
        }
        if std::mem::take(&mut self.is_settling) {
            // What has completed since had begun when the window was wider.
            (self.targeted, self.late) = (0, 0);
            return;
        }
        let late = self.late * 1000 / self.targeted.max(1);
        let is_evident = self.late >= TARGET_LATE_EVIDENT && late > LATE_EVIDENT && !self.is_exhausted();
        if self.targeted < TARGET_SAMPLE && self.late < TARGET_LATE && !is_evident {
            // Few requests take long to say something; that none of them was late says enough.
            if counted.targeted > 0 && self.may_widen(self.eventful_at, now) {
                self.widen(now);
            }
            return;
        }
        (self.targeted, self.late) = (0, 0);
        if now < self.given_up_until {
            return;
        }
        if late <= LATE_MANY {
            self.hopeless = 0;
        }
        if late > LATE_MANY {
            self.narrow(late, now);
        } else if late < LATE_FEW && self.may_widen(self.changed_at, now) {
            self.widen(now);
        }
    }

    /// Whether it has been long enough since then for the window to become wider.
    fn may_widen(&self, since: Nanos, now: Nanos) -> bool {
        let is_known = self.allowed.is_some_and(|allowed| self.wider(allowed) < self.late_at);
        now.since(since) >= if is_known { WIDENS_NS } else { self.calm_ns }
    }

    fn narrow(&mut self, late: u64, now: Nanos) {
        let (wide, was_exhausted) = (self.wide(), self.is_exhausted());
        if self.allowed.is_none() {
            self.late_before = late;
        }
        let helps_little = self.is_exhausted() && late * 100 >= self.late_before * HELPS_LITTLE;
        self.hopeless = if helps_little { self.hopeless + 1 } else { 0 };
        if self.hopeless >= HOPELESS {
            return self.give_up(now);
        }
        let allowed = self.allowed.map_or(wide, |allowed| allowed.min(wide));
        let percent = NARROWS.iter().find(|(least, _)| late > *least).map_or(100, |(_, percent)| *percent);
        let fewer = (allowed / self.operation * self.operation).saturating_sub(1);
        // Beyond the knee requests wait for one another: at once as narrow as that, if that is the matter.
        let knee = self.knee.filter(|_| self.allowed.is_none() && late > LATE_EVIDENT).unwrap_or(u64::MAX);
        self.allowed = Some((allowed / 100 * percent).min(fewer).min(knee).max(self.min));
        if std::mem::take(&mut self.has_widened) {
            self.calm_ns = (self.calm_ns * 2).min(CALM_MAX_NS);
        }
        // Those that are late with the narrowest say nothing of how wide it may be.
        if !was_exhausted {
            self.late_at = allowed;
        }
        (self.is_settling, self.changed_at) = (true, now);
    }

    fn give_up(&mut self, now: Nanos) {
        (self.allowed, self.hopeless, self.calm_ns) = (None, 0, CALM_MIN_NS);
        self.given_up_until = Nanos(now.0.saturating_add(self.give_up_ns));
        self.give_up_ns = (self.give_up_ns * 2).min(GIVE_UP_MAX_NS);
    }

    /// The next wider window: by at least one operation, or it would be the same.
    fn wider(&self, allowed: u64) -> u64 {
        allowed.saturating_add(allowed / 32).max((allowed / self.operation + 1).saturating_mul(self.operation))
    }

    fn widen(&mut self, now: Nanos) {
        let Some(allowed) = self.allowed else { return };
        (self.eventful_at, self.changed_at) = (now, now);
        if allowed >= self.late_at {
            // What made requests late here has gone.
            (self.late_at, self.calm_ns) = (u64::MAX, CALM_MIN_NS);
        }
        let wider = self.wider(allowed);
        self.allowed = (wider < self.wide()).then_some(wider);
        self.has_widened = true;
        if self.allowed.is_none() {
            (self.calm_ns, self.give_up_ns) = (CALM_MIN_NS, GIVE_UP_MIN_NS);
        }
    }
}
