//! The HTTP API: routes over a fake owner, and the unix socket they are served on.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "api/events.rs"]
mod events;
#[path = "common/fake_owner.rs"]
mod fake_owner;
#[path = "api/policy.rs"]
mod policy;
#[path = "api/sockets.rs"]
mod sockets;
#[path = "api/stats.rs"]
mod stats;
#[path = "api/vms.rs"]
mod vms;

use std::path::Path;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use spanblk::control::http::{self, router};
use tower::ServiceExt;

async fn call(method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
    let body = body.map_or(Body::empty(), |value| Body::from(value.to_string()));
    raw(method, path, body).await
}

async fn raw(method: Method, path: &str, body: Body) -> (StatusCode, Value) {
    let request = Request::builder().method(method).uri(path).body(body).unwrap();
    let response = router(fake_owner::api()).oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let value =
        serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into()));
    (status, value)
}

fn minimal() -> Value {
    json!({"name": "new", "size_bytes": 1 << 30, "layout": "spanned"})
}

#[tokio::test]
async fn the_pool_is_shown() {
    let (status, pool) = call(Method::GET, "/api/v1/pool", None).await;
    assert_eq!(status, StatusCode::OK, "{pool}");
    assert_eq!(pool["extent_bytes"], 1 << 20);
    assert_eq!(pool["block_bytes"], 32 << 10);
    assert_eq!(pool["disks"][0]["name"], "d0");
    assert_eq!(pool["disks"][0]["path"], "/srv/d0.img");
    assert_eq!(pool["disks"][0]["health"], "healthy");
    assert_eq!(pool["space"]["overcommit_ratio"], 0.5);
    assert_eq!(pool["shared_failure_domains"][0]["disks"], json!(["d0", "d1"]));
    assert_eq!(pool["disks"][1]["health"], "suspect");
    let warnings: Vec<&str> = pool["warnings"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    assert!(warnings[0].contains("'d1' is suspect: 3 errors") && warnings[1].contains("failure domain"), "{pool}");
}

#[tokio::test]
async fn what_the_loss_of_a_disk_means_is_told_and_has_to_be_accepted() {
    let (status, impact) = call(Method::GET, "/api/v1/disks/d1/impact", None).await;
    assert_eq!(status, StatusCode::OK, "{impact}");
    assert_eq!((&impact["disks"], &impact["gone"]), (&json!(["d1"]), &json!([])));
    assert_eq!(impact["store"], json!({"members": 2, "left": 1, "needed": 2, "keeps_majority": false}));
    let lost = &impact["totals"]["lost"];
    assert_eq!((&lost["vhds"], &lost["extents"]), (&json!(2), &json!(2)), "{impact}");
    assert_eq!(call(Method::GET, "/api/v1/disks/d9/impact", None).await.0, StatusCode::NOT_FOUND);

    let fail = async |body: Value| call(Method::POST, "/api/v1/disks/d1/fail", Some(body)).await;
    let (status, dry) = fail(json!({"dry_run": true})).await;
    assert_eq!((status, &dry["changed"], &dry["impact"]), (StatusCode::OK, &json!(false), &impact));
    for (body, code) in [(json!({"accept_loss": true}), "loses_store"), (json!({"force": true}), "loses_data")] {
        let (status, refused) = fail(body).await;
        assert_eq!((status, &refused["error"]["code"]), (StatusCode::CONFLICT, &json!(code)), "{refused}");
    }
    let (status, failed) = fail(json!({"force": true, "accept_loss": true})).await;
    assert_eq!((status, &failed["changed"]), (StatusCode::OK, &json!(true)), "{failed}");
    assert_eq!(fail(json!({"accept_los": true})).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn disks_are_listed_shown_and_changed() {
    let (_, list) = call(Method::GET, "/api/v1/disks", None).await;
    assert_eq!(list["disks"].as_array().unwrap().len(), 2);
    let (status, disk) = call(Method::GET, "/api/v1/disks/d1", None).await;
    assert_eq!((status, &disk["name"]), (StatusCode::OK, &json!("d1")));
    let uuid = disk["uuid"].as_str().unwrap();
    assert_eq!(call(Method::GET, &format!("/api/v1/disks/{uuid}"), None).await.1["name"], "d1");
    let (status, error) = call(Method::GET, "/api/v1/disks/dx", None).await;
    assert_eq!((status, &error["error"]["kind"]), (StatusCode::NOT_FOUND, &json!("not_found")));
    let (status, result) = call(Method::PATCH, "/api/v1/disks/d1", Some(json!({"accept": "isolated"}))).await;
    assert_eq!((status, &result["changed"]), (StatusCode::OK, &json!(true)));
}

#[tokio::test]
async fn an_empty_disk_is_removed_and_another_one_is_not() {
    let (status, removed) = call(Method::DELETE, "/api/v1/disks/d1", None).await;
    assert_eq!((status, &removed["name"], &removed["path"]), (StatusCode::OK, &json!("d1"), &json!("/srv/d1.img")));
    assert!(removed["warnings"][0].as_str().unwrap().contains("placement table"), "{removed}");
    let (status, error) = call(Method::DELETE, "/api/v1/disks/d0", None).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("disk_not_empty")), "{error}");
    let (status, _) = call(Method::DELETE, "/api/v1/disks/dx", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_vhd_is_created_with_defaults_filled_in() {
    let (status, result) = call(Method::POST, "/api/v1/vhds", Some(minimal())).await;
    assert_eq!(status, StatusCode::CREATED, "{result}");
    let vhd = &result["vhd"];
    assert_eq!(result["changed"], true);
    assert_eq!(vhd["block_bytes"], 512);
    assert_eq!(vhd["queues"], 4);
    assert_eq!(vhd["socket_mode"], "0660");
    assert_eq!(vhd["socket"], "/run/spanblk/vhost/new.sock");
    assert_eq!(vhd["when_full"], json!({"action": "queue", "wait_secs": 60}));
    let (_, list) = call(Method::GET, "/api/v1/vhds", None).await;
    assert_eq!(list["vhds"][0]["name"], "old");
}

#[tokio::test]
async fn creating_what_exists_says_that_nothing_changed() {
    let mut body = minimal();
    body["name"] = json!("old");
    let (status, result) = call(Method::POST, "/api/v1/vhds", Some(body.clone())).await;
    assert_eq!((status, &result["changed"]), (StatusCode::OK, &json!(false)));
    body["size_bytes"] = json!(2_u64 << 30);
    let (status, error) = call(Method::POST, "/api/v1/vhds", Some(body)).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(error["error"]["code"], "differs");
    assert!(error["error"]["message"].as_str().unwrap().contains("size"), "{error}");
}

#[tokio::test]
async fn quotas_and_reservations_are_given_and_shown() {
    let mut body = minimal();
    body["quota_bytes"] = json!(8 << 20);
    let (_, result) = call(Method::POST, "/api/v1/vhds", Some(body)).await;
    let capacity = &result["vhd"]["capacity"];
    assert_eq!((&capacity["quota_bytes"], capacity.get("reservation_bytes")), (&json!(8 << 20), None), "{result}");
    assert_eq!((&capacity["charged_bytes"], &capacity["short_bytes"]), (&json!(3 << 20), &json!(0)));
    for (limit, accepted) in [(json!(null), true), (json!(1 << 20), true), (json!("1MiB"), false), (json!(-1), false)] {
        for path in ["/api/v1/vhds/old", "/api/v1/vms/web"] {
            let (status, answer) = call(Method::PATCH, path, Some(json!({ "reservation_bytes": limit }))).await;
            assert_eq!(status == StatusCode::OK, accepted, "{path} {limit}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_resize_says_what_it_did_or_what_it_would_lose() {
    let resize = |body: Value| call(Method::POST, "/api/v1/vhds/old/resize", Some(body));
    let (status, result) = resize(json!({ "size_bytes": 2_u64 << 30 })).await;
    assert_eq!(
        (status, &result["changed"], &result["vhd"]["size_bytes"]),
        (StatusCode::OK, &json!(true), &json!(2_u64 << 30))
    );
    let (status, result) = resize(json!({ "size_bytes": 1_u64 << 30 })).await;
    assert_eq!((status, &result["changed"]), (StatusCode::OK, &json!(false)));
    let (status, error) = resize(json!({ "size_bytes": 1_u64 << 20 })).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("shrink_loses")));
    assert!(error["error"]["message"].as_str().unwrap().contains("32768 bytes"), "{error}");
    assert_eq!(resize(json!({ "size_bytes": 1_u64 << 20, "force": true })).await.0, StatusCode::OK);
    assert_eq!(resize(json!({ "size": 1 })).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn sockets_are_checked_before_anything_is_changed() {
    let mut body = minimal();
    body["name"] = json!("taken");
    assert_eq!(call(Method::POST, "/api/v1/vhds", Some(body)).await.0, StatusCode::CONFLICT);
    let rename = |name: &str| Some(json!({ "name": name }));
    assert_eq!(call(Method::POST, "/api/v1/vhds/old/rename", rename("taken")).await.0, StatusCode::CONFLICT);
    let owner = json!("stranger:kvm");
    let mut body = minimal();
    body["socket_owner"] = owner.clone();
    let (status, error) = call(Method::POST, "/api/v1/vhds", Some(body)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(error["error"]["message"].as_str().unwrap().contains("stranger"), "{error}");
    let (status, _) = call(Method::PATCH, "/api/v1/vhds/old", Some(json!({ "socket_owner": owner }))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn bad_bodies_are_refused_with_the_field_named() {
    let with = |field: &str, value: Value| {
        let mut body = minimal();
        body[field] = value;
        Some(body)
    };
    let cases = [
        (with("colour", json!("red")), "colour"),
        (with("size_bytes", json!("20GiB")), "size_bytes"),
        (with("size_bytes", json!(-1)), "size_bytes"),
        (with("layout", json!("striped")), "layout"),
        (with("when_full", json!({"action": "wait"})), "when_full"),
        (with("when_full", json!({"action": "queue", "secs": 1})), "when_full"),
        (with("socket_mode", json!("rw-")), "socket_mode"),
        (with("socket_owner", json!("root")), "socket_owner"),
        (with("disks", json!("d0")), "disks"),
        (Some(json!({"name": "x", "layout": "spanned"})), "size_bytes"),
        (Some(json!({"name": "x", "size_bytes": 1, "layout": "isolated", "width": 2})), "width"),
    ];
    for (body, field) in cases {
        let (status, error) = call(Method::POST, "/api/v1/vhds", body.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body:?}");
        assert_eq!(error["error"]["kind"], "invalid");
        assert!(error["error"]["message"].as_str().unwrap().contains(field), "{field} not named: {error}");
    }
}

#[tokio::test]
async fn bodies_that_are_no_json_are_refused() {
    for body in ["", "{", "[]", "null", "{} trailing", "\u{0}"] {
        let (status, error) = raw(Method::POST, "/api/v1/vhds", Body::from(body)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body:?}: {error}");
    }
    let (status, _) = raw(Method::POST, "/api/v1/vhds", Body::from(vec![0xff; 16])).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let deep = "[".repeat(60_000);
    assert_eq!(raw(Method::POST, "/api/v1/vhds", Body::from(deep)).await.0, StatusCode::BAD_REQUEST);
    let (status, error) = raw(Method::POST, "/api/v1/vhds", Body::from(" ".repeat(100_000))).await;
    assert_eq!((status, &error["error"]["kind"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("too_large")));
}

#[tokio::test]
async fn vhds_are_shown_changed_renamed_and_deleted() {
    assert_eq!(call(Method::GET, "/api/v1/vhds/old", None).await.1["layout"], "spanned");
    let (status, _) = call(Method::GET, "/api/v1/vhds/none", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, result) = call(Method::PATCH, "/api/v1/vhds/old", Some(json!({"vm": null, "queues": 2}))).await;
    assert_eq!((status, &result["vhd"]["queues"]), (StatusCode::OK, &json!(2)), "{result}");
    let (_, result) = call(Method::POST, "/api/v1/vhds/old/rename", Some(json!({"name": "newer"}))).await;
    assert_eq!(result["vhd"]["socket"], "/run/spanblk/vhost/newer.sock");
    let (status, error) = call(Method::DELETE, "/api/v1/vhds/busy", None).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("attached")));
    let (status, deleted) = call(Method::DELETE, "/api/v1/vhds/busy?force=true", None).await;
    assert_eq!((status, &deleted["name"]), (StatusCode::OK, &json!("busy")));
    assert_eq!(call(Method::DELETE, "/api/v1/vhds/old?forced=true", None).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn the_map_names_disk_and_slot_of_each_run() {
    let (status, map) = call(Method::GET, "/api/v1/vhds/old/map", None).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(map["extents"], 1024);
    let run = |extent, count, disk, slot, blocks| json!({"extent": extent, "count": count, "disk": disk, "slot": slot, "blocks_written": blocks});
    assert_eq!(map["runs"], json!([run(0, 2, "d0", 5, 2), run(7, 1, "d1", 0, 1)]));
    assert_eq!(call(Method::GET, "/api/v1/vhds/old/map?from=2", None).await.1["runs"], json!([run(7, 1, "d1", 0, 1)]));
    assert_eq!(call(Method::GET, "/api/v1/vhds/old/map?from=99999", None).await.1["runs"], json!([]));
}

#[tokio::test]
async fn adding_a_disk_prepares_it_and_gives_it_back_when_the_owner_refuses() {
    let (status, result) = call(Method::POST, "/api/v1/disks", Some(json!({"path": "/srv/d2.img"}))).await;
    assert_eq!((status, &result["disk"]["name"]), (StatusCode::CREATED, &json!("d2")), "{result}");
    let api = fake_owner::api_with(|host| host.refuse_disks = true);
    let body = json!({"path": "/srv/d2.img"}).to_string();
    let request = Request::post("/api/v1/disks").body(Body::from(body)).unwrap();
    let response = router(api.clone()).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::CONFLICT);
    assert_eq!(fake_owner::forgotten(), vec!["d2".to_owned()]);
    let (status, error) = call(Method::POST, "/api/v1/disks", Some(json!({"path": "/srv/foreign"}))).await;
    assert_eq!((status, &error["error"]["kind"]), (StatusCode::CONFLICT, &json!("conflict")));
}

#[tokio::test]
async fn adding_a_disk_that_is_there_changes_nothing() {
    let (status, result) = call(Method::POST, "/api/v1/disks", Some(json!({"path": "/srv/d1.img"}))).await;
    assert_eq!((status, &result["changed"]), (StatusCode::OK, &json!(false)), "{result}");
    for (field, value) in [("name", "other"), ("failure_domain", "other"), ("accept", "none")] {
        let body = json!({"path": "/srv/d1.img", field: value});
        let (status, error) = call(Method::POST, "/api/v1/disks", Some(body)).await;
        assert_eq!(status, StatusCode::CONFLICT);
        assert!(error["error"]["message"].as_str().unwrap().contains("'d1'"), "{error}");
    }
}

#[tokio::test]
async fn jobs_are_listed_shown_changed_and_cancelled() {
    let (status, list) = call(Method::GET, "/api/v1/jobs", None).await;
    assert_eq!((status, &list["jobs"][0]["id"]), (StatusCode::OK, &json!(1)), "{list}");
    let (status, job) = call(Method::GET, "/api/v1/jobs/1", None).await;
    let expected = json!({
        "id": 1, "kind": "rebalance", "state": "running", "waiting": false, "vhds": ["old"], "vhds_done": 0,
        "moved_bytes": 3 << 20, "left_bytes": 10 << 20, "rate_bytes": 1 << 20, "eta_secs": 10, "waits": 5,
        "unreadable_extents": 0, "urgent": false, "created_secs": 7,
    });
    assert_eq!((status, job), (StatusCode::OK, expected));
    let update = json!({"paused": true, "max_rate_bytes": null, "urgent": true});
    let (status, result) = call(Method::PATCH, "/api/v1/jobs/1", Some(update)).await;
    assert_eq!((status, &result["changed"], &result["job"]["state"]), (StatusCode::OK, &json!(true), &json!("paused")));
    let (status, result) = call(Method::POST, "/api/v1/jobs/1/cancel", Some(json!({"revert": true}))).await;
    assert_eq!((status, &result["job"]["state"]), (StatusCode::OK, &json!("cancelled")), "{result}");
    for (method, path, body) in [
        (Method::GET, "/api/v1/jobs/2", None),
        (Method::GET, "/api/v1/jobs/one", None),
        (Method::GET, "/api/v1/jobs/4294967296", None),
        (Method::PATCH, "/api/v1/jobs/2", Some(json!({"paused": true}))),
    ] {
        let (status, error) = call(method, path, body).await;
        assert_eq!((status, &error["error"]["kind"]), (StatusCode::NOT_FOUND, &json!("not_found")), "{path}: {error}");
    }
    let (status, error) = call(Method::POST, "/api/v1/jobs/2/cancel", Some(json!({}))).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("job_ended")));
}

#[tokio::test]
async fn jobs_are_created_planned_and_refused() {
    let create = |body: Value| call(Method::POST, "/api/v1/jobs", Some(body));
    let span = json!({"kind": "span", "vhd": "old", "width": 2});
    let (status, result) = create(json!({"wish": span, "max_rate_bytes": 5, "urgent": true})).await;
    assert_eq!(status, StatusCode::CREATED, "{result}");
    assert_eq!((&result["changed"], &result["job"]["max_rate_bytes"]), (&json!(true), &json!(5)));
    let unspan = json!({"kind": "unspan", "vhd": "old", "disk": "d1"});
    let (status, result) = create(json!({"wish": unspan, "dry_run": true})).await;
    let vhd = json!({"vhd": "old", "layout": "isolated", "extents": 2, "bytes": 2 << 20, "lost_bytes": 0, "disks": [
        {"disk": "d0", "before": 2, "after": 0}, {"disk": "d1", "before": 1, "after": 3}]});
    let expected = json!({"changed": false, "plan": {"vhds": [vhd], "total_bytes": 2 << 20, "lost_bytes": 0}});
    assert_eq!((status, result), (StatusCode::OK, expected));
    let (status, result) = create(json!({"wish": {"kind": "rebalance"}})).await;
    assert_eq!((status, &result["changed"], result.get("job")), (StatusCode::OK, &json!(false), None), "already so");
    let (status, error) = create(json!({"wish": {"kind": "migrate", "vhd": "busy"}})).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("job_exists")));
    assert!(error["error"]["message"].as_str().unwrap().contains("job 1"), "the first one is named: {error}");
    for wish in [json!({"kind": "settle", "vhd": "none"}), json!({"kind": "evacuate", "disk": "none"})] {
        assert_eq!(create(json!({ "wish": wish })).await.0, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_disk_is_replaced_once_it_is_known_what_is_lost() {
    let replace = |body: Value| call(Method::POST, "/api/v1/disks/d1/replace", Some(body));
    let both = json!({"by": "d0", "add": {"path": "/srv/new.img"}});
    for body in [json!({}), both, json!({"by": "d0", "max_rate_bytes": 0}), json!({"by": "d0", "speed": 1})] {
        let (status, error) = replace(body).await;
        assert_eq!((status, &error["error"]["kind"]), (StatusCode::BAD_REQUEST, &json!("invalid")), "{error}");
    }
    let add = |path: &str, more: Value| {
        let mut body = json!({"add": {"path": path}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        replace(body)
    };
    let (status, error) = add("/srv/foreign.img", json!({})).await;
    assert_eq!((status, &error["error"]["kind"]), (StatusCode::CONFLICT, &json!("conflict")), "{error}");
    let (_, error) = add("/srv/small.img", json!({})).await;
    assert_eq!(error["error"]["code"], "no_room", "{error}");
    let (status, error) = add("/srv/new.img", json!({})).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("loses_data")), "{error}");
    let (status, result) = add("/srv/new.img", json!({"accept_loss": true, "dry_run": true})).await;
    assert_eq!((status, &result["plan"]["lost_bytes"]), (StatusCode::OK, &json!(1 << 20)), "{result}");
    assert_eq!(result["plan"]["vhds"][0]["lost_ranges"], json!([{"offset_bytes": 0, "length_bytes": 1 << 20}]));
    let (status, result) = replace(json!({"by": "d0", "accept_loss": true})).await;
    assert_eq!((status, &result["job"]["kind"]), (StatusCode::CREATED, &json!("replace")), "{result}");
    assert_eq!((&result["job"]["disk"], &result["job"]["replacement"]), (&json!("d0"), &json!("d1")));
    let (status, _) = call(Method::POST, "/api/v1/disks/none/replace", Some(json!({"by": "d0"}))).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_label_of_a_disk_that_is_evacuated_follows_its_role() {
    let evacuate = |dry_run: bool| json!({"wish": {"kind": "evacuate", "disk": "d0"}, "dry_run": dry_run});
    call(Method::POST, "/api/v1/jobs", Some(evacuate(true))).await;
    assert!(!fake_owner::was_relabelled("d0"), "a dry run changes nothing");
    call(Method::POST, "/api/v1/jobs", Some(evacuate(false))).await;
    for _ in 0..1000 {
        if fake_owner::was_relabelled("d0") {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the label was left as it is");
}

#[tokio::test]
async fn bad_bodies_about_jobs_are_refused_with_the_field_named() {
    let span = || json!({"kind": "span", "vhd": "old"});
    let (jobs, job, cancel) = ("/api/v1/jobs", "/api/v1/jobs/1", "/api/v1/jobs/1/cancel");
    for (method, path, body, field) in [
        (Method::POST, jobs, json!({}), "wish"),
        (Method::POST, jobs, json!({"wish": {"kind": "shuffle", "vhd": "old"}}), "kind"),
        (Method::POST, jobs, json!({"wish": {"vhd": "old"}}), "kind"),
        (Method::POST, jobs, json!({"wish": {"kind": "span"}}), "vhd"),
        (Method::POST, jobs, json!({"wish": {"kind": "span", "vhd": "old", "disk": "d0"}}), "disk"),
        (Method::POST, jobs, json!({"wish": {"kind": "span", "vhd": "old", "disks": "d0"}}), "wish"),
        (Method::POST, jobs, json!({"wish": {"kind": "unspan", "vhd": "old", "width": 256}}), "256"),
        (Method::POST, jobs, json!({"wish": {"kind": "migrate", "vhd": "old", "width": 1}}), "width"),
        (Method::POST, jobs, json!({"wish": {"kind": "rebalance", "vhd": "old"}}), "vhd"),
        (Method::POST, jobs, json!({"wish": span(), "when": "now"}), "when"),
        (Method::POST, jobs, json!({"wish": span(), "max_rate_bytes": 0}), "max_rate_bytes"),
        (Method::POST, jobs, json!({"wish": span(), "max_rate_bytes": "1MiB"}), "max_rate_bytes"),
        (Method::POST, jobs, json!({"wish": span(), "urgent": 1}), "urgent"),
        (Method::PATCH, job, json!({"state": "paused"}), "state"),
        (Method::PATCH, job, json!({"max_rate_bytes": 0}), "max_rate_bytes"),
        (Method::PATCH, job, json!({"max_rate_bytes": -1}), "max_rate_bytes"),
        (Method::POST, cancel, json!({"force": true}), "force"),
    ] {
        let (status, error) = call(method, path, Some(body.clone())).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(error["error"]["message"].as_str().unwrap().contains(field), "{field} not named: {error}");
    }
    assert_eq!(call(Method::POST, jobs, None).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(call(Method::PUT, job, Some(json!({}))).await.0, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn what_jobs_move_is_measured() {
    let (status, metrics) = call(Method::GET, "/metrics", None).await;
    assert_eq!(status, StatusCode::OK);
    for line in [
        "spanblk_jobs{state=\"running\"} 1",
        "spanblk_jobs{state=\"stopped\"} 0",
        "spanblk_moves{step=\"draining\"} 32",
        "spanblk_moves{step=\"syncing\"} 31",
        "spanblk_moves_ended_early_total{step=\"copying\"} 2",
        "spanblk_moves_ended_early_total{step=\"sealing\"} 0",
        "spanblk_moves_ended_early_total{step=\"committing\"} 1",
        "spanblk_replicas_made_stale_total 3",
        "spanblk_replica_repairs_total{result=\"ok\"} 5",
        "spanblk_replica_repairs_total{result=\"failed\"} 1",
        "spanblk_job_moved_bytes_total{job=\"1\",kind=\"rebalance\"} 3145728",
        "spanblk_disk_copy_bytes_total{disk=\"d1\",direction=\"read\"} 0",
        "spanblk_disk_copy_bytes_total{disk=\"d1\",direction=\"write\"} 0",
        "spanblk_vhd_copy_waits_total{vhd=\"old\"} 0",
    ] {
        assert!(metrics.as_str().unwrap().lines().any(|found| found == line), "{line}\nnot in\n{metrics}");
    }
}

#[tokio::test]
async fn unknown_routes_and_methods_have_the_error_body() {
    let (status, error) = call(Method::GET, "/api/v1/volumes", None).await;
    assert_eq!((status, &error["error"]["kind"]), (StatusCode::NOT_FOUND, &json!("not_found")));
    let (status, error) = call(Method::PUT, "/api/v1/vhds", Some(json!({}))).await;
    assert_eq!((status, &error["error"]["kind"]), (StatusCode::METHOD_NOT_ALLOWED, &json!("invalid")));
}

#[tokio::test]
async fn check_dump_health_and_metrics_answer() {
    let (_, report) = call(Method::GET, "/api/v1/check", None).await;
    assert_eq!(report["consistent"], true);
    assert_eq!(call(Method::GET, "/api/v1/metadata", None).await.1, json!({"line": 1}));
    assert_eq!(call(Method::GET, "/healthz", None).await.1, "ok\n");
    let (_, metrics) = call(Method::GET, "/metrics", None).await;
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("spanblk_vhd_requests_total{vhd=\"old\",kind=\"read\"} 0\n"), "{metrics}");
    assert!(metrics.contains("spanblk_pool_capacity_bytes 2147483648\n"), "{metrics}");
}

#[tokio::test]
async fn a_daemon_that_stops_says_so() {
    let api = fake_owner::api_with(|host| host.stopping = true);
    let request = Request::get("/healthz").body(Body::empty()).unwrap();
    assert_eq!(router(api).oneshot(request).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn the_description_is_committed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/control/openapi.json");
    let generated = http::openapi::document();
    if std::env::var_os("SPANBLK_UPDATE").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == generated, "run SPANBLK_UPDATE=1 cargo test --test api, and commit src/control/openapi.json");
    let value: Value = serde_json::from_str(&generated).unwrap();
    assert!(value["openapi"].as_str().unwrap().starts_with("3.1"));
    assert_eq!(value["components"]["schemas"]["VhdCreate"]["additionalProperties"], false);
}
