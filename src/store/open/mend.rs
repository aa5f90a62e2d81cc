//! Making members equal to the right one.

use std::sync::Arc;
use std::thread;

use super::{MemberPlace, Mended, OpenOptions, OpenStore, fail};
use crate::disk::BlockDev;
use crate::store::member::{Member, MemberError};
use crate::store::mirror::majority;
use crate::store::region::{RegionBackend, RegionError};

impl<D: BlockDev + ?Sized + 'static> OpenStore<D> {
    /// Makes members with another commit equal to the right one.
    pub(super) fn mend(&mut self) {
        let right = self.state();
        let (same, stale): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.members).into_iter().partition(|(_, member)| member.state() == right);
        self.members = same;
        let source = &self.members[0].1;
        let copied: Vec<_> = thread::scope(|scope| {
            let copy = |(place, mut member): (MemberPlace<D>, Member<D>)| {
                scope.spawn(move || {
                    let copied = source.snapshot().and_then(|source| member.copy_from(&source));
                    (place, member, copied)
                })
            };
            let threads: Vec<_> = stale.into_iter().map(copy).collect();
            threads.into_iter().map(|thread| thread.join().expect("a panic aborts the process")).collect()
        });
        for (place, member, copied) in copied {
            match copied {
                Ok(copied) => {
                    self.mended.push(Mended { disk: place.name.clone(), rebuilt: false, copied });
                    self.members.push((place, member));
                }
                Err(error) => self.failed.push(fail(&place, error)),
            }
        }
    }

    /// Makes unreadable members anew, if the others are a majority without them.
    pub(super) fn rebuild(&mut self, broken: Vec<(MemberPlace<D>, MemberError)>, options: &OpenOptions) {
        let enough = self.members.len() >= majority(self.total);
        for (place, error) in broken {
            if !enough || !can_be_rebuilt(&error) {
                self.failed.push(fail(&place, error));
                continue;
            }
            let source = &self.members[0].1;
            let made = RegionBackend::format(Arc::clone(&place.disk), place.place, options.pool)
                .map_err(MemberError::from)
                .and_then(|region| Member::create_in(region, options.tuning))
                .and_then(|mut member| member.copy_from(&source.snapshot()?).map(|copied| (member, copied)));
            match made {
                Ok((member, copied)) => {
                    self.mended.push(Mended { disk: place.name.clone(), rebuilt: true, copied });
                    self.members.push((place, member));
                }
                Err(error) => self.failed.push(fail(&place, error)),
            }
        }
    }
}

/// Whether it can be made anew in place: it holds nothing that could still be needed by somebody else.
fn can_be_rebuilt(error: &MemberError) -> bool {
    match error {
        MemberError::Region(RegionError::NotFormatted | RegionError::Damaged) => true,
        MemberError::Database(redb::Error::Io(_)) => false,
        MemberError::Database(_) | MemberError::Missing(_) | MemberError::Damaged(_) | MemberError::Page { .. } => true,
        MemberError::Region(_) | MemberError::Version { .. } | MemberError::Record(_) => false,
    }
}
