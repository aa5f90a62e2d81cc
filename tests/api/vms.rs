//! `/api/v1/vms`.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{call, raw};

const VMS: &str = "/api/v1/vms";
const WEB: &str = "/api/v1/vms/web";

#[tokio::test]
async fn a_vm_has_its_vhds_and_their_sums() {
    let (status, vm) = call(Method::GET, WEB, None).await;
    assert_eq!(status, StatusCode::OK, "{vm}");
    assert_eq!((&vm["name"], &vm["labels"], vm.get("owner")), (&json!("web"), &json!({"env": "prod"}), None));
    let names: Vec<&Value> = vm["vhds"].as_array().unwrap().iter().map(|vhd| &vhd["name"]).collect();
    assert_eq!(names, ["old", "busy"]);
    assert_eq!((&vm["size_bytes"], &vm["allocated_bytes"]), (&json!(2_u64 << 30), &json!(6 << 20)));
    assert_eq!((&vm["written_bytes"], &vm["attached"]), (&json!(6 << 15), &json!(1)));
    assert_eq!((&vm["health"], &vm["disks"]), (&json!("healthy"), &json!(["d0", "d1"])));
    assert_eq!(vm["io"]["write_zeroes"], json!({"requests": 0, "bytes": 0, "errors": 0}));
    assert_eq!(vm["vhds"][1]["attached"], json!({"pid": 4711}));
    let by_uuid = format!("{VMS}/{}", vm["uuid"].as_str().unwrap());
    assert_eq!(call(Method::GET, &by_uuid, None).await.1["name"], "web");
    let (_, list) = call(Method::GET, VMS, None).await;
    assert_eq!((&list["vms"][0], &list["vms"][1]["name"]), (&vm, &json!("idle")));
    assert_eq!((&list["vms"][1]["health"], &list["vms"][1]["disks"]), (&json!("healthy"), &json!([])));
    let (status, error) = call(Method::GET, "/api/v1/vms/none", None).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::NOT_FOUND, &json!("not_found")), "{error}");
}

#[tokio::test]
async fn vms_are_created_changed_and_deleted() {
    let (status, result) = call(Method::POST, VMS, Some(json!({"name": "shop", "owner": "ops"}))).await;
    assert_eq!(
        (status, &result["changed"], &result["vm"]["owner"]),
        (StatusCode::CREATED, &json!(true), &json!("ops"))
    );
    let same = json!({"name": "web", "labels": {"env": "prod"}});
    let (status, result) = call(Method::POST, VMS, Some(same)).await;
    assert_eq!((status, &result["changed"]), (StatusCode::OK, &json!(false)));
    let (status, error) = call(Method::POST, VMS, Some(json!({"name": "web"}))).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("differs")), "{error}");
    let update = json!({"name": "shop", "labels": {"env": null, "tier": "a"}, "owner": null});
    let (status, result) = call(Method::PATCH, WEB, Some(update)).await;
    assert_eq!((status, &result["vm"]["labels"]), (StatusCode::OK, &json!({"tier": "a"})), "{result}");
    assert_eq!((&result["vm"]["name"], result["vm"].get("owner")), (&json!("shop"), None));
    let limits = json!({"quota_bytes": 5 << 20, "reservation_bytes": 1});
    let (_, result) = call(Method::PATCH, WEB, Some(limits)).await;
    let capacity = &result["vm"]["capacity"];
    assert_eq!(
        (&capacity["quota_bytes"], &capacity["reservation_bytes"]),
        (&json!(5 << 20), &json!(1 << 20)),
        "{result}"
    );
    let (status, error) = call(Method::DELETE, WEB, None).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("vm_not_empty")), "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("old, busy"), "{error}");
    let (status, deleted) = call(Method::DELETE, "/api/v1/vms/idle", None).await;
    assert_eq!((status, deleted), (StatusCode::OK, json!({"name": "idle"})));
}

#[tokio::test]
async fn bad_bodies_about_vms_are_refused_with_the_field_named() {
    for (method, path, body, says) in [
        (Method::POST, VMS, json!({}), "missing field `name`"),
        (Method::POST, VMS, json!({"name": 7}), "field 'name'"),
        (Method::POST, VMS, json!({"name": "a", "quota": 1}), "unknown field `quota`"),
        (Method::POST, VMS, json!({"name": "a", "labels": ["x"]}), "field 'labels'"),
        (Method::POST, VMS, json!({"name": "a", "labels": {"env": 1}}), "field 'labels.env'"),
        (Method::POST, VMS, json!({"name": "a", "labels": {"env": null}}), "field 'labels.env'"),
        (Method::POST, VMS, json!({"name": "a", "labels": {"e v": "x"}}), "label"),
        (Method::POST, VMS, json!({"name": "a", "owner": ""}), "owner"),
        (Method::PATCH, WEB, json!({"vhds": []}), "unknown field `vhds`"),
        (Method::PATCH, WEB, json!({"owner": 5}), "field 'owner'"),
        (Method::PATCH, WEB, json!({"labels": {"env": ["x"]}}), "field 'labels.env'"),
        (Method::PATCH, WEB, json!({"labels": {"env": ""}}), "label 'env'"),
    ] {
        let (status, error) = call(method, path, Some(body.clone())).await;
        assert_eq!((status, &error["error"]["kind"]), (StatusCode::BAD_REQUEST, &json!("invalid")), "{body}: {error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(says), "{body}: {error}");
    }
    for body in ["", "{", "[]", "null", "{\"name\":\"a\"} more"] {
        assert_eq!(raw(Method::POST, VMS, Body::from(body)).await.0, StatusCode::BAD_REQUEST, "{body:?}");
    }
    for body in ["", "{", "[]", " [] ", "null", "{\"name\":\"a\"} more"] {
        for path in [WEB, "/api/v1/vhds/web"] {
            assert_eq!(raw(Method::PATCH, path, Body::from(body)).await.0, StatusCode::BAD_REQUEST, "{body:?}");
        }
    }
    assert_eq!(call(Method::PUT, WEB, None).await.0, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn vhds_of_vms_are_measured() {
    let (_, text) = call(Method::GET, "/metrics", None).await;
    let text = text.as_str().unwrap();
    for line in ["spanblk_vm_vhds{vm=\"web\"} 2", "spanblk_vm_vhds{vm=\"idle\"} 0"] {
        assert!(text.lines().any(|found| found == line), "{line}\nnot in\n{text}");
    }
}
