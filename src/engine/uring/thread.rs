//! A thread with an engine, which outlives what it works for.
//!
//! A ring belongs to the thread that made it, and a daemon in its sandbox makes no more. Should another daemon that was to take over fail to
//! start, this one goes on, with everything else made anew, on the threads and rings that it has.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::UringEngine;

/// Something to do with the engine, which is given back once nothing is in flight.
type Work = Box<dyn FnOnce(UringEngine) -> UringEngine + Send>;

/// Why there is no thread.
#[derive(Debug)]
pub enum ThreadError<E> {
    /// The system has none.
    Thread(io::Error),
    /// There is one, without an engine.
    Engine(E),
}

/// A thread that has work, or waits for it. Ends when it is dropped and its work is done.
#[derive(Debug)]
pub struct EngineThread {
    work: Sender<Work>,
    /// Has something when work is done and the engine can be given to somebody else.
    idle: Receiver<()>,
    /// Nothing is ever sent: the thread has ended if it is closed.
    alive: Receiver<()>,
    thread: JoinHandle<()>,
}

impl EngineThread {
    /// Starts a thread, with the engine that `make` makes on it.
    ///
    /// # Errors
    /// See [`ThreadError`].
    pub fn spawn<E: Send + 'static>(
        name: String,
        make: impl FnOnce() -> Result<UringEngine, E> + Send + 'static,
    ) -> Result<EngineThread, ThreadError<E>> {
        let (work, queue) = crossbeam_channel::bounded(1);
        let (done, idle) = crossbeam_channel::bounded(1);
        let (life, alive) = crossbeam_channel::bounded(0);
        let (started, outcome) = crossbeam_channel::bounded(1);
        let body = move || {
            let _life: Sender<()> = life;
            match make() {
                Ok(engine) => {
                    let _ = started.send(Ok(()));
                    serve(engine, &queue, &done);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        };
        let thread = std::thread::Builder::new().name(name).spawn(body).map_err(ThreadError::Thread)?;
        outcome.recv().expect("the thread tells how it started").map_err(ThreadError::Engine)?;
        Ok(EngineThread { work, idle, alive, thread })
    }

    /// Gives the thread something to do. It has nothing.
    pub fn begin(&self, work: impl FnOnce(UringEngine) -> UringEngine + Send + 'static) {
        self.work.try_send(Box::new(work)).expect("a thread that waits takes work");
    }

    /// Waits until the work is done and the engine can be given to somebody else. False if that takes longer.
    #[must_use]
    pub fn wait_idle(&self, at_most: Duration) -> bool {
        self.idle.recv_timeout(at_most).is_ok()
    }

    /// Waits until the thread, which has nothing to do after this work, has ended. False if that takes longer: it is left alone.
    #[must_use]
    pub fn join(self, at_most: Duration) -> bool {
        let EngineThread { work, idle, alive, thread } = self;
        drop((work, idle));
        let ended = alive.recv_timeout(at_most) == Err(crossbeam_channel::RecvTimeoutError::Disconnected);
        // A panic aborts the process, so a thread that has ended has ended well.
        ended && thread.join().is_ok()
    }
}

fn serve(mut engine: UringEngine, queue: &Receiver<Work>, done: &Sender<()>) {
    while let Ok(work) = queue.recv() {
        engine = work(engine);
        if let Err(error) = engine.recycle() {
            log::error!("a disk stays open in an io_uring: {error}");
            return;
        }
        // Nobody waits for it where no other work comes.
        let _ = done.try_send(());
    }
}
