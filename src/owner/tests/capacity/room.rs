//! Whoever looks for room finds all that there is: what is held for others gives way where it can be held elsewhere, and what is held
//! for a VHD serves what it has lost.

use super::super::super::command::{AddDisk, StartJob};
use super::*;
use crate::owner::error::ErrorKind;
use crate::placement::job::{JobKind, JobState};

fn start(request: JobRequest) -> Command {
    Command::StartJob(Box::new(StartJob { request, ..StartJob::by_itself(1) }))
}

fn fill(world: &mut World, disk: &str) {
    let greedy = world.create(on_disk(&format!("greedy-{disk}"), 100, disk, Capacity::default()));
    world.place_all(&greedy, 0..100);
}

#[test]
fn lost_replicas_are_made_anew_from_what_is_held_for_the_vhd() {
    let mut world = world_of(&[(20, "x"), (20, "y"), (20, "z")]);
    let vhd = world.create(CreateVhd { capacity: limits(None, Some(24)), ..replicated(20, 2) });
    assert_eq!(world.place_all(&vhd, 0..6), 6);
    ["d0", "d1", "d2"].iter().for_each(|disk| fill(&mut world, disk));
    assert_eq!(world.capacity_of("r"), (12, 12, 0));
    let lost = world.owner.vhds.get(vhd.record.id).unwrap().counts[0];
    assert!(lost > 1);
    world.fail(DiskId(0));
    world.settle();
    world.advance(1000);
    world.move_all();
    let jobs = world.jobs();
    assert_eq!(jobs, [(JobKind::Rebuild { disk: DiskId(0) }, JobState::Done)]);
    let away = |extent| {
        let replicas = vhd.state.map.lookup(ExtentIndex(extent)).replicas;
        replicas.iter().filter(|replica| replica.disk != DiskId(0)).count()
    };
    assert_eq!((0..6).map(away).sum::<usize>(), 12);
    // What could be kept before is less now, and somebody is told.
    let (charged, held, short) = world.capacity_of("r");
    assert_eq!((charged, held + short), (12, 12));
    let told =
        |event: &Event| matches!(event, Event::ReservationShort { of: ReservationOf::Vhd(vhd), .. } if vhd == "r");
    assert!(short >= u64::from(lost) && world.events_of(told) == 1, "{short} of {lost}");
    world.check_holds();
    world.check_sums();
    world.check();
}

#[test]
fn what_is_held_for_others_gives_way_to_moves() {
    let mut world = World::new(&[10, 10, 10], 1);
    let vhd = world.create(on_disk("a", 20, "d0", Capacity::default()));
    world.create(CreateVhd { capacity: limits(None, Some(10)), ..create("s", 20, SPANNED) });
    assert_eq!(world.place_all(&vhd, 0..10), 10);
    let migrate = |disk: &str| start(JobRequest::Migrate { vhd: "a".to_owned(), disk: Some(disk.to_owned()) });
    assert!(world.free_slots(1) < 10);
    world.run(migrate("d1")).unwrap();
    world.move_all();
    assert_eq!(world.owner.vhds.get(vhd.record.id).unwrap().counts[1], 10);
    assert_eq!((world.capacity_of("s"), world.free_slots(1)), ((0, 10, 0), 0));
    // It is in the way where there is nowhere else.
    world.run(set_vhd("s", limits(None, Some(15)))).unwrap();
    assert_eq!(world.refuse(migrate("d2")).kind(), ErrorKind::NoRoom);
    assert_eq!(world.capacity_of("s"), (0, 15, 0));
    world.check_holds();
    world.check();
}

#[test]
fn a_thick_vhd_is_made_where_others_can_be_held_elsewhere() {
    let mut world = world_of(&[(10, "x"), (10, "y"), (10, "y")]);
    world.create(CreateVhd { capacity: limits(None, Some(10)), ..create("s", 20, SPANNED) });
    // Ten slots in each domain: all that is held has to be on one of the disks of the second.
    let thick = CreateVhd { thick: true, ..replicated(10, 2) };
    world.create(thick);
    assert_eq!(world.capacity_of("s"), (0, 10, 0));
    world.check_holds();
    world.check();
}

#[test]
fn a_disk_that_is_opened_serves_who_waits_for_room() {
    let mut world = World::new(&[4], 1);
    let vhd = world.create(create("s", 20, SPANNED));
    assert_eq!(world.place_all(&vhd, 0..4), 4);
    assert_eq!(world.allocate(&vhd, 4), None, "waits");
    let (record, state) = (disk_record(1, 20), disk_state(&disk_record(1, 20)));
    let id = world.command(Command::AddDisk(Box::new(AddDisk { record, state })));
    world.settle();
    assert!(world.mail.replies.remove(&id).unwrap().is_ok());
    assert_eq!(world.allocated(1004), Some(Ok(())));
    world.check();
}
