//! Whose turn it is, with frontends of processes that there are and of some that there are not.

use std::sync::mpsc;
use std::thread::JoinHandle;

use super::*;
use crate::base::ids::VhdId;
use crate::base::units::Geometry;
use crate::placement::view::VhdMap;
use crate::shared::VhdSettings;
use crate::shared::last_active::LastActive;

#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl ServerEvents for Told {
    fn attached(&self, _: VhdId, pid: u32) {
        self.0.lock().unwrap().push(format!("attached {pid}"));
    }

    fn detached(&self, _: VhdId, pid: u32) {
        self.0.lock().unwrap().push(format!("detached {pid}"));
    }

    fn cache_mode(&self, _: VhdId, _: bool) {}
}

/// What the kernel shows like a process until it is told to end: a thread. (Children of a test would keep files of others open.)
struct Running {
    process: Process,
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn new() -> Running {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let pid = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            tell.send(Process::of(pid).unwrap().unwrap()).unwrap();
            let _ = ended.recv();
        });
        Running { process: told.recv().unwrap(), end: Some(end), thread: Some(thread) }
    }

    fn process(&self) -> Process {
        self.process
    }

    fn id(&self) -> u32 {
        self.process.pid
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.end.take());
        self.thread.take().unwrap().join().unwrap();
        while self.process.is_alive() {
            std::thread::yield_now();
        }
    }
}

const START: Nanos = Nanos(1_000_000_000_000);

fn at_ms(millis: u64) -> Nanos {
    START.after(Duration::from_millis(millis))
}

/// One that cannot be told from others.
fn frontend(pid: u32) -> Frontend {
    Frontend { pid, uid: 0, since: 0 }
}

fn vhd(last_active: LastActive) -> Arc<VhdState> {
    let settings = VhdSettings {
        id: VhdId(1),
        uuid: uuid::Uuid::nil(),
        geometry: Geometry::new(1 << 20).unwrap(),
        block_size: 512,
        read_only: false,
        thick: false,
        checksums: false,
    };
    Arc::new(VhdState::new(settings, 1 << 20, VhdMap::new(1), 1).with_last_active(last_active))
}

struct Bench {
    vhd: Arc<VhdState>,
    told: Arc<Told>,
    turn: Turn,
}

impl Bench {
    fn new() -> Bench {
        Bench::of(vhd(LastActive::default()))
    }

    fn of(vhd: Arc<VhdState>) -> Bench {
        let told = Arc::new(Told::default());
        Bench { turn: Turn::new(Arc::clone(&vhd), told.clone()), vhd, told }
    }

    /// The next daemon: connections are gone, and nobody has said so.
    fn restarted(self) -> Bench {
        Bench::of(self.vhd)
    }

    /// Another server: connections stay.
    fn taken_over(self) -> Bench {
        self.taken_over_from(|_| {})
    }

    /// As if the one before had written its seats like that.
    fn taken_over_from(self, change: impl Fn(&mut HeldSeat)) -> Bench {
        let (turn, mut seats) = self.turn.hand_over(START);
        seats.iter_mut().for_each(change);
        let text = serde_json::to_string(&seats).unwrap();
        assert_eq!(text.contains("has_stopped_here"), seats.iter().any(|seat| seat.has_stopped_here));
        let seats: Vec<HeldSeat> = serde_json::from_str(&text).unwrap();
        let bench = self.restarted();
        bench.turn.take_over(&turn, seats.iter(), START);
        bench.turn.announce();
        bench
    }

    fn join(&self, process: Process) -> FrontendId {
        self.turn.join(frontend(process.pid), Some(process), START)
    }
}

fn pids(turn: &Turn) -> (Option<u32>, Option<u32>) {
    (turn.frontend().map(|f| f.pid), turn.waiting().map(|f| f.pid))
}

#[test]
fn the_turn_passes_when_the_active_one_stops_or_leaves() {
    let Bench { vhd, told, turn } = Bench::new();
    let freed = turn.watch();
    let join = |pid| turn.join(frontend(pid), None, START);
    let (first, second) = (join(1), join(2));
    assert_eq!((pids(&turn), turn.earlier(first), turn.earlier(second)), ((Some(1), Some(2)), None, Some(frontend(1))));
    // The second starts first: it is the active one.
    assert_eq!((turn.take(second, true, START), turn.take(second, true, START)), (Ok(()), Ok(())));
    assert_eq!(turn.take(first, true, START), Err(Wait::Active { pid: 2 }));
    assert_eq!((pids(&turn), turn.other_chooser(second)), ((Some(2), Some(1)), None));
    assert_eq!((vhd.door.waiting(), turn.other_chooser(first)), (Some(1), Some(2)));
    // Only it can let go.
    turn.release(first, START);
    assert!(turn.take(first, true, START).is_err() && !freed.has_changed().unwrap());
    turn.release(second, START);
    assert!(freed.has_changed().unwrap());
    assert_eq!(pids(&turn), (Some(2), Some(1)), "it was active last");
    turn.leave(second, true);
    assert_eq!((turn.take(first, true, START), pids(&turn)), (Ok(()), (Some(1), None)));
    assert_eq!(vhd.door.waiting(), None);
    let third = join(3);
    turn.leave(first, true);
    assert_eq!((pids(&turn), turn.earlier(third), turn.take(third, true, START)), ((Some(3), None), None, Ok(())));
    turn.leave(third, true);
    let lines = ["attached 1", "attached 2", "attached 1", "attached 3", "detached 3"];
    assert_eq!(*told.0.lock().unwrap(), lines);
}

#[test]
fn one_that_stops_has_time_to_come_back_before_one_that_was_waiting_goes_on() {
    let Bench { turn, .. } = Bench::new();
    let join = |pid| turn.join(frontend(pid), None, START);
    let (first, second) = (join(1), join(2));
    turn.take(first, true, START).unwrap();
    turn.take(second, true, START).unwrap_err();
    turn.release(first, at_ms(1000));
    let wait = turn.take(second, true, at_ms(1001)).unwrap_err();
    assert_eq!((wait.pid(), wait.look_at()), (1, Some(at_ms(1000 + TURN_GRACE_MILLIS))));
    assert!(turn.take(second, true, at_ms(999 + TURN_GRACE_MILLIS)).is_err());
    turn.take(first, true, at_ms(1000 + TURN_GRACE_MILLIS)).unwrap();
    assert_eq!(turn.take(second, true, at_ms(60_000)), Err(Wait::Active { pid: 1 }));
    turn.release(first, at_ms(60_000));
    turn.take(second, true, at_ms(60_000 + TURN_GRACE_MILLIS)).unwrap();
    // The other way round: it is gone, which needs no time.
    turn.take(first, true, at_ms(70_000)).unwrap_err();
    turn.release(second, at_ms(70_000));
    turn.take(first, true, at_ms(70_000)).unwrap_err();
    turn.leave(second, true);
    turn.take(first, true, at_ms(70_000)).unwrap();
    // The destination of a migration starts its rings only then.
    let third = join(3);
    turn.release(first, at_ms(80_000));
    turn.take(third, true, at_ms(80_000)).unwrap();
}

#[test]
fn after_a_restart_others_wait_for_the_process_that_was_active() {
    let (last, other) = (Running::new(), Running::new());
    let bench = Bench::new();
    let id = bench.join(last.process());
    bench.turn.take(id, true, START).unwrap();
    let bench = bench.restarted();
    // The other one is there first.
    let early = bench.join(other.process());
    let wait = bench.turn.take(early, true, START).unwrap_err();
    assert_eq!(wait, Wait::Returning { pid: last.id(), look: at_ms(TURN_LOOK_MILLIS) });
    assert!(!bench.turn.has_room(None) && bench.turn.has_room(Some(last.process())), "one place is its own");
    let id = bench.join(last.process());
    assert!(bench.turn.take(early, true, at_ms(TURN_RETURN_MILLIS - 1)).is_err(), "it has just connected");
    assert!(bench.turn.comes_back(id) && !bench.turn.comes_back(early));
    bench.turn.take(id, true, at_ms(10)).unwrap();
    assert_eq!(bench.turn.take(early, true, at_ms(60_000)), Err(Wait::Active { pid: last.id() }));
    // It comes, and does not start them: no reason to wait for ever.
    let bench = bench.restarted();
    let (early, _) = (bench.join(other.process()), bench.join(last.process()));
    bench.turn.take(early, true, at_ms(TURN_RETURN_MILLIS)).unwrap();
    // It does not come, because it has ended.
    let bench = bench.restarted();
    let early = bench.join(last.process());
    assert_eq!(bench.turn.take(early, true, START).unwrap_err().pid(), last.id(), "another one has had them since");
    let third = Running::new();
    let early = bench.join(third.process());
    assert_eq!(bench.turn.take(early, true, START).unwrap_err().pid(), other.id());
    drop(other);
    bench.turn.take(early, true, START).unwrap();
}

/// The source of a migration starts its rings again, as they were when it stopped, when it connects to the next daemon.
#[test]
fn the_source_of_a_migration_does_not_go_on_after_a_restart_unless_it_stops_first() {
    for early in [false, true] {
        let (source, destination) = (Running::new(), Running::new());
        let bench = Bench::new();
        let (from, to) = (bench.join(source.process()), bench.join(destination.process()));
        bench.turn.take(from, true, START).unwrap();
        bench.turn.release(from, START);
        let bench = if early {
            // Killed when it had stopped, and the other one had not begun.
            let bench = bench.restarted();
            let to = bench.join(destination.process());
            bench.turn.take(to, true, START).unwrap();
            bench
        } else {
            bench.turn.take(to, true, START).unwrap();
            bench
        };
        let bench = bench.restarted();
        let from = bench.join(source.process());
        let superseded = Err(Wait::Superseded { pid: source.id() });
        assert_eq!(bench.turn.take(from, true, START), superseded, "first of all");
        let to = bench.join(destination.process());
        bench.turn.take(to, true, START).unwrap();
        assert_eq!(bench.turn.take(from, true, START), superseded);
        bench.turn.release(to, START);
        bench.turn.leave(to, true);
        drop(destination);
        assert_eq!(bench.turn.take(from, true, at_ms(60_000)), superseded, "what was written stays written");
        // Its guest has been reset: what it starts now is new.
        bench.turn.release(from, at_ms(60_000));
        bench.turn.take(from, true, at_ms(60_000)).unwrap();
    }
}

/// The daemon was killed between the source's stop and the destination's start, and the source is the first to connect again.
#[test]
fn the_source_that_comes_back_before_its_destination_has_begun_is_out_of_date_once_that_has() {
    for (by_takeover, looks_in) in [(false, false), (true, false), (false, true)] {
        let (source, destination) = (Running::new(), Running::new());
        let bench = Bench::new();
        let (from, _) = (bench.join(source.process()), bench.join(destination.process()));
        bench.turn.take(from, true, START).unwrap();
        bench.turn.release(from, START);
        let bench = bench.restarted();
        let mut from = bench.join(source.process());
        if looks_in {
            bench.turn.leave(from, true);
        }
        let bench = if by_takeover { bench.taken_over() } else { bench };
        let to = bench.join(destination.process());
        bench.turn.take(to, true, START).unwrap();
        if looks_in {
            from = bench.join(source.process());
        }
        let superseded = Err(Wait::Superseded { pid: source.id() });
        assert_eq!(bench.turn.take(from, true, START), superseded, "{by_takeover} {looks_in}");
        bench.turn.release(to, START);
        assert_eq!(bench.turn.take(from, true, at_ms(60_000)), superseded);
        bench.turn.leave(to, true);
        drop(destination);
        assert_eq!(bench.turn.take(from, true, at_ms(60_000)), superseded, "what was written stays written");
        // It connects once more, which makes nothing newer.
        bench.turn.leave(from, true);
        let from = bench.join(source.process());
        assert_eq!(bench.turn.take(from, true, at_ms(70_000)), superseded);
        bench.turn.release(from, at_ms(80_000));
        bench.turn.take(from, true, at_ms(80_000)).unwrap();
    }
}

/// A migration that is given up: what the source starts again is what it stopped here, also after another server has taken over.
#[test]
fn a_source_that_has_stopped_on_this_connection_goes_on_when_its_destination_has_gone() {
    for (by_takeover, says_so) in [(false, true), (true, true), (true, false)] {
        let (source, destination) = (Running::new(), Running::new());
        let mut bench = Bench::new();
        let (from, to) = (bench.join(source.process()), bench.join(destination.process()));
        bench.turn.take(from, true, START).unwrap();
        bench.turn.release(from, START);
        if by_takeover {
            // An earlier version does not say it.
            bench = bench.taken_over_from(|seat| seat.has_stopped_here &= says_so);
        }
        bench.turn.take(to, true, START).unwrap();
        bench.turn.release(to, START);
        bench.turn.leave(to, true);
        bench.turn.take(from, true, START).unwrap();
    }
}

#[test]
fn a_process_that_has_left_by_itself_comes_as_if_for_the_first_time() {
    let (one, two) = (Running::new(), Running::new());
    let bench = Bench::new();
    for by_itself in [true, false] {
        let id = bench.join(one.process());
        bench.turn.take(id, true, START).unwrap();
        bench.turn.leave(id, by_itself);
        assert_eq!(bench.vhd.last_active.matters(), !by_itself);
        let other = bench.join(two.process());
        assert_eq!(bench.turn.take(other, true, START).is_ok(), by_itself, "one that we have parted from comes back");
        bench.turn.leave(other, true);
    }
    // A disk that is taken out of one VM, given to another, and back.
    let bench = Bench::new();
    let (first, second) = (bench.join(one.process()), bench.join(two.process()));
    bench.turn.take(first, true, START).unwrap();
    bench.turn.release(first, START);
    bench.turn.take(second, true, START).unwrap();
    bench.turn.leave(first, true);
    bench.turn.leave(second, true);
    let first = bench.join(one.process());
    bench.turn.take(first, true, START).unwrap();
}

/// An export, say: its rings begin with nothing, and no VM has moved there.
#[test]
fn a_frontend_that_cannot_have_taken_the_vm_over_makes_nothing_out_of_date() {
    let (paused, other) = (Running::new(), Running::new());
    let bench = Bench::new();
    let id = bench.join(paused.process());
    bench.turn.take(id, true, START).unwrap();
    bench.turn.release(id, START);
    let bench = bench.restarted();
    let short = bench.join(other.process());
    bench.turn.take(short, false, START).unwrap();
    bench.turn.release(short, START);
    bench.turn.leave(short, true);
    let id = bench.join(paused.process());
    bench.turn.take(id, true, START).unwrap();
}

#[test]
fn who_comes_too_late_does_not_go_on_with_what_it_had() {
    let (late, other) = (Running::new(), Running::new());
    let bench = Bench::new();
    let id = bench.join(late.process());
    bench.turn.take(id, true, START).unwrap();
    let bench = bench.restarted();
    let (id, early) = (bench.join(late.process()), bench.join(other.process()));
    assert_eq!(bench.turn.other_chooser(early), Some(late.id()));
    bench.turn.take(early, true, at_ms(TURN_RETURN_MILLIS)).unwrap();
    assert_eq!((bench.turn.other_chooser(early), bench.turn.other_chooser(id)), (None, Some(late.id())));
    bench.turn.release(early, at_ms(60_000));
    bench.turn.leave(early, true);
    assert_eq!(bench.turn.take(id, true, at_ms(70_000)), Err(Wait::Superseded { pid: late.id() }));
}

/// What another server takes over behaves at each moment as it would have where it was.
#[test]
fn places_go_over_to_another_server() {
    let (before, after) = (Running::new(), Running::new());
    let vhd = vhd(LastActive::default());
    let turn = Turn::new(Arc::clone(&vhd), Arc::<Told>::default());
    let first = turn.join(frontend(before.id()), Some(before.process()), at_ms(0));
    let second = turn.join(frontend(after.id()), Some(after.process()), at_ms(10));
    turn.take(first, true, at_ms(20)).unwrap();
    assert!(turn.take(second, true, at_ms(30)).is_err());
    turn.release(first, at_ms(1000));
    // The clock of another process is another one.
    let (held, seats) = turn.hand_over(at_ms(2000));
    let told = Arc::<Told>::default();
    let turn = Turn::new(vhd, told.clone());
    turn.take_over(&held, seats.iter(), Nanos(5));
    let at_ms = |millis| Nanos(5).after(Duration::from_millis(millis));
    assert!(told.0.lock().unwrap().is_empty());
    turn.announce();
    assert_eq!(*told.0.lock().unwrap(), [format!("attached {}", before.id())]);
    assert_eq!((turn.frontend().unwrap().pid, turn.waiting().unwrap().pid), (before.id(), after.id()));
    let wait = turn.take(second, true, at_ms(0)).unwrap_err();
    assert_eq!((wait.pid(), wait.look_at()), (before.id(), Some(at_ms(TURN_GRACE_MILLIS - 1000))));
    turn.take(second, true, at_ms(TURN_GRACE_MILLIS - 1000)).unwrap();
    assert!(matches!(turn.take(first, true, at_ms(9000)), Err(Wait::Active { .. })));
    assert!(!turn.comes_back(first) && !turn.has_room(None));
    let (held, seats) = turn.hand_over(at_ms(9000));
    assert_eq!((held.active, held.shown, held.next), (Some(second.0), Some(second.0), 2));
    assert!(seats.iter().all(|seat| seat.waited && !seat.superseded));
}

#[test]
fn the_next_server_tells_nobody_before_it_goes_on_and_then_the_one_after_it_as_well() {
    let (active, other) = (Running::new(), Running::new());
    let before = Bench::new();
    let (first, second) = (before.join(active.process()), before.join(other.process()));
    before.turn.take(first, true, START).unwrap();
    let (turn, seats) = before.turn.hand_over(START);
    let bench = Bench::new();
    bench.turn.take_over(&turn, seats.iter(), START);
    bench.turn.leave(second, false);
    assert!(bench.told.0.lock().unwrap().is_empty() && bench.vhd.last_active.last().is_none());
    bench.turn.announce();
    assert_eq!(*bench.told.0.lock().unwrap(), [format!("attached {}", active.id())]);
    let last = bench.vhd.last_active.last();
    assert_eq!(last, Some(Last { process: active.process(), stopped: false }));
    // All have been parted from before anybody was told.
    let bench = Bench::new();
    bench.turn.take_over(&turn, seats.iter(), START);
    [first, second].into_iter().for_each(|id| bench.turn.leave(id, false));
    bench.turn.announce();
    assert!(bench.told.0.lock().unwrap().is_empty());
}
