//! Which VHDs grow onto other disks when those of their layout are full.
//!
//! The policy looks every half minute, and a guest fills the rest of a disk in less. So what it may change by itself (mode `auto`) does not
//! wait for it when a disk is full: the write that finds no slot is placed on another disk at once, without copying anything. What
//! becomes of the layout is for the policy to say, when it next looks.

use super::Owner;
use super::command::{CommandId, Reply};
use super::commands::{Action, Step};
use super::outbox::OwnerOutbox;
use super::vhds::Vhd;
use crate::placement::record::Expand;
use crate::policy::rules::{Mode, Rules};
use crate::store::edit::StoreEdit;

impl Owner {
    /// What administrators want of the policy. Before [`Owner::start`].
    #[must_use]
    pub fn with_policy(mut self, wanted: Rules) -> Owner {
        self.wanted = wanted;
        self
    }

    /// Whether a VHD grows that does not say so itself: what the pool says, else it does if the policy may change it; `None`: as its
    /// layout has it.
    pub(super) fn expand_unless_said(&self, vhd: &Vhd) -> Option<Expand> {
        let vm = vhd.record.vm.as_deref().and_then(|name| self.vms.named(name)).map(|vm| vm.id);
        let is_auto = || self.wanted.mode(vhd.record.id, vm) == Mode::Auto;
        self.pool.expand.or_else(|| is_auto().then_some(Expand::Auto))
    }

    pub(super) fn begin_keep_policy(rules: Box<Rules>) -> Step {
        let text = serde_json::to_string(&rules).expect("rules are plain data");
        Step::Commit { rows: vec![StoreEdit::PutPolicy(text)], action: Action::KeepPolicy(rules) }
    }

    /// What is wanted is durable. Who waits for room may grow now.
    pub(super) fn apply_policy(&mut self, command: CommandId, rules: Rules, out: &mut impl OwnerOutbox) {
        self.wanted = rules;
        out.reply(command, Ok(Reply::PolicyKept));
        self.retry_waiters(out);
    }
}
