//! Write intents: the table says of a page that its replicas are written to before they are (ordering rule 7).
//!
//! Set once, when the first write asks. Taken back when the page has not been written to for a while: reactors are made to ask again,
//! they pass fences on all disks, and if everything that the VHD has written is synced by then, the rows change. A write that asks
//! meanwhile gets the intent back at once.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, DiskSet, ReactorId, VhdId};
use crate::base::limits::INTENT_IDLE_MILLIS;
use crate::base::units::ExtentIndex;
use crate::mover::messages::WaveId;
use crate::owner::Owner;
use crate::owner::outbox::OwnerOutbox;
use crate::reactor::messages::{AllocateError, ReactorMessage};
use crate::store::edit::{EditFailed, EditId, StoreEdit};
use crate::store::page::PageKey;

use super::checksums::CHECKSUM_ROW_ROOM;

/// Names of fences that intents wait for have this bit; those of waves are below.
const CLEANING: u64 = 1 << 63;

/// Pages of one edit that takes intents back.
const CLEANED_MAX: usize = 64;

/// A write that waits for an intent.
#[derive(Clone, Copy, Debug)]
struct Asking {
    reactor: ReactorId,
    ticket: u64,
    page: PageKey,
}

/// Intents that are about to be taken back.
#[derive(Debug)]
struct Cleaning {
    /// What its fences are called.
    name: WaveId,
    pages: BTreeSet<PageKey>,
    /// Disks on which fences are awaited.
    missing: DiskSet,
}

/// Write intents of all VHDs.
#[derive(Debug, Default)]
pub(in crate::owner) struct Intents {
    /// Pages that have one, as far as the table has been told.
    set: BTreeSet<PageKey>,
    asking: Vec<Asking>,
    /// Pages that are to have one although nobody writes to them.
    learning: BTreeSet<PageKey>,
    making: Option<(EditId, BTreeSet<PageKey>)>,
    cleaning: Option<Cleaning>,
    cleanings: u64,
    looked: Nanos,
    /// The store has failed.
    broken: bool,
}

impl Intents {
    /// The page has had one since before the daemon started.
    pub fn found(&mut self, page: PageKey) {
        self.set.insert(page);
    }

    /// Whether the table has one for the page, or is about to: also while reactors have to ask again.
    pub fn has(&self, page: PageKey) -> bool {
        self.set.contains(&page)
    }

    /// When [`Owner::clean_intents`] has something to do.
    pub fn due(&self) -> Option<Nanos> {
        (!self.set.is_empty() && !self.broken)
            .then(|| self.looked.after(std::time::Duration::from_millis(INTENT_IDLE_MILLIS)))
    }
}

impl Owner {
    /// A write wants an intent for the page of an extent.
    pub(in crate::owner) fn intend(
        &mut self,
        (reactor, ticket): (ReactorId, u64),
        id: VhdId,
        extent: ExtentIndex,
        out: &mut impl OwnerOutbox,
    ) {
        let (page, _) = PageKey::of(id, extent);
        let asking = Asking { reactor, ticket, page };
        let Some(vhd) = self.vhds.get(id).filter(|vhd| !vhd.frozen && extent.0 < vhd.state.map.extents()) else {
            return answer(asking, Err(AllocateError::Deleted), out);
        };
        if self.intents.broken {
            return answer(asking, Err(AllocateError::Store), out);
        }
        // The table still has it, if it was to be taken back.
        let kept = self.intents.cleaning.as_mut().is_some_and(|cleaning| cleaning.pages.remove(&page));
        if kept {
            vhd.state.map.set_intent(page.page);
        }
        if vhd.state.map.has_intent(page.page) {
            return answer(asking, Ok(()), out);
        }
        self.intents.asking.push(asking);
        self.make_intents(out);
    }

    /// Checksums in the page are about to be learned: they come into the table with the end of an intent.
    pub(in crate::owner) fn intend_to_learn(&mut self, page: PageKey, out: &mut impl OwnerOutbox) {
        if !self.intents.broken && !self.intents.set.contains(&page) && self.intents.learning.insert(page) {
            self.make_intents(out);
        }
    }

    /// Begins an edit for what is asked, unless one is under way.
    fn make_intents(&mut self, out: &mut impl OwnerOutbox) {
        if self.intents.making.is_some() || (self.intents.asking.is_empty() && self.intents.learning.is_empty()) {
            return;
        }
        let gone = |asking: &Asking| self.vhds.get(asking.page.vhd).is_none_or(|vhd| vhd.frozen);
        let (void, asking): (Vec<_>, Vec<_>) = std::mem::take(&mut self.intents.asking).into_iter().partition(gone);
        void.into_iter().for_each(|asking| answer(asking, Err(AllocateError::Deleted), out));
        self.intents.asking = asking;
        let mut pages = std::mem::take(&mut self.intents.learning);
        pages.retain(|page| self.vhds.get(page.vhd).is_some_and(|vhd| !vhd.frozen));
        pages.extend(self.intents.asking.iter().map(|asking| asking.page));
        if pages.is_empty() {
            return;
        }
        self.intents.set.extend(&pages);
        let edit = self.next_edit();
        out.edit(edit, rows(&pages, true));
        self.intents.making = Some((edit, pages));
    }

    /// Intents are durable, or the store has failed. False if the edit is another one.
    pub(in crate::owner) fn intent_edit_done(
        &mut self,
        edit: EditId,
        result: Result<(), EditFailed>,
        out: &mut impl OwnerOutbox,
    ) -> bool {
        let Some((_, pages)) = self.intents.making.take_if(|(making, _)| *making == edit) else { return false };
        self.intents.broken |= result.is_err();
        for page in pages.iter().filter(|_| result.is_ok()) {
            self.intent_is_durable(*page);
        }
        let is_done = |asking: &Asking| result.is_err() || pages.contains(&asking.page);
        let (done, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.intents.asking).into_iter().partition(is_done);
        self.intents.asking = waiting;
        let result = result.map_err(|_| AllocateError::Store);
        done.into_iter().for_each(|asking| answer(asking, result, out));
        self.make_intents(out);
        true
    }

    /// Rows that give these pages an intent, for an edit that is about to be handed over; none if they have one.
    pub(in crate::owner) fn intend_with(&mut self, vhd: VhdId, mut pages: Vec<u32>) -> Option<StoreEdit> {
        pages.retain(|page| self.intents.set.insert(PageKey { vhd, page: *page }));
        (!pages.is_empty()).then_some(StoreEdit::Intend { vhd, pages, intend: true })
    }

    /// Begins to take back the intents of pages that have not been written to since the last look.
    pub(in crate::owner) fn clean_intents(&mut self, now: Nanos, out: &mut impl OwnerOutbox) {
        if self.intents.due().is_none_or(|due| due > now) || self.intents.broken {
            return;
        }
        self.intents.looked = now;
        self.intents.set.retain(|page| self.vhds.get(page.vhd).is_some());
        let making = self.intents.making.as_ref().map(|(_, pages)| pages);
        let mut idle = BTreeSet::new();
        for page in &self.intents.set {
            let vhd = self.vhds.get(page.vhd).expect("just looked");
            let map = &vhd.state.map;
            // What is written to an extent with one replica, while another one is made, does not ask.
            if vhd.frozen || self.waves.is_moving(page.vhd) || !self.may_keep_checksums(*page) {
                continue;
            }
            let is_idle = !map.take_written(page.page) && !map.page_is_in_doubt(page.page);
            if is_idle && making.is_none_or(|pages| !pages.contains(page)) && idle.len() < CLEANED_MAX {
                idle.insert(*page);
            }
        }
        if self.intents.cleaning.is_some() || idle.is_empty() {
            return;
        }
        for page in &idle {
            self.vhds.get(page.vhd).expect("just looked").state.map.clear_intent(page.page);
        }
        let works = |disk: &&super::super::space::DiskSpace| disk.open && !disk.state.is_failed();
        let missing: DiskSet = self.space.iter().filter(works).map(|disk| disk.state.id).collect();
        self.intents.cleanings += 1;
        let name = WaveId(CLEANING | self.intents.cleanings);
        self.intents.cleaning = Some(Cleaning { name, pages: idle, missing });
        missing.iter().for_each(|disk| self.reuse.fence_for(name, disk, out));
        if missing.is_empty() {
            self.end_cleaning(out);
        }
    }

    /// The table has an intent for the page: reactors need not ask, and nobody takes it back just now.
    pub(in crate::owner) fn intent_is_durable(&mut self, page: PageKey) {
        if let Some(cleaning) = &mut self.intents.cleaning {
            cleaning.pages.remove(&page);
        }
        if let Some(vhd) = self.vhds.get(page.vhd).filter(|_| self.intents.set.contains(&page)) {
            vhd.state.map.set_intent(page.page);
        }
    }

    /// The intent of the page stays as long as its replicas are not known to be equal. False if the table has none: then nothing was
    /// written to several replicas there.
    pub(super) fn keep_intent(&mut self, page: PageKey) -> bool {
        let is_set = self.vhds.get(page.vhd).is_some_and(|vhd| vhd.state.map.has_intent(page.page));
        let is_kept = is_set || self.intents.cleaning.as_ref().is_some_and(|cleaning| cleaning.pages.contains(&page));
        if is_kept {
            self.intent_is_durable(page);
        }
        is_kept
    }

    /// The daemon stops: nobody writes any more, and all disks have been synced as far as they can be. The next one need not look for
    /// what may differ.
    pub fn end_intents(&mut self, out: &mut impl OwnerOutbox) {
        self.cancel_cleaning();
        if self.intents.broken {
            return;
        }
        let is_settled = |page: &&PageKey| {
            let vhd = self.vhds.get(page.vhd).filter(|vhd| !vhd.frozen);
            vhd.is_some_and(|vhd| !vhd.state.map.page_is_in_doubt(page.page))
        };
        let mut room = self.room_for_checksums();
        let has_room = |page: &PageKey| {
            let needed = if self.is_checked(page.vhd) { CHECKSUM_ROW_ROOM } else { 0 };
            room.checked_sub(needed).map(|left| room = left).is_some()
        };
        let settled = self.intents.set.iter().filter(is_settled).copied();
        let pages: Vec<PageKey> = settled.filter(has_room).collect();
        for pages in pages.chunks(CLEANED_MAX) {
            let pages = pages.iter().copied().collect();
            self.intents.cleaning = Some(Cleaning { name: WaveId(CLEANING), pages, missing: DiskSet::default() });
            self.end_cleaning(out);
        }
    }

    /// A disk has failed, and may have missed what its replicas were to get: all intents stay.
    pub(in crate::owner) fn cancel_cleaning(&mut self) {
        for page in self.intents.cleaning.take().into_iter().flat_map(|cleaning| cleaning.pages) {
            self.intent_is_durable(page);
        }
    }

    /// The VHD ends earlier from now on, and so do its rows.
    pub(in crate::owner) fn forget_pages_beyond(&mut self, vhd: VhdId, extents: u32) {
        let stays = |page: &PageKey| page.vhd != vhd || page.extent(0).is_some_and(|first| first.0 < extents);
        self.intents.set.retain(stays);
        if let Some(cleaning) = &mut self.intents.cleaning {
            cleaning.pages.retain(stays);
        }
        self.repairs.forget_pages(stays);
    }

    /// A fence of a cleaning was passed by all. False if it is another fence.
    pub(in crate::owner) fn cleaning_passed(&mut self, name: WaveId, disk: DiskId, out: &mut impl OwnerOutbox) -> bool {
        if name.0 & CLEANING == 0 {
            return false;
        }
        let Some(cleaning) = self.intents.cleaning.as_mut().filter(|cleaning| cleaning.name == name) else {
            return true;
        };
        cleaning.missing.remove(disk);
        if cleaning.missing.is_empty() {
            self.end_cleaning(out);
        }
        true
    }

    /// Nothing that was written under the intents is in flight: they go, if everything is synced.
    fn end_cleaning(&mut self, out: &mut impl OwnerOutbox) {
        let Some(Cleaning { pages, .. }) = self.intents.cleaning.take() else { return };
        let mut quiet: BTreeMap<VhdId, bool> = BTreeMap::new();
        let mut cleaned = BTreeSet::new();
        for page in pages {
            let Some(vhd) = self.vhds.get(page.vhd) else { continue };
            let is_synced = |disk: DiskId| {
                self.space.get(disk).is_some_and(|of| of.state.is_synced(vhd.state.sync_wanted_on(disk)))
            };
            // What is written to an extent with one replica, while another one is made, goes on without asking.
            let is_quiet =
                || !vhd.frozen && !self.waves.is_moving(page.vhd) && vhd.state.disks_to_sync().iter().all(is_synced);
            // Replicas that differ are known to do so only by the intent until they are equal, or stale in the table.
            let is_settled = !self.stale.concerns(page.vhd) && !self.repairs.knows_page(page);
            if *quiet.entry(page.vhd).or_insert_with(is_quiet) && is_settled && self.is_unclaimed(page) {
                self.intents.set.remove(&page);
                cleaned.insert(page);
            } else {
                vhd.state.map.set_intent(page.page);
            }
        }
        if !cleaned.is_empty() {
            // Nobody waits for it; if it fails, so does the store.
            let edit = self.next_edit();
            let checksums = cleaned.iter().filter_map(|page| self.checksum_row(*page));
            let rows = rows(&cleaned, false).into_iter().chain(checksums).collect();
            out.edit(edit, rows);
        }
    }
}

fn rows(pages: &BTreeSet<PageKey>, intend: bool) -> Vec<StoreEdit> {
    let mut rows: Vec<StoreEdit> = Vec::new();
    for page in pages {
        match rows.last_mut() {
            Some(StoreEdit::Intend { vhd, pages, .. }) if *vhd == page.vhd => pages.push(page.page),
            _ => rows.push(StoreEdit::Intend { vhd: page.vhd, pages: vec![page.page], intend }),
        }
    }
    rows
}

fn answer(asking: Asking, result: Result<(), AllocateError>, out: &mut impl OwnerOutbox) {
    let message = ReactorMessage::Allocated { ticket: asking.ticket, result };
    out.to_reactor(asking.reactor, message);
}
