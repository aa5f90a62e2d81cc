//! What real guests did, from a file: comma-separated lines in the order of time, read one after the other.
//!
//! ```text
//! seconds,host,vm,vhd,size,used,iops,bytes_per_sec,read_share
//! 0,h1,web,web-root,21474836480,8589934592,120,1966080,0.7
//! 300,h1,web,web-root,21474836480,8589934592,300,4915200,0.7
//! ```
//!
//! A line says what a VHD is and does from then on. Seconds are those since the beginning; size and used are bytes; a VHD of size 0 is gone.
//! The first line is the header; empty lines and what begins with `#` are passed over.

use std::collections::BTreeMap;
use std::io::BufRead;

use super::host::{Arrival, Demand, Host};
use super::run::Trial;
use super::spec::Spec;
use super::strategy::Strategy;
use super::synthetic::{DAY_SECS, DEPTH, disks, target};
use super::tally::Tally;
use crate::base::ids::{VhdId, VmId};
use crate::base::rng::Rng;

/// The first line.
pub const HEADER: &str = "seconds,host,vm,vhd,size,used,iops,bytes_per_sec,read_share";

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be read.
    #[error("the trace cannot be read at line {line}")]
    Read {
        /// Number of the line.
        line: u64,
        /// Why.
        source: std::io::Error,
    },
    /// The first line is another one.
    #[error("the first line of a trace is '{HEADER}', not '{found}'")]
    Header {
        /// What is there, its end left out if it is long.
        found: String,
    },
    /// A line is not as it should be.
    #[error("line {line} of the trace: {what}")]
    Line {
        /// Its number.
        line: u64,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// Nothing is there, or nothing after the warm-up.
    #[error(
        "the trace ends after {secs:.0} seconds, and the first {warmup} days are not measured: give a smaller warmup="
    )]
    NothingMeasured {
        /// The last time in it.
        secs: f64,
        /// Days of the warm-up.
        warmup: u32,
    },
}

/// A line.
struct Row<'a> {
    secs: f64,
    host: &'a str,
    vm: &'a str,
    vhd: &'a str,
    size: u64,
    used: u64,
    demand: Demand,
}

/// A host of the trace.
struct Traced {
    trials: Vec<Trial>,
    /// The next step.
    next: u64,
    target_secs: f64,
    vms: BTreeMap<String, VmId>,
    vhds: BTreeMap<String, VhdId>,
    /// What each VHD is now.
    now: BTreeMap<VhdId, (Arrival, u32, Demand)>,
}

/// How many hosts are in a trace, and what comes of it, by strategy. `spec` says what hosts there are and how the policy is set.
///
/// # Errors
/// What is wrong with the trace, by line.
pub(super) fn run(input: impl BufRead, spec: &Spec, seed: u64) -> Result<(u32, BTreeMap<Strategy, Tally>), TraceError> {
    let mut hosts: BTreeMap<String, Traced> = BTreeMap::new();
    let (mut last, mut number) = (0.0, 0);
    for line in input.lines() {
        number += 1;
        let line = line.map_err(|source| TraceError::Read { line: number, source })?;
        if number == 1 {
            if line.trim() != HEADER {
                return Err(TraceError::Header { found: line.chars().take(80).collect() });
            }
            continue;
        }
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let row = parse(&line, last).map_err(|what| TraceError::Line { line: number, what })?;
        last = row.secs;
        let index = u32::try_from(hosts.len()).unwrap_or(u32::MAX);
        if !hosts.contains_key(row.host) {
            hosts.insert(row.host.to_owned(), Traced::new(spec, seed, index));
        }
        if let Some(host) = hosts.get_mut(row.host) {
            host.advance(row.secs, spec);
            host.take(&row, spec).map_err(|what| TraceError::Line { line: number, what })?;
        }
    }
    if last <= f64::from(spec.warmup) * DAY_SECS {
        return Err(TraceError::NothingMeasured { secs: last, warmup: spec.warmup });
    }
    let count = u32::try_from(hosts.len()).unwrap_or(u32::MAX);
    let mut tallies: BTreeMap<Strategy, Tally> = BTreeMap::new();
    for mut host in hosts.into_values() {
        host.advance(last, spec);
        for mut trial in host.trials {
            trial.tally.finish();
            tallies.entry(trial.strategy).or_default().merge(&trial.tally);
        }
    }
    Ok((count, tallies))
}

impl Traced {
    fn new(spec: &Spec, seed: u64, index: u32) -> Traced {
        let bought = disks(spec, index, &mut Rng::new(seed ^ u64::from(index)));
        let host = Host::new(&bought, spec, seed ^ (u64::from(index) << 40));
        let target_secs = target(&bought);
        let trial = |strategy: &Strategy| Trial::new(*strategy, host.clone(), spec, target_secs);
        let trials = Strategy::ALL.iter().map(trial).collect();
        let (vms, vhds, now) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Traced { trials, next: 0, target_secs, vms, vhds, now }
    }

    /// All steps before a time.
    fn advance(&mut self, secs: f64, spec: &Spec) {
        let step_secs = f64::from(spec.step) * 60.0;
        while self.next as f64 * step_secs < secs {
            let at = self.next as f64 * step_secs;
            for trial in &mut self.trials {
                for (arrival, used, demand) in self.now.values() {
                    trial.update(*arrival, *used, *demand, at);
                }
                trial.step(at);
            }
            self.next += 1;
        }
    }

    fn take(&mut self, row: &Row, spec: &Spec) -> Result<(), String> {
        let fresh = VmId(u32::try_from(self.vms.len()).unwrap_or(u32::MAX) + 1);
        let vm = *self.vms.entry(row.vm.to_owned()).or_insert(fresh);
        let fresh = VhdId(u32::try_from(self.vhds.len()).unwrap_or(u32::MAX) + 1);
        let vhd = *self.vhds.entry(row.vhd.to_owned()).or_insert(fresh);
        if row.size == 0 {
            self.now.remove(&vhd);
            self.trials.iter_mut().for_each(|trial| trial.leave(vhd));
            return Ok(());
        }
        let extents = |bytes: u64| {
            u32::try_from(bytes.div_ceil(spec.extent))
                .map_err(|_| format!("{bytes} bytes are more than a VHD can have"))
        };
        let arrival = Arrival { vhd, vm, extents: extents(row.size)?, replicas: 1, target_secs: self.target_secs };
        let used = extents(row.used)?;
        if self.now.get(&vhd).is_some_and(|(before, ..)| before.extents != arrival.extents) {
            return Err(format!("VHD '{}' has another size than before: give it another name", row.vhd));
        }
        self.now.insert(vhd, (arrival, used, row.demand));
        Ok(())
    }
}

fn parse(line: &str, last: f64) -> Result<Row<'_>, String> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let [secs, host, vm, vhd, size, used, iops, bytes, read_share] = fields[..] else {
        return Err(format!("{} fields instead of 9: {HEADER}", fields.len()));
    };
    let number = |name: &str, text: &str, most: f64| {
        let number = text.parse().ok().filter(|number: &f64| (0.0..=most).contains(number));
        number.ok_or_else(|| format!("{name} is '{text}': give a number from 0 to {most}"))
    };
    let whole = |name: &str, text: &str| {
        text.parse::<u64>().map_err(|_| format!("{name} is '{text}': give a whole number of bytes"))
    };
    let secs = number("seconds", secs, 366.0 * DAY_SECS)?;
    if secs < last {
        return Err(format!("seconds is {secs}, before the {last} of a line above: sort the lines by time"));
    }
    if let Some((name, _)) = [("host", host), ("vm", vm), ("vhd", vhd)].into_iter().find(|(_, text)| text.is_empty()) {
        return Err(format!("{name} is empty: give a name"));
    }
    let (size, used) = (whole("size", size)?, whole("used", used)?);
    if used > size {
        return Err(format!("used is {used}, more than the size {size}"));
    }
    let (iops, bytes) = (number("iops", iops, 1e9)?, number("bytes_per_sec", bytes, 1e12)?);
    let demand = Demand { iops, bytes, read_share: number("read_share", read_share, 1.0)?, depth: DEPTH };
    Ok(Row { secs, host, vm, vhd, size, used, demand })
}
