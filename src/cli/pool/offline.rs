//! Looking at, and repairing, the table of a pool that nobody serves: under the pool's lock, through `disk` and `store`.

mod impact;

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use crate::base::ids::DiskId;
use crate::cli::Session;
use crate::cli::output::{Failure, Outcome, warn};
use crate::control::convert::check_report;
use crate::control::error_chain;
use crate::control::serve;
use crate::control::serve::table::{TableError, look_at_store, open_store, places};
use crate::control::wire::{CheckReport, ErrorKind};
use crate::disk::file::{FileDisk, OpenError};
use crate::disk::identity::Host;
use crate::disk::label;
use crate::disk::pool::{AssembleError, FindError, OpenOptions, OpenPool, open_pool};
use crate::placement::check::{Checker, TableExtent};
use crate::placement::record::{PoolRecord, VhdRecord};
use crate::store::dump::{self, RestoreError};
use crate::store::open::OpenStore;
use crate::store::open::restore::restore as restore_store;
use crate::store::overlay::Overlay;

pub use impact::impact;

fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::new(ErrorKind::Failed, error_chain(error))
}

/// What to do instead while a daemon has the disks.
const ASK_DAEMON: &str = "while a daemon serves the pool, leave out the disks: the daemon does it";
/// Nothing is changed, whatever is missing.
const LOOK: OpenOptions = OpenOptions { read_only: true, accept_stale: true, pool: None };

const STOP_DAEMON: &str = "stop the daemon first";

/// Opens the disks of a pool under their locks.
fn open_disks(disks: &[PathBuf], options: &OpenOptions, locked: &str) -> Result<OpenPool<FileDisk>, Failure> {
    let paths: Vec<String> = disks.iter().map(|disk| disk.display().to_string()).collect();
    let pool = open_pool(&paths, options, &Host::default()).map_err(|error| find_error(&error, locked))?;
    pool.rejected.iter().for_each(warn);
    for disk in &pool.disks {
        disk.notices.iter().for_each(|notice| warn(format!("disk '{}': {notice}", disk.name)));
    }
    Ok(pool)
}

fn find_error(error: &FindError, locked: &str) -> Failure {
    let failure = Failure::new(serve::find_error_kind(error), error_chain(error));
    match error {
        FindError::Open(OpenError::Locked { .. }) => failure.hint(locked),
        // Whatever only looks accepts that.
        FindError::Assemble { source: AssembleError::NoMajority { .. }, .. } => failure.hint(WITHOUT_MISSING),
        _ => failure,
    }
}

/// Names missing disks, and what they carry.
fn warn_missing(pool: &OpenPool<FileDisk>, vhds: &[VhdRecord]) {
    for missing in &pool.missing {
        let on_it = vhds.iter().filter(|vhd| vhd.layout.disks().contains(missing.id));
        let names: Vec<&str> = on_it.map(|vhd| vhd.name.as_str()).collect();
        let carried = if names.is_empty() { "no VHD".to_owned() } else { names.join(", ") };
        warn(format!("disk {missing} is missing; it carries: {carried}"));
    }
}

/// Opens the store of a pool without changing anything on its disks.
fn look(pool: &OpenPool<FileDisk>) -> Result<OpenStore<Overlay<FileDisk>>, Failure> {
    let places = places(pool, |disk| Arc::new(Overlay::new(Arc::clone(&disk.dev))));
    let store = look_at_store(pool, places).map_err(|error: TableError| failed(&error))?;
    warn_missing(pool, &store.vhds);
    for mended in &store.mended {
        warn(format!("the placement store on disk '{}' is out of date; serving the pool brings it up", mended.disk));
    }
    for failed in &store.failed {
        warn(format!("the placement store on disk '{}' cannot be used: {}", failed.disk, failed.error));
    }
    Ok(store)
}

fn find_disk(pool: &PoolRecord, name: &str) -> Result<DiskId, Failure> {
    let found = pool.find_disk(name).map(|disk| disk.id);
    found.ok_or_else(|| {
        let names: Vec<&str> = pool.disks.iter().map(|disk| disk.name.as_str()).collect();
        Failure::new(ErrorKind::NotFound, format!("there is no disk '{name}' in this pool"))
            .hint(format!("its disks are: {}", names.join(", ")))
    })
}

/// Proves that the table of a pool is consistent.
pub fn check(disks: &[PathBuf]) -> Result<CheckReport, Failure> {
    let pool = open_disks(disks, &LOOK, ASK_DAEMON)?;
    let store = look(&pool)?;
    let mut checker = Checker::new(&store.pool, &store.vhds).with_vms(&store.vms);
    each_extent(&store, |extent| checker.add(extent))?;
    if checker.wants_owners() {
        each_extent(&store, |extent| checker.add_owners(extent))?;
    }
    Ok(check_report(&checker.finish()))
}

fn each_extent(store: &OpenStore<Overlay<FileDisk>>, mut each: impl FnMut(&TableExtent)) -> Outcome {
    let shown = store.load(|key, place, row| {
        // A place behind the last extent that could ever be has nothing that could be checked.
        let Some(extent) = key.extent(place) else { return };
        each(&TableExtent { vhd: key.vhd, extent, replicas: row.replicas, present: row.present });
    });
    shown.map_err(|error| failed(&error))
}

/// The table of a pool as text.
pub fn dump(disks: &[PathBuf]) -> Result<String, Failure> {
    let pool = open_disks(disks, &LOOK, ASK_DAEMON)?;
    let store = look(&pool)?;
    let (_, member) = store.members().next().ok_or_else(|| Failure::new(ErrorKind::Failed, "no store can be read"))?;
    dump::dump(member).map_err(|error| failed(&error))
}

/// What a restore did.
#[derive(Debug, Serialize)]
struct Restored {
    pool: Uuid,
    lines: usize,
}

/// Replaces the table of a pool.
pub fn restore(session: &Session, text: &str, disks: &[PathBuf], force: bool) -> Outcome {
    let first = text.lines().next().unwrap_or_default();
    let record = dump::pool_of(first).map_err(|error| restore_error(&error))?;
    // A dump that is not whole must not cost the table that is there.
    dump::restore(text.as_bytes(), |_| Ok(())).map_err(|error| restore_error(&error))?;
    // What carries the table may be lost for good, and the dump is all that is left of it.
    let options = OpenOptions { accept_stale: force, ..OpenOptions::default() };
    let mut pool = open_disks(disks, &options, STOP_DAEMON)?;
    if record.uuid != pool.uuid {
        let message = format!("the dump is of pool {}, the disks are of pool {}", record.uuid, pool.uuid);
        return Err(Failure::new(ErrorKind::Conflict, message).hint("give the disks that the dump was made of"));
    }
    refuse_missing(&pool, force)?;
    let readable =
        open_store(&pool, places(&pool, |disk| Arc::new(Overlay::new(Arc::clone(&disk.dev)))), false).is_ok();
    if readable && !force {
        return Err(Failure::new(ErrorKind::Conflict, "the placement table of these disks is readable")
            .hint("what was written after the dump would be lost; --force replaces it all the same"));
    }
    put_back(text, &mut pool).map_err(|failure| failure.hint(CUT_OFF))?;
    let restored = Restored { pool: pool.uuid, lines: text.lines().count() };
    session
        .output()
        .show(&restored, |r| format!("restored the placement table of pool {} ({} lines)\n", r.pool, r.lines))
}

/// A member that is not here keeps the table from before the restore.
fn refuse_missing(pool: &OpenPool<FileDisk>, force: bool) -> Outcome {
    let missing = || pool.missing.iter().filter(|missing| missing.store_member);
    if force {
        missing().for_each(|missing| warn(format!("disk {missing} is missing; it does not carry the table any more")));
        return Ok(());
    }
    if pool.store_members().count() == pool.membership.members.len() {
        return Ok(());
    }
    let names: Vec<String> = missing().map(ToString::to_string).collect();
    let message = format!(
        "{} of the disks that carry the placement table are missing: {}",
        pool.membership.members.len() - pool.store_members().count(),
        if names.is_empty() { "none that is known by name".to_owned() } else { names.join(", ") }
    );
    Err(Failure::new(ErrorKind::Conflict, message).hint(WITHOUT_MISSING))
}

const WITHOUT_MISSING: &str =
    "attach them; if they are lost for good, --force restores without them, and they do not carry the table any more";

const CUT_OFF: &str = "the table is not complete, and the pool does not open until a restore has succeeded: restore again, \
                       after replacing the disk if one has failed";

fn put_back(text: &str, pool: &mut OpenPool<FileDisk>) -> Outcome {
    let places = places(pool, |disk| Arc::clone(&disk.dev));
    let members: Vec<DiskId> = places.iter().map(|place| place.id).collect();
    let restored = restore_store(places, text).map_err(|error| restore_error(&error))?;
    // Labels first, as whenever the pool is opened: who is missing is a member no more, and its table can never be the newest.
    let written = pool.write_membership(&members).map_err(|error| failed(&error))?;
    written.failed.iter().for_each(warn);
    let lineage = Uuid::new_v4().as_u64_pair().0;
    let store = restored.finish(written.epoch, lineage).map_err(|error| failed(&error))?;
    for failed in &store.failed {
        warn(format!("the placement store on disk '{}' cannot be used: {}", failed.disk, failed.error));
    }
    Ok(())
}

fn restore_error(error: &RestoreError) -> Failure {
    let kind = match error {
        RestoreError::Member(_) | RestoreError::Store(_) | RestoreError::Read(_) => ErrorKind::Failed,
        _ => ErrorKind::Invalid,
    };
    Failure::new(kind, error_chain(error))
}

/// What an upgrade did.
#[derive(Debug, Serialize)]
struct Upgraded {
    changed: bool,
    label_version: u32,
}

/// Brings the format of a pool up to this version. There is only one so far: opening the pool proves that it has it.
pub fn upgrade(session: &Session, disks: &[PathBuf]) -> Outcome {
    let pool = open_disks(disks, &LOOK, STOP_DAEMON)?;
    look(&pool)?;
    let upgraded = Upgraded { changed: false, label_version: label::VERSION };
    session
        .output()
        .show(&upgraded, |u| format!("the pool has format version {} already: nothing changed\n", u.label_version))
}
