//! Why a VHD lies where it lies: its layout, what of it is where, who shares its disks, and what was decided about it.

use serde::Serialize;

use super::model::{Model, Window};
use super::observe::{Pool, Vhd};
use super::outcome::Applied;
use super::proposal::Metric;
use super::rules::{Mode, Rules};
use super::say::{Names, amount, rule};
use super::state::State;
use crate::base::ids::{DiskSet, VhdId};
use crate::placement::record::Layout;

/// Decisions that are told.
const DECISIONS: usize = 3;

/// What of a VHD is on one disk.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Name of the disk.
    pub disk: String,
    /// Replicas of extents.
    pub replicas: u64,
    /// Part of the disk's time that the VHD takes.
    pub busy: f64,
    /// How busy the disk is in all.
    pub disk_busy: f64,
    /// VHDs of other VMs there.
    pub strangers: u64,
}

/// The explanation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Why {
    /// Name of the VHD.
    pub vhd: String,
    /// Disk by disk.
    pub shares: Vec<Share>,
    /// The same for people, with what was decided.
    pub sentences: Vec<String>,
}

/// Explains where a VHD lies; `None` if there is no such VHD.
#[must_use]
pub fn why(pool: &Pool, rules: &Rules, state: &State, vhd: VhdId) -> Option<Why> {
    let seen = pool.vhds.iter().find(|seen| seen.id == vhd)?;
    let model = Model::new(pool, rules.space, Window::Usual);
    let index = model.find(vhd)?;
    let names = Names(pool);
    let strangers = |place: usize| {
        let there =
            |other: &&super::model::VhdLoad| other.group != model.vhds[index].group && other.count_on(place) > 0;
        model.vhds.iter().filter(there).count() as u64
    };
    let share = |(place, replicas): &(usize, u64)| Share {
        disk: names.disk(model.disks[*place].id),
        replicas: *replicas,
        busy: model.part(index, *place),
        disk_busy: model.disks[*place].busy,
        strangers: strangers(*place),
    };
    let shares: Vec<Share> = model.vhds[index].on.iter().map(share).collect();
    let mut sentences = vec![layout(pool, state, seen)];
    sentences.extend(shares.iter().map(|share| {
        format!(
            "Disk {} has {} replicas of its extents; it takes {} of that disk's time, which is busy for {} in all, and {} VHDs of others \
             are there.",
            share.disk,
            share.replicas,
            amount(Metric::Busy, share.busy),
            amount(Metric::Busy, share.disk_busy),
            share.strangers
        )
    }));
    sentences.extend(decisions(state, names, vhd));
    sentences.push(what_next(rules, state, names, seen));
    Some(Why { vhd: seen.name.clone(), shares, sentences })
}

fn layout(pool: &Pool, state: &State, vhd: &Vhd) -> String {
    let names = Names(pool);
    let disks = vhd.layout.disks();
    let listed = disks.iter().map(|disk| names.disk(disk)).collect::<Vec<_>>().join(", ");
    let beyond = vhd.extents.iter().filter(|(disk, count)| *count > 0 && !disks.contains(*disk)).count();
    let grown = match beyond {
        0 => String::new(),
        disks => format!(" {disks} more disks have extents of it, because there was no room, or a job moves them."),
    };
    // The policy names disks as a user does: whose they are, its last change that named any tells, as long as there is no other one.
    let names_disks = |applied: &&Applied| applied.action.vhd() == vhd.id && !applied.action.disks().is_empty();
    let last = state.applied.iter().rev().find(names_disks);
    let by_policy = last.is_some_and(|applied| applied.action.disks().iter().copied().collect::<DiskSet>() == disks);
    let whose = match &vhd.layout {
        Layout::Isolated { chosen: true, .. } | Layout::Spanned { chosen: true, .. } if by_policy => {
            "was chosen by the policy"
        }
        Layout::Isolated { chosen: true, .. } | Layout::Spanned { chosen: true, .. } => "was ordered by name",
        Layout::Isolated { .. } | Layout::Spanned { .. } if state.placed.contains(&vhd.id) => {
            "was chosen by the policy when it was created"
        }
        Layout::Isolated { .. } | Layout::Spanned { .. } => "was chosen by the daemon",
    };
    format!("VHD {} is {} on {listed}: this {whose}.{grown}", vhd.name, vhd.layout.word())
}

/// The last changes of it, the newest first.
fn decisions<'a>(state: &'a State, names: Names<'a>, vhd: VhdId) -> impl Iterator<Item = String> + 'a {
    let own = state.applied.iter().rev().filter(move |applied| applied.action.vhd() == vhd).take(DECISIONS);
    own.map(move |applied| format!("Because {}: {}.", rule(applied.rule), names.outcome(applied)))
}

fn what_next(rules: &Rules, state: &State, names: Names, vhd: &Vhd) -> String {
    let open = state.open.iter().find(|open| open.action.vhd() == vhd.id);
    let rests = state.rests.get(&vhd.id).map(|until| until.saturating_sub(state.clock.secs).div_ceil(60));
    match (rules.of(vhd).mode, open, rests) {
        (Mode::Off, ..) => "The policy does not look at it: its mode is off.".to_owned(),
        (_, Some(open), _) => {
            let said = names.proposal(open);
            format!("Proposal {}: {}, because {} It {}.", said.number, said.what, said.because, said.standing)
        }
        (_, None, Some(minutes)) => format!("It was moved lately and rests for {minutes} more minutes."),
        (_, None, None) => "Nothing better is known for it.".to_owned(),
    }
}
