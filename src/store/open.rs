//! Creating and opening a store: which member is right, and making the others equal to it.
//!
//! A commit that was acknowledged is on a majority of the members. So is the epoch that a store serves in, since it is
//! raised on a majority before serving. Any majority therefore contains a member with the last acknowledged commit, and that
//! is the member with the highest (epoch, commit): a member that was away has an older epoch, whatever it committed.
//! Raising an epoch starts its commits from 0, so that an attempt that no majority took up stays behind an epoch that was
//! served.

mod doubt;
mod load;
mod mend;
pub mod restore;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use uuid::Uuid;

use crate::base::ids::DiskId;
use crate::base::limits::STALE_ROWS_MAX;
use crate::disk::BlockDev;
use crate::placement::job::JobRecord;
use crate::placement::record::{PoolRecord, VhdRecord};
use crate::placement::vm::VmRecord;

use super::batch::{Batch, Step};
use super::edit::StoreEdit;
use super::member::{Copied, Member, MemberError, MemberState, Tuning};
use super::mirror::majority;
use super::note::NoteKind;
use super::page::Stamp;
use super::region::RegionPlace;

/// Where a member is.
#[derive(Debug)]
pub struct MemberPlace<D: ?Sized> {
    /// Its disk in the pool.
    pub id: DiskId,
    /// The name of the disk, for people.
    pub name: String,
    /// The open disk.
    pub disk: Arc<D>,
    /// The region on it.
    pub place: RegionPlace,
}

impl<D: ?Sized> Clone for MemberPlace<D> {
    fn clone(&self) -> MemberPlace<D> {
        let MemberPlace { id, name, disk, place } = self;
        MemberPlace { id: *id, name: name.clone(), disk: Arc::clone(disk), place: *place }
    }
}

/// Why a store cannot be created or opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A member could not be created.
    #[error("cannot create the placement store on disk '{disk}'")]
    Create {
        /// Its disk.
        disk: String,
        /// Why.
        source: MemberError,
    },
    /// No majority of the members can be used.
    #[error(
        "the placement store needs {needed} of its {total} metadata regions and has {usable}{}: bring the missing disks \
         back, or accept the loss of what only they know with --accept-stale",
        problems(.failed)
    )]
    NoMajority {
        /// Members of the store.
        total: usize,
        /// How many it takes.
        needed: usize,
        /// How many there are.
        usable: usize,
        /// Those that are here and cannot be used.
        failed: Vec<Failed>,
    },
    /// Members have different histories.
    #[error(
        "the placement store has two histories, both of epoch {epoch}: on disk '{one}' and on disk '{other}'; it was opened \
         with --accept-stale while other disks were away. Keep one of them and wipe the metadata of the other"
    )]
    Forked {
        /// The epoch.
        epoch: u64,
        /// Disk of the one.
        one: String,
        /// Disk of the other.
        other: String,
    },
    /// A damaged row that no member has whole.
    #[error("the placement table is damaged on every member")]
    Damaged(#[source] MemberError),
    /// The last commit is there, a row of it is damaged, and what was acknowledged may be in no other member.
    #[error(
        "the placement store on disk '{disk}' has the last commit and is damaged, and no other disk that is here has that \
         commit whole: bring back the disks that are missing, or restore the table from a dump ('spanblk metadata restore')"
    )]
    DamagedAhead {
        /// Its disk.
        disk: String,
        /// What is damaged.
        source: MemberError,
    },
    /// A member failed while a dump was written to it.
    #[error("cannot write the placement store on disk '{disk}'")]
    Write {
        /// Its disk.
        disk: String,
        /// Why.
        source: MemberError,
    },
    /// A member failed while it was read.
    #[error("cannot read the placement store on disk '{disk}'")]
    Read {
        /// Its disk.
        disk: String,
        /// Why.
        source: MemberError,
    },
}

/// A member that cannot be used.
#[derive(Debug)]
pub struct Failed {
    /// Its disk in the pool.
    pub id: DiskId,
    /// Name of the disk.
    pub disk: String,
    /// Why.
    pub error: MemberError,
}

fn problems(failed: &[Failed]) -> String {
    failed.iter().map(|failed| format!("; disk '{}': {}", failed.disk, failed.error)).collect()
}

/// A member that was made equal to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mended {
    /// Name of its disk.
    pub disk: String,
    /// It was unreadable and was made anew.
    pub rebuilt: bool,
    /// Rows that were different.
    pub copied: Copied,
}

/// How a store may be opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// UUID of the pool.
    pub pool: Uuid,
    /// Members that belong to the store, here or not.
    pub total: usize,
    /// Open without a majority: what only the missing members know is lost.
    pub accept_stale: bool,
    /// How `redb` is used.
    pub tuning: Tuning,
}

/// A store that is open and not yet raised to a new epoch.
#[derive(Debug)]
pub struct OpenStore<D: BlockDev + ?Sized + 'static> {
    members: Vec<Here<D>>,
    total: usize,
    /// A majority is not wanted.
    accept_stale: bool,
    /// A damaged row was met, and taken from another member.
    damaged: AtomicBool,
    /// What had to be mended.
    pub mended: Vec<Mended>,
    /// Members that are here and could not be used.
    pub failed: Vec<Failed>,
    /// The pool record.
    pub pool: PoolRecord,
    /// The VHD records, by identifier.
    pub vhds: Vec<VhdRecord>,
    /// The job records, by identifier.
    pub jobs: Vec<JobRecord>,
    /// The VM records, by identifier.
    pub vms: Vec<VmRecord>,
    /// What is wanted of the policy, as JSON.
    pub policy: Option<String>,
}

/// Makes a store with a pool record on all `places`, in epoch 1. Whatever the regions held is lost.
///
/// # Errors
/// The first member that could not be made.
pub fn create<D: BlockDev + ?Sized + 'static>(
    places: Vec<MemberPlace<D>>,
    pool: &PoolRecord,
    lineage: u64,
) -> Result<OpenStore<D>, OpenError> {
    let tuning = Tuning::default();
    let batch =
        Batch { stamp: Stamp { epoch: 1, commit: 1 }, steps: vec![Step::Edit(StoreEdit::PutPool(pool.clone()))] };
    let members = make_each(places, |place| {
        let mut member = Member::create(Arc::clone(&place.disk), place.place, pool.uuid, tuning)?;
        member.raise(MemberState { stamp: Stamp { epoch: 1, commit: 0 }, lineage })?;
        member.apply(&batch)?;
        Ok(member)
    })?;
    Ok(OpenStore::of(members, Records::new(pool.clone())))
}

/// Makes a member in each place.
///
/// # Errors
/// The first that could not be made.
fn make_each<D: BlockDev + ?Sized + 'static>(
    places: Vec<MemberPlace<D>>,
    make: impl Fn(&MemberPlace<D>) -> Result<Member<D>, MemberError> + Sync,
) -> Result<Vec<Here<D>>, OpenError> {
    let made = in_parallel(places, make).into_iter().map(|(place, member)| match member {
        Ok(member) => Ok((place, member)),
        Err(source) => Err(OpenError::Create { disk: place.name, source }),
    });
    made.collect()
}

/// Opens a store from the members that are here, finds the one that is right, and makes the others equal to it.
///
/// With [`OpenOptions::accept_stale`] the table may be of another time than what is on the disks: checksums are forgotten, and
/// replicas are in doubt.
///
/// # Errors
/// No majority, two histories, or nothing readable.
pub fn open<D: BlockDev + ?Sized + 'static>(
    places: Vec<MemberPlace<D>>,
    options: &OpenOptions,
) -> Result<OpenStore<D>, OpenError> {
    let mut store = look(places, options)?;
    if options.accept_stale {
        store.begin_doubt()?;
        store.doubt_replicas()?;
    }
    Ok(store)
}

/// As [`open`], to show the table as it is: not to be served, since nothing of it is put in doubt.
///
/// # Errors
/// As [`open`].
pub fn look<D: BlockDev + ?Sized + 'static>(
    places: Vec<MemberPlace<D>>,
    options: &OpenOptions,
) -> Result<OpenStore<D>, OpenError> {
    let opened =
        in_parallel(places, |place| Member::open(Arc::clone(&place.disk), place.place, options.pool, options.tuning));
    let mut members = Vec::new();
    let mut failed = Vec::new();
    for (place, member) in opened {
        match member {
            // An empty member was being made when the power went: it has nothing to say.
            Ok(member) if member.state().stamp.epoch > 0 => members.push((place, member)),
            Ok(member) if member.state().stamp.commit > 0 => failed.push((place, MemberError::Unfinished)),
            Ok(_) => failed.push((place, MemberError::Missing("content"))),
            Err(error) => failed.push((place, error)),
        }
    }
    let needed = majority(options.total);
    if members.is_empty() || (members.len() < needed && !options.accept_stale) {
        let usable = members.len();
        let failed = failed.into_iter().map(|(place, error)| fail(&place, error)).collect();
        return Err(OpenError::NoMajority { total: options.total, needed, usable, failed });
    }
    check_forked(&members)?;
    members.sort_by_key(|(_, member)| (std::cmp::Reverse(member.state().stamp), member.is_doubted()));
    let records = read_records(&mut members, &mut failed, options.total)?;
    let mut store =
        OpenStore { total: options.total, accept_stale: options.accept_stale, ..OpenStore::of(members, records) };
    store.mend()?;
    store.rebuild(failed, options);
    store.check_majority()?;
    Ok(store)
}

fn fail<D: ?Sized>(place: &MemberPlace<D>, error: MemberError) -> Failed {
    Failed { id: place.id, disk: place.name.clone(), error }
}

/// What a member says besides where extents are.
struct Records {
    pool: PoolRecord,
    vhds: Vec<VhdRecord>,
    jobs: Vec<JobRecord>,
    vms: Vec<VmRecord>,
    policy: Option<String>,
}

impl Records {
    fn new(pool: PoolRecord) -> Records {
        Records { pool, vhds: Vec::new(), jobs: Vec::new(), vms: Vec::new(), policy: None }
    }

    fn of<D: BlockDev + ?Sized + 'static>(member: &Member<D>) -> Result<Records, MemberError> {
        let (pool, vhds) = (member.pool()?, member.vhds()?);
        Ok(Records { pool, vhds, jobs: member.jobs()?, vms: member.vms()?, policy: member.policy()? })
    }
}

/// Reads all records from the first member that has the last commit and can be read; those before it have failed.
fn read_records<D: BlockDev + ?Sized + 'static>(
    members: &mut Vec<Here<D>>,
    failed: &mut Vec<(MemberPlace<D>, MemberError)>,
    total: usize,
) -> Result<Records, OpenError> {
    loop {
        let (place, member) = &members[0];
        match Records::of(member) {
            Ok(records) => return Ok(records),
            // An older one may lack what was acknowledged, unless only this one can have it.
            Err(source)
                if members.get(1).is_some_and(|(_, next)| {
                    next.state() == member.state() || 1 + total.saturating_sub(members.len()) < majority(total)
                }) =>
            {
                let (place, _) = members.remove(0);
                failed.push((place, source));
            }
            Err(source) => return Err(OpenError::Read { disk: place.name.clone(), source }),
        }
    }
}

/// Members of one epoch that was served (it has commits) must have been opened together.
fn check_forked<D: BlockDev + ?Sized + 'static>(members: &[Here<D>]) -> Result<(), OpenError> {
    let Some(epoch) = members.iter().map(|(_, member)| member.state().stamp.epoch).max() else { return Ok(()) };
    let mut served = members.iter().filter(|(_, member)| {
        let stamp = member.state().stamp;
        stamp.epoch == epoch && stamp.commit > 0
    });
    let Some((one, first)) = served.next() else { return Ok(()) };
    match served.find(|(_, member)| member.state().lineage != first.state().lineage) {
        Some((other, _)) => Err(OpenError::Forked { epoch, one: one.name.clone(), other: other.name.clone() }),
        None => Ok(()),
    }
}

/// A member that is here.
type Here<D> = (MemberPlace<D>, Member<D>);

type Opened<D> = (MemberPlace<D>, Result<Member<D>, MemberError>);

fn in_parallel<D: BlockDev + ?Sized + 'static>(
    places: Vec<MemberPlace<D>>,
    work: impl Fn(&MemberPlace<D>) -> Result<Member<D>, MemberError> + Sync,
) -> Vec<Opened<D>> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = places
            .into_iter()
            .map(|place| {
                scope.spawn(move || {
                    let result = work(&place);
                    (place, result)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a panic aborts the process")).collect()
    })
}

impl<D: BlockDev + ?Sized + 'static> OpenStore<D> {
    /// A store all of whose members are here.
    fn of(members: Vec<Here<D>>, records: Records) -> OpenStore<D> {
        let Records { pool, vhds, jobs, vms, policy } = records;
        OpenStore {
            total: members.len(),
            members,
            accept_stale: false,
            damaged: AtomicBool::new(false),
            mended: Vec::new(),
            failed: Vec::new(),
            pool,
            vhds,
            jobs,
            vms,
            policy,
        }
    }

    /// The commit that was found.
    #[must_use]
    pub fn state(&self) -> MemberState {
        self.members[0].1.state()
    }

    /// The members that take part, with the name of their disk.
    pub fn members(&self) -> impl Iterator<Item = (&MemberPlace<D>, &Member<D>)> {
        self.members.iter().map(|(place, member)| (place, member))
    }

    /// The notes of a kind, in the order of their numbers, as the first member has them that can read them.
    ///
    /// # Errors
    /// No member can.
    pub fn notes(&self, kind: NoteKind) -> Result<Vec<(u32, Vec<u8>)>, MemberError> {
        let mut found = self.members.iter().map(|(_, member)| member.notes(kind));
        let first = found.next().expect("an open store has members");
        first.or_else(|error| found.find_map(Result::ok).ok_or(error))
    }

    /// Members that belong to the store, here or not.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }

    fn check_majority(&mut self) -> Result<(), OpenError> {
        let (usable, needed) = (self.members.len(), majority(self.total));
        if usable >= needed || (self.accept_stale && usable > 0) {
            return Ok(());
        }
        Err(OpenError::NoMajority { total: self.total, needed, usable, failed: std::mem::take(&mut self.failed) })
    }

    /// Forgets the checksums of all blocks. What is missing from a table that is of another time was written to blocks that it has
    /// checksums of.
    ///
    /// # Errors
    /// No majority took it up.
    fn begin_doubt(&mut self) -> Result<(), OpenError> {
        self.on_each(Member::begin_doubt);
        self.check_majority()
    }

    /// Enters a new epoch on all members: `epoch`, or the next one if that is higher. Call before serving. Returns the
    /// state that the first commit follows.
    ///
    /// # Errors
    /// No majority took it up.
    pub fn raise(&mut self, epoch: u64, lineage: u64) -> Result<MemberState, OpenError> {
        let epoch = epoch.max(self.state().stamp.epoch + 1);
        let state = MemberState { stamp: Stamp { epoch, commit: 0 }, lineage };
        self.on_each(|member| member.raise(state));
        self.check_majority()?;
        Ok(state)
    }

    /// Makes edits durable on all members, in parts, before the store is served and after it was raised. Returns the state that the
    /// next commit follows.
    ///
    /// # Errors
    /// No majority took them up: some of them may be durable.
    pub fn put(&mut self, edits: Vec<StoreEdit>) -> Result<MemberState, OpenError> {
        let mut left = edits.into_iter().peekable();
        while left.peek().is_some() {
            let (mut rows, mut steps) = (0, Vec::new());
            while let Some(edit) = left.next_if(|edit| rows == 0 || rows + edit.rows() <= STALE_ROWS_MAX) {
                rows += edit.rows();
                steps.push(Step::Edit(edit));
            }
            let Stamp { epoch, commit } = self.state().stamp;
            let batch = Batch { stamp: Stamp { epoch, commit: commit + 1 }, steps };
            self.on_each(|member| member.apply(&batch));
            self.check_majority()?;
        }
        Ok(self.state())
    }

    /// Does something with all members at the same time. Those that fail are out.
    fn on_each(&mut self, work: impl Fn(&mut Member<D>) -> Result<(), MemberError> + Sync) {
        let done: Vec<_> = thread::scope(|scope| {
            let work = &work;
            let start = |(place, mut member): Here<D>| {
                scope.spawn(move || {
                    let result = work(&mut member);
                    (place, member, result)
                })
            };
            let threads: Vec<_> = std::mem::take(&mut self.members).into_iter().map(start).collect();
            threads.into_iter().map(|thread| thread.join().expect("a panic aborts the process")).collect()
        });
        for (place, member, result) in done {
            match result {
                Ok(()) => self.members.push((place, member)),
                Err(error) => self.failed.push(fail(&place, error)),
            }
        }
    }

    /// The members, to be served from.
    #[must_use]
    pub fn into_members(self) -> Vec<(DiskId, Member<D>)> {
        self.members.into_iter().map(|(place, member)| (place.id, member)).collect()
    }
}
