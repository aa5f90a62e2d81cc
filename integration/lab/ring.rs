//! The driver's side of a split virtqueue in shared memory, with one slot per request: header, data buffer, status.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const PAGE: u64 = 4096;

/// Longest wait of the simple calls for one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// Request types of virtio-blk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// Read.
    In = 0,
    /// Write.
    Out = 1,
    /// Flush.
    Flush = 4,
    /// Get the serial number.
    GetId = 8,
    /// Discard.
    Discard = 11,
    /// Write zeroes.
    WriteZeroes = 13,
}

/// Dimensions of a ring.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Descriptors; three for each slot.
    pub size: u16,
    /// Bytes of a slot's data buffer.
    pub buffer_len: u64,
}

impl Shape {
    /// Requests that fit.
    #[must_use]
    pub fn slots(self) -> u16 {
        self.size / 3
    }

    /// Bytes of memory a ring of this shape needs.
    #[must_use]
    pub fn memory(self) -> u64 {
        self.buffers() + u64::from(self.slots()) * self.buffer_len
    }

    fn avail(self) -> u64 {
        u64::from(self.size) * 16
    }

    fn used(self) -> u64 {
        (self.avail() + 6 + u64::from(self.size) * 2).next_multiple_of(PAGE)
    }

    fn headers(self) -> u64 {
        (self.used() + 6 + u64::from(self.size) * 8).next_multiple_of(PAGE)
    }

    fn buffers(self) -> u64 {
        (self.headers() + u64::from(self.slots()) * 32).next_multiple_of(PAGE)
    }
}

/// One virtqueue.
#[derive(Debug)]
pub struct Ring {
    /// Signalled by us: there are requests.
    pub kick: EventFd,
    /// Signalled by the device: there are completions.
    pub call: EventFd,
    /// Its dimensions.
    pub shape: Shape,
    mem: Arc<GuestMemoryMmap>,
    base: u64,
    event_idx: bool,
    next_avail: u16,
    kicked: u16,
    last_used: u16,
}

impl Ring {
    /// A ring at guest address `base`, which must be all zeros.
    ///
    /// # Errors
    /// No file descriptors left.
    pub fn new(mem: Arc<GuestMemoryMmap>, base: u64, shape: Shape) -> Result<Ring> {
        assert!(base.is_multiple_of(PAGE) && shape.buffer_len.is_multiple_of(PAGE) && shape.size.is_power_of_two());
        let (kick, call) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
        Ok(Ring { kick, call, shape, mem, base, event_idx: false, next_avail: 0, kicked: 0, last_used: 0 })
    }

    /// Whether both sides say when they want to be signalled (VIRTIO_F_EVENT_IDX).
    pub fn set_event_idx(&mut self, on: bool) {
        self.event_idx = on;
    }

    /// Guest addresses of descriptor table, available ring and used ring.
    #[must_use]
    pub fn addresses(&self) -> [GuestAddress; 3] {
        [0, self.shape.avail(), self.shape.used()].map(|at| GuestAddress(self.base + at))
    }

    /// Guest address of a slot's data buffer.
    #[must_use]
    pub fn buffer(&self, slot: u16) -> GuestAddress {
        assert!(slot < self.shape.slots());
        GuestAddress(self.base + self.shape.buffers() + u64::from(slot) * self.shape.buffer_len)
    }

    /// Puts bytes into a slot's data buffer.
    ///
    /// # Errors
    /// Too many.
    pub fn fill(&self, slot: u16, data: &[u8]) -> Result<()> {
        ensure!(data.len() as u64 <= self.shape.buffer_len, "{} bytes do not fit a slot", data.len());
        Ok(self.mem.write_slice(data, self.buffer(slot))?)
    }

    /// Bytes of a slot's data buffer.
    ///
    /// # Errors
    /// More than there are.
    pub fn data(&self, slot: u16, len: u64) -> Result<Vec<u8>> {
        ensure!(len <= self.shape.buffer_len, "{len} bytes do not fit a slot");
        let mut data = vec![0; usize::try_from(len)?];
        self.mem.read_slice(&mut data, self.buffer(slot))?;
        Ok(data)
    }

    /// Makes a request available. The device may not see it before [`Ring::kick`].
    ///
    /// # Errors
    /// Bad addresses.
    pub fn push(&mut self, slot: u16, op: Op, sector: u64, len: u64) -> Result<()> {
        ensure!(len <= self.shape.buffer_len, "{len} bytes do not fit a slot");
        let header = GuestAddress(self.base + self.shape.headers() + u64::from(slot) * 32);
        self.mem.write_obj(op as u32, header)?;
        self.mem.write_obj(0_u32, GuestAddress(header.0 + 4))?;
        self.mem.write_obj(sector, GuestAddress(header.0 + 8))?;
        let status = GuestAddress(header.0 + 16);
        self.mem.write_obj(0xff_u8, status)?;

        let first = slot * 3;
        let to_us = if matches!(op, Op::In | Op::GetId) { DESC_WRITE } else { 0 };
        if len == 0 {
            self.descriptor(first, header, 16, DESC_NEXT, first + 2)?;
        } else {
            self.descriptor(first, header, 16, DESC_NEXT, first + 1)?;
            self.descriptor(first + 1, self.buffer(slot), u32::try_from(len)?, DESC_NEXT | to_us, first + 2)?;
        }
        self.descriptor(first + 2, status, 1, DESC_WRITE, 0)?;

        let avail = self.base + self.shape.avail();
        let entry = avail + 4 + u64::from(self.next_avail % self.shape.size) * 2;
        self.mem.write_obj(first, GuestAddress(entry))?;
        self.next_avail = self.next_avail.wrapping_add(1);
        self.mem.store(self.next_avail, GuestAddress(avail + 2), Ordering::Release)?;
        Ok(())
    }

    /// Tells the device of what was pushed since the last time, if it wants to know. Whether it did.
    ///
    /// # Errors
    /// Bad addresses.
    pub fn kick(&mut self) -> Result<bool> {
        if self.next_avail == self.kicked {
            return Ok(false);
        }
        fence(Ordering::SeqCst);
        let used = self.base + self.shape.used();
        let wanted = if self.event_idx {
            let event: u16 =
                self.mem.load(GuestAddress(used + 4 + u64::from(self.shape.size) * 8), Ordering::Relaxed)?;
            self.next_avail.wrapping_sub(event).wrapping_sub(1) < self.next_avail.wrapping_sub(self.kicked)
        } else {
            let flags: u16 = self.mem.load(GuestAddress(used), Ordering::Relaxed)?;
            flags & 1 == 0
        };
        self.kicked = self.next_avail;
        if wanted {
            self.kick.write(1)?;
        }
        Ok(wanted)
    }

    /// The next completed request: its slot and status byte.
    ///
    /// # Errors
    /// The device returned something that was never pushed.
    pub fn completed(&mut self) -> Result<Option<(u16, u8)>> {
        let used = self.base + self.shape.used();
        let index: u16 = self.mem.load(GuestAddress(used + 2), Ordering::Acquire)?;
        if index == self.last_used {
            return Ok(None);
        }
        let entry = used + 4 + u64::from(self.last_used % self.shape.size) * 8;
        let id: u32 = self.mem.read_obj(GuestAddress(entry))?;
        let slot = u16::try_from(id / 3).ok().filter(|s| id.is_multiple_of(3) && *s < self.shape.slots());
        let slot = slot.with_context(|| format!("the device completed descriptor {id}, which heads no request"))?;
        self.last_used = self.last_used.wrapping_add(1);
        let status = GuestAddress(self.base + self.shape.headers() + u64::from(slot) * 32 + 16);
        Ok(Some((slot, self.mem.read_obj(status)?)))
    }

    /// Asks the device to signal the next completion. True if there is one already, which it may not signal.
    ///
    /// # Errors
    /// Bad addresses.
    pub fn arm(&mut self) -> Result<bool> {
        let avail = self.base + self.shape.avail();
        if self.event_idx {
            let event = GuestAddress(avail + 4 + u64::from(self.shape.size) * 2);
            self.mem.store(self.last_used, event, Ordering::Relaxed)?;
            fence(Ordering::SeqCst);
        }
        let index: u16 = self.mem.load(GuestAddress(self.base + self.shape.used() + 2), Ordering::Acquire)?;
        Ok(index != self.last_used)
    }

    /// Waits until something may have completed; false after `limit`.
    ///
    /// # Errors
    /// Bad addresses.
    pub fn wait(&mut self, limit: Duration) -> Result<bool> {
        if self.arm()? {
            return Ok(true);
        }
        let limit = i32::try_from(limit.as_millis())?;
        let mut entry = libc::pollfd { fd: self.call.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let count = loop {
            // SAFETY: one valid entry that outlives the call.
            let count = unsafe { libc::poll(&raw mut entry, 1, limit) };
            if count >= 0 {
                break count;
            }
            let error = std::io::Error::last_os_error();
            ensure!(error.kind() == std::io::ErrorKind::Interrupted, error);
        };
        if count > 0 {
            self.call.read()?;
        }
        Ok(count > 0)
    }

    /// One request from start to end, on an idle ring; its status byte.
    ///
    /// # Errors
    /// It does not complete.
    pub fn request(&mut self, op: Op, sector: u64, len: u64) -> Result<u8> {
        self.push(0, op, sector, len)?;
        self.kick()?;
        let started = Instant::now();
        loop {
            if let Some((slot, status)) = self.completed()? {
                ensure!(slot == 0, "slot {slot} completed, which was idle");
                return Ok(status);
            }
            self.wait(Duration::from_millis(500))?;
            if started.elapsed() > REQUEST_LIMIT {
                bail!("{op:?} of {len} bytes at sector {sector} does not complete");
            }
        }
    }

    /// Reads `len` bytes at `sector`.
    ///
    /// # Errors
    /// The device fails the request.
    pub fn read(&mut self, sector: u64, len: u64) -> Result<Vec<u8>> {
        let status = self.request(Op::In, sector, len)?;
        ensure!(status == 0, "read of {len} bytes at sector {sector}: status {status}");
        self.data(0, len)
    }

    /// Writes at `sector`.
    ///
    /// # Errors
    /// The device fails the request.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<()> {
        self.fill(0, data)?;
        let status = self.request(Op::Out, sector, data.len() as u64)?;
        ensure!(status == 0, "write of {} bytes at sector {sector}: status {status}", data.len());
        Ok(())
    }

    /// Flushes.
    ///
    /// # Errors
    /// The device fails the request.
    pub fn flush(&mut self) -> Result<()> {
        let status = self.request(Op::Flush, 0, 0)?;
        ensure!(status == 0, "flush: status {status}");
        Ok(())
    }

    /// Puts the range of a discard or write-zeroes request into a slot; the length of the data.
    ///
    /// # Errors
    /// Bad addresses.
    pub fn fill_range(&self, slot: u16, sector: u64, sectors: u32, unmap: bool) -> Result<u64> {
        let mut range = [0; 16];
        range[..8].copy_from_slice(&sector.to_le_bytes());
        range[8..12].copy_from_slice(&sectors.to_le_bytes());
        range[12] = u8::from(unmap);
        self.fill(slot, &range)?;
        Ok(16)
    }

    /// Discards (`Op::Discard`) or zeroes (`Op::WriteZeroes`) a range.
    ///
    /// # Errors
    /// The device fails the request.
    pub fn range_request(&mut self, op: Op, sector: u64, sectors: u32) -> Result<()> {
        let len = self.fill_range(0, sector, sectors, false)?;
        let status = self.request(op, 0, len)?;
        ensure!(status == 0, "{op:?} of {sectors} sectors at {sector}: status {status}");
        Ok(())
    }

    fn descriptor(&self, index: u16, addr: GuestAddress, len: u32, flags: u16, next: u16) -> Result<()> {
        let at = self.base + u64::from(index) * 16;
        self.mem.write_obj(addr.0, GuestAddress(at))?;
        self.mem.write_obj(len, GuestAddress(at + 8))?;
        self.mem.write_obj(flags, GuestAddress(at + 12))?;
        self.mem.write_obj(next, GuestAddress(at + 14))?;
        Ok(())
    }
}
