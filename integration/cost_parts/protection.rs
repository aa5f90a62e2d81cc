//! CPU time for a request: what protections cost, each beside a daemon that has none, in turns. Each variant is a daemon of its own on a
//! disk of its own; and if there is another build of spanblk to compare with, that is one, too.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::random::{self, Load};
use super::{Bench, Figures, MIB, PartName};
use crate::lab::daemon::{Pool, SPANBLK};
use crate::lab::tools::{Fill, RunDir, ensure_filled, prefilled};
use crate::peers_parts::frontend;

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
    let before = std::env::var_os("LAB_BENCH_BEFORE").filter(|program| !program.is_empty()).map(PathBuf::from);
    if before.is_none() {
        println!("   no other build to compare with (LAB_BENCH_BEFORE): ratios are to 'none'");
    }
    let mut daemons = Vec::new();
    for (number, variant) in VARIANTS.iter().enumerate() {
        let program = if variant.earlier { before.as_deref() } else { Some(Path::new(SPANBLK)) };
        let Some(program) = program else { continue };
        let sockets = sockets.join(number.to_string());
        std::fs::create_dir(&sockets)?;
        let pool = serve(variant, program, files.join(format!("d{number}.img")), &sockets);
        daemons.push((variant, pool.with_context(|| format!("the daemon of '{}'", variant.name))?));
    }
    random::heading("protection");
    for load in LOADS {
        let mut samples: Vec<Vec<Figures>> = daemons.iter().map(|_| Vec::new()).collect();
        for round in 0..bench.rounds {
            // Whoever comes first has nothing that goes before; so they take turns.
            for turn in 0..daemons.len() {
                let index = (round + turn) % daemons.len();
                let (variant, pool) = &daemons[index];
                samples[index].push(random::sample(bench, pool, (VHD, SIZE), load, variant.inflight, round)?);
            }
        }
        let variants: Vec<&Variant> = daemons.iter().map(|(variant, _)| *variant).collect();
        tell(bench, load, &variants, &samples);
    }
    for (_, mut pool) in daemons {
        pool.stop()?;
        pool.check()?;
    }
    Ok(std::fs::remove_dir_all(files)?)
}

fn serve(variant: &Variant, program: &Path, disk: PathBuf, sockets: &Path) -> Result<Pool> {
    prefilled(&disk, DISK_SIZE, Fill::Word)?;
    let mut pool = Pool::create_with(program, sockets, vec![disk.clone()], &["--force"])?;
    let options: &[&str] = if variant.sandbox { &[] } else { &["--sandbox", "off"] };
    pool.serve(&[0], options)?;
    let checksums: &[&str] = if variant.checksums { &["--checksums"] } else { &[] };
    pool.create_vhd(VHD, SIZE, &[&["--layout", "isolated", "--thick"], checksums].concat())?;
    frontend::fill(&pool.socket(VHD), SIZE, Fill::Word)?;
    ensure_filled(&disk)?;
    Ok(pool)
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
