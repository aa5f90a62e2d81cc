//! Putting replicas in doubt: what the table says of them may be of another time than what is on the disks.

use super::{OpenError, OpenStore};
use crate::disk::BlockDev;
use crate::store::batch::{Batch, Step};
use crate::store::edit::StoreEdit;
use crate::store::page::PageKey;

/// Pages of one commit: their rows are rewritten, and have to have room in the smallest region twice.
const PAGES_PER_COMMIT: usize = 256;

impl<D: BlockDev + ?Sized + 'static> OpenStore<D> {
    /// Gives a write intent to every page that has an extent with several replicas. A table of another time may call a replica in
    /// sync that has missed writes since: reads would alternate between two contents for ever, and a scrub could repair the good one
    /// from the other. With an intent all reads come from one of them until the others have been made equal to it.
    ///
    /// It is no commit: members that are not here, and have seen more, must not look older than these because of it.
    ///
    /// # Errors
    /// The table cannot be read, or no majority took it up.
    pub fn doubt_replicas(&mut self) -> Result<(), OpenError> {
        let mut pages: Vec<PageKey> = Vec::new();
        self.load(|key, _, extent| {
            if extent.replicas.len() > 1 && pages.last() != Some(&key) {
                pages.push(key);
            }
        })?;
        // A row that cannot be read cannot be changed.
        self.heal_damaged()?;
        for of_vhd in pages.chunk_by(|a, b| a.vhd == b.vhd) {
            for pages in of_vhd.chunks(PAGES_PER_COMMIT) {
                let (vhd, pages) = (pages[0].vhd, pages.iter().map(|key| key.page).collect());
                let steps = vec![Step::Edit(StoreEdit::Intend { vhd, pages, intend: true })];
                let batch = Batch { stamp: self.state().stamp, steps };
                self.on_each(|member| member.apply(&batch));
                self.check_majority()?;
            }
        }
        Ok(())
    }
}
