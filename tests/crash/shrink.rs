//! VHDs shrink while nobody uses them: guests that go out of the door and come back, and an administrator who takes away.

use spanblk::owner::command::{Command, CommandId, ResizeVhd};

use super::growth::EXTENTS_MAX;
use super::oracle::SECTOR;
use super::world::{EXTENT, World};

impl World {
    /// Lets guests go out and in. What is asked for while one is out takes away a part of its VHD.
    pub fn come_and_go(&mut self) {
        if self.guests.is_empty() {
            return;
        }
        let index = self.growth.index(self.guests.len());
        let guest = &mut self.guests[index];
        if guest.leaving {
            return;
        }
        let waits = self.told[&guest.state.id().0].sizes.is_shrinking();
        if guest.attached && guest.detaching && guest.is_quiet() {
            guest.state.door.leave();
            guest.attached = false;
            self.shrink(index);
        } else if guest.attached && !guest.detaching && !waits && self.growth.chance(1, 12) {
            guest.detaching = true;
        } else if !guest.attached && self.growth.chance(1, 4) && guest.state.door.enter() {
            // Not while the door is closed. Before, the shrink will be refused; so it stays in until it is.
            (guest.attached, guest.detaching) = (true, false);
        }
    }

    fn shrink(&mut self, index: usize) {
        let at = self.tick();
        let guest = &mut self.guests[index];
        let block = guest.state.settings.geometry.block_size();
        let told = self.told.get_mut(&guest.state.id().0).expect("a guest has a VHD");
        let (least, now) = (EXTENT / block, told.sizes.last() / block);
        // At least an extent stays.
        let bytes = (least + self.growth.below(EXTENTS_MAX * EXTENT / block)) * block;
        if bytes >= now * block || told.sizes.has_been(bytes) {
            return;
        }
        let id = CommandId(self.next);
        self.next += 1;
        told.sizes.ask(id, bytes, at);
        guest.history.begin_shrink(bytes / SECTOR as u64, at);
        let resize = ResizeVhd { vhd: told.record.name.clone(), size: bytes, force: true };
        let mut post = self.post.clone();
        self.owner.handle_command(id, Command::ResizeVhd(resize), &mut post);
    }

    /// The answer to a shrink: when it was told done, if it was not refused.
    pub fn shrink_answered(&mut self, number: u32, asked_at: usize, done: Option<usize>) {
        // The VHD may be about to be deleted.
        let history = self.history_of(number).expect("every VHD has had a guest");
        history.end_shrink(asked_at, done);
    }
}
