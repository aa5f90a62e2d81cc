//! What happened lately, and telling whoever wants to know as it happens.

pub mod filter;
mod pages;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, broadcast};

use super::wire::{Event, EventDetail, Severity};
use crate::base::clock;
use crate::base::limits::API_FOLLOWERS_MAX;
use crate::store::note::{Note, NoteKind};
use crate::store::thread::StoreHandle;
use pages::Pages;

/// Events that are remembered.
pub const EVENTS_MAX: usize = 10_000;

/// Events that a slow subscriber may lag behind before it loses some.
const LAG_MAX: usize = 1024;

/// How far numbers are promised ahead: so many events may come before that is durable.
const PROMISED_AHEAD: u64 = 1000;

/// How long new events are gathered before they are handed over.
const GATHER: Duration = Duration::from_secs(1);

/// The last events. Any thread but a reactor may record.
pub struct EventLog {
    inner: Mutex<Inner>,
    live: broadcast::Sender<Event>,
    /// Where they are noted for the next daemon.
    store: Option<StoreHandle>,
    /// There is something to note.
    is_new: Notify,
}

struct Inner {
    recent: VecDeque<Event>,
    next_seq: u64,
    /// Numbers below are never given by the next daemon.
    promised: u64,
    pages: Pages,
}

impl Default for EventLog {
    fn default() -> EventLog {
        EventLog::new(VecDeque::new(), 1, Pages::default(), None)
    }
}

impl EventLog {
    fn new(recent: VecDeque<Event>, next_seq: u64, pages: Pages, store: Option<StoreHandle>) -> EventLog {
        let (live, _) = broadcast::channel(LAG_MAX);
        let inner = Inner { recent, next_seq, promised: next_seq, pages };
        EventLog { inner: Mutex::new(inner), live, store, is_new: Notify::new() }
    }

    /// With what earlier daemons have noted of events and of their numbers; notes go to `store`, and take `room` bytes there at most.
    #[must_use]
    pub fn restored([events, numbers]: [Vec<(u32, Vec<u8>)>; 2], room: u64, store: StoreHandle) -> EventLog {
        let (pages, events) = Pages::read(events, room);
        let promised = numbers.first().and_then(|(_, bytes)| bytes.as_slice().try_into().ok()).map(u64::from_le_bytes);
        let next_seq = events.last().map_or(1, |event| event.seq + 1).max(promised.unwrap_or(1));
        let surplus = events.len().saturating_sub(EVENTS_MAX);
        let log = EventLog::new(events.into_iter().skip(surplus).collect(), next_seq, pages, Some(store));
        log.promise();
        log
    }

    /// Promises numbers ahead, as soon as can be: a daemon that is killed in its first second has given some, too.
    fn promise(&self) {
        let mut inner = self.lock();
        inner.promised = inner.next_seq + PROMISED_AHEAD;
        self.keep(inner);
        self.store.iter().for_each(StoreHandle::commit_soon);
    }

    /// Records an event, logs it and tells the subscribers.
    pub fn record(&self, severity: Severity, detail: EventDetail) {
        let level = match severity {
            Severity::Info => log::Level::Info,
            Severity::Warning => log::Level::Warn,
            Severity::Error => log::Level::Error,
        };
        log::log!(level, "{}", serde_json::to_string(&detail).unwrap_or_default());
        let mut guard = self.lock();
        let inner = &mut *guard;
        let event = Event { seq: inner.next_seq, time_secs: clock::wall_secs(), severity, detail };
        inner.next_seq += 1;
        if inner.recent.len() == EVENTS_MAX {
            inner.recent.pop_front();
        }
        inner.recent.push_back(event.clone());
        if self.store.is_some() {
            let oldest = inner.recent[0].seq;
            inner.pages.add(&event, oldest);
            self.is_new.notify_one();
        }
        // Under the lock, so that a subscriber sees each event either in the past or live. Nobody may be listening.
        let _ = self.live.send(event);
    }

    /// The number that the next event gets.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.lock().next_seq
    }

    /// The remembered events after sequence number `after`, oldest first, and what comes next.
    #[must_use]
    pub fn subscribe(&self, after: u64) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let inner = self.lock();
        let past = inner.recent.iter().filter(|event| event.seq > after).cloned().collect();
        (past, self.live.subscribe())
    }

    /// The same for a reader that stays; `None` if as many follow as may ([`API_FOLLOWERS_MAX`]).
    #[must_use]
    pub fn follow(&self, after: u64) -> Option<(Vec<Event>, broadcast::Receiver<Event>)> {
        // Two that come at the same time may both be let in, which is one too many.
        (self.live.receiver_count() < API_FOLLOWERS_MAX).then(|| self.subscribe(after))
    }

    /// Hands over what is new, once a second at most. Never returns.
    pub async fn keep_on(&self) {
        loop {
            self.is_new.notified().await;
            tokio::time::sleep(GATHER).await;
            let mut inner = self.lock();
            if inner.next_seq + PROMISED_AHEAD / 2 > inner.promised {
                inner.promised = inner.next_seq + PROMISED_AHEAD;
            }
            self.keep(inner);
        }
    }

    /// Hands over what is new, before the store ends.
    pub fn keep_all(&self) {
        let mut inner = self.lock();
        inner.promised = inner.next_seq;
        self.keep(inner);
    }

    fn keep(&self, mut inner: MutexGuard<'_, Inner>) {
        let Some(store) = &self.store else { return };
        let promised = Note::put(NoteKind::EventNumbers, 0, inner.promised.to_le_bytes().to_vec());
        store.note(inner.pages.take_notes().into_iter().chain([promised]));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic aborts the process: nobody can have left the events half recorded.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(i: usize) -> EventDetail {
        EventDetail::Note { message: i.to_string() }
    }

    #[test]
    fn the_last_events_are_remembered_in_order() {
        let log = EventLog::default();
        (0..EVENTS_MAX + 5).for_each(|i| log.record(Severity::Info, note(i)));
        let (past, _) = log.subscribe(0);
        assert_eq!(past.len(), EVENTS_MAX);
        assert_eq!(past[0].seq, 6);
        assert_eq!(past[0].detail, note(5));
        assert!(past.windows(2).all(|pair| pair[0].seq + 1 == pair[1].seq));
        assert_eq!(log.subscribe(past[EVENTS_MAX - 1].seq - 1).0.len(), 1);
    }

    #[test]
    fn subscribers_see_what_comes_next_and_nothing_twice() {
        let log = EventLog::default();
        log.record(Severity::Info, note(1));
        let (past, mut live) = log.subscribe(0);
        log.record(Severity::Warning, note(2));
        assert_eq!(past.len(), 1);
        assert_eq!(live.try_recv().unwrap().seq, 2);
        assert!(live.try_recv().is_err());
    }
}
