//! A chain in guest memory that changes while it is read: between any two descriptors the guest writes to its tables, its header
//! and its ranges. No model can say what the right answer is; what is accepted must keep all rules for what was read.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::{AVAILABLE, HEADER, INDIRECT, Input, REGIONS, TABLE, build, device, memory, pop};
use crate::base::limits::{DISCARD_RANGES_MAX, REQUEST_LEN_MAX, SEGMENTS_MAX};
use crate::virtio::device::DeviceLimits;
use crate::virtio::parse::{Parsed, parse};
use crate::virtio::request::{Request, RequestKind};

/// Builds a chain from `data`, parses it while memory changes, and checks what is accepted. Returns whether it was accepted.
///
/// # Panics
/// If the parser accepts what breaks a rule.
pub fn run(data: &[u8]) -> bool {
    let memory = memory();
    let mut input = Input(data);
    let device = device(&mut input);
    let head = build(&mut input, &memory, &device);
    let chain = pop(&memory, head);
    let mut request = Request::default();
    let mut writable = 0;
    let seen = chain.inspect(|descriptor: &Descriptor| {
        if descriptor.is_write_only() {
            writable += u64::from(descriptor.len());
        }
        // After this descriptor was read, before what it describes is, and before the next one.
        while input.byte() > 100 {
            change(&mut input, &memory);
        }
    });
    let result = parse(seen, &memory, &device, &mut request);
    if let Ok(parsed) = &result {
        check(parsed, &request, &memory, &device);
        assert_eq!(u64::from(parsed.writable_len), writable, "counted once, as read once");
    }
    result.is_ok()
}

/// The guest writes a word somewhere that the parser may look at.
fn change(input: &mut Input<'_>, memory: &GuestMemoryMmap) {
    let near = u64::from(input.byte());
    let place = match input.byte() % 5 {
        0 => TABLE + 4 * near,
        1 => INDIRECT + 4 * near,
        2 => HEADER + near % 16,
        3 => 0x8000 + 2 * near,
        _ => AVAILABLE + near,
    };
    let value = match input.byte() % 4 {
        0 => 0,
        1 => u32::MAX,
        2 => u32::from(input.byte()),
        _ => u32::from_le_bytes([(); 4].map(|()| input.byte())),
    };
    memory.write_obj(value, GuestAddress(place)).expect("the first region");
}

/// The rules, as far as they can be told from the result.
fn check(parsed: &Parsed, request: &Request, memory: &GuestMemoryMmap, device: &DeviceLimits) {
    let inside = |address: usize, len: usize| {
        REGIONS.iter().any(|&(start, region_len)| {
            let host = memory.get_host_address(GuestAddress(start)).expect("a region").addr();
            address >= host && address + len <= host + region_len
        })
    };
    assert!(inside(parsed.status.as_ptr().addr(), 1));
    let segments = request.segments();
    assert!(segments.len() <= SEGMENTS_MAX);
    assert!(segments.iter().all(|segment| segment.len > 0 && inside(segment.ptr.addr(), segment.len as usize)));
    let total: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
    let block = u64::from(device.block_size);
    let fits = |offset: u64, len: u64| {
        assert!(offset.checked_add(len).is_some_and(|end| end <= device.capacity), "{offset}+{len}");
        assert!(len > 0 && offset.is_multiple_of(block) && len.is_multiple_of(block), "{offset}+{len}");
    };
    match request.kind {
        RequestKind::Read { offset, len } | RequestKind::Write { offset, len } => {
            fits(offset, len);
            assert!(total == len && len <= REQUEST_LEN_MAX);
            let writes = matches!(request.kind, RequestKind::Write { .. });
            assert!(!(writes && device.read_only));
        }
        RequestKind::GetId => assert!(total >= crate::virtio::parse::ID_LEN),
        RequestKind::Flush => assert_eq!(total, 0),
        RequestKind::Discard | RequestKind::WriteZeroes => {
            assert!(!device.read_only && total == 0);
            // Empty ones are left out.
            assert!(request.ranges().len() <= DISCARD_RANGES_MAX as usize);
            request.ranges().iter().for_each(|range| fits(range.offset, range.len));
        }
    }
}
