//! The measurements of `bench_peers.rs`.

pub mod backends;
pub mod frontend;
pub mod places;
pub mod plot;
pub mod relay;
pub mod results;
pub mod rows;
pub mod syscalls;
pub mod workloads;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use backends::Backends;
use frontend::Order;
use lab::cost::Threads;
use lab::fio;
use lab::ram_disk::RamDisk;
use lab::tally::count;
use lab::tools::{RunDir, machine, number_from_env, run};
use places::Places;
use rows::{Backend, Row, Sample};
use syscalls::Counter;
use workloads::{Kind, WORKLOADS, Workload};

const MIB: u64 = 1 << 20;

/// Bytes of a disk. In memory there are two of them, and CI machines are small.
const RAM_SIZE: u64 = 320 * MIB;
const SSD_SIZE: u64 = 1024 * MIB;

fn size_of(kind: Kind) -> u64 {
    match kind {
        Kind::Ram => RAM_SIZE,
        Kind::Ssd => SSD_SIZE,
    }
}

/// Room of a file system in memory besides its files.
const RAM_SPARE: u64 = 64 * MIB;

/// Longest measurement of system calls, whose number for a request is always the same.
const SYSCALLS_TIME: Duration = Duration::from_secs(1);

/// How a run is made, and what has been found.
pub struct Bench {
    pub machine: String,
    pub time: Duration,
    pub rounds: usize,
    pub poll: bool,
    pub only: Option<String>,
    pub rows: Vec<Row>,
    /// Facts about the disks.
    pub disks: Vec<Value>,
    /// Why system calls are not counted.
    pub no_syscalls: Option<String>,
}

impl Bench {
    #[must_use]
    pub fn new() -> Bench {
        Bench {
            machine: machine(),
            time: Duration::from_secs(number_from_env("LAB_BENCH_SECS", 3)),
            rounds: usize::try_from(number_from_env("LAB_BENCH_ROUNDS", 3)).unwrap_or(1).max(1),
            poll: number_from_env("LAB_BENCH_POLL", 0) != 0,
            only: std::env::var("LAB_BENCH_ONLY").ok().filter(|part| !part.is_empty()),
            rows: Vec::new(),
            disks: Vec::new(),
            no_syscalls: syscalls::unavailable(),
        }
    }

    /// Whether there is anything to be measured on such a disk.
    #[must_use]
    pub fn wants(&self, kind: Kind) -> bool {
        self.chosen(kind).next().is_some()
    }

    fn chosen(&self, kind: Kind) -> impl Iterator<Item = &'static Workload> + use<> {
        let only = self.only.clone();
        WORKLOADS.iter().filter(move |workload| {
            let name = format!("{} {} {}", kind.name(), workload.name, kind.name());
            workload.disks.contains(&kind) && only.as_ref().is_none_or(|part| name.contains(part))
        })
    }

    /// On a file system in memory.
    ///
    /// # Errors
    /// The kernel refuses it, or what the peers say.
    pub fn in_memory(&mut self, dir: &RunDir) -> Result<()> {
        let ram = RamDisk::new(&dir.disks().join("ram"), Backends::room(RAM_SIZE) + RAM_SPARE)?;
        println!("   ext4 on zram ({})", ram.algorithm);
        self.disks.push(json!({ "disk": "RAM", "what": "ext4 on zram", "algorithm": ram.algorithm, "size": RAM_SIZE }));
        self.compare(Kind::Ram, &ram.mount, &dir.sockets().join("ram"))
    }

    /// On the file system of the build.
    ///
    /// # Errors
    /// What the peers say.
    pub fn on_disk(&mut self, dir: &RunDir) -> Result<()> {
        let what = run(Command::new("findmnt").args(["-n", "-r", "-o", "FSTYPE,SOURCE", "-T"]).arg(dir.disks()))?;
        let what = what.trim().replacen(' ', " on ", 1);
        println!("   {what}");
        self.disks.push(json!({ "disk": "SSD", "what": what, "size": SSD_SIZE }));
        self.compare(Kind::Ssd, dir.disks(), &dir.sockets().join("ssd"))
    }

    fn compare(&mut self, kind: Kind, dir: &Path, sockets: &Path) -> Result<()> {
        let backends = Backends::start(dir, sockets, size_of(kind), kind.fill())?;
        rows::print_heading();
        let first = self.rows.len();
        for workload in self.chosen(kind) {
            let mut row = Row::new(kind, workload);
            for round in 0..self.rounds {
                let mut order = Backend::ALL;
                // Whoever comes first has nothing that goes before; so they take turns.
                order.rotate_left(round % Backend::ALL.len());
                for backend in order {
                    row.add(backend, self.sample(&backends, backend, workload, kind, round)?);
                }
            }
            if self.no_syscalls.is_none() {
                for backend in [Backend::Qsd, Backend::Spanblk] {
                    row.syscalls[backend as usize] = Some(self.syscalls(&backends, backend, sockets, workload, kind)?);
                }
            }
            row.print();
            self.rows.push(row);
        }
        results::print_goals(&self.rows[first..]);
        backends.stop()
    }

    fn sample(&self, of: &Backends, backend: Backend, load: &Workload, kind: Kind, round: usize) -> Result<Sample> {
        let Some((process, socket)) = of.daemon(backend) else {
            return Ok(Sample::of_fio(&fio::measure(&of.file, load.fio(kind), size_of(kind), self.time)?));
        };
        let order = self.order(socket, load, kind, 1000 + round as u64);
        let (outcome, before, after) = frontend::run(&order, || Threads::of(process))?;
        Ok(Sample::of_daemon(&outcome, after.since(&before)))
    }

    /// System calls for a request, in a run of its own because counting takes time.
    fn syscalls(&self, of: &Backends, backend: Backend, dir: &Path, load: &Workload, kind: Kind) -> Result<f64> {
        let (process, socket) = of.daemon(backend).context("a daemon")?;
        let mut order = self.order(socket, load, kind, 2000);
        order.time = order.time.min(SYSCALLS_TIME);
        let mut counter = None;
        let (outcome, _, calls) = frontend::run(&order, || match counter.take() {
            None => {
                counter = Some(Counter::start(process, dir)?);
                Ok(0.0)
            }
            Some(counter) => Counter::stop(counter),
        })?;
        Ok(calls / count(outcome.requests))
    }

    fn order(&self, socket: &Path, load: &Workload, kind: Kind, seed: u64) -> Order {
        Order {
            socket: socket.to_owned(),
            queues: load.queues,
            depth: load.depth,
            write: load.write,
            len: load.len,
            size: size_of(kind),
            warm_up: self.time / 5,
            time: self.time,
            poll: self.poll,
            fill: kind.fill(),
            seed,
            places: Places::Random,
            flush: false,
            inflight: false,
        }
    }
}
