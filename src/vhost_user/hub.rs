//! The reactors, as connections see them: which of them serves which ring, and which ring should change its reactor.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::balance::{Balance, Move, RingSeen};
use crate::base::clock;
use crate::base::ids::ReactorId;
use crate::reactor::messages::{ReactorMessage, RingCommand, RingKey};
use crate::shared::Load;

/// How often what the reactors do is looked at.
const OBSERVE_EVERY: Duration = Duration::from_secs(1);

/// How rarely at most, while they do nothing.
const OBSERVE_AT_LEAST_EVERY: Duration = Duration::from_secs(16);

/// Ways to the reactor threads.
pub trait Reactors: Send + Sync + 'static {
    /// How many there are; at least 1, and constant.
    fn count(&self) -> u16;

    /// How long each of them has worked since it began, in nanoseconds.
    fn busy_ns(&self) -> Vec<u64>;

    /// Queues a message. Messages of one sender arrive in order. Must not block; a reactor that has ended drops the message
    /// and the reply channel in it.
    fn send(&self, reactor: ReactorId, message: ReactorMessage);
}

/// The reactors and what was given to them.
pub(super) struct Hub {
    reactors: Box<dyn Reactors>,
    /// The rings that run. Locked for a few instructions, by connections and the balance only.
    seats: Mutex<HashMap<RingKey, Seat>>,
    next_key: AtomicU64,
    /// Rings that have changed their reactor.
    moves: AtomicU64,
    balance: Mutex<Balance>,
}

/// A ring's place. Given back with [`Hub::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) key: RingKey,
    pub(super) reactor: ReactorId,
}

/// A ring that runs.
struct Seat {
    reactor: ReactorId,
    load: Arc<Load>,
    /// To the connection that it belongs to.
    orders: UnboundedSender<Move>,
}

/// Who asks for a place.
pub(super) struct Asking<'a> {
    /// Where the device's other rings are.
    pub(super) siblings: Vec<ReactorId>,
    /// The reactor that it must be.
    pub(super) wanted: Option<ReactorId>,
    /// Takes orders about the ring later.
    pub(super) orders: &'a UnboundedSender<Move>,
}

impl Hub {
    pub(super) fn new(reactors: impl Reactors) -> Hub {
        assert!(reactors.count() > 0, "there is at least one reactor");
        Hub {
            reactors: Box::new(reactors),
            seats: Mutex::default(),
            next_key: AtomicU64::new(1),
            moves: AtomicU64::new(0),
            balance: Mutex::default(),
        }
    }

    /// How many reactors there are.
    pub(super) fn count(&self) -> u16 {
        self.reactors.count()
    }

    /// A place for one more ring, and where its work is counted.
    pub(super) fn place(&self, asking: &Asking<'_>) -> (Place, Arc<Load>) {
        let mut seats = self.seats();
        let mut own = vec![0; usize::from(self.reactors.count())];
        let mut all = own.clone();
        asking.siblings.iter().for_each(|reactor| own[usize::from(reactor.0)] += 1);
        seats.values().for_each(|seat| all[usize::from(seat.reactor.0)] += 1);
        let reactor = asking.wanted.unwrap_or_else(|| least_loaded(&own, &all));
        let key = RingKey(self.next_key.fetch_add(1, Ordering::Relaxed));
        let load = Arc::<Load>::default();
        seats.insert(key, Seat { reactor, load: Arc::clone(&load), orders: asking.orders.clone() });
        (Place { key, reactor }, load)
    }

    /// The ring has ended.
    pub(super) fn release(&self, place: Place) {
        self.seats().remove(&place.key).expect("a ring that ends had begun");
    }

    /// A ring has changed its reactor, and its name.
    pub(super) fn moved(&self, ring: RingKey) {
        self.moves.fetch_add(1, Ordering::Relaxed);
        self.stays(ring);
    }

    /// A ring stays where it is for a while.
    pub(super) fn stays(&self, ring: RingKey) {
        self.balance.lock().unwrap_or_else(PoisonError::into_inner).stays(ring);
    }

    /// How many rings have changed their reactor.
    pub(super) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    /// How long each reactor has worked since it began, in nanoseconds.
    pub(super) fn busy_ns(&self) -> Vec<u64> {
        self.reactors.busy_ns()
    }

    pub(super) fn send(&self, reactor: ReactorId, command: RingCommand) {
        self.reactors.send(reactor, ReactorMessage::Ring(command));
    }

    /// Looks at what the reactors have done, and orders a ring to be moved if that helps. Whether they do anything.
    fn observe(&self) -> bool {
        let seats = self.seats();
        let see = |(ring, seat): (&RingKey, &Seat)| RingSeen {
            ring: *ring,
            reactor: seat.reactor,
            chains: seat.load.total(),
        };
        let mut balance = self.balance.lock().unwrap_or_else(PoisonError::into_inner);
        let found = balance.observe(clock::now(), self.reactors.busy_ns(), || seats.iter().map(see).collect());
        if let Some(order) = found
            && let Some(seat) = seats.get(&order.ring)
        {
            // A connection that is about to end takes no orders.
            let _ = seat.orders.send(order);
        }
        balance.is_awake()
    }

    fn seats(&self) -> MutexGuard<'_, HashMap<RingKey, Seat>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Spreads the rings by what they do, as long as there is a hub, and more than one reactor.
pub(super) async fn spread(hub: Weak<Hub>) {
    let mut pause = OBSERVE_EVERY;
    loop {
        tokio::time::sleep(pause).await;
        let Some(hub) = hub.upgrade().filter(|hub| hub.reactors.count() > 1) else { return };
        // A host whose guests sleep is to sleep as well.
        pause = if hub.observe() { OBSERVE_EVERY } else { (2 * pause).min(OBSERVE_AT_LEAST_EVERY) };
    }
}

/// The reactor for one more ring: one with the fewest rings of this device, so that its queues run in parallel; of those one
/// with the fewest rings at all; of those the first.
fn least_loaded(own: &[u32], all: &[u32]) -> ReactorId {
    assert_eq!(own.len(), all.len());
    let best = (0..all.len()).min_by_key(|&i| (own[i], all[i], i)).expect("there is at least one reactor");
    ReactorId(u16::try_from(best).expect("reactors are counted in u16"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Deaf(u16);

    impl Reactors for Deaf {
        fn count(&self) -> u16 {
            self.0
        }

        fn busy_ns(&self) -> Vec<u64> {
            vec![0; usize::from(self.0)]
        }

        fn send(&self, _: ReactorId, _: ReactorMessage) {}
    }

    fn place(hub: &Hub, siblings: &[Place]) -> Place {
        let (orders, _) = tokio::sync::mpsc::unbounded_channel();
        let siblings = siblings.iter().map(|place| place.reactor).collect();
        hub.place(&Asking { siblings, wanted: None, orders: &orders }).0
    }

    #[test]
    fn rings_of_a_device_spread_and_rings_of_all_balance() {
        let hub = Hub::new(Deaf(3));
        let mut first: Vec<Place> = Vec::new();
        for _ in 0..4 {
            first.push(place(&hub, &first));
        }
        assert_eq!(first.iter().map(|place| place.reactor.0).collect::<Vec<_>>(), [0, 1, 2, 0]);
        let single: Vec<u16> = (0..3).map(|_| place(&hub, &[]).reactor.0).collect();
        assert_eq!(single, [1, 2, 0]);
        hub.release(first[1]);
        assert_eq!(place(&hub, &[]).reactor, ReactorId(1));
    }

    #[test]
    fn keys_are_never_reused() {
        let hub = Hub::new(Deaf(1));
        let first = place(&hub, &[]);
        hub.release(first);
        assert_ne!(place(&hub, &[]).key, first.key);
    }
}
