//! Requests to the broker, and its answers, with a descriptor where one was asked for.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::control::view_files::{Part, Serving, ViewFileError};
use crate::disk::file::{Access, OpenError};
use crate::disk::identity::DiskIdentity;
use crate::placement::record::SocketOwner;
use crate::vhost_user::{SocketError, SocketIdentity, SocketSettings};

/// What the daemon asks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    OpenDisk { path: PathBuf, access: Access },
    IdentifyDisk { path: PathBuf },
    CreateDisk { path: PathBuf, size: u64 },
    DiscardDisk { path: PathBuf },
    BindSocket { path: PathBuf, settings: SocketSettings },
    SetSocket { path: PathBuf, settings: SocketSettings },
    RenameSocket { from: PathBuf, to: PathBuf },
    ClearSocket { path: PathBuf },
    RemoveSocket { path: PathBuf, identity: SocketIdentity },
    CheckOwner { owner: SocketOwner },
    View(ViewRequest),
}

/// What the daemon asks of the files of its views.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ViewRequest {
    Begin { serving: Serving },
    Make { serving: Serving, part: Part },
    Forget { serving: Serving, vhd: Uuid },
    End { serving: Serving },
    Find { ended: Serving },
    Open { ended: Serving, part: Part },
    RemoveOthers { serving: Serving },
}

/// What the broker answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// Done.
    Done,
    /// The disk comes with this message.
    Disk,
    /// The socket comes with this message.
    Socket(SocketIdentity),
    /// The file, or directory, comes with this message; where it is, if it was looked for.
    View(PathBuf),
    /// Which disk it is.
    Identity(DiskIdentity),
    NoDisk(OpenError),
    NoSocket(SocketError),
    NoView(ViewFileError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_keep_their_numbers() {
        let path = PathBuf::from("/x");
        let error = OpenError::Open { path, source: std::io::Error::from_raw_os_error(libc::EACCES) };
        let text = error.to_string();
        let sent = serde_json::to_string(&Answer::NoDisk(error)).unwrap();
        let Answer::NoDisk(error) = serde_json::from_str(&sent).unwrap() else { panic!("{sent}") };
        assert_eq!(error.to_string(), text);
    }
}
