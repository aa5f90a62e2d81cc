//! The reactors, as connections see them: which of them serves which ring.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::base::ids::ReactorId;
use crate::reactor::handle::ReactorHandle;
use crate::reactor::messages::{ReactorMessage, RingCommand, RingKey};

/// Ways to the reactor threads.
pub trait Reactors: Send + Sync + 'static {
    /// How many there are; at least 1, and constant.
    fn count(&self) -> u16;

    /// Queues a message. Messages of one sender arrive in order. Must not block; a reactor that has ended drops the message
    /// and the reply channel in it.
    fn send(&self, reactor: ReactorId, message: ReactorMessage);
}

impl Reactors for Vec<ReactorHandle> {
    fn count(&self) -> u16 {
        u16::try_from(self.len()).expect("reactors are counted in u16")
    }

    fn send(&self, reactor: ReactorId, message: ReactorMessage) {
        self[usize::from(reactor.0)].send(message);
    }
}

/// The reactors and what was given to them.
pub(super) struct Hub {
    reactors: Box<dyn Reactors>,
    /// Rings per reactor. Locked for a few instructions, by connections only.
    loads: Mutex<Vec<u32>>,
    next_key: AtomicU64,
}

/// A ring's place. Given back with [`Hub::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) key: RingKey,
    pub(super) reactor: ReactorId,
}

impl Hub {
    pub(super) fn new(reactors: impl Reactors) -> Hub {
        let count = usize::from(reactors.count());
        assert!(count > 0, "there is at least one reactor");
        Hub { reactors: Box::new(reactors), loads: Mutex::new(vec![0; count]), next_key: AtomicU64::new(1) }
    }

    /// A place for one more ring of a device whose other rings are on `siblings`.
    pub(super) fn place(&self, siblings: impl Iterator<Item = ReactorId>) -> Place {
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut own = vec![0; loads.len()];
        siblings.for_each(|reactor| own[usize::from(reactor.0)] += 1);
        let reactor = least_loaded(&own, &loads);
        loads[usize::from(reactor.0)] += 1;
        Place { key: RingKey(self.next_key.fetch_add(1, Ordering::Relaxed)), reactor }
    }

    /// The ring has ended.
    pub(super) fn release(&self, place: Place) {
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        let load = &mut loads[usize::from(place.reactor.0)];
        *load = load.checked_sub(1).expect("a ring that ends had begun");
    }

    pub(super) fn send(&self, reactor: ReactorId, command: RingCommand) {
        self.reactors.send(reactor, ReactorMessage::Ring(command));
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

        fn send(&self, _: ReactorId, _: ReactorMessage) {}
    }

    #[test]
    fn rings_of_a_device_spread_and_rings_of_all_balance() {
        let hub = Hub::new(Deaf(3));
        let mut first: Vec<Place> = Vec::new();
        for _ in 0..4 {
            let place = hub.place(first.iter().map(|place| place.reactor));
            first.push(place);
        }
        assert_eq!(first.iter().map(|place| place.reactor.0).collect::<Vec<_>>(), [0, 1, 2, 0]);
        let single: Vec<u16> = (0..3).map(|_| hub.place(std::iter::empty()).reactor.0).collect();
        assert_eq!(single, [1, 2, 0]);
        hub.release(first[1]);
        assert_eq!(hub.place(std::iter::empty()).reactor, ReactorId(1));
    }

    #[test]
    fn keys_are_never_reused() {
        let hub = Hub::new(Deaf(1));
        let first = hub.place(std::iter::empty());
        hub.release(first);
        assert_ne!(hub.place(std::iter::empty()).key, first.key);
    }
}
