//! From labelled disks to a table in memory: opening the placement store.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::thread;

use uuid::Uuid;

use super::recover::{Recovered, recover};
use super::serving::{Doubt, Presence};
use super::trust::Trust;
use super::views::{Left, ViewDir, Views};

use crate::base::clock;
use crate::base::heap;
use crate::base::ids::{DiskId, DiskSet, VhdId};
use crate::base::units::{BLOCKS_PER_EXTENT, Geometry};
use crate::control::view_files::{ViewFileError, ViewFiles};
use crate::disk::BlockDev;
use crate::disk::file::FileDisk;
use crate::disk::pool::{ChangeError, OpenDisk, OpenPool};
use crate::owner::vhd_state;
use crate::placement::Replica;
use crate::placement::job::JobRecord;
use crate::placement::record::{PoolRecord, RecordError, VhdRecord};
use crate::placement::view::Keep;
use crate::placement::vm::{self, VmRecord};
use crate::shared::VhdState;
use crate::store::change::Change;
use crate::store::edit::StoreEdit;
use crate::store::member::{Member, MemberError, MemberState, Tuning};
use crate::store::mirror::majority;
use crate::store::open::{self, MemberPlace, OpenError, OpenOptions, OpenStore};
use crate::store::page::{ExtentRow, PAGE_EXTENTS, PageKey};
use crate::store::region::RegionPlace;

/// Why the placement table could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The store.
    #[error("cannot open the placement store")]
    Store(#[from] OpenError),
    /// The labels could not be brought to a new epoch.
    #[error("cannot begin a new epoch of the pool")]
    Epoch(#[from] ChangeError),
    /// The pool record.
    #[error("the pool record of the placement store cannot be used")]
    Record(#[from] RecordError),
    /// A member failed right after it was opened.
    #[error("cannot use the placement store on disk #{}", disk.0)]
    Member {
        /// Its disk.
        disk: DiskId,
        /// Why.
        #[source]
        source: MemberError,
    },
    /// The table is of another pool.
    #[error(
        "the placement store says it is of pool {found}, the labels say {expected}: these disks do not belong together"
    )]
    OtherPool {
        /// What the store says.
        found: Uuid,
        /// What the labels say.
        expected: Uuid,
    },
    /// What guests rely on is there, and cannot be had.
    #[error("cannot use what an earlier daemon, which was killed, has left in shared memory")]
    Views(#[source] ViewFileError),
    /// A row that no command could have made.
    #[error(
        "the placement store is damaged: it has extent {extent} of VHD #{vhd}, which does not exist or cannot be so; run \
         `spanblk check` on the disks"
    )]
    Stray {
        /// The VHD.
        vhd: u32,
        /// The extent.
        extent: u64,
    },
}

/// An open store and what it says.
pub struct Table {
    /// The pool.
    pub pool: PoolRecord,
    /// Its VHDs, their maps restored.
    pub vhds: Vec<(VhdRecord, Arc<VhdState>)>,
    /// Its jobs.
    pub jobs: Vec<JobRecord>,
    /// Its VMs.
    pub vms: Vec<VmRecord>,
    /// The members that are here.
    pub members: Vec<(DiskId, Member<FileDisk>)>,
    /// Members that belong to the store, here or not.
    pub total: usize,
    /// What the first commit follows.
    pub state: MemberState,
    /// Bytes of the smallest metadata region.
    pub region_len: u64,
    /// Where the maps are kept for the next daemon; `None` if they cannot be.
    pub kept: Option<Arc<ViewDir>>,
    /// What an earlier daemon, which was killed, had not made durable. The maps have it.
    pub recovered: Vec<Change>,
    /// What of that is lost, for people.
    pub lost: Vec<String>,
}

/// Where the members of a pool's store are. `wrap` makes of each disk what the store is to use.
pub fn places<D: ?Sized>(
    pool: &OpenPool<FileDisk>,
    wrap: impl Fn(&OpenDisk<FileDisk>) -> Arc<D>,
) -> Vec<MemberPlace<D>> {
    let place = |disk: &OpenDisk<FileDisk>| {
        let region = disk.metadata_region()?;
        let place = RegionPlace { offset: region.start, len: region.end - region.start };
        Some(MemberPlace { id: disk.id, name: disk.name.clone(), disk: wrap(disk), place })
    };
    pool.store_members().filter_map(place).collect()
}

/// Opens the store of a pool without changing the epoch.
///
/// # Errors
/// See [`OpenError`].
pub fn open_store<D: BlockDev + ?Sized + 'static>(
    pool: &OpenPool<FileDisk>,
    places: Vec<MemberPlace<D>>,
    accept_stale: bool,
) -> Result<OpenStore<D>, TableError> {
    of_pool(pool, open::open(places, &options(pool, accept_stale))?)
}

/// Opens the store of a pool, stale or not, to show what it says: it must not be served.
///
/// # Errors
/// See [`OpenError`].
pub fn look_at_store<D: BlockDev + ?Sized + 'static>(
    pool: &OpenPool<FileDisk>,
    places: Vec<MemberPlace<D>>,
) -> Result<OpenStore<D>, TableError> {
    of_pool(pool, open::look(places, &options(pool, true))?)
}

fn options(pool: &OpenPool<FileDisk>, accept_stale: bool) -> OpenOptions {
    OpenOptions { pool: pool.uuid, total: pool.membership.members.len(), accept_stale, tuning: Tuning::default() }
}

fn of_pool<D: BlockDev + ?Sized + 'static>(
    pool: &OpenPool<FileDisk>,
    store: OpenStore<D>,
) -> Result<OpenStore<D>, TableError> {
    if store.pool.uuid != pool.uuid {
        return Err(TableError::OtherPool { found: store.pool.uuid, expected: pool.uuid });
    }
    Ok(store)
}

/// Opens the store to serve it: mends its members, begins a new epoch, and reads all of the table.
///
/// # Errors
/// See [`TableError`].
pub fn open_table(
    pool: &mut OpenPool<FileDisk>,
    accept_stale: bool,
    reactors: u16,
    files: &Arc<dyn ViewFiles>,
) -> Result<Table, TableError> {
    let mut store = open_store(pool, places(pool, |disk| Arc::clone(&disk.dev)), accept_stale)?;
    tell(&store);
    for name in pool.leave_out_unknown(|uuid| store.pool.disks.iter().any(|disk| disk.uuid == uuid)) {
        log::warn!(
            "disk '{name}' is left out of the pool: adding or removing it was interrupted; wipe it, or add it with --force"
        );
    }
    let members = next_members(pool, &store, accept_stale);
    let lineage = Uuid::new_v4().as_u64_pair().0;
    let views = Views::of(pool.uuid, Arc::clone(files));
    let opening = Opening { store: &store, pool, views: &views, lineage, reactors };
    let Maps { kept, vhds, recovered, doubted, lost } = opening.maps(accept_stale)?;
    store.heal_damaged()?;
    let written = pool.write_membership(&members)?;
    written.failed.iter().for_each(|failed| log::warn!("{failed}"));
    // From here on the store names the maps that were just completed.
    store.raise(written.epoch, lineage)?;
    let mut rows = recovered.losses.rows();
    rows.extend(adopt_vms(&mut store));
    let state = store.put(rows)?;
    if let Some(kept) = &kept {
        kept.note_durable(state.stamp);
        let settled = doubted.iter().filter(|disk| !recovered.losses.unsettled.contains(*disk));
        settled.for_each(|disk| kept.mark().settle(disk));
    }
    views.remove_others(lineage);
    let (record, jobs, vms) = (store.pool.clone(), store.jobs.clone(), store.vms.clone());
    let region_len = store.members().map(|(place, _)| place.place.len).min().unwrap_or(0);
    let (members_here, total) = (store.into_members(), members.len());
    let members = loaded(members_here, total)?;
    // Pages of a large table, each for a moment, in between what stays.
    heap::give_back();
    let recovered = recovered.changes;
    Ok(Table { pool: record, vhds, jobs, vms, members, total, state, region_len, kept, recovered, lost })
}

/// Makes the records of VMs that a pool lacks which has been served by programs that knew only names of VMs. Returns what is to be written
/// for that: nobody is served before it is durable.
fn adopt_vms(store: &mut OpenStore<FileDisk>) -> Vec<StoreEdit> {
    let counted = store.pool.next_vm_id;
    let made = vm::adopt(&mut store.pool, &store.vhds, &store.vms, clock::wall_secs());
    if counted == store.pool.next_vm_id {
        return Vec::new();
    }
    // None if it was interrupted before the pool counted them.
    if !made.is_empty() {
        let names: Vec<&str> = made.iter().map(|vm| vm.name.as_str()).collect();
        log::info!(
            "these VMs, which VHDs name, have records now, so that older versions of spanblk refuse the pool: {}",
            names.join(", ")
        );
    }
    store.vms.extend(made.iter().cloned());
    // The pool counts them last, should there be so many that it takes several commits: until then it lacks some.
    let pool = StoreEdit::PutPool(store.pool.clone());
    made.into_iter().map(StoreEdit::PutVm).chain([pool]).collect()
}

/// Measures the members. One that cannot be read to the end is left out: as long as the others are a majority, it must not
/// keep the pool from being opened.
fn loaded(
    members: Vec<(DiskId, Member<FileDisk>)>,
    total: usize,
) -> Result<Vec<(DiskId, Member<FileDisk>)>, TableError> {
    let mut usable = Vec::new();
    let mut failed = None;
    // Each is read to the end once more: all at the same time, because it is their disks that take a while.
    let measured: Vec<_> = thread::scope(|scope| {
        let measure = |(disk, mut member): (DiskId, Member<FileDisk>)| {
            scope.spawn(move || {
                let result = member.loaded();
                (disk, member, result)
            })
        };
        let threads: Vec<_> = members.into_iter().map(measure).collect();
        threads.into_iter().map(|thread| thread.join().expect("a panic aborts the process")).collect()
    });
    for (disk, member, result) in measured {
        match result {
            Ok(()) => usable.push((disk, member)),
            Err(source) => {
                log::error!("the placement store on disk #{} cannot be used: {source}", disk.0);
                failed = Some(TableError::Member { disk, source });
            }
        }
    }
    match failed {
        Some(error) if usable.len() < majority(total) => Err(error),
        _ => Ok(usable),
    }
}

/// The members from now on: as before, unless a loss was accepted; then those that are here and can be read.
fn next_members(pool: &OpenPool<FileDisk>, store: &OpenStore<FileDisk>, accept_stale: bool) -> Vec<DiskId> {
    let before: Vec<DiskId> = pool.membership.members.iter().map(|member| member.id).collect();
    let usable: Vec<DiskId> = store.members().map(|(place, _)| place.id).collect();
    let majority = usable.len() > before.len() / 2;
    if accept_stale && !majority { usable } else { before }
}

fn tell(store: &OpenStore<FileDisk>) {
    for mended in &store.mended {
        let what = if mended.rebuilt { "made anew" } else { "brought up to date" };
        log::warn!("the placement store on disk '{}' was {what}", mended.disk);
    }
    for failed in &store.failed {
        log::error!("the placement store on disk '{}' cannot be used: {}", failed.disk, failed.error);
    }
}

/// What the maps are made of.
struct Opening<'a> {
    store: &'a OpenStore<FileDisk>,
    pool: &'a OpenPool<FileDisk>,
    views: &'a Views,
    lineage: u64,
    reactors: u16,
}

/// The maps of all VHDs, where they are kept, and what they have and the table lacks.
struct Maps {
    kept: Option<Arc<ViewDir>>,
    vhds: Vec<(VhdRecord, Arc<VhdState>)>,
    recovered: Recovered,
    /// Disks that may lack something that the table has not been told of yet.
    doubted: DiskSet,
    lost: Vec<String>,
}

impl Opening<'_> {
    /// By the table, and what guests saw last if an earlier daemon was killed.
    fn maps(&self, accept_stale: bool) -> Result<Maps, TableError> {
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
