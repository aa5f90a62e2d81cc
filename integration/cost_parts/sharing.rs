//! CPU time for a request: what it costs that guests are kept apart, beside a daemon that does nothing for that, in turns. Each variant is a
//! daemon of its own on a disk of its own; and if there is another build of spanblk to compare with, that is one, too.
//!
//! Metrics cannot be switched off: what those cost, the other build says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::beside;
use super::random::{self, Load};
use super::{Bench, Figures, MIB, PartName};
use crate::peers_parts::frontend;
use lab::daemon::Pool;
use lab::helper::Helper;
use lab::tally::Outcome;
use lab::tools::{Fill, RunDir, ensure_filled, prefilled};

const PART: PartName = PartName { name: "sharing", what: "daemon" };

/// Bytes of a VHD, and of the neighbour's.
const SIZE: u64 = 128 * MIB;
const NEIGHBOUR_SIZE: u64 = 16 * MIB;

const DISK_SIZE: u64 = SIZE + NEIGHBOUR_SIZE + 48 * MIB;

/// Bytes of all disks.
pub const ROOM: u64 = VARIANTS.len() as u64 * DISK_SIZE;

const VHD: &str = "bench";
const NEIGHBOUR: &str = "neighbour";

/// How long a neighbour has been there when the measurement begins: by then the disk is shared out.
const LEAD: Duration = Duration::from_millis(1500);

/// CPU time for a request, at most, as a multiple of that of the first.
const BOUND: f64 = 1.03;

/// A daemon that is measured.
struct Variant {
    name: &'static str,
    /// It is another build.
    earlier: bool,
    serve: &'static [&'static str],
    /// Whether the VHD has limits that it does not reach, a weight and a latency target, and the policy looks after it.
    wishes: bool,
    /// Whether somebody else asks something of the disk now and then, so that it is shared out.
    neighbour: bool,
}

const COMES: Variant = Variant { name: "as it comes", earlier: false, serve: &[], wishes: false, neighbour: false };

/// The first that is there is what the others are compared with.
const VARIANTS: [Variant; 5] = [
    Variant { name: "build before", earlier: true, ..COMES },
    Variant { name: "no fair shares", serve: &["--fair-shares", "off"], ..COMES },
    COMES,
    Variant { name: "with wishes", wishes: true, ..COMES },
    Variant { name: "and shared", wishes: true, neighbour: true, ..COMES },
];

/// What the VHD is given: none of it holds it back.
const WISHES: [&str; 8] =
    ["--iops-limit", "10000000", "--bps-limit", "64GiB", "--weight", "1000", "--latency-target", "1s"];

const LOADS: [Load; 2] = [
    Load { name: "4k randread depth 32", depth: 32, write: false },
    Load { name: "4k randwrite depth 32", depth: 32, write: true },
];

/// Measures all variants. `LAB_BENCH_BEFORE` is the program of another build.
///
/// # Errors
/// What spanblk says.
pub fn measure(bench: &mut Bench, dir: &RunDir) -> Result<()> {
    let kind = bench.fastest();
    let (files, sockets) = bench.dirs(dir, kind, PART.name)?;
    let daemons = beside::serve_all(&VARIANTS, &files, &sockets)?;
    random::heading("daemon");
    for load in LOADS {
        let samples = beside::in_turns(&daemons, bench.rounds, |variant: &Variant, pool, round| {
            sample(bench, variant, pool, load, round)
        })?;
        let variants: Vec<&Variant> = daemons.iter().map(|(variant, _)| *variant).collect();
        tell(bench, load, &variants, &samples);
    }
    beside::end(daemons, &files)
}

impl beside::Variant for Variant {
    fn name(&self) -> &'static str {
        self.name
    }

    fn is_earlier(&self) -> bool {
        self.earlier
    }

    fn serve(&self, program: &Path, disk: PathBuf, sockets: &Path) -> Result<Pool> {
        prefilled(&disk, DISK_SIZE, Fill::Word)?;
        let mut pool = Pool::create_with(program, sockets, vec![disk.clone()], &["--force"])?;
        pool.serve(&[0], self.serve)?;
        let wishes: &[&str] = if self.wishes { &WISHES } else { &[] };
        pool.create_vhd(VHD, SIZE, &[&["--layout", "isolated", "--thick"], wishes].concat())?;
        frontend::fill(&pool.socket(VHD), SIZE, Fill::Word)?;
        if self.wishes {
            pool.cli(&["policy", "set", "--vhd", VHD, "mode=auto", "latency=500ms", "iops=1000"])?;
        }
        if self.neighbour {
            pool.create_vhd(NEIGHBOUR, NEIGHBOUR_SIZE, &["--layout", "isolated", "--thick", "--iops-limit", "50"])?;
            frontend::fill(&pool.socket(NEIGHBOUR), NEIGHBOUR_SIZE, Fill::Word)?;
        }
        ensure_filled(&disk)?;
        Ok(pool)
    }
}

fn sample(bench: &Bench, variant: &Variant, pool: &Pool, load: Load, round: usize) -> Result<Figures> {
    let alone = || random::sample(bench, pool, (VHD, SIZE), load, false, round);
    if !variant.neighbour {
        return alone();
    }
    let seldom = Load { name: NEIGHBOUR, depth: 1, write: false };
    let mut order = random::order(bench, pool, (NEIGHBOUR, NEIGHBOUR_SIZE), seldom, false, round);
    // Until after the measurement, its warm-up and the start of its frontend.
    order.time = LEAD + 2 * bench.time + LEAD;
    let mut neighbour = Helper::start(frontend::ARGUMENT, &order)?;
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| neighbour.go::<Outcome>());
        std::thread::sleep(LEAD);
        let figures = alone();
        asks.join().expect("a thread that does not panic")?;
        figures
    })
    .and_then(|figures| neighbour.finish().map(|()| figures))
}

/// Prints the medians of a load, and what became of the goals.
fn tell(bench: &mut Bench, load: Load, variants: &[&Variant], samples: &[Vec<Figures>]) {
    let mut goals = Vec::new();
    for (variant, own) in variants.iter().zip(samples) {
        let ratios = random::row(bench, PART, load, variant.name, own, &samples[0]);
        if variant.name != variants[0].name {
            goals.push((format!("{}: CPU/IO of '{}'", load.name, variant.name), ratios.cpu_us));
        }
    }
    for (what, reached) in goals {
        bench.goal(PART.name, &what, BOUND, reached);
    }
}
