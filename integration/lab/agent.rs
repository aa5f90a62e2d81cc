//! The host's end of the guest's command port (see `init`).

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How long an ordinary command may take, emulated and on a loaded machine.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// A connection to the process that runs commands in the guest.
#[derive(Debug)]
pub struct Agent {
    reader: BufReader<UnixStream>,
}

/// What a command in the guest gave back.
#[derive(Debug)]
pub struct Answer {
    /// Standard output and error.
    pub output: String,
    /// Exit code.
    pub code: i32,
}

impl Agent {
    /// An agent on a connected serial port.
    #[must_use]
    pub fn new(stream: UnixStream) -> Agent {
        Agent { reader: BufReader::new(stream) }
    }

    /// Waits until the guest has started and takes commands.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            // What an earlier life of this guest left half said may stand before the word.
            if self.line(deadline).context("waiting for the guest to start")?.ends_with("READY") {
                return Ok(());
            }
        }
    }

    /// As [`Agent::wait_ready`] where the word may have been said before anybody listened.
    ///
    /// # Errors
    /// The guest does not answer within `limit`.
    pub fn wait_answering(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        for attempt in 0.. {
            let word = format!("attempt {attempt}");
            self.send(&format!("echo {word}"))?;
            let turn = Instant::now() + Duration::from_secs(2);
            // Answers to earlier attempts come first; after the last one nothing is left over.
            while let Ok(line) = self.line(turn) {
                if line == word {
                    while !self.line(deadline)?.starts_with("=== ") {}
                    return Ok(());
                }
            }
            ensure!(Instant::now() < deadline, "the guest does not answer");
        }
        Ok(())
    }

    /// Runs a shell script in the guest; its output.
    ///
    /// # Errors
    /// Its exit code is not 0, it takes too long, or the guest is gone.
    pub fn run(&mut self, script: &str) -> Result<String> {
        self.run_within(script, COMMAND_LIMIT)
    }

    /// As [`Agent::run`] with another time limit.
    ///
    /// # Errors
    /// As [`Agent::run`].
    pub fn run_within(&mut self, script: &str, limit: Duration) -> Result<String> {
        let answer = self.answer(script, limit)?;
        ensure!(answer.code == 0, "guest: exit code {} of\n{script}\n{}", answer.code, answer.output);
        Ok(answer.output)
    }

    /// Runs a shell script in the guest and takes any exit code.
    ///
    /// # Errors
    /// It takes too long, or the guest is gone.
    pub fn answer(&mut self, script: &str, limit: Duration) -> Result<Answer> {
        self.send(script)?;
        let deadline = Instant::now() + limit;
        let mut lines = Vec::new();
        loop {
            let line = self.line(deadline).with_context(|| format!("guest running\n{script}"))?;
            if let Some(code) = line.strip_prefix("=== ") {
                // The agent puts a line end of its own before the last line.
                if lines.last().is_some_and(String::is_empty) {
                    lines.pop();
                }
                return Ok(Answer { output: lines.join("\n"), code: code.parse()? });
            }
            ensure!(line != "READY", "the guest started again while running\n{script}");
            lines.push(line);
        }
    }

    /// Sends a script and does not wait for its end (the guest will not survive it).
    ///
    /// # Errors
    /// The guest is gone.
    pub fn send(&mut self, script: &str) -> Result<()> {
        ensure!(!script.lines().any(|l| l == "."), "a line with one dot ends a script");
        let message = format!("{}\n.\n", script.trim_end());
        self.reader.get_mut().write_all(message.as_bytes()).context("sending to the guest")
    }

    fn line(&mut self, deadline: Instant) -> Result<String> {
        let mut bytes = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "nothing from the guest within the time limit");
            self.reader.get_ref().set_read_timeout(Some(left))?;
            match self.reader.read_until(b'\n', &mut bytes) {
                Ok(0) => bail!("the guest is gone"),
                Ok(_) if bytes.last() == Some(&b'\n') => {
                    bytes.pop();
                    return Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned());
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
