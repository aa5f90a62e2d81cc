//! The committer's thread: one queue in, answers out.
//!
//! It takes everything that is in the queue, makes one commit of it, and answers: many flushes share a commit without waiting
//! for each other. What nobody asks for is committed every second, as far as its data is synced; without such the thread sleeps.

mod change;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::base::clock::{self, Nanos};
use crate::base::ids::{DiskId, VhdId};
use crate::base::limits::{DISKS_MAX, STORE_COMMIT_INTERVAL_MILLIS};
use crate::shared::disk::SyncPoint;
use crate::shared::{DiskState, VhdState};

use super::change::{Change, CommitRequest};
use super::committer::{Committer, Outcome};
use super::dump::DumpError;
use super::edit::{EditId, StoreEdit, StoreReport};
use super::fill::Fill;
use super::history::HistoryRow;
use super::mirror::threads::MemberThreads;
use super::mirror::threads::change::ChangeError;
use super::mirror::{self, Dropped, MemberStatus, Members};
use super::note::Note;
use super::page::Stamp;
use change::MembersOrder;

/// Messages taken before a commit, so that one that is asked for is not put off for ever.
const MESSAGES_PER_COMMIT: usize = 65_536;

/// A change of the fill by one part in so many is reported.
const FILL_STEPS: u64 = 100;

/// Where the committer's answers go.
pub trait Replies: Send {
    /// Nobody: the store has this commit durably, and nobody has been told yet.
    fn durable(&mut self, stamp: Stamp);

    /// To the reactor that asked.
    fn committed(&mut self, request: CommitRequest, ok: bool);

    /// To the owner.
    fn report(&mut self, report: StoreReport);
}

enum Message {
    Change(Change),
    Request(CommitRequest),
    Edit(EditId, Vec<StoreEdit>),
    Excuse(VhdId, SyncPoint),
    Note(Note),
    History(Vec<HistoryRow>),
    CommitSoon,
    OpenVhd(Weak<VhdState>),
    CloseVhd(VhdId),
    AddDisk(Arc<DiskState>),
    Dump(Sender<Result<String, DumpError>>),
    Members(MembersOrder, Sender<Result<(), ChangeError>>),
    Alive(Sender<()>),
    Stop,
}

/// The store, for people.
#[derive(Clone, Debug, Default)]
pub struct StoreStatus {
    /// The last commit.
    pub stamp: Stamp,
    /// No majority works: nothing is committed until the store is opened again.
    pub failed: bool,
    /// After the last commit there was something left that waits for a sync.
    pub pending: bool,
    /// The members that were there when it was opened.
    pub members: Vec<MemberStatus>,
    /// How many must have a commit for it to count: a majority of all members, here or not.
    pub needed: usize,
}

/// The way to the committer. Messages of one sender arrive in order; nothing here waits for a disk (but
/// [`StoreHandle::dump`] and changes of the members).
#[derive(Clone)]
pub struct StoreHandle {
    messages: Sender<Message>,
    status: Arc<Mutex<StoreStatus>>,
}

impl StoreHandle {
    /// Hands over a change. `change_handed_over` of the VHD has been called.
    pub fn change(&self, change: Change) {
        self.send(Message::Change(change));
    }

    /// Asks for a commit, to be answered.
    pub fn commit(&self, request: CommitRequest) {
        self.send(Message::Request(request));
    }

    /// Hands over rows to write in one commit, to be answered.
    pub fn edit(&self, id: EditId, rows: Vec<StoreEdit>) {
        self.send(Message::Edit(id, rows));
    }

    /// Hands over samples and heat, to be written when there is a commit, or nobody needs one: see [`super::history`].
    pub fn history(&self, rows: Vec<HistoryRow>) {
        self.send(Message::History(rows));
    }

    /// See [`Committer::excuse`].
    pub fn excuse(&self, vhd: VhdId, point: SyncPoint) {
        self.send(Message::Excuse(vhd, point));
    }

    /// Hands over notes, to be written with a commit that comes soon. Nobody is told whether they have been: they may be lost if the
    /// daemon is killed, or if there is little room.
    pub fn note(&self, notes: impl IntoIterator<Item = Note>) {
        notes.into_iter().for_each(|note| self.send(Message::Note(note)));
    }

    /// Asks for a commit, not to be answered.
    pub fn commit_soon(&self) {
        self.send(Message::CommitSoon);
    }

    /// Tells of a VHD, before its first change: its changes are counted there.
    pub fn open_vhd(&self, vhd: &Arc<VhdState>) {
        self.send(Message::OpenVhd(Arc::downgrade(vhd)));
    }

    /// Tells that a VHD is gone.
    pub fn close_vhd(&self, vhd: VhdId) {
        self.send(Message::CloseVhd(vhd));
    }

    /// Tells of a disk, before the first change that needs one of its syncs.
    pub fn add_disk(&self, disk: &Arc<DiskState>) {
        self.send(Message::AddDisk(Arc::clone(disk)));
    }

    /// The store as of its last commit.
    #[must_use]
    pub fn status(&self) -> StoreStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Messages that the committer has not taken yet: grows while it waits for a disk.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.messages.len()
    }

    /// A metadata dump of the last commit. Waits for a member's disk, and commits wait meanwhile.
    ///
    /// # Errors
    /// No member could.
    pub fn dump(&self) -> Result<String, DumpError> {
        let (answer, waiting) = crossbeam_channel::bounded(1);
        self.send(Message::Dump(answer));
        waiting.recv().map_err(|_| DumpError::NoMember)?
    }

    /// Has the committer answer when it comes to this. A disk that hangs may keep it for [`STORE_MEMBER_TIMEOUT_SECS`].
    ///
    /// [`STORE_MEMBER_TIMEOUT_SECS`]: crate::base::limits::STORE_MEMBER_TIMEOUT_SECS
    pub fn alive(&self, answer: Sender<()>) {
        self.send(Message::Alive(answer));
    }

    /// Commits what can be committed, and ends the thread.
    pub fn stop(&self) {
        self.send(Message::Stop);
    }

    fn send(&self, message: Message) {
        // The committer ends last; after it, nobody waits for an answer any more.
        let _ = self.messages.send(message);
    }
}

#[cfg(test)]
impl StoreHandle {
    /// A store without members that nobody is at work in: what it is handed is lost.
    pub fn unheard() -> StoreHandle {
        let status =
            StoreStatus { stamp: Stamp::default(), failed: false, pending: false, members: Vec::new(), needed: 1 };
        StoreHandle { messages: crossbeam_channel::unbounded().0, status: Arc::new(Mutex::new(status)) }
    }
}

/// Starts the committer's thread. The members are closed when it ends.
///
/// # Errors
/// No thread.
pub fn start(
    committer: Committer,
    members: MemberThreads,
    replies: impl Replies + 'static,
) -> std::io::Result<(StoreHandle, JoinHandle<()>)> {
    let (messages, queue) = crossbeam_channel::unbounded();
    let status = StoreStatus {
        stamp: committer.stamp(),
        failed: false,
        pending: false,
        members: members.status(),
        needed: members.needed(),
    };
    let status = Arc::new(Mutex::new(status));
    let shell = Shell {
        committer,
        members,
        replies,
        disks: [const { None }; DISKS_MAX],
        vhds: HashMap::new(),
        status: Arc::clone(&status),
        fill: None,
        soon: false,
        stop: false,
    };
    let thread = std::thread::Builder::new().name("spanblk-commit".to_owned()).spawn(move || shell.run(&queue))?;
    Ok((StoreHandle { messages, status }, thread))
}

struct Shell<R> {
    committer: Committer,
    members: MemberThreads,
    replies: R,
    disks: [Option<Arc<DiskState>>; DISKS_MAX],
    vhds: HashMap<VhdId, Weak<VhdState>>,
    status: Arc<Mutex<StoreStatus>>,
    /// As last reported.
    fill: Option<Fill>,
    soon: bool,
    stop: bool,
}

impl<R: Replies> Shell<R> {
    fn run(mut self, queue: &Receiver<Message>) {
        let interval = Duration::from_millis(STORE_COMMIT_INTERVAL_MILLIS);
        let mut due = clock::now().after(interval);
        self.tell_fill();
        while !self.stop {
            let spare = self.committer.has_notes() || self.committer.has_history();
            let message = if self.committer.has_pending() || spare {
                queue.recv_timeout(Duration::from_nanos(due.since(clock::now())))
            } else {
                // A daemon whose guests are quiet sleeps. What wakes it may wait for others, as always.
                let message = queue.recv().map_err(RecvTimeoutError::from);
                due = clock::now().after(interval);
                message
            };
            let first = match message {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let more = std::iter::from_fn(|| queue.try_recv().ok());
            first.into_iter().chain(more).take(MESSAGES_PER_COMMIT).for_each(|message| self.take(message));
            if self.committer.is_urgent() || self.soon || self.stop || is_past(due) {
                self.commit();
                due = clock::now().after(interval);
            }
        }
        // Nobody else comes any more. Each commit takes some of them along, also if it fails.
        while self.committer.has_notes() || self.committer.has_history() {
            self.commit();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Change(change) => self.committer.change(change),
            Message::Request(request) => self.committer.request(request),
            Message::Edit(id, rows) => self.committer.edit(id, rows, |point| is_synced(&self.disks, point)),
            Message::Excuse(vhd, point) => self.committer.excuse(vhd, point),
            // What the table needs comes first.
            Message::Note(note) if note.key.kind.is_forgone() && note.bytes.is_some() && self.is_half_full() => {}
            Message::Note(note) => self.committer.note(note),
            Message::History(rows) => self.committer.history(rows),
            Message::CommitSoon => self.soon = true,
            Message::OpenVhd(vhd) => {
                if let Some(state) = vhd.upgrade() {
                    self.vhds.insert(state.id(), vhd);
                }
            }
            Message::CloseVhd(vhd) => {
                self.vhds.remove(&vhd);
            }
            Message::AddDisk(disk) => {
                let index = disk.id.index();
                self.disks[index] = Some(disk);
            }
            Message::Dump(answer) => {
                self.commit();
                let _ = answer.send(self.members.dump());
            }
            Message::Members(order, answer) => {
                let _ = answer.send(self.change_members(order));
            }
            // There is room for one answer; whoever asked may have given up.
            Message::Alive(answer) => drop(answer.try_send(())),
            Message::Stop => {
                self.stop = true;
                self.committer.hurry_history();
            }
        }
    }

    fn is_half_full(&self) -> bool {
        self.fill.is_some_and(|fill| fill.used > fill.capacity / 2)
    }

    fn commit(&mut self) {
        self.soon = false;
        if self.is_half_full() {
            // What the table needs comes first.
            self.committer.drop_history();
        }
        let outcome = self.committer.commit(&mut self.members, |point| is_synced(&self.disks, point));
        self.tell(outcome);
    }

    /// Carries out what came of a commit.
    fn tell(&mut self, outcome: Outcome) {
        let Outcome { counts, requests, edits, freed, dropped, commits, failed } = outcome;
        if commits > 0 && !failed {
            self.replies.durable(self.committer.stamp());
        }
        // Before the answers: whoever is answered must find nothing pending.
        for (vhd, count) in counts {
            if let Some(state) = self.vhds.get(&vhd).and_then(Weak::upgrade) {
                state.changes_committed(count);
            }
        }
        self.note_status(failed);
        for member in dropped {
            log::error!(
                "the placement store goes on without its copy on disk #{}: {}; \
                 open the pool again once the disk is well, and it will be brought up to date",
                member.disk.0,
                chain(&member.why)
            );
            let Dropped { disk, sync_failed, .. } = member;
            if sync_failed && let Some(disk) = &self.disks[disk.index()] {
                disk.fail();
            }
            self.replies.report(StoreReport::MemberDropped { disk, sync_failed });
        }
        if failed {
            log::error!("the placement store has no majority of working members: no flush succeeds until a restart");
        }
        requests.into_iter().for_each(|(request, ok)| self.replies.committed(request, ok));
        for (edit, result) in edits {
            self.replies.report(StoreReport::EditDone { edit, result });
        }
        if !freed.is_empty() {
            self.replies.report(StoreReport::Freed { slots: freed });
        }
        self.tell_fill();
    }

    fn note_status(&mut self, failed: bool) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.stamp = self.committer.stamp();
        status.failed |= failed;
        status.pending = self.committer.has_pending();
        status.members = self.members.status();
        status.needed = self.members.needed();
    }

    fn tell_fill(&mut self) {
        let now = mirror::fullest(&self.members.status());
        let noticeable = self.fill.is_none_or(|told| {
            told.is_low() != now.is_low() || told.used.abs_diff(now.used) > now.capacity / FILL_STEPS
        });
        if noticeable {
            self.fill = Some(now);
            let report = StoreReport::Fill { used: now.used, size: now.capacity, low: now.is_low() };
            self.replies.report(report);
        }
    }
}

fn is_past(due: Nanos) -> bool {
    clock::now() >= due
}

fn is_synced(disks: &[Option<Arc<DiskState>>; DISKS_MAX], point: SyncPoint) -> bool {
    let disk: &Option<Arc<DiskState>> = &disks[DiskId::index(point.disk)];
    disk.as_ref().is_some_and(|disk| disk.is_synced(point.number))
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
