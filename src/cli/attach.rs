//! What to paste into a VMM's configuration to attach a VHD.

use super::args::AttachTarget;
use crate::control::wire::VhdInfo;

/// The fragment for `target`.
#[must_use]
pub fn fragment(vhd: &VhdInfo, target: AttachTarget) -> String {
    match target {
        AttachTarget::Qemu => qemu(vhd),
        AttachTarget::CloudHypervisor => cloud_hypervisor(vhd),
        AttachTarget::Libvirt => libvirt(vhd),
    }
}

fn qemu(vhd: &VhdInfo) -> String {
    let VhdInfo { name, socket, queues, .. } = vhd;
    // QEMU's identifiers allow what our names allow; the prefix keeps them apart from others on the same command line.
    format!(
        "# Guest memory must be shared (once per guest; give it the guest's memory size):\n\
         -object memory-backend-memfd,id=mem0,size=SIZE,share=on -machine memory-backend=mem0\n\
         # The disk:\n\
         -chardev socket,id=spanblk-{name},path={socket},reconnect-ms=1000\n\
         -device vhost-user-blk-pci,chardev=spanblk-{name},num-queues={queues}\n\
         # QEMU before 9.2 knows reconnect=1 in place of reconnect-ms=1000.\n"
    )
}

fn cloud_hypervisor(vhd: &VhdInfo) -> String {
    let VhdInfo { name, socket, queues, .. } = vhd;
    format!(
        "# Guest memory must be shared (once per guest): --memory size=SIZE,shared=on\n\
         --disk vhost_user=on,socket={socket},num_queues={queues},queue_size=128,id={name}\n"
    )
}

fn libvirt(vhd: &VhdInfo) -> String {
    let VhdInfo { socket, queues, .. } = vhd;
    let serial = &vhd.uuid.simple().to_string()[..20];
    format!(
        "<!-- Guest memory must be shared (once per domain): -->\n\
         <memoryBacking>\n\
         \x20 <source type='memfd'/>\n\
         \x20 <access mode='shared'/>\n\
         </memoryBacking>\n\
         \n\
         <!-- In <devices>; choose a free target. The guest sees serial number {serial}. -->\n\
         <disk type='vhostuser' device='disk'>\n\
         \x20 <driver name='qemu' type='raw' queues='{queues}'/>\n\
         \x20 <source type='unix' path='{socket}'>\n\
         \x20   <reconnect enabled='yes' timeout='1'/>\n\
         \x20 </source>\n\
         \x20 <target dev='vdb' bus='virtio'/>\n\
         </disk>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fragment_has_socket_queues_and_shared_memory() {
        let vhd = serde_json::json!({
            "name": "db", "uuid": "8fd5e07e-ffb8-4d51-be86-8381b7dfb609", "size_bytes": 1 << 20, "block_bytes": 512,
            "layout": "spanned", "disks": ["a"], "disks_chosen": false, "replicas": 1, "degraded_extents": 0,
            "thick": false, "checksums": false, "ready": true, "health": "healthy", "read_only": false,
            "queues": 3, "socket": "/run/v/db.sock", "socket_mode": "0660",
            "when_full": {"action": "error"}, "writeback": true, "allocated_bytes": 0, "written_bytes": 0,
            "placement": [], "created_secs": 0
        });
        let vhd: VhdInfo = serde_json::from_value(vhd).unwrap();
        for (target, parts) in [
            (AttachTarget::Qemu, ["path=/run/v/db.sock", "num-queues=3", "share=on"]),
            (AttachTarget::CloudHypervisor, ["socket=/run/v/db.sock", "num_queues=3", "shared=on"]),
            (AttachTarget::Libvirt, ["path='/run/v/db.sock'", "queues='3'", "mode='shared'"]),
        ] {
            let text = fragment(&vhd, target);
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
        assert!(fragment(&vhd, AttachTarget::Libvirt).contains("8fd5e07effb84d51be86"), "the serial number");
    }
}
