//! What a guest run works on: the disks, who serves them, and how a guest is started.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use lab::agent::Agent;
use lab::daemon::Pool;
use lab::image::Image;
use lab::machine::{Accel, Drive, Machine};
use lab::reference::ReferenceDisk;
use lab::tools::RunDir;

const MIB: u64 = 1 << 20;

/// A disk that guests get, and what they must find.
#[derive(Clone, Copy, Debug)]
pub struct Vhd {
    /// Name.
    pub name: &'static str,
    /// Device in the guest.
    pub device: &'static str,
    /// Layout, for people.
    pub layout: &'static str,
    /// Layout, for the command line.
    options: &'static [&'static str],
    /// Size in bytes.
    pub size: u64,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// Virtqueues.
    pub queues: u16,
    /// Whether spanblk serves it.
    pub ours: bool,
}

const VHDS: [Vhd; 3] = [
    Vhd {
        name: "iso",
        device: "vda",
        layout: "isolated",
        options: &["--layout", "isolated", "--disks", "disk1", "--block-size", "512", "--queues", "1"],
        size: 512 * MIB,
        block_size: 512,
        queues: 1,
        ours: true,
    },
    Vhd {
        name: "span",
        device: "vdb",
        layout: "spanned over all",
        options: &["--layout", "spanned", "--block-size", "512", "--queues", "2"],
        size: 640 * MIB,
        block_size: 512,
        queues: 2,
        ours: true,
    },
    Vhd {
        name: "pair",
        device: "vdc",
        layout: "spanned over two, 4 KiB sectors",
        options: &["--layout", "spanned", "--disks", "disk1,disk2", "--block-size", "4096", "--queues", "2"],
        size: 300 * MIB,
        block_size: 4096,
        queues: 2,
        ours: true,
    },
];

/// Name and size of the disk that is plugged in and out.
const EXTRA: (&str, u64) = ("extra", 64 * MIB);

/// Host disks of the pool, and the size of each.
const DISKS: (usize, u64) = (4, 1024 * MIB);

#[derive(Debug)]
enum Backend {
    Spanblk(Pool),
    Reference(Vec<ReferenceDisk>),
}

/// Disks, their backend, and the way to boot a guest on them.
#[derive(Debug)]
pub struct Session<'a> {
    /// The disks of the guest, in the order of its device names.
    pub vhds: Vec<Vhd>,
    dir: &'a RunDir,
    image: &'a Image,
    accel: Accel,
    backend: Backend,
}

impl<'a> Session<'a> {
    /// Makes the disks and serves them.
    ///
    /// # Errors
    /// What the backend says.
    pub fn start(dir: &'a RunDir, image: &'a Image, accel: Accel) -> Result<Session<'a>> {
        let mut vhds = VHDS.to_vec();
        let backend = match std::env::var("LAB_BACKEND").as_deref() {
            Err(_) | Ok("spanblk") => Backend::Spanblk(start_pool(dir)?),
            Ok("qemu-storage-daemon") => {
                vhds.iter_mut().for_each(|v| v.ours = false);
                Backend::Reference(start_reference(dir)?)
            }
            Ok(other) => bail!("LAB_BACKEND={other}: neither spanblk nor qemu-storage-daemon"),
        };
        Ok(Session { vhds, dir, image, accel, backend })
    }

    /// Boots a guest with all disks.
    ///
    /// # Errors
    /// It does not come up.
    pub fn boot(&self) -> Result<(Machine, Duration)> {
        let drives: Vec<Drive> = self.vhds.iter().map(|v| self.drive(v)).collect();
        Machine::boot(self.dir, self.image, self.accel, &drives)
    }

    /// The drive for a disk.
    #[must_use]
    pub fn drive(&self, vhd: &Vhd) -> Drive {
        Drive::new(vhd.name, &self.socket(vhd.name), vhd.queues)
    }

    /// The drive that is plugged in and out.
    #[must_use]
    pub fn extra_drive(&self) -> Drive {
        Drive::new(EXTRA.0, &self.socket(EXTRA.0), 1)
    }

    /// Serial numbers that the guest must see, by disk; `None` if the backend has none of its own.
    ///
    /// # Errors
    /// What the backend says.
    pub fn serial(&self, vhd: &Vhd) -> Result<Option<String>> {
        let Backend::Spanblk(pool) = &self.backend else { return Ok(None) };
        let shown = pool.json(&["vhd", "show", vhd.name])?;
        let uuid = shown["uuid"].as_str().context("a UUID in vhd show")?;
        Ok(Some(uuid.replace('-', "")[..20].to_owned()))
    }

    /// The pool, if spanblk serves the disks.
    #[must_use]
    pub fn pool(&self) -> Option<&Pool> {
        match &self.backend {
            Backend::Spanblk(pool) => Some(pool),
            Backend::Reference(_) => None,
        }
    }

    /// Discards a range that was written and waits until the backend counts less room taken.
    ///
    /// # Errors
    /// The room does not come back.
    pub fn discarded_room(&self, agent: &mut Agent) -> Result<()> {
        let Backend::Spanblk(pool) = &self.backend else { return Ok(()) };
        let taken = || -> Result<u64> {
            pool.json(&["vhd", "show", "span"])?["allocated_bytes"].as_u64().context("allocated_bytes in vhd show")
        };
        agent.run("dd if=/dev/urandom of=/dev/vdb bs=1M count=32 seek=64 oflag=direct conv=fsync 2>/dev/null")?;
        let before = taken()?;
        ensure!(before >= 32 * MIB, "only {before} bytes are allocated after writing 32 MiB");
        agent.run("/sbin/blkdiscard -o $((64 << 20)) -l $((32 << 20)) /dev/vdb")?;
        let after = taken()?;
        ensure!(after + 32 * MIB <= before, "{before} bytes before and {after} after discarding 32 MiB");
        Ok(())
    }

    /// Gives a disk another size, if the backend can.
    ///
    /// # Errors
    /// What the backend says.
    pub fn resize(&self, vhd: &Vhd, size: u64) -> Result<bool> {
        let Backend::Spanblk(pool) = &self.backend else { return Ok(false) };
        let said = pool.json(&["vhd", "resize", vhd.name, "--size", &size.to_string()])?;
        ensure!(said["changed"] == true && said["vhd"]["size_bytes"] == size, "vhd resize says {said}");
        Ok(true)
    }

    /// Stops the daemon and starts it with its disks in another order.
    ///
    /// # Errors
    /// What the backend says.
    pub fn cold_start(&mut self) -> Result<()> {
        match &mut self.backend {
            Backend::Spanblk(pool) => {
                pool.stop()?;
                pool.check().context("offline check")?;
                pool.serve(&[2, 0, 3, 1], &[])?;
            }
            Backend::Reference(disks) => {
                disks.clear();
                disks.extend(start_reference(self.dir)?);
            }
        }
        Ok(())
    }

    /// Proves the placement table consistent.
    ///
    /// # Errors
    /// It is not.
    pub fn consistent(&self) -> Result<()> {
        match &self.backend {
            Backend::Spanblk(pool) => pool.check(),
            Backend::Reference(_) => Ok(()),
        }
    }

    /// Stops the backend.
    ///
    /// # Errors
    /// It does not end cleanly.
    pub fn stop(self) -> Result<()> {
        match self.backend {
            Backend::Spanblk(mut pool) => {
                ensure!(pool.runs(), "the daemon has ended by itself\n{}", pool.log_tail());
                pool.stop()?;
                pool.check()
            }
            Backend::Reference(_) => Ok(()),
        }
    }

    fn socket(&self, name: &str) -> PathBuf {
        match &self.backend {
            Backend::Spanblk(pool) => pool.socket(name),
            Backend::Reference(_) => reference_socket(self.dir, name),
        }
    }
}

fn start_pool(dir: &RunDir) -> Result<Pool> {
    let mut pool = Pool::create_files(dir.sockets(), dir.disks(), DISKS.0, DISKS.1)?;
    pool.serve_all()?;
    for vhd in VHDS {
        pool.create_vhd(vhd.name, vhd.size, vhd.options)?;
    }
    pool.create_vhd(EXTRA.0, EXTRA.1, &["--layout", "isolated", "--queues", "1"])?;
    Ok(pool)
}

fn start_reference(dir: &RunDir) -> Result<Vec<ReferenceDisk>> {
    let serve = |name: &str, size, block_size, queues| {
        let file = dir.disks().join(format!("{name}.img"));
        ReferenceDisk::serve(&file, &reference_socket(dir, name), size, block_size, queues)
    };
    let mut disks = Vec::new();
    for vhd in VHDS {
        disks.push(serve(vhd.name, vhd.size, vhd.block_size, vhd.queues)?);
    }
    disks.push(serve(EXTRA.0, EXTRA.1, 512, 1)?);
    Ok(disks)
}

fn reference_socket(dir: &RunDir, name: &str) -> PathBuf {
    dir.sockets().join(format!("{name}.sock"))
}
