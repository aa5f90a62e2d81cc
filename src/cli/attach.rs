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
