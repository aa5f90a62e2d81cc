//! What kind of device a disk lies on, as the kernel says.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::policy::observe::DiskKind;

/// What is at this path; what cannot be found out counts as flash, as most disks are.
pub fn kind_of(path: Option<&str>) -> DiskKind {
    path.and_then(|path| device_of(Path::new(path))).map_or(DiskKind::Ssd, |device| kind_of_device(&device))
}

/// The device in `/sys` that a block device is, or a file lies on.
fn device_of(path: &Path) -> Option<PathBuf> {
    let metadata = fs::metadata(path).ok()?;
    let number = if metadata.file_type().is_block_device() { metadata.rdev() } else { metadata.dev() };
    let link = format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number));
    fs::canonicalize(link).ok()
}

/// `device`: a directory below `/sys/devices`, of a whole disk or of a partition, which is a directory in that of its disk.
fn kind_of_device(device: &Path) -> DiskKind {
    let is_below = |bus: &str| device.components().any(|part| part.as_os_str().to_string_lossy().starts_with(bus));
    let told = [device, device.parent().unwrap_or(device)].map(|dir| fs::read_to_string(dir.join("queue/rotational")));
    let rotates = told.into_iter().find_map(Result::ok).is_some_and(|text| text.trim() == "1");
    // A disk that a hypervisor makes says that it rotates, whatever it is.
    match (is_below("nvme"), rotates && !is_below("virtio")) {
        (true, _) => DiskKind::Nvme,
        (false, true) => DiskKind::Hdd,
        (false, false) => DiskKind::Ssd,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_what_its_disk_is() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("block/sda");
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::create_dir(disk.join("sda1")).unwrap();
        fs::write(disk.join("queue/rotational"), "1\n").unwrap();
        assert_eq!([&disk, &disk.join("sda1")].map(|device| kind_of_device(device)), [DiskKind::Hdd; 2]);
        fs::write(disk.join("queue/rotational"), "0\n").unwrap();
        assert_eq!(kind_of_device(&disk.join("sda1")), DiskKind::Ssd);
        assert_eq!(kind_of_device(&dir.path().join("nvme/nvme0/nvme0n1")), DiskKind::Nvme);
        let guest = dir.path().join("virtio3/block/vda");
        fs::create_dir_all(guest.join("queue")).unwrap();
        fs::write(guest.join("queue/rotational"), "1\n").unwrap();
        assert_eq!(kind_of_device(&guest), DiskKind::Ssd);
    }

    #[test]
    fn what_cannot_be_found_counts_as_flash() {
        assert_eq!([None, Some("/no/such/disk")].map(kind_of), [DiskKind::Ssd; 2]);
    }
}
