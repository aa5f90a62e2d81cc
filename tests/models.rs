//! Property tests: allocator, homes, layouts and placement view against plain models.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "models/layout.rs"]
mod layout;
#[path = "models/table.rs"]
mod table;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use spanblk::base::ids::{DiskId, VhdId};
use spanblk::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
use spanblk::placement::allocator::{SlotAllocator, SlotState};
use spanblk::placement::homes::Homes;
use spanblk::placement::view::{ClaimError, Lookup, Version, VhdMap};
use spanblk::placement::{Replica, ReplicaSet, ReplicaState};

#[derive(Clone, Debug)]
enum SlotEdit {
    Take(u32),
    TakeNear(u32),
    GiveBack(usize),
    Release(usize),
    TakeRun(u32, u32),
}

fn slot_edit() -> impl Strategy<Value = SlotEdit> {
    prop_oneof![
        any::<u32>().prop_map(SlotEdit::Take),
        any::<u32>().prop_map(SlotEdit::TakeNear),
        any::<usize>().prop_map(SlotEdit::GiveBack),
        any::<usize>().prop_map(SlotEdit::Release),
        (any::<u32>(), 0..300_u32).prop_map(|(at, len)| SlotEdit::TakeRun(at, len)),
    ]
}

#[derive(Default)]
struct SlotModel {
    free: BTreeSet<u32>,
    used: BTreeSet<u32>,
    limbo: BTreeSet<u32>,
}

impl SlotModel {
    fn next_free(&self, from: u32) -> Option<u32> {
        self.free.range(from..).next().copied()
    }
}

fn nth(set: &BTreeSet<u32>, n: usize) -> Option<u32> {
    if set.is_empty() { None } else { set.iter().nth(n % set.len()).copied() }
}

fn apply(edit: &SlotEdit, slots: u32, real: &mut SlotAllocator, model: &mut SlotModel) {
    let take = |real: &mut SlotAllocator, model: &mut SlotModel, slot: u32| {
        let expected = model.free.remove(&slot);
        assert_eq!(real.take(SlotIndex(slot)), expected);
        if expected {
            model.used.insert(slot);
        }
    };
    match *edit {
        SlotEdit::Take(slot) => take(real, model, slot % (slots + 2)),
        SlotEdit::TakeRun(first, len) => {
            let first = first % slots;
            (first..(first + len).min(slots)).for_each(|slot| take(real, model, slot));
        }
        SlotEdit::TakeNear(hint) => {
            let hint = hint % (slots + 70);
            let expected = model.next_free(hint).or_else(|| model.next_free(0));
            assert_eq!(real.take_near(SlotIndex(hint)).map(|slot| slot.0), expected);
            if let Some(slot) = expected {
                model.free.remove(&slot);
                model.used.insert(slot);
            }
        }
        SlotEdit::GiveBack(n) => {
            if let Some(slot) = nth(&model.used, n) {
                real.give_back(SlotIndex(slot));
                model.used.remove(&slot);
                model.limbo.insert(slot);
            }
        }
        SlotEdit::Release(n) => {
            if let Some(slot) = nth(&model.limbo, n) {
                real.release(SlotIndex(slot));
                model.limbo.remove(&slot);
                model.free.insert(slot);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn allocator_agrees_with_sets(
        slots in prop_oneof![1..200_u32, 4090..4100_u32, Just(5000_u32)],
        edits in prop::collection::vec(slot_edit(), 1..120),
        probes in prop::collection::vec(any::<u32>(), 4),
    ) {
        let mut real = SlotAllocator::new(slots);
        let mut model = SlotModel { free: (0..slots).collect(), ..SlotModel::default() };
        for edit in &edits {
            apply(edit, slots, &mut real, &mut model);
            real.check().unwrap();
            prop_assert_eq!(real.free() as usize, model.free.len());
            prop_assert_eq!(real.used() as usize, model.used.len());
            prop_assert_eq!(real.limbo() as usize, model.limbo.len());
            for probe in &probes {
                let slot = probe % slots;
                let expected = match (model.free.contains(&slot), model.used.contains(&slot)) {
                    (true, _) => SlotState::Free,
                    (_, true) => SlotState::Used,
                    _ => SlotState::Limbo,
                };
                prop_assert_eq!(real.state(SlotIndex(slot)), expected);
                prop_assert_eq!(real.next_free(SlotIndex(slot)).map(|s| s.0), model.next_free(slot));
                let taken = (slot..slots).find(|s| !model.free.contains(s)).unwrap_or(slots);
                prop_assert_eq!(real.next_taken(SlotIndex(slot)).0, taken);
            }
        }
    }
}

#[test]
fn a_large_allocator_is_fast() {
    let slots = 10_000_000;
    let start = std::time::Instant::now();
    let mut allocator = SlotAllocator::new(slots);
    for _ in 0..slots {
        allocator.take_near(SlotIndex(0)).unwrap();
    }
    assert_eq!(allocator.take_near(SlotIndex(5)), None);
    allocator.give_back(SlotIndex(9_999_999));
    allocator.release(SlotIndex(9_999_999));
    for _ in 0..100_000 {
        let slot = allocator.take_near(SlotIndex(0)).unwrap();
        allocator.give_back(slot);
        allocator.release(slot);
    }
    allocator.check().unwrap();
    // An unoptimised build needs about 2 s; a search without summaries would need hours.
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

/// Places extents of VHDs in the given order, each at its home if that is free, else near it.
fn place_all(slots: u32, vhd_len: u32, order: &[(u32, u32)]) -> BTreeMap<(u32, u32), u32> {
    let mut allocator = SlotAllocator::new(slots);
    let mut homes = Homes::default();
    let mut placed = BTreeMap::new();
    for &(vhd, position) in order {
        let home = homes.slot(&allocator, VhdId(vhd), position, vhd_len);
        let slot = allocator.take_near(home.unwrap_or_default()).unwrap();
        placed.insert((vhd, position), slot.0);
    }
    placed
}

proptest! {
    #[test]
    fn homes_keep_vhds_contiguous_in_any_order(
        vhds in 1..6_u32,
        len in 1..80_u32,
        spare in 0..100_u32,
        seed in any::<u64>(),
    ) {
        let mut order: Vec<(u32, u32)> = (0..vhds).flat_map(|vhd| (0..len).map(move |p| (vhd, p))).collect();
        let mut state = seed | 1;
        for i in (1..order.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            order.swap(i, (state >> 33) as usize % (i + 1));
        }
        let placed = place_all(vhds * len + spare, len, &order);
        for vhd in 0..vhds {
            let start = placed[&(vhd, 0)];
            for position in 0..len {
                prop_assert_eq!(placed[&(vhd, position)], start + position);
            }
        }
    }

    #[test]
    fn homes_never_point_outside(
        slots in 1..300_u32,
        asks in prop::collection::vec((0..5_u32, 0..200_u32, any::<bool>()), 1..100),
    ) {
        let mut allocator = SlotAllocator::new(slots);
        let mut homes = Homes::default();
        for (vhd, position, remove) in asks {
            if remove {
                homes.remove(VhdId(vhd));
            }
            if let Some(slot) = homes.slot(&allocator, VhdId(vhd), position, 200) {
                prop_assert!(slot.0 < slots);
                if let Some(slot) = allocator.take_near(slot) {
                    homes.adopt(slots, VhdId(vhd + 1), position, 200, slot);
                }
            }
        }
    }
}

/// What the view should say about one extent.
#[derive(Clone, Copy, Default)]
struct ExtentModel {
    replicas: ReplicaSet,
    present: BlockMask,
    claimed: BlockMask,
    generation: Generation,
}

#[derive(Clone, Debug)]
enum ViewEdit {
    ClaimAbsent {
        extent: u32,
        blocks: u32,
        stale: bool,
    },
    ClaimAndClear {
        extent: u32,
        blocks: u32,
        stale: bool,
    },
    /// Gives back the nth claim that is held, with part of it written.
    Release {
        claim: usize,
        written: u32,
    },
    Place {
        extent: u32,
        slot: u32,
        replicas: u8,
    },
    Drop {
        extent: u32,
    },
    /// The VHD has another size: so many of the extents that are looked at, the last of them with these blocks.
    Resize {
        count: u32,
        last: u32,
    },
}

/// The extents that are looked at: those of a new VHD, and around the borders of what growth adds.
const AT: [u32; EXTENTS as usize] = [0, 1, 2, 3, 4, 1027, 1028, 2051];
const EXTENTS: u32 = 8;
const EXTENTS_FIRST: u32 = 4;

fn at(extent: u32) -> ExtentIndex {
    ExtentIndex(AT[extent as usize])
}

fn view_edit() -> impl Strategy<Value = ViewEdit> {
    let blocks = || prop_oneof![Just(u32::MAX), any::<u32>(), (0..32_u32).prop_map(|bit| 1 << bit)];
    prop_oneof![
        3 => (0..EXTENTS, blocks(), prop::bool::weighted(0.1))
            .prop_map(|(extent, blocks, stale)| ViewEdit::ClaimAbsent { extent, blocks, stale }),
        2 => (0..EXTENTS, blocks(), prop::bool::weighted(0.1))
            .prop_map(|(extent, blocks, stale)| ViewEdit::ClaimAndClear { extent, blocks, stale }),
        4 => (any::<usize>(), any::<u32>()).prop_map(|(claim, written)| ViewEdit::Release { claim, written }),
        2 => (0..EXTENTS, 0..100_u32, 1..4_u8)
            .prop_map(|(extent, slot, replicas)| ViewEdit::Place { extent, slot, replicas }),
        2 => (0..EXTENTS).prop_map(|extent| ViewEdit::Drop { extent }),
        1 => (1..=EXTENTS, blocks()).prop_map(|(count, last)| ViewEdit::Resize { count, last }),
    ]
}

struct ViewModel {
    /// How many of them the VHD has.
    count: u32,
    extents: [ExtentModel; EXTENTS as usize],
    claims: Vec<(u32, BlockMask)>,
}

impl ViewModel {
    fn claim(
        &mut self,
        extent: u32,
        blocks: BlockMask,
        seen: Generation,
        clear: bool,
    ) -> Result<BlockMask, ClaimError> {
        let model = &mut self.extents[extent as usize];
        if !model.claimed.and(blocks).is_empty() {
            return Err(ClaimError::Busy);
        }
        let present = model.present.and(blocks);
        if seen != model.generation || (!clear && !present.is_empty()) {
            return Err(ClaimError::Changed);
        }
        model.present = model.present.without(blocks);
        model.claimed = model.claimed.or(blocks);
        self.claims.push((extent, blocks));
        Ok(present)
    }

    fn resize(&mut self, count: u32, last: BlockMask, view: &VhdMap) {
        let extents = AT[count as usize - 1] + 1;
        if count >= self.count {
            view.reserve(extents).unwrap();
            view.grow(extents);
        } else if self.claims.is_empty() {
            view.shrink(extents, last);
            for gone in &mut self.extents[count as usize..] {
                gone.generation.0 += if gone.replicas.is_absent() { 0 } else { 2 };
                (gone.replicas, gone.present) = (ReplicaSet::ABSENT, BlockMask::NONE);
            }
            let model = &mut self.extents[count as usize - 1];
            model.present = model.present.and(last);
        } else {
            return;
        }
        self.count = count;
    }

    fn apply(&mut self, edit: &ViewEdit, view: &VhdMap) {
        let extent = match *edit {
            ViewEdit::ClaimAbsent { extent, .. }
            | ViewEdit::ClaimAndClear { extent, .. }
            | ViewEdit::Place { extent, .. }
            | ViewEdit::Drop { extent } => extent,
            ViewEdit::Release { .. } | ViewEdit::Resize { .. } => 0,
        };
        if extent >= self.count {
            return;
        }
        let seen = |model: &ViewModel, extent: u32, stale: bool| {
            let generation = model.extents[extent as usize].generation;
            if stale { Generation(generation.0 + 2) } else { generation }
        };
        match *edit {
            ViewEdit::ClaimAbsent { extent, blocks, stale } => {
                let blocks = BlockMask(blocks.max(1));
                let seen = seen(self, extent, stale);
                let expected = self.claim(extent, blocks, seen, false).map(|_| ());
                assert_eq!(view.claim_absent(at(extent), blocks, Version::of(seen)), expected);
            }
            ViewEdit::ClaimAndClear { extent, blocks, stale } => {
                let blocks = BlockMask(blocks.max(1));
                let seen = seen(self, extent, stale);
                let expected = self.claim(extent, blocks, seen, true);
                assert_eq!(view.claim_and_clear(at(extent), blocks, Version::of(seen)), expected);
            }
            ViewEdit::Release { claim, written } => {
                if self.claims.is_empty() {
                    return;
                }
                let (extent, blocks) = self.claims.swap_remove(claim % self.claims.len());
                let model = &mut self.extents[extent as usize];
                // Only an extent with a place can have been written.
                let absent = model.replicas.is_absent();
                let written = if absent { BlockMask::NONE } else { BlockMask(written).and(blocks) };
                model.claimed = model.claimed.without(blocks);
                model.present = model.present.or(written);
                view.release(at(extent), blocks, written);
            }
            ViewEdit::Place { extent, slot, replicas } => {
                let mut set = ReplicaSet::ABSENT;
                for disk in 0..replicas {
                    let state = [ReplicaState::InSync, ReplicaState::Syncing, ReplicaState::Stale][usize::from(disk)];
                    set.push(Replica { disk: DiskId(disk), slot: SlotIndex(slot), state });
                }
                let model = &mut self.extents[extent as usize];
                model.replicas = set;
                model.generation.0 += 2;
                view.place(at(extent), set);
            }
            ViewEdit::Resize { count, last } => self.resize(count, BlockMask(last), view),
            ViewEdit::Drop { extent } => {
                let model = &mut self.extents[extent as usize];
                if model.claimed == BlockMask::ALL && model.present.is_empty() {
                    model.replicas = ReplicaSet::ABSENT;
                    model.generation.0 += 2;
                    view.drop_extent(at(extent));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn view_agrees_with_a_model(edits in prop::collection::vec(view_edit(), 1..200)) {
        let view = VhdMap::new(EXTENTS_FIRST);
        let mut model = ViewModel { count: EXTENTS_FIRST, extents: Default::default(), claims: Vec::new() };
        for edit in &edits {
            model.apply(edit, &view);
            prop_assert_eq!(view.extents(), AT[model.count as usize - 1] + 1);
            for (extent, expected) in (0..model.count).zip(&model.extents) {
                let ExtentModel { replicas, present, claimed, generation } = *expected;
                let expected = Lookup { replicas, present, claimed, generation, version: Version::of(generation) };
                prop_assert_eq!(view.lookup(at(extent)), expected);
            }
            let present: u64 = model.extents.iter().map(|extent| u64::from(extent.present.len())).sum();
            prop_assert_eq!(view.present_blocks(), present);
            let placed = AT.iter().zip(&model.extents).filter(|(_, model)| !model.replicas.is_absent());
            let placed: Vec<u32> = placed.map(|(extent, _)| *extent).collect();
            for from in [1, 4, 5, 1028, 2052] {
                let found: Vec<u32> = view.placed_from(ExtentIndex(from)).map(|extent| extent.0).collect();
                prop_assert_eq!(found, placed.iter().copied().filter(|extent| *extent >= from).collect::<Vec<_>>());
            }
        }
    }
}
