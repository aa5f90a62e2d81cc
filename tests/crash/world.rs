//! The whole daemon below the rings in one thread: pipelines, owner, committer and store on simulated disks, with a seeded
//! scheduler that chooses what happens next.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use spanblk::base::clock::Nanos;
use spanblk::base::ids::{DiskId, DiskSet, ReactorId};
use spanblk::base::rng::Rng;
use spanblk::base::units::Geometry;
use spanblk::disk::sim::{Fault, FaultKind, OpKind, SimDisk, SimTrace};
use spanblk::engine::sim::SimEngine;
use spanblk::mover::copier::Copier;
use spanblk::owner::command::CommandId;
use spanblk::owner::{OpenError, Owner};
use spanblk::placement::job::JobRecord;
use spanblk::placement::record::{Accept, DiskRecord, PoolRecord, VhdRecord};
use spanblk::placement::vm::VmRecord;
use spanblk::reactor::messages::ReactorMessage;
use spanblk::reactor::pipeline::{Pipeline, PipelineMessage, Token};
use spanblk::shared::disk::SyncNumber;
use spanblk::shared::{DiskState, VhdState};
use spanblk::store::edit::{StoreEdit, StoreReport};

use super::Mutation;
use super::faults::Trouble;
use super::growth::Sizes;
use super::guest::Guest;
use super::losses::{Losses, close, die};
use super::moves::{mover, share_out};
use super::oracle::History;
use super::orders::Administrator;
use super::post::{Post, ToCommitter};
use super::store::Store;

pub const EXTENT: u64 = 256 << 10;
pub const METADATA_LEN: u64 = 8 << 20;
pub const DATA_OFFSET: u64 = 16 << 20;

/// What to simulate.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub disks: u8,
    /// How many of the disks carry the store.
    pub members: usize,
    pub reactors: u16,
    pub steps: usize,
    /// Room on each disk.
    pub slots: u32,
    /// Everything else mostly happens first: transfers are in flight for long.
    pub slow_disks: bool,
    /// VHDs stay, and are moved all the time.
    pub moving: bool,
    /// Whether VHDs have replicas.
    pub replicated: bool,
    /// Whether blocks of most VHDs have checksums.
    pub checksums: bool,
    pub besides: Besides,
    /// Disks that are dead from the beginning.
    pub dead: DiskSet,
    pub mutation: Option<Mutation>,
}

/// What happens besides what always does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Besides {
    Nothing,
    /// Guests leave their VHDs, which shrink meanwhile.
    Shrinking,
    /// Disks give errors.
    Faults,
    /// Disks are emptied and leave the pool.
    Emptying,
    /// VHDs belong to VMs, which get other names.
    Vms,
}

/// An existing VHD as the outside world was told of it.
pub struct Told {
    pub record: VhdRecord,
    pub created_at: usize,
    /// When deleting it was asked for, and told done.
    pub delete_begun: Option<usize>,
    pub sizes: Sizes,
}

pub struct World {
    pub trace: SimTrace,
    pub disks: Vec<SimDisk>,
    pub scenario: Scenario,
    pub rng: Rng,
    pub pipelines: Vec<Pipeline<SimEngine, Post>>,
    pub mover: Copier<SimEngine, Post>,
    pub owner: Owner,
    pub store: Store,
    pub states: Vec<Arc<DiskState>>,
    pub post: Post,
    pub guests: Vec<Guest>,
    /// What is known of every VHD there ever was.
    pub told: BTreeMap<u32, Told>,
    pub histories: BTreeMap<u32, History>,
    pub creating: BTreeMap<CommandId, ()>,
    pub deleting: BTreeMap<CommandId, u32>,
    pub next: u64,
    events: usize,
    pub now: Nanos,
    pub reused_slots: usize,
    pub jobs: u64,
    /// Extents whose move has become durable.
    pub moves_done: usize,
    /// Chooses growths, so that all else is as without them.
    pub growth: Rng,
    pub growths: usize,
    pub shrinks: usize,
    pub trouble: Trouble,
    pub losses: Losses,
    pub administrator: Option<Administrator>,
    /// Blocks that had the right checksum after power cuts.
    pub checksums_found: Cell<u64>,
}

pub fn geometry() -> Geometry {
    Geometry::new(EXTENT).expect("a legal extent size")
}

fn disk_states(disks: u8, slots: u32) -> Vec<Arc<DiskState>> {
    let state = |i: u8| Arc::new(DiskState::new(DiskId(i), format!("d{i}"), DATA_OFFSET, slots, 512, 512));
    (0..disks).map(state).collect()
}

fn pool_record(disks: u8, slots: u32) -> PoolRecord {
    let disk = |i: u8| DiskRecord {
        id: DiskId(i),
        uuid: uuid::Uuid::from_u128(u128::from(i) + 1),
        name: format!("d{i}"),
        slots,
        data_offset: DATA_OFFSET,
        accept: Accept::Any,
        failure_domain: format!("f{i}"),
    };
    PoolRecord::new(uuid::Uuid::from_u128(99), EXTENT, (0..disks).map(disk).collect())
}

impl World {
    pub fn new(scenario: Scenario) -> World {
        let trace = SimTrace::new();
        let disk_len = DATA_OFFSET + u64::from(scenario.slots) * EXTENT;
        let disks: Vec<SimDisk> = (0..scenario.disks).map(|_| trace.add_disk(disk_len, 512)).collect();
        let pool = pool_record(scenario.disks, scenario.slots);
        let store = Store::create(&disks[..scenario.members], &pool);
        let world = World::serve(scenario, disks, &pool, store, Vec::new(), Vec::new(), Vec::new());
        let world = world.expect("an empty pool");
        world.trace.restart();
        let lying = match scenario.mutation {
            Some(Mutation::LyingDataSync) => &world.disks[scenario.members..],
            Some(Mutation::LyingStoreSync) => &world.disks[..scenario.members],
            _ => &[],
        };
        lying.iter().for_each(|disk| disk.inject(Fault::always(OpKind::Sync, FaultKind::Lie)));
        world
    }

    /// The daemon on these disks, with what the store says.
    pub fn serve(
        scenario: Scenario,
        disks: Vec<SimDisk>,
        pool: &PoolRecord,
        store: Store,
        vhds: Vec<(VhdRecord, Arc<VhdState>)>,
        jobs: Vec<JobRecord>,
        vms: Vec<VmRecord>,
    ) -> Result<World, OpenError> {
        let states = disk_states(scenario.disks, scenario.slots);
        scenario.dead.iter().for_each(|dead| die(&states[dead.index()], &disks[dead.index()]));
        share_out(&states, scenario.seed);
        let post = Post::new(usize::from(scenario.reactors), scenario.mutation);
        post.queues.borrow_mut().opened.extend(vhds.iter().map(|(_, state)| Arc::clone(state)));
        let pipelines = (0..scenario.reactors).map(|i| pipeline(ReactorId(i), &disks, &states, &post)).collect();
        let mover = mover(&disks, &states, &post);
        let mut owner =
            Owner::new(pool.clone(), states.clone(), vhds, scenario.reactors)?.with_jobs(jobs).with_vms(vms)?;
        owner.handle_store(StoreReport::Fill { used: 0, size: 1 << 30, low: false }, &mut post.clone());
        let trouble = Trouble::new(scenario, &states);
        let mut world = World {
            trace: disks[0].trace().clone(),
            disks,
            scenario,
            rng: Rng::new(scenario.seed),
            pipelines,
            mover,
            owner,
            store,
            states,
            post,
            guests: Vec::new(),
            told: BTreeMap::new(),
            histories: BTreeMap::new(),
            creating: BTreeMap::new(),
            deleting: BTreeMap::new(),
            next: 1,
            events: 0,
            now: Nanos(0),
            reused_slots: 0,
            jobs: 0,
            moves_done: 0,
            growth: Rng::new(scenario.seed ^ 0x6772_6f77),
            growths: 0,
            shrinks: 0,
            trouble,
            losses: Losses::default(),
            administrator: None,
            checksums_found: Cell::new(0),
        };
        let mut post = world.post.clone();
        world.owner.start(&mut post);
        Ok(world)
    }

    /// A position in time for the oracle: later than everything before, and in step with the trace.
    pub fn tick(&mut self) -> usize {
        self.events += 1;
        position(self.trace.len(), self.events)
    }

    /// Runs the scenario. An error is a broken promise that showed without a power cut.
    pub fn run(&mut self) -> Result<(), String> {
        self.create();
        for step in 0..self.scenario.steps {
            // What shows that a rule is needed, and what moves most, takes the seeds as they are without growth.
            let shrinks = self.scenario.besides == Besides::Shrinking;
            let grows = !self.scenario.moving && (self.scenario.mutation.is_none() || shrinks);
            if grows && self.growth.chance(1, 50) {
                self.grow();
            }
            if self.scenario.besides == Besides::Faults {
                self.trouble_comes_and_goes(step);
                if self.scenario.replicated && step % 8 == 0 {
                    // What comes back by itself does so after a while.
                    self.let_owner_wait(1000);
                }
                // More of what happens by itself, so that moves get far enough to fail late.
                for _ in 0..3 {
                    self.step()?;
                    self.reap()?;
                }
            }
            if self.scenario.checksums && step % 8 == 0 {
                self.let_owner_wait(6000);
            }
            if shrinks {
                self.come_and_go();
            }
            match self.rng.below(40) {
                0 => self.create(),
                1 if self.guests.len() > 1 && !self.scenario.moving && self.rng.chance(1, 3) => self.delete(),
                2 => self.move_something(),
                3..6 if self.scenario.moving => self.move_something(),
                3..14 => self.ask(),
                _ => {
                    self.step()?;
                }
            }
            self.reap()?;
        }
        self.end_trouble()?;
        self.rest()?;
        let stuck: Vec<_> = self.pipelines.iter().filter(|p| !p.is_idle()).collect();
        // Writes may wait for room; nothing else may wait for ever.
        self.now = Nanos(u64::MAX / 2);
        if !stuck.is_empty() {
            self.settle()?;
        }
        for guest in self.guests.drain(..) {
            self.histories.insert(guest.state.id().0, guest.history);
        }
        Ok(())
    }

    pub fn ask(&mut self) {
        if self.guests.is_empty() {
            return;
        }
        let at = self.tick();
        let guest = self.rng.index(self.guests.len());
        let reactor = self.rng.index(self.pipelines.len());
        let token = Token(self.next);
        self.next += 1;
        if self.scenario.mutation == Some(Mutation::FlushForgetsCopies) {
            let state = &self.guests[guest].state;
            self.states.iter().for_each(|disk| state.excuse_copies(disk.id, SyncNumber(u64::MAX)));
        }
        self.guests[guest].is_kept = self.trouble.keeps_from_flushing(&self.guests[guest].state, &self.owner);
        self.guests[guest].begin(&mut self.pipelines[reactor], token, &mut self.rng, at);
    }

    /// Delivers answers to commands and to requests.
    pub fn reap(&mut self) -> Result<(), String> {
        loop {
            let reply = self.post.queues.borrow_mut().replies.pop_front();
            let Some((id, result)) = reply else { break };
            self.replied(id, result)?;
        }
        for index in 0..self.pipelines.len() {
            while let Some(finished) = self.pipelines[index].next_finished() {
                let at = self.tick();
                let mut known = false;
                for guest in &mut self.guests {
                    known |= guest.finish(&finished, at, &self.trouble, &self.owner)?;
                }
                assert!(known, "an answer to a request that nobody made");
            }
        }
        let gone = |guest: &Guest| guest.leaving && guest.is_quiet();
        while let Some(index) = self.guests.iter().position(gone) {
            let guest = self.guests.swap_remove(index);
            self.histories.insert(guest.state.id().0, guest.history);
        }
        Ok(())
    }

    /// Lets one thing happen. False if nothing can.
    pub fn step(&mut self) -> Result<bool, String> {
        let moved = self.step_something()?;
        self.note_losses()?;
        Ok(moved)
    }

    fn step_something(&mut self) -> Result<bool, String> {
        let count = FIXED_SOURCES + 2 * self.pipelines.len();
        let mut sources: Vec<usize> = (0..count).collect();
        sources.rotate_left(self.rng.index(count));
        if self.scenario.slow_disks && self.rng.chance(9, 10) {
            sources.sort_by_key(|&source| is_engine(source));
        }
        for source in sources {
            if self.step_of(source)? {
                return Ok(true);
            }
        }
        Ok(self.let_time_pass())
    }

    fn step_of(&mut self, source: usize) -> Result<bool, String> {
        match source {
            0 => Ok(self.step_owner()),
            1 => Ok(self.step_committer()),
            2 => Ok(self.step_commit()),
            3 => Ok(self.step_punch()),
            4 => Ok(self.step_mover_message()),
            5 => Ok(self.step_copies()),
            6 => Ok(self.step_mover_report()),
            _ if is_engine(source) => Ok(self.step_engine((source - FIXED_SOURCES) / 2)),
            _ => Ok(self.step_message((source - FIXED_SOURCES) / 2)),
        }
    }

    fn step_owner(&mut self) -> bool {
        let message = self.post.queues.borrow_mut().owner.pop_front();
        let Some(message) = message else { return false };
        let mut post = self.post.clone();
        self.owner.handle_reactor(message, self.now, &mut post);
        true
    }

    /// The committer takes a message in.
    fn step_committer(&mut self) -> bool {
        let message = self.post.queues.borrow_mut().committer.pop_front();
        let Some(message) = message else { return false };
        if self.scenario.mutation == Some(Mutation::ReuseBeforeCommit) {
            self.free_early(&message);
        }
        if let ToCommitter::Edit(_, rows) = &message {
            for row in rows {
                if let StoreEdit::Move { moves, .. } = row {
                    self.note_moves(moves);
                }
            }
        }
        if self.scenario.mutation == Some(Mutation::SwitchBeforeCommit) {
            self.switch_early(&message);
        }
        self.store.take(message, &self.states);
        true
    }

    fn free_early(&mut self, message: &ToCommitter) {
        let ToCommitter::Change(change) = message else { return };
        let spanblk::store::change::ChangeKind::Freed { freed } = change.kind else { return };
        let slots = freed.iter().map(|r| (r.disk, r.slot)).collect();
        let mut post = self.post.clone();
        self.owner.handle_store(StoreReport::Freed { slots }, &mut post);
    }

    /// The committer commits what it has.
    fn step_commit(&mut self) -> bool {
        let wanted = self.store.wants_commit();
        if !wanted && !self.rng.chance(1, 20) {
            return false;
        }
        let outcome = self.store.commit(&self.states);
        let mut post = self.post.clone();
        for (reactor, message) in outcome.answers {
            self.post.queues.borrow_mut().reactors[usize::from(reactor.0)].push_back(message);
        }
        for report in outcome.reports {
            let early = self.scenario.mutation == Some(Mutation::ReuseBeforeCommit);
            if early && matches!(report, StoreReport::Freed { .. }) {
                continue;
            }
            self.owner.handle_store(report, &mut post);
        }
        true
    }

    fn step_punch(&mut self) -> bool {
        let punch = self.post.queues.borrow_mut().punches.pop_front();
        let Some((disk, run)) = punch else { return false };
        let offset = DATA_OFFSET + u64::from(run.first.0) * EXTENT;
        let device: &dyn spanblk::disk::BlockDev = &self.disks[disk.index()];
        device.punch(offset, u64::from(run.count) * EXTENT).expect("simulated disks punch");
        self.reused_slots += run.count as usize;
        let mut post = self.post.clone();
        self.owner.handle_punched(disk, run, &mut post);
        true
    }

    fn step_message(&mut self, reactor: usize) -> bool {
        let message = self.post.queues.borrow_mut().reactors[reactor].pop_front();
        let Some(message) = message else { return self.pipelines[reactor].poll(self.now) };
        let message = match message {
            ReactorMessage::Allocated { ticket, result } => PipelineMessage::Allocated { ticket, result },
            ReactorMessage::Freed { ticket } => PipelineMessage::Freed { ticket },
            ReactorMessage::Committed { ticket, ok } => PipelineMessage::Committed { ticket, ok },
            ReactorMessage::ClaimReleased { vhd } => PipelineMessage::ClaimReleased { vhd },
            ReactorMessage::CopyDropped { by, disk, ok } => PipelineMessage::CopyDropped { by, disk, ok },
            ReactorMessage::Turn => PipelineMessage::Turn,
            ReactorMessage::Room => return true,
            ReactorMessage::DiskFailed { disk } => PipelineMessage::DiskFailed { disk },
            ReactorMessage::Fence { fence, disk } => PipelineMessage::Fence { fence, disk },
            ReactorMessage::RemoveDisk { disk } => {
                self.pipelines[reactor].remove_disk(disk);
                close(&self.disks[disk.index()]);
                return true;
            }
            // There are no rings here that could be held back.
            ReactorMessage::LimitsChanged => return true,
            ReactorMessage::AddDisk { .. }
            | ReactorMessage::Ring(_)
            | ReactorMessage::Alive(_)
            | ReactorMessage::Shutdown => {
                unreachable!("nobody sends these here")
            }
        };
        self.pipelines[reactor].handle(message, self.now);
        true
    }

    fn step_engine(&mut self, reactor: usize) -> bool {
        let moved = self.in_trouble(false, |world| world.pipelines[reactor].engine.step(&mut world.rng));
        self.pipelines[reactor].poll(self.now) || moved
    }
}

/// Sources of events besides the pipelines.
const FIXED_SOURCES: usize = 7;

/// Whether a source of events, as [`World::step_of`] numbers them, is the engine of a reactor or of the mover.
fn is_engine(source: usize) -> bool {
    source == 5 || source >= FIXED_SOURCES && !(source - FIXED_SOURCES).is_multiple_of(2)
}

/// Everything told while the trace had `len` steps comes before its next step.
pub fn position(len: usize, event: usize) -> usize {
    assert!(event < 1 << 30);
    len << 30 | event
}

fn pipeline(id: ReactorId, disks: &[SimDisk], states: &[Arc<DiskState>], post: &Post) -> Pipeline<SimEngine, Post> {
    let mut engine = SimEngine::new(32);
    for (state, disk) in states.iter().zip(disks) {
        engine.add_disk(state.id, disk.clone(), 512);
    }
    let mut pipeline = Pipeline::new(id, engine, post.clone());
    states.iter().for_each(|state| pipeline.add_disk(Arc::clone(state)));
    pipeline.reserve(64);
    pipeline
}
