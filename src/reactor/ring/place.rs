//! Where the parts of a ring are.

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::fault::RingFault;
use super::used::{AVAILABLE_ENTRY, RING_EXTRA, USED_ENTRY};
use crate::reactor::messages::RingAddresses;

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR: usize = 16;

/// Where a guest address is in our memory; 0: nowhere.
pub(super) fn host_address(memory: &GuestMemoryMmap, address: u64) -> usize {
    vm_memory::GuestMemoryBackend::get_host_address(memory, GuestAddress(address)).map_or(0, |pointer| pointer.addr())
}

/// Whether the parts of a ring are where they can be.
pub(super) fn check_addresses(memory: &GuestMemoryMmap, addresses: RingAddresses, size: u16) -> Result<(), RingFault> {
    let size = u64::from(size);
    let parts = [
        ("descriptor table", addresses.descriptors, size * DESCRIPTOR as u64, 16, Permissions::Read),
        ("available ring", addresses.available, size * AVAILABLE_ENTRY + RING_EXTRA, 2, Permissions::Read),
        ("used ring", addresses.used, size * USED_ENTRY + RING_EXTRA, 4, Permissions::Write),
    ];
    for (what, address, len, alignment, access) in parts {
        let len = usize::try_from(len).expect("a ring fits memory");
        let legal = address != 0
            && address.is_multiple_of(alignment)
            && address.checked_add(len as u64).is_some()
            && memory.check_range(GuestAddress(address), len, access);
        if !legal {
            return Err(RingFault::Address { what, address });
        }
    }
    Ok(())
}
