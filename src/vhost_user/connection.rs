//! The messages of one frontend, from the first to the last.
//!
//! A task waits for messages; a thread of the blocking pool handles each of them, when it is there as a whole. A message may
//! take long (it drains rings, which may wait for a hung disk): that stalls this connection and no other.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, spawn_blocking};
use vhost::vhost_user::{BackendReqHandler, Error};

use super::balance::Move;
use super::device::{Device, HeldParts};
use super::error::DeviceError;
use super::held::Said;
use super::hold::{self, Asked, End, Hold, Paused, PausedSender, Phase};
use super::hub::Hub;
use super::listener::Vhd;
use super::peek::{self, LogCall, PeekError};
use super::server::Frontend;
use super::turn::FrontendId;
use super::{said, sys};
use crate::base::clock;

type Handler = BackendReqHandler<Mutex<Device>>;

/// Why we part from a frontend.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Peek(#[from] PeekError),
    #[error(transparent)]
    Message(#[from] Error),
    #[error("its virtqueues could not go on: {0}")]
    Change(#[from] DeviceError),
}

impl Fault {
    /// Whether the frontend did nothing wrong, but came while there was another one.
    fn is_refusal(&self) -> bool {
        let of_device = |error: &DeviceError| matches!(error, DeviceError::InUse(_));
        match self {
            Fault::Change(error) => of_device(error),
            Fault::Message(Error::ReqHandlerError(error)) => {
                error.get_ref().and_then(|error| error.downcast_ref()).is_some_and(of_device)
            }
            Fault::Message(_) | Fault::Peek(_) => false,
        }
    }
}

/// What a device is called to between two messages.
struct Calls {
    /// To move rings to other reactors.
    moves: UnboundedReceiver<Move>,
    /// To look whether it is its turn.
    freed: watch::Receiver<()>,
}

/// A connection, and the device that its frontend sees.
pub(super) struct Session {
    handler: Handler,
    device: Arc<Mutex<Device>>,
    socket: UnixStream,
    calls: Calls,
    id: FrontendId,
    /// Its rings have run already, for another server.
    goes_on: bool,
}

impl Session {
    /// With a frontend that has connected.
    pub(super) fn new(stream: UnixStream, id: FrontendId, vhd: &Arc<Vhd>, hub: Arc<Hub>) -> io::Result<Session> {
        let socket = stream.try_clone()?;
        let (device, calls) = new_device(id, vhd, hub);
        let handler = BackendReqHandler::from_stream(stream, Arc::clone(&device));
        Ok(Session { handler, device, socket, calls, id, goes_on: false })
    }

    /// With a frontend that another server has held.
    pub(super) fn take_over(
        stream: UnixStream,
        id: FrontendId,
        vhd: &Arc<Vhd>,
        hub: Arc<Hub>,
        said: Said,
    ) -> io::Result<Session> {
        let (device, calls) = new_device(id, vhd, hub);
        let handler = said::handler(&stream, &device, said)?;
        Ok(Session { handler, device, socket: stream, calls, id, goes_on: true })
    }

    /// The device becomes what another one was.
    pub(super) fn take_over_device(&self, held: HeldParts, same_reactors: bool) -> Result<(), DeviceError> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner).take_over(held, same_reactors)
    }
}

fn new_device(id: FrontendId, vhd: &Arc<Vhd>, hub: Arc<Hub>) -> (Arc<Mutex<Device>>, Calls) {
    let (orders, moves) = unbounded_channel();
    let device = Device::new(Arc::clone(vhd), id, hub, orders);
    (Arc::new(Mutex::new(device)), Calls { moves, freed: vhd.turn().watch() })
}

/// How a conversation went on.
enum Outcome {
    Left,
    Stopped,
    Held,
}

/// Serves a connection until the frontend leaves, makes a mistake, or the phase says so. Then drains its rings.
pub(super) async fn serve(
    session: Session,
    frontend: Frontend,
    vhd: Arc<Vhd>,
    mut phase: watch::Receiver<Phase>,
    paused: PausedSender,
) -> End {
    let Session { handler, device, socket, mut calls, id, goes_on } = session;
    let mut holds = Holds { phase: &mut phase, paused, id };
    let outcome = match if goes_on { change(&device, Device::settle).await } else { Ok(()) } {
        Ok(()) => converse(handler, &device, &socket, &mut calls, &mut holds).await,
        Err(fault) => Err(fault),
    };
    if let Ok(Outcome::Held) = outcome {
        let held = spawn_blocking(move || device.lock().unwrap_or_else(PoisonError::into_inner).hand_over()).await;
        return match held {
            Ok(held) => End::HandedOver(Box::new(held)),
            Err(error) => {
                pass_on(error);
                End::Parted
            }
        };
    }
    // The frontend is to know at once, even if draining takes long.
    let _ = socket.shutdown(Shutdown::Both);
    let has_left = matches!(outcome, Ok(Outcome::Left)) && !matches!(*phase.borrow(), Phase::Stopped);
    let end = if has_left { End::Left } else { End::Parted };
    if let Err(fault) = outcome {
        let is_refusal = fault.is_refusal();
        let counter = if is_refusal { &vhd.counters.refused } else { &vhd.counters.faults };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(held_back) = vhd.faults.pass(clock::now()) {
            let (name, pid) = (vhd.name(), frontend.pid);
            log::warn!("VHD {name}: process {pid} is disconnected: {fault} ({held_back} more faults not logged)");
        }
    }
    let drained = spawn_blocking(move || device.lock().unwrap_or_else(PoisonError::into_inner).shut_down()).await;
    drained.unwrap_or_else(pass_on);
    end
}

/// What a connection has to do with attempts to hold it.
struct Holds<'a> {
    phase: &'a mut watch::Receiver<Phase>,
    paused: PausedSender,
    id: FrontendId,
}

impl Holds<'_> {
    /// Pauses, between two messages, until the attempt is over. Whether somebody else goes on with the frontend.
    async fn pause(&mut self, hold: Arc<Hold>, device: &Arc<Mutex<Device>>) -> bool {
        let (until, pausing) = (hold.until, Arc::clone(device));
        let result = spawn_blocking(move || pausing.lock().unwrap_or_else(PoisonError::into_inner).pause(until)).await;
        let result = match result {
            Ok(result) => result,
            Err(error) => {
                pass_on(error);
                return false;
            }
        };
        // A listener that has gone has no connections.
        let _ = self.paused.send(Paused { hold: Arc::clone(&hold), id: self.id, result });
        let is_held = hold::is_over(&hold, self.phase).await;
        if !is_held {
            device.lock().unwrap_or_else(PoisonError::into_inner).go_on();
        }
        is_held
    }
}

async fn converse(
    mut handler: Handler,
    device: &Arc<Mutex<Device>>,
    socket: &UnixStream,
    calls: &mut Calls,
    holds: &mut Holds<'_>,
) -> Result<Outcome, Fault> {
    let watched = socket.try_clone().and_then(|socket| sys::watch(socket.into())).map_err(PeekError::from)?;
    loop {
        // Between messages nobody holds the lock.
        let look_after = device.lock().unwrap_or_else(PoisonError::into_inner).look_after();
        tokio::select! {
            biased;
            asked = hold::asked(holds.phase) => match asked {
                Asked::Stop => return Ok(Outcome::Stopped),
                Asked::Hold(hold) => {
                    if holds.pause(hold, device).await {
                        return Ok(Outcome::Held);
                    }
                    continue;
                }
            },
            there = peek::message(&watched) => if !there? {
                return Ok(Outcome::Left);
            },
            Ok(()) = calls.freed.changed() => {
                change(device, Device::settle).await?;
                continue;
            }
            () = pause(look_after) => {
                change(device, Device::settle).await?;
                continue;
            }
            Some(mut order) = calls.moves.recv() => {
                // Only the last one counts: the others are of a time when a message took long.
                while let Ok(newer) = calls.moves.try_recv() {
                    order = newer;
                }
                change(device, move |device| device.move_ring(order)).await?;
                continue;
            }
        }
        if let Some(given) = peek::take_log_call(socket).map_err(PeekError::from)? {
            take_log_call(device, socket, given).await?;
            continue;
        }
        if let Some(channel) = peek::channel(socket).map_err(PeekError::from)? {
            device.lock().unwrap_or_else(PoisonError::into_inner).offer_channel(channel);
        }
        let handled = spawn_blocking(move || {
            let result = handler.handle_request();
            (handler, result)
        });
        let result = match handled.await {
            Ok((back, result)) => {
                handler = back;
                result
            }
            Err(error) => {
                pass_on(error);
                return Ok(Outcome::Stopped);
            }
        };
        match result {
            Ok(()) => {}
            // It left without waiting for the answer.
            Err(Error::Disconnected | Error::SocketBroken(_)) => return Ok(Outcome::Left),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns after that time; `None`: never.
async fn pause(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Changes something about the device, between two messages.
async fn change(
    device: &Arc<Mutex<Device>>,
    change: impl FnOnce(&mut Device) -> Result<(), DeviceError> + Send + 'static,
) -> Result<(), Fault> {
    let device = Arc::clone(device);
    let changed = spawn_blocking(move || change(&mut device.lock().unwrap_or_else(PoisonError::into_inner))).await;
    match changed {
        Ok(changed) => Ok(changed?),
        Err(error) => {
            pass_on(error);
            Ok(())
        }
    }
}

/// SET_LOG_FD, of which the protocol library knows nothing.
async fn take_log_call(device: &Arc<Mutex<Device>>, socket: &UnixStream, given: LogCall) -> Result<(), Fault> {
    let LogCall { call, wants_answer } = given;
    let (answers, asked) = oneshot::channel();
    let set = move |device: &mut Device| {
        device.set_log_call(call);
        let _ = answers.send(device.answers());
        Ok(())
    };
    change(device, set).await?;
    if wants_answer && asked.await.unwrap_or(false) {
        // There is room: `peek::message` has looked.
        sys::send_now(socket, &peek::log_call_answer()).map_err(PeekError::from)?;
    }
    Ok(())
}

/// A panic on a thread is a panic here; a thread that was never started belongs to a runtime that is shutting down.
fn pass_on(error: JoinError) {
    if error.is_panic() {
        std::panic::resume_unwind(error.into_panic());
    }
}
