//! Faults on demand.

/// Kinds of operations, for counting and for choosing where a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A sync.
    Sync,
    /// A punch.
    Punch,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The operation fails with this errno.
    Error(i32),
    /// A read gives half of what was asked for. Other operations are not affected.
    Short,
    /// A sync claims success and makes nothing durable. Other operations are not affected.
    Lie,
}

/// A planned fault.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which operations are counted and hit.
    pub on: OpKind,
    /// How many of them pass before, from now on: 0 hits the next one.
    pub after: u64,
    /// Whether every later one is hit, too.
    pub repeat: bool,
    /// What goes wrong.
    pub kind: FaultKind,
}

impl Fault {
    /// The next operation of this kind, once.
    #[must_use]
    pub fn next(on: OpKind, kind: FaultKind) -> Fault {
        Fault { on, after: 0, repeat: false, kind }
    }

    /// Every operation of this kind from now on.
    #[must_use]
    pub fn always(on: OpKind, kind: FaultKind) -> Fault {
        Fault { on, after: 0, repeat: true, kind }
    }
}

/// Operations that ended (reads: began) on one disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpCounts {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Syncs.
    pub syncs: u64,
    /// Punches.
    pub punches: u64,
}

/// The faults planned for one disk.
#[derive(Debug, Default)]
pub(super) struct FaultPlan {
    planned: Vec<Fault>,
    pub(super) counts: OpCounts,
}

impl FaultPlan {
    pub(super) fn add(&mut self, fault: Fault) {
        self.planned.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.planned.clear();
    }

    /// Counts an operation and says what goes wrong with it: the first planned fault that is due.
    pub(super) fn next(&mut self, kind: OpKind) -> Option<FaultKind> {
        *match kind {
            OpKind::Read => &mut self.counts.reads,
            OpKind::Write => &mut self.counts.writes,
            OpKind::Sync => &mut self.counts.syncs,
            OpKind::Punch => &mut self.counts.punches,
        } += 1;
        let mut hit = None;
        self.planned.retain_mut(|fault| {
            if fault.on != kind {
                return true;
            }
            if fault.after > 0 {
                fault.after -= 1;
                return true;
            }
            if hit.is_some() {
                return true;
            }
            hit = Some(fault.kind);
            fault.repeat
        });
        hit
    }
}
