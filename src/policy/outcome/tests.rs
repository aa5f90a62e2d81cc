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
