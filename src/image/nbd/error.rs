//! What goes wrong with NBD servers.

use std::fmt;
use std::io;
use std::path::Path;

use crate::error::ErrorKind;
use crate::image::nbd::socket::SILENCE;

/// What an export was asked for when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NbdTask {
    /// To be opened.
    Open,
    /// For its bytes from `offset` on.
    Read {
        /// The first byte that was asked for.
        offset: u64,
    },
    /// For the states of its ranges from `offset` on.
    Map {
        /// The first byte that was asked about.
        offset: u64,
    },
    /// To take bytes from `offset` on.
    Write {
        /// The first byte that was to be written.
        offset: u64,
    },
    /// To make durable what was written.
    Flush,
}

impl NbdTask {
    /// Returns the task as "VERB EXPORT at PLACE".
    pub(in crate::image) fn on(self, path: &Path) -> impl fmt::Display {
        let path = path.display();
        match self {
            Self::Open => format!("open {path}"),
            Self::Read { offset } => format!("read {path} at {}", place(offset)),
            Self::Map { offset } => format!("find the data in {path} from {} on", place(offset)),
            Self::Write { offset } => format!("write to {path} at {}", place(offset)),
            Self::Flush => format!("flush {path}"),
        }
    }
}

/// Returns an offset in units that a person uses, and exactly.
fn place(offset: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| offset >> shift > 0) {
        // In tenths, cut off: the exact byte follows.
        Some((shift, unit)) => {
            let tenths = ((u128::from(offset) * 10) >> shift) % 10;
            format!("{}.{tenths} {unit} (byte {offset})", offset >> shift)
        }
        None => format!("byte {offset}"),
    }
}

impl NbdError {
    /// Returns what to do about it, or nothing.
    pub(in crate::image) fn hint(&self, task: NbdTask) -> &'static str {
        match (self, task) {
            // A server that has as many clients as it takes lets others wait.
            (Self::Silent { .. }, NbdTask::Open) => {
                "; if it takes no further client, start it for more: qemu-nbd -e 4"
            }
            _ => "",
        }
    }
}

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
    Io(io::Error),
    /// The server sent nothing for so long that it counts as gone.
    #[error("the server did not answer within {seconds} s")]
    Silent {
        /// How long Ekko waited.
        seconds: u64,
    },
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
    /// The server speaks the protocol of before 2011 only.
    #[error(
        "the server speaks only the oldstyle protocol, which Ekko does not; start it for the newstyle protocol (nbdkit: \
         without --oldstyle)"
    )]
    Oldstyle,
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
    /// The server has no such dirty bitmap.
    #[error("the server has no dirty bitmap {bitmap:?} (a guest that crashed has lost its bitmaps)")]
    NoBitmap {
        /// Its name.
        bitmap: String,
    },
    /// The server has not what was asked for.
    #[error("the server has no {what}")]
    Lacks {
        /// What it has not.
        what: String,
    },
    /// The server could not do what was asked.
    #[error("{}{words}", meaning(*number))]
    Server {
        /// The number of the error, as the protocol has them.
        number: u32,
        /// A colon and the server's words, if it sent any.
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

/// Returns what an error number of the protocol means. The protocol has these eight, with the numbers of Linux.
fn meaning(number: u32) -> String {
    let (what, name) = match number {
        1 => ("the server does not permit it", "EPERM"),
        5 => ("input/output error on the server", "EIO"),
        12 => ("the server has no memory left", "ENOMEM"),
        22 => ("the server calls the request invalid", "EINVAL"),
        28 => ("no space left on the server", "ENOSPC"),
        75 => ("the server calls the request too long", "EOVERFLOW"),
        95 => ("the server does not support the request", "ENOTSUP"),
        SHUTDOWN => ("the server is shutting down", "ESHUTDOWN"),
        _ => return format!("the server failed with error {number}"),
    };
    format!("{what} ({name})")
}

impl From<io::Error> for NbdError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // What a socket says when its time limit is over.
            io::ErrorKind::WouldBlock => Self::Silent { seconds: SILENCE.as_secs() },
            io::ErrorKind::UnexpectedEof => Self::Dropped { why: "the server closed it".to_owned() },
            _ => Self::Io(error),
        }
    }
}

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
            Self::Export { .. } | Self::NoBitmap { .. } | Self::Lacks { .. } => ErrorKind::NotFound,
            Self::Oldstyle => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        }
    }

    /// Says whether another link may do better.
    pub(super) fn is_drop(&self) -> bool {
        matches!(
            self,
            Self::Io(_) | Self::Silent { .. } | Self::Dropped { .. } | Self::Server { number: SHUTDOWN, .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_place_the_direction_and_the_meaning() {
        let export = Path::new("nbd://host/vda");
        for (task, text) in [
            (NbdTask::Open, "open nbd://host/vda"),
            (NbdTask::Read { offset: 0 }, "read nbd://host/vda at byte 0"),
            (NbdTask::Read { offset: 1023 }, "read nbd://host/vda at byte 1023"),
            (NbdTask::Write { offset: 1 << 30 }, "write to nbd://host/vda at 1.0 GiB (byte 1073741824)"),
            (
                NbdTask::Write { offset: 1_610_612_735 },
                "write to nbd://host/vda at 1.4 GiB (byte 1610612735)",
            ),
            (NbdTask::Map { offset: 2048 }, "find the data in nbd://host/vda from 2.0 KiB (byte 2048) on"),
            (NbdTask::Flush, "flush nbd://host/vda"),
        ] {
            assert_eq!(task.on(export).to_string(), text);
        }
        assert!(NbdTask::Read { offset: u64::MAX }.on(export).to_string().contains("17179869183.9 GiB"));
        assert_eq!(NbdError::server(28, String::new()).to_string(), "no space left on the server (ENOSPC)");
        let worded = NbdError::server(5, "bad disk".to_owned()).to_string();
        assert_eq!(worded, "input/output error on the server (EIO): bad disk");
        assert_eq!(NbdError::server(47, String::new()).to_string(), "the server failed with error 47");
    }
}
