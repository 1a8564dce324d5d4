//! Leases: a backup that somebody restores is not collected, even if it is deleted meanwhile.
//!
//! Whoever reads the data of a backup makes a file in `leases` and holds the kernel's lock on it, which ends with
//! the process, however that ends. Garbage collection, which may run in another process, asks which of them are
//! held: what their backups name stays. It decides what may go *before* it looks at the leases, and a lease is
//! made *before* its holder makes sure that the backup is there; so a lease that is not seen is one of a backup
//! that was deleted too late to be collected.
//!
//! A lease is advice to others, not part of the store: where the folder cannot be written, there is none.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::manifest::{BackupsetId, Incremental};
use crate::repository::{Deletion, Layout, Repository, RepositoryError};
use crate::storage::StorageError;

/// A lease, while it is there.
#[derive(Debug)]
pub struct Lease {
    held: Option<(File, PathBuf)>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.held {
            // One that stays is found unlocked by the next collection.
            let _ = fs::remove_file(path);
        }
    }
}

impl Repository {
    /// Leases a backup whose data is going to be read.
    ///
    /// # Errors
    /// The backup is not there.
    pub fn lease(&self, set: BackupsetId, incremental: Incremental) -> Result<Lease, RepositoryError> {
        let lease = match take(&self.layout, set, incremental) {
            Ok(held) => Lease { held: Some(held) },
            Err(error) => {
                tracing::debug!(%error, "no lease can be had here");
                Lease { held: None }
            }
        };
        let found = self.backupset(set)?;
        // Not one that is deleted already: it may be about to be collected.
        if found.backups.iter().any(|record| record.incremental == incremental) {
            return Ok(lease);
        }
        let what = format!("{set}@{incremental}");
        Err(RepositoryError::NoSuchBackup { path: self.layout.root().to_owned(), what })
    }

    /// Returns the backups that are leased now, and removes the leases that nobody holds any longer.
    pub(super) fn leased(&self) -> Result<Vec<Deletion>, RepositoryError> {
        let folder = self.layout.leases();
        let failed = |source| StorageError::new("list", &folder, source);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error).into()),
        };
        let mut leased = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if is_held(&path)?
                && let Some(backup) = path.file_name().and_then(|name| backup_of(name.to_str()?))
            {
                leased.push(backup);
            }
        }
        Ok(leased)
    }
}

fn take(layout: &Layout, set: BackupsetId, incremental: Incremental) -> io::Result<(File, PathBuf)> {
    let folder = layout.leases();
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    loop {
        let path = folder.join(format!("{set}@{incremental}-{}", uuid::Uuid::new_v4()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.lock()?;
        // A collection may have found it before it was locked, and removed it.
        if file.metadata()?.nlink() > 0 {
            return Ok((file, path));
        }
    }
}

/// Says whether somebody holds a lease; removes one that nobody does.
fn is_held(path: &Path) -> Result<bool, StorageError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(StorageError::new("open", path, source)),
    };
    match file.try_lock() {
        Ok(()) => {
            // While it is locked here: whoever is about to take it sees then that it is gone.
            let _ = fs::remove_file(path);
            Ok(false)
        }
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(source)) => Err(StorageError::new("lock", path, source)),
    }
}

fn backup_of(name: &str) -> Option<Deletion> {
    let (backupset, rest) = name.split_once('@')?;
    let (incremental, _) = rest.split_once('-')?;
    Some(Deletion { backupset: backupset.parse().ok()?, incremental: Incremental(incremental.parse().ok()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_seen_while_it_is_held_and_what_is_left_of_one_goes() {
        let folder = tempfile::tempdir().unwrap();
        let repository =
            Repository::init(&folder.path().join("store"), &crate::repository::InitOptions::default())
                .unwrap();
        let (set, incremental) = (BackupsetId::random(), Incremental(3));
        assert_eq!(repository.leased().unwrap(), []);
        let held = take(&repository.layout, set, incremental).unwrap();
        assert_eq!(repository.leased().unwrap(), [Deletion { backupset: set, incremental }]);
        let (file, path) = held;
        drop(file);
        assert_eq!(repository.leased().unwrap(), []);
        assert!(!path.exists());
        assert!(repository.lease(set, incremental).is_err(), "there is no such backup");
        assert_eq!(repository.leased().unwrap(), []);
    }
}
