//! Changes of the members, see [`crate::store::mirror::threads::change`]: calls from outside, and what the committer does.

use std::time::Duration;

use super::{ChangeError, Message, Replies, Shell, StoreHandle};
use crate::base::ids::DiskSet;
use crate::base::limits::STORE_FILLING_SECS;
use crate::store::member::MemberError;
use crate::store::mirror::Applied;
use crate::store::mirror::threads::change::Joiner;

/// What to do with the members.
pub(super) enum MembersOrder {
    Join(Joiner),
    Propose(DiskSet),
    Dismiss,
    Withdraw,
    Settle,
}

impl StoreHandle {
    /// Fills a member that is to join, while commits go on, and waits for that. `make`: the member, which tells by the sender
    /// when it is filled.
    ///
    /// # Errors
    /// See [`ChangeError`]; nobody joins then.
    pub fn join(
        &self,
        make: impl FnOnce(crossbeam_channel::Sender<Result<(), MemberError>>) -> Joiner,
    ) -> Result<(), ChangeError> {
        let (filled, filling) = crossbeam_channel::bounded(1);
        self.order(MembersOrder::Join(make(filled)))?;
        let result = match filling.recv_timeout(Duration::from_secs(STORE_FILLING_SECS)) {
            Ok(result) => result.map_err(ChangeError::Fill),
            Err(_) => Err(ChangeError::Slow { secs: STORE_FILLING_SECS }),
        };
        result.inspect_err(|_| self.dismiss())
    }

    /// Proposes other members, with one commit that a majority of them has.
    ///
    /// # Errors
    /// See [`ChangeError`]; nothing is proposed then, and nobody joins. What an earlier change has left undecided stays so.
    pub fn propose(&self, members: DiskSet) -> Result<(), ChangeError> {
        self.order(MembersOrder::Propose(members))
    }

    /// Whoever has been filled does not join after all; nothing has been proposed.
    pub fn dismiss(&self) {
        // As below.
        let _ = self.order(MembersOrder::Dismiss);
    }

    /// Takes back what was proposed, and who was to join. No label may say anything of it.
    pub fn withdraw(&self) {
        // A committer that has ended has no members.
        let _ = self.order(MembersOrder::Withdraw);
    }

    /// The labels have the proposed members: they are the members from now on. The others are cut off from their disks.
    pub fn settle(&self) {
        let _ = self.order(MembersOrder::Settle);
    }

    fn order(&self, order: MembersOrder) -> Result<(), ChangeError> {
        let (answer, waiting) = crossbeam_channel::bounded(1);
        self.send(Message::Members(order, answer));
        waiting.recv().map_err(|_| ChangeError::Closed)?
    }
}

impl<R: Replies> Shell<R> {
    pub(super) fn change_members(&mut self, order: MembersOrder) -> Result<(), ChangeError> {
        let result = match order {
            MembersOrder::Join(joiner) => {
                self.committer.fit_region(joiner.region_len());
                self.members.join(joiner)
            }
            MembersOrder::Propose(members) => self.propose(members),
            MembersOrder::Dismiss => {
                self.members.dismiss();
                Ok(())
            }
            MembersOrder::Withdraw => {
                self.members.withdraw();
                Ok(())
            }
            MembersOrder::Settle => {
                let settled = self.members.settle();
                assert!(settled, "a change is settled that was proposed");
                Ok(())
            }
        };
        self.note_status(false);
        result
    }

    fn propose(&mut self, members: DiskSet) -> Result<(), ChangeError> {
        self.commit();
        let mut dropped = Vec::new();
        let mut result = self.members.check_proposal(members, &mut dropped);
        let mut outcome = super::Outcome { dropped, ..super::Outcome::default() };
        if result.is_err() {
            self.members.dismiss();
        } else {
            // Replaced by what is said of the mark, unless the store has failed before.
            result = Err(ChangeError::Closed);
            let marked = self.committer.mark(|mark| {
                let mut dropped = Vec::new();
                let (committed, taken) = self.members.propose(members, mark, &mut dropped);
                result = taken;
                Applied { committed, dropped }
            });
            outcome.dropped.extend(marked.dropped);
            (outcome.commits, outcome.failed) = (marked.commits, marked.failed);
        }
        if outcome.failed && result.is_ok() {
            result = Err(ChangeError::Closed);
        }
        self.tell(outcome);
        result
    }
}
