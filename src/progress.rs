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
    /// The source changed while it was read, or somebody had it open who may have changed it: the backup mixes several moments.
    Inconsistent {
        /// The disk.
        name: String,
        /// How the source changed, in words.
        why: String,
    },
    /// Sectors of the source could not be read, and are zeros in the backup.
    Unreadable {
        /// The disk.
        name: String,
        /// How many ranges they are.
        ranges: usize,
        /// How many bytes the ranges have.
        bytes: u64,
    },
    /// A disk is smaller than in the backup before.
    Shrank {
        /// The disk.
        name: String,
        /// Its size in bytes in the backup before.
        was: u64,
        /// Its size in bytes now.
        now: u64,
    },
    /// The time of a backup does not fit that of the backup before.
    DoubtfulClock {
        /// The disk.
        name: String,
        /// When the backup before was begun.
        newest: jiff::Timestamp,
        /// The time now.
        now: jiff::Timestamp,
    },
    /// The source is read as raw and looks like an image of another format.
    LooksLike {
        /// The source.
        path: PathBuf,
        /// What it looks like, with its article: "a VMDK image".
        what: &'static str,
        /// The format to open it with, if Ekko reads it.
        format: Option<&'static str>,
    },
    /// A disk is read in full although there was to be a list of its changes.
    ReadInFull {
        /// The disk.
        name: String,
        /// Why the list is not used.
        why: String,
    },
    /// A backup is read that garbage collection may free meanwhile, if the backup is deleted.
    Unleased {
        /// The backup.
        backup: String,
        /// What reads it: "restore", "export", "verify" or "command".
        job: String,
        /// Why there is no lease.
        why: String,
    },
    /// Two different segments share one SHA-1; both are kept.
    TwinStored {
        /// The SHA-1 in hexadecimal.
        hash: String,
    },
    /// A job stands still and waits.
    Waiting {
        /// What it waits for, and why, in words.
        reason: String,
    },
    /// A job that waited, or that was interrupted, goes on.
    GoesOn {
        /// What goes on, in words.
        what: String,
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

    /// Says whether the job is to end before it is through. A job that can looks between two steps, leaves nothing half
    /// done, and says so; once this is true, it stays true.
    fn is_cancelled(&self) -> bool {
        false
    }

    /// Something to tell a person.
    fn notice(&self, notice: Notice) {
        let _ = notice;
    }
}

/// A part of a job that has begun: it ends when this is dropped, however the job went.
#[must_use]
pub struct Part<'a> {
    progress: &'a dyn Progress,
    bytes: u64,
    done: u64,
}

impl<'a> Part<'a> {
    /// Begins a part that will move about `bytes` bytes.
    pub fn begin(progress: &'a dyn Progress, label: &str, bytes: u64) -> Self {
        progress.begin(label, bytes);
        Self { progress, bytes, done: 0 }
    }

    /// Says that the first `done` bytes are done; what was said before is not taken back.
    pub fn reached(&mut self, done: u64) {
        let done = done.clamp(self.done, self.bytes.max(self.done));
        self.progress.advance(done - self.done);
        self.done = done;
    }
}

impl std::fmt::Debug for Part<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part").field("bytes", &self.bytes).field("done", &self.done).finish_non_exhaustive()
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        self.progress.end();
    }
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {}
