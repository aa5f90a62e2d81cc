//! A vhost-user-blk frontend: how import and export, tests and benchmarks read and write a VHD.
//!
//! It goes through the same socket as a guest, so that there is one write path only, and a VHD that a guest has attached
//! refuses it by itself. [`BlkClient`] offers blocking calls, and a queue of requests over preallocated buffers
//! ([`BlkClient::submit`], [`BlkClient::wait`]) for everything that wants depth.

mod memory;
mod request;

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use virtio_driver::{
    EventFd, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkReqBuf, VirtioBlkTransport,
    VirtioFeatureFlags,
};

use crate::base::clock::{self, Nanos};
use memory::SharedMemory;
pub use request::{BlkDone, BlkError, BlkOp, BlkRequest};

/// Size of the queues and buffers of a client.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// Virtqueues to use.
    pub queues: usize,
    /// Entries of each, a power of two. A request with data needs three.
    pub queue_size: u16,
    /// Buffers.
    pub buffers: usize,
    /// Bytes of each buffer.
    pub buffer_len: usize,
    /// How long a completion may take before the client gives up.
    pub timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            queues: 1,
            queue_size: 128,
            buffers: 16,
            buffer_len: 1 << 20,
            timeout: Duration::from_secs(150),
        }
    }
}

struct InFlight {
    request: BlkRequest,
    submitted: Nanos,
}

/// A frontend attached to a VHD; detaches when dropped.
pub struct BlkClient {
    // Declared before `transport`, which owns the memory that the queues point into: fields drop in order.
    queues: Vec<VirtioBlkQueue<'static, InFlight>>,
    completion_fds: Vec<std::sync::Arc<EventFd>>,
    transport: Box<VirtioBlkTransport>,
    memory: SharedMemory,
    buffer_busy: Vec<bool>,
    in_flight: usize,
    config: VirtioBlkConfig,
    options: ClientOptions,
}

impl BlkClient {
    /// Attaches to the VHD behind `socket`.
    ///
    /// # Errors
    /// The socket is not there, another frontend is attached, or memory cannot be shared.
    pub fn connect(socket: &Path, options: ClientOptions) -> Result<BlkClient, BlkError> {
        let setup = |what: &'static str| move |source| BlkError::Setup { what, source };
        let path = socket.to_str().ok_or_else(|| BlkError::BadPath(socket.to_owned()))?;
        let virtio = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
        let features = virtio.bits() | (VirtioBlkFeatureFlags::all() - VirtioBlkFeatureFlags::SECURE_ERASE).bits();
        let transport = VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(path, features);
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(transport.map_err(|source| connect_error(socket, source))?);
        let config = transport.get_config().map_err(|source| connect_error(socket, source))?;

        let memory =
            SharedMemory::new(options.buffers * options.buffer_len).map_err(setup("allocate shared memory"))?;
        transport
            .map_mem_region(memory.ptr as usize, memory.len, memory.file.as_raw_fd(), 0)
            .map_err(setup("share memory with the daemon"))?;
        let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, options.queues, options.queue_size)
            .map_err(setup("start the virtqueues"))?;
        // Without this the device would tell of the first completion and of no other.
        queues.iter_mut().for_each(|queue| queue.set_used_notif_enabled(true));
        let completion_fds = (0..options.queues).map(|queue| transport.get_completion_fd(queue)).collect();
        let buffer_busy = vec![false; options.buffers];
        Ok(BlkClient { queues, completion_fds, transport, memory, buffer_busy, in_flight: 0, config, options })
    }

    /// Size of the VHD, in bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        let sectors: u64 = self.config.capacity.into();
        sectors.saturating_mul(512)
    }

    /// Logical block size of the VHD, in bytes.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.config.blk_size.into()
    }

    /// The configuration space as it was at connect.
    #[must_use]
    pub fn config(&self) -> &VirtioBlkConfig {
        &self.config
    }

    /// Features negotiated, as in the virtio specification.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.transport.get_features()
    }

    /// Whether the VHD refuses writes.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.features() & VirtioBlkFeatureFlags::RO.bits() != 0
    }

    /// Requests submitted and not taken yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// A buffer that no request uses, if there is one.
    #[must_use]
    pub fn idle_buffer(&self) -> Option<usize> {
        self.idle_buffers().next()
    }

    /// The buffers that no request uses.
    pub fn idle_buffers(&self) -> impl Iterator<Item = usize> {
        self.buffer_busy.iter().enumerate().filter(|(_, busy)| !**busy).map(|(index, _)| index)
    }

    /// The content of a buffer.
    ///
    /// # Panics
    /// If a request in flight uses the buffer.
    #[must_use]
    pub fn buffer(&self, index: usize) -> &[u8] {
        assert!(!self.buffer_busy[index], "the buffer belongs to a request in flight");
        // SAFETY: within the mapping, which lives as long as `self`; no request in flight writes to it.
        unsafe { std::slice::from_raw_parts(self.buffer_ptr(index), self.options.buffer_len) }
    }

    /// The content of a buffer, to be changed.
    ///
    /// # Panics
    /// If a request in flight uses the buffer.
    #[must_use]
    pub fn buffer_mut(&mut self, index: usize) -> &mut [u8] {
        assert!(!self.buffer_busy[index], "the buffer belongs to a request in flight");
        // SAFETY: within the mapping, which lives as long as `self`, borrowed exclusively; no request in flight uses it.
        unsafe { std::slice::from_raw_parts_mut(self.buffer_ptr(index), self.options.buffer_len) }
    }

    fn buffer_ptr(&self, index: usize) -> *mut u8 {
        assert!(index < self.options.buffers);
        // SAFETY: `index` is below the number of buffers that the mapping was made for.
        unsafe { self.memory.ptr.add(index * self.options.buffer_len) }
    }

    /// Puts a request on a virtqueue. The device sees it at the next [`BlkClient::kick`].
    ///
    /// # Errors
    /// The virtqueue is full or the request is not aligned to sectors.
    ///
    /// # Panics
    /// If the buffer is in use or too small.
    pub fn submit(&mut self, queue: usize, request: BlkRequest) -> Result<(), BlkError> {
        let BlkRequest { op, offset, len, buffer } = request;
        let in_flight = InFlight { request, submitted: clock::now() };
        let uses_buffer = matches!(op, BlkOp::Read | BlkOp::Write);
        let (ptr, bytes) = if uses_buffer {
            let bytes = usize::try_from(len).expect("a buffer's length fits usize");
            assert!(!self.buffer_busy[buffer] && bytes <= self.options.buffer_len, "the buffer is in use or too small");
            (self.buffer_ptr(buffer), bytes)
        } else {
            (std::ptr::null_mut(), 0)
        };
        let rings = &mut self.queues[queue];
        let submitted = match op {
            // SAFETY: the buffer lies in the mapping, which outlives the queue, and is marked busy until completion.
            BlkOp::Read => unsafe { rings.read_raw(offset, ptr, bytes, in_flight) },
            // SAFETY: as above.
            BlkOp::Write => unsafe { rings.write_raw(offset, ptr, bytes, in_flight) },
            BlkOp::Flush => rings.flush(in_flight),
            BlkOp::Discard => rings.discard(offset, len, in_flight),
            BlkOp::WriteZeroes => rings.write_zeroes(offset, len, true, in_flight),
        };
        submitted.map_err(BlkError::Submit)?;
        if uses_buffer {
            self.buffer_busy[buffer] = true;
        }
        self.in_flight += 1;
        Ok(())
    }

    /// Tells the device that there are new requests, if it wants to be told.
    ///
    /// # Errors
    /// The eventfd is gone.
    pub fn kick(&mut self, queue: usize) -> Result<(), BlkError> {
        if self.queues[queue].avail_notif_needed() {
            self.transport.get_submission_notifier(queue).notify().map_err(BlkError::Submit)?;
        }
        Ok(())
    }

    /// Takes what has completed on a virtqueue; waits for at least one completion. A failed request is reported in its
    /// [`BlkDone`].
    ///
    /// # Errors
    /// Nothing completed within the time-out.
    pub fn wait(&mut self, queue: usize) -> Result<Vec<BlkDone>, BlkError> {
        let deadline = clock::now().after(self.options.timeout);
        loop {
            let done = self.poll(queue);
            if !done.is_empty() {
                return Ok(done);
            }
            let left = Duration::from_nanos(deadline.since(clock::now()));
            if left.is_zero() {
                return Err(BlkError::TimedOut(self.options.timeout));
            }
            if readable(&self.completion_fds[queue], left) {
                // A wake-up that another read already consumed is only a spurious turn of the loop.
                let _ = self.completion_fds[queue].read();
            }
        }
    }

    /// Takes what has completed on a virtqueue without waiting.
    pub fn poll(&mut self, queue: usize) -> Vec<BlkDone> {
        let completions: Vec<_> = self.queues[queue].completions().collect();
        completions
            .into_iter()
            .map(|completion| {
                let InFlight { request, submitted } = completion.context;
                self.in_flight -= 1;
                if matches!(request.op, BlkOp::Read | BlkOp::Write) {
                    self.buffer_busy[request.buffer] = false;
                }
                let result = if completion.ret == 0 {
                    Ok(())
                } else {
                    let source = io::Error::from_raw_os_error(-completion.ret);
                    Err(BlkError::Failed { op: request.op, offset: request.offset, len: request.len, source })
                };
                BlkDone { request, submitted, result }
            })
            .collect()
    }

    /// Submits one request on virtqueue 0 and waits for it. Nothing else may be in flight.
    ///
    /// # Errors
    /// It failed, or took too long.
    ///
    /// # Panics
    /// If something is in flight.
    pub fn run(&mut self, request: BlkRequest) -> Result<(), BlkError> {
        assert_eq!(self.in_flight, 0, "blocking calls and queued ones do not mix");
        self.submit(0, request)?;
        self.kick(0)?;
        let mut done = self.wait(0)?;
        done.pop().expect("wait returns at least one").result
    }

    /// Reads `into.len()` bytes at byte `offset`; both multiples of 512.
    ///
    /// # Errors
    /// As [`BlkClient::run`].
    pub fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<(), BlkError> {
        let mut at = offset;
        for piece in into.chunks_mut(self.options.buffer_len) {
            let len = piece.len();
            self.run(BlkRequest { op: BlkOp::Read, offset: at, len: len as u64, buffer: 0 })?;
            piece.copy_from_slice(&self.buffer(0)[..len]);
            at += len as u64;
        }
        Ok(())
    }

    /// Writes `from` at byte `offset`; both multiples of 512.
    ///
    /// # Errors
    /// As [`BlkClient::run`].
    pub fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<(), BlkError> {
        let mut at = offset;
        for piece in from.chunks(self.options.buffer_len) {
            self.buffer_mut(0)[..piece.len()].copy_from_slice(piece);
            self.run(BlkRequest { op: BlkOp::Write, offset: at, len: piece.len() as u64, buffer: 0 })?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes every completed write durable.
    ///
    /// # Errors
    /// As [`BlkClient::run`].
    pub fn flush(&mut self) -> Result<(), BlkError> {
        self.run(BlkRequest { op: BlkOp::Flush, offset: 0, len: 0, buffer: 0 })
    }

    /// Drops a range, in as many requests as the device wants.
    ///
    /// # Errors
    /// As [`BlkClient::run`].
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<(), BlkError> {
        self.in_ranges(BlkOp::Discard, offset, len, self.config.max_discard_sectors.into())
    }

    /// Makes a range read as zeros and gives its room back, in as many requests as the device wants.
    ///
    /// # Errors
    /// As [`BlkClient::run`].
    pub fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), BlkError> {
        self.in_ranges(BlkOp::WriteZeroes, offset, len, self.config.max_write_zeroes_sectors.into())
    }

    fn in_ranges(&mut self, op: BlkOp, offset: u64, len: u64, sectors_max: u32) -> Result<(), BlkError> {
        let step = u64::from(sectors_max.max(1)) * 512;
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let len = step.min(end - at);
            self.run(BlkRequest { op, offset: at, len, buffer: 0 })?;
            at += len;
        }
        Ok(())
    }
}

impl std::fmt::Debug for BlkClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlkClient").field("capacity", &self.capacity()).field("in_flight", &self.in_flight).finish()
    }
}

/// What the client library says when the other end has closed the connection; its error has no kind of its own.
const CLOSED: &str = "failed to receive vhost-user message";

/// The backend closes a connection if another frontend is attached, once it knows that this one does not migrate a guest; a socket
/// that is not there says so itself.
fn connect_error(socket: &Path, source: io::Error) -> BlkError {
    let path = socket.to_owned();
    match source.kind() {
        io::ErrorKind::Other if source.to_string() == CLOSED => BlkError::InUse { path },
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
            BlkError::InUse { path }
        }
        _ => BlkError::Connect { path, source },
    }
}

fn readable(fd: &EventFd, timeout: Duration) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1);
    // SAFETY: one valid `pollfd` that outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, millis) == 1 }
}
