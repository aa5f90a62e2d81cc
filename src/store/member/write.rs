//! Changing rows within a transaction.

use redb::{ReadableTable, WriteTransaction};

use super::{
    CHECKSUMS, DOUBTED, HISTORY, JOBS, META, MemberError, MemberState, MetaTable, NOTES, PAGES, POLICY, POOL,
    PageTable, RecordTable, STATE, VHDS, VMS, codec, db_error,
};
use crate::base::ids::VhdId;
use crate::base::units::{BlockMask, ExtentIndex, Generation};
use crate::placement::ReplicaSet;
use crate::store::batch::{ExtentEdit, Step, apply_move};
use crate::store::checksums::PageChecksums;
use crate::store::edit::StoreEdit;
use crate::store::history::{HistoryRow, Subject};
use crate::store::note::Note;
use crate::store::page::{ExtentRow, PageKey, PageRow, Stamp};

pub(super) fn put_state(txn: &WriteTransaction, state: MemberState) -> Result<(), MemberError> {
    let mut meta: MetaTable<'_> = txn.open_table(META).map_err(db_error)?;
    meta.insert(STATE, state.encode().as_slice()).map_err(db_error)?;
    Ok(())
}

pub(super) fn put_doubted(txn: &WriteTransaction, doubted: bool) -> Result<(), MemberError> {
    let mut meta: MetaTable<'_> = txn.open_table(META).map_err(db_error)?;
    if doubted { meta.insert(DOUBTED, [].as_slice()) } else { meta.remove(DOUBTED) }.map(drop).map_err(db_error)
}

/// Returns by how many bytes rows have grown.
pub(super) fn apply_step(txn: &WriteTransaction, stamp: Stamp, step: &Step) -> Result<u64, MemberError> {
    match step {
        Step::Extents(edits) => {
            let mut pages: PageTable<'_> = txn.open_table(PAGES).map_err(db_error)?;
            edit_rows(&mut pages, stamp, edits, |edit| (edit.key, edit.place), ExtentEdit::apply)
        }
        Step::Edit(StoreEdit::PutPool(record)) => {
            let mut meta: MetaTable<'_> = txn.open_table(META).map_err(db_error)?;
            meta.insert(POOL, codec::seal(record.encode()).as_slice()).map_err(db_error)?;
            let is_of = |disk| record.disks.iter().any(|of_pool| of_pool.id == disk);
            delete_history(txn, |subject| matches!(subject, Subject::Disk(disk) if !is_of(disk)), Subject::DISKS)?;
            Ok(0)
        }
        Step::Edit(StoreEdit::PutPolicy(text)) => {
            let mut meta: MetaTable<'_> = txn.open_table(META).map_err(db_error)?;
            let sealed = codec::seal(text.clone().into_bytes());
            meta.insert(POLICY, sealed.as_slice()).map_err(db_error)?;
            Ok(sealed.len() as u64)
        }
        Step::Edit(StoreEdit::PutVhd(record)) => {
            put_record(&mut txn.open_table(VHDS).map_err(db_error)?, record.id.0, record.encode())
        }
        Step::Edit(StoreEdit::DeleteVhd(vhd)) => {
            let mut vhds: RecordTable<'_> = txn.open_table(VHDS).map_err(db_error)?;
            vhds.remove(vhd.0).map_err(db_error)?;
            let mut pages: PageTable<'_> = txn.open_table(PAGES).map_err(db_error)?;
            delete_pages(&mut pages, *vhd, 0)?;
            delete_pages(&mut txn.open_table(CHECKSUMS).map_err(db_error)?, *vhd, 0)?;
            delete_pages(&mut txn.open_table(HISTORY).map_err(db_error)?, *vhd, 0)?;
            Ok(0)
        }
        Step::Edit(StoreEdit::Shrink { vhd, extents, last }) => shrink(txn, stamp, *vhd, *extents, *last),
        Step::Edit(StoreEdit::PutJob(record)) => {
            put_record(&mut txn.open_table(JOBS).map_err(db_error)?, record.id.0, record.encode())
        }
        Step::Edit(StoreEdit::DeleteJob(job)) => delete_record(&mut txn.open_table(JOBS).map_err(db_error)?, job.0),
        Step::Edit(StoreEdit::PutVm(record)) => {
            put_record(&mut txn.open_table(VMS).map_err(db_error)?, record.id.0, record.encode())
        }
        Step::Edit(StoreEdit::DeleteVm(vm)) => delete_record(&mut txn.open_table(VMS).map_err(db_error)?, vm.0),
        Step::Edit(StoreEdit::Place { vhd, first, generation, replicas }) => {
            let mut pages: PageTable<'_> = txn.open_table(PAGES).map_err(db_error)?;
            let edits = (first.0..).zip(replicas).map(|(extent, &replicas)| {
                let (key, place) = PageKey::of(*vhd, ExtentIndex(extent));
                placed(key, place, *generation, replicas)
            });
            let edits: Vec<ExtentEdit> = edits.collect();
            edit_rows(&mut pages, stamp, &edits, |edit| (edit.key, edit.place), ExtentEdit::apply)
        }
        Step::Edit(StoreEdit::Move { vhd, moves }) => {
            let mut pages: PageTable<'_> = txn.open_table(PAGES).map_err(db_error)?;
            edit_rows(&mut pages, stamp, moves, |moved| PageKey::of(*vhd, moved.extent), apply_move)
        }
        Step::Edit(StoreEdit::Intend { vhd, pages: numbers, intend }) => {
            let mut pages: PageTable<'_> = txn.open_table(PAGES).map_err(db_error)?;
            let keys = numbers.iter().map(|page| PageKey { vhd: *vhd, page: *page });
            keys.map(|key| edit_row(&mut pages, stamp, key, |row| row.intent = *intend)).sum()
        }
        Step::Edit(StoreEdit::Note(note)) => put_note(&mut txn.open_table(NOTES).map_err(db_error)?, note),
        Step::Edit(StoreEdit::Checksums { vhd, page, checksums }) => {
            put_checksums(&mut txn.open_table(CHECKSUMS).map_err(db_error)?, (vhd.0, *page), checksums)
        }
        Step::History(rows) => put_history(txn, rows),
    }
}

/// Samples and heat of whoever is there; late ones of a VHD that has been deleted are dropped. Returns by how many bytes rows have grown.
fn put_history(txn: &WriteTransaction, rows: &[HistoryRow]) -> Result<u64, MemberError> {
    let vhds: RecordTable<'_> = txn.open_table(VHDS).map_err(db_error)?;
    let mut table: PageTable<'_> = txn.open_table(HISTORY).map_err(db_error)?;
    let mut grown = 0;
    for row in rows {
        if let Subject::Vhd(vhd) = row.subject
            && vhds.get(vhd.0).map_err(db_error)?.is_none()
        {
            continue;
        }
        let old = table.insert(row.key(), row.bytes.as_slice()).map_err(db_error)?;
        let old_len = old.map_or(0, |old| old.value().len());
        grown += row.bytes.len().saturating_sub(old_len) as u64;
        for gone in row.outside() {
            table.retain_in(gone, |_, _| false).map_err(db_error)?;
        }
    }
    Ok(grown)
}

/// Deletes samples and heat of some of the subjects whose codes are in a range.
fn delete_history(
    txn: &WriteTransaction,
    is_gone: impl Fn(Subject) -> bool,
    codes: std::ops::RangeInclusive<u32>,
) -> Result<(), MemberError> {
    let mut table: PageTable<'_> = txn.open_table(HISTORY).map_err(db_error)?;
    let range = (*codes.start(), 0)..=(*codes.end(), u32::MAX);
    table.retain_in(range, |(code, _), _| !is_gone(Subject::of_code(code))).map_err(db_error)
}

/// Deletes what lies beyond the last extent that stays. Rows do not grow by that.
fn shrink(txn: &WriteTransaction, stamp: Stamp, vhd: VhdId, extents: u32, last: BlockMask) -> Result<u64, MemberError> {
    let mut pages: PageTable<'_> = txn.open_table(PAGES).map_err(db_error)?;
    let (key, place) = PageKey::of(vhd, ExtentIndex(extents - 1));
    if let Some(beyond) = key.page.checked_add(1) {
        delete_pages(&mut pages, vhd, beyond)?;
        delete_pages(&mut txn.open_table(CHECKSUMS).map_err(db_error)?, vhd, beyond)?;
    }
    edit_row(&mut pages, stamp, key, |row| {
        row.extents[place].present = row.extents[place].present.and(last);
        row.extents[place + 1..].fill(ExtentRow::default());
    })
}

/// Deletes the rows of a VHD from a page on.
fn delete_pages(table: &mut PageTable<'_>, vhd: VhdId, first: u32) -> Result<(), MemberError> {
    table.retain_in((vhd.0, first)..=(vhd.0, u32::MAX), |_, _| false).map_err(db_error)
}

/// Returns by how many bytes the table has grown.
fn put_checksums(table: &mut PageTable<'_>, key: (u32, u32), checksums: &PageChecksums) -> Result<u64, MemberError> {
    if checksums.is_empty() {
        table.remove(key).map_err(db_error)?;
        return Ok(0);
    }
    let row = checksums.encode();
    let old = table.insert(key, row.as_slice()).map_err(db_error)?;
    Ok(row.len().saturating_sub(old.map_or(0, |old| old.value().len())) as u64)
}

/// Returns by how many bytes the table has grown.
fn put_note(table: &mut PageTable<'_>, note: &Note) -> Result<u64, MemberError> {
    let key = (note.key.kind as u32, note.key.number);
    let Some(bytes) = &note.bytes else {
        table.remove(key).map_err(db_error)?;
        return Ok(0);
    };
    let sealed = codec::seal(bytes.clone());
    let old = table.insert(key, sealed.as_slice()).map_err(db_error)?;
    Ok(sealed.len().saturating_sub(old.map_or(0, |old| old.value().len())) as u64)
}

/// Returns by how many bytes the table may have grown: what a record had before is not looked up.
fn put_record(table: &mut RecordTable<'_>, id: u32, record: Vec<u8>) -> Result<u64, MemberError> {
    let sealed = codec::seal(record);
    table.insert(id, sealed.as_slice()).map_err(db_error)?;
    Ok(sealed.len() as u64)
}

/// Nothing grows by that.
fn delete_record(table: &mut RecordTable<'_>, id: u32) -> Result<u64, MemberError> {
    table.remove(id).map_err(db_error)?;
    Ok(0)
}

pub(super) fn placed(key: PageKey, place: usize, generation: Generation, replicas: ReplicaSet) -> ExtentEdit {
    ExtentEdit {
        key,
        place,
        freed: None,
        cleared: Vec::new(),
        generation,
        replicas: Some(replicas),
        present: BlockMask::NONE,
    }
}

/// Changes extents, sorted by row. Returns by how many bytes rows have grown.
fn edit_rows<T>(
    pages: &mut PageTable<'_>,
    stamp: Stamp,
    edits: &[T],
    place: impl Fn(&T) -> (PageKey, usize),
    apply: impl Fn(&T, &mut ExtentRow),
) -> Result<u64, MemberError> {
    let mut grown = 0;
    for row in edits.chunk_by(|a, b| place(a).0 == place(b).0) {
        grown += edit_row(pages, stamp, place(&row[0]).0, |changed| {
            row.iter().for_each(|edit| apply(edit, &mut changed.extents[place(edit).1]));
        })?;
    }
    Ok(grown)
}

/// Reads, changes and writes one row.
fn edit_row(
    pages: &mut PageTable<'_>,
    stamp: Stamp,
    key: PageKey,
    change: impl FnOnce(&mut PageRow),
) -> Result<u64, MemberError> {
    let (old_len, old) = match pages.get((key.vhd.0, key.page)).map_err(db_error)? {
        Some(bytes) => {
            let row = PageRow::decode(bytes.value()).map_err(|source| MemberError::Page { key, source })?;
            (bytes.value().len(), row)
        }
        None => (0, PageRow::default()),
    };
    let mut row = old.clone();
    change(&mut row);
    if row == old {
        return Ok(0);
    }
    row.stamp = stamp;
    let mut bytes = Vec::with_capacity(old_len + 64);
    row.encode(&mut bytes);
    pages.insert((key.vhd.0, key.page), bytes.as_slice()).map_err(db_error)?;
    Ok(bytes.len().saturating_sub(old_len) as u64)
}
