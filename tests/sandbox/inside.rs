//! What the sandbox refuses, tried from inside: a copy of this test program puts it around itself and tries.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, Output};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use spanblk::sandbox::files::{Enforced, Right, Rule, Subject, restrict};
use spanblk::sandbox::seccomp::{Filtering, install};
use spanblk::sandbox::{Mode, user};

const ATTEMPT: &str = "SPANBLK_TEST_ATTEMPT";
/// The exit code of an attempt that went through.
const WENT_THROUGH: i32 = 70;

/// The kernel's number, as the report has it.
fn refused_call(output: &Output) -> Option<u32> {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let (_, rest) = text.split_once("the sandbox refused system call ")?;
    rest.split_once(' ')?.0.parse().ok()
}

/// Runs one attempt in a process of its own.
fn attempt(name: &str) -> Output {
    let this = std::env::current_exe().unwrap();
    let args = ["--exact", "inside::attempts", "--ignored", "--nocapture", "--test-threads=1"];
    Command::new(this).args(args).env(ATTEMPT, name).output().unwrap()
}

/// Not a test of its own: what [`attempt`] runs.
#[test]
#[ignore = "run by the others, in a process that it may ruin"]
fn attempts() {
    let Ok(name) = std::env::var(ATTEMPT) else { return };
    let dir = tempfile::tempdir().unwrap();
    let listening = dir.path().join("s");
    let _listener = UnixListener::bind(&listening).unwrap();
    let unconnected = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let mut open = File::open("/etc/passwd").unwrap();
    let rules: [Rule; 1] = [(PathBuf::from("/proc"), Right::Read)];
    user::keep_capabilities(rustix::thread::CapabilitySet::empty()).unwrap();
    assert!(matches!(restrict(Subject::Daemon, &rules).unwrap(), Enforced::Version(_)), "SKIP: no Landlock");
    if let Some(name) = name.strip_prefix("files-only ") {
        let error = match name {
            "read" => File::open("/etc/passwd").unwrap_err(),
            "write" => File::create(dir.path().join("new")).unwrap_err(),
            "exec" => Command::new("/bin/true").exec(),
            "tcp" => std::net::TcpStream::connect("127.0.0.1:1").unwrap_err(),
            "remove" => std::fs::remove_file(&listening).unwrap_err(),
            _ => panic!("no attempt {name}"),
        };
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{name}");
        return;
    }
    assert_eq!(install(Mode::On).unwrap(), Filtering::Filtered);
    match name.as_str() {
        "nothing" => {
            let mut bytes = [0; 16];
            open.read_exact(&mut bytes).unwrap();
            assert_eq!(File::open("/etc/passwd").unwrap_err().kind(), ErrorKind::PermissionDenied);
            assert!(File::open("/proc/self/status").is_ok());
            std::thread::spawn(|| std::io::stderr().write_all(b"a thread\n").unwrap()).join().unwrap();
            return;
        }
        "write" => drop(File::options().write(true).open("/dev/null")),
        "create" => drop(File::create(dir.path().join("new"))),
        "exec" => drop(Command::new("/bin/true").exec()),
        "spawn" => drop(Command::new("/bin/true").spawn()),
        "socket" => drop(UnixStream::connect(&listening)),
        "connect" => drop(rustix::net::connect(&unconnected, &SocketAddrUnix::new(&listening).unwrap())),
        "remove" => drop(std::fs::remove_file(&listening)),
        "chown" => drop(std::os::unix::fs::chown(&listening, Some(1), Some(1))),
        "ring" => drop(io_uring::IoUring::new(8)),
        "setuid" => drop(rustix::thread::set_thread_uid(rustix::process::Uid::ROOT)),
        "kill" => drop(rustix::process::test_kill_process(rustix::process::Pid::INIT)),
        _ => panic!("no attempt {name}"),
    }
    std::process::exit(WENT_THROUGH);
}

#[test]
fn what_serving_needs_works_inside() {
    let output = attempt("nothing");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("a thread"), "{output:?}");
}

#[test]
fn ways_out_end_the_process_and_are_named() {
    let calls = [
        ("write", &[libc::SYS_openat][..]),
        ("create", &[libc::SYS_openat]),
        ("exec", &[libc::SYS_execve]),
        ("spawn", &[]),
        ("socket", &[libc::SYS_socket]),
        ("connect", &[libc::SYS_connect]),
        ("remove", &[libc::SYS_unlink, libc::SYS_unlinkat]),
        ("chown", &[libc::SYS_chown, libc::SYS_fchownat]),
        ("ring", &[libc::SYS_io_uring_setup]),
        ("setuid", &[libc::SYS_setuid]),
        ("kill", &[libc::SYS_kill]),
    ];
    for (name, expected) in calls {
        let output = attempt(name);
        if name == "spawn" {
            // The C library blocks all signals meanwhile: the kernel ends the process without a word.
            assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
            continue;
        }
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{name}: {output:?}");
        let call = refused_call(&output).map(i64::from);
        assert!(call.is_some_and(|call| expected.contains(&call)), "{name}: {call:?}");
    }
}

#[test]
fn files_programs_and_hosts_are_out_of_reach_without_the_filter_too() {
    for name in ["read", "write", "exec", "tcp", "remove"] {
        let output = attempt(&format!("files-only {name}"));
        assert!(output.status.success(), "{name}: {output:?}");
    }
}
