//! What is simulated, as people write it: `key=value`, separated by commas, spaces or lines; `#` begins a comment.

use crate::base::limits::DISKS_MAX;
use crate::base::size::parse_size;

/// A kind of host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostKind {
    /// NVMe disks.
    Nvme,
    /// SSDs behind SATA.
    Ssd,
    /// A quarter NVMe disks, twice as large as the SSDs that the others are.
    Mixed,
    /// Rotating disks.
    Hdd,
}

impl HostKind {
    fn parse(text: &str) -> Option<HostKind> {
        Some(match text {
            "nvme" => HostKind::Nvme,
            "ssd" => HostKind::Ssd,
            "mixed" => HostKind::Mixed,
            "hdd" => HostKind::Hdd,
            _ => return None,
        })
    }
}

/// What is simulated.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Hosts.
    pub hosts: u32,
    /// Kinds of hosts, and how many parts of all are of each.
    pub fleet: Vec<(HostKind, u32)>,
    /// Disks of a host.
    pub disks: u32,
    /// VHDs of a host at the beginning, about.
    pub vhds: u32,
    /// Days.
    pub days: u32,
    /// Days at the beginning that are not measured, but for the bytes moved.
    pub warmup: u32,
    /// Bytes of an extent in the simulation: larger than in a pool, so that there are fewer of them.
    pub extent: u64,
    /// Part of the capacity that is written at the beginning.
    pub fill: f64,
    /// By which part VHDs grow in a day, on average.
    pub growth: f64,
    /// Part of what all disks of a host can do that is asked for, on average over a day.
    pub load: f64,
    /// Part of the VMs that go in a day, and others come.
    pub churn: f64,
    /// Times a day that some VHD of a host asks for all that it can get.
    pub aggressors: f64,
    /// How unevenly the extents of a VHD are asked for: exponent of a Pareto distribution.
    pub skew: f64,
    /// Bytes a second that one move copies.
    pub move_rate: u64,
    /// Minutes of a step: in each, load and places stay as they are.
    pub step: u32,
    /// Minutes between two looks of the policy: a multiple of the step, or it is rounded up to one.
    pub look: u32,
    /// Part of the capacity that the policy may move in a day.
    pub moved_a_day: f64,
    /// Whether disks are shared out fairly, as the daemon does.
    pub fair_shares: bool,
}

impl Default for Spec {
    fn default() -> Spec {
        Spec {
            hosts: 20,
            fleet: vec![(HostKind::Nvme, 40), (HostKind::Ssd, 30), (HostKind::Mixed, 15), (HostKind::Hdd, 15)],
            disks: 8,
            vhds: 40,
            days: 6,
            warmup: 3,
            extent: 1 << 30,
            fill: 0.5,
            growth: 0.01,
            load: 0.3,
            churn: 0.05,
            aggressors: 0.5,
            skew: 0.7,
            move_rate: 100 << 20,
            step: 5,
            look: 5,
            moved_a_day: 0.01,
            fair_shares: true,
        }
    }
}

/// The keys: name, meaning, and how the value is written.
pub const KEYS: [(&str, &str, &str); 18] = [
    ("hosts", "hosts", "a whole number from 1 to 10000"),
    ("fleet", "kinds of hosts and their parts", "nvme, ssd, mixed and hdd with numbers, such as nvme:40+hdd:10"),
    ("disks", "disks of a host", "a whole number from 2 to 64"),
    ("vhds", "VHDs of a host at the beginning", "a whole number from 1 to 1000"),
    ("days", "virtual days", "a whole number from 1 to 60"),
    ("warmup", "days that are not measured", "a whole number, less than days"),
    ("extent", "unit of placement", "a size from 64MiB to 16GiB, such as 1GiB"),
    ("fill", "what is written at the beginning, of the capacity", "a percentage up to 95%"),
    ("growth", "growth of VHDs in a day", "a percentage up to 100%"),
    ("load", "what is asked for on average, of what the disks can do", "a percentage up to 200%"),
    ("churn", "VMs that go in a day, and others come", "a percentage up to 100%"),
    ("aggressors", "times a day that a VHD of a host asks for all it can get", "a number from 0 to 24"),
    ("skew", "how unevenly the extents of a VHD are asked for", "a number from 0 to 1.5"),
    ("move-rate", "what one move copies in a second", "a size, such as 100MiB"),
    ("step", "time in which nothing changes", "minutes from 1m to 10m, such as 5m"),
    ("look", "time between two looks of the policy", "minutes from 1m to 60m, such as 10m"),
    ("moved-a-day", "what the policy may move in a day, of the capacity", "a percentage up to 100%, such as 1%"),
    ("fair-shares", "whether each VHD gets its share of a busy disk", "yes or no"),
];

/// Why a specification cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No value.
    #[error("'{word}' is no setting: write key=value, such as hosts=20")]
    NoValue {
        /// What was given.
        word: String,
    },
    /// No such key.
    #[error("there is no setting '{key}': use one of {}", KEYS.map(|known| known.0).join(", "))]
    Unknown {
        /// What was given.
        key: String,
    },
    /// The value, or its unit, is not what it should be.
    #[error("'{value}' is no value of '{key}' ({meaning}): give {form}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it means.
        meaning: &'static str,
        /// How it is written.
        form: &'static str,
        /// What was given.
        value: String,
    },
    /// Nothing would be measured.
    #[error("warmup={warmup} leaves nothing to measure of days={days}: give more days")]
    NothingMeasured {
        /// Days of the warm-up.
        warmup: u32,
        /// All days.
        days: u32,
    },
}

impl Spec {
    /// Reads a specification; what it does not say is as in the default.
    ///
    /// # Errors
    /// What is wrong, by key and unit.
    pub fn parse(text: &str) -> Result<Spec, SpecError> {
        let mut spec = Spec::default();
        let lines = text.lines().map(|line| line.split_once('#').map_or(line, |(before, _)| before));
        for word in lines.flat_map(|line| line.split([',', ' ', '\t'])).filter(|word| !word.is_empty()) {
            let (key, value) = word.split_once('=').ok_or_else(|| SpecError::NoValue { word: word.to_owned() })?;
            let unknown = || SpecError::Unknown { key: key.to_owned() };
            let (key, meaning, form) = KEYS.into_iter().find(|known| known.0 == key).ok_or_else(unknown)?;
            spec.set(key, value).ok_or_else(|| SpecError::Value { key, meaning, form, value: value.to_owned() })?;
        }
        if spec.warmup >= spec.days {
            return Err(SpecError::NothingMeasured { warmup: spec.warmup, days: spec.days });
        }
        Ok(spec)
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "hosts" => self.hosts = whole(value, 1, 10_000)?,
            "fleet" => self.fleet = fleet(value)?,
            "disks" => self.disks = whole(value, 2, u32::try_from(DISKS_MAX).ok()?)?,
            "vhds" => self.vhds = whole(value, 1, 1000)?,
            "days" => self.days = whole(value, 1, 60)?,
            "warmup" => self.warmup = whole(value, 0, 59)?,
            "extent" => self.extent = size(value).filter(|size| (64 << 20..=16 << 30).contains(size))?,
            "fill" => self.fill = percentage(value, 0.95)?,
            "growth" => self.growth = percentage(value, 1.0)?,
            "load" => self.load = percentage(value, 2.0)?,
            "churn" => self.churn = percentage(value, 1.0)?,
            "aggressors" => self.aggressors = number(value, 24.0)?,
            "skew" => self.skew = number(value, 1.5)?,
            "move-rate" => self.move_rate = size(value)?,
            "step" => self.step = whole(value.strip_suffix('m')?, 1, 10)?,
            "look" => self.look = whole(value.strip_suffix('m')?, 1, 60)?,
            "fair-shares" => self.fair_shares = yes(value)?,
            _ => self.moved_a_day = percentage(value, 1.0)?,
        }
        Some(())
    }
}

fn whole(text: &str, least: u32, most: u32) -> Option<u32> {
    text.parse().ok().filter(|number| (least..=most).contains(number))
}

fn yes(text: &str) -> Option<bool> {
    match text {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

fn number(text: &str, most: f64) -> Option<f64> {
    text.parse().ok().filter(|number| (0.0..=most).contains(number))
}

fn percentage(text: &str, most: f64) -> Option<f64> {
    number(text.strip_suffix('%')?, 100.0 * most).map(|number| number / 100.0)
}

fn size(text: &str) -> Option<u64> {
    // A number alone would be bytes: nobody means that here.
    text.ends_with(|c: char| c.is_ascii_alphabetic()).then(|| parse_size(text).ok()).flatten().filter(|size| *size > 0)
}

fn fleet(text: &str) -> Option<Vec<(HostKind, u32)>> {
    let part = |part: &str| {
        let (kind, parts) = part.split_once(':')?;
        Some((HostKind::parse(kind)?, whole(parts, 1, 1000)?))
    };
    text.split('+').map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_as_usual() {
        assert_eq!(Spec::parse(""), Ok(Spec::default()));
        let spec = Spec::parse("hosts=3, load=50%\n# many\nfleet=hdd:1+mixed:2 look=5m extent=256MiB").unwrap();
        assert_eq!((spec.hosts, spec.load, spec.look, spec.extent), (3, 0.5, 5, 256 << 20));
        assert_eq!(spec.fleet, [(HostKind::Hdd, 1), (HostKind::Mixed, 2)]);
    }

    #[test]
    fn every_key_is_read_and_other_values_are_refused_by_key_and_form() {
        for (key, _, form) in KEYS {
            let error = Spec::parse(&format!("{key}=soon")).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, SpecError::Value { .. }) && text.contains(key) && text.contains(form), "{text}");
        }
        for (text, says) in [
            ("host=3", "use one of hosts"),
            ("hosts", "key=value"),
            ("load=50", "percentage"),
            ("look=10", "minutes"),
            ("extent=1073741824", "64MiB"),
            ("extent=1MiB", "64MiB"),
            ("fleet=tape:1", "nvme, ssd"),
            ("days=1 warmup=1", "leaves nothing"),
            ("fill=99%", "95%"),
            ("aggressors=NaN", "0 to 24"),
        ] {
            let text_of = Spec::parse(text).unwrap_err().to_string();
            assert!(text_of.contains(says), "{text}: {text_of}");
        }
    }
}
