//! The policy: from what is observed to what should be changed, and why.
//!
//! Pure: no I/O, no clock, no randomness. [`judge::judge`] looks at one moment of a pool ([`observe`]), the wishes of its users
//! ([`rules`]) and what it remembers ([`state`]), and answers with proposals: orders that the daemon can carry out already (span,
//! unspan, migrate, replicas), each with what was observed, the rule, the expected effect, the cost, and the ways that were not
//! taken. Whoever calls it carries out those that it says are to be started, and hands the state back the next time.
//! [`outcome`] compares what was promised with what came, [`why`] explains where a VHD lies, [`place`] says where a new one should.
//!
//! Invariants: the same arguments give the same answer, in whatever order disks and VHDs are listed; nothing is proposed that the
//! planner would refuse; what is started stays within the budget of any 24 hours; a load that does not change comes to rest.
//!
//! A bad policy can be slow, never unsafe: it only asks for what an administrator could ask for.
//!
//! Uses `base`, `placement` and `plan`.

pub mod judge;
pub mod observe;
pub mod outcome;
pub mod place;
pub mod proposal;
pub mod rules;
pub mod say;
pub mod state;
pub mod why;

mod model;
mod number;
mod pairs;
