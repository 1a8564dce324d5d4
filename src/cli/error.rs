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

/// Why a command failed.
#[derive(Debug)]
pub(super) enum CliError {
    /// What a person is told, and of what kind it is.
    Failed { kind: ErrorKind, message: String },
    /// Nobody reads our output any longer.
    BrokenPipe,
}

impl CliError {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Failed { kind, message: message.into() }
    }

    /// Says first what was done before it failed.
    pub(super) fn after(self, done: &str) -> Self {
        match self {
            Self::Failed { kind, message } => Self::new(kind, format!("{done}: {message}")),
            Self::BrokenPipe => Self::BrokenPipe,
        }
    }

    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::BrokenPipe => 0,
            Self::Failed { kind, .. } => match kind {
                ErrorKind::Invalid => 2,
                ErrorKind::NotFound
                | ErrorKind::Busy
                | ErrorKind::Corrupt
                | ErrorKind::Unsupported
                | ErrorKind::Io => 1,
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
