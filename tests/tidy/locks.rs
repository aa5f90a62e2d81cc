//! No lock in the data plane: reactors share nothing there that one thread could hold while another waits for it.

use super::{Source, expect_none, has_word, sources};

/// What runs for every request of a guest, or for each of its parts.
const DATA_PLANE: &[&str] = &[
    "src/base/",
    "src/metrics/",
    "src/qos/",
    "src/virtio/",
    "src/placement/view",
    "src/shared/",
    "src/store/change.rs",
    "src/engine/",
    "src/reactor/",
];

/// Names of what waits for another thread; of queues, too, because a sender locks the list of receivers that sleep in one.
const LOCKS: &[&str] = &[
    "Mutex",
    "MutexGuard",
    "ReentrantLock",
    "RwLock",
    "Condvar",
    "Barrier",
    "Once",
    "OnceCell",
    "OnceLock",
    "LazyLock",
    "parking_lot",
    "spin",
    "SpinLock",
    "mpsc",
    "crossbeam_channel",
];

/// The data-plane files that may name one of them, and why no request waits for it.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("src/base/clock.rs", "OnceLock", "set at the first call; one load from then on"),
    ("src/placement/view/segments.rs", "OnceLock", "set by the owner before anybody looks there; a look is one load"),
    ("src/reactor/handle.rs", "crossbeam_channel", "reactors, which it sends to, never sleep in the queue"),
    (
        "src/reactor/inbox.rs",
        "crossbeam_channel",
        "only asked whether there is a message: no lock, but a sender that is half way is waited for",
    ),
    (
        "src/reactor/messages.rs",
        "crossbeam_channel",
        "answers to a connection that sleeps until a ring has stopped, yielded or switched its mode",
    ),
    ("src/engine/uring/thread.rs", "crossbeam_channel", "how a thread begins and ends"),
    ("src/reactor/thread/rings/mod.rs", "crossbeam_channel", "the answers of `messages`"),
    ("src/shared/failure.rs", "OnceLock", "set when the pool is opened; looked at when a disk fails"),
    (
        "src/shared/limits.rs",
        "Mutex",
        "locked by the owner for a change; a reactor only tries, and has the old limits for one batch more",
    ),
    ("src/shared/guest_memory.rs", "Mutex", "locked when guest memory is mapped and unmapped"),
    ("src/shared/guest_memory.rs", "OnceLock", "set with the signal handler, which does one load"),
];

/// A lock by name, and where.
struct Found {
    path: String,
    line: usize,
    lock: &'static str,
}

impl Found {
    fn is_of(&self, &(path, lock, _): &(&str, &str, &str)) -> bool {
        self.path == path && self.lock == lock
    }
}

#[test]
fn the_data_plane_waits_for_nobody() {
    let all = sources(&["src"]);
    let found = locks_in_data_plane(&all);
    let mut wrong: Vec<String> = found
        .iter()
        .filter(|found| !ALLOWED.iter().any(|allowed| found.is_of(allowed)))
        .map(|f| format!("{}:{}: {} in the data plane, where no request may wait for one", f.path, f.line, f.lock))
        .collect();
    let unused = ALLOWED.iter().filter(|allowed| !found.iter().any(|found| found.is_of(allowed)));
    wrong.extend(unused.map(|(path, lock, _)| format!("{path}: no {lock} any more; take it off the list")));
    let empty = DATA_PLANE.iter().filter(|place| !all.iter().any(|source| source.path.starts_with(*place)));
    wrong.extend(empty.map(|place| format!("{place}: nothing is there any more; correct the list")));
    expect_none(&wrong);
}

/// The locks that data-plane code names outside of tests.
fn locks_in_data_plane(all: &[Source]) -> Vec<Found> {
    let mut found = Vec::new();
    for source in all.iter().filter(|source| DATA_PLANE.iter().any(|place| source.path.starts_with(place))) {
        for (line, code) in (1..).zip(source.code.lines()) {
            let named = LOCKS.iter().filter(|lock| has_word(code, lock));
            found.extend(named.map(|lock| Found { path: source.path.clone(), line, lock }));
        }
    }
    found
}

#[test]
fn a_lock_in_the_data_plane_is_seen() {
    let text = "use std::sync::{Arc, Mutex};\n\
                fn f() { std::iter::once(1); } // RwLock\n\
                #[cfg(test)]\n\
                mod tests {\n\
                    use std::sync::Condvar;\n\
                }\n\
                static LOCK: parking_lot::Once = new(\"Barrier\");\n";
    let at = |path: &str| locks_in_data_plane(&[Source::new(path.to_owned(), text.to_owned())]);
    let found: Vec<(usize, &str)> = at("src/reactor/pipeline/new.rs").iter().map(|f| (f.line, f.lock)).collect();
    assert_eq!(found, [(1, "Mutex"), (7, "Once"), (7, "parking_lot")]);
    assert_eq!(at("src/placement/view/new.rs").len(), found.len());
    assert!(at("src/owner/new.rs").is_empty() && at("src/reactor/pipeline/tests/new.rs").is_empty());
}
