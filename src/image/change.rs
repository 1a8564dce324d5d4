//! Changes of a file while it is read: a copy of a disk that changed meanwhile mixes several moments.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

/// How a source has changed since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceChange {
    /// It has become larger. Ekko reads it up to its old end.
    Grew {
        /// Its size in bytes when it was opened.
        was: u64,
        /// Its size in bytes now.
        now: u64,
    },
    /// Its time of modification is another one.
    Written,
    /// Its time of change is another one: content, size, owner, mode or links may have changed.
    Touched,
}

impl fmt::Display for SourceChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grew { was, now } => write!(f, "it grew from {was} to {now} bytes while it was read"),
            Self::Written => f.write_str("it was written to while it was read"),
            Self::Touched => f.write_str("it was changed while it was read (its change time is another)"),
        }
    }
}

/// The times of a regular file. A block device has none that tell of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Times {
    /// Returns the times of a regular file; nothing of anything else.
    pub(super) fn of(file: &File) -> io::Result<Option<Self>> {
        let metadata = file.metadata()?;
        Ok(metadata.is_file().then(|| Self {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }))
    }

    /// Compares with the times of later.
    pub(super) fn compare(self, later: Self) -> Option<SourceChange> {
        if self.modified != later.modified {
            return Some(SourceChange::Written);
        }
        (self.changed != later.changed).then_some(SourceChange::Touched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_to_or_touched_has_other_times() {
        let times = Times { modified: (5, 6), changed: (7, 8) };
        assert_eq!(times.compare(times), None);
        for modified in [(5, 7), (4, 6)] {
            assert_eq!(times.compare(Times { modified, ..times }), Some(SourceChange::Written));
        }
        assert_eq!(times.compare(Times { changed: (7, 9), ..times }), Some(SourceChange::Touched));
    }

    #[test]
    fn a_device_has_no_times() {
        assert_eq!(Times::of(&File::open("/dev/zero").unwrap()).unwrap(), None);
        assert!(Times::of(&tempfile::tempfile().unwrap()).unwrap().is_some());
    }
}
