//! Which disk is it? The same disk under two paths, the device that a partition or a file lies on, a name for people, and
//! what fails together.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::sys;
use crate::base::ids::check_name;
use crate::base::limits::NAME_LEN_MAX;

/// What makes a disk this one and no other, while the host is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DiskIdentity {
    /// A block device.
    Device {
        /// Its device number (`st_rdev`).
        number: u64,
    },
    /// A regular file.
    File {
        /// Device number of its filesystem (`st_dev`).
        device: u64,
        /// Its inode.
        inode: u64,
    },
}

impl DiskIdentity {
    pub(super) fn from_statx(stat: &libc::statx) -> DiskIdentity {
        if u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFBLK {
            DiskIdentity::Device { number: sys::device_number(stat.stx_rdev_major, stat.stx_rdev_minor) }
        } else {
            let device = sys::device_number(stat.stx_dev_major, stat.stx_dev_minor);
            DiskIdentity::File { device, inode: stat.stx_ino }
        }
    }

    /// That of a file or block device; `None` for anything else.
    #[must_use]
    pub fn from_metadata(metadata: &fs::Metadata) -> Option<DiskIdentity> {
        let kind = metadata.file_type();
        if kind.is_block_device() {
            Some(DiskIdentity::Device { number: metadata.rdev() })
        } else {
            kind.is_file().then(|| DiskIdentity::File { device: metadata.dev(), inode: metadata.ino() })
        }
    }
}

/// How two paths given for two disks come to the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// They are one disk.
    Same,
    /// The first lies on the second: a partition of it, a volume or file on it.
    FirstOnSecond,
    /// The second lies on the first.
    SecondOnFirst,
}

/// What fails together: the physical devices a disk needs, or the one name that the user gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FailureDomain {
    parts: BTreeSet<String>,
}

impl FailureDomain {
    /// One domain by name.
    #[must_use]
    pub fn named(name: &str) -> FailureDomain {
        FailureDomain { parts: BTreeSet::from([name.to_owned()]) }
    }

    /// Reads what [`fmt::Display`] writes: parts joined by `+`.
    #[must_use]
    pub fn parse(text: &str) -> FailureDomain {
        FailureDomain { parts: text.split('+').filter(|part| !part.is_empty()).map(str::to_owned).collect() }
    }

    /// Whether a failure of one device can take both.
    #[must_use]
    pub fn shares_with(&self, other: &FailureDomain) -> bool {
        !self.parts.is_disjoint(&other.parts)
    }
}

impl fmt::Display for FailureDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.parts.iter().enumerate() {
            write!(f, "{}{part}", if i == 0 { "" } else { "+" })?;
        }
        Ok(())
    }
}

/// Disks that one failing device takes together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// The device or named domain.
    pub domain: String,
    /// Names of the disks, in the order given.
    pub disks: Vec<String>,
}

/// The groups of two and more disks (name, failure domain) that share a failure domain.
#[must_use]
pub fn sharing(disks: &[(&str, &FailureDomain)]) -> Vec<Sharing> {
    let domains: BTreeSet<&String> = disks.iter().flat_map(|(_, domain)| &domain.parts).collect();
    let group = |domain: &String| Sharing {
        domain: domain.clone(),
        disks: disks.iter().filter(|(_, d)| d.parts.contains(domain)).map(|(name, _)| (*name).to_owned()).collect(),
    };
    domains.into_iter().map(group).filter(|group| group.disks.len() > 1).collect()
}

/// Where the kernel tells about devices; other places in tests.
#[derive(Clone, Debug)]
pub struct Host {
    sysfs: PathBuf,
    by_id: PathBuf,
    mountinfo: PathBuf,
}

impl Default for Host {
    fn default() -> Host {
        Host { sysfs: "/sys".into(), by_id: "/dev/disk/by-id".into(), mountinfo: "/proc/self/mountinfo".into() }
    }
}

impl Host {
    /// Whether two disks have bytes in common, as far as the kernel knows.
    #[must_use]
    pub fn overlap(&self, first: DiskIdentity, second: DiskIdentity) -> Option<Overlap> {
        if first == second {
            Some(Overlap::Same)
        } else if self.stack(first).contains(&second) {
            Some(Overlap::FirstOnSecond)
        } else if self.stack(second).contains(&first) {
            Some(Overlap::SecondOnFirst)
        } else {
            None
        }
    }

    /// The failure domain of a disk: the physical devices at the bottom of it.
    #[must_use]
    pub fn failure_domain(&self, disk: DiskIdentity) -> FailureDomain {
        let bottom = |layer: &DiskIdentity| self.below(*layer).is_empty();
        FailureDomain { parts: self.stack(disk).into_iter().filter(bottom).map(|d| self.physical_name(d)).collect() }
    }

    /// Number of the block device that a file's filesystem lies on, among all that the kernel has found since it started; that of the
    /// whole device for a partition. 0 if it has none of its own (a network or memory filesystem, btrfs), or the kernel does not tell.
    #[must_use]
    pub fn sequence_beneath(&self, file: DiskIdentity) -> u64 {
        let DiskIdentity::File { device, .. } = file else { return 0 };
        let Some(directory) = self.device_directory(device) else { return 0 };
        let of = |directory: &Path| fs::read_to_string(directory.join("diskseq")).ok()?.trim_end().parse().ok();
        of(&directory).or_else(|| of(directory.parent()?)).unwrap_or(0)
    }

    /// A name for a new disk: from its lasting link, its device name or its file name; valid, and not one of `taken`.
    #[must_use]
    pub fn default_name(&self, path: &Path, disk: DiskIdentity, taken: &[String]) -> String {
        let base = match disk {
            DiskIdentity::Device { number } => self.lasting_name(number).or_else(|| self.kernel_name(number)),
            DiskIdentity::File { .. } => None,
        };
        let base = base.unwrap_or_else(|| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            [".img", ".raw", ".disk"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name).to_owned()
        });
        unique_name(&base, taken)
    }

    /// The disk and everything that it lies on.
    fn stack(&self, disk: DiskIdentity) -> BTreeSet<DiskIdentity> {
        let mut found = BTreeSet::new();
        let mut open = vec![disk];
        while let Some(layer) = open.pop() {
            if found.insert(layer) {
                open.extend(self.below(layer));
            }
        }
        found
    }

    /// What a disk lies on directly; nothing for a physical device.
    fn below(&self, disk: DiskIdentity) -> Vec<DiskIdentity> {
        match disk {
            DiskIdentity::File { device, .. } => self.device_of_filesystem(device).into_iter().collect(),
            DiskIdentity::Device { number } => self.below_device(number),
        }
    }

    fn below_device(&self, number: u64) -> Vec<DiskIdentity> {
        let Some(directory) = self.device_directory(number) else { return Vec::new() };
        if directory.join("partition").exists() {
            return directory.parent().and_then(device_in).into_iter().collect();
        }
        if let Ok(backing) = fs::read_to_string(directory.join("loop/backing_file")) {
            let file = fs::metadata(backing.trim_end()).ok();
            return file.map(|m| DiskIdentity::File { device: m.dev(), inode: m.ino() }).into_iter().collect();
        }
        let slaves = fs::read_dir(directory.join("slaves")).into_iter().flatten().flatten();
        slaves.filter_map(|slave| device_in(&slave.path())).collect()
    }

    /// The block device of a filesystem; `None` for network and memory filesystems.
    fn device_of_filesystem(&self, device: u64) -> Option<DiskIdentity> {
        if self.device_directory(device).is_some() {
            return Some(DiskIdentity::Device { number: device });
        }
        // Filesystems like btrfs have device numbers of their own; the mount table knows what they are on.
        let (_, source) = self.mount_of(device)?;
        let meta = source.starts_with('/').then(|| fs::metadata(source).ok())??;
        let number = meta.rdev();
        self.device_directory(number).map(|_| DiskIdentity::Device { number })
    }

    /// Type and source of the filesystem with this device number.
    fn mount_of(&self, device: u64) -> Option<(String, String)> {
        let (major, minor) = sys::major_minor(device);
        let wanted = format!("{major}:{minor}");
        let table = fs::read_to_string(&self.mountinfo).ok()?;
        table.lines().find_map(|line| {
            let (mount, filesystem) = line.split_once(" - ")?;
            let mut words = filesystem.split(' ');
            let found = (words.next()?.to_owned(), words.next()?.to_owned());
            (mount.split(' ').nth(2)? == wanted).then_some(found)
        })
    }

    fn physical_name(&self, disk: DiskIdentity) -> String {
        let device = match disk {
            DiskIdentity::Device { number } => {
                if let Some(name) = self.kernel_name(number) {
                    return self.controller_of(number, &name).unwrap_or(name);
                }
                number
            }
            DiskIdentity::File { device, .. } => {
                if let Some((kind, source)) = self.mount_of(device) {
                    return format!("{kind}:{source}").replace('+', "-");
                }
                device
            }
        };
        let (major, minor) = sys::major_minor(device);
        format!("device-{major}:{minor}")
    }

    /// NVMe namespaces of one controller (or subsystem) fail together.
    fn controller_of(&self, number: u64, name: &str) -> Option<String> {
        if !name.starts_with("nvme") {
            return None;
        }
        let controller = fs::canonicalize(self.device_directory(number)?.join("device")).ok()?;
        Some(controller.file_name()?.to_string_lossy().into_owned())
    }

    fn device_directory(&self, number: u64) -> Option<PathBuf> {
        let (major, minor) = sys::major_minor(number);
        fs::canonicalize(self.sysfs.join(format!("dev/block/{major}:{minor}"))).ok()
    }

    fn kernel_name(&self, number: u64) -> Option<String> {
        Some(self.device_directory(number)?.file_name()?.to_string_lossy().into_owned())
    }

    /// The most readable of the links that udev keeps for the device.
    fn lasting_name(&self, number: u64) -> Option<String> {
        let links = fs::read_dir(&self.by_id).ok()?.flatten();
        let of_device = |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.rdev() == number);
        let names = links.map(|link| link.path()).filter(of_device);
        let names = names.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        const OPAQUE: [&str; 6] = ["wwn-", "nvme-eui.", "nvme-uuid.", "dm-uuid-", "lvm-pv-uuid-", "md-uuid-"];
        names.min_by_key(|name| (OPAQUE.iter().any(|start| name.starts_with(start)), name.len(), name.clone()))
    }
}

/// The device whose sysfs directory this is.
fn device_in(directory: &Path) -> Option<DiskIdentity> {
    let text = fs::read_to_string(directory.join("dev")).ok()?;
    let (major, minor) = text.trim_end().split_once(':')?;
    let number = sys::device_number(major.parse().ok()?, minor.parse().ok()?);
    Some(DiskIdentity::Device { number })
}

/// Makes a valid name of any text, not one of `taken`.
#[must_use]
pub fn unique_name(base: &str, taken: &[String]) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    let name: String = base.chars().map(legal).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let name = if name.is_empty() { "disk" } else { name };
    let cut = |len: usize| &name[..name.len().min(len)];
    let numbered = (2u32..).map(|n| {
        let number = format!("-{n}");
        format!("{}{number}", cut(NAME_LEN_MAX - number.len()))
    });
    let free = |candidate: &String| !taken.contains(candidate);
    let unique = std::iter::once(cut(NAME_LEN_MAX).to_owned()).chain(numbered).find(free);
    let unique = unique.expect("more numbers than names are taken");
    assert!(check_name(&unique).is_ok(), "made a name that is not valid: {unique}");
    unique
}
