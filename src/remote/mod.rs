//! A repository that a service has, on another machine or on this one.
//!
//! Owns the link and what is asked over it. A backup is hashed and compressed here, and what the service lacks is sent; a
//! restore is decoded and verified here. Knows nothing of how the service does its part: both speak [`crate::api`].

mod backup;
mod link;
mod restore;
mod unix;

use std::path::PathBuf;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use link::{Address, Credentials};

use crate::api::Problem;
use crate::backup::BackupError;
use crate::error::ErrorKind;
use crate::remote::link::{Link, Sent};
use crate::restore::RestoreError;

/// What stays as it is in a part of a path.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'@').remove(b'~');

/// A service that could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// It cannot be reached, or the link broke.
    #[error("cannot reach the service at {address}: {source}")]
    Unreachable {
        /// Where it is to be.
        address: String,
        /// What went wrong.
        source: ureq::Error,
    },
    /// It refused.
    #[error("the service at {address} refused: {} ({})", problem.detail, problem.request_id)]
    Refused {
        /// Where it is.
        address: String,
        /// Why.
        problem: Problem,
    },
    /// Something else answers there.
    #[error("what answers at {address} is no Ekko service (status {status})")]
    NotAService {
        /// Where it is to be.
        address: String,
        /// The HTTP status.
        status: u16,
    },
    /// Its answer does not make sense.
    #[error("the answer of the service at {address} cannot be understood: {what}")]
    Misunderstood {
        /// Where it is.
        address: String,
        /// What does not fit.
        what: String,
    },
    /// The roots of certificates cannot be read.
    #[error("{}: {what}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl RemoteError {
    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreachable { .. } => ErrorKind::Io,
            Self::Refused { problem, .. } => problem.kind.error_kind(),
            Self::NotAService { .. } | Self::Certificates { .. } => ErrorKind::Invalid,
            Self::Misunderstood { .. } => ErrorKind::Corrupt,
        }
    }
}

impl From<RemoteError> for BackupError {
    fn from(error: RemoteError) -> Self {
        Self::Elsewhere { kind: error.kind(), source: Box::new(error) }
    }
}

impl From<RemoteError> for RestoreError {
    fn from(error: RemoteError) -> Self {
        Self::Elsewhere { kind: error.kind(), source: Box::new(error) }
    }
}

/// A repository that a service has.
#[derive(Debug)]
pub struct RemoteRepository {
    link: Link,
}

impl RemoteRepository {
    /// Makes a link to a service; nothing is asked yet.
    ///
    /// # Errors
    ///
    /// If the roots of certificates cannot be read.
    pub fn new(address: Address, credentials: &Credentials) -> Result<Self, RemoteError> {
        Ok(Self { link: Link::new(address, credentials)? })
    }

    /// Returns where the service is.
    pub fn address(&self) -> &Address {
        self.link.address()
    }

    /// Asks for a document.
    ///
    /// # Errors
    ///
    /// If the service cannot be reached, refuses, or is misunderstood.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, RemoteError> {
        self.link.document("GET", path, None::<&()>)
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub fn send<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, RemoteError> {
        self.link.document(method, path, body)
    }

    /// Asks for something to be done that is answered by nothing.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub fn order(&self, method: &str, path: &str) -> Result<(), RemoteError> {
        self.link.bytes(method, path, Sent::Nothing, 1 << 20).map(drop)
    }

    /// Asks for bytes, which are read as they come.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub fn read(&self, path: &str) -> Result<impl std::io::Read, RemoteError> {
        self.link.reader(path, &[])
    }
}

/// Returns a text as a part of a path, or of a query.
pub fn part(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}
