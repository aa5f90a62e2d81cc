//! `/api/v1/disks/{disk}/replace`, and what follows when its job is done.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use tokio::sync::broadcast::error::RecvError;

use super::Api;
use super::disks::{add_to_pool, check_same, domain_warning, remove_from_pool};
use super::error::{ApiError, wrong_reply};
use super::jobs::label_follows;
use super::pool::{ask_pool, blocking, to_the_end};
use super::request::{JsonBody, Name};
use crate::base::clock;
use crate::base::ids::DiskId;
use crate::control::convert;
use crate::control::wire::{
    DiskAdd, DiskReplace, DiskReplaced, ErrorBody, ErrorInfo, ErrorKind, EventDetail, PlanInfo, Severity,
};
use crate::mover::messages::Speed;
use crate::owner::command::{self, Command, JobRequest, Outcome, Replacement, Reply, StartJob};
use crate::placement::job::{JobKind, JobState};
use crate::placement::record::{Accept, DiskRecord};

/// Lets another disk take the place of one, while guests work: a job moves everything there, then the old one leaves the pool.
#[utoipa::path(post, path = "/api/v1/disks/{disk}/replace", tag = "disks",
    params(("disk" = String, Path, description = "Name or UUID")), request_body = DiskReplace,
    responses((status = 201, body = DiskReplaced), (status = 200, body = DiskReplaced), (status = "default", body = ErrorBody)))]
pub async fn replace(
    State(api): State<Api>,
    Name(disk): Name,
    JsonBody(request): JsonBody<DiskReplace>,
) -> Result<(StatusCode, Json<DiskReplaced>), ApiError> {
    let invalid = |message: &str| Err(ApiError(ErrorInfo::new(ErrorKind::Invalid, message)));
    if request.max_rate_bytes == Some(0) {
        return invalid("'max_rate_bytes' cannot be 0: pause the job instead");
    }
    match (request.by.clone(), request.add.clone()) {
        (Some(name), None) => to_the_end(by_known(api, disk, Replacement::Disk { name }, request)).await,
        (None, Some(add)) => to_the_end(by_new(api, disk, add, request)).await,
        _ => invalid("give one of 'by' (a disk of the pool) and 'add' (a disk to add to it)"),
    }
}

/// By a disk of the pool.
async fn by_known(
    api: Api,
    disk: String,
    by: Replacement,
    request: DiskReplace,
) -> Result<(StatusCode, Json<DiskReplaced>), ApiError> {
    let _turn = api.changing_disks.lock().await;
    let old = old_disk(&*ask_pool(&api).await?, &disk)?;
    begin(&api, &old, by, &request).await
}

/// By a disk that is to be added: not before it is known that everything fits there.
async fn by_new(
    api: Api,
    disk: String,
    add: DiskAdd,
    request: DiskReplace,
) -> Result<(StatusCode, Json<DiskReplaced>), ApiError> {
    let _turn = api.changing_disks.lock().await;
    let pool = ask_pool(&api).await?;
    let old = old_disk(&pool, &disk)?;
    let (host, path) = (api.host.clone(), add.path.clone());
    if let Some(id) = blocking(move || host.disk_at(&path)).await?
        && let Some(known) = pool.disks.iter().find(|disk| disk.record.id == id)
    {
        check_same(&add, &known.record)?;
        let by = Replacement::Disk { name: known.record.uuid.to_string() };
        return begin(&api, &old, by, &request).await;
    }
    let (host, probed, pool_now, id) = (api.host.clone(), add.clone(), pool.clone(), old.id);
    let joining = blocking(move || host.probe_disk(&probed, &pool_now, Some(id))).await??;
    let asked = start(&old, Replacement::Joining(joining), &request);
    let plan = match api.owner.ask(asked).await? {
        Reply::Plan(plan) => convert::plan_info(*plan),
        _ => return Err(wrong_reply()),
    };
    if request.dry_run {
        return Ok((StatusCode::OK, Json(DiskReplaced { plan: Some(plan), ..DiskReplaced::default() })));
    }
    let (_, new) = add_to_pool(&api, add, *pool, Some(old.id)).await?;
    let warnings = domain_warning(&new);
    let by = Replacement::Disk { name: new.record.uuid.to_string() };
    match begin(&api, &old, by, &request).await {
        Ok((_, Json(result))) => {
            let warnings = warnings.into_iter().chain(result.warnings).collect();
            let result = DiskReplaced { changed: true, plan: Some(plan), warnings, ..result };
            Ok((StatusCode::CREATED, Json(result)))
        }
        Err(error) => {
            if let Err(ApiError(left)) = remove_from_pool(&api, &new.record.uuid.to_string()).await {
                let (new, old) = (&new.record.name, &old.name);
                log::error!("disk '{new}', added to take the place of '{old}', stays in the pool: {}", left.message);
            }
            Err(error)
        }
    }
}

fn old_disk(pool: &command::PoolInfo, disk: &str) -> Result<DiskRecord, ApiError> {
    let unknown = || ApiError(ErrorInfo::new(ErrorKind::NotFound, format!("there is no disk '{disk}'")));
    pool.record.find_disk(disk).cloned().ok_or_else(unknown)
}

fn start(old: &DiskRecord, by: Replacement, request: &DiskReplace) -> Command {
    let (accept_loss, keep) = (request.accept_loss, request.keep);
    Command::StartJob(Box::new(StartJob {
        request: JobRequest::Replace { disk: old.uuid.to_string(), by, accept_loss, keep },
        dry_run: request.dry_run,
        speed: Speed { max_rate: request.max_rate_bytes, urgent: request.urgent },
        created: clock::wall_secs(),
    }))
}

/// Starts the job; the placement store goes to the new disk at once.
async fn begin(
    api: &Api,
    old: &DiskRecord,
    by: Replacement,
    request: &DiskReplace,
) -> Result<(StatusCode, Json<DiskReplaced>), ApiError> {
    let (outcome, job) = match api.owner.ask_for_as_long(start(old, by, request)).await? {
        Reply::Job { outcome, job } => (outcome, job),
        Reply::Plan(plan) => {
            let plan: Option<PlanInfo> = Some(convert::plan_info(*plan));
            return Ok((StatusCode::OK, Json(DiskReplaced { plan, ..DiskReplaced::default() })));
        }
        _ => return Err(wrong_reply()),
    };
    let new = job.record.kind.replacement().ok_or_else(wrong_reply)?;
    let warnings = store_goes_to(api, old, new).await?;
    label_follows(api, &old.uuid.to_string()).await?;
    let known = ask_pool(api).await?.disks.into_iter().find(|disk| disk.record.id == new);
    let disk = known.map(|disk| convert::disk_info(disk, &api.host.open_disks()));
    let job = Some(convert::job_info(*job));
    let result = DiskReplaced { changed: outcome != Outcome::Unchanged, job, plan: None, disk, warnings };
    Ok((StatusCode::CREATED, Json(result)))
}

async fn store_goes_to(api: &Api, old: &DiskRecord, new: DiskId) -> Result<Vec<String>, ApiError> {
    let (host, old_id) = (api.host.clone(), old.id);
    let result = blocking(move || host.succeed_in_store(old_id, new)).await?;
    // It is tried again when the old disk leaves the pool.
    Ok(result.unwrap_or_else(|error| vec![format!("the placement table stays on '{}': {}", old.name, error.message)]))
}

/// Takes disks out of the pool whose replacement is done: those that are so at the start, and then whenever a job ends.
pub async fn remove_replaced(api: Api) {
    let (_, mut events) = api.events.subscribe(u64::MAX);
    loop {
        remove_those(&api).await;
        loop {
            match events.recv().await.map(|event| event.detail) {
                Ok(EventDetail::Job { state, .. }) if state == JobState::Done.word() => break,
                Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => return,
                Ok(_) => {}
            }
        }
    }
}

async fn remove_those(api: &Api) {
    let _turn = api.changing_disks.lock().await;
    let Ok(Reply::Jobs(jobs)) = api.owner.ask(Command::ListJobs).await else { return };
    for job in jobs.iter().map(|job| &job.record).filter(|job| job.state == JobState::Done) {
        let JobKind::Replace { uuid, keep: false, .. } = job.kind else { continue };
        let Ok(pool) = ask_pool(api).await else { return };
        // Somebody may have taken it into use again.
        let old = pool.record.disks.iter().find(|disk| disk.uuid == uuid && disk.accept == Accept::None);
        let Some(old) = old.cloned() else { continue };
        if let Err(ApiError(error)) = remove_from_pool(api, &uuid.to_string()).await {
            let name = &old.name;
            let message = format!(
                "disk '{name}' has been replaced, and could not be removed: {}; 'spanblk disk remove {name}' tries again",
                error.message
            );
            api.events.record(Severity::Error, EventDetail::Note { message });
        }
    }
}
