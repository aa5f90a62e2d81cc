//! What the policy remembers, as notes of the placement store. Pure.
//!
//! A note is short, and notes that are handed over together may come into different commits. So each part says to which edition it
//! belongs and how many parts that has, and editions take turns in two places: the last whole one counts.

use std::collections::BTreeMap;

use crate::base::limits::NOTE_LEN_MAX;
use crate::store::note::{Note, NoteKind};

/// Edition (8), parts (4).
const HEAD: usize = 12;

/// Parts that an edition may have.
const PARTS_MAX: u32 = 4096;

/// The notes of an edition; nothing if it is too long to be kept.
#[must_use]
pub fn notes_of(edition: u64, bytes: &[u8]) -> Vec<Note> {
    let parts: Vec<&[u8]> = bytes.chunks(NOTE_LEN_MAX - HEAD).collect();
    let Ok(count) = u32::try_from(parts.len()) else { return Vec::new() };
    if count > PARTS_MAX {
        return Vec::new();
    }
    let first = place_of(edition);
    let note = |(number, part): (u32, &[u8])| {
        let mut note = Vec::with_capacity(HEAD + part.len());
        note.extend_from_slice(&edition.to_le_bytes());
        note.extend_from_slice(&count.to_le_bytes());
        note.extend_from_slice(part);
        Note::put(NoteKind::Policy, first + number, note)
    };
    (0..).zip(parts).map(note).collect()
}

fn place_of(edition: u64) -> u32 {
    if edition.is_multiple_of(2) { 0 } else { PARTS_MAX }
}

/// The last edition that is whole, with its number.
#[must_use]
pub fn last_of(notes: Vec<(u32, Vec<u8>)>) -> Option<(u64, Vec<u8>)> {
    let mut editions: BTreeMap<u64, (u32, Vec<Vec<u8>>)> = BTreeMap::new();
    for (number, note) in notes {
        let Some((head, part)) = note.split_first_chunk::<HEAD>() else { continue };
        let edition = u64::from_le_bytes(head[..8].try_into().expect("8 bytes"));
        let count = u32::from_le_bytes(head[8..].try_into().expect("4 bytes"));
        let (parts, found) = editions.entry(edition).or_default();
        // What is left of a longer one of its place comes after it, and is of another edition.
        if u32::try_from(found.len()).is_ok_and(|place| place_of(edition) + place == number) {
            *parts = count;
            found.push(part.to_vec());
        }
    }
    let is_whole = |(count, parts): &(u32, Vec<Vec<u8>>)| u32::try_from(parts.len()) == Ok(*count);
    editions.into_iter().rfind(|(_, edition)| is_whole(edition)).map(|(edition, (_, parts))| (edition, parts.concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &mut BTreeMap<u32, Vec<u8>>, notes: impl IntoIterator<Item = Note>) {
        notes.into_iter().for_each(|note| drop(store.insert(note.key.number, note.bytes.unwrap())));
    }

    fn read(store: &BTreeMap<u32, Vec<u8>>) -> Option<(u64, Vec<u8>)> {
        last_of(store.clone().into_iter().collect())
    }

    #[test]
    fn the_last_whole_edition_counts() {
        let mut store = BTreeMap::new();
        assert_eq!(read(&store), None);
        let texts: Vec<Vec<u8>> = [30_000, 50_000, 100, 20_000, 0].map(|len| vec![7; len]).to_vec();
        let mut last: Option<(u64, Vec<u8>)> = None;
        for (edition, text) in (1..).zip(&texts) {
            let notes = notes_of(edition, text);
            // Cut off anywhere, the one before is still there.
            for some in 0..notes.len() {
                let mut cut = store.clone();
                put(&mut cut, notes[..some].iter().cloned());
                assert_eq!(read(&cut), last, "edition {edition}, {some} parts");
            }
            put(&mut store, notes);
            if !text.is_empty() {
                last = Some((edition, text.clone()));
            }
            assert_eq!(read(&store), last, "edition {edition}");
        }
    }

    #[test]
    fn what_is_damaged_is_not_believed() {
        let mut store = BTreeMap::new();
        put(&mut store, notes_of(4, &[1; 20_000]));
        store.remove(&1);
        store.insert(9, vec![1, 2, 3]);
        assert_eq!(read(&store), None);
    }
}
