//! `ekko.toml`: what a repository is. Written once, by `init`; a person may change the defaults in it.

use std::path::Path;
use std::time::Duration;

use jiff::SignedDuration;

use serde::{Deserialize, Serialize};

use crate::codec::CompressionSetting;
use crate::repository::state::StateFile;
use crate::repository::{Layout, RepositoryError};
use crate::segment::{DEFAULT_SEGMENT_SIZE, SegmentSize};
use crate::storage::{Storage, StorageError, read_small, replace};

/// The newest format this release reads, and the one it writes.
pub(super) const FORMAT: u32 = 1;

/// The size of the file that is given up when the disk is full, in bytes.
const RESERVE: u64 = 64 << 20;

/// No file of settings is larger than this, in bytes.
pub(super) const SETTINGS_LIMIT: u64 = 64 << 20;

/// What a repository is made with.
#[derive(Clone, Copy, Debug)]
pub struct InitOptions {
    /// The size of its segments, for good.
    pub segment_size: SegmentSize,
    /// The compression that backups use unless they say otherwise.
    pub compression: CompressionSetting,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self { segment_size: DEFAULT_SEGMENT_SIZE, compression: CompressionSetting::default() }
    }
}

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
}

/// How long what an unfinished backup stored is kept unless the settings say otherwise.
pub const KEEP_UNFINISHED: Duration = Duration::from_hours(24);

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
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Says whether a file of settings has a format that this release reads, before anything else is read.
pub(super) fn check_format(path: &Path, text: &str) -> Result<(), RepositoryError> {
    let understood = toml::from_str::<Format>(text);
    let settings = |what: String| RepositoryError::Settings { path: path.to_owned(), what };
    match understood.map_err(|error| settings(error.message().to_owned()))?.format {
        FORMAT => Ok(()),
        0 => Err(settings("there is no format 0".to_owned())),
        found => Err(RepositoryError::NewerFormat { path: path.to_owned(), found }),
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
    let keep_unfinished = match file.defaults.keep_unfinished.as_deref() {
        None => KEEP_UNFINISHED,
        Some(text) => span(text)
            .and_then(|span| Duration::try_from(span).ok())
            .ok_or_else(|| settings(format!("keep_unfinished is no span of time: {text:?}")))?,
    };
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
    })
}

/// Makes the folders and files of a new repository. `ekko.toml` comes last: with it, durably, the
/// repository exists; a crash before leaves a folder that is none.
pub(super) fn create(
    storage: &dyn Storage,
    layout: &Layout,
    options: &InitOptions,
) -> Result<Settings, RepositoryError> {
    let root = layout.root();
    match storage.list(root) {
        Ok(names) if names.is_empty() => {}
        Ok(names) if names.iter().any(|name| name == "ekko.toml") => {
            return Err(RepositoryError::Exists { path: root.to_owned() });
        }
        Ok(names) if is_unfinished(&names) => {}
        Ok(_) => return Err(RepositoryError::Occupied { path: root.to_owned() }),
        Err(error) if error.is_not_found() => storage.create_folder(root)?,
        Err(error) if root.exists() => {
            tracing::debug!(%error, "no folder");
            return Err(RepositoryError::Occupied { path: root.to_owned() });
        }
        Err(error) => return Err(error.into()),
    }
    let settings = Settings {
        repository: uuid::Uuid::new_v4(),
        segment_size: options.segment_size,
        compression: options.compression,
        keep_unfinished: KEEP_UNFINISHED,
    };
    for folder in [layout.packs(), layout.sets(), layout.indexes()] {
        storage.create_folder(&folder)?;
    }
    StateFile::create(storage, &layout.state())?;
    refill_reserve(storage, layout)?;
    let file = File {
        format: FORMAT,
        repository: settings.repository.to_string(),
        segment_size: u64::from(settings.segment_size.bytes()),
        defaults: Defaults { compression: Some(settings.compression.to_string()), keep_unfinished: None },
    };
    let text = toml::to_string(&file)
        .map_err(|error| RepositoryError::Settings { path: layout.settings(), what: error.to_string() })?;
    let text = format!("# An Ekko repository. Only [defaults] may be changed by hand.\n{text}");
    replace(storage, &layout.settings(), text.as_bytes())?;
    if let Some(parent) = root.parent() {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        storage.sync_folder(parent)?;
    }
    Ok(settings)
}

/// Says whether a folder holds nothing but what an `init` that was cut short leaves.
fn is_unfinished(names: &[String]) -> bool {
    let ours = ["packs", "manifests", "index", "state", "reserve", "ekko.toml.tmp"];
    names.iter().all(|name| ours.contains(&name.as_str()))
}

/// Makes sure that the reserve is there.
///
/// # Errors
/// The disk has no room for it: a backup is then not begun.
pub(super) fn refill_reserve(storage: &dyn Storage, layout: &Layout) -> Result<(), StorageError> {
    let path = layout.reserve();
    let file = match storage.open(&path) {
        Ok(file) if file.size()? >= RESERVE => return Ok(()),
        Ok(file) => file,
        Err(error) if error.is_not_found() => storage.create(&path)?,
        Err(error) => return Err(error),
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
