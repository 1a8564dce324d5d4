//! Restores, and segments, that could not be.

use std::io;
use std::path::PathBuf;

use crate::codec::CodecError;
use crate::error::ErrorKind;
use crate::image::ImageError;
use crate::manifest::ManifestError;
use crate::repository::RepositoryError;
use crate::segment::{SegmentIndex, SegmentKey};
use crate::store::StoreError;
use crate::store::pack::PackError;

/// A restore that could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A codec could not be set up.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The target exists.
    #[error("{} exists: use --force to overwrite it", path.display())]
    TargetExists {
        /// The target.
        path: PathBuf,
    },
    /// The target is neither a file nor a block device.
    #[error("{} is neither a file nor a block device: a disk cannot be restored to it", path.display())]
    NotATarget {
        /// The target.
        path: PathBuf,
    },
    /// The target is mounted or belongs to another device.
    #[error("{} is in use (mounted, or part of another device): nothing was written", path.display())]
    TargetInUse {
        /// The target.
        path: PathBuf,
    },
    /// The target device is smaller than the disk.
    #[error("{} has {size} bytes, and the disk has {needed}: nothing was written", path.display())]
    TargetTooSmall {
        /// The target.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The disk's size in bytes.
        needed: u64,
    },
    /// The disk does not have the bytes that were asked for.
    #[error("the disk has {size} bytes: there are none from {start} to {end}")]
    OutsideDisk {
        /// The first byte.
        start: u64,
        /// The byte behind the last one.
        end: u64,
        /// The disk's size in bytes.
        size: u64,
    },
    /// The service that has the backup failed, or refused.
    #[error("{source}")]
    Elsewhere {
        /// The kind of failure.
        kind: ErrorKind,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A segment cannot be had, and nothing is to be written in its place.
    #[error("segment {index} cannot be restored: {what}")]
    Damaged {
        /// Its place.
        index: SegmentIndex,
        /// Why.
        what: String,
    },
    /// What the segments were given to refused one.
    #[error("{what}")]
    Sink {
        /// Why.
        what: String,
    },
    /// An export could not be opened or written to.
    #[error("{source}; {}", if *opened { "the target is incomplete" } else { "nothing was written" })]
    Export {
        /// What failed.
        source: ImageError,
        /// Whether the export was open by then.
        opened: bool,
    },
    /// An operation on the target failed.
    #[error("cannot {operation} {}: {source}; the target is incomplete", path.display())]
    Target {
        /// What was tried.
        operation: &'static str,
        /// The target.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl From<StoreError> for RestoreError {
    fn from(error: StoreError) -> Self {
        Self::Repository(error.into())
    }
}

impl From<ManifestError> for RestoreError {
    fn from(error: ManifestError) -> Self {
        Self::Repository(error.into())
    }
}

impl RestoreError {
    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Repository(error) => error.kind(),
            Self::Codec(error) => error.kind(),
            Self::Elsewhere { kind, .. } => *kind,
            Self::TargetExists { .. }
            | Self::NotATarget { .. }
            | Self::TargetTooSmall { .. }
            | Self::OutsideDisk { .. } => ErrorKind::Invalid,
            Self::TargetInUse { .. } => ErrorKind::Busy,
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Sink { .. } => ErrorKind::Io,
            Self::Export { source, .. } => source.kind(),
            Self::Target { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Io,
            },
        }
    }

    /// Says whether whoever reads the stream has gone away.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Target { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Why one segment could not be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// No pack holds it.
    #[error("segment {key} is in no pack that can be read")]
    Missing {
        /// The segment.
        key: SegmentKey,
    },
    /// It cannot be read, or is not what was stored.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// It has another length than its place.
    #[error("segment {key} has {found} bytes where {expected} belong")]
    Length {
        /// The segment.
        key: SegmentKey,
        /// Its length in bytes.
        found: u64,
        /// The length of its place in bytes.
        expected: u32,
    },
}
