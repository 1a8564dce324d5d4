//! How the library tells a person what it is doing: one small trait, and never a print.

use std::path::PathBuf;

use crate::error::ErrorKind;

/// Something worth a line to a person that is neither a result nor a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// The index was made anew from the packs and manifests.
    IndexRebuilt {
        /// Why the old one was not believed.
        reason: String,
        /// How many segments the new one holds.
        segments: u64,
    },
    /// Work that a crash had cut short was finished or undone.
    Recovered {
        /// What was done.
        what: String,
    },
    /// The source may change while it is read.
    SourceInUse {
        /// The source.
        path: PathBuf,
        /// Who uses it, in words.
        how: String,
    },
    /// Two different segments share one SHA-1; both are kept.
    TwinStored {
        /// The SHA-1 in hexadecimal.
        hash: String,
    },
    /// Something is damaged, and the work went on without it.
    Problem {
        /// The kind of failure.
        kind: ErrorKind,
        /// What is damaged and what it means.
        what: String,
    },
}

/// Receives what a job has to tell. Called from several threads.
pub trait Progress: Send + Sync {
    /// A job or a part of it begins that will move about `bytes` bytes.
    fn begin(&self, label: &str, bytes: u64) {
        let _ = (label, bytes);
    }

    /// `bytes` more bytes are done.
    fn advance(&self, bytes: u64) {
        let _ = bytes;
    }

    /// The part last begun has ended.
    fn end(&self) {}

    /// Something to tell a person.
    fn notice(&self, notice: Notice) {
        let _ = notice;
    }
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {}
