//! Suspect disks: those that gave errors, or took very long, several times within a window of time.
//!
//! A suspect disk is used as any other; that it is suspect is told. It is healthy again when the window has gone past what it did.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::Owner;
use super::outbox::{Event, OwnerOutbox};
use crate::base::clock::Nanos;
use crate::base::ids::DiskId;
use crate::base::limits::{HEALTH_LOOK_SECS, HEALTH_WINDOW_SECS, SLOW_BUCKET, SUSPECT_ERRORS, SUSPECT_SLOW};
use crate::shared::DiskState;

const LOOK_NS: u64 = HEALTH_LOOK_SECS * 1_000_000_000;
const WINDOW_NS: u64 = HEALTH_WINDOW_SECS * 1_000_000_000;

/// Counters of a disk at one moment; they only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Errors.
    pub errors: u64,
    /// Operations that took very long.
    pub slow: u64,
}

impl Counts {
    fn since(self, before: Counts) -> Counts {
        Counts { errors: self.errors.saturating_sub(before.errors), slow: self.slow.saturating_sub(before.slow) }
    }

    fn are_suspect(self) -> bool {
        self.errors >= SUSPECT_ERRORS || self.slow >= SUSPECT_SLOW
    }
}

/// What a look has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As before.
    Same,
    /// It has become suspect.
    Suspect,
    /// It is suspect no more.
    Healthy,
}

/// What is remembered of a disk.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Counters at looks, [`HEALTH_LOOK_SECS`] or more apart; the first is the last one before the window.
    marks: VecDeque<(Nanos, Counts)>,
    /// What it did in the window, if that is too much.
    suspicion: Option<Counts>,
}

impl Watch {
    /// Looks at the counters. Call now and then, and when there is reason to.
    pub fn look(&mut self, now: Nanos, counts: Counts) -> Verdict {
        while self.marks.get(1).is_some_and(|(at, _)| now.since(*at) >= WINDOW_NS) {
            self.marks.pop_front();
        }
        // Before the first look nothing had happened: counters begin at 0.
        let first = self.marks.front().map_or(Counts::default(), |(_, counts)| *counts);
        if self.marks.back().is_none_or(|(at, _)| now.since(*at) >= LOOK_NS) {
            if self.marks.is_empty() {
                self.marks.push_back((Nanos(0), Counts::default()));
            }
            self.marks.push_back((now, counts));
        }
        let lately = counts.since(first);
        let before = std::mem::replace(&mut self.suspicion, lately.are_suspect().then_some(lately));
        match (before, self.suspicion) {
            (None, Some(_)) => Verdict::Suspect,
            (Some(_), None) => Verdict::Healthy,
            _ => Verdict::Same,
        }
    }

    /// Why the disk is suspect, for people; `None`: it is not.
    pub fn suspicion(&self) -> Option<String> {
        let Counts { errors, slow } = self.suspicion?;
        let minutes = HEALTH_WINDOW_SECS / 60;
        let of_errors = (errors >= SUSPECT_ERRORS).then(|| format!("{errors} errors"));
        let of_slow = (slow >= SUSPECT_SLOW).then(|| format!("{slow} operations of more than 8 seconds"));
        let what: Vec<String> = of_errors.into_iter().chain(of_slow).collect();
        Some(format!("{} in the last {minutes} minutes", what.join(" and ")))
    }
}

impl Owner {
    /// Looks at all disks. Call every [`HEALTH_LOOK_SECS`].
    pub fn watch_disks(&mut self, now: Nanos, out: &mut impl OwnerOutbox) {
        let disks: Vec<DiskId> = self.space.iter().map(|disk| disk.state.id).collect();
        disks.into_iter().for_each(|disk| self.watch_disk(disk, now, out));
    }

    /// Looks at one disk, which has given reason to.
    pub(super) fn watch_disk(&mut self, id: DiskId, now: Nanos, out: &mut impl OwnerOutbox) {
        let disk = self.space.disk_mut(id);
        if disk.state.is_failed() {
            return;
        }
        let counts = Counts { errors: disk.errors, slow: slow_operations(&disk.state) };
        let verdict = disk.watch.look(now, counts);
        let name = disk.state.name.clone();
        match (verdict, disk.watch.suspicion()) {
            (Verdict::Suspect, Some(reason)) => out.event(Event::DiskSuspect { disk: name, reason }),
            (Verdict::Healthy, _) => out.event(Event::DiskHealthy { disk: name }),
            _ => {}
        }
    }
}

/// Operations of guests that have completed and took very long.
fn slow_operations(disk: &DiskState) -> u64 {
    let kinds = disk.metrics.iter().flat_map(crate::metrics::IoMetrics::kinds);
    kinds.flat_map(|kind| &kind.latency_buckets[SLOW_BUCKET..]).map(|bucket| bucket.load(Ordering::Relaxed)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Nanos {
        Nanos(secs * 1_000_000_000)
    }

    fn errors(errors: u64) -> Counts {
        Counts { errors, slow: 0 }
    }

    #[test]
    fn a_few_errors_make_a_disk_suspect_and_time_clears_it() {
        let mut watch = Watch::default();
        assert_eq!(watch.look(at(10), errors(0)), Verdict::Same);
        assert_eq!(watch.look(at(1000), errors(SUSPECT_ERRORS - 1)), Verdict::Same);
        assert_eq!(watch.suspicion(), None);
        assert_eq!(watch.look(at(1001), errors(SUSPECT_ERRORS)), Verdict::Suspect);
        assert_eq!(watch.suspicion().unwrap(), "3 errors in the last 10 minutes");
        let told: Vec<Verdict> = (101..400).map(|i| watch.look(at(10 * i), errors(SUSPECT_ERRORS))).collect();
        assert_eq!(told.iter().filter(|verdict| **verdict != Verdict::Same).count(), 1, "told once");
        let healthy = 101 + told.iter().position(|verdict| *verdict == Verdict::Healthy).unwrap() as u64;
        // Those before the last one were seen a second earlier.
        let lasted = 10 * healthy - 1000;
        let window = HEALTH_WINDOW_SECS..=HEALTH_WINDOW_SECS + 2 * HEALTH_LOOK_SECS;
        assert!(window.contains(&lasted), "{lasted} s");
        assert!(watch.marks.len() as u64 <= HEALTH_WINDOW_SECS / HEALTH_LOOK_SECS + 2);
    }

    #[test]
    fn the_same_number_over_a_long_time_is_nothing() {
        let mut watch = Watch::default();
        for i in 0..1000 {
            // One error every five minutes and a half.
            assert_eq!(watch.look(at(10 * i), errors(i / 33)), Verdict::Same, "after {i} looks");
        }
    }

    #[test]
    fn slow_operations_count_apart_from_errors() {
        let mut watch = Watch::default();
        let slow = |slow| Counts { errors: SUSPECT_ERRORS - 1, slow };
        assert_eq!(watch.look(at(10), slow(SUSPECT_SLOW - 1)), Verdict::Same);
        assert_eq!(watch.look(at(20), slow(SUSPECT_SLOW)), Verdict::Suspect);
        assert_eq!(watch.suspicion().unwrap(), "5 operations of more than 8 seconds in the last 10 minutes");
    }

    #[test]
    fn errors_right_after_the_start_count() {
        let mut watch = Watch::default();
        assert_eq!(watch.look(at(0), errors(SUSPECT_ERRORS)), Verdict::Suspect);
    }

    #[test]
    fn looks_at_every_error_cost_no_memory() {
        let mut watch = Watch::default();
        for i in 0..100_000 {
            watch.look(Nanos(i * 1_000_000), errors(i));
        }
        assert!(watch.marks.len() <= 12, "{}", watch.marks.len());
    }
}
