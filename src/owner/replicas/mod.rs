//! Keeping the replicas of an extent equal, or known to be unequal (ordering rule 7).
//!
//! * `missed`: what waits because a copy did not get it, and the answers. `stale`: replicas that missed something, made durably so.
//! * `intents`: which pages are written to, so that it is known after a power cut what may differ.
//! * `restore`: jobs that bring back what failed disks had, or what replicas have missed, begun by itself.
//! * `repair`: replicas made equal again without leaving their place: unreadable ones, and those in doubt.

mod checksums;
mod intents;
mod missed;
mod repair;
mod restore;
mod stale;

pub(super) use intents::Intents;
pub(super) use repair::{Place, Repairs};
pub(super) use restore::Restore;
pub(super) use stale::Stale;

use crate::base::units::ExtentIndex;
use crate::store::page::{PAGE_EXTENTS, PageKey};

/// The extents of a page of a VHD with so many.
fn extents_of(page: PageKey, extents: u32) -> impl Iterator<Item = ExtentIndex> {
    (0..PAGE_EXTENTS).filter_map(move |place| page.extent(place)).filter(move |extent| extent.0 < extents)
}
