//! Between the wire types of the API and the owner's commands, answers and events.
//!
//! What only the shape of a request can tell (a bad mode, a list of disks for an isolated VHD) is refused here; what depends
//! on the state of the pool is the owner's to refuse.

mod event;
mod health;
pub mod impact;
mod job;
mod limits;
mod policy;
mod pool;
mod sharing;
mod stats;
mod vhd;
mod vm;

pub use event::event_detail;
pub use health::{Gone, disk_io, vhd_health};
pub use job::{job_info, plan_info, set_job, start_job};
pub use limits::{io_limits, limits_change, limits_info};
pub use policy::{advice_info, policy_info, why_info};
pub use pool::{OpenDisk, OpenDisks, check_report, disk_info, pool_info, set_disk};
pub use sharing::{sharing_change, sharing_in_effect, sharing_info, sharing_record};
pub use stats::stats_sample;
pub use vhd::{SocketInfo, create_vhd, layout_of, map_info, set_vhd, vhd_info};
pub use vm::{create_vm, set_vm, vm_info};

use super::wire::{Accept, ErrorInfo, ErrorKind, Expand};
use crate::owner::command::{CommandError, ErrorKind as CommandErrorKind};
use crate::placement::record;

/// The error body for a refused command.
#[must_use]
pub fn command_error(error: &CommandError) -> ErrorInfo {
    let kind = match error.kind() {
        CommandErrorKind::Invalid => ErrorKind::Invalid,
        CommandErrorKind::NotFound => ErrorKind::NotFound,
        CommandErrorKind::Conflict | CommandErrorKind::NoRoom => ErrorKind::Conflict,
        CommandErrorKind::Failed => ErrorKind::Failed,
    };
    let message = super::error_chain(error);
    ErrorInfo { kind, code: Some(error.code().to_owned()), message, hint: None }
}

fn invalid(message: impl Into<String>) -> ErrorInfo {
    ErrorInfo::new(ErrorKind::Invalid, message)
}

impl From<Accept> for record::Accept {
    fn from(accept: Accept) -> record::Accept {
        match accept {
            Accept::Any => record::Accept::Any,
            Accept::Isolated => record::Accept::Isolated,
            Accept::Spanned => record::Accept::Spanned,
            Accept::None => record::Accept::None,
        }
    }
}

impl From<record::Accept> for Accept {
    fn from(accept: record::Accept) -> Accept {
        match accept {
            record::Accept::Any => Accept::Any,
            record::Accept::Isolated => Accept::Isolated,
            record::Accept::Spanned => Accept::Spanned,
            record::Accept::None => Accept::None,
        }
    }
}

impl From<Expand> for record::Expand {
    fn from(expand: Expand) -> record::Expand {
        match expand {
            Expand::Never => record::Expand::Never,
            Expand::Auto => record::Expand::Auto,
        }
    }
}

impl From<record::Expand> for Expand {
    fn from(expand: record::Expand) -> Expand {
        match expand {
            record::Expand::Never => Expand::Never,
            record::Expand::Auto => Expand::Auto,
        }
    }
}
