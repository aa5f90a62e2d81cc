//! `/api/v1/events`.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use spanblk::base::limits::API_FOLLOWERS_MAX;
use spanblk::control::http::router;
use spanblk::control::wire::{EventDetail, Severity};
use tower::ServiceExt;

use super::fake_owner;

#[tokio::test]
async fn events_are_streamed_from_where_the_reader_was() {
    let api = fake_owner::api();
    for i in 0..3 {
        api.events.record(Severity::Info, EventDetail::VhdCreated { vhd: format!("v{i}") });
    }
    let request = Request::get("/events?follow=false&after=1").body(Body::empty()).unwrap();
    let body = router(api).oneshot(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(text.starts_with("id: 2\ndata: {\"seq\":2"), "{text}");
    assert!(text.contains("\"event\":\"vhd_created\",\"vhd\":\"v2\"") && !text.contains("\"v0\""), "{text}");
}

#[tokio::test]
async fn events_are_chosen_by_what_they_are_about() {
    let api = fake_owner::api();
    api.events.record(Severity::Info, EventDetail::VhdCreated { vhd: "a".into() });
    api.events.record(Severity::Error, EventDetail::OutOfRoom { vhd: "a".into() });
    api.events.record(Severity::Info, EventDetail::DiskAdded { disk: "a".into() });
    let ask = async |query: &str| {
        let request = Request::get(format!("/api/v1/events?follow=false&{query}")).body(Body::empty()).unwrap();
        let response = router(api.clone()).oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    for (query, ids) in [("vhd=a", vec!["1", "2"]), ("disk=a", vec!["3"]), ("vhd=a&severity=warning", vec!["2"])] {
        let (status, text) = ask(query).await;
        assert_eq!(status, StatusCode::OK);
        let found: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
        assert_eq!(found, ids, "{query}");
    }
    let (status, text) = ask("vhd=a&disk=a").await;
    assert!(status == StatusCode::BAD_REQUEST && text.contains("not by several"), "{status} {text}");
    assert_eq!(ask("vm=nobody").await.0, StatusCode::NOT_FOUND);
    assert_eq!(ask("severity=fatal").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn only_so_many_follow_the_events() {
    let api = fake_owner::api();
    let ask = async |follow: bool| {
        let request = Request::get(format!("/events?follow={follow}")).body(Body::empty()).unwrap();
        router(api.clone()).oneshot(request).await.unwrap()
    };
    let mut following = Vec::new();
    for _ in 0..API_FOLLOWERS_MAX {
        following.push(ask(true).await);
    }
    assert!(following.iter().all(|response| response.status() == StatusCode::OK));
    assert_eq!(ask(true).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ask(false).await.status(), StatusCode::OK, "whoever does not stay is answered");
    following.pop();
    assert_eq!(ask(true).await.status(), StatusCode::OK);
}
