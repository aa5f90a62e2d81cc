//! What the VHDs of each VM come to, kept from change to change: a first write of one of them looks at that one only, however many
//! there are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{AddAssign, SubAssign};

use crate::base::ids::VhdId;

/// Slots, of one VHD or of all of a VM together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    /// What counts against the quota.
    pub charged: u64,
    /// The same, or what the VHD has reserved for itself, if that is more: no other VHD of the VM can have it.
    pub spoken_for: u64,
    /// What counts as used of the VM's reservation: what the VHD uses of it or, if that is more, has reserved for itself.
    pub claimed: u64,
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Sum) {
        self.charged += other.charged;
        self.spoken_for += other.spoken_for;
        self.claimed += other.claimed;
    }
}

impl SubAssign for Sum {
    fn sub_assign(&mut self, other: Sum) {
        self.charged -= other.charged;
        self.spoken_for -= other.spoken_for;
        self.claimed -= other.claimed;
    }
}

impl std::iter::Sum for Sum {
    fn sum<I: Iterator<Item = Sum>>(each: I) -> Sum {
        each.fold(Sum::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}

/// The sums of all VMs that have VHDs.
#[derive(Debug, Default)]
pub(super) struct Sums {
    of_vms: BTreeMap<String, Sum>,
    /// What each VHD is part of a sum with.
    counted: BTreeMap<VhdId, (String, Sum)>,
    /// VHDs that may have changed since.
    touched: BTreeSet<VhdId>,
}

impl Sums {
    /// The VHD may change, come, or go.
    pub fn touch(&mut self, vhd: VhdId) {
        self.touched.insert(vhd);
    }

    /// The sum of a VM. `now`: the VM of a VHD and what it comes to, if it exists and has one.
    pub fn of_vm<'a>(&mut self, vm: &str, now: impl Fn(VhdId) -> Option<(&'a str, Sum)>) -> Sum {
        while let Some(vhd) = self.touched.pop_first() {
            self.recount(vhd, now(vhd));
        }
        self.of_vms.get(vm).copied().unwrap_or_default()
    }

    fn recount(&mut self, vhd: VhdId, now: Option<(&str, Sum)>) {
        match (self.counted.get_mut(&vhd), now) {
            (Some((vm, before)), Some((name, sum))) if vm == name => {
                let all = self.of_vms.get_mut(name).expect("a VHD is counted");
                *all -= *before;
                *all += sum;
                *before = sum;
            }
            (_, now) => {
                if let Some((vm, before)) = self.counted.remove(&vhd) {
                    *self.of_vms.get_mut(&vm).expect("a VHD was counted") -= before;
                    if !self.counted.values().any(|(of, _)| *of == vm) {
                        self.of_vms.remove(&vm);
                    }
                }
                if let Some((name, sum)) = now {
                    *self.of_vms.entry(name.to_owned()).or_default() += sum;
                    self.counted.insert(vhd, (name.to_owned(), sum));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(slots: u64) -> Sum {
        Sum { charged: slots, spoken_for: slots + 1, claimed: slots + 2 }
    }

    #[test]
    fn a_sum_follows_its_vhds_from_vm_to_vm() {
        let mut sums = Sums::default();
        let mut vhds: BTreeMap<VhdId, (&str, Sum)> = BTreeMap::new();
        for (vhd, vm, slots) in [(1, "a", 3), (2, "a", 4), (3, "b", 9), (2, "a", 7), (1, "b", 3), (2, "b", 1)] {
            vhds.insert(VhdId(vhd), (vm, of(slots)));
            sums.touch(VhdId(vhd));
            for vm in ["a", "b", "c"] {
                let expected: Sum = vhds.values().filter(|(of, _)| *of == vm).map(|(_, sum)| *sum).sum();
                assert_eq!(sums.of_vm(vm, |vhd| vhds.get(&vhd).copied()), expected);
            }
        }
        vhds.clear();
        (1..4).for_each(|vhd| sums.touch(VhdId(vhd)));
        assert_eq!(sums.of_vm("b", |_| None), Sum::default());
        assert!(sums.of_vms.is_empty() && sums.counted.is_empty());
    }
}
