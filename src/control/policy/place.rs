//! Where the policy would put a VHD that is about to be made, by what it saw last and what is there now. Pure.
//!
//! Loads are those of its last look, as whoever waits for a VHD does not wait for another one; places are those of now, so that each of
//! many VHDs that are made one after the other counts for the next.

use super::observe::Answers;
use crate::owner::command::{CreateVhd, LayoutRequest};
use crate::placement::record::Layout;
use crate::policy::observe::Pool;
use crate::policy::place::{NewVhd, place};
use crate::policy::rules::{Mode, Rules};

/// What the policy goes by when somebody makes a VHD.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ground {
    /// What is wanted.
    pub rules: Rules,
    /// What was seen last; `None`: nothing yet.
    pub seen: Option<Pool>,
}

impl Ground {
    /// Whether the policy has a say in where such a VHD comes: nobody has said it, and it may decide something.
    #[must_use]
    pub fn has_a_say(&self, create: &CreateVhd) -> bool {
        let is_open = matches!(create.layout, LayoutRequest::Any | LayoutRequest::Isolated { disk: None });
        let wishes = self.rules.vms.values().chain([&self.rules.all]);
        is_open && self.seen.is_some() && wishes.into_iter().any(|wish| wish.mode == Some(Mode::Auto))
    }

    /// Where it would put it; `None` if that is not its business, or nothing is right.
    #[must_use]
    pub fn place(&self, answers: &Answers, create: &CreateVhd) -> Option<Layout> {
        let vm = create.vm.as_deref().and_then(|name| answers.vm(name));
        if !self.has_a_say(create) || self.rules.mode_of_new(vm) != Mode::Auto {
            return None;
        }
        let pool = answers.placed_now(self.seen.as_ref()?);
        let used = if create.thick { create.size } else { 0 };
        let layout = place(&pool, &self.rules, NewVhd { vm, size: create.size, used, replicas: create.replicas })?;
        let is_wanted = create.layout == LayoutRequest::Any || matches!(layout, Layout::Isolated { .. });
        is_wanted.then_some(layout)
    }
}

#[cfg(test)]
mod tests;
