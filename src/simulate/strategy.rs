//! Ways to place VHDs: three that never move anything, and the policy.

use super::host::{Arrival, Host, SimDisk, SimVhd, disk_id};
use super::synthetic::DAY_SECS;
use super::whole;
use crate::base::ids::VhdId;
use crate::placement::layout::{LayoutWish, plan};
use crate::placement::limits::IoLimits;
use crate::placement::record::{Accept, Layout};
use crate::policy::judge::judge;
use crate::policy::observe::{Disk, Flow, Health, Latency, Moment, Pool, Vhd};
use crate::policy::place::{NewVhd, place};
use crate::policy::proposal::Action;
use crate::policy::rules::{Mode, Rules, Wish};
use crate::policy::state::State;

/// A VHD larger than this part of a disk is spanned by the static hybrid.
const HYBRID_PART: f64 = 0.125;

/// How VHDs are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strategy {
    /// Every VHD over all disks.
    Spanned,
    /// Every VHD on one disk, the roomiest.
    Isolated,
    /// Large ones over all disks, small ones on one.
    Hybrid,
    /// As the policy says.
    Policy,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Strategy; 4] = [Strategy::Spanned, Strategy::Isolated, Strategy::Hybrid, Strategy::Policy];

    /// The name for people and programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Strategy::Spanned => "all-spanned",
            Strategy::Isolated => "all-isolated",
            Strategy::Hybrid => "static hybrid",
            Strategy::Policy => "policy",
        }
    }
}

/// The policy at work on one host.
#[derive(Clone, Debug)]
pub(super) struct Runner {
    pub rules: Rules,
    pub state: State,
}

impl Runner {
    pub fn new(moved_a_day: f64, target_secs: f64) -> Runner {
        let latency_ns = Some(whole(target_secs * 1e9));
        let all = Wish { mode: Some(Mode::Auto), latency_ns, ..Wish::default() };
        Runner { rules: Rules { all, moved_a_day, ..Rules::default() }, state: State::default() }
    }

    /// A look, and what follows from it.
    pub fn look(&mut self, host: &mut Host, secs: f64) {
        let pool = observe(host, secs);
        self.state = judge(&pool, &self.rules, &self.state).state;
        let start = self.state.to_start();
        for number in start {
            let Ok(proposal) = self.state.apply(number, self.rules.rest_secs) else { continue };
            if !carry_out(host, &proposal.action) {
                self.state.refused(number);
            }
        }
        for vhd in host.vhds.values_mut() {
            (vhd.recent_iops, vhd.recent_bytes, vhd.recent_secs) = Default::default();
        }
        host.disks.iter_mut().for_each(|disk| disk.recent = Default::default());
    }
}

fn carry_out(host: &mut Host, action: &Action) -> bool {
    let id = action.vhd();
    let Some(vhd) = host.vhds.get(&id) else { return false };
    let (layout, replicas) = match action {
        Action::Span { disks, .. } => {
            (Layout::Spanned { disks: disks.clone(), width: None, chosen: true }, vhd.replicas)
        }
        Action::Unspan { disk, .. } | Action::Migrate { disk, .. } => {
            (Layout::Isolated { disk: *disk, chosen: true }, vhd.replicas)
        }
        Action::Replicas { replicas, .. } => (vhd.layout.clone(), *replicas),
        Action::Settle { .. } => (vhd.layout.clone(), vhd.replicas),
    };
    host.start(id, layout, replicas)
}

/// The layout of a new VHD; `None` if it cannot have any.
pub(super) fn layout_for(
    strategy: Strategy,
    host: &Host,
    runner: Option<&Runner>,
    arrival: Arrival,
    secs: f64,
) -> Option<Layout> {
    let spanned = LayoutWish::Spanned { disks: None, width: None };
    let isolated = LayoutWish::Isolated { disk: None };
    let largest = host.disks.iter().map(|disk| disk.slots).max().unwrap_or(0);
    let wish = match (strategy, runner) {
        (Strategy::Policy, Some(runner)) => {
            let size = u64::from(arrival.extents) * host.extent_size;
            let new = NewVhd { vm: Some(arrival.vm), size, used: 0, replicas: arrival.replicas };
            return place(&observe(host, secs), &runner.rules, new);
        }
        (Strategy::Isolated, _) => isolated,
        (Strategy::Hybrid, _) if f64::from(arrival.extents) < HYBRID_PART * f64::from(largest) => isolated,
        _ => spanned,
    };
    plan(&wish, &host.rooms()).ok()
}

/// What the daemon could tell the policy of a host. Which extents are asked for more than others is not in it.
pub(super) fn observe(host: &Host, secs: f64) -> Pool {
    let minute = whole(secs / 60.0) % 1440;
    let moving = host.vhds.values().filter(|vhd| vhd.moves.is_some());
    let jobs: Vec<VhdId> = moving.map(|vhd| vhd.arrival.vhd).collect();
    Pool {
        at: Moment { unix_secs: whole(secs), minute_of_day: u16::try_from(minute).unwrap_or(0) },
        extent_size: host.extent_size,
        disks: host.disks.iter().enumerate().map(|(index, disk)| see_disk(index, disk)).collect(),
        vhds: host.vhds.values().map(|vhd| see_vhd(vhd, host.extent_size)).collect(),
        in_flight: jobs.len(),
        jobs,
        moved_bytes: 0,
    }
}

fn see_disk(index: usize, disk: &SimDisk) -> Disk {
    let id = disk_id(index);
    Disk {
        id,
        name: format!("disk{index}"),
        domain: u32::from(id.0),
        slots: disk.slots,
        free: disk.free(),
        health: Health::Works,
        accept: Accept::Any,
        kind: disk.kind,
        busy: disk.recent.value(),
        queue_depth: disk.wait.mean_secs * disk.iops,
        latency: latency(disk.wait.mean_secs, disk.wait.p99_secs),
        guests: Flow { iops: disk.iops, bytes: disk.bytes },
        background: Flow { iops: disk.moves / 262_144.0, bytes: disk.moves },
    }
}

fn see_vhd(vhd: &SimVhd, extent_size: u64) -> Vhd {
    let arrival = &vhd.arrival;
    let placed = u32::try_from(vhd.at.len()).unwrap_or(u32::MAX);
    let there = vhd.on.iter().enumerate().filter(|(_, (count, _))| *count > 0);
    let survives = vhd.at.iter().map(|set| set.len()).min().unwrap_or(usize::from(vhd.replicas)).saturating_sub(1);
    Vhd {
        id: arrival.vhd,
        name: format!("vhd{}", arrival.vhd.0),
        vm: Some(arrival.vm),
        size: u64::from(arrival.extents) * extent_size,
        layout: vhd.layout.clone(),
        replicas: vhd.replicas,
        survives: Some(u8::try_from(survives).unwrap_or(0)),
        placed,
        extents: there.map(|(disk, (count, _))| (disk_id(disk), *count)).collect(),
        quota_left: None,
        limits: IoLimits::default(),
        flow: Flow { iops: vhd.recent_iops.value(), bytes: vhd.recent_bytes.value() },
        usual: Flow { iops: vhd.usual_iops.value(), bytes: vhd.usual_bytes.value() },
        read_share: vhd.demand.read_share,
        latency: latency(vhd.recent_secs.value(), vhd.p99_secs),
        usual_latency: latency(vhd.usual_secs.value(), 0.0),
        working_set: u64::from(placed) * extent_size / 4,
        growth: vhd.growth.value() * DAY_SECS * extent_size as f64,
    }
}

fn latency(mean_secs: f64, p99_secs: f64) -> Latency {
    Latency { mean_ns: whole(mean_secs * 1e9), p99_ns: whole(p99_secs * 1e9) }
}
