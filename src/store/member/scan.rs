//! Passes over all pages of a member: loading, and bringing one member up to another.

use std::cmp::Ordering;

use redb::{ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, WriteTransaction};

use super::{
    JOBS, META, Member, MemberError, MemberState, PAGES, POOL, PageTable, RecordTable, VHDS, db_error, jobs_table,
    put_state,
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
        let (put, deleted) = self.differences(source)?;
        let copied = Copied { put: put.len() as u64, deleted: deleted.len() as u64 };
        self.retry_grown(|member| {
            member.transact(|txn| {
                copy_records(txn, source)?;
                let mut pages: PageTable<'_> = txn.open_table(PAGES).map_err(db_error)?;
                for key in &deleted {
                    pages.remove(key).map_err(db_error)?;
                }
                let from = source.txn.open_table(PAGES).map_err(db_error)?;
                for key in &put {
                    let row = from.get(key).map_err(db_error)?.expect("a snapshot does not change");
                    pages.insert(key, row.value()).map_err(db_error)?;
                }
                put_state(txn, source.state)
            })
        })?;
        self.state = source.state;
        Ok(copied)
    }

    /// Keys of rows of `source` that are missing or different here, and of rows that `source` does not have.
    fn differences(&self, source: &Snapshot) -> Result<(Vec<Key>, Vec<Key>), MemberError> {
        let ours = self.db.begin_read().map_err(db_error)?;
        let ours = ours.open_table(PAGES).map_err(db_error)?;
        let theirs = source.txn.open_table(PAGES).map_err(db_error)?;
        let (mut ours, mut theirs) = (ours.iter().map_err(db_error)?, theirs.iter().map_err(db_error)?);
        let (mut put, mut deleted) = (Vec::new(), Vec::new());
        let mut mine = ours.next().transpose().map_err(db_error)?;
        let mut other = theirs.next().transpose().map_err(db_error)?;
        loop {
            let order = match (&mine, &other) {
                (None, None) => return Ok((put, deleted)),
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
    copy_table(&mut txn.open_table(JOBS).map_err(db_error)?, jobs_table(from)?.as_ref())
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
