//! Where a new VHD should lie: the cheapest change of all is the one that need not be made later.
//!
//! Nothing is known of its load yet. So it goes where its VM is already, if there is room; else to the disk with most to spare, in time
//! and in slots. One that can grow to a large part of a disk is spread over as many as keep its part small on each.
//!
//! Others of which nothing is known yet count as what VHDs usually do. Otherwise those that come together would be placed by room alone:
//! many small ones together beside few large ones, and as many on a slow disk as on a fast one.

use super::model::{BUSY, Model, Window};
use super::observe::Pool;
use super::rules::Rules;
use crate::base::ids::{DiskId, VmId};
use crate::placement::record::Layout;

/// Part of the slots of a disk that one VHD may be able to take before it is spread. Nothing is known of its load yet, and when it is, to
/// move what is larger takes more than the budget of some days: so it is spread at once, when that costs nothing.
const LARGE: f64 = 0.3;

/// What a VHD does of which nothing is known, as part of what all disks can do together; and as how many VHDs that counts beside those
/// of which something is known.
const UNKNOWN: f64 = 0.01;
const UNKNOWN_WEIGHT: f64 = 8.0;

/// Into so many parts a VHD is cut that has nothing yet, to see what of it each disk will have.
const PARTS: u64 = 1 << 16;

/// A VHD that does not exist yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewVhd {
    /// The VM that it will belong to.
    pub vm: Option<VmId>,
    /// Bytes that its guest will see.
    pub size: u64,
    /// Bytes that it will have from the beginning.
    pub used: u64,
    /// Replicas of each extent.
    pub replicas: u8,
}

/// The layout that it should have; `None` if no disk can take it.
#[must_use]
pub fn place(pool: &Pool, rules: &Rules, new: NewVhd) -> Option<Layout> {
    let model = Model::new(pool, rules.space, Window::Usual);
    let extents = new.size.div_ceil(pool.extent_size);
    let used = new.used.div_ceil(pool.extent_size);
    let replicas = usize::from(new.replicas.max(1));
    let siblings = (pool.vhds.iter()).filter(|vhd| new.vm.is_some() && vhd.vm == new.vm && vhd.replicas <= 1);
    let near: u64 = siblings.flat_map(|vhd| model.places(&vhd.layout)).fold(0, |mask, place| mask | 1 << place);
    let room = |place: usize| {
        let disk = &model.disks[place];
        rules.space * f64::from(disk.slots) - disk.used as f64 - promised(pool, &model, place)
    };
    let mut order: Vec<usize> = (0..model.disks.len()).filter(|place| model.disks[*place].works).collect();
    let is_near = |place: usize| replicas == 1 && near >> place & 1 == 1 && model.disks[place].busy < BUSY;
    let busy = expected_busy(pool, &model);
    // Time and room to spare, as parts of the disk.
    let spare = |place: usize| room(place) / f64::from(model.disks[place].slots.max(1)) - 1.5 * busy[place];
    order.sort_by(|a, b| {
        let near = is_near(*b).cmp(&is_near(*a));
        near.then(spare(*b).total_cmp(&spare(*a))).then(a.cmp(b))
    });
    for width in 1..=order.len() {
        let spanned = width > 1;
        let fits = |place: &usize| {
            let disk = &model.disks[*place];
            let share = (extents * replicas as u64) as f64 / width as f64;
            let now = (used * replicas as u64).div_ceil(width as u64) as f64;
            let open = if spanned { disk.accept.spanned() } else { disk.accept.isolated() };
            let small = share <= LARGE * f64::from(disk.slots) && share <= room(*place).max(0.0);
            // The widest there is takes what no narrower one can.
            let roomy = now + disk.used as f64 <= rules.space * f64::from(disk.slots);
            open && if width == order.len() { roomy } else { small && roomy }
        };
        let chosen = apart(&model, order.iter().copied().filter(fits), width, replicas);
        if let Some(disks) = chosen.filter(|_| width >= replicas) {
            return Some(layout(disks));
        }
    }
    // So full that only some disks can take something at all.
    let fits = |place: &usize| {
        let disk = &model.disks[*place];
        let free = f64::from(disk.slots) * rules.space - disk.used as f64;
        disk.accept.spanned() && free * order.len() as f64 > (used * replicas as u64) as f64
    };
    let open: Vec<usize> = order.iter().copied().filter(fits).collect();
    let width = open.len();
    apart(&model, open.into_iter(), width, replicas).filter(|disks| !disks.is_empty()).map(layout)
}

/// How busy each disk is to be expected.
fn expected_busy(pool: &Pool, model: &Model) -> Vec<f64> {
    let known: Vec<f64> =
        model.vhds.iter().filter(|vhd| vhd.work_each > 0.0).map(|vhd| vhd.work_each * vhd.total() as f64).collect();
    let all: f64 = model.disks.iter().filter(|disk| disk.works).map(|disk| 1.0 / disk.new_secs).sum();
    let usual = (UNKNOWN * all * UNKNOWN_WEIGHT + known.iter().sum::<f64>()) / (UNKNOWN_WEIGHT + known.len() as f64);
    let mut busy: Vec<f64> = model.disks.iter().map(|disk| disk.busy).collect();
    for seen in &pool.vhds {
        let Some(vhd) = model.find(seen.id).map(|vhd| &model.vhds[vhd]).filter(|vhd| vhd.work_each <= 0.0) else {
            continue;
        };
        // Where it has nothing yet, it will have.
        let on = if vhd.on.is_empty() { model.even(PARTS, &model.places(&seen.layout)) } else { vhd.on.clone() };
        let total: u64 = on.iter().map(|(_, count)| count).sum();
        for (place, count) in on {
            busy[place] += usual * count as f64 / total.max(1) as f64 * model.disks[place].new_secs;
        }
    }
    busy
}

/// The first so many of these disks, if they are of failure domains enough.
fn apart(model: &Model, places: impl Iterator<Item = usize>, width: usize, replicas: usize) -> Option<Vec<DiskId>> {
    let places: Vec<usize> = places.collect();
    let mut domains = Vec::new();
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for place in places {
        if domains.len() < replicas && !domains.contains(&model.disks[place].domain) {
            domains.push(model.disks[place].domain);
            first.push(place);
        } else {
            rest.push(place);
        }
    }
    first.extend(rest);
    if first.len() < width || domains.len() < replicas {
        return None;
    }
    Some(first[..width].iter().map(|place| model.disks[*place].id).collect())
}

/// Slots that the VHDs which are on a disk will still take there when they have been written all over, the half of them: few ever are.
fn promised(pool: &Pool, model: &Model, place: usize) -> f64 {
    let still = pool.vhds.iter().map(|vhd| {
        let places = model.places(&vhd.layout);
        if !places.contains(&place) {
            return 0.0;
        }
        let rest = vhd.size.div_ceil(pool.extent_size).saturating_sub(u64::from(vhd.placed));
        rest as f64 * f64::from(vhd.replicas) / places.len() as f64
    });
    still.sum::<f64>() / 2.0
}

fn layout(mut disks: Vec<DiskId>) -> Layout {
    disks.sort_unstable();
    match disks[..] {
        [disk] => Layout::Isolated { disk, chosen: false },
        _ => Layout::Spanned { width: u32::try_from(disks.len()).ok(), disks, chosen: false },
    }
}

#[cfg(test)]
mod tests;
