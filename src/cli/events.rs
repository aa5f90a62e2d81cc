//! `spanblk events`.

use super::Session;
use super::args::EventsArgs;
use super::client::path_segment;
use super::output::{Outcome, print};
use crate::control::wire::size::human_size;
use crate::control::wire::{Event, EventDetail, ImpactTotals, Severity};

/// Prints events, as they happen with `follow`.
pub fn run(session: &Session, args: &EventsArgs) -> Outcome {
    let json = session.global.json;
    let mut path = format!("/events?follow={}&after={}", args.follow, args.after.unwrap_or(0));
    for (key, name) in [("vhd", &args.vhd), ("vm", &args.vm), ("disk", &args.disk)] {
        if let Some(name) = name {
            path.push_str(&format!("&{key}={}", path_segment(name)));
        }
    }
    if let Some(severity) = args.severity {
        path.push_str(&format!("&severity={}", word(severity)));
    }
    session.client()?.get_lines(&path, |line| {
        let Some(data) = line.strip_prefix("data:") else { return Ok(()) };
        if json {
            return print(&format!("{}\n", data.trim_start()));
        }
        match serde_json::from_str::<Event>(data) {
            Ok(event) => print(&describe(&event)),
            // Of a newer daemon: still worth seeing.
            Err(_) => print(&format!("{}\n", data.trim_start())),
        }
    })
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

fn describe(event: &Event) -> String {
    let severity = word(event.severity);
    let mut text = format!("{:>6}  {}  {severity:7}", event.seq, utc(event.time_secs));
    if let EventDetail::Job { job, kind, state, reason, vhds } = &event.detail {
        let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let vhds = if vhds.is_empty() { String::new() } else { format!("  vhds={}", vhds.join(",")) };
        return format!("{text}  job  {job} ({kind}) is {state}{reason}{vhds}\n");
    }
    let impact = match &event.detail {
        EventDetail::DiskFailed { disk, impact, .. } => impact.as_ref().map(|impact| (disk, impact)),
        EventDetail::DiskMissing { disk, impact, .. } => Some((disk, impact)),
        _ => None,
    };
    let detail = serde_json::to_value(&event.detail).unwrap_or_default();
    if let Some(fields) = detail.as_object() {
        let name = fields.get("event").and_then(|v| v.as_str()).unwrap_or("event");
        text.push_str(&format!("  {name}"));
        for (key, value) in fields.iter().filter(|(key, _)| !matches!(key.as_str(), "event" | "impact")) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text.push_str(&format!("  {key}={value}"));
        }
    }
    if let Some((disk, impact)) = impact {
        let ImpactTotals { lost, degraded, .. } = &impact.totals;
        let written = human_size(lost.extents.written_bytes.unwrap_or(0));
        text.push_str(&format!("  lost: {} VHDs, {written} written; degraded: {} VHDs", lost.vhds, degraded.vhds));
        text.push_str(&format!("; 'spanblk disk impact {disk}' names them"));
    }
    text.push('\n');
    text
}

/// Seconds since 1970 as `2026-01-31T23:59:59Z`.
fn utc(secs: u64) -> String {
    let (mut days, rest) = (secs / 86_400, secs % 86_400);
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for len in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < len {
            break;
        }
        days -= len;
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z", days + 1, rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn dates_are_right() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(utc(4_102_444_799), "2099-12-31T23:59:59Z");
    }

    #[test]
    fn an_event_is_one_line() {
        let event = Event {
            seq: 7,
            time_secs: 0,
            severity: Severity::Info,
            detail: EventDetail::VhdAttached { vhd: "vm1".into(), pid: Some(42) },
        };
        assert_eq!(describe(&event), "     7  1970-01-01T00:00:00Z  info     vhd_attached  pid=42  vhd=vm1\n");
    }

    #[test]
    fn a_job_is_told_in_a_sentence() {
        let job = |state: &str, reason: Option<&str>| Event {
            seq: 7,
            time_secs: 0,
            severity: Severity::Warning,
            detail: EventDetail::Job {
                job: 3,
                kind: "span".into(),
                state: state.into(),
                reason: reason.map(str::to_owned),
                vhds: vec!["a".into(), "b".into()],
            },
        };
        let begin = "     7  1970-01-01T00:00:00Z  warning  job  3 (span) is";
        assert_eq!(describe(&job("done", None)), format!("{begin} done  vhds=a,b\n"));
        assert_eq!(describe(&job("stopped", Some("no room"))), format!("{begin} stopped: no room  vhds=a,b\n"));
    }
}
