//! Disks that several clients want: when they are shared out, and who is told.

use super::*;
use crate::base::limits::{SHARES_COUNT_MILLIS, SHARES_LOOK_MILLIS};
use crate::metrics::IoKind;
use crate::owner::command::{CreateVm, RemovalStep, SetVhd, SetVm};
use crate::placement::sharing::{Sharing, SharingChange, SharingError};
use crate::qos::shares::{Account, Turn, Work};
use crate::qos::{Priority, Share, Weight};
use crate::shared::Rest;
use crate::shared::disk::MOVER_THREAD;

const ISOLATED_ON: fn(&str) -> LayoutRequest = |disk| LayoutRequest::Isolated { disk: Some(disk.to_owned()) };

/// Two disks and three VHDs: `a` and `b` on the first disk, `c` on the second one.
fn world() -> (World, [VhdInfo; 3]) {
    let mut world = World::new(&[20, 20], 2);
    world.owner.governor.enabled = true;
    let vhds = [("a", "d0"), ("b", "d0"), ("c", "d1")].map(|(name, disk)| {
        let vhd = world.create(create(name, 4, ISOLATED_ON(disk)));
        assert_eq!(world.allocate(&vhd, 0), Some(Ok(())));
        vhd
    });
    world.mail.reactors.clear();
    (world, vhds)
}

fn reads(world: &World, vhd: &VhdInfo) {
    vhd.state.metrics.of(ReactorId(1)).record(IoKind::Read, 4096, 1000, true);
    let known = world.owner.vhds.get(vhd.record.id);
    let counts = known.iter().flat_map(|vhd| vhd.counts.iter().enumerate());
    for (disk, _) in counts.filter(|(_, count)| **count > 0) {
        let disk = &world.owner.space.disk(DiskId(u8::try_from(disk).unwrap())).state;
        vhd.state.account(disk.id).want();
        disk.metrics.of(ReactorId(1)).record(IoKind::Read, 4096, 1000, true);
    }
}

/// Time passes, and these VHDs have got something.
fn pass(world: &mut World, millis: u64, busy: &[&VhdInfo]) {
    for _ in 0..millis / 20 {
        busy.iter().for_each(|vhd| reads(world, vhd));
        world.advance(20);
    }
}

/// Milliseconds until the next look; `None`: there is none before a reactor does something.
fn until_look(world: &World) -> Option<u64> {
    Some(world.owner.governor.due()?.since(world.now) / 1_000_000)
}

fn until_due(world: &World) -> u64 {
    until_look(world).expect("it looks")
}

fn shared(world: &World) -> [bool; 2] {
    [0, 1].map(|disk| world.owner.space.disk(DiskId(disk)).state.shares.is_on())
}

#[test]
fn a_disk_is_shared_out_as_long_as_several_want_it() {
    let (mut world, [a, b, c]) = world();
    pass(&mut world, 1000, &[&a, &c]);
    assert_eq!(shared(&world), [false, false], "each has a disk of its own");
    pass(&mut world, 400, &[&a, &b, &c]);
    assert_eq!(shared(&world), [true, false]);
    pass(&mut world, 4000, &[&a]);
    assert_eq!(shared(&world), [true, false], "the other one may have had to wait");
    pass(&mut world, 2000, &[&a]);
    assert_eq!(shared(&world), [false, false]);
    pass(&mut world, 400, &[&a, &b]);
    let disk = Arc::clone(&world.owner.space.disk(DiskId(0)).state);
    assert!(disk.shares.is_on());
    disk.fail();
    pass(&mut world, 400, &[&a, &b]);
    assert!(!disk.shares.is_on());
}

#[test]
fn jobs_are_a_client_and_nothing_is_shared_out_if_it_is_switched_off() {
    let (mut world, [a, b, _]) = world();
    let disk = Arc::clone(&world.owner.space.disk(DiskId(0)).state);
    for _ in 0..20 {
        disk.copy_metrics.record(IoKind::Read, 4096, 1000, true);
        pass(&mut world, 20, &[&a]);
    }
    assert_eq!(shared(&world), [true, false]);
    pass(&mut world, 6000, &[&a]);
    assert_eq!(shared(&world), [false, false]);
    for _ in 0..20 {
        disk.scrub_work.read(4096);
        pass(&mut world, 20, &[&a]);
    }
    assert_eq!(shared(&world), [true, false], "a scrub is a job, too");
    let mut world = World::new(&[20, 20], 2);
    assert!(world.owner.next_deadline().is_none());
    pass(&mut world, 1000, &[&a, &b]);
    assert_eq!(shared(&world), [false, false]);
}

#[test]
fn who_waits_for_a_turn_is_a_client() {
    let (mut world, [a, b, _]) = world();
    let disk = Arc::clone(&world.owner.space.disk(DiskId(0)).state);
    pass(&mut world, 400, &[&a, &b]);
    let turn = disk.shares.take_turn(b.state.account(DiskId(0)), Share::default(), Work::of(4096));
    disk.shares.publish(1, None, Some(turn));
    pass(&mut world, 6000, &[&a]);
    assert_eq!(shared(&world), [true, false]);
    // It has begun, and others have had as much since.
    disk.shares.publish(1, Some(turn), None);
    assert!(disk.shares.begin(0, Turn(b.state.account(DiskId(0)).so_far()), Work(0)));
    pass(&mut world, 6000, &[&a]);
    assert_eq!(shared(&world), [false, false]);

    pass(&mut world, 400, &[&a, &b]);
    disk.shares.publish(MOVER_THREAD, None, Some(turn));
    pass(&mut world, 6000, &[&a]);
    assert_eq!(shared(&world), [true, false], "so are jobs");
}

#[test]
fn a_disk_whose_time_is_worn_begins_anew() {
    let (mut world, [a, b, _]) = world();
    let disk = Arc::clone(&world.owner.space.disk(DiskId(0)).state);
    pass(&mut world, 400, &[&a, &b]);
    (1..=5).for_each(|part| assert!(disk.shares.begin(0, Turn(part << 60), Work(0))));
    assert!(disk.shares.is_worn());
    pass(&mut world, 1000, &[&a, &b]);
    assert!(disk.shares.is_on() && !disk.shares.is_worn());
}

#[test]
fn whoever_waits_is_told_when_there_may_be_room() {
    let (mut world, [a, b, _]) = world();
    pass(&mut world, 400, &[&a, &b]);
    let disk = Arc::clone(&world.owner.space.disk(DiskId(0)).state);
    let turn = disk.shares.take_turn(&Account::default(), Share::default(), Work::of(4096));
    disk.shares.publish(1, None, Some(turn));
    disk.shares.publish(MOVER_THREAD, None, Some(Turn(turn.0 + 1)));
    world.mail.reactors.clear();
    disk.fail();
    pass(&mut world, 400, &[&a, &b]);
    assert!(!disk.shares.is_on());
    let told = |(to, message): &(ReactorId, ReactorMessage)| {
        assert!(matches!(message, ReactorMessage::Room) && *to == ReactorId(1));
    };
    assert!(!world.mail.reactors.is_empty());
    world.mail.reactors.iter().for_each(told);
    assert!(world.mail.mover.iter().any(|message| matches!(message, MoverMessage::Room)));
}

#[test]
fn a_disk_that_leaves_while_it_is_shared_out_is_forgotten() {
    let (mut world, [a, _, c]) = world();
    let disk = Arc::clone(&world.owner.space.disk(DiskId(1)).state);
    for _ in 0..20 {
        disk.copy_metrics.record(IoKind::Read, 4096, 1000, true);
        pass(&mut world, 20, &[&c]);
    }
    assert_eq!(shared(&world), [false, true]);
    world.run(Command::DeleteVhd { vhd: "c".to_owned(), force: false }).unwrap();
    world.settle();
    world.run(Command::RemoveDisk { disk: "d1".to_owned(), step: RemovalStep::Take }).unwrap();
    world.settle();
    assert_eq!(until_due(&world), SHARES_LOOK_MILLIS);
    pass(&mut world, 400, &[&a]);
    let is_rare = |_| {
        pass(&mut world, 20, &[&a]);
        until_due(&world) > SHARES_LOOK_MILLIS
    };
    assert!((0..10).any(is_rare));
}

#[test]
fn on_an_idle_daemon_nobody_looks_until_a_reactor_does_something() {
    let (mut world, [a, b, _]) = world();
    let rest = Arc::new(Rest::default());
    world.owner = world.owner.with_fair_shares(true, Arc::clone(&rest));
    pass(&mut world, 400, &[]);
    assert_eq!(until_look(&world), None);
    assert!(rest.end());
    world.tell(OwnerRequest::Stirred);
    assert!(until_due(&world) <= SHARES_COUNT_MILLIS);
    pass(&mut world, 200, &[]);
    assert!(!rest.end(), "what it does may not be done yet");
    reads(&world, &a);
    reads(&world, &b);
    pass(&mut world, 200, &[]);
    assert_eq!(shared(&world), [true, false]);
    pass(&mut world, 6000, &[&a]);
    assert!(!shared(&world)[0] && until_due(&world) <= SHARES_COUNT_MILLIS && !rest.end());
    pass(&mut world, 6000, &[]);
    assert_eq!(until_look(&world), None);
    assert!(rest.end());
}

#[test]
fn a_disk_that_is_shared_out_and_does_nothing_is_looked_at_seldom_until_a_reactor_does_something() {
    let (mut world, [a, b, _]) = world();
    let rest = Arc::new(Rest::default());
    world.owner = world.owner.with_fair_shares(true, Arc::clone(&rest));
    pass(&mut world, 1000, &[&a, &b]);
    assert!(until_due(&world) <= SHARES_LOOK_MILLIS && !rest.end());
    pass(&mut world, 40, &[]);
    assert!(until_due(&world) > SHARES_LOOK_MILLIS && rest.end());
    assert_eq!(shared(&world), [true, false]);
    world.tell(OwnerRequest::Stirred);
    pass(&mut world, 20, &[&a]);
    assert!(until_due(&world) <= SHARES_LOOK_MILLIS && !rest.end());
    // Who waits has to be looked after, though nothing is done.
    let disk = Arc::clone(&world.owner.space.disk(DiskId(0)).state);
    disk.shares.publish(0, None, Some(Turn(1)));
    pass(&mut world, 40, &[]);
    assert!(until_due(&world) <= SHARES_LOOK_MILLIS && !rest.end());
}

#[test]
fn a_window_is_looked_for_once_what_is_in_flight_is_counted() {
    let (mut world, [a, b, _]) = world();
    let disk = Arc::clone(&world.owner.space.disk(DiskId(0)).state);
    pass(&mut world, 400, &[&a, &b]);
    assert_eq!(disk.shares.window(), Work(u64::MAX));
    let _ = disk.shares.begin_anyway(Turn(0), Work::of(1 << 20));
    pass(&mut world, 400, &[&a, &b]);
    assert!(disk.shares.window() < Work::of(1 << 20) && disk.shares.window() > Work::of(1 << 18));
}

#[test]
fn what_is_awaited_is_looked_at_and_what_it_leaves_is_said_each_time() {
    let (mut world, [a, b, _]) = world();
    let disk = Arc::clone(&world.owner.space.disk(DiskId(0)).state);
    pass(&mut world, 1000, &[&a, &b]);
    let work = Work::of(4096);
    let _ = disk.shares.begin_anyway(Turn(1), work);
    disk.shares.set_window(Work(u64::MAX));
    disk.shares.set_awaited_window(work);
    let under_way = disk.shares.awaited().under_way();
    let later = |turn: u64| disk.shares.begin(0, Turn(1 << 40 | turn), work);
    assert!(!later(1));
    pass(&mut world, 20, &[&a, &b]);
    disk.shares.set_window(Work(u64::MAX));
    assert!(later(2), "how much it needs is not known yet");
    drop(under_way);
    pass(&mut world, 20, &[&a, &b]);
    assert!(!disk.shares.awaited().take_lately());
}

fn weight(weight: u32) -> Sharing {
    Sharing { weight: Some(weight), ..Sharing::default() }
}

fn change(weight: Option<u32>) -> SharingChange {
    SharingChange { weight: Some(weight), ..SharingChange::default() }
}

fn share(weight: u32, priority: Priority) -> Share {
    Share::new(Weight::new(weight).unwrap(), priority)
}

#[test]
fn shares_of_a_vhd_hold_as_soon_as_they_are_durable_and_its_vm_says_the_rest() {
    let (mut world, [a, ..]) = world();
    assert_eq!(a.state.share.get(), Share::default());
    let set = |change| Command::SetVhd(Box::new(SetVhd { vhd: "a".to_owned(), sharing: change, ..SetVhd::default() }));
    world.command(set(change(Some(300))));
    assert_eq!(a.state.share.get(), Share::default(), "not yet");
    world.commit_edits();
    assert_eq!(a.state.share.get(), share(300, Priority::Normal));
    let vm = Sharing { priority: Some(Priority::High), latency_target_us: Some(2000), ..weight(7) };
    world.run(Command::CreateVm(CreateVm { name: "web".to_owned(), sharing: vm, ..CreateVm::default() })).unwrap();
    let join = SetVhd { vhd: "a".to_owned(), vm: Some(Some("web".to_owned())), ..SetVhd::default() };
    world.run(Command::SetVhd(Box::new(join))).unwrap();
    assert_eq!(a.state.share.get(), share(300, Priority::High));
    assert!(a.state.share.is_late(2_000_001));
    world.run(set(change(None))).unwrap();
    assert_eq!(a.state.share.get(), share(7, Priority::High));
    let slow = SharingChange { priority: Some(Some(Priority::Low)), latency_target_us: Some(None), ..change(None) };
    world.run(Command::SetVm(SetVm { vm: "web".to_owned(), sharing: slow, ..SetVm::default() })).unwrap();
    assert_eq!(a.state.share.get(), share(100, Priority::Low));
    assert!(!a.state.share.has_target());
    world.check();
}

#[test]
fn shares_that_make_no_sense_are_refused() {
    let (mut world, _) = world();
    let set = SetVhd { vhd: "a".to_owned(), sharing: change(Some(0)), ..SetVhd::default() };
    let error = world.refuse(Command::SetVhd(Box::new(set)));
    assert_eq!(error, CommandError::InvalidSharing(SharingError::Weight { asked: 0 }));
    assert_eq!(error.code(), "invalid_sharing");
    let soon = Sharing { latency_target_us: Some(1), ..Sharing::default() };
    world.refuse(Command::CreateVm(CreateVm { name: "v".to_owned(), sharing: soon, ..CreateVm::default() }));
    let again = CreateVhd { sharing: weight(5), ..create("a", 4, ISOLATED_ON("d0")) };
    let differs = world.refuse(Command::CreateVhd(Box::new(again)));
    assert!(matches!(differs, CommandError::Conflict { field: "share of disks", .. }), "{differs:?}");
}

#[test]
fn a_vhd_wants_the_disks_that_its_requests_go_to() {
    let mut world = World::new(&[20, 20], 2);
    world.owner.governor.enabled = true;
    let [a, b] = ["a", "b"].map(|name| {
        let vhd = world.create(create(name, 8, LayoutRequest::Spanned { disks: None, width: None }));
        (0..8).for_each(|extent| assert_eq!(world.allocate(&vhd, extent), Some(Ok(()))));
        vhd
    });
    let reads = |world: &mut World, of: &[(&VhdInfo, u8)]| {
        for _ in 0..50 {
            for (vhd, disk) in of {
                vhd.state.account(DiskId(*disk)).want();
                let disk = &world.owner.space.disk(DiskId(*disk)).state;
                disk.metrics.of(ReactorId(1)).record(IoKind::Read, 4096, 1000, true);
            }
            world.advance(20);
        }
    };
    reads(&mut world, &[(&a, 0), (&b, 1)]);
    assert_eq!(shared(&world), [false, false], "they do not meet");
    reads(&mut world, &[(&a, 0), (&b, 1), (&b, 0)]);
    assert_eq!(shared(&world), [true, false]);
}

#[test]
fn a_vhd_whose_target_is_missed_narrows_the_window_of_that_disk() {
    let (mut world, [a, b, _]) = world();
    let target = SharingChange { latency_target_us: Some(Some(5000)), ..SharingChange::default() };
    world.run(Command::SetVhd(Box::new(SetVhd { vhd: "a".to_owned(), sharing: target, ..SetVhd::default() }))).unwrap();
    let disk = Arc::clone(&world.owner.space.disk(DiskId(0)).state);
    let _ = disk.shares.begin_anyway(Turn(0), Work::of(1 << 20));
    pass(&mut world, 1000, &[&a, &b]);
    let before = disk.shares.window();
    for _ in 0..25 {
        (0..10).for_each(|_| a.state.account(DiskId(0)).count_targeted(true));
        pass(&mut world, 20, &[&a, &b]);
    }
    assert!(disk.shares.window() < Work(before.0 / 2), "{:?} of {before:?}", disk.shares.window());
}

#[test]
fn what_a_job_did_while_nobody_looked_is_no_reason_to_share_a_disk_out() {
    let (mut world, [a, ..]) = world();
    pass(&mut world, 400, &[]);
    assert_eq!(until_look(&world), None);
    let disk = Arc::clone(&world.owner.space.disk(DiskId(0)).state);
    disk.copy_metrics.record(IoKind::Read, 4096, 1000, true);
    world.tell(OwnerRequest::Stirred);
    pass(&mut world, 1000, &[&a]);
    assert_eq!(shared(&world), [false, false]);
    for _ in 0..50 {
        disk.copy_metrics.record(IoKind::Read, 4096, 1000, true);
        pass(&mut world, 20, &[&a]);
    }
    assert_eq!(shared(&world), [true, false]);
}
