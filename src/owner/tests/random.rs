//! The owner among reactors, a committer and disk workers that do everything in random order and as late as they like,
//! against a model of what must never happen: a slot with two owners, in memory or durably, or one given out again before
//! it is durably free, unread and punched, or one for a VHD that may not grow beyond its disk.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use super::super::command::ResizeVhd;
use super::*;
use crate::base::rng::Rng;
use crate::base::units::Generation;
use crate::placement::ReplicaSet;
use crate::placement::record::Layout;
use crate::policy::rules::{Mode, Rules};

const DISKS: [u32; 3] = [6, 6, 4];
const REACTORS: u16 = 2;

type Slot = (DiskId, SlotIndex);
type Owned = (VhdId, ExtentIndex);

/// One thing that happens; the number chooses among those that could.
#[derive(Clone, Copy, Debug)]
struct Happening {
    kind: u8,
    choice: u32,
}

/// Breaks one rule, to prove that the test would notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Break {
    #[default]
    Nothing,
    /// Slots are punched without waiting for the reactors.
    Fences,
    /// Slots are reported free before that is durable.
    Durability,
}

/// An operation of a reactor on a slot.
#[derive(Clone, Copy, Debug)]
struct Op {
    id: u64,
    of: Owned,
    slot: Slot,
    seen: Generation,
    /// Blocks that it writes for the first time.
    claim: BlockMask,
}

#[derive(Default)]
struct Reactor {
    inbox: VecDeque<ReactorMessage>,
    outgoing: VecDeque<OwnerRequest>,
    ops: Vec<Op>,
    /// Fences, and the operations that they wait for.
    fences: Vec<(u64, BTreeSet<u64>)>,
    allocating: BTreeMap<u64, Owned>,
    freeing: BTreeMap<u64, Owned>,
}

enum ToCommit {
    Change(Change),
    Edit(EditId, Vec<StoreEdit>),
}

#[derive(Default)]
struct Durable {
    vhds: BTreeSet<VhdId>,
    extents: BTreeMap<Owned, (Generation, ReplicaSet)>,
}

struct Sim {
    owner: Owner,
    mail: Mail,
    now: Nanos,
    breaks: Break,
    states: BTreeMap<VhdId, Arc<VhdState>>,
    reactors: Vec<Reactor>,
    committing: VecDeque<ToCommit>,
    reports: VecDeque<StoreReport>,
    durable: Durable,
    punches: Vec<(DiskId, SlotRun)>,
    placed: BTreeMap<Slot, Owned>,
    /// Slots that held something since they were last punched.
    dirty: BTreeSet<Slot>,
    next: u64,
    asked: BTreeSet<CommandId>,
    ever_used: BTreeSet<Slot>,
    /// Slots given out that had been given out before.
    reused: u64,
    /// Slots given out to isolated VHDs on other disks than theirs.
    grown: u64,
}

/// What came of a run that broke no rule: see [`Sim::reused`] and [`Sim::grown`].
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    reused: u64,
    grown: u64,
}

impl Sim {
    fn new(breaks: Break) -> Sim {
        let World { mut owner, mail, .. } = World::new(&DISKS, REACTORS);
        owner.reuse.skip_fences = breaks == Break::Fences;
        Sim {
            owner,
            mail,
            now: Nanos(0),
            breaks,
            states: BTreeMap::new(),
            reactors: (0..REACTORS).map(|_| Reactor::default()).collect(),
            committing: VecDeque::new(),
            reports: VecDeque::new(),
            durable: Durable::default(),
            punches: Vec::new(),
            placed: BTreeMap::new(),
            dirty: BTreeSet::new(),
            next: 0,
            asked: BTreeSet::new(),
            ever_used: BTreeSet::new(),
            reused: 0,
            grown: 0,
        }
    }

    fn name(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn step(&mut self, event: Happening) -> Result<(), String> {
        let mut rng = Rng::new(event.choice.into());
        match event.kind % 32 {
            0..=7 => self.access(&mut rng),
            8..=12 => self.complete(&mut rng)?,
            13..=16 => self.discard(&mut rng),
            17..=21 => self.deliver_to_owner(rng.index(self.reactors.len())),
            22..=26 => self.deliver_to_reactor(rng.index(self.reactors.len())),
            // Rarely: what is not durable yet should be many things.
            27 if rng.chance(1, 4) => self.commit(&mut rng)?,
            28 => self.deliver_report(),
            29 | 30 => self.punch(&mut rng),
            27 => {}
            _ => self.control(&mut rng),
        }
        self.distribute()?;
        self.check()
    }

    fn pick(&self, rng: &mut Rng) -> Option<(Arc<VhdState>, ExtentIndex)> {
        let alive: Vec<_> = self.states.values().filter(|state| !state.is_deleted()).collect();
        let state = Arc::clone(alive.get(rng.index(alive.len().max(1)))?);
        let extent = ExtentIndex(u32::try_from(rng.below(state.map.extents().into())).unwrap());
        Some((state, extent))
    }

    /// A reactor reads or writes an extent.
    fn access(&mut self, rng: &mut Rng) {
        let Some((state, extent)) = self.pick(rng) else { return };
        let id = self.name();
        let at = rng.index(self.reactors.len());
        let reactor = &mut self.reactors[at];
        let of = (state.id(), extent);
        let seen = state.map.lookup(extent);
        let Some(replica) = seen.replicas.iter().next() else {
            if !reactor.allocating.values().any(|asked| *asked == of) {
                reactor.allocating.insert(id, of);
                let from = ReactorId(u16::try_from(at).unwrap());
                let request = OwnerRequest::Allocate { reactor: from, ticket: id, vhd: of.0, extent };
                reactor.outgoing.push_back(request);
            }
            return;
        };
        let block = BlockMask(1 << rng.below(32));
        let claim = if seen.present.and(block).is_empty() { block } else { BlockMask::NONE };
        if !claim.is_empty() && state.map.claim_absent(extent, claim, seen.version).is_err() {
            return;
        }
        reactor.ops.push(Op { id, of, slot: (replica.disk, replica.slot), seen: seen.generation, claim });
    }

    /// An operation of a reactor completes: now its bytes are on the disk, whoever the slot belongs to.
    fn complete(&mut self, rng: &mut Rng) -> Result<(), String> {
        let at = rng.index(self.reactors.len());
        let reactor = &mut self.reactors[at];
        if reactor.ops.is_empty() {
            return Ok(());
        }
        let op = reactor.ops.swap_remove(rng.index(reactor.ops.len()));
        if let Some(owner) = self.placed.get(&op.slot).filter(|owner| **owner != op.of) {
            return Err(format!("{op:?} wrote into a slot of {owner:?}"));
        }
        let state = &self.states[&op.of.0];
        if !op.claim.is_empty() {
            state.change_handed_over();
            let replicas = ReplicaSet::single(op.slot.0, op.slot.1);
            let kind = ChangeKind::Written { replicas, blocks: op.claim, needs: [None; 4] };
            let change = Change { vhd: op.of.0, extent: op.of.1, generation: op.seen, kind };
            self.committing.push_back(ToCommit::Change(change));
            state.map.release(op.of.1, op.claim, op.claim);
        }
        for (_, waits_for) in &mut reactor.fences {
            waits_for.remove(&op.id);
        }
        self.report_fences(at);
        Ok(())
    }

    fn report_fences(&mut self, at: usize) {
        let reactor = &mut self.reactors[at];
        let from = ReactorId(u16::try_from(at).unwrap());
        let reached: Vec<u64> =
            reactor.fences.iter().filter(|(_, waits_for)| waits_for.is_empty()).map(|(fence, _)| *fence).collect();
        reactor.fences.retain(|(_, waits_for)| !waits_for.is_empty());
        let requests = reached.into_iter().map(|fence| OwnerRequest::FenceReached { reactor: from, fence });
        reactor.outgoing.extend(requests);
    }

    fn discard(&mut self, rng: &mut Rng) {
        let Some((state, extent)) = self.pick(rng) else { return };
        let seen = state.map.lookup(extent);
        if seen.replicas.is_absent() || state.map.claim_and_clear(extent, BlockMask::ALL, seen.version).is_err() {
            return;
        }
        let ticket = self.name();
        let at = rng.index(self.reactors.len());
        let from = ReactorId(u16::try_from(at).unwrap());
        self.reactors[at].freeing.insert(ticket, (state.id(), extent));
        let request = OwnerRequest::Free { reactor: from, ticket, vhd: state.id(), extent };
        self.reactors[at].outgoing.push_back(request);
    }

    fn deliver_to_owner(&mut self, at: usize) {
        if let Some(request) = self.reactors[at].outgoing.pop_front() {
            self.owner.handle_reactor(request, self.now, &mut self.mail);
        }
    }

    fn deliver_to_reactor(&mut self, at: usize) {
        let reactor = &mut self.reactors[at];
        match reactor.inbox.pop_front() {
            Some(ReactorMessage::Allocated { ticket, .. }) => {
                reactor.allocating.remove(&ticket).expect("an answer to a question");
            }
            Some(ReactorMessage::Freed { ticket }) => {
                let (vhd, extent) = reactor.freeing.remove(&ticket).expect("an answer to a question");
                self.states[&vhd].map.release(extent, BlockMask::ALL, BlockMask::NONE);
            }
            Some(ReactorMessage::Fence { fence, disk }) => {
                let before = reactor.ops.iter().filter(|op| op.slot.0 == disk).map(|op| op.id).collect();
                reactor.fences.push((fence, before));
                self.report_fences(at);
            }
            Some(_) => panic!("a message that the owner does not send"),
            None => {}
        }
    }

    /// Commits what has been handed over, except some data that is not synced yet.
    fn commit(&mut self, rng: &mut Rng) -> Result<(), String> {
        let mut freed = Vec::new();
        for item in std::mem::take(&mut self.committing) {
            match item {
                ToCommit::Change(change) => {
                    if matches!(change.kind, ChangeKind::Written { .. }) && rng.chance(1, 3) {
                        self.committing.push_back(ToCommit::Change(change));
                        continue;
                    }
                    self.apply(&change);
                    if let ChangeKind::Freed { freed: slots } = change.kind {
                        freed.extend(slots.iter().map(|replica| (replica.disk, replica.slot)));
                    }
                }
                ToCommit::Edit(edit, rows) => {
                    rows.into_iter().for_each(|row| self.apply_row(row));
                    self.reports.push_back(StoreReport::EditDone { edit, result: Ok(()) });
                }
            }
        }
        if !freed.is_empty() && self.breaks != Break::Durability {
            self.reports.push_back(StoreReport::Freed { slots: freed });
        }
        let mut owners: BTreeMap<Slot, Owned> = BTreeMap::new();
        for (of, (_, replicas)) in &self.durable.extents {
            for replica in replicas.iter() {
                if let Some(other) = owners.insert((replica.disk, replica.slot), *of) {
                    return Err(format!("{of:?} and {other:?} durably share {replica:?}"));
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, change: &Change) {
        self.states[&change.vhd].changes_committed(1);
        let of = (change.vhd, change.extent);
        let generation = self.durable.extents.get(&of).map_or(Generation(0), |(generation, _)| *generation);
        if !self.durable.vhds.contains(&change.vhd) || change.generation < generation {
            return;
        }
        match change.kind {
            ChangeKind::Written { replicas, .. } | ChangeKind::Placed { replicas } => {
                self.durable.extents.insert(of, (change.generation, replicas));
            }
            ChangeKind::Freed { .. } => {
                self.durable.extents.insert(of, (change.generation, ReplicaSet::ABSENT));
            }
            ChangeKind::Cleared { .. } => {}
        }
    }

    fn apply_row(&mut self, row: StoreEdit) {
        match row {
            StoreEdit::PutPool(_)
            | StoreEdit::PutJob(_)
            | StoreEdit::DeleteJob(_)
            | StoreEdit::PutVm(_)
            | StoreEdit::DeleteVm(_)
            | StoreEdit::PutPolicy(_)
            | StoreEdit::Note(_) => {}
            StoreEdit::PutVhd(record) => {
                self.durable.vhds.insert(record.id);
            }
            StoreEdit::DeleteVhd(vhd) => {
                self.durable.vhds.remove(&vhd);
                self.durable.extents.retain(|(of, _), _| *of != vhd);
            }
            StoreEdit::Shrink { vhd, extents, .. } => {
                self.durable.extents.retain(|(of, extent), _| *of != vhd || extent.0 < extents);
            }
            StoreEdit::Move { .. } | StoreEdit::Intend { .. } | StoreEdit::Checksums { .. } => {
                unreachable!("nothing is moved, nothing has replicas or checksums")
            }
            StoreEdit::Place { vhd, first, generation, replicas } => {
                assert!(self.durable.vhds.contains(&vhd), "no part of a VHD is written after its deletion");
                for (extent, placed) in (first.0..).zip(replicas) {
                    self.durable.extents.insert((vhd, ExtentIndex(extent)), (generation, placed));
                }
            }
        }
    }

    fn deliver_report(&mut self) {
        if let Some(report) = self.reports.pop_front() {
            self.owner.handle_store(report, &mut self.mail);
        }
    }

    fn punch(&mut self, rng: &mut Rng) {
        if self.punches.is_empty() {
            return;
        }
        let (disk, run) = self.punches.swap_remove(rng.index(self.punches.len()));
        for slot in run.iter() {
            self.dirty.remove(&(disk, slot));
        }
        self.owner.handle_punched(disk, run, &mut self.mail);
    }

    /// Time passes, or somebody gives a command.
    fn control(&mut self, rng: &mut Rng) {
        let vhd = format!("v{}", rng.below(4));
        let layout = match rng.below(4) {
            0 => ISOLATED,
            1 => LayoutRequest::Isolated { disk: Some(format!("d{}", rng.below(3))) },
            2 => SPANNED,
            _ => LayoutRequest::Spanned { disks: None, width: Some(2) },
        };
        let command = match rng.below(11) {
            10 => {
                // What the policy may change grows when its disks are full.
                let mut wanted = Rules::default();
                wanted.all.mode = [None, Some(Mode::Off), Some(Mode::Auto), Some(Mode::Auto)][rng.index(4)];
                Command::KeepPolicy(Box::new(wanted))
            }
            0..=4 => {
                let when_full = if rng.chance(1, 3) { WhenFull::Error } else { WhenFull::Queue { secs: 20 } };
                let thick = rng.chance(1, 3);
                let size = 1 + rng.below(9);
                let uuid = uuid::Uuid::from_u128(self.name().into());
                Command::CreateVhd(Box::new(CreateVhd { uuid, thick, when_full, ..create(&vhd, size, layout) }))
            }
            5 => Command::DeleteVhd { vhd, force: rng.chance(1, 2) },
            8 | 9 => {
                // Nobody has it attached here but the reactors that are played: they use what is left of it.
                Command::ResizeVhd(ResizeVhd { vhd, size: (1 + rng.below(12)) * EXTENT, force: false })
            }
            6 => Command::RenameVhd { vhd, to: format!("v{}", rng.below(4)) },
            _ => {
                self.now = self.now.after(std::time::Duration::from_millis(rng.below(10_000)));
                self.owner.tick(self.now, &mut self.mail);
                return;
            }
        };
        let id = CommandId(self.name());
        self.asked.insert(id);
        self.owner.handle_command(id, command, &mut self.mail);
    }

    /// Hands out what the owner has sent.
    fn distribute(&mut self) -> Result<(), String> {
        // The mover has nothing in flight: what it is asked for is a fence, and it is reached at once.
        for message in std::mem::take(&mut self.mail.mover) {
            let MoverMessage::Fence { fence, .. } = message else { panic!("nothing is moved here") };
            self.owner.handle_mover(MoverReport::FenceReached { fence }, self.now, &mut self.mail);
        }
        let mail = std::mem::take(&mut self.mail);
        for (reactor, message) in mail.reactors {
            self.reactors[usize::from(reactor.0)].inbox.push_back(message);
        }
        for change in mail.changes {
            if let (ChangeKind::Freed { freed }, Break::Durability) = (change.kind, self.breaks) {
                let slots = freed.iter().map(|replica| (replica.disk, replica.slot)).collect();
                self.owner.handle_store(StoreReport::Freed { slots }, &mut self.mail);
            }
            self.committing.push_back(ToCommit::Change(change));
        }
        for (edit, rows) in mail.edits {
            self.committing.push_back(ToCommit::Edit(edit, rows));
        }
        self.punches.extend(mail.punches);
        self.states.extend(mail.opened.into_iter().map(|state| (state.id(), state)));
        for id in mail.replies.keys() {
            if !self.asked.remove(id) {
                return Err(format!("{id:?} was answered twice"));
            }
        }
        Ok(())
    }

    /// What must hold at every moment.
    fn check(&mut self) -> Result<(), String> {
        let mut placed = BTreeMap::new();
        for state in self.states.values().filter(|state| !state.is_deleted()) {
            for extent in state.map.placed_from(ExtentIndex(0)) {
                let of = (state.id(), extent);
                for replica in state.map.lookup(extent).replicas.iter() {
                    if let Some(other) = placed.insert((replica.disk, replica.slot), of) {
                        return Err(format!("{of:?} and {other:?} share {replica:?}"));
                    }
                }
            }
        }
        for (slot, of) in &placed {
            if self.placed.get(slot) != Some(of) {
                self.check_new(*slot, *of)?;
            }
        }
        self.dirty.extend(self.placed.keys().filter(|slot| !placed.contains_key(slot)));
        self.dirty.extend(placed.keys());
        self.placed = placed;
        let report = self.owner.check();
        if !report.is_consistent() {
            return Err(format!("{:?}", report.violations));
        }
        for waiter in &self.owner.waiters {
            let disks = self.owner.vhds.get(waiter.vhd).ok_or("waits for a VHD that is gone")?.record.layout.disks();
            if disks.0 & self.owner.space.with_room().0 != 0 {
                return Err(format!("{waiter:?} waits although there is room"));
            }
        }
        Ok(())
    }

    /// A slot has just been given out.
    fn check_new(&mut self, slot: Slot, of: Owned) -> Result<(), String> {
        self.reused += u64::from(!self.ever_used.insert(slot));
        let vhd = &self.owner.vhds.get(of.0).ok_or("a slot of a VHD that is gone")?.record;
        if matches!(vhd.layout, Layout::Isolated { disk, .. } if disk != slot.0) {
            self.grown += 1;
            if self.owner.wanted.mode(of.0, None) != Mode::Auto {
                return Err(format!("{slot:?} was given to {of:?}, which is isolated elsewhere and may not grow"));
            }
        }
        let in_flight = self.reactors.iter().flat_map(|reactor| &reactor.ops).find(|op| op.slot == slot);
        if let Some(op) = in_flight {
            return Err(format!("{slot:?} was given to {of:?} while {op:?} was in flight"));
        }
        if self.dirty.contains(&slot) {
            return Err(format!("{slot:?} was given to {of:?} before it was punched"));
        }
        let durably = |(_, (_, replicas)): &(&Owned, &(Generation, ReplicaSet))| {
            replicas.iter().any(|replica| (replica.disk, replica.slot) == slot)
        };
        if let Some((owner, _)) = self.durable.extents.iter().find(durably) {
            return Err(format!("{slot:?} was given to {of:?} while it is durably {owner:?}'s"));
        }
        Ok(())
    }

    /// Lets everything come to its end: then nothing may be left over.
    fn drain(&mut self) -> Result<(), String> {
        let mut rng = Rng::new(1);
        // Who could grow waits twice: for slots of its own disk, and then as others do.
        for _ in 0..3 {
            for _ in 0..400 {
                for at in 0..self.reactors.len() {
                    self.deliver_to_reactor(at);
                    self.deliver_to_owner(at);
                }
                self.complete(&mut rng)?;
                self.commit(&mut rng)?;
                self.deliver_report();
                self.punch(&mut rng);
                self.distribute()?;
                self.check()?;
            }
            self.now = self.now.after(std::time::Duration::from_secs(120));
            self.owner.tick(self.now, &mut self.mail);
        }
        let reactor_idle = |r: &Reactor| r.allocating.is_empty() && r.freeing.is_empty() && r.fences.is_empty();
        let idle = self.owner.waiters.is_empty() && self.punches.is_empty() && self.committing.is_empty();
        if !idle || !self.asked.is_empty() || !self.reactors.iter().all(reactor_idle) {
            let reactors: Vec<_> = self.reactors.iter().map(|r| (&r.allocating, &r.freeing, &r.fences)).collect();
            let waiters = &self.owner.waiters;
            return Err(format!("never answered: {:?}; {waiters:?}; {:?}; {reactors:?}", self.asked, self.punches));
        }
        for disk in self.owner.space.iter() {
            if disk.slots().limbo() > 0 || disk.reserved > 0 {
                return Err(format!("slots of {} never came back", disk.state.name));
            }
        }
        if self.states.values().any(|state| state.has_pending_changes()) {
            return Err("changes are pending for ever".to_owned());
        }
        Ok(())
    }

    /// What comes of these events, or the first violation.
    fn run(events: &[Happening], breaks: Break) -> Result<Seen, String> {
        let mut sim = Sim::new(breaks);
        for event in events {
            sim.step(*event)?;
        }
        sim.drain()?;
        Ok(Seen { reused: sim.reused, grown: sim.grown })
    }
}

fn random_events(seed: u64, count: usize) -> Vec<Happening> {
    let mut rng = Rng::new(seed);
    let choice = |rng: &mut Rng| u32::try_from(rng.below(1 << 32)).unwrap();
    (0..count).map(|_| Happening { kind: u8::try_from(rng.below(256)).unwrap(), choice: choice(&mut rng) }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn no_slot_ever_has_two_owners_or_comes_back_too_early(
        events in prop::collection::vec((any::<u8>(), any::<u32>()).prop_map(|(kind, choice)| Happening { kind, choice }), 1..1500)
    ) {
        if let Err(violation) = Sim::run(&events, Break::Nothing) {
            prop_assert!(false, "{}", violation);
        }
    }
}

#[test]
fn long_runs_reuse_slots_and_stay_correct() {
    let mut all = Seen::default();
    for seed in 0..12 {
        let seen = Sim::run(&random_events(seed, 3000), Break::Nothing).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        (all.reused, all.grown) = (all.reused + seen.reused, all.grown + seen.grown);
    }
    println!("{all:?}");
    assert!(all.reused > 100 && all.grown > 20, "{all:?}: the test would show nothing");
}

/// Seeds whose run fails when a rule is broken, and the first violation.
fn failures(breaks: Break) -> (usize, String) {
    let failed: Vec<String> = (0..20).filter_map(|seed| Sim::run(&random_events(seed, 3000), breaks).err()).collect();
    (failed.len(), failed.into_iter().next().unwrap_or_default())
}

#[test]
fn without_fences_a_strangers_slot_is_written() {
    let (count, first) = failures(Break::Fences);
    assert!(count > 5 && first.contains("in flight"), "{count} of 20: {first}");
}

#[test]
fn without_waiting_for_the_commit_two_vhds_share_a_slot() {
    let (count, first) = failures(Break::Durability);
    assert!(count > 5 && first.contains("durably"), "{count} of 20: {first}");
}
