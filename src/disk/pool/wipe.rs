//! Giving a disk back.

use std::io;
use std::path::{Path, PathBuf};

use super::create::clear_region_head;
use crate::disk::BlockDev;
use crate::disk::label::Label;
use crate::disk::label::copies::{self, ReadError};

/// Why a disk is not wiped.
#[derive(Debug, thiserror::Error)]
pub enum WipeError {
    /// The disk is none of ours.
    #[error("{} carries no label of spanblk: it is left alone", path.display())]
    NotOurs {
        /// The disk.
        path: PathBuf,
    },
    /// The label cannot be read.
    #[error("{}: {source}", path.display())]
    Label {
        /// The disk.
        path: PathBuf,
        /// What is wrong with it.
        source: ReadError,
    },
    /// The disk cannot be written.
    #[error("cannot wipe {}: {source}", path.display())]
    Io {
        /// The disk.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// The label that [`wipe`] would wipe; nothing is changed.
///
/// # Errors
/// The disk is none of ours, or its label cannot be read.
pub fn wipeable<D: BlockDev + ?Sized>(dev: &D, path: &Path) -> Result<Label, WipeError> {
    match copies::read(dev) {
        Ok(read) => Ok(read.label),
        Err(ReadError::Absent) => Err(WipeError::NotOurs { path: path.to_owned() }),
        Err(source) => Err(WipeError::Label { path: path.to_owned(), source }),
    }
}

/// Wipes a disk's label and the start of its metadata region, so that it belongs to no pool. The data stays where it is, but
/// nothing knows what it is any more. With `force` also when the label cannot be read. Returns what the label said.
///
/// # Errors
/// See [`WipeError`]; a disk that is none of ours is never touched.
pub fn wipe<D: BlockDev + ?Sized>(dev: &D, path: &Path, force: bool) -> Result<Option<Label>, WipeError> {
    let label = match copies::read(dev) {
        Ok(read) => Some(read.label),
        Err(ReadError::Absent) => return Err(WipeError::NotOurs { path: path.to_owned() }),
        Err(_) if force => None,
        Err(source) => return Err(WipeError::Label { path: path.to_owned(), source }),
    };
    let region = label.as_ref().map_or(0, |label| label.layout.metadata_len);
    wipe_label(dev, region).map_err(|source| WipeError::Io { path: path.to_owned(), source })?;
    Ok(label)
}

/// Wipes both label copies and the start of a metadata region of `region` bytes.
pub(super) fn wipe_label<D: BlockDev + ?Sized>(dev: &D, region: u64) -> io::Result<()> {
    copies::wipe(dev).and_then(|()| clear_region_head(dev, region)).and_then(|()| dev.sync())
}
