use super::*;
use crate::disk::sim::{Fault, FaultKind, OpKind, SimDisk};
use crate::store::batch::Step;
use crate::store::edit::StoreEdit;
use crate::store::member::tests::samples;
use crate::store::open::{MemberPlace, OpenOptions, create, open};
use crate::store::region::{REGION_LEN_MIN, RegionPlace};

pub(super) const POOL: uuid::Uuid = uuid::Uuid::from_u128(7);
pub(super) const PLACE: RegionPlace = RegionPlace { offset: 0, len: REGION_LEN_MIN };

pub(super) fn places(disks: &[SimDisk]) -> Vec<MemberPlace<SimDisk>> {
    let place = |(i, disk): (u8, &SimDisk)| MemberPlace {
        id: DiskId(i),
        name: format!("d{i}"),
        disk: Arc::new(disk.clone()),
        place: PLACE,
    };
    (0..).zip(disks).map(place).collect()
}

pub(super) struct Store {
    pub disks: Vec<SimDisk>,
    pub members: MemberThreads,
    pub stamp: Stamp,
}

impl Store {
    pub fn new(count: usize, timeout: Duration, queue: usize) -> Store {
        let disks: Vec<SimDisk> = (0..count).map(|_| SimDisk::new(PLACE.len, 512)).collect();
        let store = create(places(&disks), &samples::pool(POOL), 1).unwrap();
        let stamp = store.state().stamp;
        let members = MemberThreads::start_with(store.into_members(), count, timeout, queue).unwrap();
        Store { disks, members, stamp }
    }

    pub fn commit(&mut self, vhd: u32) -> Applied {
        self.commit_rows(vhd, 1)
    }

    /// The same, so many rows of it.
    fn commit_rows(&mut self, vhd: u32, rows: usize) -> Applied {
        self.stamp.commit += 1;
        let steps = (0..rows).map(|_| Step::Edit(StoreEdit::PutVhd(samples::vhd(vhd)))).collect();
        self.members.apply(&Arc::new(Batch { stamp: self.stamp, steps }))
    }

    /// Waits until every member has done what it was sent.
    fn settle(&mut self) {
        while self.members.links().any(|link| !link.sent.is_empty()) {
            let answer = self.members.answers.recv_timeout(LONG).unwrap();
            self.members.take(answer, self.stamp, &mut DiskSet::default(), &mut Vec::new());
        }
    }

    fn reopened(self, without: Option<usize>) -> Vec<u32> {
        let Store { disks, members, .. } = self;
        let total = disks.len();
        drop(members);
        let mut places = places(&disks);
        if let Some(index) = without {
            places.remove(index);
        }
        let options = OpenOptions { pool: POOL, total, accept_stale: false, tuning: Default::default() };
        open(places, &options).unwrap().vhds.into_iter().map(|vhd| vhd.id.0).collect()
    }
}

pub(super) const LONG: Duration = Duration::from_secs(20);

#[test]
fn all_members_get_every_commit() {
    for count in 1..=3 {
        let mut store = Store::new(count, LONG, 20);
        for vhd in 1..=20 {
            let applied = store.commit(vhd);
            assert!(applied.committed && applied.dropped.is_empty());
        }
        for without in (0..count).map(|i| (count == 3).then_some(i)) {
            let mut again = Store::new(count, LONG, 20);
            (1..=20).for_each(|vhd| assert!(again.commit(vhd).committed));
            assert_eq!(again.reopened(without), (1..=20).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_member_that_fails_is_given_up_and_the_majority_goes_on() {
    let mut store = Store::new(3, LONG, 8);
    assert!(store.commit(1).committed);
    store.disks[1].inject(Fault::always(OpKind::Sync, FaultKind::Error(libc::EIO)));
    let mut dropped = Vec::new();
    for vhd in 2..200 {
        let applied = store.commit(vhd);
        assert!(applied.committed);
        dropped.extend(applied.dropped);
        if !dropped.is_empty() {
            break;
        }
    }
    let [Dropped { disk: DiskId(1), why: Lost::Failed(_), sync_failed: true }] = &dropped[..] else {
        panic!("{dropped:?}")
    };
    assert!(store.members.status()[1].lost.is_some());
    store.disks[2].inject(Fault::always(OpKind::Write, FaultKind::Error(libc::EIO)));
    let applied = store.commit(200);
    assert!(!applied.committed && applied.dropped.len() == 1);
}

#[test]
fn a_hung_member_delays_nobody_and_is_given_up() {
    let mut store = Store::new(3, Duration::from_millis(200), 1000);
    assert!(store.commit(1).committed);
    store.disks[0].set_paused(true);
    let start = clock::now();
    let mut dropped = store.commit(2);
    assert!(dropped.committed);
    let mut vhd = 2;
    while dropped.dropped.is_empty() && clock::now().since(start) < 20_000_000_000 {
        std::thread::sleep(Duration::from_millis(5));
        vhd += 1;
        dropped = store.commit(vhd);
        assert!(dropped.committed);
    }
    assert!(matches!(dropped.dropped[..], [Dropped { disk: DiskId(0), why: Lost::Hung { .. }, .. }]), "{dropped:?}");
    // It wakes up, and may not write.
    let before = store.disks[0].op_counts();
    store.disks[0].set_paused(false);
    std::thread::sleep(Duration::from_millis(50));
    let after = store.disks[0].op_counts();
    // The call that hung goes through, nothing after it.
    assert!(after.writes + after.syncs <= before.writes + before.syncs + 1, "{before:?} {after:?}");
    assert_eq!(store.reopened(None), (1..=vhd).collect::<Vec<_>>());
}

#[test]
fn a_hung_majority_fails_the_commit_in_time() {
    let mut store = Store::new(2, Duration::from_millis(100), 8);
    store.disks[1].set_paused(true);
    let applied = store.commit(1);
    assert!(!applied.committed);
    assert!(matches!(applied.dropped[..], [Dropped { disk: DiskId(1), why: Lost::Hung { .. }, .. }]));
    store.disks[1].set_paused(false);
}

/// A disk that is slow for a while, or always, costs time and no redundancy.
#[test]
fn commits_wait_for_a_member_that_is_too_far_behind_and_gets_on() {
    let mut store = Store::new(3, LONG, 4);
    store.disks[2].set_slow(Duration::from_millis(10));
    for vhd in 1..40 {
        let applied = store.commit(vhd);
        assert!(applied.committed && applied.dropped.is_empty(), "{applied:?}");
    }
    assert_eq!(store.reopened(None), (1..40).collect::<Vec<_>>());
}

#[test]
fn a_member_that_never_catches_up_is_given_up_in_the_end() {
    let mut store = Store::new(3, Duration::from_millis(200), 4);
    store.disks[2].set_slow(Duration::from_millis(20));
    let begun = clock::now();
    let mut dropped = Vec::new();
    let mut vhd = 0;
    while dropped.is_empty() && clock::now().since(begun) < 20_000_000_000 {
        vhd += 1;
        let applied = store.commit(vhd);
        assert!(applied.committed);
        dropped.extend(applied.dropped);
    }
    assert!(matches!(dropped[..], [Dropped { disk: DiskId(2), why: Lost::Behind { .. }, .. }]), "{dropped:?}");
    assert!(clock::now().since(begun) > 800_000_000, "it was waited for");
}

/// One that becomes needed while it is far behind: its queue is full, and it does nothing for a while.
#[test]
fn a_member_that_is_needed_is_not_given_up_before_it_hangs() {
    let mut store = Store::new(3, Duration::from_secs(30), 4);
    assert!(store.commit(1).committed);
    store.settle();
    store.disks[2].set_paused(true);
    // One is being written, and its queue is full.
    (2..7).for_each(|vhd| {
        let applied = store.commit(vhd);
        assert!(applied.committed && applied.dropped.is_empty(), "{vhd}: {applied:?}");
    });
    store.disks[1].inject(Fault::always(OpKind::Write, FaultKind::Error(libc::EIO)));
    let disk = store.disks[2].clone();
    let waker = std::thread::spawn(move || {
        std::thread::sleep(BEHIND_PATIENCE + Duration::from_secs(2));
        disk.set_paused(false);
    });
    for vhd in 7..10 {
        let applied = store.commit(vhd);
        assert!(applied.committed, "{vhd}: {applied:?}");
    }
    waker.join().unwrap();
    assert_eq!(store.reopened(None), (1..10).collect::<Vec<_>>());
}

/// Time that this thread has been running, in hundredths of a second.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1;
    // utime and stime, fields 14 and 15.
    fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
}

/// A member that is far behind and needed for the majority: the commit waits for all that it has to do first, without a rush.
#[test]
fn a_commit_waits_for_a_member_that_is_behind_and_needed() {
    const BEHIND: u32 = 40;
    let timeout = Duration::from_millis(2400);
    let mut store = Store::new(3, timeout, 64);
    assert!(store.commit(1).committed);
    store.settle();
    store.disks[2].set_paused(true);
    // Each is as much as one transaction may be.
    let rows = rows_max(PLACE.len);
    (2..BEHIND).for_each(|vhd| {
        let applied = store.commit_rows(vhd, rows);
        assert!(applied.committed && applied.dropped.is_empty(), "{vhd}: {applied:?}");
    });
    store.disks[1].inject(Fault::always(OpKind::Write, FaultKind::Error(libc::EIO)));
    store.disks[2].set_slow(Duration::from_millis(80));
    store.disks[2].set_paused(false);
    let (begun, ran) = (clock::now(), ticks());
    let applied = store.commit(BEHIND);
    let (took, ran) = (clock::now().since(begun) / 10_000_000, ticks() - ran);
    assert!(applied.committed, "{applied:?}");
    assert!(took > 240, "it took {took} ticks: the member was not behind for longer than the time-out");
    assert!(ran < took / 4, "{ran} of {took} ticks were spent running");
}

/// A disk that others keep busy takes long for each transaction, and catches up with few of them.
#[test]
fn a_member_that_is_behind_catches_up_with_many_commits_at_once() {
    const BEHIND: u32 = 60;
    let mut store = Store::new(3, LONG, 64);
    store.disks[2].set_paused(true);
    (1..BEHIND).for_each(|vhd| assert!(store.commit(vhd).committed));
    let [fast, before] = [0, 2].map(|index| store.disks[index].op_counts().syncs);
    store.disks[2].set_paused(false);
    store.settle();
    let took = store.disks[2].op_counts().syncs - before;
    // The one that it had begun, all others together, and perhaps one more to let the file grow.
    assert!(took * 8 < fast, "{took} syncs, where the others needed {fast}");
    let status = store.members.status();
    assert!(status.iter().all(|member| member.stamp == store.stamp && member.lost.is_none()), "{status:?}");
    assert_eq!(store.reopened(Some(0)), (1..BEHIND).collect::<Vec<_>>());
}

/// Short times in which a member was too far behind do not add up, if it caught up in between, though never with all.
#[test]
fn what_a_member_was_waited_for_is_forgotten_once_it_is_near_again() {
    let timeout = Duration::from_millis(1000);
    let mut store = Store::new(3, timeout, 4);
    let mut vhd = 0;
    let mut commit = |store: &mut Store| {
        vhd += 1;
        let applied = store.commit(vhd);
        assert!(applied.committed && applied.dropped.is_empty(), "{vhd}: {applied:?}");
    };
    // Each time it is waited for as long as it hangs, which comes to more than what one is granted in all.
    for _ in 0..16 {
        store.disks[2].set_paused(true);
        (0..4).for_each(|_| commit(&mut store));
        let disk = store.disks[2].clone();
        let waker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            disk.set_paused(false);
        });
        commit(&mut store);
        waker.join().unwrap();
        while store.members.links[2].as_ref().unwrap().sent.len() > 1 {
            let answer = store.members.answers.recv_timeout(LONG).unwrap();
            store.members.take(answer, store.stamp, &mut DiskSet::default(), &mut Vec::new());
        }
    }
}

#[test]
fn a_member_puts_as_much_together_as_it_gets_done_in_a_second() {
    let (mut pace, empty) = (Pace::new(1000), Fill { used: 0, capacity: 100 });
    let rows = [1, 1, 1, 5, 1, 5, 5, 5].map(|secs| {
        pace.took(Duration::from_millis(secs * 300));
        pace.rows(empty)
    });
    assert_eq!(rows, [128, 256, 512, 256, 512, 256, 128, 64]);
    (0..20).for_each(|_| pace.took(Duration::ZERO));
    assert_eq!(pace.rows(empty), 1000);
    (0..20).for_each(|_| pace.took(Duration::from_secs(60)));
    assert_eq!((pace.rows(empty), pace.rows(Fill { used: 76, capacity: 100 })), (1, 0));
}

/// Memory for what a member has still to do has an end.
#[test]
fn commits_wait_for_a_member_with_too_many_rows_to_do() {
    let mut store = Store::new(3, Duration::from_secs(3), 4096);
    store.members.rows_behind_max = 40;
    assert!(store.commit(1).committed);
    store.settle();
    store.disks[2].set_paused(true);
    let mut dropped = Vec::new();
    for vhd in 2..20 {
        let applied = store.commit_rows(vhd, 10);
        assert!(applied.committed);
        dropped.extend(applied.dropped);
        if !dropped.is_empty() {
            break;
        }
    }
    assert!(matches!(dropped[..], [Dropped { disk: DiskId(2), why: Lost::Behind { commits: 4 }, .. }]), "{dropped:?}");
    store.disks[2].set_paused(false);
}

#[test]
fn a_member_too_far_behind_that_does_not_get_on_is_given_up() {
    let mut store = Store::new(3, Duration::from_millis(300), 4);
    assert!(store.commit(1).committed);
    store.settle();
    store.disks[2].set_paused(true);
    let mut dropped = Vec::new();
    for vhd in 2..20 {
        let applied = store.commit(vhd);
        assert!(applied.committed);
        dropped.extend(applied.dropped);
    }
    assert!(matches!(dropped[..], [Dropped { disk: DiskId(2), why: Lost::Behind { .. }, .. }]), "{dropped:?}");
    store.disks[2].set_paused(false);
    assert_eq!(store.reopened(None), (1..20).collect::<Vec<_>>());
}

#[test]
fn a_dump_is_what_a_member_has() {
    let mut store = Store::new(1, LONG, 8);
    assert!(store.commit(4).committed);
    let text = store.members.dump().unwrap();
    assert!(text.contains("\"name\":\"vhd4\"") && text.ends_with("{\"end\":{\"vhds\":1,\"pages\":0}}\n"), "{text}");
    assert_eq!(store.members.status()[0].stamp, store.stamp);
}
