//! Events as notes of the placement store: each note is a page of a few, one JSON object a line. Pure.

use std::collections::{BTreeMap, VecDeque};

use crate::base::limits::NOTE_LEN_MAX;
use crate::control::wire::{Event, EventDetail, ImpactInfo};
use crate::store::note::{Note, NoteKey, NoteKind};

/// Which pages there are.
#[derive(Debug, Default)]
pub struct Pages {
    /// The oldest first; the last one has room.
    pages: VecDeque<Page>,
    /// What the last one says.
    open: String,
    /// Bytes that all of them may take.
    room: u64,
    /// Pages that have changed since they were handed over, by number; `None`: it is given up.
    changed: BTreeMap<u32, Option<Vec<u8>>>,
}

#[derive(Debug)]
struct Page {
    /// The number of its note: the last digits of its first event's.
    number: u32,
    /// The last event in it.
    last: u64,
    bytes: u64,
    /// It has been handed over once.
    is_noted: bool,
}

impl Pages {
    /// No pages, which may come to take so many bytes.
    #[must_use]
    pub fn new(room: u64) -> Pages {
        Pages { room, ..Pages::default() }
    }

    /// Reads the pages that there are, in the order of their numbers. Lines that are none are left out.
    #[must_use]
    pub fn read(notes: Vec<(u32, Vec<u8>)>, room: u64) -> (Pages, Vec<Event>) {
        let (mut pages, mut events) = (Pages::new(room), Vec::new());
        let (mut unread, mut read) = (0_u64, Vec::new());
        for (number, bytes) in notes {
            let text = String::from_utf8_lossy(&bytes);
            let lines = text.lines().map(serde_json::from_str::<Event>);
            let before = events.len();
            for line in lines {
                match line {
                    Ok(event) => events.push(event),
                    Err(_) => unread += 1,
                }
            }
            let last = events[before..].iter().map(|event| event.seq).max().unwrap_or(0);
            let page = Page { number, last, bytes: bytes.len() as u64, is_noted: true };
            read.push((page, text.into_owned()));
        }
        // Numbers begin anew some day.
        read.sort_by_key(|(page, _)| page.last);
        for (page, text) in read {
            pages.pages.push_back(page);
            pages.open = text;
        }
        if unread > 0 {
            log::warn!("{unread} events of an earlier time are left out: a newer or an older spanblk has written them");
        }
        events.sort_by_key(|event| event.seq);
        (pages, events)
    }

    /// Adds an event. Pages all of whose events come before `oldest` are given up, and the oldest ones for which there is no room.
    pub fn add(&mut self, event: &Event, oldest: u64) {
        let line = line_of(event);
        if self.pages.is_empty() || self.open.len() + line.len() > NOTE_LEN_MAX {
            self.open.clear();
            #[allow(
                clippy::cast_possible_truncation,
                reason = "the last digits tell pages apart that are there at the same time"
            )]
            self.pages.push_back(Page { number: event.seq as u32, last: event.seq, bytes: 0, is_noted: false });
        }
        self.open.push_str(&line);
        if let Some(page) = self.pages.back_mut() {
            (page.last, page.bytes) = (event.seq, self.open.len() as u64);
            let text = self.changed.entry(page.number).or_default().get_or_insert_default();
            text.clear();
            text.extend_from_slice(self.open.as_bytes());
        }
        while self.pages.len() > 1
            && (self.pages[0].last < oldest || self.bytes() > self.room)
            && let Some(page) = self.pages.pop_front()
        {
            if page.is_noted {
                self.changed.insert(page.number, None);
            } else {
                self.changed.remove(&page.number);
            }
        }
    }

    /// What has changed since the last time, to be noted.
    pub fn take_notes(&mut self) -> Vec<Note> {
        self.pages.iter_mut().for_each(|page| page.is_noted = true);
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed.map(|(number, text)| Note { key: NoteKey { kind: NoteKind::Events, number }, bytes: text }).collect()
    }

    fn bytes(&self) -> u64 {
        self.pages.iter().map(|page| page.bytes).sum()
    }
}

/// An event as a line. One that is too long is told without its details.
fn line_of(event: &Event) -> String {
    /// Several fit into a page.
    const LINE_MAX: usize = NOTE_LEN_MAX / 4;
    let text = |event: &Event| serde_json::to_string(event).unwrap_or_default() + "\n";
    let line = text(event);
    if line.len() <= LINE_MAX {
        return line;
    }
    let detail = match &event.detail {
        EventDetail::DiskFailed { disk, message, .. } => {
            EventDetail::DiskFailed { disk: disk.clone(), message: short(message), impact: None }
        }
        EventDetail::DiskMissing { disk, impact, .. } => {
            let sums = ImpactInfo { vms: Vec::new(), gone: Vec::new(), ..ImpactInfo::clone(impact) };
            EventDetail::DiskMissing { disk: disk.clone(), vhds: Vec::new(), impact: Box::new(sums) }
        }
        EventDetail::DataLost { vhd, disk, bytes, .. } => {
            EventDetail::DataLost { vhd: vhd.clone(), disk: disk.clone(), bytes: *bytes, ranges: Vec::new() }
        }
        detail => {
            let told = serde_json::to_value(detail).unwrap_or_default();
            let name = told.get("event").and_then(serde_json::Value::as_str).unwrap_or("event");
            EventDetail::Note { message: format!("{name} (its details were too long to be kept)") }
        }
    };
    text(&Event { detail, ..event.clone() })
}

/// The first part of a text.
fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::control::wire::{ByteRange, Severity};

    fn event(seq: u64, message: &str) -> Event {
        let detail = EventDetail::Note { message: message.to_owned() };
        Event { seq, time_secs: 7, severity: Severity::Info, detail }
    }

    /// What a store has after these notes.
    fn keep(store: &mut BTreeMap<u32, Vec<u8>>, notes: Vec<Note>) {
        for note in notes {
            match note.bytes {
                Some(bytes) => drop(store.insert(note.key.number, bytes)),
                None => drop(store.remove(&note.key.number)),
            }
        }
    }

    #[test]
    fn events_are_read_as_they_were_written_and_go_on() {
        let (mut store, mut pages) = (BTreeMap::new(), Pages::new(1 << 20));
        let all: Vec<Event> = (1..=900_u16).map(|seq| event(seq.into(), &"x".repeat(usize::from(seq) % 90))).collect();
        for (at, event) in all.iter().enumerate() {
            pages.add(event, 1);
            if at % 7 == 0 || at % 97 == 0 {
                keep(&mut store, pages.take_notes());
            }
            if at % 97 == 0 {
                // A restart in between: the last page is gone on with.
                let (again, events) = Pages::read(store.clone().into_iter().collect(), 1 << 20);
                assert_eq!(events, all[..=at]);
                pages = again;
            }
        }
        keep(&mut store, pages.take_notes());
        assert!(store.len() > 5 && store.values().all(|bytes| bytes.len() <= NOTE_LEN_MAX), "{}", store.len());
        assert_eq!(Pages::read(store.into_iter().collect(), 1 << 20).1, all);
    }

    #[test]
    fn old_events_are_given_up_and_so_are_those_without_room() {
        let (mut store, mut pages) = (BTreeMap::new(), Pages::new(1 << 20));
        for seq in 1..=2000_u64 {
            pages.add(&event(seq, "something"), seq.saturating_sub(500));
            if seq % 3 == 0 {
                keep(&mut store, pages.take_notes());
            }
        }
        keep(&mut store, pages.take_notes());
        let events = Pages::read(store.into_iter().collect(), 0).1;
        assert!((500..700).contains(&events.len()), "{}", events.len());
        let (mut store, mut pages) = (BTreeMap::new(), Pages::new(40_000));
        for seq in 1..=2000 {
            pages.add(&event(seq, "something"), 1);
            keep(&mut store, pages.take_notes());
            let bytes: usize = store.values().map(Vec::len).sum();
            assert!(bytes <= 40_000 + NOTE_LEN_MAX, "{bytes}");
        }
        assert_eq!(Pages::read(store.into_iter().collect(), 0).1.last().unwrap().seq, 2000);
    }

    #[test]
    fn what_is_no_event_is_left_out() {
        let mut text = serde_json::to_string(&event(5, "good")).unwrap().into_bytes();
        text.extend_from_slice(b"\n{\"event\":\"of_the_future\",\"seq\":6}\n\xff\n\n");
        let (mut pages, events) = Pages::read(vec![(5, text)], 1 << 20);
        assert_eq!(events, [event(5, "good")]);
        pages.add(&event(7, "next"), 1);
        assert_eq!(pages.take_notes().len(), 1);
    }

    #[test]
    fn a_long_event_is_told_in_short() {
        let long = event(1, &"long ".repeat(10_000));
        let ranges = vec![ByteRange { offset_bytes: 1 << 40, length_bytes: 1 << 39 }; 64];
        let lost = EventDetail::DataLost { vhd: "a".into(), disk: "d0".into(), bytes: 7, ranges };
        let lost = Event { seq: 2, time_secs: 7, severity: Severity::Error, detail: lost };
        let mut pages = Pages::new(1 << 20);
        [&long, &lost].into_iter().for_each(|event| pages.add(event, 1));
        let store = pages.take_notes().into_iter().map(|note| (note.key.number, note.bytes.unwrap())).collect();
        let events = Pages::read(store, 1 << 20).1;
        assert!(format!("{:?}", events[0]).contains("note (its details were too long to be kept)"), "{events:?}");
        let EventDetail::DataLost { vhd, disk, bytes: 7, .. } = &events[1].detail else { panic!("{events:?}") };
        assert_eq!((vhd.as_str(), disk.as_str()), ("a", "d0"));
    }

    /// Whoever hands over has little to do after many events at once.
    #[test]
    fn what_came_and_went_between_two_times_is_not_noted() {
        let mut pages = Pages::new(1 << 20);
        (1..=50_000_u64).for_each(|seq| pages.add(&event(seq, "storm"), seq.saturating_sub(1000)));
        let notes = pages.take_notes();
        assert!(notes.len() < 20 && notes.iter().all(|note| note.bytes.is_some()), "{}", notes.len());
        assert!(pages.take_notes().is_empty());
    }
}
