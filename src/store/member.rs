//! One member of the store: a complete `redb` database in one metadata region.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `state` | which commit this is, see [`MemberState`] |
//! | `meta` | `pool` | the pool record, sealed |
//! | `meta` | `policy` | what is wanted of the policy, sealed, if anything is |
//! | `vhds` | VHD | the VHD record, sealed |
//! | `jobs` | job | the job record, sealed |
//! | `vms` | VM | the VM record, sealed |
//! | `pages` | (VHD, page) | a row, see [`super::page`] |
//! | `checksums` | (VHD, page) | a row, see [`super::checksums`] |
//! | `notes` | (kind, number) | a note, sealed, see [`super::note`] |
//! | `history` | (VHD or disk, part) | samples or heat, see [`super::history`] |
//!
//! A database has no table `jobs` until a job is written, no table `vms` until a VM is, and no tables `checksums`, `notes` and `history`
//! until they are: that says the same as an empty one.
//!
//! Sealed: followed by its CRC-32C. `redb` has checksums of its own, but looks at them only when it repairs a file.
//!
//! Every commit saves `redb`'s allocator state (quick repair). Closing a member therefore writes nothing: opening it finds
//! it as after a power cut, which is the case that must be fast and right anyway.

mod codec;
mod scan;
#[cfg(test)]
pub(super) mod tests;
mod write;

use std::borrow::Borrow;
use std::sync::Arc;

use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction,
};
use uuid::Uuid;

use crate::disk::BlockDev;
use crate::placement::job::JobRecord;
use crate::placement::record::{PoolRecord, RecordError, VhdRecord};
use crate::placement::vm::VmRecord;

use super::batch::Batch;
use super::fill::{Fill, FillEstimate};
use super::note::NoteKind;
use super::page::{PageError, PageKey};
use super::region::{Fuse, RegionBackend, RegionError, RegionPlace};
pub use codec::MemberState;
pub use scan::{Copied, Snapshot};
use write::{apply_step, put_doubted, put_state};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const VHDS: TableDefinition<u32, &[u8]> = TableDefinition::new("vhds");
const JOBS: TableDefinition<u32, &[u8]> = TableDefinition::new("jobs");
const VMS: TableDefinition<u32, &[u8]> = TableDefinition::new("vms");
const PAGES: TableDefinition<(u32, u32), &[u8]> = TableDefinition::new("pages");
const CHECKSUMS: TableDefinition<(u32, u32), &[u8]> = TableDefinition::new("checksums");
const NOTES: TableDefinition<(u32, u32), &[u8]> = TableDefinition::new("notes");
const HISTORY: TableDefinition<(u32, u32), &[u8]> = TableDefinition::new("history");

const STATE: &str = "state";
const POOL: &str = "pool";
const POLICY: &str = "policy";
/// There if rows have been changed without a commit: see [`Member::begin_doubt`].
const DOUBTED: &str = "doubted";

type MetaTable<'a> = Table<'a, &'static str, &'static [u8]>;
/// `vhds`, `jobs` or `vms`.
type RecordTable<'a> = Table<'a, u32, &'static [u8]>;
/// `pages`, `checksums`, `notes` or `history`.
type PageTable<'a> = Table<'a, (u32, u32), &'static [u8]>;

/// Why a member cannot be used (any more).
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// The region under it.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The database.
    #[error("the database in the metadata region cannot be used")]
    Database(#[source] redb::Error),
    /// A row that is always there is not.
    #[error("the database in the metadata region has no {0}: it was not created whole")]
    Missing(&'static str),
    /// It was being written from a dump.
    #[error(
        "the placement table was being restored, and that was cut off: it cannot be used until 'spanblk metadata restore' \
         has succeeded"
    )]
    Unfinished,
    /// A row of `meta`, `vhds`, `jobs` or `vms` is damaged.
    #[error("the {0} in the metadata region is damaged: the disk changed it")]
    Damaged(&'static str),
    /// The database was written by another version.
    #[error(
        "the database in the metadata region has version {found}, this program knows {}: use the newer spanblk",
        MemberState::VERSION
    )]
    Version {
        /// The version in it.
        found: u32,
    },
    /// A row of `pages` is damaged.
    #[error("page {} of VHD {} in the metadata region is damaged", .key.page, .key.vhd.0)]
    Page {
        /// Which row.
        key: PageKey,
        /// What is wrong with it.
        source: PageError,
    },
    /// A record is not valid.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// For results of `redb`, whose narrow errors all widen to one.
fn db_error<E: Into<redb::Error>>(error: E) -> MemberError {
    MemberError::Database(error.into())
}

/// How `redb` is used; everything but the default is for measuring.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Whether every commit saves the allocator state: one sync more per commit, and no walk through the whole database
    /// when it is opened after a power cut.
    pub quick_repair: bool,
    /// Bytes of memory for caching.
    pub cache_bytes: usize,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning { quick_repair: true, cache_bytes: 16 << 20 }
    }
}

/// An open member.
#[derive(Debug)]
pub struct Member<D: BlockDev + ?Sized + 'static> {
    region: RegionBackend<D>,
    db: Database,
    state: MemberState,
    /// See [`Member::begin_doubt`].
    doubted: bool,
    fill: FillEstimate,
    /// Reads ahead until it is loaded.
    loaded: bool,
    tuning: Tuning,
}

impl<D: BlockDev + ?Sized + 'static> Drop for Member<D> {
    fn drop(&mut self) {
        // Otherwise `redb` would tidy up: several commits that nobody needs.
        self.region.close();
    }
}

impl<D: BlockDev + ?Sized + 'static> Member<D> {
    /// Formats a region and makes an empty member in it: without a pool record, older than any other member.
    ///
    /// # Errors
    /// The region's or the database's.
    pub fn create(disk: Arc<D>, place: RegionPlace, pool: Uuid, tuning: Tuning) -> Result<Member<D>, MemberError> {
        Member::create_in(RegionBackend::format(disk, place, pool)?, tuning)
    }

    /// Makes an empty member in place of one that cannot be opened.
    ///
    /// # Errors
    /// As [`Member::create`].
    pub(super) fn create_in(region: RegionBackend<D>, tuning: Tuning) -> Result<Member<D>, MemberError> {
        let db = open_database(&region, tuning)?;
        let state = MemberState::default();
        let fill = FillEstimate::new(region.capacity());
        let mut member = Member { region, db, state, doubted: false, fill, loaded: true, tuning };
        member.transact(|txn| {
            txn.open_table(VHDS).map_err(db_error)?;
            txn.open_table(JOBS).map_err(db_error)?;
            txn.open_table(PAGES).map_err(db_error)?;
            put_state(txn, state)
        })?;
        member.measure()?;
        Ok(member)
    }

    /// Opens a member, recovering it if need be. Reads ahead until [`Member::loaded`].
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(disk: Arc<D>, place: RegionPlace, pool: Uuid, tuning: Tuning) -> Result<Member<D>, MemberError> {
        let region = RegionBackend::open(disk, place, pool)?;
        region.set_read_ahead(true);
        if region.length() == 0 {
            return Err(MemberError::Missing("content"));
        }
        let db = open_database(&region, tuning)?;
        let fill = FillEstimate::new(region.capacity());
        let state = MemberState::default();
        let mut member = Member { region, db, state, doubted: false, fill, loaded: false, tuning };
        let txn = member.db.begin_read().map_err(db_error)?;
        let meta = match txn.open_table(META) {
            Ok(meta) => meta,
            Err(redb::TableError::TableDoesNotExist(_)) => return Err(MemberError::Missing("state")),
            Err(other) => return Err(db_error(other)),
        };
        let state = meta.get(STATE).map_err(db_error)?.ok_or(MemberError::Missing("state"))?;
        member.state = MemberState::decode(state.value())?;
        member.doubted = meta.get(DOUBTED).map_err(db_error)?.is_some();
        Ok(member)
    }

    /// Which commit it has.
    #[must_use]
    pub fn state(&self) -> MemberState {
        self.state
    }

    /// Whether its rows have been changed without a commit, and it has not been raised since: others of the same state know better.
    #[must_use]
    pub fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// How full it is, by the last measurement and what came since.
    #[must_use]
    pub fn fill(&self) -> Fill {
        self.fill.now()
    }

    /// Bytes of its region.
    #[must_use]
    pub fn region_len(&self) -> u64 {
        self.region.place().len
    }

    /// For cutting the member off from its disk.
    #[must_use]
    pub fn fuse(&self) -> Arc<Fuse> {
        self.region.fuse()
    }

    /// The pool record.
    ///
    /// # Errors
    /// If there is none, or it is damaged.
    pub fn pool(&self) -> Result<PoolRecord, MemberError> {
        let txn = self.db.begin_read().map_err(db_error)?;
        let meta = txn.open_table(META).map_err(db_error)?;
        let sealed = meta.get(POOL).map_err(db_error)?.ok_or(MemberError::Missing("pool record"))?;
        let record = codec::unseal(sealed.value()).ok_or(MemberError::Damaged("pool record"))?;
        Ok(PoolRecord::decode(record)?)
    }

    /// What administrators want of the policy, as JSON; `None` if nobody has said anything.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn policy(&self) -> Result<Option<String>, MemberError> {
        let txn = self.db.begin_read().map_err(db_error)?;
        let meta = txn.open_table(META).map_err(db_error)?;
        let Some(sealed) = meta.get(POLICY).map_err(db_error)? else { return Ok(None) };
        let text = codec::unseal(sealed.value()).and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
        text.map(Some).ok_or(MemberError::Damaged("policy"))
    }

    /// The VHD records, in the order of their identifiers.
    ///
    /// # Errors
    /// If one is damaged.
    pub fn vhds(&self) -> Result<Vec<VhdRecord>, MemberError> {
        let txn = self.db.begin_read().map_err(db_error)?;
        let table = txn.open_table(VHDS).map_err(db_error)?;
        read_records(&table, "VHD record", |bytes| VhdRecord::decode(bytes).map(|record| (record.id.0, record)))
    }

    /// The job records, in the order of their identifiers.
    ///
    /// # Errors
    /// If one is damaged.
    pub fn jobs(&self) -> Result<Vec<JobRecord>, MemberError> {
        let txn = self.db.begin_read().map_err(db_error)?;
        let Some(table) = table_if_any(&txn, JOBS)? else { return Ok(Vec::new()) };
        read_records(&table, "job record", |bytes| JobRecord::decode(bytes).map(|record| (record.id.0, record)))
    }

    /// The VM records, in the order of their identifiers.
    ///
    /// # Errors
    /// If one is damaged.
    pub fn vms(&self) -> Result<Vec<VmRecord>, MemberError> {
        let txn = self.db.begin_read().map_err(db_error)?;
        let Some(table) = table_if_any(&txn, VMS)? else { return Ok(Vec::new()) };
        read_records(&table, "VM record", |bytes| VmRecord::decode(bytes).map(|record| (record.id.0, record)))
    }

    /// The notes of a kind, in the order of their numbers. Those that are damaged are left out.
    ///
    /// # Errors
    /// The database's.
    pub fn notes(&self, kind: NoteKind) -> Result<Vec<(u32, Vec<u8>)>, MemberError> {
        let txn = self.db.begin_read().map_err(db_error)?;
        let Some(table) = table_if_any(&txn, NOTES)? else { return Ok(Vec::new()) };
        let mut notes = Vec::new();
        for row in table.range((kind as u32, 0)..=(kind as u32, u32::MAX)).map_err(db_error)? {
            let (key, sealed) = row.map_err(db_error)?;
            match codec::unseal(sealed.value()) {
                Some(bytes) => notes.push((key.value().1, bytes.to_vec())),
                None => {
                    log::warn!("note {} of {kind:?} in the metadata region is damaged, and left out", key.value().1)
                }
            }
        }
        Ok(notes)
    }

    /// Makes a batch durable. If the database has to grow and cannot double, it gets all there is and tries again.
    ///
    /// # Errors
    /// Nothing of the batch is durable, unless the error came from the disk at the very end; the member must not be used
    /// any more.
    pub fn apply(&mut self, batch: &Batch) -> Result<(), MemberError> {
        self.apply_all(std::slice::from_ref(batch))
    }

    /// Makes batches durable that follow each other, all of them or none: the member is then as if it had been given one after the
    /// other, and each row says which of them wrote it.
    ///
    /// # Errors
    /// As [`Member::apply`].
    pub fn apply_all<B: Borrow<Batch>>(&mut self, batches: &[B]) -> Result<(), MemberError> {
        let Some(last) = batches.last() else { return Ok(()) };
        let state = MemberState { stamp: last.borrow().stamp, ..self.state };
        let grown = self.retry_grown(|member| {
            member.transact(|txn| {
                let mut grown = 0;
                for batch in batches.iter().map(Borrow::borrow) {
                    for step in &batch.steps {
                        grown += apply_step(txn, batch.stamp, step)?;
                    }
                }
                put_state(txn, state)?;
                Ok(grown)
            })
        })?;
        self.state = state;
        self.fill.grew(grown);
        if self.fill.is_stale() {
            self.measure()?;
        }
        Ok(())
    }

    /// Enters a new epoch, without any other change.
    ///
    /// # Errors
    /// As [`Member::apply`].
    pub fn raise(&mut self, state: MemberState) -> Result<(), MemberError> {
        assert!(state.stamp > self.state.stamp, "an epoch is raised");
        self.retry_grown(|member| {
            member.transact(|txn| {
                put_doubted(txn, false)?;
                put_state(txn, state)
            })
        })?;
        (self.state, self.doubted) = (state, false);
        Ok(())
    }

    /// The table is of another time than what is on the disks: forgets all checksums of blocks. What is changed from here on until the
    /// member is raised is no commit; so it says of itself that members of the same state know better.
    ///
    /// # Errors
    /// As [`Member::apply`].
    pub fn begin_doubt(&mut self) -> Result<(), MemberError> {
        self.retry_grown(|member| {
            member.transact(|txn| {
                put_doubted(txn, true)?;
                txn.delete_table(CHECKSUMS).map(drop).map_err(db_error)
            })
        })?;
        self.doubted = true;
        Ok(())
    }

    /// Measures how full the member is while its pages are still at hand, then lets go of them: it is opened anew, without reading
    /// ahead. Memory for pages that were needed once would stay taken for as long as the member is open. Only once.
    ///
    /// # Errors
    /// The region's or the database's; the member must not be used any more.
    pub fn loaded(&mut self) -> Result<(), MemberError> {
        if !self.loaded {
            self.measure()?;
            self.reopen()?;
            self.loaded = true;
        }
        Ok(())
    }

    /// Runs a write transaction to the end.
    fn transact<R>(&self, work: impl FnOnce(&WriteTransaction) -> Result<R, MemberError>) -> Result<R, MemberError> {
        let mut txn = self.db.begin_write().map_err(db_error)?;
        txn.set_quick_repair(self.tuning.quick_repair);
        let result = work(&txn)?;
        txn.commit().map_err(db_error)?;
        Ok(result)
    }

    /// `redb` doubles its file, and gives up for good if it cannot. When it is opened it takes a file as long as it finds it.
    fn retry_grown<R>(&mut self, work: impl Fn(&Self) -> Result<R, MemberError>) -> Result<R, MemberError> {
        let _ = self.region.take_refused();
        match work(self) {
            Err(_)
                if self.region.take_refused()
                    && self.region.length() < self.region.capacity()
                    && !self.region.fuse().sync_failed() =>
            {
                self.region = self.region.replace()?;
                self.region.set_length(self.region.capacity())?;
                self.db = open_database(&self.region, self.tuning)?;
                work(self)
            }
            result => result,
        }
    }

    /// Opens the database anew.
    fn reopen(&mut self) -> Result<(), MemberError> {
        self.region = self.region.replace()?;
        self.db = open_database(&self.region, self.tuning)?;
        Ok(())
    }

    fn measure(&mut self) -> Result<(), MemberError> {
        let txn = self.db.begin_write().map_err(db_error)?;
        let stats = txn.stats().map_err(db_error)?;
        txn.abort().map_err(db_error)?;
        self.fill.measured(stats.allocated_pages() * stats.page_size() as u64);
        Ok(())
    }
}

/// Reads all records of a table; `decode` also says which identifier a record has.
fn read_records<R>(
    table: &ReadOnlyTable<u32, &'static [u8]>,
    what: &'static str,
    decode: impl Fn(&[u8]) -> Result<(u32, R), RecordError>,
) -> Result<Vec<R>, MemberError> {
    let mut records = Vec::new();
    for row in table.iter().map_err(db_error)? {
        let (key, sealed) = row.map_err(db_error)?;
        let (id, record) = decode(codec::unseal(sealed.value()).ok_or(MemberError::Damaged(what))?)?;
        if id != key.value() {
            return Err(MemberError::Damaged(what));
        }
        records.push(record);
    }
    Ok(records)
}

/// A table that there need not be.
fn table_if_any<K: redb::Key + 'static>(
    txn: &ReadTransaction,
    table: TableDefinition<'_, K, &'static [u8]>,
) -> Result<Option<ReadOnlyTable<K, &'static [u8]>>, MemberError> {
    match txn.open_table(table) {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(other) => Err(db_error(other)),
    }
}

fn open_database<D: BlockDev + ?Sized + 'static>(
    region: &RegionBackend<D>,
    tuning: Tuning,
) -> Result<Database, MemberError> {
    Database::builder().set_cache_size(tuning.cache_bytes).create_with_backend(region.clone()).map_err(db_error)
}
