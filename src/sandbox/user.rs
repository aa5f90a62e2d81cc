//! Another user, and fewer capabilities.

use std::ffi::CString;
use std::io;

use nix::unistd::{Gid, Group, Uid, User, initgroups, setresgid, setresuid};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Whose rights the daemon has while it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user's name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

/// Why the daemon cannot have the rights of a user.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// No such user or group.
    #[error("there is no {kind} '{name}' on this host: create it, or choose another --user")]
    Unknown {
        /// User or group.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It cannot be looked up.
    #[error("cannot look up the {kind} '{name}'")]
    Lookup {
        /// User or group.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error(
        "cannot become user '{name}': start as root (or with CAP_SETUID, CAP_SETGID, CAP_CHOWN and CAP_DAC_OVERRIDE), or as that \
         user without --user"
    )]
    Become {
        /// The user.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot give up capabilities")]
    Capabilities(#[source] io::Error),
}

impl Account {
    /// Looks up `USER` or `USER:GROUP`; the group is the user's own unless given.
    ///
    /// # Errors
    /// There is none, or it cannot be looked up.
    pub fn find(text: &str) -> Result<Account, AccountError> {
        let (name, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let lookup = |kind, name: &str| {
            let name = name.to_owned();
            move |source: nix::Error| AccountError::Lookup { kind, name, source: source.into() }
        };
        let unknown = |kind, name: &str| AccountError::Unknown { kind, name: name.to_owned() };
        let user = User::from_name(name).map_err(lookup("user", name))?.ok_or_else(|| unknown("user", name))?;
        let gid = match group {
            None => user.gid,
            Some(group) => {
                let found = Group::from_name(group).map_err(lookup("group", group))?;
                found.ok_or_else(|| unknown("group", group))?.gid
            }
        };
        Ok(Account { name: user.name, uid: user.uid.as_raw(), gid: gid.as_raw() })
    }

    /// Becomes the user, for good, with the groups that it is in.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn become_it(&self) -> Result<(), AccountError> {
        let failed = |source: io::Error| AccountError::Become { name: self.name.clone(), source };
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let name = CString::new(self.name.as_str()).map_err(|error| failed(error.into()))?;
        initgroups(&name, gid).map_err(|error| failed(error.into()))?;
        setresgid(gid, gid, gid).map_err(|error| failed(error.into()))?;
        setresuid(uid, uid, uid).map_err(|error| failed(error.into()))
    }
}

/// The capabilities that the broker needs to open disks and give sockets away, of those that there are.
pub const BROKER_CAPABILITIES: CapabilitySet =
    CapabilitySet::CHOWN.union(CapabilitySet::FOWNER).union(CapabilitySet::DAC_OVERRIDE);

/// Gives up all capabilities of this thread but `kept`, and all ways to get some back.
///
/// # Errors
/// The kernel refuses.
pub fn keep_capabilities(kept: CapabilitySet) -> Result<(), AccountError> {
    let failed = |error: rustix::io::Errno| AccountError::Capabilities(error.into());
    rustix::thread::set_no_new_privs(true).map_err(failed)?;
    rustix::thread::clear_ambient_capability_set().map_err(failed)?;
    let have = rustix::thread::capabilities(None).map_err(failed)?;
    let sets = CapabilitySets {
        effective: have.permitted & kept,
        permitted: have.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_by_name() {
        let root = Account::find("root").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(Account::find("root:root").unwrap(), root);
        let unknown = Account::find("no-such-user-here").unwrap_err().to_string();
        assert!(unknown.contains("user 'no-such-user-here'"), "{unknown}");
        let unknown = Account::find("root:no-such-group").unwrap_err().to_string();
        assert!(unknown.contains("group 'no-such-group'"), "{unknown}");
    }
}
