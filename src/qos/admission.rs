//! What one VHD is limited by: buckets of its own, and those that it shares with the other VHDs of its VM.

use std::sync::Arc;

use super::bucket::{Bucket, Rate};
use crate::base::clock::Nanos;

/// The rates of one VHD or VM; `None`: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Requests.
    pub iops: Option<Rate>,
    /// Bytes that they read and write.
    pub bytes: Option<Rate>,
}

/// The buckets of one VHD, or of one VM.
#[derive(Debug)]
pub struct Buckets {
    iops: Option<Bucket>,
    bytes: Option<Bucket>,
}

/// What one request takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Requests.
    pub ios: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Which limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// Requests of the VHD.
    VhdIops,
    /// Bytes of the VHD.
    VhdBytes,
    /// Requests of its VM.
    VmIops,
    /// Bytes of its VM.
    VmBytes,
}

impl LimitKind {
    /// The word of the API.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            LimitKind::VhdIops => "vhd_iops",
            LimitKind::VhdBytes => "vhd_bytes_per_sec",
            LimitKind::VmIops => "vm_iops",
            LimitKind::VmBytes => "vm_bytes_per_sec",
        }
    }
}

/// Nothing may start yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// When to ask again.
    pub until: Nanos,
    /// Because of which limit; of several, the one that takes longest.
    pub by: LimitKind,
}

impl Buckets {
    /// Full buckets; `None` if nothing is limited.
    #[must_use]
    pub fn new(rates: Rates) -> Option<Buckets> {
        Buckets::carried(None, rates, Nanos(0))
    }

    /// Buckets for other rates, from those `before`.
    #[must_use]
    pub fn carried(before: Option<&Buckets>, rates: Rates, now: Nanos) -> Option<Buckets> {
        let carry = |before: Option<&Bucket>, rate: Rate, new: fn(Rate) -> Bucket| match before {
            Some(before) => before.carried(rate, now),
            None => new(rate),
        };
        let iops = rates.iops.map(|rate| carry(before.and_then(|b| b.iops.as_ref()), rate, Bucket::requests));
        let bytes = rates.bytes.map(|rate| carry(before.and_then(|b| b.bytes.as_ref()), rate, Bucket::bytes));
        (iops.is_some() || bytes.is_some()).then_some(Buckets { iops, bytes })
    }

    fn named(&self, iops: LimitKind, bytes: LimitKind) -> impl Iterator<Item = (LimitKind, &Bucket)> {
        let requests = self.iops.iter().map(move |bucket| (iops, bucket));
        requests.chain(self.bytes.iter().map(move |bucket| (bytes, bucket)))
    }

    /// Their rates.
    #[must_use]
    pub fn rates(&self) -> Rates {
        Rates { iops: self.iops.as_ref().map(Bucket::rate), bytes: self.bytes.as_ref().map(Bucket::rate) }
    }
}

/// Asks every bucket that a VHD is limited by.
#[derive(Debug)]
pub struct Admission {
    own: Option<Arc<Buckets>>,
    vm: Option<Arc<Buckets>>,
}

impl Admission {
    /// By these buckets; `None` if nothing is limited.
    #[must_use]
    pub fn new(own: Option<Arc<Buckets>>, vm: Option<Arc<Buckets>>) -> Option<Admission> {
        (own.is_some() || vm.is_some()).then_some(Admission { own, vm })
    }

    /// Those of the VHD itself.
    #[must_use]
    pub fn own(&self) -> Option<&Arc<Buckets>> {
        self.own.as_ref()
    }

    /// Those of its VM.
    #[must_use]
    pub fn vm(&self) -> Option<&Arc<Buckets>> {
        self.vm.as_ref()
    }

    fn buckets(&self) -> impl Iterator<Item = (LimitKind, &Bucket)> {
        let own = self.own.iter().flat_map(|buckets| buckets.named(LimitKind::VhdIops, LimitKind::VhdBytes));
        own.chain(self.vm.iter().flat_map(|buckets| buckets.named(LimitKind::VmIops, LimitKind::VmBytes)))
    }

    /// Whether a request may start now.
    ///
    /// # Errors
    /// When to ask again.
    pub fn may_start(&self, now: Nanos) -> Result<(), Hold> {
        let holds = self.buckets().filter_map(|(by, bucket)| Some(Hold { until: bucket.may_start(now).err()?, by }));
        holds.max_by_key(|hold| hold.until).map_or(Ok(()), Err)
    }

    /// The same hold for somebody who has just had a turn, the last request of which cost `last`: those who wait go first.
    #[must_use]
    pub fn behind_others(&self, hold: Hold, last: Cost) -> Hold {
        let bucket = self.buckets().find(|(kind, _)| *kind == hold.by).map(|(_, bucket)| bucket);
        let until = bucket.map_or(hold.until, |bucket| bucket.behind_others(last.of(hold.by)));
        Hold { until: until.max(hold.until), ..hold }
    }

    /// Takes for a request that has started. What nobody could know before, such as its length, may leave a debt.
    pub fn charge(&self, cost: Cost, now: Nanos) {
        self.buckets().for_each(|(kind, bucket)| bucket.charge(cost.of(kind), now));
    }

    fn count_waiting(&self, by: LimitKind, one_more: bool) {
        if let Some((_, bucket)) = self.buckets().find(|(kind, _)| *kind == by) {
            bucket.count_waiting(one_more);
        }
    }
}

impl Cost {
    fn of(self, kind: LimitKind) -> u64 {
        match kind {
            LimitKind::VhdIops | LimitKind::VmIops => self.ios,
            LimitKind::VhdBytes | LimitKind::VmBytes => self.bytes,
        }
    }
}

/// Somebody waits because of a limit, as long as this lives.
#[derive(Debug)]
pub struct Waiting {
    admission: Arc<Admission>,
    by: LimitKind,
}

impl Waiting {
    /// From now on.
    #[must_use]
    pub fn begin(admission: Arc<Admission>, by: LimitKind) -> Waiting {
        admission.count_waiting(by, true);
        Waiting { admission, by }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.admission.count_waiting(self.by, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(per_sec: u64, burst: u64) -> Rate {
        Rate { per_sec, burst }
    }

    fn buckets(iops: Option<Rate>, bytes: Option<Rate>) -> Option<Arc<Buckets>> {
        Buckets::new(Rates { iops, bytes }).map(Arc::new)
    }

    #[test]
    fn the_limit_that_takes_longest_counts() {
        let own = buckets(Some(rate(1000, 1)), Some(rate(1 << 20, 1)));
        let vm = buckets(Some(rate(10, 2)), None);
        let admission = Admission::new(own, vm).unwrap();
        assert_eq!(admission.may_start(Nanos(0)), Ok(()));
        admission.charge(Cost { ios: 1, bytes: 512 }, Nanos(0));
        let hold = admission.may_start(Nanos(0)).unwrap_err();
        assert_eq!((hold.by, hold.until), (LimitKind::VhdIops, Nanos(SECOND / 1000)));
        admission.charge(Cost { ios: 1, bytes: 0 }, hold.until);
        assert_eq!(admission.may_start(hold.until).unwrap_err().by, LimitKind::VmIops);
        admission.charge(Cost { ios: 0, bytes: 1 << 20 }, hold.until);
        assert_eq!(admission.may_start(hold.until).unwrap_err().by, LimitKind::VhdBytes);
    }

    #[test]
    fn vhds_of_one_vm_share_its_buckets() {
        let vm = buckets(Some(rate(10, 1)), None);
        let admission = || Admission::new(None, vm.clone()).unwrap();
        admission().charge(Cost { ios: 1, bytes: 0 }, Nanos(0));
        assert_eq!(admission().may_start(Nanos(0)).unwrap_err().until, Nanos(SECOND / 10));
        assert!(Admission::new(None, None).is_none() && buckets(None, None).is_none());
    }

    #[test]
    fn whoever_has_had_a_turn_lets_the_others_go_first() {
        let one = Cost { ios: 1, bytes: 0 };
        let shared = Arc::new(Admission::new(buckets(Some(rate(10, 3)), None), None).unwrap());
        (0..3).for_each(|_| shared.charge(one, Nanos(0)));
        let hold = shared.may_start(Nanos(0)).unwrap_err();
        assert_eq!(shared.behind_others(hold, one), hold, "nobody else waits");
        let other = Waiting::begin(Arc::clone(&shared), hold.by);
        assert_eq!(shared.behind_others(hold, one).until, Nanos(2 * SECOND / 10));
        drop(other);
        assert_eq!(shared.behind_others(hold, one), hold);
    }
}
