//! HTTP over the daemon's control socket.

use std::io::ErrorKind as IoKind;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use super::output::Failure;
use crate::control::wire::{API_PREFIX, ErrorBody, ErrorKind};

/// A client of one daemon. Each request has a connection of its own.
#[derive(Debug)]
pub struct Client {
    control: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// A client of the daemon whose control socket is at `control`. Does not connect yet.
    ///
    /// # Errors
    /// The process may not have another epoll descriptor.
    pub fn new(control: &Path) -> Result<Client, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::new(ErrorKind::Failed, format!("cannot start an event loop: {e}")))?;
        Ok(Client { control: control.to_owned(), runtime })
    }

    /// GET of a path below the API prefix.
    ///
    /// # Errors
    /// The daemon cannot be reached, or what it answered.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call(Method::GET, path, Bytes::new())
    }

    /// A request with a JSON body, to a path below the API prefix.
    ///
    /// # Errors
    /// The daemon cannot be reached, or what it answered.
    pub fn send<B: Serialize, T: DeserializeOwned>(&self, method: Method, path: &str, body: &B) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).expect("wire types have string keys");
        self.call(method, path, Bytes::from(body))
    }

    /// DELETE of a path below the API prefix.
    ///
    /// # Errors
    /// The daemon cannot be reached, or what it answered.
    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call(Method::DELETE, path, Bytes::new())
    }

    /// GET of a full path whose answer is not JSON.
    ///
    /// # Errors
    /// The daemon cannot be reached, or what it answered.
    pub fn get_text(&self, path: &str) -> Result<String, Failure> {
        let bytes = self.runtime.block_on(async {
            let response = self.exchange(Method::GET, path, Bytes::new()).await?;
            self.whole_body(response).await
        })?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.gibberish())
    }

    /// GET of a path below the API prefix whose answer never needs to end: `line` is called for each line of it.
    ///
    /// # Errors
    /// The daemon cannot be reached, what it answered, or what `line` said.
    pub fn get_lines(&self, path: &str, mut line: impl FnMut(&str) -> Result<(), Failure>) -> Result<(), Failure> {
        self.runtime.block_on(async {
            let response = self.exchange(Method::GET, &format!("{API_PREFIX}{path}"), Bytes::new()).await?;
            let mut body = response.into_body();
            let mut pending = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|e| self.lost(&e))?;
                let Some(data) = frame.data_ref() else { continue };
                pending.extend_from_slice(data);
                while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
                    let rest = pending.split_off(end + 1);
                    let text = String::from_utf8(std::mem::replace(&mut pending, rest));
                    line(text.map_err(|_| self.gibberish())?.trim_end())?;
                }
            }
            Ok(())
        })
    }

    fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, Failure> {
        let bytes = self.runtime.block_on(async {
            let response = self.exchange(method, &format!("{API_PREFIX}{path}"), body).await?;
            self.whole_body(response).await
        })?;
        serde_json::from_slice(&bytes).map_err(|_| self.gibberish())
    }

    /// Sends a request; turns every status but success into the error that the body carries.
    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Failure> {
        let stream = UnixStream::connect(&self.control).await.map_err(|e| self.unreachable(&e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.lost(&e))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "spanblk")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|e| Failure::new(ErrorKind::Invalid, format!("'{path}' is not a valid path: {e}")))?;
        let response = sender.send_request(request).await.map_err(|e| self.lost(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = self.whole_body(response).await?;
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => Err(Failure(body.error)),
            Err(_) => Err(Failure::new(ErrorKind::Failed, format!("the daemon answered HTTP status {status}"))),
        }
    }

    async fn whole_body(&self, response: Response<Incoming>) -> Result<Bytes, Failure> {
        let collected = response.into_body().collect().await.map_err(|e| self.lost(&e))?;
        Ok(collected.to_bytes())
    }

    fn unreachable(&self, error: &std::io::Error) -> Failure {
        let path = self.control.display();
        let failure = Failure::new(ErrorKind::Unavailable, format!("cannot reach the daemon at {path}: {error}"));
        match error.kind() {
            IoKind::NotFound | IoKind::ConnectionRefused => {
                failure.hint("start it with 'spanblk serve', or say where it is with --control or SPANBLK_CONTROL")
            }
            IoKind::PermissionDenied => failure.hint("only the user that runs the daemon may control it: use sudo"),
            _ => failure,
        }
    }

    fn lost(&self, error: &dyn std::error::Error) -> Failure {
        let path = self.control.display();
        Failure::new(ErrorKind::Unavailable, format!("the connection to the daemon at {path} broke: {error}"))
            .hint("see its log; the request may or may not have been carried out, and may be repeated")
    }

    fn gibberish(&self) -> Failure {
        let path = self.control.display();
        Failure::new(ErrorKind::Failed, format!("the answer from {path} is not what this version of spanblk expects"))
            .hint("check that daemon and command line have the same version")
    }
}

/// `text` as one segment of a URL path, or as a value behind its question mark.
#[must_use]
pub fn path_segment(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_segments_cannot_leave_their_place() {
        assert_eq!(path_segment("vm-1_a.b"), "vm-1_a.b");
        assert_eq!(path_segment("a/b?c%"), "a%2Fb%3Fc%25");
    }

    #[test]
    fn an_absent_daemon_is_said_to_be_absent() {
        let client = Client::new(Path::new("/nonexistent/api.sock")).unwrap();
        let failure = client.get::<serde_json::Value>("/pool").unwrap_err();
        assert_eq!(failure.exit_code(), 5);
        assert!(failure.0.hint.unwrap().contains("spanblk serve"));
    }
}
