//! What must be true after a power cut.

use spanblk::base::units::{BLOCKS_PER_EXTENT, BlockMask, ExtentIndex};
use spanblk::disk::BlockDev;
use spanblk::disk::sim::SimDisk;
use spanblk::placement::record::VhdRecord;
use spanblk::placement::view::{Checksum, VhdMap};
use spanblk::placement::{Replica, ReplicaState};

use super::oracle::{Content, SECTOR, identify};
use super::store::{Recovered, recover};
use super::world::{DATA_OFFSET, EXTENT, Scenario, World, geometry, position};

/// Opens the pool on `images`, the disks after a power cut before step `cut`, and checks every promise.
pub fn check_cut(world: &World, images: &[SimDisk], cut: usize) -> Result<(), String> {
    let recovered = open(world.scenario, images)?;
    // Everything that was told while the trace had `cut` steps.
    let until = position(cut + 1, 0);
    check_vhds(world, &recovered, until)?;
    for (record, state) in &recovered.vhds {
        check_content(world, record, &state.map, images, until)?;
    }
    Ok(())
}

/// Opens a pool and proves its table consistent.
pub fn open(scenario: Scenario, images: &[SimDisk]) -> Result<Recovered, String> {
    let recovered = recover(images, scenario.members, scenario.reactors);
    let recovered = recovered.map_err(|error| format!("cannot be opened: {error}"))?;
    recovered.check()?;
    Ok(recovered)
}

fn check_vhds(world: &World, recovered: &Recovered, until: usize) -> Result<(), String> {
    for (number, told) in &world.told {
        let found = recovered.vhds.iter().find(|(record, _)| record.id.0 == *number);
        let must_exist = told.created_at < until && told.delete_begun.is_none_or(|at| at >= until);
        match found {
            None if must_exist => return Err(format!("VHD {number} is gone")),
            // Where it should be is changed all the time, and it grows, and its VM gets other names; what it is stays.
            Some((record, _)) => {
                let vm = told.record.vm.as_ref().and(record.vm.as_ref()).or(told.record.vm.as_ref());
                let of_told = VhdRecord {
                    layout: record.layout.clone(),
                    replicas: record.replicas,
                    size: record.size,
                    vm: vm.cloned(),
                    ..told.record.clone()
                };
                if *record != of_told {
                    return Err(format!("VHD {number} changed: {record:?}"));
                }
                told.sizes.check(record.size, until).map_err(|error| format!("VHD {number}: {error}"))?;
            }
            None => {}
        }
    }
    Ok(())
}

fn check_content(
    world: &World,
    record: &VhdRecord,
    map: &VhdMap,
    images: &[SimDisk],
    until: usize,
) -> Result<(), String> {
    let Some(history) = world.histories.get(&record.id.0) else { return Ok(()) };
    let told = &world.told[&record.id.0];
    if told.delete_begun.is_some_and(|at| at < until) {
        // Its guest was not told anything any more; its room may be gone already.
        return Ok(());
    }
    let shrinks = told.sizes.shrinks_around(record.size);
    let per_extent = EXTENT / SECTOR as u64;
    for extent in (0..map.extents()).map(ExtentIndex) {
        let seen = map.lookup(extent);
        let first = u64::from(extent.0) * per_extent;
        let mut first_content: Option<Vec<u8>> = None;
        // Each of them, as if all other disks were lost as well.
        for replica in seen.replicas.iter().filter(|replica| replica.state == ReplicaState::InSync) {
            let content = read_extent(images, replica, seen.present)?;
            // Nobody makes them equal, so they must be.
            if !map.is_in_doubt(extent) && first_content.get_or_insert_with(|| content.clone()) != &content {
                return Err(format!(
                    "VHD {}, extent {}: replicas differ without an intent: {seen:?}",
                    record.id.0, extent.0
                ));
            }
            if !map.is_in_doubt(extent) {
                let found = checksums(map, extent, &content)?;
                world.checksums_found.set(world.checksums_found.get() + found);
            }
            for (sector, bytes) in (first..).zip(content.chunks_exact(SECTOR)) {
                let found = identify(record.id.0, sector, bytes)?;
                history.check_cut(sector, found, until - 1, &shrinks)?;
            }
        }
        if seen.replicas.is_absent() {
            for sector in first..first + per_extent {
                history.check_cut(sector, Content::Zeros, until - 1, &shrinks)?;
            }
        }
    }
    Ok(())
}

/// How many present blocks of the content of an extent have a checksum. An error if one has another.
pub fn checksums(map: &VhdMap, extent: ExtentIndex, content: &[u8]) -> Result<u64, String> {
    let present = map.lookup(extent).present;
    let block_size = usize::try_from(geometry().block_size()).expect("small");
    let blocks = (0..BLOCKS_PER_EXTENT).zip(content.chunks_exact(block_size)).filter(|(block, _)| present.has(*block));
    let mut found = 0;
    for (block, bytes) in blocks {
        let Some(checksum) = map.checksum(extent, block) else { continue };
        if checksum != Checksum::of(bytes) {
            return Err(format!("block {block} of extent {} has the checksum of something else", extent.0));
        }
        found += 1;
    }
    Ok(found)
}

/// What one replica of an extent reads as.
pub fn read_extent(images: &[SimDisk], replica: Replica, present: BlockMask) -> Result<Vec<u8>, String> {
    let mut content = vec![0; usize::try_from(EXTENT).expect("small")];
    let block = usize::try_from(geometry().block_size()).expect("small");
    let base = DATA_OFFSET + u64::from(replica.slot.0) * EXTENT;
    for i in (0..BLOCKS_PER_EXTENT).filter(|&i| present.has(i)) {
        let at = i as usize * block;
        let device: &dyn BlockDev = &images[replica.disk.index()];
        device.read_at(base + at as u64, &mut content[at..at + block]).map_err(|error| error.to_string())?;
    }
    Ok(content)
}
