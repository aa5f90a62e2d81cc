//! Making a store anew from a dump.
//!
//! It takes many commits, and must not be opened before the last of them: extents that are not in yet would read as zeros, and their
//! slots would be given away. So all members stay in epoch 0, in which nobody opens them, until each has the whole dump. Then
//! they enter an epoch above all that came before: a member that was away has nothing to say against it.

use std::sync::Arc;

use super::{MemberPlace, OpenError, OpenStore, Records, in_parallel, make_each};
use crate::disk::BlockDev;
use crate::placement::record::PoolRecord;
use crate::store::batch::{Batch, Step};
use crate::store::dump::{self, RestoreError};
use crate::store::member::{Member, Tuning};

/// A store that has all of a dump, durably, and cannot be opened yet.
#[derive(Debug)]
pub struct Restored<D: BlockDev + ?Sized + 'static> {
    store: OpenStore<D>,
    /// The highest epoch of the members that it replaces, as far as they could be read.
    epoch_before: u64,
}

/// Makes a store of a dump on all `places`. Whatever the regions held is lost. Replicas are in doubt: since the dump was made, some
/// may have missed what others got.
///
/// # Errors
/// The dump is not valid, or a member could not be written: the store cannot be opened then, before this has succeeded.
pub fn restore<D: BlockDev + ?Sized + 'static>(
    places: Vec<MemberPlace<D>>,
    dump: &str,
) -> Result<Restored<D>, RestoreError> {
    let pool = dump::pool_of(dump.lines().next().unwrap_or_default())?;
    let tuning = Tuning::default();
    let before = in_parallel(places, |place| Member::open(Arc::clone(&place.disk), place.place, pool.uuid, tuning));
    let epochs = before.iter().filter_map(|(_, member)| Some(member.as_ref().ok()?.state().stamp.epoch));
    let epoch_before = epochs.max().unwrap_or(0);
    let places = before.into_iter().map(|(place, _)| place).collect();
    let mut store = empty(places, pool)?;
    dump::restore(dump.as_bytes(), |steps| Ok(store.put_on_all(steps)?))?;
    store.doubt_replicas()?;
    store.check_all()?;
    store.read_again()?;
    Ok(Restored { store, epoch_before })
}

/// Members that nobody opens: their epoch is 0.
fn empty<D: BlockDev + ?Sized + 'static>(
    places: Vec<MemberPlace<D>>,
    pool: PoolRecord,
) -> Result<OpenStore<D>, OpenError> {
    let uuid = pool.uuid;
    let make = |place: &MemberPlace<D>| Member::create(Arc::clone(&place.disk), place.place, uuid, Tuning::default());
    let members = make_each(places, make)?;
    Ok(OpenStore::of(members, Records::new(pool)))
}

impl<D: BlockDev + ?Sized + 'static> Restored<D> {
    /// From here on the store can be opened: its members enter `epoch`, or one above those of the members before if that is
    /// higher. Members that failed at that are in [`OpenStore::failed`].
    ///
    /// # Errors
    /// No majority took it up.
    pub fn finish(mut self, epoch: u64, lineage: u64) -> Result<OpenStore<D>, OpenError> {
        self.store.raise(epoch.max(self.epoch_before + 1), lineage)?;
        Ok(self.store)
    }
}

impl<D: BlockDev + ?Sized + 'static> OpenStore<D> {
    /// One commit, which no member may miss.
    fn put_on_all(&mut self, steps: Vec<Step>) -> Result<(), OpenError> {
        let mut stamp = self.state().stamp;
        stamp.commit += 1;
        let batch = Batch { stamp, steps };
        self.on_each(|member| member.apply(&batch));
        self.check_all()
    }

    fn check_all(&mut self) -> Result<(), OpenError> {
        match self.failed.pop() {
            None => Ok(()),
            Some(failed) => Err(OpenError::Write { disk: failed.disk, source: failed.error }),
        }
    }
}
