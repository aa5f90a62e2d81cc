//! `/api/v1/jobs`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::Api;
use super::error::{ApiError, wrong_reply};
use super::pool::ask_pool;
use super::request::{JsonBody, Name};
use crate::base::clock;
use crate::base::ids::JobId;
use crate::control::convert;
use crate::control::wire::{
    ErrorBody, ErrorInfo, ErrorKind, JobCancel, JobCreate, JobInfo, JobList, JobResult, JobUpdate, JobWish,
};
use crate::owner::command::{Command, Outcome, Reply};

/// The number in a path.
fn number(text: &str) -> Result<JobId, ApiError> {
    let unknown = || ApiError(ErrorInfo::new(ErrorKind::NotFound, format!("there is no job '{text}'")));
    text.parse().map(JobId).map_err(|_| unknown())
}

/// All jobs that have not ended, and the last ones that have.
#[utoipa::path(get, path = "/api/v1/jobs", tag = "jobs",
    responses((status = 200, body = JobList), (status = "default", body = ErrorBody)))]
pub async fn list(State(api): State<Api>) -> Result<Json<JobList>, ApiError> {
    match api.owner.ask(Command::ListJobs).await? {
        Reply::Jobs(jobs) => Ok(Json(JobList { jobs: jobs.into_iter().map(convert::job_info).collect() })),
        _ => Err(wrong_reply()),
    }
}

/// One job.
#[utoipa::path(get, path = "/api/v1/jobs/{job}", tag = "jobs", params(("job" = u32, Path, description = "Its number")),
    responses((status = 200, body = JobInfo), (status = "default", body = ErrorBody)))]
pub async fn show(State(api): State<Api>, Name(job): Name) -> Result<Json<JobInfo>, ApiError> {
    match api.owner.ask(Command::ShowJob(number(&job)?)).await? {
        Reply::Job { job, .. } => Ok(Json(convert::job_info(*job))),
        _ => Err(wrong_reply()),
    }
}

/// Moves VHDs while their guests work: creates a job, unless nothing is to be moved or it is only asked what would be.
#[utoipa::path(post, path = "/api/v1/jobs", tag = "jobs", request_body = JobCreate,
    responses((status = 201, body = JobResult), (status = 200, body = JobResult), (status = "default", body = ErrorBody)))]
pub async fn create(
    State(api): State<Api>,
    JsonBody(request): JsonBody<JobCreate>,
) -> Result<(StatusCode, Json<JobResult>), ApiError> {
    if request.max_rate_bytes == Some(0) {
        let error = ErrorInfo::new(ErrorKind::Invalid, "'max_rate_bytes' cannot be 0: pause the job instead");
        return Err(ApiError(error));
    }
    let evacuated = match &request.wish {
        JobWish::Evacuate { disk, .. } if !request.dry_run => Some(disk.clone()),
        _ => None,
    };
    let reply = api.owner.ask(Command::StartJob(Box::new(convert::start_job(request, clock::wall_secs())))).await?;
    if let Some(disk) = evacuated {
        label_follows(&api, &disk).await?;
    }
    let created = matches!(reply, Reply::Job { .. });
    Ok((if created { StatusCode::CREATED } else { StatusCode::OK }, result(reply)?))
}

/// The role of a disk that is evacuated has changed: its label is to say so, too.
pub(super) async fn label_follows(api: &Api, disk: &str) -> Result<(), ApiError> {
    let pool = ask_pool(api).await?;
    if let Some(record) = pool.record.find_disk(disk).cloned() {
        let host = api.host.clone();
        // Nobody waits for it: a disk may hang, and the store has the change.
        drop(tokio::task::spawn_blocking(move || host.disk_changed(&record)));
    }
    Ok(())
}

/// Pauses a job, goes on with it, or changes its speed.
#[utoipa::path(patch, path = "/api/v1/jobs/{job}", tag = "jobs", params(("job" = u32, Path, description = "Its number")),
    request_body = JobUpdate, responses((status = 200, body = JobResult), (status = "default", body = ErrorBody)))]
pub async fn set(
    State(api): State<Api>,
    Name(job): Name,
    JsonBody(update): JsonBody<JobUpdate>,
) -> Result<Json<JobResult>, ApiError> {
    if update.max_rate_bytes == Some(Some(0)) {
        let error = ErrorInfo::new(ErrorKind::Invalid, "'max_rate_bytes' cannot be 0: pause the job instead");
        return Err(ApiError(error));
    }
    result(api.owner.ask(Command::SetJob(convert::set_job(number(&job)?, &update))).await?)
}

/// Ends a job. What it has moved stays where it is, unless it is to be moved back.
#[utoipa::path(post, path = "/api/v1/jobs/{job}/cancel", tag = "jobs",
    params(("job" = u32, Path, description = "Its number")), request_body = JobCancel,
    responses((status = 200, body = JobResult), (status = "default", body = ErrorBody)))]
pub async fn cancel(
    State(api): State<Api>,
    Name(job): Name,
    JsonBody(request): JsonBody<JobCancel>,
) -> Result<Json<JobResult>, ApiError> {
    let command = Command::CancelJob { job: number(&job)?, revert: request.revert, now: clock::wall_secs() };
    result(api.owner.ask(command).await?)
}

fn result(reply: Reply) -> Result<Json<JobResult>, ApiError> {
    match reply {
        Reply::Job { outcome, job } => {
            let job = Some(convert::job_info(*job));
            Ok(Json(JobResult { changed: outcome != Outcome::Unchanged, job, plan: None }))
        }
        Reply::Plan(plan) => Ok(Json(JobResult { changed: false, job: None, plan: Some(convert::plan_info(*plan)) })),
        _ => Err(wrong_reply()),
    }
}
