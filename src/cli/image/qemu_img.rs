//! Image formats, by way of `qemu-img`.
//!
//! An image may come from a stranger. It is opened with its format spelled out where that is known, and one that refers to
//! other files (a backing file, an external data file) is refused: it could name any file of this host.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde::Deserialize;

use super::TempPath;
use crate::cli::output::Failure;
use crate::control::wire::ErrorKind;

/// First bytes of a qcow2 image.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// An installed `qemu-img`.
#[derive(Debug)]
pub struct Program;

impl Program {
    /// Looks for the program.
    ///
    /// # Errors
    /// It is not installed, or does not run.
    pub fn find() -> Result<Program, Failure> {
        match Command::new("qemu-img").arg("--version").output() {
            Ok(output) if output.status.success() => Ok(Program),
            Ok(output) => Err(Failure::new(ErrorKind::Failed, format!("qemu-img does not work: {}", output.status))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(Failure::new(ErrorKind::Failed, "qemu-img is not installed, and only raw images work without it")
                    .hint("install it (Debian: qemu-utils, Fedora: qemu-img), or say --format raw if the image is raw"))
            }
            Err(error) => Err(Failure::new(ErrorKind::Failed, format!("cannot run qemu-img: {error}"))),
        }
    }

    /// Converts an image; the output is sparse.
    ///
    /// # Errors
    /// What `qemu-img` said.
    pub fn convert(&self, from: &Path, from_format: &str, to: &Path, to_format: &str) -> Result<(), Failure> {
        let options = ["convert", "-S", "4k", "-f", from_format, "-O", to_format];
        let mut args: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
        args.extend([from.as_os_str(), to.as_os_str()]);
        self.run(&args, "convert", from).map(drop)
    }

    fn info(&self, image: &Path, format: Option<&str>) -> Result<Info, Failure> {
        let mut args = vec![OsStr::new("info"), OsStr::new("--output=json")];
        if let Some(format) = format {
            args.extend([OsStr::new("-f"), OsStr::new(format)]);
        }
        args.push(image.as_os_str());
        let text = self.run(&args, "read", image)?;
        Ok(serde_json::from_str(&text).context("qemu-img info did not answer as expected")?)
    }

    /// Lets `qemu-img` check the structure of an image. Leaked clusters are not a fault: they only waste room.
    fn check(&self, image: &Path, format: &str) -> Result<(), Failure> {
        let output = Command::new("qemu-img").args(["check", "-f", format]).arg(image).output();
        let output = output.context("cannot run qemu-img")?;
        match output.status.code() {
            // Sound; leaks only; a format that has no check.
            Some(0 | 3 | 63) => Ok(()),
            _ => {
                let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                let complained = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                let message = format!("{} is corrupt; qemu-img check says:\n{said}{complained}", image.display());
                Err(Failure::new(ErrorKind::Failed, message)
                    .hint("repair a copy with 'qemu-img check -r all', or get it again"))
            }
        }
    }

    fn run(&self, args: &[&OsStr], what: &str, image: &Path) -> Result<String, Failure> {
        let output = Command::new("qemu-img").args(args).output().context("cannot run qemu-img")?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Failure::new(ErrorKind::Failed, format!("cannot {what} {}: {said}", image.display())))
    }
}

#[derive(Debug, Deserialize)]
struct Info {
    format: String,
    #[serde(rename = "virtual-size")]
    virtual_size: u64,
    #[serde(rename = "backing-filename")]
    backing_file: Option<String>,
    #[serde(rename = "format-specific")]
    specific: Option<FormatSpecific>,
}

#[derive(Debug, Deserialize)]
struct FormatSpecific {
    #[serde(default)]
    data: serde_json::Value,
}

/// An image that can be imported.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    format: String,
    /// Size of the disk in it, in bytes.
    pub virtual_size: u64,
}

/// Examines an image of the given format, or of what `qemu-img` finds.
///
/// # Errors
/// There is no such file, it is corrupt, it refers to other files, or `qemu-img` is needed and missing.
pub fn inspect(path: &Path, format: Option<&str>) -> Result<Image, Failure> {
    let meta = std::fs::metadata(path).map_err(|error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let kind = if missing { ErrorKind::NotFound } else { ErrorKind::Failed };
        Failure::new(kind, format!("cannot open {}: {error}", path.display()))
    })?;
    if !meta.is_file() {
        return Err(Failure::new(ErrorKind::Invalid, format!("{} is not a regular file", path.display())));
    }
    if format == Some("raw") {
        return Ok(Image { path: path.to_owned(), format: "raw".to_owned(), virtual_size: meta.len() });
    }
    let program = Program::find()?;
    let known = if has_qcow2_magic(path)? { Some("qcow2") } else { format };
    let info = program.info(path, format.or(known))?;
    let external = info.specific.as_ref().and_then(|s| s.data.get("data-file")).and_then(|file| file.as_str());
    if let Some(other) = info.backing_file.as_deref().or(external) {
        let message = format!("{} is not complete: it refers to the file '{other}'", path.display());
        return Err(Failure::new(ErrorKind::Invalid, message)
            .hint("if you trust it, make it self-contained with 'qemu-img convert' first"));
    }
    if info.format != "raw" {
        program.check(path, &info.format)?;
    }
    Ok(Image { path: path.to_owned(), format: info.format, virtual_size: info.virtual_size })
}

fn has_qcow2_magic(path: &Path) -> Result<bool, Failure> {
    let mut magic = [0; 4];
    let mut file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(file.read_exact(&mut magic).is_ok() && magic == QCOW2_MAGIC)
}

/// A raw file: the image itself, or a temporary one.
#[derive(Debug)]
pub enum RawFile {
    /// The image is raw.
    Itself(PathBuf),
    /// Was converted; removed when dropped.
    Converted(TempPath),
}

impl RawFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            RawFile::Itself(path) => path,
            RawFile::Converted(temp) => temp.path(),
        }
    }
}

impl Image {
    /// The image as a raw file; a temporary one goes to `temp_dir`, or TMPDIR, or beside the image.
    ///
    /// # Errors
    /// What `qemu-img` said.
    pub fn to_raw(&self, temp_dir: Option<&Path>) -> Result<RawFile, Failure> {
        if self.format == "raw" {
            return Ok(RawFile::Itself(self.path.clone()));
        }
        let directory = temp_dir.map(Path::to_owned).or_else(|| std::env::var_os("TMPDIR").map(PathBuf::from));
        let name = self.path.file_name().unwrap_or_default();
        let temp = TempPath::beside(&directory.map_or_else(|| self.path.clone(), |directory| directory.join(name)));
        Program::find()?.convert(&self.path, &self.format, temp.path(), "raw")?;
        Ok(RawFile::Converted(temp))
    }
}
