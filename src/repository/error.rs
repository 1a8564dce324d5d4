//! Why a repository cannot do what it was asked to do.

use std::path::PathBuf;

use crate::error::ErrorKind;
use crate::manifest::{BackupsetId, ImageName, Incremental, ManifestError};
use crate::repository::lock::Holder;
use crate::repository::number::MOST_FORMER_NAMES;
use crate::repository::{Hint, settings};
use crate::storage::StorageError;
use crate::store::StoreError;
use crate::store::pack::PackError;

/// A repository that cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// The operating system failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A manifest failed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no repository at the path.
    #[error("there is no repository at {}: make one with \"ekko init\"", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// The folder exists and is empty: it may be a mount point that is not mounted.
    #[error(
        "{} is an empty folder: if it is a mount point, mount it; if a repository is to be made in it, run \"ekko init\"",
        path.display()
    )]
    EmptyFolder {
        /// The path.
        path: PathBuf,
    },
    /// An `init` was interrupted before it was complete.
    #[error(
        "the repository {} is incomplete: its creation was interrupted; run \"ekko init\" again",
        path.display()
    )]
    Incomplete {
        /// The path.
        path: PathBuf,
    },
    /// There is something else at the path.
    #[error("{} exists and holds something else than a repository", path.display())]
    Occupied {
        /// The path.
        path: PathBuf,
    },
    /// The path lies in another repository.
    #[error(
        "cannot create a repository at {}: this path lies in the repository {}; choose a path outside of it",
        path.display(),
        repository.display()
    )]
    Inside {
        /// The path.
        path: PathBuf,
        /// The other repository.
        repository: PathBuf,
    },
    /// There is a repository at the path already.
    #[error("there is a repository at {} already", path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// A newer release wrote it.
    #[error("{} has format {found}; this release reads up to {}: use a newer ekko", path.display(), settings::FORMAT)]
    NewerFormat {
        /// The file that says so.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A file of settings cannot be read.
    #[error("{} cannot be understood: {what}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// A file of settings is not what was written.
    #[error("{} is damaged: {what}", path.display())]
    SettingsDamaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// Another process changes the repository.
    #[error(
        "the repository {} is in use by {}: try again later, or with --wait",
        path.display(),
        holder.as_ref().map_or_else(|| "another process".to_owned(), ToString::to_string)
    )]
    InUse {
        /// The repository.
        path: PathBuf,
        /// The process, if it said who it is.
        holder: Option<Holder>,
    },
    /// The filesystem cannot lock files.
    #[error("{} lies on a filesystem that cannot lock files ({source}): a repository cannot be changed there", path.display())]
    CannotLock {
        /// The repository.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// No such backup.
    #[error("there is no backup {what} in {}", path.display())]
    NoSuchBackup {
        /// The repository.
        path: PathBuf,
        /// What was asked for.
        what: String,
    },
    /// The backup was deleted, and can be undeleted.
    #[error("{what} was deleted; \"ekko undelete {what}\" restores it")]
    Deleted {
        /// What was asked for.
        what: String,
    },
    /// All backups of a name were deleted, and can be undeleted.
    #[error(
        "all backups of {name} are deleted; \"ekko list --deleted {name}\" shows them, and \"ekko undelete {name}@all\" restores \
         them"
    )]
    AllDeleted {
        /// The name.
        name: String,
    },
    /// Nothing has these numbers.
    #[error("there is no backup {what}; \"ekko list\" shows all backups")]
    NoneNamed {
        /// What was asked for.
        what: String,
    },
    /// No deleted backup has these numbers.
    #[error("there is no deleted backup {what}; \"ekko list --deleted\" shows them")]
    NoneDeleted {
        /// What was asked for.
        what: String,
    },
    /// What is deleted must be named exactly.
    #[error(
        "{what} is not an exact address: name one backup ({name}@7), several ({name}@3-7) or all of them ({name}@all); \
         \"ekko list {name}\" shows them, and \"ekko list --deleted\" those that were deleted"
    )]
    NotExact {
        /// What was asked for.
        what: String,
        /// The name in it.
        name: String,
    },
    /// No disk and no backupset has the name.
    #[error("no disk named \"{name}\"{hint}")]
    UnknownName {
        /// What was asked for.
        name: String,
        /// What may help.
        hint: Hint,
    },
    /// The manifest of a backup is not the one that was committed.
    #[error("the manifest {} is not the one that was committed as {backup}", path.display())]
    WrongManifest {
        /// The file.
        path: PathBuf,
        /// The backup.
        backup: String,
    },
    /// The backup may not be deleted.
    #[error("{backup} is protected: nothing was deleted; \"ekko unprotect {backup}\" allows it")]
    Protected {
        /// The backup.
        backup: String,
    },
    /// A machine's moment that is to stay consists of the backup.
    #[error(
        "cannot delete {backup}: {moment} is a moment of a machine and consists of it; \"ekko delete --machine {moment}\" \
         deletes the moment with all of its disks"
    )]
    PartOfMachine {
        /// The backup of a disk.
        backup: String,
        /// The moment.
        moment: String,
    },
    /// The backup is of a disk.
    #[error("{backup} is no moment of a machine, but the backup of a disk: leave --machine out")]
    NotAMachine {
        /// The backup.
        backup: String,
    },
    /// The name belongs to the backups of another disk, or did once.
    #[error(
        "cannot rename {from} to {to}: {to} is or was the name of other backups, and each number of a name means one backup; \
         choose another name"
    )]
    NameTaken {
        /// The name that the backups have.
        from: ImageName,
        /// The name that was asked for.
        to: ImageName,
    },
    /// The backups have had as many names as they may have.
    #[error(
        "cannot rename {from} to {to}: it has had {MOST_FORMER_NAMES} other names already; rename it back to one of them, or back it up \
         under the new name"
    )]
    TooManyFormerNames {
        /// The name that the backups have.
        from: ImageName,
        /// The name that was asked for.
        to: ImageName,
    },
    /// The name is the one that the backups have.
    #[error("cannot rename {name}: that is its name already")]
    SameName {
        /// The name.
        name: ImageName,
    },
    /// A name for a disk means a backupset already.
    #[error(
        "cannot name a disk {name}: the UUID of backupset {backupset} begins like that, so {name}@0 would mean two \
         backups; choose another name"
    )]
    NameIsUuid {
        /// The name.
        name: ImageName,
        /// The backupset.
        backupset: BackupsetId,
    },
    /// The disk that holds the repository is full.
    #[error(
        "cannot change the repository {}: its disk is full ({room}): {reason}; run \"ekko gc --now\", or free space on that disk, \
         and run the command again: all backups are intact, and a new one uses what is stored of it",
        path.display()
    )]
    Full {
        /// The repository.
        path: PathBuf,
        /// How much room the disk has.
        room: String,
        /// Which operation found it full.
        reason: String,
        /// Whether this job found it full: if not, another one did, which stopped this one.
        found: bool,
    },
    /// The folder of a backupset that has had backups is missing.
    #[error(
        "cannot find the backups of {name}: {} is missing; put this folder back; if it is lost for good, run \
         \"ekko gc --accept-lost\"",
        path.display()
    )]
    ListLost {
        /// The name of the image.
        name: ImageName,
        /// The folder.
        path: PathBuf,
    },
    /// A backup that was made elsewhere does not fit into the repository.
    #[error("cannot import {backupset}@{incremental} as {name}: {what}")]
    CannotImport {
        /// Its backupset.
        backupset: BackupsetId,
        /// Its number.
        incremental: Incremental,
        /// The name it was to have.
        name: ImageName,
        /// What does not fit.
        what: String,
    },
    /// A protection would end earlier than it does.
    #[error(
        "cannot protect {backup} until {until}: it is protected {longer}; to end that earlier, add --shorten"
    )]
    ProtectedLonger {
        /// The backup.
        backup: String,
        /// When the protection would end.
        until: jiff::Timestamp,
        /// How long the backup is protected: "for ever", or "until" a time.
        longer: String,
    },
    /// The repository belongs to another user.
    #[error(
        "cannot use the repository {} as user {user}: it belongs to user {owner}; run the command as that user, e.g. with \
         \"sudo -u {owner}\"",
        path.display()
    )]
    NotOwner {
        /// The repository.
        path: PathBuf,
        /// The user that it belongs to.
        owner: String,
        /// The user that runs the command.
        user: String,
    },
    /// A write failed before.
    #[error("the repository stopped writing after a failure: {reason}")]
    Poisoned {
        /// The first failure.
        reason: String,
    },
    /// The folder that was opened does not lie at its path any longer.
    #[error(
        "cannot use the repository {}: its folder was moved or unmounted; mount it, or move it back: it is then used \
         again; if it lies there, restart the service",
        path.display()
    )]
    Moved {
        /// The path.
        path: PathBuf,
    },
    /// The index is being made anew, or is about to be.
    #[error("the index of {} is being made anew: try again later", path.display())]
    IndexBeingReplaced {
        /// The repository.
        path: PathBuf,
    },
    /// Another backup of the same disk is being made.
    #[error("a backup of {name} is running already: one at a time is made of a disk")]
    BackupRunning {
        /// The name.
        name: ImageName,
    },
    /// A list of backups is so long that no backup is added to it.
    #[error(
        "cannot add a backup of {name}: {} has {bytes} bytes, and above {} no backup is added; remove old ones with \
         \"ekko forget\" and \"ekko gc\", or back up under a new name",
        path.display(),
        settings::NEW_BACKUPS_LIMIT
    )]
    ListFull {
        /// The file.
        path: PathBuf,
        /// The name of the image.
        name: ImageName,
        /// How long the list is, in bytes.
        bytes: u64,
    },
    /// A name has as many backups as it may have.
    #[error(
        "cannot add a backup of {name}: it has {backups} backups, and {most} is the most; remove old ones with \"ekko forget\" \
         and \"ekko gc\""
    )]
    TooManyBackups {
        /// The name.
        name: ImageName,
        /// How many it has, with those that were deleted and are not collected.
        backups: usize,
        /// How many it may have.
        most: usize,
    },
    /// There are as many names as there may be.
    #[error(
        "cannot add the name {name}: there are {names} names, and {most} is the most; back up under a name that is there, \
         or raise names_per_project"
    )]
    TooManyNames {
        /// The name.
        name: ImageName,
        /// How many there are.
        names: usize,
        /// How many there may be.
        most: usize,
    },
    /// A file of settings would be longer than is read.
    #[error(
        "cannot write {}: it would have {bytes} bytes, and Ekko reads {} at most; remove old backups with \"ekko forget\" \
         and \"ekko gc\"",
        path.display(),
        settings::SETTINGS_LIMIT
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// How long it would be, in bytes.
        bytes: u64,
    },
    /// A backupset has no incremental left.
    #[error("backupset {backupset} has no number left for another backup")]
    NoIncremental {
        /// The backupset.
        backupset: String,
    },
}

impl From<PackError> for RepositoryError {
    fn from(error: PackError) -> Self {
        Self::Store(error.into())
    }
}

impl RepositoryError {
    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Storage(error) => error.kind(),
            Self::Manifest(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::NotFound { .. }
            | Self::EmptyFolder { .. }
            | Self::Incomplete { .. }
            | Self::Occupied { .. } => ErrorKind::NoRepository,
            Self::NoSuchBackup { .. }
            | Self::Deleted { .. }
            | Self::NoneNamed { .. }
            | Self::NoneDeleted { .. }
            | Self::AllDeleted { .. }
            | Self::UnknownName { .. } => ErrorKind::NotFound,
            Self::Exists { .. }
            | Self::Inside { .. }
            | Self::CannotImport { .. }
            | Self::Protected { .. }
            | Self::PartOfMachine { .. }
            | Self::NotAMachine { .. }
            | Self::ProtectedLonger { .. }
            | Self::NotExact { .. }
            | Self::NameTaken { .. }
            | Self::SameName { .. }
            | Self::TooManyFormerNames { .. }
            | Self::NameIsUuid { .. }
            | Self::ListFull { .. }
            | Self::TooManyBackups { .. }
            | Self::TooManyNames { .. }
            | Self::TooLong { .. }
            | Self::Settings { .. } => ErrorKind::Invalid,
            Self::NewerFormat { .. } | Self::CannotLock { .. } | Self::NoIncremental { .. } => {
                ErrorKind::Unsupported
            }
            Self::SettingsDamaged { .. } | Self::WrongManifest { .. } | Self::ListLost { .. } => {
                ErrorKind::Corrupt
            }
            Self::InUse { .. } | Self::BackupRunning { .. } | Self::IndexBeingReplaced { .. } => {
                ErrorKind::Busy
            }
            Self::Full { .. } | Self::Poisoned { .. } | Self::Moved { .. } | Self::NotOwner { .. } => {
                ErrorKind::Io
            }
        }
    }

    /// Says whether the index is to be replaced by a new one.
    pub fn distrusts_index(&self) -> bool {
        matches!(self, Self::Store(error) if error.distrusts_index())
    }

    /// Says whether it keeps an image from being backed up. That another image's backups are lost does not.
    pub(super) fn hinders(&self, image: &ImageName) -> bool {
        !matches!(self, Self::ListLost { name, .. } if name != image)
    }

    /// Says whether the disk is full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Storage(error) | Self::Manifest(ManifestError::Storage(error)) => error.is_full(),
            Self::Store(error) => error.is_full(),
            _ => false,
        }
    }
}
