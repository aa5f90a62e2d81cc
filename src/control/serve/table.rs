//! From labelled disks to a table in memory: opening the placement store.

mod maps;

use std::sync::Arc;
use std::thread;

use uuid::Uuid;

use super::memory::Noted;
use super::views::{ViewDir, Views};

use crate::base::clock;
use crate::base::heap;
use crate::base::ids::DiskId;
use crate::control::policy::kept_rules;
use crate::control::view_files::{ViewFileError, ViewFiles};
use crate::disk::BlockDev;
use crate::disk::file::FileDisk;
use crate::disk::pool::{ChangeError, OpenDisk, OpenPool};
use crate::placement::job::JobRecord;
use crate::placement::record::{PoolRecord, RecordError, VhdRecord};
use crate::placement::vm::{self, VmRecord};
use crate::shared::VhdState;
use crate::store::change::Change;
use crate::store::edit::StoreEdit;
use crate::store::member::{Member, MemberError, MemberState, Tuning};
use crate::store::mirror::majority;
use crate::store::note::NoteKind;
use crate::store::open::{self, MemberPlace, OpenError, OpenOptions, OpenStore};
use crate::store::region::RegionPlace;
use maps::{Maps, Opening};

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
    /// What is noted there besides.
    pub noted: Noted,
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
    let policy = kept_rules(store.policy.as_deref());
    // Nothing depends on it.
    let notes = [NoteKind::Events, NoteKind::EventNumbers, NoteKind::Policy].map(|kind| {
        store.notes(kind).unwrap_or_else(|error| {
            log::warn!("what was noted before this start is not known: {error}");
            Vec::new()
        })
    });
    let region_len = store.members().map(|(place, _)| place.place.len).min().unwrap_or(0);
    let (members_here, total) = (store.into_members(), members.len());
    let members = loaded(members_here, total)?;
    // Pages of a large table, each for a moment, in between what stays.
    heap::give_back();
    let recovered = recovered.changes;
    Ok(Table {
        pool: record,
        vhds,
        jobs,
        vms,
        members,
        total,
        state,
        region_len,
        kept,
        recovered,
        lost,
        noted: Noted { notes, policy },
    })
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
