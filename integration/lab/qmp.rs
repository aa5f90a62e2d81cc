//! QEMU's machine protocol: one JSON object per line.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::tools::wait_for;

/// A client of one QEMU.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects and leaves the negotiation mode.
    ///
    /// # Errors
    /// No QEMU answers.
    pub fn connect(path: &Path) -> Result<Qmp> {
        let stream = wait_for("QMP socket", Duration::from_secs(20), || UnixStream::connect(path).ok())?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut qmp = Qmp { reader: BufReader::new(stream), events: Vec::new() };
        qmp.message().context("QMP greeting")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command; its `return` value.
    ///
    /// # Errors
    /// What QEMU says, or that it says nothing.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes())?;
        loop {
            let mut message = self.message().with_context(|| format!("answer to {command}"))?;
            if message.get("event").is_some() {
                self.events.push(message);
            } else if let Some(error) = message.get("error") {
                bail!("QMP {command}: {error}");
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// Waits for an event of this name, for 30 s at most; earlier events are forgotten.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait_event(&mut self, name: &str) -> Result<()> {
        if let Some(at) = self.events.iter().position(|e| e["event"] == name) {
            self.events.drain(..=at);
            return Ok(());
        }
        self.events.clear();
        loop {
            let message = self.message().with_context(|| format!("event {name}"))?;
            if message["event"] == name {
                return Ok(());
            }
        }
    }

    /// Forgets the events that came so far.
    pub fn forget_events(&mut self) {
        self.events.clear();
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU closed its QMP socket");
        }
        Ok(serde_json::from_str(&line)?)
    }
}
