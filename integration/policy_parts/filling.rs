//! A thin VHD on one disk whose guest writes more than that disk has room for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Contents, Lab, MIB, check_budget, events, guest, jobs, placement, serve, until, words};
use lab::daemon::Pool;
use lab::frontend::Frontend;
use lab::report::Report;

const GROWING: &str = "growing";
const OTHER: &str = "other";
const KEPT_THERE: &str = "kept";

/// Extents of the VHD, more than a disk has; and those that are written.
const EXTENTS: u64 = 640;
const WRITTEN: usize = 480;

/// Extents of the neighbour on the same disk, which is as full as its own.
const OTHER_EXTENTS: u64 = 32;

/// Extents that are left after the guest has discarded the others, from the middle, where they are on several disks.
const LEFT: std::ops::Range<usize> = WRITTEN / 2..WRITTEN / 2 + 16;

/// Longest time for the policy to bring it back to one disk: two looks, a job, and as much again.
const NARROW_LIMIT: Duration = Duration::from_secs(150);

/// Plays the scene up to where the policy has something to make narrow.
pub fn begin(report: &mut Report, lab: &Lab) -> Option<Scene> {
    let pool = report.check("a pool of files", || lab.fast_pool())?;
    let mut scene = report.check("a thin VHD and its neighbour on d0", || Scene::new(pool))?;
    report.check("the guest writes more than d0 has room for, and sees no error", || scene.fill())?;
    report.check("one that must stay on its disk gets an error", || refuse_other(&scene.pool));
    report.check("the policy makes room on d0", || scene.spread())?;
    report.check("what can never be is refused with the numbers", || refuse_policy(&scene.pool));
    report.check("all data is there", || scene.check())?;
    report.check("most is discarded", || scene.empty())?;
    Some(scene)
}

/// The pool and its guests.
pub struct Scene {
    pool: Pool,
    growing: (Frontend, Contents),
    other: (Frontend, Contents),
    emptied: Instant,
}

impl Scene {
    fn new(mut pool: Pool) -> Result<Scene> {
        serve(&mut pool)?;
        // Nobody waits for room: whoever finds none has an error.
        let on_d0 = ["--layout", "isolated", "--disks", "d0", "--when-full", "error"];
        pool.create_vhd(GROWING, EXTENTS * MIB, &on_d0)?;
        pool.create_vhd(OTHER, OTHER_EXTENTS * MIB, &on_d0)?;
        pool.create_vhd(KEPT_THERE, EXTENTS * MIB, &[&on_d0[..], &["--expand", "never"]].concat())?;
        // So that no disk is empty, whatever the policy does.
        pool.create_vhd("third", OTHER_EXTENTS * MIB, &["--layout", "isolated", "--disks", "d2", "--thick"])?;
        pool.cli(&["policy", "set", "mode=auto", "moved-a-day=100%", "rest=0s"])?;
        // What is wanted counts for the next daemon from its first request on.
        pool.stop()?;
        serve(&mut pool)?;
        let mut other = (guest(&pool, OTHER)?, Contents::new(4, OTHER_EXTENTS));
        other.1.fill(&mut other.0)?;
        let growing = (guest(&pool, GROWING)?, Contents::new(3, EXTENTS));
        Ok(Scene { pool, growing, other, emptied: Instant::now() })
    }

    fn fill(&mut self) -> Result<()> {
        let Scene { pool, growing: (guest, contents), .. } = self;
        let started = Instant::now();
        let mut slowest = Duration::ZERO;
        for extent in 0..WRITTEN {
            let before = Instant::now();
            contents.write(guest, extent)?;
            slowest = slowest.max(before.elapsed());
        }
        guest.ring().flush()?;
        let took = started.elapsed().as_secs_f64();
        let placed = placement(pool, GROWING)?;
        println!(
            "   {WRITTEN} MiB in {took:.1} s, the slowest write of 1 MiB {} ms; {}",
            slowest.as_millis(),
            words(&placed)
        );
        ensure!(placed.len() > 1, "it is on one disk: {placed:?}");
        let told = events(pool, "vhd_expanded")?;
        println!("   event: {}", told.first().context("no vhd_expanded event")?);
        ensure!(events(pool, "out_of_room")?.is_empty(), "a write failed for want of room");
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        self.growing.1.check(&mut self.growing.0)?;
        self.other.1.check(&mut self.other.0)
    }

    /// It has grown without the policy, which makes of it a layout.
    fn spread(&self) -> Result<()> {
        let pool = &self.pool;
        let is_spread = || {
            let (moved, open, _) = jobs(pool)?;
            Ok(moved > 0 && open == 0)
        };
        until(pool, "the policy has made room", NARROW_LIMIT, is_spread)?;
        println!("   {}", words(&placement(pool, GROWING)?));
        Ok(())
    }

    fn empty(&mut self) -> Result<()> {
        let Scene { pool, growing: (guest, contents), .. } = self;
        let before = words(&placement(pool, GROWING)?);
        for extent in (0..WRITTEN).filter(|extent| !LEFT.contains(extent)) {
            contents.discard(guest, extent)?;
        }
        guest.ring().flush()?;
        let left = placement(pool, GROWING)?;
        println!("   {before}; discarded: {}", words(&left));
        ensure!(left.len() > 1, "what is left is on one disk already");
        pool.cli(&["policy", "set", "comfort-hold=0s", "hold=30s"])?;
        self.emptied = Instant::now();
        Ok(())
    }

    fn narrow(&self) -> Result<()> {
        let pool = &self.pool;
        let narrow = || Ok(placement(pool, GROWING)?.len() == 1 && jobs(pool)?.1 == 0);
        until(pool, "it is on one disk", NARROW_LIMIT, narrow)?;
        let listed = pool.json(&["job", "list"])?;
        let last = listed["jobs"].as_array().and_then(|jobs| jobs.iter().max_by_key(|job| job["id"].as_u64()));
        println!("   {}; {}", words(&placement(pool, GROWING)?), last.context("no job")?);
        pool.cli(&["advise"])?.lines().filter(|line| line.contains("promised")).for_each(|line| println!("   {line}"));
        println!("   not later than {:.0} s after the guest had discarded", self.emptied.elapsed().as_secs_f64());
        Ok(())
    }

    /// Waits until the policy has done what it should, and looks at everything.
    pub fn end(mut self, report: &mut Report) {
        report.check("the policy has made it narrow again", || self.narrow());
        report.check("moves of that pool within the budget", || {
            let (moved, budget) = check_budget(&self.pool)?;
            println!("   {} MiB moved, of {} MiB that may be moved in a day", moved / MIB, budget / MIB);
            Ok(())
        });
        report.check("all data is there, the table of that pool is consistent", || {
            self.check()?;
            self.pool.check()?;
            self.pool.stop()?;
            self.pool.check()
        });
    }
}

/// A VHD that was told never to grow does not, whatever the mode.
fn refuse_other(pool: &Pool) -> Result<()> {
    let mut guest = guest(pool, KEPT_THERE)?;
    let mut contents = Contents::new(5, EXTENTS);
    // The policy may have made room on d0 meanwhile.
    let refused = (0..usize::try_from(EXTENTS)?).find_map(|extent| contents.write(&mut guest, extent).err());
    let error = refused.context("it found room for more than its disk has")?;
    let placed = placement(pool, KEPT_THERE)?;
    println!("   {}: {error:#}", words(&placed));
    ensure!(placed.iter().all(|(disk, _)| disk == "d0"), "it has grown: {placed:?}");
    Ok(())
}

fn refuse_policy(pool: &Pool) -> Result<()> {
    let before = pool.json(&["policy", "show"])?;
    for (setting, words) in [
        ("space=6%", "no placement would be legal"),
        ("iops=1000000000", "all disks together can usually serve about"),
        ("survives=2", "takes 3 failure domains"),
    ] {
        let refused = pool.cli(&["policy", "set", setting]).err().with_context(|| format!("{setting} was taken"))?;
        let text = format!("{refused:#}");
        ensure!(text.contains(words), "{setting}: {text}");
        println!("   {setting}: {}", text.lines().find(|line| line.contains(words)).unwrap_or_default().trim());
    }
    ensure!(pool.json(&["policy", "show"])? == before, "what was refused was kept");
    Ok(())
}
