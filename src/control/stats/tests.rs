use super::*;
use crate::base::ids::ReactorId;
use crate::base::units::{ExtentIndex, Geometry};
use crate::metrics::IoKind;
use crate::owner::command::Space;
use crate::placement::record::{Accept, DiskRecord, Layout, RECORD_VERSION, WhenFull};
use crate::placement::view::VhdMap;
use crate::shared::{DiskState, VhdSettings};

const SECOND: u64 = 1_000_000_000;
pub const T0: u64 = 1_800_000_000;

pub fn vhd(id: u32, extents: u32) -> VhdInfo {
    let record = VhdRecord {
        version: RECORD_VERSION,
        id: VhdId(id),
        name: format!("v{id}"),
        uuid: uuid::Uuid::from_u128(u128::from(id)),
        size: u64::from(extents) << 20,
        layout: Layout::Isolated { disk: DiskId(0), chosen: false },
        replicas: 1,
        thick: false,
        checksums: false,
        read_only: false,
        block_size: 512,
        queues: 1,
        vm: None,
        socket_owner: None,
        socket_mode: 0o660,
        when_full: WhenFull::Error,
        expand: None,
        limits: crate::placement::limits::IoLimits::default(),
        sharing: Default::default(),
        capacity: Default::default(),
        created: 0,
        writeback: true,
    };
    let settings = VhdSettings {
        id: record.id,
        uuid: record.uuid,
        geometry: Geometry::new(1 << 20).unwrap(),
        block_size: 512,
        read_only: false,
        thick: false,
        checksums: false,
    };
    let state = Arc::new(VhdState::new(settings, record.size, VhdMap::new(extents), 1));
    VhdInfo {
        record,
        state,
        attached: None,
        ready: true,
        slots: BTreeMap::new(),
        allocated: 5 << 20,
        sharing: Default::default(),
        capacity: Default::default(),
        growth: Default::default(),
    }
}

pub fn disk(id: u8) -> DiskInfo {
    let name = format!("d{id}");
    let record = DiskRecord {
        id: DiskId(id),
        uuid: uuid::Uuid::from_u128(u128::from(id)),
        name: name.clone(),
        slots: 100,
        data_offset: 1 << 20,
        accept: Accept::Any,
        failure_domain: name.clone(),
    };
    let state = Arc::new(DiskState::new(DiskId(id), name, 1 << 20, 100, 512, 512));
    let space = Space { allocated: 7 << 20, ..Space::default() };
    DiskInfo { record, state, space, vhds: Vec::new(), errors: 0, suspicion: None, shares_domain_with: Vec::new() }
}

fn work(vhd: &VhdInfo, disk: &DiskInfo) {
    let metrics = vhd.state.metrics.of(ReactorId(0));
    for at in 0..1000 {
        metrics.record(IoKind::Read, 4096, 100_000, true);
        metrics.transfers(IoKind::Read).unwrap().begun(at * 4096, 4096);
        disk.state.metrics.of(ReactorId(0)).record(IoKind::Read, 4096, 90_000, true);
    }
    disk.state.scrub_work.read(1 << 20);
    for extent in 0..3 {
        vhd.state.map.heat_up(ExtentIndex(extent * 20_000), Window::at(clock::now().0));
    }
}

fn stored(book: &StatsBook, vhds: &[VhdInfo], region_len: u64) -> Vec<HistoryRow> {
    book.rows(vhds, region_len, |_| Due { samples: true, quiet: true, heat: true })
}

/// What comes back after a restart, as [`StatsBook::load`] takes it.
fn reloaded(rows: &[HistoryRow], vhds: &[VhdInfo]) -> StatsBook {
    let book = StatsBook::default();
    let states: HashMap<VhdId, &Arc<VhdState>> = vhds.iter().map(|vhd| (vhd.record.id, &vhd.state)).collect();
    let mut sorted: Vec<_> = rows.iter().map(|row| (row.key(), &row.bytes)).collect();
    sorted.sort();
    sorted.into_iter().for_each(|(key, bytes)| book.take_row(&states, key, bytes));
    book
}

#[test]
fn a_restart_forgets_neither_samples_nor_heat() {
    let (vhds, disks) = ([vhd(1, 50_000)], [disk(0)]);
    let book = StatsBook::default();
    for tick in 0..=6 {
        book.record(&vhds, &disks, Nanos(tick * 10 * SECOND), T0 + tick * 10);
        work(&vhds[0], &disks[0]);
    }
    let rows = stored(&book, &vhds, 1 << 30);
    assert_eq!(rows.iter().filter(|row| matches!(row.part, Part::Heat(_))).count(), 3);
    assert!(stored(&book, &vhds, 1 << 30).is_empty(), "nothing has changed since");
    let next = [vhd(1, 50_000)];
    let again = reloaded(&rows, &next);
    for subject in [Subject::Vhd(VhdId(1)), Subject::Disk(DiskId(0))] {
        let summary = again.window(subject, T0, T0 + 60).unwrap();
        assert_eq!(Some(&summary), book.window(subject, T0, T0 + 60).as_ref());
        assert!((summary.reads_per_sec - 100.0).abs() < 1.0, "{summary:?}");
        assert!((summary.covered_secs - 60.0).abs() < 0.1, "{summary:?}");
    }
    let of_disk = again.window(Subject::Disk(DiskId(0)), T0, T0 + 60).unwrap();
    assert!((of_disk.background_bytes_per_sec - f64::from(1 << 20) / 10.0).abs() < 500.0, "{of_disk:?}");
    assert!((of_disk.used_bytes - f64::from(7 << 20)).abs() < 8192.0);
    let heat = |extent| next[0].state.map.heat(ExtentIndex(extent), Window::at(clock::now().0));
    assert_eq!([0, 20_000, 40_000, 1].map(heat), [4, 4, 4, 0], "seven, as a power of two");
    assert!(stored(&again, &next, 1 << 30).is_empty(), "what was stored is not stored again");
    assert_eq!(again.samples(Subject::Vhd(VhdId(1)), None, T0, T0 + 60).len(), 6);
}

#[test]
fn what_is_damaged_or_of_nobody_is_left_out() {
    let (vhds, disks) = ([vhd(1, 100), vhd(2, 100)], [disk(0)]);
    let book = StatsBook::default();
    for tick in 0..=6 {
        book.record(&vhds, &disks, Nanos(tick * 10 * SECOND), T0 + tick * 10);
        vhds.iter().for_each(work_small);
    }
    let mut rows = stored(&book, &vhds, 1 << 30);
    rows.iter_mut().filter(|row| row.subject == Subject::Vhd(VhdId(2))).for_each(|row| row.bytes[6] ^= 1);
    let again = reloaded(&rows, &vhds[..2]);
    assert!(again.window(Subject::Vhd(VhdId(1)), T0, T0 + 60).unwrap().covered_secs > 50.0);
    assert!(again.window(Subject::Vhd(VhdId(2)), T0, T0 + 60).unwrap().covered_secs < 1.0);
    let only = reloaded(&rows, &vhds[..1]);
    assert_eq!(only.window(Subject::Vhd(VhdId(2)), T0, T0 + 60), None, "it has been deleted");
    // And so it is once a daemon sees that it is gone.
    book.record(&vhds[..1], &disks, Nanos(70 * SECOND), T0 + 70);
    assert_eq!(book.window(Subject::Vhd(VhdId(2)), T0, T0 + 60), None);
}

fn work_small(vhd: &VhdInfo) {
    vhd.state.metrics.of(ReactorId(0)).record(IoKind::Write, 512, 1000, true);
    vhd.state.map.heat_up(ExtentIndex(9), Window::at(clock::now().0));
}

#[test]
fn a_small_region_keeps_less() {
    let (vhds, disks) = ([vhd(1, 50_000)], [disk(0)]);
    let book = StatsBook::default();
    for tick in 0..5000 {
        book.record(&vhds, &disks, Nanos(tick * 300 * SECOND), T0 + tick * 300);
        work_small(&vhds[0]);
        vhds[0].state.metrics.of(ReactorId(0)).record(IoKind::Read, tick * 512, tick * 1_000_000, true);
    }
    let bytes = |rows: &[HistoryRow]| rows.iter().map(|row| row.bytes.len() as u64).sum::<u64>();
    let small = 64 << 10;
    let rows = stored(&book, &vhds, small);
    assert!(!rows.is_empty() && bytes(&rows) <= small / HISTORY_REGION_SHARE, "{} bytes", bytes(&rows));
    assert!(stored(&StatsBook::default(), &vhds, small).is_empty());
}

#[test]
fn where_nothing_happens_nothing_is_stored_and_samples_say_so() {
    let (vhds, disks) = ([vhd(1, 100), vhd(2, 100)], [disk(0)]);
    let book = StatsBook::default();
    let record = |tick: u64| book.record(&vhds, &disks, Nanos(tick * 10 * SECOND), T0 + tick * 10);
    let due = |quiet| move |_| Due { samples: true, quiet, heat: false };
    (0..3).for_each(record);
    assert_eq!(book.stirs(), 0);
    assert!(book.rows(&vhds, 1 << 30, due(false)).is_empty());
    work_small(&vhds[1]);
    (3..5).for_each(record);
    assert_eq!(book.stirs(), 1);
    let rows = book.rows(&vhds, 1 << 30, due(false));
    assert!(!rows.is_empty() && rows.iter().all(|row| row.subject == Subject::Vhd(VhdId(2))));
    // What the store writes for itself, this history too, is no reason to write more of it.
    disks[0].state.metadata_work.written(4096);
    (5..7).for_each(record);
    assert_eq!(book.stirs(), 1);
    assert!(book.rows(&vhds, 1 << 30, due(false)).is_empty());
    for subject in [Subject::Vhd(VhdId(1)), Subject::Vhd(VhdId(2)), Subject::Disk(DiskId(0))] {
        let known = book.window(subject, T0, T0 + 60).unwrap();
        assert!((known.covered_secs - 60.0).abs() < 0.1, "{subject:?}: {known:?}");
    }
    let of_disk = book.window(Subject::Disk(DiskId(0)), T0, T0 + 60).unwrap();
    assert!(of_disk.background_bytes_per_sec > 60.0, "it is told all the same: {of_disk:?}");
    let rows = book.rows(&vhds, 1 << 30, due(true));
    let subjects: HashSet<Subject> = rows.iter().map(|row| row.subject).collect();
    assert_eq!(subjects.len(), 3, "now and then all is stored");
    // Its working set is of a window, and ends with it.
    let later = 10 * 300 * SECOND;
    book.record(&vhds, &disks, Nanos(later), T0 + 3000);
    book.record(&vhds, &disks, Nanos(later + 300 * SECOND), T0 + 3300);
    assert!(book.window(Subject::Vhd(VhdId(2)), T0 + 3100, T0 + 3300).unwrap().working_set_extents < 0.1);
}

#[test]
fn what_is_put_off_while_nothing_happens_is_there_for_whoever_looks_and_is_stored() {
    let (vhds, disks) = ([vhd(1, 1000), vhd(2, 1000)], [disk(0)]);
    let book = StatsBook::default();
    let subject = Subject::Vhd(VhdId(1));
    let record = |tick: u64| book.record(&vhds, &disks, Nanos(tick * 10 * SECOND), T0 + tick * 10);
    let read_from = |vhd: &VhdInfo| vhd.state.metrics.of(ReactorId(0)).record(IoKind::Read, 4096, 100_000, true);
    let put_off = || book.subjects().put_off.len();
    record(0);
    read_from(&vhds[0]);
    (1..=10).for_each(record);
    assert_eq!(put_off(), 9, "once something had happened");
    let samples = book.samples(subject, Some(Tier::Seconds), T0, T0 + 100);
    let reads: Vec<bool> = samples.iter().map(|sample| sample.reads_per_sec > 0.0).collect();
    assert_eq!(reads, [true, false, false, false, false, false, false, false, false, false]);
    assert_eq!(put_off(), 0);
    (11..=20).for_each(record);
    read_from(&vhds[1]);
    record(21);
    assert_eq!(put_off(), 0);
    let covered = |book: &StatsBook, to: u64| book.window(subject, T0, T0 + to).unwrap().covered_secs;
    assert!((covered(&book, 210) - 210.0).abs() < 0.1);
    let later = |_: Subject| Due { samples: true, quiet: false, heat: false };
    assert!(!book.rows(&vhds, 1 << 30, later).is_empty());
    (22..=40).for_each(record);
    assert!(book.rows(&vhds, 1 << 30, later).is_empty());
    assert_eq!(put_off(), 19, "nobody wants to have it stored");
    let again = reloaded(&stored(&book, &vhds, 1 << 30), &vhds);
    assert!((covered(&again, 400) - 400.0).abs() < 0.1);
    (41..=90).for_each(record);
    assert!((1..=PUT_OFF_MAX).contains(&put_off()));
    book.record(&vhds[1..], &disks, Nanos(910 * SECOND), T0 + 910);
    assert_eq!(put_off(), 0);
    assert!(book.window(subject, T0, T0 + 910).is_none(), "it is gone");
}
