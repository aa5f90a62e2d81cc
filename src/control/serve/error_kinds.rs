//! What kinds of errors of the API those of disks and pools are.

use crate::control::wire::{ErrorInfo, ErrorKind};
use crate::disk::file::OpenError;
use crate::disk::label::copies::ReadError;
use crate::disk::pool::{AssembleError, ChangeError, CreateError, FindError, Rejected, Rejection};

/// What kind of error it is that a pool cannot be opened.
#[must_use]
pub fn find_error_kind(error: &FindError) -> ErrorKind {
    let absent = |rejected: &Rejected| match &rejected.reason {
        Rejection::Open(OpenError::Open { source, .. }) => source.kind() == std::io::ErrorKind::NotFound,
        Rejection::NoMatch { .. } | Rejection::Label { source: ReadError::Absent, .. } => true,
        _ => false,
    };
    match error {
        FindError::Open(OpenError::Locked { .. } | OpenError::Busy { .. })
        | FindError::Assemble { source: AssembleError::SeveralPools(_) | AssembleError::Copies { .. }, .. } => {
            ErrorKind::Conflict
        }
        FindError::NoDisk(rejected) if rejected.iter().all(absent) => ErrorKind::NotFound,
        FindError::Pattern { .. } => ErrorKind::Invalid,
        _ => ErrorKind::Failed,
    }
}

/// The error body for a disk that cannot be opened.
#[must_use]
pub fn open_error(error: &OpenError) -> ErrorInfo {
    let kind = match error {
        OpenError::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        OpenError::Busy { .. }
        | OpenError::Locked { .. }
        | OpenError::Exists { .. }
        | OpenError::NotADevice { .. }
        | OpenError::Outside { .. } => ErrorKind::Conflict,
        _ => ErrorKind::Failed,
    };
    let info = ErrorInfo::new(kind, error.to_string());
    match error {
        OpenError::Locked { .. } => info.with_hint("stop that process first, or choose another disk"),
        _ => info,
    }
}

/// What kind of error it is that disks cannot be labelled.
#[must_use]
pub fn create_error_kind(error: &CreateError) -> ErrorKind {
    match error {
        CreateError::NoDisks
        | CreateError::TooManyDisks { .. }
        | CreateError::ExtentSize { .. }
        | CreateError::Name { .. }
        | CreateError::FailureDomain { .. }
        | CreateError::SameName { .. }
        | CreateError::NoStoreMember
        | CreateError::TooManyMembers { .. }
        | CreateError::Useless { .. }
        | CreateError::NoData => ErrorKind::Invalid,
        CreateError::SameDisk { .. }
        | CreateError::MixedBlockSizes { .. }
        | CreateError::Foreign { .. }
        | CreateError::InPool { .. }
        | CreateError::Label { .. }
        | CreateError::TooSmall { .. } => ErrorKind::Conflict,
        CreateError::Read { .. } | CreateError::Write { .. } | CreateError::WriteLabel { .. } => ErrorKind::Failed,
    }
}

pub(super) fn change_error(error: &ChangeError) -> ErrorInfo {
    let kind = match error {
        ChangeError::Taken { .. } => ErrorKind::Conflict,
        ChangeError::Add(error) => create_error_kind(error),
        ChangeError::FailureDomain(_) => ErrorKind::Invalid,
        _ => ErrorKind::Failed,
    };
    ErrorInfo::new(kind, error.to_string())
}
