//! `spanblk simulate` as users run it: the table, equal seeds, the picture, traces, and what is refused.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::process::{Command, Output};

use serde_json::Value;

const SMALL: &str = "hosts=2 days=2 warmup=1 vhds=10 disks=4";

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spanblk")).arg("simulate").args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn the_table_compares_four_strategies_and_says_which_goals_are_reached() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("plot.svg");
    let text = stdout(&run(&["--synthetic", SMALL, "--seeds", "2", "--svg", picture.to_str().unwrap()]));
    for word in ["all-spanned", "all-isolated", "static hybrid", "policy", "Imbalance", "+-", "seeds 1 2"] {
        assert!(text.contains(word), "{word} is missing:\n{text}");
    }
    assert_eq!(text.matches("reached").count() + text.matches("MISSED").count(), 7, "{text}");
    let svg = std::fs::read_to_string(picture).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("VHDs that fit"));
}

#[test]
fn one_seed_gives_the_same_again_and_json_has_all_of_it() {
    let args = ["--synthetic", SMALL, "--seed", "7", "--json"];
    let one = stdout(&run(&args));
    assert_eq!(one, stdout(&run(&args)));
    let report: Value = serde_json::from_str(&one).unwrap();
    assert_eq!(report["seeds"], serde_json::json!([7]));
    assert_eq!(report["rows"].as_array().unwrap().len(), 4);
    let policy = &report["rows"][3];
    assert_eq!(policy["strategy"], "policy");
    assert!(policy["mean"]["moved"].as_f64().unwrap() <= 0.01);
}

#[test]
fn specifications_and_traces_come_from_files_too() {
    let folder = tempfile::tempdir().unwrap();
    let (spec, trace) = (folder.path().join("spec"), folder.path().join("trace.csv"));
    std::fs::write(&spec, "# one kind\nfleet=nvme:1\ndisks=4 warmup=0\n").unwrap();
    let header = "seconds,host,vm,vhd,size,used,iops,bytes_per_sec,read_share";
    std::fs::write(&trace, format!("{header}\n0,h,v,d,9999999999,1000,10,40960,0.5\n7200,h,v,d,0,0,0,0,0\n")).unwrap();
    let at = format!("@{}", spec.display());
    let text = stdout(&run(&["--trace", trace.to_str().unwrap(), "--synthetic", &at, "--seeds", "1"]));
    assert!(text.starts_with("1 hosts, seeds 1"), "{text}");
    std::fs::write(&trace, format!("{header}\n0,h,v,d,much,1000,10,40960,0.5\n")).unwrap();
    let output = run(&["--trace", trace.to_str().unwrap()]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && error.contains("line 2 of the trace: size is 'much'"), "{error}");
}

#[test]
fn bad_specifications_are_refused_by_key_and_unit() {
    for (spec, says) in [
        ("hots=3", "there is no setting 'hots': use one of hosts"),
        ("load=30", "'30' is no value of 'load'"),
        ("extent=1MB", "such as 1GiB"),
        ("days=1 warmup=2", "leaves nothing to measure"),
    ] {
        let output = run(&["--synthetic", spec]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(says) && error.contains("simulate --help"), "{error}");
    }
    let output = run(&["--trace", "/nowhere/trace.csv"]);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("/nowhere/trace.csv"));
    assert_eq!(run(&["--seeds", "0"]).status.code(), Some(2));
}
