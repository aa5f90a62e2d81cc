use super::*;
use crate::store::dump::{dump, restore_into};
use crate::store::note::{Note, NoteKind};

fn notes(disks: &[SimDisk], which: &[usize]) -> Vec<(u32, Vec<u8>)> {
    open(some(disks, which), &options(disks.len(), false)).unwrap().notes(NoteKind::Events).unwrap()
}

fn put(number: u32, text: &str) -> StoreEdit {
    StoreEdit::Note(Note::put(NoteKind::Events, number, text.as_bytes().to_vec()))
}

fn said(texts: &[(u32, &str)]) -> Vec<(u32, Vec<u8>)> {
    texts.iter().map(|(number, text)| (*number, text.as_bytes().to_vec())).collect()
}

#[test]
fn notes_are_found_again_and_brought_to_the_disk_that_was_away() {
    let disks = made(3);
    assert_eq!(notes(&disks, &[0, 1, 2]), []);
    edit_jobs(&disks, &[0, 1, 2], vec![put(2, "two"), put(1, "one"), put(u32::MAX, "last")]);
    assert_eq!(notes(&disks, &[1, 2]), said(&[(1, "one"), (2, "two"), (u32::MAX, "last")]));
    let deleted = StoreEdit::Note(Note::delete(NoteKind::Events, 1));
    edit_jobs(&disks, &[0, 1], vec![deleted, put(2, "again")]);
    assert_eq!(notes(&disks, &[0, 1, 2]), said(&[(2, "again"), (u32::MAX, "last")]));
    assert_eq!(notes(&disks, &[1, 2]), said(&[(2, "again"), (u32::MAX, "last")]));
}

#[test]
fn what_is_wanted_of_the_policy_is_found_again_and_dumped_and_restored() {
    let disks = made(3);
    let policy = |which: &[usize]| open(some(&disks, which), &options(3, false)).unwrap().policy;
    assert_eq!(policy(&[0, 1, 2]), None);
    edit_jobs(&disks, &[0, 1], vec![StoreEdit::PutPolicy("{\"space\":0.7}".to_owned())]);
    assert_eq!(policy(&[0, 1, 2]).as_deref(), Some("{\"space\":0.7}"));
    assert_eq!(policy(&[1, 2]).as_deref(), Some("{\"space\":0.7}"), "the one that was away has it, too");
    let text = dump(open(some(&disks, &[0, 1, 2]), &options(3, false)).unwrap().members().next().unwrap().1).unwrap();
    assert!(text.contains("{\"policy\":{\"space\":0.7}}\n"), "{text}");
    let mut members = create(some(&self::disks(1), &[0]), &samples::pool(POOL), 1).unwrap().into_members();
    restore_into(text.as_bytes(), &mut members).unwrap();
    assert_eq!(members[0].1.policy().unwrap().as_deref(), Some("{\"space\":0.7}"));
}

/// The pool opens all the same, and the rest of them are there.
#[test]
fn a_damaged_note_is_forgotten() {
    let disks = made(1);
    let text = "a text that is found on the disk";
    edit_jobs(&disks, &[0], vec![put(1, "whole"), put(2, text)]);
    let mut region = vec![0; usize::try_from(PLACE.len).unwrap()];
    disks[0].read(PLACE.offset, &mut region).unwrap();
    let places = region.windows(text.len()).enumerate().filter(|(_, bytes)| *bytes == text.as_bytes());
    let places: Vec<usize> = places.map(|(at, _)| at).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|at| disks[0].poke(PLACE.offset + at as u64, b"A"));
    assert_eq!(notes(&disks, &[0]), said(&[(1, "whole")]));
}
