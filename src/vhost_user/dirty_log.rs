//! Dirty logs as frontends give them: checked and mapped.

use std::fs::File;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserLog;

use super::error::LogError;
use super::mapping;
use crate::base::limits::DIRTY_LOG_MAX;
use crate::shared::dirty_log::DirtyLog;

/// Maps a log. Whether it is long enough for guest memory shows when something is written: memory may change after this.
pub(super) fn map(given: &VhostUserLog, file: File) -> Result<Arc<DirtyLog>, LogError> {
    let VhostUserLog { mmap_size: size, mmap_offset: offset } = *given;
    if size == 0 || size > DIRTY_LOG_MAX {
        return Err(LogError::Size(size));
    }
    let (mapping, watch) = mapping::map(file, offset, size)?;
    Ok(Arc::new(DirtyLog::new(mapping, watch, size)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost_user::error::MappingError;

    fn given(size: u64, offset: u64, file_len: u64) -> Result<Arc<DirtyLog>, LogError> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(file_len).unwrap();
        map(&VhostUserLog::new(size, offset), file)
    }

    #[test]
    fn logs_are_as_long_as_they_say_and_no_longer_than_they_may_be() {
        assert!(given(512, 0, 512).unwrap().mark(512 * 8 * 4096 - 1, 1));
        assert!(!given(512, 0, 4096).unwrap().mark(512 * 8 * 4096, 1));
        assert!(given(512, 4096, 8192).is_ok());
        let refused = |size, offset, len| given(size, offset, len).err().unwrap();
        assert!(matches!(refused(0, 0, 512), LogError::Size(0)));
        assert!(matches!(refused(DIRTY_LOG_MAX + 1, 0, DIRTY_LOG_MAX + 1), LogError::Size(_)));
        assert!(matches!(refused(u64::MAX, 0, 512), LogError::Size(u64::MAX)));
        assert!(matches!(refused(513, 0, 512), LogError::Mapping(MappingError::BeyondFile { .. })));
        assert!(matches!(refused(512, 4096, 4096), LogError::Mapping(MappingError::BeyondFile { .. })));
        assert!(matches!(refused(512, u64::MAX, 4096), LogError::Mapping(MappingError::BeyondFile { .. })));
        assert!(matches!(refused(512, 100, 4096), LogError::Mapping(MappingError::Map(_))));
        let null = File::open("/dev/null").unwrap();
        assert!(matches!(map(&VhostUserLog::new(512, 0), null), Err(LogError::Mapping(MappingError::NotMemory))));
    }
}
