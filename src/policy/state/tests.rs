use super::super::judge::tests::pool::{World, disk, vhd};
use super::super::outcome::{Measured, Verdict};
use super::super::rules::Mode;
use super::*;
use crate::base::rng::Rng;

fn used() -> State {
    let mut world =
        World::new((0..3).map(disk).collect(), vec![vhd(1, Some(4), &[(0, 500)]), vhd(2, None, &[(0, 350)])]);
    world.rules.moved_a_day = 1.0;
    world.run(120);
    world.rules.all.mode = Some(Mode::Advise);
    world.pool.vhds.push(vhd(3, None, &[(2, 850)]));
    world.run(60);
    let mut state = world.state;
    state.insatiable.insert(VhdId(1), 1 << 40);
    if let Some(number) = state.open.first().map(|open| open.number) {
        state.dismiss(number).unwrap();
    }
    assert!(!state.applied.is_empty() && !state.conditions.is_empty() && !state.dismissed.is_empty());
    state
}

#[test]
fn a_state_survives_encoding() {
    let state = used();
    assert_eq!(State::decode(&state.encode()).unwrap(), state);
    assert_eq!(State::decode(&State::default().encode()).unwrap(), State::default());
    let text = String::from_utf8_lossy(&state.encode()).into_owned();
    assert!(!text.contains("refused"), "who does not know of refusals can read a state without any");
}

#[test]
fn refusals_of_an_older_program_are_left_out() {
    let state = used();
    let bytes = state.encode();
    let text = String::from_utf8(bytes[..bytes.len() - 4].to_vec()).unwrap();
    let old = r#""refusals":[[["space",{"disk":1}],{"times":1,"until":700}]],"spent":"#;
    let text = text.replacen(r#""spent":"#, old, 1);
    assert!(text.contains("refusals"));
    let mut bytes = text.into_bytes();
    let sum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    assert_eq!(State::decode(&bytes).unwrap(), state);
}

#[test]
fn changed_bytes_are_an_error_and_never_a_panic() {
    let bytes = used().encode();
    for len in 0..bytes.len() {
        assert!(State::decode(&bytes[..len]).is_err(), "{len} bytes");
    }
    let mut rng = Rng::new(5);
    for _ in 0..2000 {
        let mut bad = bytes.clone();
        let at = rng.index(bad.len());
        bad[at] ^= 1 << rng.below(8);
        assert!(matches!(State::decode(&bad), Err(StateError::Checksum { .. })), "byte {at}");
    }
}

/// Bytes that say what they say on purpose.
fn sealed(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.extend_from_slice(&crc32c::crc32c(text.as_bytes()).to_le_bytes());
    bytes
}

#[test]
fn other_versions_unknown_fields_and_impossible_values_are_refused() {
    let bytes = used().encode();
    let text = std::str::from_utf8(&bytes[..bytes.len() - 4]).unwrap();
    assert!(State::decode(&sealed(text)).is_ok());
    let refused = |from: &str, to: &str| {
        assert!(text.contains(from), "{from} is not in {text}");
        State::decode(&sealed(&text.replacen(from, to, 1))).unwrap_err()
    };
    assert!(matches!(refused("{\"version\":1", "{\"version\":2"), StateError::Version { found: 2 }));
    assert!(matches!(refused("\"open\":", "\"opened\":[],\"open\":"), StateError::Syntax(_)));
    let late = refused("\"since\":", "\"since\":9");
    assert!(matches!(late, StateError::Impossible { field: "time", .. }), "{late}");
    for field in ["settled", "measured"] {
        let mut state = used();
        let late = state.clock.secs + 1;
        let applied = &mut state.applied[0];
        let measured = applied.measured.unwrap_or(Measured { value: 0.0, verdict: Verdict::Kept, at: 0 });
        match field {
            "settled" => applied.settled = Some(late),
            _ => applied.measured = Some(Measured { at: late, ..measured }),
        }
        let error = State::decode(&state.encode()).unwrap_err();
        assert!(matches!(error, StateError::Impossible { field: "time", .. }), "{field}: {error}");
    }
    let disk = refused("{\"disk\":0}", "{\"disk\":64}");
    assert!(matches!(disk, StateError::Impossible { field: "disk", .. } | StateError::Syntax(_)), "{disk}");
    // Deeply nested or random JSON is an error, too.
    let mut rng = Rng::new(9);
    for _ in 0..3000 {
        let mut bad = text.as_bytes().to_vec();
        for _ in 0..=rng.below(3) {
            let at = rng.index(bad.len());
            bad[at] = b"{}[]\",:0123456789-e.tfn"[rng.index(23)];
        }
        let _ = State::decode(&sealed(&String::from_utf8_lossy(&bad)));
    }
    assert!(State::decode(&sealed(&"[".repeat(1 << 16))).is_err());
}

#[test]
fn a_budget_counts_for_a_day_at_least() {
    let mut state = State::default();
    state.clock.secs = 3599;
    state.spent.insert(0, 5);
    for (secs, spent) in [(3599, 5), (24 * 3600, 5), (24 * 3600 + 3599, 5), (25 * 3600, 0)] {
        state.clock.secs = secs;
        assert_eq!(state.spent_bytes(), spent, "{secs}");
    }
}

#[test]
fn conditions_begin_at_once_hold_after_their_time_and_end_below_the_difference() {
    let mut state = State::default();
    let mut so = |secs: u64, begins: bool, lasts: bool| {
        state.clock.secs = secs;
        state.holds(Rule::Space, Subject::Pool, begins, lasts, 600)
    };
    assert!(!so(0, true, true));
    assert!(!so(599, true, true));
    assert!(!so(600, false, true), "not yet held, so that it ends");
    assert!(!so(601, true, true));
    assert!(so(1201, true, true));
    assert!(so(1300, false, true), "held, so that it lasts");
    assert!(!so(1400, false, false));
}
