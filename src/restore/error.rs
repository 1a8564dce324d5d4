//! Restores, and segments, that could not be.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::codec::CodecError;
use crate::error::ErrorKind;
use crate::image::{DiskUse, ImageError, is_bad_place};
use crate::manifest::ManifestError;
use crate::repository::RepositoryError;
use crate::restore::cleanup::TargetFate;
use crate::segment::{SegmentIndex, SegmentKey};
use crate::storage::StorageError;
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
    /// The target lies in a repository.
    #[error(
        "cannot restore to {}: this path lies in the repository {}; choose a path outside of it",
        path.display(),
        repository.display()
    )]
    InRepository {
        /// The target.
        path: PathBuf,
        /// The repository.
        repository: PathBuf,
    },
    /// The target's name is that of another format than raw, and raw was not asked for.
    #[error(
        "cannot restore to {}: a raw disk would get the name of a {format} disk; {}",
        path.display(),
        if *is_possible {
            "add --format qcow2, or --format raw to write a raw disk nevertheless"
        } else {
            "choose another name, or add --format raw to write a raw disk nevertheless"
        }
    )]
    OtherFormat {
        /// The target.
        path: PathBuf,
        /// The format that the name says.
        format: &'static str,
        /// Whether a restore can write it.
        is_possible: bool,
    },
    /// A part of a disk is to replace a file.
    #[error(
        "cannot restore to {}: it exists, and a part of a disk is written to a new file or to a device; name a new file",
        path.display()
    )]
    PartOverFile {
        /// The target.
        path: PathBuf,
    },
    /// The target is a symbolic link to a file that does not exist.
    #[error(
        "cannot restore to {}: it is a symbolic link to a file that does not exist; name that file instead",
        path.display()
    )]
    DanglingLink {
        /// The link.
        path: PathBuf,
    },
    /// There is nothing to be rolled back.
    #[error(
        "cannot restore to {}: there is no such file or device; check the path, or restore without --in-place and --delta",
        path.display()
    )]
    NoTarget {
        /// The target.
        path: PathBuf,
    },
    /// The folder of the target does not exist.
    #[error("cannot restore to {}: there is no folder {}; create it first", path.display(), folder.display())]
    NoFolder {
        /// The target.
        path: PathBuf,
        /// The folder.
        folder: PathBuf,
    },
    /// Only a file can have the format.
    #[error("cannot restore to {}: --format qcow2 writes a file; leave it out for a device or an export", path.display())]
    NoFileForFormat {
        /// The target.
        path: PathBuf,
    },
    /// Somebody else uses the target.
    #[error(
        "cannot restore to {}: it is {how}; {}, or add --target-in-use to overwrite it nevertheless",
        path.display(),
        how.remedy()
    )]
    TargetInUse {
        /// The target.
        path: PathBuf,
        /// Who uses it.
        how: DiskUse,
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
    /// The filesystem of the target has too little room.
    #[error(
        "cannot restore to {}: up to {} are needed there and {} are free; free space, restore elsewhere, or add --ignore-space \
         if the disk compresses or has many blocks of zeros",
        folder.display(),
        Bytes(*needed),
        Bytes(*free)
    )]
    NoRoom {
        /// The folder of the target.
        folder: PathBuf,
        /// How many bytes are free.
        free: u64,
        /// How many are needed at most.
        needed: u64,
    },
    /// The temporary file cannot be created.
    #[error(
        "cannot create {}: {source}; a restore makes a new file beside the target{}",
        partial.display(),
        if *replace { ", so allow that, or use --in-place to write into the file that is there" } else { "" }
    )]
    NoPartial {
        /// The temporary file.
        partial: PathBuf,
        /// Whether there is a file that could be written into.
        replace: bool,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another restore is writing the temporary file of the target.
    #[error("cannot restore: another restore is writing {}; wait until it has ended", partial.display())]
    PartialInUse {
        /// The temporary file.
        partial: PathBuf,
    },
    /// Something has the temporary name of the target that no restore left which was killed.
    #[error(
        "cannot restore: {} is in the way: --keep-partial kept it, or it is complete, or no restore made it; move it away, or \
         remove it",
        partial.display()
    )]
    PartialTaken {
        /// The temporary name.
        partial: PathBuf,
    },
    /// Something else has the temporary name of the target by now.
    #[error(
        "cannot restore to {}: somebody replaced the temporary file {} during the restore, and the target is as it was before; \
         restore it again, and let no other restore write to this target meanwhile",
        target.display(),
        partial.display()
    )]
    PartialReplaced {
        /// The target.
        target: PathBuf,
        /// The temporary name.
        partial: PathBuf,
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
    /// The target has old data, and no segment of the backup can be read.
    #[error(
        "cannot restore to {}: none of the {segments} segments that it needs can be read ({what}); run \"ekko check\" to see \
         what is damaged",
        path.display()
    )]
    NothingReadable {
        /// The target.
        path: PathBuf,
        /// How many segments it needs.
        segments: usize,
        /// Why the first of them cannot be read.
        what: String,
    },
    /// What the segments were given to refused one.
    #[error("{what}")]
    Sink {
        /// Why.
        what: String,
    },
    /// An export could not be opened or written to.
    #[error("{source}")]
    Export {
        /// What failed.
        source: ImageError,
    },
    /// The stream that the disk is written to took not all of it.
    #[error("{}", stream_ended(*written, *size, source))]
    Stream {
        /// How many bytes it took.
        written: u64,
        /// How many it was to take.
        size: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// An operation on the target failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Target {
        /// What was tried.
        operation: &'static str,
        /// The target.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// An operation on a name failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The restore had begun to write when it failed.
    #[error("{source}; {fate}")]
    Unfinished {
        /// What failed.
        source: Box<RestoreError>,
        /// What became of the target.
        fate: TargetFate,
    },
}

/// A number of bytes for a person.
struct Bytes(u64);

impl fmt::Display for Bytes {
    #[expect(clippy::cast_precision_loss, reason = "a person is told a rounded number")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.iter().find(|(unit, _)| self.0 >= *unit) {
            Some((unit, name)) => write!(f, "{:.1} {name}", self.0 as f64 / *unit as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

fn stream_ended(written: u64, size: u64, source: &io::Error) -> String {
    let (written, size) = (Bytes(written), Bytes(size));
    match source.kind() {
        io::ErrorKind::BrokenPipe => format!(
            "the restore to stdout is incomplete: its reader ended after {written} of {size} had been written"
        ),
        _ => format!("the restore to stdout is incomplete: cannot write after {written} of {size}: {source}"),
    }
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
            | Self::DanglingLink { .. }
            | Self::InRepository { .. }
            | Self::OtherFormat { .. }
            | Self::PartOverFile { .. }
            | Self::NoFileForFormat { .. }
            | Self::TargetTooSmall { .. }
            | Self::PartialTaken { .. }
            | Self::OutsideDisk { .. } => ErrorKind::Invalid,
            Self::NoFolder { .. } | Self::NoTarget { .. } => ErrorKind::NotFound,
            Self::TargetInUse { .. } | Self::PartialInUse { .. } | Self::PartialReplaced { .. } => {
                ErrorKind::Busy
            }
            Self::Storage(error) => error.kind(),
            Self::Unfinished { source, .. } => source.kind(),
            Self::Damaged { .. } | Self::NothingReadable { .. } => ErrorKind::Corrupt,
            Self::NoRoom { .. } | Self::Stream { .. } | Self::Sink { .. } => ErrorKind::Io,
            Self::Export { source, .. } => source.kind(),
            Self::NoPartial { source, .. } | Self::Target { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Io,
            },
        }
    }

    /// Says whether one place of the target cannot be written, and others may be.
    pub(super) fn is_unwritable_place(&self) -> bool {
        match self {
            Self::Target { source, .. } => is_bad_place(source),
            Self::Export { source } => source.is_unwritable_place(),
            _ => false,
        }
    }

    /// Says first what failed and then what became of the target.
    pub(super) fn with_fate(self, fate: TargetFate) -> Self {
        Self::Unfinished { source: Box::new(self), fate }
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
