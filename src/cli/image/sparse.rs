//! Where a sparse file has data, and where a buffer is zero.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Bytes that are written or left out together: a multiple of every block size, and what a pool's block is by default.
pub const UNIT: usize = 32 << 10;

/// The next range of the file that may hold data, at or after `from`; `None` behind the last one. Filesystems that know no
/// holes report the whole file.
///
/// # Errors
/// What the kernel said.
pub fn next_data(file: &File, from: u64, len: u64) -> io::Result<Option<Range<u64>>> {
    if from >= len {
        return Ok(None);
    }
    let Some(start) = seek(file, from, libc::SEEK_DATA)? else { return Ok(None) };
    let end = seek(file, start, libc::SEEK_HOLE)?.unwrap_or(len);
    Ok((start < len).then(|| start..end.min(len)))
}

fn seek(file: &File, from: u64, whence: i32) -> io::Result<Option<u64>> {
    let offset = libc::off_t::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: plain system call on an open descriptor.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Compares the slice with itself shifted by one byte, which the compiler turns into a fast memcmp.
    bytes.first().is_none_or(|&first| first == 0 && bytes[1..] == bytes[..bytes.len() - 1])
}

/// The parts of `bytes` that are not zero, in whole units (the last one may be short).
pub fn nonzero_runs(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (index, unit) in bytes.chunks(UNIT).enumerate() {
        if is_zero(unit) {
            continue;
        }
        let start = index * UNIT;
        match runs.last_mut() {
            Some(run) if run.end == start => run.end += unit.len(),
            _ => runs.push(start..start + unit.len()),
        }
    }
    runs
}

/// Goes on with a checksum over `len` zero bytes, without touching them one by one.
#[must_use]
pub fn crc_of_zeros(crc: u32, len: u64) -> u32 {
    const PIECE: usize = 4096;
    let mut power = crc32c::crc32c(&[0; PIECE]);
    let mut result = crc;
    let (mut pieces, mut piece_len) = (len / PIECE as u64, PIECE);
    // Doubles the run of zeros for each bit of the number of pieces.
    while pieces > 0 {
        if pieces & 1 == 1 {
            result = crc32c::crc32c_combine(result, power, piece_len);
        }
        power = crc32c::crc32c_combine(power, power, piece_len);
        piece_len *= 2;
        pieces >>= 1;
    }
    let rest = usize::try_from(len % PIECE as u64).expect("less than a piece");
    crc32c::crc32c_append(result, &[0; PIECE][..rest])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn zeros_are_recognised() {
        assert!(is_zero(&[]) && is_zero(&[0]) && is_zero(&[0; 100]));
        assert!(!is_zero(&[1]) && !is_zero(&[0, 0, 1]) && !is_zero(&[7; 9]));
    }

    #[test]
    fn runs_are_whole_units() {
        let mut bytes = vec![0; 4 * UNIT + 512];
        bytes[UNIT + 3] = 1;
        bytes[2 * UNIT] = 1;
        bytes[4 * UNIT] = 1;
        assert_eq!(nonzero_runs(&bytes), vec![UNIT..3 * UNIT, 4 * UNIT..4 * UNIT + 512]);
    }

    #[test]
    fn the_checksum_of_zeros_is_right() {
        for len in [0_usize, 1, 511, 4096, 4097, 1 << 20, (1 << 20) + 513, 3 << 20] {
            let start = crc32c::crc32c(b"spanblk");
            assert_eq!(crc_of_zeros(start, len as u64), crc32c::crc32c_append(start, &vec![0; len]), "{len}");
        }
    }

    #[test]
    fn holes_are_skipped() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 << 20).unwrap();
        file.write_all_at(&[1; 4096], 8 << 20).unwrap();
        let range = next_data(&file, 0, 16 << 20).unwrap().unwrap();
        assert!(range.start <= 8 << 20 && range.end >= (8 << 20) + 4096);
        let mut at = 0;
        let mut found = 0;
        while let Some(range) = next_data(&file, at, 16 << 20).unwrap() {
            found += range.end - range.start;
            at = range.end;
        }
        assert!(found >= 4096);
        assert_eq!(next_data(&file, 16 << 20, 16 << 20).unwrap(), None);
    }
}
