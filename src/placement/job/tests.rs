use proptest::prelude::*;

use super::super::record::RECORD_VERSION;
use super::*;

const SPANNED: &str = r#"{"version":1,"id":6,"kind":{"migrate":{"from":{"spanned":{"disks":[0,3],"width":2,"chosen":false}}}},"vhds":[4,2],"state":"stopped","max_rate":1048576,"urgent":true,"created":1700000000,"ended":null,"bytes_moved":5,"reason":"disk 'd1' failed"}"#;

fn job() -> JobRecord {
    JobRecord {
        version: RECORD_VERSION,
        id: JobId(6),
        kind: JobKind::Migrate {
            from: Layout::Spanned { disks: vec![DiskId(0), DiskId(3)], width: Some(2), chosen: false },
        },
        vhds: vec![VhdId(4), VhdId(2)],
        state: JobState::Stopped,
        max_rate: Some(1 << 20),
        urgent: true,
        created: 1_700_000_000,
        ended: None,
        bytes_moved: 5,
        reason: Some("disk 'd1' failed".to_owned()),
    }
}

fn any_layout() -> impl Strategy<Value = Layout> {
    let isolated = (0u8..64, any::<bool>()).prop_map(|(disk, chosen)| Layout::Isolated { disk: DiskId(disk), chosen });
    let disks = prop::collection::btree_set((0u8..64).prop_map(DiskId), 1..64);
    let spanned = (disks, any::<Option<u32>>(), any::<bool>()).prop_map(|(disks, width, chosen)| Layout::Spanned {
        disks: disks.into_iter().collect(),
        width,
        chosen,
    });
    prop_oneof![isolated, spanned]
}

fn any_kind() -> impl Strategy<Value = JobKind> {
    prop_oneof![
        any_layout().prop_map(|from| JobKind::Span { from }),
        any_layout().prop_map(|from| JobKind::Unspan { from }),
        any_layout().prop_map(|from| JobKind::Migrate { from }),
        Just(JobKind::Settle),
        (1u8..=3).prop_map(|from| JobKind::Replicas { from }),
        (0u8..64, any_disks()).prop_map(|(disk, gives_up)| JobKind::Evacuate { disk: DiskId(disk), gives_up }),
        (0u8..32, any::<u128>(), 32u8..64, any_disks(), any::<bool>()).prop_map(|(disk, uuid, by, gives_up, keep)| {
            let uuid = uuid::Uuid::from_u128(uuid);
            JobKind::Replace { disk: DiskId(disk), uuid, by: DiskId(by), gives_up, keep }
        }),
        Just(JobKind::Rebalance),
    ]
}

fn any_disks() -> impl Strategy<Value = Vec<DiskId>> {
    proptest::collection::vec((0u8..64).prop_map(DiskId), 0..3)
}

fn any_state() -> impl Strategy<Value = JobState> {
    use JobState::{Cancelled, Done, Paused, Running, Stopped};
    prop_oneof![Just(Running), Just(Paused), Just(Stopped), Just(Done), Just(Cancelled)]
}

prop_compose! {
    fn any_job()(
        id: u32,
        kind in any_kind(),
        vhds in prop::collection::hash_set(any::<u32>().prop_map(VhdId), 0..20),
        state in any_state(),
        max_rate in prop::option::of(1u64..),
        urgent: bool,
        times: (u64, u64),
        bytes_moved: u64,
        reason: Option<String>,
    ) -> JobRecord {
        let ended = state.is_ended().then_some(times.1);
        let vhds = vhds.into_iter().collect();
        let (version, id, created) = (RECORD_VERSION, JobId(id), times.0);
        JobRecord { version, id, kind, vhds, state, max_rate, urgent, created, ended, bytes_moved, reason }
    }
}

proptest! {
    #[test]
    fn decode_undoes_encode(job in any_job()) {
        let text = String::from_utf8(job.encode()).expect("JSON is UTF-8");
        let kind = format!("\"kind\":{}\"{}\"", if text.contains("\"kind\":{") { "{" } else { "" }, job.kind.word());
        prop_assert!(text.contains(&kind), "{}", text);
        let state = format!("\"state\":\"{}\"", job.state.word());
        prop_assert!(text.contains(&state), "{}", text);
        prop_assert_eq!(JobRecord::decode(text.as_bytes()).expect("valid"), job);
    }

    #[test]
    fn changed_bytes_never_panic_and_what_is_accepted_is_valid(
        job in any_job(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = job.encode();
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        if let Ok(found) = JobRecord::decode(&bytes) {
            prop_assert_eq!(JobRecord::decode(&found.encode()).expect("valid"), found);
        }
    }
}

#[test]
fn the_stored_form_does_not_drift() {
    assert_eq!(String::from_utf8(job().encode()).unwrap(), SPANNED);
    assert_eq!(JobRecord::decode(SPANNED.as_bytes()).unwrap(), job());
    let done = JobRecord { kind: JobKind::Settle, state: JobState::Done, ended: Some(9), ..job() };
    let done = JobRecord { max_rate: None, reason: None, vhds: Vec::new(), ..done };
    let expected = r#"{"version":1,"id":6,"kind":"settle","vhds":[],"state":"done","max_rate":null,"urgent":true,"created":1700000000,"ended":9,"bytes_moved":5,"reason":null}"#;
    assert_eq!(String::from_utf8(done.encode()).unwrap(), expected);
}

#[test]
fn malformed_bytes_unknown_fields_and_versions_are_refused() {
    for kept in 0..SPANNED.len() {
        let error = JobRecord::decode(&SPANNED.as_bytes()[..kept]).unwrap_err();
        assert!(matches!(error, RecordError::Syntax { what: "job", .. }), "{kept}: {error}");
    }
    let syntax = |from: &str, to: &str| {
        assert!(SPANNED.contains(from));
        let error = JobRecord::decode(SPANNED.replace(from, to).as_bytes()).unwrap_err();
        assert!(matches!(error, RecordError::Syntax { what: "job", .. }), "{to}: {error}");
    };
    syntax("\"urgent\"", "\"eager\":1,\"urgent\"");
    syntax("{\"migrate\":{", "{\"migrate\":{\"to\":1,");
    syntax("\"migrate\"", "\"copy\"");
    syntax("\"stopped\"", "\"asleep\"");
    syntax("[4,2]", "[4,-2]");
    syntax(",\"bytes_moved\":5", "");
    // What a newer program wrote is called that, whatever else is in it.
    for newer in [SPANNED.to_owned(), SPANNED.replace("\"urgent\"", "\"eager\":1,\"urgent\"")] {
        let error = JobRecord::decode(newer.replace("\"version\":1", "\"version\":2").as_bytes()).unwrap_err();
        assert!(matches!(error, RecordError::Version { what: "job", found: 2 }), "{error}");
    }
}

#[test]
fn impossible_values_are_refused() {
    let refused = |edit: &dyn Fn(&mut JobRecord)| {
        let mut record = job();
        edit(&mut record);
        match JobRecord::decode(&record.encode()).unwrap_err() {
            RecordError::Impossible { subject, field, .. } if subject == "job 6" => field,
            other => panic!("{other}"),
        }
    };
    assert_eq!(refused(&|r| r.vhds = vec![VhdId(1), VhdId(2), VhdId(1)]), "list of VHDs");
    assert_eq!(refused(&|r| r.max_rate = Some(0)), "rate");
    assert_eq!(refused(&|r| r.ended = Some(1)), "time of its end");
    assert_eq!(refused(&|r| r.state = JobState::Cancelled), "time of its end");
    assert_eq!(refused(&|r| r.kind = JobKind::Replicas { from: 0 }), "number of replicas");
    assert_eq!(refused(&|r| r.kind = JobKind::Replicas { from: 4 }), "number of replicas");
    assert_eq!(refused(&|r| r.kind = JobKind::Evacuate { disk: DiskId(64), gives_up: vec![] }), "disk");
    let lost = JobKind::Evacuate { disk: DiskId(1), gives_up: vec![DiskId(1), DiskId(64)] };
    assert_eq!(refused(&|r| r.kind = lost.clone()), "set of failed disks");
    for (disk, by) in [(0, 64), (64, 0), (3, 3)] {
        let (disk, by, uuid) = (DiskId(disk), DiskId(by), uuid::Uuid::nil());
        let kind = JobKind::Replace { disk, uuid, by, gives_up: vec![], keep: false };
        assert_eq!(refused(&|r| r.kind = kind.clone()), "pair of disks");
    }
    for disks in [vec![], vec![DiskId(1), DiskId(1)], vec![DiskId(64)]] {
        let from = Layout::Spanned { disks, width: None, chosen: true };
        for kind in [JobKind::Span { from: from.clone() }, JobKind::Migrate { from: from.clone() }] {
            assert_eq!(refused(&|r| r.kind = kind.clone()), "set of disks");
        }
    }
    let from = Layout::Isolated { disk: DiskId(64), chosen: false };
    assert_eq!(refused(&|r| r.kind = JobKind::Unspan { from: from.clone() }), "set of disks");
}

#[test]
fn only_done_and_cancelled_jobs_have_ended() {
    use JobState::{Cancelled, Done, Paused, Running, Stopped};
    let ended = [Running, Paused, Stopped, Done, Cancelled].map(|state| JobRecord { state, ..job() }.is_ended());
    assert_eq!(ended, [false, false, false, true, true]);
}
