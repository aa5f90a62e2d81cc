//! `spanblk serve`: configuration and log, then the daemon.

use std::path::Path;

use log::LevelFilter;

use super::Session;
use super::args::{CONTROL_DEFAULT, ServeArgs};
use super::output::{Failure, Outcome};
use crate::control::error_chain;
use crate::control::http::ListenError;
use crate::control::serve::config::{Config, ConfigError, ConfigFile, Options};
use crate::control::serve::{self, Ended, ServeError, TakeoverError};
use crate::control::wire::ErrorKind;
use crate::disk::file::OpenError;
use crate::disk::pool::{AssembleError, FindError};

/// Runs the daemon until it is told to stop.
pub fn run(session: &Session, args: ServeArgs) -> Outcome {
    let file = args.config.as_deref().map_or_else(|| Ok(ConfigFile::default()), ConfigFile::read).map_err(refused)?;
    start_log(args.log_level.or(file.log_level).unwrap_or(LevelFilter::Info));
    let options = Options {
        disks: args.disks,
        control: session.global.control.clone(),
        socket_dir: args.socket_dir,
        reactors: args.reactors,
        pin: args.pin,
        poll_max_us: args.poll_max_us,
        hang_timeout: args.hang_timeout,
        rebuild_delay: args.rebuild_delay,
        fair_shares: args.fair_shares,
        metrics_listen: args.metrics_listen,
        accept_stale: args.accept_stale,
        pool: args.pool,
        user: args.user,
        sandbox: args.sandbox,
        disk_dirs: args.disk_dirs,
        takeover: args.takeover,
    };
    let config = Config::new(file, options, Path::new(CONTROL_DEFAULT)).map_err(refused)?;
    match serve::run(config) {
        Ok(Ended::Cleanly | Ended::TakenOver) => Ok(()),
        Ok(Ended::Forced) => Err(Failure::new(ErrorKind::Failed, "stopped, but not cleanly: see the log")),
        Err(error) => Err(not_started(&error)),
    }
}

fn not_started(error: &ServeError) -> Failure {
    let kind = match &error {
        ServeError::Pool(error) => serve::find_error_kind(error),
        ServeError::Listen(ListenError::InUse(_)) | ServeError::Takeover(TakeoverError::Refused(_)) => {
            ErrorKind::Conflict
        }
        ServeError::Takeover(TakeoverError::NoDaemon(_)) => ErrorKind::Unavailable,
        _ => ErrorKind::Failed,
    };
    let failure = Failure::new(kind, error_chain(&error));
    match error {
        ServeError::Pool(FindError::Open(OpenError::Locked { .. })) => failure.hint("stop that process first"),
        ServeError::Pool(FindError::Assemble { source: AssembleError::SeveralPools(_), .. }) => {
            failure.hint("--pool UUID, or 'pool' in the configuration file, chooses one of them")
        }
        _ => failure,
    }
}

fn refused(error: ConfigError) -> Failure {
    let kind = match &error {
        ConfigError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        ConfigError::Read { .. } => ErrorKind::Failed,
        _ => ErrorKind::Invalid,
    };
    // With the line of the file that is not valid.
    Failure::new(kind, format!("{:#}", anyhow::Error::from(error)))
}

/// Log lines go to standard error. Under systemd the journal has the time already, and understands levels.
fn start_log(level: LevelFilter) {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(LevelFilter::Warn).filter_module("spanblk", level);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.format(|out, record| {
            use std::io::Write;
            let priority = match record.level() {
                log::Level::Error => 3,
                log::Level::Warn => 4,
                log::Level::Info => 6,
                log::Level::Debug | log::Level::Trace => 7,
            };
            writeln!(out, "<{priority}>{}", record.args())
        });
    } else {
        builder.format_timestamp_millis().format_target(false);
    }
    // A second start in one process (tests) keeps the first log.
    let _ = builder.try_init();
}
