//! Facts of this host: what the configuration file and the command line say, checked.
//!
//! VHDs and their settings are not here: they live in the pool only.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use glob::Pattern;
use log::LevelFilter;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use uuid::Uuid;

use crate::base::limits::REACTORS_MAX;
use crate::sandbox::Mode;

/// Where VHDs have their sockets unless told otherwise.
pub const SOCKET_DIR_DEFAULT: &str = "/run/spanblk/vhost";

/// Reactors at most, unless told otherwise: more rarely help, and each costs memory.
const REACTORS_DEFAULT_MAX: usize = 8;

/// Microseconds that a reactor looks for something to do before it sleeps, at most, unless told otherwise.
const POLL_MAX_US_DEFAULT: u32 = 50;

/// Seconds that a disk may take to complete something, unless told otherwise.
const HANG_TIMEOUT_DEFAULT: u32 = 30;

/// Seconds that a missing disk is waited for before its replicas are made anew, unless told otherwise.
const REBUILD_DELAY_DEFAULT: u32 = 3600;

/// More would not be a short wait any more.
const POLL_MAX_US_LIMIT: u32 = 1000;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file is not valid.
    #[error("the configuration file {} is not valid", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// No disk.
    #[error("no disks are given: name them on the command line, or as 'disks' in the configuration file")]
    NoDisks,
    /// A path is empty, or the working directory is gone.
    #[error("cannot make an absolute path of '{}'", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The number of reactors is not possible.
    #[error("there cannot be {0} reactors: give 1 to {REACTORS_MAX}")]
    Reactors(u16),
    /// Reactors would look for too long.
    #[error("poll-max-us cannot be {0}: give 0 (never poll) to {POLL_MAX_US_LIMIT}")]
    PollMax(u32),
    /// Paths must mean the same wherever the daemon is started.
    #[error("'{key}' in the configuration file is not an absolute path: {}", path.display())]
    Relative {
        /// The key.
        key: &'static str,
        /// The path.
        path: PathBuf,
    },
}

/// The configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// Paths or globs of the disks.
    #[serde(default)]
    pub disks: Vec<String>,
    /// Which pool, if the paths lead to disks of several.
    pub pool: Option<Uuid>,
    /// Path of the control socket.
    pub control: Option<PathBuf>,
    /// Directory of the VHDs' sockets.
    pub socket_dir: Option<PathBuf>,
    /// Reactor threads.
    pub reactors: Option<u16>,
    /// Whether each reactor is pinned to a core.
    pub pin: Option<bool>,
    /// Microseconds that a reactor looks before it sleeps, at most.
    pub poll_max_us: Option<u32>,
    /// Seconds after which a disk that does not answer has failed; 0: never.
    pub hang_timeout: Option<u32>,
    /// Seconds after which the replicas of a missing disk are made anew.
    #[serde(default, deserialize_with = "delay")]
    pub rebuild_delay: Option<Delay>,
    /// Whether host disks are shared out.
    pub fair_shares: Option<FairShares>,
    /// TCP address for metrics.
    pub metrics_listen: Option<SocketAddr>,
    /// User, or user and group, to become.
    pub user: Option<String>,
    /// Whether the sandbox is on.
    pub sandbox: Option<Mode>,
    /// More directories in which disks may be opened later.
    #[serde(default)]
    pub disk_dirs: Vec<PathBuf>,
    /// How much to log.
    #[serde(default, deserialize_with = "level")]
    pub log_level: Option<LevelFilter>,
}

/// Whether host disks are shared out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum FairShares {
    /// Each disk while several VHDs, or VHDs and jobs, want it.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// A wait that may never end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// Seconds.
    Secs(u32),
    /// For ever.
    Never,
}

impl Delay {
    fn duration(self) -> Option<Duration> {
        match self {
            Delay::Secs(secs) => Some(Duration::from_secs(secs.into())),
            Delay::Never => None,
        }
    }
}

impl std::str::FromStr for Delay {
    type Err = String;

    fn from_str(text: &str) -> Result<Delay, String> {
        if text == "never" {
            return Ok(Delay::Never);
        }
        text.parse().map(Delay::Secs).map_err(|_| format!("'{text}' is no delay: give whole seconds, or 'never'"))
    }
}

fn delay<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Delay>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        Secs(u32),
        Text(String),
    }
    match Value::deserialize(deserializer)? {
        Value::Secs(secs) => Ok(Some(Delay::Secs(secs))),
        Value::Text(text) => text.parse().map(Some).map_err(D::Error::custom),
    }
}

fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<LevelFilter>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong = || D::Error::custom(format!("'{text}' is no log level: use off, error, warn, info, debug or trace"));
    text.parse().map(Some).map_err(|_| wrong())
}

impl ConfigFile {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// It cannot be read, or is not valid.
    pub fn read(path: &Path) -> Result<ConfigFile, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let file: ConfigFile = toml::from_str(&text)
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
        let disks = file.disks.iter().map(|disk| ("disks", Path::new(disk)));
        let paths = [("control", &file.control), ("socket_dir", &file.socket_dir)];
        let paths = paths.into_iter().filter_map(|(key, path)| Some((key, path.as_deref()?)));
        let directories = file.disk_dirs.iter().map(|directory| ("disk_dirs", directory.as_path()));
        if let Some((key, path)) = paths.chain(disks).chain(directories).find(|(_, path)| path.is_relative()) {
            return Err(ConfigError::Relative { key, path: path.to_owned() });
        }
        Ok(file)
    }
}

/// What the command line says; it wins over the file.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Paths or globs of the disks.
    pub disks: Vec<String>,
    /// Path of the control socket, if given.
    pub control: Option<PathBuf>,
    /// Directory of the VHDs' sockets.
    pub socket_dir: Option<PathBuf>,
    /// Reactor threads.
    pub reactors: Option<u16>,
    /// Whether each reactor is pinned to a core.
    pub pin: bool,
    /// Microseconds that a reactor looks before it sleeps, at most.
    pub poll_max_us: Option<u32>,
    /// Seconds after which a disk that does not answer has failed; 0: never.
    pub hang_timeout: Option<u32>,
    /// Seconds after which the replicas of a missing disk are made anew.
    pub rebuild_delay: Option<Delay>,
    /// Whether host disks are shared out.
    pub fair_shares: Option<FairShares>,
    /// TCP address for metrics.
    pub metrics_listen: Option<SocketAddr>,
    /// Open a pool without a majority of its placement store.
    pub accept_stale: bool,
    /// Which pool, if the paths lead to disks of several.
    pub pool: Option<Uuid>,
    /// User, or user and group, to become.
    pub user: Option<String>,
    /// Whether the sandbox is on.
    pub sandbox: Option<Mode>,
    /// More directories in which disks may be opened later.
    pub disk_dirs: Vec<PathBuf>,
    /// Go on with what the daemon that serves has.
    pub takeover: bool,
}

/// What the daemon is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Paths or patterns of the disks that may belong to the pool; at least one.
    pub disks: Vec<String>,
    /// Path of the control socket.
    pub control: PathBuf,
    /// Directory of the VHDs' sockets.
    pub socket_dir: PathBuf,
    /// Reactor threads.
    pub reactors: u16,
    /// Whether each reactor is pinned to a core.
    pub pin: bool,
    /// Longest time that a reactor looks for something to do before it sleeps; zero: it sleeps at once.
    pub poll_max: Duration,
    /// How long a disk may take to complete something; `None`: as long as it likes.
    pub hang_timeout: Option<Duration>,
    /// How long a missing disk is waited for before its replicas are made anew; `None`: for ever.
    pub rebuild_delay: Option<Duration>,
    /// Whether host disks are shared out.
    pub fair_shares: FairShares,
    /// TCP address for metrics.
    pub metrics_listen: Option<SocketAddr>,
    /// Open a pool without a majority of its placement store.
    pub accept_stale: bool,
    /// Which pool, if the paths lead to disks of several.
    pub pool: Option<Uuid>,
    /// `USER` or `USER:GROUP` to become once everything is open that needs more rights; `None`: nobody else.
    pub user: Option<String>,
    /// Whether the sandbox is on.
    pub sandbox: Mode,
    /// Directories in which disks may be opened later, besides those of the disks given.
    pub disk_dirs: Vec<PathBuf>,
    /// Go on with what the daemon that serves has.
    pub takeover: bool,
}

impl Config {
    /// Puts file and options together.
    ///
    /// # Errors
    /// No disk, or a number out of range.
    pub fn new(file: ConfigFile, options: Options, control_default: &Path) -> Result<Config, ConfigError> {
        let reactors = options.reactors.or(file.reactors).unwrap_or_else(reactors_default);
        if reactors == 0 || usize::from(reactors) > REACTORS_MAX {
            return Err(ConfigError::Reactors(reactors));
        }
        let poll_max_us = options.poll_max_us.or(file.poll_max_us).unwrap_or(POLL_MAX_US_DEFAULT);
        if poll_max_us > POLL_MAX_US_LIMIT {
            return Err(ConfigError::PollMax(poll_max_us));
        }
        let hang_timeout = options.hang_timeout.or(file.hang_timeout).unwrap_or(HANG_TIMEOUT_DEFAULT);
        let rebuild_delay = options.rebuild_delay.or(file.rebuild_delay).unwrap_or(Delay::Secs(REBUILD_DELAY_DEFAULT));
        let disks = if options.disks.is_empty() { file.disks } else { options.disks };
        if disks.is_empty() {
            return Err(ConfigError::NoDisks);
        }
        let disk_dirs = if options.disk_dirs.is_empty() { file.disk_dirs } else { options.disk_dirs };
        let control = options.control.or(file.control).unwrap_or_else(|| control_default.to_owned());
        let socket_dir = options.socket_dir.or(file.socket_dir).unwrap_or_else(|| SOCKET_DIR_DEFAULT.into());
        Ok(Config {
            disks: disks.into_iter().map(absolute_pattern).collect::<Result<_, _>>()?,
            control: absolute(control)?,
            socket_dir: absolute(socket_dir)?,
            reactors,
            pin: options.pin || file.pin.unwrap_or(false),
            poll_max: Duration::from_micros(poll_max_us.into()),
            hang_timeout: (hang_timeout > 0).then(|| Duration::from_secs(hang_timeout.into())),
            rebuild_delay: rebuild_delay.duration(),
            fair_shares: options.fair_shares.or(file.fair_shares).unwrap_or_default(),
            metrics_listen: options.metrics_listen.or(file.metrics_listen),
            accept_stale: options.accept_stale,
            pool: options.pool.or(file.pool),
            user: options.user.or(file.user),
            sandbox: options.sandbox.or(file.sandbox).unwrap_or_default(),
            disk_dirs: disk_dirs.into_iter().map(absolute).collect::<Result<_, _>>()?,
            takeover: options.takeover,
        })
    }
}

/// Paths are told to clients, which have working directories of their own.
fn absolute(path: PathBuf) -> Result<PathBuf, ConfigError> {
    std::path::absolute(&path).map_err(|source| ConfigError::Path { path, source })
}

/// A path or pattern of a disk, from the root. What stands in the name of the working directory is no pattern.
fn absolute_pattern(disk: String) -> Result<String, ConfigError> {
    let path = Path::new(&disk);
    if path.is_absolute() {
        return Ok(disk);
    }
    let failed = |source| ConfigError::Path { path: path.to_owned(), source };
    let whole = absolute(path.to_owned())?;
    if path.exists() {
        return Ok(whole.display().to_string());
    }
    let directory = std::env::current_dir().map_err(failed)?;
    Ok(format!("{}/{disk}", Pattern::escape(&directory.display().to_string())))
}

fn reactors_default() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u16::try_from(cores.min(REACTORS_DEFAULT_MAX)).expect("a small number")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConfigFile, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("spanblk.toml");
        fs::write(&path, text).unwrap();
        ConfigFile::read(&path)
    }

    #[test]
    fn a_full_file_is_read() {
        let file = parse(
            "disks = ['/dev/sda', '/dev/disk/by-id/nvme-*']\ncontrol = '/run/a.sock'\nsocket_dir = '/run/v'\n\
             reactors = 4\npin = true\npoll_max_us = 0\nhang_timeout = 5\n\
             rebuild_delay = 'never'\nfair_shares = 'off'\nmetrics_listen = '127.0.0.1:9464'\nlog_level = 'debug'\n",
        )
        .unwrap();
        assert_eq!((file.reactors, file.poll_max_us), (Some(4), Some(0)));
        assert_eq!((file.hang_timeout, file.rebuild_delay), (Some(5), Some(Delay::Never)));
        assert_eq!(file.fair_shares, Some(FairShares::Off));
        let late = parse("rebuild_delay = 600").unwrap();
        assert_eq!(late.rebuild_delay, Some(Delay::Secs(600)));
        assert_eq!(file.log_level, Some(LevelFilter::Debug));
    }

    #[test]
    fn mistakes_in_the_file_are_named() {
        let text = |error: ConfigError| format!("{:#}", anyhow::Error::from(error));
        assert!(text(parse("disk = ['/dev/sda']").unwrap_err()).contains("unknown field `disk`"));
        assert!(text(parse("reactors = 'four'").unwrap_err()).contains("reactors"));
        assert!(text(parse("log_level = 'loud'").unwrap_err()).contains("'loud' is no log level"));
        assert!(text(parse("disks = ['/dev/sda', 'b.img']").unwrap_err()).contains("absolute path: b.img"));
        assert!(text(parse("pool = 'mine'").unwrap_err()).contains("pool"));
        assert!(text(parse("rebuild_delay = 'soon'").unwrap_err()).contains("give whole seconds, or 'never'"));
        assert!(text(parse("control = 'api.sock'").unwrap_err()).contains("absolute"));
        assert!(matches!(ConfigFile::read(Path::new("/nonexistent")), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn options_win_over_the_file() {
        let file = parse("disks = ['/f']\nreactors = 4\ncontrol = '/f.sock'").unwrap();
        let options = Options { disks: vec!["/o".into()], reactors: Some(2), ..Options::default() };
        let config = Config::new(file, options, Path::new("/default.sock")).unwrap();
        assert_eq!(config.disks, ["/o"]);
        assert_eq!((config.reactors, config.control.to_str().unwrap()), (2, "/f.sock"));
    }

    #[test]
    fn disks_are_told_by_their_whole_path() {
        let options = Options { disks: vec!["Cargo.toml".into(), "d*.img".into(), "/x".into()], ..Options::default() };
        let config = Config::new(ConfigFile::default(), options, Path::new("/s")).unwrap();
        let here = std::env::current_dir().unwrap().display().to_string();
        assert_eq!(config.disks, [format!("{here}/Cargo.toml"), format!("{here}/d*.img"), "/x".into()]);
    }

    #[test]
    fn a_daemon_without_disks_is_refused() {
        let refused = Config::new(ConfigFile::default(), Options::default(), Path::new("/s"));
        assert!(matches!(refused, Err(ConfigError::NoDisks)));
    }

    #[test]
    fn polling_has_a_limit_and_can_be_switched_off() {
        for (poll_max_us, fine) in [(Some(0), true), (None, true), (Some(1000), true), (Some(1001), false)] {
            let options = Options { disks: vec!["/o".into()], poll_max_us, ..Options::default() };
            let config = Config::new(ConfigFile::default(), options, Path::new("/s"));
            assert_eq!(config.is_ok(), fine, "{poll_max_us:?}");
            let us = u64::from(poll_max_us.unwrap_or(POLL_MAX_US_DEFAULT));
            assert!(config.is_err() || config.is_ok_and(|config| config.poll_max == Duration::from_micros(us)));
        }
    }

    #[test]
    fn reactors_have_limits() {
        let most = u16::try_from(REACTORS_MAX).unwrap();
        for (reactors, fine) in [(0, false), (1, true), (most, true), (most + 1, false)] {
            let options = Options { disks: vec!["/o".into()], reactors: Some(reactors), ..Options::default() };
            assert_eq!(Config::new(ConfigFile::default(), options, Path::new("/s")).is_ok(), fine, "{reactors}");
        }
    }
}
