//! Requests to every route of the API.
#![no_main]

#[path = "../../fuzz_bodies/api.rs"]
mod body;
#[path = "../../common/fake_owner.rs"]
#[allow(dead_code, reason = "not all of it is used here")]
mod fake_owner;

use std::sync::LazyLock;

static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    body::run(&RUNTIME, data);
});
