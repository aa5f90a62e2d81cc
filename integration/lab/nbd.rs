//! Host disks behind nbdkit, mounted as files through FUSE; among them one whose every request is written down.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::model::{Random, SECTOR, disk_of};
use super::tools::{Process, command, sparse_file, wait_for};

/// A request that reached the disk and was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A write at this byte.
    Write(u64),
    /// A flush.
    Flush,
}

/// Something that nbdkit serves, mounted as a file. Open [`NbdDisk::path`] with O_DIRECT.
#[derive(Debug)]
pub struct NbdDisk {
    /// The disk.
    pub path: PathBuf,
    fuse: Process,
    server: Process,
}

impl NbdDisk {
    /// A disk of `size` bytes with its files in `dir`; `serve` says what nbdkit is to serve.
    ///
    /// # Errors
    /// nbdkit, nbdfuse or FUSE are missing.
    pub fn new(dir: &Path, name: &str, size: u64, serve: impl FnOnce(&mut Command)) -> Result<NbdDisk> {
        let socket = dir.join(format!("{name}.nbd"));
        let mount = dir.join(format!("{name}.mount"));
        fs::create_dir(&mount)?;
        let path = mount.join(name);
        fs::File::create(&path)?;
        let mut server = command("nbdkit");
        server.arg("--foreground").arg("--unix").arg(&socket).stderr(Stdio::null());
        serve(&mut server);
        let server = Process::start("nbdkit", &mut server)?;
        wait_for("socket of nbdkit", Duration::from_secs(10), || socket.exists().then_some(()))?;
        let fuse =
            Process::start("nbdfuse", command("nbdfuse").arg(&path).arg("--unix").arg(&socket).stderr(Stdio::null()))?;
        wait_for("disk of nbdfuse", Duration::from_secs(10), || {
            fs::metadata(&path).is_ok_and(|m| m.len() == size).then_some(())
        })?;
        Ok(NbdDisk { path, fuse, server })
    }
}

impl Drop for NbdDisk {
    fn drop(&mut self) {
        // Nothing to be done if it fails: the mount ends with its process.
        let _ = Command::new("fusermount3").args(["-u", "-z"]).arg(&self.path).status();
        self.fuse.kill();
        self.server.kill();
    }
}

/// A disk that gives errors, stalls, and goes away, as it is told. Open [`FaultyDisk::path`] with O_DIRECT.
#[derive(Debug)]
pub struct FaultyDisk {
    disk: Option<NbdDisk>,
    dir: PathBuf,
    name: String,
    size: u64,
    path: PathBuf,
}

impl FaultyDisk {
    /// A disk of `size` bytes with its files in `dir`.
    ///
    /// # Errors
    /// nbdkit, nbdfuse or FUSE are missing.
    pub fn new(dir: &Path, name: &str, size: u64) -> Result<FaultyDisk> {
        let path = dir.join(format!("{name}.mount")).join(name);
        let mut disk = FaultyDisk { disk: None, dir: dir.to_owned(), name: name.to_owned(), size, path };
        sparse_file(&disk.file("backing"), size)?;
        disk.put_back()?;
        Ok(disk)
    }

    fn file(&self, what: &str) -> PathBuf {
        self.dir.join(format!("{}.{what}", self.name))
    }

    /// The disk.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every request fails from now on, until [`FaultyDisk::put_back`].
    pub fn pull(&mut self) {
        self.disk = None;
    }

    /// The disk is there again, with what it has.
    ///
    /// # Errors
    /// nbdkit, nbdfuse or FUSE are missing.
    pub fn put_back(&mut self) -> Result<()> {
        let (backing, trigger, pause) = (self.file("backing"), self.file("trigger"), self.file("pause"));
        for left in [&trigger, &pause, &self.file("nbd")] {
            let _ = fs::remove_file(left);
        }
        let _ = fs::remove_dir_all(self.file("mount"));
        let disk = NbdDisk::new(&self.dir, &self.name, self.size, |server| {
            server.args(["--filter=error", "--filter=pause", "file", "cache=none", "error=EIO", "error-rate=100%"]);
            server.arg(&backing).arg(format!("error-file={}", trigger.display()));
            server.arg(format!("pause-control={}", pause.display()));
        })?;
        self.disk = Some(disk);
        Ok(())
    }

    /// Reads and writes fail, or do not any more. (Syncs go on.)
    ///
    /// # Errors
    /// No file can be made.
    pub fn set_failing(&self, failing: bool) -> Result<()> {
        let trigger = self.file("trigger");
        if failing {
            fs::File::create(trigger).map(drop)?
        } else {
            fs::remove_file(trigger)?
        }
        Ok(())
    }

    /// Changes a few bytes in sectors here and there that hold data of these disks of a guest, as a disk does that is silently wrong: in
    /// how many, `most` at most. Some may be where nothing is any more.
    ///
    /// # Errors
    /// The file of the disk cannot be read or written.
    pub fn damage(&self, owners: &[u64], most: usize, random: &mut Random) -> Result<usize> {
        let backing = fs::OpenOptions::new().read(true).write(true).open(self.file("backing"))?;
        let mut piece = vec![0; 1 << 20];
        let mut theirs = Vec::new();
        for start in (0..self.size).step_by(piece.len()) {
            let read = backing.read_at(&mut piece, start)?;
            for (at, sector) in (0..).step_by(SECTOR).zip(piece[..read].chunks_exact(SECTOR)) {
                if disk_of(sector).is_some_and(|disk| owners.contains(&disk)) {
                    theirs.push(start + at);
                }
            }
        }
        let count = most.min(theirs.len());
        for _ in 0..count {
            // Behind what tells whose it is, and never what was there.
            let at = *random.of(&theirs) + 32 + random.below(400);
            let mut bytes = [0; 8];
            backing.read_exact_at(&mut bytes, at)?;
            backing.write_all_at(&bytes.map(|byte| !byte), at)?;
        }
        Ok(count)
    }

    /// Requests get no answer, or do again.
    ///
    /// # Errors
    /// nbdkit does not hear.
    pub fn set_stalled(&self, stalled: bool) -> Result<()> {
        let mut control = UnixStream::connect(self.file("pause")).context("pause-control of nbdkit")?;
        control.set_read_timeout(Some(Duration::from_secs(5)))?;
        control.write_all(if stalled { b"p" } else { b"r" })?;
        let mut answer = [0];
        control.read_exact(&mut answer).context("answer of nbdkit's pause filter")?;
        Ok(())
    }
}

/// A logged disk. Open [`LoggedDisk::path`] with O_DIRECT.
#[derive(Debug)]
pub struct LoggedDisk {
    disk: NbdDisk,
    log: PathBuf,
}

impl LoggedDisk {
    /// A disk of `size` bytes with its files in `dir`.
    ///
    /// # Errors
    /// nbdkit, nbdfuse or FUSE are missing.
    pub fn new(dir: &Path, name: &str, size: u64) -> Result<LoggedDisk> {
        let backing = dir.join(format!("{name}.backing"));
        sparse_file(&backing, size)?;
        let log = dir.join(format!("{name}.log"));
        let disk = NbdDisk::new(dir, name, size, |server| {
            server.args(["--filter=log", "file", "cache=none"]).arg(&backing);
            server.arg(format!("logfile={}", log.display()));
        })?;
        Ok(LoggedDisk { disk, log })
    }

    /// The disk.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.disk.path
    }

    /// Where the log ends now.
    ///
    /// # Errors
    /// The log is gone.
    pub fn mark(&self) -> Result<usize> {
        Ok(usize::try_from(fs::metadata(&self.log)?.len())?)
    }

    /// What the disk has done since `mark`, in the order of completion.
    ///
    /// # Errors
    /// The log is not what we take it for.
    pub fn since(&self, mark: usize) -> Result<Vec<Event>> {
        let log = fs::read_to_string(&self.log)?;
        let mut open: Vec<((&str, &str), Event)> = Vec::new();
        let mut done = Vec::new();
        for line in log[mark..].lines() {
            let field = |name: &str| line.split_whitespace().find_map(|w| w.strip_prefix(name));
            // Numbers start afresh on each of nbdfuse's connections.
            let (Some(connection), Some(id)) = (field("connection="), field("id=")) else { continue };
            let id = (connection, id);
            if field("return=").is_some() {
                if let Some(at) = open.iter().position(|(i, _)| *i == id) {
                    done.push(open.remove(at).1);
                }
            } else if line.contains(" Flush ") {
                open.push((id, Event::Flush));
            } else if line.contains(" Write ") {
                let offset = field("offset=0x").context("a write without offset in nbdkit's log")?;
                open.push((id, Event::Write(u64::from_str_radix(offset, 16)?)));
            }
        }
        Ok(done)
    }
}
