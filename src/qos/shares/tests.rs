//! Turns and room, step by step. What they come to under load: [`crate::qos::sim`].

use std::sync::atomic::AtomicU32;

use super::*;
use crate::qos::{Priority, Weight};

const UNIT: Work = Work(64);

/// What the work of [`UNIT`] takes at weight 1.
const STEP: u64 = BYTE * UNIT.0 / 10;

fn share(weight: u32) -> Share {
    Share::new(Weight::new(weight).unwrap(), Priority::Normal)
}

fn turn(shares: &Shares, account: &Account, weight: u32) -> Turn {
    shares.take_turn(account, share(weight), UNIT)
}

fn disk(window: u64) -> Shares {
    let shares = Shares::new(3);
    shares.switch(true);
    shares.set_window(Work(window * UNIT.0));
    shares
}

#[test]
fn turns_follow_weights() {
    let shares = disk(100);
    let (light, heavy) = (Account::default(), Account::default());
    let turns = |account, weight| -> Vec<u64> { (0..4).map(|_| turn(&shares, account, weight).0).collect() };
    let light = turns(&light, 1);
    let heavy = turns(&heavy, 2);
    assert_eq!(light, [0, STEP, 2 * STEP, 3 * STEP]);
    assert_eq!(heavy, [0, STEP / 2, STEP / 2 * 2, STEP / 2 * 3]);
}

#[test]
fn who_was_idle_begins_now_and_has_saved_up_nothing() {
    let shares = disk(100);
    let (busy, idle) = (Account::default(), Account::default());
    for _ in 0..10 {
        let turn = turn(&shares, &busy, 1);
        assert!(shares.begin(0, turn, UNIT));
    }
    assert_eq!(turn(&shares, &idle, 1), Turn(9 * STEP));
}

#[test]
fn the_window_holds_who_has_had_his_share_and_nobody_else() {
    let shares = disk(2);
    let (busy, late) = (Account::default(), Account::default());
    let begin = |account| shares.begin(0, turn(&shares, account, 1), UNIT);
    assert!(begin(&busy));
    assert!(begin(&busy));
    assert!(!begin(&busy));
    assert!(begin(&late), "it has had nothing yet");
    assert!(!begin(&late));
    (0..3).for_each(|_| shares.end(UNIT));
    assert_eq!(shares.in_flight(), Work(0));
}

#[test]
fn an_operation_larger_than_the_window_goes_alone() {
    let shares = disk(2);
    let account = Account::default();
    let large = Work(1000 * UNIT.0);
    assert!(shares.begin(0, shares.take_turn(&account, Share::default(), large), large));
    assert!(!shares.begin(0, shares.take_turn(&account, Share::default(), large), large));
    shares.end(large);
    assert!(shares.begin(0, shares.take_turn(&account, Share::default(), large), large));
}

#[test]
fn threads_do_not_overtake_one_another() {
    let shares = disk(1);
    let (a, b) = (Account::default(), Account::default());
    let first = turn(&shares, &a, 1);
    assert!(shares.begin(0, first, UNIT));
    // Another one waits on thread 2; a later one on thread 1 finds room, and leaves it.
    let waits = turn(&shares, &a, 1);
    shares.publish(2, None, Some(waits));
    let later = Turn(waits.0 + 1);
    assert!(!shares.begin(2, waits, UNIT));
    shares.end(UNIT);
    assert_eq!(shares.first_elsewhere(0), Some((2, waits)));
    assert_eq!(shares.waiting().collect::<Vec<_>>(), [2]);
    assert!(!shares.begin(1, later, UNIT));
    assert!(shares.begin(2, waits, UNIT));
    shares.publish(2, Some(waits), None);
    assert_eq!(shares.first_elsewhere(0), None);
    // An earlier one need not look at who waits elsewhere.
    shares.publish(1, None, Some(later));
    assert!(shares.begin(0, turn(&shares, &b, 1), UNIT));
}

#[test]
fn a_turn_that_is_given_back_costs_nothing() {
    let shares = disk(1);
    let account = Account::default();
    let first = turn(&shares, &account, 7);
    shares.give_back_turn(&account, share(7), UNIT);
    assert_eq!(turn(&shares, &account, 7), first);
}

#[test]
fn what_waited_elsewhere_counts_here() {
    let shares = disk(1);
    let account = Account::default();
    for _ in 0..2 {
        assert_eq!(shares.begin_anyway(turn(&shares, &account, 1), UNIT), UNIT);
    }
    assert_eq!(shares.take_peak(), Work(2 * UNIT.0));
    shares.end(UNIT);
    assert!(!shares.begin(0, turn(&shares, &account, 1), UNIT));
    assert_eq!(shares.take_peak(), Work(2 * UNIT.0));
    assert_eq!(shares.take_peak(), UNIT);
}

#[test]
fn what_begins_before_others_neither_lets_them_all_begin_nor_takes_their_room() {
    let shares = disk(1);
    assert!(shares.begin(0, Turn(0), UNIT));
    let (waits, later) = (Turn(STEP), Turn(100 * STEP));
    shares.publish(1, None, Some(waits));
    assert_eq!(shares.begin_anyway(later, UNIT), Work(0));
    assert!(!shares.begin(1, waits, UNIT), "the window is full");
    assert_eq!(shares.begin_anyway(Turn(STEP - 1), UNIT), UNIT, "it comes first, and counts");
    assert!(!shares.begin(1, waits, UNIT));
    (0..2).for_each(|_| shares.end(UNIT));
    assert!(shares.begin(1, waits, UNIT));
    shares.publish(1, Some(waits), None);
    assert_eq!(shares.begin_anyway(later, UNIT), UNIT, "nobody waits");
    assert!(shares.begin(0, later, UNIT));
}

#[test]
fn debts_of_who_does_not_wait_have_an_end() {
    let shares = disk(1);
    let (urgent, ahead) = (Account::default(), Account::default());
    let most = BYTE * DEBT_MAX.0 / 10;
    for _ in 0..3 * DEBT_MAX.0 / UNIT.0 {
        let _ = shares.take_turn_anyway(&urgent, share(1), UNIT);
    }
    assert_eq!(turn(&shares, &urgent, 1), Turn(most));
    let _ = shares.take_turn(&ahead, share(1), Work(2 * DEBT_MAX.0));
    let _ = shares.take_turn_anyway(&ahead, share(1), UNIT);
    assert_eq!(turn(&shares, &ahead, 1), Turn(2 * most), "turns that were taken otherwise stay paid");
}

#[test]
fn an_operation_that_is_larger_than_its_turn_is_paid_and_counted_as_what_it_is() {
    for after in [Work(10 * UNIT.0), Work(UNIT.0 / 2), UNIT] {
        let shares = disk(100);
        let (account, straight) = (Account::default(), Account::default());
        let turn = turn(&shares, &account, 1);
        assert!(shares.begin(0, turn, UNIT));
        shares.settle(&account, share(1), UNIT, after);
        let _ = shares.take_turn(&straight, share(1), after);
        assert_eq!(account.so_far(), straight.so_far());
        assert_eq!((shares.in_flight(), shares.take_peak()), (after, after.max(UNIT)));
        shares.end(after);
        assert_eq!(shares.in_flight(), Work(0));
    }
}

#[test]
fn time_begins_anew_long_before_its_end() {
    let shares = disk(1);
    let (old, idle) = (Account::default(), Account::default());
    let far = Work((1 << 60) / BYTE * 10);
    for _ in 0..6 {
        assert!(!shares.is_worn());
        let turn = shares.take_turn(&old, share(1), far);
        let _ = shares.begin_anyway(turn, UNIT);
        shares.end(UNIT);
        let _ = shares.take_turn(&idle, share(1), UNIT);
    }
    assert!(shares.is_worn());
    let waits = turn(&shares, &old, 1);
    shares.switch(true);
    assert!(!shares.is_worn() && shares.has_expired(waits));
    shares.set_window(UNIT);
    // Nobody is ahead, and order and weights are as ever.
    assert_eq!(shares.reason_to_wait(&old), (0, 0));
    assert_eq!([turn(&shares, &idle, 2), turn(&shares, &old, 1)], [Turn(0), Turn(0)]);
    let [sooner, later] = [turn(&shares, &idle, 2), turn(&shares, &old, 1)];
    assert_eq!([sooner, later], [Turn(STEP / 2), Turn(STEP)]);
    assert!(shares.begin(0, Turn(0), UNIT));
    assert!(!shares.begin(0, sooner, UNIT), "nobody is behind either");
    // Somebody comes late with a turn of before.
    let _ = shares.begin_anyway(waits, UNIT);
    assert_eq!(turn(&shares, &Account::default(), 1), Turn(0));
}

/// Threads that begin, wait and wake as reactors do: nobody waits for ever, and the window holds.
#[test]
fn nobody_is_forgotten() {
    const THREADS: usize = 3;
    const OPERATIONS: usize = 20_000;
    let shares = disk(2);
    let accounts: Vec<Account> = (0..THREADS).map(|_| Account::default()).collect();
    let wakes: Vec<AtomicU32> = (0..THREADS).map(|_| AtomicU32::new(0)).collect();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (shares, accounts, wakes) = (&shares, &accounts, &wakes);
            scope.spawn(move || {
                let wake_first = || {
                    if let Some(other) = shares.call_first(thread) {
                        wakes[other].fetch_add(1, Ordering::SeqCst);
                    }
                };
                for _ in 0..OPERATIONS {
                    let turn = turn(shares, &accounts[thread], 1);
                    let mut said = None;
                    while !shares.begin(thread, turn, UNIT) {
                        let seen = wakes[thread].load(Ordering::SeqCst);
                        shares.publish(thread, said, Some(turn));
                        said = Some(turn);
                        if shares.begin(thread, turn, UNIT) {
                            break;
                        }
                        // Whoever comes first elsewhere may not know that there is room.
                        wake_first();
                        while wakes[thread].load(Ordering::SeqCst) == seen {
                            std::thread::yield_now();
                        }
                    }
                    if said.is_some() {
                        shares.publish(thread, said, None);
                        wake_first();
                    }
                    assert!(shares.in_flight().0 <= (2 + THREADS as u64) * UNIT.0);
                    shares.end(UNIT);
                    wake_first();
                }
            });
        }
    });
    assert_eq!(shares.in_flight(), Work(0));
    assert_eq!(shares.first_elsewhere(THREADS), None);
}

#[test]
fn what_is_awaited_holds_back_what_begins_but_for_the_last_one() {
    let shares = disk(4);
    shares.set_awaited_window(UNIT);
    let account = Account::default();
    let begin = || shares.begin(0, turn(&shares, &account, 1), UNIT);
    assert!(begin() && begin(), "nothing is awaited");
    let under_way = shares.awaited().under_way();
    assert!(!begin());
    shares.publish(1, None, Some(Turn(0)));
    assert_eq!(shares.call_first(0), Some(1), "it is behind");
    shares.publish(1, Some(Turn(0)), None);
    (0..2).for_each(|_| shares.end(UNIT));
    assert!(begin(), "nothing else is in flight");
    assert!(!begin());
    drop(under_way);
    assert!(begin() && begin() && begin() && !begin());
    // A window that is narrower anyway stays.
    shares.set_awaited_window(Work(100 * UNIT.0));
    let _under_way = shares.awaited().under_way();
    assert!(!begin());
}
