//! What serves disks: `qemu-storage-daemon` and spanblk, each on a file of the same file system.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use super::frontend;
use super::rows::Backend;
use lab::daemon::Pool;
use lab::tools::{Fill, Process, command, ensure_filled, prefilled, wait_for};

/// Room on a disk of spanblk besides the VHD: labels, placement table.
const OVERHEAD: u64 = 32 << 20;

/// The name of the VHD.
const VHD: &str = "bench";

/// Queues that can be used, on either.
const QUEUES: u16 = 2;

/// The daemons on one file system.
pub struct Backends {
    qsd: Qsd,
    spanblk: Spanblk,
    /// The file that `qemu-storage-daemon` serves, which fio uses in turns with it.
    pub file: PathBuf,
}

impl Backends {
    /// Bytes of `dir` that disks of `size` bytes take.
    #[must_use]
    pub fn room(size: u64) -> u64 {
        2 * size + OVERHEAD
    }

    /// Fills the disks and serves them.
    ///
    /// # Errors
    /// No room, or what the daemons say.
    pub fn start(dir: &Path, sockets: &Path, size: u64, fill: Fill) -> Result<Backends> {
        fs::create_dir(sockets)?;
        let file = dir.join("peer.img");
        prefilled(&file, size, fill)?;
        let qsd = Qsd::start(&file, &sockets.join("qsd.sock"))?;
        let spanblk = Spanblk::start(&dir.join("spanblk.img"), sockets, size, fill)?;
        let with = match fill {
            Fill::Random => "random data",
            Fill::Word => "one word over and over",
        };
        println!("   disks of {} MiB, prefilled with {with}, without holes: peers' and spanblk's", size >> 20);
        Ok(Backends { qsd, spanblk, file })
    }

    /// The process and the socket of a daemon; fio has none.
    #[must_use]
    pub fn daemon(&self, backend: Backend) -> Option<(u32, &Path)> {
        match backend {
            Backend::Qsd => Some((self.qsd.process.id(), &self.qsd.socket)),
            Backend::Spanblk => Some((self.spanblk.id, &self.spanblk.socket)),
            Backend::Fio => None,
        }
    }

    /// # Errors
    /// spanblk does not end well.
    pub fn stop(mut self) -> Result<()> {
        self.spanblk.pool.stop()?;
        self.spanblk.pool.check()
    }
}

/// A `qemu-storage-daemon` with an I/O thread of its own.
struct Qsd {
    process: Process,
    socket: PathBuf,
}

impl Qsd {
    fn start(file: &Path, socket: &Path) -> Result<Qsd> {
        let blockdev = format!(
            "driver=file,node-name=disk,filename={},cache.direct=on,aio=io_uring,discard=unmap",
            file.display()
        );
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable=on,num-queues={QUEUES},\
             iothread=io0",
            socket.display()
        );
        let mut command = command("qemu-storage-daemon");
        command.args(["--object", "iothread,id=io0", "--blockdev", &blockdev, "--export", &export]);
        let mut process = Process::start("qemu-storage-daemon", &mut command)?;
        wait_for("the socket of qemu-storage-daemon", Duration::from_secs(10), || {
            (socket.exists() || process.exited().is_some()).then_some(())
        })?;
        if let Some(status) = process.exited() {
            bail!("qemu-storage-daemon: {status}");
        }
        Ok(Qsd { process, socket: socket.to_owned() })
    }
}

/// A daemon as it comes, with an isolated VHD, every block of which is there.
struct Spanblk {
    pool: Pool,
    id: u32,
    socket: PathBuf,
}

impl Spanblk {
    fn start(file: &Path, sockets: &Path, size: u64, fill: Fill) -> Result<Spanblk> {
        prefilled(file, size + OVERHEAD, fill)?;
        let mut pool = Pool::create(sockets, vec![file.to_owned()], &["--force"])?;
        pool.serve_all()?;
        pool.create_vhd(VHD, size, &["--layout", "isolated", "--thick"])?;
        let socket = pool.socket(VHD);
        frontend::fill(&socket, size, fill)?;
        ensure_filled(file)?;
        Ok(Spanblk { id: pool.id()?, pool, socket })
    }
}
