//! What a daemon knows of the time before it: events, histories, and what the policy remembers.

use std::sync::Arc;

use crate::control::events::EventLog;
use crate::control::policy::{Desk, Kept};
use crate::control::stats::StatsBook;
use crate::store::thread::StoreHandle;

/// Events may take this part of a metadata region.
const EVENTS_PART_OF_REGION: u64 = 8;

/// What the store has noted; nobody's data depends on it.
pub struct Noted {
    /// Of events, of their numbers, and by the policy.
    pub notes: [Vec<(u32, Vec<u8>)>; 3],
    /// What is wanted of the policy.
    pub policy: Kept,
}

/// What is known.
#[derive(Clone)]
pub struct Memory {
    /// What happened.
    pub events: Arc<EventLog>,
    /// What VHDs and disks did.
    pub stats: Arc<StatsBook>,
    /// What is wanted of the policy, and what it remembers.
    pub policy: Arc<Desk>,
}

impl Memory {
    /// Recalls what was noted; what comes goes to `store`, whose smallest region has `region_len` bytes.
    pub fn recall(noted: Noted, stats: StatsBook, region_len: u64, store: &StoreHandle) -> Memory {
        let Noted { notes: [events, numbers, remembered], policy } = noted;
        let room = region_len / EVENTS_PART_OF_REGION;
        let (events, stats) = (Arc::new(EventLog::restored([events, numbers], room, store.clone())), Arc::new(stats));
        let (book, log) = (Arc::clone(&stats), Arc::clone(&events));
        let policy = Arc::new(Desk::new(policy, remembered, book, log, Some(store.clone())));
        Memory { events, stats, policy }
    }
}
