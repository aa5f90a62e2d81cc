//! One host under one strategy: its disks, its VHDs, where their extents are, and what each minute brings.

use std::collections::{BTreeMap, VecDeque};

use super::averages::{Average, Mean, Usual};
use super::service::{Load, Service, Wait, p99_of_parts};
use super::shares::Shares;
use super::spec::Spec;
use super::whole;
use crate::base::ids::{DiskId, DiskSet, VhdId, VmId};
use crate::base::rng::Rng;
use crate::base::units::ExtentIndex;
use crate::placement::layout::{Candidate, DiskRoom, choose_disk};
use crate::placement::record::{Accept, Layout};
use crate::plan::{Goal, GoalDisk, Relocation, plan};
use crate::policy::observe::DiskKind;

/// A disk as it is bought.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DiskSpec {
    pub kind: DiskKind,
    /// Extents that it has room for.
    pub slots: u32,
    /// How fast it is among its kind.
    pub speed: f64,
}

/// A disk.
#[derive(Clone, Debug)]
pub(super) struct SimDisk {
    pub kind: DiskKind,
    pub slots: u32,
    pub used: u32,
    pub service: Service,
    /// What the last minute brought.
    pub wait: Wait,
    pub iops: f64,
    pub bytes: f64,
    /// Bytes a second of moves.
    pub moves: f64,
    /// What guests and moves ask for.
    pub load: Load,
    /// How it is shared out; `None`: it is not.
    pub shares: Option<Shares>,
    /// Busy since the policy last looked.
    pub recent: Mean,
}

impl SimDisk {
    pub fn free(&self) -> u32 {
        self.slots - self.used
    }

    /// How it serves a VHD.
    fn wait_of(&self, ask: Ask) -> Wait {
        let fair = |shares: &Shares| shares.wait(&self.service, self.load, self.wait, ask.part, ask.in_flight);
        self.shares.as_ref().map_or(self.wait, fair)
    }
}

/// What a guest does at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Demand {
    /// Requests a second.
    pub iops: f64,
    /// Bytes a second.
    pub bytes: f64,
    /// Part of them that are reads.
    pub read_share: f64,
    /// Requests that it has in flight at most.
    pub depth: f64,
}

/// What a VHD asks of one disk.
#[derive(Clone, Copy, Debug)]
struct Ask {
    /// As part of the disk's time.
    part: f64,
    /// Requests in flight there, at most.
    in_flight: f64,
}

/// A VHD that comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Arrival {
    pub vhd: VhdId,
    pub vm: VmId,
    /// Extents that its guest sees.
    pub extents: u32,
    pub replicas: u8,
    /// Seconds that a request may take on average.
    pub target_secs: f64,
}

/// A VHD.
#[derive(Clone, Debug)]
pub(super) struct SimVhd {
    pub arrival: Arrival,
    pub layout: Layout,
    pub replicas: u8,
    /// By extent: the disks of its replicas. The first so many extents are those that have a place.
    pub at: Vec<DiskSet>,
    /// By extent: how often it is asked for, among the others.
    pub heat: Vec<f32>,
    /// By disk: replicas, and heat of them.
    pub on: Vec<(u32, f64)>,
    pub demand: Demand,
    /// Extents that it should have, and could not get.
    pub missing: u32,
    /// Relocations that are still to be carried out, if it is being moved.
    pub moves: Option<VecDeque<Relocation>>,
    /// What the last minute brought.
    pub mean_secs: f64,
    pub p99_secs: f64,
    /// Part of its demand that was served.
    pub served: f64,
    /// On the last day.
    pub usual_iops: Usual,
    pub usual_bytes: Usual,
    pub usual_secs: Usual,
    /// Since the policy last looked.
    pub recent_iops: Mean,
    pub recent_bytes: Mean,
    pub recent_secs: Mean,
    /// Extents a day, over the last hours.
    pub growth: Average,
}

/// A host.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub extent_size: u64,
    pub disks: Vec<SimDisk>,
    pub vhds: BTreeMap<VhdId, SimVhd>,
    /// Bytes a second that one move copies at most.
    pub move_rate: f64,
    /// How unevenly extents of a VHD are asked for.
    pub skew: f64,
    /// Whether disks are shared out fairly.
    pub fair: bool,
    /// Bytes that have been moved.
    pub moved: u64,
    seed: u64,
}

impl Host {
    pub fn new(disks: &[DiskSpec], spec: &Spec, seed: u64) -> Host {
        let disk = |spec: &DiskSpec| SimDisk {
            kind: spec.kind,
            slots: spec.slots,
            used: 0,
            service: Service::of(spec.kind, spec.speed),
            wait: Wait::default(),
            iops: 0.0,
            bytes: 0.0,
            moves: 0.0,
            load: Load::default(),
            shares: None,
            recent: Mean::default(),
        };
        let (disks, vhds) = (disks.iter().map(disk).collect(), BTreeMap::new());
        let (extent_size, move_rate, skew) = (spec.extent, spec.move_rate as f64, spec.skew);
        Host { extent_size, disks, vhds, move_rate, skew, fair: spec.fair_shares, moved: 0, seed }
    }

    /// What the daemon knows when it chooses disks for a new VHD.
    pub fn rooms(&self) -> Vec<DiskRoom> {
        let room = |(index, disk): (usize, &SimDisk)| {
            let id = disk_id(index);
            let promised = |vhd: &SimVhd| {
                let disks = vhd.layout.disks();
                let still = u64::from(vhd.arrival.extents).saturating_sub(vhd.at.len() as u64);
                if disks.contains(id) { still * u64::from(vhd.replicas) / disks.len() as u64 } else { 0 }
            };
            let promised = self.vhds.values().map(promised).sum();
            DiskRoom { disk: id, accept: Accept::Any, failed: false, free: u64::from(disk.free()), promised }
        };
        self.disks.iter().enumerate().map(room).collect()
    }

    /// A VHD comes; nothing of it has a place yet.
    pub fn arrive(&mut self, arrival: Arrival, layout: Layout) {
        let vhd = SimVhd {
            arrival,
            layout,
            replicas: arrival.replicas,
            at: Vec::new(),
            heat: Vec::new(),
            on: vec![(0, 0.0); self.disks.len()],
            demand: Demand::default(),
            missing: 0,
            moves: None,
            mean_secs: 0.0,
            p99_secs: 0.0,
            served: 1.0,
            usual_iops: Usual::default(),
            usual_bytes: Usual::default(),
            usual_secs: Usual::default(),
            recent_iops: Mean::default(),
            recent_bytes: Mean::default(),
            recent_secs: Mean::default(),
            growth: Average::default(),
        };
        self.vhds.insert(arrival.vhd, vhd);
    }

    /// A VHD goes.
    pub fn leave(&mut self, vhd: VhdId) {
        if let Some(vhd) = self.vhds.remove(&vhd) {
            for (disk, (count, _)) in self.disks.iter_mut().zip(&vhd.on) {
                disk.used -= count;
            }
        }
    }

    /// A VHD has so many extents from now on, or as many as there is room for. As in the daemon: an isolated one stays on its
    /// disk, a spanned one goes on elsewhere when its disks are full.
    pub fn resize(&mut self, id: VhdId, extents: u32) {
        let Some(vhd) = self.vhds.get_mut(&id) else { return };
        let extents = extents.min(vhd.arrival.extents) as usize;
        while vhd.at.len() > extents {
            let (set, heat) = (vhd.at.pop().unwrap_or_default(), vhd.heat.pop().unwrap_or_default());
            for disk in set.iter().map(DiskId::index) {
                vhd.on[disk].0 -= 1;
                vhd.on[disk].1 -= f64::from(heat);
                self.disks[disk].used -= 1;
            }
        }
        while vhd.at.len() < extents {
            let Some(set) = choose(vhd, &self.disks) else { break };
            let heat = heat_of(self.seed, id, vhd.at.len(), self.skew);
            for disk in set.iter().map(DiskId::index) {
                vhd.on[disk].0 += 1;
                vhd.on[disk].1 += f64::from(heat);
                self.disks[disk].used += 1;
            }
            vhd.at.push(set);
            vhd.heat.push(heat);
        }
        vhd.missing = u32::try_from(extents - vhd.at.len()).unwrap_or(u32::MAX);
    }

    /// Begins to move a VHD; `false` if the planner refuses or it is being moved already.
    pub fn start(&mut self, id: VhdId, layout: Layout, replicas: u8) -> bool {
        let Some(vhd) = self.vhds.get_mut(&id) else { return false };
        let goal_disk = |disk: DiskId| {
            let room = &self.disks[disk.index()];
            GoalDisk { disk, slots: room.slots, free: room.free(), domain: u32::from(disk.0), closed: false }
        };
        let goal = Goal { disks: layout.disks().iter().map(goal_disk).collect(), replicas: usize::from(replicas) };
        let placed = (0..).map(ExtentIndex).zip(vhd.at.iter().copied()).collect::<Vec<_>>();
        if vhd.moves.is_some() {
            return false;
        }
        let Ok(plan) = plan(&placed, &goal) else { return false };
        (vhd.layout, vhd.replicas) = (layout, replicas);
        vhd.moves = Some(plan.relocations.into());
        true
    }

    /// Moves go on for a while.
    pub fn go_on_moving(&mut self, secs: f64) {
        self.disks.iter_mut().for_each(|disk| disk.moves = 0.0);
        for vhd in self.vhds.values_mut() {
            let Some(mut moves) = vhd.moves.take() else { continue };
            let layout = vhd.layout.disks();
            let used = (self.disks.iter().enumerate())
                .filter(|(index, _)| vhd.on[*index].0 > 0 || layout.contains(disk_id(*index)))
                .map(|(_, disk)| MOVE_PART * MOVE_BYTES / disk.service.asked(1.0, MOVE_BYTES));
            let rate = used.fold(self.move_rate, f64::min);
            let most = whole(rate * secs / self.extent_size as f64).max(1);
            let mut copied = 0;
            while copied < most
                && let Some(step) = moves.pop_front()
            {
                for disk in relocate(vhd, &mut self.disks, step).into_iter().flatten() {
                    self.disks[disk.index()].moves += self.extent_size as f64 / secs;
                    copied += u64::from(Some(disk) == step.to);
                }
            }
            self.moved += copied * self.extent_size;
            vhd.moves = (!moves.is_empty()).then_some(moves);
        }
    }

    /// What guests ask for reaches the disks.
    pub fn serve(&mut self, minutes: f64) {
        let asked = self.ask();
        for (index, disk) in self.disks.iter_mut().enumerate() {
            let (iops, bytes) = (disk.iops + disk.moves / MOVE_BYTES, disk.bytes + disk.moves);
            disk.load = Load { iops, bytes };
            let in_flight = asked.iter().map(|asks| asks[index].in_flight).sum::<f64>() + MOVE_DEPTH;
            disk.wait = disk.service.wait(disk.load, disk.service.asked(iops, bytes), in_flight);
            disk.recent.add(disk.wait.busy());
            if self.fair {
                let moves = disk.service.asked(disk.moves / MOVE_BYTES, disk.moves);
                let asks = asked.iter().map(|asks| asks[index].part).chain([moves]).filter(|part| *part > 0.0);
                disk.shares = Some(Shares::new(asks.collect()));
            }
        }
        let mut tails: Vec<(f64, f64)> = Vec::with_capacity(self.disks.len());
        for (vhd, asks) in self.vhds.values_mut().zip(&asked) {
            let (mut mean_secs, mut served) = (0.0, 0.0);
            tails.clear();
            for ((disk, part), ask) in self.disks.iter().zip(parts_of(vhd)).zip(asks) {
                if part <= 0.0 {
                    continue;
                }
                let wait = disk.wait_of(*ask);
                mean_secs += part * wait.mean_secs;
                served += part * wait.served();
                tails.push((part, wait.p99_secs));
            }
            (vhd.mean_secs, vhd.p99_secs, vhd.served) = (mean_secs, p99_of_parts(&tails), served);
            let (iops, bytes) = (vhd.demand.iops * vhd.served, vhd.demand.bytes * vhd.served);
            vhd.usual_iops.add(iops, minutes);
            vhd.usual_bytes.add(bytes, minutes);
            vhd.usual_secs.add(vhd.mean_secs, minutes);
            vhd.recent_iops.add(iops);
            vhd.recent_bytes.add(bytes);
            vhd.recent_secs.add(vhd.mean_secs);
        }
    }

    /// What each VHD asks of each disk; of disks it is added up.
    fn ask(&mut self) -> Vec<Vec<Ask>> {
        self.disks.iter_mut().for_each(|disk| (disk.iops, disk.bytes) = (0.0, 0.0));
        let disks = &mut self.disks;
        let mut ask = |vhd: &SimVhd| {
            let (copies, demand) = (copies(vhd), vhd.demand);
            let mut of_disk = |(disk, part): (&mut SimDisk, f64)| {
                let (iops, bytes) = (demand.iops * part * copies, demand.bytes * part * copies);
                disk.iops += iops;
                disk.bytes += bytes;
                Ask { part: disk.service.asked(iops, bytes), in_flight: demand.depth * part }
            };
            disks.iter_mut().zip(parts_of(vhd)).map(&mut of_disk).collect()
        };
        self.vhds.values().map(&mut ask).collect()
    }

    /// Disks without which a VM lacks something, by VM.
    pub fn depends(&self) -> BTreeMap<VmId, u64> {
        let mut masks: BTreeMap<VmId, u64> = BTreeMap::new();
        for vhd in self.vhds.values() {
            let mask = masks.entry(vhd.arrival.vm).or_default();
            if vhd.replicas <= 1 {
                let on = vhd.on.iter().enumerate().filter(|(_, (count, _))| *count > 0);
                *mask |= on.fold(0, |mask, (disk, _)| mask | 1 << disk);
            } else {
                *mask |= vhd.at.iter().filter(|set| set.len() == 1).fold(0, |mask, set| mask | set.0);
            }
        }
        masks
    }
}

/// One extent gets a replica more, or one fewer, or both. The disks that were written and read for it, if it was copied.
fn relocate(vhd: &mut SimVhd, disks: &mut [SimDisk], step: Relocation) -> Option<[DiskId; 2]> {
    let at = step.extent.0 as usize;
    // Its guest may have given it back meanwhile, and the room may be gone.
    let fits = |disk: DiskId| disks[disk.index()].free() > 0;
    if at >= vhd.at.len() || step.to.is_some_and(|to| vhd.at[at].contains(to) || !fits(to)) {
        return None;
    }
    let heat = f64::from(vhd.heat[at]);
    let source = step.from.or_else(|| vhd.at[at].iter().next());
    if let Some(to) = step.to {
        vhd.at[at].insert(to);
        vhd.on[to.index()].0 += 1;
        vhd.on[to.index()].1 += heat;
        disks[to.index()].used += 1;
    }
    if let Some(from) = step.from.filter(|from| vhd.at[at].contains(*from)) {
        vhd.at[at].remove(from);
        vhd.on[from.index()].0 -= 1;
        vhd.on[from.index()].1 -= heat;
        disks[from.index()].used -= 1;
    }
    Some([step.to?, source?])
}

/// Part of a disk's time that a move takes at most: the mover gives way to guests.
const MOVE_PART: f64 = 0.25;

/// Bytes of a request of a move, and how many of them are in flight on a disk.
const MOVE_BYTES: f64 = 262_144.0;
const MOVE_DEPTH: f64 = 2.0;

/// The part of a VHD's requests that each disk gets, before writes are multiplied by replicas.
fn parts_of(vhd: &SimVhd) -> impl Iterator<Item = f64> {
    let total: f64 = vhd.on.iter().map(|(_, heat)| heat).sum();
    vhd.on.iter().map(move |(count, heat)| if *count > 0 && total > 0.0 { heat / total } else { 0.0 })
}

/// Requests of disks for one of its guest: a read goes to one replica, a write to all.
fn copies(vhd: &SimVhd) -> f64 {
    vhd.demand.read_share + (1.0 - vhd.demand.read_share) * f64::from(vhd.replicas)
}

/// The disks of its next extent.
fn choose(vhd: &SimVhd, disks: &[SimDisk]) -> Option<DiskSet> {
    let within = vhd.layout.disks();
    let mut chosen = DiskSet::default();
    for _ in 0..vhd.replicas {
        let last = vhd.at.last().copied().unwrap_or_default();
        let candidates = within.iter().filter(|disk| !chosen.contains(*disk)).map(|disk| Candidate {
            disk,
            free: disks[disk.index()].free(),
            count: vhd.on[disk.index()].0,
            neighbour: last.contains(disk),
            accepts: true,
        });
        let beyond = || {
            let spanned = matches!(vhd.layout, Layout::Spanned { .. });
            let all = (0..disks.len()).filter(|_| spanned).map(disk_id);
            let others = all.filter(|disk| !chosen.contains(*disk) && disks[disk.index()].free() > 0);
            let key =
                |disk: &DiskId| (vhd.on[disk.index()].0 > 0, disks[disk.index()].free(), std::cmp::Reverse(*disk));
            others.max_by_key(key)
        };
        chosen.insert(choose_disk(candidates).or_else(beyond)?);
    }
    Some(chosen)
}

/// How often an extent is asked for among the others of its VHD: a Pareto distribution, the same under every strategy.
fn heat_of(seed: u64, vhd: VhdId, extent: usize, skew: f64) -> f32 {
    let mut rng = Rng::new(seed ^ (u64::from(vhd.0) << 32) ^ extent as u64);
    let part = part(&mut rng);
    #[allow(clippy::cast_possible_truncation, reason = "a weight: half of the digits will do")]
    let heat = part.max(1e-6).powf(-skew) as f32;
    heat
}

/// A number from 0 to 1.
pub(super) fn part(rng: &mut Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

pub(super) fn disk_id(index: usize) -> DiskId {
    DiskId(u8::try_from(index).expect("a host has at most 64 disks"))
}
