//! Tables of another time than what is on the disks.

use super::*;
use crate::placement::{Replica, ReplicaState};

/// An extent with a replica on each of the first disks.
pub(super) fn on_disks(vhd: u32, index: u32, replicas: u8) -> ExtentEdit {
    let mut set = ReplicaSet::ABSENT;
    for disk in 0..replicas {
        set.push(Replica { disk: DiskId(disk), slot: SlotIndex(index), state: ReplicaState::InSync });
    }
    ExtentEdit { replicas: Some(set), ..extent(vhd, index, index) }
}

/// Pages with a write intent, as every member has them.
pub(super) fn intents(store: &OpenStore<SimDisk>) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    store.load_with_intents(|_, _, _| (), |key| found.push((key.vhd.0, key.page))).unwrap();
    for (place, member) in store.members() {
        let mut own = Vec::new();
        let show = |key: PageKey, bytes: &[u8]| {
            own.extend(crate::store::page::intends(bytes).then_some((key.vhd.0, key.page)));
            Ok(())
        };
        member.for_each_row(show).unwrap();
        assert_eq!(own, found, "{}", place.name);
    }
    found
}

fn commit(disks: &[SimDisk], steps: Vec<Step>) {
    let all: Vec<usize> = (0..disks.len()).collect();
    let mut store = open(some(disks, &all), &options(disks.len(), false)).unwrap();
    let stamp = Stamp { commit: 1, ..store.raise(0, 1).unwrap().stamp };
    assert!(Direct::new(store.into_members(), disks.len()).apply(&Arc::new(Batch { stamp, steps })).committed);
}

#[test]
fn a_stale_table_is_opened_with_its_replicas_in_doubt() {
    let disks = made(3);
    let mut edits: Vec<ExtentEdit> = (0..600).map(|page| on_disks(1, page * 64 + 5, 2)).collect();
    edits.extend([on_disks(2, 0, 1), on_disks(2, 64, 1), on_disks(2, 65, 3), on_disks(3, 1, 1)]);
    commit(&disks, vec![Step::Extents(edits)]);
    let open_with = |which: &[usize], accept_stale| open(some(&disks, which), &options(3, accept_stale)).unwrap();
    assert_eq!(intents(&open_with(&[0, 1, 2], false)), []);
    // To look at it changes nothing.
    assert_eq!(intents(&look(some(&disks, &[1]), &options(3, true)).unwrap()), []);
    let before = open_with(&[0, 1], false).state();
    let stale = open_with(&[1], true);
    assert_eq!(intents(&stale), (0..600).map(|page| (1, page)).chain([(2, 1)]).collect::<Vec<_>>());
    assert_eq!(stale.state(), before, "it does not look newer than what the others have");
    drop(stale);
    assert_eq!(intents(&open_with(&[1], true)).len(), 601, "they are durable");
    // It was not served: when the others are back they have the table, and nobody takes it that all have the intents.
    assert_eq!(intents(&open_with(&[0, 1, 2], false)), []);
    let mut stale = open_with(&[1], true);
    stale.raise(0, 7).unwrap();
    drop(stale);
    assert_eq!(intents(&open_with(&[0, 1, 2], false)).len(), 601, "it was served");
}
