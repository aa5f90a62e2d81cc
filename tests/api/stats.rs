//! `/api/v1/.../stats`.

use axum::http::{Method, StatusCode};
use serde_json::json;

use super::call;

#[tokio::test]
async fn each_kind_of_subject_has_its_stats() {
    for (path, name) in [("vhds/old", "old"), ("vms/web", "web"), ("disks/d1", "d1")] {
        let (status, stats) = call(Method::GET, &format!("/api/v1/{path}/stats"), None).await;
        assert_eq!((status, &stats["name"]), (StatusCode::OK, &json!(name)), "{stats}");
        assert_eq!((&stats["summary"]["reads_per_sec"], stats.get("samples")), (&json!(0.0), None));
    }
    let (status, list) = call(Method::GET, "/api/v1/stats?window_secs=600&resolution_secs=10", None).await;
    assert_eq!((status, &list["vhds"][0]["resolution_secs"]), (StatusCode::OK, &json!(10)), "{list}");
    let window = |of: &serde_json::Value, field: &str| of["vhds"][0]["summary"][field].as_u64().unwrap();
    assert_eq!(window(&list, "ends_secs") - window(&list, "begins_secs"), 600);
}

#[tokio::test]
async fn what_there_are_no_samples_of_is_refused_with_what_there_is() {
    for (query, says) in [
        ("window_secs=9", "give 10 to"),
        ("window_secs=99999999999", "a year"),
        ("window_secs=-1", "window_secs"),
        ("window_secs=1h", "window_secs"),
        ("resolution_secs=60", "300 (week)"),
        ("samples=maybe", "samples"),
        ("metric=iops", "metric"),
    ] {
        for path in ["stats", "vhds/old/stats", "vms/web/stats", "disks/d1/stats"] {
            let (status, error) = call(Method::GET, &format!("/api/v1/{path}?{query}"), None).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path}?{query}: {error}");
            assert!(error["error"]["message"].as_str().unwrap().contains(says), "{path}?{query}: {error}");
        }
    }
    for path in ["vhds/none/stats", "vms/none/stats", "disks/none/stats"] {
        assert_eq!(call(Method::GET, &format!("/api/v1/{path}"), None).await.0, StatusCode::NOT_FOUND);
    }
}
