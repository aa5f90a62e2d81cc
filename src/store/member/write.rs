//! Changing rows within a transaction.

use redb::{ReadableTable, WriteTransaction};

use super::{
    META, MemberError, MemberState, MetaTable, PAGES, POOL, PageTable, STATE, VHDS, VhdTable, codec, db_error,
};
use crate::base::units::{BlockMask, ExtentIndex, Generation};
use crate::placement::ReplicaSet;
use crate::store::batch::{ExtentEdit, Step};
use crate::store::edit::StoreEdit;
use crate::store::page::{PageKey, PageRow, Stamp};

pub(super) fn put_state(txn: &WriteTransaction, state: MemberState) -> Result<(), MemberError> {
    let mut meta: MetaTable<'_> = txn.open_table(META).map_err(db_error)?;
    meta.insert(STATE, state.encode().as_slice()).map_err(db_error)?;
    Ok(())
}

/// Returns by how many bytes rows have grown.
pub(super) fn apply_step(txn: &WriteTransaction, stamp: Stamp, step: &Step) -> Result<u64, MemberError> {
    match step {
        Step::Extents(edits) => {
            let mut pages: PageTable<'_> = txn.open_table(PAGES).map_err(db_error)?;
            let mut grown = 0;
            for row in edits.chunk_by(|a, b| a.key == b.key) {
                grown += edit_row(&mut pages, stamp, row[0].key, row)?;
            }
            Ok(grown)
        }
        Step::Edit(StoreEdit::PutPool(record)) => {
            let mut meta: MetaTable<'_> = txn.open_table(META).map_err(db_error)?;
            meta.insert(POOL, codec::seal(record.encode()).as_slice()).map_err(db_error)?;
            Ok(0)
        }
        Step::Edit(StoreEdit::PutVhd(record)) => {
            let mut vhds: VhdTable<'_> = txn.open_table(VHDS).map_err(db_error)?;
            let sealed = codec::seal(record.encode());
            vhds.insert(record.id.0, sealed.as_slice()).map_err(db_error)?;
            Ok(sealed.len() as u64)
        }
        Step::Edit(StoreEdit::DeleteVhd(vhd)) => {
            let mut vhds: VhdTable<'_> = txn.open_table(VHDS).map_err(db_error)?;
            vhds.remove(vhd.0).map_err(db_error)?;
            let mut pages: PageTable<'_> = txn.open_table(PAGES).map_err(db_error)?;
            pages.retain_in((vhd.0, 0)..=(vhd.0, u32::MAX), |_, _| false).map_err(db_error)?;
            Ok(0)
        }
        Step::Edit(StoreEdit::Place { vhd, first, generation, replicas }) => {
            let mut pages: PageTable<'_> = txn.open_table(PAGES).map_err(db_error)?;
            let edits = (first.0..).zip(replicas).map(|(extent, &replicas)| {
                let (key, place) = PageKey::of(*vhd, ExtentIndex(extent));
                placed(key, place, *generation, replicas)
            });
            let mut grown = 0;
            let mut row: Vec<ExtentEdit> = Vec::new();
            for edit in edits {
                if row.first().is_some_and(|start| start.key != edit.key) {
                    grown += edit_row(&mut pages, stamp, row[0].key, &row)?;
                    row.clear();
                }
                row.push(edit);
            }
            if let Some(start) = row.first() {
                grown += edit_row(&mut pages, stamp, start.key, &row)?;
            }
            Ok(grown)
        }
    }
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

/// Reads, changes and writes one row.
fn edit_row(pages: &mut PageTable<'_>, stamp: Stamp, key: PageKey, edits: &[ExtentEdit]) -> Result<u64, MemberError> {
    let (old_len, old) = match pages.get((key.vhd.0, key.page)).map_err(db_error)? {
        Some(bytes) => {
            let row = PageRow::decode(bytes.value()).map_err(|source| MemberError::Page { key, source })?;
            (bytes.value().len(), row)
        }
        None => (0, PageRow::default()),
    };
    let mut row = old.clone();
    for edit in edits {
        edit.apply(&mut row.extents[edit.place]);
    }
    if row.extents == old.extents {
        return Ok(0);
    }
    row.stamp = stamp;
    let mut bytes = Vec::with_capacity(old_len + 64);
    row.encode(&mut bytes);
    pages.insert((key.vhd.0, key.page), bytes.as_slice()).map_err(db_error)?;
    Ok(bytes.len().saturating_sub(old_len) as u64)
}
