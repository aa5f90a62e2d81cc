use super::*;
use crate::store::checksums::PageChecksums;

const WORD: u32 = 0x0bad_cafe;

fn row(vhd: u32, page: u32, word: u32) -> StoreEdit {
    let mut checksums = PageChecksums::default();
    checksums.extent_mut(5)[7] = word;
    StoreEdit::Checksums { vhd: VhdId(vhd), page, checksums }
}

/// The rows of a store: VHD, page and the word of its block.
fn loaded(store: &OpenStore<SimDisk>) -> Vec<(u32, u32, u32)> {
    let mut rows = Vec::new();
    store.load_checksums(|key, checksums| rows.push((key.vhd.0, key.page, checksums.extent(5)[7]))).unwrap();
    rows
}

fn opened(disks: &[SimDisk], which: &[usize]) -> OpenStore<SimDisk> {
    open(some(disks, which), &options(disks.len(), false)).unwrap()
}

#[test]
fn a_row_is_there_until_it_is_replaced_or_nothing_is_known() {
    let disks = made(1);
    assert_eq!(loaded(&opened(&disks, &[0])), [], "no table is an empty one");
    edit_jobs(&disks, &[0], vec![row(1, 0, 1), row(1, 2, 2), row(2, 0, 3)]);
    assert_eq!(loaded(&opened(&disks, &[0])), [(1, 0, 1), (1, 2, 2), (2, 0, 3)]);
    edit_jobs(&disks, &[0], vec![row(1, 2, 4), row(2, 0, 0)]);
    assert_eq!(loaded(&opened(&disks, &[0])), [(1, 0, 1), (1, 2, 4)]);
}

#[test]
fn rows_go_with_their_vhd_and_with_its_end() {
    let disks = made(1);
    let shrink = StoreEdit::Shrink { vhd: VhdId(1), extents: 65, last: BlockMask::ALL };
    edit_jobs(&disks, &[0], vec![row(1, 0, 1), row(1, 1, 2), row(1, 2, 3), row(2, 0, 4), shrink]);
    assert_eq!(loaded(&opened(&disks, &[0])), [(1, 0, 1), (1, 1, 2), (2, 0, 4)]);
    edit_jobs(&disks, &[0], vec![StoreEdit::DeleteVhd(VhdId(1))]);
    assert_eq!(loaded(&opened(&disks, &[0])), [(2, 0, 4)]);
}

#[test]
fn rows_are_brought_to_the_disk_that_was_away() {
    let disks = made(3);
    edit_jobs(&disks, &[0, 1, 2], vec![row(1, 0, 1), row(1, 1, 2)]);
    edit_jobs(&disks, &[0, 1], vec![row(1, 0, 3), row(1, 1, 0), row(1, 2, 4)]);
    let (_, mended) = edit_jobs(&disks, &[1, 2], Vec::new());
    assert_eq!(mended[0].copied, Copied { put: 2, deleted: 1, damaged: 0 });
    assert_eq!(loaded(&opened(&disks, &[2, 1])), [(1, 0, 3), (1, 2, 4)]);
}

#[test]
fn a_damaged_row_is_read_from_another_member_or_not_at_all() {
    for count in [1, 2] {
        let disks = made(count);
        let all: Vec<usize> = (0..count).collect();
        edit_jobs(&disks, &all, vec![row(1, 0, WORD), row(1, 1, 1)]);
        let mut bytes = vec![0; PLACE.len as usize];
        disks[0].read_at(PLACE.offset, &mut bytes).unwrap();
        for (at, _) in bytes.windows(4).enumerate().filter(|(_, w)| *w == WORD.to_le_bytes()) {
            disks[0].poke(PLACE.offset + at as u64, &[0]);
        }
        let whole = [(1, 0, WORD), (1, 1, 1)];
        assert_eq!(loaded(&opened(&disks, &all)), whole[usize::from(count == 1)..]);
    }
}
