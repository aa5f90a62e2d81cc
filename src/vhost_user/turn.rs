//! Whose rings run: of the frontends of a VHD at most one is *active* (ordering rule 10).
//!
//! The first that starts a ring is. It stays active until all its rings are stopped or it is gone, drained in both cases; the other
//! one, which has been told of nothing and waits, may start then. The destination of a live migration comes that way.
//!
//! Everybody else is told of one frontend: the active one, or the one that came first while none is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::server::{Frontend, ServerEvents};
use crate::shared::VhdState;

/// Frontends of a VHD at the same time.
pub(super) const FRONTENDS_MAX: usize = 2;

/// Names a connection among those of its VHD; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrontendId(u64);

/// A connection, and who is at its other end.
type Seat = (FrontendId, Frontend);

#[derive(Default)]
struct Seats {
    /// In the order in which they came.
    taken: Vec<Seat>,
    active: Option<FrontendId>,
    /// Who others were told of.
    told: Option<Seat>,
    next: u64,
}

impl Seats {
    fn shown(&self) -> Option<Seat> {
        let active = self.taken.iter().find(|seat| Some(seat.0) == self.active);
        active.or(self.taken.first()).copied()
    }

    fn waiting(&self) -> Option<Seat> {
        let shown = self.shown()?;
        self.taken.iter().find(|seat| seat.0 != shown.0).copied()
    }
}

/// The frontends of a VHD, and whose turn it is.
pub(super) struct Turn {
    vhd: Arc<VhdState>,
    events: Arc<dyn ServerEvents>,
    /// Locked for a few instructions and an event, which does not block.
    seats: Mutex<Seats>,
    freed: watch::Sender<()>,
}

impl Turn {
    pub(super) fn new(vhd: Arc<VhdState>, events: Arc<dyn ServerEvents>) -> Turn {
        Turn { vhd, events, seats: Mutex::default(), freed: watch::Sender::new(()) }
    }

    /// A frontend has come.
    pub(super) fn join(&self, frontend: Frontend) -> FrontendId {
        let mut seats = self.seats();
        assert!(seats.taken.len() < FRONTENDS_MAX, "who comes is counted before");
        let id = FrontendId(seats.next);
        seats.next += 1;
        seats.taken.push((id, frontend));
        self.tell(&mut seats);
        id
    }

    /// It is gone, its rings are drained.
    pub(super) fn leave(&self, id: FrontendId) {
        self.release(id);
        let mut seats = self.seats();
        seats.taken.retain(|seat| seat.0 != id);
        self.tell(&mut seats);
    }

    /// Its rings may run, from now until it lets go.
    ///
    /// # Errors
    /// Another one's do, which is named.
    pub(super) fn take(&self, id: FrontendId) -> Result<(), Frontend> {
        let mut seats = self.seats();
        match seats.active {
            Some(active) if active != id => Err(seats.shown().expect("the active one is there").1),
            Some(_) => Ok(()),
            None => {
                seats.active = Some(id);
                self.tell(&mut seats);
                Ok(())
            }
        }
    }

    /// All its rings are stopped. Whoever waits is told.
    pub(super) fn release(&self, id: FrontendId) {
        let mut seats = self.seats();
        if seats.active == Some(id) {
            seats.active = None;
            drop(seats);
            self.freed.send_replace(());
        }
    }

    /// Changes whenever an active one has let go.
    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.freed.subscribe()
    }

    /// Who is active, if it is another one.
    pub(super) fn other_active(&self, id: FrontendId) -> Option<Frontend> {
        let seats = self.seats();
        seats.active.filter(|active| *active != id).and_then(|_| seats.shown()).map(|seat| seat.1)
    }

    /// Who came before this one and is still there.
    pub(super) fn earlier(&self, id: FrontendId) -> Option<Frontend> {
        self.seats().taken.first().filter(|seat| seat.0 != id).map(|seat| seat.1)
    }

    /// The active one, or the first.
    pub(super) fn frontend(&self) -> Option<Frontend> {
        self.seats().shown().map(|seat| seat.1)
    }

    /// The one that is not [`Turn::frontend`].
    pub(super) fn waiting(&self) -> Option<Frontend> {
        self.seats().waiting().map(|seat| seat.1)
    }

    fn tell(&self, seats: &mut Seats) {
        let shown = seats.shown();
        self.vhd.door.set_waiting(seats.waiting().map(|seat| seat.1.pid));
        if shown.map(|seat| seat.0) == seats.told.map(|seat| seat.0) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::VhdId;
    use crate::base::units::Geometry;
    use crate::placement::view::VhdMap;
    use crate::shared::VhdSettings;

    #[derive(Default)]
    struct Told(Mutex<Vec<String>>);

    impl ServerEvents for Told {
        fn attached(&self, _: VhdId, pid: u32) {
            self.0.lock().unwrap().push(format!("attached {pid}"));
        }

        fn detached(&self, _: VhdId, pid: u32) {
            self.0.lock().unwrap().push(format!("detached {pid}"));
        }

        fn cache_mode(&self, _: VhdId, _: bool) {}
    }

    fn process(pid: u32) -> Frontend {
        Frontend { pid, uid: 0, since: 0 }
    }

    fn pids(turn: &Turn) -> (Option<u32>, Option<u32>) {
        (turn.frontend().map(|f| f.pid), turn.waiting().map(|f| f.pid))
    }

    #[test]
    fn the_turn_passes_when_the_active_one_stops_or_leaves() {
        let told = Arc::new(Told::default());
        let settings = VhdSettings {
            id: VhdId(1),
            uuid: uuid::Uuid::nil(),
            geometry: Geometry::new(1 << 20).unwrap(),
            block_size: 512,
            read_only: false,
            thick: false,
            checksums: false,
        };
        let vhd = Arc::new(VhdState::new(settings, 1 << 20, VhdMap::new(1), 1));
        let turn = Turn::new(Arc::clone(&vhd), told.clone());
        let freed = turn.watch();
        let (first, second) = (turn.join(process(1)), turn.join(process(2)));
        assert_eq!(
            (pids(&turn), turn.earlier(first), turn.earlier(second)),
            ((Some(1), Some(2)), None, Some(process(1)))
        );
        // The second starts first: it is the active one.
        assert_eq!((turn.take(second), turn.take(second)), (Ok(()), Ok(())));
        assert_eq!((turn.take(first), turn.other_active(first)), (Err(process(2)), Some(process(2))));
        assert_eq!((pids(&turn), turn.other_active(second)), ((Some(2), Some(1)), None));
        assert_eq!(vhd.door.waiting(), Some(1));
        // Only it can let go.
        turn.release(first);
        assert!(turn.take(first).is_err() && !freed.has_changed().unwrap());
        turn.release(second);
        assert!(freed.has_changed().unwrap() && turn.take(first) == Ok(()));
        turn.leave(second);
        assert_eq!((pids(&turn), turn.take(first)), ((Some(1), None), Ok(())));
        assert_eq!(vhd.door.waiting(), None);
        let third = turn.join(process(3));
        turn.leave(first);
        assert_eq!((pids(&turn), turn.earlier(third), turn.take(third)), ((Some(3), None), None, Ok(())));
        turn.leave(third);
        let lines = ["attached 1", "attached 2", "attached 1", "attached 3", "detached 3"];
        assert_eq!(*told.0.lock().unwrap(), lines);
    }
}
