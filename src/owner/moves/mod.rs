//! Moving extents: give one a copy more, bring it in sync, drop another (ordering rules 3 and 4).
//!
//! * [`wave`]: extents that are moved together, and how far they are; data only.
//! * `steps`: what happens next. `give_up`: ending a move before it is durable.
//!
//! A move goes through these steps, each of which a discard, a deletion, or a failing target may end:
//!
//! 1. A slot is taken on the target, and the copy is published as *syncing*: from now on every write goes there, too.
//! 2. Every reactor passes a fence on the disks of the extent: no write that saw the old view is in flight.
//! 3. The mover copies what is present.
//! 4. The copy is published as *sealing*: from now on FLUSH syncs it, too. A fence on the target: every write that only a sync by
//!    the move itself would cover has completed.
//! 5. The mover syncs the target. Now the copy has, durably, all that was ever flushed.
//! 6. The row is changed, in one commit. (It never has a copy that is not in sync: after a power cut there is the old place or
//!    the new one, and the slot of a move that was under way is free.)
//! 7. The copy is published as in sync, the old place is not named any more, and its slot goes the way of all slots (`reuse`).
//!
//! What has been handed to the committer cannot be taken back: after step 5 a move is carried through.

mod give_up;
mod steps;
pub mod wave;
