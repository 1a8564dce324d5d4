//! What can be wrong with an index, and whether it is then still believed.

use std::io;
use std::path::PathBuf;

use crate::error::ErrorKind;
use crate::segment::SegmentKey;
use crate::storage::StorageError;

/// An index that failed, or that says what cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// sled returned an error.
    #[error("the index {} failed to {operation}: {message}", path.display())]
    Sled {
        /// The index's folder.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// What sled said.
        message: String,
        /// The kind of the I/O error, where it was one.
        io: Option<io::ErrorKind>,
    },
    /// sled panicked.
    #[error("the index {} broke when it was to {operation}", path.display())]
    Panicked {
        /// The index's folder.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
    },
    /// The index does not hold together.
    #[error("the index {} is damaged: {what}", path.display())]
    Damaged {
        /// The index's folder.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// A call into sled has not returned.
    #[error(
        "cannot use the index {}: a call has not returned for {seconds} s, in which its file has not changed; end this \
         process and run the command again: nothing is lost",
        path.display()
    )]
    Stuck {
        /// The index's folder.
        path: PathBuf,
        /// For how long it was waited.
        seconds: u64,
    },
    /// The index lacks a segment that a manifest names.
    #[error("the index {} lacks segment {key}", path.display())]
    Missing {
        /// The index's folder.
        path: PathBuf,
        /// The segment.
        key: SegmentKey,
    },
    /// Syncing the index's files failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl IndexError {
    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Sled { io, .. } if io.is_some() => ErrorKind::Io,
            Self::Stuck { .. } => ErrorKind::Io,
            Self::Sled { .. } | Self::Panicked { .. } | Self::Damaged { .. } | Self::Missing { .. } => {
                ErrorKind::Corrupt
            }
            Self::Storage(error) => error.kind(),
        }
    }

    /// Says whether the disk is full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Sled { io, .. } => {
                matches!(io, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
            }
            Self::Storage(error) => error.is_full(),
            Self::Panicked { .. } | Self::Damaged { .. } | Self::Missing { .. } | Self::Stuck { .. } => false,
        }
    }

    /// Says whether the index is to be replaced by a new one. A full disk is no reason to; and beside one that is stuck
    /// this process can open no other.
    pub fn distrusts(&self) -> bool {
        match self {
            Self::Storage(_) | Self::Stuck { .. } => false,
            other => !other.is_full(),
        }
    }
}
