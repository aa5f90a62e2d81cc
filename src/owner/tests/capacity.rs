//! Quotas and reservations, of VHDs and of VMs.

mod back;
mod random;
mod room;
mod unreachable;

use super::super::command::{CapacityError, CapacityUse, CreateVm, JobRequest, ResizeVhd, SetCapacity, SetVhd, SetVm};
use super::replicas::{replicated, world as world_of};
use super::*;
use crate::engine::IoError;
use crate::owner::outbox::ReservationOf;
use crate::owner::space::DiskSpace;
use crate::placement::capacity::Capacity;
use crate::placement::vm::VmRecord;
use crate::store::edit::EditFailed;

fn limits(quota: Option<u64>, reservation: Option<u64>) -> Capacity {
    Capacity { quota: quota.map(|extents| extents * EXTENT), reservation: reservation.map(|extents| extents * EXTENT) }
}

fn on_disk(name: &str, extents: u64, disk: &str, capacity: Capacity) -> CreateVhd {
    let layout = LayoutRequest::Isolated { disk: Some(disk.to_owned()) };
    CreateVhd { capacity, ..create(name, extents, layout) }
}

fn in_vm(create: CreateVhd, vm: &str) -> CreateVhd {
    CreateVhd { vm: Some(vm.to_owned()), ..create }
}

fn set_vhd(vhd: &str, capacity: Capacity) -> Command {
    let capacity = SetCapacity::to(capacity);
    Command::SetVhd(Box::new(SetVhd { vhd: vhd.to_owned(), capacity, ..SetVhd::default() }))
}

fn set_vm(vm: &str, capacity: Capacity) -> Command {
    Command::SetVm(SetVm { vm: vm.to_owned(), capacity: SetCapacity::to(capacity), ..SetVm::default() })
}

fn create_vm(vm: &str, capacity: Capacity) -> Command {
    Command::CreateVm(CreateVm { name: vm.to_owned(), capacity, ..CreateVm::default() })
}

/// Extents charged, held and short.
fn used(capacity: CapacityUse) -> (u64, u64, u64) {
    (capacity.charged / EXTENT, capacity.held / EXTENT, capacity.short / EXTENT)
}

impl World {
    fn capacity_of(&mut self, vhd: &str) -> (u64, u64, u64) {
        match self.ask(Command::ShowVhd { vhd: vhd.to_owned() }) {
            Ok(Reply::Vhd { vhd, .. }) => used(vhd.capacity),
            other => panic!("{other:?}"),
        }
    }

    fn capacity_of_vm(&mut self, vm: &str) -> (u64, u64, u64) {
        match self.ask(Command::ShowVm { vm: vm.to_owned() }) {
            Ok(Reply::Vm { vm, .. }) => used(vm.capacity),
            other => panic!("{other:?}"),
        }
    }

    fn refuse_capacity(&mut self, command: Command) -> CapacityError {
        match self.refuse(command) {
            CommandError::Capacity(error) => error,
            other => panic!("{other:?}"),
        }
    }

    /// First writes to so many extents, from the first on, as far as there is room.
    fn place_all(&mut self, vhd: &VhdInfo, extents: std::ops::Range<u32>) -> usize {
        extents.filter(|extent| self.allocate(vhd, *extent) == Some(Ok(()))).count()
    }

    fn events_of(&self, is_it: impl Fn(&Event) -> bool) -> usize {
        self.mail.events.iter().filter(|event| is_it(event)).count()
    }

    /// What is held is free, and nobody has too much or the wrong slots.
    fn check_holds(&self) {
        let space = &self.owner.space;
        space.holds().check(&space.room(DiskSpace::free)).unwrap();
        for disk in space.iter() {
            assert!(disk.promised() <= disk.slots().free(), "{} promises too much", disk.state.name);
            assert_eq!(disk.promised() - disk.reserved, space.holds().on_disk(disk.state.id));
        }
    }

    /// What is kept from change to change is what one finds by looking at everything.
    fn check_sums(&mut self) {
        for vm in self.owner.vm_records() {
            let all = self.owner.sum_of_vm(&vm.name);
            assert_eq!(self.owner.vhds.sum_of_vm(&vm.name), all, "{}", vm.name);
        }
        for id in self.owner.vhds.iter().map(|vhd| vhd.record.id).collect::<Vec<_>>() {
            let vhd = self.owner.vhds.get_mut(id).unwrap();
            let before = (vhd.placed, vhd.used(&vhd.record));
            vhd.recount();
            assert_eq!((vhd.placed, vhd.used(&vhd.record)), before, "{}", vhd.record.name);
        }
    }
}

fn is_quota(event: &Event) -> bool {
    matches!(event, Event::QuotaReached { .. })
}

#[test]
fn first_writes_stop_at_the_quota_and_go_on_when_it_is_raised_or_something_is_discarded() {
    let mut world = World::new(&[20], 1);
    let vhd = world.create(on_disk("a", 20, "d0", limits(Some(3), None)));
    assert_eq!(world.place_all(&vhd, 0..3), 3);
    assert_eq!(world.allocate(&vhd, 3), None, "waits");
    assert_eq!(world.allocate(&vhd, 4), None);
    let reached = Event::QuotaReached { vhd: "a".to_owned(), vm: None, quota: 3 * EXTENT, used: 3 * EXTENT };
    assert_eq!(world.mail.events.iter().filter(|event| **event == reached).count(), 1);
    assert_eq!(world.events_of(is_quota), 1, "once");
    world.discard(&vhd, 0);
    assert_eq!(
        (world.allocated(1003), world.allocated(1004)),
        (Some(Ok(())), None),
        "at once: the slot need not be free"
    );
    world.run(set_vhd("a", limits(Some(5), None))).unwrap();
    assert_eq!(world.allocated(1004), Some(Ok(())));
    assert_eq!(world.place_all(&vhd, 5..9), 1);
    world.advance(61_000);
    assert_eq!(world.allocated(1006), Some(Err(AllocateError::NoSpace)), "its time is up");
    assert_eq!(world.allocated(1007).and(world.allocated(1008)), Some(Err(AllocateError::NoSpace)));
    assert_eq!(world.events_of(|event| matches!(event, Event::OutOfRoom { .. })), 0, "the disk has room");
    world.run(set_vhd("a", limits(None, None))).unwrap();
    assert_eq!(world.place_all(&vhd, 5..9), 4);
    world.settle();
    world.check();
}

#[test]
fn without_patience_writes_beyond_the_quota_fail_at_once() {
    let mut world = World::new(&[20], 1);
    let vhd = world.create(CreateVhd { when_full: WhenFull::Error, ..on_disk("a", 20, "d0", limits(Some(1), None)) });
    assert_eq!(world.place_all(&vhd, 0..1), 1);
    for extent in 1..4 {
        assert_eq!(world.allocate(&vhd, extent), Some(Err(AllocateError::NoSpace)));
    }
    assert_eq!(world.events_of(is_quota), 1);
    world.discard(&vhd, 0);
    assert_eq!(world.allocate(&vhd, 1), Some(Ok(())));
    assert_eq!(world.allocate(&vhd, 2), Some(Err(AllocateError::NoSpace)));
    assert_eq!(world.events_of(is_quota), 2, "there was room in between");
}

#[test]
fn a_quota_below_what_is_used_takes_nothing_away() {
    let mut world = World::new(&[20], 1);
    let vhd = world.create(on_disk("a", 20, "d0", Capacity::default()));
    assert_eq!(world.place_all(&vhd, 0..6), 6);
    world.run(set_vhd("a", limits(Some(4), None))).unwrap();
    assert_eq!(world.capacity_of("a"), (6, 0, 0));
    assert_eq!(world.allocate(&vhd, 6), None);
    assert_eq!(world.allocate(&vhd, 5), Some(Ok(())), "what has a place is written");
}

#[test]
fn the_vhds_of_a_vm_share_its_quota() {
    let mut world = World::new(&[20, 20], 1);
    world.run(create_vm("web", limits(Some(5), None))).unwrap();
    let a = world.create(in_vm(on_disk("a", 20, "d0", Capacity::default()), "web"));
    let b = world.create(in_vm(on_disk("b", 20, "d1", limits(Some(2), None)), "web"));
    assert_eq!(world.place_all(&a, 0..4), 4);
    assert_eq!(world.place_all(&b, 0..4), 1);
    assert_eq!(world.place_all(&a, 4..8), 0);
    let of_vm = |event: &Event| matches!(event, Event::QuotaReached { vm: Some(vm), .. } if vm == "web");
    assert_eq!(world.events_of(of_vm), 1, "one quota, one event");
    assert_eq!(world.capacity_of_vm("web"), (5, 0, 0));
    let thick = CreateVhd { thick: true, ..in_vm(on_disk("c", 4, "d0", Capacity::default()), "web") };
    let refused = world.refuse_capacity(Command::CreateVhd(Box::new(thick)));
    assert!(refused.to_string().contains("VM 'web' may place 5242880 bytes"), "{refused}");
    world.run(Command::DeleteVhd { vhd: "b".to_owned(), force: false }).unwrap();
    assert_eq!(world.allocated(1004), Some(Ok(())), "of another VHD of the VM");
    let joins = SetVhd { vhd: "d".to_owned(), vm: Some(Some("web".to_owned())), ..SetVhd::default() };
    let d = world.create(on_disk("d", 4, "d0", Capacity::default()));
    assert_eq!(world.place_all(&d, 0..1), 1);
    let refused = world.refuse_capacity(Command::SetVhd(Box::new(joins)));
    assert!(matches!(refused, CapacityError::QuotaExceeded { .. }), "{refused}");
    world.check();
}

#[test]
fn commands_that_take_more_than_the_quota_are_refused_with_the_numbers() {
    let mut world = World::new(&[20, 20], 1);
    let thick = CreateVhd { thick: true, ..on_disk("a", 6, "d0", limits(Some(5), None)) };
    let refused = world.refuse_capacity(Command::CreateVhd(Box::new(thick.clone())));
    let CapacityError::QuotaExceeded { needed, used, quota, .. } = refused else { panic!("{refused}") };
    assert_eq!((needed, used, quota), (6 * EXTENT, 0, 5 * EXTENT));
    world.create(CreateVhd { size: 4 * EXTENT, ..thick });
    assert_eq!(world.capacity_of("a").0, 4);
    let grow =
        |extents: u64| Command::ResizeVhd(ResizeVhd { vhd: "a".to_owned(), size: extents * EXTENT, force: false });
    assert!(matches!(world.refuse_capacity(grow(6)), CapacityError::QuotaExceeded { .. }));
    world.run(grow(5)).unwrap();
    assert!(matches!(world.refuse_capacity(grow(6)), CapacityError::QuotaExceeded { used, .. } if used == 5 * EXTENT));

    let vhd = world.create(CreateVhd { capacity: limits(Some(7), None), ..create("r", 8, SPANNED) });
    assert_eq!(world.place_all(&vhd, 0..4), 4);
    let two = JobRequest::Replicas { vhd: "r".to_owned(), replicas: 2 };
    let start = |request: JobRequest| {
        let start = super::super::command::StartJob { request, ..super::super::command::StartJob::by_itself(1) };
        Command::StartJob(Box::new(start))
    };
    assert!(matches!(world.refuse_capacity(start(two.clone())), CapacityError::QuotaExceeded { .. }));
    world.run(set_vhd("r", limits(Some(8), None))).unwrap();
    world.run(start(two)).unwrap();
    assert_eq!(world.allocate(&vhd, 4), None, "replicas that are on their way count");
    world.move_all();
    assert_eq!(world.capacity_of("r").0, 8);

    let contradiction = world.refuse_capacity(set_vhd("r", limits(Some(8), Some(9))));
    assert!(matches!(contradiction, CapacityError::BeyondQuota { .. }));
    assert!(matches!(world.refuse_capacity(set_vhd("r", limits(Some(0), None))), CapacityError::Zero { .. }));
    world.check();
}

#[test]
fn sizes_are_rounded_up_to_whole_extents_and_asking_again_changes_nothing() {
    let mut world = World::new(&[20], 1);
    let capacity = Capacity { quota: Some(3 * EXTENT - 5), reservation: Some(1) };
    let asked = on_disk("a", 20, "d0", capacity);
    let vhd = world.create(asked.clone());
    assert_eq!(vhd.record.capacity, limits(Some(3), Some(1)));
    let again = world.run(Command::CreateVhd(Box::new(asked.clone()))).unwrap();
    assert!(matches!(again, Reply::Vhd { outcome: Outcome::Unchanged, .. }));
    let other = CreateVhd { capacity: limits(Some(4), Some(1)), ..asked };
    assert!(matches!(world.refuse(Command::CreateVhd(Box::new(other))), CommandError::Conflict { field: "quota", .. }));
    world.run(create_vm("web", capacity)).unwrap();
    let again = world.run(create_vm("web", capacity)).unwrap();
    assert!(matches!(again, Reply::Vm { outcome: Outcome::Unchanged, .. }));
    let refused = world.refuse(create_vm("web", Capacity::default()));
    assert!(matches!(refused, CommandError::VmConflict { field: "quota", .. }));
}

#[test]
fn what_is_reserved_can_be_written_whatever_others_take() {
    let mut world = World::new(&[10], 1);
    let vhd = world.create(on_disk("a", 10, "d0", limits(None, Some(6))));
    let greedy = world.create(on_disk("greedy", 100, "d0", Capacity::default()));
    assert_eq!(world.place_all(&greedy, 0..100), 4);
    assert_eq!((world.free_slots(0), world.capacity_of("a")), (0, (0, 6, 0)));
    let Ok(Reply::Pool(pool)) = world.ask(Command::ShowPool) else { panic!("a pool") };
    assert_eq!((pool.space.reserved, pool.space.free), (6 * EXTENT, 0));
    assert_eq!(world.place_all(&vhd, 0..6), 6);
    assert_eq!(world.capacity_of("a"), (6, 0, 0));
    assert_eq!(world.allocate(&vhd, 6), None, "beyond it there is no room for it, either");
    world.discard(&vhd, 0);
    assert_eq!(world.capacity_of("a"), (5, 0, 0), "short of nothing: it is on its way back");
    world.settle();
    assert_eq!(world.allocated(1006), Some(Ok(())), "who waited longest does not get it: it is the holder's");
    world.discard(&vhd, 1);
    world.settle();
    assert_eq!((world.free_slots(0), world.capacity_of("a")), (0, (5, 1, 0)));
    world.check_holds();
    world.check();
}

#[test]
fn a_reservation_that_does_not_fit_is_refused_with_the_numbers() {
    let mut world = World::new(&[10, 10], 1);
    let greedy = world.create(on_disk("greedy", 100, "d0", Capacity::default()));
    assert_eq!(world.place_all(&greedy, 0..7), 7);
    let create = Command::CreateVhd(Box::new(on_disk("a", 10, "d0", limits(None, Some(4)))));
    let refused = world.refuse_capacity(create);
    let CapacityError::NoRoomToReserve { needed, room, disk, .. } = refused else { panic!("{refused}") };
    assert_eq!((needed, room, disk), (4 * EXTENT, 3 * EXTENT, "d0".to_owned()));
    world.create(on_disk("a", 10, "d0", limits(None, Some(3))));
    assert!(matches!(
        world.refuse_capacity(set_vhd("a", limits(None, Some(4)))),
        CapacityError::NoRoomToReserve { .. }
    ));
    assert_eq!(world.capacity_of("a"), (0, 3, 0), "as before");
    // A spanned one goes out of the way of an isolated one.
    world.create(CreateVhd { capacity: limits(None, Some(6)), ..self::create("s", 20, SPANNED) });
    world.create(on_disk("b", 10, "d1", limits(None, Some(4))));
    world.run(set_vhd("a", limits(None, None))).unwrap();
    world.run(set_vhd("b", limits(None, Some(7)))).unwrap();
    assert_eq!((world.free_slots(0), world.free_slots(1)), (0, 0));
    world.check_holds();
}

#[test]
fn it_is_held_before_it_is_durable_and_given_back_if_that_fails() {
    let mut world = World::new(&[10], 1);
    let vhd = world.create(on_disk("a", 10, "d0", Capacity::default()));
    let greedy = world.create(on_disk("greedy", 100, "d0", Capacity::default()));
    let id = world.command(set_vhd("a", limits(None, Some(6))));
    assert_eq!(world.place_all(&greedy, 0..5), 4);
    let (edit, _) = world.mail.edits.pop().unwrap();
    world.owner.handle_store(StoreReport::EditDone { edit, result: Err(EditFailed) }, &mut world.mail);
    assert!(matches!(world.mail.replies.remove(&id), Some(Err(CommandError::Store(_)))));
    assert_eq!(world.allocated(1004), Some(Ok(())), "who waited has it now");
    assert_eq!((world.place_all(&vhd, 0..9), world.free_slots(0)), (5, 0));
    world.check_holds();
}

#[test]
fn a_first_write_lets_go_of_nothing_that_is_about_to_be_durable() {
    let mut world = World::new(&[10, 10], 1);
    world.run(create_vm("web", Capacity::default())).unwrap();
    let [a, b] = [("a", "d0"), ("b", "d1")]
        .map(|(name, disk)| world.create(in_vm(on_disk(name, 10, disk, Capacity::default()), "web")));
    let [greedy0, greedy1] =
        [("e", "d0"), ("f", "d1")].map(|(name, disk)| world.create(on_disk(name, 100, disk, Capacity::default())));
    assert_eq!(world.place_all(&greedy0, 0..6), 6);
    // Most of it is held on the other disk: not all that `a` writes is of that.
    world.command(set_vm("web", limits(None, Some(6))));
    assert_eq!(world.place_all(&a, 0..4), 4);
    assert!(world.place_all(&greedy1, 0..100) < 10);
    world.check_holds();
    world.commit_edits();
    world.settle();
    assert_eq!(world.capacity_of_vm("web"), (4, 2, 0), "nobody else has had it");
    assert_eq!(world.place_all(&b, 0..10), 6, "and what the others did not get");
    world.check_holds();
}

#[test]
fn replicas_of_what_is_reserved_are_kept_apart() {
    let mut world = world_of(&[(10, "x"), (10, "x"), (10, "y")]);
    let vhd = world.create(CreateVhd { capacity: limits(None, Some(12)), ..replicated(20, 2) });
    let greedy = world.create(create("greedy", 100, SPANNED));
    assert_eq!(world.place_all(&greedy, 0..100), 18);
    assert_eq!(world.place_all(&vhd, 0..7), 6, "two slots each");
    world.check();
    let refused = world.refuse_capacity(set_vhd("r", limits(None, Some(14))));
    assert!(matches!(refused, CapacityError::NoRoomToReserve { .. }), "{refused}");
}

#[test]
fn what_a_failed_disk_held_is_held_elsewhere_or_short() {
    let mut world = World::new(&[10, 10], 1);
    let vhd = world.create(CreateVhd { capacity: limits(None, Some(8)), ..create("s", 20, SPANNED) });
    world.create(on_disk("i", 20, "d1", limits(None, Some(4))));
    let fail = |world: &mut World, disk: u8| {
        let request = OwnerRequest::DiskError { disk: DiskId(disk), error: IoError::Os(libc::EIO), sync: true };
        world.owner.handle_reactor(request, world.now, &mut world.mail);
    };
    fail(&mut world, 0);
    assert_eq!((world.capacity_of("s"), world.capacity_of("i")), ((0, 6, 2), (0, 4, 0)));
    let short = Event::ReservationShort { of: ReservationOf::Vhd("s".to_owned()), short: 2 * EXTENT };
    assert_eq!(world.mail.events.iter().filter(|event| **event == short).count(), 1);
    world.check_holds();
    world.run(set_vhd("i", limits(None, Some(2)))).unwrap();
    assert_eq!(world.capacity_of("s"), (0, 8, 0));
    assert!(world.mail.events.contains(&Event::ReservationKept { of: ReservationOf::Vhd("s".to_owned()) }));
    assert_eq!(world.place_all(&vhd, 0..9), 8);
    fail(&mut world, 1);
    assert_eq!(world.capacity_of("i"), (0, 0, 2));
}

#[test]
fn a_vms_reservation_is_its_vhds_together() {
    let mut world = World::new(&[10, 10], 1);
    world.run(create_vm("web", limits(None, Some(8)))).unwrap();
    assert_eq!(world.capacity_of_vm("web"), (0, 0, 0), "without VHDs there is no disk for it");
    let a = world.create(in_vm(on_disk("a", 20, "d0", Capacity::default()), "web"));
    assert_eq!((world.capacity_of_vm("web"), world.free_slots(0)), ((0, 8, 0), 2));
    let b = world.create(in_vm(on_disk("b", 20, "d0", limits(None, Some(3))), "web"));
    assert_eq!((world.capacity_of_vm("web"), world.capacity_of("b"), world.free_slots(0)), ((0, 5, 0), (0, 3, 0), 2));
    let greedy = world.create(on_disk("greedy", 100, "d0", Capacity::default()));
    assert_eq!(world.place_all(&greedy, 0..100), 2);
    assert_eq!(world.place_all(&a, 0..9), 5, "without what is b's own");
    assert_eq!(world.place_all(&b, 0..9), 3);
    world.discard(&a, 0);
    world.settle();
    assert_eq!(world.free_slots(0), 0);
    world.run(Command::DeleteVhd { vhd: "b".to_owned(), force: false }).unwrap();
    world.settle();
    world.check_holds();
    world.check();
}

#[test]
fn a_thick_vhd_is_made_of_what_is_reserved_for_its_vm() {
    let mut world = World::new(&[10], 1);
    world.run(create_vm("web", limits(None, Some(8)))).unwrap();
    world.create(in_vm(on_disk("a", 20, "d0", Capacity::default()), "web"));
    let other = CreateVhd { thick: true, ..on_disk("other", 3, "d0", Capacity::default()) };
    assert!(matches!(world.refuse(Command::CreateVhd(Box::new(other))), CommandError::NoRoom { .. }));
    assert_eq!(world.capacity_of_vm("web"), (0, 8, 0));
    world.create(CreateVhd { thick: true, ..in_vm(on_disk("b", 6, "d0", Capacity::default()), "web") });
    assert_eq!((world.capacity_of_vm("web"), world.free_slots(0)), ((6, 2, 0), 2));
    let grow = ResizeVhd { vhd: "b".to_owned(), size: 8 * EXTENT, force: false };
    world.run(Command::ResizeVhd(grow)).unwrap();
    assert_eq!((world.capacity_of_vm("web"), world.free_slots(0)), ((8, 0, 0), 2));
    world.check_holds();
    world.check();
}

#[test]
fn a_restart_holds_the_same() {
    let mut world = World::new(&[10, 10], 1);
    world.run(create_vm("web", limits(Some(19), Some(9)))).unwrap();
    let a = world.create(in_vm(on_disk("a", 20, "d0", limits(Some(12), Some(4))), "web"));
    let s = world.create(in_vm(create("s", 20, SPANNED), "web"));
    assert_eq!((world.place_all(&a, 0..1), world.place_all(&s, 0..2)), (1, 2));
    let before = (world.capacity_of("a"), world.capacity_of_vm("web"));
    let vms: Vec<VmRecord> = world.owner.vm_records();
    let pool = world.owner.pool.clone();
    let vhds = [&a, &s].map(|vhd| (VhdRecord::decode(&vhd.record.encode()).unwrap(), Arc::clone(&vhd.state)));
    let disks = pool.disks.iter().map(disk_state).collect();
    let vms = vms.iter().map(|vm| VmRecord::decode(&vm.encode()).unwrap()).collect();
    let owner = Owner::new(pool, disks, vhds.into(), 1).unwrap().with_vms(vms).unwrap();
    let mut world = World { owner, mail: Mail::default(), now: Nanos(0), next_command: 0 };
    world.owner.start(&mut world.mail);
    assert_eq!((world.capacity_of("a"), world.capacity_of_vm("web")), before);
    assert_eq!(before, ((1, 3, 0), (3, 3, 0)));
    world.check_holds();
}

#[test]
fn a_reservation_goes_along_to_other_disks_if_it_fits_there() {
    let mut world = World::new(&[10, 10, 4], 1);
    let vhd = world.create(on_disk("a", 20, "d0", limits(Some(8), Some(6))));
    assert_eq!(world.place_all(&vhd, 0..2), 2);
    let migrate = |disk: &str| {
        let request = JobRequest::Migrate { vhd: "a".to_owned(), disk: Some(disk.to_owned()) };
        let start = super::super::command::StartJob { request, ..super::super::command::StartJob::by_itself(1) };
        Command::StartJob(Box::new(start))
    };
    let refused = world.refuse_capacity(migrate("d2"));
    assert!(matches!(refused, CapacityError::NoRoomToReserve { needed, .. } if needed == 4 * EXTENT), "{refused}");
    assert_eq!((world.free_slots(0), world.free_slots(2)), (4, 4));
    world.run(migrate("d1")).unwrap();
    assert_eq!(world.free_slots(0), 8, "nothing is held there any more");
    world.move_all();
    assert_eq!((world.capacity_of("a"), world.free_slots(0), world.free_slots(1)), ((2, 4, 0), 10, 4));
    world.check_holds();
    world.check();
}
