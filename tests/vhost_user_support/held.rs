//! What one server has held, or left behind, for another one.

use std::path::PathBuf;
use std::time::Duration;

use spanblk::vhost_user::{HeldVhd, ServerError, VhdEndpoint, VhdStatus, VhostUserServer};

use super::{Handle, Host, endpoint};

impl Host {
    /// Goes on as the next daemon does: nobody is connected any more, and what is shared of the VHDs is as it was.
    pub fn restart(&mut self) {
        let sockets = self.directory.path().join("sockets");
        let next = VhostUserServer::start(sockets, Handle(self.reactors.clone()), self.events.clone()).unwrap();
        let before = std::mem::replace(&mut self.server, next);
        let served = before.statuses();
        assert!(before.shut_down(Duration::from_secs(30)));
        for VhdStatus { vhd, name, .. } in served {
            self.serve(self.state(vhd.0), &name, 2).unwrap();
        }
        self.take_notes();
    }

    /// Another server, for what the one that there is has held.
    pub fn next_server(&self) -> VhostUserServer {
        let sockets = self.directory.path().join("sockets");
        VhostUserServer::start(sockets, Handle(self.reactors.clone()), self.events.clone()).unwrap()
    }

    /// Goes on with what was held, as a VHD of two queues.
    pub fn serve_held(&self, server: &VhostUserServer, held: HeldVhd) -> Result<PathBuf, ServerError> {
        let state = self.state(u32::try_from(held.vhd().as_u128()).unwrap());
        server.add_held(endpoint(state, "disk", 2), held)
    }

    /// A VHD to serve that was added before.
    pub fn endpoint(&self, id: u32, queues: u16) -> VhdEndpoint {
        endpoint(self.state(id), "disk", queues)
    }

    /// Another process goes on with everything, and frontends notice nothing.
    pub fn take_over(&mut self) {
        let held = self.server.hold(Duration::from_secs(10)).unwrap();
        let next = self.next_server();
        for held in held {
            self.serve_held(&next, passed_on(held)).unwrap();
        }
        assert!(std::mem::replace(&mut self.server, next).shut_down(Duration::from_secs(30)));
    }
}

/// What was held, as another process would get it.
pub fn passed_on(held: HeldVhd) -> HeldVhd {
    let (state, descriptors) = held.into_parts();
    let text = serde_json::to_string(&state).unwrap();
    HeldVhd::from_parts(serde_json::from_str(&text).unwrap(), descriptors).unwrap()
}
