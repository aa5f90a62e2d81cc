//! Disks are emptied and leave the pool, dead or alive, and the power fails again and again meanwhile.
//!
//! A story is a few lives of one pool. In each of them guests go on with what they find, an administrator wants one disk to be
//! replaced or evacuated, and to leave the pool then, and disks die. A life ends with a power cut, and the next one begins with
//! what that has left; before, what is found after this cut and others in the same life is compared with what guests were told.

use std::sync::Arc;

use spanblk::base::ids::{DiskId, DiskSet};
use spanblk::base::rng::Rng;
use spanblk::base::units::ExtentIndex;
use spanblk::disk::sim::SimDisk;
use spanblk::owner::command::LayoutRequest;
use spanblk::placement::ReplicaState;
use spanblk::placement::job::JobRecord;
use spanblk::placement::record::VhdRecord;
use spanblk::reactor::pipeline::{Pipeline, Token};
use spanblk::shared::VhdState;

use super::growth::Sizes;
use super::guest::Guest;
use super::losses::{Losses, places};
use super::oracle::{Content, History, SECTOR, identify};
use super::orders::{Administrator, Counts, Fact, Plot, is_about};
use super::store::Recovered;
use super::verify::{check_cut, open, read_extent};
use super::world::{Besides, EXTENT, Scenario, Told, World, position};
use super::{each_seed, scenario};

/// What happened in all stories of a test.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Power cuts after which everything was compared, and those with which another life began.
    cuts: usize,
    lives: usize,
    /// Jobs that went on in another life.
    resumed: usize,
    /// Extents that were moved, and those of them that were moved while the disk that they left was dead.
    moved: usize,
    moved_from_dead: usize,
    /// Extents that were given up.
    given_up: usize,
    /// Disks that died after the order, and dead ones that were back after a power cut.
    died_late: usize,
    came_back: usize,
    /// Jobs that stopped.
    stopped: usize,
    orders: Counts,
}

impl Sum {
    /// A life is over.
    fn add(&mut self, world: &World) {
        self.moved += world.moves_done;
        self.moved_from_dead += world.losses.moved_from_dead;
        self.given_up += world.losses.extents;
        self.died_late += world.losses.died_late;
        self.stopped += world.post.queues.borrow().stopped;
    }
}

const DISKS: u8 = 4;

/// Power cuts in a life.
const CUTS: usize = 4;

/// One pool.
struct Story {
    plot: Plot,
    rng: Rng,
    scenario: Scenario,
    life: u64,
    lives: u64,
    /// Whether the disk that goes has died at any time.
    has_died: bool,
}

impl Story {
    fn new(seed: u64, dies: bool) -> Story {
        let mut rng = Rng::new(seed ^ 0x7265_706c);
        // The first disk has the store, which is another story.
        let old = DiskId(1 + u8::try_from(rng.below(3)).expect("few disks"));
        let new = DiskId((old.0 + 1 + u8::try_from(rng.below(3)).expect("few disks")) % DISKS);
        let plot = Plot { old, new, replaces: rng.chance(2, 3), dies };
        let scenario = Scenario {
            disks: DISKS,
            slots: 20,
            replicated: rng.chance(2, 3),
            checksums: false,
            besides: Besides::Emptying,
            ..scenario(seed, 1, None)
        };
        let lives = 2 + rng.below(3);
        Story { plot, rng, scenario, life: 0, lives, has_died: false }
    }

    fn tell(&mut self, sum: &mut Sum) -> Result<(), String> {
        let mut world = World::new(self.scenario);
        world.administrator = Some(Administrator::new(self.plot, self.rng.next_u64()));
        loop {
            self.life += 1;
            self.live(&mut world)?;
            sum.add(&world);
            let (images, cut) = self.cut(&mut world, sum)?;
            if self.is_last() {
                sum.orders.add(world.administrator.map(|administrator| administrator.counts).unwrap_or_default());
                return Ok(());
            }
            world = self.begin_again(&world, images, cut, sum)?;
        }
    }

    fn is_last(&self) -> bool {
        self.life == self.lives
    }

    /// Until a power cut or, in the last life, until the disk has left the pool.
    fn live(&mut self, world: &mut World) -> Result<(), String> {
        world.losses.of = Some(self.plot.old);
        let steps = 100 + self.rng.index(self.scenario.steps);
        let dies = self.plot.dies && self.rng.chance(3, 4);
        // A disk that has come back dies again before everything has been moved away from it.
        let dies_at = self.rng.index(if self.life == 1 { steps } else { 100 });
        // In the last life there are disks for everything.
        let mut other_dies = self.plot.dies && !self.is_last() && self.rng.chance(1, 2);
        // First there must be something to move.
        let begins_at = if self.life == 1 { steps / 2 } else { 0 };
        (0..if self.life == 1 { 2 } else { 0 }).for_each(|_| self.create(world));
        for step in 0..steps {
            if dies && step == dies_at {
                world.kill(self.plot.old);
                self.has_died = true;
            }
            // Rather when the loss of those that are dead by then has been accepted.
            let is_ordered = !world.losses.accepted.is_empty();
            if other_dies && self.rng.chance(1, if is_ordered { 30 } else { 1000 }) {
                other_dies = false;
                let mut others = (1..DISKS).map(DiskId).filter(|disk| *disk != self.plot.old);
                world.kill(others.nth(self.rng.index(2)).expect("of four disks, two have no store and stay"));
            }
            // More of what happens by itself, so that guests get far enough to have something everywhere.
            for _ in 0..2 {
                world.step()?;
                world.reap()?;
            }
            match self.rng.below(40) {
                0 => self.create(world),
                1 if world.guests.len() > 1 && self.rng.chance(1, 3) => world.delete(),
                2..5 if step >= begins_at => world.administrate()?,
                5..18 => world.ask(),
                18 => world.let_owner_wait(100),
                _ => drop(world.step()?),
            }
            world.reap()?;
            world.note_losses()?;
        }
        if self.is_last() { self.end(world) } else { Ok(()) }
    }

    /// A VHD, more often on the disk that goes than elsewhere, as long as it takes any.
    fn create(&mut self, world: &mut World) {
        let has_room = world.guests.len() + world.creating.len() < 3;
        if has_room && self.rng.chance(if self.plot.dies { 1 } else { 2 }, 3) {
            let disk = Some(format!("d{}", self.plot.old.0));
            return world.create_with(LayoutRequest::Isolated { disk });
        }
        world.create();
    }

    /// Everything that was begun comes to its end, and then guests find the pool as good as new.
    fn end(&mut self, world: &mut World) -> Result<(), String> {
        for _ in 0..60 {
            let Some(administrator) = &mut world.administrator else { break };
            administrator.insists = true;
            if administrator.removed {
                break;
            }
            world.administrate()?;
            world.resume_all()?;
            world.let_owner_wait(1000);
        }
        world.rest()?;
        if world.administrator.as_ref().is_some_and(|administrator| !administrator.removed) {
            let jobs = world.list_jobs();
            let refusal = world.administrator.as_ref().and_then(Administrator::refusal);
            return Err(format!("the disk does not leave: {jobs:?}, {refusal:?}"));
        }
        world.check_is_empty(self.plot.old)?;
        if !world.pipelines.iter().all(Pipeline::is_idle) {
            return Err("a request is stuck".to_owned());
        }
        let flushes = |world: &World| world.guests.iter().map(|guest| guest.history.flushes()).sum::<usize>();
        let before = flushes(world);
        for index in 0..world.guests.len() {
            let (at, token) = (world.tick(), Token(world.next));
            world.next += 1;
            world.guests[index].flush(&mut world.pipelines[0], token, at);
        }
        world.rest()?;
        if flushes(world) < before + world.guests.len() {
            return Err("the disk has left, and a FLUSH fails".to_owned());
        }
        Ok(())
    }

    /// Cuts the power here and there, and compares. Returns what one of the cuts has left, and which.
    fn cut(&mut self, world: &mut World, sum: &mut Sum) -> Result<(Vec<SimDisk>, usize), String> {
        for guest in world.guests.drain(..) {
            world.histories.insert(guest.state.id().0, guest.history);
        }
        let len = world.trace.len();
        // Mostly while the disk is being emptied.
        let at_work = world.administrator.as_ref().and_then(|administrator| administrator.at_work.clone());
        let mut random = || match at_work.clone().filter(|_| self.rng.chance(3, 4)) {
            Some(at_work) => at_work.start + self.rng.index(at_work.len()),
            None => self.rng.index(len + 1),
        };
        let mut cuts: Vec<usize> = (0..CUTS).map(|_| random()).collect();
        cuts.sort_unstable();
        let next = self.rng.index(CUTS);
        if self.is_last() {
            cuts.push(len);
        }
        let (mut replay, mut left) = (world.trace.replay(), Vec::new());
        for (index, &cut) in cuts.iter().enumerate() {
            replay.advance_to(cut);
            let images = replay.crash_images(self.rng.next_u64());
            check_cut(world, &images, cut).map_err(|error| format!("cut {cut} of {len}: {error}"))?;
            sum.cuts += 1;
            if index == next {
                left = images;
            }
        }
        Ok((left, cuts[next]))
    }

    /// The pool is opened again with what a power cut has left.
    fn begin_again(
        &mut self,
        before: &World,
        images: Vec<SimDisk>,
        cut: usize,
        sum: &mut Sum,
    ) -> Result<World, String> {
        let found = open(self.scenario, &images)?;
        let jobs: Vec<&JobRecord> = found.jobs().iter().filter(|job| is_about(job, self.plot.old)).collect();
        let administrator = before.administrator.as_ref().ok_or("an administrator stays")?;
        self.check_facts(&found, administrator, cut)?;
        let unended = || jobs.iter().filter(|job| !job.is_ended());
        let gives_up: DiskSet = unended().flat_map(|job| job.kind.gives_up().iter().copied()).collect();
        if gives_up.0 & !administrator.accepted.0 != 0 {
            return Err(format!("{jobs:?} gives up more than {:?}", administrator.accepted));
        }
        check_news(before, &found, gives_up, cut)?;
        let dead = self.dead_now(before.dead());
        sum.came_back += DiskSet(before.dead().0 & !dead.0).len();
        sum.resumed += unended().count();
        sum.lives += 1;
        let accepts = found.pool().disk(self.plot.old).map(|disk| disk.accept);
        let administrator = administrator.again(accepts, self.rng.next_u64());
        let losses = Losses {
            of: Some(self.plot.old),
            accepted: DiskSet(gives_up.0 & dead.0),
            back: DiskSet(gives_up.0 & !dead.0),
            places: places(found.vhds.iter().map(|(_, state)| state)),
            ..Losses::default()
        };
        let vhds = found.vhds.clone();
        let histories =
            vhds.iter().map(|(record, state)| found_in(record, state, &images)).collect::<Result<Vec<_>, _>>()?;
        self.scenario = Scenario { seed: self.rng.next_u64(), dead, ..self.scenario };
        let mut world = World::opened(self.scenario, images, found)?;
        (world.losses, world.administrator) = (losses, Some(administrator));
        // Names are made from it.
        world.next = self.life * 1_000_000;
        for ((record, state), history) in vhds.into_iter().zip(histories) {
            self.goes_on(&mut world, record, state, history);
        }
        world.note_losses()?;
        self.check_given_up(&mut world)?;
        Ok(world)
    }

    /// A disk that works is not given up, and will not be when it dies once more.
    fn check_given_up(&self, world: &mut World) -> Result<(), String> {
        let (jobs, dead) = (world.list_jobs(), world.dead());
        let works = |job: &&JobRecord| job.kind.gives_up().iter().any(|disk| !dead.contains(*disk));
        match jobs.iter().filter(|job| is_about(job, self.plot.old) && !job.is_ended()).find(works) {
            Some(job) => Err(format!("only {dead:?} are dead now: {job:?}")),
            None => Ok(()),
        }
    }

    /// Which disks are dead in the next life: in the last one, none but the one that goes.
    fn dead_now(&mut self, before: DiskSet) -> DiskSet {
        let (old, next_is_last) = (self.plot.old, self.life + 1 == self.lives);
        let mut dead = DiskSet::default();
        for disk in before.iter().filter(|disk| *disk != old) {
            if !next_is_last && self.rng.chance(1, 2) {
                dead.insert(disk);
            }
        }
        if self.has_died && self.rng.chance(1, 2) {
            dead.insert(old);
        }
        dead
    }

    /// What was told before the cut is so.
    fn check_facts(&self, found: &Recovered, administrator: &Administrator, cut: usize) -> Result<(), String> {
        let until = position(cut + 1, 0);
        for (_, fact) in administrator.told.iter().filter(|(at, _)| *at < until) {
            let is_so = match fact {
                Fact::Ordered(job) => found.jobs().iter().any(|found| found.id == *job),
                Fact::Removed => found.pool().disk(self.plot.old).is_none(),
            };
            if !is_so {
                return Err(format!("after a cut at {cut}, {fact:?} is forgotten"));
            }
        }
        Ok(())
    }

    /// A guest of a VHD that was found.
    fn goes_on(&mut self, world: &mut World, record: VhdRecord, state: Arc<VhdState>, history: History) {
        let number = record.id.0;
        let mut guest = Guest::finding(state, self.rng.chance(1, 3), history, self.life << 32);
        (guest.has_room, guest.dead) = (true, self.scenario.dead);
        world.guests.push(guest);
        let sizes = Sizes::new(record.size, 0);
        world.told.insert(number, Told { record, created_at: 0, delete_begun: None, sizes });
    }
}

/// Nothing that was written to a disk that had come back is to be given up when it dies again: nobody has accepted that.
fn check_news(before: &World, found: &Recovered, gives_up: DiskSet, cut: usize) -> Result<(), String> {
    let per_extent = EXTENT / SECTOR as u64;
    for ((vhd, extent), place) in places(found.vhds.iter().map(|(_, state)| state)) {
        let disks = place.in_sync;
        let (is_given_up, was_back) = (disks.0 & !gives_up.0 == 0, disks.0 & before.losses.back.0 != 0);
        let Some(history) = before.histories.get(&vhd).filter(|_| is_given_up && was_back) else { continue };
        let first = u64::from(extent.0) * per_extent;
        if history.has_news(first..first + per_extent, position(cut + 1, 0) - 1) {
            return Err(format!("extent {} of VHD {vhd} on {disks:?} is new, and to be given up if it dies", extent.0));
        }
    }
    Ok(())
}

/// What is on the disks of a VHD, all replicas in sync taken together. (A stale one may never have been filled.)
fn found_in(record: &VhdRecord, state: &VhdState, images: &[SimDisk]) -> Result<History, String> {
    let mut history = History::default();
    for extent in state.map.placed_from(ExtentIndex(0)) {
        let seen = state.map.lookup(extent);
        let read = |replica| read_extent(images, replica, seen.present);
        let in_sync = seen.replicas.iter().filter(|replica| replica.state == ReplicaState::InSync);
        let replicas: Vec<Vec<u8>> = in_sync.map(read).collect::<Result<_, _>>()?;
        let sectors = EXTENT / SECTOR as u64;
        let first = u64::from(extent.0) * sectors;
        for (index, sector) in (0..).zip(first..first + sectors) {
            let mut contents = Vec::new();
            for bytes in &replicas {
                let content = identify(record.id.0, sector, &bytes[index * SECTOR..][..SECTOR])?;
                if !contents.contains(&content) {
                    contents.push(content);
                }
            }
            if contents[..] != [Content::Zeros] {
                history.found(sector, contents);
            }
        }
    }
    Ok(history)
}

fn stories(test: &str, seeds: u64, dies: bool) -> Sum {
    let mut sum = Sum::default();
    each_seed(test, seeds, |seed| {
        let mut story = Story::new(seed, dies);
        let told = story.tell(&mut sum);
        told.map_err(|error| format!("life {} of {} of {:?}: {error}", story.life, story.lives, story.plot))
    });
    println!("{sum:?}");
    sum
}

#[test]
fn disks_leave_under_power_cuts() {
    let sum = stories("replace::disks_leave", 120, false);
    let Sum { cuts, lives, resumed, moved, orders, .. } = sum;
    assert!(cuts > 1000 && lives > 100 && resumed > 50 && moved > 400, "the stories show little");
    assert!(orders.removed > 100 && orders.cancelled > 5 && orders.kept_away > 50, "the stories show little");
}

#[test]
fn dead_disks_leave_under_power_cuts() {
    let sum = stories("dead_disks_leave", 160, true);
    let Sum { cuts, lives, resumed, moved_from_dead, given_up, died_late, came_back, stopped, orders, .. } = sum;
    assert!(cuts > 1000 && lives > 100 && resumed > 40 && moved_from_dead > 50, "the stories show little");
    assert!(given_up > 50 && died_late > 30 && came_back > 30 && stopped > 20, "the stories show little");
    assert!(orders.removed > 100 && orders.refused > 10, "the stories show little");
}
