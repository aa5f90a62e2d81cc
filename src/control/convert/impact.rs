//! What the loss of disks means, from what the owner or the placement store says.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::health::Gone;
use crate::base::ids::{DiskId, DiskSet};
use crate::base::limits::IMPACT_EVENT_VHDS_MAX;
use crate::base::units::Geometry;
use crate::control::wire::{
    ExtentSum, Fate, GoneDisk, ImpactInfo, ImpactSum, ImpactTotals, StoreImpact, VhdImpact, VmImpact,
};
use crate::owner::command;
use crate::placement::impact::{ExtentCount, Loss, VhdLoss};
use crate::placement::record::{Expand, Layout, PoolRecord, VhdRecord};
use crate::store::mirror::MemberStatus;
use crate::store::thread::StoreStatus;

/// Threads that read maps at the same time: guests want the cores, too.
const THREADS_MAX: usize = 4;

/// Extents that are worth a thread: a few milliseconds.
const EXTENTS_PER_THREAD_MIN: u64 = 1 << 19;

/// Who has a say in commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Votes {
    /// Disks that carry the store and take part.
    pub members: DiskSet,
    /// How many it takes.
    pub needed: usize,
}

impl From<&StoreStatus> for Votes {
    fn from(status: &StoreStatus) -> Votes {
        let takes_part = |member: &&MemberStatus| member.lost.is_none();
        let members = status.members.iter().filter(takes_part).map(|member| member.disk).collect();
        Votes { members, needed: status.needed }
    }
}

/// What there is and what is lost of it.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// The pool.
    pub pool: &'a PoolRecord,
    /// The disks whose loss is looked at.
    pub disks: DiskSet,
    /// Those that are failed or missing.
    pub gone: Gone,
    /// The placement store.
    pub votes: Votes,
}

impl Scene<'_> {
    /// For classifying extents. (Disks that are gone and asked about are looked at as the last to go.)
    #[must_use]
    pub fn loss(&self) -> Loss {
        Loss { disks: self.disks, gone: DiskSet(self.gone.all().0 & !self.disks.0) }
    }

    fn store(&self) -> StoreImpact {
        let left = DiskSet(self.votes.members.0 & !self.loss().unreadable().0).len();
        let count = |number: usize| number as u64;
        StoreImpact {
            members: count(self.votes.members.len()),
            left: count(left),
            needed: count(self.votes.needed),
            keeps_majority: left >= self.votes.needed,
        }
    }

    /// Whether extents of the VHD that have no place could get none.
    fn has_no_room(&self, vhd: &VhdRecord) -> bool {
        let unreadable = self.loss().unreadable();
        let works = |disks: DiskSet| disks.0 & !unreadable.0 != 0;
        let grows = match vhd.expand.or(self.pool.expand) {
            Some(expand) => expand == Expand::Auto,
            None => matches!(vhd.layout, Layout::Spanned { .. }),
        };
        let others = self.pool.disks.iter().filter(|disk| disk.accept.spanned()).map(|disk| disk.id).collect();
        let wants_room = !vhd.thick && vhd.layout.disks().0 & self.disks.0 != 0;
        wants_room && !works(vhd.layout.disks()) && !(grows && works(others))
    }
}

/// What becomes of one VHD, extents counted.
#[derive(Clone, Copy, Debug)]
pub struct Measured<'a> {
    /// The VHD.
    pub record: &'a VhdRecord,
    /// Whether a frontend is attached.
    pub attached: bool,
    /// Its extents.
    pub loss: VhdLoss,
}

/// Counts what becomes of the extents of a VHD. Reads its map if it has something on the disks, or on others that are gone: not
/// for threads that must not be late. Of others the number of extents comes from the counters of their slots.
#[must_use]
pub fn measure(vhd: &command::VhdInfo, loss: &Loss) -> VhdLoss {
    let mut sums = VhdLoss::default();
    let unreadable = loss.unreadable();
    if !vhd.slots.keys().any(|disk| unreadable.contains(*disk)) {
        let slots: u64 = vhd.slots.values().map(|slots| u64::from(*slots)).sum();
        sums.untouched.extents = slots.div_ceil(u64::from(vhd.record.replicas));
        return sums;
    }
    vhd.state.map.for_each_placed(|found| sums.add(loss.fate(found.replicas(), found.present), found.present));
    sums
}

/// How much there is to read of a VHD, in extents.
fn to_read(vhd: &command::VhdInfo, loss: &Loss) -> u64 {
    let concerned = vhd.slots.keys().any(|disk| loss.unreadable().contains(*disk));
    if concerned { u64::from(vhd.state.map.extents()) } else { 0 }
}

/// Threads that are worth it.
fn threads_for(vhds: &[command::VhdInfo], loss: &Loss) -> u64 {
    let total: u64 = vhds.iter().map(|vhd| to_read(vhd, loss)).sum();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (total / EXTENTS_PER_THREAD_MIN).clamp(1, cores.min(THREADS_MAX) as u64)
}

/// As [`measure`] of many, by this many threads, each with a run of VHDs that is about as much to read as the others'.
fn measure_all(vhds: &[command::VhdInfo], loss: &Loss, threads: u64) -> Vec<VhdLoss> {
    let all = |part: &[command::VhdInfo]| part.iter().map(|vhd| measure(vhd, loss)).collect::<Vec<_>>();
    if threads == 1 {
        return all(vhds);
    }
    let total: u64 = vhds.iter().map(|vhd| to_read(vhd, loss)).sum();
    let mut read = 0;
    let parts = vhds.chunk_by(|vhd, _| {
        let part = |read: u64| read * threads / total.max(1);
        let before = part(read);
        read += to_read(vhd, loss);
        part(read) == before
    });
    std::thread::scope(|scope| {
        let threads: Vec<_> = parts.map(|part| scope.spawn(move || all(part))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a panic aborts the process")).collect()
    })
}

/// The impact, all VHDs named.
#[must_use]
pub fn impact_info<'a>(scene: &Scene<'_>, vhds: impl Iterator<Item = Measured<'a>>) -> ImpactInfo {
    let geometry = scene.pool.geometry().expect("the pool is open: its record has been checked");
    let mut vms: BTreeMap<Option<&str>, Vec<VhdImpact>> = BTreeMap::new();
    let mut totals = ImpactTotals::default();
    for vhd in vhds {
        let impact = vhd_impact(scene, &vhd, geometry);
        sum_up(&mut totals, &impact);
        vms.entry(vhd.record.vm.as_deref()).or_default().push(impact);
    }
    let group = |(vm, mut vhds): (Option<&str>, Vec<VhdImpact>)| {
        vhds.sort_by(|a, b| a.fate.cmp(&b.fate).then_with(|| a.name.cmp(&b.name)));
        let fate = vhds.first().map_or(Fate::Untouched, |worst| worst.fate);
        VmImpact { vm: vm.map(str::to_owned), fate, vhds }
    };
    let mut vms: Vec<VmImpact> = vms.into_iter().map(group).collect();
    vms.iter().filter(|group| group.vm.is_some()).for_each(|vm| part_of(&mut totals, vm.fate).vms += 1);
    vms.sort_by(worst_first);
    ImpactInfo {
        disks: names(scene.pool, scene.disks),
        gone: gone_disks(scene),
        totals,
        store: scene.store(),
        vms,
        vhds_left_out: 0,
        caveat: None,
    }
}

/// The impact on VHDs as the owner told of them. Reads maps: not for threads that must not be late.
#[must_use]
pub fn of_vhds(scene: &Scene<'_>, vhds: &[command::VhdInfo]) -> ImpactInfo {
    let loss = scene.loss();
    let measured = vhds.iter().zip(measure_all(vhds, &loss, threads_for(vhds, &loss))).map(|(vhd, loss)| Measured {
        record: &vhd.record,
        attached: vhd.attached.is_some(),
        loss,
    });
    impact_info(scene, measured)
}

/// The impact without VHDs that nothing happens to, and with a limited number of the others: for events.
#[must_use]
pub fn brief(mut impact: ImpactInfo) -> ImpactInfo {
    let mut room = IMPACT_EVENT_VHDS_MAX;
    for vm in &mut impact.vms {
        vm.vhds.retain(|vhd| vhd.fate != Fate::Untouched);
        impact.vhds_left_out += vm.vhds.len().saturating_sub(room) as u64;
        vm.vhds.truncate(room);
        room -= vm.vhds.len();
    }
    impact.vms.retain(|vm| !vm.vhds.is_empty());
    impact
}

fn worst_first(a: &VmImpact, b: &VmImpact) -> Ordering {
    a.vm.is_none().cmp(&b.vm.is_none()).then(a.fate.cmp(&b.fate)).then_with(|| a.vm.cmp(&b.vm))
}

fn names(pool: &PoolRecord, disks: DiskSet) -> Vec<String> {
    disks.iter().map(|disk| pool.disk_name(disk)).collect()
}

fn gone_disks(scene: &Scene<'_>) -> Vec<GoneDisk> {
    let named = |disk: DiskId| GoneDisk { disk: scene.pool.disk_name(disk), health: scene.gone.health(disk) };
    scene.gone.all().iter().map(named).collect()
}

fn vhd_impact(scene: &Scene<'_>, vhd: &Measured<'_>, geometry: Geometry) -> VhdImpact {
    let VhdLoss { lost, lost_before, empty, degraded, untouched } = vhd.loss;
    let sum = |count: ExtentCount| ExtentSum {
        extents: count.extents,
        bytes: count.extents * geometry.extent_size(),
        written_bytes: Some(count.blocks * geometry.block_size()),
    };
    let no_room = scene.has_no_room(vhd.record);
    let fate = if lost.extents > 0 {
        Fate::Lost
    } else if degraded.extents > 0 || empty > 0 || no_room {
        Fate::Degraded
    } else {
        Fate::Untouched
    };
    VhdImpact {
        name: vhd.record.name.clone(),
        fate,
        attached: vhd.attached,
        lost: sum(lost),
        degraded: sum(degraded),
        untouched: ExtentSum { written_bytes: None, ..sum(untouched) },
        lost_before: sum(lost_before),
        empty_extents: empty,
        no_room,
    }
}

fn part_of(totals: &mut ImpactTotals, fate: Fate) -> &mut ImpactSum {
    match fate {
        Fate::Lost => &mut totals.lost,
        Fate::Degraded => &mut totals.degraded,
        Fate::Untouched => &mut totals.untouched,
    }
}

fn sum_up(totals: &mut ImpactTotals, vhd: &VhdImpact) {
    part_of(totals, vhd.fate).vhds += 1;
    add(&mut totals.lost.extents, vhd.lost);
    add(&mut totals.degraded.extents, vhd.degraded);
    add(&mut totals.untouched.extents, vhd.untouched);
    add(&mut totals.lost_before, vhd.lost_before);
}

fn add(sum: &mut ExtentSum, part: ExtentSum) {
    sum.extents += part.extents;
    sum.bytes += part.bytes;
    if let Some(written) = part.written_bytes {
        *sum.written_bytes.get_or_insert(0) += written;
    }
}

#[cfg(test)]
mod tests;
