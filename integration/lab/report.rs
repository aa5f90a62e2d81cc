//! One line per check, with timings, and a closing line.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

/// Counts checks and prints them as they end.
#[derive(Debug)]
pub struct Report {
    passed: u32,
    failed: u32,
    skipped: u32,
    started: Instant,
}

impl Report {
    /// A report that has printed its heading.
    #[must_use]
    pub fn new(title: &str) -> Report {
        println!("== {title}");
        Report { passed: 0, failed: 0, skipped: 0, started: Instant::now() }
    }

    /// Runs one check and prints how it went; its value if it passed.
    pub fn check<T>(&mut self, name: &str, body: impl FnOnce() -> Result<T>) -> Option<T> {
        let started = Instant::now();
        let result = body();
        let secs = started.elapsed().as_secs_f64();
        match result {
            Ok(value) => {
                self.passed += 1;
                println!("ok {secs:.1}s {name}");
                Some(value)
            }
            Err(error) => {
                self.failed += 1;
                println!("FAIL {secs:.1}s {name}: {error:#}");
                None
            }
        }
    }

    /// Says that something was not checked, and why.
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.skipped += 1;
        println!("SKIP {name}: {reason}");
    }

    /// A line that explains the checks around it.
    pub fn note(&self, text: &str) {
        println!("   {text}");
    }

    /// Prints the closing line; the exit code tells whether everything passed.
    #[must_use]
    pub fn finish(self) -> ExitCode {
        println!("   {:.1}s in all", self.started.elapsed().as_secs_f64());
        let skipped = if self.skipped > 0 { format!(", {} skipped", self.skipped) } else { String::new() };
        println!("{} passed, {} failed{skipped}", self.passed, self.failed);
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
