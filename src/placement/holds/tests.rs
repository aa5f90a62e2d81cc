//! Holds against the slowest way to find the same: a flow, one slot at a time.

use proptest::prelude::*;

use super::*;
use crate::base::rng::Rng;

fn disk(id: usize) -> DiskId {
    DiskId(u8::try_from(id).unwrap())
}

fn set(disks: &[u8]) -> DiskSet {
    disks.iter().map(|id| DiskId(*id)).collect()
}

/// Disks with these many free slots, in these failure domains.
fn room(disks: &[(u32, u8)]) -> Room {
    let usable = DiskSet((1 << disks.len()) - 1);
    let mut room = Room { free: Box::new([0; DISKS_MAX]), domain: [u8::MAX; DISKS_MAX], usable };
    for (id, (free, domain)) in disks.iter().enumerate() {
        (room.free[id], room.domain[id]) = (*free, *domain);
    }
    room
}

fn need(disks: &[u8], extents: u32, replicas: u8) -> Need {
    Need { disks: set(disks), extents, replicas }
}

fn vhd(id: u32) -> Holder {
    Holder::Vhd(VhdId(id))
}

fn hold(holds: &mut Holds, holder: Holder, need: Need, room: &mut Room) -> u64 {
    holds.set(holder, Some(need), room);
    holds.fill(holder, room);
    holds.check(room).unwrap();
    holds.held_slots(holder)
}

#[test]
fn an_isolated_reservation_is_on_its_disk() {
    let (mut holds, mut room) = (Holds::default(), room(&[(5, 0), (9, 1)]));
    assert_eq!(hold(&mut holds, vhd(1), need(&[0], 3, 1), &mut room), 3);
    assert_eq!((room.free[0], room.free[1], holds.on_disk(DiskId(0))), (2, 9, 3));
    assert_eq!(hold(&mut holds, vhd(2), need(&[0], 3, 1), &mut room), 2, "as far as there is room");
    assert!(holds.is_short());
    holds.set(vhd(1), None, &mut room);
    holds.fill(vhd(2), &mut room);
    assert_eq!((room.free[0], holds.held_slots(vhd(2)), holds.is_short()), (2, 3, false));
}

#[test]
fn who_can_go_elsewhere_does() {
    let (mut holds, mut room) = (Holds::default(), room(&[(4, 0), (4, 1), (4, 2)]));
    assert_eq!(hold(&mut holds, vhd(1), need(&[0, 1], 6, 1), &mut room), 6);
    assert_eq!(hold(&mut holds, vhd(2), need(&[1, 2], 4, 1), &mut room), 4);
    assert_eq!(holds.with_room(&room), set(&[0, 1, 2]), "over other disks, if not on it");
    holds.clear(DiskId(0), 2, &mut room);
    assert_eq!(room.free[0], 2, "all that is not needed can be had anywhere");
    assert_eq!(room.free.iter().sum::<u32>(), 2);
    holds.check(&room).unwrap();
}

#[test]
fn replicas_are_held_apart() {
    let (mut holds, mut room) = (Holds::default(), room(&[(9, 0), (9, 0), (3, 1)]));
    assert_eq!(hold(&mut holds, vhd(1), need(&[0, 1, 2], 5, 2), &mut room), 8, "3 in domain 1, at most 5 in domain 0");
    assert_eq!(hold(&mut holds, vhd(1), need(&[0, 1, 2], 3, 2), &mut room), 6);
    assert_eq!(room.free[2], 0);
}

#[test]
fn large_reservations_are_spread() {
    let (mut holds, mut room) = (Holds::default(), room(&[(3_000_000, 0), (2_000_000, 1), (1_000_000, 2)]));
    assert_eq!(hold(&mut holds, vhd(1), need(&[0, 1, 2], 3_000_000, 1), &mut room), 3_000_000);
    assert!(room.free[..3].iter().all(|free| (900_000..1_100_000).contains(free)), "{:?}", &room.free[..3]);
}

/// The most that can be held for all together.
fn most(needs: &[Need], free: &[u32], domain: &[u8]) -> u64 {
    let disks = free.len();
    let (source, sink) = (0, 1);
    let holder = |h: usize| 2 + h;
    let in_domain = |h: usize, d: u8| 2 + needs.len() + h * disks + usize::from(d);
    let disk_node = |d: usize| 2 + needs.len() * (1 + disks) + d;
    let nodes = 2 + needs.len() * (1 + disks) + disks;
    let mut left = vec![vec![0_u64; nodes]; nodes];
    for (h, need) in needs.iter().enumerate() {
        left[source][holder(h)] = need.slots();
        for d in (0..disks).filter(|d| need.disks.contains(disk(*d))) {
            left[holder(h)][in_domain(h, domain[d])] = need.extents.into();
            left[in_domain(h, domain[d])][disk_node(d)] = u64::MAX / 4;
        }
    }
    for d in 0..disks {
        left[disk_node(d)][sink] = free[d].into();
    }
    fn push(at: usize, sink: usize, left: &mut Vec<Vec<u64>>, seen: &mut Vec<bool>) -> bool {
        if at == sink {
            return true;
        }
        seen[at] = true;
        for to in 0..left.len() {
            if left[at][to] > 0 && !seen[to] && push(to, sink, left, seen) {
                left[at][to] -= 1;
                left[to][at] += 1;
                return true;
            }
        }
        false
    }
    let mut total = 0;
    while push(source, sink, &mut left, &mut vec![false; nodes]) {
        total += 1;
    }
    total
}

/// As the owner places from what is held: always from the failure domains in which most is held.
fn place(holds: &mut Holds, holder: Holder, need: Need, room: &Room) -> Result<Vec<DiskId>, String> {
    let mut chosen: Vec<DiskId> = Vec::new();
    for _ in 0..need.replicas {
        let slots = holds.held(holder).ok_or("no hold")?.clone();
        let domain = |disk: DiskId| room.domain[disk.index()];
        let in_domain = |of: u8| need.disks.iter().filter(|d| domain(*d) == of).map(|d| slots[d.index()]).sum::<u32>();
        let apart =
            need.disks.iter().filter(|d| slots[d.index()] > 0 && chosen.iter().all(|c| domain(*c) != domain(*d)));
        let best = apart.max_by_key(|d| (in_domain(domain(*d)), slots[d.index()])).ok_or("nothing is held apart")?;
        chosen.push(best);
    }
    chosen.iter().for_each(|disk| holds.take(holder, *disk));
    Ok(chosen)
}

/// Who has reserved what, and what of it is used, where.
struct Model {
    holds: Holds,
    room: Room,
    disks: usize,
    needs: Vec<Need>,
    used: Vec<Vec<Vec<DiskId>>>,
    /// Slots that the greedy have.
    taken: Vec<DiskId>,
}

impl Model {
    fn new(rng: &mut Rng) -> Model {
        let disks = 2 + rng.index(4);
        let domains = 1 + rng.below(disks as u64);
        let table: Vec<(u32, u8)> = (0..disks)
            .map(|_| (u32::try_from(rng.below(12)).unwrap(), u8::try_from(rng.below(domains)).unwrap()))
            .collect();
        let mut room = room(&table);
        let mut holds = Holds::default();
        let mut needs = Vec::new();
        for id in 0..1 + rng.below(4) {
            let on = DiskSet(1 + rng.below((1 << disks) - 1));
            let mut in_use: Vec<u8> = on.iter().map(|disk| room.domain[disk.index()]).collect();
            in_use.sort_unstable();
            in_use.dedup();
            let replicas = u8::try_from((1 + rng.index(3)).min(in_use.len())).unwrap();
            let wanted = Need { disks: on, extents: u32::try_from(rng.below(8)).unwrap(), replicas };
            let holder = vhd(u32::try_from(id).unwrap());
            holds.set(holder, Some(wanted), &mut room);
            needs.push(wanted);
        }
        let used = vec![Vec::new(); needs.len()];
        let mut model = Model { holds, room, disks, needs, used, taken: Vec::new() };
        (0..model.needs.len()).for_each(|h| model.holds.fill(vhd(u32::try_from(h).unwrap()), &mut model.room));
        // What does not fit is not reserved.
        for h in 0..model.needs.len() {
            let holder = vhd(u32::try_from(h).unwrap());
            if model.holds.held_slots(holder) < model.needs[h].slots() {
                model.needs[h].extents = 0;
                model.holds.set(holder, Some(model.needs[h]), &mut model.room);
            }
        }
        model
    }

    fn step(&mut self, rng: &mut Rng) -> Result<(), String> {
        let h = rng.index(self.needs.len());
        let holder = vhd(u32::try_from(h).unwrap());
        let mut open = self.needs[h];
        open.extents -= u32::try_from(self.used[h].len()).unwrap();
        match rng.below(5) {
            // Somebody takes whatever is free.
            0 | 1 => {
                let d = rng.index(self.disks);
                self.holds.clear(disk(d), u32::try_from(rng.below(3)).unwrap(), &mut self.room);
                if self.room.free[d] > 0 {
                    self.room.free[d] -= 1;
                    self.taken.push(disk(d));
                }
            }
            2 if !self.taken.is_empty() => {
                let disk = self.taken.swap_remove(rng.index(self.taken.len()));
                self.room.free[disk.index()] += 1;
            }
            3 if open.extents > 0 => {
                let placed = place(&mut self.holds, holder, open, &self.room)?;
                self.used[h].push(placed);
                open.extents -= 1;
                self.holds.set(holder, Some(open), &mut self.room);
            }
            4 if !self.used[h].is_empty() => {
                let at = rng.index(self.used[h].len());
                let used = self.used[h].swap_remove(at);
                used.iter().for_each(|disk| self.room.free[disk.index()] += 1);
                open.extents += 1;
                self.holds.set(holder, Some(open), &mut self.room);
                self.holds.fill(holder, &mut self.room);
            }
            _ => {}
        }
        self.holds.check(&self.room)?;
        for (h, need) in self.needs.iter().enumerate() {
            let open = need.slots() - self.used[h].len() as u64 * u64::from(need.replicas);
            let held = self.holds.held_slots(vhd(u32::try_from(h).unwrap()));
            if held != open {
                return Err(format!("holder {h} has {held} slots for {open}"));
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn as_much_is_held_as_can_be(seed in any::<u64>()) {
        let mut rng = Rng::new(seed);
        let disks = 1 + rng.index(5);
        let table: Vec<(u32, u8)> = (0..disks)
            .map(|_| (u32::try_from(rng.below(10)).unwrap(), u8::try_from(rng.below(disks as u64)).unwrap()))
            .collect();
        let mut room = room(&table);
        let (free, domain) = (room.free[..disks].to_vec(), room.domain[..disks].to_vec());
        let mut holds = Holds::default();
        let mut needs: BTreeMap<Holder, Need> = BTreeMap::new();
        for _ in 0..1 + rng.below(8) {
            let holder = vhd(u32::try_from(rng.below(4)).unwrap());
            let extents = u32::try_from(rng.below(9)).unwrap();
            let wanted =
                Need { disks: DiskSet(rng.below(1 << disks)), extents, replicas: u8::try_from(1 + rng.below(3)).unwrap() };
            needs.insert(holder, wanted);
            holds.set(holder, Some(wanted), &mut room);
            needs.keys().for_each(|holder| holds.fill(*holder, &mut room));
            prop_assert_eq!(holds.check(&room), Ok(()));
            let all: Vec<Need> = needs.values().copied().collect();
            let held: u64 = needs.keys().map(|holder| holds.held_slots(*holder)).sum();
            prop_assert_eq!(held, most(&all, &free, &domain), "{:?} {:?}", table, needs);
            for (d, slots) in free.iter().enumerate() {
                prop_assert_eq!(room.free[d] + holds.on_disk(disk(d)), *slots);
            }
        }
    }

    #[test]
    fn whoever_reserved_room_can_always_place_it(seed in any::<u64>()) {
        let mut rng = Rng::new(seed);
        let mut model = Model::new(&mut rng);
        for _ in 0..120 {
            if let Err(violation) = model.step(&mut rng) {
                prop_assert!(false, "{}", violation);
            }
        }
    }
}
