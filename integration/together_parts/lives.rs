//! What each daemon in turn holds, from its first step to its last, and what is wrong with that.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use lab::daemon::Pool;
use lab::footprint::Footprint;

const MIB: u64 = 1 << 20;

/// A daemon is compared with what it held after so many steps, when most kinds of work have been done once.
const WARM_STEPS: usize = 3;

/// And after so long: what depends on time only (threads that end when idle) has happened.
const WARM_TIME: Duration = Duration::from_secs(5);

/// Age from which on the memory of a daemon must be flat.
pub const OLD: Duration = Duration::from_secs(30);

/// Descriptors more than in the sample before that are no leak: the connection of the last command, which its client has closed and the
/// daemon is about to, and one more that is accepted or passed on at that moment. And each of four VHDs, once it has grown, has one more file
/// in shared memory for where it is: the next one is as long as all before it, for which they do not grow enough.
const DESCRIPTORS_MORE: usize = 2 + 4;

/// Threads more than in the sample before that are no leak. A pool of threads for what blocks keeps some that are idle for up to 10 s, for
/// which [`PATIENCE`] waits; two are those that each message of a VMM, or of a probe, starts and keeps for a second.
const THREADS_MORE: usize = 2;

/// How long it is waited until what is about to go has gone: longer than tokio keeps an idle thread (10 s).
const PATIENCE: Duration = Duration::from_secs(15);

/// What a daemon begins with that takes over.
pub const TAKEOVER: &str = "takeover";

/// What a daemon held at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// How old the daemon was.
    age: Duration,
    /// Nothing went on but the guests' work, on the same VHDs as ever.
    quiet: bool,
    /// Bytes: memory of its own, and what it keeps in shared memory for the next daemon.
    memory: u64,
    descriptors: usize,
    threads: usize,
}

impl Sample {
    /// More than another one may be explained by.
    fn is_more_than(&self, before: &Sample) -> bool {
        self.has_more_memory_than(before) || self.has_more_open_than(before)
    }

    /// A fifth is what fragmentation of the heap makes of the same content, and 8 MiB are buffers of as many moves as there may be.
    fn has_more_memory_than(&self, before: &Sample) -> bool {
        self.memory > before.memory + before.memory / 5 + 8 * MIB
    }

    fn has_more_open_than(&self, before: &Sample) -> bool {
        self.descriptors > before.descriptors + DESCRIPTORS_MORE || self.threads > before.threads + THREADS_MORE
    }

    /// In words.
    fn told(&self) -> String {
        let Sample { memory, descriptors, threads, .. } = self;
        format!("{} MiB, {descriptors} descriptors, {threads} threads", memory / MIB)
    }
}

/// One daemon.
#[derive(Debug)]
struct Life {
    process: u32,
    /// What it began with.
    began_by: &'static str,
    begun: Instant,
    /// One for each step.
    samples: Vec<Sample>,
}

impl Life {
    /// The sample that later ones are compared with.
    fn reference(&self) -> Option<&Sample> {
        self.samples.iter().skip(WARM_STEPS - 1).find(|sample| sample.quiet && sample.age >= WARM_TIME)
    }

    /// The last one that can be compared with it.
    fn last(&self) -> Option<&Sample> {
        self.samples.iter().rev().find(|sample| sample.quiet)
    }

    fn look(&self, pool: &Pool) -> Result<Sample> {
        let Footprint { memory, threads, descriptors, .. } = Footprint::of(self.process)?;
        let mut kept = 0;
        for dir in pool.kept()? {
            for entry in fs::read_dir(&dir)? {
                // One that is about to go may have gone.
                kept += entry?.metadata().map_or(0, |metadata| metadata.blocks() * 512);
            }
        }
        Ok(Sample { age: self.begun.elapsed(), quiet: false, memory: memory + kept, descriptors, threads })
    }

    /// A line of the table.
    fn row(&self, number: usize) -> String {
        let three = |of: fn(&Sample) -> u64| {
            let at = |sample: Option<&Sample>| sample.map_or("-".to_owned(), |sample| of(sample).to_string());
            let most = self.samples.iter().max_by_key(|sample| of(sample));
            format!("{:>5} {:>5} {:>5}", at(self.reference()), at(self.last()), at(most))
        };
        format!(
            "{number:>6} {:>8} {:<8} {:>5} {:>5} {:>5}   {}   {}   {}",
            self.process,
            self.began_by,
            self.samples.last().map_or(0, |sample| sample.age.as_secs()),
            self.samples.len(),
            self.samples.iter().filter(|sample| sample.quiet).count(),
            three(|sample| sample.memory / MIB),
            three(|sample| sample.descriptors as u64),
            three(|sample| sample.threads as u64),
        )
    }
}

/// All daemons of a run.
#[derive(Debug, Default)]
pub struct Lives(Vec<Life>);

impl Lives {
    /// Another one has begun.
    ///
    /// # Errors
    /// It does not run.
    pub fn begin(&mut self, pool: &Pool, began_by: &'static str) -> Result<()> {
        self.0.push(Life { process: pool.id()?, began_by, begun: Instant::now(), samples: Vec::new() });
        Ok(())
    }

    /// Whether this is the first daemon still, and it is not old enough to say anything about memory: of a run of so long.
    #[must_use]
    pub fn is_too_young(&self, run: Duration) -> bool {
        self.0.len() == 1 && self.0[0].begun.elapsed() < (run / 2).max(OLD + Duration::from_secs(1))
    }

    /// Whether there is a sample of the last daemon that can be compared with those of others.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.0.last().is_some_and(|life| life.reference().is_some())
    }

    /// Takes a sample after a step. Where it is `quiet`, what is about to go is waited for; and so is it before the sample that others are
    /// compared with.
    ///
    /// # Errors
    /// The daemon has gone.
    pub fn sample(&mut self, pool: &Pool, quiet: bool) -> Result<()> {
        let life = self.0.last_mut().context("no daemon")?;
        let begun = Instant::now();
        let mut sample = life.look(pool)?;
        while quiet && begun.elapsed() < PATIENCE && life.reference().is_some_and(|r| sample.has_more_open_than(r)) {
            thread::sleep(Duration::from_millis(100));
            sample = life.look(pool)?;
        }
        life.samples.push(Sample { quiet, ..sample });
        Ok(())
    }

    /// A line for each, under a heading.
    #[must_use]
    pub fn table(&self) -> Vec<String> {
        let heading = format!(
            "{:>6} {:>8} {:<8} {:>5} {:>5} {:>5}   {:<17}   {:<17}   {:<17}",
            "daemon", "process", "began by", "age s", "steps", "quiet", "own memory MiB", "descriptors", "threads"
        );
        let columns = format!("{:>44} {}", "", ["  first  last  most"; 3].join(" "));
        let rows = (1..).zip(&self.0).map(|(number, life)| life.row(number));
        [heading, columns].into_iter().chain(rows).collect()
    }

    /// # Errors
    /// One held more and more open.
    pub fn ensure_tidy(&self) -> Result<()> {
        let mut compared = 0;
        for life in &self.0 {
            let Some(reference) = life.reference() else { continue };
            for sample in life.samples.iter().filter(|sample| sample.quiet && sample.age > reference.age) {
                compared += 1;
                ensure!(
                    !sample.has_more_open_than(reference),
                    "daemon {}: {} after {} s, {} after {} s",
                    life.process,
                    reference.told(),
                    reference.age.as_secs(),
                    sample.told(),
                    sample.age.as_secs()
                );
            }
        }
        ensure!(compared > 0, "no quiet moments to compare");
        Ok(())
    }

    /// How many could be looked at.
    ///
    /// # Errors
    /// One took more and more memory.
    pub fn ensure_flat(&self) -> Result<u64> {
        let mut count = 0;
        for life in &self.0 {
            let (Some(reference), Some(last)) = (life.reference(), life.last()) else { continue };
            if last.age < OLD {
                continue;
            }
            count += 1;
            ensure!(
                !last.has_more_memory_than(reference),
                "daemon {}: {} KiB after {} s, {} KiB after {} s",
                life.process,
                reference.memory >> 10,
                reference.age.as_secs(),
                last.memory >> 10,
                last.age.as_secs()
            );
        }
        ensure!(count > 0, "no daemon became {} s old", OLD.as_secs());
        Ok(count)
    }

    /// What the first and the last daemon held, each when it was warm: of those that began from nothing, and of those that took over.
    /// These have five or six descriptors more (eventfds and in-flight regions), as many after one takeover as after twelve in a row.
    fn first_and_last(&self, took_over: bool) -> Option<(&Sample, &Sample)> {
        let of_kind = self.0.iter().filter(|life| (life.began_by == TAKEOVER) == took_over);
        let mut known = of_kind.filter_map(Life::reference);
        Some((known.next()?, known.next_back()?))
    }

    /// How many kinds of beginning there were enough daemons of.
    ///
    /// # Errors
    /// The last one held more than the first.
    pub fn ensure_even(&self) -> Result<usize> {
        let pairs: Vec<_> = [false, true].into_iter().filter_map(|kind| self.first_and_last(kind)).collect();
        for (first, last) in &pairs {
            ensure!(!last.is_more_than(first), "{} then, {} now", first.told(), last.told());
        }
        Ok(pairs.len())
    }
}
