//! `/api/v1/disks`.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::Api;
use super::error::{ApiError, wrong_reply};
use super::pool::{ask_pool, blocking, to_the_end};
use super::request::{JsonBody, Name};
use crate::base::ids::DiskId;
use crate::control::convert;
use crate::control::wire::{
    DiskAdd, DiskInfo, DiskList, DiskRemoved, DiskResult, DiskUpdate, ErrorBody, ErrorInfo, ErrorKind,
};
use crate::owner::command::{self, Command, Outcome, RemovalStep, Reply};
use crate::placement::record::DiskRecord;

/// How often it is looked whether room that is given back is there, and how long in between.
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// All host disks.
#[utoipa::path(get, path = "/api/v1/disks", tag = "disks",
    responses((status = 200, body = DiskList), (status = "default", body = ErrorBody)))]
pub async fn list(State(api): State<Api>) -> Result<Json<DiskList>, ApiError> {
    let pool = ask_pool(&api).await?;
    let open = api.host.open_disks();
    let disks = pool.disks.into_iter().map(|disk| convert::disk_info(disk, &open)).collect();
    Ok(Json(DiskList { disks }))
}

/// One host disk.
#[utoipa::path(get, path = "/api/v1/disks/{disk}", tag = "disks", params(("disk" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = DiskInfo), (status = "default", body = ErrorBody)))]
pub async fn show(State(api): State<Api>, Name(disk): Name) -> Result<Json<DiskInfo>, ApiError> {
    let pool = ask_pool(&api).await?;
    let id = pool.record.find_disk(&disk).map(|record| record.id);
    match pool.disks.into_iter().find(|info| Some(info.record.id) == id) {
        Some(info) => Ok(Json(convert::disk_info(info, &api.host.open_disks()))),
        None => Err(ApiError(ErrorInfo::new(ErrorKind::NotFound, format!("there is no disk '{disk}'")))),
    }
}

/// Formats a disk and adds it to the pool. The same request again changes nothing.
#[utoipa::path(post, path = "/api/v1/disks", tag = "disks", request_body = DiskAdd,
    responses((status = 201, description = "added", body = DiskResult), (status = 200, description = "was there", body = DiskResult),
        (status = "default", body = ErrorBody)))]
pub async fn add(
    State(api): State<Api>,
    JsonBody(request): JsonBody<DiskAdd>,
) -> Result<(StatusCode, Json<DiskResult>), ApiError> {
    to_the_end(add_disk(api, request)).await
}

async fn add_disk(api: Api, request: DiskAdd) -> Result<(StatusCode, Json<DiskResult>), ApiError> {
    let _turn = api.changing_disks.lock().await;
    let pool = ask_pool(&api).await?;
    let (host, path) = (api.host.clone(), request.path.clone());
    if let Some(id) = blocking(move || host.disk_at(&path)).await?
        && let Some(known) = pool.disks.iter().find(|disk| disk.record.id == id)
    {
        check_same(&request, &known.record)?;
        let disk = convert::disk_info(known.clone(), &api.host.open_disks());
        return Ok((StatusCode::OK, Json(DiskResult { changed: false, disk, warnings: Vec::new() })));
    }
    let (outcome, disk) = add_to_pool(&api, request, *pool, None).await?;
    let mut warnings = domain_warning(&disk);
    let host = api.host.clone();
    warnings.extend(blocking(move || host.fill_store()).await?);
    let disk = convert::disk_info(disk, &api.host.open_disks());
    Ok((StatusCode::CREATED, Json(DiskResult { changed: outcome != Outcome::Unchanged, disk, warnings })))
}

/// Whether the disk fails together with others.
pub(super) fn domain_warning(disk: &command::DiskInfo) -> Vec<String> {
    match disk.shares_domain_with.join(", ").as_str() {
        "" => Vec::new(),
        others => vec![format!("it shares the failure domain '{}' with {others}", disk.record.failure_domain)],
    }
}

/// Labels a disk and lets the owner have it; the caller has the turn.
pub(super) async fn add_to_pool(
    api: &Api,
    request: DiskAdd,
    pool: command::PoolInfo,
    replaces: Option<DiskId>,
) -> Result<(Outcome, command::DiskInfo), ApiError> {
    let host = api.host.clone();
    let prepared = blocking(move || host.prepare_disk(&request, &pool, replaces)).await??;
    let name = prepared.record.name.clone();
    match api.owner.ask_for_as_long(Command::AddDisk(Box::new(prepared))).await {
        Ok(Reply::Disk { outcome, disk }) => Ok((outcome, *disk)),
        Ok(_) => Err(wrong_reply()),
        Err(error) if error.kind == ErrorKind::Unavailable => Err(ApiError(error)),
        Err(error) => {
            let host = api.host.clone();
            blocking(move || host.forget_disk(&name)).await?;
            Err(ApiError(error))
        }
    }
}

/// A disk that is in the pool already must be as it is asked for.
pub(super) fn check_same(request: &DiskAdd, known: &DiskRecord) -> Result<(), ApiError> {
    let (name, path) = (&known.name, &request.path);
    let field = if request.name.as_ref().is_some_and(|asked| asked != name) {
        "name"
    } else if request.failure_domain.as_ref().is_some_and(|asked| *asked != known.failure_domain) {
        "failure domain"
    } else if request.accept != known.accept.into() {
        "role"
    } else {
        return Ok(());
    };
    let message = format!("{path} is disk '{name}' of this pool already, with another {field}: nothing was changed");
    let error = ErrorInfo::new(ErrorKind::Conflict, message);
    Err(ApiError(error.with_hint(format!("see 'spanblk disk show {name}'; 'spanblk disk set' changes it"))))
}

/// Changes a host disk.
#[utoipa::path(patch, path = "/api/v1/disks/{disk}", tag = "disks", params(("disk" = String, Path, description = "Name or UUID")),
    request_body = DiskUpdate, responses((status = 200, body = DiskResult), (status = "default", body = ErrorBody)))]
pub async fn set(
    State(api): State<Api>,
    Name(disk): Name,
    JsonBody(update): JsonBody<DiskUpdate>,
) -> Result<Json<DiskResult>, ApiError> {
    match api.owner.ask(Command::SetDisk(Box::new(convert::set_disk(disk, update)))).await? {
        Reply::Disk { outcome, disk } => {
            if outcome != Outcome::Unchanged {
                let (host, record) = (api.host.clone(), disk.record.clone());
                // Nobody waits for it: a disk may hang, and the store has the change.
                drop(tokio::task::spawn_blocking(move || host.disk_changed(&record)));
            }
            let disk = convert::disk_info(*disk, &api.host.open_disks());
            Ok(Json(DiskResult { changed: outcome != Outcome::Unchanged, disk, warnings: Vec::new() }))
        }
        _ => Err(wrong_reply()),
    }
}

/// Takes an empty disk out of the pool, and wipes its label.
#[utoipa::path(delete, path = "/api/v1/disks/{disk}", tag = "disks", params(("disk" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = DiskRemoved), (status = "default", body = ErrorBody)))]
pub async fn remove(State(api): State<Api>, Name(disk): Name) -> Result<Json<DiskRemoved>, ApiError> {
    to_the_end(async move {
        let _turn = api.changing_disks.lock().await;
        remove_from_pool(&api, &disk).await.map(Json)
    })
    .await
}

/// Takes a disk out; the caller has the turn.
pub(super) async fn remove_from_pool(api: &Api, disk: &str) -> Result<DiskRemoved, ApiError> {
    let unused = hold(api, disk).await?;
    let path = api.host.open_disks().remove(&unused.id).map(|open| open.path);
    let (name, uuid, id) = (unused.name.clone(), unused.uuid, unused.id);
    let mut warnings = match take_out(api, unused).await {
        Ok(warnings) => warnings,
        Err(error) => {
            // Its name may be gone, if it has left after all.
            let _ = api.owner.ask_for_as_long(Command::RemoveDisk { disk: name, step: RemovalStep::Release }).await;
            return Err(error);
        }
    };
    let host = api.host.clone();
    warnings.extend(blocking(move || host.remove_disk(id)).await?);
    warnings.iter().for_each(|warning| log::warn!("disk '{name}' was removed: {warning}"));
    Ok(DiskRemoved { name, uuid, path, warnings })
}

/// First from the placement store, then from the pool record.
async fn take_out(api: &Api, disk: DiskRecord) -> Result<Vec<String>, ApiError> {
    let (host, id) = (api.host.clone(), disk.id);
    let warnings = blocking(move || host.leave_store(id)).await??;
    let take = Command::RemoveDisk { disk: disk.name, step: RemovalStep::Take };
    match api.owner.ask_for_as_long(take).await {
        Ok(Reply::DiskRemoved { .. }) => Ok(warnings),
        Ok(_) => Err(wrong_reply()),
        Err(error) => {
            let told = warnings.join("; ");
            Err(ApiError(if told.is_empty() { error } else { error.with_hint(format!("meanwhile: {told}")) }))
        }
    }
}

/// Keeps everything away from a disk that is empty. Room that is on its way back is waited for, for a while.
async fn hold(api: &Api, disk: &str) -> Result<DiskRecord, ApiError> {
    let mut tries = 0;
    loop {
        match api.owner.ask(Command::RemoveDisk { disk: disk.to_owned(), step: RemovalStep::Hold }).await {
            Ok(Reply::Disk { disk, .. }) => return Ok(disk.record),
            Ok(_) => return Err(wrong_reply()),
            Err(error) if error.code.as_deref() == Some("disk_busy") && tries < BUSY_TRIES => {
                tries += 1;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
