//! Making and unmaking pools: under the disks' locks, through `disk` and `store`.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use crate::base::clock;
use crate::cli::Session;
use crate::cli::args::{PoolCreateArgs, PoolDestroyArgs};
use crate::cli::output::{Failure, Outcome, Table, facts, warn};
use crate::control::error_chain;
use crate::control::serve::{self, create_error_kind, open_error, table};
use crate::control::wire::ErrorKind;
use crate::control::wire::size::human_size;
use crate::disk::file::{Access, FileDisk};
use crate::disk::geometry::Role;
use crate::disk::identity::Host;
use crate::disk::label::Label;
use crate::disk::pool::{
    CreateError, CreateOptions, DiskSettings, NewDisk, OpenPool, WipeError, create_pool, wipe, wipeable,
};
use crate::placement::record::PoolRecord;
use crate::store::open;

/// A pool that was made.
#[derive(Debug, Serialize)]
struct Created {
    uuid: Uuid,
    extent_bytes: u64,
    capacity_bytes: u64,
    disks: Vec<CreatedDisk>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct CreatedDisk {
    name: String,
    uuid: Uuid,
    path: String,
    failure_domain: String,
    total_bytes: u64,
    metadata_bytes: u64,
}

/// Formats disks into a new pool.
pub fn create(session: &Session, args: &PoolCreateArgs) -> Outcome {
    let host = Host::default();
    let names = assigned(&args.names, &args.disks, "--name")?;
    let domains = assigned(&args.failure_domains, &args.disks, "--failure-domain")?;
    let members = positions(&args.metadata, &args.disks, "--metadata")?;
    let metadata_only = positions(&args.metadata_only, &args.disks, "--metadata-only")?;
    let data_only = positions(&args.data_only, &args.disks, "--data-only")?;
    refuse_overlaps(&args.disks, &host)?;
    let mut made = MadeFiles::default();
    let mut disks: Vec<NewDisk<FileDisk>> = Vec::new();
    for (i, path) in args.disks.iter().enumerate() {
        let file = made.open(path, args.size)?;
        let taken: Vec<String> =
            disks.iter().map(|disk| disk.name.clone()).chain(names.iter().flatten().cloned()).collect();
        let role = match (metadata_only.contains(&i), data_only.contains(&i)) {
            (true, true) => {
                let message = format!("{} cannot be both metadata-only and data-only", path.display());
                return Err(Failure::new(ErrorKind::Invalid, message));
            }
            (true, false) => Role::MetadataOnly,
            (false, true) => Role::DataOnly,
            (false, false) => Role::Any,
        };
        let settings = DiskSettings {
            name: names[i].clone(),
            role,
            failure_domain: domains[i].clone(),
            ..DiskSettings::default()
        };
        disks.push(NewDisk::from_file(file, settings, &taken, &host));
    }
    let options = CreateOptions {
        extent_size: args.extent_size,
        members: (!members.is_empty()).then_some(members),
        force: args.force,
        now: clock::wall_secs(),
    };
    let pool = create_pool(disks, &options, &host, &mut Uuid::new_v4).map_err(|error| create_error(&error))?;
    if let Err(failure) = make_store(&pool) {
        // Without a store the labels promise a pool that is none. The failure itself is what the user must see.
        pool.disks.iter().for_each(|disk| drop(wipe(&*disk.dev, &disk.path, true)));
        return Err(failure);
    }
    made.keep();
    let created = created(&pool);
    session.output().show(&created, describe)?;
    if !session.global.json {
        created.warnings.iter().for_each(warn);
    }
    Ok(())
}

/// Two paths to the same bytes. Looked for before the disks are locked: the lock of the first would only say that the second
/// is in use.
fn refuse_overlaps(paths: &[PathBuf], host: &Host) -> Outcome {
    let probe = |path: &PathBuf| Some((path.clone(), *FileDisk::open(path, Access::Probe).ok()?.identity()));
    // What cannot be opened now is told when it is opened for writing.
    let disks: Vec<_> = paths.iter().filter_map(probe).collect();
    for (i, (second, identity)) in disks.iter().enumerate() {
        for (first, other) in &disks[..i] {
            if let Some(overlap) = host.overlap(*other, *identity) {
                let (first, second) = (first.clone(), second.clone());
                return Err(create_error(&CreateError::SameDisk { first, second, overlap }));
            }
        }
    }
    Ok(())
}

fn make_store(pool: &OpenPool<FileDisk>) -> Outcome {
    let disks = pool.disks.iter().map(serve::disk_record).collect();
    let record = PoolRecord::new(pool.uuid, pool.extent_size, disks);
    let places = table::places(pool, |disk| Arc::clone(&disk.dev));
    let lineage = Uuid::new_v4().as_u64_pair().0;
    open::create(places, &record, lineage).map(drop).map_err(|error| failed(&error))
}

fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::new(ErrorKind::Failed, error_chain(error))
}

/// Files that this command made: removed again if it fails.
#[derive(Debug, Default)]
struct MadeFiles(Vec<PathBuf>);

impl MadeFiles {
    fn open(&mut self, path: &Path, size: Option<u64>) -> Result<FileDisk, Failure> {
        let opened = match size {
            Some(size) if !path.exists() => {
                let created = FileDisk::create(path, size);
                if created.is_ok() {
                    self.0.push(path.to_owned());
                }
                created
            }
            _ => FileDisk::open(path, Access::Write),
        };
        opened.map_err(|error| {
            let missing = size.is_none() && !path.exists() && !path.starts_with("/dev");
            let failure = Failure(open_error(&error));
            if missing { failure.hint("--size SIZE creates a sparse file") } else { failure }
        })
    }

    fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for MadeFiles {
    fn drop(&mut self) {
        // Ours and of no use; that one cannot be removed would only hide why the command failed.
        self.0.iter().for_each(|path| drop(std::fs::remove_file(path)));
    }
}

fn create_error(error: &CreateError) -> Failure {
    Failure::new(create_error_kind(error), error.to_string())
}

/// What `PATH=VALUE` options, or values in the order of the disks, say of each disk.
fn assigned(options: &[String], disks: &[PathBuf], option: &str) -> Result<Vec<Option<String>>, Failure> {
    let mut values = vec![None; disks.len()];
    let mut next = 0;
    for text in options {
        let by_path = text
            .rsplit_once('=')
            .and_then(|(path, value)| Some((disks.iter().position(|disk| disk == Path::new(path))?, value)));
        let (place, value) = match by_path {
            Some(found) => found,
            None if text.contains('=') => {
                let message = format!("{option} {text}: there is no such disk among those given");
                return Err(Failure::new(ErrorKind::Invalid, message));
            }
            None => {
                next += 1;
                (next - 1, text.as_str())
            }
        };
        match values.get_mut(place) {
            Some(slot) if slot.is_none() => *slot = Some(value.to_owned()),
            Some(_) => {
                let message = format!("{option} is given twice for {}", disks[place].display());
                return Err(Failure::new(ErrorKind::Invalid, message));
            }
            None => {
                let message = format!("{option} is given more often than there are disks");
                return Err(Failure::new(ErrorKind::Invalid, message));
            }
        }
    }
    Ok(values)
}

/// The places of `chosen` among the disks.
fn positions(chosen: &[PathBuf], disks: &[PathBuf], option: &str) -> Result<Vec<usize>, Failure> {
    let place = |path: &PathBuf| {
        let message = || format!("{option} {}: there is no such disk among those given", path.display());
        disks.iter().position(|disk| disk == path).ok_or_else(|| Failure::new(ErrorKind::Invalid, message()))
    };
    chosen.iter().map(place).collect()
}

fn created(pool: &OpenPool<FileDisk>) -> Created {
    let disks = pool.disks.iter().map(|disk| CreatedDisk {
        name: disk.name.clone(),
        uuid: disk.uuid,
        path: disk.path.display().to_string(),
        failure_domain: disk.failure_domain.to_string(),
        total_bytes: disk.data_len(),
        metadata_bytes: disk.label.layout.metadata_len,
    });
    let disks: Vec<CreatedDisk> = disks.collect();
    Created {
        uuid: pool.uuid,
        extent_bytes: pool.extent_size,
        capacity_bytes: disks.iter().map(|disk| disk.total_bytes).sum(),
        disks,
        warnings: pool.warnings().iter().map(ToString::to_string).collect(),
    }
}

fn describe(pool: &Created) -> String {
    let mut text = facts(&[
        ("Pool", pool.uuid.to_string()),
        ("Extent size", human_size(pool.extent_bytes)),
        ("Capacity", human_size(pool.capacity_bytes)),
    ]);
    let mut table = Table::new(&["Disk", ">Capacity", ">Metadata", "Failure domain", "Path"]);
    for disk in &pool.disks {
        let metadata = if disk.metadata_bytes == 0 { "-".to_owned() } else { human_size(disk.metadata_bytes) };
        let capacity = human_size(disk.total_bytes);
        table.row(vec![disk.name.clone(), capacity, metadata, disk.failure_domain.clone(), disk.path.clone()]);
    }
    text.push('\n');
    text.push_str(&table.render());
    text
}

/// Wipes the labels of a pool.
pub fn destroy(session: &Session, args: &PoolDestroyArgs) -> Outcome {
    confirm(args.yes, &format!("All VHDs on these {} disks will be lost.", args.disks.len()))?;
    // All are locked before the first is touched.
    let mut locked = Vec::new();
    for path in &args.disks {
        locked.push((path, FileDisk::open(path, Access::Write).map_err(|error| Failure(open_error(&error)))?));
    }
    let labels: Vec<Label> = (locked.iter())
        .map(|(path, disk)| wipeable(disk, path).map_err(|error| wipe_error(&error)))
        .collect::<Result<_, _>>()?;
    refuse_others(&args.disks, &labels)?;
    let mut wiped = Vec::new();
    for (path, disk) in &locked {
        wiped.push(wipe_one(disk, path, false)?);
    }
    let newest = labels.iter().max_by_key(|label| label.membership.epoch);
    for left in newest.iter().flat_map(|label| &label.membership.roster) {
        if labels.iter().all(|label| label.uuid != left.uuid) {
            warn(format!("disk '{}' of the pool was not given and keeps its label: wipe it, too", left.name));
        }
    }
    session
        .output()
        .show(&wiped, |wiped| wiped.iter().map(|one| format!("wiped disk '{}' ({})\n", one.name, one.path)).collect())
}

/// Disks of several pools: somebody made a mistake.
fn refuse_others(paths: &[PathBuf], labels: &[Label]) -> Outcome {
    let Some((other, path)) = labels.iter().zip(paths).find(|(label, _)| label.pool != labels[0].pool) else {
        return Ok(());
    };
    let (first, path) = (paths[0].display(), path.display());
    let message = format!("{first} is of pool {}, {path} of pool {}: nothing was changed", labels[0].pool, other.pool);
    Err(Failure::new(ErrorKind::Conflict, message).hint("give the disks of one pool"))
}

/// A label that was wiped.
#[derive(Debug, Serialize)]
pub struct Wiped {
    name: String,
    path: String,
    pool: Option<Uuid>,
}

/// Wipes the label of one disk.
pub fn wipe_disk(session: &Session, path: &Path, yes: bool) -> Outcome {
    let disk = FileDisk::open(path, Access::Write).map_err(|error| Failure(open_error(&error)))?;
    confirm(yes, &format!("Everything that VHDs have on {} will be lost.", path.display()))?;
    let wiped = wipe_one(&disk, path, yes)?;
    session.output().show(&wiped, |one| format!("wiped disk '{}' ({})\n", one.name, one.path))
}

fn wipe_one(disk: &FileDisk, path: &Path, force: bool) -> Result<Wiped, Failure> {
    let label = wipe(disk, path, force).map_err(|error| wipe_error(&error))?;
    let name = label.as_ref().map_or_else(|| "unreadable label".to_owned(), |label| label.name.clone());
    Ok(Wiped { name, path: path.display().to_string(), pool: label.map(|label| label.pool) })
}

fn wipe_error(error: &WipeError) -> Failure {
    let kind = match error {
        WipeError::NotOurs { .. } => ErrorKind::Conflict,
        WipeError::Label { .. } | WipeError::Io { .. } => ErrorKind::Failed,
    };
    Failure::new(kind, error.to_string())
}

/// Asks a person whether to go on; refuses where nobody can be asked.
pub fn confirm(yes: bool, what: &str) -> Outcome {
    if yes {
        return Ok(());
    }
    let refused = Failure::new(ErrorKind::Invalid, format!("{what} Nothing was changed"));
    if !std::io::stdin().is_terminal() {
        return Err(refused.hint("say --yes to do it"));
    }
    let mut answer = String::new();
    let asked =
        write!(std::io::stderr(), "{what} Go on? [y/N] ").and_then(|()| std::io::stdin().read_line(&mut answer));
    match asked {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(refused),
    }
}
