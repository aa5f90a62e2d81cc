//! Writing the labels of many disks.
//!
//! A label write may meet a disk that hangs. So each is done by a thread of its own, and a disk that does not answer in
//! time counts as failed; its label is not touched again before the pool is opened anew, because the write that hangs may
//! still come through.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use super::OpenDisk;
use crate::base::clock;
use crate::base::ids::DiskId;
use crate::disk::BlockDev;
use crate::disk::label::Label;
use crate::disk::label::copies::{self, WriteError};

/// How long the label writes of one round may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 20 });

/// A disk whose label could not be written.
#[derive(Debug, thiserror::Error)]
#[error("disk '{name}': {reason}")]
pub struct FailedWrite {
    /// The disk.
    pub disk: DiskId,
    /// Its name.
    pub name: String,
    /// Why.
    #[source]
    pub reason: LabelFailure,
}

/// Why a label could not be written.
#[derive(Debug, thiserror::Error)]
pub enum LabelFailure {
    /// The disk said no.
    #[error(transparent)]
    Write(WriteError),
    /// The disk does not answer.
    #[error("writing the label takes too long")]
    Hangs,
    /// An earlier write failed or hangs.
    #[error("an earlier write of its label failed; it is tried again when the pool is opened anew")]
    FailedBefore,
}

/// That the label of a disk is not tried again.
pub(super) fn failed_before<D>(disk: &OpenDisk<D>) -> FailedWrite {
    FailedWrite { disk: disk.id, name: disk.name.clone(), reason: LabelFailure::FailedBefore }
}

/// Writes changed labels and tells which disks do not have theirs. A disk whose label write failed is not asked again.
pub(super) fn write_labels<D: BlockDev + 'static>(
    disks: &mut [OpenDisk<D>],
    in_order: bool,
    change: impl Fn(&mut Label),
) -> Vec<FailedWrite> {
    let (tell, told) = mpsc::channel();
    let mut asked = 0;
    let mut results: Vec<Option<Result<Label, LabelFailure>>> = Vec::new();
    for (i, disk) in disks.iter().enumerate() {
        results.push(disk.label_failed.then_some(Err(LabelFailure::FailedBefore)));
        if disk.label_failed {
            continue;
        }
        let mut label = disk.label.clone();
        change(&mut label);
        let (dev, tell) = (Arc::clone(&disk.dev), tell.clone());
        let write = move || {
            let result = copies::write(&*dev, &mut label).map(|()| label).map_err(LabelFailure::Write);
            // Nobody listens any more once the time is up.
            drop(tell.send((i, result)));
        };
        asked += 1;
        if in_order {
            write();
        } else {
            thread::spawn(write);
        }
    }
    let started = clock::now();
    for _ in 0..asked {
        let left = WRITE_TIMEOUT.saturating_sub(Duration::from_nanos(clock::now().since(started)));
        let Ok((i, result)) = told.recv_timeout(left) else { break };
        results[i] = Some(result);
    }
    let mut failed = Vec::new();
    for (disk, result) in disks.iter_mut().zip(results) {
        match result.unwrap_or(Err(LabelFailure::Hangs)) {
            Ok(label) => disk.label = label,
            Err(reason) => {
                disk.label_failed = true;
                failed.push(FailedWrite { disk: disk.id, name: disk.name.clone(), reason });
            }
        }
    }
    failed
}
