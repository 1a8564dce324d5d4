//! `ekko.toml`: what a repository is. Written once, by `init`; a person may change the defaults in it.

use std::path::Path;
use std::time::Duration;

use jiff::SignedDuration;

use serde::{Deserialize, Serialize};

use crate::codec::CompressionSetting;
use crate::repository::{Layout, RepositoryError};
use crate::segment::SegmentSize;
use crate::storage::{Storage, read_small};

/// The newest format this release reads, and the one it writes.
pub(super) const FORMAT: u32 = 1;

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
    /// A person may change it. A mistake in it must not keep anybody from reading old backups.
    #[serde(default)]
    defaults: toml::Table,
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
    let defaults = Defaults {
        compression: Some(settings.compression.to_string()),
        keep_unfinished: None,
        keep_deleted: None,
    };
    let file = File {
        format: FORMAT,
        repository: settings.repository.to_string(),
        segment_size: u64::from(settings.segment_size.bytes()),
        defaults: toml::Table::try_from(defaults)?,
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

/// Reads the settings. Returns also what is wrong with the defaults, of which none is then used.
///
/// # Errors
/// The file cannot be read, or something other than the defaults is wrong.
pub(super) fn read(
    storage: &dyn Storage,
    layout: &Layout,
) -> Result<(Settings, Option<String>), RepositoryError> {
    let path = layout.settings();
    let text = read_text(storage, &path)?;
    check_format(&path, &text)?;
    let wrong = |what: String| RepositoryError::Settings { path: path.clone(), what };
    let file: File = toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?;
    let settings = Settings {
        repository: file.repository.parse().map_err(|_| wrong("its repository id is no UUID".to_owned()))?,
        segment_size: SegmentSize::new(file.segment_size).map_err(|error| wrong(error.to_string()))?,
        compression: CompressionSetting::default(),
        keep_unfinished: KEEP_UNFINISHED,
        keep_deleted: KEEP_DELETED,
    };
    Ok(match with_defaults(settings, file.defaults) {
        Ok(settings) => (settings, None),
        Err(what) => (settings, Some(what)),
    })
}

/// Returns settings with what a person has chosen.
fn with_defaults(settings: Settings, defaults: toml::Table) -> Result<Settings, String> {
    let Defaults { compression, keep_unfinished, keep_deleted } =
        defaults.try_into().map_err(|error: toml::de::Error| error.message().to_owned())?;
    let period = |name: &str, text: Option<String>, default: Duration| match text {
        None => Ok(default),
        Some(text) => span(&text)
            .and_then(|span| Duration::try_from(span).ok())
            .ok_or_else(|| format!("{name} is no span of time: {text:?}")),
    };
    let compression = compression.as_deref().map(str::parse).transpose();
    Ok(Settings {
        compression: compression
            .map_err(|error: crate::codec::InvalidCompression| error.to_string())?
            .unwrap_or_default(),
        keep_unfinished: period("keep_unfinished", keep_unfinished, settings.keep_unfinished)?,
        keep_deleted: period("keep_deleted", keep_deleted, settings.keep_deleted)?,
        ..settings
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_format_is_named_though_the_tables_after_it_cannot_be_understood() {
        let path = Path::new("set.toml");
        let check = |text: &str| check_format(path, text);
        let newer = check("format = 2\n\n[[backup]]\nincremental = a new kind of number\n").unwrap_err();
        assert!(matches!(newer, RepositoryError::NewerFormat { found: 2, .. }), "{newer}");
        check("format = 1\nbases = [\n\"a\",\n[\"b\"]]\n[[backup]]\n").unwrap();
        assert!(check("[[backup]]\nformat = 1\n").is_err());
    }
}
