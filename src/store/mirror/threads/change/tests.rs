use std::time::Duration;

use super::super::tests::{LONG, PLACE, POOL, Store, places};
use super::*;
use crate::base::clock;
use crate::disk::sim::{Fault, FaultKind, OpKind, SimDisk};
use crate::store::mirror::Members;
use crate::store::open::{OpenOptions, open};

impl Store {
    /// Lets a new disk join; its number.
    fn join(&mut self) -> (u8, Receiver<Result<(), MemberError>>) {
        let id = u8::try_from(self.disks.len()).unwrap();
        self.disks.push(SimDisk::new(PLACE.len, 512));
        let (joiner, filling) = self.joiner(id);
        self.members.join(joiner).unwrap();
        (id, filling)
    }

    fn joiner(&self, id: u8) -> (Joiner, Receiver<Result<(), MemberError>>) {
        let (filled, filling) = crossbeam_channel::bounded(1);
        let disk = Arc::new(self.disks[usize::from(id)].clone());
        (Joiner::new(DiskId(id), disk, PLACE, POOL, filled), filling)
    }

    fn propose(&mut self, members: &[u8]) -> Result<(), ChangeError> {
        let mut dropped = Vec::new();
        self.members.check_proposal(set(members), &mut dropped)?;
        self.stamp.commit += 1;
        let mark = Arc::new(Batch { stamp: self.stamp, steps: Vec::new() });
        let (committed, taken) = self.members.propose(set(members), &mark, &mut dropped);
        assert!(committed);
        taken
    }

    /// The VHDs that a store of just these disks has.
    fn opened_from(self, members: &[usize]) -> Vec<u32> {
        let Store { disks, members: threads, .. } = self;
        drop(threads);
        let total = members.len();
        let places = members.iter().map(|&i| places(&disks)[i].clone()).collect();
        let options = OpenOptions { pool: POOL, total, accept_stale: false, tuning: Default::default() };
        open(places, &options).unwrap().vhds.into_iter().map(|vhd| vhd.id.0).collect()
    }
}

fn set(disks: &[u8]) -> DiskSet {
    disks.iter().map(|&disk| DiskId(disk)).collect()
}

#[test]
fn a_member_joins_and_another_leaves_while_commits_go_on() {
    for (count, members) in [(1, vec![1]), (2, vec![0, 2]), (3, vec![0, 1, 3])] {
        let mut store = Store::new(count, LONG, 64);
        (1..=10).for_each(|vhd| assert!(store.commit(vhd).committed));
        let (_, filling) = store.join();
        (11..=20).for_each(|vhd| assert!(store.commit(vhd).committed));
        filling.recv_timeout(LONG).unwrap().unwrap();
        let next: Vec<u8> = members.iter().map(|&i| u8::try_from(i).unwrap()).collect();
        store.propose(&next).unwrap();
        assert!(store.commit(21).committed);
        assert!(store.members.settle());
        let left = store.disks[count - 1].clone();
        let before = left.op_counts();
        assert!(store.commit(22).committed);
        let status = store.members.status();
        assert!(status.iter().all(|member| next.contains(&member.disk.0)), "{status:?}");
        assert_eq!(left.op_counts().writes, before.writes, "who has left is not written to");
        assert_eq!(store.opened_from(&members), (1..=22).collect::<Vec<_>>());
    }
}

#[test]
fn members_leave_one_after_the_other() {
    let mut store = Store::new(3, LONG, 8);
    assert!(store.commit(1).committed);
    for members in [&[0, 1][..], &[1]] {
        store.propose(members).unwrap();
        assert!(store.members.settle());
        assert!(store.commit(1 + u32::try_from(members.len()).unwrap()).committed);
    }
    // Nothing depends on the others any more.
    store.disks[0].set_paused(true);
    store.disks[2].set_paused(true);
    assert!(store.commit(4).committed);
    assert_eq!(store.opened_from(&[1]), [1, 2, 3, 4]);
}

#[test]
fn what_is_withdrawn_leaves_everything_as_it_was() {
    let mut store = Store::new(2, LONG, 8);
    let (_, filling) = store.join();
    filling.recv_timeout(LONG).unwrap().unwrap();
    store.propose(&[0, 2]).unwrap();
    assert!(matches!(store.propose(&[0]), Err(ChangeError::Unfinished)));
    store.members.withdraw();
    assert!(!store.members.settle());
    assert!(store.commit(1).committed);
    assert_eq!(store.members.status().len(), 2);
    assert_eq!(store.opened_from(&[0, 1]), [1]);
}

#[test]
fn members_that_do_not_work_are_not_proposed() {
    let mut store = Store::new(3, LONG, 8);
    store.disks[1].inject(Fault::always(OpKind::Write, FaultKind::Error(libc::EIO)));
    for vhd in 1..10 {
        assert!(store.commit(vhd).committed);
        std::thread::sleep(Duration::from_millis(5));
    }
    let refused = store.propose(&[0, 1]);
    assert!(matches!(refused, Err(ChangeError::TooFewWork { total: 2, working: 1 })), "{refused:?}");
    store.propose(&[0, 2]).unwrap();
    assert!(store.members.settle() && store.commit(10).committed);
}

#[test]
fn a_member_to_be_that_hangs_is_not_taken_and_the_others_go_on() {
    let mut store = Store::new(1, Duration::from_millis(200), 64);
    let (id, filling) = store.join();
    filling.recv_timeout(LONG).unwrap().unwrap();
    store.disks[1].set_paused(true);
    let started = clock::now();
    assert!(matches!(store.propose(&[id]), Err(ChangeError::NotTaken)));
    assert!(clock::now().since(started) < 10_000_000_000);
    assert!(store.commit(1).committed);
    store.disks[1].set_paused(false);
    assert_eq!(store.opened_from(&[0]), [1]);
}

#[test]
fn a_member_that_cannot_be_filled_says_so() {
    let mut store = Store::new(1, LONG, 8);
    let disk = SimDisk::new(PLACE.len, 512);
    let (filled, filling) = crossbeam_channel::bounded(1);
    let joiner = Joiner::new(DiskId(1), Arc::new(disk.clone()), PLACE, POOL, filled);
    disk.inject(Fault::always(OpKind::Write, FaultKind::Error(libc::EIO)));
    store.members.join(joiner).unwrap();
    assert!(filling.recv_timeout(LONG).unwrap().is_err());
    assert!(store.propose(&[1]).is_err());
    store.members.withdraw();
    assert!(store.commit(1).committed);
}

/// The labels may name the new member already: whoever tries again must not format it.
#[test]
fn a_disk_is_not_formatted_while_a_change_is_undecided() {
    let mut store = Store::new(1, LONG, 8);
    let (id, filling) = store.join();
    filling.recv_timeout(LONG).unwrap().unwrap();
    assert!(store.commit(1).committed);
    store.propose(&[id]).unwrap();
    let again = store.joiner(id).0;
    let refused = store.members.join(again);
    assert!(matches!(refused, Err(ChangeError::Unfinished)), "{refused:?}");
    store.members.dismiss();
    assert!(store.commit(2).committed);
    assert_eq!(store.members.status().len(), 2, "the rule stays");
    assert_eq!(store.opened_from(&[1]), [1, 2]);
}

/// What was written to it before may hang, and come through.
#[test]
fn a_disk_joins_again_only_when_nothing_of_its_last_time_is_under_way() {
    let mut store = Store::new(1, LONG, 8);
    let (id, filling) = store.join();
    filling.recv_timeout(LONG).unwrap().unwrap();
    store.disks[1].set_paused(true);
    assert!(store.commit(1).committed);
    store.members.dismiss();
    for _ in 0..3 {
        let again = store.joiner(id).0;
        let refused = store.members.join(again);
        assert!(matches!(refused, Err(ChangeError::LetGoOf)), "{refused:?}");
    }
    store.disks[1].set_paused(false);
    let deadline = clock::now().after(LONG);
    let filling = loop {
        let (again, filling) = store.joiner(id);
        match store.members.join(again) {
            Ok(()) => break filling,
            Err(ChangeError::LetGoOf) if clock::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("{error}"),
        }
    };
    filling.recv_timeout(LONG).unwrap().unwrap();
    store.propose(&[id]).unwrap();
    assert!(store.members.settle() && store.commit(2).committed);
    assert_eq!(store.opened_from(&[1]), [1, 2]);
}
