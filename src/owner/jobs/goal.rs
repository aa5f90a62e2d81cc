//! From a wish to a layout, and from a layout to a plan.

use super::super::Owner;
use super::super::command::{CommandError, JobRequest, JoiningDisk};
use super::super::commands::not_found;
use super::super::space::DiskSpace;
use super::super::vhds::Vhd;
use crate::base::ids::{DiskId, VhdId};
use crate::placement::job::JobKind;
use crate::placement::layout::{self, DiskRoom, LayoutWish};
use crate::placement::record::Layout;
use crate::plan::PlanError;

/// Why there is no plan.
pub(in crate::owner) enum Unplanned {
    /// There is no such VHD any more.
    Gone,
    /// What the planner says.
    NoRoom(PlanError),
}

/// What plans take for granted.
pub(super) struct Outlook<'a> {
    /// The room on a disk.
    pub free: fn(&DiskSpace) -> u32,
    /// A disk that is not in the pool yet.
    pub joining: Option<(DiskId, &'a JoiningDisk)>,
}

/// What a job is to bring about for one VHD.
pub(super) struct Wanted {
    pub vhd: VhdId,
    pub layout: Layout,
    pub replicas: u8,
}

impl Wanted {
    /// Another layout for a VHD.
    pub fn layout(vhd: &Vhd, layout: Layout) -> Wanted {
        Wanted { vhd: vhd.record.id, layout, replicas: vhd.record.replicas }
    }
}

impl Owner {
    /// What a request asks for: the kind of job, and each VHD with its new layout, in the order in which they are worked on.
    pub(super) fn wanted(&self, request: &JobRequest) -> Result<(JobKind, Vec<Wanted>), CommandError> {
        match request {
            JobRequest::Span { vhd, disks, width } => {
                let vhd = self.vhd_named(vhd)?;
                let layout = self.spanned_layout(vhd, disks.as_deref(), *width)?;
                Ok((JobKind::Span { from: vhd.record.layout.clone() }, vec![Wanted::layout(vhd, layout)]))
            }
            JobRequest::Unspan { vhd, disk, width } => {
                let vhd = self.vhd_named(vhd)?;
                let layout = self.unspanned_layout(vhd, disk.as_deref(), *width)?;
                Ok((JobKind::Unspan { from: vhd.record.layout.clone() }, vec![Wanted::layout(vhd, layout)]))
            }
            JobRequest::Migrate { vhd, disk } => {
                let vhd = self.vhd_named(vhd)?;
                let layout = self.migrated_layout(vhd, disk.as_deref())?;
                Ok((JobKind::Migrate { from: vhd.record.layout.clone() }, vec![Wanted::layout(vhd, layout)]))
            }
            JobRequest::Settle { vhd } => {
                let vhd = self.vhd_named(vhd)?;
                Ok((JobKind::Settle, vec![Wanted::layout(vhd, vhd.record.layout.clone())]))
            }
            JobRequest::Replicas { vhd, replicas } => {
                let vhd = self.vhd_named(vhd)?;
                self.check_replicas(&vhd.record.name, *replicas, &vhd.record.layout)?;
                let wanted = Wanted { replicas: *replicas, ..Wanted::layout(vhd, vhd.record.layout.clone()) };
                Ok((JobKind::Replicas { from: vhd.record.replicas }, vec![wanted]))
            }
            JobRequest::Evacuate { disk, accept_loss } => {
                let disk = self.disk_named(disk)?;
                Ok((JobKind::Evacuate { disk, gives_up: self.given_up(disk, *accept_loss) }, self.evacuated(disk)?))
            }
            JobRequest::Replace { disk, by, accept_loss, keep } => {
                let disk = self.disk_named(disk)?;
                let by = self.stand_in(disk, by)?;
                let uuid = self.pool.disk(disk).expect("a disk that was just looked up").uuid;
                let (gives_up, keep) = (self.given_up(disk, *accept_loss), *keep);
                Ok((JobKind::Replace { disk, uuid, by: by.id, gives_up, keep }, self.replaced(disk, &by)?))
            }
            JobRequest::Rebalance => Ok((JobKind::Rebalance, self.rebalanced())),
            JobRequest::Rebuild { disk } => {
                let disk = self.disk_named(disk)?;
                Ok((JobKind::Rebuild { disk }, self.rebuilt(disk)?))
            }
            JobRequest::Resync { disk } => {
                let disk = self.disk_named(disk)?;
                Ok((JobKind::Resync { disk }, self.resynced(disk)))
            }
            JobRequest::Scrub { vhd } => {
                let vhd = self.vhd_named(vhd)?;
                Ok((JobKind::Scrub { damaged: 0, repaired: 0 }, vec![Wanted::layout(vhd, vhd.record.layout.clone())]))
            }
        }
    }

    fn vhd_named(&self, name: &str) -> Result<&Vhd, CommandError> {
        self.vhds.find(name).ok_or_else(|| not_found("VHD", name))
    }

    /// Onto more disks: those named, or so many, or all that accept it.
    fn spanned_layout(&self, vhd: &Vhd, disks: Option<&[String]>, width: Option<u32>) -> Result<Layout, CommandError> {
        let now = vhd.record.layout.disks();
        if let Some(disks) = disks {
            let named = disks.iter().map(|name| self.disk_named(name)).collect::<Result<Vec<_>, _>>()?;
            return self.layout_of(&LayoutWish::Spanned { disks: Some(named), width }, "spanned");
        }
        let Some(width) = width else {
            return self.layout_of(&LayoutWish::Spanned { disks: None, width: None }, "spanned");
        };
        if (width as usize) < now.len() {
            return Err(CommandError::SpanNarrower { vhd: vhd.record.name.clone(), width, now: now.len() });
        }
        // The disks it is on, and the roomiest of the others.
        let rooms = self.rooms();
        let accepting = |room: &&DiskRoom| room.accept.spanned() && !room.failed;
        let mut kept: Vec<DiskId> =
            rooms.iter().filter(accepting).map(|r| r.disk).filter(|d| now.contains(*d)).collect();
        let mut others: Vec<&DiskRoom> = rooms.iter().filter(accepting).filter(|r| !now.contains(r.disk)).collect();
        others.sort_by_key(|room| (std::cmp::Reverse(room.headroom()), room.disk));
        let missing = (width as usize).saturating_sub(kept.len());
        if missing > others.len() {
            let accepting = kept.len() + others.len();
            return Err(CommandError::WidthTooLarge { width, accepting, disks: self.pool.disks.len() });
        }
        kept.extend(others[..missing].iter().map(|room| room.disk));
        kept.sort_unstable();
        Ok(Layout::Spanned { disks: kept, width: Some(width), chosen: false })
    }

    /// Onto fewer disks, or one: the one named, or those of its disks that hold most of it.
    fn unspanned_layout(&self, vhd: &Vhd, disk: Option<&str>, width: Option<u32>) -> Result<Layout, CommandError> {
        let now = vhd.record.layout.disks();
        if let Some(disk) = disk {
            let disk = Some(self.disk_named(disk)?);
            return self.layout_of(&LayoutWish::Isolated { disk }, "isolated");
        }
        let width = width.unwrap_or(1);
        match width as usize {
            0 => return Err(CommandError::InvalidWidth),
            wider if wider > now.len() => {
                return Err(CommandError::UnspanWider { vhd: vhd.record.name.clone(), width, now: now.len() });
            }
            _ => {}
        }
        let rooms = self.rooms();
        let accepts = |room: &&DiskRoom| if width == 1 { room.accept.isolated() } else { room.accept.spanned() };
        let mut kept: Vec<&DiskRoom> =
            rooms.iter().filter(|r| now.contains(r.disk) && !r.failed).filter(accepts).collect();
        if kept.len() < width as usize {
            let (accepting, disks) = (kept.len(), self.pool.disks.len());
            return Err(CommandError::WidthTooLarge { width, accepting, disks });
        }
        let held = |room: &DiskRoom| vhd.counts[room.disk.index()];
        kept.sort_by_key(|room| (std::cmp::Reverse(u64::from(held(room)) + room.free), room.disk));
        let mut kept: Vec<DiskId> = kept[..width as usize].iter().map(|room| room.disk).collect();
        kept.sort_unstable();
        Ok(match kept[..] {
            [disk] => Layout::Isolated { disk, chosen: false },
            _ => Layout::Spanned { disks: kept, width: Some(width), chosen: false },
        })
    }

    /// An isolated VHD to another disk: the one named, or the roomiest other.
    fn migrated_layout(&self, vhd: &Vhd, disk: Option<&str>) -> Result<Layout, CommandError> {
        let Layout::Isolated { disk: now, .. } = vhd.record.layout else {
            return Err(CommandError::NotIsolated { vhd: vhd.record.name.clone() });
        };
        if let Some(disk) = disk {
            return self.layout_of(&LayoutWish::Isolated { disk: Some(self.disk_named(disk)?) }, "isolated");
        }
        let others: Vec<DiskRoom> = self.rooms().into_iter().filter(|room| room.disk != now).collect();
        layout::plan(&LayoutWish::Isolated { disk: None }, &others)
            .map_err(|error| self.layout_error(error, "isolated"))
    }

    /// Everything on `disk` to the other ones, the largest first. What goes to a disk takes its room from those that follow.
    fn evacuated(&self, disk: DiskId) -> Result<Vec<Wanted>, CommandError> {
        let mut rooms: Vec<DiskRoom> = self.rooms().into_iter().filter(|room| room.disk != disk).collect();
        let mut here: Vec<&Vhd> = self.vhds.iter().filter(|vhd| vhd.is_on(disk)).collect();
        here.sort_by_key(|vhd| (std::cmp::Reverse(vhd.counts[disk.index()]), vhd.record.id));
        let mut wanted = Vec::new();
        for vhd in here {
            let layout = self.layout_without(vhd, disk, &rooms)?;
            let comes = u64::from(vhd.counts[disk.index()]).div_ceil(layout.width().max(1) as u64);
            let share = vhd.share(disk, &self.space).div_ceil(layout.width().max(1) as u64);
            for room in rooms.iter_mut().filter(|room| layout.disks().contains(room.disk)) {
                room.free = room.free.saturating_sub(comes);
                room.promised += share.saturating_sub(comes);
            }
            wanted.push(Wanted::layout(vhd, layout));
        }
        Ok(wanted)
    }

    /// Everywhere but on `disk`.
    pub(super) fn layout_without(&self, vhd: &Vhd, disk: DiskId, rooms: &[DiskRoom]) -> Result<Layout, CommandError> {
        let layout = &vhd.record.layout;
        match layout {
            layout if !layout.disks().contains(disk) => Ok(layout.clone()),
            Layout::Isolated { .. } => {
                // Where all of it fits, if there is such a disk; else the planner says what is missing.
                let needed = vhd.slots_used();
                let fits = |room: &&DiskRoom| room.free >= needed && room.accept.isolated();
                let fitting: Vec<DiskRoom> = rooms.iter().filter(fits).copied().collect();
                let rooms = if fitting.is_empty() { rooms } else { &fitting };
                layout::plan(&LayoutWish::Isolated { disk: None }, rooms)
                    .map_err(|error| self.layout_error(error, "isolated"))
            }
            Layout::Spanned { disks, width, chosen } => {
                let mut kept: Vec<DiskId> = disks.iter().copied().filter(|other| *other != disk).collect();
                // As wide as before, if there is a disk for that.
                let mut others: Vec<&DiskRoom> =
                    rooms.iter().filter(|r| r.accept.spanned() && !r.failed && !kept.contains(&r.disk)).collect();
                others.sort_by_key(|room| (std::cmp::Reverse(room.headroom()), room.disk));
                let wider = if width.is_some() || *chosen || kept.is_empty() { 1 } else { 0 };
                kept.extend(others.iter().take(wider).map(|room| room.disk));
                if kept.is_empty() {
                    return Err(CommandError::NoDiskAccepts { layout: "spanned", disks: rooms.len() });
                }
                kept.sort_unstable();
                Ok(Layout::Spanned { disks: kept, width: *width, chosen: *chosen })
            }
        }
    }

    /// Spanned VHDs that shall be on all disks, on all disks; the others where they are, in proportion.
    fn rebalanced(&self) -> Vec<Wanted> {
        let all = self.layout_of(&LayoutWish::Spanned { disks: None, width: None }, "spanned").ok();
        let wanted = |vhd: &Vhd| {
            let layout = match (&vhd.record.layout, &all) {
                (Layout::Spanned { width: None, chosen: false, .. }, Some(all)) => all.clone(),
                (layout, _) => layout.clone(),
            };
            Wanted::layout(vhd, layout)
        };
        let spanned = self.vhds.iter().filter(|vhd| matches!(vhd.record.layout, Layout::Spanned { .. }));
        spanned.map(wanted).collect()
    }

    fn layout_of(&self, wish: &LayoutWish, word: &'static str) -> Result<Layout, CommandError> {
        layout::plan(wish, &self.rooms()).map_err(|error| self.layout_error(error, word))
    }
}
