//! VHDs.

use crate::base::units::ExtentIndex;
use crate::control::wire::{
    Attachment, CapacityInfo, DiskUse, ErrorInfo, ExpandsBy, Layout, MapRun, VhdCreate, VhdInfo, VhdMapInfo, VhdUpdate,
    WhenFull,
};
use crate::owner::command::{self, CapacityUse, CreateVhd, GrowthSaid, LayoutRequest, SetCapacity, SetVhd};
use crate::placement::capacity::Capacity;
use crate::placement::record::{self, PoolRecord, SocketOwner};
use crate::placement::{Replica, ReplicaState};

use super::{
    Gone, invalid, io_limits, limits_change, limits_info, sharing_change, sharing_in_effect, sharing_info,
    sharing_record, vhd_health,
};

/// Virtqueues of a VHD whose creator does not say. Fixed, so that the same command means the same on every host.
const QUEUES_DEFAULT: u16 = 4;

/// Permission bits of the socket of a VHD whose creator does not say.
const SOCKET_MODE_DEFAULT: u32 = 0o660;

/// Runs in one answer about a map, give or take the replicas of one extent.
const MAP_RUNS_MAX: usize = 20_000;

/// The command for a new VHD. UUID and time of creation are arguments.
///
/// # Errors
/// The request contradicts itself, or a field cannot be read.
pub fn create_vhd(request: VhdCreate, uuid: uuid::Uuid, created: u64) -> Result<CreateVhd, ErrorInfo> {
    Ok(CreateVhd {
        uuid,
        created,
        size: request.size_bytes,
        layout: layout_request(request.layout, request.disks, request.width)?,
        hint: None,
        replicas: request.replicas.unwrap_or(1),
        thick: request.thick,
        checksums: request.checksums,
        read_only: request.read_only,
        block_size: request.block_bytes.unwrap_or(512),
        queues: request.queues.unwrap_or(QUEUES_DEFAULT),
        vm: request.vm,
        socket_owner: request.socket_owner.as_deref().map(socket_owner).transpose()?,
        socket_mode: request.socket_mode.as_deref().map_or(Ok(SOCKET_MODE_DEFAULT), socket_mode)?,
        when_full: when_full_record(request.when_full),
        expand: request.expand.map(Into::into),
        limits: io_limits(request.limits),
        sharing: sharing_record(request.sharing),
        capacity: Capacity { quota: request.quota_bytes, reservation: request.reservation_bytes },
        name: request.name,
    })
}

fn layout_request(
    layout: Option<Layout>,
    disks: Option<Vec<String>>,
    width: Option<u8>,
) -> Result<LayoutRequest, ErrorInfo> {
    let Some(layout) = layout else {
        return match (disks, width) {
            (None, None) => Ok(LayoutRequest::Any),
            _ => Err(invalid("with 'disks' or 'width' give 'layout', too: isolated or spanned")),
        };
    };
    match (layout, disks, width) {
        (Layout::Isolated, _, Some(_)) => {
            Err(invalid("'width' is for spanned VHDs: an isolated one is on one disk by definition"))
        }
        (Layout::Isolated, None, None) => Ok(LayoutRequest::Isolated { disk: None }),
        (Layout::Isolated, Some(disks), None) => match <[String; 1]>::try_from(disks) {
            Ok([disk]) => Ok(LayoutRequest::Isolated { disk: Some(disk) }),
            Err(disks) => Err(invalid(format!("'disks' of an isolated VHD names one disk, not {}", disks.len()))),
        },
        (Layout::Spanned, disks, width) => Ok(LayoutRequest::Spanned { disks, width: width.map(u32::from) }),
    }
}

fn socket_owner(text: &str) -> Result<SocketOwner, ErrorInfo> {
    match text.split_once(':') {
        Some((user, group)) if !user.is_empty() && !group.is_empty() && !group.contains(':') => {
            Ok(SocketOwner { user: user.to_owned(), group: group.to_owned() })
        }
        _ => Err(invalid(format!("'socket_owner' is USER:GROUP, such as libvirt-qemu:kvm, not '{text}'"))),
    }
}

fn socket_mode(text: &str) -> Result<u32, ErrorInfo> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let legal = !digits.is_empty() && digits.len() <= 4 && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let mode = legal.then(|| u32::from_str_radix(digits, 8).ok()).flatten();
    mode.ok_or_else(|| invalid(format!("'socket_mode' is octal permission bits, such as 0660, not '{text}'")))
}

fn when_full_record(when_full: WhenFull) -> record::WhenFull {
    match when_full {
        WhenFull::Queue { wait_secs } => record::WhenFull::Queue { secs: wait_secs },
        WhenFull::Error {} => record::WhenFull::Error,
    }
}

/// The command for new settings of `vhd`.
///
/// # Errors
/// A field cannot be read.
pub fn set_vhd(vhd: String, update: VhdUpdate) -> Result<SetVhd, ErrorInfo> {
    let owner = match update.socket_owner {
        None => None,
        Some(None) => Some(None),
        Some(Some(text)) => Some(Some(socket_owner(&text)?)),
    };
    Ok(SetVhd {
        vhd,
        vm: update.vm,
        socket_owner: owner,
        socket_mode: update.socket_mode.as_deref().map(socket_mode).transpose()?,
        when_full: update.when_full.map(when_full_record),
        queues: update.queues,
        expand: update.expand.map(|expand| expand.map(Into::into)),
        limits: limits_change(update.limits),
        sharing: sharing_change(update.sharing),
        capacity: SetCapacity { quota: update.quota_bytes, reservation: update.reservation_bytes },
    })
}

/// Quota and reservation as the API shows them.
#[must_use]
pub fn capacity_info(limits: Capacity, used: CapacityUse) -> CapacityInfo {
    CapacityInfo {
        quota_bytes: limits.quota,
        reservation_bytes: limits.reservation,
        charged_bytes: used.charged,
        held_bytes: used.held,
        short_bytes: used.short,
    }
}

/// The layout as the API shows it.
#[must_use]
pub fn layout_of(layout: &record::Layout) -> Layout {
    match layout {
        record::Layout::Isolated { .. } => Layout::Isolated,
        record::Layout::Spanned { .. } => Layout::Spanned,
    }
}

/// The socket of a VHD.
#[derive(Clone, Debug)]
pub struct SocketInfo {
    /// Its path.
    pub path: String,
    /// Why it is not there; `None` if it is.
    pub problem: Option<String>,
}

/// A VHD as the API shows it. Reads all of its map: not for threads that must not be late.
#[must_use]
pub fn vhd_info(vhd: &command::VhdInfo, pool: &PoolRecord, gone: Gone, socket: SocketInfo) -> VhdInfo {
    let record = &vhd.record;
    let (health, problem) = vhd_health(vhd, pool, gone);
    let chosen = match record.layout {
        record::Layout::Isolated { chosen, .. } | record::Layout::Spanned { chosen, .. } => chosen,
    };
    let block_bytes = vhd.state.settings.geometry.block_size();
    VhdInfo {
        name: record.name.clone(),
        uuid: record.uuid,
        size_bytes: record.size,
        block_bytes: record.block_size,
        layout: layout_of(&record.layout),
        disks: record.layout.disks().iter().map(|id| pool.disk_name(id)).collect(),
        disks_chosen: chosen,
        replicas: record.replicas,
        degraded_extents: degraded(vhd, gone),
        health,
        problem,
        thick: record.thick,
        checksums: record.checksums,
        ready: vhd.ready,
        read_only: record.read_only,
        queues: record.queues,
        vm: record.vm.clone(),
        socket: socket.path,
        socket_problem: socket.problem,
        socket_owner: record.socket_owner.as_ref().map(|owner| format!("{}:{}", owner.user, owner.group)),
        socket_mode: format!("{:04o}", record.socket_mode),
        when_full: match record.when_full {
            record::WhenFull::Queue { secs } => WhenFull::Queue { wait_secs: secs },
            record::WhenFull::Error => WhenFull::Error {},
        },
        expand: record.expand.map(Into::into),
        expands: vhd.growth.grows,
        expands_by: match vhd.growth.said_by {
            GrowthSaid::Vhd => ExpandsBy::Vhd,
            GrowthSaid::Pool => ExpandsBy::Pool,
            GrowthSaid::Policy => ExpandsBy::Policy,
            GrowthSaid::Layout => ExpandsBy::Layout,
        },
        limits: limits_info(record.limits),
        sharing: sharing_info(record.sharing),
        sharing_in_effect: sharing_in_effect(vhd.sharing),
        writeback: record.writeback,
        attached: vhd
            .attached
            .map(|pid| Attachment { pid: (pid != 0).then_some(pid), waiting: vhd.state.door.waiting() }),
        allocated_bytes: vhd.allocated,
        written_bytes: vhd.state.map.present_blocks() * block_bytes,
        capacity: capacity_info(record.capacity, vhd.capacity),
        placement: vhd
            .slots
            .iter()
            .map(|(id, extents)| DiskUse { disk: pool.disk_name(*id), extents: u64::from(*extents) })
            .collect(),
        created_secs: record.created,
    }
}

/// Extents that have fewer readable replicas than they should.
fn degraded(vhd: &command::VhdInfo, gone: Gone) -> u64 {
    if vhd.record.replicas == 1 {
        return 0;
    }
    let map = &vhd.state.map;
    let unreadable = gone.all();
    let is_readable = |r: &Replica| r.state == ReplicaState::InSync && !unreadable.contains(r.disk);
    let readable = |extent| map.lookup(extent).replicas.iter().filter(is_readable).count();
    map.placed_from(ExtentIndex(0)).filter(|extent| readable(*extent) < usize::from(vhd.record.replicas)).count() as u64
}

/// Where the placed extents from `from` on are. Reads the map: not for threads that must not be late.
#[must_use]
pub fn map_info(vhd: &command::VhdInfo, pool: &PoolRecord, from: u32) -> VhdMapInfo {
    let map = &vhd.state.map;
    let mut info = VhdMapInfo {
        name: vhd.record.name.clone(),
        extent_bytes: vhd.state.settings.geometry.extent_size(),
        extents: map.extents(),
        disks: vhd.slots.keys().map(|id| pool.disk_name(*id)).collect(),
        runs: Vec::new(),
        next_extent: None,
    };
    if from >= map.extents() {
        return info;
    }
    for extent in map.placed_from(ExtentIndex(from)) {
        if info.runs.len() >= MAP_RUNS_MAX {
            info.next_extent = Some(extent.0);
            break;
        }
        let lookup = map.lookup(extent);
        for replica in lookup.replicas.iter() {
            let disk = pool.disk_name(replica.disk);
            let blocks = u64::from(lookup.present.len());
            let growing = info.runs.last_mut().filter(|run| {
                run.disk == disk && run.extent + run.count == extent.0 && run.slot + run.count == replica.slot.0
            });
            if let Some(run) = growing {
                run.count += 1;
                run.blocks_written += blocks;
            } else {
                let slot = replica.slot.0;
                info.runs.push(MapRun { extent: extent.0, count: 1, disk, slot, blocks_written: blocks });
            }
        }
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_permission_bits() {
        assert_eq!(socket_mode("0660"), Ok(0o660));
        assert_eq!(socket_mode("600"), Ok(0o600));
        for wrong in ["", "0888", "rw", "-1", "00660"] {
            assert!(socket_mode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn owners_are_user_and_group() {
        assert!(socket_owner("a:b").is_ok());
        for wrong in ["", "a", "a:", ":b", "a:b:c"] {
            assert!(socket_owner(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn isolated_vhds_have_one_disk() {
        let disks = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
        assert!(layout_request(Some(Layout::Isolated), disks(&["a"]), None).is_ok());
        assert!(layout_request(Some(Layout::Isolated), disks(&["a", "b"]), None).is_err());
        assert!(layout_request(Some(Layout::Isolated), disks(&[]), None).is_err());
        assert!(layout_request(Some(Layout::Isolated), None, Some(1)).is_err());
        assert!(layout_request(Some(Layout::Spanned), disks(&["a", "b"]), None).is_ok());
    }

    #[test]
    fn who_names_disks_or_a_width_says_how() {
        assert_eq!(layout_request(None, None, None), Ok(LayoutRequest::Any));
        assert!(layout_request(None, Some(vec!["a".to_owned()]), None).is_err());
        assert!(layout_request(None, None, Some(2)).is_err());
    }
}
