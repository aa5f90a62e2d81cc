//! Descriptor chains, held against a slow model.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    spanblk::virtio::fuzz::run(data);
});
