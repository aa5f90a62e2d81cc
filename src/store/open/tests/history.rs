use std::collections::BTreeMap;

use super::*;
use crate::metrics::history::Tier;
use crate::store::history::{HistoryRow, Part, Subject};

fn row(subject: Subject, part: Part, text: &[u8], kept: (u32, u32)) -> HistoryRow {
    let mut bytes = text.to_vec();
    bytes.extend_from_slice(&crc32c::crc32c(text).to_le_bytes());
    HistoryRow { subject, part, bytes, kept }
}

fn samples_of(vhd: u32, block: u32, text: &[u8]) -> HistoryRow {
    row(Subject::Vhd(VhdId(vhd)), Part::Samples(Tier::Minutes, block), text, (block.saturating_sub(1), block))
}

/// Opens disks, makes one commit, closes. Returns the rows that were found on the first of them.
fn commit(
    disks: &[SimDisk],
    which: &[usize],
    edits: Vec<StoreEdit>,
    rows: Vec<HistoryRow>,
) -> BTreeMap<(u32, u32), Vec<u8>> {
    let mut store = open(some(disks, which), &options(disks.len(), false)).unwrap();
    let mut found = BTreeMap::new();
    store.members().next().unwrap().1.for_each_history(|key, bytes| drop(found.insert(key, bytes.to_vec()))).unwrap();
    let stamp = Stamp { commit: 1, ..store.raise(0, 1).unwrap().stamp };
    let mut members = Direct::new(store.into_members(), disks.len());
    let steps = edits.into_iter().map(Step::Edit).chain([Step::History(rows)]).collect();
    assert!(members.apply(&Arc::new(Batch { stamp, steps })).committed);
    found
}

#[test]
fn history_goes_with_its_vhd_and_disk_and_is_of_nobody_else() {
    let disks = made(1);
    let vhds = [1, 2].map(|id| StoreEdit::PutVhd(samples::vhd(id))).to_vec();
    let disk = |disk| row(Subject::Disk(DiskId(disk)), Part::Samples(Tier::Hours, 1), b"disk", (1, 1));
    let heat = |vhd| row(Subject::Vhd(VhdId(vhd)), Part::Heat(3), b"heat", (0, 9));
    let rows =
        vec![samples_of(1, 5, b"a"), heat(1), samples_of(2, 5, b"b"), samples_of(9, 5, b"nobody"), disk(0), disk(1)];
    commit(&disks, &[0], vhds, rows.clone());
    let keys: Vec<(u32, u32)> = commit(&disks, &[0], Vec::new(), Vec::new()).into_keys().collect();
    let mut wanted: Vec<(u32, u32)> = [0, 1, 2, 4, 5].map(|at: usize| rows[at].key()).to_vec();
    wanted.sort_unstable();
    assert_eq!(keys, wanted, "VHD 9 does not exist");
    // What is not kept goes, of the same resolution only.
    commit(&disks, &[0], Vec::new(), vec![samples_of(1, 6, b"c"), samples_of(1, 7, b"d")]);
    // A VHD that has another name is the same one.
    let mut renamed = samples::vhd(2);
    renamed.name = "other".to_owned();
    let found = commit(&disks, &[0], vec![StoreEdit::DeleteVhd(VhdId(1)), StoreEdit::PutVhd(renamed)], Vec::new());
    let of_first: Vec<Part> = found.keys().filter(|(vhd, _)| *vhd == 1).map(|(_, part)| Part::of_code(*part)).collect();
    assert_eq!(of_first, [Part::Samples(Tier::Minutes, 6), Part::Samples(Tier::Minutes, 7), Part::Heat(3)]);
    let mut pool = samples::pool(POOL);
    pool.disks.retain(|disk| disk.id != DiskId(1));
    let found = commit(&disks, &[0], vec![StoreEdit::PutPool(pool)], Vec::new());
    assert!(found.keys().all(|(code, _)| Subject::of_code(*code) != Subject::Vhd(VhdId(1))), "{:?}", found.keys());
    assert!(found.contains_key(&samples_of(2, 5, b"").key()));
    let left: Vec<Subject> =
        commit(&disks, &[0], Vec::new(), Vec::new()).keys().map(|(code, _)| Subject::of_code(*code)).collect();
    assert_eq!(left, [Subject::Vhd(VhdId(2)), Subject::Disk(DiskId(0))]);
}

#[test]
fn a_member_that_was_away_gets_it_and_damage_keeps_nobody_from_opening() {
    let disks = made(3);
    let vhd = StoreEdit::PutVhd(samples::vhd(1));
    commit(&disks, &[0, 1, 2], vec![vhd], vec![samples_of(1, 5, b"old")]);
    let mut damaged = samples_of(1, 6, b"damaged");
    damaged.bytes[2] ^= 1;
    commit(&disks, &[0, 1], Vec::new(), vec![samples_of(1, 5, b"new"), damaged.clone()]);
    // The disk that was away is brought up to the others, but for what is damaged.
    let found = commit(&disks, &[0, 1, 2], Vec::new(), Vec::new());
    assert_eq!(found.len(), 2);
    let alone = open(some(&disks, &[2]), &options(3, true)).unwrap();
    let mut rows = Vec::new();
    alone.members().next().unwrap().1.for_each_history(|key, bytes| rows.push((key, bytes.to_vec()))).unwrap();
    let new = samples_of(1, 5, b"new");
    assert_eq!(rows, [(new.key(), new.bytes)]);
}
