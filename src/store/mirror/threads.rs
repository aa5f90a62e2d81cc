//! A thread per member.
//!
//! Each member gets every batch through a queue of its own. A commit returns as soon as a majority has answered; whoever is
//! slower catches up in its own time, with many batches in one transaction: so a member on a disk that others keep busy does not
//! hold up VHDs that have nothing there. That has limits: the others wait for a member that is too far behind as long as it gets
//! on, and one that has not answered for too long is given up. It is cut off from its disk first, so that it cannot write later.
//!
//! [`change`]: other members while the store goes on.

pub mod change;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};

use super::quorum::{Quorum, Rule};
use super::{Applied, Dropped, Lost, MemberStatus, Members, status_of};
use crate::base::clock::{self, Nanos};
use crate::base::ids::{DiskId, DiskSet};
use crate::base::limits::{STORE_BEHIND_SECS, STORE_MEMBER_QUEUE, STORE_MEMBER_TIMEOUT_SECS, STORE_ROWS_BEHIND_MAX};
use crate::disk::BlockDev;
use crate::store::batch::{Batch, rows_max};
use crate::store::dump::{self, DumpError};
use crate::store::fill::Fill;
use crate::store::member::{Member, MemberError, Snapshot};
use crate::store::page::Stamp;
use crate::store::region::Fuse;

/// How long a store that is closed waits for members that are behind.
const DROP_PATIENCE: Duration = Duration::from_secs(2);

/// How long commits wait for a member that is too far behind and does not get on.
const BEHIND_PATIENCE: Duration = Duration::from_secs(STORE_BEHIND_SECS);

/// How long they wait in all for one that gets on, and never catches up: so many times as long as for one that hangs.
const BEHIND_TIMES: u32 = 4;

/// A transaction of a member that catches up should take about as long at most.
const TRANSACTION_TIME: Duration = Duration::from_secs(1);

/// To a member's thread.
enum Order {
    Apply(Arc<Batch>),
    Dump(Sender<Result<String, DumpError>>),
    /// Tell what you have after the batches before this order.
    Snapshot(Sender<Result<Snapshot, MemberError>>),
}

/// From a member's thread: the answer to its oldest unanswered batch, or (without a stamp) that it has measured itself.
struct Answer {
    member: usize,
    done: Option<Stamp>,
    result: Result<MemberStatus, MemberError>,
}

/// A batch that has not been answered.
struct Sent {
    /// When it was sent.
    at: Nanos,
    /// Rows that it changes.
    rows: usize,
}

struct Link {
    /// What it said last.
    status: MemberStatus,
    orders: Sender<Order>,
    /// The unanswered batches.
    sent: VecDeque<Sent>,
    /// Rows that they change, all together.
    rows_behind: usize,
    /// When it answered last.
    answered: Nanos,
    /// How long commits have waited for it since it was last far from being too far behind.
    held_up: Duration,
    fuse: Arc<Fuse>,
    thread: Option<JoinHandle<()>>,
    /// It is being filled, and may take its time.
    filling: bool,
}

impl Link {
    fn new(status: MemberStatus, orders: Sender<Order>, fuse: Arc<Fuse>, thread: Option<JoinHandle<()>>) -> Link {
        Link {
            status,
            orders,
            sent: VecDeque::new(),
            rows_behind: 0,
            answered: Nanos(0),
            held_up: Duration::ZERO,
            fuse,
            thread,
            filling: false,
        }
    }

    /// Since when an answer is due.
    fn waited_for_since(&self) -> Nanos {
        self.sent.front().map_or(self.answered, |sent| sent.at).max(self.answered)
    }
}

/// Members that have a thread each.
pub struct MemberThreads {
    /// `None`: it has left.
    links: Vec<Option<Link>>,
    /// The fuses of those that have left, as long as something of theirs is under way.
    gone: Vec<(DiskId, Weak<Fuse>)>,
    answer: Sender<Answer>,
    answers: Receiver<Answer>,
    rule: Rule,
    timeout: Duration,
    queue: usize,
    rows_behind_max: usize,
}

impl MemberThreads {
    /// Starts the threads. `total` members belong to the store, `members` of them are here.
    ///
    /// # Errors
    /// No thread.
    pub fn start<D: BlockDev + ?Sized + 'static>(
        members: Vec<(DiskId, Member<D>)>,
        total: usize,
    ) -> std::io::Result<MemberThreads> {
        MemberThreads::start_with(members, total, Duration::from_secs(STORE_MEMBER_TIMEOUT_SECS), STORE_MEMBER_QUEUE)
    }

    fn start_with<D: BlockDev + ?Sized + 'static>(
        members: Vec<(DiskId, Member<D>)>,
        total: usize,
        timeout: Duration,
        queue: usize,
    ) -> std::io::Result<MemberThreads> {
        let (answer, answers) = crossbeam_channel::unbounded();
        let here: DiskSet = members.iter().map(|(disk, _)| *disk).collect();
        let rule = Rule { current: Quorum::new(here, total), next: None };
        let mut links = Vec::new();
        for (index, (disk, member)) in members.into_iter().enumerate() {
            let (orders, receiver) = crossbeam_channel::bounded(queue);
            let status = status_of(disk, &member);
            let fuse = member.fuse();
            let answer = answer.clone();
            let thread = std::thread::Builder::new()
                .name(format!("spanblk-store{index}"))
                .spawn(move || run(index, disk, member, &receiver, &answer))?;
            links.push(Some(Link::new(status, orders, fuse, Some(thread))));
        }
        Ok(MemberThreads {
            links,
            gone: Vec::new(),
            answer,
            answers,
            rule,
            timeout,
            queue,
            rows_behind_max: STORE_ROWS_BEHIND_MAX,
        })
    }

    /// Those that have not left.
    fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().flatten()
    }

    fn drop_member(&mut self, index: usize, why: Lost, dropped: &mut Vec<Dropped>) {
        let Some(link) = self.links[index].as_mut().filter(|link| link.status.lost.is_none()) else { return };
        link.fuse.cut();
        link.status.lost = Some(why.to_string());
        // It may hang for ever: nobody waits for its end.
        link.thread = None;
        dropped.push(Dropped { disk: link.status.disk, why, sync_failed: link.fuse.sync_failed() });
    }

    /// Returns those that have answered already.
    fn send(&mut self, batch: &Arc<Batch>, dropped: &mut Vec<Dropped>) -> DiskSet {
        let mut have = DiskSet::default();
        let members = 0..self.links.len();
        // Those that are too far behind come last, so that the others have the batch meanwhile.
        let behind: Vec<usize> = members.filter(|&index| !self.send_to(index, batch, &mut have, dropped)).collect();
        for index in behind {
            while !self.send_to(index, batch, &mut have, dropped) {
                self.let_catch_up(index, batch.stamp, &mut have, dropped);
            }
        }
        have
    }

    /// False if the member is too far behind. One that is lost is done with.
    fn send_to(&mut self, index: usize, batch: &Arc<Batch>, have: &mut DiskSet, dropped: &mut Vec<Dropped>) -> bool {
        let Some(link) = self.links[index].as_mut().filter(|link| link.status.lost.is_none()) else { return true };
        let rows = batch.rows();
        if link.rows_behind > 0 && link.rows_behind + rows > self.rows_behind_max && !link.filling {
            return false;
        }
        match link.orders.try_send(Order::Apply(Arc::clone(batch))) {
            Ok(()) => {
                link.sent.push_back(Sent { at: clock::now(), rows });
                link.rows_behind += rows;
            }
            Err(TrySendError::Full(_)) => return false,
            Err(TrySendError::Disconnected(_)) => {
                // Why it ended is in its last answer.
                self.take_all(batch.stamp, have, dropped);
                self.drop_member(index, Lost::Ended, dropped);
            }
        }
        true
    }

    /// Waits until a member that is too far behind has got on, or gives it up. One without which nothing would be durable any more
    /// is given up only if it hangs.
    fn let_catch_up(&mut self, index: usize, stamp: Stamp, have: &mut DiskSet, dropped: &mut Vec<Dropped>) {
        let begun = clock::now();
        let Some(link) = &self.links[index] else { return };
        let (commits, answered) = (link.sent.len(), link.waited_for_since());
        let mut others = self.working();
        others.remove(link.status.disk);
        let is_needed = !self.rule.is_met(others);
        let patience = match (link.filling, is_needed) {
            (true, _) => Duration::ZERO,
            (false, true) => self.timeout,
            (false, false) => self.timeout.min(BEHIND_PATIENCE),
        };
        let left = Duration::from_nanos(answered.after(patience).since(begun));
        match self.answers.recv_timeout(left) {
            Ok(answer) => self.take(answer, stamp, have, dropped),
            Err(_) => return self.drop_member(index, Lost::Behind { commits }, dropped),
        }
        let Some(link) = &mut self.links[index] else { return };
        link.held_up += Duration::from_nanos(clock::now().since(begun));
        if link.held_up >= self.timeout * BEHIND_TIMES && !is_needed {
            self.drop_member(index, Lost::Behind { commits }, dropped);
        }
    }

    /// Takes in the answers that are there; adds those to `have` that say that `stamp` is durable.
    fn take_all(&mut self, stamp: Stamp, have: &mut DiskSet, dropped: &mut Vec<Dropped>) {
        while let Ok(answer) = self.answers.try_recv() {
            self.take(answer, stamp, have, dropped);
        }
    }

    fn take(&mut self, answer: Answer, stamp: Stamp, have: &mut DiskSet, dropped: &mut Vec<Dropped>) {
        let link = self.links[answer.member].as_mut();
        let Some(link) = link.filter(|link| link.status.lost.is_none()) else { return };
        match answer.done {
            Some(_) => {
                link.rows_behind -= link.sent.pop_front().map_or(0, |sent| sent.rows);
                link.answered = clock::now();
                if link.sent.len() <= self.queue / 2 && link.rows_behind <= self.rows_behind_max / 2 {
                    link.held_up = Duration::ZERO;
                }
            }
            // It has been filled: from now on it has to keep up.
            None if std::mem::take(&mut link.filling) => link.sent.iter_mut().for_each(|sent| sent.at = clock::now()),
            None => {}
        }
        match answer.result {
            Ok(status) => {
                if answer.done == Some(stamp) {
                    have.insert(status.disk);
                }
                link.status = status;
            }
            Err(error) => self.drop_member(answer.member, Lost::Failed(error), dropped),
        }
    }

    fn drop_hung(&mut self, dropped: &mut Vec<Dropped>) {
        let now = clock::now();
        for index in 0..self.links.len() {
            let Some(link) = self.links[index].as_ref().filter(|link| !link.filling) else { continue };
            if !link.sent.is_empty() && u128::from(now.since(link.waited_for_since())) >= self.timeout.as_nanos() {
                self.drop_member(index, Lost::Hung { secs: self.timeout.as_secs() }, dropped);
            }
        }
    }

    fn working(&self) -> DiskSet {
        self.links().filter(|link| link.status.lost.is_none()).map(|link| link.status.disk).collect()
    }

    /// Waits until a commit counts, or cannot count any more. `have`: the members that have it.
    fn wait(&mut self, stamp: Stamp, have: &mut DiskSet, dropped: &mut Vec<Dropped>) {
        while !self.rule.is_met(*have) && self.rule.is_met(self.working()) {
            // Who is behind and gets on is waited for, however long that takes: without it nothing would be durable any more.
            let owing =
                self.links().filter(|link| link.status.lost.is_none() && !link.filling && !link.sent.is_empty());
            let Some(due) = owing.map(|link| link.waited_for_since().after(self.timeout)).min() else { break };
            match self.answers.recv_timeout(Duration::from_nanos(due.since(clock::now()))) {
                Ok(answer) => self.take(answer, stamp, have, dropped),
                Err(RecvTimeoutError::Timeout) => self.drop_hung(dropped),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.take_all(stamp, have, dropped);
        self.drop_hung(dropped);
    }
}

impl Members for MemberThreads {
    fn apply(&mut self, batch: &Arc<Batch>) -> Applied {
        let mut dropped = Vec::new();
        let mut have = self.send(batch, &mut dropped);
        self.wait(batch.stamp, &mut have, &mut dropped);
        Applied { committed: self.rule.is_met(have), dropped }
    }

    fn status(&self) -> Vec<MemberStatus> {
        self.links().map(|link| link.status.clone()).collect()
    }

    fn needed(&self) -> usize {
        self.rule.needed()
    }

    fn dump(&mut self) -> Result<String, DumpError> {
        let upright = |link: &&Link| link.status.lost.is_none() && link.sent.is_empty() && !link.filling;
        let link = self.links().find(upright).ok_or(DumpError::NoMember)?;
        let (answer, waiting) = crossbeam_channel::bounded(1);
        link.orders.try_send(Order::Dump(answer)).map_err(|_| DumpError::NoMember)?;
        waiting.recv_timeout(self.timeout).map_err(|_| DumpError::NoMember)?
    }
}

impl Drop for MemberThreads {
    fn drop(&mut self) {
        // The slower members are mostly only a moment behind, and what they miss now costs a comparison of all rows later.
        let deadline = clock::now().after(DROP_PATIENCE.min(self.timeout));
        while self.links().any(|link| link.status.lost.is_none() && !link.sent.is_empty()) {
            let left = Duration::from_nanos(deadline.since(clock::now()));
            let Ok(answer) = self.answers.recv_timeout(left) else { break };
            self.take(answer, Stamp::default(), &mut DiskSet::default(), &mut Vec::new());
        }
        for link in self.links.drain(..).flatten() {
            drop(link.orders);
            if let Some(thread) = link.thread
                && link.sent.is_empty()
                && !link.filling
            {
                // A panic aborts the process: a thread that ends has ended well.
                let _ = thread.join();
            } else {
                link.fuse.cut();
            }
        }
    }
}

fn run<D: BlockDev + ?Sized + 'static>(
    index: usize,
    disk: DiskId,
    mut member: Member<D>,
    orders: &Receiver<Order>,
    answers: &Sender<Answer>,
) {
    // The receiver goes away when the store is closed.
    let tell = |done, result| answers.send(Answer { member: index, done, result }).is_ok();
    let measured = member.loaded().map(|()| status_of(disk, &member));
    if !tell(None, measured) {
        return;
    }
    let mut pace = Pace::new(rows_max(member.region_len()));
    let mut next = None;
    while let Some(order) = next.take().or_else(|| orders.recv().ok()) {
        match order {
            Order::Apply(first) => {
                let (batches, other) = take_batches(first, orders, pace.rows(member.fill()));
                next = other;
                let begun = clock::now();
                let applied = member.apply_all(&batches);
                pace.took(Duration::from_nanos(clock::now().since(begun)));
                let status = status_of(disk, &member);
                if let Err(error) = applied {
                    tell(Some(batches[0].stamp), Err(error));
                    return;
                }
                if !batches.iter().all(|batch| tell(Some(batch.stamp), Ok(status.clone()))) {
                    return;
                }
            }
            Order::Dump(answer) => {
                let _ = answer.send(dump::dump(&member));
            }
            Order::Snapshot(answer) => {
                let _ = answer.send(member.snapshot());
            }
        }
    }
}

/// How many rows a member writes in one transaction. Nobody sees that it gets on before the transaction ends, so that must not take long.
struct Pace {
    rows: usize,
    most: usize,
}

impl Pace {
    /// Where it begins: a few commits of a guest.
    const FIRST: usize = 64;

    fn new(most: usize) -> Pace {
        Pace { rows: Pace::FIRST.min(most), most }
    }

    /// So many rows may be put together. A transaction cannot use what it frees itself: where room is short, none are.
    fn rows(&self, fill: Fill) -> usize {
        if fill.used > fill.capacity / 4 * 3 { 0 } else { self.rows }
    }

    fn took(&mut self, time: Duration) {
        let rows = if time < TRANSACTION_TIME { self.rows * 2 } else { self.rows / 2 };
        self.rows = rows.clamp(1, self.most);
    }
}

/// Takes the batches that wait behind `first`, as many as one commit has room for; also an order that is not to be mixed with them.
fn take_batches(first: Arc<Batch>, orders: &Receiver<Order>, rows_max: usize) -> (Vec<Arc<Batch>>, Option<Order>) {
    let mut rows = first.rows();
    let mut batches = vec![first];
    while let Ok(order) = orders.try_recv() {
        match order {
            Order::Apply(batch) if rows + batch.rows() <= rows_max => {
                rows += batch.rows();
                batches.push(batch);
            }
            other => return (batches, Some(other)),
        }
    }
    (batches, None)
}
