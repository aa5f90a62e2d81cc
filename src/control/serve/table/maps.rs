//! The maps of all VHDs: by the table, and what guests saw last if an earlier daemon was killed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::super::recover::{Recovered, recover};
use super::super::serving::{Doubt, Presence};
use super::super::trust::Trust;
use super::super::views::{Left, ViewDir, Views};
use super::TableError;
use crate::base::ids::{DiskId, DiskSet, VhdId};
use crate::base::units::{BLOCKS_PER_EXTENT, Geometry};
use crate::control::view_files::ViewFileError;
use crate::disk::file::FileDisk;
use crate::disk::pool::OpenPool;
use crate::owner::vhd_state;
use crate::placement::Replica;
use crate::placement::record::VhdRecord;
use crate::placement::view::Keep;
use crate::shared::VhdState;
use crate::store::open::OpenStore;
use crate::store::page::{ExtentRow, PAGE_EXTENTS, PageKey};

/// What the maps are made of.
pub(super) struct Opening<'a> {
    pub store: &'a OpenStore<FileDisk>,
    pub pool: &'a OpenPool<FileDisk>,
    pub views: &'a Views,
    pub lineage: u64,
    pub reactors: u16,
}

/// The maps of all VHDs, where they are kept, and what they have and the table lacks.
pub(super) struct Maps {
    pub kept: Option<Arc<ViewDir>>,
    pub vhds: Vec<(VhdRecord, Arc<VhdState>)>,
    pub recovered: Recovered,
    /// Disks that may lack something that the table has not been told of yet.
    pub doubted: DiskSet,
    pub lost: Vec<String>,
}

impl Opening<'_> {
    /// By the table, and what guests saw last if an earlier daemon was killed.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn maps(&self, accept_stale: bool) -> Result<Maps, TableError> {
        let mut maps = self.by_table()?;
        let before = self.before(accept_stale)?;
        if let Some(before) = &before {
            maps = self.recovered(before, maps)?;
        }
        if let Some(kept) = &maps.kept {
            self.pool.disks.iter().for_each(|disk| kept.note_disk(disk.id, &disk.dev));
            maps.doubted.iter().for_each(|disk| kept.mark().doubt(disk));
        }
        Ok(maps)
    }

    fn recovered(&self, before: &Left, maps: Maps) -> Result<Maps, TableError> {
        let doubts = self.doubts(before);
        let here = self.pool.disks.iter().filter(|disk| !disk.dev.failed().is_failed());
        let trust = Trust { doubted: doubts.keys().copied().collect(), working: here.map(|disk| disk.id).collect() };
        let recovered = recover_all(before, &maps.vhds, &trust);
        let slots = |id: DiskId| self.store.pool.disks.iter().find(|disk| disk.id == id).map(|disk| disk.slots);
        let checked = recovered.check(slots, maps.vhds.iter().map(|(_, vhd)| &vhd.map));
        let maps = match checked {
            Ok(()) if before.mark().has_stopped() => Maps { recovered, ..maps },
            Ok(()) => {
                log::info!(
                    "the daemon before this one was killed or has given up its place; {} changes of the placement that it had not committed are \
                     in {}",
                    recovered.changes.len(),
                    before.path().display()
                );
                Maps { recovered, ..maps }
            }
            Err(Replica { disk, slot, .. }) => {
                log::error!(
                    "{} contradicts the placement table (slot {} of disk #{}), so it is not used: what guests have not flushed is lost; \
                     please report this",
                    before.path().display(),
                    slot.0,
                    disk.0
                );
                if let Some(kept) = &maps.kept {
                    kept.remove();
                }
                drop(maps);
                let mut maps = self.by_table()?;
                maps.vhds.iter().for_each(|(_, vhd)| maps.recovered.losses.doubt_written(vhd, &trust));
                maps
            }
        };
        if let Some(kept) = &maps.kept {
            // What guests wrote there is still all that there is of it, should it come back.
            let missing = self.store.pool.disks.iter().filter(|disk| self.pool.disk(disk.id).is_none());
            missing.for_each(|disk| kept.mark().note_missing(disk.id, before.mark()));
        }
        let lost = self.tell_losses(&maps, &doubts);
        Ok(Maps { doubted: trust.doubted, lost, ..maps })
    }

    fn by_table(&self) -> Result<Maps, TableError> {
        let made = self.views.make(self.lineage).inspect_err(|error| {
            log::warn!("what guests have not flushed does not survive SIGKILL of this daemon: {error}");
        });
        let kept = made.ok().map(Arc::new);
        let vhds = restore(self.store, self.reactors, kept.clone().map(|kept| kept as Arc<dyn Keep>).as_ref())?;
        Ok(Maps { kept, vhds, recovered: Recovered::default(), doubted: DiskSet::default(), lost: Vec::new() })
    }

    /// What an earlier daemon has left, if it is of this pool as it is.
    fn before(&self, accept_stale: bool) -> Result<Option<Left>, TableError> {
        let state = self.store.state();
        let Some(before) = self.views.find(state.lineage).map_err(TableError::Views)? else { return Ok(None) };
        let unfit = match before.mark().fits(state.stamp) {
            Ok(()) if accept_stale => "with --accept-stale the placement table may be of another time".to_owned(),
            Ok(()) => return Ok(Some(before)),
            Err(older) => older.to_string(),
        };
        let path = before.path().display();
        if before.mark().has_stopped() {
            log::warn!("which VMM had a VHD last, which is in {path}, is not used: {unfit}");
        } else {
            log::error!("what guests have not flushed, which is in {path}, is not used and lost: {unfit}");
        }
        Ok(None)
    }

    /// Disks that may lack what the daemon before had written to them. Until the next serving has begun, those that fail meanwhile are noted
    /// where it has noted its own.
    fn doubts(&self, before: &Left) -> BTreeMap<DiskId, Doubt> {
        for disk in &self.pool.disks {
            disk.dev.failed().note_in(before.mark().notes_of(disk.id));
        }
        let of_pool = self.store.pool.disks.iter().map(|disk| disk.id);
        let here = |id| self.pool.disk(id).map(|disk| Presence::of(&disk.dev));
        of_pool.filter_map(|id| Some((id, before.mark().doubt(id, here(id))?))).collect()
    }

    /// Says what is not recovered. Returns what matters to guests.
    fn tell_losses(&self, maps: &Maps, doubts: &BTreeMap<DiskId, Doubt>) -> Vec<String> {
        let name = |id: DiskId| {
            let disk = self.store.pool.disks.iter().find(|disk| disk.id == id);
            disk.map_or_else(String::new, |disk| disk.name.clone())
        };
        for (id, doubt) in doubts {
            log::warn!("disk '{}' {doubt}: of what was not flushed, nothing is used that only it has", name(*id));
        }
        let losses = &maps.recovered.losses;
        let mut lost = Vec::new();
        for (record, _) in &maps.vhds {
            if let Some(stale) = losses.stale.get(&record.id) {
                log::warn!("VHD '{}': replicas of {} extents on these disks are stale", record.name, stale.len());
            }
            if let Some(blocks) = losses.blocks.get(&record.id) {
                let names: Vec<String> = doubts.keys().map(|id| format!("'{}'", name(*id))).collect();
                let kib = blocks * self.store.pool.extent_size / u64::from(BLOCKS_PER_EXTENT) / 1024;
                lost.push(format!(
                    "VHD '{}': {blocks} blocks ({kib} KiB) that its guest wrote for the first time and did not flush read as zeros, because \
                     only {} had them",
                    record.name,
                    names.join(", ")
                ));
            }
        }
        lost.iter().for_each(|lost| log::error!("{lost}"));
        lost
    }
}

/// Brings the maps to what guests saw last before an earlier daemon was killed, as far as disks can be trusted to have it.
fn recover_all(before: &Left, vhds: &[(VhdRecord, Arc<VhdState>)], trust: &Trust) -> Recovered {
    let mut recovered = Recovered::default();
    for (record, state) in vhds {
        recovered.losses.doubt_written(state, trust);
        let kept = if before.mark().has_stopped() { Ok(Vec::new()) } else { before.segments(record.uuid) };
        let read = kept.and_then(|segments| {
            let mut each = |extent, kept| recover(state, extent, kept, trust, &mut recovered);
            segments.iter().try_for_each(|segment| segment.read(&mut each)).map_err(ViewFileError::Broker)
        });
        if let Err(error) = read {
            log::error!("VHD '{}': what its guest has not flushed is lost, in part or whole: {error}", record.name);
        }
        let last = before.last_active(record.uuid).and_then(|file| {
            let file = file.as_ref();
            file.map_or(Ok(()), |file| state.last_active.take_over(file)).map_err(ViewFileError::Broker)
        });
        if let Err(error) = last {
            log::error!(
                "VHD '{}': which process had it last is not known ({error}). If its VM has moved here from another VMM, end that one",
                record.name
            );
        }
    }
    recovered
}

fn restore(
    store: &OpenStore<FileDisk>,
    reactors: u16,
    keep: Option<&Arc<dyn Keep>>,
) -> Result<Vec<(VhdRecord, Arc<VhdState>)>, TableError> {
    let geometry: Geometry = store.pool.geometry()?;
    let states = store.vhds.iter().map(|record| (record.id, Arc::new(vhd_state(record, geometry, reactors, keep))));
    let states: HashMap<VhdId, Arc<VhdState>> = states.collect();
    let mut stray = None;
    let show = |key: PageKey, place, row: &ExtentRow| {
        let extent = key.extent(place);
        match (states.get(&key.vhd), extent) {
            (Some(state), Some(extent)) if extent.0 < state.map.extents() && row.generation.is_legal() => {
                state.map.restore(extent, row.replicas, row.present, row.generation);
            }
            _ => stray = Some((key.vhd, extent)),
        }
    };
    store.load_with_intents(show, |key| {
        if let Some(state) = states.get(&key.vhd) {
            state.map.set_in_doubt(key.page);
        }
    })?;
    restore_checksums(store, &states)?;
    if let Some((vhd, extent)) = stray {
        return Err(TableError::Stray { vhd: vhd.0, extent: extent.map_or(u64::MAX, |extent| u64::from(extent.0)) });
    }
    let with_state = |record: &VhdRecord| (record.clone(), Arc::clone(&states[&record.id]));
    Ok(store.vhds.iter().map(with_state).collect())
}

/// Checksums of pages without a write intent. Those of the others are not right any more; the owner has the blocks read.
fn restore_checksums(store: &OpenStore<FileDisk>, states: &HashMap<VhdId, Arc<VhdState>>) -> Result<(), TableError> {
    if !states.values().any(|state| state.map.has_checksums()) {
        return Ok(());
    }
    store.load_checksums(|key, checksums| {
        let Some(state) = states.get(&key.vhd).filter(|state| !state.map.page_is_in_doubt(key.page)) else { return };
        let places = (0..PAGE_EXTENTS).filter_map(|place| Some((place, key.extent(place)?)));
        for (place, extent) in places.filter(|(_, extent)| extent.0 < state.map.extents()) {
            state.map.restore_checksums(extent, checksums.extent(place));
        }
    })?;
    Ok(())
}
