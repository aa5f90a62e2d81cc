//! Independent disks on a machine that has only one: loop devices, each with a limit of its own for whoever is in a
//! control group.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use super::nbd::NbdDisk;
use super::tools::{Fill, command, filled_file, is_root, run};

/// Where control groups are: those of version 1 that throttle, or all of version 2.
const GROUPS_V1: &str = "/sys/fs/cgroup/blkio";
const GROUPS_V2: &str = "/sys/fs/cgroup";

/// What each disk can do, for reads and for writes alike. The kernel lets through what a tenth of a second has room for, then
/// nothing until it is over: who wants all of it must have more than that in flight.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Bytes per second.
    pub bytes: u64,
    /// Requests per second. The kernel counts one that it has to split (above 1 MiB, or of many segments) more than once.
    pub requests: u64,
}

/// Throttled disks. They last as long as somebody has them open, so that a run that is killed leaves none behind.
#[derive(Debug)]
pub struct SlowDisks {
    /// The block devices.
    pub devices: Vec<PathBuf>,
    open: Vec<fs::File>,
    servers: Vec<NbdDisk>,
    group: PathBuf,
    is_v2: bool,
}

impl SlowDisks {
    /// Why there can be none here.
    #[must_use]
    pub fn unavailable() -> Option<&'static str> {
        if !is_root() {
            Some("only root can make loop devices")
        } else if !Path::new("/dev/loop-control").exists() {
            Some("no loop devices in this kernel")
        } else if version_2().is_none() {
            Some("no control groups that throttle block devices")
        } else {
            None
        }
    }

    /// Disks of `size` bytes on files in `dir`, full of data that does not compress. They share the disk below, which shows as
    /// soon as one of them is given a few megabytes at once.
    ///
    /// # Errors
    /// No room, or the kernel lacks something.
    pub fn on_files(dir: &Path, count: usize, size: u64) -> Result<SlowDisks> {
        let mut disks = SlowDisks::none()?;
        for index in 0..count {
            let file = dir.join(format!("slow{index}.img"));
            filled_file(&file, size, Fill::Random)?;
            disks.attach(&file)?;
            // It stays until nobody has the device open any more.
            fs::remove_file(&file)?;
        }
        Ok(disks)
    }

    /// Disks of `size` bytes in memory that take `delay` (whole milliseconds) for every request, and serve so many at once: what is
    /// more waits, in order. Nothing of one is felt on another, and the machine's own hiccups are small against the delay.
    ///
    /// # Errors
    /// nbdkit, nbdfuse or FUSE are missing, or the kernel lacks something.
    pub fn in_memory(dir: &Path, count: usize, size: u64, delay: Duration, at_once: u32) -> Result<SlowDisks> {
        let mut disks = SlowDisks::none()?;
        for index in 0..count {
            let disk = NbdDisk::new(dir, &format!("slow{index}"), size, |server| {
                let delay = delay.as_millis();
                server.args(["--filter=delay", &format!("--threads={at_once}"), "memory"]).arg(format!("size={size}"));
                server.arg(format!("rdelay={delay}ms")).arg(format!("wdelay={delay}ms"));
            })?;
            disks.attach(&disk.path)?;
            disks.servers.push(disk);
        }
        Ok(disks)
    }

    fn none() -> Result<SlowDisks> {
        static GROUPS: AtomicU32 = AtomicU32::new(0);
        let is_v2 = version_2().context("no control groups that throttle block devices")?;
        let root = Path::new(if is_v2 { GROUPS_V2 } else { GROUPS_V1 });
        let number = GROUPS.fetch_add(1, Ordering::Relaxed);
        let group = root.join(format!("spanblk-lab-{}-{number}", std::process::id()));
        if is_v2 {
            fs::write(root.join("cgroup.subtree_control"), "+io").context("switching on the io controller")?;
        }
        fs::create_dir(&group).with_context(|| format!("creating {}", group.display()))?;
        Ok(SlowDisks { devices: Vec::new(), open: Vec::new(), servers: Vec::new(), group, is_v2 })
    }

    fn attach(&mut self, file: &Path) -> Result<()> {
        let device = run(Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(file))?;
        let device = PathBuf::from(device.trim());
        self.open.push(fs::File::open(&device)?);
        // Happens once nobody has it open.
        run(Command::new("losetup").arg("--detach").arg(&device))?;
        self.devices.push(device);
        Ok(())
    }

    /// From now on each disk can do this, for those who are held back.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn limit(&self, Limit { bytes, requests }: Limit) -> Result<()> {
        for index in 0..self.devices.len() {
            let number = fs::read_to_string(self.sys(index)?.join("dev"))?;
            let number = number.trim();
            if self.is_v2 {
                let line = format!("{number} rbps={bytes} wbps={bytes} riops={requests} wiops={requests}");
                fs::write(self.group.join("io.max"), line).context("io.max")?;
                continue;
            }
            for (what, most) in [("bps", bytes), ("iops", requests)] {
                for direction in ["read", "write"] {
                    let file = format!("blkio.throttle.{direction}_{what}_device");
                    fs::write(self.group.join(&file), format!("{number} {most}")).context(file)?;
                }
            }
        }
        Ok(())
    }

    fn sys(&self, index: usize) -> Result<PathBuf> {
        let name = self.devices[index].file_name().context("a device has a name")?;
        Ok(Path::new("/sys/block").join(name))
    }

    /// From now on the limits hold for this process.
    ///
    /// # Errors
    /// There is no such process.
    pub fn hold_back(&self, process: u32) -> Result<()> {
        fs::write(self.group.join("cgroup.procs"), process.to_string()).context("entering the control group")
    }

    /// From now on they do not.
    ///
    /// # Errors
    /// There is no such process.
    pub fn let_go(&self, process: u32) -> Result<()> {
        let root = self.group.parent().context("a group has a parent")?;
        fs::write(root.join("cgroup.procs"), process.to_string()).context("leaving the control group")
    }

    /// A command for which the limits hold.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = command("sh");
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.group.display());
        command.args(["-c", &enter, "sh"]).arg(program);
        command
    }

    /// Bytes that have been written to a disk since it was made.
    ///
    /// # Errors
    /// As of `/sys`.
    pub fn written(&self, index: usize) -> Result<u64> {
        const SECTORS_WRITTEN: usize = 6;
        let stat = fs::read_to_string(self.sys(index)?.join("stat"))?;
        let sectors = stat.split_whitespace().nth(SECTORS_WRITTEN).context("/sys/block/*/stat is short")?;
        Ok(sectors.parse::<u64>()? * 512)
    }
}

impl Drop for SlowDisks {
    fn drop(&mut self) {
        // Whoever is still in it keeps it.
        let _ = fs::remove_dir(&self.group);
    }
}

/// Whether the groups that can throttle are of version 2; `None` if there are none.
fn version_2() -> Option<bool> {
    if Path::new(GROUPS_V1).join("blkio.throttle.read_bps_device").exists() {
        return Some(false);
    }
    let controllers = fs::read_to_string(Path::new(GROUPS_V2).join("cgroup.controllers")).ok()?;
    controllers.split_whitespace().any(|name| name == "io").then_some(true)
}
