use std::sync::mpsc;

use super::*;
use crate::base::ids::ReactorId;
use crate::base::limits::NOTES_PER_COMMIT_MAX;
use crate::base::units::{BlockMask, ExtentIndex, Generation, Geometry, SlotIndex};
use crate::disk::sim::{Fault, FaultKind, OpKind, SimDisk};
use crate::placement::ReplicaSet;
use crate::placement::view::VhdMap;
use crate::shared::VhdSettings;
use crate::store::change::ChangeKind;
use crate::store::edit::EditFailed;
use crate::store::member::tests::samples;
use crate::store::mirror::threads::MemberThreads;
use crate::store::note::NoteKind;
use crate::store::open::{self, MemberPlace, OpenOptions};
use crate::store::region::{REGION_LEN_MIN, RegionPlace};

const POOL: uuid::Uuid = uuid::Uuid::from_u128(7);

enum Told {
    Durable(Stamp),
    Committed(u64, bool),
    Report(StoreReport),
}

struct Tell(mpsc::Sender<Told>);

impl Replies for Tell {
    fn durable(&mut self, stamp: Stamp) {
        let _ = self.0.send(Told::Durable(stamp));
    }

    fn committed(&mut self, request: CommitRequest, ok: bool) {
        let _ = self.0.send(Told::Committed(request.ticket, ok));
    }

    fn report(&mut self, report: StoreReport) {
        let _ = self.0.send(Told::Report(report));
    }
}

struct World {
    disk: SimDisk,
    store: StoreHandle,
    thread: JoinHandle<()>,
    told: mpsc::Receiver<Told>,
    vhd: Arc<VhdState>,
    state: Arc<DiskState>,
}

fn places(disk: &SimDisk) -> Vec<MemberPlace<SimDisk>> {
    let place = RegionPlace { offset: 0, len: REGION_LEN_MIN };
    vec![MemberPlace { id: DiskId(0), name: "d0".to_owned(), disk: Arc::new(disk.clone()), place }]
}

impl World {
    fn new() -> World {
        let disk = SimDisk::new(REGION_LEN_MIN, 512);
        let opened = open::create(places(&disk), &samples::pool(POOL), 1).unwrap();
        let committer = Committer::new(opened.state().stamp, REGION_LEN_MIN);
        let members = MemberThreads::start(opened.into_members(), 1).unwrap();
        let (tell, told) = mpsc::channel();
        let (store, thread) = start(committer, members, Tell(tell)).unwrap();
        let settings = VhdSettings {
            id: VhdId(1),
            uuid: uuid::Uuid::nil(),
            geometry: Geometry::new(1 << 20).unwrap(),
            block_size: 512,
            read_only: false,
            thick: false,
            checksums: false,
        };
        let vhd = Arc::new(VhdState::new(settings, 1 << 30, VhdMap::new(1024), 1));
        let state = Arc::new(DiskState::new(DiskId(0), "d0".to_owned(), 0, 1000, 512, 512));
        store.open_vhd(&vhd);
        store.add_disk(&state);
        World { disk, store, thread, told, vhd, state }
    }

    fn write(&self, extent: u32) {
        let kind = ChangeKind::Written {
            replicas: ReplicaSet::single(DiskId(0), SlotIndex(extent)),
            blocks: BlockMask(1),
            needs: [Some(self.state.sync_needed()), None, None, None],
        };
        self.hand_over(extent, 2, kind);
    }

    fn hand_over(&self, extent: u32, generation: u32, kind: ChangeKind) {
        self.vhd.change_handed_over();
        let change = Change { vhd: VhdId(1), extent: ExtentIndex(extent), generation: Generation(generation), kind };
        self.store.change(change);
    }

    fn sync(&self) {
        let number = self.state.begin_sync();
        self.state.sync_succeeded(number);
    }

    fn flush(&self, ticket: u64) -> bool {
        self.store.commit(CommitRequest { reactor: ReactorId(0), ticket });
        loop {
            if let Told::Committed(answered, ok) = self.next() {
                assert_eq!(answered, ticket);
                return ok;
            }
        }
    }

    fn next(&self) -> Told {
        self.told.recv_timeout(Duration::from_secs(20)).expect("an answer")
    }

    /// The next report that is not about the fill.
    fn report(&self) -> StoreReport {
        loop {
            match self.next() {
                Told::Report(StoreReport::Fill { .. }) | Told::Durable(_) => {}
                Told::Report(report) => return report,
                Told::Committed(..) => panic!("nobody asked"),
            }
        }
    }

    fn stop(self) -> usize {
        self.store.stop();
        self.thread.join().unwrap();
        let options = OpenOptions { pool: POOL, total: 1, accept_stale: false, tuning: Default::default() };
        let mut extents = 0;
        open::open(places(&self.disk), &options)
            .unwrap()
            .load(|_, _, extent| extents += usize::from(!extent.present.is_empty()))
            .unwrap();
        extents
    }
}

#[test]
fn a_flush_finds_nothing_pending_when_it_is_answered() {
    let world = World::new();
    for round in 0..20 {
        (0..10).for_each(|i| world.write(round * 10 + i));
        world.sync();
        assert!(world.flush(u64::from(round)));
        assert!(!world.vhd.has_pending_changes());
    }
    assert!(world.store.status().stamp.commit >= 20);
    assert_eq!(world.stop(), 200);
}

#[test]
fn what_is_not_synced_stays_pending_until_it_is_and_needs_no_flush() {
    let world = World::new();
    world.write(1);
    assert!(world.flush(1));
    assert!(world.vhd.has_pending_changes());
    world.sync();
    let deadline = clock::now().after(Duration::from_secs(20));
    while world.vhd.has_pending_changes() && clock::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!world.vhd.has_pending_changes());
    assert_eq!(world.stop(), 1);
}

#[test]
fn what_comes_after_a_quiet_time_needs_no_flush_and_waits_for_others() {
    let world = World::new();
    for round in 0..2 {
        std::thread::sleep(Duration::from_millis(STORE_COMMIT_INTERVAL_MILLIS + 200));
        let (before, begun) = (world.store.status().stamp.commit, clock::now());
        for extent in 0..4 {
            world.write(round * 4 + extent);
            world.sync();
        }
        let in_time = !is_past(begun.after(Duration::from_millis(STORE_COMMIT_INTERVAL_MILLIS / 2)));
        let deadline = clock::now().after(Duration::from_secs(20));
        while world.vhd.has_pending_changes() && clock::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!world.vhd.has_pending_changes());
        // The status is renewed a moment later, but before anybody is answered.
        assert!(world.flush(u64::from(round)));
        // On a machine that was busy with something else they may have come one by one.
        if in_time {
            assert_eq!(world.store.status().stamp.commit, before + 1, "one commit for all");
        }
    }
    assert_eq!(world.stop(), 8);
}

#[test]
fn slots_and_edits_are_reported_and_a_dump_shows_them() {
    let world = World::new();
    let freed = ReplicaSet::single(DiskId(0), SlotIndex(5));
    world.hand_over(5, 4, ChangeKind::Freed { freed });
    world.store.commit_soon();
    assert_eq!(world.report(), StoreReport::Freed { slots: vec![(DiskId(0), SlotIndex(5))] });
    world.store.edit(EditId(3), vec![StoreEdit::PutVhd(samples::vhd(9))]);
    assert_eq!(world.report(), StoreReport::EditDone { edit: EditId(3), result: Ok(()) });
    assert!(world.store.dump().unwrap().contains("\"name\":\"vhd9\""));
    world.stop();
}

#[test]
fn a_store_that_failed_answers_no() {
    let world = World::new();
    world.write(1);
    world.sync();
    world.disk.inject(Fault::always(OpKind::Sync, FaultKind::Error(libc::EIO)));
    assert!(!world.flush(1));
    assert!(world.vhd.has_pending_changes() && world.store.status().failed);
    assert!(world.state.is_failed(), "the store's sync failed: nobody may trust another");
    assert!(world.store.dump().is_err());
    world.store.edit(EditId(1), vec![]);
    assert_eq!(world.report(), StoreReport::EditDone { edit: EditId(1), result: Err(EditFailed) });
    world.disk.clear_faults();
    assert_eq!(world.stop(), 0);
}

/// The labels may have either of two memberships: whoever tries again changes nothing of the rule that covers both.
#[test]
fn a_refused_change_leaves_the_undecided_one_as_it_is() {
    use crate::base::ids::DiskSet;
    use crate::store::mirror::threads::change::{ChangeError, Joiner};
    let world = World::new();
    let other = Arc::new(SimDisk::new(REGION_LEN_MIN, 512));
    let place = RegionPlace { offset: 0, len: REGION_LEN_MIN };
    let join = || world.store.join(|filled| Joiner::new(DiskId(1), Arc::clone(&other), place, POOL, filled));
    join().unwrap();
    let both: DiskSet = [DiskId(0), DiskId(1)].into_iter().collect();
    world.store.propose(both).unwrap();
    assert!(matches!(world.store.propose([DiskId(0)].into_iter().collect()), Err(ChangeError::Unfinished)));
    assert!(matches!(join(), Err(ChangeError::Unfinished)));
    assert_eq!(world.store.status().members.len(), 2, "commits need both");
    world.store.stop();
    world.thread.join().unwrap();
}

#[test]
fn how_far_the_store_is_durable_is_told_before_anybody_is_answered() {
    let world = World::new();
    world.write(1);
    assert!(world.flush(1), "and nothing to commit");
    assert!(world.store.status().pending, "it waits for a sync");
    world.sync();
    world.store.commit(CommitRequest { reactor: ReactorId(0), ticket: 2 });
    let mut told = None;
    loop {
        match world.next() {
            Told::Durable(stamp) => told = Some(stamp),
            Told::Committed(2, true) => break,
            Told::Committed(..) => panic!("nobody asked"),
            Told::Report(_) => {}
        }
    }
    assert_eq!(told, Some(world.store.status().stamp));
    assert!(told.is_some_and(|stamp| stamp.commit > 0) && !world.store.status().pending);
    world.stop();
}

/// However many there are, and without anything else to commit; a stop that leaves some is no stop that leaves something of guests.
#[test]
fn a_stop_takes_all_notes_along() {
    let world = World::new();
    let count = u32::try_from(3 * NOTES_PER_COMMIT_MAX + 1).unwrap();
    world.store.note((0..count).map(|number| Note::put(NoteKind::Events, number, b"said".to_vec())));
    world.store.stop();
    let World { disk, store, thread, .. } = world;
    thread.join().unwrap();
    assert!(!store.status().pending && !store.status().failed);
    let options = OpenOptions { pool: POOL, total: 1, accept_stale: false, tuning: Default::default() };
    let noted = open::open(places(&disk), &options).unwrap().notes(NoteKind::Events).unwrap();
    assert_eq!(noted.len(), 3 * NOTES_PER_COMMIT_MAX + 1);
}
