//! `/api/v1/.../stats`: what VHDs, VMs and disks did lately, also before the daemon was restarted.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;

use super::Api;
use super::error::{ApiError, wrong_reply};
use super::pool::{ask_pool, blocking};
use super::request::{Name, QueryOf};
use crate::base::clock;
use crate::base::limits::{HOTTEST_EXTENTS, STATS_WINDOW_SECS_MAX};
use crate::base::units::ExtentIndex;
use crate::control::convert::stats_sample;
use crate::control::wire::{ErrorBody, ErrorInfo, ErrorKind, HotExtent, StatsInfo, StatsList, StatsSample};
use crate::metrics::heat::Window;
use crate::metrics::history::{Summary, Tier};
use crate::owner::command::{Command, Reply, VhdInfo};
use crate::shared::VhdState;
use crate::store::history::Subject;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatsQuery {
    window_secs: Option<u64>,
    resolution_secs: Option<u64>,
    #[serde(default)]
    samples: bool,
}

/// The same, once it has been looked at.
struct Asked {
    from: u64,
    to: u64,
    tier: Option<Tier>,
    samples: bool,
}

impl StatsQuery {
    fn asked(self) -> Result<Asked, ApiError> {
        let invalid = |message: String| Err(ApiError(ErrorInfo::new(ErrorKind::Invalid, message)));
        let window = self.window_secs.unwrap_or(3600);
        if !(Tier::Seconds.secs()..=STATS_WINDOW_SECS_MAX).contains(&window) {
            return invalid(format!(
                "window_secs: {window} is not possible: give {} to {STATS_WINDOW_SECS_MAX}, a year",
                Tier::Seconds.secs()
            ));
        }
        let find = |secs| Tier::ALL.into_iter().find(|tier| tier.secs() == secs);
        let tier = match self.resolution_secs.map(|secs| (secs, find(secs))) {
            Some((secs, None)) => {
                return invalid(format!(
                    "resolution_secs: there are no samples of {secs} seconds: give 10 (of the last hour), 300 (week) or 3600 (year)"
                ));
            }
            Some((_, tier)) => tier,
            None => None,
        };
        let to = clock::wall_secs();
        Ok(Asked { from: to.saturating_sub(window), to, tier, samples: self.samples })
    }
}

/// What several subjects did together.
fn together(api: &Api, name: String, subjects: &[Subject], extent_size: u64, asked: &Asked) -> StatsInfo {
    let book = &api.stats;
    let tiers = subjects.iter().filter_map(|subject| book.resolution(*subject, asked.from));
    let tier = asked.tier.or_else(|| tiers.max()).unwrap_or(Tier::Seconds);
    let window = |subject: &Subject| book.window_in(*subject, tier, asked.from, asked.to);
    let mut summary = Summary::new(asked.from, asked.to, tier);
    subjects.iter().filter_map(window).for_each(|other| summary.join(&other));
    let mut parts: Vec<Summary> = Vec::new();
    if asked.samples {
        let mut all: Vec<Summary> =
            subjects.iter().flat_map(|subject| book.samples(*subject, Some(tier), asked.from, asked.to)).collect();
        all.sort_by_key(|sample| sample.from);
        for sample in all {
            match parts.last_mut().filter(|last| last.from == sample.from) {
                Some(last) => last.join(&sample),
                None => parts.push(sample),
            }
        }
    }
    StatsInfo {
        name,
        resolution_secs: tier.secs(),
        summary: stats_sample(&summary, extent_size),
        samples: parts.iter().map(|part| stats_sample(part, extent_size)).collect(),
        hottest: Vec::new(),
    }
}

/// What one VHD did, and its hottest extents.
#[utoipa::path(get, path = "/api/v1/vhds/{vhd}/stats", tag = "vhds",
    params(("vhd" = String, Path, description = "Name or UUID"),
        ("window_secs" = Option<u64>, Query, description = "The last so many seconds: 10 to a year; an hour if not given"),
        ("resolution_secs" = Option<u64>, Query, description = "10, 300 or 3600; the finest that reaches back so far if not given"),
        ("samples" = Option<bool>, Query, description = "With each sample by itself")),
    responses((status = 200, body = StatsInfo), (status = "default", body = ErrorBody)))]
pub async fn vhd(
    State(api): State<Api>,
    Name(vhd): Name,
    QueryOf(query): QueryOf<StatsQuery>,
) -> Result<Json<StatsInfo>, ApiError> {
    let asked = query.asked()?;
    let Reply::Vhd { vhd, .. } = api.owner.ask(Command::ShowVhd { vhd }).await? else { return Err(wrong_reply()) };
    let info = blocking(move || {
        let extent_size = vhd.state.settings.geometry.extent_size();
        let name = vhd.record.name.clone();
        let mut info = together(&api, name, &[Subject::Vhd(vhd.record.id)], extent_size, &asked);
        info.hottest = hottest(&vhd.state);
        info
    });
    Ok(Json(info.await?))
}

/// What the VHDs of a VM did together.
#[utoipa::path(get, path = "/api/v1/vms/{vm}/stats", tag = "vms",
    params(("vm" = String, Path, description = "Name or UUID"),
        ("window_secs" = Option<u64>, Query, description = "As for a VHD"),
        ("resolution_secs" = Option<u64>, Query, description = "As for a VHD"),
        ("samples" = Option<bool>, Query, description = "As for a VHD")),
    responses((status = 200, body = StatsInfo), (status = "default", body = ErrorBody)))]
pub async fn vm(
    State(api): State<Api>,
    Name(vm): Name,
    QueryOf(query): QueryOf<StatsQuery>,
) -> Result<Json<StatsInfo>, ApiError> {
    let asked = query.asked()?;
    let Reply::Vm { vm, .. } = api.owner.ask(Command::ShowVm { vm }).await? else { return Err(wrong_reply()) };
    let info = blocking(move || {
        let subjects: Vec<Subject> = vm.vhds.iter().map(|vhd| Subject::Vhd(vhd.record.id)).collect();
        let extent_size = vm.vhds.first().map_or(0, |vhd| vhd.state.settings.geometry.extent_size());
        together(&api, vm.record.name.clone(), &subjects, extent_size, &asked)
    });
    Ok(Json(info.await?))
}

/// What guests did on a host disk, and the daemon for itself.
#[utoipa::path(get, path = "/api/v1/disks/{disk}/stats", tag = "disks",
    params(("disk" = String, Path, description = "Name or UUID"),
        ("window_secs" = Option<u64>, Query, description = "As for a VHD"),
        ("resolution_secs" = Option<u64>, Query, description = "As for a VHD"),
        ("samples" = Option<bool>, Query, description = "As for a VHD")),
    responses((status = 200, body = StatsInfo), (status = "default", body = ErrorBody)))]
pub async fn disk(
    State(api): State<Api>,
    Name(disk): Name,
    QueryOf(query): QueryOf<StatsQuery>,
) -> Result<Json<StatsInfo>, ApiError> {
    let asked = query.asked()?;
    let pool = ask_pool(&api).await?;
    let Some(record) = pool.record.find_disk(&disk) else {
        return Err(ApiError(ErrorInfo::new(ErrorKind::NotFound, format!("there is no disk '{disk}'"))));
    };
    let (name, subject) = (record.name.clone(), Subject::Disk(record.id));
    Ok(Json(blocking(move || together(&api, name, &[subject], 0, &asked)).await?))
}

/// What all VHDs did, the busiest first.
#[utoipa::path(get, path = "/api/v1/stats", tag = "vhds",
    params(("window_secs" = Option<u64>, Query, description = "As for a VHD"),
        ("resolution_secs" = Option<u64>, Query, description = "As for a VHD"),
        ("samples" = Option<bool>, Query, description = "As for a VHD")),
    responses((status = 200, body = StatsList), (status = "default", body = ErrorBody)))]
pub async fn list(State(api): State<Api>, QueryOf(query): QueryOf<StatsQuery>) -> Result<Json<StatsList>, ApiError> {
    let asked = query.asked()?;
    let Reply::Vhds(vhds) = api.owner.ask(Command::ListVhds).await? else { return Err(wrong_reply()) };
    let list = blocking(move || {
        let info = |vhd: &VhdInfo| {
            let extent_size = vhd.state.settings.geometry.extent_size();
            together(&api, vhd.record.name.clone(), &[Subject::Vhd(vhd.record.id)], extent_size, &asked)
        };
        let mut vhds: Vec<StatsInfo> = vhds.iter().map(info).collect();
        let requests = |of: &StatsSample| of.reads_per_sec + of.writes_per_sec;
        vhds.sort_by(|a, b| requests(&b.summary).total_cmp(&requests(&a.summary)).then_with(|| a.name.cmp(&b.name)));
        StatsList { vhds }
    });
    Ok(Json(list.await?))
}

/// The hottest extents. Reads a word of each.
fn hottest(state: &VhdState) -> Vec<HotExtent> {
    let window = Window::at(clock::now().0);
    let mut hottest: Vec<HotExtent> = Vec::new();
    for extent in 0..state.map.extents() {
        let heat = state.map.heat(ExtentIndex(extent), window);
        let is_hotter = hottest.len() < HOTTEST_EXTENTS || hottest.last().is_some_and(|last| heat > last.heat);
        if heat > 0 && is_hotter {
            let at = hottest.partition_point(|other| other.heat >= heat);
            hottest.insert(at, HotExtent { extent, heat });
            hottest.truncate(HOTTEST_EXTENTS);
        }
    }
    hottest
}
