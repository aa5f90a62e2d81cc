//! `/api/v1/policy`, `/api/v1/advice` and `/api/v1/vhds/{vhd}/why`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;

use super::Api;
use super::error::{ApiError, wrong_reply};
use super::pool::{ask_pool, blocking, to_the_end};
use super::request::{JsonBody, Name};
use crate::base::clock;
use crate::base::limits::POLICY_LOOK_SECS;
use crate::control::convert;
use crate::control::policy::{Answers, Desk, Kept, Order};
use crate::control::wire::{
    AdviceInfo, AdviceResult, ErrorBody, ErrorInfo, ErrorKind, PolicyInfo, PolicyUpdate, WhyInfo,
};
use crate::owner::command::{Command, CreateVhd, Reply};
use crate::placement::record::Layout;
use crate::policy::rules::{Rules, Scope};

/// Looks at the pool again and again ([`Rules::look_secs`]), unless nothing happens, and carries out what the policy may. Never returns.
pub async fn run(api: Api) {
    loop {
        let turn = api.changing_policy.wait().await;
        if api.policy.is_due(clock::wall_secs()) {
            look_again(&api).await;
        }
        drop(turn);
        let secs = at_desk(&api, |desk| desk.rules().look_secs()).await.unwrap_or(POLICY_LOOK_SECS);
        tokio::time::sleep(Duration::from_secs(secs)).await;
    }
}

/// A look that may fail: whatever is wrong now may be right the next time. The caller has the turn.
async fn look_again(api: &Api) {
    if let Err(error) = look(api).await {
        log::debug!("the policy did not look at the pool: {}", error.0.message);
    }
}

/// Looks, and carries out what comes of it. The caller has the turn from the answers to the last order: what is wanted may not change
/// in between, or something would start that nobody wants any more.
async fn look(api: &Api) -> Result<(), ApiError> {
    let happened = api.policy.happened();
    let answers = answers(api).await?;
    let orders = at_desk(api, move |desk| desk.look(&answers, happened, clock::wall_secs())).await?;
    for order in orders {
        let number = order.number;
        if let Err(error) = carry_out(api, order).await {
            refused(api, number, error).await?;
        }
    }
    Ok(())
}

/// Something at the desk, off the event loop: a look that is under way keeps others from it for a while.
async fn at_desk<T: Send + 'static>(api: &Api, work: impl FnOnce(&Desk) -> T + Send + 'static) -> Result<T, ApiError> {
    let desk = api.policy.clone();
    blocking(move || work(&desk)).await
}

async fn refused(api: &Api, number: u32, why: ApiError) -> Result<(), ApiError> {
    at_desk(api, move |desk| desk.refused(number, &why.0.message, clock::wall_secs())).await
}

async fn answers(api: &Api) -> Result<Answers, ApiError> {
    let pool = ask_pool(api).await?;
    let Reply::Vhds(vhds) = api.owner.ask(Command::ListVhds).await? else { return Err(wrong_reply()) };
    let Reply::Vms(vms) = api.owner.ask(Command::ListVms).await? else { return Err(wrong_reply()) };
    let Reply::Jobs(jobs) = api.owner.ask(Command::ListJobs).await? else { return Err(wrong_reply()) };
    Ok(Answers { pool: *pool, vhds, vms, jobs, open: api.host.open_disks() })
}

async fn carry_out(api: &Api, order: Order) -> Result<Reply, ApiError> {
    let gone = || ApiError(ErrorInfo::new(ErrorKind::Conflict, "the VHD or the disk that it is about is gone"));
    let start = order.start.ok_or_else(gone)?;
    // Without its answer nobody would know whether the job began, and its bytes would be given back although they are moved.
    Ok(api.owner.ask_for_as_long(Command::StartJob(Box::new(start))).await?)
}

/// What is wanted of the policy: for the pool, for VMs, for VHDs.
#[utoipa::path(get, path = "/api/v1/policy", tag = "policy",
    responses((status = 200, body = PolicyInfo), (status = "default", body = ErrorBody)))]
pub async fn show(State(api): State<Api>) -> Result<Json<PolicyInfo>, ApiError> {
    let answers = answers(&api).await?;
    let wanted = at_desk(&api, Desk::wanted).await?;
    Ok(Json(convert::policy_info(wanted, &answers)))
}

/// Changes what is wanted, of the pool, or of one VM or VHD. Refused with the numbers if that contradicts itself, or can never be met.
#[utoipa::path(patch, path = "/api/v1/policy", tag = "policy", request_body = PolicyUpdate,
    responses((status = 200, body = PolicyInfo), (status = "default", body = ErrorBody)))]
pub async fn set(
    State(api): State<Api>,
    JsonBody(update): JsonBody<PolicyUpdate>,
) -> Result<Json<PolicyInfo>, ApiError> {
    to_the_end(async move { change(&api, &update).await.map(Json) }).await
}

/// The turn of a client: to change what is wanted, or to have something carried out.
async fn turn(api: &Api) -> Result<tokio::sync::MutexGuard<'_, ()>, ApiError> {
    api.changing_policy.wait_for_client().await.map_err(|waited| {
        let message = format!(
            "the policy has been busy with an order, or with a change of what is wanted, for {} seconds: nothing was changed",
            waited.as_secs()
        );
        let hint = "try again later; a disk may be hanging, see 'spanblk disk list' and 'spanblk job list'";
        ApiError(ErrorInfo::new(ErrorKind::Unavailable, message).with_hint(hint))
    })
}

async fn change(api: &Api, update: &PolicyUpdate) -> Result<PolicyInfo, ApiError> {
    let _turn = turn(api).await?;
    let answers = answers(api).await?;
    let Kept { rules, problem } = at_desk(api, Desk::wanted).await?;
    if let (Some(problem), true) = (problem, update.vm.is_some() || update.vhd.is_some()) {
        let hint = "whatever is set now replaces all that was wanted before: go back to the version of spanblk that wrote it, or \
                    begin anew with what the pool is to have ('spanblk policy set mode=advise')";
        return Err(ApiError(ErrorInfo::new(ErrorKind::Conflict, problem).with_hint(hint).with_code("policy")));
    }
    let rules = changed(rules, update, &answers)?;
    let wanted = rules.clone();
    let (checked, answers) = at_desk(api, move |desk| {
        let pool = desk.observe(&answers, &wanted, clock::wall_secs());
        (wanted.check(&pool), answers)
    })
    .await?;
    checked.map_err(|error| ApiError(ErrorInfo::new(ErrorKind::Conflict, error.to_string()).with_code("policy")))?;
    match api.owner.ask_for_as_long(Command::KeepPolicy(Box::new(rules.clone()))).await? {
        Reply::PolicyKept => {}
        _ => return Err(wrong_reply()),
    }
    let wanted = rules.clone();
    at_desk(api, move |desk| desk.set_rules(wanted)).await?;
    // Whoever wants something else need not wait for what comes of it. What is wanted is kept whatever becomes of the look.
    look_again(api).await;
    Ok(convert::policy_info(rules.into(), &answers))
}

/// What is wanted after an update.
fn changed(mut rules: Rules, update: &PolicyUpdate, answers: &Answers) -> Result<Rules, ApiError> {
    let scope = scope(update, answers)?;
    forget_gone(&mut rules, answers);
    for (name, value) in &update.settings {
        let invalid = |error: &dyn std::error::Error| ApiError(ErrorInfo::new(ErrorKind::Invalid, error.to_string()));
        match value {
            Some(value) => rules.set(scope, name, value).map_err(|error| invalid(&error))?,
            None => rules.unset(scope, name).map_err(|error| invalid(&error))?,
        }
    }
    Ok(rules)
}

fn scope(update: &PolicyUpdate, answers: &Answers) -> Result<Scope, ApiError> {
    let unknown =
        |what: &str, name: &str| ApiError(ErrorInfo::new(ErrorKind::NotFound, format!("there is no {what} '{name}'")));
    match (&update.vm, &update.vhd) {
        (None, None) => Ok(Scope::Pool),
        (Some(name), None) => {
            let is_it =
                |vm: &&crate::owner::command::VmInfo| vm.record.name == *name || vm.record.uuid.to_string() == *name;
            answers.vms.iter().find(is_it).map(|vm| Scope::Vm(vm.record.id)).ok_or_else(|| unknown("VM", name))
        }
        (None, Some(name)) => {
            let is_it = |vhd: &&crate::owner::command::VhdInfo| {
                vhd.record.name == *name || vhd.record.uuid.to_string() == *name
            };
            answers.vhds.iter().find(is_it).map(|vhd| Scope::Vhd(vhd.record.id)).ok_or_else(|| unknown("VHD", name))
        }
        (Some(_), Some(_)) => {
            let message = "give 'vm' or 'vhd', not both: each has settings of its own";
            Err(ApiError(ErrorInfo::new(ErrorKind::Invalid, message)))
        }
    }
}

/// Wishes for what is gone would stay for ever.
fn forget_gone(rules: &mut Rules, answers: &Answers) {
    rules.vhds.retain(|id, _| answers.vhds.iter().any(|vhd| vhd.record.id == *id));
    rules.vms.retain(|id, _| answers.vms.iter().any(|vm| vm.record.id == *id));
}

/// What the policy proposes, with what it observed, and what came of what was carried out.
#[utoipa::path(get, path = "/api/v1/advice", tag = "policy",
    responses((status = 200, body = AdviceInfo), (status = "default", body = ErrorBody)))]
pub async fn advice(State(api): State<Api>) -> Result<Json<AdviceInfo>, ApiError> {
    at_desk(&api, Desk::advice).await.map(|advice| Json(convert::advice_info(advice)))
}

/// Carries a proposal out.
#[utoipa::path(post, path = "/api/v1/advice/{proposal}/apply", tag = "policy",
    params(("proposal" = u32, Path, description = "Its number")),
    responses((status = 200, body = AdviceResult), (status = "default", body = ErrorBody)))]
pub async fn apply(State(api): State<Api>, Name(proposal): Name) -> Result<Json<AdviceResult>, ApiError> {
    let number = number(&proposal)?;
    to_the_end(async move { apply_in_turn(&api, number).await.map(Json) }).await
}

async fn apply_in_turn(api: &Api, number: u32) -> Result<AdviceResult, ApiError> {
    let _turn = turn(api).await?;
    let order = at_desk(api, move |desk| desk.apply(number, clock::wall_secs())).await?;
    let order = order.map_err(|error| no_proposal(&error))?;
    match carry_out(api, order).await {
        Ok(Reply::Job { job, .. }) => Ok(AdviceResult { proposal: number, job: Some(convert::job_info(*job)) }),
        Ok(Reply::Plan(_)) => Ok(AdviceResult { proposal: number, job: None }),
        Ok(_) => Err(wrong_reply()),
        Err(error) => {
            refused(api, number, error.clone()).await?;
            Err(error)
        }
    }
}

/// Dismisses a proposal: the same is not made again until what was observed has changed by a fifth.
#[utoipa::path(post, path = "/api/v1/advice/{proposal}/dismiss", tag = "policy",
    params(("proposal" = u32, Path, description = "Its number")),
    responses((status = 200, body = AdviceResult), (status = "default", body = ErrorBody)))]
pub async fn dismiss(State(api): State<Api>, Name(proposal): Name) -> Result<Json<AdviceResult>, ApiError> {
    let number = number(&proposal)?;
    let dismissed = at_desk(&api, move |desk| desk.dismiss(number, clock::wall_secs())).await?;
    dismissed.map_err(|error| no_proposal(&error))?;
    Ok(Json(AdviceResult { proposal: number, job: None }))
}

fn number(text: &str) -> Result<u32, ApiError> {
    text.parse().map_err(|_| ApiError(ErrorInfo::new(ErrorKind::NotFound, format!("there is no proposal '{text}'"))))
}

fn no_proposal(error: &crate::policy::state::NoProposal) -> ApiError {
    ApiError(ErrorInfo::new(ErrorKind::NotFound, error.to_string()))
}

/// A new VHD about which the policy has a say.
pub struct Placing {
    /// Where it would put it; `None`: it has nothing to say.
    pub hint: Option<Layout>,
    /// The next one is placed when this one is there, and sees it.
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

/// Asks the policy where to put a new VHD; `None` if it has no say in that. To be kept until the VHD is made.
pub async fn placing(api: &Api, create: &CreateVhd) -> Option<Placing> {
    if !api.policy.ground().has_a_say(create) {
        return None;
    }
    let turn = Arc::clone(&api.placing).lock_owned().await;
    Some(Placing { hint: hint(api, create.clone()).await, _turn: turn })
}

async fn hint(api: &Api, create: CreateVhd) -> Option<Layout> {
    let (ground, answers) = (api.policy.ground(), answers(api).await.ok()?);
    blocking(move || ground.place(&answers, &create)).await.ok()?
}

/// Why a VHD lies where it lies.
#[utoipa::path(get, path = "/api/v1/vhds/{vhd}/why", tag = "policy",
    params(("vhd" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = WhyInfo), (status = "default", body = ErrorBody)))]
pub async fn why(State(api): State<Api>, Name(vhd): Name) -> Result<Json<WhyInfo>, ApiError> {
    let Reply::Vhd { vhd, .. } = api.owner.ask(Command::ShowVhd { vhd }).await? else { return Err(wrong_reply()) };
    let answers = answers(&api).await?;
    let (id, name) = (vhd.record.id, vhd.record.name.clone());
    let why = at_desk(&api, move |desk| {
        let pool = desk.observe(&answers, &desk.rules(), clock::wall_secs());
        desk.why(&pool, id)
    })
    .await?;
    let gone = || ApiError(ErrorInfo::new(ErrorKind::NotFound, format!("there is no VHD '{name}'")));
    why.map(|why| Json(convert::why_info(why))).ok_or_else(gone)
}
