//! The messages of one frontend, from the first to the last.
//!
//! A task waits for messages; a thread of the blocking pool handles each of them, when it is there as a whole. A message may
//! take long (it drains rings, which may wait for a hung disk): that stalls this connection and no other.

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
use super::device::Device;
use super::error::DeviceError;
use super::hub::Hub;
use super::listener::{Vhd, stopped};
use super::peek::{self, LogCall, PeekError};
use super::server::Frontend;
use super::sys;
use super::turn::FrontendId;
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

/// Serves a connection until the frontend leaves, makes a mistake, or `stop` becomes true. Then drains its rings. Whether it was the
/// frontend that left.
pub(super) async fn serve(
    stream: UnixStream,
    (id, frontend): (FrontendId, Frontend),
    vhd: Arc<Vhd>,
    hub: Arc<Hub>,
    mut stop: watch::Receiver<bool>,
) -> bool {
    let (orders, moves) = unbounded_channel();
    let mut calls = Calls { moves, freed: vhd.turn().watch() };
    let device = Arc::new(Mutex::new(Device::new(Arc::clone(&vhd), id, hub, orders)));
    let outcome = match stream.try_clone() {
        Ok(socket) => {
            let handler = BackendReqHandler::from_stream(stream, Arc::clone(&device));
            let outcome = converse(handler, &device, &socket, &mut calls, &mut stop).await;
            // The frontend is to know at once, even if draining takes long.
            let _ = socket.shutdown(Shutdown::Both);
            outcome
        }
        Err(error) => Err(PeekError::from(error).into()),
    };
    let has_left = outcome.is_ok() && !*stop.borrow();
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
    has_left
}

async fn converse(
    mut handler: Handler,
    device: &Arc<Mutex<Device>>,
    socket: &UnixStream,
    calls: &mut Calls,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), Fault> {
    let watched = socket.try_clone().and_then(|socket| sys::watch(socket.into())).map_err(PeekError::from)?;
    loop {
        // Between messages nobody holds the lock.
        let look_after = device.lock().unwrap_or_else(PoisonError::into_inner).look_after();
        tokio::select! {
            biased;
            () = stopped(stop) => return Ok(()),
            there = peek::message(&watched) => if !there? {
                return Ok(());
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
                return Ok(());
            }
        };
        match result {
            Ok(()) => {}
            // It left without waiting for the answer.
            Err(Error::Disconnected | Error::SocketBroken(_)) => return Ok(()),
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
