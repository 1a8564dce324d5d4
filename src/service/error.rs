//! A service that cannot be.

use std::io;
use std::path::PathBuf;

use crate::error::ErrorKind;
use crate::repository::RepositoryError;
use crate::service::TokenId;
use crate::storage::StorageError;

/// A service that could not start or end in order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// Its threads could not be started.
    #[error("cannot start the service: {source}")]
    Start {
        /// What the operating system said.
        source: io::Error,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// An address that others reach, without encryption.
    #[error("{address} can be reached from elsewhere: name a certificate, or say --insecure")]
    Insecure {
        /// The address.
        address: String,
    },
    /// The settings cannot be used.
    #[error("{}: {what}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The settings about Keystone cannot be used.
    #[error("[keystone]: {what}")]
    Keystone {
        /// What does not fit.
        what: String,
    },
    /// A token that cannot be made.
    #[error("the token cannot be made: {what}")]
    WrongToken {
        /// Why.
        what: String,
    },
    /// There is no such token.
    #[error("{}: there is no token {id}; \"ekko token list\" shows which there are", path.display())]
    NoSuchToken {
        /// The file of the tokens.
        path: PathBuf,
        /// The token's name.
        id: TokenId,
    },
    /// The file of the tokens is not as it was written.
    #[error("{}: {what}; put a copy back, or remove it and make all tokens anew", path.display())]
    TokensDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// Something still uses the repository.
    #[error("requests did not end in time; the next opening checks the index")]
    StillInUse,
}

impl ServiceError {
    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Start { .. } | Self::Listen { .. } | Self::StillInUse => ErrorKind::Io,
            Self::Insecure { .. }
            | Self::Settings { .. }
            | Self::Keystone { .. }
            | Self::WrongToken { .. } => ErrorKind::Invalid,
            Self::NoSuchToken { .. } => ErrorKind::NotFound,
            Self::TokensDamaged { .. } => ErrorKind::Corrupt,
            Self::Storage(error) => error.kind(),
            Self::Repository(error) => error.kind(),
        }
    }
}
