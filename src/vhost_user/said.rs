//! A conversation that somebody else has begun: the protocol library refuses messages of features that it has not seen being agreed on,
//! so it is told what the frontend has said before, on a connection with ourselves.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use vhost::vhost_user::BackendReqHandler;
use vhost::vhost_user::message::FrontendReq;

use super::device::Device;
use super::held::Said;
use super::sys;

/// Flags of a message: version 1, no answer wanted.
const FLAGS: u32 = 1;

/// A handler for the rest of a conversation, with a new device.
pub(super) fn handler(
    stream: &UnixStream,
    device: &Arc<Mutex<Device>>,
    said: Said,
) -> io::Result<BackendReqHandler<Mutex<Device>>> {
    let (ours, mut theirs) = UnixStream::pair()?;
    let mut handler = BackendReqHandler::from_stream(ours, Arc::clone(device));
    for message in messages(said).into_iter().flatten() {
        theirs.write_all(&message)?;
        // What the new device makes of it does not matter: it becomes the one that there was.
        let _ = handler.handle_request();
    }
    sys::replace(handler.as_raw_fd(), stream)?;
    Ok(handler)
}

fn messages(said: Said) -> [Option<Vec<u8>>; 3] {
    [
        said.asked.then(|| message(FrontendReq::GET_FEATURES, None)),
        said.protocol.map(|features| message(FrontendReq::SET_PROTOCOL_FEATURES, Some(features))),
        said.features.map(|features| message(FrontendReq::SET_FEATURES, Some(features))),
    ]
}

fn message(request: FrontendReq, body: Option<u64>) -> Vec<u8> {
    let size = if body.is_some() { 8 } else { 0 };
    let header = [request as u32, FLAGS, size].into_iter().flat_map(u32::to_ne_bytes);
    header.chain(body.into_iter().flat_map(u64::to_ne_bytes)).collect()
}
