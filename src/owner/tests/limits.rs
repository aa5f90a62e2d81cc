//! Limits of rates: what reactors are told, and what a change leaves.

use super::*;
use crate::owner::command::{CreateVm, ErrorKind, SetVhd, SetVm};
use crate::placement::limits::{IoLimits, IoLimitsChange, LimitError, RateLimit};
use crate::qos::{Admission, Buckets, Cost, LimitKind};
use crate::shared::limits::Known;

const WEB: &str = "web";
const ONE: Cost = Cost { ios: 1, bytes: 0 };

fn iops(per_sec: u64) -> IoLimits {
    IoLimits { iops: Some(RateLimit { per_sec, burst: None }), bytes: None }
}

fn change(per_sec: Option<u64>) -> IoLimitsChange {
    IoLimitsChange { iops: Some(per_sec.map(|per_sec| RateLimit { per_sec, burst: None })), bytes: None }
}

fn set_vhd(vhd: &str, limits: IoLimitsChange) -> Command {
    Command::SetVhd(Box::new(SetVhd { vhd: vhd.to_owned(), limits, ..SetVhd::default() }))
}

fn set_vm(vm: &str, limits: IoLimitsChange) -> Command {
    Command::SetVm(SetVm { vm: vm.to_owned(), limits, ..SetVm::default() })
}

/// Whether both reactors have been told of other limits, and of nothing else.
fn told(world: &mut World) -> bool {
    let told = std::mem::take(&mut world.mail.reactors);
    assert!(told.iter().all(|(_, message)| matches!(message, ReactorMessage::LimitsChanged)));
    assert!(told.len().is_multiple_of(2), "{}", told.len());
    !told.is_empty()
}

/// What a reactor finds.
fn found(vhd: &VhdInfo) -> Option<Arc<Admission>> {
    let mut known = Known::default();
    vhd.state.limits.refresh(&mut known);
    known.admission
}

/// Requests that may start now. They are taken from copies of the buckets.
fn level(vhd: &VhdInfo) -> Option<usize> {
    let admission = found(vhd)?;
    let copy = |buckets: Option<&Arc<Buckets>>| {
        buckets.and_then(|buckets| Buckets::carried(Some(buckets), buckets.rates(), Nanos(0))).map(Arc::new)
    };
    let copy = Admission::new(copy(admission.own()), copy(admission.vm())).unwrap();
    let start = |_: &u32| copy.may_start(Nanos(0)).map(|()| copy.charge(ONE, Nanos(0))).is_ok();
    Some((0..10_000).take_while(start).count())
}

#[test]
fn limits_of_a_vhd_hold_as_soon_as_they_are_durable() {
    let mut world = World::new(&[10], 2);
    let free = world.create(create("free", 1, ISOLATED));
    assert!(!told(&mut world) && level(&free).is_none());
    let vhd = world.create(CreateVhd { limits: iops(100), ..create("a", 4, ISOLATED) });
    assert!(told(&mut world));
    assert_eq!((vhd.record.limits, level(&vhd)), (iops(100), Some(10)));
    world.command(set_vhd("a", change(Some(1000))));
    assert_eq!(level(&vhd), Some(10), "not yet");
    world.commit_edits();
    assert!(told(&mut world));
    assert_eq!(level(&vhd), Some(100));
    // Something else leaves the buckets alone.
    found(&vhd).unwrap().charge(Cost { ios: 60, bytes: 0 }, Nanos(0));
    let other = SetVhd { vhd: "a".to_owned(), socket_mode: Some(0o600), ..SetVhd::default() };
    world.run(Command::SetVhd(Box::new(other))).unwrap();
    assert!(!told(&mut world));
    assert_eq!(level(&vhd), Some(40));
    world.run(set_vhd("a", change(Some(50)))).unwrap();
    assert_eq!(level(&vhd), Some(2), "the same share of another burst");
    world.run(set_vhd("a", change(None))).unwrap();
    assert!(level(&vhd).is_none());
    world.check();
}

#[test]
fn vhds_of_a_vm_share_its_limits() {
    let mut world = World::new(&[20], 2);
    let create_vm = CreateVm { name: WEB.to_owned(), limits: iops(100), ..CreateVm::default() };
    world.run(Command::CreateVm(create_vm.clone())).unwrap();
    assert!(matches!(world.run(Command::CreateVm(create_vm)), Ok(Reply::Vm { outcome: Outcome::Unchanged, .. })));
    let in_vm = |name| CreateVhd { vm: Some(WEB.to_owned()), ..create(name, 4, ISOLATED) };
    let (a, b) = (world.create(in_vm("a")), world.create(in_vm("b")));
    found(&a).unwrap().charge(Cost { ios: 4, bytes: 0 }, Nanos(0));
    assert_eq!((level(&a), level(&b)), (Some(6), Some(6)));
    told(&mut world);
    world.run(Command::SetVm(SetVm { vm: WEB.to_owned(), name: Some("shop".to_owned()), ..SetVm::default() })).unwrap();
    assert!(!told(&mut world), "it is the same VM");
    world.run(set_vm("shop", change(Some(200)))).unwrap();
    assert_eq!((told(&mut world), level(&a), level(&b)), (true, Some(12), Some(12)));
    let leave = SetVhd { vhd: "b".to_owned(), vm: Some(None), ..SetVhd::default() };
    world.run(Command::SetVhd(Box::new(leave))).unwrap();
    assert_eq!((told(&mut world), level(&a), level(&b)), (true, Some(12), None));
    // After a restart, too.
    let vms = world.owner.vm_records();
    let state = Arc::new(vhd_state(&world.owner.vhds.get(a.record.id).unwrap().record, world.owner.geometry, 2, None));
    let record = world.owner.vhds.get(a.record.id).unwrap().record.clone();
    let disks = world.owner.pool.disks.iter().map(disk_state).collect();
    let pool = world.owner.pool.clone();
    let again = Owner::new(pool, disks, vec![(record, Arc::clone(&state))], 2).unwrap().with_vms(vms);
    again.unwrap().start(&mut Mail::default());
    assert_eq!(level(&VhdInfo { state, ..a }), Some(20));
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let mut world = World::new(&[10], 1);
    world.create(create("a", 1, ISOLATED));
    let error = world.refuse(set_vhd("a", change(Some(0))));
    assert_eq!(error, CommandError::InvalidLimits(LimitError::Zero { what: "requests" }));
    assert_eq!((error.kind(), error.code()), (ErrorKind::Invalid, "invalid_limits"));
    world.refuse(Command::CreateVhd(Box::new(CreateVhd { limits: iops(0), ..create("b", 1, ISOLATED) })));
    world.refuse(Command::CreateVm(CreateVm { name: "v".to_owned(), limits: iops(0), ..CreateVm::default() }));
    let differs = world.refuse(Command::CreateVhd(Box::new(CreateVhd { limits: iops(5), ..create("a", 1, ISOLATED) })));
    assert!(matches!(differs, CommandError::Conflict { field: "set of limits", .. }), "{differs:?}");
}

#[test]
fn a_limit_that_is_hit_is_told_by_name() {
    let mut world = World::new(&[10], 1);
    let vhd = world.create(create("a", 1, ISOLATED));
    let by = LimitKind::VmBytes;
    world.owner.handle_reactor(OwnerRequest::LimitHit { vhd: vhd.record.id, by }, Nanos(0), &mut world.mail);
    assert_eq!(world.mail.events.last(), Some(&Event::LimitHit { vhd: "a".to_owned(), by }));
    let gone = OwnerRequest::LimitHit { vhd: VhdId(99), by };
    world.owner.handle_reactor(gone, Nanos(0), &mut world.mail);
    assert_eq!(world.mail.events.iter().filter(|event| matches!(event, Event::LimitHit { .. })).count(), 1);
}
