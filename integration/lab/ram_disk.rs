//! A file system in memory, which is gone after the run however that ends: what is measured there is what daemons cost.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::tools::{is_root, run};

/// Where zram devices are made.
const CONTROL: &str = "/sys/class/zram-control";

/// ext4 on a zram device: a block device with blocks of 4 KiB that takes next to no time.
#[derive(Debug)]
pub struct RamDisk {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// How the device stores what it is given.
    pub algorithm: String,
    janitor: Option<Child>,
}

impl RamDisk {
    /// Why there can be none here.
    #[must_use]
    pub fn unavailable() -> Option<&'static str> {
        if !is_root() {
            Some("only root can make zram devices and mount them")
        } else if !Path::new(CONTROL).join("hot_add").exists() {
            Some("no zram in this kernel, or its module is not loaded")
        } else {
            None
        }
    }

    /// A file system with room for `size` bytes, mounted on `mount`, which is created.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(mount: &Path, size: u64) -> Result<RamDisk> {
        fs::create_dir(mount)?;
        let mut number = String::new();
        // Reading makes a device; its number is what is read.
        fs::File::open(Path::new(CONTROL).join("hot_add"))?.read_to_string(&mut number).context("a new zram device")?;
        let number = number.trim();
        let janitor = janitor(number, mount)?;
        let sys = Path::new("/sys/block").join(format!("zram{number}"));
        // What is one word over and over is not compressed at all; for anything else this one is the fastest.
        let _ = fs::write(sys.join("comp_algorithm"), "lz4");
        let algorithms = fs::read_to_string(sys.join("comp_algorithm"))?;
        let algorithm = algorithms.split(['[', ']']).nth(1).unwrap_or("?").to_owned();
        let disk = RamDisk { mount: mount.to_owned(), algorithm, janitor: Some(janitor) };
        fs::write(sys.join("disksize"), size.to_string()).context("the size of a zram device")?;
        let device = format!("/dev/zram{number}");
        // Nothing is to be done in the background later.
        let options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        run(Command::new("mkfs.ext4").args(["-q", "-b", "4096", "-m", "0", "-N", "64", "-E", options]).arg(&device))?;
        run(Command::new("mount").args(["-o", "noatime"]).arg(&device).arg(mount))?;
        Ok(disk)
    }
}

impl Drop for RamDisk {
    fn drop(&mut self) {
        if let Some(mut janitor) = self.janitor.take() {
            drop(janitor.stdin.take());
            let _ = janitor.wait();
        }
    }
}

/// A process that takes a zram device away when this one lets go of it, or has been killed: nothing else would, and the memory
/// would stay in use until the machine starts again. Daemons that have files open there die with this process, so it tries for
/// a while.
fn janitor(number: &str, mount: &Path) -> Result<Child> {
    const SCRIPT: &str = r#"
        trap '' INT TERM HUP
        read -r _
        for _ in $(seq 100); do
            umount "$2" 2>/dev/null
            echo "$1" 2>/dev/null >/sys/class/zram-control/hot_remove && exit 0
            sleep 0.1
        done
        echo "zram$1 is still in use" >&2"#;
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, "sh", number]).arg(mount).stdin(Stdio::piped()).stdout(Stdio::null());
    command.spawn().context("starting sh")
}
