//! Backups that failed: the last failed attempt of each disk, until a backup of it succeeds.
//!
//! A first backup is noted when it begins, too, so that one that a crash, a kill or a lost client ends leaves a trace. No sync waits for
//! that note: a successful backup costs none more.
//!
//! A disk whose first backup fails has no backupset, and without a trace of the attempt nobody would miss its backups. The folder
//! `failures` has a file for each name, `HASH OF THE PROJECT-HASH OF THE NAME`, so that processes record failures
//! beside each other and without the lock: a repository that is in use is a reason, too. Each file is replaced atomically, and
//! its last line has the BLAKE3 of the others.
//!
//! A commit, a deletion of the last backup, a renaming and a retirement remove the file. Only a retirement waits until that is
//! durable: a record that a power loss brings back is not newer than the newest backup, and readers ignore it.
//!
//! The names of a project share a limit, so no client fills the disk with records. Beyond the limit new names are not recorded: the
//! status of the project shows the others then, and nobody takes it for good.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::manifest::ImageName;
use crate::repository::set_file::{read_sealed, seal, time};
use crate::repository::settings::FORMAT;
use crate::repository::{Repository, RepositoryError, check_owner};
use crate::segment::Fingerprint;
use crate::storage::{StorageError, TEMPORARY, replace};

/// For how many names of a project failures are recorded.
pub const MOST_FAILURES: usize = 1000;

/// A reason is not longer, in bytes.
const LONGEST_REASON: usize = 500;

/// What ends the project in a name.
const SEPARATOR: char = ':';

/// An attempt to back up a disk that failed, or that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupFailure {
    /// The name of the disk.
    pub name: ImageName,
    /// When it failed.
    pub time: Timestamp,
    /// Why, in words; nothing of a first backup that is running or was interrupted.
    pub reason: Option<String>,
    /// Whether a client of the service reported it, whose project may know the reason.
    pub is_reported: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    name: String,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    reported: bool,
}

impl BackupFailure {
    /// Returns the project of the disk; nothing if it has none.
    #[must_use]
    pub fn project(&self) -> &str {
        project_of(&self.name)
    }

    fn encode(&self) -> Result<String, String> {
        let file = File {
            format: FORMAT,
            name: self.name.to_string(),
            time: self.time.to_string(),
            reason: self.reason.as_deref().map(shortened),
            reported: self.is_reported,
        };
        Ok(seal(&toml::to_string(&file).map_err(|error| error.to_string())?))
    }

    fn decode(text: &str) -> Result<Self, String> {
        let File { name, time: at, reason, reported, .. } =
            toml::from_str(text).map_err(|error| error.message().to_owned())?;
        let name = ImageName::new(name).map_err(|error| error.to_string())?;
        Ok(Self { name, time: time(&at)?, reason, is_reported: reported })
    }
}

/// Cuts a reason that is too long.
fn shortened(reason: &str) -> String {
    if reason.len() <= LONGEST_REASON {
        return reason.to_owned();
    }
    let end = reason.floor_char_boundary(LONGEST_REASON - "...".len());
    format!("{}...", reason.get(..end).unwrap_or_default())
}

fn hash(text: &str, digits: usize) -> String {
    Fingerprint::of(text.as_bytes()).to_string().chars().take(digits).collect()
}

fn project_of(name: &ImageName) -> &str {
    name.as_str().split_once(SEPARATOR).map_or("", |(project, _)| project)
}

/// Returns what the names of the files of a project begin with, for one of its names.
fn project(name: &ImageName) -> String {
    hash(project_of(name), 16)
}

/// Returns the name of the file of a disk.
fn file_name(name: &ImageName) -> String {
    format!("{}-{}", project(name), hash(name.as_str(), 32))
}

/// Says whether Ekko gives this name to a finished file of a failure.
fn is_record(name: &str) -> bool {
    let is_hash = |text: &str, digits| {
        text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    name.split_once('-').is_some_and(|(project, name)| is_hash(project, 16) && is_hash(name, 32))
}

/// Says whether Ekko gives this name to a temporary file of a failure.
fn is_temporary_record(name: &str) -> bool {
    name.strip_suffix(TEMPORARY).and_then(|name| name.strip_suffix('.')).is_some_and(is_record)
}

impl Repository {
    /// Records that a backup failed, in place of an earlier failure of the same disk. Takes no lock. Says whether there was
    /// room for it; when this returns, that is durable.
    ///
    /// # Errors
    /// The file cannot be written, or would not belong to the repository's owner.
    pub fn record_failure(&self, failure: &BackupFailure) -> Result<bool, RepositoryError> {
        let storage = self.storage.as_ref();
        check_owner(storage, &self.layout)?;
        let Some((path, text)) = self.prepare_record(failure)? else { return Ok(false) };
        storage.sync_folder(self.layout.root())?;
        // Another process may record a failure of the same disk, or remove what it takes for left over.
        replace(storage, &path, text.as_bytes()).or_else(|_| replace(storage, &path, text.as_bytes()))?;
        Ok(true)
    }

    /// Notes that the first backup of a disk begins. Nothing depends on that, and no sync waits for it.
    pub(super) fn note_first_backup(&self, name: &ImageName, time: Timestamp) {
        let failure = BackupFailure { name: name.clone(), time, reason: None, is_reported: false };
        let note = || {
            let Some((path, text)) = self.prepare_record(&failure)? else { return Ok(()) };
            let temporary = path.with_added_extension(TEMPORARY);
            match self.storage.unlink(&temporary) {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
            self.storage.create(&temporary)?.write_at(text.as_bytes(), 0)?;
            Ok(self.storage.rename(&temporary, &path)?)
        };
        note().unwrap_or_else(|error: RepositoryError| {
            tracing::warn!(%error, "cannot note that the first backup of {name} begins");
        });
    }

    /// Returns the file of a failure and what it is to say, and makes sure that its folder is there; nothing if the project has
    /// no room for it.
    fn prepare_record(&self, failure: &BackupFailure) -> Result<Option<(PathBuf, String)>, RepositoryError> {
        let (storage, folder) = (self.storage.as_ref(), self.layout.failures());
        let file = file_name(&failure.name);
        let path = folder.join(&file);
        let names = match storage.list(&folder) {
            Err(error) if error.is_not_found() => {
                storage.create_folder(&folder)?;
                Vec::new()
            }
            names => names?,
        };
        let project = project(&failure.name);
        let of_project = |name: &&String| is_record(name) && name.starts_with(&project);
        if !names.contains(&file) && names.iter().filter(of_project).count() >= MOST_FAILURES {
            return Ok(None);
        }
        let wrong = |what| RepositoryError::Settings { path: path.clone(), what };
        let text = failure.encode().map_err(wrong)?;
        Ok(Some((path, text)))
    }

    /// Returns the failed attempts that no backup has followed, by name. A file that is damaged says nothing.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn failures(&self) -> Result<Vec<BackupFailure>, RepositoryError> {
        let (storage, folder) = (self.storage.as_ref(), self.layout.failures());
        let names = match storage.list(&folder) {
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            names => names?,
        };
        let read = |file: &String| {
            let failure = BackupFailure::decode(&read_sealed(storage, &folder.join(file)).ok()?).ok()?;
            (file_name(&failure.name) == *file).then_some(failure)
        };
        let mut failures: Vec<_> = names.iter().filter(|name| is_record(name)).filter_map(read).collect();
        failures.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(failures)
    }

    /// Forgets the failure of a disk. Says whether there was one; when this returns, that is durable.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(super) fn forget_failure(&self, name: &ImageName) -> Result<bool, StorageError> {
        let folder = self.layout.failures();
        match self.storage.unlink(&folder.join(file_name(name))) {
            Ok(()) => self.storage.sync_folder(&folder).map(|()| true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the records that a crash left unfinished.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(super) fn remove_unfinished_failures(&self) -> Result<(), StorageError> {
        let folder = self.layout.failures();
        let names = match self.storage.list(&folder) {
            Err(error) if error.is_not_found() => return Ok(()),
            names => names?,
        };
        for name in names.iter().filter(|name| is_temporary_record(name)) {
            match self.storage.unlink(&folder.join(name)) {
                // Another process finishes a record at this moment.
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Forgets the failure of a disk that nobody needs any longer, and does not wait until that is durable.
    pub(super) fn drop_failure(&self, name: &ImageName) {
        match self.storage.unlink(&self.layout.failures().join(file_name(name))) {
            Err(error) if !error.is_not_found() => tracing::warn!(%error, "a record of a failure stays"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::InitOptions;

    fn failure(name: &str, reason: &str) -> BackupFailure {
        let time = "2026-01-02T03:04:05Z".parse().unwrap();
        BackupFailure {
            name: ImageName::new(name).unwrap(),
            time,
            reason: Some(reason.to_owned()),
            is_reported: false,
        }
    }

    fn with_repository(test: impl FnOnce(&Repository)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        Repository::init(&path, &InitOptions::default()).unwrap();
        test(&Repository::open(&path).unwrap());
    }

    #[test]
    fn the_last_failure_of_each_disk_is_remembered_until_it_is_forgotten() {
        with_repository(|repository| {
            assert_eq!(repository.failures().unwrap(), []);
            for (name, reason) in [("web", "first"), ("db", "one \"line\"\nand another"), ("web", "second")] {
                assert!(repository.record_failure(&failure(name, reason)).unwrap());
            }
            let all = [failure("db", "one \"line\"\nand another"), failure("web", "second")];
            assert_eq!(repository.failures().unwrap(), all);
            assert!(repository.forget_failure(&all[1].name).unwrap());
            assert!(!repository.forget_failure(&all[1].name).unwrap());
            assert_eq!(repository.failures().unwrap(), all[..1]);
        });
    }

    #[test]
    fn a_record_that_is_changed_or_has_the_name_of_another_says_nothing() {
        with_repository(|repository| {
            repository.record_failure(&failure("web", "why")).unwrap();
            let path = repository.layout().failures().join(file_name(&failure("web", "").name));
            let whole = std::fs::read(&path).unwrap();
            for at in 0..whole.len() {
                let mut changed = whole.clone();
                changed[at] ^= 0x04;
                std::fs::write(&path, &changed).unwrap();
                assert_eq!(repository.failures().unwrap(), [], "byte {at}");
            }
            std::fs::write(path.with_file_name(file_name(&failure("db", "").name)), &whole).unwrap();
            assert_eq!(repository.failures().unwrap(), []);
            std::fs::write(&path, &whole).unwrap();
            assert_eq!(repository.failures().unwrap().len(), 1);
        });
    }

    #[test]
    fn the_names_of_a_project_share_a_limit_and_a_long_reason_is_cut() {
        with_repository(|repository| {
            repository.record_failure(&failure("blue:web", &"ü".repeat(LONGEST_REASON))).unwrap();
            let reason = repository.failures().unwrap().remove(0).reason.unwrap();
            assert!((400..=LONGEST_REASON).contains(&reason.len()) && reason.ends_with("..."), "{reason}");
            let folder = repository.layout().failures();
            for number in 1..MOST_FAILURES {
                let name = ImageName::new(format!("blue:{number}")).unwrap();
                std::fs::write(folder.join(file_name(&name)), "").unwrap();
            }
            assert!(!repository.record_failure(&failure("blue:one more", "why")).unwrap());
            for name in ["blue:web", "green:web", "blues", "web"] {
                assert!(repository.record_failure(&failure(name, "why")).unwrap(), "{name}");
            }
        });
    }
}
