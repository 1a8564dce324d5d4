//! Checking: the whole repository, a backup against a disk, and whether every disk has a fresh, whole backup.
//!
//! Reads manifests and the packs' tables of contents; needs the index and the lock only where it compares or
//! repairs the index. Owns what a check reads and reports; how damage leaves the packs is the repository's.

mod copies;
mod data;
mod findings;
mod memory;
mod recount;
mod status;
mod verify;
mod whole;

pub use crate::repository::Findings;
pub use findings::damaged_backups;
pub use status::{NameStatus, StatusOptions, StatusProblem, status};
pub use verify::{FingerprintSupply, VerifyOptions, VerifySummary, verify, verify_from};
pub use whole::{CheckOptions, CheckSummary, DamagedSegmentReport, ReadData, check, check_with_index};

use crate::error::ErrorKind;
use crate::image::ImageError;
use crate::manifest::{ManifestError, ManifestReader};
use crate::progress::{Notice, Progress};
use crate::repository::{JobError, RepositoryError};
use crate::segment::{SegmentIndex, SegmentKey};
use crate::store::{CatalogProblem, StoreError};

/// A check that could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The disk failed.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The service that has the backup failed, or refused.
    #[error("{source}")]
    Elsewhere {
        /// The kind of failure.
        kind: ErrorKind,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<StoreError> for CheckError {
    fn from(error: StoreError) -> Self {
        Self::Repository(error.into())
    }
}

impl From<ManifestError> for CheckError {
    fn from(error: ManifestError) -> Self {
        Self::Repository(error.into())
    }
}

impl CheckError {
    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Repository(error) => error.kind(),
            Self::Image(error) => error.kind(),
            Self::Elsewhere { kind, .. } => *kind,
        }
    }
}

impl JobError for CheckError {
    fn repository(&self) -> Option<&RepositoryError> {
        match self {
            Self::Repository(error) => Some(error),
            Self::Image(_) | Self::Elsewhere { .. } => None,
        }
    }
}

/// What a check found about the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckIndex {
    /// It was not compared.
    #[default]
    NotCompared,
    /// It says what packs and manifests say.
    Agrees,
    /// It says something else.
    Differs,
    /// It said something else, and is made anew.
    Replaced,
}

/// How many places are looked up in the packs' tables at once.
const WINDOW: u32 = 1 << 19;

/// The present segments of a window of a manifest, sorted by their keys.
fn wanted(manifest: &ManifestReader, first: u32) -> Vec<(SegmentKey, SegmentIndex)> {
    let mut cursor = manifest.cursor(SegmentIndex(first));
    let end = first.saturating_add(WINDOW).min(manifest.info().geometry.segments());
    let places = (first..end).map(SegmentIndex);
    let mut wanted: Vec<_> = places.filter_map(|index| Some((cursor.at(index)?.key, index))).collect();
    wanted.sort_unstable();
    wanted
}

fn tell(problems: &[CatalogProblem], progress: &dyn Progress) {
    for problem in problems {
        progress.notice(Notice::Problem { kind: problem.error.kind(), what: problem.error.to_string() });
    }
}
