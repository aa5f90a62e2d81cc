//! Records for tests of the store.

use crate::base::ids::{DiskId, JobId, VhdId, VmId};
use crate::placement::job::{JobKind, JobRecord, JobState};
use crate::placement::record::{Accept, DiskRecord, Layout, PoolRecord, RECORD_VERSION, VhdRecord, WhenFull};
use crate::placement::vm::VmRecord;

pub fn pool(uuid: uuid::Uuid) -> PoolRecord {
    let disk = |id: u8| DiskRecord {
        id: DiskId(id),
        uuid: uuid::Uuid::from_u128(100 + u128::from(id)),
        name: format!("d{id}"),
        slots: 1000,
        data_offset: 64 << 20,
        accept: Accept::Any,
        failure_domain: format!("sd{id}"),
    };
    PoolRecord::new(uuid, 1 << 20, (0..3).map(disk).collect())
}

pub fn job(id: u32) -> JobRecord {
    JobRecord {
        version: RECORD_VERSION,
        id: JobId(id),
        kind: JobKind::Span { from: Layout::Isolated { disk: DiskId(0), chosen: false } },
        vhds: vec![VhdId(id)],
        state: JobState::Running,
        max_rate: None,
        urgent: false,
        created: 0,
        ended: None,
        bytes_moved: 0,
        reason: None,
    }
}

pub fn vm(id: u32) -> VmRecord {
    VmRecord {
        version: RECORD_VERSION,
        id: VmId(id),
        uuid: uuid::Uuid::from_u128(200 + u128::from(id)),
        name: format!("vm{id}"),
        labels: [("env".to_owned(), "prod".to_owned())].into(),
        owner: None,
        limits: crate::placement::limits::IoLimits::default(),
        sharing: crate::placement::sharing::Sharing::default(),
        capacity: crate::placement::capacity::Capacity::default(),
        created: 5,
    }
}

pub fn vhd(id: u32) -> VhdRecord {
    VhdRecord {
        version: RECORD_VERSION,
        id: VhdId(id),
        name: format!("vhd{id}"),
        uuid: uuid::Uuid::from_u128(u128::from(id)),
        size: 1 << 30,
        layout: Layout::Isolated { disk: DiskId(0), chosen: false },
        replicas: 1,
        thick: false,
        checksums: false,
        read_only: false,
        block_size: 512,
        queues: 1,
        vm: None,
        socket_owner: None,
        socket_mode: 0o660,
        when_full: WhenFull::default(),
        expand: None,
        limits: crate::placement::limits::IoLimits::default(),
        sharing: crate::placement::sharing::Sharing::default(),
        capacity: crate::placement::capacity::Capacity::default(),
        created: 0,
        writeback: true,
    }
}
