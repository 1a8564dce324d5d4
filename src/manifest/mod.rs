//! Manifests: everything needed to put one backup together again.
//!
//! A manifest is a 128-byte header of our own and an rkyv archive that is mapped into memory and read
//! in place (`docs/format.md` has it byte by byte). Owns the archive, its writer and reader, the
//! exchange with the original's formats ([`foreign`]), and what
//! follows from comparing manifests: of one backupset ([`stays`]) and of any two ([`ManifestDiff`]). Knows nothing of packs, of the index
//! or of where in a repository a manifest lies.

mod archive;
mod diff;
mod flaws;
pub mod foreign;
mod generate;
mod header;
mod ids;
mod map;
mod provenance;
mod reader;
mod rename;
pub mod stays;
#[cfg(test)]
mod tests;
mod words;
mod writer;

use std::path::PathBuf;

pub use diff::{DiffCursor, Difference, ManifestDiff};
pub use flaws::{FlawMarks, Flaws, MOST_UNREADABLE, UnknownRanges, inconsistency, unreadable_ranges};
pub use generate::{GenerateOptions, generate};
pub use ids::{BackupsetId, BaseIndex, ImageName, Incremental, InvalidName};
pub use provenance::{PROVENANCE, Provenance, ReadEffort, SESSION, SourceOrigin};
pub use reader::{Cursor, ManifestReader, SegmentRef, Stretch};
pub use rename::renamed;
pub use words::{
    HostName, Inconsistency, InvalidText, Note, SourceName, SourceUse, Tag, Tags, TooManyTags, TrackingId,
};
pub use writer::{FinishedManifest, ManifestWriter};

use crate::error::ErrorKind;
use crate::segment::Geometry;
use crate::storage::StorageError;

/// The most earlier backupsets that a manifest names: what a [`BaseIndex`] can count.
pub const MOST_BASES: usize = u16::MAX as usize;

/// The most bytes that a manifest's attributes take together, keys and values, one more for each.
pub const ATTRIBUTES_LIMIT: usize = 1 << 20;

/// What a manifest says about its backup as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestInfo {
    /// The backupset it belongs to.
    pub backupset: BackupsetId,
    /// Its number in the backupset.
    pub incremental: Incremental,
    /// The name of the image.
    pub name: ImageName,
    /// The disk's size and its division into segments.
    pub geometry: Geometry,
    /// When the backup was begun.
    pub timestamp: jiff::Timestamp,
    /// Earlier backupsets that segments were first stored by; a segment's [`BaseIndex`] counts them.
    pub bases: Vec<BackupsetId>,
    /// Keys and values for what has no field of its own.
    pub attributes: Vec<(String, Vec<u8>)>,
}

impl ManifestInfo {
    /// Returns what is said under `key`.
    pub fn attribute(&self, key: &str) -> Option<&[u8]> {
        self.attributes.iter().find(|(other, _)| other == key).map(|(_, value)| value.as_slice())
    }
}

/// A manifest that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The operating system failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The file is something else.
    #[error("{} is not an Ekko manifest", path.display())]
    NotAManifest {
        /// The file.
        path: PathBuf,
    },
    /// A newer release wrote it.
    #[error("{} has manifest format {found}; this release reads up to {}: use a newer ekko", path.display(), header::FORMAT)]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Its bytes are not those that were written.
    #[error("manifest {} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// Two manifests cannot be compared.
    #[error(
        "{} has segments of {older_size} bytes and {} of {newer_size}: they cannot be compared",
        older.display(),
        newer.display()
    )]
    Incomparable {
        /// The one manifest.
        older: PathBuf,
        /// Its segment size in bytes.
        older_size: u32,
        /// The other one.
        newer: PathBuf,
        /// Its segment size in bytes.
        newer_size: u32,
    },
    /// The file is no manifest of any kind.
    #[error("{} is neither an Ekko manifest nor one of the original's (SQLite, OSDK)", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// One of the original's manifests says what makes no sense, or what no manifest of ours can say.
    #[error("cannot import {}: {what}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// A format of the original cannot say what a manifest says.
    #[error("cannot write {}: its format cannot say {what}", path.display())]
    CannotSay {
        /// The file that was to be made.
        path: PathBuf,
        /// What it cannot say.
        what: String,
    },
    /// SQLite failed.
    #[error("cannot {operation} {}: SQLite says: {source}", path.display())]
    Sqlite {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// What was to be written makes no manifest.
    #[error("cannot write manifest {}: {what}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
}

impl ManifestError {
    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Storage(error) => error.kind(),
            Self::NotAManifest { .. }
            | Self::UnknownFormat { .. }
            | Self::Incomparable { .. }
            | Self::Invalid { .. } => ErrorKind::Invalid,
            Self::NewerFormat { .. } | Self::CannotSay { .. } => ErrorKind::Unsupported,
            Self::Damaged { .. } | Self::Foreign { .. } => ErrorKind::Corrupt,
            Self::Sqlite { source, .. } => foreign::sqlite::kind(source),
        }
    }
}
