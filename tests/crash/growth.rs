//! Sizes of VHDs: asked for and told, and what of that must be found after a power cut. VHDs grow while their guests work.

use std::ops::Range;

use spanblk::owner::command::{Command, CommandError, CommandId, Reply, ResizeVhd};

use super::world::{EXTENT, World};

/// The most extents that a VHD gets.
pub const EXTENTS_MAX: u64 = 9;

/// Sizes of one VHD, in the order in which they were asked for. No two are the same: what is found tells how far it has come.
#[derive(Default)]
pub struct Sizes(Vec<Size>);

struct Size {
    command: Option<CommandId>,
    bytes: u64,
    shrinks: bool,
    asked_at: usize,
    told_at: Option<usize>,
}

impl Sizes {
    /// Of a VHD that was created.
    pub fn new(bytes: u64, told_at: usize) -> Sizes {
        Sizes(vec![Size { command: None, bytes, shrinks: false, asked_at: 0, told_at: Some(told_at) }])
    }

    /// What may be found after a power cut: nothing that was not asked for, and nothing from before what was told.
    pub fn check(&self, found: u64, until: usize) -> Result<(), String> {
        let told = self.0.iter().rposition(|size| size.told_at.is_some_and(|at| at < until));
        let asked = self.0.iter().position(|size| size.bytes == found && size.asked_at < until);
        match (asked, told) {
            (Some(asked), Some(told)) if asked < told => {
                Err(format!("it has {found} bytes, and {} were told after that", self.0[told].bytes))
            }
            (Some(_), _) => Ok(()),
            (None, _) => Err(format!("it has {found} bytes, which nobody has asked for")),
        }
    }

    /// When the last shrink was asked for that a VHD of `found` bytes has behind it, and the first one that it has not.
    pub fn shrinks_around(&self, found: u64) -> Range<usize> {
        let at = self.0.iter().position(|size| size.bytes == found).unwrap_or(0);
        let (behind, ahead) = self.0.split_at(at + 1);
        let asked_at = |size: &Size| size.shrinks.then_some(size.asked_at);
        let last = behind.iter().rev().find_map(asked_at).unwrap_or(0);
        last..ahead.iter().find_map(asked_at).unwrap_or(usize::MAX)
    }

    /// The size as it will be when everything asked for has been done.
    pub fn last(&self) -> u64 {
        self.0.last().map_or(0, |size| size.bytes)
    }

    /// Whether a shrink has been asked for and not been answered.
    pub fn is_shrinking(&self) -> bool {
        self.0.iter().any(|size| size.shrinks && size.told_at.is_none())
    }

    pub fn has_been(&self, bytes: u64) -> bool {
        self.0.iter().any(|size| size.bytes == bytes)
    }

    /// A size that is asked for.
    pub fn ask(&mut self, command: CommandId, bytes: u64, asked_at: usize) {
        let shrinks = bytes < self.last();
        self.0.push(Size { command: Some(command), bytes, shrinks, asked_at, told_at: None });
    }
}

impl World {
    /// An administrator gives a VHD more, by a random number of blocks.
    pub fn grow(&mut self) {
        if self.guests.is_empty() {
            return;
        }
        let guest = &self.guests[self.growth.index(self.guests.len())];
        let block = guest.state.settings.geometry.block_size();
        let by = (1 + self.growth.below(60)) * block;
        let number = guest.state.id().0;
        let at = self.tick();
        let id = CommandId(self.next);
        self.next += 1;
        let told = self.told.get_mut(&number).expect("a guest has a VHD");
        let bytes = told.sizes.last() + by;
        if bytes > EXTENTS_MAX * EXTENT || told.sizes.has_been(bytes) {
            return;
        }
        told.sizes.ask(id, bytes, at);
        let resize = ResizeVhd { vhd: told.record.name.clone(), size: bytes, force: false };
        let mut post = self.post.clone();
        self.owner.handle_command(id, Command::ResizeVhd(resize), &mut post);
    }

    /// The answer to a growth or shrink; false if it is one to something else.
    pub fn resized(&mut self, id: CommandId, result: &Result<Reply, CommandError>, at: usize) -> bool {
        for (&number, told) in &mut self.told {
            let Some(index) = told.sizes.0.iter().position(|size| size.command == Some(id)) else { continue };
            if matches!(result, Err(CommandError::Deleted { .. })) {
                // It may have been done, and nobody was told before the VHD was gone.
                return true;
            }
            let Size { shrinks, asked_at, .. } = told.sizes.0[index];
            match result {
                Ok(_) if shrinks => self.shrinks += 1,
                Ok(_) => self.growths += 1,
                Err(_) => {}
            }
            match result {
                Ok(_) => told.sizes.0[index].told_at = Some(at),
                // No room for a thick one, or somebody was in: nothing has changed.
                Err(_) => drop(told.sizes.0.remove(index)),
            }
            if shrinks {
                self.shrink_answered(number, asked_at, result.is_ok().then_some(at));
            }
            return true;
        }
        false
    }
}
