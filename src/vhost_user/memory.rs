//! The guest memory of one frontend: mapped files, and the frontend's own addresses for them.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use super::error::MemoryError;
use super::sys;
use crate::base::limits::{GUEST_MEMORY_MAX, MEM_SLOTS_MAX};
use crate::shared::guest_memory::Watch;

/// A region as the frontend described it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    guest: u64,
    len: u64,
    user: u64,
}

impl Region {
    fn of(message: &VhostUserMemoryRegion) -> Region {
        Region { guest: message.guest_phys_addr, len: message.memory_size, user: message.user_addr }
    }
}

/// Guest memory. Changing it makes a new map; the old one stays mapped while somebody holds it.
#[derive(Clone)]
pub(super) struct Memory {
    /// One for each region. Before the map: what is unmapped is not watched any more.
    watches: Vec<Arc<Watch>>,
    map: Arc<GuestMemoryMmap>,
    regions: Vec<Region>,
}

impl Memory {
    /// No memory.
    pub(super) fn empty() -> Memory {
        Memory { watches: Vec::new(), map: Arc::new(GuestMemoryMmap::new()), regions: Vec::new() }
    }

    /// Maps all regions of a memory table.
    pub(super) fn of_table(table: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<Memory, MemoryError> {
        assert_eq!(table.len(), files.len(), "the protocol library checks that every region has its file");
        table.iter().zip(files).try_fold(Memory::empty(), |memory, (region, file)| memory.with(region, file))
    }

    /// This memory and one region more.
    pub(super) fn with(&self, message: &VhostUserMemoryRegion, file: File) -> Result<Memory, MemoryError> {
        let region = Region::of(message);
        if self.regions.len() >= MEM_SLOTS_MAX {
            return Err(MemoryError::TooManyRegions);
        }
        let total = self.regions.iter().map(|region| region.len).sum::<u64>().checked_add(region.len);
        if total.is_none_or(|total| total > GUEST_MEMORY_MAX) {
            return Err(MemoryError::TooLarge);
        }
        let (mapped, watch) = map(region, message.mmap_offset, file)?;
        let map = self.map.insert_region(Arc::new(mapped)).map_err(|_| MemoryError::Overlap(region.guest))?;
        let (mut watches, mut regions) = (self.watches.clone(), self.regions.clone());
        watches.push(Arc::new(watch));
        regions.push(region);
        Ok(Memory { watches, map: Arc::new(map), regions })
    }

    /// This memory without one region.
    pub(super) fn without(&self, message: &VhostUserMemoryRegion) -> Result<Memory, MemoryError> {
        let region = Region::of(message);
        let no_such_region = MemoryError::NoSuchRegion(region.guest);
        let Some(at) = self.regions.iter().position(|have| *have == region) else { return Err(no_such_region) };
        let Ok((map, _)) = self.map.remove_region(GuestAddress(region.guest), region.len) else {
            return Err(no_such_region);
        };
        let (mut watches, mut regions) = (self.watches.clone(), self.regions.clone());
        watches.remove(at);
        regions.remove(at);
        Ok(Memory { watches, map: Arc::new(map), regions })
    }

    /// What the regions are, and the files they are mapped from, in the order in which they came.
    pub(super) fn described(&self) -> impl Iterator<Item = (VhostUserMemoryRegion, &File)> {
        self.regions.iter().map(|region| {
            let mapped = self.map.find_region(GuestAddress(region.guest)).expect("every region is mapped");
            let file = mapped.file_offset().expect("every region is mapped from a file");
            (VhostUserMemoryRegion::new(region.guest, region.len, region.user, file.start()), file.file())
        })
    }

    /// The map, in guest addresses.
    pub(super) fn map(&self) -> &Arc<GuestMemoryMmap> {
        &self.map
    }

    /// The guest address of one of the frontend's addresses.
    pub(super) fn guest_address(&self, user: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.user)?;
            (offset < region.len).then(|| region.guest + offset)
        })
    }
}

fn map(region: Region, offset: u64, file: File) -> Result<(GuestRegionMmap, Watch), MemoryError> {
    let guest = region.guest;
    let end = offset.checked_add(region.len);
    let no_wrap = [region.guest, region.user].iter().all(|start| start.checked_add(region.len).is_some());
    let (Some(end), Ok(len), true) = (end, usize::try_from(region.len), region.len > 0 && no_wrap) else {
        return Err(MemoryError::BadRegion(guest));
    };
    let metadata = file.metadata().map_err(|source| MemoryError::Stat { guest, source })?;
    if !metadata.is_file() {
        return Err(MemoryError::NotAFile(guest));
    }
    if metadata.size() < end {
        return Err(MemoryError::BeyondFile { guest, end, file: metadata.size() });
    }
    let paging = sys::paging(&file).map_err(|source| MemoryError::Stat { guest, source })?;
    if paging.remote {
        return Err(MemoryError::Remote(guest));
    }
    // What is not whole pages could be mapped, but never unmapped.
    if paging.huge && !len.is_multiple_of(paging.page) {
        return Err(MemoryError::PartOfPage { guest, len: region.len, page: paging.page });
    }
    let mapping = MmapRegion::from_file(FileOffset::new(file, offset), len)
        .map_err(|source| MemoryError::Map { guest, source })?;
    let watch =
        Watch::new(mapping.as_ptr(), len, paging.page).map_err(|source| MemoryError::Watch { guest, source })?;
    let mapped = GuestRegionMmap::new(mapping, GuestAddress(guest)).ok_or(MemoryError::BadRegion(guest))?;
    Ok((mapped, watch))
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn file(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    fn region(guest: u64, len: u64, user: u64, offset: u64) -> VhostUserMemoryRegion {
        VhostUserMemoryRegion::new(guest, len, user, offset)
    }

    #[test]
    fn regions_come_and_go() {
        let low = region(0, 0x2000, 0x7000_0000, 0x1000);
        let high = region(0x10_0000, 0x1000, 0x9000_0000, 0);
        let memory = Memory::of_table(&[high, low], vec![file(0x1000), file(0x3000)]).unwrap();
        assert_eq!(memory.map().num_regions(), 2);
        assert_eq!(memory.guest_address(0x7000_1fff), Some(0x1fff));
        assert_eq!(memory.guest_address(0x7000_2000), None);
        assert_eq!(memory.guest_address(0x9000_0010), Some(0x10_0010));
        memory.map().write_obj(7_u64, GuestAddress(0x10_0000)).unwrap();

        let less = memory.without(&high).unwrap();
        assert_eq!((less.map().num_regions(), less.guest_address(0x9000_0010)), (1, None));
        assert!(matches!(less.without(&high), Err(MemoryError::NoSuchRegion(0x10_0000))));
        let other_user = region(0, 0x2000, 0x7000_1000, 0x1000);
        assert!(matches!(less.without(&other_user), Err(MemoryError::NoSuchRegion(0))));
        // Whoever holds the old map can still use it.
        assert_eq!(memory.map().read_obj::<u64>(GuestAddress(0x10_0000)).unwrap(), 7);
    }

    #[test]
    fn bad_regions_are_refused_one_by_one() {
        let memory = Memory::empty().with(&region(0x1000, 0x2000, 0, 0), file(0x2000)).unwrap();
        let add = |region, len| memory.with(&region, file(len)).err().unwrap();
        assert!(matches!(add(region(0, 0x1001, 0, 0), 0x2000), MemoryError::Overlap(0)));
        assert!(matches!(add(region(0x2fff, 0x1000, 0, 0), 0x2000), MemoryError::Overlap(0x2fff)));
        assert!(matches!(add(region(0x1000, 0x2000, 0, 0), 0x2000), MemoryError::Overlap(0x1000)));
        assert!(matches!(add(region(0x8000, 0x1000, 0, 0x1000), 0x1fff), MemoryError::BeyondFile { .. }));
        assert!(matches!(add(region(0x8000, 0, 0, 0), 0x1000), MemoryError::BadRegion(0x8000)));
        assert!(matches!(add(region(u64::MAX, 0x1000, 0, 0), 0x1000), MemoryError::BadRegion(_)));
        assert!(matches!(add(region(0x8000, 0x1000, u64::MAX, 0), 0x1000), MemoryError::BadRegion(_)));
        assert!(matches!(add(region(0x8000, 0x1000, 0, u64::MAX), 0x1000), MemoryError::BadRegion(_)));
        assert!(matches!(add(region(0x8000, u64::MAX, 0, 0), 0x1000), MemoryError::TooLarge));
        assert!(matches!(add(region(0x8000, 17 << 40, 0, 0), 0x1000), MemoryError::TooLarge));
        assert!(matches!(add(region(0x8000, 0x800, 0, 0x800), 0x1000), MemoryError::Map { .. }));
        let null = File::open("/dev/null").unwrap();
        assert!(matches!(memory.with(&region(0x8000, 0x1000, 0, 0), null), Err(MemoryError::NotAFile(_))));
        let read_only = tempfile::NamedTempFile::new().unwrap();
        read_only.as_file().set_len(0x1000).unwrap();
        let read_only = File::open(read_only.path()).unwrap();
        assert!(matches!(memory.with(&region(0x8000, 0x1000, 0, 0), read_only), Err(MemoryError::Map { .. })));
    }

    #[test]
    fn regions_are_whole_huge_pages() {
        let Some(file) = sys::tests::huge_pages("spanblk-test-memory", 2) else { return };
        let page = sys::paging(&file).unwrap().page as u64;
        let add = |len| Memory::empty().with(&region(0, len, 0, 0), file.try_clone().unwrap());
        assert!(matches!(add(0x1000), Err(MemoryError::PartOfPage { guest: 0, len: 0x1000, .. })));
        assert!(matches!(add(page + 0x1000), Err(MemoryError::PartOfPage { .. })));
        let memory = add(page).unwrap();
        assert_eq!(sys::tests::mappings_of("spanblk-test-memory"), 1);
        drop(memory);
        assert_eq!(sys::tests::mappings_of("spanblk-test-memory"), 0);
    }

    #[test]
    fn regions_are_limited() {
        let shared = file(0x1000);
        let mut memory = Memory::empty();
        for i in 0..MEM_SLOTS_MAX as u64 {
            memory = memory.with(&region(i * 0x2000, 0x1000, 0, 0), shared.try_clone().unwrap()).unwrap();
        }
        let error = memory.with(&region(1 << 40, 0x1000, 0, 0), shared).err().unwrap();
        assert!(matches!(error, MemoryError::TooManyRegions));
        let memory = Memory::empty().with(&region(0, 0x1000, 0, 0), file(0x1000)).unwrap();
        let error = memory.with(&region(1 << 46, GUEST_MEMORY_MAX - 0xfff, 0, 0), file(0x1000)).err().unwrap();
        assert!(matches!(error, MemoryError::TooLarge));
    }
}
