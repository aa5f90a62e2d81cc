//! VHDs come and go, and VMs are made and renamed: an administrator, and the answers that it gets.

use std::sync::Arc;

use spanblk::owner::command::{Command, CommandError, CommandId, CreateVhd, LayoutRequest, Reply, SetVm};
use spanblk::placement::record::WhenFull;
use spanblk::shared::VhdState;

use super::Mutation;
use super::growth::Sizes;
use super::guest::Guest;
use super::world::{Besides, EXTENT, Told, World};

const VHD_EXTENTS: u64 = 4;

impl World {
    pub fn command(&mut self, command: Command) -> CommandId {
        let id = CommandId(self.next);
        self.next += 1;
        let mut post = self.post.clone();
        self.owner.handle_command(id, command, &mut post);
        id
    }

    /// Gives a VM another name, if there is one of that name and none of the other.
    fn rename_vm(&mut self) {
        let vm = |number: u64| format!("vm{}", number % 3);
        let set = SetVm { vm: vm(self.next), name: Some(vm(self.next + 1)), ..SetVm::default() };
        self.command(Command::SetVm(set));
    }

    pub fn create(&mut self) {
        if self.scenario.besides == Besides::Vms {
            self.rename_vm();
        }
        if self.guests.len() + self.creating.len() >= 3 {
            return;
        }
        let layout = match self.rng.below(3) {
            0 => LayoutRequest::Isolated { disk: None },
            _ => LayoutRequest::Spanned { disks: None, width: None },
        };
        self.create_with(layout);
    }

    pub fn create_with(&mut self, layout: LayoutRequest) {
        let id = CommandId(self.next);
        self.next += 1;
        let replicas = self.replicas_for(&layout, id);
        let create = CreateVhd {
            name: format!("vhd{}", id.0),
            uuid: uuid::Uuid::from_u128(u128::from(id.0)),
            created: 0,
            size: VHD_EXTENTS * EXTENT,
            layout,
            hint: None,
            replicas,
            thick: self.rng.chance(1, 8),
            checksums: self.scenario.checksums && !id.0.is_multiple_of(4),
            read_only: false,
            block_size: 512,
            queues: 1,
            // Some name one that there is, others make it.
            vm: (self.scenario.besides == Besides::Vms && id.0 % 4 < 2).then(|| format!("vm{}", id.0 % 3)),
            socket_owner: None,
            socket_mode: 0o600,
            when_full: if self.rng.chance(1, 2) { WhenFull::Error } else { WhenFull::Queue { secs: 5 } },
            expand: None,
            limits: spanblk::placement::limits::IoLimits::default(),
            sharing: spanblk::placement::sharing::Sharing::default(),
            capacity: spanblk::placement::capacity::Capacity::default(),
        };
        self.creating.insert(id, ());
        let mut post = self.post.clone();
        self.owner.handle_command(id, Command::CreateVhd(Box::new(create)), &mut post);
    }

    pub fn delete(&mut self) {
        let at = self.tick();
        let index = self.rng.index(self.guests.len());
        let guest = &mut self.guests[index];
        if std::mem::replace(&mut guest.leaving, true) {
            return;
        }
        let number = guest.state.id().0;
        let told = self.told.get_mut(&number).expect("a guest has a VHD");
        told.delete_begun = Some(at);
        let id = CommandId(self.next);
        self.next += 1;
        self.deleting.insert(id, number);
        let command = Command::DeleteVhd { vhd: told.record.name.clone(), force: true };
        let mut post = self.post.clone();
        self.owner.handle_command(id, command, &mut post);
    }

    pub fn replied(&mut self, id: CommandId, result: Result<Reply, CommandError>) -> Result<(), String> {
        if self.administrator.as_mut().is_some_and(|administrator| administrator.hears(id, &result)) {
            return Ok(());
        }
        let at = self.tick();
        if self.resized(id, &result, at) {
            return Ok(());
        }
        if self.creating.remove(&id).is_some() {
            // Refused for want of room: thick VHDs are.
            let Ok(Reply::Vhd { vhd, .. }) = result else { return Ok(()) };
            let number = vhd.record.id.0;
            let state = self.state_of(number).ok_or("a VHD was created without a state")?;
            let ignored = self.scenario.mutation == Some(Mutation::IgnoreWritethrough);
            let writethrough = self.rng.chance(1, 3);
            let mut guest = Guest::new(state, writethrough, ignored);
            guest.has_room = matches!(self.scenario.besides, Besides::Faults | Besides::Emptying);
            guest.replicated = self.scenario.replicated && self.scenario.besides == Besides::Faults;
            self.guests.push(guest);
            self.told.insert(
                number,
                Told {
                    record: vhd.record.clone(),
                    created_at: at,
                    delete_begun: None,
                    sizes: Sizes::new(vhd.record.size, at),
                },
            );
        } else if let Ok(Reply::Job { job, .. }) = &result {
            self.jobs = self.jobs.max(u64::from(job.record.id.0));
        } else if let Some(number) = self.deleting.remove(&id) {
            result.map_err(|error| format!("VHD {number} could not be deleted: {error}"))?;
        }
        Ok(())
    }

    fn state_of(&self, number: u32) -> Option<Arc<VhdState>> {
        self.post.queues.borrow().opened.iter().find(|state| state.id().0 == number).cloned()
    }
}
