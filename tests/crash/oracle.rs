//! What a guest may find, while it runs and after a power cut.
//!
//! What was done to a sector is a sequence of steps. A power cut may keep any of them from the last one that must be durable
//! on: the last step that had completed before a FLUSH began whose completion was told before the cut (or whose own
//! completion was told, with cache mode writethrough). Requests that overlap in time may take effect in either order, so a
//! step leaves one of several contents.

use std::collections::BTreeMap;
use std::ops::Range;

pub const SECTOR: usize = 512;

/// What a sector may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Zeros,
    /// The stamp of write number `.0`.
    Stamp(u64),
}

/// Names a step in its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepId(usize);

#[derive(Clone, Debug)]
struct Step {
    contents: Vec<Content>,
    /// Trace position at which the request was given to the device.
    begun: usize,
    /// Trace position at which the guest was told that it is done.
    done: Option<usize>,
    /// Whether the request is over: done, or failed (and then has happened or not, nobody knows).
    over: bool,
    /// Whether being told makes it durable.
    writethrough: bool,
}

impl Step {
    /// Whether a power cut at event `cut` may not take it away. `flush`: see [`History::last_flush`].
    fn is_durable(&self, flush: Option<usize>, cut: usize) -> bool {
        match self.done {
            Some(done) if self.writethrough && done <= cut => true,
            Some(done) => flush.is_some_and(|begun| done <= begun),
            None => false,
        }
    }
}

/// A FLUSH that succeeded.
#[derive(Clone, Copy, Debug)]
struct Flush {
    begun: usize,
    done: usize,
}

/// The history of one VHD. Positions count events, so that two of them are never the same.
#[derive(Clone, Debug, Default)]
pub struct History {
    sectors: BTreeMap<u64, Vec<Step>>,
    flushes: Vec<Flush>,
}

impl History {
    /// A request begins that leaves `content` in a sector.
    pub fn begin(&mut self, sector: u64, content: Content, at: usize, writethrough: bool) -> StepId {
        let steps = self.sectors.entry(sector).or_default();
        let mut contents = vec![content];
        contents.extend(steps.iter().filter(|s| !s.over).flat_map(|s| s.contents.iter().copied()));
        steps.push(Step { contents, begun: at, done: None, over: false, writethrough });
        StepId(steps.len() - 1)
    }

    /// The guest was told that the request is done.
    pub fn done(&mut self, sector: u64, step: StepId, at: usize) {
        let step = &mut self.sectors.get_mut(&sector).expect("it was begun")[step.0];
        step.done = Some(at);
        step.over = true;
    }

    /// The guest was told that the request has failed.
    pub fn failed(&mut self, sector: u64, step: StepId) {
        self.sectors.get_mut(&sector).expect("it was begun")[step.0].over = true;
    }

    /// The guest was told that a FLUSH that began at `begun` is done.
    pub fn flushed(&mut self, begun: usize, at: usize) {
        self.flushes.push(Flush { begun, done: at });
    }

    /// A sector was found like this at the beginning; replicas that were cut off from each other may differ.
    pub fn found(&mut self, sector: u64, contents: Vec<Content>) {
        let step = Step { contents, begun: 0, done: Some(0), over: true, writethrough: true };
        self.sectors.insert(sector, vec![step]);
    }

    /// What was written to the sector was given up with the disk that had it.
    pub fn lose(&mut self, sector: u64, at: usize) {
        let step = self.begin(sector, Content::Zeros, at, false);
        self.done(sector, step, at);
    }

    /// The FLUSHes that succeeded.
    pub fn flushes(&self) -> usize {
        self.flushes.len()
    }

    /// The VHD shrinks, so that sectors from `first` on are gone, and new ones if it grows again. Nobody uses it meanwhile.
    pub fn begin_shrink(&mut self, first: u64, at: usize) {
        for steps in self.sectors.range_mut(first..).map(|(_, steps)| steps) {
            steps.push(Step { contents: vec![Content::Zeros], begun: at, done: None, over: true, writethrough: true });
        }
    }

    /// The shrink that was asked for at `asked_at` is done, or was refused and has not happened.
    pub fn end_shrink(&mut self, asked_at: usize, done: Option<usize>) {
        for step in self.sectors.values_mut().flatten().filter(|step| step.begun == asked_at) {
            step.done = done;
            if done.is_none() {
                step.contents.clear();
            }
        }
    }

    /// Whether a request is in progress on the sector.
    pub fn is_busy(&self, sector: u64) -> bool {
        self.sectors.get(&sector).is_some_and(|steps| steps.iter().any(|s| !s.over))
    }

    /// What a read begun at `begun` and told now may return.
    pub fn check_read(&self, sector: u64, found: Content, begun: usize) -> Result<(), String> {
        let steps = self.steps(sector);
        let first = steps.iter().rposition(|s| s.done.is_some_and(|done| done <= begun));
        check(sector, found, steps, first, usize::MAX, "read")
    }

    /// Checks what was found in a sector after a power cut at event `cut`. `shrinks`: see `Sizes::shrinks_around`.
    pub fn check_cut(&self, sector: u64, found: Content, cut: usize, shrinks: &Range<usize>) -> Result<(), String> {
        let (steps, flush) = (self.steps(sector), self.last_flush(cut));
        let is_durable = |step: &Step| step.begun == shrinks.start || step.is_durable(flush, cut);
        // As if nothing had been asked for from a shrink on that is not in the table.
        let until = cut.min(shrinks.end.saturating_sub(1));
        check(sector, found, steps, steps.iter().rposition(is_durable), until, "power cut")
    }

    /// Whether a power cut at event `cut` may not take away everything that was written to the sectors since the beginning.
    pub fn has_news(&self, mut sectors: Range<u64>, cut: usize) -> bool {
        let flush = self.last_flush(cut);
        let is_data = |step: &Step| step.contents.iter().all(|content| *content != Content::Zeros);
        let is_new = |step: &Step| step.begun > 0 && is_data(step) && step.is_durable(flush, cut);
        sectors.any(|sector| self.steps(sector).iter().any(is_new))
    }

    /// When the last FLUSH began that was told before event `cut`.
    fn last_flush(&self, cut: usize) -> Option<usize> {
        self.flushes.iter().filter(|f| f.done <= cut).map(|f| f.begun).max()
    }

    fn steps(&self, sector: u64) -> &[Step] {
        self.sectors.get(&sector).map_or(&[], Vec::as_slice)
    }
}

fn check(
    sector: u64,
    found: Content,
    steps: &[Step],
    first: Option<usize>,
    until: usize,
    what: &str,
) -> Result<(), String> {
    let possible = steps.iter().skip(first.unwrap_or(0)).filter(|s| s.begun <= until);
    let mut allowed: Vec<Content> = possible.flat_map(|s| s.contents.iter().copied()).collect();
    if first.is_none() {
        allowed.push(Content::Zeros);
    }
    if allowed.contains(&found) {
        return Ok(());
    }
    Err(format!(
        "{what}: sector {sector} has {found:?}; it must have one of {allowed:?} (until {until}, steps {steps:?})"
    ))
}

/// The 512 bytes of write `number` in a sector of a VHD: any of them tells where it belongs.
pub fn stamp(vhd: u32, sector: u64, number: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    for (i, chunk) in bytes.chunks_exact_mut(32).enumerate() {
        chunk[..8].copy_from_slice(&number.to_le_bytes());
        chunk[8..16].copy_from_slice(&sector.to_le_bytes());
        chunk[16..20].copy_from_slice(&vhd.to_le_bytes());
        chunk[20..24].copy_from_slice(&u32::try_from(i).expect("16 chunks").to_le_bytes());
        chunk[24..32].copy_from_slice(&(number ^ 0x5a5a_0f0f_3c3c_6969).to_le_bytes());
    }
    bytes
}

/// Reads a sector back. An error if the bytes were never written there.
pub fn identify(vhd: u32, sector: u64, bytes: &[u8]) -> Result<Content, String> {
    if bytes == [0; SECTOR] {
        return Ok(Content::Zeros);
    }
    let number = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    if bytes == stamp(vhd, sector, number) {
        return Ok(Content::Stamp(number));
    }
    let of_sector = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
    let of_vhd = u32::from_le_bytes(bytes[16..20].try_into().expect("four bytes"));
    Err(format!(
        "VHD {vhd} sector {sector} has foreign bytes, by their look of VHD {of_vhd} sector {of_sector} write {number}: \
         {:02x?}",
        &bytes[..32]
    ))
}
