//! What is asked of a server that holds its VHDs, and of the one after it.

use super::*;

/// Frontends keep the device that they know; who comes when there is none has the one that was set.
#[test]
fn another_number_of_virtqueues_is_for_the_next_that_comes() {
    let (host, guest, mut first) = started();
    let other = host.add(2, "other", 2);
    host.server.set_queues(host.id(2), 4).unwrap();
    let seen = |socket: &Path| guest.negotiate(socket).get_queue_num().unwrap();
    assert_eq!(seen(&other), 4);
    host.wait_for_detach(2);
    // Set when nobody was there, it reaches the server when somebody is.
    host.server.set_queues(host.id(1), 3).unwrap();
    assert_eq!((first.get_queue_num().unwrap(), seen(&host.status(1).socket)), (2, 2));
    let next = host.next_server();
    for held in host.server.hold(LONG).unwrap() {
        let endpoint = if held.frontends() > 0 { host.endpoint(1, 3) } else { host.endpoint(2, 5) };
        next.add_held(endpoint, passed_on(held)).unwrap();
    }
    eventually("its rings run", || host.reactors.running() == 2);
    assert_eq!((first.get_queue_num().unwrap(), seen(&other)), (2, 5));
    drop(first);
    let status = || next.status(host.id(1)).unwrap();
    eventually("the frontend is gone", || status().frontend.is_none());
    assert_eq!((status().faults, seen(&status().socket)), (0, 3));
}

/// Orders that come too late for the server that has held all: it does not touch what is another one's, which follows the records.
#[test]
fn who_has_handed_all_over_takes_no_orders() {
    let (host, _guest, mut frontend) = started();
    let path = host.status(1).socket;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    let wanted = SocketSettings { mode: 0o600, owner: None };
    let (state, descriptors) = host.server.hold(LONG).unwrap().pop().unwrap().into_parts();
    let refused = |result: Result<(), ServerError>| assert!(matches!(result, Err(ServerError::HandedOver)));
    refused(host.server.rename(host.id(1), "other").map(drop));
    refused(host.server.set_socket(host.id(1), &wanted));
    refused(host.server.remove_vhd(host.id(1)).map(drop));
    refused(host.server.add_vhd(VhdEndpoint { name: "third".to_owned(), ..host.endpoint(1, 2) }).map(drop));
    let sockets = || std::fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!((sockets(), mode(&path)), (1, 0o660));
    let next = host.next_server().waiting();
    let held = HeldVhd::from_parts(state, descriptors).unwrap();
    next.add_held(VhdEndpoint { name: "other".to_owned(), socket: wanted, ..host.endpoint(1, 2) }, held).unwrap();
    assert_eq!((sockets(), mode(&path)), (1, 0o660), "somebody else may still go on with it");
    next.go_on();
    let status = next.status(host.id(1)).unwrap();
    assert!(!path.exists() && status.socket.ends_with("other.sock"));
    assert_eq!((sockets(), mode(&status.socket)), (1, 0o600));
    frontend.get_queue_num().unwrap();
    UnixStream::connect(&status.socket).unwrap();
}

/// What a message waits for may have to look at what is served before the message, and with it the hold, comes to an end.
#[test]
fn what_is_served_can_be_looked_at_while_it_is_being_held() {
    let (host, _guest, _frontend) = started();
    host.reactors.hang(true);
    host.take_notes();
    std::thread::scope(|scope| {
        let holding = scope.spawn(|| host.server.hold(LONG));
        eventually("its rings are to stop", || host.take_notes().iter().any(|note| matches!(note, Note::Yield(_))));
        assert_eq!((host.status(1).vhd, host.server.statuses().len()), (host.id(1), 1));
        assert!(!holding.is_finished());
        host.reactors.hang(false);
        assert_eq!(holding.join().unwrap().unwrap().len(), 1);
    });
}

/// One that has come for another one, of which nobody has noticed yet that it is gone, is not cut off.
#[test]
fn a_successor_that_waits_for_its_place_is_not_held_and_has_it_soon() {
    let (host, _guest, mut first) = started();
    let socket = host.status(1).socket;
    host.reactors.hang(true);
    host.take_notes();
    // Nobody answers it.
    first.set_vring_enable(0, false).unwrap();
    eventually("it is being handled", || host.take_notes().iter().any(|note| matches!(note, Note::Stop(_))));
    drop(first);
    let second = Guest::new().connect(&socket);
    std::thread::sleep(SECOND / 5);
    let error = std::thread::scope(|scope| {
        let holding = scope.spawn(|| host.server.hold(LONG).map(|held| held.len()));
        std::thread::sleep(SECOND / 10);
        host.reactors.hang(false);
        let begun = Instant::now();
        let result = holding.join().unwrap();
        assert!(begun.elapsed() < 5 * SECOND, "{:?}", begun.elapsed());
        result.unwrap_err()
    });
    assert!(matches!(error.0[..], [NotHeld { fault: HoldFault::Busy, .. }]), "{error}");
    settled(&second);
    assert_eq!(host.server.hold(LONG).unwrap()[0].frontends(), 1);
}
