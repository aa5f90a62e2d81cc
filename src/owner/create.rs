//! Creating a VHD.

use std::fmt;
use std::sync::Arc;

use super::Owner;
use super::command::{CommandError, CommandId, CreateVhd, LayoutRequest, Outcome, Reply, SetCapacity};
use super::commands::{Action, Step, check_mode, check_queues, not_found};
use super::fill::{Fill, quota_for};
use super::outbox::{Event, OwnerOutbox};
use super::quota::{Coming, size_text, vhd_subject};
use super::vhds::{PerDisk, Vhd, vhd_state};
use super::vms::check_vm_name;
use crate::base::ids::{DiskId, VhdId, check_name};
use crate::base::limits::{BOUNCE_LEN, VHD_SIZE_MAX};
use crate::base::units::Geometry;
use crate::placement::capacity::Capacity;
use crate::placement::layout::{self, DiskRoom, LayoutError, LayoutWish};
use crate::placement::record::{Expand, Layout, PoolRecord, RECORD_VERSION, SocketOwner, VhdRecord, WhenFull};
use crate::placement::vm::VmRecord;
use crate::store::edit::StoreEdit;

/// A VHD whose record is being written.
#[derive(Debug)]
pub(super) struct Creation {
    pool: PoolRecord,
    record: VhdRecord,
    /// The VM that it names, if there was none of that name.
    vm: Option<VmRecord>,
    /// Room reserved for a thick one.
    quota: Option<PerDisk>,
}

impl Owner {
    pub(super) fn begin_create(&mut self, id: CommandId, create: &CreateVhd) -> Result<Step, CommandError> {
        check_request(create, self.geometry)?;
        if let Some(existing) = self.vhds.id_of(&create.name).and_then(|id| self.vhds.get(id)) {
            self.check_same(&existing.record, create)?;
            let vhd = existing.record.id;
            if let Some(fill) = self.fills.get_mut(&vhd) {
                fill.asked.push((id, Outcome::Unchanged));
                return Ok(Step::Joined);
            }
            return Ok(Step::Done(self.vhd_reply(existing, Outcome::Unchanged)));
        }
        if self.vhds.iter().any(|vhd| vhd.record.uuid == create.uuid) {
            return Err(CommandError::NameTaken { what: "VHD", name: create.uuid.to_string() });
        }
        if self.metadata.low {
            return Err(CommandError::MetadataFull { used: self.metadata.used, size: self.metadata.size });
        }
        // What is hinted at may not be possible any more, or there may be no room for it: that is nobody's error.
        let hinted = self.hinted(create).and_then(|layout| self.creation(create, layout).ok());
        let creation = match hinted {
            Some(creation) => creation,
            None => self.creation(create, self.planned(create)?)?,
        };
        let mut rows = vec![StoreEdit::PutPool(creation.pool.clone())];
        rows.extend(creation.vm.iter().cloned().map(StoreEdit::PutVm));
        rows.push(StoreEdit::PutVhd(creation.record.clone()));
        Ok(Step::Commit { rows, action: Action::Create(Box::new(creation)) })
    }

    /// What becomes of a request with this layout; its room is reserved.
    fn creation(&mut self, create: &CreateVhd, layout: Layout) -> Result<Creation, CommandError> {
        self.check_replicas(&create.name, create.replicas, &layout)?;
        let mut record = record_of(create, self.pool.next_vhd_id, layout);
        record.capacity = self.capacity_of(create)?;
        let mut pool = self.pool.clone();
        let vm = self.vm_to_make(&mut pool, record.vm.as_deref(), create.created)?;
        let quota = self.reserve_for(&record, |owner| owner.reserve_all(&record))?;
        pool.next_vhd_id = VhdId(pool.next_vhd_id.0.checked_add(1).expect("4 billion VHDs in one pool"));
        Ok(Creation { pool, record, vm, quota })
    }

    /// The layout that is hinted at, if it is one of those that are asked for, and its disks can have it.
    fn hinted(&self, create: &CreateVhd) -> Option<Layout> {
        let hint = create.hint.as_ref()?;
        let wish = match (&create.layout, hint) {
            (LayoutRequest::Any | LayoutRequest::Isolated { disk: None }, Layout::Isolated { disk, .. }) => {
                LayoutWish::Isolated { disk: Some(*disk) }
            }
            (LayoutRequest::Any, Layout::Spanned { disks, .. }) => {
                LayoutWish::Spanned { disks: Some(disks.clone()), width: None }
            }
            _ => return None,
        };
        let rooms = self.rooms();
        let are_there = hint.disks().iter().all(|disk| rooms.iter().any(|room| room.disk == disk));
        (are_there && layout::plan(&wish, &rooms).is_ok()).then(|| hint.clone())
    }

    /// The layout as it is asked for: of disks that nobody names, those with the most room. Where all is the same to whoever asks, one
    /// disk, unless that cannot be, or has no room for the whole VHD.
    fn planned(&self, create: &CreateVhd) -> Result<Layout, CommandError> {
        let rooms = self.rooms();
        let one = LayoutWish::Isolated { disk: None };
        let extents = create.size.div_ceil(self.pool.extent_size);
        if create.layout == LayoutRequest::Any
            && create.replicas == 1
            && let Ok(layout) = layout::plan(&one, &rooms)
        {
            let has_room = |room: &DiskRoom| layout.disks().contains(room.disk) && room.free >= extents;
            let over_several = || layout::plan(&LayoutWish::Spanned { disks: None, width: None }, &rooms).ok();
            return Ok(if rooms.iter().any(has_room) { layout } else { over_several().unwrap_or(layout) });
        }
        let wish = self.wish(&create.layout)?;
        layout::plan(&wish, &rooms).map_err(|error| self.layout_error(error, word(&create.layout)))
    }

    fn capacity_of(&self, create: &CreateVhd) -> Result<Capacity, CommandError> {
        self.new_capacity(|| vhd_subject(&create.name), Capacity::default(), SetCapacity::to(create.capacity))
    }

    /// Makes sure that the VHD can have this record: within quotas, with room for it (`all`, of a thick one) and for what is reserved.
    pub(super) fn reserve_for(
        &mut self,
        record: &VhdRecord,
        all: impl FnOnce(&mut Owner) -> Result<PerDisk, CommandError>,
    ) -> Result<Option<PerDisk>, CommandError> {
        self.check_capacity(record)?;
        if !record.thick {
            return self.hold_for(std::slice::from_ref(record), None, None).map(|()| None);
        }
        self.lend_holds(record);
        let held = all(self).and_then(|quota| match self.hold_for(std::slice::from_ref(record), None, None) {
            Ok(()) => Ok(quota),
            Err(error) => {
                self.unreserve(&quota);
                Err(error)
            }
        });
        self.refresh_holds();
        let quota = held?;
        let slots = quota.iter().map(|count| u64::from(*count)).sum();
        self.capacity.coming = Some(Coming { vhd: record.id, vm: record.vm.clone(), slots });
        Ok(Some(quota))
    }

    /// Reserves room for all extents of a thick VHD.
    fn reserve_all(&mut self, record: &VhdRecord) -> Result<PerDisk, CommandError> {
        let needed = record.extents(self.geometry);
        self.make_room(&[(record.id, record.layout.disks(), needed, record.replicas)]);
        let quota = quota_for(&self.space, record.layout.disks(), needed, record.replicas).map_err(|free| {
            let needed = u64::from(needed) * u64::from(record.replicas);
            CommandError::NoRoom {
                needed: needed * self.geometry.extent_size(),
                free: free * self.geometry.extent_size(),
            }
        })?;
        self.reserve(&quota);
        Ok(quota)
    }

    /// The record could not be written.
    pub(super) fn cancel_creation(&mut self, creation: &Creation) {
        if let Some(quota) = &creation.quota {
            self.unreserve(quota);
        }
    }

    pub(super) fn apply_creation(&mut self, command: CommandId, creation: Creation, out: &mut impl OwnerOutbox) {
        let Creation { pool, record, vm, quota } = creation;
        self.pool = pool;
        if let Some(vm) = vm {
            self.apply_new_vm(vm, out);
        }
        let id = record.id;
        let state = Arc::new(vhd_state(&record, self.geometry, self.reactors, self.keep.as_ref()));
        out.open_vhd(&state);
        self.vhds.insert(Vhd::new(record, state, quota.is_none(), &self.space));
        self.limit_vhd(id, out);
        match quota {
            Some(quota) => {
                self.fills.insert(id, Fill::new(quota, vec![(command, Outcome::Created)]));
                self.continue_fill(id, out);
            }
            None => self.created(id, &[(command, Outcome::Created)], out),
        }
    }

    /// The VHD is complete: answers whoever asked for it.
    pub(super) fn created(&mut self, id: VhdId, asked: &[(CommandId, Outcome)], out: &mut impl OwnerOutbox) {
        let vhd = self.vhds.get(id).expect("a VHD that has just been made");
        for (command, outcome) in asked {
            out.reply(*command, Ok(self.vhd_reply(vhd, *outcome)));
        }
        if asked.iter().any(|(_, outcome)| *outcome == Outcome::Created) {
            out.event(Event::VhdCreated { vhd: vhd.record.name.clone() });
        }
    }

    pub(super) fn vhd_reply(&self, vhd: &Vhd, outcome: Outcome) -> Reply {
        Reply::Vhd { outcome, vhd: Box::new(self.vhd_info(vhd)) }
    }

    pub(super) fn disk_named(&self, name: &str) -> Result<DiskId, CommandError> {
        self.pool.find_disk(name).map(|disk| disk.id).ok_or_else(|| not_found("disk", name))
    }

    fn wish(&self, request: &LayoutRequest) -> Result<LayoutWish, CommandError> {
        Ok(match request {
            LayoutRequest::Any => LayoutWish::Spanned { disks: None, width: None },
            LayoutRequest::Isolated { disk } => {
                LayoutWish::Isolated { disk: disk.as_deref().map(|name| self.disk_named(name)).transpose()? }
            }
            LayoutRequest::Spanned { disks, width } => {
                let ids = |names: &Vec<String>| names.iter().map(|name| self.disk_named(name)).collect();
                LayoutWish::Spanned { disks: disks.as_ref().map(ids).transpose()?, width: *width }
            }
        })
    }

    /// The disks as homes for a new VHD.
    pub(super) fn rooms(&self) -> Vec<DiskRoom> {
        let promised = |disk: DiskId| -> u64 {
            let open = |vhd: &Vhd| vhd.share(disk, &self.space).saturating_sub(u64::from(vhd.counts[disk.index()]));
            self.vhds.iter().map(open).sum()
        };
        let room = |disk: &super::space::DiskSpace| DiskRoom {
            disk: disk.state.id,
            accept: disk.accepts(),
            failed: disk.state.is_failed(),
            free: u64::from(disk.free()) + u64::from(disk.slots().limbo()) + u64::from(disk.promised()),
            promised: promised(disk.state.id),
        };
        self.space.iter().map(room).collect()
    }

    pub(super) fn layout_error(&self, error: LayoutError, layout: &'static str) -> CommandError {
        let name = |disk| self.pool.disk_name(disk);
        let disks = self.pool.disks.len();
        match error {
            LayoutError::NoDiskAccepts => CommandError::NoDiskAccepts { layout, disks },
            LayoutError::Refused { disk, accept } => CommandError::DiskRefuses { disk: name(disk), layout, accept },
            LayoutError::Failed { disk } => CommandError::DiskFailed { disk: name(disk) },
            LayoutError::Twice { disk } => CommandError::DiskTwice { disk: name(disk) },
            LayoutError::NoneNamed => CommandError::NoDisks,
            LayoutError::WidthZero => CommandError::InvalidWidth,
            LayoutError::WidthDisagrees { width, named } => CommandError::WidthDisagrees { width, named },
            LayoutError::WidthTooLarge { width, accepting } => CommandError::WidthTooLarge { width, accepting, disks },
        }
    }

    /// Whether the VHD that exists is the one that is asked for.
    fn check_same(&self, is: &VhdRecord, asked: &CreateVhd) -> Result<(), CommandError> {
        same(is, "size", &format_args!("{} bytes", is.size), &format_args!("{} bytes", asked.size))?;
        self.check_same_layout(is, &asked.layout)?;
        same(is, "number of replicas", &is.replicas, &asked.replicas)?;
        same(is, "thickness", &thickness(is.thick), &thickness(asked.thick))?;
        same(is, "checksums", &on_or_off(is.checksums), &on_or_off(asked.checksums))?;
        same(is, "access", &access(is.read_only), &access(asked.read_only))?;
        same(is, "block size", &is.block_size, &asked.block_size)?;
        same(is, "number of queues", &is.queues, &asked.queues)?;
        same(is, "VM", &vm_text(is.vm.as_deref()), &vm_text(asked.vm.as_deref()))?;
        same(is, "socket owner", &owner_text(is.socket_owner.as_ref()), &owner_text(asked.socket_owner.as_ref()))?;
        same(is, "socket mode", &format_args!("{:04o}", is.socket_mode), &format_args!("{:04o}", asked.socket_mode))?;
        same(is, "when-full setting", &when_full_text(is.when_full), &when_full_text(asked.when_full))?;
        same(is, "expand setting", &expand_text(is.expand), &expand_text(asked.expand))?;
        same(is, "set of limits", &is.limits, &asked.limits)?;
        same(is, "share of disks", &is.sharing, &asked.sharing)?;
        let capacity = self.capacity_of(asked)?;
        same(is, "quota", &size_text(is.capacity.quota), &size_text(capacity.quota))?;
        same(is, "reservation", &size_text(is.capacity.reservation), &size_text(capacity.reservation))
    }

    /// The same of where it is: whoever does not mind has what it asks for.
    fn check_same_layout(&self, is: &VhdRecord, asked: &LayoutRequest) -> Result<(), CommandError> {
        if *asked == LayoutRequest::Any {
            return Ok(());
        }
        same(is, "layout", &is.layout.word(), &word(asked))?;
        let wish = self.wish(asked)?;
        same(is, "set of disks", &self.disks_text(&is.layout), &self.wished_text(&is.layout, &wish))?;
        if let (Layout::Spanned { width: is_width, disks, .. }, LayoutWish::Spanned { width, disks: named }) =
            (&is.layout, &wish)
        {
            let enough = width.map_or(is_width.is_none() || named.is_some(), |width| width as usize == disks.len());
            let wanted = width.map_or_else(|| "all disks".to_owned(), |width| width.to_string());
            if !enough {
                same(is, "width", &disks.len(), &wanted)?;
            }
        }
        Ok(())
    }

    /// The disks that the user named, in words.
    fn disks_text(&self, layout: &Layout) -> String {
        let (Layout::Isolated { chosen, .. } | Layout::Spanned { chosen, .. }) = layout;
        if *chosen { self.names(layout.disks().iter()) } else { ANY_DISKS.to_owned() }
    }

    /// The disks that the user names now, in words; as before if the VHD has what is asked for: just them, or one disk where any would do.
    /// Over all disks is not the same as over some that were named.
    fn wished_text(&self, is: &Layout, wish: &LayoutWish) -> String {
        let named: Option<Vec<DiskId>> = match wish {
            LayoutWish::Isolated { disk } => disk.map(|disk| vec![disk]),
            LayoutWish::Spanned { disks, .. } => disks.clone(),
        };
        match named {
            // It may have been moved since.
            None if matches!(wish, LayoutWish::Isolated { .. }) => self.disks_text(is),
            None => ANY_DISKS.to_owned(),
            Some(mut disks) => {
                disks.sort_unstable();
                if is.disks().iter().eq(disks.iter().copied()) {
                    return self.disks_text(is);
                }
                self.names(disks.into_iter())
            }
        }
    }

    fn names(&self, disks: impl Iterator<Item = DiskId>) -> String {
        disks.map(|disk| self.pool.disk_name(disk)).collect::<Vec<_>>().join(",")
    }
}

const ANY_DISKS: &str = "any disks";

fn same(
    is: &VhdRecord,
    field: &'static str,
    existing: &impl fmt::Display,
    asked: &impl fmt::Display,
) -> Result<(), CommandError> {
    let (existing, asked) = (existing.to_string(), asked.to_string());
    if existing == asked {
        Ok(())
    } else {
        Err(CommandError::Conflict { vhd: is.name.clone(), field, existing, asked })
    }
}

fn on_or_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn thickness(thick: bool) -> &'static str {
    if thick { "thick" } else { "thin" }
}

fn access(read_only: bool) -> &'static str {
    if read_only { "read-only" } else { "writable" }
}

fn vm_text(vm: Option<&str>) -> String {
    vm.map_or_else(|| "none".to_owned(), |vm| format!("'{vm}'"))
}

fn owner_text(owner: Option<&SocketOwner>) -> String {
    owner.map_or_else(|| "the daemon's".to_owned(), |owner| format!("{}:{}", owner.user, owner.group))
}

fn when_full_text(when_full: WhenFull) -> String {
    match when_full {
        WhenFull::Queue { secs } => format!("queue:{secs}s"),
        WhenFull::Error => "error".to_owned(),
    }
}

fn expand_text(expand: Option<Expand>) -> &'static str {
    match expand {
        None => "the pool's",
        Some(Expand::Never) => "never",
        Some(Expand::Auto) => "auto",
    }
}

fn word(request: &LayoutRequest) -> &'static str {
    match request {
        LayoutRequest::Isolated { .. } => "isolated",
        LayoutRequest::Any | LayoutRequest::Spanned { .. } => "spanned",
    }
}

/// Whether the request makes sense by itself.
fn check_request(create: &CreateVhd, geometry: Geometry) -> Result<(), CommandError> {
    check_name(&create.name).map_err(|source| CommandError::InvalidName { what: "VHD", source })?;
    create.vm.as_deref().map_or(Ok(()), check_vm_name)?;
    if !matches!(create.block_size, 512 | 4096) {
        return Err(CommandError::InvalidBlockSize { block_size: create.block_size });
    }
    check_size(create.size, create.block_size, geometry)?;
    if create.checksums && geometry.block_size() > BOUNCE_LEN as u64 {
        return Err(CommandError::ChecksumsTooCoarse { extent_size: geometry.extent_size() });
    }
    check_queues(create.queues)?;
    check_mode(create.socket_mode)?;
    create.limits.check()?;
    create.sharing.check()?;
    Ok(())
}

/// Whether a VHD can have this size.
pub(super) fn check_size(size: u64, block_size: u32, geometry: Geometry) -> Result<(), CommandError> {
    if size == 0 || !size.is_multiple_of(u64::from(block_size)) {
        return Err(CommandError::InvalidSize { size, block_size });
    }
    if size > VHD_SIZE_MAX || geometry.extents_for(size).is_none() {
        return Err(CommandError::SizeTooLarge { size });
    }
    Ok(())
}

fn record_of(create: &CreateVhd, id: VhdId, layout: Layout) -> VhdRecord {
    VhdRecord {
        version: RECORD_VERSION,
        id,
        name: create.name.clone(),
        uuid: create.uuid,
        size: create.size,
        layout,
        replicas: create.replicas,
        thick: create.thick,
        checksums: create.checksums,
        read_only: create.read_only,
        block_size: create.block_size,
        queues: create.queues,
        vm: create.vm.clone(),
        socket_owner: create.socket_owner.clone(),
        socket_mode: create.socket_mode,
        when_full: create.when_full,
        expand: create.expand,
        limits: create.limits,
        sharing: create.sharing,
        capacity: Capacity::default(),
        created: create.created,
        writeback: true,
    }
}
