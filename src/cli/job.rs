//! `spanblk job`, and what commands that make jobs have in common.

use std::io::IsTerminal;
use std::time::Duration;

use hyper::Method;
use indicatif::{ProgressBar, ProgressStyle};

use super::Session;
use super::args::{JobCommand, JobOptions, Priority, Rate};
use super::client::Client;
use super::output::{Failure, Outcome, Table, facts, print};
use crate::base::clock;
use crate::control::wire::size::human_size;
use crate::control::wire::{
    ErrorKind, JobCancel, JobCreate, JobInfo, JobList, JobResult, JobState, JobUpdate, JobWish, PlanInfo, Scrubbed,
};

/// How often a job that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// How often a line is printed where no bar can be drawn.
const LINE: Duration = Duration::from_secs(5);

/// Runs a command.
pub fn run(session: &Session, command: JobCommand) -> Outcome {
    match command {
        JobCommand::List => {
            let list: JobList = session.client()?.get("/jobs")?;
            session.output().show(&list, |list| table(&list.jobs))
        }
        JobCommand::Show { job } => session.output().show(&fetch(&session.client()?, job)?, details),
        JobCommand::Pause { job } => change(session, job, &JobUpdate { paused: Some(true), ..JobUpdate::default() }),
        JobCommand::Resume { job } => change(session, job, &JobUpdate { paused: Some(false), ..JobUpdate::default() }),
        JobCommand::Set { job, max_rate, priority } => {
            let update = JobUpdate {
                paused: None,
                max_rate_bytes: max_rate.map(|Rate(rate)| rate),
                urgent: priority.map(|priority| priority == Priority::Urgent),
            };
            if update == JobUpdate::default() {
                return Err(Failure::new(ErrorKind::Invalid, "nothing to set").hint("see 'spanblk job set --help'"));
            }
            change(session, job, &update)
        }
        JobCommand::Cancel { job, revert, wait } => {
            let path = format!("/jobs/{job}/cancel");
            let result: JobResult = session.client()?.send(Method::POST, &path, &JobCancel { revert })?;
            finish(session, &result, wait)
        }
        JobCommand::Wait { job } => {
            let job = fetch(&session.client()?, job)?;
            finish(session, &JobResult { changed: false, job: Some(job), plan: None }, true)
        }
    }
}

fn fetch(client: &Client, job: u32) -> Result<JobInfo, Failure> {
    client.get(&format!("/jobs/{job}"))
}

fn change(session: &Session, job: u32, update: &JobUpdate) -> Outcome {
    let result: JobResult = session.client()?.send(Method::PATCH, &format!("/jobs/{job}"), update)?;
    finish(session, &result, false)
}

/// Makes a job.
pub fn start(session: &Session, wish: JobWish, options: &JobOptions) -> Outcome {
    let request = JobCreate {
        wish,
        dry_run: options.dry_run,
        max_rate_bytes: options.max_rate,
        urgent: options.priority == Priority::Urgent,
    };
    let result: JobResult = session.client()?.send(Method::POST, "/jobs", &request)?;
    if options.dry_run {
        return session.output().show(&result, |result| result.plan.as_ref().map(plan_text).unwrap_or_default());
    }
    finish(session, &result, options.wait)
}

/// Prints what came of a request; waits for the end of the job, if that is wanted.
fn finish(session: &Session, result: &JobResult, wait: bool) -> Outcome {
    let Some(job) = &result.job else {
        return session
            .output()
            .show(result, |_| "everything is where it should be already: nothing changed\n".to_owned());
    };
    if !wait {
        return session.output().show(result, |result| sentence(job, result.changed));
    }
    if !session.global.json && job.state == JobState::Running {
        print(&sentence(job, result.changed))?;
    }
    let job = follow(session, job.id)?;
    let ended = JobResult { changed: result.changed, job: Some(job), plan: None };
    session.output().show(&ended, |ended| ended.job.as_ref().map(end_text).unwrap_or_default())?;
    ended.job.as_ref().map_or(Ok(()), judge)
}

/// Whether a job that was waited for has done what it was for.
pub fn judge(job: &JobInfo) -> Outcome {
    if job.state == JobState::Done && job.reason.is_none() {
        return Ok(());
    }
    let reason = job.reason.as_deref().unwrap_or(state_word(job.state));
    let lacks = if job.scrubbed.is_some() { "has not repaired everything" } else { "has not moved everything" };
    let failure = Failure::new(ErrorKind::Failed, format!("job {} {lacks}: {reason}", job.id));
    Err(match job.state {
        _ if job.scrubbed.is_some() => failure.hint("'spanblk vhd scrub' then looks once more"),
        JobState::Cancelled => failure.hint("its layout is the new one all the same: 'spanblk vhd settle' goes on"),
        _ => failure.hint(format!("'spanblk job resume {}' goes on with it", job.id)),
    })
}

/// Looks at a job until it has ended, stopped, or been paused.
pub fn follow(session: &Session, id: u32) -> Result<JobInfo, Failure> {
    let client = session.client()?;
    let show = !session.global.json;
    let bar = if show && std::io::stderr().is_terminal() { Some(bar()) } else { None };
    let mut told = clock::now();
    loop {
        let job = fetch(&client, id)?;
        if job.state != JobState::Running {
            if let Some(bar) = &bar {
                bar.finish_and_clear();
            }
            return Ok(job);
        }
        match &bar {
            Some(bar) => {
                bar.set_length(job.moved_bytes + job.left_bytes);
                bar.set_position(job.moved_bytes);
                bar.set_message(if job.waiting { "waiting".to_owned() } else { pace(&job) });
            }
            None if show && clock::now() >= told.after(LINE) => {
                eprintln!("{}", progress(&job));
                told = clock::now();
            }
            None => {}
        }
        std::thread::sleep(LOOK);
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {msg}");
    let bar = ProgressBar::new(0);
    bar.set_style(style.expect("a template of known fields"));
    bar
}

fn pace(job: &JobInfo) -> String {
    match job.eta_secs {
        Some(eta) => format!("{}/s, {eta} s left", human_size(job.rate_bytes)),
        None => String::new(),
    }
}

fn progress(job: &JobInfo) -> String {
    let (moved, left) = (human_size(job.moved_bytes), human_size(job.left_bytes));
    format!("job {}: {moved} moved, at most {left} left {}", job.id, pace(job)).trim_end().to_owned()
}

/// The word for a state.
#[must_use]
pub fn state_word(state: JobState) -> &'static str {
    match state {
        JobState::Running => "running",
        JobState::Paused => "paused",
        JobState::Stopped => "stopped",
        JobState::Done => "done",
        JobState::Cancelled => "cancelled",
    }
}

fn state_text(job: &JobInfo) -> String {
    let word = state_word(job.state);
    if job.waiting && job.state == JobState::Running { format!("{word} (waits for its turn)") } else { word.to_owned() }
}

fn subject(job: &JobInfo) -> String {
    match (&job.disk, &job.vhds[..]) {
        (Some(disk), _) => match &job.replacement {
            Some(new) => format!("disk {disk} by {new}"),
            None => format!("disk {disk}"),
        },
        (None, []) => "-".to_owned(),
        (None, vhds) => vhds.join(","),
    }
}

fn sentence(job: &JobInfo, changed: bool) -> String {
    let note = if changed { "" } else { ": nothing changed" };
    let reason = job.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    format!("job {} ({} {}) is {}{reason}{note}\n", job.id, job.kind, subject(job), state_text(job))
}

pub fn end_text(job: &JobInfo) -> String {
    let mut text = sentence(job, true);
    if job.state == JobState::Done {
        let (moved, waits) = (human_size(job.moved_bytes), job.waits);
        let (copied, being) = if job.scrubbed.is_some() { ("read", "read") } else { ("copied", "copied") };
        text.push_str(&format!("{moved} {copied}; {waits} guest requests waited for a block that was being {being}\n"));
    }
    if let Some(found) = &job.scrubbed {
        text.push_str(&scrubbed_text(found));
        text.push('\n');
    }
    text
}

fn scrubbed_text(found: &Scrubbed) -> String {
    match found.damaged_replicas {
        0 => "no replica was damaged".to_owned(),
        damaged => {
            format!("{damaged} replicas of extents were damaged, {} of them were repaired", found.repaired_replicas)
        }
    }
}

/// Whether nothing can come after its state.
#[must_use]
pub fn has_ended(job: &JobInfo) -> bool {
    matches!(job.state, JobState::Done | JobState::Cancelled)
}

/// The jobs that have not ended.
pub fn unfinished(client: &Client) -> Result<Vec<JobInfo>, Failure> {
    let JobList { mut jobs } = client.get("/jobs")?;
    jobs.retain(|job| !has_ended(job));
    Ok(jobs)
}

/// The job among `jobs` that moves a VHD.
#[must_use]
pub fn about<'a>(jobs: &'a [JobInfo], vhd: &str) -> Option<&'a JobInfo> {
    jobs.iter().find(|job| job.vhds.iter().any(|name| name == vhd))
}

/// Which job it is and how it is, in a few words.
#[must_use]
pub fn brief(job: &JobInfo) -> String {
    format!("job {} ({}) is {}", job.id, job.kind, state_text(job))
}

/// Jobs as a table.
#[must_use]
pub fn table(jobs: &[JobInfo]) -> String {
    let mut table = Table::new(&[">Job", "Kind", "Of", "State", ">Moved", ">Left", ">Per second", ">Waits", "Reason"]);
    for job in jobs {
        table.row(vec![
            job.id.to_string(),
            job.kind.clone(),
            subject(job),
            state_text(job),
            human_size(job.moved_bytes),
            human_size(job.left_bytes),
            if job.rate_bytes == 0 { "-".to_owned() } else { human_size(job.rate_bytes) },
            job.waits.to_string(),
            job.reason.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table.render()
}

fn details(job: &JobInfo) -> String {
    let rate = |rate: Option<u64>| {
        rate.map_or_else(|| "as fast as guests bear".to_owned(), |r| format!("{}/s", human_size(r)))
    };
    facts(&[
        ("Job", job.id.to_string()),
        ("Kind", job.kind.clone()),
        ("State", state_text(job)),
        ("Reason", job.reason.clone().unwrap_or_else(|| "-".to_owned())),
        ("Of", subject(job)),
        ("VHDs done", format!("{} of {}", job.vhds_done, job.vhds.len())),
        ("Moved", human_size(job.moved_bytes)),
        ("Left", format!("at most {}", human_size(job.left_bytes))),
        ("Rate", format!("{}/s", human_size(job.rate_bytes))),
        ("Time left", job.eta_secs.map_or_else(|| "-".to_owned(), |eta| format!("{eta} s"))),
        ("Waits caused", job.waits.to_string()),
        ("Unreadable extents", job.unreadable_extents.to_string()),
        ("Scrubbed", job.scrubbed.as_ref().map_or_else(|| "-".to_owned(), scrubbed_text)),
        ("Limit", rate(job.max_rate_bytes)),
        ("Priority", if job.urgent { "urgent" } else { "normal" }.to_owned()),
    ])
}

/// What would be moved, as a table.
pub fn plan_text(plan: &PlanInfo) -> String {
    let lost = lost_text(plan);
    if plan.vhds.iter().all(|vhd| vhd.extents == 0) {
        return format!("{lost}nothing would be moved\n");
    }
    let mut table = Table::new(&["VHD", "Disk", ">Extents now", ">Afterwards", ">To copy"]);
    for vhd in &plan.vhds {
        for (i, disk) in vhd.disks.iter().enumerate() {
            let first = i == 0;
            table.row(vec![
                if first { vhd.vhd.clone() } else { String::new() },
                disk.disk.clone(),
                disk.before.to_string(),
                disk.after.to_string(),
                if first { human_size(vhd.bytes) } else { String::new() },
            ]);
        }
    }
    let total = human_size(plan.total_bytes);
    format!("{lost}{}at most {total} would be copied (blocks that were never written are not)\n", table.render())
}

/// What is lost, by VHD.
fn lost_text(plan: &PlanInfo) -> String {
    if plan.lost_bytes == 0 {
        return String::new();
    }
    let mut table = Table::new(&["VHD", ">Lost", ">Offset", ">Length"]);
    for vhd in plan.vhds.iter().filter(|vhd| vhd.lost_bytes > 0) {
        let (mut name, mut lost) = (vhd.vhd.clone(), human_size(vhd.lost_bytes));
        for range in &vhd.lost_ranges {
            let row = [std::mem::take(&mut name), std::mem::take(&mut lost)];
            table.row([row, [range.offset_bytes.to_string(), range.length_bytes.to_string()]].concat());
        }
        if vhd.lost_ranges.iter().map(|range| range.length_bytes).sum::<u64>() < vhd.lost_bytes {
            table.row(vec![String::new(), String::new(), "...".to_owned(), String::new()]);
        }
    }
    let total = human_size(plan.lost_bytes);
    format!(
        "Only failed disks have these {total}, which are LOST unless one of those disks comes back:\n{}\n",
        table.render()
    )
}
