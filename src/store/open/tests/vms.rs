use super::*;
use crate::base::ids::VmId;
use crate::placement::vm::VmRecord;
use crate::store::dump::{RestoreError, dump, restore_into};

/// Opens disks, makes one commit, closes. Returns the VMs that were found.
fn edit_vms(disks: &[SimDisk], which: &[usize], rows: Vec<StoreEdit>) -> (Vec<VmRecord>, Vec<Mended>) {
    let store = open(some(disks, which), &options(disks.len(), false)).unwrap();
    let found = (store.vms.clone(), store.mended.clone());
    drop(store);
    edit_jobs(disks, which, rows);
    found
}

fn put(id: u32) -> StoreEdit {
    StoreEdit::PutVm(samples::vm(id))
}

#[test]
fn vms_are_found_again_and_brought_to_the_disk_that_was_away() {
    let disks = made(3);
    assert_eq!(edit_vms(&disks, &[0, 1, 2], vec![put(2), put(1)]).0, []);
    let labelled = VmRecord { owner: Some("ops".to_owned()), ..samples::vm(1) };
    // VMs have numbers of their own.
    let rows = vec![
        put(3),
        StoreEdit::DeleteVm(VmId(2)),
        StoreEdit::PutVm(labelled.clone()),
        StoreEdit::PutJob(samples::job(3)),
        StoreEdit::PutVhd(samples::vhd(1)),
        StoreEdit::DeleteVm(VmId(7)),
    ];
    assert_eq!(edit_vms(&disks, &[0, 1], rows).0, [1, 2].map(samples::vm));
    let all = [labelled, samples::vm(3)];
    let (vms, mended) =
        edit_vms(&disks, &[0, 1, 2], vec![StoreEdit::DeleteVhd(VhdId(1)), StoreEdit::DeleteJob(JobId(3))]);
    assert_eq!((&vms[..], mended.len()), (&all[..], 1));
    assert_eq!(edit_vms(&disks, &[1, 2], Vec::new()).0, all);
    // A region that is made anew has them, too.
    disks[0].poke(PLACE.offset, &[0; 8192]);
    assert!(edit_vms(&disks, &[0, 1, 2], Vec::new()).1[0].rebuilt);
    assert_eq!(edit_vms(&disks, &[0, 1], Vec::new()).0, all);
}

#[test]
fn vms_are_dumped_and_restored() {
    let disks = made(1);
    let mut pool = samples::pool(POOL);
    pool.next_vm_id = VmId(10);
    let vhd = StoreEdit::PutVhd(samples::vhd(1));
    edit_vms(&disks, &[0], vec![vhd, put(9), put(2), StoreEdit::PutPool(pool.clone())]);
    let text = dump(open(some(&disks, &[0]), &options(1, false)).unwrap().members().next().unwrap().1).unwrap();
    assert!(text.contains("{\"vm\":{\"version\":1,\"id\":2,"), "{text}");
    assert!(text.ends_with("{\"end\":{\"vhds\":1,\"vms\":2,\"pages\":0}}\n"), "{text}");
    let restored = |text: &str| {
        let store = create(some(&self::disks(1), &[0]), &samples::pool(POOL), 1).unwrap();
        let mut members = store.into_members();
        restore_into(text.as_bytes(), &mut members).map(|pool| (pool, members))
    };
    let (found, members) = restored(&text).unwrap();
    assert_eq!((found, members[0].1.vms().unwrap()), (pool, [2, 9].map(samples::vm).to_vec()));
    assert_eq!(dump(&members[0].1).unwrap(), text);
    let without: String = text.lines().filter(|line| !line.contains("\"vm9\"")).map(|l| format!("{l}\n")).collect();
    assert!(matches!(restored(&without).unwrap_err(), RestoreError::CutOff));
    let newer = text.replace("{\"vm\":{\"version\":1", "{\"vm\":{\"version\":2");
    assert!(matches!(restored(&newer).unwrap_err(), RestoreError::Record(_)));
    let unknown = text.replace("\"created\":5", "\"made\":5");
    assert!(matches!(restored(&unknown).unwrap_err(), RestoreError::Line { line: 3, .. }));
}

#[test]
fn an_edit_of_a_vm_counts_rows_by_its_labels() {
    let with = |labels: usize| {
        let labels = (0..labels).map(|i| (format!("k{i}"), "x".to_owned())).collect();
        StoreEdit::PutVm(VmRecord { labels, ..samples::vm(1) }).rows()
    };
    assert_eq!((with(0), with(3), with(32), StoreEdit::DeleteVm(VmId(1)).rows()), (1, 1, 9, 1));
}
