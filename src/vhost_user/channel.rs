//! The backend channel: a socket that a frontend gives us, on which we speak first.
//!
//! We say one thing there: that the configuration space has changed, which the protocol library has no words for. We never ask
//! for a reply, so that there is nothing to wait for; and what does not fit into the socket's buffer is not sent, since a
//! frontend that has not read an earlier message will look at the configuration anyway.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::sys;

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const CONFIG_CHANGE: u32 = 2;

/// Version 1; no reply, and none wanted.
const FLAGS: u32 = 1;

/// Request, flags, size of what follows; in the host's byte order.
fn config_change() -> [u8; 12] {
    let mut message = [0; 12];
    for (bytes, word) in message.chunks_exact_mut(4).zip([CONFIG_CHANGE, FLAGS, 0]) {
        bytes.copy_from_slice(&u32::to_ne_bytes(word));
    }
    message
}

/// The channel of the frontend that is connected, if it has given one.
#[derive(Debug, Default)]
pub(super) struct Channel(Mutex<Option<OwnedFd>>);

impl Channel {
    /// A frontend gave a socket, or is gone.
    pub(super) fn set(&self, socket: Option<OwnedFd>) {
        *self.lock() = socket;
    }

    /// Takes the socket away, for whoever goes on with the frontend.
    pub(super) fn take(&self) -> Option<OwnedFd> {
        self.lock().take()
    }

    /// Tells the frontend, if there is one that listens, to read the configuration space again. Never waits. False if there is
    /// none.
    pub(super) fn tell_config_changed(&self) -> bool {
        let mut socket = self.lock();
        let Some(channel) = &*socket else { return false };
        let message = config_change();
        match sys::send_now(channel, &message) {
            Ok(sent) if sent == message.len() => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            // It has closed its end, or got a part of a message: nothing that follows would be understood.
            Ok(_) | Err(_) => {
                *socket = None;
                false
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_message_is_a_header_without_a_body() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let channel = Channel::default();
        assert!(!channel.tell_config_changed());
        channel.set(Some(ours.into()));
        assert!(channel.tell_config_changed());
        let mut got = [0; 12];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(got, config_change());
        drop(theirs);
        assert!(!channel.tell_config_changed());
    }

    #[test]
    fn a_frontend_that_never_reads_stops_nobody() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let channel = Channel::default();
        channel.set(Some(ours.into()));
        assert!((0..100_000).all(|_| channel.tell_config_changed()), "what does not fit is as good as sent");
        let mut got = [0; 12];
        theirs.read_exact(&mut got).unwrap();
        channel.set(None);
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len() % 12, 0, "only whole messages are sent");
    }
}
