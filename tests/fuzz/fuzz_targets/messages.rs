//! Sessions of vhost-user messages.
#![no_main]

#[path = "../../fuzz_bodies/messages.rs"]
mod body;
#[path = "../../vhost_user_support/mod.rs"]
mod vhost_user_support;

use std::sync::LazyLock;

static TARGET: LazyLock<body::Target> = LazyLock::new(body::Target::new);

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET.run(data));
