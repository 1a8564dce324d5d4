//! The way to the original Ekko and back: its manifests, and its flat segment files.
//!
//! An export writes a backup's manifest in one of the original's formats and, if it is asked to, each segment
//! as the original's local storage has it: `DIR/UUID/INCREMENTAL/SEGMENT`, a zlib stream. An import takes both
//! in again. Owns the flat files and the order of the steps; the formats themselves are `manifest::foreign`'s.

mod codecs;
mod export;
mod flat;
mod import;

use std::io;
use std::path::PathBuf;

pub use export::{ExportOptions, ExportSummary, ForeignFormat, export_backup, export_file};
pub use import::{ImportOptions, ImportStats, ImportSummary, import_backup};

use crate::backup::BackupError;
use crate::codec::CodecError;
use crate::error::ErrorKind;
use crate::manifest::ManifestError;
use crate::repository::{JobError, RepositoryError};
use crate::restore::RestoreError;
use crate::segment::{SegmentHash, SegmentIndex};
use crate::store::StoreError;

/// An export or an import that was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A segment could not be stored.
    #[error(transparent)]
    Backup(BackupError),
    /// The segments could not be fetched.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// An operation on a segment file failed.
    #[error("cannot {operation} segment file {}: {source}", path.display())]
    SegmentFile {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A segment file does not hold the segment that the manifest names.
    #[error("segment {index} ({hash}) is not what {} holds: {what}", path.display())]
    SegmentMismatch {
        /// The segment's place.
        index: SegmentIndex,
        /// The SHA-1 that the manifest names.
        hash: SegmentHash,
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// A segment is nowhere.
    #[error("segment {index} ({hash}) is not stored in the repository{}", file.as_ref().map_or_else(
        || ": import it with --segments".to_owned(),
        |path| format!(", and there is no {}", path.display())
    ))]
    SegmentMissing {
        /// The segment's place.
        index: SegmentIndex,
        /// The SHA-1 that the manifest names.
        hash: SegmentHash,
        /// Where its file would be.
        file: Option<PathBuf>,
    },
    /// Several different segments have the SHA-1 that the manifest names.
    #[error(
        "segment {index} cannot be told: {twins} different segments with the SHA-1 {hash} are stored; import it with --segments"
    )]
    Ambiguous {
        /// The segment's place.
        index: SegmentIndex,
        /// The SHA-1.
        hash: SegmentHash,
        /// How many segments there are.
        twins: usize,
    },
}

impl From<BackupError> for ExchangeError {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Repository(error) => Self::Repository(error),
            other => Self::Backup(other),
        }
    }
}

impl From<ManifestError> for ExchangeError {
    fn from(error: ManifestError) -> Self {
        Self::Repository(error.into())
    }
}

impl From<StoreError> for ExchangeError {
    fn from(error: StoreError) -> Self {
        Self::Repository(error.into())
    }
}

impl From<CodecError> for ExchangeError {
    fn from(error: CodecError) -> Self {
        Self::Backup(error.into())
    }
}

impl JobError for ExchangeError {
    fn repository(&self) -> Option<&RepositoryError> {
        match self {
            Self::Repository(error) => Some(error),
            _ => None,
        }
    }
}

impl ExchangeError {
    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Repository(error) => error.kind(),
            Self::Backup(error) => error.kind(),
            Self::Restore(error) => error.kind(),
            Self::SegmentFile { .. } => ErrorKind::Io,
            Self::SegmentMismatch { .. } => ErrorKind::Corrupt,
            Self::SegmentMissing { .. } => ErrorKind::NotFound,
            Self::Ambiguous { .. } => ErrorKind::Invalid,
        }
    }
}
