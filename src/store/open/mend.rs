//! Making members equal to the right one, without copying what a disk has damaged.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use super::{Here, MemberPlace, Mended, OpenError, OpenOptions, OpenStore, Records, fail};
use crate::disk::BlockDev;
use crate::store::member::{Copied, Member, MemberError, MemberState, Snapshot};
use crate::store::mirror::majority;
use crate::store::region::{RegionBackend, RegionError};

impl<D: BlockDev + ?Sized + 'static> OpenStore<D> {
    /// Makes members with another commit equal to the right one. If a row that they lack is damaged wherever the last commit is, and
    /// too few members have that commit for it to have been acknowledged, the one before is right.
    ///
    /// # Errors
    /// A row is damaged wherever the last commit is, and it may have been acknowledged.
    pub(super) fn mend(&mut self) -> Result<(), OpenError> {
        let newest = self.state();
        let mut right = newest;
        loop {
            let of_it = |(_, member): &Here<D>| member.state() == right;
            // One that was put in doubt, and not served then, has rows that no commit has: unless all of them have, they know better.
            let doubted = self.members.iter().filter(|here| of_it(here)).all(|(_, member)| member.is_doubted());
            let (same, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.members)
                .into_iter()
                .partition(|here| of_it(here) && here.1.is_doubted() == doubted);
            self.members = same;
            if right != newest {
                self.lead_with_readable()?;
            }
            let Err(damaged) = self.copy_to(others) else { break };
            let older = self.older_than(right);
            let disk = self.members[0].0.name.clone();
            let Some(older) = older else { return Err(OpenError::DamagedAhead { disk, source: damaged }) };
            log::error!(
                "disk '{disk}': {damaged}; {} of the placement store, which was never acknowledged, is given up for {}",
                right.stamp,
                older.stamp
            );
            right = older;
        }
        if right != newest {
            self.read_again()?;
        }
        Ok(())
    }

    /// The records of the first member are copied to the others.
    fn lead_with_readable(&mut self) -> Result<(), OpenError> {
        let mut failed = None;
        for at in 0..self.members.len() {
            let (place, member) = &self.members[at];
            match Records::of(member) {
                Ok(_) => {
                    self.members.swap(0, at);
                    return Ok(());
                }
                Err(source) => failed = failed.or(Some(OpenError::Read { disk: place.name.clone(), source })),
            }
        }
        Err(failed.expect("a member has the state that was found"))
    }

    /// Reads the records anew: those that were read are not right, or there were none yet.
    pub(super) fn read_again(&mut self) -> Result<(), OpenError> {
        let (place, member) = &self.members[0];
        let read = Records::of(member).map_err(|source| OpenError::Read { disk: place.name.clone(), source })?;
        let Records { pool, vhds, jobs, vms, policy } = read;
        (self.pool, self.vhds, self.jobs, self.vms, self.policy) = (pool, vhds, jobs, vms, policy);
        Ok(())
    }

    /// The newest state of a member before `right`, if no commit after it can have been acknowledged: those that have one and those
    /// that cannot be asked are no majority.
    fn older_than(&self, right: MemberState) -> Option<MemberState> {
        let states = || self.members.iter().map(|(_, member)| member.state());
        let older = states().filter(|state| state.stamp < right.stamp).max_by_key(|state| state.stamp)?;
        let newer = states().filter(|state| state.stamp > older.stamp).count();
        let unknown = self.total.saturating_sub(self.members.len());
        (newer + unknown < majority(self.total)).then_some(older)
    }

    /// Makes `targets` equal to the members that there are, which have one state. Those that fail are out.
    ///
    /// # Errors
    /// A row is damaged on all of them: the targets are members, as they were.
    fn copy_to(&mut self, targets: Vec<Here<D>>) -> Result<(), MemberError> {
        let sources = &self.members;
        let copied: Vec<_> = thread::scope(|scope| {
            let copy = |(place, mut member): Here<D>| {
                scope.spawn(move || {
                    let copied = snapshots(sources).and_then(|sources| member.copy_from_all(&sources));
                    (place, member, copied)
                })
            };
            let threads: Vec<_> = targets.into_iter().map(copy).collect();
            threads.into_iter().map(|thread| thread.join().expect("a panic aborts the process")).collect()
        });
        let mut found = false;
        let (mut untouched, mut damaged) = (Vec::new(), None);
        for (place, member, copied) in copied {
            match copied {
                Ok(copied) => {
                    found |= copied.damaged > 0;
                    self.mended.push(Mended { disk: place.name.clone(), rebuilt: false, copied });
                    self.members.push((place, member));
                }
                // Rows are looked at before they are copied: it is the source's.
                Err(error @ MemberError::Page { .. }) => {
                    untouched.push((place, member));
                    damaged = Some(error);
                }
                Err(error) => self.failed.push(fail(&place, error)),
            }
        }
        self.members.extend(untouched);
        if found {
            self.heal();
        }
        damaged.map_or(Ok(()), Err)
    }

    /// Makes members whole again that were found to have damaged rows while the table was loaded, if others have these.
    ///
    /// # Errors
    /// No majority is left.
    pub fn heal_damaged(&mut self) -> Result<(), OpenError> {
        if self.damaged.swap(false, Ordering::Relaxed) {
            self.heal();
        }
        self.check_majority()
    }

    /// Members of one state: each takes from the others what it has damaged. One after the other, so that each finds more in those
    /// before it.
    fn heal(&mut self) {
        for at in 0..self.members.len() {
            let (place, mut member) = self.members.remove(at);
            let state = member.state();
            let equal = self.members.iter().filter(|(_, other)| other.state() == state);
            let copied = snapshots(equal).and_then(|sources| {
                if sources.is_empty() { Ok(Copied::default()) } else { member.copy_from_all(&sources) }
            });
            match copied {
                Ok(Copied { put: 0, deleted: 0, .. }) => {}
                Ok(copied) => {
                    log::warn!("disk '{}': {} rows were replaced by those of another member", place.name, copied.put);
                    self.mended.push(Mended { disk: place.name.clone(), rebuilt: false, copied });
                }
                Err(error @ MemberError::Page { .. }) => {
                    log::error!("disk '{}': {error}, and on all others", place.name)
                }
                // It is asked again when it is written to, and is out if that fails.
                Err(error) => log::error!("disk '{}': damaged rows cannot be replaced: {error}", place.name),
            }
            self.members.insert(at, (place, member));
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
            let sources = snapshots(&self.members);
            let made = RegionBackend::format(Arc::clone(&place.disk), place.place, options.pool)
                .map_err(MemberError::from)
                .and_then(|region| Member::create_in(region, options.tuning))
                .and_then(|mut member| member.copy_from_all(&sources?).map(|copied| (member, copied)));
            match made {
                Ok((member, copied)) => {
                    self.mended.push(Mended { disk: place.name.clone(), rebuilt: true, copied });
                    self.members.push((place, member));
                    if copied.damaged > 0 {
                        self.heal();
                    }
                }
                Err(error) => self.failed.push(fail(&place, error)),
            }
        }
    }
}

fn snapshots<'a, D: BlockDev + ?Sized + 'static>(
    members: impl IntoIterator<Item = &'a Here<D>>,
) -> Result<Vec<Snapshot>, MemberError> {
    members.into_iter().map(|(_, member)| member.snapshot()).collect()
}

/// Whether it can be made anew in place: it holds nothing that could still be needed by somebody else.
fn can_be_rebuilt(error: &MemberError) -> bool {
    match error {
        MemberError::Region(RegionError::NotFormatted | RegionError::Damaged) => true,
        MemberError::Database(redb::Error::Io(_)) => false,
        MemberError::Database(_)
        | MemberError::Missing(_)
        | MemberError::Unfinished
        | MemberError::Damaged(_)
        | MemberError::Page { .. } => true,
        MemberError::Region(_) | MemberError::Version { .. } | MemberError::Record(_) => false,
    }
}
