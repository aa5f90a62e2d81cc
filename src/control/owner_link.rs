//! How API handlers reach the owner: a command goes in, a future of its answer comes out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::convert::command_error;
use super::wire::{ErrorInfo, ErrorKind};
use crate::owner::command::{Command, CommandError, Reply};

/// How long a handler waits for an answer. Longer than any commit on a disk that still works.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A command on its way, with the place for its answer.
#[derive(Debug)]
pub struct Asked {
    /// The command.
    pub command: Command,
    /// Where the answer goes. Dropped unanswered if the daemon stops.
    pub answer: oneshot::Sender<Result<Reply, CommandError>>,
}

/// The way to the owner.
#[derive(Clone)]
pub struct OwnerLink {
    send: Arc<dyn Fn(Asked) + Send + Sync>,
}

impl OwnerLink {
    /// A link that hands commands to `send`, which must not block; it drops what it cannot deliver.
    pub fn new(send: impl Fn(Asked) + Send + Sync + 'static) -> OwnerLink {
        OwnerLink { send: Arc::new(send) }
    }

    /// Carries out a command, however long that takes: for a step of several, whose end has to be known.
    ///
    /// # Errors
    /// The owner refused it, or the daemon is stopping.
    pub async fn ask_for_as_long(&self, command: Command) -> Result<Reply, ErrorInfo> {
        let (answer, waiting) = oneshot::channel();
        (self.send)(Asked { command, answer });
        match waiting.await {
            Ok(result) => result.map_err(|error| command_error(&error)),
            Err(_) => Err(stopping()),
        }
    }

    /// Carries out a command.
    ///
    /// # Errors
    /// The owner refused it, the daemon is stopping, or the answer did not come in time.
    pub async fn ask(&self, command: Command) -> Result<Reply, ErrorInfo> {
        let (answer, waiting) = oneshot::channel();
        (self.send)(Asked { command, answer });
        match tokio::time::timeout(ANSWER_TIMEOUT, waiting).await {
            Ok(Ok(result)) => result.map_err(|error| command_error(&error)),
            Ok(Err(_)) => Err(stopping()),
            Err(_) => {
                let secs = ANSWER_TIMEOUT.as_secs();
                Err(ErrorInfo::new(ErrorKind::Unavailable, format!("no answer within {secs} seconds")).with_hint(
                    "the request may still be carried out and may be repeated; a disk may be hanging, see 'spanblk disk list'",
                ))
            }
        }
    }
}

fn stopping() -> ErrorInfo {
    ErrorInfo::new(ErrorKind::Unavailable, "the daemon is stopping")
}

impl std::fmt::Debug for OwnerLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnerLink")
    }
}
