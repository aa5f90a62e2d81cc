//! A process of its own for what is not to be counted as the daemon's, nor to share its fate: this program again, with an order.
//!
//! The two talk in lines: the helper says that it is ready; at each line that it is given it does once what it was ordered, and
//! says what came of it; it lets go of everything when its input ends.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::tools::command;

/// What it says when it is ready.
const READY: &str = "ready";

/// A helper, as seen by who gives the orders. It dies with this process.
pub struct Helper {
    child: Child,
    /// `None`: it has been told to end.
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Helper {
    /// Starts this program with `argument` and the order, and waits until it is ready.
    ///
    /// # Errors
    /// It ends instead.
    pub fn start(argument: &str, order: &impl Serialize) -> Result<Helper> {
        let mut command = command(std::env::current_exe()?);
        command.arg(argument).arg(serde_json::to_string(order)?);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting a helper")?;
        let (to, from) = (child.stdin.take().context("a pipe")?, child.stdout.take().context("a pipe")?);
        let mut helper = Helper { child, to: Some(to), from: BufReader::new(from) };
        let line = helper.hear()?;
        ensure!(line.trim() == READY, "the helper is not ready: {line}");
        Ok(helper)
    }

    /// Lets it do once what it was ordered; what came of it.
    ///
    /// # Errors
    /// It ends instead.
    pub fn go<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.to.as_mut().context("the helper has been told to end")?.write_all(b"go\n")?;
        serde_json::from_str(&self.hear()?).context("what the helper says")
    }

    /// Lets it end.
    ///
    /// # Errors
    /// It does not end well.
    pub fn finish(mut self) -> Result<()> {
        drop(self.to.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "the helper: {status}");
        Ok(())
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        Ok(line)
    }
}

/// The helper's own part, which says why it fails.
pub fn main(name: &str, body: impl FnOnce() -> Result<()>) -> ExitCode {
    match body() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says that it is ready, then does `work` at each line.
///
/// # Errors
/// Of the work.
pub fn serve<T: Serialize>(mut work: impl FnMut() -> Result<T>) -> Result<()> {
    println!("{READY}");
    for line in std::io::stdin().lines() {
        line?;
        println!("{}", serde_json::to_string(&work()?)?);
    }
    Ok(())
}

/// Ends this process if it takes too long: a device that does not answer would hold up the run for ever.
pub fn watch(limit: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        eprintln!("no end after {} s", limit.as_secs());
        std::process::exit(3);
    });
}
