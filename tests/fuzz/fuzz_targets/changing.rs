//! Descriptor chains in memory that changes while it is read.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    spanblk::virtio::fuzz::changing::run(data);
});
