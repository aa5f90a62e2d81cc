//! Giving an absent extent of a VHD its replicas: on disks of its layout or, if it may grow, on others, and never two where they
//! would fail together.

use super::space::{Source, Space};
use super::vhds::{PerDisk, Vhd};
use crate::base::ids::{DiskId, DiskSet};
use crate::base::limits::REPLICAS_MAX;
use crate::base::units::ExtentIndex;
use crate::placement::holds::Holder;
use crate::placement::layout::{Candidate, choose_disk};
use crate::placement::record::{Expand, Layout};
use crate::placement::{Replica, ReplicaSet, ReplicaState};

/// The disks of one extent, in the order in which they were chosen.
#[derive(Clone, Copy, Default)]
struct Chosen {
    disks: [Option<DiskId>; REPLICAS_MAX],
}

impl Chosen {
    fn set(self) -> DiskSet {
        self.disks.into_iter().flatten().collect()
    }

    fn push(&mut self, disk: DiskId) {
        *self.disks.iter_mut().find(|place| place.is_none()).expect("as many disks as replicas") = Some(disk);
    }

    /// Every extent is read from its first replica. Which of them that is follows no pattern: the order of disks has one, and
    /// all of them shall be read.
    fn shuffled(mut self, extent: ExtentIndex) -> Chosen {
        let len = self.set().len();
        let hash = extent.0.wrapping_mul(0x9e37_79b9) >> 16;
        self.disks[..len].rotate_left(hash as usize % len.max(1));
        self
    }
}

/// What an extent is placed from.
pub(super) enum Purse<'a> {
    /// Slots that are free to anybody.
    Free,
    /// Slots promised to a thick VHD that is being given its room, per disk.
    Fill(&'a mut PerDisk),
    /// Slots held for a reservation.
    Held(Holder, Reserved),
}

/// What is held for a reservation and the VHD can use, per disk.
pub(super) struct Reserved {
    slots: PerDisk,
    /// The same with what is on its way back, if it lacks that: the extents that are still to come are planned with it.
    soon: Option<PerDisk>,
}

impl Purse<'_> {
    fn slots(&self) -> Option<&PerDisk> {
        match self {
            Purse::Free => None,
            Purse::Fill(slots) => Some(slots),
            Purse::Held(_, reserved) => Some(&reserved.slots),
        }
    }

    /// Slots by which the failure domains are chosen.
    fn planned(&self) -> Option<&PerDisk> {
        match self {
            Purse::Held(_, Reserved { soon: Some(soon), .. }) => Some(soon),
            _ => self.slots(),
        }
    }

    fn source(&self) -> Source {
        match self {
            Purse::Free => Source::Free,
            Purse::Fill(_) => Source::Fill,
            Purse::Held(holder, _) => Source::Held(*holder),
        }
    }

    fn spend(&mut self, disk: DiskId) {
        match self {
            Purse::Free => {}
            Purse::Fill(slots) => slots[disk.index()] -= 1,
            Purse::Held(_, reserved) => reserved.slots[disk.index()] -= 1,
        }
    }
}

impl Vhd {
    /// Gives an absent extent its slots and publishes them; `None` if there is no room.
    pub fn place(&mut self, extent: ExtentIndex, space: &mut Space, mut purse: Purse<'_>) -> Option<ReplicaSet> {
        // What was reserved before the layout changed is on the disks it had then.
        let reserved = purse.slots().map_or(0, |quota| {
            quota.iter().enumerate().filter(|(_, count)| **count > 0).fold(0, |set, (disk, _)| set | 1 << disk)
        });
        let within = DiskSet(self.record.layout.disks().0 | reserved);
        let wanted = self.replicas_on(within, space);
        loop {
            let mut chosen = Chosen::default();
            for _ in 0..wanted {
                chosen.push(self.disk_within(extent, within, chosen, space, Some(&purse))?);
            }
            // Without a slot a disk has failed just now, and is no candidate any more.
            if let Some(replicas) = self.take_slots(extent, chosen, space, &mut purse) {
                return Some(replicas);
            }
        }
    }

    /// As [`Vhd::place`], from what is held for a reservation; `soon`: what will be held when what is on its way back is there, if that is
    /// more.
    pub fn place_held(
        &mut self,
        extent: ExtentIndex,
        space: &mut Space,
        holder: Holder,
        soon: Option<PerDisk>,
    ) -> Option<ReplicaSet> {
        let within = space.usable(self.record.layout.disks());
        let usable = |mut slots: PerDisk| {
            let others = slots.iter_mut().enumerate().filter(|(disk, _)| within.0 >> disk & 1 == 0);
            others.for_each(|(_, count)| *count = 0);
            slots
        };
        let slots = usable(space.holds().held(holder)?.clone());
        self.place(extent, space, Purse::Held(holder, Reserved { slots, soon: soon.map(usable) }))
    }

    /// Whether it grows onto other disks, if that is what counts unless it says something itself
    /// ([`Owner::expand_unless_said`](super::Owner)).
    pub fn expands(&self, unless_said: Option<Expand>) -> bool {
        let spanned = matches!(self.record.layout, Layout::Spanned { .. });
        let default = if spanned { Expand::Auto } else { Expand::Never };
        self.record.expand.or(unless_said).unwrap_or(default) == Expand::Auto
    }

    /// As [`Vhd::place`]; what has no room on the disks of its layout goes to others that accept spanned VHDs, if it may grow:
    /// to one that it has grown onto before, so that few disks can fail it, else to the one with the most room. With the first
    /// of those, and whether it had nothing there before.
    pub fn place_beyond(
        &mut self,
        extent: ExtentIndex,
        space: &mut Space,
        unless_said: Option<Expand>,
    ) -> Option<(ReplicaSet, DiskId, bool)> {
        if !self.expands(unless_said) {
            return None;
        }
        let within = self.record.layout.disks();
        let accepting = space.iter().filter(|disk| disk.accept.spanned()).map(|disk| disk.state.id);
        let beyond: DiskSet = accepting.filter(|disk| !within.contains(*disk)).collect();
        let wanted = self.replicas_on(DiskSet(within.0 | beyond.0), space);
        loop {
            let mut chosen = Chosen::default();
            for _ in 0..wanted {
                let disk = self.disk_within(extent, within, chosen, space, None);
                let roomiest = || {
                    let apart =
                        space.apart_from(beyond, chosen.set()).iter().filter(|disk| space.disk(*disk).free() > 0);
                    let is_there = |disk: DiskId| self.counts[disk.index()] > 0;
                    apart.max_by_key(|disk| (is_there(*disk), space.disk(*disk).free(), std::cmp::Reverse(*disk)))
                };
                chosen.push(disk.or_else(roomiest)?);
            }
            let first = chosen.set().iter().find(|disk| beyond.contains(*disk))?;
            let is_new = self.counts[first.index()] == 0;
            if let Some(replicas) = self.take_slots(extent, chosen, space, &mut Purse::Free) {
                return Some((replicas, first, is_new));
            }
        }
    }

    /// Replicas that a new extent gets on some of these disks: as many as it should have or, if disks have failed, as can be
    /// kept apart. A job makes the others when there are disks for them.
    fn replicas_on(&self, disks: DiskSet, space: &Space) -> usize {
        match usize::from(self.record.replicas) {
            1 => 1,
            replicas => replicas.min(space.working_domains(disks)).max(1),
        }
    }

    /// The best disk for one more replica.
    fn disk_within(
        &self,
        extent: ExtentIndex,
        disks: DiskSet,
        chosen: Chosen,
        space: &Space,
        purse: Option<&Purse<'_>>,
    ) -> Option<DiskId> {
        let map = &self.state.map;
        let around = [extent.0.checked_sub(1), extent.0.checked_add(1).filter(|next| *next < map.extents())];
        let around = around.map(|near| near.map(|near| map.lookup(ExtentIndex(near)).replicas));
        let spanned = matches!(self.record.layout, Layout::Spanned { .. });
        let apart = if chosen.set().is_empty() { disks } else { space.apart_from(disks, chosen.set()) };
        let (quota, planned) = (purse.and_then(Purse::slots), purse.and_then(Purse::planned));
        let crowded = planned.filter(|_| self.record.replicas > 1).map(|planned| most_reserved(planned, apart, space));
        let candidates = crowded.unwrap_or(apart).iter().map(|id| {
            let disk = space.disk(id);
            Candidate {
                disk: id,
                free: quota.map_or_else(|| disk.free(), |quota| quota[id.index()]),
                count: self.counts[id.index()],
                neighbour: around.iter().flatten().any(|near| near.on(id).is_some()),
                accepts: !spanned || disk.accept.spanned(),
            }
        });
        choose_disk(candidates)
    }

    /// Takes a slot on each disk; all or, if one of them has none any more, none.
    fn take_slots(
        &mut self,
        extent: ExtentIndex,
        chosen: Chosen,
        space: &mut Space,
        purse: &mut Purse<'_>,
    ) -> Option<ReplicaSet> {
        let mut replicas = ReplicaSet::ABSENT;
        for disk in chosen.shuffled(extent).disks.into_iter().flatten() {
            let ideal = self.ideal(extent, disk, space);
            let Some(slot) = space.take(disk, &ideal, purse.source()) else {
                assert!(purse.slots().is_none(), "what is promised is there");
                replicas.iter().for_each(|taken| space.put_back(taken.disk, taken.slot));
                return None;
            };
            replicas.push(Replica { disk, slot, state: ReplicaState::InSync });
        }
        for disk in replicas.iter().map(|replica| replica.disk) {
            self.counts[disk.index()] += 1;
            purse.spend(disk);
        }
        self.note_placed(replicas);
        self.state.map.place(extent, replicas);
        Some(replicas)
    }
}

/// Those of the disks whose failure domain has the most reserved. If replicas always go there first, no domain is left with more
/// than one for each extent that is still to be placed.
fn most_reserved(quota: &PerDisk, disks: DiskSet, space: &Space) -> DiskSet {
    let domain = |disk: DiskId| space.disk(disk).failure_domain.as_str();
    let in_domain = |of: DiskId| -> u64 {
        let disks = space.iter().map(|disk| disk.state.id).filter(|disk| domain(*disk) == domain(of));
        disks.map(|disk| u64::from(quota[disk.index()])).sum()
    };
    let most = disks.iter().map(in_domain).max().unwrap_or(0);
    disks.iter().filter(|disk| in_domain(*disk) == most).collect()
}
