//! Where the time of a request goes, and what it touches: what metrics ask of the way through the pipeline. Times are those of the turns
//! in which something happened, so that none of this reads the clock.

use super::slots::RequestSlot;
use super::{Finished, Pipeline};
use crate::base::clock::Nanos;
use crate::base::units::ExtentIndex;
use crate::engine::Engine;
use crate::metrics::heat::Window;
use crate::metrics::{IoKind, IoMetrics, Stage};
use crate::reactor::messages::Outbox;
use crate::virtio::request::RequestKind;

/// When a request was where.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    /// How long it was in its virtqueue while that was not popped from, in nanoseconds.
    waited_ns: u64,
    /// When the first part of it went to a host disk.
    submitted: Option<Nanos>,
    /// When a part of it came back last.
    back: Nanos,
}

impl Times {
    /// A part of it goes to a host disk.
    pub fn submit(&mut self, now: Nanos) {
        self.submitted.get_or_insert(now);
    }

    /// A part of it is back.
    pub fn come_back(&mut self, now: Nanos) {
        self.back = now;
    }

    /// It is done: counts its stages. Returns how long ago the last part of it came back, in nanoseconds; that is part of its completion,
    /// the rest of which is yet to come.
    pub fn count(&self, metrics: &IoMetrics, kind: IoKind, started: Nanos, now: Nanos) -> u64 {
        let Some(transfers) = metrics.transfers(kind) else { return 0 };
        if self.waited_ns > 0 {
            metrics.count_held(self.waited_ns);
        }
        let submitted = self.submitted.unwrap_or(started);
        let back = self.back.max(submitted);
        transfers.staged(Stage::Admission, self.waited_ns.saturating_add(submitted.since(started)), 1);
        transfers.staged(Stage::Disk, back.since(submitted), 1);
        // What never came to a disk was zeros, for a moment, or has failed.
        if self.submitted.is_some() { now.since(back) } else { 0 }
    }
}

impl Finished {
    /// Which of its transfers a guest gets back: a read or a write.
    #[must_use]
    pub fn transfer(kind: RequestKind) -> Option<IoKind> {
        match kind {
            RequestKind::Read { .. } => Some(IoKind::Read),
            RequestKind::Write { .. } => Some(IoKind::Write),
            RequestKind::Flush | RequestKind::Discard | RequestKind::WriteZeroes | RequestKind::GetId => None,
        }
    }
}

impl<E: Engine, O: Outbox> Pipeline<E, O> {
    /// A prepared request has been in its virtqueue for so long, in nanoseconds, while it was not popped from.
    pub fn waited(&mut self, slot: RequestSlot, ns: u64) {
        self.slots.request_mut(slot).times.waited_ns = ns;
    }

    /// Counts a request that starts.
    pub(super) fn note_started(&self, slot: RequestSlot) {
        let state = self.slots.request(slot);
        let (kind, offset, len) = match state.request.kind {
            RequestKind::Read { offset, len } => (IoKind::Read, offset, len),
            RequestKind::Write { offset, len } => (IoKind::Write, offset, len),
            RequestKind::Flush | RequestKind::Discard | RequestKind::WriteZeroes | RequestKind::GetId => return,
        };
        let vhd = state.vhd();
        if len > 0 {
            vhd.map.expect_touch(vhd.settings.geometry.locate(offset).0);
        }
        if let Some(transfers) = vhd.metrics.of(self.id).transfers(kind) {
            transfers.begun(offset, len);
        }
    }

    /// A part of the request, within an extent, goes to the disks.
    pub(super) fn note_piece(&mut self, slot: RequestSlot, extent: ExtentIndex) {
        let now = self.now;
        let state = self.slots.request_mut(slot);
        state.times.submit(now);
        let vhd = state.vhd();
        if vhd.map.heat_up(extent, Window::at(now.0)) {
            vhd.metrics.of(self.id).count_touched();
        }
    }
}
