use super::super::judge::tests::pool::{disk, pool, vhd};
use super::super::observe::Health;
use super::*;
use crate::base::ids::DiskId;

#[test]
fn wishes_for_a_vhd_are_before_those_for_its_vm_and_those_for_all() {
    let mut rules = Rules::default();
    let seen = vhd(1, Some(7), &[(0, 10)]);
    assert_eq!(rules.of(&seen).mode, Mode::Advise);
    assert_eq!(rules.of(&seen).latency_ns, LATENCY_NS_DEFAULT);
    rules.set(Scope::Pool, "mode", "auto").unwrap();
    rules.set(Scope::Pool, "latency", "500us").unwrap();
    rules.set(Scope::Vm(VmId(7)), "mode", "off").unwrap();
    rules.set(Scope::Vhd(VhdId(1)), "survives", "1").unwrap();
    let wanted = rules.of(&seen);
    assert_eq!((wanted.mode, wanted.latency_ns, wanted.survives), (Mode::Off, 500_000, 1));
    assert_eq!(rules.of(&vhd(2, None, &[(0, 10)])).mode, Mode::Auto);
}

#[test]
fn every_setting_is_read_and_wrong_units_are_refused_with_the_form() {
    let values = ["auto", "15ms", "100", "1", "70%", "4%", "6%", "5m", "2h", "12h", "20m", "2%", "3", "22:00-06:30"];
    let mut rules = Rules::default();
    for ((name, _, form, of_pool), value) in SETTINGS.into_iter().zip(values) {
        rules.set(Scope::Pool, name, value).unwrap();
        for wrong in ["", "much", "15 parsecs", "15"] {
            if value.parse::<u64>().is_ok() && wrong == "15" {
                continue;
            }
            let error = rules.set(Scope::Pool, name, wrong).unwrap_err().to_string();
            assert!(error.contains(form) && error.contains(name), "{name}={wrong}: {error}");
        }
        let of_one = rules.set(Scope::Vhd(VhdId(1)), name, value);
        assert_eq!(of_one.is_err(), of_pool, "{name}");
    }
    assert_eq!(rules.quiet, Some(Quiet { from: 22 * 60, to: 6 * 60 + 30 }));
    assert_eq!(
        (rules.hold_secs, rules.comfort_hold_secs, rules.rest_secs, rules.outcome_secs),
        (300, 7200, 43_200, 1200)
    );
    let error = rules.set(Scope::Pool, "throughput", "1").unwrap_err();
    assert!(error.to_string().contains("use one of mode, latency"), "{error}");
}

#[test]
fn quiet_hours_may_be_around_midnight() {
    let at = |minute_of_day| Moment { unix_secs: 0, minute_of_day };
    let night = Quiet { from: 22 * 60, to: 6 * 60 };
    assert!(night.contains(at(23 * 60)) && night.contains(at(0)) && !night.contains(at(6 * 60)));
    let noon = Quiet { from: 720, to: 780 };
    assert!(noon.contains(at(720)) && !noon.contains(at(780)) && !noon.contains(at(0)));
}

#[test]
fn contradictions_and_targets_out_of_reach_are_refused_with_the_numbers() {
    let seen = pool(vec![disk(0), disk(1)], vec![vhd(1, None, &[(0, 100), (1, 100)])]);
    let refused = |edit: &dyn Fn(&mut Rules)| {
        let mut rules = Rules::default();
        assert_eq!(rules.check(&seen), Ok(()));
        edit(&mut rules);
        rules.check(&seen).unwrap_err().to_string()
    };
    for (edit, says) in [
        (&(|r: &mut Rules| r.space = 0.99) as &dyn Fn(&mut Rules), "space is 99.0 %"),
        (&|r| (r.space, r.difference) = (0.2, 0.3), "difference is 30.0 % and space 20.0 %"),
        (&|r| (r.all.mode, r.moves_max) = (Some(Mode::Auto), 0), "moves is 0"),
        (&|r| (r.all.mode, r.moved_a_day) = (Some(Mode::Auto), 0.0), "moved-a-day is 0"),
        (&|r| r.rest_secs = u64::MAX, "rest is 18446744073709551615 seconds: give 31536000 seconds"),
        (&|r| r.hold_secs = 1 << 40, "hold is 1099511627776 seconds"),
        (&|r| r.quiet = Some(Quiet { from: 60, to: 60 }), "minute 60"),
        (&|r| r.all.survives = Some(3), "4 replicas, and there can be 3"),
        (&|r| r.all.survives = Some(2), "3 failure domains with a disk that works, and the pool has 2"),
        (&|r| r.all.latency_ns = Some(1000), "within 0.001 ms"),
        (&|r| r.all.iops = Some(10_000_000), "10000000 requests a second"),
        (&|r| r.space = 0.08, "fuller: disk0 has least, 10.0 %"),
    ] {
        let text = refused(edit);
        assert!(text.contains(says), "{says}: {text}");
    }
}

#[test]
fn a_rate_above_the_limit_of_the_vhd_and_a_pool_without_disks_are_refused() {
    let mut limited = vhd(1, None, &[(0, 100)]);
    limited.limits.iops = Some(crate::placement::limits::RateLimit { per_sec: 100, burst: None });
    let mut seen = pool(vec![disk(0), disk(1)], vec![limited]);
    let mut rules = Rules::default();
    rules.set(Scope::Vhd(VhdId(1)), "iops", "200").unwrap();
    assert_eq!(rules.check(&seen), Err(RuleError::AboveLimit { vhd: "vhd1".into(), asked: 200, limit: 100 }));
    seen.disks.iter_mut().for_each(|disk| disk.health = Health::Failed);
    assert_eq!(rules.check(&seen), Err(RuleError::NoDisk { disks: 2 }));
    assert_eq!(seen.disks[0].id, DiskId(0));
}

#[test]
fn who_wants_to_know_soon_is_looked_at_more_often_and_over_a_shorter_time() {
    let times = |hold_secs: u64| {
        let rules = Rules { hold_secs, ..Rules::default() };
        (rules.window_secs(), rules.look_secs())
    };
    assert_eq!(times(Rules::default().hold_secs), (300, 30));
    assert_eq!([0, 30, 60, 90].map(times), [(30, 10), (30, 10), (60, 20), (90, 30)]);
}

/// What was kept by a program that measured half an hour after each change is read, and one that knows no other time reads what is kept.
#[test]
fn when_outcomes_are_measured_is_written_down_only_if_somebody_said_so() {
    let mut rules = Rules::default();
    let text = serde_json::to_string(&rules).unwrap();
    assert!(!text.contains("outcome"), "{text}");
    assert_eq!(serde_json::from_str::<Rules>(&text).unwrap(), rules);
    rules.set(Scope::Pool, "outcome", "5m").unwrap();
    assert_eq!(rules.outcome_secs, 300);
    assert_eq!(serde_json::from_str::<Rules>(&serde_json::to_string(&rules).unwrap()).unwrap(), rules);
    rules.unset(Scope::Pool, "outcome").unwrap();
    assert_eq!(rules, Rules::default());
}
