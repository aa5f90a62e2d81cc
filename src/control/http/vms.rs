//! `/api/v1/vms`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::Api;
use super::error::{ApiError, wrong_reply};
use super::pool::{ask_pool, blocking};
use super::request::{JsonBody, Name};
use crate::base::clock;
use crate::control::convert::{self, Gone};
use crate::control::wire::{ErrorBody, VhdInfo, VmCreate, VmDeleted, VmInfo, VmList, VmResult, VmUpdate};
use crate::owner::command::{self, Command, Outcome, Reply};

/// All VMs, by name.
#[utoipa::path(get, path = "/api/v1/vms", tag = "vms",
    responses((status = 200, body = VmList), (status = "default", body = ErrorBody)))]
pub async fn list(State(api): State<Api>) -> Result<Json<VmList>, ApiError> {
    let Reply::Vms(vms) = api.owner.ask(Command::ListVms).await? else { return Err(wrong_reply()) };
    Ok(Json(VmList { vms: infos(api, vms).await? }))
}

/// One VM, with its VHDs.
#[utoipa::path(get, path = "/api/v1/vms/{vm}", tag = "vms", params(("vm" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = VmInfo), (status = "default", body = ErrorBody)))]
pub async fn show(State(api): State<Api>, Name(vm): Name) -> Result<Json<VmInfo>, ApiError> {
    let reply = api.owner.ask(Command::ShowVm { vm }).await?;
    Ok(Json(result(api, reply).await?.1.0.vm))
}

async fn infos(api: Api, vms: Vec<command::VmInfo>) -> Result<Vec<VmInfo>, ApiError> {
    let pool = ask_pool(&api).await?;
    blocking(move || {
        let open = api.host.open_disks();
        let info = |vm: &command::VmInfo| {
            let vhd = |vhd: &command::VhdInfo| {
                convert::vhd_info(vhd, &pool.record, Gone::of(&pool, &open), api.socket_of(&vhd.record))
            };
            let vhds: Vec<VhdInfo> = vm.vhds.iter().map(vhd).collect();
            convert::vm_info(vm, &vhds)
        };
        vms.iter().map(info).collect()
    })
    .await
}

async fn result(api: Api, reply: Reply) -> Result<(Outcome, Json<VmResult>), ApiError> {
    let Reply::Vm { outcome, vm } = reply else { return Err(wrong_reply()) };
    let vm = infos(api, vec![*vm]).await?.pop().ok_or_else(wrong_reply)?;
    Ok((outcome, Json(VmResult { changed: outcome != Outcome::Unchanged, vm })))
}

/// Creates a VM. The same request again changes nothing; one that differs is refused with the field that does.
#[utoipa::path(post, path = "/api/v1/vms", tag = "vms", request_body = VmCreate,
    responses((status = 201, description = "created", body = VmResult), (status = 200, description = "existed", body = VmResult),
        (status = "default", body = ErrorBody)))]
pub async fn create(
    State(api): State<Api>,
    JsonBody(request): JsonBody<VmCreate>,
) -> Result<(StatusCode, Json<VmResult>), ApiError> {
    let reply = api.owner.ask(Command::CreateVm(convert::create_vm(request, clock::wall_secs()))).await?;
    let (outcome, body) = result(api, reply).await?;
    let status = if outcome == Outcome::Created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, body))
}

/// Changes name, labels or owner of a VM. With its name its VHDs change theirs of it, all at once.
#[utoipa::path(patch, path = "/api/v1/vms/{vm}", tag = "vms", params(("vm" = String, Path, description = "Name or UUID")),
    request_body = VmUpdate, responses((status = 200, body = VmResult), (status = "default", body = ErrorBody)))]
pub async fn set(
    State(api): State<Api>,
    Name(vm): Name,
    JsonBody(update): JsonBody<VmUpdate>,
) -> Result<Json<VmResult>, ApiError> {
    let reply = api.owner.ask(Command::SetVm(convert::set_vm(vm, update))).await?;
    Ok(result(api, reply).await?.1)
}

/// Deletes a VM that has no VHDs.
#[utoipa::path(delete, path = "/api/v1/vms/{vm}", tag = "vms", params(("vm" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = VmDeleted), (status = "default", body = ErrorBody)))]
pub async fn delete(State(api): State<Api>, Name(vm): Name) -> Result<Json<VmDeleted>, ApiError> {
    match api.owner.ask(Command::DeleteVm { vm }).await? {
        Reply::VmDeleted { name } => Ok(Json(VmDeleted { name })),
        _ => Err(wrong_reply()),
    }
}
