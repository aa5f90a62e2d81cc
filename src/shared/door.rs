//! Who may use a VHD: frontends, or the owner alone while it takes something away.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const CLOSED: u32 = u32::MAX;

const NOBODY: u64 = u64::MAX;

/// Frontends go in and out; the owner can close the door while nobody is in.
///
/// What the owner hears of frontends comes by messages, and so is a little old. The door is not: while it is closed no ring of
/// the VHD runs.
#[derive(Debug)]
pub struct Door {
    inside: AtomicU32,
    waits: AtomicU64,
}

impl Default for Door {
    fn default() -> Door {
        Door { inside: AtomicU32::new(0), waits: AtomicU64::new(NOBODY) }
    }
}

impl Door {
    /// The process whose frontend is in and waits for another one to stop (0 if the process is not known). For people: it may have
    /// changed already.
    #[must_use]
    pub fn waiting(&self) -> Option<u32> {
        u32::try_from(self.waits.load(Ordering::Relaxed)).ok()
    }

    /// Lets others know who waits.
    pub fn set_waiting(&self, pid: Option<u32>) {
        self.waits.store(pid.map_or(NOBODY, u64::from), Ordering::Relaxed);
    }

    /// A frontend goes in. False if the door is closed.
    #[must_use]
    pub fn enter(&self) -> bool {
        let more = |inside| (inside < CLOSED - 1).then(|| inside + 1);
        self.inside.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    /// A frontend has left: its rings are drained.
    ///
    /// # Panics
    /// If it was not in.
    pub fn leave(&self) {
        let before = self.inside.fetch_sub(1, Ordering::SeqCst);
        assert!(before != 0 && before != CLOSED, "only who went in can leave");
    }

    /// Owner only: closes the door. False if somebody is in.
    #[must_use]
    pub fn close(&self) -> bool {
        self.inside.compare_exchange(0, CLOSED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Owner only: opens what it closed.
    ///
    /// # Panics
    /// If the door was open.
    pub fn open(&self) {
        let before = self.inside.swap(0, Ordering::SeqCst);
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
    fn whoever_waits_has_a_number() {
        let door = Door::default();
        assert_eq!(door.waiting(), None);
        for pid in [Some(0), Some(u32::MAX), None] {
            door.set_waiting(pid);
            assert_eq!(door.waiting(), pid);
        }
    }

    #[test]
    #[should_panic(expected = "only who went in")]
    fn nobody_leaves_who_was_not_in() {
        Door::default().leave();
    }
}
