//! Whose turn it is to change what the policy does: looks, wishes, and orders by hand.

use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

/// How long somebody waits for a turn that has a client. An order takes as long as a commit; one that takes longer than this waits for a
/// disk that hangs, and nobody knows for how long.
const PATIENCE: Duration = Duration::from_secs(30);

/// The turn. Whoever has it is the only one.
#[derive(Debug)]
pub struct Turns {
    turn: Mutex<()>,
    patience: Duration,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns::with_patience(PATIENCE)
    }
}

impl Turns {
    /// Clients wait so long at most.
    #[must_use]
    pub fn with_patience(patience: Duration) -> Turns {
        Turns { turn: Mutex::default(), patience }
    }

    /// Waits however long it takes: for whoever nobody waits for.
    pub async fn wait(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Waits for a client.
    ///
    /// # Errors
    /// Somebody has had the turn for too long: the time that was waited.
    pub async fn wait_for_client(&self) -> Result<MutexGuard<'_, ()>, Duration> {
        tokio::time::timeout(self.patience, self.turn.lock()).await.map_err(|_| self.patience)
    }
}
