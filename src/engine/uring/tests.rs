//! The engine against real files and eventfds; the slab against made-up results.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use proptest::prelude::*;

use super::*;
use crate::base::aligned::AlignedBuf;
use crate::base::rng::Rng;
use crate::engine::{Buffer, IoError};

const DISK: DiskId = DiskId(3);

fn engine_on(file: File) -> UringEngine {
    let mut engine = UringEngine::new().expect("io_uring");
    engine.add_disk(DISK, Arc::new(OwnedFd::from(file))).expect("registered");
    engine
}

fn next(engine: &mut UringEngine) -> Completion {
    loop {
        if let Some(completion) = engine.take_completion() {
            return completion;
        }
        engine.wait(Wait::Forever);
    }
}

fn buffer(bytes: &mut [u8]) -> Buffer {
    Buffer { ptr: bytes.as_mut_ptr(), len: bytes.len() }
}

/// Submits, vouching for buffers that outlive the engine's use of them in every test here.
fn submit(engine: &mut UringEngine, op: Op<'_>, tag: u64) -> Result<(), EngineFull> {
    // SAFETY: the tests keep their buffers until the completion.
    unsafe { engine.submit(op, OpTag(tag)) }
}

fn eventfd(flags: i32) -> OwnedFd {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::eventfd(0, flags) };
    assert!(fd >= 0);
    // SAFETY: a new descriptor that nobody else has.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Offsets, lengths and addresses are multiples of this, whatever the disk below wants for O_DIRECT.
const UNIT: u64 = 4096;

const IOVECS: usize = crate::base::limits::IOVECS_MAX;

/// One operation of the random test: where, how much, in how many buffers.
struct Planned {
    write: bool,
    offset: u64,
    memory: AlignedBuf,
    cuts: Vec<usize>,
}

impl Planned {
    fn buffers(&mut self) -> Vec<Buffer> {
        let mut rest: &mut [u8] = &mut self.memory;
        let mut buffers = Vec::new();
        for &cut in &self.cuts {
            let (piece, tail) = rest.split_at_mut(cut);
            buffers.push(buffer(piece));
            rest = tail;
        }
        buffers
    }
}

/// Operations in flight never overlap, so that the outcome is known.
fn plan(random: &mut Rng, size: u64, batch: u64, tag: u8) -> Vec<Planned> {
    let stripe = size / batch / UNIT * UNIT;
    (0..batch)
        .map(|i| {
            let len = (random.below(stripe / UNIT) + 1) * UNIT;
            let offset = i * stripe + random.below((stripe - len) / UNIT + 1) * UNIT;
            let mut cuts = Vec::new();
            let mut left = len;
            while left > 0 {
                let cut = if cuts.len() + 1 == IOVECS { left } else { (random.below(left / UNIT) + 1) * UNIT };
                cuts.push(usize::try_from(cut).unwrap());
                left -= cut;
            }
            let mut memory = AlignedBuf::zeroed(usize::try_from(len).unwrap());
            let write = random.chance(1, 2);
            if write {
                memory.iter_mut().enumerate().for_each(|(n, byte)| *byte = tag ^ n.to_le_bytes()[0]);
            }
            Planned { write, offset, memory, cuts }
        })
        .collect()
}

fn random_transfers(direct: bool) {
    const SIZE: u64 = 4 << 20;
    let path = tempfile::NamedTempFile::new().unwrap();
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path.path()).unwrap();
    file.set_len(SIZE).unwrap();
    let mut engine = engine_on(file);
    let mut model = vec![0u8; usize::try_from(SIZE).unwrap()];
    let mut random = Rng::new(7);
    for round in 0..40u8 {
        let mut batch = plan(&mut random, SIZE, 1 + u64::from(round), round);
        for (tag, planned) in batch.iter_mut().enumerate() {
            let (write, offset, buffers) = (planned.write, planned.offset, planned.buffers());
            let op = if write {
                Op::Write { disk: DISK, offset, buffers: &buffers }
            } else {
                Op::Read { disk: DISK, offset, buffers: &buffers }
            };
            submit(&mut engine, op, tag as u64).unwrap();
        }
        let mut seen = vec![false; batch.len()];
        for _ in 0..batch.len() {
            let completion = next(&mut engine);
            assert_eq!(completion.result, Ok(()));
            assert!(!std::mem::replace(&mut seen[usize::try_from(completion.tag.0).unwrap()], true));
        }
        for planned in &batch {
            let at = usize::try_from(planned.offset).unwrap();
            let range = at..at + planned.memory.len();
            if planned.write {
                model[range].copy_from_slice(&planned.memory);
            } else {
                assert!(model[range] == planned.memory[..], "a read differs from what was written");
            }
        }
    }
    submit(&mut engine, Op::Sync { disk: DISK }, 0).unwrap();
    assert_eq!(next(&mut engine).result, Ok(()));
    let mut content = vec![0; model.len()];
    File::open(path.path()).unwrap().read_exact_at(&mut content, 0).unwrap();
    assert!(content == model, "the file differs from the model");
}

#[test]
fn direct_transfers_agree_with_pread() {
    random_transfers(true);
}

#[test]
fn buffered_transfers_agree_with_pread() {
    random_transfers(false);
}

#[test]
fn a_full_engine_gives_the_operation_back() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[9; 4096]).unwrap();
    let mut engine = engine_on(file);
    let mut memory = vec![0u8; ENGINE_SLOTS * 4];
    for (tag, bytes) in memory.chunks_mut(4).enumerate() {
        assert_eq!(engine.available(), ENGINE_SLOTS - tag);
        submit(&mut engine, Op::Read { disk: DISK, offset: 0, buffers: &[buffer(bytes)] }, tag as u64).unwrap();
    }
    assert_eq!(submit(&mut engine, Op::Sync { disk: DISK }, 0), Err(EngineFull));
    assert_eq!(next(&mut engine).result, Ok(()));
    assert_eq!(engine.available(), 1);
    for _ in 1..ENGINE_SLOTS {
        assert_eq!(next(&mut engine).result, Ok(()));
    }
    assert_eq!((engine.available(), engine.in_flight()), (ENGINE_SLOTS, 0));
    assert!(memory.iter().all(|&byte| byte == 9));
}

#[test]
fn reading_past_the_end_is_an_error_and_never_a_success() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[5; 6000]).unwrap();
    let mut engine = engine_on(file);
    let mut memory = vec![0u8; 4096];
    submit(&mut engine, Op::Read { disk: DISK, offset: 4096, buffers: &[buffer(&mut memory)] }, 1).unwrap();
    assert_eq!(next(&mut engine), Completion { tag: OpTag(1), result: Err(IoError::UnexpectedEnd) });
    submit(&mut engine, Op::Read { disk: DISK, offset: 1 << 30, buffers: &[buffer(&mut memory)] }, 2).unwrap();
    assert_eq!(next(&mut engine).result, Err(IoError::UnexpectedEnd));
}

#[test]
fn short_transfers_are_continued() {
    // A pipe gives what it has: the shortest transfers there are.
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut engine = engine_on(File::from(OwnedFd::from(reader)));
    let mut memory = vec![0u8; 1000];
    let (head, tail) = memory.split_at_mut(300);
    let buffers = [buffer(head), buffer(tail)];
    submit(&mut engine, Op::Read { disk: DISK, offset: 0, buffers: &buffers }, 1).unwrap();
    let bytes: Vec<u8> = (0..1000u32).map(|i| i.to_le_bytes()[0]).collect();
    for piece in bytes.chunks(170) {
        assert!(engine.take_completion().is_none());
        writer.write_all(piece).unwrap();
        engine.wait(Wait::AtMost(Duration::from_millis(20)));
    }
    assert_eq!(next(&mut engine).result, Ok(()));
    assert!(memory == bytes);
}

#[test]
fn unknown_disks_fail_and_disks_can_be_added_later() {
    let mut engine = UringEngine::new().unwrap();
    submit(&mut engine, Op::Sync { disk: DiskId(9) }, 1).unwrap();
    assert_eq!(next(&mut engine).result, Err(IoError::Os(libc::EBADF)));
    engine.add_disk(DiskId(9), Arc::new(OwnedFd::from(tempfile::tempfile().unwrap()))).unwrap();
    submit(&mut engine, Op::Sync { disk: DiskId(9) }, 2).unwrap();
    assert_eq!(next(&mut engine).result, Ok(()));
}

fn readable(engine: &mut UringEngine) -> usize {
    engine.wait(Wait::AtMost(Duration::from_millis(50)));
    let events = std::iter::from_fn(|| engine.take_event());
    events.filter(|&event| event == Event::Readable { tag: EventTag(77), watched: true }).count()
}

#[test]
fn every_kick_wakes_though_nobody_reads_the_eventfd() {
    let mut engine = UringEngine::new().unwrap();
    let kick = eventfd(libc::EFD_NONBLOCK);
    let mut writer = File::from(kick.try_clone().unwrap());
    let mut write = || writer.write_all(&1u64.to_ne_bytes()).unwrap();
    write();
    engine.watch(kick.as_fd(), EventTag(77));
    assert!(readable(&mut engine) >= 1, "written to before the watch");
    for _ in 0..100 {
        write();
        assert!(readable(&mut engine) >= 1);
    }
    assert_eq!(readable(&mut engine), 0);
    engine.unwatch(EventTag(77));
    engine.flush();
    write();
    assert_eq!(readable(&mut engine), 0);
}

#[test]
fn what_cannot_be_watched_is_told() {
    let mut engine = UringEngine::new().unwrap();
    let kick = eventfd(0);
    engine.watch(kick.as_fd(), EventTag(1));
    drop(kick);
    engine.wait(Wait::AtMost(Duration::from_secs(5)));
    assert_eq!(engine.take_event(), Some(Event::WatchFailed { tag: EventTag(1) }));
    let file = tempfile::tempfile().unwrap();
    engine.watch(file.as_fd(), EventTag(2));
    engine.wait(Wait::AtMost(Duration::from_secs(5)));
    assert_eq!(engine.take_event(), Some(Event::Readable { tag: EventTag(2), watched: false }), "always ready");
}

#[test]
fn signals_reach_eventfds_of_both_modes() {
    let mut engine = UringEngine::new().unwrap();
    for may_block in [false, true] {
        let call = eventfd(if may_block { 0 } else { libc::EFD_NONBLOCK });
        if may_block {
            engine.signal_patiently(call.as_fd(), EventTag(5));
        } else {
            engine.signal(call.as_fd(), EventTag(5));
        }
        engine.flush();
        if may_block {
            engine.wait(Wait::AtMost(Duration::from_secs(5)));
            assert_eq!(engine.take_event(), Some(Event::Signalled { tag: EventTag(5) }));
        } else {
            engine.wait(Wait::No);
            assert_eq!(engine.take_event(), None, "it would wake who waits for something else");
        }
        let mut count = [0; 8];
        File::from(call).read_exact(&mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
    }
}

#[test]
fn a_frontend_that_fills_its_eventfd_does_not_block_us() {
    let mut engine = UringEngine::new().unwrap();
    for (flags, patiently) in [(libc::EFD_NONBLOCK, false), (0, true), (0, false)] {
        let call = eventfd(flags);
        File::from(call.try_clone().unwrap()).write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        if patiently {
            engine.signal_patiently(call.as_fd(), EventTag(5));
        } else {
            engine.signal(call.as_fd(), EventTag(5));
        }
        engine.flush();
        // Whoever reads it lets the worker go, so that the test can end.
        engine.wait(Wait::AtMost(Duration::from_millis(10)));
        File::from(call).read_exact(&mut [0; 8]).unwrap();
    }
}

#[test]
fn only_what_is_needed_is_allowed() {
    let mut engine = UringEngine::new().unwrap();
    engine.push(opcode::Nop::new().build().user_data(engine.user_data(KIND_WATCH, 4)));
    engine.wait(Wait::Forever);
    assert_eq!(engine.take_event(), Some(Event::WatchFailed { tag: EventTag(4) }), "refused");
}

#[test]
fn dropping_waits_for_what_is_in_flight() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut engine = engine_on(File::from(OwnedFd::from(reader)));
    let mut memory = vec![0u8; 4];
    submit(&mut engine, Op::Read { disk: DISK, offset: 0, buffers: &[buffer(&mut memory)] }, 1).unwrap();
    engine.flush();
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        writer.write_all(b"late").unwrap();
    });
    drop(engine);
    assert_eq!(memory, b"late");
    late.join().unwrap();
}

proptest! {
    /// However the kernel cuts a transfer into pieces, the rest that is submitted is exactly what is missing.
    #[test]
    fn any_short_transfers_tile_the_operation(
        lens in prop::collection::vec(1usize..5000, 1..=IOVECS),
        results in prop::collection::vec(-11i32..3000, 0..2000),
        offset in 0u64..1 << 40,
    ) {
        let total: usize = lens.iter().sum();
        let mut memory = vec![0u8; total];
        let mut rest: &mut [u8] = &mut memory;
        let mut buffers = Vec::new();
        for len in &lens {
            let (piece, tail) = rest.split_at_mut(*len);
            buffers.push(buffer(piece));
            rest = tail;
        }
        let base = buffers[0].ptr.addr();
        let mut slots = Slots::new();
        let index = slots.insert(Op::Write { disk: DISK, offset, buffers: &buffers }, OpTag(8)).unwrap();
        let mut done = 0;
        for result in results {
            let result = match result {
                -11..=-6 => -libc::EAGAIN,
                -5..=0 => -libc::EINTR,
                more => more.min(i32::try_from(total - done).unwrap()),
            };
            match slots.judge(index, result) {
                Verdict::Resubmit => done += usize::try_from(result).unwrap_or(0),
                Verdict::Finished(Completion { tag, result: outcome }) => {
                    prop_assert_eq!(tag, OpTag(8));
                    if outcome.is_ok() {
                        prop_assert_eq!(done + usize::try_from(result).unwrap(), total);
                    }
                    prop_assert_eq!(slots.available(), ENGINE_SLOTS);
                    return Ok(());
                }
            }
            let (rest_offset, rest) = slots.rest(index);
            prop_assert_eq!(rest_offset, offset + done as u64);
            prop_assert_eq!(rest[0].0, base + done);
            prop_assert_eq!(rest.iter().map(|piece| piece.1).sum::<usize>(), total - done);
        }
    }
}

#[test]
fn a_failed_sync_is_not_tried_again_and_endless_refusals_end() {
    let mut slots = Slots::new();
    let sync = slots.insert(Op::Sync { disk: DISK }, OpTag(1)).unwrap();
    let failed = Completion { tag: OpTag(1), result: Err(IoError::Os(libc::EAGAIN)) };
    assert_eq!(slots.judge(sync, -libc::EAGAIN), Verdict::Finished(failed));
    let mut byte = [0];
    let read = slots.insert(Op::Read { disk: DISK, offset: 0, buffers: &[buffer(&mut byte)] }, OpTag(1)).unwrap();
    let verdicts = (0..1000).map(|_| slots.judge(read, -libc::EAGAIN));
    let tries = verdicts.take_while(|&verdict| verdict == Verdict::Resubmit).count();
    assert_eq!(tries, usize::from(crate::base::limits::IO_RETRIES_MAX));
}
