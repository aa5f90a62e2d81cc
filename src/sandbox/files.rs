//! Landlock: files that can be opened by name, or changed. Descriptors that are open stay as they are.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, PathFdError, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// What may be done beneath a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Files and directories may be read.
    Read,
    /// As [`Right::Read`]; files may also be made, written to and removed, and devices set up.
    Disks,
    /// Sockets may be made, renamed and removed.
    Sockets,
    /// Files and directories may be made, read, written to and removed.
    Files,
}

impl Right {
    fn access(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let change = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
        match self {
            Right::Read => read,
            Right::Disks => read | change | AccessFs::IoctlDev,
            Right::Files => read | change | AccessFs::MakeDir | AccessFs::RemoveDir,
            Right::Sockets => AccessFs::MakeSock | AccessFs::RemoveFile,
        }
    }
}

/// Who is restricted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The daemon: it also makes no TCP connection and reaches no process outside by signals or abstract sockets.
    Daemon,
    /// The broker, whose name services may be reached by sockets.
    Broker,
}

/// A path, and what may be done there and beneath.
pub type Rule = (PathBuf, Right);

/// Why files could not be put out of reach.
#[derive(Debug, thiserror::Error)]
pub enum RestrictError {
    /// A path of a rule.
    #[error("cannot look at {}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: PathFdError,
    },
    /// The kernel refused.
    #[error("the kernel refuses the Landlock rules; --sandbox off does without")]
    Ruleset(#[from] RulesetError),
}

/// What the kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforced {
    /// Landlock, in the version that the kernel has.
    Version(i32),
    /// Nothing: the kernel has no Landlock, or it is not turned on.
    Nothing,
}

/// Takes everything away from this thread, and those that it will start, that no rule gives. A rule for a path that does not
/// exist gives nothing.
///
/// # Errors
/// See [`RestrictError`]. A kernel without Landlock is no error.
pub fn restrict(subject: Subject, rules: &[Rule]) -> Result<Enforced, RestrictError> {
    let ruleset = match subject {
        Subject::Daemon => Ruleset::default()
            .handle_access(AccessFs::from_all(ABI::V10))?
            .handle_access(AccessNet::ConnectTcp | AccessNet::BindTcp)?
            .scope(Scope::Signal | Scope::AbstractUnixSocket)?,
        Subject::Broker => Ruleset::default().handle_access(AccessFs::from_all(ABI::V7))?,
    };
    let mut created = ruleset.create()?;
    for (path, right) in rules.iter().filter(|(path, _)| path.exists()) {
        created = created.add_rule(beneath(path, right.access())?)?;
    }
    Ok(enforced(&created.restrict_self()?))
}

/// A file has no entries: rights to make or list them are for directories.
fn beneath(path: &Path, access: BitFlags<AccessFs>) -> Result<PathBeneath<PathFd>, RestrictError> {
    let fd = PathFd::new(path).map_err(|source| RestrictError::Path { path: path.to_owned(), source })?;
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(ABI::V10) };
    Ok(PathBeneath::new(fd, access))
}

fn enforced(status: &RestrictionStatus) -> Enforced {
    match (&status.ruleset, &status.landlock) {
        (RulesetStatus::NotEnforced, _) => Enforced::Nothing,
        (_, LandlockStatus::Available { effective_abi, kernel_abi }) => {
            Enforced::Version(kernel_abi.unwrap_or(*effective_abi as i32))
        }
        _ => Enforced::Nothing,
    }
}
