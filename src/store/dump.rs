//! The metadata as text, and back: JSON, one object a line.
//!
//! ```text
//! {"spanblk_metadata_dump":1,"pool":{...}}
//! {"vhd":{...}}                                                        one per VHD
//! {"job":{...}}                                                        one per job
//! {"vm":{...}}                                                         one per VM
//! {"policy":{...}}                                                     if anything is wanted of it
//! {"page":[VHD,PAGE],"intent":true,"extents":[[PLACE,GENERATION,PRESENT,[[DISK,SLOT,STATE],...]],...]}
//! {"end":{"vhds":N,"jobs":N,"vms":N,"pages":N}}
//! ```
//!
//! `intent` is left out if it is false. `PRESENT` is the mask of present blocks as a number, `STATE` is `in-sync`, `syncing` or `stale`. Extents of which the
//! table says nothing are left out. The last line shows that the dump is whole; it
//! leaves out `jobs` and `vms` if there are none, as dumps from before there were any. Checksums of blocks are not in it: those of a pool that was
//! restored are computed when its VHDs are scrubbed.

#[cfg(test)]
mod tests;

use std::io::BufRead;

use serde::{Deserialize, Serialize};

use crate::base::ids::{DiskId, VhdId};
use crate::base::limits::{DISKS_MAX, REPLICAS_MAX};
use crate::base::units::{BlockMask, Generation, SlotIndex};
use crate::disk::BlockDev;
use crate::placement::job::JobRecord;
use crate::placement::record::{PoolRecord, RecordError, VhdRecord};
use crate::placement::vm::VmRecord;
use crate::placement::{Replica, ReplicaSet, ReplicaState};

use super::batch::{Batch, ExtentEdit, Step};
use super::edit::StoreEdit;
use super::member::{Member, MemberError};
use super::page::{self, ExtentRow, PAGE_EXTENTS, PageKey};

const VERSION: u32 = 1;

/// Rows put back in one commit.
const ROWS_PER_COMMIT: usize = 1024;

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// No member of the store is up to date and at hand.
    #[error("no copy of the placement store can be read now: try again, and look at 'spanblk pool show'")]
    NoMember,
    /// The member said.
    #[error("the placement store cannot be read")]
    Member(#[from] MemberError),
}

/// Why a dump cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It cannot be read.
    #[error("cannot read the dump")]
    Read(#[from] std::io::Error),
    /// A line is not what it should be.
    #[error("line {line} of the dump is not valid")]
    Line {
        /// Its number, from 1.
        line: u64,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A line makes no sense.
    #[error("line {line} of the dump is not valid: {what}")]
    Nonsense {
        /// Its number, from 1.
        line: u64,
        /// Why.
        what: &'static str,
    },
    /// It was written by another version.
    #[error(
        "the dump has version {found}, this program knows version {VERSION}: use the version of spanblk that wrote it, or a newer one"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// A record in it is not valid.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// It ends too early.
    #[error("the dump is cut off: its last line is missing or does not match the rest")]
    CutOff,
    /// The store said.
    #[error("cannot write the placement store")]
    Member(#[from] MemberError),
    /// It could not be made.
    #[error(transparent)]
    Store(#[from] super::open::OpenError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    spanblk_metadata_dump: u32,
    pool: PoolRecord,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    InSync,
    Syncing,
    Stale,
}

type ExtentText = (usize, u32, u32, Vec<(DiskId, u32, State)>);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum End {
    #[serde(rename = "end")]
    Counts {
        /// VHD records.
        vhds: u64,
        /// Job records.
        #[serde(default, skip_serializing_if = "is_zero")]
        jobs: u64,
        /// VM records.
        #[serde(default, skip_serializing_if = "is_zero")]
        vms: u64,
        /// Rows of pages.
        pages: u64,
    },
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Page(PageText),
    Vhd(VhdText),
    Job(JobText),
    Vm(VmText),
    Policy(PolicyText),
    End(End),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PageText {
    page: (VhdId, u32),
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    intent: bool,
    extents: Vec<ExtentText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VhdText {
    vhd: VhdRecord,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobText {
    job: JobRecord,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VmText {
    vm: VmRecord,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyText {
    policy: serde_json::Value,
}

fn push_line(text: &mut String, line: &impl Serialize) {
    text.push_str(&serde_json::to_string(line).expect("plain data is always JSON"));
    text.push('\n');
}

/// Everything a member has, as text.
///
/// # Errors
/// The member's.
pub fn dump<D: BlockDev + ?Sized + 'static>(member: &Member<D>) -> Result<String, DumpError> {
    let mut text = String::new();
    push_line(&mut text, &Head { spanblk_metadata_dump: VERSION, pool: member.pool()? });
    let records = member.vhds()?;
    let vhds = records.len() as u64;
    for vhd in records {
        push_line(&mut text, &VhdText { vhd });
    }
    let records = member.jobs()?;
    let jobs = records.len() as u64;
    for job in records {
        push_line(&mut text, &JobText { job });
    }
    let records = member.vms()?;
    let vms = records.len() as u64;
    for vm in records {
        push_line(&mut text, &VmText { vm });
    }
    if let Some(policy) = member.policy()? {
        let policy = serde_json::from_str(&policy).map_err(|_| MemberError::Damaged("policy"))?;
        push_line(&mut text, &PolicyText { policy });
    }
    let mut pages = 0;
    member.for_each_row(|key, bytes| {
        let mut extents = Vec::new();
        let each = |place, extent: ExtentRow| {
            extents.push((place, extent.generation.0, extent.present.0, replicas_text(&extent)));
        };
        page::visit(bytes, each).map_err(|source| MemberError::Page { key, source })?;
        if !extents.is_empty() {
            pages += 1;
            push_line(&mut text, &PageText { page: (key.vhd, key.page), intent: page::intends(bytes), extents });
        }
        Ok(())
    })?;
    push_line(&mut text, &End::Counts { vhds, jobs, vms, pages });
    Ok(text)
}

fn replicas_text(extent: &ExtentRow) -> Vec<(DiskId, u32, State)> {
    let text = |replica: Replica| {
        let state = match replica.state {
            ReplicaState::InSync => State::InSync,
            ReplicaState::Syncing => State::Syncing,
            ReplicaState::Stale => State::Stale,
            ReplicaState::Sealing => unreachable!("a row never has one"),
        };
        (replica.disk, replica.slot.0, state)
    };
    extent.replicas.iter().map(text).collect()
}

/// The pool record of a dump: for making the store that it is to be restored into.
///
/// # Errors
/// The dump does not begin as it should.
pub fn pool_of(first_line: &str) -> Result<PoolRecord, RestoreError> {
    #[derive(Deserialize)]
    struct Version {
        spanblk_metadata_dump: u32,
    }
    let syntax = |source| RestoreError::Line { line: 1, source };
    let Version { spanblk_metadata_dump: found } = serde_json::from_str(first_line).map_err(syntax)?;
    if found != VERSION {
        return Err(RestoreError::Version { found });
    }
    let head: Head = serde_json::from_str(first_line).map_err(syntax)?;
    // The record's own checks are in its decoder.
    Ok(PoolRecord::decode(&head.pool.encode())?)
}

/// Puts a dump into a store that has nothing but a pool record. `commit` makes a batch durable; stamps go up from the one
/// after `batch.stamp` of the empty store.
///
/// # Errors
/// The dump is not valid, or `commit` fails; what has been committed by then stays.
pub fn restore(
    dump: impl BufRead,
    mut commit: impl FnMut(Vec<Step>) -> Result<(), RestoreError>,
) -> Result<PoolRecord, RestoreError> {
    let mut lines = (1u64..).zip(dump.lines());
    let (_, first) = lines.next().ok_or(RestoreError::CutOff)?;
    let pool = pool_of(&first?)?;
    commit(vec![Step::Edit(StoreEdit::PutPool(pool.clone()))])?;
    let (mut vhds, mut jobs, mut vms, mut pages) = (0, 0, 0, 0);
    let mut steps: Vec<Step> = Vec::new();
    let mut end = None;
    for (line, text) in lines {
        let text = text?;
        if end.is_some() {
            return Err(RestoreError::Nonsense { line, what: "it comes after the end" });
        }
        match serde_json::from_str(&text).map_err(|source| RestoreError::Line { line, source })? {
            Line::Vhd(VhdText { vhd }) => {
                vhds += 1;
                steps.push(Step::Edit(StoreEdit::PutVhd(VhdRecord::decode(&vhd.encode())?)));
            }
            Line::Job(JobText { job }) => {
                jobs += 1;
                steps.push(Step::Edit(StoreEdit::PutJob(JobRecord::decode(&job.encode())?)));
            }
            Line::Vm(VmText { vm }) => {
                vms += 1;
                steps.push(Step::Edit(StoreEdit::PutVm(VmRecord::decode(&vm.encode())?)));
            }
            Line::Policy(PolicyText { policy }) => {
                steps.push(Step::Edit(StoreEdit::PutPolicy(policy.to_string())));
            }
            Line::Page(page) => {
                pages += 1;
                steps.push(Step::Extents(edits_of(&page).map_err(|what| RestoreError::Nonsense { line, what })?));
                if page.intent {
                    let (vhd, page) = page.page;
                    steps.push(Step::Edit(StoreEdit::Intend { vhd, pages: vec![page], intend: true }));
                }
            }
            Line::End(End::Counts { vhds, jobs, vms, pages }) => end = Some((vhds, jobs, vms, pages)),
        }
        if steps.len() >= ROWS_PER_COMMIT {
            commit(std::mem::take(&mut steps))?;
        }
    }
    if end != Some((vhds, jobs, vms, pages)) {
        return Err(RestoreError::CutOff);
    }
    commit(steps)?;
    Ok(pool)
}

fn edits_of(page: &PageText) -> Result<Vec<ExtentEdit>, &'static str> {
    let key = PageKey { vhd: page.page.0, page: page.page.1 };
    let mut edits = Vec::new();
    for (place, generation, present, list) in &page.extents {
        if *place >= PAGE_EXTENTS || key.extent(*place).is_none() {
            return Err("no such extent");
        }
        if generation & 1 != 0 {
            return Err("an odd generation");
        }
        if list.len() > REPLICAS_MAX || (list.is_empty() && *present != 0) {
            return Err("an impossible number of replicas");
        }
        let mut replicas = ReplicaSet::ABSENT;
        for (disk, slot, state) in list {
            if usize::from(disk.0) >= DISKS_MAX || replicas.on(*disk).is_some() {
                return Err("an impossible disk");
            }
            let state = match state {
                State::InSync => ReplicaState::InSync,
                State::Syncing => ReplicaState::Syncing,
                State::Stale => ReplicaState::Stale,
            };
            replicas.push(Replica { disk: *disk, slot: SlotIndex(*slot), state });
        }
        let generation = Generation(*generation);
        let absent = replicas.is_absent();
        edits.push(ExtentEdit {
            key,
            place: *place,
            freed: absent.then_some(generation),
            cleared: Vec::new(),
            generation,
            replicas: (!absent).then_some(replicas),
            present: BlockMask(*present),
        });
    }
    Ok(edits)
}

/// [`restore`] into one member after another, as a store that has just been made.
///
/// # Errors
/// As [`restore`].
pub fn restore_into<D: BlockDev + ?Sized + 'static>(
    dump: impl BufRead,
    members: &mut [(DiskId, Member<D>)],
) -> Result<PoolRecord, RestoreError> {
    restore(dump, |steps| {
        for (_, member) in members.iter_mut() {
            let mut stamp = member.state().stamp;
            stamp.commit += 1;
            member.apply(&Batch { stamp, steps: steps.clone() })?;
        }
        Ok(())
    })
}
