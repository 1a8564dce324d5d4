//! An export that is written to.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::image::ImageError;
use crate::image::nbd::link::Link;
use crate::image::nbd::wire::transmission;
use crate::image::nbd::{NbdError, NbdTask, Server};

/// An export that can be written to at any place, by several threads at once.
///
/// A link that is dropped is the end of it: what was written and not flushed may be lost.
#[derive(Debug)]
pub struct NbdTarget {
    path: PathBuf,
    link: Link,
}

impl NbdTarget {
    /// Connects to the server that a URI names, with the certificates of a folder if the link is encrypted.
    pub fn open(path: &Path, certificates: Option<&Path>) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Nbd { path: path.to_owned(), task: NbdTask::Open, source };
        let server = Server::of(path, certificates).map_err(failed)?;
        let link = Link::connect(&server, &[]).map_err(failed)?;
        if link.agreed().flags & transmission::READ_ONLY != 0 {
            return Err(failed(NbdError::Refused { what: "the export cannot be written to".to_owned() }));
        }
        Ok(Self { path: path.to_owned(), link })
    }

    /// Makes one of a link to a server that Ekko started, which has not been greeted yet.
    pub(in crate::image) fn of_own_server(path: &Path, stream: UnixStream) -> Result<Self, NbdError> {
        Ok(Self { path: path.to_owned(), link: Link::to_own(stream, &[])? })
    }

    /// Returns the size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.link.agreed().size
    }

    /// Writes bytes from `offset` on.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), ImageError> {
        self.link
            .write(bytes, offset)
            .map_err(|(at, source)| self.failed(NbdTask::Write { offset: at }, source))
    }

    /// Makes a range zero without sending zeros. Says whether the server can.
    pub fn zero(&self, range: std::ops::Range<u64>) -> Result<bool, ImageError> {
        self.link.zero(range).map_err(|(at, source)| self.failed(NbdTask::Write { offset: at }, source))
    }

    /// Makes everything durable that was written, as far as the server can.
    pub fn sync(&self) -> Result<(), ImageError> {
        self.link.flush().map_err(|source| self.failed(NbdTask::Flush, source))
    }

    fn failed(&self, task: NbdTask, source: NbdError) -> ImageError {
        ImageError::Nbd { path: self.path.clone(), task, source }
    }
}
