//! The filter of system calls: built from the list, put on all threads at once.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

use super::calls::{self, Arg};
use super::{Mode, trap};

/// Why the filter cannot be put in place.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// Not an architecture that has one.
    #[error("there is no list of system calls for this architecture: start with --sandbox off")]
    Architecture(#[source] seccompiler::BackendError),
    /// It could not be built.
    #[error("the list of system calls is not valid")]
    Build(#[from] seccompiler::BackendError),
    /// The kernel refused it.
    #[error("the kernel refuses the filter of system calls; --sandbox off does without")]
    Install(#[source] seccompiler::Error),
    /// The handler of the signal that a refused call raises.
    #[error("cannot handle SIGSYS")]
    Handler(#[source] io::Error),
}

/// Whether the kernel filters system calls now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    /// It does.
    Filtered,
    /// It cannot: it was built without seccomp.
    Unsupported,
}

/// Puts the filter on every thread of this process, and so on those that they start. It cannot be taken away.
///
/// # Errors
/// See [`FilterError`]. A kernel without seccomp is no error.
pub fn install(mode: Mode) -> Result<Filtering, FilterError> {
    let refused = match mode {
        Mode::On => SeccompAction::Trap,
        Mode::Log => SeccompAction::Log,
        Mode::Off => return Ok(Filtering::Unsupported),
    };
    // The list last: putting a filter in place is not on it.
    let programs = [refusals()?, allow_list(refused)?];
    trap::install().map_err(FilterError::Handler)?;
    for program in &programs {
        match apply_filter_all_threads(program) {
            Ok(()) => {}
            Err(seccompiler::Error::Seccomp(error) | seccompiler::Error::Prctl(error)) if is_absent(&error) => {
                return Ok(Filtering::Unsupported);
            }
            Err(error) => return Err(FilterError::Install(error)),
        }
    }
    Ok(Filtering::Filtered)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL))
}

fn architecture() -> Result<TargetArch, FilterError> {
    std::env::consts::ARCH.try_into().map_err(FilterError::Architecture)
}

fn allow_list(refused: SeccompAction) -> Result<BpfProgram, FilterError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (call, conditions) in calls::allowed() {
        let rule = |arg: &Arg| SeccompRule::new(vec![condition(*arg)?]);
        let before = rules.insert(call, conditions.iter().map(rule).collect::<Result<_, _>>()?);
        assert!(before.is_none(), "system call {call} is listed twice");
    }
    for &call in calls::ON_ITSELF {
        let rule = SeccompRule::new(vec![condition(Arg::Is(0, std::process::id()))?])?;
        rules.insert(call, vec![rule]);
    }
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, architecture()?)?;
    Ok(filter.try_into()?)
}

/// A second filter: of two answers the kernel takes the one that allows less.
fn refusals() -> Result<BpfProgram, FilterError> {
    let rules = calls::REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    let absent = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, absent, architecture()?)?.try_into()?)
}

fn condition(arg: Arg) -> Result<SeccompCondition, seccompiler::BackendError> {
    let (index, operator, value) = match arg {
        Arg::Is(index, value) => (index, SeccompCmpOp::Eq, value),
        Arg::Masked(index, mask, value) => (index, SeccompCmpOp::MaskedEq(mask.into()), value),
    };
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_can_be_built_and_no_call_is_listed_twice() {
        let program = allow_list(SeccompAction::Trap).unwrap();
        assert!((100..4096).contains(&program.len()), "{} instructions", program.len());
        assert!(!refusals().unwrap().is_empty());
        assert_eq!(install(Mode::Off).unwrap(), Filtering::Unsupported);
    }

    #[test]
    fn what_would_be_a_way_out_is_not_listed() {
        let out = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_open,
            libc::SYS_openat2,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_io_uring_setup,
            libc::SYS_unlinkat,
            libc::SYS_unlink,
            libc::SYS_rename,
            libc::SYS_fchownat,
            libc::SYS_fchmodat,
            libc::SYS_setresuid,
            libc::SYS_mount,
            libc::SYS_bpf,
            libc::SYS_kill,
            libc::SYS_tkill,
        ];
        for (call, _) in calls::allowed() {
            assert!(!out.contains(&call), "system call {call}");
        }
    }
}
