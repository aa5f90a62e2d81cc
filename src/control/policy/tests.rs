use super::observe::tests::answers;
use super::*;
use crate::base::clock::Nanos;
use crate::base::ids::ReactorId;
use crate::base::limits::{POLICY_REST_LOOK_SECS, POLICY_TELL_SECS};
use crate::control::stats::tests as stats;
use crate::metrics::IoKind;
use crate::policy::judge::tests::pool::{World, busy_vhd, disk, measure, vhd};
use crate::policy::observe::Flow;
use crate::policy::rules::{Mode, Scope};

fn desk(rules: Option<&str>) -> Desk {
    Desk::new(kept_rules(rules), Vec::new(), Arc::default(), Arc::default(), None)
}

fn told(desk: &Desk) -> Vec<EventDetail> {
    desk.events.subscribe(0).0.into_iter().map(|event| event.detail).collect()
}

#[test]
fn rules_that_cannot_be_are_not_gone_by() {
    let edited = |edit: fn(&mut Rules)| {
        let mut rules = Rules { hold_secs: 300, ..Rules::default() };
        edit(&mut rules);
        desk(Some(&serde_json::to_string(&rules).unwrap())).rules()
    };
    assert_eq!(edited(|_| ()), Rules { hold_secs: 300, ..Rules::default() });
    assert!(told(&desk(None)).is_empty());
    assert_eq!(edited(|rules| rules.rest_secs = u64::MAX), Rules::default());
    assert_eq!(edited(|rules| rules.space = 7.0), Rules::default());
    assert_eq!(desk(Some("{}")).rules(), Rules::default());
}

#[test]
fn that_rules_are_not_gone_by_is_an_event_and_said_until_there_are_others() {
    let newer = serde_json::to_string(&Rules::default()).unwrap().replacen('{', "{\"colour\":1,", 1);
    for text in ["{", &newer] {
        let desk = desk(Some(text));
        let [EventDetail::Note { message }] = &told(&desk)[..] else { panic!("{:?}", told(&desk)) };
        assert!(message.contains("'spanblk policy set'"), "{message}");
        assert_eq!((desk.wanted().problem.as_ref(), desk.advice().problem.as_ref()), (Some(message), Some(message)));
        desk.set_rules(Rules::default());
        assert_eq!((desk.wanted().problem, desk.advice().problem), (None, None));
    }
}

#[test]
fn what_was_remembered_and_cannot_be_read_is_an_event() {
    let mut notes = keep::notes_of(1, &State::default().encode());
    let bytes = notes[0].bytes.as_mut().unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let notes = notes.into_iter().map(|note| (note.key.number, note.bytes.unwrap())).collect();
    let desk = Desk::new(Kept::default(), notes, Arc::default(), Arc::default(), None);
    let [EventDetail::Note { message }] = &told(&desk)[..] else { panic!("{:?}", told(&desk)) };
    assert!(message.contains("is forgotten"), "{message}");
}

#[test]
fn proposals_about_the_same_that_wait_are_told_once_an_hour() {
    let desk = desk(None);
    let mut world = World::new((0..3).map(disk).collect(), vec![vhd(1, None, &[(0, 500)]), vhd(2, None, &[(0, 350)])]);
    world.rules.all.mode = Some(Mode::Advise);
    world.rules.moved_a_day = 0.5;
    world.run(60);
    assert_eq!(world.state.open.len(), 1);
    let (mut known, mut before) = (BTreeMap::new(), State::default());
    // Each time it is another proposal.
    let mut tell = |secs: u64, standing: Standing| {
        let mut after = world.state.clone();
        after.clock.secs += secs;
        after.proposed = before.proposed + 1;
        (after.open[0].number, after.open[0].standing) = (after.proposed, standing);
        desk.tell(&world.pool, &before, &after, &mut known);
        before = after;
        told(&desk).len()
    };
    assert_eq!(tell(0, Standing::Advice), 1);
    assert_eq!(tell(30, Standing::Budget), 1);
    assert_eq!(tell(POLICY_TELL_SECS - 1, Standing::Advice), 1);
    assert_eq!(tell(POLICY_TELL_SECS, Standing::Advice), 2);
    assert_eq!(tell(POLICY_TELL_SECS + 30, Standing::Start), 3, "what is done is always told");
}

#[test]
fn a_neighbour_that_takes_too_much_is_told_with_its_victim() {
    let mut guests: Vec<_> = (2..=5).map(|id| busy_vhd(id, None, &[(0, 40)], 0.04)).collect();
    guests.push(busy_vhd(1, None, &[(0, 60)], 0.8));
    let mut world = World::new((0..3).map(disk).collect(), guests);
    world.pool.vhds.iter_mut().for_each(|vhd| vhd.usual = Flow::default());
    world.rules.set(Scope::Pool, "latency", "1ms").unwrap();
    world.rules.all.mode = Some(Mode::Advise);
    world.run(60);
    measure(&mut world.pool);
    let desk = desk(None);
    desk.tell(&world.pool, &State::default(), &world.state, &mut BTreeMap::new());
    let noisy = |detail: &EventDetail| matches!(detail, EventDetail::NoisyNeighbour { aggressor, disk, .. } if aggressor == "vhd1" && disk == "disk0");
    assert!(told(&desk).iter().any(noisy), "{:?}", told(&desk));
}

#[test]
fn while_nothing_happens_it_looks_seldom() {
    let desk = desk(None);
    let vhds = || vec![stats::vhd(1, 100)];
    let disks_with = |free: u64| {
        let mut disk = stats::disk(0);
        disk.space.free = free << 20;
        vec![disk]
    };
    let disks = || disks_with(93);
    let (counted, on) = (vhds(), disks());
    let record = |secs: u64| desk.stats.record(&counted, &on, Nanos(secs * 1_000_000_000), stats::T0 + secs);
    let look = |secs: u64| desk.look(&answers(disks(), vhds(), Vec::new()), desk.happened(), stats::T0 + secs);
    let is_due = |secs: u64| desk.is_due(stats::T0 + secs);
    record(0);
    assert!(is_due(0), "it has not looked yet");
    look(0);
    record(10);
    assert!(!is_due(30) && !is_due(POLICY_REST_LOOK_SECS - 1) && is_due(POLICY_REST_LOOK_SECS));
    assert!(desk.is_due(stats::T0 - POLICY_REST_LOOK_SECS), "a clock that was set back");

    // A guest does something; an event; other wishes; something that has not lasted for long enough.
    counted[0].state.metrics.of(ReactorId(0)).record(IoKind::Read, 4096, 1000, true);
    record(20);
    assert!(is_due(30));
    look(30);
    assert!(!is_due(60));
    desk.events.record(Severity::Info, EventDetail::DaemonReady { vhds: 1 });
    assert!(is_due(60));
    look(60);
    assert!(!is_due(90));
    // What comes while the owner answers is for the next look.
    let before = desk.happened();
    desk.events.record(Severity::Info, EventDetail::DaemonReady { vhds: 2 });
    desk.look(&answers(disks(), vhds(), Vec::new()), before, stats::T0 + 80);
    assert!(is_due(80));
    look(80);
    assert!(!is_due(90));
    let mut rules = desk.rules();
    rules.set(Scope::Pool, "space", "70%").unwrap();
    desk.set_rules(rules);
    assert!(is_due(90));
    desk.look(&answers(disks_with(0), vhds(), Vec::new()), desk.happened(), stats::T0 + 90);
    assert!(!desk.lock().state.is_at_rest() && is_due(91), "a disk has been too full, though not for long");
}
