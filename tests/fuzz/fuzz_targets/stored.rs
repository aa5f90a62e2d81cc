//! Everything that is read from disks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    spanblk::store::fuzz::run(data);
});
