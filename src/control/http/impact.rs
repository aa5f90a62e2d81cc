//! `/api/v1/disks/{disk}/impact` and `/fail`.

use axum::Json;
use axum::extract::State;

use super::Api;
use super::error::{ApiError, wrong_reply};
use super::pool::{ask_pool, blocking};
use super::request::{JsonBody, Name};
use crate::base::ids::DiskSet;
use crate::control::convert::impact::{Scene, of_vhds};
use crate::control::convert::{self, Gone};
use crate::control::wire::{DiskFail, DiskFailed, ErrorBody, ErrorInfo, ErrorKind, ImpactInfo};
use crate::owner::command::{self, Command, Outcome, Reply};

/// What the loss of a disk would mean, or has meant: which VHDs and VMs lose data, which have fewer replicas. Nothing changes.
#[utoipa::path(get, path = "/api/v1/disks/{disk}/impact", tag = "disks",
    params(("disk" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = ImpactInfo), (status = "default", body = ErrorBody)))]
pub async fn show(State(api): State<Api>, Name(disk): Name) -> Result<Json<ImpactInfo>, ApiError> {
    Ok(Json(look(&api, &disk).await?.1))
}

/// Marks a disk as failed: nothing more is submitted to it until the pool is opened again. Refused if that loses data or the majority
/// of the placement store, unless the request says otherwise.
#[utoipa::path(post, path = "/api/v1/disks/{disk}/fail", tag = "disks",
    params(("disk" = String, Path, description = "Name or UUID")), request_body = DiskFail,
    responses((status = 200, body = DiskFailed), (status = "default", body = ErrorBody)))]
pub async fn fail(
    State(api): State<Api>,
    Name(disk): Name,
    JsonBody(request): JsonBody<DiskFail>,
) -> Result<Json<DiskFailed>, ApiError> {
    let (before, impact) = look(&api, &disk).await?;
    let open = api.host.open_disks();
    if request.dry_run || before.state.is_failed() {
        let disk = convert::disk_info(before, &open);
        return Ok(Json(DiskFailed { changed: false, disk, impact }));
    }
    may_fail(&before.record.name, &request, &impact)?;
    match api.owner.ask(Command::FailDisk { disk: before.record.uuid.to_string() }).await? {
        Reply::Disk { outcome, disk } => {
            let disk = convert::disk_info(*disk, &open);
            Ok(Json(DiskFailed { changed: outcome != Outcome::Unchanged, disk, impact }))
        }
        _ => Err(wrong_reply()),
    }
}

/// Whether the order covers what comes of it.
fn may_fail(disk: &str, request: &DiskFail, impact: &ImpactInfo) -> Result<(), ApiError> {
    let refused = |code: &str, message: String, hint: String| {
        let error = ErrorInfo { code: Some(code.to_owned()), ..ErrorInfo::new(ErrorKind::Conflict, message) };
        Err(ApiError(error.with_hint(hint)))
    };
    let store = &impact.store;
    if !store.keeps_majority && !request.force {
        let message = format!(
            "without disk '{disk}', {} of the disks that carry the placement table are left, and {} are needed: no flush of any guest \
             would succeed",
            store.left, store.needed
        );
        let hint =
            format!("'spanblk disk replace {disk} NEW' moves the table first; --force fails the disk all the same");
        return refused("loses_store", message, hint);
    }
    let lost = &impact.totals.lost;
    if lost.vhds > 0 && !request.accept_loss {
        let message = format!(
            "only disk '{disk}' has {} bytes of {} VHDs: they could be neither read nor written",
            lost.extents.written_bytes.unwrap_or(0),
            lost.vhds
        );
        let hint = format!(
            "'spanblk disk impact {disk}' names them, 'spanblk disk evacuate {disk}' moves what can be read; field 'accept_loss' (in the \
             command line: --yes) fails the disk all the same"
        );
        return refused("loses_data", message, hint);
    }
    Ok(())
}

async fn look(api: &Api, disk: &str) -> Result<(command::DiskInfo, ImpactInfo), ApiError> {
    let pool = ask_pool(api).await?;
    let Reply::Vhds(vhds) = api.owner.ask(Command::ListVhds).await? else { return Err(wrong_reply()) };
    let id = pool.record.find_disk(disk).map(|record| record.id);
    let Some(info) = pool.disks.iter().find(|info| Some(info.record.id) == id).cloned() else {
        return Err(ApiError(ErrorInfo::new(ErrorKind::NotFound, format!("there is no disk '{disk}'"))));
    };
    let host = api.host.clone();
    let asked: DiskSet = id.into_iter().collect();
    let impact = blocking(move || {
        let gone = Gone::of(&pool, &host.open_disks());
        of_vhds(&Scene { pool: &pool.record, disks: asked, gone, votes: host.votes() }, &vhds)
    });
    Ok((info, impact.await?))
}
