//! Packs: append-only files of records, the truth about every stored segment.
//!
//! ```text
//! offset 0       header            4,096 bytes, random key in it
//!        4096    the header again
//!        8192    record            256-byte header, stored bytes, zeros up to a multiple of 512
//!        ...     record, record, mark, record, ...
//!        last    contents record   the table of all records; its last 64 bytes find it from the end
//! ```
//!
//! `docs/format.md` has every byte. A pack is appended by one process life, then sealed with its
//! contents. Every header in it carries a BLAKE3 keyed by the pack's random key and its own offset: a
//! guest that stores a copy of a pack on its disk, even of this very pack, cannot make a record out of
//! its data. Owns the bytes; knows nothing of the index.

mod contents;
mod header;
mod reader;
mod record;
mod scan;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};

pub use contents::ContentsEntry;
pub use header::{PackHeader, PackId, PackNumber};
pub use reader::PackReader;
pub use record::{DeadSegment, RecordBuffer, RecordHeader, RecordKind, SegmentMeta, record_span};
pub use scan::{PackScan, ScanDepth};
pub use writer::{Appended, PackSync, PackWriter};

use crate::codec::CodecError;
use crate::error::ErrorKind;
use crate::segment::{SegmentKey, SegmentSize};
use crate::storage::StorageError;

/// Records begin on multiples of this, in bytes: a sector, so that a record's header is never torn.
pub const ALIGNMENT: u64 = 512;

/// What a filesystem gives back and a device may rewrite at once, in bytes. What a sync made durable ends on a multiple of
/// it, so that nothing that is appended later is written over it.
pub const BLOCK: u64 = 4096;

/// The most bytes a pack holds before it is sealed and the next begun. One record may go beyond.
pub const PACK_LIMIT: u64 = 1 << 30;
/// The most records of a pack: 80 bytes each of its table, which is held three times when the pack is sealed. A reader
/// refuses a table with more.
pub const PACK_RECORDS: usize = 1 << 18;
/// The most segments that one dead record names: 32 bytes each.
pub const DEAD_SEGMENTS: usize = 1 << 12;

/// Where the packs of a repository lie, and what bounds the lengths that are read from them: a pack may come from somebody
/// else, and no memory is taken for what it says before that is compared with something that Ekko knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackFolder {
    path: PathBuf,
    segment_size: SegmentSize,
}

impl PackFolder {
    /// Makes the folder at `path` of a repository with segments of this size.
    pub fn new(path: impl Into<PathBuf>, segment_size: SegmentSize) -> Self {
        Self { path: path.into(), segment_size }
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of a pack.
    pub fn file(&self, number: PackNumber) -> PathBuf {
        self.path.join(number.file_name())
    }

    /// Returns the most bytes that a segment has, plain or stored: one that does not shrink is stored as it is.
    pub fn longest_segment(&self) -> u32 {
        self.segment_size.bytes()
    }
}

/// Rounds up to [`ALIGNMENT`].
const fn aligned(length: u64) -> u64 {
    length.div_ceil(ALIGNMENT).saturating_mul(ALIGNMENT)
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordPlace {
    /// In which pack.
    pub pack: PackNumber,
    /// At which offset, a multiple of [`ALIGNMENT`].
    pub offset: u64,
}

impl fmt::Display for RecordPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pack {} at offset {}", self.pack, self.offset)
    }
}

/// A pack, or a record in it, that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The operating system failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The file is no pack, or both copies of its header are damaged.
    #[error("{} is not an Ekko pack, or both copies of its header are damaged", path.display())]
    NotAPack {
        /// The file.
        path: PathBuf,
    },
    /// A newer release wrote it.
    #[error("{} has pack format {found}; this release reads up to {}: use a newer ekko", path.display(), header::FORMAT)]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A record's header is not what was written, or no record is there.
    #[error("the record in {} at offset {offset} is damaged: {what}", path.display())]
    RecordDamaged {
        /// The pack.
        path: PathBuf,
        /// The record's offset.
        offset: u64,
        /// What does not fit.
        what: &'static str,
    },
    /// A segment's stored bytes do not decode.
    #[error("segment {key} in {} at offset {offset} is damaged: {source}", path.display())]
    SegmentUndecodable {
        /// The segment.
        key: SegmentKey,
        /// The pack.
        path: PathBuf,
        /// The record's offset.
        offset: u64,
        /// What the codec said.
        source: CodecError,
    },
    /// A segment decodes to other bytes than were stored.
    #[error("segment {key} in {} at offset {offset} is damaged: its BLAKE3 does not match", path.display())]
    SegmentCorrupt {
        /// The segment.
        key: SegmentKey,
        /// The pack.
        path: PathBuf,
        /// The record's offset.
        offset: u64,
    },
    /// The decoder could not be set up.
    #[error("cannot read packs: {source}")]
    Decoder {
        /// What the codec said.
        source: CodecError,
    },
    /// No randomness could be had for a pack's key.
    #[error("the operating system gives no random bytes: {message}")]
    NoRandomness {
        /// What it said.
        message: String,
    },
}

impl PackError {
    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Storage(error) => error.kind(),
            Self::NotAPack { .. } | Self::RecordDamaged { .. } | Self::SegmentCorrupt { .. } => {
                ErrorKind::Corrupt
            }
            Self::NewerFormat { .. } => ErrorKind::Unsupported,
            Self::SegmentUndecodable { source, .. } | Self::Decoder { source } => source.kind(),
            Self::NoRandomness { .. } => ErrorKind::Io,
        }
    }
}
