//! Other members while the store goes on.
//!
//! A member that is to **join** is filled from a snapshot of another one while commits go on, and gets every commit after that
//! snapshot; it counts for nothing yet. A change is then **proposed**: from now on a commit counts only if a majority of the
//! members and a majority of the members to be have it, and one commit is made under that rule. Now any majority of the
//! members to be knows everything that was ever acknowledged, and the labels can be written. Once they are, the change is
//! **settled**: only the new members count, and those that are not among them are cut off from their disks. Before any label
//! was written it can be **withdrawn** instead.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use uuid::Uuid;

use super::{Answer, Dropped, Link, MemberThreads, Order, Quorum, run};
use crate::base::ids::{DiskId, DiskSet};
use crate::base::limits::{STORE_FILLING_SECS, STORE_MEMBER_QUEUE};
use crate::disk::BlockDev;
use crate::store::batch::Batch;
use crate::store::fill::Fill;
use crate::store::member::{Member, MemberError, Snapshot, Tuning};
use crate::store::mirror::{MemberStatus, majority, status_of};
use crate::store::page::Stamp;
use crate::store::region::{Fuse, RegionBackend, RegionError, RegionPlace, capacity_of};

/// Why the members are not changed. They are what they were.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// A change before this one has been neither settled nor withdrawn.
    #[error(
        "an earlier change of the disks that carry the placement table has not come to its end: restart the daemon"
    )]
    Unfinished,
    /// Too few of the members to be work.
    #[error("of the {total} disks that would carry the placement table {working} work: {} are needed", majority(*total))]
    TooFewWork {
        /// Members to be.
        total: usize,
        /// Those that work.
        working: usize,
    },
    /// The members to be did not take a commit.
    #[error("the disks that would carry the placement table have not taken a commit")]
    NotTaken,
    /// No member has all that was committed.
    #[error("no disk that carries the placement table keeps up: try again in a moment")]
    NoSource,
    /// The new member could not be filled.
    #[error("cannot copy the placement table to the disk")]
    Fill(#[from] MemberError),
    /// The disk carried the placement store before, and something of that time may still be written to it.
    #[error("what the placement table last wrote to the disk has not come to its end: try again in a moment")]
    LetGoOf,
    /// No thread.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// Filling it took too long.
    #[error("copying the placement table to the disk takes longer than {secs} seconds")]
    Slow {
        /// How long.
        secs: u64,
    },
    /// The store has failed, or was closed.
    #[error("the placement store has failed, or the daemon is stopping")]
    Closed,
}

/// What the thread of a new member needs.
struct Ways {
    index: usize,
    source: Receiver<Result<Snapshot, MemberError>>,
    orders: Receiver<Order>,
    answers: Sender<Answer>,
}

/// A member that is to join.
pub struct Joiner {
    status: MemberStatus,
    fuse: Arc<Fuse>,
    start: Box<dyn FnOnce(Ways) -> std::io::Result<JoinHandle<()>> + Send>,
}

impl Joiner {
    /// A member in a metadata region that is made empty once it may join; whatever was there is lost then. `filled` is told once
    /// it has been filled.
    pub fn new<D: BlockDev + ?Sized + 'static>(
        disk: DiskId,
        device: Arc<D>,
        place: RegionPlace,
        pool: Uuid,
        filled: Sender<Result<(), MemberError>>,
    ) -> Joiner {
        let fill = Fill { used: 0, capacity: capacity_of(place) };
        let status = MemberStatus { disk, region_len: place.len, fill, stamp: Stamp::default(), lost: None };
        let fuse: Arc<Fuse> = Arc::default();
        let its = Arc::clone(&fuse);
        let start = move |ways: Ways| {
            let make = move || Ok(RegionBackend::format_with(device, place, pool, its)?);
            let work = move || match make().and_then(|region| fill_from(region, &ways)) {
                Ok(member) => {
                    let (done, result) = (None, Ok(status_of(disk, &member)));
                    // Before who waits is told: what is proposed then finds it filled.
                    let _ = ways.answers.send(Answer { member: ways.index, done, result });
                    let _ = filled.send(Ok(()));
                    run(ways.index, disk, member, &ways.orders, &ways.answers);
                }
                Err(error) => drop(filled.send(Err(error))),
            };
            std::thread::Builder::new().name("spanblk-storej".to_owned()).spawn(work)
        };
        Joiner { status, fuse, start: Box::new(start) }
    }

    /// Bytes of its region.
    #[must_use]
    pub fn region_len(&self) -> u64 {
        self.status.region_len
    }
}

fn fill_from<D: BlockDev + ?Sized + 'static>(region: RegionBackend<D>, ways: &Ways) -> Result<Member<D>, MemberError> {
    let mut member = Member::create_in(region, Tuning::default())?;
    let patience = Duration::from_secs(STORE_FILLING_SECS);
    let source = ways.source.recv_timeout(patience).map_err(|_| MemberError::Region(RegionError::Closed))??;
    member.copy_from(&source)?;
    Ok(member)
}

impl MemberThreads {
    /// Lets a member be filled. It gets every commit from now on, and counts once it has been proposed.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn join(&mut self, joiner: Joiner) -> Result<(), ChangeError> {
        if self.rule.next.is_some() {
            return Err(ChangeError::Unfinished);
        }
        // A write that hangs comes through some day: it must not meet what is written there from now on.
        self.gone.retain(|(_, fuse)| fuse.strong_count() > 0);
        let disk = joiner.status.disk;
        let lives_on = self.gone.iter().any(|(gone, _)| *gone == disk);
        if lives_on || self.links().any(|link| link.status.disk == disk) {
            return Err(ChangeError::LetGoOf);
        }
        let (snapshot, source) = crossbeam_channel::bounded(1);
        let keeps_up = |link: &&Link| link.status.lost.is_none() && !link.filling;
        let from = self.links().filter(keeps_up).min_by_key(|link| link.sent.len()).ok_or(ChangeError::NoSource)?;
        // From here on every commit is in the snapshot or in the orders.
        from.orders.try_send(Order::Snapshot(snapshot)).map_err(|_| ChangeError::NoSource)?;
        let (orders, receiver) = crossbeam_channel::bounded(STORE_MEMBER_QUEUE);
        let Joiner { status, fuse, start } = joiner;
        let ways = Ways { index: self.links.len(), source, orders: receiver, answers: self.answer.clone() };
        let thread = Some(start(ways).map_err(ChangeError::Thread)?);
        self.links.push(Some(Link { filling: true, ..Link::new(status, orders, fuse, thread) }));
        Ok(())
    }

    /// Whether other members can be proposed.
    ///
    /// # Errors
    /// Why not.
    pub fn check_proposal(&mut self, members: DiskSet, dropped: &mut Vec<Dropped>) -> Result<(), ChangeError> {
        if self.rule.next.is_some() {
            return Err(ChangeError::Unfinished);
        }
        self.take_all(Stamp::default(), &mut DiskSet::default(), dropped);
        let keeping_up = self.links().filter(|link| link.status.lost.is_none() && !link.filling);
        let working = DiskSet(keeping_up.map(|link| link.status.disk).collect::<DiskSet>().0 & members.0);
        let total = members.len();
        let enough = Quorum::new(members, total).is_reached(working);
        if enough { Ok(()) } else { Err(ChangeError::TooFewWork { total, working: working.len() }) }
    }

    /// Proposes other members, with `mark` as the first commit under both rules. If the others do not take it, nothing is
    /// proposed. Returns also whether a majority of the current ones has it.
    pub fn propose(
        &mut self,
        members: DiskSet,
        mark: &Arc<Batch>,
        dropped: &mut Vec<Dropped>,
    ) -> (bool, Result<(), ChangeError>) {
        let next = Quorum::new(members, members.len());
        self.rule.next = Some(next);
        let mut have = self.send(mark, dropped);
        self.wait(mark.stamp, &mut have, dropped);
        if next.is_reached(have) {
            return (self.rule.current.is_reached(have), Ok(()));
        }
        self.withdraw();
        self.wait(mark.stamp, &mut have, dropped);
        (self.rule.current.is_reached(have), Err(ChangeError::NotTaken))
    }

    /// Nobody joins, unless a proposal says so.
    pub fn dismiss(&mut self) {
        if self.rule.next.is_none() {
            self.leave();
        }
    }

    /// The proposal is void, and nobody joins.
    pub fn withdraw(&mut self) {
        self.rule.next = None;
        self.leave();
    }

    /// The proposed members are the members. False if nothing was proposed.
    pub fn settle(&mut self) -> bool {
        let Some(next) = self.rule.next.take() else { return false };
        self.rule.current = next;
        self.leave();
        true
    }

    /// Cuts those off that do not belong to the store.
    fn leave(&mut self) {
        for place in &mut self.links {
            if let Some(link) = place.take_if(|link| !self.rule.current.members.contains(link.status.disk)) {
                // Its thread ends by itself, once its disk lets it.
                link.fuse.cut();
                self.gone.push((link.status.disk, Arc::downgrade(&link.fuse)));
            }
        }
    }
}
