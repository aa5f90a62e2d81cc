//! `spanblk disk replace`.

use std::path::Path;
use std::time::Duration;

use hyper::Method;

use super::disk_to_add;
use crate::base::clock;
use crate::cli::Session;
use crate::cli::args::{DiskReplaceArgs, Priority};
use crate::cli::client::{Client, path_segment};
use crate::cli::job;
use crate::cli::output::{Failure, Outcome, print, warn};
use crate::control::wire::{Accept, DiskInfo, DiskList, DiskReplace, DiskReplaced, ErrorKind, JobInfo, JobState};

/// How long the old disk may take to leave the pool once everything is off it, and how often that is looked at.
const LEAVE_PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);

/// Runs the command.
pub fn run(session: &Session, args: DiskReplaceArgs) -> Outcome {
    let client = session.client()?;
    let old: DiskInfo = client.get(&format!("/disks/{}", path_segment(&args.old)))?;
    let (keep, wait, dry_run) = (args.keep, args.options.wait, args.options.dry_run);
    let request = request(args, &old)?;
    let path = format!("/disks/{}/replace", old.uuid);
    let mut result: DiskReplaced = client.send(Method::POST, &path, &request)?;
    if dry_run {
        return session.output().show(&result, |result| result.plan.as_ref().map(job::plan_text).unwrap_or_default());
    }
    let Some(mut moving) = result.job.take() else {
        return Err(Failure::new(ErrorKind::Failed, "the daemon has not said which job replaces the disk"));
    };
    let first = begun(&old, &result, &moving, keep);
    if wait {
        if !session.global.json {
            print(&first)?;
        }
        moving = job::follow(session, moving.id)?;
    }
    let has_left = wait && !keep && moving.state == JobState::Done && leaves(&client, &old)?;
    let text = if wait { ended(&old, &moving, has_left) } else { first };
    let moving = result.job.insert(moving).clone();
    session.output().show(&result, |_| text)?;
    if !session.global.json {
        result.warnings.iter().for_each(warn);
    }
    match wait {
        false => Ok(()),
        true if moving.state != JobState::Done || keep || has_left => job::judge(&moving),
        true => Err(Failure::new(ErrorKind::Failed, format!("disk '{}' has not left the pool yet", old.name))
            .hint(format!("'spanblk events' tells why; 'spanblk disk remove {}' tries again", old.name))),
    }
}

fn request(args: DiskReplaceArgs, old: &DiskInfo) -> Result<DiskReplace, Failure> {
    let (by, add) = if args.new.contains('/') {
        // An old disk that is being emptied says nothing of what the new one is for.
        let as_old = if old.accept == Accept::None { Accept::Any } else { old.accept };
        (None, Some(disk_to_add(Path::new(&args.new), args.format, args.accept.unwrap_or(as_old))?))
    } else {
        if !args.format.is_default() || args.accept.is_some() {
            let message = format!(
                "'{}' is the name of a disk, not a path: it is not added, so that --name, --size, \
                --failure-domain, --accept and --force have no meaning",
                args.new
            );
            return Err(Failure::new(ErrorKind::Invalid, message).hint("a path has a '/' in it: ./new.img"));
        }
        (Some(args.new), None)
    };
    Ok(DiskReplace {
        by,
        add,
        accept_loss: args.accept_loss,
        keep: args.keep,
        dry_run: args.options.dry_run,
        max_rate_bytes: args.options.max_rate,
        urgent: args.options.priority == Priority::Urgent,
    })
}

fn begun(old: &DiskInfo, result: &DiskReplaced, job: &JobInfo, keep: bool) -> String {
    let new = result.disk.as_ref().map_or("another one", |disk| disk.name.as_str());
    let then = if keep { "stays in the pool, empty" } else { "leaves the pool" };
    let (old, job) = (&old.name, job.id);
    format!("disk '{new}' takes the place of '{old}': job {job}; when it is done, '{old}' {then}\n")
}

fn ended(old: &DiskInfo, job: &JobInfo, has_left: bool) -> String {
    let mut text = job::end_text(job);
    if has_left {
        text.push_str(&format!("disk '{}' has left the pool\n", old.name));
    }
    text
}

/// Waits until the disk has left the pool; false if it stays.
fn leaves(client: &Client, old: &DiskInfo) -> Result<bool, Failure> {
    let deadline = clock::now().after(LEAVE_PATIENCE);
    loop {
        let list: DiskList = client.get("/disks")?;
        if list.disks.iter().all(|disk| disk.uuid != old.uuid) {
            return Ok(true);
        }
        if clock::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(LOOK);
    }
}
