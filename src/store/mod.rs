//! The placement store: what the table looks like on disk, and how changes become durable.
//!
//! One `redb` database per member region, up to three regions on different host disks. The committer turns pending
//! [`change::Change`]s into batches, hands each batch to every member's thread, and a commit counts when a majority has it.
//!
//! Uses `base`, `metrics`, `placement`, `shared` and `disk`.

pub mod batch;
pub mod change;
pub mod checksums;
pub mod committer;
pub mod dump;
pub mod edit;
pub mod fill;
#[doc(hidden)]
pub mod fuzz;
pub mod history;
pub mod member;
pub mod mirror;
pub mod note;
pub mod open;
pub mod overlay;
pub mod page;
pub mod pending;
pub mod region;
pub mod thread;
