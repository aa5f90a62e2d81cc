//! Pools for tests: what disks and guests do follows from where extents are.

use std::collections::BTreeSet;

use super::super::super::observe::*;
use super::super::super::proposal::{Action, Proposal, Standing};
use super::super::super::rules::{Mode, Rules};
use super::super::super::state::State;
use super::super::judge;
use crate::base::ids::{DiskId, VhdId, VmId};
use crate::placement::limits::IoLimits;
use crate::placement::record::{Accept, Layout};
use crate::plan::{Goal, GoalDisk, shares_of_new};

/// Slots of a disk of [`disk`].
pub const SLOTS: u32 = 1000;

/// What a disk of [`disk`] can do.
pub const MOST: f64 = 10_000.0;

/// An empty SSD, a failure domain of its own.
pub fn disk(id: u8) -> Disk {
    Disk {
        id: DiskId(id),
        name: format!("disk{id}"),
        domain: u32::from(id),
        slots: SLOTS,
        free: SLOTS,
        health: Health::Works,
        accept: Accept::Any,
        kind: DiskKind::Ssd,
        busy: 0.0,
        queue_depth: 0.0,
        latency: Latency::default(),
        guests: Flow::default(),
        background: Flow::default(),
    }
}

/// A VHD that has so many extents on which disk, and does nothing.
pub fn vhd(id: u32, vm: Option<u32>, on: &[(u8, u32)]) -> Vhd {
    let disks: Vec<DiskId> = on.iter().map(|(disk, _)| DiskId(*disk)).collect();
    let layout = match disks[..] {
        [disk] => Layout::Isolated { disk, chosen: false },
        _ => Layout::Spanned { disks, width: None, chosen: false },
    };
    let placed = on.iter().map(|(_, count)| count).sum();
    Vhd {
        id: VhdId(id),
        name: format!("vhd{id}"),
        vm: vm.map(VmId),
        size: u64::from(placed) << 21,
        layout,
        replicas: 1,
        survives: Some(0),
        placed,
        extents: on.iter().map(|(disk, count)| (DiskId(*disk), *count)).collect(),
        quota_left: None,
        limits: IoLimits::default(),
        flow: Flow::default(),
        usual: Flow::default(),
        read_share: 1.0,
        latency: Latency::default(),
        usual_latency: Latency::default(),
        working_set: 0,
        growth: 0.0,
    }
}

/// The same with requests of its guest, as a part of what a disk can do.
pub fn busy_vhd(id: u32, vm: Option<u32>, on: &[(u8, u32)], part: f64) -> Vhd {
    let flow = Flow { iops: part * MOST, bytes: 0.0 };
    Vhd { flow, usual: flow, ..vhd(id, vm, on) }
}

/// A pool of them.
pub fn pool(disks: Vec<Disk>, vhds: Vec<Vhd>) -> Pool {
    let at = Moment { unix_secs: 1_000_000, minute_of_day: 600 };
    let mut pool = Pool { at, extent_size: 1 << 20, disks, vhds, jobs: Vec::new(), in_flight: 0, moved_bytes: 0 };
    measure(&mut pool);
    pool
}

/// Fills in what follows from where extents are and from what guests ask for.
pub fn measure(pool: &mut Pool) {
    for disk in &mut pool.disks {
        let on = |vhd: &Vhd| vhd.extents.iter().find(|(id, _)| *id == disk.id).map_or(0, |(_, count)| *count);
        let used: u32 = pool.vhds.iter().map(on).sum();
        disk.free = disk.slots.saturating_sub(used);
        let iops: f64 =
            pool.vhds.iter().map(|vhd| vhd.flow.iops * f64::from(on(vhd)) / f64::from(vhd.placed.max(1))).sum();
        disk.busy = (iops / MOST).min(1.0);
        disk.guests = Flow { iops, bytes: 0.0 };
    }
    for vhd in &mut pool.vhds {
        let of = |id: DiskId| pool.disks.iter().find(|disk| disk.id == id).expect("a disk of the pool");
        let wait = |(id, count): &(DiskId, u32)| f64::from(*count) * 150_000.0 / (1.0 - of(*id).busy.min(0.995));
        let total: u32 = vhd.extents.iter().map(|(_, count)| count).sum();
        let mean = vhd.extents.iter().map(wait).sum::<f64>() / f64::from(total.max(1));
        vhd.latency = Latency { mean_ns: super::super::super::number::whole(mean), p99_ns: 0 };
        let domains: BTreeSet<u32> = vhd.extents.iter().map(|(id, _)| of(*id).domain).collect();
        let kept = u8::try_from(domains.len()).expect("few disks").min(vhd.replicas);
        let is_whole = total >= vhd.placed * u32::from(vhd.replicas);
        vhd.survives = Some(if is_whole { kept.saturating_sub(1) } else { 0 });
    }
}

/// Rules by which everything is carried out.
pub fn auto() -> Rules {
    let mut rules = Rules { moved_a_day: 0.2, ..Rules::default() };
    rules.all.mode = Some(Mode::Auto);
    rules
}

/// A pool that is looked at again and again, and in which what starts is done at once.
pub struct World {
    pub pool: Pool,
    pub rules: Rules,
    pub state: State,
    /// What was carried out, and when.
    pub done: Vec<(u64, Proposal)>,
}

impl World {
    pub fn new(disks: Vec<Disk>, vhds: Vec<Vhd>) -> World {
        World { pool: pool(disks, vhds), rules: auto(), state: State::default(), done: Vec::new() }
    }

    /// A look after so many seconds.
    pub fn look(&mut self, secs: u64) {
        self.pool.at.unix_secs += secs;
        self.pool.at.minute_of_day = u16::try_from(self.pool.at.unix_secs / 60 % 1440).expect("less than a day");
        measure(&mut self.pool);
        let judgement = judge(&self.pool, &self.rules, &self.state);
        self.state = judgement.state;
        for number in judgement.start {
            let proposal = self.state.apply(number, self.rules.rest_secs).expect("a proposal to start is open");
            assert_eq!(proposal.standing, Standing::Start);
            self.carry_out(&proposal.action);
            self.done.push((self.state.clock.secs, proposal));
        }
        measure(&mut self.pool);
    }

    /// Looks for so many minutes, every five.
    pub fn run(&mut self, minutes: u64) {
        (0..minutes / 5).for_each(|_| self.look(300));
    }

    /// As the daemon would: refuses what is not legal.
    pub fn carry_out(&mut self, action: &Action) {
        let index = self.pool.vhds.iter().position(|vhd| vhd.id == action.vhd()).expect("a VHD of the pool");
        let vhd = &self.pool.vhds[index];
        let layout = match action {
            Action::Span { disks, .. } => Layout::Spanned { disks: disks.clone(), width: None, chosen: true },
            Action::Unspan { disk, .. } | Action::Migrate { disk, .. } => {
                Layout::Isolated { disk: *disk, chosen: true }
            }
            Action::Replicas { .. } | Action::Settle { .. } => vhd.layout.clone(),
        };
        let replicas = if let Action::Replicas { replicas, .. } = action { *replicas } else { vhd.replicas };
        let had = |id: DiskId| vhd.extents.iter().find(|(disk, _)| *disk == id).map_or(0, |(_, count)| *count);
        let goal_disk = |id: DiskId| {
            let disk = self.pool.disks.iter().find(|disk| disk.id == id).expect("a disk of the pool");
            assert!(disk.health == Health::Works, "{action:?} names a disk that does not work");
            assert!(disk.accept != Accept::None, "{action:?} names a disk that accepts nothing");
            GoalDisk { disk: id, slots: disk.slots, free: disk.free + had(id), domain: disk.domain, closed: false }
        };
        let goal = Goal { disks: layout.disks().iter().map(goal_disk).collect(), replicas: usize::from(replicas) };
        let shares = shares_of_new(u64::from(vhd.placed), &goal).expect("the planner agrees");
        let mut left =
            u64::from(vhd.placed) * u64::from(replicas) - shares.iter().map(|share| share.least).sum::<u64>();
        let mut extents = Vec::new();
        for share in shares {
            let more = left.min(share.most - share.least);
            left -= more;
            extents.push((share.disk, u32::try_from(share.least + more).expect("few extents")));
        }
        extents.retain(|(_, count)| *count > 0);
        let vhd = &mut self.pool.vhds[index];
        (vhd.layout, vhd.replicas, vhd.extents) = (layout, replicas, extents);
        measure(&mut self.pool);
        let used: u32 = self.pool.disks.iter().map(|disk| disk.slots - disk.free).sum();
        let had: u32 = self.pool.vhds.iter().flat_map(|vhd| vhd.extents.iter().map(|(_, count)| count)).sum();
        assert_eq!(used, had, "no disk has more than it has room for");
    }
}
