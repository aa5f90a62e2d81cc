//! Whether a message is there as a whole. Only then does a thread read it, so that nobody waits for the rest of one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::unix::AsyncFd;
use vhost::vhost_user::message::{FrontendReq, MAX_MSG_SIZE};

use super::sys;

/// Bytes of a message header: request, flags, size of what follows.
const HEADER_LEN: usize = 12;

/// Why there will be no whole message.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeekError {
    #[error("a message of {0} bytes, more than {MAX_MSG_SIZE}")]
    TooLong(u32),
    #[error("a message header that is cut by file descriptors")]
    CutHeader,
    #[error("the connection ended within a message")]
    CutShort,
    #[error("the socket: {0}")]
    Socket(#[from] io::Error),
}

/// The backend channel that the message gives us, if it is one that does: the protocol library makes of it something that
/// cannot say what we have to say, so we take a copy before it does.
pub(super) fn channel(socket: impl AsFd + Copy) -> io::Result<Option<OwnedFd>> {
    let mut request = [0; size_of::<u32>()];
    let got = sys::peek(socket, &mut request)?;
    let gives_channel = got == request.len() && u32::from_ne_bytes(request) == FrontendReq::SET_BACKEND_REQ_FD as u32;
    if gives_channel { sys::peek_descriptor(socket) } else { Ok(None) }
}

/// What is there to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    Message,
    Part,
    Nothing,
    End,
}

/// Waits until a whole message can be read and its answer can be written, both without waiting. False: the frontend has
/// closed the connection.
pub(super) async fn message(socket: &AsyncFd<OwnedFd>) -> Result<bool, PeekError> {
    loop {
        let mut ready = socket.readable().await?;
        match look(socket.get_ref())? {
            Sight::Message => break,
            Sight::End => return Ok(false),
            Sight::Part if ready.ready().is_read_closed() => {
                // What came before the end of the connection may have come since we looked.
                match look(socket.get_ref())? {
                    Sight::Message => break,
                    Sight::End => return Ok(false),
                    Sight::Part | Sight::Nothing => return Err(PeekError::CutShort),
                }
            }
            Sight::Part | Sight::Nothing => ready.clear_ready(),
        }
    }
    // A frontend that sends questions and reads no answers would hold a thread in `send`. The kernel calls a socket writable
    // while three quarters of its buffer are free, and an answer is much shorter than that.
    loop {
        let mut ready = socket.writable().await?;
        if sys::is_writable(socket.get_ref())? {
            return Ok(true);
        }
        ready.clear_ready();
    }
}

fn look(socket: impl AsFd) -> Result<Sight, PeekError> {
    let mut header = [0; HEADER_LEN];
    let got = loop {
        match sys::peek(socket.as_fd(), &mut header) {
            Ok(got) => break got,
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Ok(Sight::Nothing),
                io::ErrorKind::ConnectionReset => return Ok(Sight::End),
                _ => return Err(error.into()),
            },
        }
    };
    // A read stops after bytes that came with file descriptors; the count of bytes does not.
    let there = sys::readable_bytes(socket)?;
    match got {
        0 => Ok(Sight::End),
        HEADER_LEN => {
            let [.., a, b, c, d] = header;
            let size = u32::from_ne_bytes([a, b, c, d]);
            if size as usize > MAX_MSG_SIZE {
                return Err(PeekError::TooLong(size));
            }
            Ok(if there >= HEADER_LEN + size as usize { Sight::Message } else { Sight::Part })
        }
        _ if there >= HEADER_LEN => Err(PeekError::CutHeader),
        _ => Ok(Sight::Part),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn header(size: u32) -> Vec<u8> {
        [1_u32, 1, size].iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn messages_are_seen_when_they_are_whole() {
        let (mut frontend, ours) = UnixStream::pair().unwrap();
        assert_eq!(look(&ours).unwrap(), Sight::Nothing);
        for byte in &header(3) {
            frontend.write_all(&[*byte]).unwrap();
            assert_eq!(look(&ours).unwrap(), Sight::Part);
        }
        frontend.write_all(&[1, 2]).unwrap();
        assert_eq!(look(&ours).unwrap(), Sight::Part);
        frontend.write_all(&[3]).unwrap();
        assert_eq!(look(&ours).unwrap(), Sight::Message);
        drop(frontend);
        assert_eq!(look(&ours).unwrap(), Sight::Message, "what was sent before the end counts");
    }

    #[test]
    fn ends_and_lengths() {
        let (frontend, ours) = UnixStream::pair().unwrap();
        drop(frontend);
        assert_eq!(look(&ours).unwrap(), Sight::End);
        let (mut frontend, ours) = UnixStream::pair().unwrap();
        frontend.write_all(&header(4096)).unwrap();
        assert_eq!(look(&ours).unwrap(), Sight::Part);
        let (mut frontend, ours) = UnixStream::pair().unwrap();
        frontend.write_all(&header(4097)).unwrap();
        assert!(matches!(look(&ours), Err(PeekError::TooLong(4097))));
    }
}
