//! Replicas that differ because a write failed: they are made equal, however many there are.

use super::super::command::{JobRequest, StartJob};
use super::degraded::{degrading, replicas};
use super::replicas::{fill, replicated, world};
use super::*;
use crate::base::limits::REPAIRS_WAITING_MAX;
use crate::mover::messages::{CopyTask, Speed};

const E: ExtentIndex = ExtentIndex(0);

impl World {
    fn differ(&mut self, vhd: &VhdInfo, extent: ExtentIndex) {
        self.tell(OwnerRequest::ReplicasDiffer { vhd: vhd.record.id, extent });
    }

    fn copied(&mut self, copy: &CopyTask) {
        self.owner.handle_mover(MoverReport::Copied { id: copy.id }, self.now, &mut self.mail);
    }
}

#[test]
fn replicas_that_differ_are_made_equal_to_the_one_that_is_read_first() {
    let (mut world, vhd) = degrading();
    let [first, other] = replicas(&vhd, E)[..] else { panic!("two replicas") };
    world.differ(&vhd, E);
    let copies = world.copies();
    let [copy] = &copies[..] else { panic!("one copy, not {}", copies.len()) };
    assert_eq!((copy.source, copy.target, copy.extent), (first, other, E));
    // Another write fails where the mover has been, maybe.
    world.differ(&vhd, E);
    assert!(world.copies().is_empty());
    world.copied(copy);
    let again = world.copies();
    assert_eq!(again.iter().map(|copy| copy.target).collect::<Vec<_>>(), [other]);
    world.copied(&again[0]);
    assert!(world.copies().is_empty() && !world.owner.repairs.knows(vhd.record.id));
}

/// More extents than wait one by one, whose replicas differ, and more all the time.
#[test]
fn a_page_of_which_too_much_differs_is_in_doubt_and_has_its_turn() {
    let extents = u32::try_from(REPAIRS_WAITING_MAX).unwrap() + 100;
    let mut world = world(&[(extents + 100, "a"), (extents + 100, "b")]);
    let vhd = world.create(replicated(extents.into(), 2));
    fill(&mut world, &vhd, extents);
    (0..extents).step_by(64).for_each(|extent| world.intend(&vhd, ExtentIndex(extent)));
    world.commit_edits();
    let last = ExtentIndex(extents - 1);
    (0..extents).for_each(|extent| world.differ(&vhd, ExtentIndex(extent)));
    let map = &vhd.state.map;
    assert!(!map.is_in_doubt(E) && map.is_in_doubt(last), "reads come from the first replica only");
    world.advance(60_000);
    world.advance(60_000);
    world.settle();
    assert!(map.has_intent(last.0 / 64), "it says so after a power cut");
    let mut made = BTreeMap::new();
    for _ in 0..64 {
        for copy in world.copies() {
            *made.entry(copy.extent).or_insert(0) += 1;
            world.copied(&copy);
            world.differ(&vhd, copy.extent);
        }
    }
    let left: Vec<_> = (extents - 91..extents).map(ExtentIndex).filter(|extent| !made.contains_key(extent)).collect();
    assert!(left.is_empty(), "{left:?} wait for what comes after them");
    assert!(made.contains_key(&E), "nor does that wait");
    world.move_all();
    assert!((0..extents).all(|extent| !map.is_in_doubt(ExtentIndex(extent))));
    assert!(!world.owner.repairs.knows(vhd.record.id));
}

/// A write failed on all replicas, and not on the copy that takes the place of one of them.
#[test]
fn a_copy_that_differs_is_made_equal_once_it_is_a_replica() {
    let (mut world, vhd) = degrading();
    let [first, other] = replicas(&vhd, E)[..] else { panic!("two replicas") };
    let request = JobRequest::Evacuate { disk: format!("d{}", other.disk.0), accept_loss: false };
    let start = StartJob { request, dry_run: false, speed: Speed::default(), created: 1 };
    world.run(Command::StartJob(Box::new(start))).unwrap();
    world.differ(&vhd, E);
    assert!(vhd.state.map.lookup(E).replicas.is_moving());
    world.move_all();
    let [_, new] = replicas(&vhd, E)[..] else { panic!("two replicas") };
    assert!(new.disk != other.disk && replicas(&vhd, E)[0] == first);
    assert_eq!(world.owner.repairs.made, 1, "it is made equal to what is read first");
}
