//! `/api/v1/policy` over an owner that takes its time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use spanblk::base::ids::VhdId;
use spanblk::control::http::{Api, router, run_policy};
use spanblk::control::owner_link::{Asked, OwnerLink};
use spanblk::control::policy::{Desk, Turns, kept_rules};
use spanblk::owner::command::{Command, CommandError, Reply};
use spanblk::policy::rules::{Rules, Scope};
use tower::ServiceExt;

use super::fake_owner;

const WHILE: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Script {
    /// What is held back until [`Owner::release`].
    holds: Option<fn(&Command) -> bool>,
    held: Vec<Asked>,
    /// What was wanted, each time that it was kept.
    kept: Vec<Rules>,
    /// Orders that were given.
    started: usize,
    /// Once something was kept, it does not say what VHDs there are.
    silent: bool,
}

/// An owner with two VHDs on two disks that do not fail together.
#[derive(Clone, Default)]
struct Owner(Arc<Mutex<Script>>);

impl Owner {
    fn script<T>(&self, of: impl FnOnce(&mut Script) -> T) -> T {
        of(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn holding(holds: fn(&Command) -> bool) -> Owner {
        let owner = Owner::default();
        owner.script(|script| script.holds = Some(holds));
        owner
    }

    fn api(&self) -> Api {
        let owner = self.clone();
        fake_owner::api_over(OwnerLink::new(move |asked| {
            owner.script(|script| {
                script.started += usize::from(matches!(asked.command, Command::StartJob(_)));
                if script.holds.is_some_and(|holds| holds(&asked.command)) {
                    script.held.push(asked);
                } else {
                    script.answer(asked);
                }
            });
        }))
    }

    async fn until_it_holds(&self) {
        while self.script(|script| script.held.is_empty()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn release(&self) {
        self.script(|script| {
            script.holds = None;
            std::mem::take(&mut script.held).into_iter().for_each(|asked| script.answer(asked));
        });
    }
}

impl Script {
    fn answer(&mut self, asked: Asked) {
        let Asked { command, answer } = asked;
        if let Command::KeepPolicy(rules) = &command {
            self.kept.push(Rules::clone(rules));
        }
        let is_silent = self.silent && !self.kept.is_empty() && matches!(command, Command::ListVhds);
        let reply = match fake_owner::usual_answer(command) {
            _ if is_silent => Err(CommandError::NoJob { job: 9 }),
            Ok(Reply::Vhds(mut vhds)) => {
                vhds[1].record.id = VhdId(2);
                Ok(Reply::Vhds(vhds))
            }
            Ok(Reply::Jobs(_)) => Ok(Reply::Jobs(Vec::new())),
            Ok(Reply::Pool(mut pool)) => {
                pool.record.disks[1].failure_domain = "controller-2".to_owned();
                pool.disks[1].record.failure_domain = "controller-2".to_owned();
                pool.disks[1].suspicion = None;
                Ok(Reply::Pool(pool))
            }
            reply => reply,
        };
        let _ = answer.send(reply);
    }
}

async fn patch(api: Api, settings: Value) -> (StatusCode, Value) {
    change(api, Method::PATCH, "/api/v1/policy", json!({ "settings": settings })).await
}

async fn change(api: Api, method: Method, uri: &str, body: Value) -> (StatusCode, Value) {
    let request = Request::builder().method(method).uri(uri).body(Body::from(body.to_string())).unwrap();
    let response = router(api).oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap())
}

#[tokio::test]
async fn a_wish_whose_client_has_gone_is_kept_and_the_next_one_beside_it() {
    let owner = Owner::holding(|command| matches!(command, Command::KeepPolicy(_)));
    let api = owner.api();
    let first = tokio::spawn(patch(api.clone(), json!({ "space": "70%" })));
    owner.until_it_holds().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let second = tokio::spawn(patch(api, json!({ "hold": "5m" })));
    tokio::time::sleep(WHILE).await;
    owner.release();
    let (status, policy) = second.await.unwrap();
    assert_eq!(status, StatusCode::OK, "{policy}");
    assert_eq!((&policy["pool"]["space"], &policy["pool"]["hold"]), (&json!("70%"), &json!("300s")));
    let kept = owner.script(|script| script.kept.clone());
    assert_eq!((kept.len(), kept[1].space, kept[1].hold_secs), (2, 0.7, 300));
}

#[tokio::test]
async fn a_wish_that_is_kept_is_no_error_if_the_look_after_it_fails() {
    let owner = Owner::default();
    owner.script(|script| script.silent = true);
    let (status, policy) = patch(owner.api(), json!({ "space": "70%" })).await;
    assert_eq!((status, &policy["pool"]["space"]), (StatusCode::OK, &json!("70%")), "{policy}");
}

/// The policy looks, finds both VHDs on too few disks, and gives an order that the owner holds back.
async fn until_an_order_hangs(owner: &Owner, api: &Api) -> tokio::task::JoinHandle<()> {
    let mut rules = Rules::default();
    for (name, value) in [("mode", "auto"), ("survives", "1"), ("hold", "0s"), ("moved-a-day", "100%")] {
        rules.set(Scope::Pool, name, value).unwrap();
    }
    api.policy.set_rules(rules);
    let looks = tokio::spawn(run_policy(api.clone()));
    owner.until_it_holds().await;
    looks
}

#[tokio::test]
async fn nothing_starts_once_it_is_answered_that_the_mode_is_off() {
    let owner = Owner::holding(|command| matches!(command, Command::StartJob(_)));
    let api = owner.api();
    let looks = until_an_order_hangs(&owner, &api).await;
    let (off, asked) = (patch(api, json!({ "mode": "off" })), owner.clone());
    let off = tokio::spawn(async move { (off.await, asked.script(|script| script.started)) });
    tokio::time::sleep(WHILE).await;
    owner.release();
    let ((status, policy), started) = off.await.unwrap();
    assert_eq!((status, &policy["pool"]["mode"]), (StatusCode::OK, &json!("off")), "{policy}");
    tokio::time::sleep(WHILE).await;
    assert_eq!((started, owner.script(|script| script.started)), (2, 2), "both VHDs have to be on two disks");
    looks.abort();
}

#[tokio::test]
async fn who_waits_behind_an_order_that_hangs_is_told_so_and_changes_nothing_later() {
    let owner = Owner::holding(|command| matches!(command, Command::StartJob(_)));
    let api = Api { changing_policy: Arc::new(Turns::with_patience(WHILE)), ..owner.api() };
    let looks = until_an_order_hangs(&owner, &api).await;
    let (status, refused) = patch(api.clone(), json!({ "mode": "off" })).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{refused}");
    let said = refused["error"]["message"].as_str().unwrap();
    assert!(said.contains("nothing was changed"), "{refused}");
    owner.release();
    tokio::time::sleep(WHILE).await;
    assert_eq!(owner.script(|script| script.kept.len()), 0);
    let (status, policy) = patch(api, json!({ "mode": "off" })).await;
    assert_eq!((status, &policy["pool"]["mode"]), (StatusCode::OK, &json!("off")), "{policy}");
    looks.abort();
}

#[tokio::test]
async fn what_a_vhd_is_to_have_is_not_set_while_all_that_was_wanted_cannot_be_read() {
    let owner = Owner::default();
    let unread = Desk::new(kept_rules(Some("{")), Vec::new(), Arc::default(), Arc::default(), None);
    let api = Api { policy: Arc::new(unread), ..owner.api() };
    let set = |update: Value| change(api.clone(), Method::PATCH, "/api/v1/policy", update);
    let (status, refused) = set(json!({ "vhd": "old", "settings": { "latency": "5ms" } })).await;
    assert_eq!(status, StatusCode::CONFLICT, "{refused}");
    assert!(refused["error"]["hint"].as_str().unwrap().contains("policy set mode="), "{refused}");
    assert_eq!(owner.script(|script| script.kept.len()), 0);
    let (status, policy) = set(json!({ "settings": { "mode": "advise" } })).await;
    assert_eq!((status, &policy["problem"]), (StatusCode::OK, &Value::Null), "{policy}");
    let (status, policy) = set(json!({ "vhd": "old", "settings": { "latency": "5ms" } })).await;
    assert_eq!(status, StatusCode::OK, "{policy}");
}

#[tokio::test]
async fn vhds_that_the_policy_places_are_made_one_after_the_other() {
    let owner = Owner::holding(|command| matches!(command, Command::CreateVhd(_)));
    let api = owner.api();
    // It looks at the pool at once.
    assert_eq!(patch(api.clone(), json!({ "mode": "auto" })).await.0, StatusCode::OK);
    let create = |name: &str| {
        let vhd = json!({ "name": name, "size_bytes": 1 << 20 });
        tokio::spawn(change(api.clone(), Method::POST, "/api/v1/vhds", vhd))
    };
    let both = [create("one"), create("two")];
    owner.until_it_holds().await;
    tokio::time::sleep(WHILE).await;
    assert_eq!(owner.script(|script| script.held.len()), 1, "the other one is to see where this one is");
    owner.release();
    for made in both {
        let (status, vhd) = made.await.unwrap();
        assert_eq!(status, StatusCode::CREATED, "{vhd}");
    }
}
