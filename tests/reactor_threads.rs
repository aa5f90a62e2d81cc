//! The threads of reactors: where they run, and that they serve one reactor after another.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "common/guest.rs"]
mod guest;
#[path = "common/host.rs"]
mod host;

use std::time::Duration;

use spanblk::base::ids::ReactorId;
use spanblk::reactor::messages::ReactorMessage;
use spanblk::reactor::thread::{ReactorConfig, StartError, begin, spawn};

#[test]
fn reactors_are_named_pinned_and_refused_on_cpus_that_do_not_exist() {
    for cpu in [100_000, 1023] {
        let refused = spawn(ReactorId(7), Some(cpu));
        assert!(matches!(refused, Err(StartError::Cpu { cpu: refused, .. }) if refused == cpu));
    }
    let thread = spawn(ReactorId(7), Some(0)).unwrap();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default());
    assert!(names.into_iter().any(|name| name == "spanblk-r7\n"));
    // One after the other, on the same thread and ring.
    for _ in 0..100 {
        let (handle, inbox) = spanblk::reactor::inbox::channel().unwrap();
        let config = ReactorConfig {
            id: ReactorId(7),
            poll_max: Duration::ZERO,
            busy: std::sync::Arc::default(),
            rest: std::sync::Arc::default(),
        };
        begin(&thread, config, inbox, host::Nowhere);
        let (answer, answered) = crossbeam_channel::bounded(1);
        handle.send(ReactorMessage::Alive(answer));
        answered.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(!thread.wait_idle(Duration::ZERO), "it is at work");
        handle.send(ReactorMessage::Shutdown);
        assert!(thread.wait_idle(Duration::from_secs(10)));
    }
    assert!(thread.join(Duration::from_secs(10)));
}
