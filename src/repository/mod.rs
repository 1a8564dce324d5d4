//! The repository: one store on disk.
//!
//! Owns the layout, opening and locking, the backupsets' settings, the order in which a backup comes into
//! being, and recovery. Knows nothing of images and of how a backup's data is moved.
//!
//! [`Repository`] reads: it takes no lock, never opens the index, and works beside a process that writes.
//! [`RepositoryWriter`] is the one process that changes anything.

mod backupset;
mod begin;
mod clock;
mod commit;
mod counting;
mod delete;
mod draft;
mod enclosing;
mod error;
mod failures;
mod findings;
mod gc;
mod home;
mod import;
mod init;
mod job;
mod layout;
mod lease;
mod lists;
mod lock;
mod moments;
mod number;
mod open;
mod owner;
mod proof;
mod quarantine;
mod range;
mod recovery;
mod rename;
mod reopen;
pub mod retention;
mod room;
mod roster;
mod select;
mod set_file;
mod settings;
mod state;
mod statistics;
mod together;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use backupset::{BackupAmounts, BackupRecord, Backupset, DeletedBackup, Origin, Protection};
pub use begin::GrowthLimits;
pub use clock::UndeletePeriods;
pub use commit::CommittedBackup;
pub use delete::{Changed, Deletion};
pub use draft::{BackupDraft, FinishedDraft, Parent};
pub use enclosing::enclosing_repository;
pub use error::RepositoryError;
pub use failures::{BackupFailure, MOST_FAILURES};
pub use findings::{Finding, Findings};
pub use gc::{GcOptions, GcSummary};
pub use init::InitOptions;
pub use job::{JobError, SharedWriter};
pub use layout::Layout;
pub use lease::Lease;
pub use lock::Holder;
pub use moments::Moments;
pub use number::{BackupNumber, FormerName, LEAST_PREFIX, MOST_FORMER_NAMES};
pub use open::{OpenOptions, RepositoryWriter};
pub(crate) use owner::check_owner;
pub use quarantine::DamagedCopy;
pub use range::{BackupRange, InvalidRange, Numbers};
pub use select::{Addressee, BackupId, BackupSelector, Hint, InvalidSelector, Which};
pub use settings::{KEEP_DELETED, KEEP_UNFINISHED, Settings, span};
pub use statistics::{NameStats, RepositoryStats};

use crate::codec::CompressionSetting;
use crate::manifest::{BackupsetId, ManifestReader};
use crate::repository::layout::{NameTest, canonical};
use crate::storage::{RootStorage, Storage, read_small, replace};
use crate::store::Catalog;
use crate::store::pack::{PackFolder, PackNumber};

/// The file that says what was checked when is not larger, in bytes.
const CHECKED_LIMIT: u64 = 256 << 20;

/// A repository, for reading.
#[derive(Clone, Debug)]
pub struct Repository {
    storage: Arc<dyn Storage>,
    layout: Layout,
    settings: Settings,
    /// What is wrong with the settings that a person may change.
    flaw: Option<Arc<str>>,
    lists: Arc<lists::Lists>,
}

impl Repository {
    /// Opens the repository at `path`.
    pub fn open(path: &Path) -> Result<Self, RepositoryError> {
        Self::open_with(Arc::new(RootStorage::at(path)), path)
    }

    /// Opens the repository at `path` through a storage of the caller's.
    pub fn open_with(storage: Arc<dyn Storage>, path: &Path) -> Result<Self, RepositoryError> {
        let layout = Layout::new(path);
        match settings::read(storage.as_ref(), &layout) {
            Ok((settings, flaw)) => {
                Ok(Self { storage, layout, settings, flaw: flaw.map(Into::into), lists: Arc::default() })
            }
            Err(RepositoryError::Storage(error)) if error.is_not_found() => {
                let path = path.to_owned();
                Err(match storage.list(&path) {
                    Ok(names) if names.is_empty() => RepositoryError::EmptyFolder { path },
                    Ok(names) if init::is_unfinished(storage.as_ref(), &path, &names) => {
                        RepositoryError::Incomplete { path }
                    }
                    Ok(_) => RepositoryError::Occupied { path },
                    Err(_) if path.exists() => RepositoryError::Occupied { path },
                    Err(_) => RepositoryError::NotFound { path },
                })
            }
            Err(RepositoryError::Storage(error)) => {
                Err(owner::explain_denied(path, &error).unwrap_or_else(|| error.into()))
            }
            Err(error) => Err(error),
        }
    }

    /// Creates a repository at `path`, which must not exist or be an empty folder. Of several concurrent calls, one succeeds.
    pub fn init(path: &Path, options: &InitOptions) -> Result<Self, RepositoryError> {
        init::create(path, options)
    }

    /// Creates a repository in the folder `path` through a storage of the caller's.
    pub fn init_with(
        storage: Arc<dyn Storage>,
        path: &Path,
        options: &InitOptions,
    ) -> Result<Self, RepositoryError> {
        init::create_in_place(storage.as_ref(), &Layout::new(path), options)?;
        Self::open_with(storage, path)
    }

    /// Returns what its files are opened and written through.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Returns where its files lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Makes sure that the settings which a person may change are right. Old backups can be read all the same.
    ///
    /// # Errors
    /// They are not, and none of them is used.
    pub fn check_settings(&self) -> Result<(), RepositoryError> {
        let error = |what: &Arc<str>| RepositoryError::Settings {
            path: self.layout.settings(),
            what: what.to_string(),
        };
        self.flaw.as_ref().map(error).map_or(Ok(()), Err)
    }

    /// Returns the compression that is used unless a backup says otherwise.
    pub fn compression(&self) -> CompressionSetting {
        self.settings.compression
    }

    /// Returns where its packs lie, and what bounds the lengths in them.
    pub(crate) fn packs(&self) -> PackFolder {
        PackFolder::new(self.layout.packs(), self.settings.segment_size)
    }

    /// Returns a catalog of what the packs hold now.
    pub fn catalog(&self) -> Result<Catalog, RepositoryError> {
        Ok(Catalog::open(Arc::clone(&self.storage), &self.packs())?)
    }

    /// Reads the file that says what was checked when.
    pub fn read_checked(&self) -> Result<Vec<u8>, RepositoryError> {
        Ok(read_small(self.storage.as_ref(), &self.layout.checked(), CHECKED_LIMIT)?)
    }

    /// Replaces the file that says what was checked when.
    ///
    /// # Errors
    /// It would be longer than is read, or cannot be written. What was there stays.
    pub fn write_checked(&self, bytes: &[u8]) -> Result<(), RepositoryError> {
        let (path, bytes_now) = (self.layout.checked(), bytes.len() as u64);
        if bytes_now > CHECKED_LIMIT {
            return Err(RepositoryError::TooLong { path, bytes: bytes_now });
        }
        check_owner(self.storage.as_ref(), &self.layout)?;
        Ok(replace(self.storage.as_ref(), &self.layout.checked(), bytes)?)
    }

    /// Reads the file that lists what checks found damaged.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn read_findings(&self) -> Result<String, RepositoryError> {
        set_file::read_sealed(self.storage.as_ref(), &self.layout.findings())
    }

    /// Replaces the file that lists what checks found damaged.
    ///
    /// # Errors
    /// It would be longer than is read, or cannot be written. What was there stays.
    pub fn write_findings(&self, text: &str) -> Result<(), RepositoryError> {
        let (path, text) = (self.layout.findings(), set_file::seal(text));
        settings::check_length(&path, &text)?;
        Ok(replace(self.storage.as_ref(), &path, text.as_bytes())?)
    }

    /// Returns what looks like a backupset, a pack or an index and is none, as Ekko writes its name otherwise: a UUID in
    /// capitals, a number without its zeros or with too many. Nothing reads or removes it.
    pub fn misnamed(&self) -> Result<Vec<PathBuf>, RepositoryError> {
        let of_set =
            |name: &str| name.parse::<BackupsetId>().is_ok() && canonical::<BackupsetId>(name).is_none();
        let of_pack = |name: &str| {
            Path::new(name).extension().is_some_and(|extension| extension == "pack")
                && PackNumber::from_file_name(name).is_none()
        };
        let of_index = |name: &str| name.parse::<u64>().is_ok() && canonical::<u64>(name).is_none();
        let folders = [
            (self.layout.sets(), of_set as NameTest),
            (self.layout.packs(), of_pack as NameTest),
            (self.layout.indexes(), of_index as NameTest),
        ];
        let mut misnamed = Vec::new();
        for (folder, is_misnamed) in folders {
            match self.storage.list(&folder) {
                Ok(names) => {
                    misnamed
                        .extend(names.iter().filter(|name| is_misnamed(name)).map(|name| folder.join(name)));
                }
                // An index may be missing.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(misnamed)
    }

    /// Opens the manifest of a backup and verifies all of it. Returns nothing if it is damaged or missing.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn readable_manifest(
        &self,
        set: &Backupset,
        backup: &BackupRecord,
    ) -> Result<Option<ManifestReader>, RepositoryError> {
        match self.manifest(set, backup).and_then(|manifest| {
            manifest.verify()?;
            Ok(manifest)
        }) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) if error.kind() == crate::error::ErrorKind::Io => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Opens the manifest of a backup and makes sure that it is the one that was committed.
    pub fn manifest(
        &self,
        set: &Backupset,
        backup: &BackupRecord,
    ) -> Result<ManifestReader, RepositoryError> {
        let path = self.layout.manifest(set.id, backup.incremental);
        let manifest = ManifestReader::open(self.storage.as_ref(), &path)?;
        let info = manifest.info();
        if manifest.fingerprint() != backup.manifest
            || (info.backupset, info.incremental) != (set.id, backup.incremental)
        {
            let backup = format!("{}@{}", set.id, backup.incremental);
            return Err(RepositoryError::WrongManifest { path, backup });
        }
        Ok(manifest)
    }
}
