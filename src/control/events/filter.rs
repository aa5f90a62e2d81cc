//! Which events somebody wants to see. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::control::wire::{Event, Severity};

/// What an event must be about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// This VHD, by name.
    Vhd(String),
    /// This VM, or one of its VHDs, all by name.
    Vm {
        /// The VM.
        vm: String,
        /// Its VHDs.
        vhds: BTreeSet<String>,
    },
    /// This disk, by name.
    Disk(String),
}

/// Which events are wanted. The default wants all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only those that are about this.
    pub about: Option<About>,
    /// Only those that are at least as bad.
    pub severity: Option<Severity>,
}

impl Filter {
    /// Whether the event is wanted.
    #[must_use]
    pub fn wants(&self, event: &Event) -> bool {
        if self.severity.is_some_and(|least| event.severity < least) {
            return false;
        }
        let Some(about) = &self.about else { return true };
        let detail = serde_json::to_value(&event.detail).unwrap_or_default();
        let is_about = |kind: &str, is_meant: &dyn Fn(&str) -> bool| names(&detail, kind).any(is_meant);
        match about {
            About::Vhd(vhd) => is_about("vhd", &|name| name == vhd),
            About::Vm { vm, vhds } => {
                is_about("vm", &|name| name == vm) || is_about("vhd", &|name| vhds.contains(name))
            }
            About::Disk(disk) => is_about("disk", &|name| name == disk),
        }
    }
}

/// The names of things of a kind that an event has. All events call them alike: `vhd`, or `vhds` if there are several; and what is
/// renamed has its old name beside the new one.
fn names<'a>(detail: &'a Value, kind: &str) -> impl Iterator<Item = &'a str> {
    let old = detail.get(kind).and_then(|_| detail.get("old_name"));
    let many = detail.get(format!("{kind}s")).and_then(Value::as_array).into_iter().flatten();
    detail.get(kind).into_iter().chain(old).chain(many).filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::wire::EventDetail;

    fn event(severity: Severity, detail: EventDetail) -> Event {
        Event { seq: 1, time_secs: 0, severity, detail }
    }

    fn about(about: About) -> Filter {
        Filter { about: Some(about), severity: None }
    }

    #[test]
    fn events_are_found_by_what_they_are_about() {
        let attached = event(Severity::Info, EventDetail::VhdAttached { vhd: "a".into(), pid: None });
        let renamed = event(Severity::Info, EventDetail::VhdRenamed { vhd: "b".into(), old_name: "a".into() });
        let expanded = event(Severity::Info, EventDetail::VhdExpanded { vhd: "c".into(), disk: "d0".into() });
        let created = event(Severity::Info, EventDetail::VmCreated { vm: "a".into() });
        let job = event(
            Severity::Info,
            EventDetail::Job {
                job: 1,
                kind: "span".into(),
                state: "done".into(),
                reason: None,
                vhds: vec!["a".into(), "c".into()],
            },
        );
        let all = [&attached, &renamed, &expanded, &created, &job];
        let wanted = |filter: Filter| all.iter().map(|event| filter.wants(event)).collect::<Vec<_>>();
        assert_eq!(wanted(Filter::default()), [true; 5]);
        assert_eq!(wanted(about(About::Vhd("a".into()))), [true, true, false, false, true]);
        assert_eq!(wanted(about(About::Disk("d0".into()))), [false, false, true, false, false]);
        let vhds = ["c".to_owned()].into();
        assert_eq!(wanted(about(About::Vm { vm: "a".into(), vhds })), [false, false, true, true, true]);
    }

    #[test]
    fn what_is_less_bad_is_left_out() {
        let severity = [Severity::Info, Severity::Warning, Severity::Error];
        let filter = Filter { about: None, severity: Some(Severity::Warning) };
        let wants = |severity| filter.wants(&event(severity, EventDetail::DaemonStopping {}));
        assert_eq!(severity.map(wants), [false, true, true]);
    }
}
