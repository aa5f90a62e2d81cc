//! The messages of one frontend, from the first to the last.
//!
//! A task waits for messages; a thread of the blocking pool handles each of them, when it is there as a whole. A message may
//! take long (it drains rings, which may wait for a hung disk): that stalls this connection and no other.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};
use vhost::vhost_user::{BackendReqHandler, Error};

use super::balance::Move;
use super::device::Device;
use super::error::DeviceError;
use super::hub::Hub;
use super::listener::{Vhd, stopped};
use super::peek::{self, PeekError};
use super::server::Frontend;
use super::sys;
use crate::base::clock;

type Handler = BackendReqHandler<Mutex<Device>>;

/// Why we part from a frontend.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Peek(#[from] PeekError),
    #[error(transparent)]
    Message(#[from] Error),
    #[error("a virtqueue could not go on at another reactor: {0}")]
    Move(#[from] DeviceError),
}

/// Serves a connection until the frontend leaves, makes a mistake, or `stop` becomes true. Then drains its rings.
pub(super) async fn serve(
    stream: UnixStream,
    frontend: Frontend,
    vhd: Arc<Vhd>,
    hub: Arc<Hub>,
    mut stop: watch::Receiver<bool>,
) {
    let (orders, mut moves) = unbounded_channel();
    let device = Arc::new(Mutex::new(Device::new(Arc::clone(&vhd), hub, orders)));
    let outcome = match stream.try_clone() {
        Ok(socket) => {
            let handler = BackendReqHandler::from_stream(stream, Arc::clone(&device));
            let outcome = converse(handler, &device, &socket, &mut moves, &mut stop).await;
            // The frontend is to know at once, even if draining takes long.
            let _ = socket.shutdown(Shutdown::Both);
            outcome
        }
        Err(error) => Err(PeekError::from(error).into()),
    };
    if let Err(fault) = outcome {
        vhd.counters.faults.fetch_add(1, Ordering::Relaxed);
        if let Some(held_back) = vhd.faults.pass(clock::now()) {
            let (name, pid) = (vhd.name(), frontend.pid);
            log::warn!("VHD {name}: process {pid} is disconnected: {fault} ({held_back} more faults not logged)");
        }
    }
    let drained = spawn_blocking(move || device.lock().unwrap_or_else(PoisonError::into_inner).shut_down()).await;
    drained.unwrap_or_else(pass_on);
}

async fn converse(
    mut handler: Handler,
    device: &Arc<Mutex<Device>>,
    socket: &UnixStream,
    moves: &mut UnboundedReceiver<Move>,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), Fault> {
    let watched = socket.try_clone().and_then(|socket| sys::watch(socket.into())).map_err(PeekError::from)?;
    loop {
        tokio::select! {
            biased;
            () = stopped(stop) => return Ok(()),
            there = peek::message(&watched) => if !there? {
                return Ok(());
            },
            Some(mut order) = moves.recv() => {
                // Only the last one counts: the others are of a time when a message took long.
                while let Ok(newer) = moves.try_recv() {
                    order = newer;
                }
                carry_out(device, order).await?;
                continue;
            }
        }
        if let Some(channel) = peek::channel(socket).map_err(PeekError::from)? {
            // Between messages nobody holds the lock.
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

/// Moves a ring to another reactor, between two messages.
async fn carry_out(device: &Arc<Mutex<Device>>, order: Move) -> Result<(), Fault> {
    let device = Arc::clone(device);
    let moved = spawn_blocking(move || device.lock().unwrap_or_else(PoisonError::into_inner).move_ring(order)).await;
    match moved {
        Ok(moved) => Ok(moved?),
        Err(error) => {
            pass_on(error);
            Ok(())
        }
    }
}

/// A panic on a thread is a panic here; a thread that was never started belongs to a runtime that is shutting down.
fn pass_on(error: JoinError) {
    if error.is_panic() {
        std::panic::resume_unwind(error.into_panic());
    }
}
