//! Single decisions. What the window comes to under load: [`crate::qos::sim`].

use super::*;
use crate::base::ids::VhdId;

const OP: u64 = 1 << 20;

/// What is counted at a look.
#[derive(Clone, Copy, Default)]
struct Load {
    counted: Counted,
    /// Requests of a client with a target, and late ones among them.
    requests: u64,
    late: u64,
}

impl From<Counted> for Load {
    fn from(counted: Counted) -> Load {
        Load { counted, ..Load::default() }
    }
}

impl Load {
    fn look(self, window: &mut Window, at: Nanos) {
        let targeted = Targeted { client: VhdId(1), requests: self.requests, late: self.late };
        window.look(self.counted, &[targeted], at);
    }
}

/// So many of the requests of a client with a target are late.
fn late(late: u64, requests: u64) -> Load {
    Load { counted: shared(400), requests, late }
}

/// Looks at a disk that completes `rate(window)` operations a second and holds some, for `secs`.
fn drive(window: &mut Window, from: Nanos, secs: u64, base: impl Into<Load>, rate: impl Fn(u64) -> u64) -> Nanos {
    let mut load = base.into();
    let mut now = from;
    for _ in 0..secs * 50 {
        let counted = &mut load.counted;
        let allowed = window.now().map_or(1000, |window| window.0 / OP).clamp(1, 1000);
        counted.operations += rate(allowed) / 50;
        counted.done.0 += rate(allowed) / 50 * OP;
        counted.held += rate(allowed) / 50;
        if window.now().is_some() {
            counted.peak = Work(allowed * OP);
        }
        now = Nanos(now.0 + PERIOD_NS);
        load.look(window, now);
    }
    now
}

fn now(window: &Window) -> u64 {
    window.now().unwrap().0
}

fn shared(peak: u64) -> Counted {
    Counted { peak: Work(peak * OP), clients: 2, ..Counted::default() }
}

#[test]
fn one_client_has_no_window() {
    let mut window = Window::new(Work(OP), Work(512 * OP));
    assert_eq!(window.now(), None);
    let end = drive(&mut window, Nanos(0), 1, Counted { clients: 1, ..shared(100) }, |_| 1000);
    assert_eq!(window.now(), None);
    let end = drive(&mut window, end, 1, shared(100), |_| 1000);
    assert!(window.now().is_some());
    drive(&mut window, end, 1, Counted { clients: 0, ..shared(100) }, |_| 1000);
    assert_eq!(window.now(), None);
}

#[test]
fn it_settles_where_more_in_flight_brings_nothing() {
    // A disk that serves 20 at a time.
    for peak in [4, 30, 400] {
        let mut window = Window::new(Work(OP), Work(512 * OP));
        drive(&mut window, Nanos(0), 20, shared(peak), |window| window.min(20) * 10_000);
        let ops = window.now().unwrap().0 / OP;
        assert!((16..=32).contains(&ops), "{ops} from {peak}");
    }
}

#[test]
fn a_disk_that_does_nothing_and_a_clock_that_jumps_change_little() {
    let mut window = Window::new(Work(OP), Work(512 * OP));
    let end = drive(&mut window, Nanos(0), 20, shared(400), |window| window.min(20) * 10_000);
    let before = now(&window);
    let end = drive(&mut window, end, 10, shared(400), |_| 0);
    window.look(shared(400), &[], Nanos(end.0 + 3_600_000_000_000));
    window.look(shared(400), &[], Nanos(end.0));
    assert!(now(&window) >= before / 2 && now(&window) <= before * 2, "{before} {}", now(&window));
}

#[test]
fn late_requests_narrow_it_until_they_are_few() {
    let mut window = Window::new(Work(OP), Work(512 * OP));
    let end = drive(&mut window, Nanos(0), 20, shared(400), |window| window.min(20) * 10_000);
    let throughput = now(&window);
    // Nearly all of them at first, and fewer as soon as there is less in flight.
    late(90, 100).look(&mut window, end);
    let fewer = late(2, 100);
    let end = drive(&mut window, end, 1, fewer, |window| window.min(20) * 10_000);
    assert!(window.is_narrowed() && now(&window) < throughput / 2);
    let end = drive(&mut window, end, 5, fewer, |window| window.min(20) * 10_000);
    assert!(window.is_exhausted());
    assert!(now(&window) == OP);
    drive(&mut window, end, 30, late(0, 100), |window| window.min(20) * 10_000);
    assert!(!window.is_narrowed());
}

#[test]
fn many_late_requests_of_few_are_enough_and_take_it_to_the_knee() {
    let mut window = Window::new(Work(OP), Work(512 * OP));
    let end = drive(&mut window, Nanos(0), 20, shared(400), |window| window.min(20) * 10_000);
    late(1, 6).look(&mut window, end);
    assert!(!window.is_narrowed(), "one says nothing");
    late(3, 6).look(&mut window, end);
    assert!(now(&window) < 15 * OP, "{}", now(&window) / OP);
    // What had begun before ends, however many looks that takes.
    let before = now(&window);
    let mut ending = late(6, 6);
    for quarters in 0..=4 {
        ending.counted.done = Work(quarters * 100 * OP);
        ending.look(&mut window, end);
        assert_eq!(now(&window), before);
    }
    ending.look(&mut window, end);
    assert!(now(&window) <= before / 2);
}

#[test]
fn a_width_at_which_requests_were_late_is_tried_ever_less_often() {
    // Any more than two at a time make some late.
    let mut window = Window::new(Work(OP), Work(512 * OP));
    let mut at = drive(&mut window, Nanos(0), 20, shared(400), |window| window.min(20) * 10_000);
    let mut counted = Counted { clients: 2, ..Counted::default() };
    let late = [0; 4].map(|mut late| {
        for _ in 0..30 * 50 {
            at = Nanos(at.0 + PERIOD_NS);
            let is_wide = window.now().unwrap() >= Work(3 * OP);
            counted.operations += 20;
            counted.done.0 += 20 * OP;
            late += u64::from(is_wide);
            Load { counted, requests: 7, late: u64::from(is_wide) }.look(&mut window, at);
        }
        late
    });
    let looks = 30 * 50 * 7;
    assert!(late[0] * 125 <= looks && late[3] * 500 <= looks, "{late:?}");
    assert!(now(&window) >= OP);
}

/// A window that late requests have narrowed as far as it goes, and when that was so.
fn narrowed() -> (Window, Nanos) {
    let mut window = Window::new(Work(OP), Work(512 * OP));
    let end = drive(&mut window, Nanos(0), 20, shared(400), |window| window.min(20) * 10_000);
    late(90, 100).look(&mut window, end);
    let fewer = late(2, 100);
    let end = drive(&mut window, end, 6, fewer, |window| window.min(20) * 10_000);
    assert!(window.is_exhausted());
    (window, end)
}

#[test]
fn it_is_not_narrow_for_somebody_who_wants_nothing_any_more() {
    let (mut window, end) = narrowed();
    let end = drive(&mut window, end, 2, shared(400), |window| window.min(20) * 10_000);
    assert!(window.is_exhausted(), "that was only a moment");
    drive(&mut window, end, 28, shared(400), |window| window.min(20) * 10_000);
    assert!(!window.is_narrowed() && now(&window) > 15 * OP);
}

#[test]
fn it_becomes_wider_for_somebody_who_wants_little_and_gets_it_in_time() {
    // Two requests a second: far too few for a sample.
    let look = |window: &mut Window, at: &mut Nanos, of_them: u64| {
        let targeted = u64::from(at.0 % 500_000_000 < PERIOD_NS);
        Load { counted: shared(400), requests: targeted, late: of_them * targeted }.look(window, *at);
        *at = Nanos(at.0 + PERIOD_NS);
    };
    let (mut window, mut at) = narrowed();
    (0..5 * 50).for_each(|_| look(&mut window, &mut at, 1));
    assert!(window.is_exhausted(), "they are late");
    (0..115 * 50).for_each(|_| look(&mut window, &mut at, 0));
    assert!(!window.is_narrowed());
}

#[test]
fn a_target_that_the_disk_misses_anyway_is_given_up_for_a_while() {
    let mut window = Window::new(Work(OP), Work(512 * OP));
    let end = drive(&mut window, Nanos(0), 20, shared(400), |window| window.min(20) * 10_000);
    let missed = late(90, 100);
    let end = drive(&mut window, end, 5, missed, |window| window.min(20) * 10_000);
    assert!(!window.is_narrowed() && now(&window) > 15 * OP);
    let end = drive(&mut window, end, 24, missed, |window| window.min(20) * 10_000);
    assert!(!window.is_narrowed());
    let looks = (1..=500).map(|look| Nanos(end.0 + look * PERIOD_NS));
    let narrowed = looks.filter(|at| {
        missed.look(&mut window, *at);
        window.is_narrowed()
    });
    assert!(narrowed.count() > 0, "it is tried again");
}

/// A disk that serves 20 at a time, and of whose requests so many of a thousand are late if so many are in flight: what the window is most of
/// the time, from the second half of a minute on.
fn most_of_the_time(clients: &[fn(u64) -> u64]) -> u64 {
    let mut window = Window::new(Work(OP), Work(512 * OP));
    let mut at = drive(&mut window, Nanos(0), 20, shared(400), |window| window.min(20) * 10_000);
    let mut counted = shared(400);
    let mut seen = Vec::new();
    for look in 0..60 * 50 {
        let allowed = now(&window) / OP;
        let done = allowed.min(20) * 200;
        counted.operations += done;
        counted.held += done;
        counted.done.0 += done * OP;
        counted.peak = Work(allowed * OP);
        let targeted: Vec<Targeted> = (0..)
            .zip(clients)
            .map(|(client, late)| Targeted { client: VhdId(client), requests: 1000, late: late(allowed) })
            .collect();
        at = Nanos(at.0 + PERIOD_NS);
        window.look(counted, &targeted, at);
        if look > 30 * 50 {
            seen.push(allowed);
        }
    }
    seen.sort_unstable();
    seen[seen.len() / 2]
}

#[test]
fn a_target_that_can_be_helped_but_not_met_is_helped_as_far_as_that_goes() {
    // Nine of ten are late; with as little as ten in flight, one of ten; with less, as many.
    let helped = most_of_the_time(&[|window| if window > 10 { 900 } else { 100 }]);
    assert!((8..=10).contains(&helped), "{helped}");
    let met = most_of_the_time(&[|window| if window > 3 { 900 } else { 1 }]);
    assert!((1..=3).contains(&met), "{met}");
}

#[test]
fn a_target_that_cannot_be_met_takes_nothing_from_one_that_can() {
    let met: fn(u64) -> u64 = |window| if window > 6 { 200 } else { 1 };
    let (alone, beside) = (most_of_the_time(&[met]), most_of_the_time(&[met, |_| 990]));
    assert!((4..=6).contains(&alone) && (4..=6).contains(&beside), "{alone} {beside}");
}

#[test]
fn a_window_that_nobody_fills_comes_back_to_the_knee() {
    let mut window = Window::new(Work(OP), Work(512 * OP));
    let mut counted = Counted { peak: Work(60 * OP), clients: 2, ..Counted::default() };
    let mut at = Nanos(0);
    // Two clients with 30 in flight each, on a disk that serves 20 at a time: nobody ever waits for a window above 60.
    for _ in 0..20 * 50 {
        let allowed = window.now().map_or(60, |window| window.0 / OP).clamp(1, 60);
        counted.operations += allowed.min(20) * 200;
        counted.done.0 += allowed.min(20) * 200 * OP;
        counted.held += if allowed < 60 { allowed.min(20) * 200 } else { 0 };
        counted.peak = Work(allowed * OP);
        at = Nanos(at.0 + PERIOD_NS);
        window.look(counted, &[], at);
    }
    assert!((16..=32).contains(&(now(&window) / OP)), "{}", now(&window) / OP);
}

/// Looks for `secs` at a disk that serves four at a time, by chance, on which something may be awaited all the time: how often the window was
/// no wider than 8, of 100 looks.
fn room_made(window: &mut Window, counted: &mut Counted, from: Nanos, secs: u64) -> (u64, Nanos) {
    let (mut at, mut narrow) = (from, 0);
    for _ in 0..secs * 50 {
        let allowed = window.now().map_or(128, |window| window.0 / OP).clamp(1, 128);
        narrow += u64::from(allowed <= 8);
        let done = allowed * 200 / (allowed + 3);
        counted.operations += done;
        counted.done.0 += done * OP;
        counted.held += done;
        counted.peak = Work(allowed * OP);
        at = Nanos(at.0 + PERIOD_NS);
        window.look(*counted, &[], at);
    }
    (narrow * 100 / (secs * 50), at)
}

#[test]
fn room_is_made_for_what_is_awaited_and_the_disk_is_learnt_about_all_the_same() {
    let mut window = Window::new(Work(OP), Work(512 * OP));
    let mut counted = Counted { clients: 2, ..Counted::default() };
    let (seldom, at) = room_made(&mut window, &mut counted, Nanos(0), 20);
    let usual = window.base;
    assert!(seldom < 20 && usual > 10 * OP, "{seldom} % {}", usual / OP);
    counted.awaited = true;
    let (often, at) = room_made(&mut window, &mut counted, at, 60);
    assert!((60..=85).contains(&often), "{often} % of the time");
    assert!(window.base >= usual / 2, "what gets done meanwhile says nothing of other windows");
    counted.awaited = false;
    let (seldom, _) = room_made(&mut window, &mut counted, at, 20);
    assert!(seldom < often / 2, "{seldom} % instead of {often} %");
}
