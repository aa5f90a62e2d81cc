//! From labelled disks to a table in memory: opening the placement store.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;

use uuid::Uuid;

use super::recover::{Recovered, recover};
use super::views::{Left, ViewDir, Views};

use crate::base::heap;
use crate::base::ids::{DiskId, VhdId};
use crate::base::units::Geometry;
use crate::control::view_files::{ViewFileError, ViewFiles};
use crate::disk::BlockDev;
use crate::disk::file::FileDisk;
use crate::disk::pool::{ChangeError, OpenDisk, OpenPool};
use crate::owner::vhd_state;
use crate::placement::Replica;
use crate::placement::job::JobRecord;
use crate::placement::record::{PoolRecord, RecordError, VhdRecord};
use crate::placement::view::Keep;
use crate::shared::VhdState;
use crate::store::change::Change;
use crate::store::member::{Member, MemberError, MemberState, Tuning};
use crate::store::mirror::majority;
use crate::store::open::{self, MemberPlace, OpenError, OpenOptions, OpenStore};
use crate::store::page::{ExtentRow, PageKey};
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
    let total = pool.membership.members.len();
    let options = OpenOptions { pool: pool.uuid, total, accept_stale, tuning: Tuning::default() };
    let store = open::open(places, &options)?;
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
    let Maps { kept, vhds, recovered } = opening.maps(accept_stale)?;
    let written = pool.write_membership(&members)?;
    written.failed.iter().for_each(|failed| log::warn!("{failed}"));
    // From here on the store names the maps that were just completed.
    let state = store.raise(written.epoch, lineage)?;
    if let Some(kept) = &kept {
        kept.note_durable(state.stamp);
    }
    views.remove_others(lineage);
    let (record, jobs) = (store.pool.clone(), store.jobs.clone());
    let region_len = store.members().map(|(place, _)| place.place.len).min().unwrap_or(0);
    let (members_here, total) = (store.into_members(), members.len());
    let members = loaded(members_here, total)?;
    // Pages of a large table, each for a moment, in between what stays.
    heap::give_back();
    Ok(Table { pool: record, vhds, jobs, members, total, state, region_len, kept, recovered })
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
    recovered: Vec<Change>,
}

impl Opening<'_> {
    /// By the table, and what guests saw last if an earlier daemon was killed.
    fn maps(&self, accept_stale: bool) -> Result<Maps, TableError> {
        let maps = self.by_table()?;
        let Some(before) = self.before(accept_stale)? else { return Ok(maps) };
        let recovered = recover_all(&before, &maps.vhds);
        let slots = |id: DiskId| self.store.pool.disks.iter().find(|disk| disk.id == id).map(|disk| disk.slots);
        match recovered.check(slots, maps.vhds.iter().map(|(_, vhd)| &vhd.map)) {
            Ok(()) => {
                log::info!(
                    "the daemon before this one was killed; {} changes of the placement that it had not committed are in {}",
                    recovered.changes.len(),
                    before.path().display()
                );
                Ok(Maps { recovered: recovered.changes, ..maps })
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
                self.by_table()
            }
        }
    }

    fn by_table(&self) -> Result<Maps, TableError> {
        let made = self.views.make(self.lineage).inspect_err(|error| {
            log::warn!("what guests have not flushed does not survive SIGKILL of this daemon: {error}");
        });
        let kept = made.ok().map(Arc::new);
        if let Some(kept) = &kept {
            self.pool.disks.iter().for_each(|disk| kept.note_disk(disk.id, disk.identity));
        }
        let vhds = restore(self.store, self.reactors, kept.clone().map(|kept| kept as Arc<dyn Keep>).as_ref())?;
        Ok(Maps { kept, vhds, recovered: Vec::new() })
    }

    /// What an earlier daemon has left, if it is of this pool as it is.
    fn before(&self, accept_stale: bool) -> Result<Option<Left>, TableError> {
        let state = self.store.state();
        let Some(before) = self.views.find(state.lineage).map_err(TableError::Views)? else { return Ok(None) };
        let disks = self.pool.disks.iter().map(|disk| (disk.id, disk.identity));
        let unfit = match before.fits(state.stamp, disks) {
            Ok(()) if accept_stale => "with --accept-stale the placement table may be of another time".to_owned(),
            Ok(()) => return Ok(Some(before)),
            Err(unfit) => unfit.to_string(),
        };
        let path = before.path().display();
        log::error!("what guests have not flushed, which is in {path}, is not used and lost: {unfit}");
        Ok(None)
    }
}

/// Brings the maps to what guests saw last before an earlier daemon was killed.
fn recover_all(before: &Left, vhds: &[(VhdRecord, Arc<VhdState>)]) -> Recovered {
    let mut recovered = Recovered::default();
    for (record, state) in vhds {
        let read = before.segments(record.uuid).and_then(|segments| {
            let mut each = |extent, kept| recover(state, extent, kept, &mut recovered);
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
    if let Some((vhd, extent)) = stray {
        return Err(TableError::Stray { vhd: vhd.0, extent: extent.map_or(u64::MAX, |extent| u64::from(extent.0)) });
    }
    let with_state = |record: &VhdRecord| (record.clone(), Arc::clone(&states[&record.id]));
    Ok(store.vhds.iter().map(with_state).collect())
}
