//! What everybody may know of a VHD that is served.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use super::disk::{SyncNumber, SyncPoint};
use super::door::Door;
use super::last_active::LastActive;
use super::limits::VhdLimits;
use crate::base::ids::{DiskId, DiskSet, VhdId};
use crate::base::limits::DISKS_MAX;
use crate::base::units::{ExtentIndex, Geometry};
use crate::metrics::IoMetricsSet;
use crate::placement::ReplicaState;
use crate::placement::view::VhdMap;
use crate::qos::CurrentShare;
use crate::qos::shares::Account;

/// What is fixed while a VHD is served.
#[derive(Clone, Debug)]
pub struct VhdSettings {
    /// The VHD.
    pub id: VhdId,
    /// UUID, answered (shortened) to GET_ID.
    pub uuid: uuid::Uuid,
    /// Extent size of its pool.
    pub geometry: Geometry,
    /// Logical block size the guest sees, in bytes.
    pub block_size: u32,
    /// Whether guest writes are refused.
    pub read_only: bool,
    /// Whether its slots stay reserved when their content is discarded.
    pub thick: bool,
    /// Whether its blocks have checksums: every write goes through memory of ours, and every read is compared.
    pub checksums: bool,
}

/// Shared state of one VHD.
pub struct VhdState {
    /// What is fixed.
    pub settings: VhdSettings,
    /// Where its extents are.
    pub map: VhdMap,
    /// What it did, per reactor.
    pub metrics: IoMetricsSet,
    /// Who uses it.
    pub door: Door,
    /// Reads, by guests and jobs, of blocks that were not what had been written.
    pub checksum_errors: AtomicU64,
    /// Whose rings ran last.
    pub last_active: LastActive,
    /// What it is limited to.
    pub limits: VhdLimits,
    /// Its part of disks that others want, too.
    pub share: CurrentShare,
    size: AtomicU64,
    needs_sync: [AtomicU64; DISKS_MAX],
    /// As `needs_sync`, for copies that moves are sealing, and for disks that the VHD has left.
    copies_need_sync: [AtomicU64; DISKS_MAX],
    /// 1 + the extent in which the copier has been waiting for a claim; 0: none.
    copier_waits: AtomicU64,
    pending_changes: AtomicU64,
    claim_waiters: AtomicU64,
    accounts: [Account; DISKS_MAX],
    deleted: AtomicBool,
}

impl VhdState {
    /// A VHD of `size` bytes with nothing written since it was opened.
    #[must_use]
    pub fn new(settings: VhdSettings, size: u64, map: VhdMap, reactors: u16) -> VhdState {
        VhdState {
            settings,
            map,
            metrics: IoMetricsSet::new(reactors),
            door: Door::default(),
            checksum_errors: AtomicU64::new(0),
            last_active: LastActive::default(),
            limits: VhdLimits::default(),
            share: CurrentShare::default(),
            size: AtomicU64::new(size),
            needs_sync: [const { AtomicU64::new(0) }; DISKS_MAX],
            copies_need_sync: [const { AtomicU64::new(0) }; DISKS_MAX],
            copier_waits: AtomicU64::new(0),
            pending_changes: AtomicU64::new(0),
            claim_waiters: AtomicU64::new(0),
            accounts: std::array::from_fn(|_| Account::default()),
            deleted: AtomicBool::new(false),
        }
    }

    /// Whose rings ran last is noted there.
    #[must_use]
    pub fn with_last_active(mut self, last_active: LastActive) -> VhdState {
        self.last_active = last_active;
        self
    }

    /// The VHD.
    #[must_use]
    pub fn id(&self) -> VhdId {
        self.settings.id
    }

    /// What it has had of a disk.
    #[must_use]
    pub fn account(&self, disk: DiskId) -> &Account {
        &self.accounts[disk.index()]
    }

    /// Bytes that a guest may address now. A request is checked once against what this says when it is parsed: until the VHD is
    /// detached, that never becomes less.
    #[must_use]
    pub fn size(&self) -> u64 {
        // Pairs with `set_size`: who sees more bytes sees the extents that hold them.
        self.size.load(Ordering::Acquire)
    }

    /// Owner only, once the map has the extents; to fewer bytes only while the door is closed.
    pub fn set_size(&self, size: u64) {
        assert!(size <= u64::from(self.map.extents()) * self.settings.geometry.extent_size());
        self.size.store(size, Ordering::Release);
    }

    /// Notes that a completed write of this VHD needs `point` before a FLUSH may succeed.
    pub fn note_written(&self, point: SyncPoint) {
        raise(&self.needs_sync[point.disk.index()], point);
    }

    /// As [`VhdState::note_written`], of a copy of the extent that was being sealed: if that disk fails, the move may still be given up,
    /// unless the copy has taken its place meanwhile.
    pub fn note_copied(&self, extent: ExtentIndex, point: SyncPoint) {
        raise(&self.copies_need_sync[point.disk.index()], point);
        // Pairs with `arrive_at`: the owner finds what was noted, or this finds what the owner has published.
        fence(Ordering::SeqCst);
        let now = self.map.lookup(extent).replicas.on(point.disk);
        if now.is_some_and(|replica| replica.state == ReplicaState::InSync) {
            self.note_written(point);
        }
    }

    /// Owner only, once the map has a copy on `disk` in sync that a move has made: what was written to it while it was being sealed is
    /// nowhere else, maybe, so that FLUSH cannot do without.
    pub fn arrive_at(&self, disk: DiskId) {
        fence(Ordering::SeqCst);
        let noted = self.copies_need_sync[disk.index()].load(Ordering::SeqCst);
        self.needs_sync[disk.index()].fetch_max(noted, Ordering::SeqCst);
    }

    /// Owner only, when nothing of the VHD is on `disk` and nothing that saw it there is in flight: what was written there is
    /// elsewhere, too. FLUSH still waits for that disk, but if it fails or hangs, the owner may do without.
    pub fn leave_disk(&self, disk: DiskId) {
        let needs = &self.needs_sync[disk.index()];
        let needed = needs.load(Ordering::SeqCst);
        if needed > 0 {
            // In this order: who does not find it in the one any more finds it in the other.
            self.copies_need_sync[disk.index()].fetch_max(needed, Ordering::SeqCst);
            // More may have been written there meanwhile: then it stays.
            let _ = needs.compare_exchange(needed, 0, Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    /// Owner only, when the disk leaves the pool: nothing of the VHD is there, so that FLUSH need not wait for it any more.
    pub fn forget_disk(&self, disk: DiskId) {
        self.needs_sync[disk.index()].store(0, Ordering::SeqCst);
        self.copies_need_sync[disk.index()].store(0, Ordering::SeqCst);
    }

    /// Owner only: moves to `disk` have been given up, and what they needed of it up to sync `number` is not needed any more.
    pub fn excuse_copies(&self, disk: DiskId, number: SyncNumber) {
        let needed = &self.copies_need_sync[disk.index()];
        let excused = |needed| if needed <= number.0 { Some(0) } else { None };
        // What was needed meanwhile stays needed.
        let _ = needed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, excused);
    }

    /// Owner only: what was written to replicas on `disk`, which has failed, is on others that are in sync.
    pub fn excuse_replicas(&self, disk: DiskId, number: SyncNumber) {
        let excused = |needed| if needed <= number.0 { Some(0) } else { None };
        let _ = self.needs_sync[disk.index()].fetch_update(Ordering::SeqCst, Ordering::SeqCst, excused);
    }

    /// The sync of `disk` that a FLUSH beginning now must wait for, moves included.
    #[must_use]
    pub fn sync_wanted_on(&self, disk: DiskId) -> SyncNumber {
        // In the order of `leave_disk`.
        let needed = self.sync_needed_on(disk);
        needed.max(SyncNumber(self.copies_need_sync[disk.index()].load(Ordering::SeqCst)))
    }

    /// The sync of `disk` without which a FLUSH beginning now must fail; number 0 if nothing was ever written there.
    #[must_use]
    pub fn sync_needed_on(&self, disk: DiskId) -> SyncNumber {
        SyncNumber(self.needs_sync[disk.index()].load(Ordering::SeqCst))
    }

    /// The disks that a FLUSH must see synced: those that this VHD has written to since it was opened, or moves are writing to.
    #[must_use]
    pub fn disks_to_sync(&self) -> DiskSet {
        let written = |i: &usize| {
            self.needs_sync[*i].load(Ordering::SeqCst) > 0 || self.copies_need_sync[*i].load(Ordering::SeqCst) > 0
        };
        (0..DISKS_MAX).filter(written).map(|i| DiskId(u8::try_from(i).expect("fewer than 256 disks"))).collect()
    }

    /// Mover only: from now on writes in `extent` let the copier go first; `None`: it does not wait any more (wake who parked).
    pub fn set_copier_waits(&self, extent: Option<ExtentIndex>) {
        self.copier_waits.store(extent.map_or(0, |extent| u64::from(extent.0) + 1), Ordering::SeqCst);
    }

    /// Whether the copier has been waiting for a claim in `extent`.
    #[must_use]
    pub fn copier_waits(&self, extent: ExtentIndex) -> bool {
        self.copier_waits.load(Ordering::SeqCst) == u64::from(extent.0) + 1
    }

    /// Counts a table change handed to the committer. Call before the request that made it completes.
    pub fn change_handed_over(&self) {
        self.pending_changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Committer only: `count` changes are durable (or superseded by ones that are).
    pub fn changes_committed(&self, count: u64) {
        let before = self.pending_changes.fetch_sub(count, Ordering::SeqCst);
        assert!(before >= count, "more changes committed than handed over");
    }

    /// Whether a FLUSH must join a commit.
    #[must_use]
    pub fn has_pending_changes(&self) -> bool {
        self.pending_changes.load(Ordering::SeqCst) > 0
    }

    /// A reactor (bit) asks to be woken when a claim of this VHD is released. Set it, then look at the claim once more.
    pub fn wait_for_release(&self, reactor_bit: u64) {
        self.claim_waiters.fetch_or(reactor_bit, Ordering::SeqCst);
        // Pairs with the fence in `take_release_waiters`: either we see that the claim is released, or who releases it sees the
        // bit. The order of the two atomics' own operations does not give that, since those on the claim are weaker.
        fence(Ordering::SeqCst);
    }

    /// The reactors (bits) to wake; each is told once. Call after the release.
    #[must_use]
    pub fn take_release_waiters(&self) -> u64 {
        fence(Ordering::SeqCst);
        if self.claim_waiters.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        self.claim_waiters.swap(0, Ordering::SeqCst)
    }

    /// Marks the VHD as deleted: every further request fails.
    pub fn mark_deleted(&self) {
        self.deleted.store(true, Ordering::SeqCst);
    }

    /// Whether the VHD has been deleted.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::SeqCst)
    }
}

fn raise(needed: &AtomicU64, point: SyncPoint) {
    if needed.load(Ordering::SeqCst) < point.number.0 {
        needed.fetch_max(point.number.0, Ordering::SeqCst);
    }
}
