//! Processes, directories and waiting.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use serde::{Deserialize, Serialize};

use super::model::Random;

/// The user that guests run as when the run itself is root's: `nobody`.
pub const UNPRIVILEGED_ID: u32 = 65534;

/// Whether this process is root.
#[must_use]
pub fn is_root() -> bool {
    own_uid() == Some(0)
}

fn own_uid() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|l| l.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

/// A number from the environment, or the default.
///
/// # Panics
/// If the variable is set to something that is no number: a run with other counts than asked for would mislead.
#[must_use]
pub fn number_from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

/// Processors and kernel of this machine.
#[must_use]
pub fn machine() -> String {
    let cpus = thread::available_parallelism().map_or(0, usize::from);
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':')).map_or("?", |(_, m)| m);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cpus} x {}, Linux {}", model.trim(), kernel.trim())
}

/// A command that dies with this process, so that a run which is interrupted leaves nothing behind.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).stdin(Stdio::null());
    command
}

/// As [`command`], as an unprivileged user if we are root.
pub fn unprivileged(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    if is_root() {
        let id = UNPRIVILEGED_ID.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--no-new-privs"]);
    }
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).stdin(Stdio::null());
    command
}

/// Runs a command to its end; its standard output, or an error with everything it said.
///
/// # Errors
/// The program is missing or its exit code is not 0.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}; run ci/install"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}\n{stdout}{stderr}", output.status);
    }
    Ok(stdout)
}

/// Waits until `ready` gives a value.
///
/// # Errors
/// After `limit`, naming `what`.
pub fn wait_for<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        ensure!(started.elapsed() < limit, "{what}: nothing after {} s", limit.as_secs());
        thread::sleep(Duration::from_millis(5));
    }
}

/// A child process that is killed when its owner goes.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts a command.
    ///
    /// # Errors
    /// The program is missing.
    pub fn start(name: &str, command: &mut Command) -> Result<Process> {
        let child = command.spawn().with_context(|| format!("cannot start {name}; run ci/install"))?;
        Ok(Process { child, name: name.to_owned() })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it exited with, if it has.
    pub fn exited(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// `kill` is missing or failed.
    pub fn terminate(&self) -> Result<()> {
        run(Command::new("kill").arg("-TERM").arg(self.id().to_string())).map(drop)
    }

    /// Waits for it to exit with code 0.
    ///
    /// # Errors
    /// It still runs after `limit`, or exited with another code.
    pub fn wait_success(&mut self, limit: Duration) -> Result<()> {
        let name = self.name.clone();
        let status = wait_for(&format!("end of {name}"), limit, || self.exited())?;
        ensure!(status.success(), "{name}: {status}");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Directories of one run: `disks` on the build's file system (room, O_DIRECT), `sockets` short enough for a socket path
/// and open to the unprivileged user.
#[derive(Debug)]
pub struct RunDir {
    disks: tempfile::TempDir,
    sockets: tempfile::TempDir,
}

impl RunDir {
    /// Fresh directories, removed when dropped.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn new() -> Result<RunDir> {
        let base = target_dir();
        fs::create_dir_all(&base)?;
        let disks = tempfile::Builder::new().prefix("run-").tempdir_in(&base)?;
        let sockets = tempfile::Builder::new().prefix("spanblk-lab-").tempdir()?;
        fs::set_permissions(sockets.path(), fs::Permissions::from_mode(0o755))?;
        Ok(RunDir { disks, sockets })
    }

    /// Where disks go.
    #[must_use]
    pub fn disks(&self) -> &Path {
        self.disks.path()
    }

    /// Where sockets go.
    #[must_use]
    pub fn sockets(&self) -> &Path {
        self.sockets.path()
    }

    /// A new directory under [`RunDir::sockets`] that belongs to the user guests run as.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn guest_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.sockets.path().join(name);
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        give_to_guest_user(&dir)?;
        Ok(dir)
    }
}

/// Gives a file or directory to the user guests run as.
///
/// # Errors
/// As of `chown`.
pub fn give_to_guest_user(path: &Path) -> Result<()> {
    if is_root() {
        std::os::unix::fs::chown(path, Some(UNPRIVILEGED_ID), Some(UNPRIVILEGED_ID))?;
    }
    Ok(())
}

/// Where the lab keeps what outlives a run: `target/lab`.
#[must_use]
pub fn target_dir() -> PathBuf {
    from_root(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into())).join("lab")
}

/// A path as whoever starts a run from the root of the repository means it; runs are started in that of their package.
#[must_use]
pub fn from_root(path: impl AsRef<Path>) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = package.ancestors().find(|directory| directory.join("integration/lab").is_dir());
    root.unwrap_or(package).join(path)
}

/// Memory of a process in bytes: `VmRSS`, what is resident, or `VmHWM`, the most that ever was.
///
/// # Errors
/// There is no such process.
pub fn memory_of(process: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    let kib: u64 = line.with_context(|| format!("{field} in /proc"))?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

/// A file of `size` bytes without any data in it.
///
/// # Errors
/// As of the file system.
pub fn sparse_file(path: &Path, size: u64) -> Result<()> {
    fs::File::create(path).and_then(|f| f.set_len(size)).with_context(|| format!("creating {}", path.display()))
}

/// What a disk is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fill {
    /// Data that does not compress.
    Random,
    /// One word over and over. zram keeps nothing but the word of such a page, so the disk itself takes next to no time.
    Word,
}

impl Fill {
    /// The word of [`Fill::Word`].
    pub const WORD: [u8; 8] = [0x5a; 8];

    /// Fills a buffer.
    pub fn put(self, random: &mut Random, into: &mut [u8]) {
        into.chunks_exact_mut(8).for_each(|word| {
            word.copy_from_slice(&match self {
                Fill::Random => random.next_u64().to_le_bytes(),
                Fill::Word => Fill::WORD,
            });
        });
    }
}

/// A file without holes.
///
/// # Errors
/// As of the file system.
pub fn filled_file(path: &Path, size: u64, fill: Fill) -> Result<()> {
    const CHUNK: u64 = 8 << 20;
    let mut file = fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut random = Random::new(1);
    let mut chunk = vec![0; usize::try_from(CHUNK)?];
    for _ in 0..size.div_ceil(CHUNK) {
        fill.put(&mut random, &mut chunk);
        file.write_all(&chunk)?;
    }
    file.set_len(size)?;
    Ok(file.sync_all()?)
}

/// A file that was written from end to end.
///
/// # Errors
/// It has holes nevertheless, or as of the file system.
pub fn prefilled(path: &Path, size: u64, fill: Fill) -> Result<()> {
    filled_file(path, size, fill)?;
    ensure_filled(path)
}

/// Proves that a file has no holes.
///
/// # Errors
/// It has.
pub fn ensure_filled(path: &Path) -> Result<()> {
    let metadata = fs::metadata(path)?;
    ensure!(metadata.blocks() * 512 >= metadata.len(), "{} has holes", path.display());
    Ok(())
}
