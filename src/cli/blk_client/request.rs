//! Requests of the frontend and how they fail.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::base::clock::Nanos;

/// Why a VHD could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// The socket is not there, or may not be used.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The backend closed the connection while features were negotiated: another frontend is attached.
    #[error(
        "the VHD behind {} is in use by another frontend (or the daemon has closed the connection for another reason, which its log says)",
        path.display()
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path cannot be passed on.
    #[error("the path {} is not valid UTF-8", .0.display())]
    BadPath(PathBuf),
    /// Memory or a virtqueue could not be set up.
    #[error("cannot {what}")]
    Setup {
        /// What was tried.
        what: &'static str,
        /// What the kernel or the backend said.
        #[source]
        source: io::Error,
    },
    /// A request could not be put on the virtqueue.
    #[error("cannot submit a request")]
    Submit(#[source] io::Error),
    /// The device answered with an error.
    #[error("{op:?} of {len} bytes at {offset} failed")]
    Failed {
        /// What was asked for.
        op: BlkOp,
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
        /// What the status byte means.
        #[source]
        source: io::Error,
    },
    /// Nothing completed in time.
    #[error("no request completed within {} seconds", .0.as_secs())]
    TimedOut(Duration),
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkOp {
    /// Into the buffer.
    Read,
    /// From the buffer.
    Write,
    /// Makes completed writes durable.
    Flush,
    /// Drops the range.
    Discard,
    /// Makes the range read as zeros, giving its room back.
    WriteZeroes,
}

/// A request for the queue.
#[derive(Clone, Copy, Debug)]
pub struct BlkRequest {
    /// What to do.
    pub op: BlkOp,
    /// Byte offset, a multiple of 512.
    pub offset: u64,
    /// Bytes, a multiple of 512; 0 for a flush.
    pub len: u64,
    /// Index of the buffer to read into or write from; ignored by the others.
    pub buffer: usize,
}

/// A completed request.
#[derive(Debug)]
pub struct BlkDone {
    /// The request.
    pub request: BlkRequest,
    /// When it was submitted.
    pub submitted: Nanos,
    /// What came of it.
    pub result: Result<(), BlkError>,
}
