//! Host disks that several clients want at the same time are shared out among them. The others are not: that would cost, and nobody would
//! have anything of it. Clients are VHDs, and jobs, which are one client together.
//!
//! The owner looks at what disks and VHDs have done: now and then as long as nothing is shared out, and often where something is, because
//! the window of a disk has to be found (see [`crate::qos::window`]). While nobody does anything it does not look at all, or seldom; the
//! first reactor that does something says so ([`Rest`]). Reactors and the mover are told only of room that nobody else tells
//! them of.
//!
//! Who waits for a turn gets nothing, and is a client all the same: without him the disk would not be shared out any more, and would be given
//! all that waits at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Owner;
use super::outbox::OwnerOutbox;
use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, ReactorId, VhdId};
use crate::base::limits::{CLIENT_QUIET_SECS, DISKS_MAX, SHARES_COUNT_MILLIS, SHARES_LOOK_MILLIS, SHARES_WINDOW_MAX};
use crate::metrics::{IoKind, IoMetrics, KindMetrics};
use crate::mover::messages::MoverMessage;
use crate::placement::record::VhdRecord;
use crate::placement::sharing::{Settled, Sharing};
use crate::qos::shares::Work;
use crate::qos::window::{Counted, Targeted, Window};
use crate::reactor::messages::ReactorMessage;
use crate::shared::disk::MOVER_THREAD;
use crate::shared::{DiskState, Rest, VhdState};

/// What is in flight says nothing before: what had begun when a disk began to be shared out is not counted.
const SETTLES: Duration = Duration::from_millis(300);

/// Looks in a row at which nobody wanted anything, until there are none any more.
const IDLE_LOOKS: u32 = 2;

/// What has been seen of a client on a disk.
#[derive(Debug, Default)]
struct Seen {
    /// What jobs have done; reactors say themselves that they begin something.
    operations: u64,
    /// When it had last got something, or waited; `None`: never.
    busy: Option<Nanos>,
}

impl Seen {
    /// Whether it has got something lately, or waits.
    fn is_busy(&mut self, gets_or_waits: bool, now: Nanos) -> bool {
        if gets_or_waits {
            self.busy = Some(now);
        }
        self.busy.is_some_and(|busy| now < busy.after(Duration::from_secs(CLIENT_QUIET_SECS)))
    }
}

/// A disk that is shared out.
#[derive(Debug)]
struct SharedDisk {
    since: Nanos,
    window: Window,
    clients: usize,
    /// What had been done there at the last look.
    operations: u64,
    /// Those of them that are VHDs with a latency target.
    targeted: Vec<VhdId>,
}

/// What is known of disks and clients.
#[derive(Debug, Default)]
pub(super) struct Governor {
    /// Whether disks may be shared out at all.
    pub enabled: bool,
    looked: Nanos,
    counted: Option<Nanos>,
    /// What disks had done when clients were counted last.
    done: u64,
    /// Looks in a row at which no client was busy.
    idle: u32,
    /// Whether nothing had been done on any disk that is shared out, at the last look, and nobody waited.
    still: bool,
    /// How reactors are asked to say that they do something.
    rest: Arc<Rest>,
    /// VHDs that have lately begun something on a disk.
    vhds: BTreeMap<(VhdId, DiskId), Seen>,
    jobs: BTreeMap<DiskId, Seen>,
    /// Nobody has looked for a while: what jobs have done is not what they do.
    jobs_are_old: bool,
    disks: BTreeMap<DiskId, SharedDisk>,
}

impl Governor {
    /// When [`Owner::govern`] has something to do; `None`: once a reactor has something to do.
    pub fn due(&self) -> Option<Nanos> {
        let looks = self.enabled && !self.is_idle();
        looks.then(|| self.looked.after(Duration::from_millis(self.pause_millis())))
    }

    fn is_idle(&self) -> bool {
        self.disks.is_empty() && self.idle >= IDLE_LOOKS
    }

    /// The shortest time between two looks.
    fn pause_millis(&self) -> u64 {
        if self.disks.is_empty() || self.still { SHARES_COUNT_MILLIS } else { SHARES_LOOK_MILLIS }
    }

    /// A reactor has something to do.
    pub fn stir(&mut self) {
        self.jobs_are_old |= self.is_idle();
        (self.idle, self.still) = (0, false);
    }

    fn may_look(&self, now: Nanos) -> bool {
        self.enabled && now >= self.looked.after(Duration::from_millis(self.pause_millis()))
    }
}

impl Owner {
    /// Whether disks are shared out among those who want them at the same time; `rest`: reactors end it. Before [`Owner::start`].
    #[must_use]
    pub fn with_fair_shares(mut self, enabled: bool, rest: Arc<Rest>) -> Owner {
        (self.governor.enabled, self.governor.rest) = (enabled, rest);
        self
    }

    /// What holds for a VHD: its VM says what it does not say itself.
    #[must_use]
    pub(super) fn sharing_of(&self, record: &VhdRecord) -> Settled {
        let vm = record.vm.as_deref().and_then(|vm| self.vms.named(vm));
        record.sharing.settled(vm.map_or(Sharing::default(), |vm| vm.sharing))
    }

    /// A VHD, or its VM, may have another share.
    pub(super) fn renew_share(&self, id: VhdId) {
        let Some(vhd) = self.vhds.get(id) else { return };
        let settled = self.sharing_of(&vhd.record);
        vhd.state.share.set(settled.share(), settled.target_ns());
    }

    /// Looks at who wants what.
    pub(super) fn govern(&mut self, now: Nanos, out: &mut impl OwnerOutbox) {
        if !self.governor.may_look(now) {
            return;
        }
        self.governor.looked = now;
        let span = Duration::from_millis(SHARES_COUNT_MILLIS);
        if self.governor.counted.is_none_or(|counted| now >= counted.after(span)) {
            self.governor.counted = Some(now);
            self.count_clients(now, out);
        }
        let mut still = true;
        for (id, shared) in &mut self.governor.disks {
            let Some(disk) = self.space.get(*id) else { continue };
            let clients = if now < shared.since.after(SETTLES) { 1 } else { shared.clients };
            let before = disk.state.shares.window();
            let counted = counted(&disk.state, self.reactors);
            let done = std::mem::replace(&mut shared.operations, counted.operations) != counted.operations;
            still &= !done && disk.state.shares.waiting().next().is_none();
            let vhds = shared.targeted.iter().filter_map(|id| self.vhds.get(*id));
            let targeted: Vec<Targeted> = vhds.map(|vhd| targeted(&vhd.state, *id)).collect();
            shared.window.look(Counted { clients, ..counted }, &targeted, now);
            let window = shared.window.now().unwrap_or(Work(u64::MAX));
            disk.state.shares.set_window(window);
            disk.state.shares.set_awaited_window(shared.window.awaited().unwrap_or(Work(u64::MAX)));
            if window > before {
                tell_waiting(&disk.state, out);
            }
        }
        self.governor.still = still;
        if still && (self.governor.is_idle() || !self.governor.disks.is_empty()) {
            self.governor.rest.begin();
        }
    }

    /// Begins to share out disks that several want by now, and ends it where they do not any more.
    fn count_clients(&mut self, now: Nanos, out: &mut impl OwnerOutbox) {
        let done = self.space.iter().map(|disk| counted_operations(&disk.state, self.reactors)).sum();
        let before = std::mem::replace(&mut self.governor.done, done);
        // Hosts have hundreds of VHDs, most of them idle, and few disks: where disks have nothing to do, nobody has to be looked at.
        if self.governor.disks.is_empty() && done == before {
            self.governor.idle = self.governor.idle.saturating_add(1);
            return;
        }
        let clients = self.clients(now);
        let is_idle = clients.iter().all(|clients| *clients == 0);
        self.governor.idle = if is_idle { self.governor.idle.saturating_add(1) } else { 0 };
        // Nothing is on one that has left the pool, and nobody waits for it.
        let space = &self.space;
        self.governor.disks.retain(|id, _| space.get(*id).is_some_and(|disk| !disk.left));
        for disk in self.space.iter() {
            let (id, state) = (disk.state.id, &disk.state);
            let clients = if state.is_failed() { 0 } else { clients[id.index()] };
            match self.governor.disks.get_mut(&id) {
                Some(shared) if clients > 1 && !state.shares.is_worn() => shared.clients = clients,
                // One whose time is to begin anew is shared out again at the next look.
                Some(_) => {
                    self.governor.disks.remove(&id);
                    state.shares.switch(false);
                    tell_waiting(state, out);
                }
                None if clients > 1 => {
                    state.shares.switch(true);
                    state.shares.take_peak();
                    state.shares.take_largest();
                    let window = Window::new(Work::of(4096), Work(SHARES_WINDOW_MAX));
                    let targeted = Vec::new();
                    self.governor.disks.insert(id, SharedDisk { since: now, window, clients, operations: 0, targeted });
                }
                None => {}
            }
        }
        self.find_targets();
    }

    /// How many want something of each disk.
    fn clients(&mut self, now: Nanos) -> [usize; DISKS_MAX] {
        let mut clients = [0; DISKS_MAX];
        let Governor { vhds, jobs, disks, jobs_are_old, .. } = &mut self.governor;
        let jobs_are_old = std::mem::take(jobs_are_old);
        for vhd in self.vhds.iter() {
            let used = self.space.iter().map(|disk| &disk.state).filter(|disk| vhd.counts[disk.id.index()] > 0);
            for disk in used {
                let (id, account) = (disk.id, vhd.state.account(disk.id));
                let waits = disks.contains_key(&id) && disk.shares.may_wait(account);
                if account.take_wanted() || waits {
                    vhds.entry((vhd.record.id, id)).or_default().busy = Some(now);
                }
            }
        }
        vhds.retain(|(id, _), seen| self.vhds.get(*id).is_some() && seen.is_busy(false, now));
        vhds.keys().for_each(|(_, disk)| clients[disk.index()] += 1);
        for disk in self.space.iter().map(|disk| &disk.state) {
            let operations = transfers(&disk.copy_metrics) + disk.scrub_work.reads.load(Ordering::Relaxed);
            let waits = disk.shares.waiting().any(|thread| thread == MOVER_THREAD);
            let seen = jobs.entry(disk.id).or_default();
            let gets = std::mem::replace(&mut seen.operations, operations) != operations && !jobs_are_old;
            clients[disk.id.index()] += usize::from(seen.is_busy(gets || waits, now));
        }
        clients
    }

    /// Notes which clients of disks that are shared out have latency targets.
    fn find_targets(&mut self) {
        self.governor.disks.values_mut().for_each(|shared| shared.targeted.clear());
        for (id, disk) in self.governor.vhds.keys() {
            let has_target = self.vhds.get(*id).is_some_and(|vhd| vhd.state.share.has_target());
            if let (true, Some(shared)) = (has_target, self.governor.disks.get_mut(disk)) {
                shared.targeted.push(*id);
            }
        }
    }
}

/// Reads and writes.
fn transfers(metrics: &IoMetrics) -> u64 {
    [IoKind::Read, IoKind::Write].map(|kind| metrics.kind(kind).requests.load(Ordering::Relaxed)).iter().sum()
}

/// What has been counted on a disk, but for its clients.
fn counted(disk: &DiskState, reactors: u16) -> Counted {
    let operations = counted_operations(disk, reactors);
    let bytes = sum_of(disk, reactors, |kind| &kind.bytes) + disk.scrub_work.read_bytes.load(Ordering::Relaxed);
    let shares = &disk.shares;
    let (held, peak, largest) = (shares.held(), shares.take_peak(), shares.take_largest());
    let awaited = shares.awaited().take_lately();
    Counted { done: Work::of_all(operations, bytes), operations, held, peak, largest, awaited, clients: 0 }
}

/// What a VHD with a latency target has got there since the last look.
fn targeted(vhd: &VhdState, disk: DiskId) -> Targeted {
    let (requests, late) = vhd.account(disk).take_targeted();
    Targeted { client: vhd.id(), requests, late }
}

/// What guests and jobs had done there.
fn counted_operations(disk: &DiskState, reactors: u16) -> u64 {
    sum_of(disk, reactors, |kind| &kind.requests) + disk.scrub_work.reads.load(Ordering::Relaxed)
}

/// A counter of reads and writes of guests and copiers. Nobody writes to the counters of reactors that do not run.
fn sum_of(disk: &DiskState, reactors: u16, of: fn(&KindMetrics) -> &AtomicU64) -> u64 {
    let sets = disk.metrics.iter().take(reactors.into()).chain([&disk.copy_metrics]);
    let kinds = sets.flat_map(|metrics| [IoKind::Read, IoKind::Write].map(|kind| metrics.kind(kind)));
    kinds.map(|kind| of(kind).load(Ordering::Relaxed)).sum()
}

/// Whoever waits may find room now.
fn tell_waiting(disk: &DiskState, out: &mut impl OwnerOutbox) {
    for thread in disk.shares.waiting() {
        if thread == MOVER_THREAD {
            out.to_mover(MoverMessage::Room);
        } else {
            out.to_reactor(
                ReactorId(u16::try_from(thread).expect("threads are numbered like reactors")),
                ReactorMessage::Room,
            );
        }
    }
}
