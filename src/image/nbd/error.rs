//! What goes wrong with NBD servers.

use std::io;

use crate::error::ErrorKind;

/// What went wrong with an NBD server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NbdError {
    /// The URI cannot be read.
    #[error("{what}")]
    Uri {
        /// What is wrong with it.
        what: &'static str,
    },
    /// An encrypted link cannot be made with what there is.
    #[error("{what}")]
    Certificates {
        /// Why not.
        what: String,
    },
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The link ended.
    #[error("the link was dropped: {why}")]
    Dropped {
        /// Why.
        why: String,
    },
    /// The server did not follow the protocol.
    #[error("the server does not keep to the protocol: {what}")]
    Protocol {
        /// What it did.
        what: &'static str,
    },
    /// The server exports nothing of this name.
    #[error("the server has no export {export:?}")]
    Export {
        /// The name.
        export: String,
    },
    /// The server does not want to.
    #[error("the server says: {what}")]
    Refused {
        /// What it says.
        what: String,
    },
    /// The server has not what was asked for.
    #[error("the server has no {what}")]
    Lacks {
        /// What it has not.
        what: String,
    },
    /// The server could not do what was asked.
    #[error("the server says: error {number}{words}")]
    Server {
        /// The number of the error, as Linux has them.
        number: u32,
        /// A colon and its words, if it has any.
        words: String,
    },
    /// Another thread has found out that there is no server any longer.
    #[error("the server is gone: {why}")]
    Gone {
        /// Why the last link could not be made.
        why: String,
    },
    /// After a dropped link the export was another.
    #[error("the export has {now} bytes after the link was dropped, and had {was}")]
    Changed {
        /// Its size in bytes when it was opened.
        was: u64,
        /// Its size in bytes now.
        now: u64,
    },
}

/// The server is going away.
const SHUTDOWN: u32 = 108;

impl NbdError {
    pub(super) fn protocol(what: &'static str) -> Self {
        Self::Protocol { what }
    }

    pub(super) fn server(number: u32, words: String) -> Self {
        let words = if words.is_empty() { words } else { format!(": {words}") };
        Self::Server { number, words }
    }

    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Uri { .. } | Self::Certificates { .. } => ErrorKind::Invalid,
            Self::Export { .. } | Self::Lacks { .. } => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        }
    }

    /// Says whether another link may do better.
    pub(super) fn is_drop(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Dropped { .. } | Self::Server { number: SHUTDOWN, .. })
    }
}
