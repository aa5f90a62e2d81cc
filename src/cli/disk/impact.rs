//! `spanblk disk impact` and `spanblk disk fail`.

use hyper::Method;

use crate::cli::Session;
use crate::cli::args::{DiskFailArgs, DiskImpactArgs};
use crate::cli::client::path_segment;
use crate::cli::output::{Outcome, Table, print, warn};
use crate::cli::pool::format::confirm;
use crate::cli::pool::offline;
use crate::control::wire::size::human_size;
use crate::control::wire::{
    DiskFail, DiskFailed, DiskHealth, ExtentSum, Fate, ImpactInfo, ImpactSum, StoreImpact, VhdImpact,
};

/// Untouched VHDs that are named.
const NAMES_MAX: usize = 20;

/// Tells what the loss of a disk means.
pub fn show(session: &Session, args: &DiskImpactArgs) -> Outcome {
    let impact = match (&args.disk, args.offline.is_empty()) {
        (Some(disk), true) => session.client()?.get(&format!("/disks/{}/impact", path_segment(disk)))?,
        (disk, _) => offline::impact(disk.as_deref(), &args.offline)?,
    };
    session.output().show(&impact, text)?;
    if !session.global.json {
        impact.caveat.iter().for_each(warn);
    }
    Ok(())
}

/// Marks a disk as failed.
pub fn fail(session: &Session, args: &DiskFailArgs) -> Outcome {
    let client = session.client()?;
    let path = format!("/disks/{}/fail", path_segment(&args.disk));
    let ask = |request: &DiskFail| client.send::<_, DiskFailed>(Method::POST, &path, request);
    let before = ask(&DiskFail { dry_run: true, ..DiskFail::default() })?;
    let failed = before.disk.health == DiskHealth::Failed || before.disk.health == DiskHealth::Missing;
    if args.dry_run || failed {
        return session.output().show(&before, |before| {
            let already = if failed { "nothing changed\n\n" } else { "" };
            format!("{already}{}", text(&before.impact))
        });
    }
    if !args.yes {
        if !session.global.json {
            print(&text(&before.impact))?;
        }
        confirm(false, &format!("Nothing more will be read from or written to disk '{}'.", before.disk.name))?;
    }
    let done = ask(&DiskFail { accept_loss: true, force: args.force, dry_run: false })?;
    session.output().show(&done, |done| {
        let told = if args.yes { format!("\n{}", text(&done.impact)) } else { String::new() };
        format!("disk '{}' is marked as failed\n{told}", done.disk.name)
    })
}

/// An impact for people: totals first, then the VHDs, VM by VM.
fn text(impact: &ImpactInfo) -> String {
    let mut text = format!("{}\n\n{}\n{}", headline(impact), totals(impact), store_text(&impact.store));
    let affected = affected(impact);
    if !affected.is_empty() {
        text.push_str(&format!("\n{affected}"));
    }
    let untouched = impact.vms.iter().flat_map(|vm| &vm.vhds).filter(|vhd| vhd.fate == Fate::Untouched);
    let names: Vec<&str> = untouched.map(|vhd| vhd.name.as_str()).collect();
    if !names.is_empty() {
        let more = names.len().saturating_sub(NAMES_MAX);
        let more = if more == 0 { String::new() } else { format!(" and {more} more (--json names all)") };
        let first = &names[..names.len().min(NAMES_MAX)];
        text.push_str(&format!("\nUntouched VHDs: {}{more}\n", first.join(", ")));
    }
    text
}

fn headline(impact: &ImpactInfo) -> String {
    let word = |health| if health == DiskHealth::Missing { "missing" } else { "failed" };
    let state = |disk: &String| impact.gone.iter().find(|gone| gone.disk == *disk).map(|gone| word(gone.health));
    let one = |disk: &String| match state(disk) {
        Some(word) => format!("disk '{disk}' ({word} now)"),
        None => format!("disk '{disk}'"),
    };
    let disks: Vec<String> = impact.disks.iter().map(one).collect();
    let others = impact.gone.iter().filter(|gone| !impact.disks.contains(&gone.disk));
    let others: Vec<String> = others.map(|gone| format!("'{}' ({})", gone.disk, word(gone.health))).collect();
    let also = if others.is_empty() { String::new() } else { format!(", with {} gone already", others.join(", ")) };
    format!("The loss of {}{also}:", disks.join(" and "))
}

fn totals(impact: &ImpactInfo) -> String {
    let mut table = Table::new(&["", ">VMs", ">VHDs", ">Extents", ">Size", ">Written"]);
    let mut row = |name: &str, sum: &ImpactSum| {
        let ImpactSum { vhds, vms, extents } = sum;
        table.row(vec![
            name.to_owned(),
            vms.to_string(),
            vhds.to_string(),
            extents.extents.to_string(),
            human_size(extents.bytes),
            written(extents),
        ]);
    };
    row("lost", &impact.totals.lost);
    row("degraded", &impact.totals.degraded);
    row("untouched", &impact.totals.untouched);
    let before = &impact.totals.lost_before;
    if before.extents > 0 {
        table.row(vec![
            "lost before".to_owned(),
            String::new(),
            String::new(),
            before.extents.to_string(),
            human_size(before.bytes),
            written(before),
        ]);
    }
    table.render()
}

fn written(sum: &ExtentSum) -> String {
    sum.written_bytes.map_or_else(|| "-".to_owned(), human_size)
}

fn store_text(store: &StoreImpact) -> String {
    let StoreImpact { left, needed, keeps_majority, .. } = store;
    let verdict = if *keeps_majority { "it goes on" } else { "NO MAJORITY: no flush of any guest succeeds" };
    format!("Placement table: {left} disks that carry it are left, {needed} are needed: {verdict}\n")
}

/// The VHDs that something happens to.
fn affected(impact: &ImpactInfo) -> String {
    let mut table = Table::new(&["VM", "VHD", "State", ">Lost", ">Written", ">Degraded", ">Untouched", "Notes"]);
    let mut any = false;
    for vm in &impact.vms {
        for vhd in vm.vhds.iter().filter(|vhd| vhd.fate != Fate::Untouched || vhd.lost_before.extents > 0) {
            any = true;
            table.row(vec![
                vm.vm.clone().unwrap_or_else(|| "-".to_owned()),
                vhd.name.clone(),
                fate_word(vhd.fate).to_owned(),
                vhd.lost.extents.to_string(),
                written(&vhd.lost),
                vhd.degraded.extents.to_string(),
                vhd.untouched.extents.to_string(),
                notes(vhd),
            ]);
        }
    }
    if any { table.render() } else { String::new() }
}

fn fate_word(fate: Fate) -> &'static str {
    match fate {
        Fate::Lost => "LOST",
        Fate::Degraded => "degraded",
        Fate::Untouched => "untouched",
    }
}

fn notes(vhd: &VhdImpact) -> String {
    let before = (vhd.lost_before.extents > 0).then(|| format!("{} extents lost before", vhd.lost_before.extents));
    let empty = (vhd.empty_extents > 0).then(|| format!("{} empty extents not writable", vhd.empty_extents));
    let room = vhd.no_room.then(|| "no room for new extents".to_owned());
    let attached = vhd.attached.then(|| "attached".to_owned());
    let notes: Vec<String> = [attached, before, empty, room].into_iter().flatten().collect();
    if notes.is_empty() { "-".to_owned() } else { notes.join("; ") }
}
