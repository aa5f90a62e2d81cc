//! Notes: rows that nobody's data depends on, such as what happened lately, or what was measured. They are written with whatever
//! commit comes next, are not waited for, are given up if they are damaged, are not written any more once a region is half full, and
//! are not part of a dump.

use crate::base::limits::NOTE_LEN_MAX;

/// What a note is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum NoteKind {
    /// Events: see `control::events`.
    Events = 1,
    /// Up to which number events have been given theirs.
    EventNumbers = 2,
    /// What the policy remembers: see `control::policy`.
    Policy = 3,
}

impl NoteKind {
    /// Whether notes of this kind are not written where room is short.
    #[must_use]
    pub fn is_forgone(self) -> bool {
        // A few bytes, without which readers would miss events.
        self != NoteKind::EventNumbers
    }
}

/// Which note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NoteKey {
    /// What it is about.
    pub kind: NoteKind,
    /// Which one of these; what it means is for who writes it.
    pub number: u32,
}

/// A note, or that there is none any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Which one.
    pub key: NoteKey,
    /// What it says; `None`: it is deleted.
    pub bytes: Option<Vec<u8>>,
}

impl Note {
    /// A note that says this.
    ///
    /// # Panics
    /// If it is longer than [`NOTE_LEN_MAX`]: several notes are better than one that makes commits long.
    #[must_use]
    pub fn put(kind: NoteKind, number: u32, bytes: Vec<u8>) -> Note {
        assert!(bytes.len() <= NOTE_LEN_MAX, "a note of {} bytes", bytes.len());
        Note { key: NoteKey { kind, number }, bytes: Some(bytes) }
    }

    /// No such note any more.
    #[must_use]
    pub fn delete(kind: NoteKind, number: u32) -> Note {
        Note { key: NoteKey { kind, number }, bytes: None }
    }
}
