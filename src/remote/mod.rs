//! A repository that a service has, on another machine or on this one.
//!
//! Owns the link and what is asked over it. A backup is hashed and compressed here, and what the service lacks is sent; a
//! restore is decoded and verified here. Knows nothing of how the service does its part: both speak [`crate::api`].

mod address;
mod backup;
mod error;
mod link;
mod manifest;
mod memory;
mod restore;
mod session;
mod stream;
#[cfg(test)]
mod tests;
mod tries;
mod unix;
mod verify;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use address::{Address, Credentials};
pub use error::RemoteError;

use crate::progress::Progress;
use crate::remote::link::Link;
use crate::remote::tries::Timing;

/// What stays as it is in a part of a path.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'@').remove(b'~');

/// A repository that a service has.
#[derive(Debug)]
pub struct RemoteRepository {
    link: Link,
}

impl RemoteRepository {
    /// Makes a link to a service; nothing is asked yet. What is waited for is told to `progress`.
    ///
    /// # Errors
    ///
    /// If the roots of certificates cannot be read.
    pub fn new(
        address: Address,
        credentials: &Credentials,
        progress: Arc<dyn Progress>,
    ) -> Result<Self, RemoteError> {
        Ok(Self { link: Link::new(address, credentials, Timing::default(), progress)? })
    }

    /// Makes a link to a service of which everything is asked once: what fails is not repeated, and each answer is waited for as long as
    /// `patience` says.
    ///
    /// # Errors
    ///
    /// If the roots of certificates cannot be read.
    pub fn without_patience(
        address: Address,
        credentials: &Credentials,
        progress: Arc<dyn Progress>,
        patience: Duration,
    ) -> Result<Self, RemoteError> {
        let timing = Timing {
            budget: Duration::ZERO,
            queue: Duration::ZERO,
            connect: patience,
            silence: patience,
            work: patience,
            ..Timing::default()
        };
        Ok(Self { link: Link::new(address, credentials, timing, progress)? })
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

    /// Asks with POST for something that is not to be done twice. It is not repeated when the answer is lost: then
    /// [`RemoteError::may_be_done`] says so of the failure.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub fn send_once<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, RemoteError> {
        self.link.document_once(path, body)
    }
}

/// Returns a text as a part of a path, or of a query.
pub fn part(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}
