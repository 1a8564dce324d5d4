//! The folder of a repository that is open for writing: whether it still lies where it was found.
//!
//! A filesystem can be unmounted, and a folder moved, while a process works in it. What the process then finds by path is
//! another folder, or none. It must not write there, and must not take files that are missing for files that were removed.
//! The repository's own files are reached from the folder that was opened; sled's, and what clients are told, go by path.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::repository::{Layout, Repository, RepositoryError};
use crate::storage::StorageError;

/// The folder, held open so that its number is not given to another one.
#[derive(Debug)]
pub(super) struct Home {
    _folder: OwnedFd,
    identity: (u64, u64),
}

/// Returns the device and the number of a folder.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = rustix::fs::stat(path).ok()?;
    Some((found.st_dev, found.st_ino))
}

impl Home {
    pub(super) fn open(layout: &Layout) -> Result<Self, RepositoryError> {
        let failed = |source: rustix::io::Errno| StorageError::new("open", layout.root(), source.into());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(layout.root(), flags, Mode::empty()).map_err(failed)?;
        let found = rustix::fs::fstat(&folder).map_err(failed)?;
        Ok(Self { _folder: folder, identity: (found.st_dev, found.st_ino) })
    }

    /// Says whether the folder is where it was. Asks the operating system for no more than what the folder looks like.
    ///
    /// # Errors
    /// [`RepositoryError::Moved`].
    pub(super) fn check(&self, layout: &Layout) -> Result<(), RepositoryError> {
        if identity(layout.root()) == Some(self.identity) {
            return Ok(());
        }
        Err(RepositoryError::Moved { path: layout.root().to_owned() })
    }
}

/// Says whether the repository with this id lies at the path. Reads its settings.
///
/// # Errors
/// [`RepositoryError::Moved`], if there is another one or none; else why it cannot be told.
pub(super) fn check_id(repository: &Repository) -> Result<(), RepositoryError> {
    let path = repository.layout.root();
    match Repository::open(path) {
        Ok(found) if found.settings.repository == repository.settings.repository => Ok(()),
        Ok(_)
        | Err(
            RepositoryError::NotFound { .. }
            | RepositoryError::EmptyFolder { .. }
            | RepositoryError::Incomplete { .. }
            | RepositoryError::Occupied { .. },
        ) => Err(RepositoryError::Moved { path: path.to_owned() }),
        Err(error) => Err(error),
    }
}

impl Repository {
    /// Makes sure that the settings can be read, and that the folders of manifests and packs can be opened. Reads no list of backups and
    /// lists no folder, so it costs the same however many backups there are.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check_readable(&self) -> Result<(), RepositoryError> {
        check_id(self)?;
        let (storage, layout) = (self.storage.as_ref(), &self.layout);
        for folder in [layout.sets(), layout.packs()] {
            storage.check_folder(&folder)?;
            // What lies in it could be looked up.
            match storage.examine(&folder.join("any")) {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::repository::InitOptions;
    use crate::storage::{FaultPlan, FaultStorage, Storage};

    #[test]
    fn whether_a_repository_can_be_read_is_found_out_without_listing_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        Repository::init(&path, &InitOptions::default()).unwrap();
        let storage = FaultStorage::new(folder.path(), FaultPlan::Count).unwrap();
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let repository = Repository::open_with(shared, &path).unwrap();
        let before = storage.lists();
        repository.check_readable().unwrap();
        assert_eq!(storage.lists(), before);
        for name in ["manifests", "packs"] {
            let (there, away) = (path.join(name), folder.path().join("away"));
            fs::rename(&there, &away).unwrap();
            assert!(repository.check_readable().is_err(), "{name}");
            // Something else in its place.
            fs::write(&there, "").unwrap();
            assert!(repository.check_readable().is_err(), "{name}");
            fs::remove_file(&there).unwrap();
            fs::rename(&away, &there).unwrap();
            repository.check_readable().unwrap();
        }
    }
}
