//! A test double: real files that fail, or lose power, at one chosen operation.
//!
//! A test counts the operations of a job first ([`FaultPlan::Count`]), then runs it once for each of
//! them with a fault there, and looks at what is left. Real files are used, so that the job is the one
//! that ships; what a power loss would have taken is kept in a journal and undone by
//! [`FaultStorage::lose_power`].
//!
//! What it does not know: a file that is written past it (the index's own) survives as it is, and
//! removing a folder with all that is in it is one operation, done or not.

mod journal;
#[cfg(test)]
mod tests;

use std::fs::{self, File, Metadata};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::storage::fault::journal::{FileId, Journal, Undo};
use crate::storage::{Access, RootStorage, Storage, StorageError, StorageFile};

/// How the names of side folders begin; [`Storage::list`] hides them.
const ASIDE: &str = ".ekko-fault-";

/// The block that a disk writes whole or not at all.
const SECTOR: usize = 512;

/// Which fault strikes. Operations are numbered from 0: `create`, `write_at`, `sync`, `truncate`,
/// `allocate`, `punch`, `rename`, `rename_new`, `unlink`, `create_folder`, `remove_folder` and
/// `sync_folder` are one each, whether they succeed or not; reads, opens and lists are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FaultPlan {
    /// None: operations are only counted.
    #[default]
    Count,
    /// Operation `at` fails once without being done. What a file held unsynced when its sync failed is
    /// gone for good at its next sync, which succeeds: that is how the kernel does it.
    Fail {
        /// The operation.
        at: u64,
        /// The error: `StorageFull` is ENOSPC, `Other` is EIO.
        error: io::ErrorKind,
    },
    /// Operation `at` fails once with EIO; if it is a write, the first half of its bytes, rounded down
    /// to 512, is written before.
    Torn {
        /// The operation.
        at: u64,
    },
    /// Operation `at` and all after it fail with EIO without being done.
    PowerLoss {
        /// The operation.
        at: u64,
        /// What [`FaultStorage::lose_power`] leaves of the work that was not made durable.
        keep: Keep,
    },
}

/// What a power loss leaves of the work that was not made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// The first half, rounded up, of the unsynced writes of each file, and of the changes of names in
    /// all folders together, as a filesystem with a journal would leave them.
    Half,
}

/// The files of a real filesystem, with a fault at one operation. Clones share their state.
#[derive(Clone, Debug)]
pub struct FaultStorage {
    shared: Arc<Shared>,
}

impl FaultStorage {
    /// Makes a storage whose side folder is in `root`: an existing folder on the filesystem of all files
    /// to come, best the one above the repository. The side folder goes when the storage is dropped.
    pub fn new(root: &Path, plan: FaultPlan) -> Result<Self, StorageError> {
        let aside = tempfile::Builder::new().prefix(ASIDE).tempdir_in(root);
        let aside = aside.map_err(|source| StorageError::new("create folder", root, source))?;
        let state = State { plan, ..State::default() };
        let files = RootStorage::at(root);
        let shared = Shared { root: root.to_owned(), files, aside, state: Mutex::new(state) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Makes it a filesystem that has no holes.
    #[must_use]
    pub fn without_holes(self) -> Self {
        self.shared.state().without_holes = true;
        self
    }

    /// Makes every read fail with EIO that touches these bytes of this file, until it is told others or none.
    pub fn set_unreadable(&self, place: Option<(&Path, Range<u64>)>) {
        self.shared.state().unreadable = place.map(|(path, bytes)| (path.to_owned(), bytes));
    }

    /// Returns how many operations there were so far.
    pub fn operations(&self) -> u64 {
        self.shared.state().log.len() as u64
    }

    /// Returns how many reads there were so far; they are no operations.
    pub fn reads(&self) -> u64 {
        self.shared.state().reads
    }

    /// Returns how often a folder was listed so far; that is no operation.
    pub fn lists(&self) -> u64 {
        self.shared.state().lists
    }

    /// Returns a line for every operation so far, in order.
    pub fn log(&self) -> Vec<String> {
        self.shared.state().log.clone()
    }

    /// Turns the power off and undoes in the real files what a crash could take: unsynced writes, and
    /// changes of names in folders that were not synced. Every operation after it fails; open the files
    /// with another storage. Under a plan other than [`FaultPlan::PowerLoss`] nothing unsynced is kept.
    ///
    /// # Errors
    ///
    /// The files could not be put back: the test itself is broken, for instance because somebody else
    /// changed them.
    pub fn lose_power(&self) -> Result<(), StorageError> {
        let mut state = self.shared.state();
        state.off = true;
        let half = matches!(state.plan, FaultPlan::PowerLoss { keep: Keep::Half, .. });
        let undone = state.journal.undo(half);
        undone.map_err(|source| StorageError::new("undo the changes below", &self.shared.root, source))
    }

    fn file(
        &self,
        inner: Box<dyn StorageFile>,
        writable: bool,
    ) -> Result<Box<dyn StorageFile>, StorageError> {
        let opened = File::options().read(true).write(writable).open(inner.path());
        let opened = opened.and_then(|file| Ok((FileId::of(&file.metadata()?), Arc::new(file))));
        let (id, handle) = opened.map_err(|source| StorageError::new("open", inner.path(), source))?;
        Ok(Box::new(FaultFile { shared: Arc::clone(&self.shared), inner, handle, id, writable }))
    }
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    files: RootStorage,
    /// Holds hard links to files, and whole folders, that were removed and may have to come back.
    aside: tempfile::TempDir,
    state: Mutex<State>,
}

impl Shared {
    /// Held over each whole operation, so that the journal has the order in which things happened.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Links a file aside, if there is one.
    fn keep(&self, state: &mut State, path: &Path) -> Result<Option<PathBuf>, StorageError> {
        let kept = self.place_aside(state);
        match fs::hard_link(path, &kept) {
            Ok(()) => Ok(Some(kept)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StorageError::new("keep aside", path, source)),
        }
    }

    fn place_aside(&self, state: &mut State) -> PathBuf {
        state.asides += 1;
        self.aside.path().join(state.asides.to_string())
    }
}

#[derive(Debug, Default)]
struct State {
    plan: FaultPlan,
    off: bool,
    log: Vec<String>,
    reads: u64,
    lists: u64,
    journal: Journal,
    asides: u64,
    without_holes: bool,
    unreadable: Option<(PathBuf, Range<u64>)>,
}

/// What becomes of an operation.
enum Turn {
    Done,
    Torn(StorageError),
    Refused(StorageError),
}

impl State {
    /// Counts an operation and decides what becomes of it.
    fn turn(&mut self, operation: &'static str, path: &Path, details: &str) -> Turn {
        let number = self.log.len() as u64;
        let strikes = match self.plan {
            FaultPlan::Count => false,
            FaultPlan::Fail { at, .. } | FaultPlan::Torn { at } => at == number,
            FaultPlan::PowerLoss { at, .. } => at <= number,
        } || self.off;
        let outcome = if strikes { ": fails" } else { "" };
        self.log.push(format!("{number}: {operation} {}{details}{outcome}", path.display()));
        let failed = |source| StorageError::new(operation, path, source);
        match self.plan {
            _ if !strikes => Turn::Done,
            FaultPlan::Fail { error, .. } if !self.off => Turn::Refused(failed(match error {
                io::ErrorKind::StorageFull => Errno::NOSPC.into(),
                io::ErrorKind::Other => Errno::IO.into(),
                other => other.into(),
            })),
            FaultPlan::Torn { .. } if !self.off => Turn::Torn(failed(Errno::IO.into())),
            _ => Turn::Refused(failed(Errno::IO.into())),
        }
    }

    /// Counts an operation that is done whole or not at all.
    fn start(&mut self, operation: &'static str, path: &Path, details: &str) -> Result<(), StorageError> {
        match self.turn(operation, path, details) {
            Turn::Done => Ok(()),
            Turn::Torn(error) | Turn::Refused(error) => Err(error),
        }
    }
}

impl Storage for FaultStorage {
    fn create(&self, path: &Path) -> Result<Box<dyn StorageFile>, StorageError> {
        let mut state = self.shared.state();
        state.start("create", path, "")?;
        let file = self.shared.files.create(path)?;
        state.journal.name(path, Undo::Create(path.to_owned()));
        self.file(file, true)
    }

    fn open(&self, path: &Path) -> Result<Box<dyn StorageFile>, StorageError> {
        self.file(self.shared.files.open(path)?, true)
    }

    fn open_read(&self, path: &Path) -> Result<Box<dyn StorageFile>, StorageError> {
        self.file(self.shared.files.open_read(path)?, false)
    }

    fn handle(&self, path: &Path, access: Access) -> Result<File, StorageError> {
        self.shared.files.handle(path, access)
    }

    fn examine(&self, path: &Path) -> Result<Metadata, StorageError> {
        self.shared.files.examine(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), StorageError> {
        let mut state = self.shared.state();
        state.start("rename", from, &format!(" to {}", to.display()))?;
        let replaced = self.shared.keep(&mut state, to)?;
        self.shared.files.rename(from, to)?;
        state.journal.name(to, Undo::Rename { from: from.to_owned(), to: to.to_owned(), replaced });
        Ok(())
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<(), StorageError> {
        let mut state = self.shared.state();
        state.start("rename", from, &format!(" to the new name {}", to.display()))?;
        self.shared.files.rename_new(from, to)?;
        state.journal.name(to, Undo::Rename { from: from.to_owned(), to: to.to_owned(), replaced: None });
        Ok(())
    }

    fn unlink(&self, path: &Path) -> Result<(), StorageError> {
        let mut state = self.shared.state();
        state.start("remove", path, "")?;
        let kept = self.shared.keep(&mut state, path)?;
        self.shared.files.unlink(path)?;
        if let Some(kept) = kept {
            state.journal.name(path, Undo::Remove { path: path.to_owned(), kept });
        }
        Ok(())
    }

    fn create_folder(&self, path: &Path) -> Result<(), StorageError> {
        let mut state = self.shared.state();
        state.start("create folder", path, "")?;
        let existed = path.exists();
        self.shared.files.create_folder(path)?;
        if !existed {
            state.journal.name(path, Undo::CreateFolder(path.to_owned()));
        }
        Ok(())
    }

    fn remove_folder(&self, path: &Path) -> Result<(), StorageError> {
        let mut state = self.shared.state();
        state.start("remove folder", path, "")?;
        if !path.is_dir() {
            return self.shared.files.remove_folder(path);
        }
        let kept = self.shared.place_aside(&mut state);
        fs::rename(path, &kept).map_err(|source| StorageError::new("remove folder", path, source))?;
        state.journal.name(path, Undo::Remove { path: path.to_owned(), kept });
        Ok(())
    }

    fn sync_folder(&self, path: &Path) -> Result<(), StorageError> {
        let mut state = self.shared.state();
        state.start("sync folder", path, "")?;
        self.shared.files.sync_folder(path)?;
        let settled = state.journal.settle_folder(path);
        settled.map_err(|source| StorageError::new("sync folder", path, source))
    }

    fn gives_back(&self, folder: &Path) -> Result<bool, StorageError> {
        Ok(!self.shared.state().without_holes && self.shared.files.gives_back(folder)?)
    }

    fn check_folder(&self, path: &Path) -> Result<(), StorageError> {
        self.shared.files.check_folder(path)
    }

    fn list(&self, path: &Path) -> Result<Vec<String>, StorageError> {
        self.shared.state().lists += 1;
        let mut names = self.shared.files.list(path)?;
        names.retain(|name| !name.starts_with(ASIDE));
        Ok(names)
    }
}

#[derive(Debug)]
struct FaultFile {
    shared: Arc<Shared>,
    inner: Box<dyn StorageFile>,
    handle: Arc<File>,
    id: FileId,
    writable: bool,
}

impl FaultFile {
    /// Does an operation that changes bytes of the range given, or the size, and notes how to undo it.
    fn change(
        &self,
        state: &mut State,
        (offset, length): (u64, u64),
        act: impl FnOnce(&dyn StorageFile) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        // Noted before it is done: undoing what was not done does no harm, and a write that the real
        // disk refuses may have been done in part.
        if self.writable {
            let noted = state.journal.change(self.id, &self.handle, offset, length);
            noted.map_err(|source| StorageError::new("read", self.path(), source))?;
        }
        act(&*self.inner)
    }
}

impl StorageFile for FaultFile {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn size(&self) -> Result<u64, StorageError> {
        self.inner.size()
    }

    fn holes(&self) -> Result<Vec<Range<u64>>, StorageError> {
        self.inner.holes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), StorageError> {
        let read = offset..offset + buffer.len() as u64;
        let hits = |(path, bytes): &(PathBuf, Range<u64>)| {
            path == self.path() && bytes.start < read.end && read.start < bytes.end
        };
        let mut state = self.shared.state();
        state.reads += 1;
        let is_unreadable = state.unreadable.as_ref().is_some_and(hits);
        drop(state);
        if is_unreadable {
            return Err(StorageError::new("read", self.path(), Errno::IO.into()));
        }
        self.inner.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), StorageError> {
        let mut state = self.shared.state();
        let details = format!(" ({} bytes at {offset})", bytes.len());
        let (bytes, result) = match state.turn("write", self.path(), &details) {
            Turn::Done => (bytes, Ok(())),
            Turn::Torn(error) => {
                let half = bytes.len() / 2 / SECTOR * SECTOR;
                (bytes.get(..half).unwrap_or_default(), Err(error))
            }
            Turn::Refused(error) => return Err(error),
        };
        self.change(&mut state, (offset, bytes.len() as u64), |file| file.write_at(bytes, offset))?;
        result
    }

    fn sync(&self) -> Result<(), StorageError> {
        let mut state = self.shared.state();
        if let Err(error) = state.start("sync", self.path(), "") {
            state.journal.sync_failed(self.id);
            return Err(error);
        }
        let settled = state.journal.settle_file(self.id);
        settled.map_err(|source| StorageError::new("sync", self.path(), source))?;
        self.inner.sync()
    }

    fn truncate(&self, size: u64) -> Result<(), StorageError> {
        let mut state = self.shared.state();
        state.start("truncate", self.path(), &format!(" (to {size} bytes)"))?;
        self.change(&mut state, (size, u64::MAX), |file| file.truncate(size))
    }

    fn allocate(&self, size: u64) -> Result<(), StorageError> {
        let mut state = self.shared.state();
        state.start("allocate", self.path(), &format!(" (to {size} bytes)"))?;
        self.change(&mut state, (size, 0), |file| file.allocate(size))
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let mut state = self.shared.state();
        if state.without_holes {
            let unsupported = io::ErrorKind::Unsupported.into();
            return Err(StorageError::new("punch a hole into", self.path(), unsupported));
        }
        state.start("punch a hole into", self.path(), &format!(" ({length} bytes at {offset})"))?;
        self.change(&mut state, (offset, length), |file| file.punch(offset, length))
    }
}
