//! A host with disks in files and a daemon that is run as users run it.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use spanblk::cli::blk_client::{BlkClient, BlkError, ClientOptions};

/// A host: a directory with disks, and a daemon that may or may not run.
pub struct Host {
    /// Where its files are; commands run there.
    pub directory: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl Host {
    /// A host with a pool of `disks` disks of 256 MiB.
    pub fn with_pool(disks: usize) -> Host {
        let host = Host::empty();
        let names: Vec<String> = (0..disks).map(|i| format!("d{i}.img")).collect();
        let mut args = vec!["pool", "create", "--size", "256MiB"];
        args.extend(names.iter().map(String::as_str));
        host.ok(&args);
        host
    }

    pub fn empty() -> Host {
        // Not in TMPDIR, which may be a filesystem without direct I/O, nor deep, because of the length of socket paths.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        Host { directory: tempfile::Builder::new().prefix("d").tempdir_in(target).unwrap(), daemon: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spanblk"));
        command.current_dir(self.directory.path()).env("SPANBLK_CONTROL", self.path("c/api.sock")).args(args);
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What a daemon says that must not start, and would otherwise serve for ever.
    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn does_not_serve(&self, options: &[&str], disks: &[&str]) -> String {
        let plain = self.command(&Host::serve_args(options, disks));
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", "20"]).arg(plain.get_program()).args(plain.get_args());
        command.current_dir(self.directory.path()).env("SPANBLK_CONTROL", self.path("c/api.sock"));
        command.env("NOTIFY_SOCKET", self.path("notify"));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "it served: {}", text(&output.stderr));
        text(&output.stderr)
    }

    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// As [`Host::ok`], once jobs that the daemon begins by itself are not in the way.
    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn ok_after_jobs(&self, args: &[&str]) -> String {
        for _ in 0..300 {
            let output = self.run(args);
            let said = text(&output.stderr);
            if !said.contains(" by job ") {
                assert!(output.status.success(), "{args:?}: {said}");
                return text(&output.stdout);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{args:?}: a job is in the way for ever")
    }

    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[&["--json"], args].concat())).unwrap()
    }

    /// Runs a command that must fail with an exit code, and says why on standard error.
    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn refused(&self, args: &[&str], code: i32) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
        text(&output.stderr)
    }

    pub fn serve_args<'a>(options: &[&'a str], disks: &[&'a str]) -> Vec<&'a str> {
        [&["serve", "--socket-dir", "v", "--reactors", "2"], options, disks].concat()
    }

    /// Starts the daemon and waits until it reports readiness.
    pub fn serve(&mut self, options: &[&str], disks: &[&str]) {
        let command = self.command(&Host::serve_args(options, disks));
        self.start(command);
    }

    /// Starts the daemon as a user without privileges.
    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn serve_as(&mut self, uid: u32, options: &[&str], disks: &[&str]) {
        let command = self.as_user(uid, &Host::serve_args(options, disks));
        self.start(command);
    }

    /// Runs a command, which must fail, as a user without privileges; what it says.
    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn run_as(&self, uid: u32, args: &[&str]) -> String {
        let output = self.as_user(uid, args).output().unwrap();
        assert!(!output.status.success());
        text(&output.stderr)
    }

    fn as_user(&self, uid: u32, args: &[&str]) -> Command {
        let plain = self.command(args);
        let mut command = Command::new("setpriv");
        let id = uid.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all", "--"]);
        command.arg(plain.get_program()).args(args).current_dir(self.directory.path());
        command.env("SPANBLK_CONTROL", self.path("c/api.sock"));
        command
    }

    /// The daemon's process.
    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// Starts another daemon that takes over from the one that runs, which must end well.
    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn take_over(&mut self, options: &[&str], disks: &[&str]) {
        let before = self.daemon.take().unwrap();
        let command = self.command(&Host::serve_args(&[&["--takeover"], options].concat(), disks));
        self.start(command);
        self.has_stopped(before);
    }

    /// What another daemon says that must not take over.
    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn refused_takeover(&self, options: &[&str], disks: &[&str]) -> String {
        let mut command = self.command(&Host::serve_args(&[&["--takeover"], options].concat(), disks));
        let output = command.env("NOTIFY_SOCKET", self.path("notify")).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
        text(&output.stderr)
    }

    /// Tries to have another daemon take over; false if that is refused.
    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn try_take_over(&mut self, options: &[&str], disks: &[&str]) -> bool {
        let mut next = self.begin_takeover(options, disks);
        loop {
            if next.try_wait().unwrap().is_some() {
                return false;
            }
            if !self.runs() {
                self.replace_daemon(Some(next));
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts another daemon that is to take over from the one that runs, and does not wait for it.
    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn begin_takeover(&self, options: &[&str], disks: &[&str]) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = self.command(&Host::serve_args(&[&["--takeover"], options].concat(), disks));
        command.env("NOTIFY_SOCKET", self.path("notify")).stderr(log).stdout(Stdio::null()).spawn().unwrap()
    }

    /// The daemon that runs has ended by itself; this one is to be used from now on, if there is one.
    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn replace_daemon(&mut self, next: Option<Child>) {
        let before = std::mem::replace(&mut self.daemon, next);
        self.has_stopped(before.unwrap());
    }

    /// Whether the daemon runs.
    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn runs(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|daemon| daemon.try_wait().unwrap().is_none())
    }

    fn start(&mut self, mut command: Command) {
        let notify = self.path("notify");
        let _ = std::fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).unwrap();
        std::fs::set_permissions(&notify, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = command.env("NOTIFY_SOCKET", &notify).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        self.daemon = Some(child);
        let mut buffer = [0; 64];
        let len = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("not ready: {error}; log:\n{}", self.log()));
        assert_eq!(&buffer[..len], b"READY=1\n");
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// SIGTERM; the daemon must end cleanly.
    pub fn stop(&mut self) {
        let daemon = self.daemon.take().unwrap();
        let pid = daemon.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.has_stopped(daemon);
    }

    fn has_stopped(&self, mut daemon: Child) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = daemon.try_wait().unwrap() {
                assert!(status.success(), "{status}; log:\n{}", self.log());
                return;
            }
            assert!(Instant::now() < deadline, "did not stop; log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn attach(&self, vhd: &str) -> Result<BlkClient, BlkError> {
        BlkClient::connect(&self.path("v").join(format!("{vhd}.sock")), ClientOptions::default())
    }

    /// Attaches once whoever was attached before is gone.
    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn attach_soon(&self, vhd: &str) -> BlkClient {
        for _ in 0..200 {
            match self.attach(vhd) {
                Err(BlkError::InUse { .. }) => std::thread::sleep(Duration::from_millis(10)),
                other => return other.unwrap_or_else(|error| panic!("{error}; log:\n{}", self.log())),
            }
        }
        panic!("still attached; log:\n{}", self.log());
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Bytes that differ everywhere and for each seed.
#[allow(dead_code, reason = "not every test that uses this file")]
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[allow(dead_code, reason = "not every test that uses this file")]
pub fn read(client: &mut BlkClient, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; len];
    client.read_at(offset, &mut bytes).unwrap();
    bytes
}
