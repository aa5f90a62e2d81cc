//! The store in the simulation: the committer and its members, called directly.

use std::collections::HashMap;
use std::sync::Arc;

use spanblk::base::ids::{DiskId, ReactorId, VhdId};
use spanblk::base::units::ExtentIndex;
use spanblk::disk::sim::SimDisk;
use spanblk::owner::vhd_state;
use spanblk::placement::check::{Checker, TableExtent};
use spanblk::placement::job::JobRecord;
use spanblk::placement::record::{PoolRecord, VhdRecord};
use spanblk::placement::vm::VmRecord;
use spanblk::reactor::messages::ReactorMessage;
use spanblk::shared::disk::SyncPoint;
use spanblk::shared::{DiskState, VhdState};
use spanblk::store::checksums::PageChecksums;
use spanblk::store::committer::Committer;
use spanblk::store::edit::StoreReport;
use spanblk::store::member::Tuning;
use spanblk::store::mirror::Direct;
use spanblk::store::open::{MemberPlace, OpenOptions, OpenStore, create, open};
use spanblk::store::page::{ExtentRow, PageKey};
use spanblk::store::region::RegionPlace;

use super::post::ToCommitter;
use super::world::{METADATA_LEN, geometry};

const METADATA_OFFSET: u64 = 1 << 20;

fn places(disks: &[SimDisk]) -> Vec<MemberPlace<SimDisk>> {
    let place = |(i, disk): (usize, &SimDisk)| MemberPlace {
        id: DiskId(u8::try_from(i).expect("few disks")),
        name: format!("d{i}"),
        disk: Arc::new(disk.clone()),
        place: RegionPlace { offset: METADATA_OFFSET, len: METADATA_LEN },
    };
    disks.iter().enumerate().map(place).collect()
}

/// What a commit brought about.
pub struct Outcome {
    pub answers: Vec<(ReactorId, ReactorMessage)>,
    pub reports: Vec<StoreReport>,
}

/// Committer and members.
pub struct Store {
    committer: Committer,
    members: Direct<SimDisk>,
    vhds: HashMap<VhdId, Arc<VhdState>>,
    soon: bool,
}

impl Store {
    pub fn create(disks: &[SimDisk], pool: &PoolRecord) -> Store {
        let store = create(places(disks), pool, 7).expect("empty disks take a store");
        Store::serve(store, HashMap::new())
    }

    /// Serves a store that has been raised to its epoch.
    fn serve(store: OpenStore<SimDisk>, vhds: HashMap<VhdId, Arc<VhdState>>) -> Store {
        let (stamp, total) = (store.state().stamp, store.total());
        let members = Direct::new(store.into_members(), total);
        Store { committer: Committer::new(stamp, METADATA_LEN), members, vhds, soon: false }
    }

    pub fn take(&mut self, message: ToCommitter, disks: &[Arc<DiskState>]) {
        match message {
            ToCommitter::Change(change) => self.committer.change(change),
            ToCommitter::Request(request) => self.committer.request(request),
            ToCommitter::Edit(id, rows) => self.committer.edit(id, rows, |point| is_synced(disks, point)),
            ToCommitter::Open(state) => {
                self.vhds.insert(state.id(), state);
            }
            ToCommitter::Excuse(vhd, point) => self.committer.excuse(vhd, point),
            ToCommitter::Commit => self.soon = true,
        }
    }

    pub fn wants_commit(&self) -> bool {
        self.soon || self.committer.is_urgent()
    }

    pub fn commit(&mut self, disks: &[Arc<DiskState>]) -> Outcome {
        self.soon = false;
        let outcome = self.committer.commit(&mut self.members, |point| is_synced(disks, point));
        assert!(!outcome.failed && outcome.dropped.is_empty(), "simulated disks do not fail here: {outcome:?}");
        for (vhd, count) in outcome.counts {
            self.vhds[&vhd].changes_committed(count);
        }
        let committed = |(request, ok): (spanblk::store::change::CommitRequest, bool)| {
            (request.reactor, ReactorMessage::Committed { ticket: request.ticket, ok })
        };
        let answers = outcome.requests.into_iter().map(committed).collect();
        let mut reports: Vec<StoreReport> =
            outcome.edits.into_iter().map(|(edit, result)| StoreReport::EditDone { edit, result }).collect();
        if !outcome.freed.is_empty() {
            reports.push(StoreReport::Freed { slots: outcome.freed });
        }
        Outcome { answers, reports }
    }
}

fn is_synced(disks: &[Arc<DiskState>], point: SyncPoint) -> bool {
    disks[point.disk.index()].is_synced(point.number)
}

/// What is found on the disks after a power cut.
pub struct Recovered {
    store: OpenStore<SimDisk>,
    pub vhds: Vec<(VhdRecord, Arc<VhdState>)>,
    table: Vec<TableExtent>,
}

impl Recovered {
    /// Proves the table consistent.
    pub fn check(&self) -> Result<(), String> {
        let records = self.vhds.iter().map(|(record, _)| record);
        let mut checker = Checker::new(&self.store.pool, records).with_vms(&self.store.vms);
        self.table.iter().for_each(|extent| checker.add(extent));
        if checker.wants_owners() {
            self.table.iter().for_each(|extent| checker.add_owners(extent));
        }
        let report = checker.finish();
        if report.is_consistent() { Ok(()) } else { Err(format!("inconsistent: {:?}", report.violations)) }
    }
}

impl Recovered {
    pub fn pool(&self) -> &PoolRecord {
        &self.store.pool
    }

    pub fn jobs(&self) -> &[JobRecord] {
        &self.store.jobs
    }

    pub fn vms(&self) -> &[VmRecord] {
        &self.store.vms
    }

    /// Begins a new epoch, as a daemon does that is going to serve what it has found.
    pub fn serve(mut self) -> Result<Store, String> {
        self.store.raise(0, 8).map_err(|error| error.to_string())?;
        Ok(Store::serve(self.store, self.vhds.into_iter().map(|(record, state)| (record.id, state)).collect()))
    }
}

/// Opens the store as the daemon does at start.
pub fn recover(images: &[SimDisk], members: usize, reactors: u16) -> Result<Recovered, String> {
    let options =
        OpenOptions { pool: uuid::Uuid::from_u128(99), total: members, accept_stale: false, tuning: Tuning::default() };
    let store = open(places(&images[..members]), &options).map_err(|error| error.to_string())?;
    let state = |record: &VhdRecord| (record.clone(), Arc::new(vhd_state(record, geometry(), reactors, None)));
    let vhds: Vec<_> = store.vhds.iter().map(state).collect();
    let mut table = Vec::new();
    let of = |key: PageKey| vhds.iter().find(|(record, _)| record.id == key.vhd);
    let show = |key: PageKey, place, row: &ExtentRow| {
        let number = u32::try_from(place).expect("64 extents in a row");
        let extent = ExtentIndex(key.page * 64 + number);
        if let Some((_, state)) = of(key).filter(|(_, state)| extent.0 < state.map.extents()) {
            state.map.restore(extent, row.replicas, row.present, row.generation);
        }
        table.push(TableExtent { vhd: key.vhd, extent, replicas: row.replicas, present: row.present });
    };
    let intent = |key: PageKey| of(key).into_iter().for_each(|(_, state)| state.map.set_in_doubt(key.page));
    store.load_with_intents(show, intent).map_err(|error| error.to_string())?;
    let restore = |key: PageKey, checksums: &PageChecksums| {
        let Some((_, state)) = of(key).filter(|(_, state)| !state.map.page_is_in_doubt(key.page)) else { return };
        for extent in (0..state.map.extents()).filter(|extent| extent / 64 == key.page) {
            state.map.restore_checksums(ExtentIndex(extent), checksums.extent(extent as usize % 64));
        }
    };
    store.load_checksums(restore).map_err(|error| error.to_string())?;
    Ok(Recovered { store, vhds, table })
}
