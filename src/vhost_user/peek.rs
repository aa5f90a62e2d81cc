//! Whether a message is there as a whole. Only then does a thread read it, so that nobody waits for the rest of one.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

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

/// What a SET_LOG_FD message gives.
pub(super) struct LogCall {
    /// Written to when the dirty log has changed.
    pub(super) call: Option<OwnedFd>,
    /// Whether the frontend waits for an answer, if it has agreed on answers.
    pub(super) wants_answer: bool,
}

/// Bits of a header's flags: the protocol's version, that it is an answer, that one is wanted.
const VERSION_1: u32 = 1;
const ANSWER: u32 = 1 << 2;
const WANTS_ANSWER: u32 = 1 << 3;

/// Takes the message that is there, if it is SET_LOG_FD, which the protocol library does not know. One that is not as it should be
/// stays, and is refused there.
pub(super) fn take_log_call(socket: &UnixStream) -> io::Result<Option<LogCall>> {
    let mut header = [0; HEADER_LEN];
    if sys::peek(socket, &mut header)? < HEADER_LEN {
        return Ok(None);
    }
    let [request, flags, size] = words(&header);
    if request != FrontendReq::SET_LOG_FD as u32 || size != 0 || flags & 3 != VERSION_1 {
        return Ok(None);
    }
    let call = sys::peek_descriptor(socket)?;
    // Its descriptors go with the bytes.
    (&*socket).read_exact(&mut header)?;
    Ok(Some(LogCall { call, wants_answer: flags & WANTS_ANSWER != 0 }))
}

/// The answer to SET_LOG_FD: done.
pub(super) fn log_call_answer() -> [u8; 20] {
    let mut answer = [0; 20];
    for (bytes, word) in answer.chunks_exact_mut(4).zip([FrontendReq::SET_LOG_FD as u32, VERSION_1 | ANSWER, 8]) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    answer
}

/// Request, flags, size of what follows.
fn words(header: &[u8; HEADER_LEN]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *header;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes)
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
    let Some(mut got) = peek_header(&socket, &mut header)? else { return Ok(Sight::Nothing) };
    // A read stops after bytes that came with file descriptors; the count of bytes does not.
    let there = sys::readable_bytes(&socket)?;
    if (1..HEADER_LEN).contains(&got) && there >= HEADER_LEN {
        // The rest may have come since we looked.
        got = peek_header(&socket, &mut header)?.unwrap_or(0);
    }
    match got {
        0 => Ok(Sight::End),
        HEADER_LEN => {
            let [.., size] = words(&header);
            if size as usize > MAX_MSG_SIZE {
                return Err(PeekError::TooLong(size));
            }
            Ok(if there >= HEADER_LEN + size as usize { Sight::Message } else { Sight::Part })
        }
        _ if there >= HEADER_LEN => Err(PeekError::CutHeader),
        _ => Ok(Sight::Part),
    }
}

/// Looks at what there is of a header: how many bytes, 0 at the end of the connection. `None`: nothing yet.
fn peek_header(socket: &impl AsFd, header: &mut [u8; HEADER_LEN]) -> Result<Option<usize>, PeekError> {
    loop {
        match sys::peek(socket, header) {
            Ok(got) => return Ok(Some(got)),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Ok(None),
                io::ErrorKind::ConnectionReset => return Ok(Some(0)),
                _ => return Err(error.into()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

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
    fn a_header_that_comes_while_we_look_is_not_cut() {
        let (mut frontend, ours) = UnixStream::pair().unwrap();
        let writes = std::thread::spawn(move || {
            for _ in 0..20_000 {
                let (first, rest) = (&header(0)[..5], &header(0)[5..]);
                frontend.write_all(first).unwrap();
                frontend.write_all(rest).unwrap();
            }
        });
        for _ in 0..20_000 {
            while look(&ours).unwrap() != Sight::Message {}
            (&ours).read_exact(&mut [0; HEADER_LEN]).unwrap();
        }
        writes.join().unwrap();
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
