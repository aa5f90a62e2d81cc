//! The guest's kernel and initramfs, and what this host can run them with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::tools::{run, target_dir};

/// A kernel and an initramfs to boot.
#[derive(Clone, Debug)]
pub struct Image {
    /// Uncompressed kernel.
    pub kernel: PathBuf,
    /// Uncompressed initramfs.
    pub initrd: PathBuf,
    /// Package name and version of the kernel.
    pub version: String,
}

impl Image {
    /// Builds the image, or finds the one built before.
    ///
    /// # Errors
    /// What the build script says.
    pub fn build() -> Result<Image> {
        let out = target_dir();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/image.sh");
        run(Command::new("bash").arg(script).arg(&out)).context("building the guest image")?;
        let version = fs::read_to_string(out.join("kernel"))?.trim().to_owned();
        Ok(Image { kernel: out.join("vmlinux"), initrd: out.join("initrd"), version })
    }

    /// Puts the image into a directory that the guest's user can reach.
    ///
    /// # Errors
    /// As of the file system.
    pub fn place_in(&self, dir: &Path) -> Result<Image> {
        let place = |from: &Path, name: &str| -> Result<PathBuf> {
            let to = dir.join(name);
            if fs::hard_link(from, &to).is_err() {
                fs::copy(from, &to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
            }
            Ok(to)
        };
        Ok(Image {
            kernel: place(&self.kernel, "vmlinux")?,
            initrd: place(&self.initrd, "initrd")?,
            version: self.version.clone(),
        })
    }
}
