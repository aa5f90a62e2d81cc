//! What CPUs of a virtual machine do when they have nothing to do.
//!
//! One that halts is woken by the hypervisor, which takes tens of microseconds: far longer than a core of a host takes, and longer
//! than the requests that are measured. Linux lets such CPUs poll for a while first, unless it was told otherwise.

use std::fs;
use std::path::Path;

const POLL_NS: &str = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";

/// Linux's default, in nanoseconds.
const DEFAULT_NS: &str = "200000";

/// Idle CPUs poll before they halt, as long as this lives.
#[derive(Debug)]
pub struct HaltPolling {
    before: Option<String>,
    /// What holds now, for people.
    pub note: String,
}

impl HaltPolling {
    /// Sets Linux's default where polling is off; leaves everything else as it is.
    #[must_use]
    pub fn ensure() -> HaltPolling {
        let Ok(found) = fs::read_to_string(POLL_NS) else {
            return HaltPolling { before: None, note: "idle CPUs: as the machine has it".into() };
        };
        let found = found.trim().to_owned();
        if found != "0" {
            return HaltPolling { before: None, note: format!("idle CPUs poll for {found} ns before they halt") };
        }
        match fs::write(POLL_NS, DEFAULT_NS) {
            Ok(()) => HaltPolling {
                before: Some(found),
                note: format!("idle CPUs poll for {DEFAULT_NS} ns before they halt (Linux's default; it was off here)"),
            },
            Err(error) => HaltPolling {
                before: None,
                note: format!(
                    "idle CPUs halt at once, and waking one takes long: {}: {error}",
                    Path::new(POLL_NS).display()
                ),
            },
        }
    }
}

impl Drop for HaltPolling {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = fs::write(POLL_NS, before)
        {
            eprintln!("{POLL_NS} was {before}, and could not be set to that again: {error}");
        }
    }
}
