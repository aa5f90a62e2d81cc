//! Finding a pool's disks among paths and patterns.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use uuid::Uuid;

use super::{AssembleError, Found, OpenPool, Rejected, Rejection, assemble};
use crate::base::clock;
use crate::disk::file::{Access, FileDisk, OpenError};
use crate::disk::identity::{DiskIdentity, Host};
use crate::disk::label::copies::{self, LabelRead, ReadError};

/// How long looking at all given paths may take; a disk that does not answer by then is not opened.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);

/// The same for disks that have failed, as far as they may hang.
const FAILED_TIMEOUT: Duration = Duration::from_secs(1);

/// A disk that is open, and locked by its open file description.
#[derive(Debug)]
pub struct OpenedDisk {
    /// By which path it was opened.
    pub path: PathBuf,
    /// Carries the lock.
    pub fd: OwnedFd,
    /// It had not failed, and is needed.
    pub works: bool,
}

/// How to open a pool.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// For reading only: nothing is repaired, and the lock is shared with other readers.
    pub read_only: bool,
    /// Open without a majority of the store members.
    pub accept_stale: bool,
    /// Which pool, if the paths may lead to several.
    pub pool: Option<Uuid>,
}

/// Why a pool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// A pattern is not valid.
    #[error("'{pattern}' is not a valid pattern: {source}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        source: glob::PatternError,
    },
    /// None of the paths is a disk of a pool.
    #[error("no disk of a pool is among the given paths{}", reasons(.0))]
    NoDisk(Vec<Rejected>),
    /// A disk of the pool is in use or cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The label changed between two looks at it.
    #[error("{}: its label changed while it was being opened: {source}", path.display())]
    Label {
        /// The disk.
        path: PathBuf,
        /// What it looks like now.
        source: ReadError,
    },
    /// The disks do not make a pool.
    #[error("{source}{}", reasons(rejected))]
    Assemble {
        /// Why.
        source: AssembleError,
        /// Paths that were given and could not be used.
        rejected: Vec<Rejected>,
    },
}

fn reasons(rejected: &[Rejected]) -> String {
    rejected.iter().map(|one| format!("; {one}")).collect()
}

/// Opens the pool whose disks are among `paths` (each a path, or a pattern with `*`, `?` or `[...]`).
///
/// Paths that are none of its disks are told in [`OpenPool::rejected`], except those that a pattern matched and that carry
/// no label: a pattern may match other people's disks.
///
/// # Errors
/// See [`FindError`]. Nothing has been changed then.
pub fn open_pool(paths: &[String], options: &OpenOptions, host: &Host) -> Result<OpenPool<FileDisk>, FindError> {
    let (candidates, mut rejected) = expand(paths)?;
    let mut chosen: Vec<(PathBuf, DiskIdentity, Uuid)> = Vec::new();
    for (candidate, probed) in probe_all(candidates) {
        match probed {
            Ok((identity, read)) if chosen.iter().all(|(_, known, _)| *known != identity) => {
                chosen.push((candidate.path, identity, read.label.pool));
            }
            // The same disk by another path.
            Ok(_) => {}
            Err(
                Rejection::Label { source: ReadError::Absent, .. }
                | Rejection::Open(
                    OpenError::WrongKind { .. } | OpenError::NoDirectIo { .. } | OpenError::BlockSize { .. },
                ),
            ) if candidate.by_pattern => {}
            Err(reason) => rejected.push(Rejected { path: candidate.path, reason }),
        }
    }
    if chosen.is_empty() {
        return Err(FindError::NoDisk(rejected));
    }
    // Disks of other pools are not locked; that they are there is told by `assemble`.
    let several = options.pool.is_none() && chosen.iter().any(|(_, _, pool)| *pool != chosen[0].2);
    let mut found = Vec::with_capacity(chosen.len());
    for (path, _, pool) in chosen {
        let ours = !several && options.pool.is_none_or(|wanted| wanted == pool);
        let access = match (ours, options.read_only) {
            (false, _) => Access::Probe,
            (true, true) => Access::Read,
            (true, false) => Access::Write,
        };
        found.push(open_labelled(&path, access, host)?);
    }
    put_together(found, rejected, options)
}

/// What is wrong with the pool may come from a path that was rejected: tell both.
fn put_together(
    found: Vec<Found<FileDisk>>,
    rejected: Vec<Rejected>,
    options: &OpenOptions,
) -> Result<OpenPool<FileDisk>, FindError> {
    match assemble(found, Vec::new(), options) {
        Ok(mut pool) => {
            pool.rejected.extend(rejected);
            Ok(pool)
        }
        Err(source) => Err(FindError::Assemble { source, rejected }),
    }
}

/// Opens it with disks that somebody else has opened for writing, who does not use them any more. Looking at them may take `at_most`.
///
/// # Errors
/// See [`FindError`]. Nothing has been changed then.
pub fn reopen_pool(
    opened: Vec<OpenedDisk>,
    at_most: Duration,
    options: &OpenOptions,
    host: &Host,
) -> Result<OpenPool<FileDisk>, FindError> {
    let (mut found, mut rejected) = (Vec::with_capacity(opened.len()), Vec::new());
    let (working, failed) = opened.into_iter().partition(|disk| disk.works);
    let looked = [look_again(working, at_most, host), look_again(failed, FAILED_TIMEOUT, host)];
    for (path, result) in looked.into_iter().flatten() {
        match result {
            Ok(disk) => found.push(disk),
            Err(reason) => rejected.push(Rejected { path, reason }),
        }
    }
    if found.is_empty() { Err(FindError::NoDisk(rejected)) } else { put_together(found, rejected, options) }
}

fn open_labelled(path: &Path, access: Access, host: &Host) -> Result<Found<FileDisk>, FindError> {
    let disk = FileDisk::open(path, access)?;
    // Read again: before the lock, somebody else could write.
    let read = copies::read(&disk).map_err(|source| FindError::Label { path: path.to_owned(), source })?;
    Ok(found(disk, path, read, host))
}

fn found(disk: FileDisk, path: &Path, read: LabelRead, host: &Host) -> Found<FileDisk> {
    let identity = *disk.identity();
    let failure_domain = host.failure_domain(identity);
    Found { dev: Arc::new(disk), path: path.to_owned(), identity, failure_domain, read }
}

type LookedAt = Result<(FileDisk, LabelRead), Rejection>;

/// Looks at disks that are open. One that hangs keeps a thread, and its lock.
fn look_again(
    opened: Vec<OpenedDisk>,
    at_most: Duration,
    host: &Host,
) -> Vec<(PathBuf, Result<Found<FileDisk>, Rejection>)> {
    let paths: Vec<PathBuf> = opened.iter().map(|disk| disk.path.clone()).collect();
    let look = |OpenedDisk { path, fd, .. }: OpenedDisk| {
        move || {
            let disk = FileDisk::from_fd(&path, fd, Access::Write).map_err(Rejection::Open)?;
            let read = copies::read(&disk).map_err(|source| Rejection::Label { path: path.clone(), source })?;
            Ok((disk, read))
        }
    };
    let looked = in_time(opened.into_iter().map(look).collect(), at_most);
    let of = |(path, result): (PathBuf, Option<LookedAt>)| {
        let result = result.unwrap_or_else(|| Err(Rejection::Hangs { path: path.clone() }));
        let result = result.map(|(disk, read)| found(disk, &path, read, host));
        (path, result)
    };
    paths.into_iter().zip(looked).map(of).collect()
}

#[derive(Clone, Debug)]
struct Candidate {
    path: PathBuf,
    by_pattern: bool,
}

fn expand(paths: &[String]) -> Result<(Vec<Candidate>, Vec<Rejected>), FindError> {
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut rejected = Vec::new();
    for given in paths {
        // A file may have such characters in its name.
        let literal = !given.contains(['*', '?', '[']) || Path::new(given).exists();
        if literal {
            candidates.push(Candidate { path: given.into(), by_pattern: false });
            continue;
        }
        let matches = glob::glob(given).map_err(|source| FindError::Pattern { pattern: given.clone(), source })?;
        let before = candidates.len();
        candidates.extend(matches.flatten().map(|path| Candidate { path, by_pattern: true }));
        if candidates.len() == before {
            let path = PathBuf::from(given);
            rejected.push(Rejected { path: path.clone(), reason: Rejection::NoMatch { path } });
        }
    }
    Ok((candidates, rejected))
}

type Probed = Result<(DiskIdentity, LabelRead), Rejection>;

fn probe_one(path: &Path) -> Probed {
    let disk = FileDisk::open(path, Access::Probe).map_err(Rejection::Open)?;
    let read = copies::read(&disk).map_err(|source| Rejection::Label { path: path.to_owned(), source })?;
    Ok((*disk.identity(), read))
}

/// Looks at all paths at once.
fn probe_all(candidates: Vec<Candidate>) -> Vec<(Candidate, Probed)> {
    let probe = |candidate: &Candidate| {
        let path = candidate.path.clone();
        move || probe_one(&path)
    };
    let probed = in_time(candidates.iter().map(probe).collect(), PROBE_TIMEOUT);
    let hangs = |candidate: &Candidate| Err(Rejection::Hangs { path: candidate.path.clone() });
    candidates
        .into_iter()
        .zip(probed)
        .map(|(candidate, result)| {
            let result = result.unwrap_or_else(|| hangs(&candidate));
            (candidate, result)
        })
        .collect()
}

/// Does everything at once, each in a thread of its own: a disk that hangs holds up nobody else, and its thread is left behind. What is not
/// done in time is `None`.
fn in_time<T: Send + 'static>(work: Vec<impl FnOnce() -> T + Send + 'static>, at_most: Duration) -> Vec<Option<T>> {
    let (tell, told) = mpsc::channel();
    let mut done: Vec<Option<T>> = work.iter().map(|_| None).collect();
    for (i, work) in work.into_iter().enumerate() {
        let tell = tell.clone();
        // Nobody listens any more once the time is up. What has no thread is not done.
        drop(thread::Builder::new().spawn(move || drop(tell.send((i, work())))));
    }
    let started = clock::now();
    for _ in 0..done.len() {
        let left = at_most.saturating_sub(Duration::from_nanos(clock::now().since(started)));
        let Ok((i, result)) = told.recv_timeout(left) else { break };
        done[i] = Some(result);
    }
    done
}
