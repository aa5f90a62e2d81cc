//! Who may use a VHD: frontends, or the owner alone while it takes something away.

use std::sync::atomic::{AtomicU32, Ordering};

const CLOSED: u32 = u32::MAX;

/// Frontends go in and out; the owner can close the door while nobody is in.
///
/// What the owner hears of frontends comes by messages, and so is a little old. The door is not: while it is closed no ring of
/// the VHD runs.
#[derive(Debug, Default)]
pub struct Door(AtomicU32);

impl Door {
    /// A frontend goes in. False if the door is closed.
    #[must_use]
    pub fn enter(&self) -> bool {
        let more = |inside| (inside < CLOSED - 1).then(|| inside + 1);
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    /// A frontend has left: its rings are drained.
    ///
    /// # Panics
    /// If it was not in.
    pub fn leave(&self) {
        let before = self.0.fetch_sub(1, Ordering::SeqCst);
        assert!(before != 0 && before != CLOSED, "only who went in can leave");
    }

    /// Owner only: closes the door. False if somebody is in.
    #[must_use]
    pub fn close(&self) -> bool {
        self.0.compare_exchange(0, CLOSED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Owner only: opens what it closed.
    ///
    /// # Panics
    /// If the door was open.
    pub fn open(&self) {
        let before = self.0.swap(0, Ordering::SeqCst);
        assert!(before == CLOSED, "the owner opens what it closed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_alone_or_not_in() {
        let door = Door::default();
        assert!(door.enter() && door.enter() && !door.close());
        door.leave();
        assert!(!door.close());
        door.leave();
        assert!(door.close() && !door.enter() && !door.close());
        door.open();
        assert!(door.enter());
        door.leave();
    }

    #[test]
    #[should_panic(expected = "only who went in")]
    fn nobody_leaves_who_was_not_in() {
        Door::default().leave();
    }
}
