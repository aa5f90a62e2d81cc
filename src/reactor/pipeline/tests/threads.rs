//! Pipelines on threads of their own, in short rounds with nothing after them: a wake-up that is lost is noticed because
//! nobody else's comes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::world::{self, BLOCK, EXTENT, Guest, Options};
use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, ReactorId};
use crate::base::rng::Rng;
use crate::base::units::{BlockMask, ExtentIndex, SlotIndex};
use crate::engine::{Completion, Engine, EngineFull, Op, OpTag};
use crate::placement::ReplicaSet;
use crate::reactor::messages::{Outbox, OwnerRequest, ReactorMessage};
use crate::reactor::pipeline::{Pipeline, PipelineMessage, Token};
use crate::shared::{DiskState, VhdState};
use crate::store::change::{Change, CommitRequest};
use crate::virtio::request::{Range, RequestKind, Status};

const THREADS: usize = 2;
const EXTENTS: u32 = 2;

/// Everything is done when it is submitted.
#[derive(Default)]
struct AtOnce(VecDeque<Completion>);

impl Engine for AtOnce {
    fn available(&self) -> usize {
        16 - self.0.len()
    }

    unsafe fn submit(&mut self, _: Op<'_>, tag: OpTag) -> Result<(), EngineFull> {
        self.0.push_back(Completion { tag, result: Ok(()) });
        Ok(())
    }

    fn take_completion(&mut self) -> Option<Completion> {
        self.0.pop_front()
    }
}

#[derive(Clone)]
struct Post {
    vhd: Arc<VhdState>,
    owner: Sender<OwnerRequest>,
    reactors: Vec<Sender<ReactorMessage>>,
    changes: Arc<AtomicU64>,
}

impl Outbox for Post {
    fn to_owner(&mut self, message: OwnerRequest) {
        self.owner.send(message).unwrap();
    }
    fn change(&mut self, change: Change) {
        world::check_change(&self.vhd, &change);
        self.changes.fetch_add(1, Ordering::SeqCst);
    }
    fn commit(&mut self, _: CommitRequest) {
        unreachable!("nobody flushes")
    }
    fn to_reactor(&mut self, reactor: ReactorId, message: ReactorMessage) {
        // Those who are woken may have ended.
        let _ = self.reactors[usize::from(reactor.0)].send(message);
    }
    fn room_for_mover(&mut self) {
        unreachable!("there is no mover");
    }
}

struct Reactor {
    pipeline: Pipeline<AtOnce, Post>,
    inbox: Receiver<ReactorMessage>,
    guest: Guest,
    rng: Rng,
    outstanding: u32,
}

impl Reactor {
    /// Two requests to the same few blocks that the others want, too; then waits until they are done.
    fn round(&mut self) {
        for _ in 0..2 {
            let extent = self.rng.below(u64::from(EXTENTS)) * EXTENT;
            let offset = extent + self.rng.below(2) * BLOCK;
            let slot = self.pipeline.prepare().unwrap();
            let request = self.pipeline.request_mut(slot);
            let range = match self.rng.below(8) {
                0 => Some((extent, EXTENT)),
                1..4 => Some((offset, BLOCK)),
                _ => None,
            };
            if let Some((offset, len)) = range {
                request.reset(RequestKind::Discard);
                assert!(request.push_range(Range { offset, len, unmap: true }));
            } else {
                request.reset(RequestKind::Write { offset, len: 512 });
                assert!(request.push_segment(self.guest.segments[0]));
            }
            let vhd = Arc::clone(&self.pipeline.outbox.vhd);
            self.pipeline.start(slot, &vhd, false, Token(0), Nanos(0));
            self.outstanding += 1;
        }
        loop {
            self.pipeline.poll(Nanos(0));
            while let Some(finished) = self.pipeline.next_finished() {
                assert_eq!(finished.status, Status::Ok);
                self.outstanding -= 1;
            }
            if self.outstanding == 0 {
                return;
            }
            if !self.pipeline.has_ready() && self.pipeline.engine.0.is_empty() {
                let message = self.inbox.recv_timeout(Duration::from_secs(30)).expect("asleep: a wake-up is lost");
                self.pipeline.handle(message_of(message), Nanos(0));
            }
        }
    }
}

fn message_of(message: ReactorMessage) -> PipelineMessage {
    match message {
        ReactorMessage::Allocated { ticket, result } => PipelineMessage::Allocated { ticket, result },
        ReactorMessage::Freed { ticket } => PipelineMessage::Freed { ticket },
        ReactorMessage::ClaimReleased { vhd } => PipelineMessage::ClaimReleased { vhd },
        _ => unreachable!("nothing else is sent here"),
    }
}

/// Places and drops extents; a slot is never used again.
fn own(requests: &Receiver<OwnerRequest>, post: &Post) {
    let mut next_slot = 0;
    for request in requests {
        let map = &post.vhd.map;
        match request {
            OwnerRequest::Allocate { reactor, ticket, extent, .. } => {
                if map.lookup(extent).replicas.is_absent() {
                    map.place(extent, ReplicaSet::single(DiskId(0), SlotIndex(next_slot)));
                    next_slot += 1;
                }
                let message = ReactorMessage::Allocated { ticket, result: Ok(()) };
                let _ = post.reactors[usize::from(reactor.0)].send(message);
            }
            OwnerRequest::Free { reactor, ticket, extent, .. } => {
                map.drop_extent(extent);
                let _ = post.reactors[usize::from(reactor.0)].send(ReactorMessage::Freed { ticket });
            }
            OwnerRequest::Intend { .. }
            | OwnerRequest::CopyMissed { .. }
            | OwnerRequest::FenceReached { .. }
            | OwnerRequest::ReadFailed { .. }
            | OwnerRequest::ReplicasDiffer { .. }
            | OwnerRequest::Turned { .. }
            | OwnerRequest::Stirred
            | OwnerRequest::LimitHit { .. }
            | OwnerRequest::DiskError { .. } => unreachable!("nothing fails, nothing moves, and there is one replica"),
        }
    }
}

#[test]
fn no_wake_up_of_a_claim_is_lost_between_threads() {
    let rounds: u32 = std::env::var("SPANBLK_ROUNDS").map_or(20_000, |n| n.parse().expect("a number"));
    let disk = Arc::new(DiskState::new(DiskId(0), "d0".to_owned(), 0, u32::MAX, 512, 512));
    let vhd = Arc::new(world::vhd_state(&Options { extents: EXTENTS, reactors: 2, ..Options::default() }));
    let (owner, requests) = unbounded();
    let (reactors, inboxes): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| unbounded()).unzip();
    let post = Post { vhd: Arc::clone(&vhd), owner, reactors, changes: Arc::default() };
    let changes = Arc::clone(&post.changes);
    // The owner's own way to itself would keep it from ending.
    let owners = Post { owner: unbounded().0, ..post.clone() };
    let owner = std::thread::spawn(move || own(&requests, &owners));
    let barrier = Arc::new(Barrier::new(THREADS));
    let threads = inboxes.into_iter().enumerate().map(|(i, inbox)| {
        let (post, disk, vhd, barrier) = (post.clone(), Arc::clone(&disk), Arc::clone(&vhd), Arc::clone(&barrier));
        std::thread::spawn(move || {
            let mut pipeline = Pipeline::new(ReactorId(u16::try_from(i).unwrap()), AtOnce::default(), post);
            pipeline.add_disk(disk);
            pipeline.reserve(4);
            let guest = Guest::filled(512, 1);
            let mut reactor = Reactor { pipeline, inbox, guest, rng: Rng::new(i as u64), outstanding: 0 };
            for _ in 0..rounds {
                barrier.wait();
                reactor.round();
                barrier.wait();
                for extent in 0..EXTENTS {
                    assert_eq!(vhd.map.lookup(ExtentIndex(extent)).claimed, BlockMask::NONE, "a claim is left");
                }
            }
        })
    });
    let threads: Vec<_> = threads.collect();
    drop(post);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    owner.join().unwrap();
    vhd.changes_committed(changes.load(Ordering::SeqCst));
    assert!(!vhd.has_pending_changes());
}
