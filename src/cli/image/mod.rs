//! `spanblk vhd import` and `export`: images into VHDs and back.
//!
//! [`qemu_img`] turns every format into a sparse raw file and back, [`sparse`] finds what such a file holds, [`copy`] moves it
//! through the VHD's socket.

mod copy;
mod qemu_img;
mod sparse;

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use hyper::Method;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::Session;
use super::args::{ExportArgs, ImportArgs};
use super::blk_client::{BlkClient, BlkError, ClientOptions};
use super::client::{Client, path_segment};
use super::output::{Failure, Outcome};
use super::vhd::map;
use crate::control::wire::size::human_size;
use crate::control::wire::{ErrorKind, IoLimits, Sharing, VhdCreate, VhdDeleted, VhdInfo, VhdResult, WhenFull};

/// What an import or export did.
#[derive(Debug, Serialize)]
struct CopyReport {
    vhd: String,
    file: String,
    size_bytes: u64,
    copied_bytes: u64,
    crc32c: String,
    verified: bool,
}

/// Imports an image.
pub fn import(session: &Session, args: &ImportArgs) -> Outcome {
    let image = qemu_img::inspect(&args.file, args.format.as_deref())?;
    let client = session.client()?;
    // Before the conversion, which may take long: is there a daemon, and is the VHD as it must be?
    let existing = find(&client, &args.name)?;
    let vhd = match (existing, args.existing) {
        (Some(vhd), true) => Some(fits(vhd, image.virtual_size)?),
        (Some(_), false) => {
            return Err(Failure::new(ErrorKind::Conflict, format!("there is a VHD '{}' already", args.name))
                .hint("import into it with --existing; what it holds is lost"));
        }
        (None, true) => {
            return Err(Failure::new(ErrorKind::NotFound, format!("there is no VHD '{}'", args.name))
                .hint("leave out --existing to create it"));
        }
        (None, false) => None,
    };
    let raw = image.to_raw(args.temp_dir.as_deref())?;
    let file = File::open(raw.path()).with_context(|| format!("cannot open {}", raw.path().display()))?;
    let len = file.metadata().with_context(|| format!("cannot examine {}", raw.path().display()))?.len();
    let fresh = vhd.is_none();
    let vhd = match vhd {
        Some(vhd) => vhd,
        None => create(&client, args, len)?,
    };
    let imported = import_into(session, args, &vhd, &file, len, fresh);
    if imported.is_err() && fresh {
        // The VHD was made for this import and holds half an image; the failure itself is what the user must see.
        let _: Result<VhdDeleted, Failure> = client.delete(&format!("/vhds/{}?force=true", path_segment(&vhd.name)));
    }
    let (copied_bytes, crc) = imported?;
    let report = CopyReport {
        vhd: vhd.name,
        file: args.file.display().to_string(),
        size_bytes: len,
        copied_bytes,
        crc32c: format!("{crc:08x}"),
        verified: args.verify,
    };
    session.output().show(&report, |r| describe(r, &format!("{} -> VHD '{}'", r.file, r.vhd)))
}

fn import_into(
    session: &Session,
    args: &ImportArgs,
    vhd: &VhdInfo,
    file: &File,
    len: u64,
    fresh: bool,
) -> Result<(u64, u32), Failure> {
    let mut device = attach(vhd)?;
    if !fresh {
        device.write_zeroes(0, device.capacity()).map_err(failed)?;
    }
    let bar = progress(session, len, "importing");
    let (copied, crc) = copy::into_device(file, len, &mut device, &bar)?;
    device.flush().map_err(failed)?;
    bar.finish_and_clear();
    if args.verify {
        let bar = progress(session, len, "verifying");
        let found = copy::checksum_of_device(&mut device, len, &bar)?;
        bar.finish_and_clear();
        compare(crc, found)?;
    }
    Ok((copied, crc))
}

/// Exports an image.
pub fn export(session: &Session, args: &ExportArgs) -> Outcome {
    if args.file.exists() && !args.overwrite {
        return Err(Failure::new(ErrorKind::Conflict, format!("{} exists", args.file.display()))
            .hint("give another name, or --overwrite"));
    }
    let converter = if args.format == "raw" { None } else { Some(qemu_img::Program::find()?) };
    let client = session.client()?;
    let vhd: VhdInfo = client.get(&format!("/vhds/{}", path_segment(&args.name)))?;
    let map = map::fetch(&client, &args.name)?;
    let mut device = attach(&vhd)?;

    let partial = TempPath::beside(&args.file);
    let path = partial.path();
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    let file = file.with_context(|| format!("cannot create {}", path.display()))?;
    let bar = progress(session, vhd.size_bytes, "exporting");
    let (copied_bytes, crc) = copy::from_device(&mut device, &copy::placed_ranges(&map), &file, &bar)?;
    bar.finish_and_clear();
    if args.verify {
        let bar = progress(session, vhd.size_bytes, "verifying");
        let found = copy::checksum_of_file(&file, vhd.size_bytes, &bar)?;
        bar.finish_and_clear();
        compare(crc, found)?;
    }
    match converter {
        None => partial.become_file(&args.file)?,
        Some(program) => {
            let converted = TempPath::beside(&args.file);
            program.convert(path, "raw", converted.path(), &args.format)?;
            converted.become_file(&args.file)?;
        }
    }
    let report = CopyReport {
        vhd: vhd.name,
        file: args.file.display().to_string(),
        size_bytes: vhd.size_bytes,
        copied_bytes,
        crc32c: format!("{crc:08x}"),
        verified: args.verify,
    };
    session.output().show(&report, |r| describe(r, &format!("VHD '{}' -> {}", r.vhd, r.file)))
}

fn find(client: &Client, name: &str) -> Result<Option<VhdInfo>, Failure> {
    match client.get(&format!("/vhds/{}", path_segment(name))) {
        Ok(vhd) => Ok(Some(vhd)),
        Err(Failure(info)) if info.kind == ErrorKind::NotFound => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn fits(vhd: VhdInfo, image_bytes: u64) -> Result<VhdInfo, Failure> {
    if vhd.size_bytes < image_bytes {
        let (has, needs) = (human_size(vhd.size_bytes), human_size(image_bytes));
        let message = format!("VHD '{}' is too small: it has {has}, the image needs {needs}", vhd.name);
        return Err(Failure::new(ErrorKind::Conflict, message).hint("import into a new VHD, without --existing"));
    }
    Ok(vhd)
}

fn create(client: &Client, args: &ImportArgs, image_bytes: u64) -> Result<VhdInfo, Failure> {
    let size_bytes = args.size.unwrap_or(image_bytes.div_ceil(4096) * 4096);
    if size_bytes < image_bytes {
        let (has, needs) = (human_size(size_bytes), human_size(image_bytes));
        return Err(Failure::new(ErrorKind::Invalid, format!("--size {has} is less than the image's {needs}")));
    }
    let request = VhdCreate {
        name: args.name.clone(),
        size_bytes,
        layout: Some(args.layout),
        disks: (!args.disks.is_empty()).then(|| args.disks.clone()),
        width: None,
        replicas: None,
        thick: false,
        checksums: false,
        read_only: false,
        block_bytes: None,
        queues: None,
        vm: None,
        socket_owner: None,
        socket_mode: None,
        when_full: WhenFull::default(),
        expand: None,
        limits: IoLimits::default(),
        sharing: Sharing::default(),
        quota_bytes: None,
        reservation_bytes: None,
    };
    let result: VhdResult = client.send(Method::POST, "/vhds", &request)?;
    Ok(result.vhd)
}

/// Connects to the VHD's socket, as a guest would.
fn attach(vhd: &VhdInfo) -> Result<BlkClient, Failure> {
    let wait_secs = match vhd.when_full {
        WhenFull::Queue { wait_secs } => wait_secs,
        WhenFull::Error {} => 0,
    };
    let timeout = Duration::from_secs(wait_secs.saturating_add(120));
    BlkClient::connect(Path::new(&vhd.socket), ClientOptions { timeout, ..ClientOptions::default() }).map_err(|error| {
        let in_use = matches!(error, BlkError::InUse { .. });
        let kind = if in_use { ErrorKind::Conflict } else { ErrorKind::Failed };
        let failure = Failure::new(kind, format!("{:#}", anyhow::Error::from(error)));
        if in_use { failure.hint("shut the guest down or detach the disk first") } else { failure }
    })
}

fn failed(error: BlkError) -> Failure {
    let refused = matches!(error, BlkError::Failed { .. });
    let failure = Failure::from(anyhow::Error::from(error));
    // All that a guest is told is that its request failed.
    if refused {
        failure.hint("'spanblk events' says why: a full pool, a full disk or one that failed")
    } else {
        failure
    }
}

fn compare(expected: u32, found: u32) -> Outcome {
    if expected == found {
        return Ok(());
    }
    let message = format!("verification failed: wrote crc32c {expected:08x}, read back {found:08x}");
    Err(Failure::new(ErrorKind::Failed, message)
        .hint("the copy is not usable; check the disks with 'spanblk disk list'"))
}

fn progress(session: &Session, len: u64, what: &'static str) -> ProgressBar {
    if session.global.json {
        return ProgressBar::hidden();
    }
    // Draws on standard error, and only on a terminal.
    let template = "{msg} [{bar:32}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style.progress_chars("=> ")).with_message(what)
}

fn describe(report: &CopyReport, what: &str) -> String {
    let verified = if report.verified { ", verified" } else { "" };
    let (size, copied) = (human_size(report.size_bytes), human_size(report.copied_bytes));
    format!("{what}: {size}, {copied} of it data; crc32c {}{verified}\n", report.crc32c)
}

/// A file that is removed unless it becomes something.
#[derive(Debug)]
pub struct TempPath(PathBuf);

impl TempPath {
    /// A path in the directory of `path`, whose name begins like its.
    #[must_use]
    pub fn beside(path: &Path) -> TempPath {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        TempPath(path.with_file_name(format!("{name}.spanblk-{}.part", uuid::Uuid::new_v4().simple())))
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn become_file(&self, path: &Path) -> Outcome {
        let synced = File::open(&self.0).and_then(|file| file.sync_all());
        synced.with_context(|| format!("cannot sync {}", self.0.display()))?;
        let renamed = fs::rename(&self.0, path);
        Ok(renamed.with_context(|| format!("cannot rename {} to {}", self.0.display(), path.display()))?)
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        // It was renamed, or never made, or stays behind with a name that says what it is.
        let _ = fs::remove_file(&self.0);
    }
}
