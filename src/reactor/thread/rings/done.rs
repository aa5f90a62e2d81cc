//! How long guests wait for what is done already.

use crate::base::clock::{self, Nanos};
use crate::metrics::{IoKind, IoMetrics, Stage};

const KINDS: [IoKind; 2] = [IoKind::Read, IoKind::Write];

/// Requests of a ring that are done and not shown to its guest yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    /// By [`KINDS`]: those whose last part came back from a disk in this turn.
    counts: [u32; KINDS.len()],
}

impl Done {
    /// One more, the last part of which came back `ns` ago.
    pub fn add(&mut self, kind: IoKind, ns: u64, metrics: &IoMetrics) {
        if ns > 0 {
            // It waited for something else: the moments that are left are nothing beside that.
            metrics.transfers(kind).into_iter().for_each(|transfers| transfers.staged(Stage::Completion, ns, 1));
        } else if let Some(at) = KINDS.iter().position(|one| *one == kind) {
            self.counts[at] += 1;
        }
    }

    /// They have been shown; the turn began at `now`. One look at the clock for all of them, which is returned.
    pub fn shown(&mut self, metrics: &IoMetrics, now: Nanos) -> Option<Nanos> {
        let counts = std::mem::take(&mut self.counts);
        if counts == [0; KINDS.len()] {
            return None;
        }
        let shown = clock::now();
        for (kind, count) in KINDS.into_iter().zip(counts).filter(|(_, count)| *count > 0) {
            let transfers = metrics.transfers(kind).into_iter();
            transfers.for_each(|transfers| transfers.staged(Stage::Completion, shown.since(now), count.into()));
        }
        Some(shown)
    }
}
