//! An administrator who wants a disk to be emptied and to leave the pool, and who judges the answers.

use std::ops::Range;

use spanblk::base::ids::{DiskId, DiskSet, JobId};
use spanblk::base::rng::Rng;
use spanblk::base::units::ExtentIndex;
use spanblk::mover::messages::Speed;
use spanblk::owner::command::{
    Command, CommandError, CommandId, CreateVhd, JobRequest, LayoutRequest, RemovalStep, Replacement, Reply, SetDisk,
    SetJob, StartJob,
};
use spanblk::placement::job::JobState;
use spanblk::placement::record::{Accept, WhenFull};

use super::world::{EXTENT, World};

/// What is to happen to one disk.
#[derive(Clone, Copy, Debug)]
pub struct Plot {
    /// The disk that goes, and the one that takes its place if it is replaced (else it is evacuated).
    pub old: DiskId,
    pub new: DiskId,
    pub replaces: bool,
    /// Disks die.
    pub dies: bool,
}

/// Answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Orders that were taken, and those that were refused because data would be lost.
    pub taken: usize,
    pub refused: usize,
    pub cancelled: usize,
    /// How often the disk was held, and how often something was refused a place on it because of that.
    pub held: usize,
    pub kept_away: usize,
    /// Disks that have left the pool.
    pub removed: usize,
}

impl Counts {
    pub fn add(&mut self, other: Counts) {
        let Counts { taken, refused, cancelled, held, kept_away, removed } = other;
        self.taken += taken;
        self.refused += refused;
        self.cancelled += cancelled;
        self.held += held;
        self.kept_away += kept_away;
        self.removed += removed;
    }
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    /// `loses`: whether something would be lost.
    Order {
        accept_loss: bool,
        loses: bool,
    },
    Job,
    Span,
    Cancel,
    Reopen,
    Hold,
    /// A VHD on the disk, which is held.
    Place,
    Release,
    Take,
}

/// What somebody was told, and when.
#[derive(Clone, Copy, Debug)]
pub enum Fact {
    Ordered(JobId),
    Removed,
}

pub struct Administrator {
    pub plot: Plot,
    rng: Rng,
    /// Does all that brings the disk out of the pool, and nothing else.
    pub insists: bool,
    asked: Option<(CommandId, Asked)>,
    answer: Option<Result<Reply, CommandError>>,
    held: bool,
    /// The disk accepts VHDs again although it has been emptied, and has got some.
    reopened: bool,
    used_again: bool,
    /// Without any job.
    is_empty: bool,
    pub removed: bool,
    /// Disks that were dead at any order that accepted the loss.
    pub accepted: DiskSet,
    pub told: Vec<(usize, Fact)>,
    /// From when to when in the trace the disk was being emptied.
    pub at_work: Option<Range<usize>>,
    pub counts: Counts,
    refusal: Option<CommandError>,
}

impl Administrator {
    pub fn new(plot: Plot, seed: u64) -> Administrator {
        Administrator {
            plot,
            rng: Rng::new(seed),
            insists: false,
            asked: None,
            answer: None,
            held: false,
            reopened: false,
            used_again: false,
            is_empty: false,
            removed: false,
            accepted: DiskSet::default(),
            told: Vec::new(),
            at_work: None,
            counts: Counts::default(),
            refusal: None,
        }
    }

    /// After a power cut, which a disk that was held is not any more. `accepts`: what the pool record says of the disk.
    pub fn again(&self, accepts: Option<Accept>, seed: u64) -> Administrator {
        let reopened = accepts.is_some_and(|accepts| accepts != Accept::None);
        Administrator {
            reopened,
            removed: accepts.is_none(),
            accepted: self.accepted,
            counts: self.counts,
            ..Administrator::new(self.plot, seed)
        }
    }

    /// Whether it is the answer to something that was asked.
    pub fn hears(&mut self, id: CommandId, result: &Result<Reply, CommandError>) -> bool {
        let is_it = self.asked.is_some_and(|(asked, _)| asked == id);
        if is_it {
            self.answer = Some(result.clone());
        }
        is_it
    }

    /// Why the last order was refused.
    pub fn refusal(&self) -> Option<&CommandError> {
        self.refusal.as_ref()
    }

    fn name(&self) -> String {
        format!("d{}", self.plot.old.0)
    }

    fn act(&mut self, world: &mut World) -> Result<(), String> {
        if let (Some(result), Some((_, asked))) = (self.answer.take(), self.asked) {
            self.asked = None;
            self.heard(asked, result, world)?;
        }
        if self.asked.is_some() || self.removed {
            return Ok(());
        }
        if let Some((asked, command)) = self.next(world)? {
            self.asked = Some((world.command(command), asked));
        }
        Ok(())
    }

    fn next(&mut self, world: &mut World) -> Result<Option<(Asked, Command)>, String> {
        let jobs = world.list_jobs();
        let of_disk = |job: &&_| is_about(job, self.plot.old);
        let Some(job) = jobs.iter().rev().find(of_disk).filter(|job| job.state != JobState::Cancelled) else {
            return if self.is_empty { self.leave(world).map(Some) } else { Ok(self.order(world)) };
        };
        if !job.is_ended() {
            self.note_work(world.trace.len());
        }
        let set = |paused| Command::SetJob(SetJob { job: job.id, paused: Some(paused), max_rate: None, urgent: None });
        let cancel = Command::CancelJob { job: job.id, revert: false, now: 0 };
        let is_in_vain = world.dead().contains(self.plot.old) && !world.losses.accepted.contains(self.plot.old);
        Ok(match job.state {
            JobState::Done if self.used_again => self.order(world),
            JobState::Done => return self.leave(world).map(Some),
            JobState::Running if self.insists => None,
            JobState::Running => match self.rng.below(24) {
                0..8 => Some((Asked::Job, set(true))),
                8 => Some((Asked::Cancel, cancel)),
                _ => None,
            },
            JobState::Stopped if is_in_vain && self.rng.chance(1, 2) => Some((Asked::Cancel, cancel)),
            _ if self.insists || self.rng.chance(1, 3) => Some((Asked::Job, set(false))),
            _ => None,
        })
    }

    fn note_work(&mut self, at: usize) {
        self.at_work = Some(self.at_work.as_ref().map_or(at, |work| work.start)..at + 1);
    }

    fn order(&mut self, world: &mut World) -> Option<(Asked, Command)> {
        let is_dead = world.dead().contains(self.plot.old);
        let too_early = self.plot.dies && !is_dead && !self.insists && self.rng.chance(7, 8);
        // Else it would be begun later, when something else may be dead.
        let is_idle = world.creating.is_empty() && world.deleting.is_empty();
        if too_early || !is_idle {
            return None;
        }
        let accept_loss = self.plot.dies && (self.insists || self.rng.chance(2, 3));
        if let Some(CommandError::TooFewDomains { vhd, .. }) = self.refusal.take() {
            // It was created when fewer disks were there.
            let request = JobRequest::Span { vhd, disks: None, width: None };
            return Some((Asked::Span, start(request)));
        }
        let loses = world.would_lose();
        world.losses.accepted = if accept_loss && is_dead { world.dead() } else { DiskSet::default() };
        world.losses.back = DiskSet::default();
        self.accepted.0 |= world.losses.accepted.0;
        world.note_places();
        self.note_work(world.trace.len());
        let disk = self.name();
        let by = Replacement::Disk { name: format!("d{}", self.plot.new.0) };
        let request = if self.plot.replaces {
            JobRequest::Replace { disk, by, accept_loss, keep: false }
        } else {
            JobRequest::Evacuate { disk, accept_loss }
        };
        Some((Asked::Order { accept_loss, loses }, start(request)))
    }

    /// The disk has been emptied: what brings it out of the pool, and what tries to bring something there again.
    fn leave(&mut self, world: &mut World) -> Result<(Asked, Command), String> {
        if !self.reopened {
            world.check_is_empty(self.plot.old)?;
        }
        let step = |disk, step| Command::RemoveDisk { disk, step };
        let disk = self.name();
        if !self.held {
            if self.reopened || self.insists || self.rng.chance(2, 3) {
                return Ok((Asked::Hold, step(disk, RemovalStep::Hold)));
            }
            self.reopened = true;
            let set = SetDisk { disk, accept: Some(Accept::Any), failure_domain: None };
            return Ok((Asked::Reopen, Command::SetDisk(Box::new(set))));
        }
        let choice = if self.insists { 3 } else { self.rng.below(5) };
        Ok(match choice {
            0 => {
                self.held = false;
                (Asked::Release, step(disk, RemovalStep::Release))
            }
            1 | 2 => (Asked::Place, Command::CreateVhd(Box::new(vhd_on(disk, self.rng.next_u64())))),
            _ => (Asked::Take, step(disk, RemovalStep::Take)),
        })
    }

    fn heard(&mut self, asked: Asked, result: Result<Reply, CommandError>, world: &mut World) -> Result<(), String> {
        match (asked, result) {
            (Asked::Order { accept_loss, loses }, result) => {
                return self.heard_of_order(accept_loss, loses, result, world);
            }
            (Asked::Job | Asked::Cancel, Err(CommandError::JobEnded { .. })) | (Asked::Span, _) => {}
            (Asked::Cancel, Ok(_)) => self.counts.cancelled += 1,
            (Asked::Hold, Ok(_)) => {
                self.held = true;
                self.counts.held += 1;
            }
            // Its room is on its way back, a VHD may be taken back to where it was, or a replica is to be filled there.
            (
                Asked::Hold,
                Err(
                    CommandError::DiskBusy { .. } | CommandError::DiskOfJob { kind: "span" | "rebuild" | "resync", .. },
                ),
            ) => {}
            (Asked::Hold, Err(CommandError::DiskNotEmpty { .. })) if self.reopened => self.used_again = true,
            (Asked::Place, Ok(_)) => return Err("a VHD was put on a disk that is held".to_owned()),
            (Asked::Place, Err(_)) => self.counts.kept_away += 1,
            (Asked::Take, Ok(_)) => {
                self.removed = true;
                self.counts.removed += 1;
                self.told.push((world.tick(), Fact::Removed));
            }
            (Asked::Job | Asked::Reopen | Asked::Release, Ok(_)) => {}
            (asked, Err(error)) => return Err(format!("{asked:?} is refused: {error}")),
        }
        Ok(())
    }

    fn heard_of_order(
        &mut self,
        accept_loss: bool,
        loses: bool,
        result: Result<Reply, CommandError>,
        world: &mut World,
    ) -> Result<(), String> {
        let must_be_refused = self.plot.replaces && loses && !accept_loss;
        match result {
            Ok(Reply::Job { job, .. }) => {
                if must_be_refused {
                    return Err(format!("data is lost, and nobody has accepted that: {job:?}"));
                }
                self.counts.taken += 1;
                (self.reopened, self.used_again, self.held) = (false, false, false);
                self.told.push((world.tick(), Fact::Ordered(job.record.id)));
                return Ok(());
            }
            Ok(_) => self.is_empty = true,
            Err(CommandError::LosesData { .. }) if must_be_refused => self.counts.refused += 1,
            Err(error @ (CommandError::TooFewDomains { .. } | CommandError::JobExists { .. })) => {
                self.refusal = Some(error);
            }
            // With fewer disks not everything has a place.
            Err(error) if !world.dead().is_empty() && !matches!(error, CommandError::LosesData { .. }) => {
                self.refusal = Some(error);
            }
            Err(error) => return Err(format!("the order is refused: {error}")),
        }
        world.losses.accepted = DiskSet::default();
        Ok(())
    }
}

/// Whether the job is one that empties the disk.
pub fn is_about(job: &spanblk::placement::job::JobRecord, disk: DiskId) -> bool {
    job.kind.empties() == Some(disk)
}

fn start(request: JobRequest) -> Command {
    Command::StartJob(Box::new(StartJob { request, dry_run: false, speed: Speed::default(), created: 0 }))
}

fn vhd_on(disk: String, number: u64) -> CreateVhd {
    CreateVhd {
        name: format!("kept-away{number}"),
        uuid: uuid::Uuid::from_u128(u128::from(number) << 64),
        created: 0,
        size: EXTENT,
        layout: LayoutRequest::Isolated { disk: Some(disk) },
        hint: None,
        replicas: 1,
        thick: false,
        checksums: false,
        read_only: false,
        block_size: 512,
        queues: 1,
        vm: None,
        socket_owner: None,
        socket_mode: 0o600,
        when_full: WhenFull::Error,
        expand: None,
        limits: spanblk::placement::limits::IoLimits::default(),
        sharing: spanblk::placement::sharing::Sharing::default(),
        capacity: spanblk::placement::capacity::Capacity::default(),
    }
}

impl World {
    /// Lets the administrator hear and ask, if there is one.
    pub fn administrate(&mut self) -> Result<(), String> {
        let Some(mut administrator) = self.administrator.take() else { return Ok(()) };
        let result = administrator.act(self);
        self.administrator = Some(administrator);
        result.and_then(|()| self.note_losses())
    }

    /// Whether no VHD has anything on the disk, or may be put there.
    pub fn check_is_empty(&mut self, disk: DiskId) -> Result<(), String> {
        let Reply::Vhds(vhds) = self.ask_owner(Command::ListVhds) else { panic!("a list of VHDs") };
        let deleting: Vec<u32> = self.deleting.values().copied().collect();
        for vhd in vhds.into_iter().filter(|vhd| !deleting.contains(&vhd.record.id.0)) {
            let map = &vhd.state.map;
            let is_there = |extent: &ExtentIndex| map.lookup(*extent).replicas.on(disk).is_some();
            if let Some(extent) = map.placed_from(ExtentIndex(0)).find(is_there) {
                let replicas = map.lookup(extent).replicas;
                return Err(format!(
                    "{disk:?} has been emptied, and extent {} of {:?} is at {replicas:?}",
                    extent.0, vhd.record
                ));
            }
            if vhd.record.layout.disks().contains(disk) {
                return Err(format!("{disk:?} has been emptied, and may be given extents of {:?}", vhd.record));
            }
        }
        Ok(())
    }
}
