//! Images: disks as they are read.
//!
//! Owns how a source of any format is opened, where in it data lies, and how its bytes are read; and
//! what can be found out about who else uses it ([`Lookout`]). Must not know what becomes of the
//! bytes: nothing of segments, of the store or of manifests.

mod bad_sectors;
mod cbt;
mod change;
mod in_use;
mod lookalike;
mod lookout;
mod nbd;
mod open;
mod qcow2;
mod raw;
mod served;

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};

pub use bad_sectors::{UnreadableRanges, is_bad_place};
pub use cbt::{ChangeList, ListError, ListKind, RangeState};
pub use change::SourceChange;
pub use in_use::{DiskUse, target_use};
pub use lookalike::LookAlike;
pub use lookout::Lookout;
pub use nbd::{NbdError, NbdTarget, NbdTask, is_nbd};
pub use open::{Format, ImageOptions, OpenImage, is_remote, open_image};
pub use raw::{RawImage, Reading};
pub use served::Qcow2Target;

use open::probe;

use crate::error::ErrorKind;

/// A disk that can be read at any place, by several threads at once.
pub trait Image: Send + Sync + Debug {
    /// Returns the path it was opened by.
    fn path(&self) -> &Path;

    /// Returns its size in bytes, as it was when it was opened.
    fn size(&self) -> u64;

    /// Returns the next extent that holds data at or after `from`; `None` when there is only hole up to
    /// the end.
    ///
    /// The extent is never empty, begins at or after `from` and ends within [`Image::size`]. What lies
    /// outside all extents reads as zeros; the bytes inside one may be zeros too.
    fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError>;

    /// Fills `buffer` with the bytes from `offset` on. A disk that ends before is an error.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError>;

    /// Says, after all was read, whether the disk is still as large as it was.
    ///
    /// # Errors
    ///
    /// [`ImageError::Shrank`] if it has become smaller: what was read past its new end is not to be
    /// believed. One that grew is no error: what was read is the disk as it was opened.
    fn verify_unchanged(&self) -> Result<(), ImageError>;

    /// Returns about how many bytes of data it has, if that can be told without looking at all of it.
    fn allocated(&self) -> Option<u64> {
        None
    }

    /// Returns how many bytes the source can fail to read by themselves, at least: no smaller piece is tried.
    fn sector_bytes(&self) -> usize {
        512
    }

    /// Returns how the source has changed since it was opened, if that can be seen: then what was read mixes several moments.
    ///
    /// # Errors
    ///
    /// If the source cannot be looked at.
    fn change(&self) -> Result<Option<SourceChange>, ImageError> {
        Ok(None)
    }
}

/// A range of bytes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The first byte.
    pub offset: u64,
    /// How many bytes there are.
    pub length: u64,
}

/// A disk that could not be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// There is nothing at the path.
    #[error("cannot open image {}: there is no such file or device; check the path", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// The path names something that has no bytes to read at chosen places.
    #[error("cannot read image {}: it is {what}; name a regular file or a block device", path.display())]
    NotAnImage {
        /// The path.
        path: PathBuf,
        /// What it is, with its article: "a folder".
        what: &'static str,
    },
    /// The source is there but cannot be opened or examined.
    #[error("cannot open image {}: {source}; check that this user may read it", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The filesystem cannot read past the page cache.
    #[error("cannot read {} past the page cache: {source}; leave --direct out", path.display())]
    Direct {
        /// The path.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The search for the next data failed.
    #[error("cannot find the data in image {} from byte {offset} on: {source}", path.display())]
    Seek {
        /// The path.
        path: PathBuf,
        /// The byte from which data was looked for.
        offset: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// A read failed.
    #[error(
        "cannot read image {} at byte {offset}: {source}; check the health of the disk it is on",
        path.display()
    )]
    Read {
        /// The path.
        path: PathBuf,
        /// The byte at which the read failed.
        offset: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// A read ended too early, though the source is as large as it was.
    #[error("image {} ends at byte {offset}, where {missing} more bytes were to be read", path.display())]
    ShortRead {
        /// The path.
        path: PathBuf,
        /// The first byte that could not be read.
        offset: u64,
        /// How many bytes from there on are missing.
        missing: u64,
    },
    /// The image's own tables cannot be believed.
    #[error("image {} is damaged: {what}", path.display())]
    Damaged {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The image is of a kind that is not read.
    #[error("image {}: {what} cannot be read; qemu-nbd can export it, and ekko reads nbd://HOST/EXPORT", path.display())]
    Unsupported {
        /// The path.
        path: PathBuf,
        /// What cannot be read.
        what: String,
    },
    /// The image refers to another file, and its format was not said by anybody.
    #[error(
        "image {} looks like qcow2 and names the {what}, but a guest can write such a beginning into a raw disk, to have \
         another file read: say --format qcow2 or --format raw",
        path.display()
    )]
    Untrusted {
        /// The path.
        path: PathBuf,
        /// What it refers to.
        what: String,
    },
    /// There is no such internal snapshot.
    #[error("image {} has no internal snapshot {wanted:?}; it has: {known}", path.display())]
    NoSnapshot {
        /// The path.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// Which there are.
        known: String,
    },
    /// The source is no NBD export, and only those have dirty bitmaps.
    #[error(
        "{} has no dirty bitmaps: only an NBD export of QEMU has",
        path.display()
    )]
    NoBitmaps {
        /// The path.
        path: PathBuf,
    },
    /// What changed is not known, and the disk is not to be read in full then.
    #[error("{source}; add --cbt-fallback to read the whole disk")]
    Untracked {
        /// Why it is not known.
        source: Box<Self>,
    },
    /// A place of the source cannot be read, and nobody said that the rest is to be read all the same.
    #[error("{source}; add --skip-bad-sectors to back up the rest of the disk")]
    BadSector {
        /// What was read, and how that failed.
        source: Box<Self>,
    },
    /// A text names two internal snapshots.
    #[error(
        "cannot choose an internal snapshot of {}: {wanted:?} names {}; choose one by the other of its two names",
        path.display(),
        found.join(" and ")
    )]
    AmbiguousSnapshot {
        /// The path.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// Each that it names, with its name and its id.
        found: Vec<String>,
    },
    /// An NBD server could not be reached, or did not do what it was asked for.
    #[error("cannot {}: {source}{}", task.on(path), source.hint(*task))]
    Nbd {
        /// The URI, or the image that the server reads.
        path: PathBuf,
        /// What was asked for.
        task: NbdTask,
        /// What went wrong.
        source: NbdError,
    },
    /// The source has become smaller since it was opened.
    #[error(
        "image {} shrank from {was} to {now} bytes while it was read; stop what changes it, then try again",
        path.display()
    )]
    Shrank {
        /// The path.
        path: PathBuf,
        /// Its size in bytes when it was opened.
        was: u64,
        /// Its size in bytes now.
        now: u64,
    },
}

impl ImageError {
    fn damaged(path: &Path, what: &str) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.to_owned() }
    }

    fn unsupported(path: &Path, what: &str) -> Self {
        Self::Unsupported { path: path.to_owned(), what: what.to_owned() }
    }

    fn no_bitmaps(path: &Path) -> Self {
        Self::NoBitmaps { path: path.to_owned() }
    }

    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } | Self::NoSnapshot { .. } => ErrorKind::NotFound,
            Self::NotAnImage { .. }
            | Self::Direct { .. }
            | Self::Untrusted { .. }
            | Self::NoBitmaps { .. }
            | Self::AmbiguousSnapshot { .. } => ErrorKind::Invalid,
            Self::Nbd { source, .. } => source.kind(),
            Self::Untracked { source } | Self::BadSector { source } => source.kind(),
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Open { .. } | Self::Seek { .. } | Self::Read { .. } | Self::ShortRead { .. } => {
                ErrorKind::Io
            }
            Self::Shrank { .. } => ErrorKind::Io,
        }
    }
}
