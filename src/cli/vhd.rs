//! `spanblk vhd`.

use hyper::Method;
use serde::Serialize;

use super::args::{ExpandSetting, JobOptions, ScrubArgs, VhdCommand, VhdCreateArgs, VhdSetArgs};
use super::client::path_segment;
use super::output::{Failure, Outcome, Table, facts};
use super::sharing::in_effect_text;
use super::{Session, attach, capacity, image, job, stats};
use crate::control::wire::size::human_size;
use crate::control::wire::{
    Attachment, ErrorKind, ExpandsBy, IoLimits, JobInfo, JobWish, Layout, RateLimit, VhdCreate, VhdDeleted, VhdHealth,
    VhdInfo, VhdList, VhdRename, VhdResize, VhdResult, VhdUpdate, VmInfo, WhenFull,
};

pub mod map;

/// Runs a command.
pub fn run(session: &Session, command: VhdCommand) -> Outcome {
    match command {
        VhdCommand::Create(args) => create(session, args),
        VhdCommand::List { vm } => {
            let client = session.client()?;
            let mut list: VhdList = client.get("/vhds")?;
            if let Some(vm) = vm {
                // Whoever mistypes a name must hear that there is no such VM.
                let VmInfo { name, .. } = client.get(&format!("/vms/{}", path_segment(&vm)))?;
                list.vhds.retain(|vhd| vhd.vm.as_ref() == Some(&name));
            }
            let jobs = job::unfinished(&client)?;
            session.output().show(&list, |list| table(list, &jobs))
        }
        VhdCommand::Show { vhd, attach } => show(session, &vhd, attach),
        VhdCommand::Map { vhd } => {
            let map = map::fetch(&session.client()?, &vhd)?;
            session.output().show(&map, map::picture)
        }
        VhdCommand::Stats(args) => stats::vhds(session, &args),
        VhdCommand::Span(args) => {
            let disks = (!args.disks.is_empty()).then_some(args.disks);
            job::start(session, JobWish::Span { vhd: args.vhd, disks, width: args.width }, &args.options)
        }
        VhdCommand::Unspan(args) => {
            let wish = JobWish::Unspan { vhd: args.vhd, disk: args.disk, width: args.width };
            job::start(session, wish, &args.options)
        }
        VhdCommand::Migrate(args) => {
            job::start(session, JobWish::Migrate { vhd: args.vhd, disk: args.disk }, &args.options)
        }
        VhdCommand::Settle(args) => job::start(session, JobWish::Settle { vhd: args.vhd }, &args.options),
        VhdCommand::Scrub(args) => scrub(session, args),
        VhdCommand::Set(args) => set(session, args),
        VhdCommand::Resize(args) => {
            let path = format!("/vhds/{}/resize", path_segment(&args.vhd));
            let request = VhdResize { size_bytes: args.size, force: args.force };
            let result: VhdResult = session.client()?.send(Method::POST, &path, &request)?;
            session.output().show(&result, |r| said(r, &format!("resized to {}", human_size(r.vhd.size_bytes))))
        }
        VhdCommand::Rename { vhd, new_name } => {
            let path = format!("/vhds/{}/rename", path_segment(&vhd));
            let result: VhdResult = session.client()?.send(Method::POST, &path, &VhdRename { name: new_name })?;
            session.output().show(&result, |r| said(r, "renamed"))
        }
        VhdCommand::Delete { vhd, force } => {
            let path = format!("/vhds/{}?force={force}", path_segment(&vhd));
            let deleted: VhdDeleted = session.client()?.delete(&path)?;
            session.output().show(&deleted, |deleted| format!("VHD '{}' deleted\n", deleted.name))
        }
        VhdCommand::Import(args) => image::import(session, &args),
        VhdCommand::Export(args) => image::export(session, &args),
    }
}

/// What attaches a VHD.
#[derive(Debug, Serialize)]
struct Fragment {
    vhd: String,
    fragment: String,
}

fn show(session: &Session, vhd: &str, target: Option<super::args::AttachTarget>) -> Outcome {
    let client = session.client()?;
    let info: VhdInfo = client.get(&format!("/vhds/{}", path_segment(vhd)))?;
    match target {
        Some(target) => {
            let attachment = Fragment { vhd: info.name.clone(), fragment: attach::fragment(&info, target) };
            session.output().show(&attachment, |attachment| attachment.fragment.clone())
        }
        None => {
            let jobs = job::unfinished(&client)?;
            session.output().show(&info, |info| details(info, job::about(&jobs, &info.name)))
        }
    }
}

fn scrub(session: &Session, args: ScrubArgs) -> Outcome {
    let ScrubArgs { vhd, wait, max_rate, priority } = args;
    job::start(session, JobWish::Scrub { vhd }, &JobOptions { dry_run: false, wait, max_rate, priority })
}

fn create(session: &Session, args: VhdCreateArgs) -> Outcome {
    let block_bytes = args.block_size.map(|size| u32::try_from(size).unwrap_or(u32::MAX));
    let request = VhdCreate {
        name: args.name,
        size_bytes: args.size,
        layout: args.layout,
        disks: (!args.disks.is_empty()).then_some(args.disks),
        width: args.width,
        replicas: args.replicas,
        thick: args.thick,
        checksums: args.checksums,
        read_only: args.read_only,
        block_bytes,
        queues: args.queues,
        vm: args.vm,
        socket_owner: args.socket_owner,
        socket_mode: args.socket_mode,
        when_full: args.when_full.unwrap_or_default(),
        expand: args.expand,
        limits: args.limits.limits()?,
        sharing: args.sharing.sharing(),
        quota_bytes: capacity::given(args.quota).flatten(),
        reservation_bytes: capacity::given(args.reservation).flatten(),
    };
    let result: VhdResult = session.client()?.send(Method::POST, "/vhds", &request)?;
    session.output().show(&result, |r| {
        let socket = if r.changed { format!("socket: {}\n", r.vhd.socket) } else { String::new() };
        said(r, "created") + &capacity::remarks(args.quota, args.reservation, &r.vhd.capacity) + &socket
    })?;
    served(&result)
}

/// A VHD that no guest can attach is not what was asked for.
fn served(result: &VhdResult) -> Outcome {
    let Some(problem) = &result.vhd.socket_problem else { return Ok(()) };
    let message = format!("VHD '{}' exists, but its socket is not as it should be: {problem}", result.vhd.name);
    Err(Failure::new(ErrorKind::Failed, message)
        .hint("put that right (see 'spanblk vhd set --help') and repeat the command"))
}

fn set(session: &Session, args: VhdSetArgs) -> Outcome {
    if let Some(replicas) = args.replicas {
        return job::start(session, JobWish::Replicas { vhd: args.vhd, replicas }, &args.options);
    }
    if !args.options.is_default() {
        let message = "--dry-run, --max-rate, --priority and --wait go with --replicas";
        return Err(Failure::new(ErrorKind::Invalid, message).hint("other settings hold at once"));
    }
    let or_none = |text: String| if text.is_empty() { None } else { Some(text) };
    let request = VhdUpdate {
        vm: args.vm.map(or_none),
        socket_owner: args.socket_owner.map(or_none),
        socket_mode: args.socket_mode,
        when_full: args.when_full,
        queues: args.queues,
        expand: args.expand.map(ExpandSetting::expand),
        limits: args.limits.update()?,
        sharing: args.sharing.update(),
        quota_bytes: capacity::given(args.quota),
        reservation_bytes: capacity::given(args.reservation),
    };
    if request == VhdUpdate::default() {
        return Err(Failure::new(ErrorKind::Invalid, "nothing to set").hint("see 'spanblk vhd set --help'"));
    }
    let path = format!("/vhds/{}", path_segment(&args.vhd));
    let result: VhdResult = session.client()?.send(Method::PATCH, &path, &request)?;
    let remarks = capacity::remarks(args.quota, args.reservation, &result.vhd.capacity);
    session.output().show(&result, |r| said(r, "changed") + &remarks)?;
    served(&result)
}

fn said(result: &VhdResult, what: &str) -> String {
    let name = &result.vhd.name;
    if result.changed {
        format!("VHD '{name}' {what}\n")
    } else {
        format!("VHD '{name}' is like that already: nothing changed\n")
    }
}

fn layout_word(layout: Layout) -> &'static str {
    match layout {
        Layout::Isolated => "isolated",
        Layout::Spanned => "spanned",
    }
}

fn table(list: &VhdList, jobs: &[JobInfo]) -> String {
    let headers = [
        "Name",
        "State",
        ">Size",
        ">Allocated",
        ">Written",
        ">Quota",
        ">Reserved",
        "Layout",
        "Disks",
        "VM",
        "Attached",
    ];
    let mut table = Table::new(&headers);
    for vhd in &list.vhds {
        let attached = match (&vhd.attached, &vhd.socket_problem) {
            (Some(Attachment { pid: Some(pid), .. }), _) => format!("pid {pid}"),
            (Some(Attachment { pid: None, .. }), _) => "yes".to_owned(),
            (None, Some(_)) => "SOCKET PROBLEM".to_owned(),
            (None, None) => "-".to_owned(),
        };
        table.row(vec![
            vhd.name.clone(),
            health_word(vhd.health).to_owned(),
            human_size(vhd.size_bytes),
            human_size(vhd.allocated_bytes),
            human_size(vhd.written_bytes),
            capacity::brief(vhd.capacity.quota_bytes),
            capacity::brief(vhd.capacity.reservation_bytes),
            layout_word(vhd.layout).to_owned(),
            disks_text(vhd, job::about(jobs, &vhd.name)),
            vhd.vm.clone().unwrap_or_else(|| "-".to_owned()),
            attached,
        ]);
    }
    let problems = list.vhds.iter().filter_map(|vhd| Some((&vhd.name, vhd.problem.as_ref()?)));
    let mut text = table.render();
    problems.clone().take(PROBLEMS_MAX).for_each(|(vhd, problem)| text.push_str(&format!("VHD '{vhd}': {problem}\n")));
    let more = problems.count().saturating_sub(PROBLEMS_MAX);
    if more > 0 {
        text.push_str(&format!("and {more} more, for which 'spanblk vhd show' tells what to do\n"));
    }
    text
}

/// Problems that are told below a list.
const PROBLEMS_MAX: usize = 10;

/// The word for people.
pub fn health_word(health: VhdHealth) -> &'static str {
    match health {
        VhdHealth::Healthy => "healthy",
        VhdHealth::Degraded => "DEGRADED",
        VhdHealth::Partial => "PARTIAL",
    }
}

/// Whether no extent lies on a disk that is not of the VHD's layout, or has too few replicas.
fn is_settled(vhd: &VhdInfo) -> bool {
    vhd.degraded_extents == 0 && vhd.placement.iter().all(|part| vhd.disks.contains(&part.disk))
}

/// The disks of the layout; in brackets others that extents lie on, and the job that moves them.
fn disks_text(vhd: &VhdInfo, job: Option<&JobInfo>) -> String {
    let others = vhd.placement.iter().filter(|part| !vhd.disks.contains(&part.disk));
    let others: Vec<&str> = others.map(|part| part.disk.as_str()).collect();
    let others = (!others.is_empty()).then(|| format!("now also {}", others.join(",")));
    let job = job.map(|job| format!("job {}: {}", job.id, job.kind));
    let notes: Vec<String> = others.into_iter().chain(job).collect();
    let wanted = vhd.disks.join(",");
    if notes.is_empty() { wanted } else { format!("{wanted} ({})", notes.join("; ")) }
}

/// Limits for people.
pub fn limits_text(limits: &IoLimits) -> String {
    let text = |limit: Option<RateLimit>, what: &str, number: fn(u64) -> String| {
        let RateLimit { per_sec, burst } = limit?;
        let burst = burst.map(|burst| format!(" (burst {})", number(burst))).unwrap_or_default();
        Some(format!("{}{what}/s{burst}", number(per_sec)))
    };
    let requests = text(limits.iops, " requests", |count| count.to_string());
    let bytes = text(limits.bytes, "", human_size);
    let texts: Vec<String> = [requests, bytes].into_iter().flatten().collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

fn settled_text(vhd: &VhdInfo, job: Option<&JobInfo>) -> String {
    match (is_settled(vhd), job) {
        (_, Some(job)) => format!("no: {}", job::brief(job)),
        (true, None) => "yes".to_owned(),
        (false, None) if vhd.degraded_extents > 0 => {
            format!("no: {} extents have too few replicas; 'spanblk vhd settle'", vhd.degraded_extents)
        }
        (false, None) => "no: extents lie on other disks; 'spanblk vhd settle'".to_owned(),
    }
}

/// Whether it grows onto other disks when its own are full, and who says so.
fn expand_text(expands: bool, said_by: ExpandsBy, layout: Layout) -> String {
    let why = match (said_by, layout) {
        // What is spanned grows if nobody says otherwise: a daemon that does not know the fields leaves them out.
        (ExpandsBy::Layout, Layout::Spanned) if !expands => {
            return "unknown: this daemon is older and does not tell".to_owned();
        }
        (ExpandsBy::Vhd, _) => "",
        (ExpandsBy::Pool, _) => ": the pool says so",
        (ExpandsBy::Policy, _) => ": the policy may change it (mode auto)",
        (ExpandsBy::Layout, Layout::Spanned) => ": it is spanned",
        (ExpandsBy::Layout, Layout::Isolated) => ": it is isolated",
    };
    format!("{}{why}", if expands { "auto" } else { "never" })
}

fn details(vhd: &VhdInfo, job: Option<&JobInfo>) -> String {
    let yes = |value: bool| if value { "yes" } else { "no" }.to_owned();
    let when_full = match vhd.when_full {
        WhenFull::Queue { wait_secs } => format!("queue:{wait_secs}s"),
        WhenFull::Error {} => "error".to_owned(),
    };
    let attached = match &vhd.attached {
        Some(attachment) => {
            let waiting =
                attachment.waiting.map(|pid| format!("; process {pid} waits for its turn")).unwrap_or_default();
            attachment.pid.map_or("yes".to_owned(), |pid| format!("by process {pid}")) + &waiting
        }
        None => "no".to_owned(),
    };
    let placed: Vec<String> = vhd.placement.iter().map(|p| format!("{} {}", p.disk, p.extents)).collect();
    facts(&[
        ("Name", vhd.name.clone()),
        ("UUID", vhd.uuid.to_string()),
        ("State", health_word(vhd.health).to_owned()),
        ("Problem", vhd.problem.clone().unwrap_or_else(|| "none".to_owned())),
        ("Size", format!("{} ({} bytes)", human_size(vhd.size_bytes), vhd.size_bytes)),
        ("Block size", human_size(vhd.block_bytes.into())),
        ("Layout", layout_word(vhd.layout).to_owned()),
        ("Disks", vhd.disks.join(", ")),
        ("Replicas", vhd.replicas.to_string()),
        ("Settled", settled_text(vhd, job)),
        ("Extents", if placed.is_empty() { "none yet".to_owned() } else { placed.join(", ") }),
        ("Allocated", human_size(vhd.allocated_bytes)),
        ("Written", human_size(vhd.written_bytes)),
        ("Thick", yes(vhd.thick)),
        ("Checksums", yes(vhd.checksums)),
        ("Read-only", yes(vhd.read_only)),
        ("Queues", vhd.queues.to_string()),
        ("VM", vhd.vm.clone().unwrap_or_else(|| "-".to_owned())),
        ("When full", when_full),
        ("Expand", expand_text(vhd.expands, vhd.expands_by, vhd.layout)),
        ("Limits", limits_text(&vhd.limits)),
        ("Share of disks", in_effect_text(vhd)),
        ("Quota", capacity::quota_text(&vhd.capacity)),
        ("Reservation", capacity::reservation_text(&vhd.capacity)),
        ("Cache mode", if vhd.writeback { "writeback" } else { "writethrough" }.to_owned()),
        ("Socket", vhd.socket.clone()),
        ("Socket problem", vhd.socket_problem.clone().unwrap_or_else(|| "none".to_owned())),
        ("Socket mode", vhd.socket_mode.clone()),
        ("Socket owner", vhd.socket_owner.clone().unwrap_or_else(|| "the daemon's user".to_owned())),
        ("Attached", attached),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_whether_it_grows_is_told_and_that_an_older_daemon_does_not() {
        assert_eq!(
            expand_text(true, ExpandsBy::Policy, Layout::Isolated),
            "auto: the policy may change it (mode auto)"
        );
        assert_eq!(expand_text(false, ExpandsBy::Vhd, Layout::Spanned), "never");
        assert_eq!(expand_text(true, ExpandsBy::Layout, Layout::Spanned), "auto: it is spanned");
        // What is left out of an answer is read like this.
        let older = expand_text(false, ExpandsBy::default(), Layout::Spanned);
        assert!(older.starts_with("unknown"), "{older}");
    }
}
