//! Handing all VHDs over to another server, and going on with those of one.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;

use super::{Entry, Orders, VhdEndpoint, VhostUserServer};
use crate::base::ids::VhdId;
use crate::vhost_user::error::ServerError;
use crate::vhost_user::held::{HeldError, HeldVhd};
use crate::vhost_user::hold::{Hold, HoldError, Phase};
use crate::vhost_user::listener::Vhd;
use crate::vhost_user::socket::BoundPath;

impl VhostUserServer {
    /// What is added from now on waits, sockets and frontends alike, until [`VhostUserServer::go_on`]. So whoever has held it can still
    /// go on with it: dropped before that, this server leaves no trace.
    #[must_use]
    pub fn waiting(self) -> VhostUserServer {
        self.open.send_replace(false);
        self
    }

    /// Serves what has been added. From here on, nobody else can go on with it. Sockets get the paths and permissions that go with their VHDs
    /// if those have changed meanwhile; where that fails they stay as they are, and the log says so.
    pub fn go_on(&self) {
        let mut entries = self.entries();
        entries.values_mut().for_each(|entry| self.begin(entry));
        self.open.send_replace(true);
    }

    /// Like [`VhostUserServer::add_vhd`], but with the socket, and the frontends, of a VHD that another server has held. They go on
    /// where they were: nothing is negotiated anew, rings start by themselves. Nobody is told of them before the server goes on.
    ///
    /// One that has made its memory shorter, or has sealed it, is disconnected, and the others go on. While the server is *waiting*, all other
    /// reasons why one cannot go on are errors (no descriptors or memory left here; another version that did not offer the same):
    /// then it is better that nobody takes over. Once it serves, such a one is disconnected, too.
    ///
    /// The VHD must be what it was: who had its rings last (`VhdState::last_active`), its view. Another number of virtqueues is for
    /// those who come when its frontends have left.
    ///
    /// # Errors
    /// The VHD is served already, what was held does not fit it, or see above. Then the frontends are disconnected, unless somebody else
    /// has what was held, too; the path stays.
    pub fn add_held(&self, endpoint: VhdEndpoint, held: HeldVhd) -> Result<PathBuf, ServerError> {
        let id = endpoint.state.id();
        let _order = self.order()?;
        let mut entries = self.entries();
        if entries.contains_key(&id) {
            return Err(ServerError::AlreadyServed(id));
        }
        // In the same process they leave once they have entered again.
        let HeldVhd { state, listener, frontends, inside: _inside } = held;
        let served = endpoint.state.settings.uuid;
        if state.vhd != served {
            return Err(HeldError::OtherVhd { held: state.vhd, served }.into());
        }
        let runtime = self.runtime.as_ref().expect("taken when the server ends");
        let _context = runtime.enter();
        let listener = std::os::unix::net::UnixListener::from(listener);
        let socket = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
        let socket = socket.map_err(HeldError::Socket)?;
        let wanted = endpoint.socket.clone();
        let path = (state.path.clone(), state.identity, state.socket.clone());
        // Its frontends know the device as it was.
        let queues = endpoint.queues;
        let known = VhdEndpoint { queues: state.queues().unwrap_or(queues), ..endpoint };
        let vhd = Arc::new(Vhd::new(known, Arc::clone(&self.events)));
        vhd.set_queues(queues);
        let is_waiting = !*self.open.borrow();
        let resumed = vhd.take_over(&self.hub, state, frontends, is_waiting)?;
        let path = BoundPath::take_over(Arc::clone(&self.paths), path);
        let entry = self.serve(&mut entries, vhd, path, socket, resumed);
        entry.wanted = Some(wanted);
        if !is_waiting {
            self.begin(entry);
        }
        Ok(entry.path.path().to_owned())
    }

    /// Nobody else can go on with it any more.
    fn begin(&self, entry: &mut Entry) {
        let name = entry.vhd.name();
        let path = &mut entry.path;
        path.own();
        // What was changed too late for the server that held it.
        let renamed = path.rename(self.path_of(&name));
        // A name service may be slow: it is asked only if need be.
        let wanted = entry.wanted.take().filter(|wanted| wanted != path.settings());
        if let Err(error) = renamed.and_then(|()| wanted.map_or(Ok(()), |wanted| path.set(&wanted))) {
            log::error!("the socket of VHD '{name}' does not follow its settings: {error}");
        }
        entry.vhd.turn().announce();
        entry.vhd.tell_size();
    }

    /// Holds all VHDs, so that another server can go on with them: no connection is accepted, no message is handled, every ring is
    /// drained and stopped. All or nothing: if that takes longer than `at_most`, everything goes on as before. Afterwards this server
    /// serves nothing, and takes no orders; the paths of the sockets stay, and frontends notice nothing.
    ///
    /// # Errors
    /// Which VHDs could not be held, and why.
    ///
    /// # Panics
    /// Never: what has paused can be handed over.
    pub fn hold(&self, at_most: Duration) -> Result<Vec<HeldVhd>, HoldError> {
        // Nothing comes or goes meanwhile; all else that looks at it goes on.
        let Ok(mut orders) = self.order() else { return Ok(Vec::new()) };
        let (hold, reports) = Hold::new(at_most);
        let enter = |entries: &HashMap<VhdId, Entry>, phase: &Phase| {
            entries.values().for_each(|entry| drop(entry.phase.send_replace(phase.clone())));
        };
        let names = {
            let entries = self.entries();
            enter(&entries, &Phase::Holding(Arc::clone(&hold)));
            entries.iter().map(|(id, entry)| (*id, entry.vhd.name())).collect()
        };
        let outcome = hold.wait(names, &reports);
        let mut entries = self.entries();
        enter(&entries, if outcome.is_ok() { &Phase::HandedOver } else { &Phase::Serving });
        outcome?;
        *orders = Orders::HandedOver;
        Ok(entries.drain().map(|(_, entry)| entry.hand_over()).collect())
    }
}

impl Entry {
    fn hand_over(self) -> HeldVhd {
        let handed = self.done.recv().expect("what has paused is handed over");
        handed.at(self.path.hand_over())
    }
}
