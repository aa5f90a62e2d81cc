//! In-flight regions as frontends ask for them and give them: made, checked and mapped. What they say is for `reactor::ring`.

use std::fs::File;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserInflight;

use super::error::InflightError;
use super::{mapping, sys};
use crate::base::limits::QUEUE_SIZE_MAX;
use crate::shared::inflight::{InflightRegion, region_len};

/// The description of a region, for a device of `queues` queues.
fn check(asked: &VhostUserInflight, queues: u16) -> Result<u64, InflightError> {
    let VhostUserInflight { num_queues, queue_size, .. } = *asked;
    if num_queues == 0 || num_queues > queues {
        return Err(InflightError::Queues { asked: num_queues, queues });
    }
    if queue_size == 0 || queue_size > QUEUE_SIZE_MAX {
        return Err(InflightError::QueueSize(queue_size));
    }
    Ok(region_len(num_queues, queue_size) as u64)
}

/// Makes a region that nobody has used. It can neither grow nor shrink.
pub(super) fn create(asked: &VhostUserInflight, queues: u16) -> Result<(VhostUserInflight, File), InflightError> {
    let len = check(asked, queues)?;
    let file = sys::sealed_memory(c"spanblk-inflight", len).map_err(InflightError::Create)?;
    Ok((VhostUserInflight { mmap_size: len, mmap_offset: 0, ..*asked }, file))
}

/// Maps a region that a frontend gives.
pub(super) fn map(given: &VhostUserInflight, file: File, queues: u16) -> Result<Arc<InflightRegion>, InflightError> {
    let needed = check(given, queues)?;
    let VhostUserInflight { mmap_size: size, mmap_offset: offset, num_queues, queue_size } = *given;
    if size < needed {
        return Err(InflightError::TooShort { size, needed });
    }
    // What is behind what we need is not mapped: a frontend may round up.
    let (mapping, watch) = mapping::map(file, offset, needed)?;
    Ok(Arc::new(InflightRegion::new(mapping, watch, num_queues, queue_size)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost_user::error::MappingError;

    fn asked(num_queues: u16, queue_size: u16) -> VhostUserInflight {
        VhostUserInflight::new(0, 0, num_queues, queue_size)
    }

    #[test]
    fn regions_are_made_for_every_size_that_a_ring_may_have() {
        for (queues, size) in [(1, 1), (1, 128), (4, 256), (64, 1024)] {
            let (made, file) = create(&asked(queues, size), 64).unwrap();
            assert_eq!(file.metadata().unwrap().len(), made.mmap_size);
            assert!(made.mmap_size >= u64::from(queues) * (16 + 16 * u64::from(size)));
            assert!(file.set_len(made.mmap_size - 1).is_err(), "sealed");
            let region = map(&made, file, 64).unwrap();
            let last = region.queue(queues - 1).unwrap();
            assert!(region.queue(queues).is_none());
            assert_eq!((last.version(), last.capacity()), (0, size));
            last.set_counter(size - 1, u64::MAX);
            assert_eq!(last.counter(size - 1), u64::MAX);
        }
    }

    #[test]
    fn a_region_in_huge_pages_is_unmapped_again() {
        let Some(file) = sys::tests::huge_pages("spanblk-test-inflight", 1) else { return };
        let len = file.metadata().unwrap().len();
        let given = VhostUserInflight { mmap_size: len, ..asked(1, 128) };
        let region = map(&given, file.try_clone().unwrap(), 1).unwrap();
        assert_eq!(sys::tests::mappings_of("spanblk-test-inflight"), 1);
        drop(region);
        assert_eq!(sys::tests::mappings_of("spanblk-test-inflight"), 0);
        file.set_len(0).unwrap();
        assert!(matches!(map(&given, file, 1), Err(InflightError::Mapping(MappingError::BeyondFile { .. }))));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |asked: VhostUserInflight| create(&asked, 4).err().unwrap();
        assert!(matches!(refused(asked(5, 128)), InflightError::Queues { asked: 5, queues: 4 }));
        assert!(matches!(refused(asked(0, 128)), InflightError::Queues { .. }));
        assert!(matches!(refused(asked(1, 0)), InflightError::QueueSize(0)));
        assert!(matches!(refused(asked(1, 1025)), InflightError::QueueSize(1025)));

        let (good, file) = create(&asked(2, 128), 4).unwrap();
        let given = |change: &dyn Fn(&mut VhostUserInflight)| {
            let mut given = good;
            change(&mut given);
            map(&given, file.try_clone().unwrap(), 4).err()
        };
        assert!(given(&|_| {}).is_none());
        assert!(given(&|g| g.mmap_size += 12345).is_none(), "a frontend may round up");
        assert!(matches!(given(&|g| g.mmap_size -= 1), Some(InflightError::TooShort { .. })));
        assert!(matches!(given(&|g| g.num_queues = 3), Some(InflightError::TooShort { .. })));
        assert!(matches!(given(&|g| g.queue_size = 256), Some(InflightError::TooShort { .. })));
        assert!(matches!(
            given(&|g| g.mmap_offset = 4096),
            Some(InflightError::Mapping(MappingError::BeyondFile { .. }))
        ));
        assert!(matches!(
            given(&|g| g.mmap_offset = u64::MAX),
            Some(InflightError::Mapping(MappingError::BeyondFile { .. }))
        ));
        let longer = tempfile::tempfile().unwrap();
        longer.set_len(1 << 20).unwrap();
        let misaligned = VhostUserInflight { mmap_offset: 100, ..good };
        assert!(matches!(map(&misaligned, longer, 4), Err(InflightError::Mapping(MappingError::Map(_)))));
        let null = File::open("/dev/null").unwrap();
        assert!(matches!(map(&good, null, 4), Err(InflightError::Mapping(MappingError::NotMemory))));
    }
}
