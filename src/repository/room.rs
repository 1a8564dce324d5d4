//! How much room the disk of a repository has, and the reserve: a file that is removed when the disk is full, so that a job
//! that frees space can run.

use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

use crate::repository::{Layout, Repository, RepositoryError};
use crate::storage::{Storage, StorageError};

/// The size of the reserve, in bytes.
const RESERVE: u64 = 64 << 20;

/// How often the reserve is looked for anew if another thread creates or removes it.
const RESERVE_TRIES: u32 = 100;

/// A job that frees space needs this many bytes and inodes: it writes some lists, and the index grows before it shrinks.
const LITTLE_BYTES: u64 = 16 << 20;
const LITTLE_INODES: u64 = 16;

/// A reserve that is created again leaves at least so many bytes of the disk free.
const LEFT_FREE: u64 = LITTLE_BYTES / 2;

/// The room on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DiskRoom {
    free_bytes: u64,
    /// Nothing if the filesystem has no fixed number of inodes.
    free_inodes: Option<u64>,
}

impl DiskRoom {
    /// Returns the room on the disk that holds `path`, if the disk tells.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let disk = rustix::fs::statvfs(path).ok()?;
        Some(Self {
            free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
            free_inodes: (disk.f_files > 0).then_some(disk.f_favail),
        })
    }

    /// Says whether a job that frees space may run out of it.
    fn is_little(&self) -> bool {
        self.free_bytes < LITTLE_BYTES || self.free_inodes.is_some_and(|inodes| inodes < LITTLE_INODES)
    }
}

impl fmt::Display for DiskRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.free_inodes == Some(0) {
            return write!(f, "no inodes are free");
        }
        match self.free_bytes >> 20 {
            0 => write!(f, "{} B free", self.free_bytes),
            mebibytes => write!(f, "{mebibytes} MiB free"),
        }
    }
}

impl RepositoryError {
    /// Says that the disk of a repository is full, how much room it has, and what to do.
    pub(crate) fn full(path: &Path, reason: String, found: bool) -> Self {
        let room = DiskRoom::of(path).map_or_else(|| "unknown room".to_owned(), |room| room.to_string());
        Self::Full { path: path.to_owned(), room, reason, found }
    }
}

impl Repository {
    /// Removes the reserve. A failure is logged: the job then fails for lack of room.
    pub(super) fn release_reserve(&self) {
        match self.storage.unlink(&self.layout.reserve()) {
            Err(error) if !error.is_not_found() => tracing::warn!(%error, "the reserve stays"),
            _ => {}
        }
    }

    /// Removes the reserve if there is hardly any room without it.
    pub(super) fn release_reserve_if_needed(&self) {
        if DiskRoom::of(self.layout.root()).is_some_and(|room| room.is_little()) {
            self.release_reserve();
        }
    }

    /// Creates a reserve that was removed, as large as the disk has room for. A backup needs all of it, and enlarges it if this
    /// could not.
    pub(super) fn restore_reserve(&self) {
        let path = self.layout.reserve();
        let there = match self.storage.examine(&path) {
            Ok(reserve) => reserve.len(),
            Err(error) if error.is_not_found() => 0,
            Err(_) => return,
        };
        let Some(room) = DiskRoom::of(self.layout.root()).filter(|room| !room.is_little()) else { return };
        let wanted = RESERVE.min(there.saturating_add(room.free_bytes).saturating_sub(LEFT_FREE));
        if there >= RESERVE || wanted <= there || wanted < LITTLE_BYTES {
            return;
        }
        let file = if there == 0 { self.storage.create(&path) } else { self.storage.open(&path) };
        if let Err(error) = file.and_then(|file| file.allocate(wanted)) {
            tracing::info!(%error, "the reserve could not be created again");
        }
    }
}

/// Makes sure that the reserve is there. Several threads may do so at once: whoever finds that another has just created the
/// file makes sure of its size, which changes nothing if the other has, too.
///
/// # Errors
/// The disk has no room for it: a backup is then not begun.
pub(super) fn refill_reserve(storage: &dyn Storage, layout: &Layout) -> Result<(), StorageError> {
    let path = layout.reserve();
    let mut tries = 0;
    let file = loop {
        match storage.open(&path) {
            Ok(file) if file.size()? >= RESERVE => return Ok(()),
            Ok(file) => break file,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        match storage.create(&path) {
            Ok(file) => break file,
            // Another thread was faster; it may give the reserve up at once, if the disk is full.
            Err(error) if error.source.kind() == ErrorKind::AlreadyExists && tries < RESERVE_TRIES => {
                tries += 1;
            }
            Err(error) => return Err(error),
        }
    };
    file.allocate(RESERVE).or_else(|error| {
        if error.source.kind() == ErrorKind::Unsupported {
            // A filesystem that cannot allocate ahead gets a reserve in name only rather than no repository.
            return file.truncate(RESERVE);
        }
        // Half a reserve is none; the next opening tries again.
        let _ = storage.unlink(&path);
        Err(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Access, RootStorage, StorageFile};
    use std::fs::{File as OsFile, Metadata};
    use std::path::PathBuf;
    use std::sync::Barrier;

    /// A storage that lets two threads find at the same moment that a file is missing.
    #[derive(Debug)]
    struct Meeting {
        files: RootStorage,
        found_missing: Barrier,
        met: std::sync::atomic::AtomicU32,
    }

    type Done<T> = Result<T, StorageError>;

    impl Storage for Meeting {
        fn create(&self, path: &Path) -> Done<Box<dyn StorageFile>> {
            self.files.create(path)
        }
        fn open(&self, path: &Path) -> Done<Box<dyn StorageFile>> {
            let opened = self.files.open(path);
            if opened.is_err() && self.met.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 2 {
                self.found_missing.wait();
            }
            opened
        }
        fn open_read(&self, path: &Path) -> Done<Box<dyn StorageFile>> {
            self.files.open_read(path)
        }
        fn handle(&self, path: &Path, access: Access) -> Done<OsFile> {
            self.files.handle(path, access)
        }
        fn examine(&self, path: &Path) -> Done<Metadata> {
            self.files.examine(path)
        }
        fn rename(&self, from: &Path, to: &Path) -> Done<()> {
            self.files.rename(from, to)
        }
        fn rename_new(&self, from: &Path, to: &Path) -> Done<()> {
            self.files.rename_new(from, to)
        }
        fn unlink(&self, path: &Path) -> Done<()> {
            self.files.unlink(path)
        }
        fn check_folder(&self, path: &Path) -> Done<()> {
            self.files.check_folder(path)
        }
        fn create_folder(&self, path: &Path) -> Done<()> {
            self.files.create_folder(path)
        }
        fn remove_folder(&self, path: &Path) -> Done<()> {
            self.files.remove_folder(path)
        }
        fn sync_folder(&self, path: &Path) -> Done<()> {
            self.files.sync_folder(path)
        }
        fn gives_back(&self, folder: &Path) -> Done<bool> {
            self.files.gives_back(folder)
        }
        fn list(&self, path: &Path) -> Done<Vec<String>> {
            self.files.list(path)
        }
    }

    #[test]
    fn a_disk_without_inodes_is_told_from_one_without_bytes() {
        let room = |free_bytes, free_inodes| DiskRoom { free_bytes, free_inodes }.to_string();
        assert_eq!(room(0, None), "0 B free");
        assert_eq!(room(4096, Some(7)), "4096 B free");
        assert_eq!(room(80 << 20, Some(0)), "no inodes are free");
        assert_eq!(room(80 << 20, Some(9)), "80 MiB free");
    }

    #[test]
    fn two_threads_that_find_no_reserve_at_the_same_moment_both_have_it_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let root: PathBuf = folder.path().to_owned();
        let layout = Layout::new(&root);
        let storage =
            Meeting { files: RootStorage::at(&root), found_missing: Barrier::new(2), met: 0.into() };
        std::thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(|| refill_reserve(&storage, &layout)));
            for thread in both {
                thread.join().unwrap().unwrap();
            }
        });
        assert_eq!(std::fs::metadata(layout.reserve()).unwrap().len(), RESERVE);
    }
}
