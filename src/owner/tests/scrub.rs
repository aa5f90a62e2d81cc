//! Scrubs: what they read, what they have repaired, and what they leave alone.

use super::degraded::{replicas, written};
use super::replicas::replicated;
use super::*;
use crate::base::ids::JobId;
use crate::engine::IoError;
use crate::mover::messages::{CopyTask, Speed};
use crate::owner::command::{JobInfo, JobRequest, ResizeVhd, SetJob, StartJob};
use crate::placement::job::{JobKind, JobState};

const E: ExtentIndex = ExtentIndex(3);

fn scrubbed(replicas: u8) -> (World, VhdInfo) {
    written(CreateVhd { checksums: true, ..replicated(8, replicas) })
}

impl World {
    fn order(&mut self, request: JobRequest) -> Result<Reply, CommandError> {
        self.run(Command::StartJob(Box::new(StartJob { request, dry_run: false, speed: Speed::default(), created: 1 })))
    }

    fn begin_scrub(&mut self) -> JobId {
        match self.order(JobRequest::Scrub { vhd: "r".to_owned() }).unwrap() {
            Reply::Job { job, .. } => job.record.id,
            other => panic!("{other:?}"),
        }
    }

    fn tell_mover(&mut self, report: MoverReport) {
        self.owner.handle_mover(report, self.now, &mut self.mail);
    }

    fn is_read(&mut self, copy: &CopyTask) {
        self.tell_mover(MoverReport::Copied { id: copy.id });
    }

    /// Answers everything that is read, `wrong` or not, and every repair as `repair` says. What was read, in order.
    fn read_all(&mut self, wrong: impl Fn(&CopyTask) -> bool, repair: impl Fn(&CopyTask) -> bool) -> Vec<CopyTask> {
        let mut read = Vec::new();
        loop {
            let copies = self.copies();
            if copies.is_empty() {
                return read;
            }
            for copy in copies {
                let error = IoError::Checksum;
                let failed = MoverReport::Failed { id: copy.id, disk: copy.source.disk, error };
                let is_bad = if copy.only_reads() { wrong(&copy) } else { !repair(&copy) };
                self.tell_mover(if is_bad { failed } else { MoverReport::Copied { id: copy.id } });
                read.push(copy);
            }
        }
    }

    fn job(&mut self, id: JobId) -> JobInfo {
        self.owner.job_info(id)
    }
}

fn found(job: &JobInfo) -> (u64, u64) {
    let JobKind::Scrub { damaged, repaired } = job.record.kind else { panic!("{job:?}") };
    (damaged, repaired)
}

#[test]
fn every_replica_is_read_once_and_nothing_is_written() {
    let (mut world, vhd) = scrubbed(2);
    let id = world.begin_scrub();
    let refused = world.order(JobRequest::Scrub { vhd: "r".to_owned() }).unwrap_err();
    assert!(matches!(refused, CommandError::ScrubExists { job: 1, .. }));
    let copies = world.copies();
    assert_eq!(copies.len(), 8, "no more at a time");
    assert!(!world.job(id).waiting);
    copies.iter().for_each(|copy| world.is_read(copy));
    let read: Vec<CopyTask> = copies.into_iter().chain(world.read_all(|_| false, |_| false)).collect();
    assert!(read.iter().all(CopyTask::only_reads));
    let places: Vec<_> = read.iter().map(|copy| (copy.extent, copy.source)).collect();
    let all = (0..8).map(ExtentIndex).flat_map(|extent| replicas(&vhd, extent).into_iter().map(move |r| (extent, r)));
    assert_eq!(places, all.collect::<Vec<_>>());
    let job = world.job(id);
    assert_eq!((job.record.state, found(&job), job.record.reason), (JobState::Done, (0, 0), None));
    assert!(world.mail.mover.iter().any(|message| matches!(message, MoverMessage::ForgetJob(job) if *job == id)));
}

#[test]
fn what_is_wrong_is_repaired_and_counted() {
    let (mut world, vhd) = scrubbed(2);
    let id = world.begin_scrub();
    let bad = replicas(&vhd, E)[0];
    let read = world.read_all(|copy| copy.extent == E && copy.source == bad, |_| true);
    let repairs: Vec<&CopyTask> = read.iter().filter(|copy| !copy.only_reads()).collect();
    assert_eq!(repairs.iter().map(|copy| (copy.extent, copy.target)).collect::<Vec<_>>(), [(E, bad)]);
    let job = world.job(id);
    assert_eq!((job.record.state, found(&job), job.unreadable), (JobState::Done, (1, 1), 0));
}

#[test]
fn what_is_wrong_everywhere_is_named_in_the_end() {
    for count in [1, 2] {
        let (mut world, vhd) = scrubbed(count);
        let before = replicas(&vhd, E);
        let id = world.begin_scrub();
        world.read_all(|copy| copy.extent == E, |_| false);
        world.commit_edits();
        let job = world.job(id);
        assert_eq!((job.record.state, found(&job), job.unreadable), (JobState::Done, (u64::from(count), 0), 1));
        assert!(job.record.reason.unwrap().starts_with("1 extents have no good replica (3)"));
        assert_eq!(replicas(&vhd, E), before, "nothing becomes stale");
        world.begin_scrub();
    }
}

#[test]
fn it_neither_waits_for_other_jobs_nor_keeps_them_from_going_on() {
    let (mut world, vhd) = scrubbed(1);
    let id = world.begin_scrub();
    let away = replicas(&vhd, E)[0].disk;
    let evacuate = JobRequest::Evacuate { disk: format!("d{}", away.0), accept_loss: false };
    let Reply::Job { job: moving, .. } = world.order(evacuate).unwrap() else { panic!("a job") };
    world.move_all();
    assert_eq!(world.job(moving.record.id).record.state, JobState::Done);
    // What was on its way was read where it is now.
    assert_eq!(world.job(id).record.state, JobState::Done);
    assert!(replicas(&vhd, E)[0].disk != away);
}

#[test]
fn it_goes_on_where_it_was_paused_and_ends_with_its_vhd() {
    let (mut world, _vhd) = scrubbed(2);
    let id = world.begin_scrub();
    let set = |paused| SetJob { job: id, paused: Some(paused), max_rate: None, urgent: None };
    world.run(Command::SetJob(set(true))).unwrap();
    let first = world.copies();
    first.iter().for_each(|copy| world.is_read(copy));
    assert!(world.copies().is_empty());
    world.run(Command::SetJob(set(false))).unwrap();
    let second = world.copies();
    assert_eq!(second[0].extent, ExtentIndex(first.last().unwrap().extent.0 + 1));
    let delete = world.command(Command::DeleteVhd { vhd: "r".to_owned(), force: true });
    second.iter().for_each(|copy| world.tell_mover(MoverReport::Gone { id: copy.id }));
    world.settle();
    assert!(world.mail.replies.remove(&delete).unwrap().is_ok());
    assert_eq!(world.job(id).record.state, JobState::Done);
}

#[test]
fn a_vhd_that_is_read_does_not_shrink() {
    let (mut world, _vhd) = scrubbed(1);
    let id = world.begin_scrub();
    let shrink = || Command::ResizeVhd(ResizeVhd { vhd: "r".to_owned(), size: EXTENT, force: true });
    assert!(matches!(world.refuse(shrink()), CommandError::ScrubExists { .. }));
    // Copies are on their way when it has been cancelled.
    world.run(Command::CancelJob { job: id, revert: false, now: 1 }).unwrap();
    assert!(matches!(world.refuse(shrink()), CommandError::MovesEnding { .. }));
    world.read_all(|_| false, |_| true);
    world.run(shrink()).unwrap();
}

/// Each of two replicas has a damage of its own: a repair that ends with an error may have done what it could.
#[test]
fn what_could_not_be_repaired_as_a_whole_is_read_once_more() {
    let (mut world, vhd) = scrubbed(2);
    let id = world.begin_scrub();
    let mut seen = BTreeMap::new();
    let mut repairs = 0;
    loop {
        let copies = world.copies();
        if copies.is_empty() {
            break;
        }
        for copy in copies {
            let failed = MoverReport::Failed { id: copy.id, disk: copy.source.disk, error: IoError::Checksum };
            let count = seen.entry((copy.extent, copy.source.disk, copy.target.disk)).or_insert(0);
            *count += 1;
            // The first time everything about it fails; and the second time nothing does.
            let is_bad = copy.extent == E && *count == 1 && (copy.only_reads() || repairs == 0);
            repairs += u32::from(!copy.only_reads());
            world.tell_mover(if is_bad { failed } else { MoverReport::Copied { id: copy.id } });
        }
    }
    let job = world.job(id);
    assert_eq!((job.record.state, found(&job), job.unreadable), (JobState::Done, (2, 2), 0), "{:?}", replicas(&vhd, E));
}

/// No reactor may write under the intent before it is durable, also if it is to be taken back by then.
#[test]
fn what_is_learned_has_an_intent_that_counts_once_it_is_durable() {
    let (mut world, vhd) = scrubbed(1);
    let map = &vhd.state.map;
    let request = JobRequest::Scrub { vhd: "r".to_owned() };
    let start = StartJob { request, dry_run: false, speed: Speed::default(), created: 1 };
    world.command(Command::StartJob(Box::new(start)));
    world.edit_done(Ok(()));
    let made = |world: &World| {
        let rows = world.mail.edits.iter().flat_map(|(_, rows)| rows);
        rows.filter(|row| matches!(row, StoreEdit::Intend { intend: true, .. })).count()
    };
    assert_eq!((made(&world), map.has_intent(0)), (1, false), "one for all extents of the page");
    world.advance(10_000);
    world.advance(10_000);
    assert!(!map.has_intent(0));
    world.commit_edits();
    assert!(map.has_intent(0));
}
