//! What another process hands over, spoilt.

use std::os::fd::OwnedFd;

use serde_json::{Value, json};
use spanblk::vhost_user::{HeldError, HeldVhd, ServerError};

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use super::vhost_user_support::held::passed_on;
use super::vhost_user_support::{Guest, Host};
use super::{LONG, started};

/// A VHD with two frontends, as parts.
fn parts() -> (Value, Vec<OwnedFd>) {
    let (host, _guest, first) = started();
    let second = Guest::new().start(&host.status(1).socket, 2);
    let (state, descriptors) = host.server.hold(LONG).unwrap().pop().unwrap().into_parts();
    drop((first, second));
    (serde_json::to_value(state).unwrap(), descriptors)
}

fn copies(descriptors: &[OwnedFd]) -> Vec<OwnedFd> {
    descriptors.iter().map(|fd| fd.try_clone().unwrap()).collect()
}

fn put_together(state: &Value, descriptors: Vec<OwnedFd>) -> Result<HeldVhd, HeldError> {
    HeldVhd::from_parts(serde_json::from_value(state.clone()).unwrap(), descriptors)
}

#[test]
fn what_cannot_be_is_refused() {
    let (good, descriptors) = parts();
    assert_eq!(put_together(&good, copies(&descriptors)).unwrap().frontends(), 2);
    let ring = "/frontends/0/device/rings/0";
    let mut many_rings = good["frontends"].as_array().unwrap().clone();
    for frontend in &mut many_rings {
        let rings = &mut frontend["device"]["rings"];
        *rings = vec![rings[0].clone(); 65].into();
    }
    let nonsense: [(&str, Value); 16] = [
        ("/turn/active", json!(7)),
        ("/turn/active", json!(1)),
        ("/turn/active", json!(null)),
        ("/turn/stopped", json!({"by": 9, "left_ns": 0})),
        ("/turn/next", json!(1)),
        ("/turn/next", json!(u64::MAX)),
        (&format!("{ring}/reactor"), json!(2)),
        ("/frontends/1/seat/id", json!(0)),
        ("/frontends/0/device/rings", json!([])),
        ("/frontends/0/device/said/protocol", json!(u64::MAX)),
        ("/frontends/0/device/active", json!(false)),
        (&format!("{ring}/size"), json!(3)),
        (&format!("{ring}/size"), json!(2048)),
        ("/frontends/1/device/rings", good["frontends"][1]["device"]["rings"].as_array().unwrap()[..1].into()),
        ("/frontends", many_rings.into()),
        ("/frontends", [0, 1, 1].map(|at| good["frontends"][at].clone()).as_slice().into()),
    ];
    for (at, value) in nonsense {
        let mut state = good.clone();
        *state.pointer_mut(at).unwrap() = value.clone();
        let refused = put_together(&state, copies(&descriptors)).unwrap_err();
        assert!(matches!(refused, HeldError::Nonsense(_)), "{at} is {value}: {refused}");
    }
    let counted: [(&str, Value); 5] = [
        (&format!("{ring}/has_error"), json!(true)),
        (&format!("{ring}/kick"), json!("polled")),
        ("/frontends/0/device/has_channel", json!(true)),
        ("/frontends/0/device/memory", json!([])),
        ("/frontends/1/device/log", json!({"offset": 0, "size": 4096})),
    ];
    for (at, value) in counted {
        let mut state = good.clone();
        *state.pointer_mut(at).unwrap() = value;
        let refused = put_together(&state, copies(&descriptors)).unwrap_err();
        assert!(matches!(refused, HeldError::Descriptors { .. }), "{at}: {refused}");
    }
    for at in [0, 1, 2] {
        let mut wrong = copies(&descriptors);
        let other = tempfile::tempfile().unwrap().into();
        // A listening socket is no connection, nor the other way round.
        wrong[at] = if at == 2 { descriptors[1].try_clone().unwrap() } else { other };
        if at == 2 {
            wrong.swap(0, 1);
        }
        let refused = put_together(&good, wrong).unwrap_err();
        assert!(matches!(refused, HeldError::NotASocket { .. }), "{at}: {refused}");
    }
    assert!(put_together(&good, Vec::new()).is_err());
    let mut later = good.clone();
    later["turn"]["later"] = json!(1);
    assert!(serde_json::from_value::<spanblk::vhost_user::HeldState>(later).is_err(), "of a version that knows more");
}

/// What only shows where it is used, and is no frontend's doing: nobody takes over as long as somebody else can go on.
#[test]
fn a_frontend_that_does_not_fit_fails_a_takeover_or_is_gone_alone() {
    let wrong: [(&str, Value); 3] = [
        ("/frontends/0/device/acknowledged", json!(1_u64 << 60)),
        ("/frontends/1/device/memory/1/guest", json!(0)),
        ("/frontends/1/device/memory/0/len", json!(0)),
    ];
    for (at, value) in wrong {
        let (host, _guest, first) = started();
        let second = Guest::new().start(&host.status(1).socket, 2);
        let mut frontends = [first, second];
        host.events.take();
        let (state, descriptors) = host.server.hold(LONG).unwrap().pop().unwrap().into_parts();
        let mut state = serde_json::to_value(state).unwrap();
        *state.pointer_mut(at).unwrap() = value;
        let held = || put_together(&state, copies(&descriptors)).unwrap();
        let next = host.next_server().waiting();
        let error = host.serve_held(&next, held()).unwrap_err();
        assert!(matches!(error, ServerError::Held(HeldError::Device { .. })), "{at}: {error}");
        assert!(next.statuses().is_empty() && host.state(1).door.close(), "nobody is in");
        host.state(1).door.open();
        drop(next);
        assert!(host.events.take().is_empty(), "nobody was told");
        let next = host.next_server();
        host.serve_held(&next, held()).unwrap();
        drop(descriptors);
        let spoilt = usize::from(at.starts_with("/frontends/1"));
        assert!(frontends[spoilt].get_features().is_err());
        frontends[1 - spoilt].get_queue_num().unwrap();
        let status = next.status(host.id(1)).unwrap();
        assert_eq!((status.faults, status.waiting), (1, None), "{at}");
        assert_eq!(host.events.take(), ["attached 1"], "{at}");
    }
}

/// It has sealed its memory, so that nobody can map it again: it parts from us, and takes nobody along.
#[test]
fn a_frontend_that_has_sealed_its_memory_is_gone_alone() {
    let host = Host::new(2);
    let socket = host.add(1, "disk", 2);
    let sealed = Guest::sealable();
    let mut frontends = [Guest::new().start(&socket, 2), sealed.start(&socket, 2)];
    host.events.take();
    let (state, descriptors) = host.server.hold(LONG).unwrap().pop().unwrap().into_parts();
    sealed.seal_memory();
    let next = host.next_server().waiting();
    host.serve_held(&next, HeldVhd::from_parts(state, descriptors).unwrap()).unwrap();
    assert!(host.events.take().is_empty(), "nobody is told before it goes on");
    next.go_on();
    frontends[0].get_queue_num().unwrap();
    assert!(frontends[1].get_features().is_err());
    let status = next.status(host.id(1)).unwrap();
    assert_eq!((status.faults, status.waiting), (1, None));
    assert_eq!(host.events.take(), ["attached 1"]);
}

#[test]
fn another_vhd_is_refused() {
    let (host, _guest, _frontend) = started();
    host.add(2, "other", 1);
    let held = host.server.hold(LONG).unwrap();
    let next = host.next_server();
    for held in held {
        let is_first = held.frontends() == 1;
        let (state, descriptors) = passed_on(held).into_parts();
        let mut state = serde_json::to_value(state).unwrap();
        if is_first {
            // Its endpoint is that of the other one.
            let error = next.add_held(host.endpoint(2, 2), put_together(&state, copies(&descriptors)).unwrap());
            assert!(matches!(error, Err(ServerError::Held(HeldError::OtherVhd { .. }))), "{error:?}");
            assert!(host.state(1).door.close());
            let error = next.add_held(host.endpoint(1, 2), put_together(&state, copies(&descriptors)).unwrap());
            assert!(matches!(error, Err(ServerError::Held(HeldError::Resizing))), "{error:?}");
            host.state(1).door.open();
            next.add_held(host.endpoint(1, 2), put_together(&state, copies(&descriptors)).unwrap()).unwrap();
            let error = next.add_held(host.endpoint(1, 2), put_together(&state, descriptors).unwrap());
            assert!(matches!(error, Err(ServerError::AlreadyServed(_))), "{error:?}");
        } else {
            state["vhd"] = json!(uuid::Uuid::nil());
            put_together(&state, descriptors).unwrap();
        }
    }
}
