//! The command line: what users type and see.
//!
//! Online commands speak the HTTP API with the types of `control::wire`; commands for disks that nobody serves use `disk` and
//! `store` directly, under the pool's lock. Import and export attach to a VHD's socket as a guest would ([`blk_client`]).
//!
//! Uses everything.

pub mod args;
mod attach;
pub mod blk_client;
mod capacity;
pub mod client;
mod disk;
mod docs;
mod events;
mod image;
mod job;
pub mod output;
mod policy;
mod pool;
mod serve;
mod sharing;
mod simulate;
mod stats;
mod vhd;
mod vm;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::control::wire::ErrorKind;
use args::{CONTROL_DEFAULT, Cli, Command, Global, MetadataCommand};
use client::Client;
use output::{Failure, Outcome, Output};

/// Runs the program and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    abort_on_panic();
    run(std::env::args_os())
}

/// From now on a panic of any thread ends the process, with SIGABRT: a daemon that has lost a thread would leave guests waiting; one that
/// has gone is restarted, and they go on.
fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

/// Runs the command line `args`, the program's name first, and returns the exit code.
#[must_use]
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let json = args.iter().any(|arg| arg == "--json");
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) if json && error.use_stderr() => {
            let failure = Failure::new(ErrorKind::Invalid, usage(&error.to_string()));
            failure.print(true);
            return ExitCode::from(failure.exit_code());
        }
        Err(error) => {
            // Help goes to standard output, usage errors to standard error; nobody is left to tell if they are closed.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print(json);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// What is wrong with a command line, without the decoration for terminals.
fn usage(text: &str) -> &str {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    text.split_once("\n\nFor more information").map_or(text, |(message, _)| message).trim_end()
}

fn dispatch(cli: Cli) -> Outcome {
    let session = Session { global: cli.global };
    match cli.command {
        Command::Pool(command) => pool::run(&session, command),
        Command::Disk(command) => disk::run(&session, command),
        Command::Job(command) => job::run(&session, command),
        Command::Vhd(command) => vhd::run(&session, command),
        Command::Vm(command) => vm::run(&session, command),
        Command::Metadata(MetadataCommand::Dump { disks, output }) => pool::dump(&session, &disks, output.as_deref()),
        Command::Metadata(MetadataCommand::Restore { file, disks, force }) => {
            pool::restore(&session, &file, &disks, force)
        }
        Command::Check { disks } => pool::check(&session, &disks),
        Command::Policy(command) => policy::run(&session, command),
        Command::Advise(_) => policy::advise(&session),
        Command::Apply { proposal } => policy::apply(&session, proposal),
        Command::Dismiss { proposal } => policy::dismiss(&session, proposal),
        Command::Why { vhd } => policy::why(&session, &vhd),
        Command::Events(args) => events::run(&session, &args),
        Command::Metrics => output::print(&session.client()?.get_text("/metrics")?),
        Command::Serve(args) => serve::run(&session, args),
        Command::Simulate(args) => simulate::run(&session, &args),
        Command::Completions { shell } => docs::completions(shell),
        Command::Man { directory } => docs::man(&directory),
    }
}

/// What every command is given.
#[derive(Debug)]
struct Session {
    global: Global,
}

impl Session {
    fn client(&self) -> Result<Client, Failure> {
        Client::new(self.global.control.as_deref().unwrap_or(Path::new(CONTROL_DEFAULT)))
    }

    fn output(&self) -> Output {
        Output { json: self.global.json }
    }
}
