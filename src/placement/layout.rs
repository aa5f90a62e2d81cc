//! Layouts: which disks a new VHD gets, and which of them each new extent goes to.

use super::record::{Accept, Layout};
use crate::base::ids::DiskId;

/// Extents by which a spanned VHD may be out of proportion on a disk to keep neighbouring extents on different disks.
pub const NEIGHBOUR_SLACK: u32 = 8;

/// A disk of the VHD's layout, as a place for its next extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The disk.
    pub disk: DiskId,
    /// Slots that can be given out there.
    pub free: u32,
    /// Extents that the VHD has there.
    pub count: u32,
    /// Whether the extent before or after the new one is there.
    pub neighbour: bool,
    /// Whether the disk still has the role that the layout needs.
    pub accepts: bool,
}

/// The disk for a new extent; `None` if all are full.
///
/// Each disk gets extents in proportion to its free slots: the next one goes where `(count + 1) / free` is smallest. On
/// equal disks that is a round robin, and unequal disks are full at the same time. Disks that no longer accept the
/// layout are used only when the others are full.
#[must_use]
pub fn choose_disk(candidates: impl IntoIterator<Item = Candidate>) -> Option<DiskId> {
    let with_room = candidates.into_iter().filter(|candidate| candidate.free > 0);
    let better = |best: Candidate, other: Candidate| if is_better(&other, &best) { other } else { best };
    with_room.reduce(better).map(|candidate| candidate.disk)
}

fn is_better(a: &Candidate, b: &Candidate) -> bool {
    if a.accepts != b.accepts {
        return a.accepts;
    }
    let load = |c: &Candidate| u128::from(c.count) + 1 + u128::from(if c.neighbour { NEIGHBOUR_SLACK } else { 0 });
    let (load_a, load_b) = (load(a) * u128::from(b.free), load(b) * u128::from(a.free));
    load_a < load_b || (load_a == load_b && b.neighbour && !a.neighbour)
}

/// A disk of the pool, as a home for a new VHD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRoom {
    /// The disk.
    pub disk: DiskId,
    /// Its role.
    pub accept: Accept,
    /// Whether it has failed.
    pub failed: bool,
    /// Slots that can be given out.
    pub free: u64,
    /// Slots that the VHDs that are there already will need when they have been written all over.
    pub promised: u64,
}

impl DiskRoom {
    fn accepts(&self, layout: Kind) -> bool {
        match layout {
            Kind::Isolated => self.accept.isolated(),
            Kind::Spanned => self.accept.spanned(),
        }
    }

    /// What is left when all VHDs have been written all over; negative when they cannot.
    #[must_use]
    pub fn headroom(&self) -> i128 {
        i128::from(self.free) - i128::from(self.promised)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Isolated,
    Spanned,
}

/// What the user asks for; disks that exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayoutWish {
    /// On one disk.
    Isolated {
        /// Which; `None`: any that accepts it.
        disk: Option<DiskId>,
    },
    /// Over several disks.
    Spanned {
        /// Which; `None`: any that accept it.
        disks: Option<Vec<DiskId>>,
        /// How many; `None`: all.
        width: Option<u32>,
    },
}

/// Why a layout cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No disk accepts it and works.
    #[error("no disk accepts the layout")]
    NoDiskAccepts,
    /// A named disk does not accept it.
    #[error("disk #{} does not accept the layout", disk.0)]
    Refused {
        /// The disk.
        disk: DiskId,
        /// Its role.
        accept: Accept,
    },
    /// A named disk has failed.
    #[error("disk #{} has failed", disk.0)]
    Failed {
        /// The disk.
        disk: DiskId,
    },
    /// A disk is named twice.
    #[error("disk #{} is named twice", disk.0)]
    Twice {
        /// The disk.
        disk: DiskId,
    },
    /// The list of disks is empty.
    #[error("no disk is named")]
    NoneNamed,
    /// Width 0.
    #[error("width 0")]
    WidthZero,
    /// Width and number of named disks differ.
    #[error("width {width}, but {named} disks named")]
    WidthDisagrees {
        /// The width.
        width: u32,
        /// Disks named.
        named: usize,
    },
    /// Fewer disks than the width.
    #[error("width {width}, but only {accepting} disks accept the layout")]
    WidthTooLarge {
        /// The width.
        width: u32,
        /// Disks that accept the layout and work.
        accepting: usize,
    },
}

/// Chooses the disks of a new VHD. Those that the user names are taken if their roles allow; else the ones with the most
/// headroom.
///
/// # Errors
/// Why it cannot be done.
///
/// # Panics
/// If a named disk is not among `disks`.
pub fn plan(wish: &LayoutWish, disks: &[DiskRoom]) -> Result<Layout, LayoutError> {
    match wish {
        LayoutWish::Isolated { disk: Some(disk) } => {
            check_named(disks, *disk, Kind::Isolated)?;
            Ok(Layout::Isolated { disk: *disk, chosen: true })
        }
        LayoutWish::Isolated { disk: None } => {
            let best = roomiest(disks, Kind::Isolated);
            let first = best.first().ok_or(LayoutError::NoDiskAccepts)?;
            Ok(Layout::Isolated { disk: *first, chosen: false })
        }
        LayoutWish::Spanned { width: Some(0), .. } => Err(LayoutError::WidthZero),
        LayoutWish::Spanned { disks: Some(named), width } => plan_named(named, *width, disks),
        LayoutWish::Spanned { disks: None, width } => {
            let mut best = roomiest(disks, Kind::Spanned);
            let accepting = best.len();
            match *width {
                _ if accepting == 0 => return Err(LayoutError::NoDiskAccepts),
                Some(width) if width as usize > accepting => {
                    return Err(LayoutError::WidthTooLarge { width, accepting });
                }
                Some(width) => best.truncate(width as usize),
                None => {}
            }
            best.sort_unstable();
            Ok(Layout::Spanned { disks: best, width: *width, chosen: false })
        }
    }
}

fn plan_named(named: &[DiskId], width: Option<u32>, disks: &[DiskRoom]) -> Result<Layout, LayoutError> {
    if named.is_empty() {
        return Err(LayoutError::NoneNamed);
    }
    let mut sorted = named.to_vec();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(LayoutError::Twice { disk: pair[0] });
    }
    if let Some(width) = width.filter(|width| *width as usize != named.len()) {
        return Err(LayoutError::WidthDisagrees { width, named: named.len() });
    }
    for disk in named {
        check_named(disks, *disk, Kind::Spanned)?;
    }
    Ok(Layout::Spanned { disks: sorted, width, chosen: true })
}

fn check_named(disks: &[DiskRoom], disk: DiskId, kind: Kind) -> Result<(), LayoutError> {
    let room = disks.iter().find(|room| room.disk == disk).expect("named disks have been looked up");
    if room.failed {
        return Err(LayoutError::Failed { disk });
    }
    if !room.accepts(kind) {
        return Err(LayoutError::Refused { disk, accept: room.accept });
    }
    Ok(())
}

/// Disks that accept the layout and work, most headroom first.
fn roomiest(disks: &[DiskRoom], kind: Kind) -> Vec<DiskId> {
    let mut usable: Vec<&DiskRoom> = disks.iter().filter(|room| !room.failed && room.accepts(kind)).collect();
    usable.sort_by_key(|room| (std::cmp::Reverse(room.headroom()), room.disk));
    usable.into_iter().map(|room| room.disk).collect()
}
