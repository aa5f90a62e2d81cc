//! Whose rings run: of the frontends of a VHD at most one is *active* (ordering rule 10).
//!
//! The first that starts a ring is. It stays active until all its rings are stopped or it is gone, drained in both cases; the other
//! one, which has been told of nothing and waits, may start then. The destination of a live migration comes that way. One that has been
//! waiting with started rings is no destination, or an early one: it leaves the one that has stopped some time to come back.
//!
//! Which *process* was active last outlives the daemon (`shared::last_active`). After a restart others wait until it has connected
//! again or has ended. The source of a migration, which has stopped and stays connected, starts its rings again when it connects to the
//! next daemon; what is in them is older than what the destination has written: they do not run.
//!
//! Everybody else is told of one frontend: the one that is or was active, or the one that came first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::held::{HeldSeat, HeldStop, HeldTurn};
use super::server::{Frontend, ServerEvents};
use crate::base::clock::Nanos;
use crate::base::limits::{TURN_GRACE_MILLIS, TURN_LOOK_MILLIS, TURN_RETURN_MILLIS};
use crate::shared::VhdState;
use crate::shared::last_active::Last;
use crate::shared::process::Process;

#[cfg(test)]
mod tests;

/// Frontends of a VHD at the same time.
pub(super) const FRONTENDS_MAX: usize = 2;

const GRACE: Duration = Duration::from_millis(TURN_GRACE_MILLIS);

/// How long one that has connected again may take to start its rings.
const RETURN: Duration = Duration::from_millis(TURN_RETURN_MILLIS);
const LOOK: Duration = Duration::from_millis(TURN_LOOK_MILLIS);

/// Names a connection among those of its VHD; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrontendId(pub(super) u64);

/// Why a frontend's rings do not run yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wait {
    #[error("virtqueues wait until those of process {pid} are stopped")]
    Active { pid: u32 },
    #[error("virtqueues wait: process {pid} has stopped its own, and may start them again within seconds")]
    Stopped { pid: u32, until: Nanos },
    #[error(
        "virtqueues wait until process {pid}, whose virtqueues ran last, starts them again; if its VM is not to go on, end that process"
    )]
    Returning { pid: u32, look: Nanos },
    #[error(
        "virtqueues do not run: process {pid} has stopped them and another one has gone on with its VM since, so that what is in them is out \
         of date; end this process, or reset its VM"
    )]
    Superseded { pid: u32 },
}

impl Wait {
    /// When to look again, if nothing happens before.
    pub(super) fn look_at(self) -> Option<Nanos> {
        match self {
            Wait::Stopped { until: at, .. } | Wait::Returning { look: at, .. } => Some(at),
            Wait::Active { .. } | Wait::Superseded { .. } => None,
        }
    }

    /// Whom it waits for, or who it is that is too late.
    pub(super) fn pid(self) -> u32 {
        match self {
            Wait::Active { pid }
            | Wait::Stopped { pid, .. }
            | Wait::Returning { pid, .. }
            | Wait::Superseded { pid } => pid,
        }
    }

    /// Whether it waits for the same as before.
    pub(super) fn is_like(self, other: Wait) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other) && self.pid() == other.pid()
    }
}

/// A connection, and who is at its other end.
struct Seat {
    id: FrontendId,
    frontend: Frontend,
    /// `None` if it cannot be told from others.
    process: Option<Process>,
    /// If it has come back: how long it may take to start its rings.
    return_until: Nanos,
    /// Its rings were started while those of another one ran.
    waited: bool,
    /// Its rings are those of a process after which another one had them: they are out of date.
    superseded: bool,
    /// It has stopped its rings on this connection: what it starts from then on begins where they stopped. One that has stopped them
    /// before the daemon was restarted, and connects again, starts those of that time.
    has_stopped_here: bool,
}

#[derive(Default)]
struct Seats {
    /// In the order in which they came.
    taken: Vec<Seat>,
    active: Option<FrontendId>,
    /// Who is or was active.
    shown: Option<FrontendId>,
    /// Who has stopped its rings since nobody is, and how long others leave it time to come back.
    stopped: Option<(FrontendId, Nanos)>,
    /// Who others were told of.
    told: Option<(FrontendId, Frontend)>,
    /// Nobody is told anything yet.
    is_quiet: bool,
    next: u64,
}

impl Seats {
    fn shown(&self) -> Option<&Seat> {
        let shown = self.taken.iter().find(|seat| Some(seat.id) == self.shown);
        shown.or(self.taken.first())
    }

    fn waiting(&self) -> Option<&Seat> {
        let shown = self.shown()?.id;
        self.taken.iter().find(|seat| seat.id != shown)
    }

    fn of(&self, id: FrontendId) -> &Seat {
        self.taken.iter().find(|seat| seat.id == id).expect("it has not left")
    }

    fn of_mut(&mut self, id: FrontendId) -> &mut Seat {
        self.taken.iter_mut().find(|seat| seat.id == id).expect("it has not left")
    }

    fn of_process(&self, process: Process) -> Option<&Seat> {
        self.taken.iter().find(|seat| seat.process == Some(process))
    }
}

/// The frontends of a VHD, and whose turn it is.
pub(super) struct Turn {
    vhd: Arc<VhdState>,
    events: Arc<dyn ServerEvents>,
    /// Locked for a few instructions, an event, which does not block, and a look at a process.
    seats: Mutex<Seats>,
    freed: watch::Sender<()>,
}

impl Turn {
    pub(super) fn new(vhd: Arc<VhdState>, events: Arc<dyn ServerEvents>) -> Turn {
        Turn { vhd, events, seats: Mutex::default(), freed: watch::Sender::new(()) }
    }

    /// Whether a frontend of this process may come: one place is kept for the process that has to come back after a restart.
    pub(super) fn has_room(&self, process: Option<Process>) -> bool {
        let seats = self.seats();
        let comes_back = |last: Process| Some(last) != process && seats.of_process(last).is_none() && last.is_alive();
        let kept = self.unstopped().is_some_and(comes_back);
        seats.taken.len() + usize::from(kept) < FRONTENDS_MAX
    }

    /// A frontend has come.
    pub(super) fn join(&self, frontend: Frontend, process: Option<Process>, now: Nanos) -> FrontendId {
        let mut seats = self.seats();
        assert!(seats.taken.len() < FRONTENDS_MAX, "who comes is counted before");
        let id = FrontendId(seats.next);
        seats.next += 1;
        let last_active = &self.vhd.last_active;
        // A kill may have come before the one that was to come after it had its turn.
        let is_last = |process| last_active.last().is_some_and(|last| last.process == process);
        let superseded = process.is_some_and(|process| last_active.was_earlier(process) && !is_last(process));
        let return_until = now.after(RETURN);
        let (waited, has_stopped_here) = (false, false);
        seats.taken.push(Seat { id, frontend, process, return_until, waited, superseded, has_stopped_here });
        self.tell(&mut seats);
        id
    }

    /// It is gone, its rings are drained. `by_itself`: we have not parted from it, so that it does not come back with the rings it had.
    pub(super) fn leave(&self, id: FrontendId, by_itself: bool) {
        let mut seats = self.seats();
        let at = seats.taken.iter().position(|seat| seat.id == id).expect("it leaves once");
        let Seat { process, has_stopped_here, .. } = seats.taken.remove(at);
        seats.active.take_if(|active| *active == id);
        seats.stopped.take_if(|stopped| stopped.0 == id);
        if let Some(process) = process.filter(|process| by_itself && seats.of_process(*process).is_none()) {
            let last_active = &self.vhd.last_active;
            // One that only looked in still has what it had before the restart, should it come once more.
            if last_active.last().is_some_and(|last| last.process == process && (has_stopped_here || !last.stopped)) {
                last_active.set_last(None);
            }
            if has_stopped_here {
                last_active.forget_earlier(process);
            }
        }
        self.tell(&mut seats);
        drop(seats);
        self.freed.send_replace(());
    }

    /// All that the next server has to know, and the frontends in the order in which they came. Nobody is told anything.
    pub(super) fn hand_over(&self, now: Nanos) -> (HeldTurn, Vec<HeldSeat>) {
        let seats = self.seats();
        let seat = |seat: &Seat| HeldSeat {
            id: seat.id.0,
            pid: seat.frontend.pid,
            uid: seat.frontend.uid,
            since: seat.frontend.since,
            start: seat.process.map(|process| process.start),
            return_left_ns: seat.return_until.since(now),
            waited: seat.waited,
            superseded: seat.superseded,
            has_stopped_here: seat.has_stopped_here,
        };
        let turn = HeldTurn {
            active: seats.active.map(|id| id.0),
            shown: seats.shown.map(|id| id.0),
            stopped: seats.stopped.map(|(by, until)| HeldStop { by: by.0, left_ns: until.since(now) }),
            next: seats.next,
        };
        (turn, seats.taken.iter().map(seat).collect())
    }

    /// Takes the places of frontends over from another server. Nobody is told yet: see [`Turn::announce`].
    pub(super) fn take_over<'a>(&self, turn: &HeldTurn, held: impl Iterator<Item = &'a HeldSeat>, now: Nanos) {
        let until = |left_ns| now.after(Duration::from_nanos(left_ns));
        let seat = |seat: &HeldSeat| Seat {
            id: FrontendId(seat.id),
            frontend: Frontend { pid: seat.pid, uid: seat.uid, since: seat.since },
            process: seat.start.map(|start| Process { pid: seat.pid, start }),
            return_until: until(seat.return_left_ns),
            waited: seat.waited,
            superseded: seat.superseded,
            // Earlier versions say it only of the one that has stopped last.
            has_stopped_here: seat.has_stopped_here || turn.stopped.is_some_and(|stop| stop.by == seat.id),
        };
        let mut seats = self.seats();
        seats.is_quiet = true;
        seats.taken = held.map(seat).collect();
        (seats.active, seats.shown, seats.next) = (turn.active.map(FrontendId), turn.shown.map(FrontendId), turn.next);
        seats.stopped = turn.stopped.map(|stop| (FrontendId(stop.by), until(stop.left_ns)));
    }

    /// Tells others who is there, also the daemon after this one.
    pub(super) fn announce(&self) {
        let mut seats = self.seats();
        seats.is_quiet = false;
        // There was no room for what should have outlived the daemon before, or no daemon that kept it: the next one is to know.
        if let Some(active) = seats.active.filter(|_| self.vhd.last_active.last().is_none()) {
            self.vhd.last_active.set_last(seats.of(active).process);
        }
        self.tell(&mut seats);
    }

    /// Its rings may run, from now until it lets go.
    ///
    /// `can_migrate`: a VM may have moved here from another frontend.
    ///
    /// # Errors
    /// It has to wait, maybe for ever.
    pub(super) fn take(&self, id: FrontendId, can_migrate: bool, now: Nanos) -> Result<(), Wait> {
        let mut seats = self.seats();
        if seats.active == Some(id) {
            return Ok(());
        }
        if let Some(wait) = self.wait(&mut seats, id, now) {
            return Err(wait);
        }
        let process = seats.of(id).process;
        let last_active = &self.vhd.last_active;
        let other = last_active.last().filter(|last| Some(last.process) != process && last.process.is_alive());
        // One that has stopped, and from which no VM can have come here, goes on with what it has when this one has left.
        if let Some(before) = other.filter(|last| can_migrate || !last.stopped) {
            // First: before anything of this one runs, it is known that what the other one has is out of date.
            last_active.add_earlier(before.process);
            let over = |seat: &Seat| before.stopped && seat.has_stopped_here;
            let late = seats.taken.iter_mut().filter(|seat| seat.process == Some(before.process) && !over(seat));
            late.for_each(|seat| seat.superseded = true);
        }
        process.iter().for_each(|process| last_active.forget_earlier(*process));
        last_active.set_last(process);
        (seats.active, seats.shown, seats.stopped) = (Some(id), Some(id), None);
        self.tell(&mut seats);
        Ok(())
    }

    fn wait(&self, seats: &mut Seats, id: FrontendId, now: Nanos) -> Option<Wait> {
        let seat = seats.of(id);
        let (waited, process) = (seat.waited, seat.process);
        if seat.superseded {
            return Some(Wait::Superseded { pid: seat.frontend.pid });
        }
        if let Some(active) = seats.active {
            seats.of_mut(id).waited = true;
            return Some(Wait::Active { pid: seats.of(active).frontend.pid });
        }
        if let Some(last) = self.unstopped().filter(|last| Some(*last) != process) {
            let look = match seats.of_process(last) {
                Some(seat) => Some(seat.return_until).filter(|until| now < *until),
                None => last.is_alive().then(|| now.after(LOOK)),
            };
            if let Some(look) = look {
                return Some(Wait::Returning { pid: last.pid, look });
            }
        }
        let (stopper, until) = seats.stopped.filter(|_| waited)?;
        (stopper != id && now < until).then(|| Wait::Stopped { pid: seats.of(stopper).frontend.pid, until })
    }

    /// Whose rings ran when the daemon before this one ended, or when we parted from it.
    fn unstopped(&self) -> Option<Process> {
        self.vhd.last_active.last().filter(|last| !last.stopped).map(|last: Last| last.process)
    }

    /// All its rings are stopped. Whoever waits is told. What it starts from now on is not of an earlier time.
    pub(super) fn release(&self, id: FrontendId, now: Nanos) {
        let mut seats = self.seats();
        let seat = seats.of_mut(id);
        (seat.waited, seat.superseded, seat.has_stopped_here) = (false, false, true);
        if seats.active == Some(id) {
            (seats.active, seats.stopped) = (None, Some((id, now.after(GRACE))));
            self.vhd.last_active.set_stopped();
            drop(seats);
            self.freed.send_replace(());
        }
    }

    /// Changes whenever an active one has let go.
    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.freed.subscribe()
    }

    /// Who it is whose guest chooses the cache mode, if it is another one: the one that is active, or that is to come back; itself if what
    /// it has is out of date.
    pub(super) fn other_chooser(&self, id: FrontendId) -> Option<u32> {
        let seats = self.seats();
        let seat = seats.of(id);
        if seat.superseded {
            return Some(seat.frontend.pid);
        }
        if let Some(active) = seats.active {
            return (active != id).then(|| seats.of(active).frontend.pid);
        }
        self.unstopped().filter(|last| Some(*last) != seat.process && last.is_alive()).map(|last| last.pid)
    }

    /// Who came before this one and is still there.
    pub(super) fn earlier(&self, id: FrontendId) -> Option<Frontend> {
        self.seats().taken.first().filter(|seat| seat.id != id).map(|seat| seat.frontend)
    }

    /// The process of the one that came before this one, or that has to come back before this one can have its turn.
    pub(super) fn ahead_of(&self, id: FrontendId) -> Option<u32> {
        let seats = self.seats();
        if let Some(earlier) = seats.taken.first().filter(|seat| seat.id != id) {
            return Some(earlier.frontend.pid);
        }
        let process = seats.of(id).process;
        self.unstopped().filter(|last| Some(*last) != process && last.is_alive()).map(|last| last.pid)
    }

    /// Whether it is the one connection of the process whose rings ran last: it comes back.
    pub(super) fn comes_back(&self, id: FrontendId) -> bool {
        let seats = self.seats();
        let process = seats.of(id).process;
        let alone = seats.taken.iter().all(|seat| seat.id == id || seat.process != process);
        alone && process.is_some() && self.vhd.last_active.last().map(|last| last.process) == process
    }

    /// The one that is or was active, or the first.
    pub(super) fn frontend(&self) -> Option<Frontend> {
        self.seats().shown().map(|seat| seat.frontend)
    }

    /// The one that is not [`Turn::frontend`].
    pub(super) fn waiting(&self) -> Option<Frontend> {
        self.seats().waiting().map(|seat| seat.frontend)
    }

    fn tell(&self, seats: &mut Seats) {
        if seats.is_quiet {
            return;
        }
        let shown = seats.shown().map(|seat| (seat.id, seat.frontend));
        self.vhd.door.set_waiting(seats.waiting().map(|seat| seat.frontend.pid));
        if shown.map(|shown| shown.0) == seats.told.map(|told| told.0) {
            return;
        }
        match (shown, seats.told) {
            (Some((_, frontend)), _) => self.events.attached(self.vhd.id(), frontend.pid),
            (None, Some((_, frontend))) => self.events.detached(self.vhd.id(), frontend.pid),
            (None, None) => {}
        }
        seats.told = shown;
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
