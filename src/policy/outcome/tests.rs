use super::*;

fn promised(before: f64, after: f64) -> Effect {
    Effect { metric: Metric::Busy, subject: Subject::Pool, before, after }
}

#[test]
fn promises_are_kept_in_part_or_missed() {
    for (value, expected) in [
        (0.4, Verdict::Kept),
        (0.2, Verdict::Kept),
        (0.52, Verdict::Kept),
        (0.6, Verdict::Partly),
        (0.75, Verdict::Missed),
        (0.9, Verdict::Missed),
    ] {
        assert_eq!(verdict(&promised(0.8, 0.4), value), expected, "{value}");
    }
    assert_eq!(verdict(&promised(0.0, 1.0), 1.0), Verdict::Kept, "more can be better");
    assert_eq!(verdict(&promised(0.5, 0.5), 0.5), Verdict::Unclear, "nothing was promised");
}

#[test]
fn a_rule_that_misses_often_becomes_careful_and_trusts_itself_again() {
    let mut record = Record::default();
    (0..3).for_each(|_| record.add(Verdict::Missed));
    assert_eq!(record.care(), 1, "three tell nothing");
    record.add(Verdict::Unclear);
    assert_eq!(record.recent.len(), 3);
    record.add(Verdict::Missed);
    assert_eq!(record.care(), 4);
    (0..3).for_each(|_| record.add(Verdict::Kept));
    assert_eq!(record.care(), 2, "four of seven");
    (0..4).for_each(|_| record.add(Verdict::Kept));
    assert_eq!((record.care(), record.recent.len()), (1, RECENT));
}

#[test]
fn a_load_that_is_another_one_explains_only_what_it_can() {
    let latency = Effect { metric: Metric::Latency, ..promised(30.0, 3.0) };
    for (value, load, expected) in [
        // Who is served faster asks for more.
        (3.0, 900.0, Verdict::Kept),
        (3.0, 100.0, Verdict::Kept),
        // It is served faster because it asks for less.
        (3.0, 50.0, Verdict::Unclear),
        (20.0, 50.0, Verdict::Unclear),
        // It waits as long as before because it asks for more.
        (30.0, 900.0, Verdict::Unclear),
        (30.0, 50.0, Verdict::Missed),
    ] {
        assert_eq!(verdict_under(&latency, value, 100.0, load), expected, "{value} at {load}");
    }
    let fill = Effect { metric: Metric::Fill, ..promised(0.9, 0.7) };
    assert_eq!(verdict_under(&fill, 0.7, 100.0, 0.0), Verdict::Kept, "room is no matter of load");
}
