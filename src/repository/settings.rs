//! `ekko.toml`: what a repository is. Written once, by `init`; a person may change the defaults in it.

use std::path::Path;
use std::time::Duration;

use jiff::SignedDuration;

use serde::{Deserialize, Serialize};

use crate::codec::CompressionSetting;
use crate::repository::{Layout, RepositoryError};
use crate::segment::SegmentSize;
use crate::storage::{Storage, StorageError, read_small};

/// The newest format this release reads, and the one it writes.
pub(super) const FORMAT: u32 = 1;

/// The size of the file that is given up when the disk is full, in bytes.
const RESERVE: u64 = 64 << 20;

/// How often the reserve is looked for anew if another thread creates or removes it.
const RESERVE_TRIES: u32 = 100;

/// No file of settings is larger than this, in bytes.
pub(super) const SETTINGS_LIMIT: u64 = 64 << 20;

/// A list of backups that is larger than this takes no new ones, in bytes. Each commit reads the list and writes it again while
/// all other commits wait, so it must stay short: 30,000 backups without tags, or 5,000 with the longest tags. The rest up to
/// [`SETTINGS_LIMIT`] is for deletions, protections and notes, which must always be possible.
pub(super) const NEW_BACKUPS_LIMIT: u64 = 8 << 20;

/// What a repository is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its id, which every pack carries.
    pub repository: uuid::Uuid,
    /// The size of its segments.
    pub segment_size: SegmentSize,
    /// The compression that backups use unless they say otherwise.
    pub compression: CompressionSetting,
    /// How long what an unfinished backup stored is kept for its next run.
    pub keep_unfinished: Duration,
    /// How long a deleted backup can be undeleted.
    pub keep_deleted: Duration,
}

/// How long what an unfinished backup stored is kept unless the settings say otherwise.
pub const KEEP_UNFINISHED: Duration = Duration::from_hours(24);

/// How long a deleted backup can be undeleted unless the settings say otherwise.
pub const KEEP_DELETED: Duration = Duration::from_hours(24);

/// Reads a span of time: a number of weeks (`2w`) or days of 24 hours (`30d`), or a duration such as `48h` or
/// `1h30m`.
pub fn span(text: &str) -> Option<SignedDuration> {
    let days = |number: &str, of: i64| {
        let days = number.parse::<i64>().ok().filter(|days| (0..=36_500).contains(days));
        days.map(|days| SignedDuration::from_hours(days * of * 24))
    };
    if let Some(number) = text.strip_suffix('d') {
        return days(number, 1);
    }
    if let Some(number) = text.strip_suffix('w') {
        return days(number, 7);
    }
    text.parse().ok().filter(|span: &SignedDuration| !span.is_negative())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    repository: String,
    segment_size: u64,
    #[serde(default)]
    defaults: Defaults,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Defaults {
    compression: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_unfinished: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_deleted: Option<String>,
}

/// Returns the text of `ekko.toml`.
pub(super) fn text(settings: &Settings) -> Result<String, toml::ser::Error> {
    let file = File {
        format: FORMAT,
        repository: settings.repository.to_string(),
        segment_size: u64::from(settings.segment_size.bytes()),
        defaults: Defaults {
            compression: Some(settings.compression.to_string()),
            keep_unfinished: None,
            keep_deleted: None,
        },
    };
    let text = toml::to_string(&file)?;
    Ok(format!("# An Ekko repository. Only [defaults] may be changed by hand.\n{text}"))
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Says whether a file of settings has a format that this release reads, before anything else is read.
pub(super) fn check_format(path: &Path, text: &str) -> Result<(), RepositoryError> {
    // It stands before the first table. A list of backups may be long, and reading all of it a second time takes as long as the
    // first.
    let head = text.split_once("\n[").map_or(text, |(head, _)| head);
    let understood = toml::from_str::<Format>(head).or_else(|_| toml::from_str::<Format>(text));
    let settings = |what: String| RepositoryError::Settings { path: path.to_owned(), what };
    match understood.map_err(|error| settings(error.message().to_owned()))?.format {
        FORMAT => Ok(()),
        0 => Err(settings("there is no format 0".to_owned())),
        found => Err(RepositoryError::NewerFormat { path: path.to_owned(), found }),
    }
}

/// Makes sure that a text will be read again when it is written to a file of settings.
pub(super) fn check_length(path: &Path, text: &str) -> Result<(), RepositoryError> {
    match text.len() as u64 {
        0..=SETTINGS_LIMIT => Ok(()),
        bytes => Err(RepositoryError::TooLong { path: path.to_owned(), bytes }),
    }
}

/// Reads a file of settings as text.
pub(super) fn read_text(storage: &dyn Storage, path: &Path) -> Result<String, RepositoryError> {
    String::from_utf8(read_small(storage, path, SETTINGS_LIMIT)?).map_err(|_| {
        RepositoryError::SettingsDamaged { path: path.to_owned(), what: "it is not text".to_owned() }
    })
}

pub(super) fn read(storage: &dyn Storage, layout: &Layout) -> Result<Settings, RepositoryError> {
    let path = layout.settings();
    let text = read_text(storage, &path)?;
    check_format(&path, &text)?;
    let settings = |what: String| RepositoryError::Settings { path: path.clone(), what };
    let file: File = toml::from_str(&text).map_err(|error| settings(error.message().to_owned()))?;
    let compression = file.defaults.compression.as_deref().map(str::parse).transpose();
    let period = |name: &str, text: Option<&str>, default: Duration| match text {
        None => Ok(default),
        Some(text) => span(text)
            .and_then(|span| Duration::try_from(span).ok())
            .ok_or_else(|| settings(format!("{name} is no span of time: {text:?}"))),
    };
    let keep_unfinished =
        period("keep_unfinished", file.defaults.keep_unfinished.as_deref(), KEEP_UNFINISHED)?;
    let keep_deleted = period("keep_deleted", file.defaults.keep_deleted.as_deref(), KEEP_DELETED)?;
    Ok(Settings {
        repository: file
            .repository
            .parse()
            .map_err(|_| settings("its repository id is no UUID".to_owned()))?,
        segment_size: SegmentSize::new(file.segment_size).map_err(|error| settings(error.to_string()))?,
        compression: compression
            .map_err(|error: crate::codec::InvalidCompression| settings(error.to_string()))?
            .unwrap_or_default(),
        keep_unfinished,
        keep_deleted,
    })
}

/// Makes sure that the reserve is there. Several threads may do so at once: whoever finds that another has just created the
/// file makes sure of its size, which changes nothing if the other has, too.
///
/// # Errors
/// The disk has no room for it: a backup is then not begun.
pub(super) fn refill_reserve(storage: &dyn Storage, layout: &Layout) -> Result<(), StorageError> {
    let path = layout.reserve();
    let mut tries = 0;
    let file = loop {
        match storage.open(&path) {
            Ok(file) if file.size()? >= RESERVE => return Ok(()),
            Ok(file) => break file,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        match storage.create(&path) {
            Ok(file) => break file,
            // Another thread was faster; it may give the reserve up at once, if the disk is full.
            Err(error)
                if error.source.kind() == std::io::ErrorKind::AlreadyExists && tries < RESERVE_TRIES =>
            {
                tries += 1;
            }
            Err(error) => return Err(error),
        }
    };
    file.allocate(RESERVE).or_else(|error| {
        if error.source.kind() == std::io::ErrorKind::Unsupported {
            // A filesystem that cannot allocate ahead gets a reserve in name only rather than no repository.
            return file.truncate(RESERVE);
        }
        // Half a reserve is none; the next opening tries again.
        let _ = storage.unlink(&path);
        Err(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Access, RootStorage, StorageFile};
    use std::fs::{File as OsFile, Metadata};
    use std::path::PathBuf;
    use std::sync::Barrier;

    /// A storage that lets two threads find at the same moment that a file is missing.
    #[derive(Debug)]
    struct Meeting {
        files: RootStorage,
        found_missing: Barrier,
        met: std::sync::atomic::AtomicU32,
    }

    type Done<T> = Result<T, StorageError>;

    impl Storage for Meeting {
        fn create(&self, path: &Path) -> Done<Box<dyn StorageFile>> {
            self.files.create(path)
        }
        fn open(&self, path: &Path) -> Done<Box<dyn StorageFile>> {
            let opened = self.files.open(path);
            if opened.is_err() && self.met.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 2 {
                self.found_missing.wait();
            }
            opened
        }
        fn open_read(&self, path: &Path) -> Done<Box<dyn StorageFile>> {
            self.files.open_read(path)
        }
        fn handle(&self, path: &Path, access: Access) -> Done<OsFile> {
            self.files.handle(path, access)
        }
        fn examine(&self, path: &Path) -> Done<Metadata> {
            self.files.examine(path)
        }
        fn rename(&self, from: &Path, to: &Path) -> Done<()> {
            self.files.rename(from, to)
        }
        fn rename_new(&self, from: &Path, to: &Path) -> Done<()> {
            self.files.rename_new(from, to)
        }
        fn unlink(&self, path: &Path) -> Done<()> {
            self.files.unlink(path)
        }
        fn check_folder(&self, path: &Path) -> Done<()> {
            self.files.check_folder(path)
        }
        fn create_folder(&self, path: &Path) -> Done<()> {
            self.files.create_folder(path)
        }
        fn remove_folder(&self, path: &Path) -> Done<()> {
            self.files.remove_folder(path)
        }
        fn sync_folder(&self, path: &Path) -> Done<()> {
            self.files.sync_folder(path)
        }
        fn gives_back(&self, folder: &Path) -> Done<bool> {
            self.files.gives_back(folder)
        }
        fn list(&self, path: &Path) -> Done<Vec<String>> {
            self.files.list(path)
        }
    }

    #[test]
    fn a_newer_format_is_named_though_the_tables_after_it_cannot_be_understood() {
        let path = Path::new("set.toml");
        let check = |text: &str| check_format(path, text);
        let newer = check("format = 2\n\n[[backup]]\nincremental = a new kind of number\n").unwrap_err();
        assert!(matches!(newer, RepositoryError::NewerFormat { found: 2, .. }), "{newer}");
        check("format = 1\nbases = [\n\"a\",\n[\"b\"]]\n[[backup]]\n").unwrap();
        assert!(check("[[backup]]\nformat = 1\n").is_err());
    }

    #[test]
    fn two_threads_that_find_no_reserve_at_the_same_moment_both_have_it_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let root: PathBuf = folder.path().to_owned();
        let layout = Layout::new(&root);
        let storage =
            Meeting { files: RootStorage::at(&root), found_missing: Barrier::new(2), met: 0.into() };
        std::thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(|| refill_reserve(&storage, &layout)));
            for thread in both {
                thread.join().unwrap().unwrap();
            }
        });
        assert_eq!(std::fs::metadata(layout.reserve()).unwrap().len(), RESERVE);
    }
}
