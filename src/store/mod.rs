//! The segment store: every distinct segment once.
//!
//! Owns the packs (the truth), the index over them (derived, and believed only as far as
//! `docs/format.md` says), the thread that alone changes both, and the order in which things become
//! durable. Knows what a manifest says about segments, and nothing of where manifests lie, of names or of
//! backupsets' settings.

mod batch;
mod catalog;
mod claim;
mod distrusted;
mod entry;
mod filter;
mod gc;
mod index;
mod index_check;
mod index_error;
mod index_files;
mod index_meta;
mod index_scan;
mod index_watch;
mod names;
pub mod pack;
mod pending;
mod rebuild;
mod reclaim;
mod reconcile;
mod segments;
mod sparse;
mod writer;

use std::path::PathBuf;

pub use catalog::{Catalog, CatalogProblem, SegmentPlace};
pub use claim::{Claim, FoundFull, Named, NewSegment, StoreJob, Stored};
pub use entry::{
    Candidate, Change, Counted, CountedState, FreedPlace, Garbage, PackEntry, SegmentEntry, Task,
};
pub use gc::{CandidateList, Collector};
pub use index::{Index, IndexWork, IndexWriter, in_guarded_call};
pub use index_check::check_index_folder;
pub use index_error::IndexError;
pub use index_files::digest;
pub use index_watch::when_index_is_stuck;
pub use pending::Horizon;
pub use rebuild::{Counts, IndexPart, rebuild_index};
pub use reclaim::Reclaimed;
pub use reconcile::{Reconciled, reconcile_packs};
pub use segments::{SegmentStore, StoreFolders};
pub use writer::Closed;

use crate::codec::CodecError;
use crate::error::ErrorKind;
use crate::segment::SegmentKey;
use crate::storage::StorageError;
use crate::store::pack::PackError;

/// A store that cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The operating system failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A pack failed.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A codec failed.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The index failed, or says what cannot be.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A write or sync failed before; nothing is written until the repository is opened again.
    #[error("the repository stopped writing after a failure: {reason}")]
    Poisoned {
        /// The first failure.
        reason: String,
        /// Whether it was that the disk is full.
        full: bool,
        /// Whether it was the index, which is then to be replaced.
        index: bool,
    },
    /// A new manifest names a segment that no pack holds.
    #[error("segment {key} is in no pack")]
    Lost {
        /// The segment.
        key: SegmentKey,
    },
    /// More different segments share one SHA-1 than twin numbers exist.
    #[error("segment {key}: no twin number is left for another segment with this SHA-1")]
    TooManyTwins {
        /// The last one possible.
        key: SegmentKey,
    },
    /// A folder of packs that cannot be listed or numbered.
    #[error("{} holds pack number {number}, the last one possible", path.display())]
    NoPackNumber {
        /// The folder.
        path: PathBuf,
        /// The number.
        number: u64,
    },
}

impl StoreError {
    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Storage(error) => error.kind(),
            Self::Pack(error) => error.kind(),
            Self::Codec(error) => error.kind(),
            Self::Index(error) => error.kind(),
            Self::Poisoned { .. } | Self::NoPackNumber { .. } => ErrorKind::Io,
            Self::Lost { .. } => ErrorKind::Corrupt,
            Self::TooManyTwins { .. } => ErrorKind::Unsupported,
        }
    }

    /// Says whether the index is not to be believed any longer: to be answered with a new one.
    pub fn distrusts_index(&self) -> bool {
        match self {
            Self::Index(error) => error.distrusts(),
            Self::Poisoned { index, .. } => *index,
            _ => false,
        }
    }

    /// Says whether the disk is full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Storage(error) | Self::Pack(PackError::Storage(error)) => error.is_full(),
            Self::Index(error) => error.is_full(),
            Self::Poisoned { full, .. } => *full,
            _ => false,
        }
    }
}
