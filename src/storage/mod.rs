//! The one seam to files.
//!
//! Every file and folder of a repository but the index's own (sled opens those itself) is opened and written
//! through [`Storage`], so that no link leads out of it ([`RootStorage`]), and so that one test double can fail, or lose
//! power, at any single operation ([`FaultStorage`]). [`OsStorage`] is for files that a person named.
//! Owns how an operation reaches the disk and what is durable after it; knows nothing of what is in
//! the files.
//!
//! # What is durable when
//! - bytes written with [`StorageFile::write_at`]: after [`StorageFile::sync`] on that file;
//! - a name made, renamed or unlinked: after [`Storage::sync_folder`] on its folder;
//! - [`replace`]: when it returns.

mod aligned;
mod behind;
mod beneath;
mod fault;
mod fields;
mod new_file;
mod os;
mod root;

use std::fmt::Debug;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use aligned::{AlignedBuffer, DIRECT};
pub use behind::WriteBehind;
pub use fault::{FaultPlan, FaultStorage, Keep};
pub use fields::{FieldReader, FieldWriter, TooShort};
pub use new_file::{NewFile, private_folder};
pub use os::OsStorage;
pub use root::RootStorage;

use crate::error::ErrorKind;

/// An operation on a file or folder that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}: {source}", path.display())]
pub struct StorageError {
    /// What was tried, as a verb: "write", "sync", "rename".
    pub operation: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// What the operating system said.
    pub source: io::Error,
}

impl StorageError {
    /// Makes an error of an operation on a path.
    pub fn new(operation: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self { operation, path: path.into(), source }
    }

    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self.source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists | io::ErrorKind::TooManyLinks => ErrorKind::Invalid,
            // What is there is not what Ekko puts there.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => ErrorKind::Corrupt,
            _ => ErrorKind::Io,
        }
    }

    /// Says whether the path does not exist.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Says whether the filesystem cannot do this at all.
    pub fn is_unsupported(&self) -> bool {
        self.source.kind() == io::ErrorKind::Unsupported
    }

    /// Says whether a file was not opened for writing because it has several names (hard links).
    pub fn has_several_names(&self) -> bool {
        self.source.kind() == io::ErrorKind::TooManyLinks
    }

    /// Says whether the disk, or a quota on it, is full.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// What a [handle](Storage::handle) is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading a file that exists.
    Read,
    /// Reading and writing a file that exists.
    Write,
    /// Reading and writing a file that must not exist.
    Create,
    /// Reading and writing a file that is created if it is missing; what is in it stays.
    OpenOrCreate,
}

/// The files and folders of one repository.
pub trait Storage: Send + Sync + Debug {
    /// Creates a file that must not exist, for reading and writing.
    fn create(&self, path: &Path) -> Result<Box<dyn StorageFile>, StorageError>;

    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> Result<Box<dyn StorageFile>, StorageError>;

    /// Opens an existing file for reading alone.
    fn open_read(&self, path: &Path) -> Result<Box<dyn StorageFile>, StorageError>;

    /// Opens a file as the system has it: to lock it, to map it, or for what need not survive a crash. A test double
    /// does not count it, and what is written to it is not undone.
    fn handle(&self, path: &Path, access: Access) -> Result<File, StorageError>;

    /// Returns what the system says of a path; of a link, what it says of the link itself.
    fn examine(&self, path: &Path) -> Result<Metadata, StorageError>;

    /// Renames a file; a file that has the new name already is replaced.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), StorageError>;

    /// Renames a file; fails if the new name is taken.
    fn rename_new(&self, from: &Path, to: &Path) -> Result<(), StorageError>;

    /// Removes a file.
    fn unlink(&self, path: &Path) -> Result<(), StorageError>;

    /// Creates a folder; one that exists already is left as it is.
    fn create_folder(&self, path: &Path) -> Result<(), StorageError>;

    /// Removes a folder and all that is in it.
    fn remove_folder(&self, path: &Path) -> Result<(), StorageError>;

    /// Makes the names in a folder durable.
    fn sync_folder(&self, path: &Path) -> Result<(), StorageError>;

    /// Says whether punching a hole into a file in a folder gives its space back to others.
    fn gives_back(&self, folder: &Path) -> Result<bool, StorageError>;

    /// Makes sure that a folder is there and may be listed. Lists nothing.
    fn check_folder(&self, path: &Path) -> Result<(), StorageError>;

    /// Returns the names in a folder, sorted. Names that are not Unicode are left out: none is ours.
    fn list(&self, path: &Path) -> Result<Vec<String>, StorageError>;
}

/// One open file.
pub trait StorageFile: Send + Sync + Debug {
    /// Returns the path it was opened by.
    fn path(&self) -> &Path;

    /// Returns its length in bytes.
    fn size(&self) -> Result<u64, StorageError>;

    /// Returns its holes in order, where the filesystem tells; none where it does not.
    fn holes(&self) -> Result<Vec<Range<u64>>, StorageError>;

    /// Fills `buffer` from `offset`; a file that ends before is an error.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), StorageError>;

    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), StorageError>;

    /// Writes as [`Self::write_at`] does, and past the page cache where the filesystem can and the memory, the offset and the
    /// length are multiples of [`DIRECT`]: what others have in it stays there, and nothing is left to be written back. It is
    /// no more durable than what was written otherwise.
    fn write_direct_at(&self, bytes: &[u8], offset: u64) -> Result<(), StorageError> {
        self.write_at(bytes, offset)
    }

    /// Makes what was written durable. After a failure nothing that was written since the last
    /// success may be believed, whatever a later call says.
    fn sync(&self) -> Result<(), StorageError>;

    /// Cuts or extends the file.
    fn truncate(&self, size: u64) -> Result<(), StorageError>;

    /// Makes sure that the first `size` bytes have blocks on the disk.
    fn allocate(&self, size: u64) -> Result<(), StorageError>;

    /// Gives the blocks of a range back; it then reads as zeros.
    fn punch(&self, offset: u64, length: u64) -> Result<(), StorageError>;
}

/// How many bytes of a file may be holes, whatever the rest of it is.
const HOLES_ALLOWED: u64 = 16 << 20;

/// Makes sure that a file which Ekko writes from its beginning to its end does not consist of holes: its length bounds the
/// memory and the time that it takes, and a few bytes on a disk can have any length.
///
/// # Errors
/// More of it are holes than bytes.
pub fn check_holes(file: &dyn StorageFile) -> Result<(), StorageError> {
    let size = file.size()?;
    if size <= HOLES_ALLOWED {
        return Ok(());
    }
    compare_holes(&file.holes()?, size, file.path())
}

/// Does the same with a file that is about to be mapped.
///
/// # Errors
/// More of it are holes than bytes.
pub fn check_holes_of(file: &File, size: u64, path: &Path) -> Result<(), StorageError> {
    if size <= HOLES_ALLOWED { Ok(()) } else { compare_holes(&os::holes(file, path)?, size, path) }
}

fn compare_holes(holes: &[Range<u64>], size: u64, path: &Path) -> Result<(), StorageError> {
    let holes: u64 = holes.iter().map(|hole| hole.end - hole.start).sum();
    if holes <= HOLES_ALLOWED || holes <= size / 2 {
        return Ok(());
    }
    let what = format!("{holes} of its {size} bytes are holes: Ekko did not write it");
    Err(StorageError::new("read", path, io::Error::new(io::ErrorKind::InvalidData, what)))
}

/// Reads a whole small file; one longer than `limit` is refused before it is read.
pub fn read_small(storage: &dyn Storage, path: &Path, limit: u64) -> Result<Vec<u8>, StorageError> {
    let file = storage.open_read(path)?;
    let size = file.size()?;
    let too_large = || {
        let why = format!("it has {size} bytes, and {limit} is the most it may have");
        StorageError::new("read", path, io::Error::new(io::ErrorKind::InvalidData, why))
    };
    if size > limit {
        return Err(too_large());
    }
    check_holes(file.as_ref())?;
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| too_large())?];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// The ending of a file that is not yet what its name says; recovery removes what a crash leaves.
pub const TEMPORARY: &str = "tmp";

/// Replaces the content of `path` by `bytes`: after a crash it holds the old or the new, whole. When it
/// returns, the new content is durable.
pub fn replace(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    let temporary = path.with_added_extension(TEMPORARY);
    match storage.unlink(&temporary) {
        Err(error) if !error.is_not_found() => return Err(error),
        _ => {}
    }
    let file = storage.create(&temporary)?;
    file.write_at(bytes, 0)?;
    file.sync()?;
    drop(file);
    storage.rename(&temporary, path)?;
    storage.sync_folder(path.parent().unwrap_or(Path::new(".")))
}
