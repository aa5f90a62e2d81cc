//! A guest under load, by the rules of the ring: it kicks only where it is asked to, and sleeps until it is interrupted.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;

use super::served::{Daemon, Driver, QUEUES, READ, RING, WRITE};
use super::vhost_user_support::Guest;

/// Requests of a queue at a time, three descriptors each.
const DEPTH: u16 = 8;

struct Load {
    driver: Driver,
    kicked: [u16; QUEUES],
    /// What was asked of each head that is in flight: its block, and what it reads or writes.
    asked: [HashMap<u16, (u32, u8)>; QUEUES],
    /// What is in the block of each slot.
    written: [HashMap<u16, u8>; QUEUES],
    done: u64,
}

impl Load {
    fn submit(&mut self, queue: usize, slot: u16) {
        let head = slot * 3;
        let written = self.written[queue].get(&slot).copied().filter(|_| self.done.is_multiple_of(2));
        let (kind, fill) = written.map_or((WRITE, u8::try_from(self.done % 251).unwrap()), |fill| (READ, fill));
        let offset = 4096 * (queue as u64 * u64::from(DEPTH) + u64::from(slot));
        self.driver.submit(queue, head, kind, offset, if kind == READ { !fill } else { fill }, slot.is_multiple_of(2));
        assert!(self.asked[queue].insert(head, (kind, fill)).is_none());
    }

    /// Kicks if the device has asked for it.
    fn kick(&mut self, queue: usize) {
        fence(Ordering::SeqCst);
        let at = self.driver.ring(queue).used + 4 + u64::from(RING) * 8;
        let event = u16::from_le_bytes(self.driver.guest.read_memory(at, 2).try_into().unwrap());
        let (old, new) = (self.kicked[queue], self.driver.available[queue]);
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            self.driver.kicks[queue].write(1).unwrap();
        }
        self.kicked[queue] = new;
    }

    /// Takes what was given back, each once.
    fn take(&mut self, queue: usize) -> bool {
        let heads = self.driver.take(queue);
        for head in &heads {
            let (kind, fill) = self.asked[queue].remove(head).expect("it is in flight, and given back once");
            assert!(self.driver.is_ok(queue, *head), "queue {queue}, head {head}");
            if kind == READ {
                let data = self.driver.guest.read_memory(Driver::data(queue, *head), 512);
                assert!(data.iter().all(|byte| *byte == fill), "queue {queue}, head {head}: not what was written");
            } else {
                self.written[queue].insert(head / 3, fill);
            }
            self.done += 1;
        }
        !heads.is_empty()
    }

    /// Asks for an interrupt at the next completion, and sleeps until it comes, unless one is there.
    fn sleep(&self) {
        for queue in 0..QUEUES {
            let at = self.driver.ring(queue).available + 4 + 2 * u64::from(RING);
            self.driver.guest.write_memory(at, &self.driver.seen[queue].to_le_bytes());
        }
        fence(Ordering::SeqCst);
        if (0..QUEUES).any(|queue| self.driver.used(queue) != self.driver.seen[queue]) {
            return;
        }
        let call = &self.driver.guest.call;
        let mut entry = libc::pollfd { fd: call.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid entry.
        let ready = unsafe { libc::poll(&raw mut entry, 1, 20_000) };
        assert_eq!(ready, 1, "a kick or an interrupt is lost: {:?}", self.asked);
        call.read().unwrap();
    }

    /// Runs until it is to stop and all is given back.
    fn run(mut self, stop: &AtomicBool) -> Load {
        loop {
            // The frontend's library takes no answer to GET_VRING_BASE for valid that is more than 32768.
            let is_full = self.driver.available.iter().any(|available| *available > 30_000);
            let stops = stop.load(Ordering::SeqCst) || is_full;
            for queue in 0..QUEUES {
                self.take(queue);
                if !stops {
                    let free: Vec<u16> =
                        (0..DEPTH).filter(|slot| !self.asked[queue].contains_key(&(slot * 3))).collect();
                    free.into_iter().for_each(|slot| self.submit(queue, slot));
                    self.kick(queue);
                }
            }
            if stops && self.asked.iter().all(HashMap::is_empty) {
                return self;
            }
            self.sleep();
        }
    }
}

fn survives(inflight: bool) {
    let mut daemon = Daemon::new();
    let driver = Driver::new(Guest::new());
    let mut frontend = driver.connect(&daemon);
    let mut region = None;
    if inflight {
        let asked = VhostUserInflight::new(0, 0, QUEUES.try_into().unwrap(), RING);
        let (info, file) = frontend.get_inflight_fd(&asked).unwrap();
        frontend.set_inflight_fd(&info, file.as_raw_fd()).unwrap();
        region = Some((info, file));
    }
    driver.start(&mut frontend, 0);
    let regions = driver.guest.regions();
    let load = Load { driver, kicked: [0; QUEUES], asked: Default::default(), written: Default::default(), done: 0 };
    let stop = Arc::new(AtomicBool::new(false));
    let runs = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || load.run(&stop)
    });
    for turn in 0..24 {
        std::thread::sleep(Duration::from_millis(20));
        // On both reactors, on the second, and after an attempt that may fail.
        if turn % 3 == 0 {
            let _ = daemon.server.hold(Duration::ZERO).unwrap_err();
        }
        daemon.take_over(turn % 2);
        if turn == 12 {
            // Stopped and started again, with requests in flight.
            frontend.set_mem_table(&regions).unwrap();
        }
    }
    stop.store(true, Ordering::SeqCst);
    let load = runs.join().unwrap();
    assert!(load.done > 500, "{} requests", load.done);
    for queue in 0..QUEUES {
        if let Some((info, file)) = &region {
            // Version and used index of the queue's part.
            let mut words = [0; 8];
            file.read_exact_at(&mut words, info.mmap_size / QUEUES as u64 * queue as u64 + 8).unwrap();
            let [a, b] = load.driver.available[queue].to_le_bytes();
            assert_eq!((words[..2].to_vec(), words[6..].to_vec()), (vec![1, 0], vec![a, b]), "it is kept all the time");
        }
        assert_eq!(frontend.get_vring_base(queue).unwrap(), u32::from(load.driver.available[queue]));
    }
    assert!(daemon.server.shut_down(Duration::from_secs(30)));
}

#[test]
fn requests_go_on_from_one_server_to_another() {
    survives(false);
}

#[test]
fn so_they_do_with_an_in_flight_region() {
    survives(true);
}
