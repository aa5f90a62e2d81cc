//! `spanblk policy`, `advise`, `apply`, `dismiss` and `why`.

use std::collections::BTreeMap;
use std::fmt::Write;

use hyper::Method;

use super::Session;
use super::args::{PolicyCommand, PolicySetArgs};
use super::client::path_segment;
use super::output::{Failure, Outcome};
use crate::control::wire::size::human_size;
use crate::control::wire::{AdviceInfo, AdviceResult, ErrorKind, PolicyInfo, PolicyUpdate, ProposalInfo, WhyInfo};

/// Runs a command about what is wanted.
pub fn run(session: &Session, command: PolicyCommand) -> Outcome {
    let info: PolicyInfo = match command {
        PolicyCommand::Show => session.client()?.get("/policy")?,
        PolicyCommand::Set(args) => session.client()?.send(Method::PATCH, "/policy", &update(args)?)?,
    };
    session.output().show(&info, wanted)
}

fn update(args: PolicySetArgs) -> Result<PolicyUpdate, Failure> {
    let mut settings = BTreeMap::new();
    for (name, value) in args.settings {
        if settings.contains_key(&name) {
            return Err(Failure::new(ErrorKind::Invalid, format!("setting '{name}' is given twice")));
        }
        settings.insert(name, (!value.is_empty()).then_some(value));
    }
    Ok(PolicyUpdate { vm: args.vm, vhd: args.vhd, settings })
}

fn wanted(info: &PolicyInfo) -> String {
    let line = |settings: &BTreeMap<String, String>| {
        let pairs: Vec<String> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join(" ")
    };
    let mut text = problem(info.problem.as_deref());
    text.push_str(&format!("pool: {}\n", line(&info.pool)));
    info.vms.iter().for_each(|(vm, settings)| text.push_str(&format!("VM {vm}: {}\n", line(settings))));
    info.vhds.iter().for_each(|(vhd, settings)| text.push_str(&format!("VHD {vhd}: {}\n", line(settings))));
    text
}

/// `spanblk advise`.
pub fn advise(session: &Session) -> Outcome {
    let info: AdviceInfo = session.client()?.get("/advice")?;
    session.output().show(&info, advice)
}

/// `spanblk apply`.
pub fn apply(session: &Session, proposal: u32) -> Outcome {
    let path = format!("/advice/{proposal}/apply");
    let result: AdviceResult = session.client()?.send(Method::POST, &path, &serde_json::json!({}))?;
    session.output().show(&result, |result| match &result.job {
        Some(job) => {
            format!("proposal {proposal} is carried out by job {}: see 'spanblk job show {}'\n", job.id, job.id)
        }
        None => format!("proposal {proposal}: nothing was to be moved\n"),
    })
}

/// `spanblk dismiss`.
pub fn dismiss(session: &Session, proposal: u32) -> Outcome {
    let path = format!("/advice/{proposal}/dismiss");
    let result: AdviceResult = session.client()?.send(Method::POST, &path, &serde_json::json!({}))?;
    session.output().show(&result, |_| {
        format!("proposal {proposal} is dismissed; it comes back if what was observed changes by a fifth\n")
    })
}

/// `spanblk why`.
pub fn why(session: &Session, vhd: &str) -> Outcome {
    let info: WhyInfo = session.client()?.get(&format!("/vhds/{}/why", path_segment(vhd)))?;
    session.output().show(&info, |info| info.sentences.iter().map(|sentence| format!("{sentence}\n")).collect())
}

/// What is wrong, as the first line.
fn problem(problem: Option<&str>) -> String {
    problem.map(|problem| format!("PROBLEM: {problem}\n")).unwrap_or_default()
}

fn advice(info: &AdviceInfo) -> String {
    let mut text = problem(info.problem.as_deref());
    if info.proposals.is_empty() {
        text.push_str("nothing to propose\n");
    }
    info.proposals.iter().for_each(|proposal| text.push_str(&described(proposal)));
    if !info.outcomes.is_empty() {
        text.push_str("\ncarried out:\n");
    }
    for outcome in &info.outcomes {
        let _ = writeln!(text, "  {}: {}", outcome.number, outcome.text);
    }
    let _ = writeln!(
        text,
        "\nmoved in the last 24 hours: {} of {}",
        human_size(info.spent_bytes),
        human_size(info.budget_bytes)
    );
    text
}

fn described(proposal: &ProposalInfo) -> String {
    let mut text = format!("{}: {} ({})\n", proposal.number, proposal.what, proposal.rule);
    let lines = [
        ("because", &proposal.because),
        ("brings", &proposal.brings),
        ("costs", &proposal.costs),
        ("by", &proposal.command),
        ("now", &proposal.standing_text),
    ];
    for (what, said) in lines {
        let _ = writeln!(text, "   {what:<9}{said}");
    }
    for other in &proposal.instead {
        let _ = writeln!(text, "   {:<9}{other}", "instead");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposal_is_told_with_all_that_speaks_for_it() {
        let proposal = ProposalInfo {
            number: 3,
            rule: "space".into(),
            what: "put VHD a on disk d1".into(),
            command: "spanblk vhd migrate a --disk d1".into(),
            because: "room runs out: disk d0 is 91.0 % full, the limit is 80.0 %.".into(),
            brings: "fill of disk d0: 91.0 % becomes 70.0 %".into(),
            costs: "1.0 GiB to copy".into(),
            instead: vec!["put VHD b on disk d1 (4.0 GiB) costs more for what it brings".into()],
            standing: "advice".into(),
            standing_text: "waits for you".into(),
            bytes: 1 << 30,
            before: 0.91,
            after: 0.7,
            metric: "fill".into(),
        };
        let info = AdviceInfo { proposals: vec![proposal], budget_bytes: 1 << 30, ..AdviceInfo::default() };
        let text = advice(&info);
        for words in
            ["3: put VHD a on disk d1 (space)", "   because  room runs out", "   instead  put VHD b", "0B of 1GiB"]
        {
            assert!(text.contains(words), "{words} is not in\n{text}");
        }
    }

    #[test]
    fn a_problem_is_the_first_line() {
        let problem = Some("it cannot be read".to_owned());
        let wishes = PolicyInfo {
            pool: BTreeMap::from([("mode".to_owned(), "advise".to_owned())]),
            vms: BTreeMap::new(),
            vhds: BTreeMap::new(),
            problem: problem.clone(),
        };
        assert_eq!(wanted(&wishes), "PROBLEM: it cannot be read\npool: mode=advise\n");
        assert!(advice(&AdviceInfo { problem, ..AdviceInfo::default() }).starts_with("PROBLEM: it cannot be read\n"));
    }
}
