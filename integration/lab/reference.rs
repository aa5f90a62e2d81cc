//! QEMU's own storage daemon in place of spanblk: the lab's control experiment. A check that fails here too tells of the lab.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::tools::{Process, command, give_to_guest_user, sparse_file, wait_for};

/// One disk image and its vhost-user-blk socket.
#[derive(Debug)]
pub struct ReferenceDisk {
    /// The socket.
    pub socket: PathBuf,
    process: Process,
}

impl ReferenceDisk {
    /// Serves `file`, made with `size` bytes if it is not there.
    ///
    /// # Errors
    /// The program is missing or refuses.
    pub fn serve(file: &Path, socket: &Path, size: u64, block_size: u32, queues: u16) -> Result<ReferenceDisk> {
        if !file.exists() {
            sparse_file(file, size)?;
        }
        let _ = fs::remove_file(socket);
        let mut daemon = command("qemu-storage-daemon");
        let file = file.display();
        daemon
            .args(["--blockdev", &format!("file,node-name=f,filename={file},discard=unmap,cache.direct=on")])
            .args(["--blockdev", "raw,node-name=d,file=f,discard=unmap,detect-zeroes=unmap"])
            .args([
                "--export",
                &format!(
                    "vhost-user-blk,id=e,node-name=d,writable=on,num-queues={queues},logical-block-size={block_size},\
                     addr.type=unix,addr.path={}",
                    socket.display()
                ),
            ]);
        let process = Process::start("qemu-storage-daemon", &mut daemon)?;
        wait_for("socket of qemu-storage-daemon", Duration::from_secs(10), || socket.exists().then_some(()))?;
        give_to_guest_user(socket)?;
        fs::set_permissions(socket, fs::Permissions::from_mode(0o660))?;
        Ok(ReferenceDisk { socket: socket.to_owned(), process })
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}
