//! The policy as the API tells it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::control::policy::{Advice, Answers, Kept};
use crate::control::wire::{AdviceInfo, OutcomeInfo, PolicyInfo, ProposalInfo, WhyDisk, WhyInfo};
use crate::policy::proposal::Proposal;
use crate::policy::rules::Scope;
use crate::policy::say::Said;
use crate::policy::why::Why;

/// What is wanted, with names.
#[must_use]
pub fn policy_info(wanted: Kept, answers: &Answers) -> PolicyInfo {
    let Kept { rules, problem } = wanted;
    let own = |scope| rules.settings(scope).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let of_vm = |vm: &crate::owner::command::VmInfo| (vm.record.name.clone(), own(Scope::Vm(vm.record.id)));
    let of_vhd = |vhd: &crate::owner::command::VhdInfo| (vhd.record.name.clone(), own(Scope::Vhd(vhd.record.id)));
    let has_any = |(_, settings): &(String, BTreeMap<String, String>)| !settings.is_empty();
    PolicyInfo {
        pool: own(Scope::Pool),
        vms: answers.vms.iter().map(of_vm).filter(has_any).collect(),
        vhds: answers.vhds.iter().map(of_vhd).filter(has_any).collect(),
        problem,
    }
}

/// What it proposes.
#[must_use]
pub fn advice_info(advice: Advice) -> AdviceInfo {
    let outcome = |(number, text)| OutcomeInfo { number, text };
    AdviceInfo {
        proposals: advice.proposals.into_iter().map(|(proposal, said)| proposal_info(&proposal, said)).collect(),
        outcomes: advice.outcomes.into_iter().map(outcome).collect(),
        spent_bytes: advice.spent_bytes,
        budget_bytes: advice.budget_bytes,
        problem: advice.problem,
    }
}

fn proposal_info(proposal: &Proposal, said: Said) -> ProposalInfo {
    ProposalInfo {
        number: said.number,
        rule: proposal.rule.word().to_owned(),
        what: said.what,
        command: said.command,
        because: said.because,
        brings: said.brings,
        costs: said.costs,
        instead: said.instead,
        standing: word(&proposal.standing),
        standing_text: said.standing.to_owned(),
        bytes: proposal.cost.bytes,
        before: proposal.effect.before,
        after: proposal.effect.after,
        metric: word(&proposal.effect.metric),
    }
}

/// The word that a plain enum is in JSON.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Why a VHD lies where it lies.
#[must_use]
pub fn why_info(why: Why) -> WhyInfo {
    let disk = |share: crate::policy::why::Share| WhyDisk {
        disk: share.disk,
        replicas: share.replicas,
        busy: share.busy,
        disk_busy: share.disk_busy,
        strangers: share.strangers,
    };
    WhyInfo { vhd: why.vhd, disks: why.shares.into_iter().map(disk).collect(), sentences: why.sentences }
}
