//! Whether whoever looks at what guests do has to be told that they do something.

use std::sync::atomic::{AtomicBool, Ordering};

/// Set by one thread that goes to rest, and taken back by the first of the others that has something to do. Read by all of them, and
/// seldom written: a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Rest(AtomicBool);

impl Rest {
    /// Who looks at what guests do will not look again until it is told. What happens at this very moment may be missed; what goes on is
    /// not.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Somebody has something to do. Whether that has to be told: to one thread, once for each rest.
    #[must_use]
    pub fn end(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_is_ended_once() {
        let rest = Rest::default();
        assert!(!rest.end());
        rest.begin();
        assert!(rest.end() && !rest.end());
    }
}
