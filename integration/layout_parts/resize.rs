//! Resizes of VHDs under load: growing while a guest works, shrinking while it is away, and either one while the daemon is killed.

use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use lab::counts::Counts;
use lab::daemon::Pool;
use lab::guest::Guest;
use lab::model::Random;

/// Sizes of a VHD in sectors: 256 extents, and half as many again.
pub const SMALLEST: u64 = (64 << 20) / 512;
const LARGEST: u64 = SMALLEST + SMALLEST / 2;

/// Sectors of a block of an extent (8 KiB): what is left of a VHD that shrinks is a whole number of them.
const BLOCK: u64 = 16;

/// Sectors of an extent (256 KiB).
const EXTENT: u64 = 512;

/// Which way a VHD goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// While its guest works.
    Grow,
    /// While its guest is away.
    Shrink,
}

/// Resizes one of the VHDs, the wanted way if there is one left that can go it.
///
/// # Errors
/// Anything but the two outcomes: it has its new size, or the state of the pool forbids it.
pub fn resize(pool: &Pool, guests: &mut [Guest], random: &mut Random, tally: &mut Counts, wish: Way) -> Result<()> {
    let Some((guest, way, sectors)) = choose(guests, random, wish) else { return Ok(()) };
    let size = (sectors * 512).to_string();
    match way {
        Way::Grow => {
            if pool.ask(&["vhd", "resize", guest.name, "--size", &size])?.is_none() {
                tally.count("refused to grow");
                return Ok(());
            }
            guest.sectors = sectors;
            guest.wait_grown()?;
            tally.count("grown");
        }
        Way::Shrink => {
            guest.detach()?;
            guest.wait_detached(pool)?;
            // Sometimes larger again at once: what comes back is empty.
            let and_back = random.below(3) == 0;
            if pool.ask(&["vhd", "resize", guest.name, "--size", &size, "--force"])?.is_some() {
                tally.count("shrunk");
                let before = guest.resized_detached(sectors)?;
                if and_back
                    && pool.ask(&["vhd", "resize", guest.name, "--size", &(before * 512).to_string()])?.is_some()
                {
                    tally.count("grown detached");
                    guest.resized_detached(before)?;
                }
            } else {
                tally.count("refused to shrink");
            }
            guest.attach(pool).context("after a resize")?;
        }
    }
    Ok(())
}

/// Begins a resize of one of the VHDs, in order to kill the daemon meanwhile. Its new size is in doubt from now on.
///
/// # Errors
/// A guest that shall leave has found something wrong.
pub fn begin(pool: &Pool, guests: &mut [Guest], random: &mut Random, tally: &mut Counts) -> Result<Option<Child>> {
    let wish = if random.below(2) == 0 { Way::Grow } else { Way::Shrink };
    let Some((guest, way, sectors)) = choose(guests, random, wish) else { return Ok(None) };
    let size = (sectors * 512).to_string();
    let mut args = vec!["vhd", "resize", guest.name, "--size", &size];
    if way == Way::Shrink {
        guest.detach()?;
        guest.wait_detached(pool)?;
        args.push("--force");
    }
    guest.maybe = Some(sectors);
    let child = pool.json_command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    // About as long as it takes.
    thread::sleep(Duration::from_micros(random.below(60_000)));
    tally.count("SIGKILL about a resize");
    Ok(Some(child))
}

/// A VHD and its new size.
fn choose<'a>(guests: &'a mut [Guest], random: &mut Random, wish: Way) -> Option<(&'a mut Guest, Way, u64)> {
    let whole = random.below(3) == 0;
    // A VHD may end within a block, and go on there: what comes after is zeros all the same.
    let unit = |guest: &Guest, way| match way {
        _ if whole => EXTENT,
        Way::Grow => guest.block,
        Way::Shrink => BLOCK,
    };
    let units = |guest: &Guest, way| match way {
        Way::Grow => LARGEST / unit(guest, way) - guest.sectors / unit(guest, way),
        Way::Shrink => guest.sectors.div_ceil(unit(guest, way)) - SMALLEST / unit(guest, way),
    };
    let other = if wish == Way::Grow { Way::Shrink } else { Way::Grow };
    let way = if guests.iter().any(|guest| units(guest, wish) > 0) { wish } else { other };
    let mut able: Vec<&mut Guest> = guests.iter_mut().filter(|guest| units(guest, way) > 0).collect();
    if able.is_empty() {
        return None;
    }
    let guest = able.swap_remove(usize::try_from(random.below(able.len() as u64)).ok()?);
    let (unit, step) = (unit(guest, way), 1 + random.below(units(guest, way)));
    let sectors = match way {
        Way::Grow => (guest.sectors / unit + step) * unit,
        Way::Shrink => (guest.sectors.div_ceil(unit) - step) * unit,
    };
    Some((guest, way, sectors))
}
