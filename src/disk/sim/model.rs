//! What a simulated disk holds: the *visible* content (what reads see) and, apart from it, everything that may be found
//! there after a power cut. The same state machine runs live and when a recorded log is replayed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::base::rng::Rng;
use crate::base::units::SECTOR_SIZE;

/// Bytes of one sector as an index type.
pub(super) const SECTOR: usize = 512;
const _: () = assert!(SECTOR as u64 == SECTOR_SIZE);

/// What punched sectors read as: the trait leaves it undefined, so it is nothing that a caller could rely on.
pub const PUNCHED: u8 = 0xdd;

/// Content of one sector; `None` is zeros.
pub(super) type Content = Option<Arc<[u8; SECTOR]>>;

/// Name of one write or sync of a simulated disk, from its begin to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// Which disk of a trace.
pub(super) type DiskIndex = usize;

/// One step of a recorded log.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A write (or punch) of whole sectors was submitted; it may reach the medium from now on.
    WriteBegin { op: OpId, disk: DiskIndex, sectors: Arc<Vec<(u64, Content)>> },
    /// It ended. The first `applied` of its sectors are visible; with an error the rest may or may not be on the medium.
    WriteEnd { op: OpId, applied: usize },
    /// A sync was submitted.
    SyncBegin { op: OpId, disk: DiskIndex },
    /// It ended.
    SyncEnd { op: OpId, outcome: SyncOutcome },
    /// The medium changed behind everybody's back: visible and durable at once.
    Poke { disk: DiskIndex, sectors: Arc<Vec<(u64, Content)>> },
}

/// What a sync did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SyncOutcome {
    /// Everything that completed before it began is durable.
    Durable,
    /// It failed, and the kernel dropped what was dirty: no later sync makes these writes durable.
    Failed,
    /// It claimed success and did nothing.
    Lied,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    InFlight,
    /// Completed as the `at`-th event.
    Completed {
        at: u64,
    },
    /// Completed or failed, and no sync will cover it.
    Lost,
}

#[derive(Clone, Debug)]
struct Version {
    op: OpId,
    content: Content,
    progress: Progress,
}

#[derive(Clone, Debug)]
struct WriteInFlight {
    disk: DiskIndex,
    sectors: Arc<Vec<(u64, Content)>>,
}

/// Content and history of one disk.
#[derive(Clone, Debug, Default)]
pub(super) struct DiskModel {
    visible: HashMap<u64, Arc<[u8; SECTOR]>>,
    durable: HashMap<u64, Arc<[u8; SECTOR]>>,
    /// Versions of each sector written since the last covering sync, in the order in which they became visible; writes in
    /// flight stand where they began.
    unsynced: BTreeMap<u64, Vec<Version>>,
}

/// All disks of a trace.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) disks: Vec<DiskModel>,
    writes: HashMap<OpId, WriteInFlight>,
    syncs: HashMap<OpId, (DiskIndex, u64)>,
    events: u64,
}

/// Picks among the versions that may have survived.
pub(super) enum Survival {
    /// Nothing that was not synced.
    Oldest,
    /// Everything, also what was in flight.
    Newest,
    /// Each sector for itself; new ones are taken `new_of_16` times out of 16.
    Random { rng: Rng, new_of_16: u64 },
}

impl Survival {
    /// The choice that `seed` stands for (see `SimTrace::crash_images`).
    pub(super) fn from_seed(seed: u64) -> Survival {
        match seed {
            super::SEED_OLDEST => Survival::Oldest,
            super::SEED_NEWEST => Survival::Newest,
            _ => {
                let mut rng = Rng::new(seed);
                let new_of_16 = [1, 4, 8, 8, 12, 15][rng.index(6)];
                Survival::Random { rng, new_of_16 }
            }
        }
    }

    fn pick(&mut self, old: Content, versions: &[Version]) -> Content {
        match self {
            Survival::Oldest => old,
            Survival::Newest => versions.last().map_or(old, |v| v.content.clone()),
            Survival::Random { rng, new_of_16 } => {
                let new = rng.chance(*new_of_16, 16);
                let which = rng.index(versions.len().max(1));
                if new { versions.get(which).map_or(old, |v| v.content.clone()) } else { old }
            }
        }
    }
}

fn store(map: &mut HashMap<u64, Arc<[u8; SECTOR]>>, sector: u64, content: Content) {
    match content {
        Some(bytes) => map.insert(sector, bytes),
        None => map.remove(&sector),
    };
}

impl DiskModel {
    /// What a read of `sector` sees.
    pub(super) fn visible(&self, sector: u64) -> Option<&[u8; SECTOR]> {
        self.visible.get(&sector).map(|bytes| &**bytes)
    }

    /// The sectors in `range` that a punch changes: those that hold anything.
    pub(super) fn punchable(&self, range: std::ops::Range<u64>) -> Vec<(u64, Content)> {
        let punched: Content = Some(Arc::new([PUNCHED; SECTOR]));
        let mut sectors: Vec<u64> = self.visible.keys().copied().filter(|sector| range.contains(sector)).collect();
        sectors.sort_unstable();
        sectors.into_iter().map(|sector| (sector, punched.clone())).collect()
    }

    /// A disk as it may be found after a power cut now.
    pub(super) fn after_crash(&self, survival: &mut Survival) -> DiskModel {
        let mut left = self.durable.clone();
        for (&sector, versions) in &self.unsynced {
            let content = survival.pick(self.durable.get(&sector).cloned(), versions);
            store(&mut left, sector, content);
        }
        DiskModel { visible: left.clone(), durable: left, unsynced: BTreeMap::new() }
    }

    /// Sectors of which more than one content may be found after a power cut now.
    pub(super) fn undecided(&self) -> usize {
        self.unsynced.len()
    }

    fn begin(&mut self, op: OpId, sectors: &[(u64, Content)]) {
        for (sector, content) in sectors {
            let version = Version { op, content: content.clone(), progress: Progress::InFlight };
            self.unsynced.entry(*sector).or_default().push(version);
        }
    }

    fn end(&mut self, op: OpId, sectors: &[(u64, Content)], applied: usize, at: u64) {
        for (i, (sector, content)) in sectors.iter().enumerate() {
            let versions = self.unsynced.get_mut(sector).expect("a write in flight has versions");
            let place = versions.iter().position(|v| v.op == op).expect("a write in flight has versions");
            let mut version = versions.remove(place);
            if i < applied {
                version.progress = Progress::Completed { at };
                store(&mut self.visible, *sector, content.clone());
                versions.push(version);
            } else {
                // May be on the medium all the same, but what is visible is newer.
                version.progress = Progress::Lost;
                versions.insert(place, version);
            }
        }
    }

    fn synced(&mut self, begun_at: u64) {
        let durable = &mut self.durable;
        self.unsynced.retain(|&sector, versions| {
            let covered = |v: &Version| matches!(v.progress, Progress::Completed { at } if at < begun_at);
            if let Some(last) = versions.iter().rposition(covered) {
                store(durable, sector, versions[last].content.clone());
                let mut place = 0;
                versions.retain(|v| {
                    place += 1;
                    place - 1 > last || v.progress == Progress::InFlight
                });
            }
            !versions.is_empty()
        });
    }

    fn sync_failed(&mut self) {
        for version in self.unsynced.values_mut().flatten() {
            if version.progress != Progress::InFlight {
                version.progress = Progress::Lost;
            }
        }
    }

    fn poke(&mut self, sectors: &[(u64, Content)]) {
        for (sector, content) in sectors {
            self.unsynced.remove(sector);
            store(&mut self.visible, *sector, content.clone());
            store(&mut self.durable, *sector, content.clone());
        }
    }
}

impl Model {
    /// Takes one step.
    ///
    /// # Panics
    /// If an operation ends that has not begun, or twice (a bug of the caller).
    pub(super) fn apply(&mut self, event: &Event) {
        self.events += 1;
        match event {
            Event::WriteBegin { op, disk, sectors } => {
                self.disks[*disk].begin(*op, sectors);
                self.writes.insert(*op, WriteInFlight { disk: *disk, sectors: Arc::clone(sectors) });
            }
            Event::WriteEnd { op, applied } => {
                let write = self.writes.remove(op).expect("a write ends once, after it began");
                self.disks[write.disk].end(*op, &write.sectors, *applied, self.events);
            }
            Event::SyncBegin { op, disk } => {
                self.syncs.insert(*op, (*disk, self.events));
            }
            Event::SyncEnd { op, outcome } => {
                let (disk, begun_at) = self.syncs.remove(op).expect("a sync ends once, after it began");
                match outcome {
                    SyncOutcome::Durable => self.disks[disk].synced(begun_at),
                    SyncOutcome::Failed => self.disks[disk].sync_failed(),
                    SyncOutcome::Lied => {}
                }
            }
            Event::Poke { disk, sectors } => self.disks[*disk].poke(sectors),
        }
    }

    /// Sectors that a write in flight will change: for splitting its end into what was applied and what was not.
    pub(super) fn sectors_in_flight(&self, op: OpId) -> usize {
        self.writes.get(&op).expect("a write ends once, after it began").sectors.len()
    }
}
