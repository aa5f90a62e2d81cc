//! What guests have in flight, as QEMU keeps it for the daemon after the next.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

/// The in-flight region of one disk, as QEMU keeps it.
pub struct Region {
    file: File,
    len: u64,
}

/// Bytes of the part of a queue of QEMU's 128 entries.
const PART: u64 = (16_u64 + 128 * 16).next_multiple_of(64);

impl Region {
    fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.len)?];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Marks that are set.
    ///
    /// # Errors
    /// The region cannot be read.
    pub fn in_flight(&self) -> Result<usize> {
        let bytes = self.bytes()?;
        let parts = bytes.chunks_exact(usize::try_from(PART)?);
        Ok(parts.flat_map(|part| part[16..].chunks_exact(16)).filter(|entry| entry[0] == 1).count())
    }

    /// The used indices of its queues.
    ///
    /// # Errors
    /// The region cannot be read.
    pub fn used(&self) -> Result<Vec<[u8; 2]>> {
        Ok(self.bytes()?.chunks_exact(usize::try_from(PART)?).map(|part| [part[14], part[15]]).collect())
    }
}

/// Opens the regions that a process keeps.
///
/// # Errors
/// The process cannot be looked into.
pub fn regions_of(process: u32) -> Result<Vec<Region>> {
    let mut regions = Vec::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        let path = entry?.path();
        let Ok(target) = fs::read_link(&path) else { continue };
        if target.to_string_lossy().contains("spanblk-inflight") {
            let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            regions.push(Region { len: file.metadata()?.len(), file });
        }
    }
    Ok(regions)
}
