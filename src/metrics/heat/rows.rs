//! How the heat of consecutive extents is stored, roughly: powers of two.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version, 1 |
//! | 4 | number of the run of extents, little-endian |
//! | ... | entries |
//! | 4 | CRC-32C of everything before, little-endian |
//!
//! An entry is a byte: in its five lowest bits how hot (0: not at all; `n`: 2 to the power `n - 1`), in the others how many extents, less
//! one; 7 there says that the next two bytes, little-endian, are the number less one. Extents that are not hot at the end are left out.

/// Extents of a row.
pub const ROW_EXTENTS: usize = 16_384;

const VERSION: u8 = 1;
const HEAD_LEN: usize = 5;
const CRC_LEN: usize = 4;
const LEVEL_BITS: u32 = 5;
const LEVEL_MAX: u8 = 20;
const LONG: u8 = 7;

/// Why bytes are no row of heat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeatError {
    /// The checksum does not match, or entries are not what they should be.
    #[error("the heat is damaged: the disk changed it")]
    Damaged,
    /// Written by another version.
    #[error("the heat has format version {0}, this program knows version {VERSION}")]
    Version(u8),
    /// It belongs elsewhere.
    #[error("the heat is of other extents than its key says")]
    Misplaced,
}

fn level(heat: u32) -> u8 {
    u8::try_from(u32::BITS - heat.leading_zeros()).unwrap_or(LEVEL_MAX).min(LEVEL_MAX)
}

fn heat_of(level: u8) -> u32 {
    if level == 0 { 0 } else { 1 << (level - 1) }
}

/// The bytes of a row, of the heat of each of its extents.
#[must_use]
pub fn encode(row: u32, heats: impl Iterator<Item = u32>) -> Vec<u8> {
    let levels: Vec<u8> = heats.take(ROW_EXTENTS).map(level).collect();
    let hot = levels.iter().rposition(|level| *level > 0).map_or(0, |last| last + 1);
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&row.to_le_bytes());
    for run in levels[..hot].chunk_by(|a, b| a == b) {
        let less_one = u16::try_from(run.len() - 1).expect("a row has fewer extents");
        match u8::try_from(less_one) {
            Ok(short) if short < LONG => bytes.push(short << LEVEL_BITS | run[0]),
            _ => {
                bytes.push(LONG << LEVEL_BITS | run[0]);
                bytes.extend_from_slice(&less_one.to_le_bytes());
            }
        }
    }
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// Whether a row says that none of its extents is hot.
#[must_use]
pub fn is_cold(bytes: &[u8]) -> bool {
    bytes.len() <= HEAD_LEN + CRC_LEN
}

/// Reads a row: the heat of its extents, those at the end being left out if they are not hot.
///
/// # Errors
/// It is none, or of other extents.
pub fn decode(row: u32, bytes: &[u8]) -> Result<Vec<u32>, HeatError> {
    let (body, crc) = bytes.split_last_chunk::<CRC_LEN>().ok_or(HeatError::Damaged)?;
    if crc32c::crc32c(body).to_le_bytes() != *crc {
        return Err(HeatError::Damaged);
    }
    let (head, mut rest) = body.split_first_chunk::<HEAD_LEN>().ok_or(HeatError::Damaged)?;
    if head[0] != VERSION {
        return Err(HeatError::Version(head[0]));
    }
    if head[1..] != row.to_le_bytes() {
        return Err(HeatError::Misplaced);
    }
    let mut heats = Vec::new();
    while let Some((&entry, more)) = rest.split_first() {
        rest = more;
        let (level, short) = (entry & ((1 << LEVEL_BITS) - 1), entry >> LEVEL_BITS);
        let mut count = usize::from(short) + 1;
        if short == LONG {
            let (long, more) = rest.split_first_chunk::<2>().ok_or(HeatError::Damaged)?;
            (count, rest) = (usize::from(u16::from_le_bytes(*long)) + 1, more);
        }
        if level > LEVEL_MAX || count > ROW_EXTENTS - heats.len() {
            return Err(HeatError::Damaged);
        }
        heats.extend(std::iter::repeat_n(heat_of(level), count));
    }
    Ok(heats)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    #[test]
    fn heat_is_kept_as_powers_of_two() {
        let seed = 5;
        let mut rng = Rng::new(seed);
        for round in 0..200 {
            let mut heats = vec![0; 1 + rng.index(ROW_EXTENTS)];
            let mut at = 0;
            while at < heats.len() {
                let (longest, hottest) = (1 << rng.below(12), 1 << rng.below(21));
                let end = (at + 1 + rng.index(longest)).min(heats.len());
                heats[at..end].fill(u32::try_from(rng.below(hottest)).unwrap());
                at = end;
            }
            let bytes = encode(round, heats.iter().copied());
            assert_eq!(is_cold(&bytes), heats.iter().all(|heat| *heat == 0));
            assert!(bytes.len() <= ROW_EXTENTS + 9);
            let read = decode(round, &bytes).unwrap();
            for (at, heat) in heats.iter().enumerate() {
                let kept = read.get(at).copied().unwrap_or(0);
                assert!(kept <= *heat && *heat <= kept * 2, "seed {seed}: {heat} became {kept}");
            }
            assert_eq!(decode(round + 1, &bytes), Err(HeatError::Misplaced));
            let mut damaged = bytes;
            let at = rng.index(damaged.len());
            damaged[at] ^= 1;
            assert_eq!(decode(round, &damaged), Err(HeatError::Damaged));
        }
        assert!(is_cold(&encode(0, std::iter::repeat_n(0, 100))));
    }

    #[test]
    fn hostile_bytes_are_refused_or_read() {
        let seed = 23;
        let mut rng = Rng::new(seed);
        let mut accepted = 0;
        for _ in 0..20_000 {
            let mut bytes = vec![0; rng.index(30)];
            rng.fill(&mut bytes);
            bytes.splice(0..0, [VERSION, 0, 0, 0, 0]);
            let crc = crc32c::crc32c(&bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            if let Ok(heats) = decode(0, &bytes) {
                accepted += 1;
                assert!(heats.len() <= ROW_EXTENTS);
                let again = decode(0, &encode(0, heats.iter().copied())).unwrap();
                assert_eq!(again, heats[..again.len()]);
            }
        }
        assert!(accepted > 100, "seed {seed}: {accepted} were accepted");
    }
}
