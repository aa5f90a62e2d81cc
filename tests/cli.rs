//! The program as users run it: parsing, exit codes, JSON, help.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use clap::{CommandFactory, Parser};
use serde_json::Value;
use spanblk::cli::args::{self, Cli, JobCommand, Priority, Rate, VhdCommand};
use spanblk::control::wire::{Layout, WhenFull};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spanblk")).args(args).env_remove("SPANBLK_CONTROL").output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Says to [`panics`] that it is in a process of its own.
const PANICS: &str = "SPANBLK_TEST_PANICS";

#[test]
fn a_panic_of_any_thread_ends_the_program() {
    let args = ["--exact", "panics", "--ignored", "--nocapture", "--test-threads=1"];
    let output = Command::new(std::env::current_exe().unwrap()).args(args).env(PANICS, "1").output().unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
    assert!(stderr(&output).contains("a thread is lost"), "it is told: {output:?}");
}

#[test]
#[ignore = "run by the other one, in a process that it ruins"]
fn panics() {
    if std::env::var_os(PANICS).is_some() {
        // What it is asked to do here is wrong; it is prepared for a panic before it looks.
        let _ = spanblk::cli::main();
        let _ = std::thread::spawn(|| panic!("a thread is lost")).join();
        std::process::exit(0);
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn sizes_layouts_and_waits_are_parsed() {
    let line = "spanblk vhd create db --size 20GiB --layout spanned --disks a,b --when-full queue:5s --block-size 4096";
    let cli = Cli::try_parse_from(line.split(' ')).unwrap();
    let args::Command::Vhd(VhdCommand::Create(create)) = cli.command else { panic!("parsed as another command") };
    assert_eq!(create.size, 20 << 30);
    assert_eq!(create.layout, Some(Layout::Spanned));
    assert_eq!(create.disks, ["a", "b"]);
    assert_eq!(create.when_full, Some(WhenFull::Queue { wait_secs: 5 }));
    assert_eq!(create.block_size, Some(4096));
}

#[test]
fn orders_to_move_are_parsed() {
    let line = "spanblk vhd span db --disks a,b,c --max-rate 100MiB --priority urgent --wait";
    let cli = Cli::try_parse_from(line.split(' ')).unwrap();
    let args::Command::Vhd(VhdCommand::Span(span)) = cli.command else { panic!("parsed as another command") };
    assert_eq!((span.vhd.as_str(), &span.disks[..]), ("db", &["a", "b", "c"].map(str::to_owned)[..]));
    assert_eq!((span.options.max_rate, span.options.priority), (Some(100 << 20), Priority::Urgent));
    assert!(span.options.wait && !span.options.dry_run);
    for (text, rate) in [("none", None), ("1MiB", Some(1 << 20))] {
        let cli = Cli::try_parse_from(["spanblk", "job", "set", "7", "--max-rate", text]).unwrap();
        let args::Command::Job(JobCommand::Set { job, max_rate, priority }) = cli.command else {
            panic!("parsed as another command")
        };
        assert_eq!((job, max_rate, priority), (7, Some(Rate(rate)), None));
    }
}

#[test]
fn usage_errors_exit_with_2_and_say_what_is_right() {
    for (args, says) in [
        (&["vhd", "create", "a", "--size", "20GB", "--layout", "spanned"][..], "KiB, MiB, GiB"),
        (&["vhd", "create", "a", "--size", "1GiB", "--layout", "raid"], "isolated, spanned"),
        (&["vhd", "create", "a", "--layout", "spanned"], "--size"),
        (&["vhd", "create", "a", "--size", "1GiB", "--layout", "spanned", "--disks", "x", "--width", "2"], "--width"),
        (&["vhd", "set", "a"], "nothing to set"),
        (&["disk", "set", "a", "--accept", "all"], "any"),
        (&["pool", "create"], "DISK"),
        (&["frobnicate"], "frobnicate"),
        (&["events", "--after", "x"], "--after"),
        (&["vhd", "span"], "VHD"),
        (&["vhd", "span", "a", "--disks", "x,y", "--width", "2"], "--width"),
        (&["vhd", "unspan", "a", "--disk", "x", "--width", "1"], "--width"),
        (&["vhd", "unspan", "a", "--disks", "x"], "--disk"),
        (&["vhd", "migrate", "a", "--width", "1"], "--width"),
        (&["vhd", "settle", "a", "--dry-run", "--wait"], "--wait"),
        (&["vhd", "span", "a", "--max-rate", "100MB"], "KiB, MiB, GiB"),
        (&["disk", "evacuate"], "DISK"),
        (&["disk", "evacuate", "a", "--priority", "high"], "normal, urgent"),
        (&["pool", "rebalance", "a"], "unexpected"),
        (&["vm", "create"], "NAME"),
        (&["vm", "create", "a", "--label", "env"], "KEY=VALUE"),
        (&["vm", "create", "a", "--owner", ""], "--owner"),
        (&["vm", "set", "a"], "nothing to set"),
        (&["job", "show"], "JOB"),
        (&["job", "show", "a"], "invalid"),
        (&["job", "set", "1"], "nothing to set"),
        (&["job", "set", "1", "--max-rate", "fast"], "not a size"),
        (&["job", "cancel", "1", "--wait"], "--revert"),
    ] {
        let output = run(args);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(stderr(&output).contains(says), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn an_absent_daemon_exits_with_5_everywhere() {
    for args in [
        &["pool", "show"][..],
        &["disk", "list"],
        &["disk", "add", "/nonexistent"],
        &["vhd", "list"],
        &["vm", "list"],
        &["vm", "create", "a"],
        &["vm", "set", "a", "--label", "env="],
        &["vm", "delete", "a"],
        &["vhd", "delete", "a"],
        &["vhd", "map", "a"],
        &["vhd", "create", "a", "--size", "1GiB", "--layout", "isolated"],
        &["check"],
        &["events"],
        &["metrics"],
        &["metadata", "dump"],
        &["vhd", "span", "a"],
        &["vhd", "unspan", "a", "--dry-run"],
        &["vhd", "migrate", "a", "--wait"],
        &["vhd", "settle", "a"],
        &["disk", "evacuate", "a"],
        &["pool", "rebalance"],
        &["job", "list"],
        &["job", "pause", "1"],
        &["job", "set", "1", "--max-rate", "none"],
        &["job", "cancel", "1", "--revert"],
        &["job", "wait", "1"],
    ] {
        let output = run(&[args, &["--control", "/nonexistent/api.sock"]].concat());
        assert_eq!(code(&output), 5, "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("spanblk serve"), "{args:?}");
    }
}

#[test]
fn errors_are_json_when_asked_for() {
    let output = run(&["--json", "vhd", "list", "--control", "/nonexistent/api.sock"]);
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["kind"], "unavailable");
    assert!(error["error"]["hint"].as_str().unwrap().contains("serve"));
}

#[test]
fn usage_errors_are_json_when_asked_for() {
    for args in [&["--json", "vhd", "create", "a"][..], &["vhd", "create", "a", "--size", "1GB", "--json"]] {
        let output = run(args);
        assert_eq!(code(&output), 2);
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(error["error"]["kind"], "invalid");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains("--size") && !message.contains("--help"), "{message}");
    }
    let help = run(&["--json", "--help"]);
    assert_eq!((code(&help), help.stderr.len()), (0, 0), "help is no error");
}

#[test]
fn the_control_socket_is_taken_from_the_environment() {
    let program = env!("CARGO_BIN_EXE_spanblk");
    let output =
        Command::new(program).args(["pool", "show"]).env("SPANBLK_CONTROL", "/from/env.sock").output().unwrap();
    assert!(stderr(&output).contains("/from/env.sock"));
}

#[test]
fn every_command_explains_itself() {
    fn walk(command: &clap::Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        assert!(command.get_about().is_some(), "{path} has no description");
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{path}: {} has no description", argument.get_id());
        }
        command.get_subcommands().for_each(|sub| walk(sub, &path));
    }
    walk(&Cli::command(), "");
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    assert!(help.contains("Exit codes") && help.contains("5  the daemon cannot be reached"), "{help}");
    let help = String::from_utf8(run(&["vhd", "create", "--help"]).stdout).unwrap();
    assert!(help.contains("Examples:") && help.contains("--layout isolated"), "{help}");
    for path in [
        &["vhd", "span"][..],
        &["vhd", "unspan"],
        &["vhd", "migrate"],
        &["vhd", "settle"],
        &["disk", "evacuate"],
        &["pool", "rebalance"],
        &["job", "show"],
        &["job", "set"],
        &["job", "cancel"],
        &["job", "wait"],
    ] {
        let help = String::from_utf8(run(&[path, &["--help"]].concat()).stdout).unwrap();
        assert!(help.contains("Example") && help.contains(&format!("spanblk {}", path.join(" "))), "{help}");
    }
}

#[test]
fn completions_and_manual_pages_are_made() {
    let completions = run(&["completions", "bash"]);
    assert_eq!(code(&completions), 0);
    assert!(String::from_utf8(completions.stdout).unwrap().contains("_spanblk"));
    let directory = tempfile::tempdir().unwrap();
    let man = directory.path().join("man");
    assert_eq!(code(&run(&["man", man.to_str().unwrap()])), 0);
    let page = std::fs::read_to_string(man.join("spanblk-vhd-create.1")).unwrap();
    assert!(page.contains("layout"), "{page}");
    let page = std::fs::read_to_string(man.join("spanblk-vm-create.1")).unwrap();
    assert!(page.contains("label"), "{page}");
}

#[test]
fn images_that_cannot_be_imported_are_refused_before_anything_else() {
    let output = run(&["vhd", "import", "/nonexistent.qcow2", "a", "--control", "/nonexistent/api.sock"]);
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    if Command::new("qemu-img").arg("--version").output().is_err() {
        println!("skipped: qemu-img is not installed");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let qemu_img = |args: &[&str]| assert!(Command::new("qemu-img").args(args).output().unwrap().status.success());
    qemu_img(&["create", "-f", "qcow2", &path("base.qcow2"), "16M"]);
    qemu_img(&["create", "-f", "qcow2", "-b", &path("base.qcow2"), "-F", "qcow2", &path("overlay.qcow2")]);
    let output = run(&["vhd", "import", &path("overlay.qcow2"), "a", "--control", "/nonexistent/api.sock"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("refers to the file"), "{}", stderr(&output));

    let mut image = std::fs::read(path("base.qcow2")).unwrap();
    let len = image.len();
    image[512..len.min(196_608)].fill(0xff);
    std::fs::write(path("corrupt.qcow2"), image).unwrap();
    let output = run(&["vhd", "import", &path("corrupt.qcow2"), "a", "--control", "/nonexistent/api.sock"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("corrupt.qcow2"), "{}", stderr(&output));
}

#[test]
fn serve_refuses_a_bad_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("c.toml");
    std::fs::write(&config, "disks = ['/x']\nreactor = 3\n").unwrap();
    let output = run(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    assert!(stderr(&output).contains("unknown field `reactor`"), "{}", stderr(&output));
    let output = run(&["serve", "--config", "/nonexistent.toml"]);
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    let output = run(&["serve", "--log-level", "loud", "/x"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("use off, error, warn"), "{}", stderr(&output));
    let output = run(&["serve"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("no disks are given"), "{}", stderr(&output));
}
