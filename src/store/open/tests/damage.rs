//! Rows that a disk has changed: they stay where they are.

use super::*;
use crate::store::member::Copied;

const SLOT: u32 = 0x00c0_ffee;
const OTHER_SLOT: u32 = 0x00be_efee;

/// Opens all disks and commits batches, each on some of them only.
fn commit(disks: &[SimDisk], batches: &[(&[usize], Vec<Step>)]) {
    let all: Vec<usize> = (0..disks.len()).collect();
    let mut store = open(some(disks, &all), &options(disks.len(), false)).unwrap();
    let mut stamp = store.raise(0, 5).unwrap().stamp;
    let mut members = store.into_members();
    for (which, steps) in batches {
        stamp.commit += 1;
        let batch = Batch { stamp, steps: steps.clone() };
        let takes = members.iter_mut().filter(|(id, _)| which.contains(&id.index()));
        takes.for_each(|(_, member)| member.apply(&batch).unwrap());
    }
}

/// Two rows that nobody writes to any more, on all of `disks`; then a commit that only `ahead` have.
fn ahead(disks: &[SimDisk], ahead: &[usize]) {
    let all: Vec<usize> = (0..disks.len()).collect();
    let cold = vec![Step::Extents(vec![extent(1, 3, SLOT), extent(1, 64, OTHER_SLOT)])];
    let last = vec![Step::Edit(StoreEdit::PutVhd(samples::vhd(2))), Step::Extents(vec![extent(2, 3, 5)])];
    commit(disks, &[(&all[..], cold), (ahead, last)]);
}

/// The disk changes a bit in each row that has the slot.
fn rot(disk: &SimDisk, slot: u32) {
    let mut all_bytes = vec![0; PLACE.len as usize];
    disk.read_at(PLACE.offset, &mut all_bytes).unwrap();
    for (at, _) in all_bytes.windows(4).enumerate().filter(|(_, w)| *w == slot.to_le_bytes()) {
        disk.poke(PLACE.offset + at as u64, &[0]);
    }
}

fn opened(disks: &[SimDisk], which: &[usize]) -> Result<OpenStore<SimDisk>, OpenError> {
    open(some(disks, which), &options(disks.len(), false))
}

/// The disk changes a byte in each record of a VM.
fn rot_vms(disk: &SimDisk) {
    let mut all_bytes = vec![0; PLACE.len as usize];
    disk.read_at(PLACE.offset, &mut all_bytes).unwrap();
    for (at, _) in all_bytes.windows(6).enumerate().filter(|(_, w)| *w == b"labels") {
        disk.poke(PLACE.offset + at as u64, b"#");
    }
}

type Table = Vec<(u32, u32, ReplicaSet)>;

/// What a member says, read from it alone.
fn table_of(member: &Member<SimDisk>) -> Result<Table, MemberError> {
    let mut table = Vec::new();
    let show = |key: PageKey, place, row: &crate::store::page::ExtentRow| {
        table.push((key.vhd.0, key.extent(place).unwrap().0, row.replicas));
    };
    member.for_each_extent(show).map(|()| table)
}

fn expected(with_last: bool) -> Table {
    let all = [(1, 3, SLOT), (1, 64, OTHER_SLOT), (2, 3, 5)];
    let kept = &all[..if with_last { 3 } else { 2 }];
    kept.iter().map(|&(vhd, extent, slot)| (vhd, extent, ReplicaSet::single(DiskId(0), SlotIndex(slot)))).collect()
}

/// Every member that is here says the same, and the store says what they say.
fn assert_whole(store: &OpenStore<SimDisk>, members: usize, with_last: bool) {
    assert_eq!(store.members().count(), members);
    for (place, member) in store.members() {
        let table = table_of(member).unwrap_or_else(|error| panic!("{}: {error}", place.name));
        assert_eq!((table, member.state()), (expected(with_last), store.state()), "{}", place.name);
        assert_eq!(member.vhds().unwrap(), store.vhds);
    }
    assert_eq!(store.vhds.len(), usize::from(with_last));
    assert_eq!(store.state().stamp.commit, if with_last { 2 } else { 1 });
}

#[test]
fn what_the_member_that_is_ahead_has_damaged_stays_with_the_others() {
    for count in [2, 3] {
        for first in 0..count {
            let disks = made(count);
            ahead(&disks, &[first]);
            rot(&disks[first], SLOT);
            let all: Vec<usize> = (0..count).collect();
            assert_whole(&opened(&disks, &all).unwrap(), count, false);
            let found = opened(&disks, &all).unwrap();
            assert!(found.mended.is_empty() && found.failed.is_empty(), "it is settled");
        }
    }
}

#[test]
fn of_equal_members_each_gives_what_the_other_has_damaged() {
    let disks = made(3);
    ahead(&disks, &[0, 1]);
    rot(&disks[0], SLOT);
    assert_whole(&opened(&disks, &[0, 1, 2]).unwrap(), 3, true);
    assert_whole(&opened(&disks, &[0, 2]).unwrap(), 2, true);

    // Damage in different places.
    let disks = made(3);
    ahead(&disks, &[0, 1]);
    rot(&disks[0], SLOT);
    rot(&disks[1], OTHER_SLOT);
    assert_whole(&opened(&disks, &[0, 1, 2]).unwrap(), 3, true);
}

#[test]
fn a_commit_that_may_have_been_acknowledged_is_not_given_up() {
    // Two have it, both with the damage; one has it, and another may have.
    for (ahead_of, here) in [(&[0, 1][..], &[0, 1, 2][..]), (&[0, 2], &[0, 1])] {
        let disks = made(3);
        ahead(&disks, ahead_of);
        ahead_of.iter().for_each(|&i| rot(&disks[i], SLOT));
        let error = opened(&disks, here).unwrap_err();
        let OpenError::DamagedAhead { disk, source: MemberError::Page { key, .. } } = &error else { panic!("{error}") };
        assert_eq!((&disk[..], key.page), ("d0", 0));
        assert!(error.to_string().contains("metadata restore"), "{error}");
        // The good rows of the one behind are as they were.
        let behind = if ahead_of == [0, 2] { 1 } else { 2 };
        let store = open(some(&disks, &[behind]), &options(1, false)).unwrap();
        assert_eq!(table_of(store.members().next().unwrap().1).unwrap(), expected(false));
    }
}

/// As with rows: only the member that is ahead has it damaged.
#[test]
fn a_damaged_record_of_the_member_that_is_ahead_is_replaced() {
    let disks = made(3);
    let vm = vec![Step::Edit(StoreEdit::PutVm(samples::vm(1)))];
    commit(&disks, &[(&[0, 1, 2], vm), (&[0], vec![Step::Edit(StoreEdit::PutVhd(samples::vhd(2)))])]);
    rot_vms(&disks[0]);
    let store = opened(&disks, &[0, 1, 2]).unwrap();
    assert_eq!((store.members().count(), &store.vms[..], store.vhds.len()), (3, &[samples::vm(1)][..], 0));
    store.members().for_each(|(_, member)| assert_eq!(member.vms().unwrap(), store.vms));
}

#[test]
fn a_row_that_was_damaged_while_loading_is_given_back() {
    let disks = made(2);
    ahead(&disks, &[0, 1]);
    rot(&disks[0], SLOT);
    let mut store = opened(&disks, &[0, 1]).unwrap();
    store.load(|_, _, _| ()).unwrap();
    store.heal_damaged().unwrap();
    assert_whole(&store, 2, true);
    assert_eq!(store.mended[0].copied, Copied { put: 1, ..Copied::default() });
    drop(store);
    assert_whole(&opened(&disks, &[0, 1]).unwrap(), 2, true);
}

/// Its records have been read, and not those of the member that has its row.
#[test]
fn who_is_given_a_row_back_keeps_its_records() {
    let disks = made(2);
    let cold = Step::Extents(vec![extent(1, 3, SLOT)]);
    commit(&disks, &[(&[0, 1], vec![Step::Edit(StoreEdit::PutVm(samples::vm(1))), cold])]);
    rot(&disks[0], SLOT);
    rot_vms(&disks[1]);
    let mut store = opened(&disks, &[0, 1]).unwrap();
    store.load(|_, _, _| ()).unwrap();
    store.heal_damaged().unwrap();
    for (_, member) in store.members() {
        assert_eq!(table_of(member).unwrap().len(), 1);
        assert_eq!(member.vms().unwrap(), [samples::vm(1)]);
    }
}

#[test]
fn a_member_that_is_made_anew_gets_whole_rows() {
    let disks = made(3);
    ahead(&disks, &[0, 1, 2]);
    rot(&disks[0], SLOT);
    disks[2].poke(PLACE.offset, &[0; 8192]);
    assert_whole(&opened(&disks, &[0, 1, 2]).unwrap(), 3, true);
}

#[test]
fn checksums_that_no_member_has_whole_are_forgotten() {
    let word = 0x0bad_cafe;
    let mut checksums = crate::store::checksums::PageChecksums::default();
    checksums.extent_mut(5)[7] = word;
    let row = Step::Edit(StoreEdit::Checksums { vhd: VhdId(1), page: 0, checksums });
    let other = vec![Step::Edit(StoreEdit::PutVhd(samples::vhd(2)))];
    let disks = made(3);
    // Disk 2 has checksums of another time.
    let mut old = crate::store::checksums::PageChecksums::default();
    old.extent_mut(5)[7] = 1;
    let old = Step::Edit(StoreEdit::Checksums { vhd: VhdId(1), page: 0, checksums: old });
    commit(&disks, &[(&[0, 1, 2], vec![old]), (&[0, 1], vec![row]), (&[0, 1], other)]);
    rot(&disks[0], word);
    rot(&disks[1], word);
    let store = opened(&disks, &[0, 1, 2]).unwrap();
    assert_eq!(store.members().count(), 3);
    store.load_checksums(|key, _| panic!("{key:?}")).unwrap();
}
