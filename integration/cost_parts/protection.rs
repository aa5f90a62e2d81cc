//! CPU time for a request: what protections cost, each beside a daemon that has none, in turns. Each variant is a daemon of its own on a
//! disk of its own; and if there is another build of spanblk to compare with, that is one, too.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::beside;
use super::random::{self, Load};
use super::{Bench, Figures, MIB, PartName};
use crate::peers_parts::frontend;
use lab::daemon::Pool;
use lab::tools::{Fill, RunDir, ensure_filled, prefilled};

const PART: PartName = PartName { name: "protection", what: "protection" };

/// Bytes of a VHD.
const SIZE: u64 = 128 * MIB;

const DISK_SIZE: u64 = SIZE + 48 * MIB;

/// Bytes of all disks.
pub const ROOM: u64 = VARIANTS.len() as u64 * DISK_SIZE;

const VHD: &str = "bench";

/// A daemon that is measured.
struct Variant {
    name: &'static str,
    /// What it is compared with is another build.
    earlier: bool,
    sandbox: bool,
    inflight: bool,
    checksums: bool,
    /// CPU time for a request, at most, as a multiple of that of the build before, or of none.
    bound: Option<f64>,
}

const NONE: Variant =
    Variant { name: "none", earlier: false, sandbox: false, inflight: false, checksums: false, bound: Some(1.03) };

/// The first that is there is what the others are compared with.
const VARIANTS: [Variant; 6] = [
    Variant { name: "build before", earlier: true, sandbox: true, bound: None, ..NONE },
    NONE,
    Variant { name: "in flight", inflight: true, bound: Some(1.05), ..NONE },
    Variant { name: "sandbox", sandbox: true, bound: Some(1.05), ..NONE },
    Variant { name: "both (default)", inflight: true, sandbox: true, bound: Some(1.05), ..NONE },
    Variant { name: "and checksums", inflight: true, sandbox: true, checksums: true, bound: None, ..NONE },
];

const LOADS: [Load; 3] = [
    Load { name: "4k randread depth 1", depth: 1, write: false },
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
    if beside::other_build().is_none() {
        println!("   no other build to compare with (LAB_BENCH_BEFORE): ratios are to 'none'");
    }
    let daemons = beside::serve_all(&VARIANTS, &files, &sockets)?;
    random::heading("protection");
    for load in LOADS {
        let samples = beside::in_turns(&daemons, bench.rounds, |variant: &Variant, pool, round| {
            random::sample(bench, pool, (VHD, SIZE), load, variant.inflight, round)
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
        let options: &[&str] = if self.sandbox { &[] } else { &["--sandbox", "off"] };
        pool.serve(&[0], options)?;
        let checksums: &[&str] = if self.checksums { &["--checksums"] } else { &[] };
        pool.create_vhd(VHD, SIZE, &[&["--layout", "isolated", "--thick"], checksums].concat())?;
        frontend::fill(&pool.socket(VHD), SIZE, Fill::Word)?;
        ensure_filled(&disk)?;
        Ok(pool)
    }
}

/// Prints the medians of a load, and what became of the goals.
fn tell(bench: &mut Bench, load: Load, variants: &[&Variant], samples: &[Vec<Figures>]) {
    let mut goals = Vec::new();
    for (variant, own) in variants.iter().zip(samples) {
        let ratios = random::row(bench, PART, load, variant.name, own, &samples[0]);
        if let Some(bound) = variant.bound.filter(|_| variant.name != variants[0].name) {
            goals.push((format!("{}: CPU/IO of '{}'", load.name, variant.name), bound, ratios.cpu_us));
        }
    }
    for (what, bound, reached) in goals {
        bench.goal(PART.name, &what, bound, reached);
    }
}
