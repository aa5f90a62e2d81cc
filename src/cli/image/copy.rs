//! Moving bytes between a raw file and a VHD, several requests at a time.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::Context;
use indicatif::ProgressBar;

use super::failed;
use super::sparse::{UNIT, crc_of_zeros, next_data, nonzero_runs};
use crate::cli::blk_client::{BlkClient, BlkOp, BlkRequest};
use crate::cli::output::Failure;
use crate::control::wire::VhdMapInfo;

/// Bytes of one request; the buffers of the client are at least as long.
const CHUNK: u64 = 1 << 20;

/// Writes the first `len` bytes of `file` to the device, which reads as zeros so far. Returns the bytes written and the
/// checksum of the `len` bytes.
pub fn into_device(file: &File, len: u64, device: &mut BlkClient, bar: &ProgressBar) -> Result<(u64, u32), Failure> {
    let (mut at, mut crc, mut copied) = (0, 0, 0);
    while let Some(range) = next_data(file, at, len).context("cannot read the image")? {
        // Requests begin at unit borders; what lies between a border and the data is a hole, and zero.
        let start = (range.start / UNIT as u64 * UNIT as u64).max(at);
        crc = crc_of_zeros(crc, start - at);
        at = start;
        let end = range.end.next_multiple_of(UNIT as u64).min(len);
        while at < end {
            let step = CHUNK.min(end - at);
            let buffer = idle_buffer(device)?;
            let piece = usize::try_from(step).expect("a chunk fits usize");
            let data = &mut device.buffer_mut(buffer)[..piece];
            file.read_exact_at(data, at).context("cannot read the image")?;
            crc = crc32c::crc32c_append(crc, data);
            copied += write_nonzero(device, buffer, at, piece)?;
            at += step;
            bar.set_position(at);
        }
    }
    drain(device)?;
    Ok((copied, crc_of_zeros(crc, len - at)))
}

/// Writes what is not zero of the first `len` bytes of a buffer to byte `offset` of the device.
fn write_nonzero(device: &mut BlkClient, buffer: usize, offset: u64, len: usize) -> Result<u64, Failure> {
    let data = &mut device.buffer_mut(buffer)[..];
    // The end of the image need not be the end of a sector.
    let padded = len.next_multiple_of(4096).min(data.len());
    data[len..padded].fill(0);
    let runs = nonzero_runs(&data[..padded]);
    let mut copied = 0;
    let whole = runs.len() == 1 && runs[0].start == 0;
    for run in runs {
        let bytes = run.len();
        let source = if whole {
            buffer
        } else {
            let other = idle_buffer_besides(device, buffer)?;
            let part = device.buffer(buffer)[run.clone()].to_vec();
            device.buffer_mut(other)[..bytes].copy_from_slice(&part);
            other
        };
        let at = offset + run.start as u64;
        // An image whose size is no multiple of the block size ends within the last block of the device.
        let bytes = (bytes as u64).min(device.capacity() - at);
        let request = BlkRequest { op: BlkOp::Write, offset: at, len: bytes, buffer: source };
        device.submit(0, request).map_err(failed)?;
        device.kick(0).map_err(failed)?;
        copied += bytes;
    }
    Ok(copied)
}

fn idle_buffer(device: &mut BlkClient) -> Result<usize, Failure> {
    loop {
        if let Some(buffer) = device.idle_buffer() {
            return Ok(buffer);
        }
        take_completions(device)?;
    }
}

fn idle_buffer_besides(device: &mut BlkClient, taken: usize) -> Result<usize, Failure> {
    loop {
        if let Some(buffer) = device.idle_buffers().find(|&buffer| buffer != taken) {
            return Ok(buffer);
        }
        take_completions(device)?;
    }
}

fn take_completions(device: &mut BlkClient) -> Result<(), Failure> {
    device.wait(0).map_err(failed)?.into_iter().try_for_each(|done| done.result.map_err(failed))
}

fn drain(device: &mut BlkClient) -> Result<(), Failure> {
    while device.in_flight() > 0 {
        take_completions(device)?;
    }
    Ok(())
}

/// The byte ranges of a VHD that may hold data, ascending and apart.
#[must_use]
pub fn placed_ranges(map: &VhdMapInfo) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for run in &map.runs {
        let start = u64::from(run.extent) * map.extent_bytes;
        let end = start + u64::from(run.count) * map.extent_bytes;
        match ranges.last_mut() {
            Some(last) if last.end >= start => last.end = last.end.max(end),
            _ => ranges.push(start..end),
        }
    }
    ranges
}

/// Reads `ranges` of the device into `file`, which becomes as long as the device and has holes where it is zero. Returns the
/// bytes written and the checksum of the whole device.
pub fn from_device(
    device: &mut BlkClient,
    ranges: &[Range<u64>],
    file: &File,
    bar: &ProgressBar,
) -> Result<(u64, u32), Failure> {
    let capacity = device.capacity();
    file.set_len(capacity).context("cannot set the size of the image")?;
    let mut copied = 0;
    let crc = read_all(device, ranges, capacity, bar, |offset, data| {
        for run in nonzero_runs(data) {
            copied += run.len() as u64;
            let at = offset + run.start as u64;
            file.write_all_at(&data[run], at).context("cannot write the image")?;
        }
        Ok(())
    })?;
    file.sync_all().context("cannot sync the image")?;
    Ok((copied, crc))
}

/// The checksum of the first `len` bytes of the device.
pub fn checksum_of_device(device: &mut BlkClient, len: u64, bar: &ProgressBar) -> Result<u32, Failure> {
    // Reads whole sectors; the image may end within one.
    let tail = len % 512;
    let crc = read_all(device, std::slice::from_ref(&(0..len - tail)), len - tail, bar, |_, _| Ok(()))?;
    if tail == 0 {
        return Ok(crc);
    }
    let mut sector = [0; 512];
    device.read_at(len - tail, &mut sector).map_err(failed)?;
    Ok(crc32c::crc32c_append(crc, &sector[..usize::try_from(tail).expect("less than a sector")]))
}

/// The checksum of the first `len` bytes of a sparse file.
pub fn checksum_of_file(file: &File, len: u64, bar: &ProgressBar) -> Result<u32, Failure> {
    let mut buffer = vec![0; usize::try_from(CHUNK).expect("a chunk fits usize")];
    let (mut at, mut crc) = (0, 0);
    while let Some(range) = next_data(file, at, len).context("cannot read the image back")? {
        crc = crc_of_zeros(crc, range.start - at);
        at = range.start;
        while at < range.end {
            let step = CHUNK.min(range.end - at);
            let data = &mut buffer[..usize::try_from(step).expect("a chunk fits usize")];
            file.read_exact_at(data, at).context("cannot read the image back")?;
            crc = crc32c::crc32c_append(crc, data);
            at += step;
            bar.set_position(at);
        }
    }
    Ok(crc_of_zeros(crc, len - at))
}

/// Reads `ranges` in order, gives each piece to `sink`, and returns the checksum of the first `len` bytes; what is in no
/// range counts as zeros.
fn read_all(
    device: &mut BlkClient,
    ranges: &[Range<u64>],
    len: u64,
    bar: &ProgressBar,
    mut sink: impl FnMut(u64, &[u8]) -> anyhow::Result<()>,
) -> Result<u32, Failure> {
    let mut pieces = ranges
        .iter()
        .map(|range| range.start.min(len)..range.end.min(len))
        .flat_map(|range| {
            let end = range.end;
            range.step_by(usize::try_from(CHUNK).expect("a chunk fits usize")).map(move |at| at..end.min(at + CHUNK))
        })
        .peekable();
    // Submitted and not consumed, in order, with whether it has completed.
    let mut window: std::collections::VecDeque<(Range<u64>, usize, bool)> = std::collections::VecDeque::new();
    let (mut at, mut crc) = (0, 0);
    loop {
        while pieces.peek().is_some() {
            let used = |buffer: &usize| window.iter().any(|(_, taken, _)| taken == buffer);
            let Some(buffer) = device.idle_buffers().find(|buffer| !used(buffer)) else { break };
            let Some(piece) = pieces.next() else { break };
            let bytes = piece.end - piece.start;
            let request = BlkRequest { op: BlkOp::Read, offset: piece.start, len: bytes, buffer };
            device.submit(0, request).map_err(failed)?;
            window.push_back((piece, buffer, false));
        }
        device.kick(0).map_err(failed)?;
        if window.is_empty() {
            return Ok(crc_of_zeros(crc, len - at));
        }
        for done in device.wait(0).map_err(failed)? {
            done.result.map_err(failed)?;
            let entry = window.iter_mut().find(|(_, buffer, _)| *buffer == done.request.buffer);
            entry.expect("a completion of a read in the window").2 = true;
        }
        while let Some((piece, buffer, true)) = window.front().cloned() {
            let data = &device.buffer(buffer)[..usize::try_from(piece.end - piece.start).expect("a chunk fits usize")];
            sink(piece.start, data)?;
            crc = crc32c::crc32c_append(crc_of_zeros(crc, piece.start - at), data);
            at = piece.end;
            bar.set_position(at);
            window.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::wire::MapRun;

    #[test]
    fn ranges_of_the_map_are_joined() {
        let run = |extent, count, disk: &str| MapRun { extent, count, disk: disk.into(), slot: 0, blocks_written: 0 };
        let map = VhdMapInfo {
            name: "v".into(),
            extent_bytes: 1 << 20,
            extents: 10,
            disks: vec!["a".into(), "b".into()],
            runs: vec![run(0, 1, "a"), run(1, 2, "b"), run(5, 1, "a")],
            next_extent: None,
        };
        assert_eq!(placed_ranges(&map), vec![0..3 << 20, 5 << 20..6 << 20]);
    }
}
