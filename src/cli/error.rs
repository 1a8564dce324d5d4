//! A failed command.

use std::io;

use crate::backup::BackupError;
use crate::check::CheckError;
use crate::cli::mounts;
use crate::error::ErrorKind;
use crate::exchange::ExchangeError;
use crate::image::ImageError;
use crate::machine::MachineError;
use crate::manifest::ManifestError;
use crate::remote::RemoteError;
use crate::repository::RepositoryError;
use crate::restore::RestoreError;
use crate::service::ServiceError;

/// The exit codes. The README, the help and every man page list them.
pub(super) mod exit {
    /// The command failed.
    pub(in crate::cli) const FAILED: u8 = 1;
    /// The command line is wrong.
    pub(in crate::cli) const USAGE: u8 = 2;
    /// It is done, and there are problems: damage, differences, an overdue disk, one of several that failed.
    pub(in crate::cli) const PROBLEMS: u8 = 3;
    /// There is no repository.
    pub(in crate::cli) const NO_REPOSITORY: u8 = 10;
    /// Something that the command needs is in use: the repository, a disk, a target.
    pub(in crate::cli) const IN_USE: u8 = 11;
    /// The service refused the request: a wrong token, a missing role, a quota.
    pub(in crate::cli) const REFUSED: u8 = 13;

    /// All codes, in words: for help, man pages and the README.
    pub(in crate::cli) const ALL: [(u8, &str); 7] = [
        (0, "Done"),
        (FAILED, "Failed"),
        (USAGE, "Wrong usage"),
        (
            PROBLEMS,
            "Done, with problems: damage, differences, an overdue disk, one of several disks that failed",
        ),
        (NO_REPOSITORY, "No such repository"),
        (IN_USE, "In use: the repository, a disk or a target"),
        (REFUSED, "Refused by the service: a wrong token, a missing role, a quota"),
    ];
}

/// Why a command failed.
#[derive(Debug)]
pub(super) enum CliError {
    /// What a person is told, and of what kind it is.
    Failed { kind: ErrorKind, message: String },
    /// Nobody reads the data any longer that the command writes to stdout.
    BrokenPipe,
    /// The command has told why already; the rest is the exit code.
    Told { code: u8 },
}

impl CliError {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Failed { kind, message: message.into() }
    }

    /// Says first what was done before it failed.
    pub(super) fn after(self, done: &str) -> Self {
        match self {
            Self::Failed { kind, message } => Self::new(kind, format!("{done}: {message}")),
            Self::BrokenPipe | Self::Told { .. } => self,
        }
    }

    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::BrokenPipe => exit::FAILED,
            Self::Told { code } => *code,
            Self::Failed { kind, .. } => match kind {
                ErrorKind::Invalid => exit::USAGE,
                ErrorKind::NoRepository => exit::NO_REPOSITORY,
                ErrorKind::Busy => exit::IN_USE,
                ErrorKind::Refused => exit::REFUSED,
                ErrorKind::NotFound | ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::Io => {
                    exit::FAILED
                }
            },
        }
    }
}

impl From<RepositoryError> for CliError {
    fn from(error: RepositoryError) -> Self {
        let advice = match &error {
            RepositoryError::NotFound { path } | RepositoryError::EmptyFolder { path } => {
                mounts::advice(path)
            }
            _ => None,
        };
        match advice {
            Some(advice) => Self::new(error.kind(), format!("there is no repository: {advice}")),
            None => Self::new(error.kind(), error.to_string()),
        }
    }
}

impl From<BackupError> for CliError {
    fn from(error: BackupError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

impl From<ManifestError> for CliError {
    fn from(error: ManifestError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

impl From<RestoreError> for CliError {
    fn from(error: RestoreError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

impl From<CheckError> for CliError {
    fn from(error: CheckError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

impl From<ImageError> for CliError {
    fn from(error: ImageError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

impl From<MachineError> for CliError {
    fn from(error: MachineError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

impl From<ExchangeError> for CliError {
    fn from(error: ExchangeError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

impl From<RemoteError> for CliError {
    fn from(error: RemoteError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

impl From<ServiceError> for CliError {
    fn from(error: ServiceError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

impl From<io::Error> for CliError {
    /// For writing to stdout alone; every other failure names its path.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::new(ErrorKind::Io, format!("cannot write to stdout: {error}")),
        }
    }
}
