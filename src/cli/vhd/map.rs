//! The placement of a VHD as a picture: one character an extent, or a group of them.

use crate::cli::client::{Client, path_segment};
use crate::cli::output::Failure;
use crate::control::wire::VhdMapInfo;
use crate::control::wire::size::human_size;

/// Characters for disks, in the order of the map's disk list.
const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+=";

/// Cells of a row.
const ROW: usize = 64;

/// Rows at most; larger VHDs show several extents a cell.
const ROWS_MAX: usize = 32;

/// The whole map, which may take several requests.
pub fn fetch(client: &Client, vhd: &str) -> Result<VhdMapInfo, Failure> {
    let path = format!("/vhds/{}/map", path_segment(vhd));
    let mut map: VhdMapInfo = client.get(&path)?;
    while let Some(from) = map.next_extent {
        let more: VhdMapInfo = client.get(&format!("{path}?from={from}"))?;
        map.runs.extend(more.runs);
        map.disks = more.disks;
        map.next_extent = more.next_extent;
    }
    Ok(map)
}

/// The picture.
#[must_use]
pub fn picture(map: &VhdMapInfo) -> String {
    let extents = map.extents as usize;
    let per_cell = extents.div_ceil(ROW * ROWS_MAX).max(1);
    let mut cells = vec![Cell::Absent; extents.div_ceil(per_cell)];
    let mut counts = vec![0_u64; map.disks.len()];
    for run in &map.runs {
        let Some(disk) = map.disks.iter().position(|name| *name == run.disk) else { continue };
        counts[disk] += u64::from(run.count);
        let first = run.extent as usize;
        for extent in first..(first + run.count as usize).min(extents) {
            let cell = &mut cells[extent / per_cell];
            *cell = cell.with(disk);
        }
    }
    let mut text = legend(map, per_cell, &counts);
    for (row, cells) in cells.chunks(ROW).enumerate() {
        let line: String = cells.iter().map(|cell| cell.letter()).collect();
        let offset = (row * ROW * per_cell) as u64 * map.extent_bytes;
        text.push_str(&format!("{:>10}  {line}\n", human_size(offset)));
    }
    text
}

fn legend(map: &VhdMapInfo, per_cell: usize, counts: &[u64]) -> String {
    let cell = human_size(per_cell as u64 * map.extent_bytes);
    let mut text = format!("{}: one character is {cell}\n", map.name);
    for (disk, name) in map.disks.iter().enumerate() {
        let letter = Cell::On(disk).letter();
        text.push_str(&format!("  {letter}  {name}: {} extents\n", counts[disk]));
    }
    let mixed = if per_cell > 1 { "   *  several disks" } else { "" };
    text.push_str(&format!("  .  absent, reads as zeros{mixed}\n\n"));
    text
}

#[derive(Clone, Copy, PartialEq)]
enum Cell {
    Absent,
    On(usize),
    Mixed,
}

impl Cell {
    fn with(self, disk: usize) -> Cell {
        match self {
            Cell::Absent => Cell::On(disk),
            Cell::On(other) if other == disk => self,
            Cell::On(_) | Cell::Mixed => Cell::Mixed,
        }
    }

    fn letter(self) -> char {
        match self {
            Cell::Absent => '.',
            Cell::On(disk) => char::from(LETTERS[disk % LETTERS.len()]),
            Cell::Mixed => '*',
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::wire::MapRun;

    fn map(extents: u32, runs: &[(u32, u32, &str)]) -> VhdMapInfo {
        let run = |&(extent, count, disk): &(u32, u32, &str)| MapRun {
            extent,
            count,
            disk: disk.to_owned(),
            slot: 0,
            blocks_written: 1,
        };
        VhdMapInfo {
            name: "v".into(),
            extent_bytes: 1 << 20,
            extents,
            disks: vec!["d1".into(), "d2".into()],
            runs: runs.iter().map(run).collect(),
            next_extent: None,
        }
    }

    #[test]
    fn each_extent_has_a_character() {
        let text = picture(&map(6, &[(0, 2, "d1"), (3, 1, "d2")]));
        assert!(text.contains("one character is 1MiB"), "{text}");
        assert!(text.ends_with("        0B  AA.B..\n"), "{text}");
    }

    #[test]
    fn large_maps_are_scaled_down() {
        let text = picture(&map(64 * 32 * 2, &[(0, 1, "d1"), (1, 1, "d2"), (2, 2, "d2")]));
        assert!(text.contains("one character is 2MiB"), "{text}");
        assert!(text.contains("0B  *B..."), "{text}");
    }
}
