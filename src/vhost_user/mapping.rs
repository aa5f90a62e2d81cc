//! Memory that a frontend shares with us besides its guest's: in-flight regions and dirty logs.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use vm_memory::{FileOffset, MmapRegion};

use super::error::MappingError;
use super::sys;
use crate::shared::guest_memory::Watch;

/// Maps `len` bytes of a file, and watches them: the frontend may make the file shorter at any time.
pub(super) fn map(file: File, offset: u64, len: u64) -> Result<(MmapRegion, Watch), MappingError> {
    let metadata = file.metadata().map_err(MappingError::Stat)?;
    let paging = sys::paging(&file).map_err(MappingError::Stat)?;
    if !metadata.is_file() || paging.remote {
        return Err(MappingError::NotMemory);
    }
    let len = usize::try_from(len).expect("limited by who asks");
    let watched = len.next_multiple_of(paging.page);
    // Of huge pages, part of one could not be unmapped.
    let mapped = if paging.huge { watched } else { len };
    let end = offset.checked_add(mapped as u64).filter(|end| *end <= metadata.size());
    end.ok_or(MappingError::BeyondFile { offset, needed: mapped as u64, file: metadata.size() })?;
    let mapping = MmapRegion::from_file(FileOffset::new(file, offset), mapped).map_err(MappingError::Map)?;
    let watch = Watch::new(mapping.as_ptr(), watched, paging.page);
    Ok((mapping, watch.map_err(MappingError::Watch)?))
}
