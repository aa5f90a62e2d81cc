//! Reading the table of a store that is open: what one member cannot say is asked of another.

use std::sync::atomic::Ordering;

use super::{MemberPlace, OpenError, OpenStore};
use crate::disk::BlockDev;
use crate::store::checksums::PageChecksums;
use crate::store::member::{Member, MemberError};
use crate::store::page::{self, ExtentRow, PageKey};

impl<D: BlockDev + ?Sized + 'static> OpenStore<D> {
    /// Shows every extent that the table says anything about, in the order of VHDs and extents. What one member has lost,
    /// be it a row or all that follows, is taken from another; [`OpenStore::heal_damaged`] then gives rows back to it.
    ///
    /// # Errors
    /// No member can be read to the end, or a row is damaged on all of them. Extents before have been shown.
    pub fn load(&self, each: impl FnMut(PageKey, usize, &ExtentRow)) -> Result<(), OpenError> {
        self.load_with_intents(each, |_| ())
    }

    /// As [`OpenStore::load`]; `intent` is shown the pages that have a write intent.
    ///
    /// # Errors
    /// As [`OpenStore::load`].
    pub fn load_with_intents(
        &self,
        mut each: impl FnMut(PageKey, usize, &ExtentRow),
        mut intent: impl FnMut(PageKey),
    ) -> Result<(), OpenError> {
        let mut shown: Option<PageKey> = None;
        let mut failed = None;
        for (place, member) in &self.members {
            let loaded = member.for_each_row(|key, bytes| {
                if shown.is_none_or(|last| last < key) {
                    if self.show_row(place, key, bytes, &mut each)? {
                        intent(key);
                    }
                    shown = Some(key);
                }
                Ok(())
            });
            match loaded {
                Ok(()) => return Ok(()),
                Err(source @ MemberError::Page { .. }) => return Err(OpenError::Damaged(source)),
                Err(source) => {
                    log::warn!("disk '{}': {source}; the rest is read from another member", place.name);
                    failed = Some(OpenError::Read { disk: place.name.clone(), source });
                }
            }
        }
        Err(failed.expect("an open store has a member"))
    }

    /// Shows the rows of checksums, in the order of keys. One that is damaged on a member is taken from another; one that no member
    /// has whole is left out, and logged: nobody knows what is on the disks there.
    ///
    /// # Errors
    /// No member can be read to the end. Rows before have been shown.
    pub fn load_checksums(&self, mut each: impl FnMut(PageKey, &PageChecksums)) -> Result<(), OpenError> {
        let mut shown: Option<PageKey> = None;
        let mut failed = None;
        for (place, member) in &self.members {
            let loaded = member.for_each_checksums(|key, bytes| {
                if shown.is_none_or(|last| last < key) {
                    if let Some(checksums) = self.checksums_of(place, key, bytes) {
                        each(key, &checksums);
                    }
                    shown = Some(key);
                }
            });
            match loaded {
                Ok(()) => return Ok(()),
                Err(source) => {
                    log::warn!("disk '{}': {source}; the rest is read from another member", place.name);
                    failed = Some(OpenError::Read { disk: place.name.clone(), source });
                }
            }
        }
        Err(failed.expect("an open store has a member"))
    }

    fn checksums_of(&self, place: &MemberPlace<D>, key: PageKey, bytes: &[u8]) -> Option<PageChecksums> {
        let damaged = match PageChecksums::decode(bytes) {
            Ok(checksums) => return Some(checksums),
            Err(damaged) => damaged,
        };
        let (vhd, page) = (key.vhd.0, key.page);
        let others = self.members.iter().filter(|(other, _)| other.id != place.id);
        let whole = |member: &Member<D>| PageChecksums::decode(&member.checksums(key).ok()??).ok();
        let found = others.into_iter().find_map(|(_, member)| whole(member));
        self.damaged.store(true, Ordering::Relaxed);
        let so = if found.is_some() { "it was read from another member" } else { "what is there is not checked" };
        log::warn!("disk '{}': page {page} of VHD {vhd}: {damaged}; {so}", place.name);
        found
    }

    /// Whether the row has a write intent.
    fn show_row(
        &self,
        place: &MemberPlace<D>,
        key: PageKey,
        bytes: &[u8],
        each: &mut impl FnMut(PageKey, usize, &ExtentRow),
    ) -> Result<bool, MemberError> {
        let Err(source) = page::visit(bytes, |place, extent| each(key, place, &extent)) else {
            return Ok(page::intends(bytes));
        };
        let damaged = MemberError::Page { key, source };
        self.damaged.store(true, Ordering::Relaxed);
        for (_, other) in self.members.iter().filter(|(other, _)| other.id != place.id) {
            if let Ok(Some(bytes)) = other.row(key)
                && page::visit(&bytes, |place, extent| each(key, place, &extent)).is_ok()
            {
                log::warn!("disk '{}': {damaged}; it was read from another member", place.name);
                return Ok(page::intends(&bytes));
            }
        }
        Err(damaged)
    }
}
