//! Leases: a backup that somebody restores is not collected, even if it is deleted meanwhile.
//!
//! Whoever reads the data of a backup makes a file in `leases` and holds the kernel's lock on it, which ends with
//! the process, however that ends. Garbage collection, which may run in another process, asks which of them are
//! held: what their backups name stays. It decides what may go *before* it looks at the leases, and a lease is
//! made *before* its holder makes sure that the backup is there; so a lease that is not seen is one of a backup
//! that was deleted too late to be collected.
//!
//! A lease is advice to others, not part of the store: where the folder cannot be written, there is none, and whoever reads is told
//! what that means.

use std::fs::{File, TryLockError};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::manifest::{BackupsetId, Incremental, ManifestInfo};
use crate::progress::{Notice, Progress};
use crate::repository::layout::canonical;
use crate::repository::{BackupId, Deletion, Layout, Repository, RepositoryError};
use crate::storage::{Access, Storage, StorageError};

/// A lease, while it is there.
#[derive(Debug)]
pub struct Lease {
    held: Option<(File, PathBuf)>,
    storage: Arc<dyn Storage>,
}

/// A lease that was tried to be taken.
struct Tried {
    lease: Lease,
    backup: BackupId,
    /// Why there is none.
    failed: Option<StorageError>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.held {
            // One that stays is found unlocked by the next collection.
            let _ = self.storage.unlink(path);
        }
    }
}

impl Repository {
    /// Leases a backup whose data is going to be read.
    ///
    /// # Errors
    /// The backup is not there.
    pub fn lease(&self, set: BackupsetId, incremental: Incremental) -> Result<Lease, RepositoryError> {
        Ok(self.try_lease(set, incremental)?.lease)
    }

    /// The same for a job, which is told if there can be no lease, and what that means.
    ///
    /// # Errors
    /// The backup is not there.
    pub fn lease_for(
        &self,
        job: &str,
        info: &ManifestInfo,
        progress: &dyn Progress,
    ) -> Result<Lease, RepositoryError> {
        let Tried { lease, backup, failed } = self.try_lease(info.backupset, info.incremental)?;
        if let Some(error) = failed {
            progress.notice(Notice::Unleased {
                backup: backup.to_string(),
                job: job.to_owned(),
                why: error.to_string(),
            });
        }
        Ok(lease)
    }

    fn try_lease(&self, set: BackupsetId, incremental: Incremental) -> Result<Tried, RepositoryError> {
        let (held, failed) = match take(self.storage.as_ref(), &self.layout, set, incremental) {
            Ok(held) => (Some(held), None),
            Err(error) => (None, Some(error)),
        };
        let lease = Lease { held, storage: Arc::clone(&self.storage) };
        let found = self.backupset(set)?;
        // Not one that is deleted already: it may be about to be collected.
        if let Some(record) = found.backups.iter().find(|record| record.incremental == incremental) {
            return Ok(Tried { lease, backup: BackupId::of(&found, record), failed });
        }
        let what = format!("{set}@{incremental}");
        Err(RepositoryError::NoSuchBackup { path: self.layout.root().to_owned(), what })
    }

    /// Returns the backups that are leased now, and removes the leases that nobody holds any longer.
    pub(super) fn leased(&self) -> Result<Vec<Deletion>, RepositoryError> {
        let storage = self.storage.as_ref();
        let folder = self.layout.leases();
        let names = match storage.list(&folder) {
            Ok(names) => names,
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut leased = Vec::new();
        for name in names {
            // What Ekko does not call so is not a lease: it is neither locked nor removed.
            let Some(backup) = backup_of(&name) else { continue };
            if is_held(storage, &folder.join(name))? {
                leased.push(backup);
            }
        }
        Ok(leased)
    }
}

fn take(
    storage: &dyn Storage,
    layout: &Layout,
    set: BackupsetId,
    incremental: Incremental,
) -> Result<(File, PathBuf), StorageError> {
    let folder = layout.leases();
    // Root reads others' repositories, and what it leaves in them must be theirs: they could not clean it up.
    let owner = storage.examine(&layout.settings())?;
    let is_owner = owner.uid() == rustix::process::geteuid().as_raw();
    if is_owner {
        storage.create_folder(&folder)?;
    }
    loop {
        let path = folder.join(format!("{set}@{incremental}-{}", uuid::Uuid::new_v4()));
        let failed = |source| StorageError::new("lock", &path, source);
        let file = storage.handle(&path, Access::Create)?;
        if !is_owner && let Err(error) = fchown(&file, Some(owner.uid()), Some(owner.gid())) {
            storage.unlink(&path)?;
            return Err(StorageError::new("give to its owner", &path, error));
        }
        file.lock().map_err(failed)?;
        // A collection may have found it before it was locked, and removed it.
        if file.metadata().map_err(failed)?.nlink() > 0 {
            return Ok((file, path));
        }
    }
}

/// Says whether somebody holds a lease; removes one that nobody does.
fn is_held(storage: &dyn Storage, path: &Path) -> Result<bool, StorageError> {
    let file = match storage.handle(path, Access::Read) {
        Ok(file) => file,
        Err(error) if error.is_not_found() => return Ok(false),
        // Root has made it and has not given it to the owner yet.
        Err(error) if error.source.kind() == std::io::ErrorKind::PermissionDenied => return Ok(true),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => {
            // While it is locked here: whoever is about to take it sees then that it is gone.
            let _ = storage.unlink(path);
            Ok(false)
        }
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(source)) => Err(StorageError::new("lock", path, source)),
    }
}

/// Reads the backup that a lease of this name is of.
fn backup_of(name: &str) -> Option<Deletion> {
    let (backupset, rest) = name.split_once('@')?;
    let (incremental, lease) = rest.split_once('-')?;
    canonical::<uuid::Uuid>(lease)?;
    Some(Deletion { backupset: canonical(backupset)?, incremental: Incremental(canonical(incremental)?) })
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
        let held = take(repository.storage.as_ref(), &repository.layout, set, incremental).unwrap();
        assert_eq!(repository.leased().unwrap(), [Deletion { backupset: set, incremental }]);
        let (file, path) = held;
        drop(file);
        assert_eq!(repository.leased().unwrap(), []);
        assert!(!path.exists());
        assert!(repository.lease(set, incremental).is_err(), "there is no such backup");
        assert_eq!(repository.leased().unwrap(), []);
    }

    #[test]
    fn what_has_another_name_than_a_lease_stays() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        let repository = Repository::init(&root, &crate::repository::InitOptions::default()).unwrap();
        let leases = repository.layout.leases();
        let (set, lease) = (BackupsetId::random(), uuid::Uuid::new_v4());
        let ours = format!("{set}@3-{lease}");
        let theirs = ["letter", &format!("{set}@03-{lease}"), &format!("{set}@3-x"), &ours.to_uppercase()]
            .map(str::to_owned);
        for name in theirs.iter().chain([&ours]) {
            std::fs::write(leases.join(name), "x").unwrap();
        }
        assert_eq!(repository.leased().unwrap(), []);
        let mut left = repository.storage.list(&leases).unwrap();
        left.sort_unstable();
        let mut wanted = theirs.to_vec();
        wanted.sort_unstable();
        assert_eq!(left, wanted);
    }
}
