//! Machines: several disks that are backed up at one moment, with small files beside them.
//!
//! The moment of a machine is a small backup of its own, of the machine's name: its "disk" is an archive with the files and
//! with `machine.json`, which says which backups of which disks belong to the moment. So it is listed, counted, checked,
//! forgotten and collected as every other backup is. It is committed together with the backups of the disks.
//!
//! Owns the archive, and how several disks are read for one moment and found again; knows nothing of how one disk is read or
//! restored.

mod backup;
mod moment;
mod names;
mod restore;

use std::io;
use std::path::PathBuf;

use crate::backup::BackupError;
use crate::error::ErrorKind;
use crate::manifest::{ImageName, ManifestError};
use crate::repository::{JobError, RepositoryError};
use crate::restore::RestoreError;

pub use backup::{MachineBackup, MachineOptions, MachineSource, MachineSummary, back_up_machine};
pub use moment::{ATTACHED_LIMIT, MachineDisk, Moment, is_moment};
pub use names::{Attachment, FileName, InvalidFileName, MACHINE_FILE, disk_file, machine_files};
pub use restore::{MachineTargets, RestoredMachine, RestoredPart, restore_machine};

/// The attribute of the manifest of a machine's moment and of its disks' backups.
const MACHINE: &str = "machine";

/// A machine that was not backed up, or of which a moment cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// A disk failed, and with it the machine.
    #[error("{name}: {source}; nothing of the machine was committed")]
    Disk {
        /// The disk.
        name: ImageName,
        /// What went wrong.
        source: Box<BackupError>,
    },
    /// What lies beside the disks could not be stored.
    #[error(transparent)]
    Moment(#[from] BackupError),
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A moment could not be read.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The disks were read and let go, and then the index failed.
    #[error("the index failed after the disks had been read and let go: back the machine up again")]
    LetGo,
    /// A file or a disk cannot have its name.
    #[error(transparent)]
    Name(#[from] InvalidFileName),
    /// Two files of a machine have one name.
    #[error("two files of the machine would be named {name}: rename one")]
    NameTwice {
        /// The name.
        name: FileName,
    },
    /// The disk's name does not say that it is the machine's.
    #[error("{name} is to be a disk of {machine}: name it {machine}/DISK")]
    OtherMachine {
        /// The disk.
        name: ImageName,
        /// The machine.
        machine: ImageName,
    },
    /// What is to lie beside the disks is too large.
    #[error(
        "the attached files have {bytes} bytes, and {} is the most that a machine may have beside its disks",
        moment::ATTACHED_LIMIT
    )]
    TooLarge {
        /// How large they are.
        bytes: u64,
    },
    /// The description of the machine would be longer than is read.
    #[error(
        "cannot back up {machine}: the description of its {disks} disks and {files} attached files is too long; back them \
         up as two machines"
    )]
    TooMany {
        /// The machine.
        machine: ImageName,
        /// How many disks it has.
        disks: usize,
        /// How many files.
        files: usize,
    },
    /// The backup is of a disk.
    #[error("{backup} is no moment of a machine, but the backup of a disk: leave --machine out")]
    NotAMachine {
        /// The backup.
        backup: String,
    },
    /// Some parts were restored, and then one failed.
    #[error("{source}; restored already: {}", join(complete))]
    Partly {
        /// What failed.
        source: Box<MachineError>,
        /// The targets that are complete.
        complete: Vec<PathBuf>,
    },
    /// Backups of disks are gone, and with them the moment.
    #[error(
        "cannot restore all of {machine}, so nothing was restored: {}; restore the disks that are there one by one",
        missing.join("; ")
    )]
    MissingDisks {
        /// The machine.
        machine: ImageName,
        /// What is missing, and why.
        missing: Vec<String>,
    },
    /// The machine has no part of this name.
    #[error("the machine has no {name}: it has {known}")]
    NoSuchPart {
        /// The name.
        name: String,
        /// The names of its parts.
        known: String,
    },
    /// A disk and an attached file have this name.
    #[error(
        "{name} is a disk and an attached file: write {other} for the file, or MACHINE/{name} for the disk"
    )]
    AmbiguousPart {
        /// The name.
        name: String,
        /// The longer name of the file.
        other: String,
    },
    /// A part has two targets.
    #[error("{name} has two targets: name one")]
    PartTwice {
        /// The part.
        name: String,
    },
    /// Two parts have one target.
    #[error("two parts of the machine have the target {}: nothing was written", path.display())]
    TargetTwice {
        /// The target.
        path: PathBuf,
    },
    /// Disks have no target.
    #[error("no target for {names}: add --to NAME=TARGET for each, or name a folder for the rest")]
    NoTarget {
        /// The disks.
        names: String,
    },
    /// Files of the folder would be overwritten.
    #[error("{} is not empty: name a new folder, or use --force to overwrite files in it", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The folder cannot be used.
    #[error("cannot restore into {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// What a moment says makes no sense.
    #[error("{backup} cannot be understood as a moment of a machine: {what}")]
    Invalid {
        /// The moment.
        backup: String,
        /// What does not fit.
        what: String,
    },
    /// The archive is damaged.
    #[error("what lies beside the disks of {backup} is damaged: {what}")]
    Damaged {
        /// The moment.
        backup: String,
        /// What is wrong with it.
        what: String,
    },
}

fn join(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl From<ManifestError> for MachineError {
    fn from(error: ManifestError) -> Self {
        Self::Repository(error.into())
    }
}

impl MachineError {
    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Disk { source, .. } => source.kind(),
            Self::Moment(source) => source.kind(),
            Self::Repository(error) => error.kind(),
            Self::Restore(error) => error.kind(),
            Self::Partly { source, .. } => source.kind(),
            Self::LetGo | Self::Folder { .. } => ErrorKind::Io,
            Self::Name(_)
            | Self::NameTwice { .. }
            | Self::OtherMachine { .. }
            | Self::TooLarge { .. }
            | Self::TooMany { .. }
            | Self::NoSuchPart { .. }
            | Self::AmbiguousPart { .. }
            | Self::PartTwice { .. }
            | Self::TargetTwice { .. }
            | Self::NoTarget { .. }
            | Self::NotEmpty { .. }
            | Self::NotAMachine { .. } => ErrorKind::Invalid,
            Self::MissingDisks { .. } => ErrorKind::NotFound,
            Self::Invalid { .. } | Self::Damaged { .. } => ErrorKind::Corrupt,
        }
    }
}

impl JobError for MachineError {
    fn repository(&self) -> Option<&RepositoryError> {
        match self {
            Self::Disk { source, .. } => source.repository(),
            Self::Moment(source) => source.repository(),
            Self::Repository(error) => Some(error),
            _ => None,
        }
    }
}
