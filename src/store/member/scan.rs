//! Passes over all pages of a member: loading, and bringing one member up to another.

use std::cmp::Ordering;

use redb::{ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::{
    CHECKSUMS, JOBS, META, Member, MemberError, MemberState, PAGES, POOL, PageTable, RecordTable, VHDS, VMS, db_error,
    put_state, table_if_any,
};
use crate::base::ids::VhdId;
use crate::disk::BlockDev;
use crate::store::page::{self, ExtentRow, PageKey};

/// What it took to bring a member up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Rows that were missing or different.
    pub put: u64,
    /// Rows that should not have been there.
    pub deleted: u64,
}

type Key = (u32, u32);

/// What a member has at one commit, whatever it commits meanwhile.
pub struct Snapshot {
    txn: ReadTransaction,
    state: MemberState,
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
        Ok(Snapshot { txn: self.db.begin_read().map_err(db_error)?, state: self.state })
    }

    /// Makes this member equal to `source`, in one transaction. Every row is compared: it does not matter how they came
    /// to differ.
    ///
    /// # Errors
    /// Either member's; nothing has changed then.
    pub fn copy_from(&mut self, source: &Snapshot) -> Result<Copied, MemberError> {
        let mine = self.snapshot()?;
        let differences = [PAGES, CHECKSUMS].map(|table| Ok((table, Differences::between(table, &mine, source)?)));
        let differences: Vec<(Pages, Differences)> = differences.into_iter().collect::<Result<_, MemberError>>()?;
        let count = |count: fn(&Differences) -> usize| differences.iter().map(|(_, of)| count(of) as u64).sum();
        let copied = Copied { put: count(|of| of.put.len()), deleted: count(|of| of.deleted.len()) };
        self.retry_grown(|member| {
            member.transact(|txn| {
                copy_records(txn, source)?;
                differences.iter().try_for_each(|(table, differences)| differences.undo(*table, txn, source))?;
                put_state(txn, source.state)
            })
        })?;
        self.state = source.state;
        Ok(copied)
    }
}

type Pages = TableDefinition<'static, Key, &'static [u8]>;

/// How a table differs from that of another member.
struct Differences {
    /// Keys of rows of the other that are missing or different.
    put: Vec<Key>,
    /// Keys of rows that the other does not have.
    deleted: Vec<Key>,
}

impl Differences {
    fn between(table: Pages, mine: &Snapshot, source: &Snapshot) -> Result<Differences, MemberError> {
        let (ours, theirs) = (table_if_any(&mine.txn, table)?, table_if_any(&source.txn, table)?);
        let ours = ours.as_ref().map(ReadableTable::iter).transpose().map_err(db_error)?;
        let theirs = theirs.as_ref().map(ReadableTable::iter).transpose().map_err(db_error)?;
        let (mut ours, mut theirs) = (ours.into_iter().flatten(), theirs.into_iter().flatten());
        let (mut put, mut deleted) = (Vec::new(), Vec::new());
        let mut mine = ours.next().transpose().map_err(db_error)?;
        let mut other = theirs.next().transpose().map_err(db_error)?;
        loop {
            let order = match (&mine, &other) {
                (None, None) => return Ok(Differences { put, deleted }),
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

    /// Makes the table equal to that of the other.
    fn undo(&self, table: Pages, txn: &WriteTransaction, source: &Snapshot) -> Result<(), MemberError> {
        let mut rows: PageTable<'_> = txn.open_table(table).map_err(db_error)?;
        for key in &self.deleted {
            rows.remove(key).map_err(db_error)?;
        }
        let Some(from) = table_if_any(&source.txn, table)? else { return Ok(()) };
        for key in &self.put {
            let row = from.get(key).map_err(db_error)?.expect("a snapshot does not change");
            rows.insert(key, row.value()).map_err(db_error)?;
        }
        Ok(())
    }
}

/// Copies everything but the pages.
fn copy_records(txn: &WriteTransaction, source: &Snapshot) -> Result<(), MemberError> {
    let from = &source.txn;
    let mut meta = txn.open_table(META).map_err(db_error)?;
    let pool = from.open_table(META).map_err(db_error)?;
    match pool.get(POOL).map_err(db_error)? {
        Some(record) => meta.insert(POOL, record.value()).map_err(db_error)?,
        None => meta.remove(POOL).map_err(db_error)?,
    };
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
