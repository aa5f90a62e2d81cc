//! What the command line prints: tables, sentences, JSON, errors.

use std::fmt::Display;
use std::io::{self, Write};

use serde::Serialize;

use crate::control::wire::{ErrorBody, ErrorInfo, ErrorKind};

/// Why a command failed, and with which exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(pub ErrorInfo);

/// What every command returns.
pub type Outcome = Result<(), Failure>;

impl Failure {
    /// A failure of `kind` without a hint.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Failure {
        Failure(ErrorInfo::new(kind, message))
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Failure {
        Failure(self.0.with_hint(hint))
    }

    /// The exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.0.kind.exit_code()
    }

    /// Prints the failure to standard error.
    pub fn print(&self, json: bool) {
        let text = if json {
            to_json(&ErrorBody { error: self.0.clone() })
        } else {
            let hint = self.0.hint.as_ref().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
            format!("spanblk: {}{hint}\n", self.0.message)
        };
        // Nobody is left to tell if standard error is closed.
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

impl From<ErrorInfo> for Failure {
    fn from(info: ErrorInfo) -> Failure {
        Failure(info)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::new(ErrorKind::Failed, format!("{error:#}"))
    }
}

/// Standard output, as the user wants it.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// JSON instead of text.
    pub json: bool,
}

impl Output {
    /// Prints `value` as JSON, or what `text` makes of it.
    ///
    /// # Errors
    /// Standard output cannot be written to.
    pub fn show<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Outcome {
        print(&if self.json { to_json(value) } else { text(value) })
    }
}

/// Prints `text` to standard output. A reader that went away ends the program quietly, as for every other tool.
///
/// # Errors
/// Standard output cannot be written to.
pub fn print(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::new(ErrorKind::Failed, format!("cannot write to standard output: {error}"))),
    }
}

/// Prints a warning to standard error.
pub fn warn(text: impl Display) {
    // Nobody is left to tell if standard error is closed.
    let _ = writeln!(io::stderr(), "warning: {text}");
}

fn to_json<T: Serialize>(value: &T) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("wire types have string keys");
    text.push('\n');
    text
}

/// A table with aligned columns.
#[derive(Debug)]
pub struct Table {
    headers: Vec<&'static str>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column headers; a header that begins with '>' aligns its column to the right.
    #[must_use]
    pub fn new(headers: &[&'static str]) -> Table {
        Table {
            headers: headers.iter().map(|h| h.strip_prefix('>').unwrap_or(h)).collect(),
            right: headers.iter().map(|h| h.starts_with('>')).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.headers.len(), "a row has a cell per column");
        self.rows.push(cells);
    }

    /// The table as text.
    #[must_use]
    pub fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.headers[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headers.len()).map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = String::new();
            for (column, cell) in cells.enumerate() {
                let pad = " ".repeat(widths[column] - cell.chars().count());
                let (before, after) = if self.right[column] { (pad.as_str(), "") } else { ("", pad.as_str()) };
                text.push_str(&format!("{}{before}{cell}{after}", if column == 0 { " " } else { "   " }));
            }
            format!("{}\n", text.trim_end())
        };
        let mut text = line(&mut self.headers.iter().copied());
        text.push_str(&format!("{}\n", "-".repeat(widths.iter().sum::<usize>() + 3 * widths.len() - 1)));
        self.rows.iter().for_each(|row| text.push_str(&line(&mut row.iter().map(String::as_str))));
        text
    }
}

/// `name: value` lines with aligned values.
#[must_use]
pub fn facts(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    pairs.iter().map(|(name, value)| format!("{:width$} {value}\n", format!("{name}:"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["Name", ">Size"]);
        table.row(vec!["a".into(), "1GiB".into()]);
        table.row(vec!["longer".into(), "512MiB".into()]);
        let expected = " Name       Size\n------------------\n a          1GiB\n longer   512MiB\n";
        assert_eq!(table.render(), expected.replace("------------------", &"-".repeat(17)));
    }

    #[test]
    fn facts_are_aligned() {
        assert_eq!(facts(&[("a", "1".into()), ("bcd", "2".into())]), "a:   1\nbcd: 2\n");
    }
}
