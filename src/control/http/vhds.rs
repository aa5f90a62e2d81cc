//! `/api/v1/vhds`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;

use super::Api;
use super::error::{ApiError, wrong_reply};
use super::policy;
use super::pool::{ask_pool, blocking};
use super::request::{JsonBody, Name, QueryOf};
use crate::base::clock;
use crate::base::ids::check_name;
use crate::control::convert::{self, Gone};
use crate::control::wire::{
    ErrorBody, ErrorKind, VhdCreate, VhdDeleted, VhdInfo, VhdList, VhdMapInfo, VhdRename, VhdResize, VhdResult,
    VhdUpdate,
};
use crate::owner::command::{self, Command, Outcome, Reply, ResizeVhd};
use crate::placement::record::SocketOwner;

/// All VHDs, by name.
#[utoipa::path(get, path = "/api/v1/vhds", tag = "vhds",
    responses((status = 200, body = VhdList), (status = "default", body = ErrorBody)))]
pub async fn list(State(api): State<Api>) -> Result<Json<VhdList>, ApiError> {
    let Reply::Vhds(vhds) = api.owner.ask(Command::ListVhds).await? else { return Err(wrong_reply()) };
    let pool = ask_pool(&api).await?;
    let list = blocking(move || {
        let gone = Gone::of(&pool, &api.host.open_disks());
        let info = |vhd: &command::VhdInfo| convert::vhd_info(vhd, &pool.record, gone, api.socket_of(&vhd.record));
        VhdList { vhds: vhds.iter().map(info).collect() }
    });
    Ok(Json(list.await?))
}

/// One VHD.
#[utoipa::path(get, path = "/api/v1/vhds/{vhd}", tag = "vhds", params(("vhd" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = VhdInfo), (status = "default", body = ErrorBody)))]
pub async fn show(State(api): State<Api>, Name(vhd): Name) -> Result<Json<VhdInfo>, ApiError> {
    match api.owner.ask(Command::ShowVhd { vhd }).await? {
        Reply::Vhd { vhd, .. } => Ok(Json(info(api, vhd).await?)),
        _ => Err(wrong_reply()),
    }
}

async fn info(api: Api, vhd: Box<command::VhdInfo>) -> Result<VhdInfo, ApiError> {
    let pool = ask_pool(&api).await?;
    blocking(move || {
        let gone = Gone::of(&pool, &api.host.open_disks());
        convert::vhd_info(&vhd, &pool.record, gone, api.socket_of(&vhd.record))
    })
    .await
}

async fn result(api: Api, reply: Reply) -> Result<(Outcome, Json<VhdResult>), ApiError> {
    let Reply::Vhd { outcome, vhd } = reply else { return Err(wrong_reply()) };
    let vhd = info(api, vhd).await?;
    Ok((outcome, Json(VhdResult { changed: outcome != Outcome::Unchanged, vhd })))
}

/// Creates a VHD. The same request again changes nothing; one that differs is refused with the field that does.
#[utoipa::path(post, path = "/api/v1/vhds", tag = "vhds", request_body = VhdCreate,
    responses((status = 201, description = "created", body = VhdResult), (status = 200, description = "existed", body = VhdResult),
        (status = "default", body = ErrorBody)))]
pub async fn create(
    State(api): State<Api>,
    JsonBody(request): JsonBody<VhdCreate>,
) -> Result<(StatusCode, Json<VhdResult>), ApiError> {
    let mut create = convert::create_vhd(request, uuid::Uuid::new_v4(), clock::wall_secs())?;
    let mut placing = None;
    if is_free(&api, &create.name).await? {
        check_socket(&api, Some(create.name.clone()), create.socket_owner.clone()).await?;
        placing = policy::placing(&api, &create).await;
        create.hint = placing.as_ref().and_then(|placing| placing.hint.clone());
    }
    let reply =
        api.owner.ask(Command::CreateVhd(Box::new(create))).await.map_err(|error| match error.code.as_deref() {
            Some("differs") => error.with_hint(
                "VM, queues, socket owner, socket mode, limits, shares and what happens when the pool is full can be changed: see \
             'spanblk vhd set --help'; the size by 'spanblk vhd resize'; everything else is fixed",
            ),
            _ => error,
        })?;
    if let Reply::Vhd { outcome: Outcome::Created, vhd } = &reply
        && placing.is_some_and(|placing| placing.hint.as_ref() == Some(&vhd.record.layout))
    {
        api.policy.note_placed(vhd.record.id);
    }
    let (outcome, body) = result(api, reply).await?;
    let status = if outcome == Outcome::Created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, body))
}

/// Whether a VHD could have this name. One that exists is the owner's business, and so is a name that breaks the rules.
async fn is_free(api: &Api, name: &str) -> Result<bool, ApiError> {
    if check_name(name).is_err() {
        return Ok(false);
    }
    match api.owner.ask(Command::ShowVhd { vhd: name.to_owned() }).await {
        Ok(_) => Ok(false),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(ApiError(error)),
    }
}

/// Refuses what would leave a VHD without a socket, before anything is changed.
async fn check_socket(api: &Api, name: Option<String>, owner: Option<SocketOwner>) -> Result<(), ApiError> {
    let host = api.host.clone();
    let check = move || {
        owner.map_or(Ok(()), |owner| host.check_socket_owner(&owner))?;
        name.map_or(Ok(()), |name| host.check_socket_name(&name))
    };
    Ok(blocking(check).await??)
}

/// Changes settings of a VHD.
#[utoipa::path(patch, path = "/api/v1/vhds/{vhd}", tag = "vhds", params(("vhd" = String, Path, description = "Name or UUID")),
    request_body = VhdUpdate, responses((status = 200, body = VhdResult), (status = "default", body = ErrorBody)))]
pub async fn set(
    State(api): State<Api>,
    Name(vhd): Name,
    JsonBody(update): JsonBody<VhdUpdate>,
) -> Result<Json<VhdResult>, ApiError> {
    let set = convert::set_vhd(vhd, update)?;
    check_socket(&api, None, set.socket_owner.clone().flatten()).await?;
    let reply = api.owner.ask(Command::SetVhd(Box::new(set))).await?;
    Ok(result(api, reply).await?.1)
}

/// Gives a VHD another name. Its socket moves with it; a frontend that is attached stays attached.
#[utoipa::path(post, path = "/api/v1/vhds/{vhd}/rename", tag = "vhds",
    params(("vhd" = String, Path, description = "Name or UUID")), request_body = VhdRename,
    responses((status = 200, body = VhdResult), (status = "default", body = ErrorBody)))]
pub async fn rename(
    State(api): State<Api>,
    Name(vhd): Name,
    JsonBody(request): JsonBody<VhdRename>,
) -> Result<Json<VhdResult>, ApiError> {
    if is_free(&api, &request.name).await? {
        check_socket(&api, Some(request.name.clone()), None).await?;
    }
    let reply = api.owner.ask(Command::RenameVhd { vhd, to: request.name }).await?;
    Ok(result(api, reply).await?.1)
}

/// Gives a VHD another size. It grows while its guest works, and the guest sees that at once; it becomes smaller only while
/// nothing is attached, and with `force`.
#[utoipa::path(post, path = "/api/v1/vhds/{vhd}/resize", tag = "vhds",
    params(("vhd" = String, Path, description = "Name or UUID")), request_body = VhdResize,
    responses((status = 200, body = VhdResult), (status = "default", body = ErrorBody)))]
pub async fn resize(
    State(api): State<Api>,
    Name(vhd): Name,
    JsonBody(request): JsonBody<VhdResize>,
) -> Result<Json<VhdResult>, ApiError> {
    let resize = ResizeVhd { vhd, size: request.size_bytes, force: request.force };
    let reply = api.owner.ask(Command::ResizeVhd(resize)).await?;
    Ok(result(api, reply).await?.1)
}

/// How to delete.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteQuery {
    #[serde(default)]
    force: bool,
}

/// Deletes a VHD and its data.
#[utoipa::path(delete, path = "/api/v1/vhds/{vhd}", tag = "vhds",
    params(("vhd" = String, Path, description = "Name or UUID"),
        ("force" = Option<bool>, Query, description = "Even while a frontend is attached")),
    responses((status = 200, body = VhdDeleted), (status = "default", body = ErrorBody)))]
pub async fn delete(
    State(api): State<Api>,
    Name(vhd): Name,
    QueryOf(query): QueryOf<DeleteQuery>,
) -> Result<Json<VhdDeleted>, ApiError> {
    match api.owner.ask(Command::DeleteVhd { vhd, force: query.force }).await? {
        Reply::Deleted { name, .. } => Ok(Json(VhdDeleted { name })),
        _ => Err(wrong_reply()),
    }
}

/// Where a map begins.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapQuery {
    #[serde(default)]
    from: u32,
}

/// Which disk and slot each extent of a VHD is on.
#[utoipa::path(get, path = "/api/v1/vhds/{vhd}/map", tag = "vhds",
    params(("vhd" = String, Path, description = "Name or UUID"), ("from" = Option<u32>, Query, description = "First extent")),
    responses((status = 200, body = VhdMapInfo), (status = "default", body = ErrorBody)))]
pub async fn map(
    State(api): State<Api>,
    Name(vhd): Name,
    QueryOf(query): QueryOf<MapQuery>,
) -> Result<Json<VhdMapInfo>, ApiError> {
    let Reply::Vhd { vhd, .. } = api.owner.ask(Command::ShowVhd { vhd }).await? else { return Err(wrong_reply()) };
    let pool = ask_pool(&api).await?.record;
    Ok(Json(blocking(move || convert::map_info(&vhd, &pool, query.from)).await?))
}
