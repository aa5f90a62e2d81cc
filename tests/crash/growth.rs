//! VHDs grow while their guests work: sizes asked for and told, and what of that must be found after a power cut.

use spanblk::owner::command::{Command, CommandError, CommandId, Reply, ResizeVhd};

use super::world::{EXTENT, World};

/// The most extents that a VHD gets.
const EXTENTS_MAX: u64 = 9;

/// Sizes of one VHD, in the order in which they were asked for.
#[derive(Default)]
pub struct Sizes(Vec<Size>);

struct Size {
    command: Option<CommandId>,
    bytes: u64,
    asked_at: usize,
    told_at: Option<usize>,
}

impl Sizes {
    /// Of a VHD that was created.
    pub fn new(bytes: u64, told_at: usize) -> Sizes {
        Sizes(vec![Size { command: None, bytes, asked_at: 0, told_at: Some(told_at) }])
    }

    /// What may be found after a power cut: nothing that was not asked for, and no less than was told.
    pub fn check(&self, found: u64, until: usize) -> Result<(), String> {
        let told = self.0.iter().filter(|size| size.told_at.is_some_and(|at| at < until)).map(|size| size.bytes).max();
        let asked = self.0.iter().any(|size| size.bytes == found && size.asked_at < until);
        let least = told.unwrap_or(0);
        if asked && found >= least { Ok(()) } else { Err(format!("it has {found} bytes, and {least} were told")) }
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
        let bytes = told.sizes.0.iter().map(|size| size.bytes).max().unwrap_or(0) + by;
        if bytes > EXTENTS_MAX * EXTENT {
            return;
        }
        told.sizes.0.push(Size { command: Some(id), bytes, asked_at: at, told_at: None });
        let resize = ResizeVhd { vhd: told.record.name.clone(), size: bytes, force: false };
        let mut post = self.post.clone();
        self.owner.handle_command(id, Command::ResizeVhd(resize), &mut post);
    }

    /// The answer to a growth; false if it is one to something else.
    pub fn grown(&mut self, id: CommandId, result: &Result<Reply, CommandError>, at: usize) -> bool {
        for told in self.told.values_mut() {
            if let Some(index) = told.sizes.0.iter().position(|size| size.command == Some(id)) {
                match result {
                    Ok(_) => {
                        told.sizes.0[index].told_at = Some(at);
                        self.growths += 1;
                    }
                    // No room for a thick one, or the VHD is gone: nothing has changed.
                    Err(_) => drop(told.sizes.0.remove(index)),
                }
                return true;
            }
        }
        false
    }
}
