use std::collections::BTreeMap;

use super::super::observe::tests::answers;
use super::*;
use crate::base::ids::{DiskId, VhdId, VmId};
use crate::control::convert::create_vhd;
use crate::control::stats::tests::{T0, disk, vhd};
use crate::control::wire::VhdCreate;
use crate::owner::command::{DiskInfo, VhdInfo};
use crate::policy::rules::Scope;

fn disks() -> Vec<DiskInfo> {
    let mut disks = vec![disk(0), disk(1), disk(2)];
    disks.iter_mut().for_each(|disk| disk.space.free = 90 << 20);
    disks
}

/// Rules by which the policy places, and what it saw of these VHDs.
fn ground(mode: Mode, vhds: Vec<VhdInfo>) -> Ground {
    let mut rules = Rules::default();
    rules.all.mode = Some(mode);
    let seen = answers(disks(), vhds, Vec::new()).observe(&Default::default(), &rules, T0);
    Ground { rules, seen: Some(seen) }
}

fn request(text: &str) -> CreateVhd {
    let request: VhdCreate = serde_json::from_str(text).unwrap();
    create_vhd(request, uuid::Uuid::from_u128(9), 0).unwrap()
}

fn any() -> CreateVhd {
    request(r#"{"name":"new","size_bytes":10485760}"#)
}

/// A VHD that the daemon has made of this, as the next answers have it.
fn made(id: u32, layout: &Layout) -> VhdInfo {
    let mut made = vhd(id, 10);
    made.record.layout = layout.clone();
    made
}

#[test]
fn only_in_mode_auto_and_only_where_nobody_says_where() {
    let now = || answers(disks(), Vec::new(), Vec::new());
    assert!(ground(Mode::Auto, Vec::new()).place(&now(), &any()).is_some());
    for mode in [Mode::Off, Mode::Advise] {
        assert_eq!(ground(mode, Vec::new()).place(&now(), &any()), None, "{mode:?}");
    }
    assert_eq!(Ground { seen: None, ..ground(Mode::Auto, Vec::new()) }.place(&now(), &any()), None, "nothing was seen");
    for text in [
        r#"{"name":"new","size_bytes":10485760,"layout":"isolated","disks":["d1"]}"#,
        r#"{"name":"new","size_bytes":10485760,"layout":"spanned"}"#,
    ] {
        assert_eq!(ground(Mode::Auto, Vec::new()).place(&now(), &request(text)), None, "{text}");
    }
    // A large one would be spread; who wants it isolated is not told that.
    let large = r#"{"name":"new","size_bytes":94371840"#;
    let place = |text: String| ground(Mode::Auto, Vec::new()).place(&now(), &request(&text));
    assert!(matches!(place(format!("{large}}}")), Some(Layout::Spanned { .. })));
    assert_eq!(place(format!("{large},\"layout\":\"isolated\"}}")), None);
    // The mode of the VM counts.
    let mut of_vm = ground(Mode::Advise, Vec::new());
    of_vm.rules.vms.insert(VmId(1), Default::default());
    of_vm.rules.set(Scope::Vm(VmId(1)), "mode", "auto").unwrap();
    assert!(of_vm.has_a_say(&any()));
    assert_eq!(of_vm.place(&now(), &any()), None, "it is not of that VM");
}

/// The policy looks every half minute, and VHDs are made faster than that.
#[test]
fn those_that_were_made_since_the_last_look_count() {
    let ground = ground(Mode::Auto, Vec::new());
    let mut there: Vec<VhdInfo> = Vec::new();
    for id in 1..=9 {
        let layout = ground.place(&answers(disks(), there.clone(), Vec::new()), &any()).unwrap();
        there.push(made(id, &layout));
    }
    let mut on: BTreeMap<DiskId, u32> = BTreeMap::new();
    there.iter().flat_map(|vhd| vhd.record.layout.disks().iter()).for_each(|disk| *on.entry(disk).or_default() += 1);
    assert_eq!(on.into_values().collect::<Vec<_>>(), [3, 3, 3]);
}

#[test]
fn what_has_changed_since_the_last_look_counts() {
    let ground = ground(Mode::Auto, vec![vhd(1, 10)]);
    let mut now = disks();
    now[1].space.free = 1 << 20;
    now[2].suspicion = Some("it is slow".into());
    let place = |answers: &Answers| ground.place(answers, &any());
    // The first one has the only disk that is left; it is moved away, and deleted.
    let mut moved = answers(now, vec![made(1, &Layout::Isolated { disk: DiskId(2), chosen: false })], Vec::new());
    assert_eq!(place(&moved), Some(Layout::Isolated { disk: DiskId(0), chosen: false }));
    assert_eq!(moved.placed_now(ground.seen.as_ref().unwrap()).vhds[0].layout.disks().0, 1 << 2);
    moved.vhds.clear();
    assert!(moved.placed_now(ground.seen.as_ref().unwrap()).vhds.is_empty());
    // A disk that has gone is not taken, nor one that nobody has looked at.
    moved.pool.disks = vec![disk(9)];
    assert_eq!(place(&moved), None);
}

#[test]
fn what_was_placed_is_remembered_until_it_is_gone() {
    let desk = super::super::Desk::new(Default::default(), Vec::new(), Default::default(), Default::default(), None);
    let look = |vhds: Vec<VhdInfo>, next: u32| {
        let mut answers = answers(disks(), vhds, Vec::new());
        answers.pool.record.next_vhd_id = VhdId(next);
        desk.look(&answers, desk.happened(), T0);
        let pool = desk.lock().seen.clone().unwrap();
        let said = desk.why(&pool, VhdId(2)).map(|why| why.sentences[0].clone()).unwrap_or_default();
        said.contains("chosen by the policy when it was created")
    };
    desk.note_placed(VhdId(2));
    assert!(!look(vec![vhd(1, 10)], 2), "its creation came after the answers");
    assert!(look(vec![vhd(1, 10), vhd(2, 10)], 3));
    assert!(!look(vec![vhd(1, 10)], 3));
    assert!(!look(vec![vhd(1, 10), vhd(2, 10)], 3), "forgotten");
}
