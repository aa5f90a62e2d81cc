//! The program under test, a pool of it, and its daemon.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::tools::{Process, UNPRIVILEGED_ID, command, from_root, is_root, run};

/// The program under test: `LAB_SPANBLK`, or that of this run's profile as it is built for users, up to date. Ends the run if there is
/// none.
pub fn spanblk() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
        program().unwrap_or_else(|error| {
            println!("FAIL the program is built: {error:#}");
            std::process::exit(1)
        })
    });
    &PROGRAM
}

/// It is a package of its own, which the build of a run does not include: cargo builds what has changed, and says where it is.
fn program() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("LAB_SPANBLK") {
        return Ok(from_root(program));
    }
    let cargo =
        std::env::var_os("CARGO").context("this run was not started by cargo: name the program in LAB_SPANBLK")?;
    let run = std::env::current_exe()?;
    let profile = run.parent().and_then(Path::parent).and_then(Path::file_name).context("the name of a profile")?;
    let profile = if profile == "debug" { "dev".as_ref() } else { profile };
    let mut command = Command::new(cargo);
    command.current_dir(from_root("")).args(["build", "--quiet", "--package", "spanblk", "--bin", "spanblk"]);
    command.args(["--message-format", "json-render-diagnostics", "--profile"]).arg(profile);
    let output = command.output().context("starting cargo")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = messages.filter(|message| message["target"]["name"] == "spanblk").find_map(|message| {
        let program = message["executable"].as_str()?;
        Some(PathBuf::from(program))
    });
    program.context("cargo has built no program")
}

/// Longest start of the daemon.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// A pool and, while it is served, its daemon.
#[derive(Debug)]
pub struct Pool {
    /// Its disks, in the order of creation.
    pub disks: Vec<PathBuf>,
    dir: PathBuf,
    program: PathBuf,
    process: Option<Process>,
}

impl Pool {
    /// Formats `disks` into a pool. Sockets and the log go into `dir`.
    ///
    /// # Errors
    /// What spanblk says.
    pub fn create(dir: &Path, disks: Vec<PathBuf>, options: &[&str]) -> Result<Pool> {
        Pool::create_with(spanblk(), dir, disks, options)
    }

    /// As [`Pool::create`], of another build of spanblk.
    ///
    /// # Errors
    /// What it says.
    pub fn create_with(program: &Path, dir: &Path, disks: Vec<PathBuf>, options: &[&str]) -> Result<Pool> {
        let pool = Pool { disks, dir: dir.to_owned(), program: program.to_owned(), process: None };
        run(Command::new(program).args(["pool", "create"]).args(options).args(&pool.disks))?;
        Ok(pool)
    }

    /// A pool of `count` sparse files of `size` bytes in `files`.
    ///
    /// # Errors
    /// What spanblk says.
    pub fn create_files(dir: &Path, files: &Path, count: usize, size: u64) -> Result<Pool> {
        let disks = (0..count).map(|i| files.join(format!("disk{i}.img"))).collect();
        Pool::create(dir, disks, &["--size", &size.to_string()])
    }

    /// Starts the daemon on the disks in this order and waits until it says that it is ready; how long that took.
    ///
    /// # Errors
    /// It ends, or is not ready in time; with the end of its log.
    pub fn serve(&mut self, order: &[usize], options: &[&str]) -> Result<Duration> {
        ensure!(self.process.is_none(), "the daemon runs already");
        let (process, took) = self.start(order, options)?;
        self.process = Some(process);
        Ok(took)
    }

    /// Starts another daemon, which takes over from the one that runs; how long that took.
    ///
    /// # Errors
    /// It is not ready in time, or the one before does not end well.
    pub fn take_over(&mut self) -> Result<Duration> {
        let mut before = self.process.take().context("the daemon does not run")?;
        let order: Vec<usize> = (0..self.disks.len()).collect();
        let (process, took) = self.start(&order, &["--takeover"])?;
        self.process = Some(process);
        before.wait_success(Duration::from_secs(30)).with_context(|| self.log_tail())?;
        Ok(took)
    }

    fn start(&self, order: &[usize], options: &[&str]) -> Result<(Process, Duration)> {
        let notify_path = self.dir.join("notify");
        let _ = fs::remove_file(&notify_path);
        let notify = UnixDatagram::bind(&notify_path).context("readiness socket")?;
        notify.set_read_timeout(Some(Duration::from_millis(20)))?;
        let log = fs::File::options().create(true).append(true).open(self.log_path())?;
        let started = Instant::now();
        let mut process = Process::start(
            "spanblk serve",
            command(&self.program)
                .arg("serve")
                .args(options)
                .arg("--control")
                .arg(self.control())
                .arg("--socket-dir")
                .arg(self.socket_dir())
                // Any of them may be added later.
                .args(self.disks.iter().filter_map(|disk| disk.parent()).flat_map(|dir| [Path::new("--disk-dir"), dir]))
                .args(order.iter().map(|&i| &self.disks[i]))
                .env("NOTIFY_SOCKET", &notify_path)
                .stdout(Stdio::null())
                .stderr(log),
        )?;
        loop {
            let mut message = [0; 256];
            if let Ok(len) = notify.recv(&mut message)
                && String::from_utf8_lossy(&message[..len]).lines().any(|l| l == "READY=1")
            {
                return Ok((process, started.elapsed()));
            }
            if let Some(status) = process.exited() {
                bail!("spanblk serve: {status}\n{}", self.log_tail());
            }
            ensure!(started.elapsed() < READY_LIMIT, "spanblk serve is not ready\n{}", self.log_tail());
        }
    }

    /// As [`Pool::serve`], with the disks in their own order and no options.
    ///
    /// # Errors
    /// As [`Pool::serve`].
    pub fn serve_all(&mut self) -> Result<Duration> {
        let order: Vec<usize> = (0..self.disks.len()).collect();
        self.serve(&order, &[])
    }

    /// SIGTERM, and waits for a clean end.
    ///
    /// # Errors
    /// It does not end within 30 s, or not with exit code 0.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the daemon does not run")?;
        process.terminate()?;
        process.wait_success(Duration::from_secs(30)).with_context(|| self.log_tail())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// UUID of the pool.
    ///
    /// # Errors
    /// What spanblk says.
    pub fn uuid(&self) -> Result<String> {
        Ok(self.json(&["pool", "show"])?["uuid"].as_str().context("a UUID in pool show")?.to_owned())
    }

    /// Kills the daemon and removes what it keeps in shared memory for the next one, as a power cut would.
    ///
    /// # Errors
    /// There is nothing to remove.
    pub fn kill_and_forget(&mut self) -> Result<()> {
        let kept = self.kept()?;
        self.kill();
        ensure!(!kept.is_empty(), "nothing of the pool is kept in /dev/shm");
        kept.iter().try_for_each(fs::remove_dir_all).context("forgetting what is kept")
    }

    /// Directories in shared memory in which the daemon keeps something of this pool for the next one.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn kept(&self) -> Result<Vec<PathBuf>> {
        let prefix = format!("spanblk-{}-", self.uuid()?);
        let mut kept = Vec::new();
        for entry in fs::read_dir("/dev/shm")? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                kept.push(entry.path());
            }
        }
        Ok(kept)
    }

    /// Process id of the daemon.
    ///
    /// # Errors
    /// It does not run.
    pub fn id(&self) -> Result<u32> {
        self.process.as_ref().map(Process::id).context("the daemon does not run")
    }

    /// Whether the daemon still runs.
    #[must_use]
    pub fn runs(&mut self) -> bool {
        self.process.as_mut().is_some_and(|p| p.exited().is_none())
    }

    /// Creates a VHD whose socket the guests' user may use.
    ///
    /// # Errors
    /// What spanblk says.
    pub fn create_vhd(&self, name: &str, size: u64, options: &[&str]) -> Result<()> {
        let (size, owner) = (size.to_string(), format!("{UNPRIVILEGED_ID}:{UNPRIVILEGED_ID}"));
        let mut args = vec!["vhd", "create", name, "--size", &size];
        args.extend(options);
        if is_root() {
            args.extend(["--socket-owner", &owner]);
        }
        self.cli(&args).map(drop)
    }

    /// Runs a command against the daemon; what it prints.
    ///
    /// # Errors
    /// What it says.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        run(Command::new(&self.program).arg("--control").arg(self.control()).args(args))
    }

    /// As [`Pool::cli`] with `--json`.
    ///
    /// # Errors
    /// What it says, or that it is no JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["--json"];
        all.extend(args);
        let text = self.cli(&all)?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// Asks the daemon; `None` if the state of the pool forbids it, perhaps because a disk has just left.
    ///
    /// # Errors
    /// Anything else that it says.
    pub fn ask(&self, args: &[&str]) -> Result<Option<Value>> {
        let output = self.json_command(args).output()?;
        match output.status.code() {
            Some(0) => Ok(Some(serde_json::from_slice(&output.stdout)?)),
            Some(3 | 4) => Ok(None),
            _ => bail!("{args:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// A question to the daemon, to be answered in JSON.
    #[must_use]
    pub fn json_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(spanblk());
        command.arg("--control").arg(self.control()).arg("--json").args(args);
        command
    }

    /// All metrics. Asked for without a command, whose start and end take longer than some of what is measured.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn metrics(&self) -> Result<String> {
        let mut stream = UnixStream::connect(self.control())?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: spanblk\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(answer)
    }

    /// Whether no job runs, and all replicas are in sync.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn is_whole(&self) -> Result<bool> {
        let (vhds, jobs) = (self.json(&["vhd", "list"])?, self.json(&["job", "list"])?);
        let (vhds, jobs) = (vhds["vhds"].as_array().context("no VHDs")?, jobs["jobs"].as_array().context("no jobs")?);
        let running = jobs.iter().any(|job| job["state"] == "running");
        Ok(!running && vhds.iter().all(|vhd| vhd["health"] == "healthy"))
    }

    /// Proves the placement table consistent, through the daemon if it runs, else on the disks.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self) -> Result<()> {
        if self.process.is_some() {
            return self.cli(&["check"]).map(drop);
        }
        run(Command::new(&self.program).arg("check").args(&self.disks)).map(drop)
    }

    /// Path of a VHD's socket.
    #[must_use]
    pub fn socket(&self, vhd: &str) -> PathBuf {
        self.socket_dir().join(format!("{vhd}.sock"))
    }

    /// Path of the control socket.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.dir.join("control").join("api.sock")
    }

    /// Where the daemon's log is.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("spanblk.log")
    }

    /// The end of the daemon's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("log of spanblk:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
    }

    fn socket_dir(&self) -> PathBuf {
        self.dir.join("vhost")
    }
}
