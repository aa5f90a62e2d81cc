//! Wishes that contradict each other, or that this pool can never meet: refused with the numbers.

use std::collections::BTreeSet;

use super::super::observe::{Disk, Health, Pool, Vhd};
use super::{Mode, Rules, Wanted};
use crate::base::limits::{POLICY_WAIT_SECS_MAX, REPLICAS_MAX};
use crate::placement::record::Accept;

/// Why rules cannot be had. Percentages and milliseconds are what was asked for and what there is.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RuleError {
    /// A part that is none.
    #[error("{name} is {percent:.1} %: give between {least:.1} % and {most:.1} %")]
    Percentage {
        /// The setting.
        name: &'static str,
        /// What was asked for.
        percent: f64,
        /// The least.
        least: f64,
        /// The most.
        most: f64,
    },
    /// So long that it could never be.
    #[error("{name} is {secs} seconds: give {most} seconds, which is a year, or less")]
    TooLong {
        /// The setting.
        name: &'static str,
        /// What was asked for.
        secs: u64,
        /// The most.
        most: u64,
    },
    /// Nothing could ever be over.
    #[error(
        "difference is {difference:.1} % and {name} {limit:.1} %: what reaches the limit could never be over; give a smaller difference"
    )]
    Difference {
        /// The setting that it is compared with.
        name: &'static str,
        /// The difference.
        difference: f64,
        /// The limit.
        limit: f64,
    },
    /// Something may be moved, and nothing may be.
    #[error("the mode is auto, but {name} is 0, so that nothing could be moved: give more, or use mode=advise")]
    AutoWithoutMeans {
        /// The setting.
        name: &'static str,
    },
    /// It is always quiet.
    #[error("the quiet hours begin and end at minute {minute} of the day: give different times, or none")]
    AlwaysQuiet {
        /// The minute.
        minute: u16,
    },
    /// No disk could take anything.
    #[error(
        "space is {space:.1} %, but every disk that works and accepts VHDs is fuller: {emptiest} has least, {fill:.1} %; no placement \
         would be legal: give more, or add a disk"
    )]
    NoPlacement {
        /// The limit.
        space: f64,
        /// The disk that is least full.
        emptiest: String,
        /// How full it is.
        fill: f64,
    },
    /// No disk takes anything, whatever its room.
    #[error(
        "none of {disks} disks works and accepts VHDs: no placement would be legal; see `spanblk disk set --accept`"
    )]
    NoDisk {
        /// Disks of the pool.
        disks: usize,
    },
    /// More replicas than there can be.
    #[error("VHD '{vhd}' should survive {survives} disks: that takes {needed} replicas, and there can be {most}")]
    Replicas {
        /// The VHD.
        vhd: String,
        /// Disks to survive.
        survives: u8,
        /// Replicas that this takes.
        needed: usize,
        /// Replicas that there can be.
        most: usize,
    },
    /// More failure domains than there are.
    #[error(
        "VHD '{vhd}' should survive {survives} disks: that takes {needed} failure domains with a disk that works, and the pool has \
         {domains}"
    )]
    Domains {
        /// The VHD.
        vhd: String,
        /// Disks to survive.
        survives: u8,
        /// Domains that this takes.
        needed: usize,
        /// Domains that there are.
        domains: usize,
    },
    /// Faster than any disk.
    #[error(
        "VHD '{vhd}' should be served within {asked:.3} ms on average, and the fastest disk of the pool, {disk}, takes {best:.3} ms when it \
         has nothing else to do"
    )]
    Latency {
        /// The VHD.
        vhd: String,
        /// Milliseconds asked for.
        asked: f64,
        /// The fastest disk.
        disk: String,
        /// Its milliseconds.
        best: f64,
    },
    /// More than it may have.
    #[error("VHD '{vhd}' should get {asked} requests a second, and is limited to {limit}: change one of them")]
    AboveLimit {
        /// The VHD.
        vhd: String,
        /// Requests a second asked for.
        asked: u64,
        /// Its limit.
        limit: u64,
    },
    /// More than all disks together can do.
    #[error(
        "VHD '{vhd}' should get {asked} requests a second, and all disks together can usually serve about {most:.0}"
    )]
    AboveDisks {
        /// The VHD.
        vhd: String,
        /// Requests a second asked for.
        asked: u64,
        /// What the disks can do.
        most: f64,
    },
}

impl Rules {
    /// Whether these rules can be kept in this pool.
    ///
    /// # Errors
    /// The first contradiction, or the first target that cannot be reached, with the numbers.
    pub fn check(&self, pool: &Pool) -> Result<(), RuleError> {
        self.check_numbers()?;
        self.check_space(pool)?;
        let mut vhds: Vec<&Vhd> = pool.vhds.iter().collect();
        vhds.sort_by_key(|vhd| vhd.id);
        let wanted: Vec<(&Vhd, Wanted)> = vhds.into_iter().map(|vhd| (vhd, self.of(vhd))).collect();
        let is_auto = |wanted: &Wanted| wanted.mode == Mode::Auto;
        if self.all.mode == Some(Mode::Auto) || wanted.iter().any(|(_, wanted)| is_auto(wanted)) {
            let means = [("moves", self.moves_max == 0), ("moved-a-day", self.moved_a_day <= 0.0)];
            if let Some((name, _)) = means.into_iter().find(|(_, is_none)| *is_none) {
                return Err(RuleError::AutoWithoutMeans { name });
            }
        }
        wanted.iter().filter(|(_, wanted)| wanted.mode != Mode::Off).try_for_each(|(vhd, wanted)| {
            check_tolerance(pool, vhd, *wanted)?;
            check_speed(pool, vhd, *wanted)
        })
    }

    /// Whether these rules can be kept in any pool.
    ///
    /// # Errors
    /// The first number that cannot be.
    pub fn check_numbers(&self) -> Result<(), RuleError> {
        let parts = [
            ("space", self.space, 0.05, 0.95),
            ("difference", self.difference, 0.005, 0.5),
            ("imbalance", self.imbalance, 0.005, 0.5),
            ("moved-a-day", self.moved_a_day, 0.0, 1.0),
        ];
        for (name, value, least, most) in parts {
            if !(least..=most).contains(&value) {
                let (percent, least, most) = (100.0 * value, 100.0 * least, 100.0 * most);
                return Err(RuleError::Percentage { name, percent, least, most });
            }
        }
        let times = [
            ("hold", self.hold_secs),
            ("comfort-hold", self.comfort_hold_secs),
            ("rest", self.rest_secs),
            ("outcome", self.outcome_secs),
        ];
        if let Some((name, secs)) = times.into_iter().find(|(_, secs)| *secs > POLICY_WAIT_SECS_MAX) {
            return Err(RuleError::TooLong { name, secs, most: POLICY_WAIT_SECS_MAX });
        }
        if self.difference >= self.space {
            let (difference, limit) = (100.0 * self.difference, 100.0 * self.space);
            return Err(RuleError::Difference { name: "space", difference, limit });
        }
        match self.quiet {
            Some(quiet) if quiet.from == quiet.to => Err(RuleError::AlwaysQuiet { minute: quiet.from }),
            _ => Ok(()),
        }
    }

    fn check_space(&self, pool: &Pool) -> Result<(), RuleError> {
        let open = working(pool).filter(|disk| disk.accept != Accept::None);
        let fill = |disk: &Disk| 1.0 - f64::from(disk.free) / f64::from(disk.slots.max(1));
        let Some(emptiest) = open.min_by(|a, b| fill(a).total_cmp(&fill(b)).then(a.id.cmp(&b.id))) else {
            return Err(RuleError::NoDisk { disks: pool.disks.len() });
        };
        if fill(emptiest) >= self.space {
            let (space, fill) = (100.0 * self.space, 100.0 * fill(emptiest));
            return Err(RuleError::NoPlacement { space, emptiest: emptiest.name.clone(), fill });
        }
        Ok(())
    }
}

fn working(pool: &Pool) -> impl Iterator<Item = &Disk> {
    pool.disks.iter().filter(|disk| disk.health != Health::Failed)
}

fn check_tolerance(pool: &Pool, vhd: &Vhd, wanted: Wanted) -> Result<(), RuleError> {
    let (survives, needed) = (wanted.survives, usize::from(wanted.survives) + 1);
    let vhd = || vhd.name.clone();
    if needed > REPLICAS_MAX {
        return Err(RuleError::Replicas { vhd: vhd(), survives, needed, most: REPLICAS_MAX });
    }
    let domains = working(pool).map(|disk| disk.domain).collect::<BTreeSet<u32>>().len();
    if needed > 1 && domains < needed {
        return Err(RuleError::Domains { vhd: vhd(), survives, needed, domains });
    }
    Ok(())
}

fn check_speed(pool: &Pool, vhd: &Vhd, wanted: Wanted) -> Result<(), RuleError> {
    let fastest = working(pool).min_by_key(|disk| (disk.kind.usual_latency_ns(), disk.id));
    if let Some(disk) = fastest.filter(|disk| disk.kind.usual_latency_ns() > wanted.latency_ns) {
        let millis = |nanos: u64| nanos as f64 / 1e6;
        let (asked, best) = (millis(wanted.latency_ns), millis(disk.kind.usual_latency_ns()));
        return Err(RuleError::Latency { vhd: vhd.name.clone(), asked, disk: disk.name.clone(), best });
    }
    let Some(asked) = wanted.iops else { return Ok(()) };
    if let Some(limit) = vhd.limits.iops.filter(|limit| limit.per_sec < asked) {
        return Err(RuleError::AboveLimit { vhd: vhd.name.clone(), asked, limit: limit.per_sec });
    }
    let most: f64 = working(pool).map(|disk| disk.kind.usual_iops()).sum();
    if asked as f64 > most {
        return Err(RuleError::AboveDisks { vhd: vhd.name.clone(), asked, most });
    }
    Ok(())
}
