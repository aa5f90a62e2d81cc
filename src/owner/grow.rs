//! Which VHDs grow onto other disks when those of their layout are full.
//!
//! The policy looks every half minute, and a guest fills the rest of a disk in less. So what it may change by itself (mode `auto`) does not
//! wait for it when a disk is full: the write that finds no slot, and none on its way back, is placed on another disk at once, without copying anything. What
//! becomes of the layout is for the policy to say, when it next looks.

use super::Owner;
use super::command::{CommandId, Growth, GrowthSaid, Reply};
use super::commands::{Action, Step};
use super::outbox::OwnerOutbox;
use super::vhds::Vhd;
use crate::placement::record::{Expand, Layout};
use crate::policy::rules::{Mode, Rules};
use crate::store::edit::StoreEdit;

impl Owner {
    /// What administrators want of the policy. Before [`Owner::start`].
    #[must_use]
    pub fn with_policy(mut self, wanted: Rules) -> Owner {
        self.wanted = wanted;
        self
    }

    /// Whether a VHD grows that does not say so itself: what the pool says, else it does if the policy may change it and its disks are full,
    /// not gone; `None`: as its layout has it.
    pub(super) fn expand_unless_said(&self, vhd: &Vhd) -> Option<Expand> {
        let vm = vhd.record.vm.as_deref().and_then(|name| self.vms.named(name)).map(|vm| vm.id);
        let has_a_disk = || vhd.record.layout.disks().iter().any(|disk| !self.space.disk(disk).is_closed());
        let is_auto = || self.wanted.mode(vhd.record.id, vm) == Mode::Auto && has_a_disk();
        self.pool.expand.or_else(|| is_auto().then_some(Expand::Auto))
    }

    /// Whether an isolated VHD grows only because the policy may change it. It does not before it is clear that slots which are on their way
    /// back on its own disk do not come soon: a guest that discards and writes again stays isolated.
    pub(super) fn grows_if_need_be(&self, vhd: &Vhd) -> bool {
        let says_nothing = vhd.record.expand.is_none() && self.pool.expand.is_none();
        let is_isolated = matches!(vhd.record.layout, Layout::Isolated { .. });
        says_nothing && is_isolated && self.expand_unless_said(vhd) == Some(Expand::Auto)
    }

    /// What becomes of it when its disks are full, for whoever wants to know.
    pub(super) fn growth_of(&self, vhd: &Vhd) -> Growth {
        let said_by = match (vhd.record.expand, self.pool.expand) {
            (Some(_), _) => GrowthSaid::Vhd,
            (None, Some(_)) => GrowthSaid::Pool,
            (None, None) if self.grows_if_need_be(vhd) => GrowthSaid::Policy,
            (None, None) => GrowthSaid::Layout,
        };
        Growth { grows: vhd.expands(self.expand_unless_said(vhd)), said_by }
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
