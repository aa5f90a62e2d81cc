//! Settings as people write them: a name, and a value with its unit.

use std::collections::BTreeMap;

use super::{Mode, Quiet, Rules, Wish};
use crate::base::ids::{VhdId, VmId};

/// Whom a setting is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The pool.
    Pool,
    /// A VM.
    Vm(VmId),
    /// A VHD.
    Vhd(VhdId),
}

/// The settings: name, what it means, how it is written, and whether only the pool has it.
pub const SETTINGS: [(&str, &str, &str, bool); 14] = [
    ("mode", "how far the policy may go", "off, advise or auto", false),
    ("latency", "what a request may take on average", "a time, such as 15ms or 500us", false),
    ("iops", "requests a second that are to be served if asked for", "a whole number, or none", false),
    ("survives", "failure domains whose loss is to be survived", "0, 1 or 2", false),
    ("space", "how full a disk may be", "a percentage, such as 80%", true),
    ("difference", "how far below a limit something is over", "a percentage, such as 5%", true),
    ("imbalance", "how differently busy disks may be", "a percentage, such as 5%", true),
    ("hold", "how long something must be so", "a time, such as 10m", true),
    ("comfort-hold", "the same where nothing is urgent", "a time, such as 1h", true),
    ("rest", "how long a moved VHD stays where it is", "a time, such as 6h", true),
    ("outcome", "how long after a change its effect is measured", "a time, such as 30m", true),
    ("moved-a-day", "what may be moved in 24 hours, of the capacity", "a percentage, such as 1%", true),
    ("moves", "moves in flight at most", "a whole number", true),
    ("quiet", "when nothing is started that can wait", "hours, such as 22:00-06:00, or none", true),
];

/// Why a setting cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// There is no such setting.
    #[error("there is no setting '{name}': use one of {}", names())]
    Unknown {
        /// What was given.
        name: String,
    },
    /// It is not a setting of one VM or VHD.
    #[error("'{name}' is a setting of the pool, not of one VM or VHD: set it for the pool")]
    OfPool {
        /// Its name.
        name: &'static str,
    },
    /// The value is not what it should be, or its unit is not.
    #[error("'{value}' is no value of '{name}' ({meaning}): give {form}")]
    Value {
        /// Name of the setting.
        name: &'static str,
        /// What it means.
        meaning: &'static str,
        /// How it is written.
        form: &'static str,
        /// What was given.
        value: String,
    },
}

fn names() -> String {
    SETTINGS.map(|setting| setting.0).join(", ")
}

impl Rules {
    /// Changes one setting. Whether it goes with the others is for [`Rules::check`] to say.
    ///
    /// # Errors
    /// If there is no such setting, or the value or its unit is not one.
    pub fn set(&mut self, scope: Scope, name: &str, value: &str) -> Result<(), SettingError> {
        let unknown = || SettingError::Unknown { name: name.to_owned() };
        let (name, meaning, form, of_pool) = SETTINGS.into_iter().find(|known| known.0 == name).ok_or_else(unknown)?;
        if of_pool && scope != Scope::Pool {
            return Err(SettingError::OfPool { name });
        }
        let done = if of_pool { self.set_of_pool(name, value) } else { self.wish_mut(scope).set(name, value) };
        done.ok_or_else(|| SettingError::Value { name, meaning, form, value: value.to_owned() })
    }

    /// Takes a setting back: as the level above says, or the default.
    ///
    /// # Errors
    /// If there is no such setting.
    pub fn unset(&mut self, scope: Scope, name: &str) -> Result<(), SettingError> {
        let default = Rules::default().settings(Scope::Pool);
        match default.get(name) {
            // What is of the pool alone has a default that can be set.
            Some(value) => self.set(scope, name, value),
            None => {
                let unknown = || SettingError::Unknown { name: name.to_owned() };
                SETTINGS.into_iter().find(|known| known.0 == name).ok_or_else(unknown)?;
                self.wish_mut(scope).unset(name);
                Ok(())
            }
        }
    }

    /// The settings that are there, as they are written.
    #[must_use]
    pub fn settings(&self, scope: Scope) -> BTreeMap<&'static str, String> {
        let own = match scope {
            Scope::Pool => Some(self.all),
            Scope::Vm(vm) => self.vms.get(&vm).copied(),
            Scope::Vhd(vhd) => self.vhds.get(&vhd).copied(),
        };
        let mut settings = own.unwrap_or_default().settings();
        if scope == Scope::Pool {
            let percent = |part: f64| format!("{}%", part * 100.0);
            let quiet = |quiet: Quiet| {
                let time = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
                format!("{}-{}", time(quiet.from), time(quiet.to))
            };
            settings.extend([
                ("space", percent(self.space)),
                ("difference", percent(self.difference)),
                ("imbalance", percent(self.imbalance)),
                ("hold", format!("{}s", self.hold_secs)),
                ("comfort-hold", format!("{}s", self.comfort_hold_secs)),
                ("rest", format!("{}s", self.rest_secs)),
                ("outcome", format!("{}s", self.outcome_secs)),
                ("moved-a-day", percent(self.moved_a_day)),
                ("moves", self.moves_max.to_string()),
                ("quiet", self.quiet.map_or_else(|| "none".to_owned(), quiet)),
            ]);
        }
        settings
    }

    fn wish_mut(&mut self, scope: Scope) -> &mut Wish {
        match scope {
            Scope::Pool => &mut self.all,
            Scope::Vm(vm) => self.vms.entry(vm).or_default(),
            Scope::Vhd(vhd) => self.vhds.entry(vhd).or_default(),
        }
    }

    fn set_of_pool(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "space" => self.space = percentage(value)?,
            "difference" => self.difference = percentage(value)?,
            "imbalance" => self.imbalance = percentage(value)?,
            "hold" => self.hold_secs = nanos(value)? / NANOS_PER_SEC,
            "comfort-hold" => self.comfort_hold_secs = nanos(value)? / NANOS_PER_SEC,
            "rest" => self.rest_secs = nanos(value)? / NANOS_PER_SEC,
            "outcome" => self.outcome_secs = nanos(value)? / NANOS_PER_SEC,
            "moved-a-day" => self.moved_a_day = percentage(value)?,
            "moves" => self.moves_max = value.parse().ok()?,
            _ => self.quiet = if value == "none" { None } else { Some(quiet(value)?) },
        }
        Some(())
    }
}

impl Wish {
    fn settings(self) -> BTreeMap<&'static str, String> {
        let time = |nanos: u64| format!("{}us", nanos / 1000);
        let mode = |mode: Mode| {
            let word = match mode {
                Mode::Off => "off",
                Mode::Advise => "advise",
                Mode::Auto => "auto",
            };
            word.to_owned()
        };
        let all = [
            ("mode", self.mode.map(mode)),
            ("latency", self.latency_ns.map(time)),
            ("iops", self.iops.map(|iops| iops.to_string())),
            ("survives", self.survives.map(|survives| survives.to_string())),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    fn unset(&mut self, name: &str) {
        match name {
            "mode" => self.mode = None,
            "latency" => self.latency_ns = None,
            "iops" => self.iops = None,
            _ => self.survives = None,
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "mode" => {
                self.mode = Some(match value {
                    "off" => Mode::Off,
                    "advise" => Mode::Advise,
                    "auto" => Mode::Auto,
                    _ => return None,
                });
            }
            "latency" => self.latency_ns = Some(nanos(value)?),
            "iops" => self.iops = if value == "none" { None } else { Some(value.parse().ok()?) },
            _ => self.survives = Some(value.parse().ok()?),
        }
        Some(())
    }
}

const NANOS_PER_SEC: u64 = 1_000_000_000;

/// A number with a unit of time, in nanoseconds.
fn nanos(text: &str) -> Option<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let factor = match text[at..].trim() {
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => NANOS_PER_SEC,
        "m" => 60 * NANOS_PER_SEC,
        "h" => 3600 * NANOS_PER_SEC,
        _ => return None,
    };
    text[..at].parse::<u64>().ok()?.checked_mul(factor)
}

/// A number with a percent sign, as part of 1.
fn percentage(text: &str) -> Option<f64> {
    let number: f64 = text.strip_suffix('%')?.trim().parse().ok()?;
    number.is_finite().then_some(number / 100.0)
}

fn quiet(text: &str) -> Option<Quiet> {
    let (from, to) = text.split_once('-')?;
    Some(Quiet { from: minute(from)?, to: minute(to)? })
}

/// `06:30`, in minutes.
fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}
