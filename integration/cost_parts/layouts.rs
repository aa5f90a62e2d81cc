//! CPU time for a request: a spanned VHD, a mirrored one and one whose blocks have checksums beside one that is isolated, in turns, of one
//! daemon on the same disks.
//!
//! Other than peers they are compared with data that disks in memory need not keep: those work on the time of whoever writes, for
//! which no other disk has need, and a mirrored write would mostly show that there are two of them.

use anyhow::Result;

use super::random::{self, Load};
use super::{Bench, Figures, MIB, PartName};
use crate::peers_parts::frontend;
use lab::daemon::Pool;
use lab::tools::{Fill, RunDir, ensure_filled, prefilled};

const PART: PartName = PartName { name: "layouts", what: "vhd" };

/// Bytes of a VHD.
const SIZE: u64 = 128 * MIB;

const DISKS: u64 = 4;

/// Of a disk: the isolated VHD may be on any of them, the others are on all.
const DISK_SIZE: u64 = SIZE + 4 * SIZE / DISKS + 48 * MIB;

/// Bytes of all disks.
pub const ROOM: u64 = DISKS * DISK_SIZE;

/// A VHD that is measured.
struct Variant {
    name: &'static str,
    options: &'static [&'static str],
    /// CPU time for a write and for a read, at most, as a multiple of the isolated one's.
    write: Option<f64>,
    read: Option<f64>,
}

/// The first is what the others are compared with.
const VARIANTS: [Variant; 4] = [
    Variant { name: "isolated", options: &["--layout", "isolated"], write: None, read: None },
    Variant { name: "spanned", options: &["--layout", "spanned"], write: Some(1.05), read: Some(1.05) },
    Variant { name: "mirrored", options: &["--layout", "spanned", "--replicas", "2"], write: Some(1.6), read: None },
    Variant { name: "checked", options: &["--layout", "spanned", "--checksums"], write: None, read: None },
];

const LOADS: [Load; 2] = [
    Load { name: "4k randread depth 32", depth: 32, write: false },
    Load { name: "4k randwrite depth 32", depth: 32, write: true },
];

/// Measures all variants.
///
/// # Errors
/// What spanblk says.
pub fn measure(bench: &mut Bench, dir: &RunDir) -> Result<()> {
    let kind = bench.fastest();
    let (files, sockets) = bench.dirs(dir, kind, PART.name)?;
    let disks: Vec<_> = (0..DISKS).map(|index| files.join(format!("d{index}.img"))).collect();
    disks.iter().try_for_each(|disk| prefilled(disk, DISK_SIZE, Fill::Word))?;
    let mut pool = Pool::create(&sockets, disks, &["--force"])?;
    pool.serve_all()?;
    for index in 0..DISKS {
        // Files of one file system: nobody would mirror on those.
        let name = format!("d{index}");
        pool.cli(&["disk", "set", &name, "--failure-domain", &name])?;
    }
    for variant in &VARIANTS {
        pool.create_vhd(variant.name, SIZE, &[variant.options, &["--thick"]].concat())?;
        frontend::fill(&pool.socket(variant.name), SIZE, Fill::Word)?;
    }
    pool.disks.iter().try_for_each(|disk| ensure_filled(disk))?;
    println!(
        "   {DISKS} disks (files on {}); VHDs of {} MiB, thick and written from end to end, with one word; files without holes",
        kind.name(),
        SIZE / MIB
    );
    random::heading("VHD");
    for load in LOADS {
        let mut samples: [Vec<Figures>; VARIANTS.len()] = Default::default();
        for round in 0..bench.rounds {
            // Whoever comes first has nothing that goes before; so they take turns.
            for turn in 0..VARIANTS.len() {
                let index = (round + turn) % VARIANTS.len();
                samples[index].push(random::sample(bench, &pool, (VARIANTS[index].name, SIZE), load, false, round)?);
            }
        }
        tell(bench, load, &samples);
    }
    pool.stop()?;
    pool.check()?;
    Ok(std::fs::remove_dir_all(files)?)
}

/// Prints the medians of a load, and what became of the goals.
fn tell(bench: &mut Bench, load: Load, samples: &[Vec<Figures>; VARIANTS.len()]) {
    let mut goals = Vec::new();
    for (variant, own) in VARIANTS.iter().zip(samples) {
        let ratios = random::row(bench, PART, load, variant.name, own, &samples[0]);
        if let Some(bound) = if load.write { variant.write } else { variant.read } {
            goals.push((format!("{}: CPU/IO of {} : isolated", load.name, variant.name), bound, ratios.cpu_us));
        }
    }
    for (what, bound, reached) in goals {
        bench.goal(PART.name, &what, bound, reached);
    }
}
