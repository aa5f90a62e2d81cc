//! The unix socket that the API is spoken on.

use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use spanblk::base::limits::API_CONNECTIONS_MAX;
use spanblk::cli::client::Client;
use spanblk::control::http::{self, ListenError, router};
use spanblk::control::wire::{ErrorKind, VhdList};

use super::fake_owner;

#[test]
fn the_command_line_speaks_over_the_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control/api.sock");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bound = runtime.block_on(async { http::bind_control(&path) }).unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    runtime.spawn(http::serve(bound, router(fake_owner::api()), std::future::pending()));

    let client = Client::new(&path).unwrap();
    let list: VhdList = client.get("/vhds").unwrap();
    assert_eq!(list.vhds.len(), 2);
    let failure = client.get::<Value>("/vhds/none").unwrap_err();
    assert_eq!((failure.0.kind, failure.exit_code()), (ErrorKind::NotFound, 3));
    let again = runtime.block_on(async { http::bind_control(&path) });
    assert!(matches!(again, Err(ListenError::InUse(_))), "{again:?}");
}

#[tokio::test]
async fn sockets_that_cannot_be_made_are_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("x".repeat(120));
    assert!(matches!(http::bind_control(&long), Err(ListenError::PathTooLong { .. })));
    let open = directory.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o755)).unwrap();
    assert!(matches!(http::bind_control(&open.join("s")), Err(ListenError::DirectoryOpen { .. })));
    let private = directory.path().join("private");
    std::fs::create_dir(&private).unwrap();
    std::fs::set_permissions(&private, PermissionsExt::from_mode(0o700)).unwrap();
    let file = private.join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(http::bind_control(&file), Err(ListenError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    let stale = private.join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(http::bind_control(&stale).is_ok());
}

/// Clients that say nothing take places, and no more than there are.
#[test]
fn connections_beyond_the_limit_wait_for_others_to_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control/api.sock");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bound = runtime.block_on(async { http::bind_control(&path) }).unwrap();
    runtime.spawn(http::serve(bound, router(fake_owner::api()), std::future::pending()));
    let mut silent: Vec<UnixStream> = (0..API_CONNECTIONS_MAX).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let mut next = UnixStream::connect(&path).unwrap();
    next.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    next.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut answer = [0; 12];
    assert_eq!(next.read(&mut answer).unwrap_err().kind(), IoErrorKind::WouldBlock);
    silent.pop();
    next.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    next.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}
