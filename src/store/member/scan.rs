//! Passes over all pages of a member: loading, and bringing one member up to another.

use std::cmp::Ordering;

use redb::{
    AccessGuard, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use super::codec::unseal;
use super::{
    CHECKSUMS, HISTORY, JOBS, META, Member, MemberError, MemberState, NOTES, PAGES, POLICY, POOL, PageTable,
    RecordTable, VHDS, VMS, db_error, put_doubted, put_state, table_if_any,
};
use crate::base::ids::VhdId;
use crate::disk::BlockDev;
use crate::store::checksums::PageChecksums;
use crate::store::history;
use crate::store::page::{self, ExtentRow, PageKey};

/// What it took to bring a member up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Rows that were missing or different.
    pub put: u64,
    /// Rows that should not have been there.
    pub deleted: u64,
    /// Rows that are damaged in the member that is right, and were taken from another.
    pub damaged: u64,
}

type Key = (u32, u32);

/// What a member has at one commit, whatever it commits meanwhile.
pub struct Snapshot {
    txn: ReadTransaction,
    state: MemberState,
    doubted: bool,
}

impl<D: BlockDev + ?Sized + 'static> Member<D> {
    /// Shows every row as it is stored, in the order of keys.
    ///
    /// # Errors
    /// The database's, or the visitor's.
    pub fn for_each_row(
        &self,
        mut each: impl FnMut(PageKey, &[u8]) -> Result<(), MemberError>,
    ) -> Result<(), MemberError> {
        let txn = self.db.begin_read().map_err(db_error)?;
        let table = txn.open_table(PAGES).map_err(db_error)?;
        for row in table.iter().map_err(db_error)? {
            let (key, bytes) = row.map_err(db_error)?;
            let (vhd, page) = key.value();
            each(PageKey { vhd: VhdId(vhd), page }, bytes.value())?;
        }
        Ok(())
    }

    /// The stored bytes of one row.
    ///
    /// # Errors
    /// The database's.
    pub fn row(&self, key: PageKey) -> Result<Option<Vec<u8>>, MemberError> {
        let txn = self.db.begin_read().map_err(db_error)?;
        let table = txn.open_table(PAGES).map_err(db_error)?;
        let found = table.get((key.vhd.0, key.page)).map_err(db_error)?;
        Ok(found.map(|bytes| bytes.value().to_vec()))
    }

    /// Shows every row of checksums as it is stored, in the order of keys.
    ///
    /// # Errors
    /// The database's.
    pub fn for_each_checksums(&self, mut each: impl FnMut(PageKey, &[u8])) -> Result<(), MemberError> {
        let txn = self.db.begin_read().map_err(db_error)?;
        let Some(table) = table_if_any(&txn, CHECKSUMS)? else { return Ok(()) };
        for row in table.iter().map_err(db_error)? {
            let (key, bytes) = row.map_err(db_error)?;
            let (vhd, page) = key.value();
            each(PageKey { vhd: VhdId(vhd), page }, bytes.value());
        }
        Ok(())
    }

    /// The stored bytes of one row of checksums.
    ///
    /// # Errors
    /// The database's.
    pub fn checksums(&self, key: PageKey) -> Result<Option<Vec<u8>>, MemberError> {
        let txn = self.db.begin_read().map_err(db_error)?;
        let Some(table) = table_if_any(&txn, CHECKSUMS)? else { return Ok(None) };
        let found = table.get((key.vhd.0, key.page)).map_err(db_error)?;
        Ok(found.map(|bytes| bytes.value().to_vec()))
    }

    /// Shows every row of samples and heat as it is stored, in the order of keys.
    ///
    /// # Errors
    /// The database's. Rows before have been shown.
    pub fn for_each_history(&self, mut each: impl FnMut((u32, u32), &[u8])) -> Result<(), MemberError> {
        let txn = self.db.begin_read().map_err(db_error)?;
        let Some(table) = table_if_any(&txn, HISTORY)? else { return Ok(()) };
        for row in table.iter().map_err(db_error)? {
            let (key, bytes) = row.map_err(db_error)?;
            each(key.value(), bytes.value());
        }
        Ok(())
    }

    /// Shows every extent that the table says anything about, in the order of VHDs and extents.
    ///
    /// # Errors
    /// The database's, or a damaged row; extents before it have been shown.
    pub fn for_each_extent(&self, mut each: impl FnMut(PageKey, usize, &ExtentRow)) -> Result<(), MemberError> {
        self.for_each_row(|key, bytes| {
            let visited = page::visit(bytes, |place, extent| each(key, place, &extent));
            visited.map(|_| ()).map_err(|source| MemberError::Page { key, source })
        })
    }

    /// What the member has now.
    ///
    /// # Errors
    /// The database's.
    pub fn snapshot(&self) -> Result<Snapshot, MemberError> {
        let txn = self.db.begin_read().map_err(db_error)?;
        Ok(Snapshot { txn, state: self.state, doubted: self.doubted })
    }

    /// Makes this member equal to `source`, in one transaction. Every row is compared: it does not matter how they came
    /// to differ.
    ///
    /// # Errors
    /// Either member's, or a row is damaged in `source`, which must not take the place of a good one; nothing has changed then.
    pub fn copy_from(&mut self, source: &Snapshot) -> Result<Copied, MemberError> {
        self.copy_from_all(std::slice::from_ref(source))
    }

    /// As [`Member::copy_from`], from several members of one state: a row that is damaged in the first is taken from the next that
    /// has it whole, or stays as it is if this member has the same state and has it whole.
    ///
    /// # Errors
    /// As [`Member::copy_from`], if a row is damaged in all of them.
    pub fn copy_from_all(&mut self, sources: &[Snapshot]) -> Result<Copied, MemberError> {
        let source = &sources[0];
        let mine = self.snapshot()?;
        let kinds: [(Pages, Check); 4] =
            [(PAGES, check_page), (CHECKSUMS, check_checksums), (NOTES, check_note), (HISTORY, check_history)];
        let differences = kinds.map(|(table, check)| Differences::between(table, check, &mine, source));
        let differences: Vec<Differences> = differences.into_iter().collect::<Result<_, MemberError>>()?;
        let count = |count: fn(&Differences) -> usize| differences.iter().map(|of| count(of) as u64).sum();
        let copied = Copied { put: count(|of| of.put.len()), deleted: count(|of| of.deleted.len()), damaged: 0 };
        let damaged = self.retry_grown(|member| {
            member.transact(|txn| {
                // Of one state they are the same: what is whole stays.
                match check_records(source) {
                    Err(_) if mine.state == source.state => {}
                    checked => checked.and_then(|()| copy_records(txn, source))?,
                }
                let undone = differences.iter().map(|differences| differences.undo(txn, sources));
                let damaged = undone.sum::<Result<u64, MemberError>>()?;
                put_doubted(txn, source.doubted)?;
                put_state(txn, source.state)?;
                Ok(damaged)
            })
        })?;
        (self.state, self.doubted) = (source.state, source.doubted);
        Ok(Copied { damaged, ..copied })
    }
}

type Pages = TableDefinition<'static, Key, &'static [u8]>;

/// What is to become of a row that is damaged wherever it is.
enum Rotten {
    /// Nothing can be copied without it.
    Needed(MemberError),
    /// It is left out.
    Forgotten,
}

/// Looks whether a row is whole.
type Check = fn(Key, &[u8]) -> Result<(), Rotten>;

fn check_page((vhd, page): Key, row: &[u8]) -> Result<(), Rotten> {
    let key = PageKey { vhd: VhdId(vhd), page };
    page::visit(row, |_, _| ()).map(drop).map_err(|source| Rotten::Needed(MemberError::Page { key, source }))
}

/// Without a row of checksums nobody knows what is on the disks there: nothing worse. What the target has may be of another time.
fn check_checksums(_: Key, row: &[u8]) -> Result<(), Rotten> {
    PageChecksums::decode(row).map(drop).map_err(|_| Rotten::Forgotten)
}

/// Nobody's data depends on a note.
fn check_note(_: Key, row: &[u8]) -> Result<(), Rotten> {
    unseal(row).map(drop).ok_or(Rotten::Forgotten)
}

/// A row of samples or heat that is damaged is missing to nobody who could not do without it.
fn check_history(_: Key, row: &[u8]) -> Result<(), Rotten> {
    history::is_whole(row).then_some(()).ok_or(Rotten::Forgotten)
}

/// How a table differs from that of another member.
struct Differences {
    table: Pages,
    check: Check,
    /// Both members have the same state: what is whole in either is right.
    equal: bool,
    /// Keys of rows of the other that are missing or different.
    put: Vec<Key>,
    /// Keys of rows that the other does not have.
    deleted: Vec<Key>,
}

impl Differences {
    fn between(table: Pages, check: Check, mine: &Snapshot, source: &Snapshot) -> Result<Differences, MemberError> {
        let equal = mine.state == source.state;
        let (ours, theirs) = (table_if_any(&mine.txn, table)?, table_if_any(&source.txn, table)?);
        let ours = ours.as_ref().map(ReadableTable::iter).transpose().map_err(db_error)?;
        let theirs = theirs.as_ref().map(ReadableTable::iter).transpose().map_err(db_error)?;
        let (mut ours, mut theirs) = (ours.into_iter().flatten(), theirs.into_iter().flatten());
        let (mut put, mut deleted) = (Vec::new(), Vec::new());
        let mut mine = ours.next().transpose().map_err(db_error)?;
        let mut other = theirs.next().transpose().map_err(db_error)?;
        loop {
            let order = match (&mine, &other) {
                (None, None) => return Ok(Differences { table, check, equal, put, deleted }),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(mine), Some(other)) => mine.0.value().cmp(&other.0.value()),
            };
            match (&mine, &other) {
                (Some(mine), _) if order.is_lt() => deleted.push(mine.0.value()),
                (_, Some(other)) if order.is_gt() => put.push(other.0.value()),
                (Some(mine), Some(other)) if mine.1.value() != other.1.value() => put.push(other.0.value()),
                _ => {}
            }
            if order.is_le() {
                mine = ours.next().transpose().map_err(db_error)?;
            }
            if order.is_ge() {
                other = theirs.next().transpose().map_err(db_error)?;
            }
        }
    }

    /// Makes the table equal to that of the first of the others. Returns how many rows are damaged there.
    fn undo(&self, txn: &WriteTransaction, sources: &[Snapshot]) -> Result<u64, MemberError> {
        let mut rows: PageTable<'_> = txn.open_table(self.table).map_err(db_error)?;
        for key in &self.deleted {
            rows.remove(key).map_err(db_error)?;
        }
        let from = sources.iter().map(|source| table_if_any(&source.txn, self.table));
        let from: Vec<_> = from.collect::<Result<_, MemberError>>()?;
        let mut damaged = 0;
        for key in &self.put {
            let mut rotten = None;
            let mut whole = None;
            for table in from.iter().flatten() {
                let Some(row) = table.get(key).map_err(db_error)? else { continue };
                match (self.check)(*key, row.value()) {
                    Ok(()) => {
                        whole = Some(row);
                        break;
                    }
                    Err(found) => rotten = rotten.or(Some(found)),
                }
            }
            damaged += u64::from(rotten.is_some());
            match (whole, rotten) {
                (Some(row), _) => drop(rows.insert(key, row.value()).map_err(db_error)?),
                (None, Some(rotten)) => self.keep_or_forget(&mut rows, *key, rotten)?,
                (None, None) => unreachable!("a snapshot does not change"),
            }
        }
        Ok(damaged)
    }

    /// None of the others has a row whole.
    fn keep_or_forget(&self, rows: &mut PageTable<'_>, key: Key, rotten: Rotten) -> Result<(), MemberError> {
        let is_whole = |row: AccessGuard<'_, &'static [u8]>| (self.check)(key, row.value()).is_ok();
        if self.equal && rows.get(key).map_err(db_error)?.is_some_and(is_whole) {
            return Ok(());
        }
        match rotten {
            Rotten::Needed(error) => Err(error),
            Rotten::Forgotten => rows.remove(key).map(drop).map_err(db_error),
        }
    }
}

/// Looks whether all records are whole.
fn check_records(source: &Snapshot) -> Result<(), MemberError> {
    let is_whole = |sealed: &[u8], what| unseal(sealed).map(drop).ok_or(MemberError::Damaged(what));
    let meta = source.txn.open_table(META).map_err(db_error)?;
    for (key, what) in [(POOL, "pool record"), (POLICY, "policy")] {
        if let Some(sealed) = meta.get(key).map_err(db_error)? {
            is_whole(sealed.value(), what)?;
        }
    }
    for (table, what) in [(VHDS, "VHD record"), (JOBS, "job record"), (VMS, "VM record")] {
        let Some(records) = table_if_any(&source.txn, table)? else { continue };
        for row in records.iter().map_err(db_error)? {
            is_whole(row.map_err(db_error)?.1.value(), what)?;
        }
    }
    Ok(())
}

/// Copies everything but the pages.
fn copy_records(txn: &WriteTransaction, source: &Snapshot) -> Result<(), MemberError> {
    let from = &source.txn;
    let mut meta = txn.open_table(META).map_err(db_error)?;
    let theirs = from.open_table(META).map_err(db_error)?;
    for key in [POOL, POLICY] {
        match theirs.get(key).map_err(db_error)? {
            Some(record) => meta.insert(key, record.value()).map_err(db_error)?,
            None => meta.remove(key).map_err(db_error)?,
        };
    }
    let vhds = from.open_table(VHDS).map_err(db_error)?;
    copy_table(&mut txn.open_table(VHDS).map_err(db_error)?, Some(&vhds))?;
    copy_table(&mut txn.open_table(JOBS).map_err(db_error)?, table_if_any(from, JOBS)?.as_ref())?;
    copy_table(&mut txn.open_table(VMS).map_err(db_error)?, table_if_any(from, VMS)?.as_ref())
}

/// Makes a table equal to another; none is an empty one.
fn copy_table(to: &mut RecordTable<'_>, from: Option<&ReadOnlyTable<u32, &'static [u8]>>) -> Result<(), MemberError> {
    to.retain(|_, _| false).map_err(db_error)?;
    let Some(from) = from else { return Ok(()) };
    for row in from.iter().map_err(db_error)? {
        let (id, record) = row.map_err(db_error)?;
        to.insert(id.value(), record.value()).map_err(db_error)?;
    }
    Ok(())
}
