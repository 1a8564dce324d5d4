//! Documents about backups that are being sent.

use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::View;
use crate::manifest::{
    BackupsetId, Flaws, ImageName, Inconsistency, Incremental, InvalidText, MOST_UNREADABLE,
};
use crate::repository::BackupNumber;

/// A backup that a client is about to send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSession {
    /// The image.
    #[schema(min_length = 1, max_length = 190)]
    pub name: String,
    /// The disk's size in bytes.
    pub size_of_disk: u64,
    /// Words that the backup is found by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// How the bytes of the source were a disk, `raw` or `qcow2`.
    pub format: String,
    /// Whether that was recognised by content that a guest may have written.
    #[serde(default)]
    pub recognised: bool,
    /// What the source looks like, if it was read as raw and nobody said that it is: `vmdk`, `vhdx`, `vpc`, `vdi`, `qed`,
    /// `qcow`, `parallels` or `luks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looks_like: Option<String>,
    /// Who else may have been changing the source, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_use: Option<String>,
    /// The path or URL of the source on the client's machine, without credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 1024)]
    pub source: Option<String>,
    /// The name of the client's machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    pub host: Option<String>,
    /// A random word that the client chooses once for each backup. A session that it begins again with this word replaces
    /// the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64)]
    pub client: Option<String>,
}

/// A backup that is being sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionState {
    /// By which it is named.
    pub session: String,
    /// The image.
    pub name: String,
    /// The backupset that the backup will belong to.
    pub backupset: String,
    /// The number that the backup will have in its backupset.
    pub incremental: u32,
    /// The disk's size in bytes.
    pub size_of_disk: u64,
    /// The size of a segment in bytes.
    pub segment_size: u32,
    /// Whether there is a backup to compare with.
    pub has_parent: bool,
    /// The BLAKE3 of that backup's manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The disk's size in bytes in that backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_size_of_disk: Option<u64>,
    /// How segments are compressed unless the client chooses otherwise.
    pub compression: String,
    /// How many parts of the manifest have come.
    pub entries: u64,
    /// Seconds of silence after which it is dropped.
    pub silence_seconds: u64,
}

/// Returns how often a client gives a sign of life, whatever else it does, if the service drops sessions after so many
/// seconds of silence. Any request on the session is one.
pub fn sign_of_life(silence_seconds: u64) -> Duration {
    let fifth = Duration::from_millis(silence_seconds.saturating_mul(200));
    fifth.clamp(Duration::from_millis(100), Duration::from_mins(1))
}

/// What a client found out about its source while it read it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceFlaws {
    /// How the source changed while it was read, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 1024)]
    pub inconsistent: Option<String>,
    /// The ranges with unreadable sectors, in order: those sectors are zeros in the backup.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 1024)]
    pub unreadable: Vec<ByteRange>,
    /// How many bytes of the source were read; holes are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
}

/// A range of bytes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ByteRange {
    /// Its first byte.
    pub offset: u64,
    /// How many bytes it has.
    #[schema(minimum = 1)]
    pub length: u64,
}

impl From<&Range<u64>> for ByteRange {
    fn from(range: &Range<u64>) -> Self {
        Self { offset: range.start, length: range.end.saturating_sub(range.start) }
    }
}

impl SourceFlaws {
    /// Returns the document of flaws, and of how many bytes were read.
    pub fn of(flaws: &Flaws, read_bytes: u64) -> Self {
        Self {
            inconsistent: flaws.inconsistent.as_ref().map(ToString::to_string),
            unreadable: flaws.unreadable.iter().map(ByteRange::from).collect(),
            read_bytes: Some(read_bytes),
        }
    }

    /// Returns the flaws of a disk of `size` bytes.
    ///
    /// # Errors
    /// The text breaks the rules, or the ranges are not in order, empty, off the disk, or too many.
    pub fn flaws(&self, size: u64) -> Result<Flaws, InvalidFlaws> {
        let inconsistent = self.inconsistent.as_deref().map(Inconsistency::new).transpose()?;
        let (mut unreadable, mut behind) = (Vec::new(), 0);
        for ByteRange { offset, length } in &self.unreadable {
            let end =
                offset.checked_add(*length).filter(|end| *end <= size && *length > 0 && *offset >= behind);
            behind = end.filter(|_| unreadable.len() < MOST_UNREADABLE).ok_or(InvalidFlaws::Ranges)?;
            unreadable.push(*offset..behind);
        }
        Ok(Flaws { inconsistent, unreadable })
    }
}

/// Flaws that no backup can have.
#[derive(Debug, thiserror::Error)]
pub enum InvalidFlaws {
    /// The text breaks the rules.
    #[error(transparent)]
    Text(#[from] InvalidText),
    /// The ranges are not what they are to be.
    #[error("unreadable ranges are in order, not empty, on the disk, and at most {MOST_UNREADABLE}")]
    Ranges,
}

/// A backup that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Committed {
    /// How it is named.
    pub backup: String,
    /// Its backupset.
    pub backupset: String,
    /// Its number among the backups of its image: the 7 of `web@7`.
    pub number: u32,
    /// Its number in its backupset.
    pub incremental: u32,
    /// When it was begun.
    #[schema(format = DateTime)]
    pub timestamp: String,
    /// How many segments it stored that earlier backups lacked.
    #[serde(default)]
    pub healed_segments: u64,
}

impl Committed {
    /// Tells of a backup of an image as this view has it.
    pub fn of(
        view: &View,
        name: &ImageName,
        (backupset, incremental): (BackupsetId, Incremental),
        number: BackupNumber,
        timestamp: jiff::Timestamp,
    ) -> Self {
        // An image that was renamed out of the view meanwhile has no name in it.
        let shown = view.shown(name).map_or_else(|| backupset.to_string(), ToOwned::to_owned);
        Self {
            backup: format!("{shown}@{number}"),
            backupset: backupset.to_string(),
            number: number.0,
            incremental: incremental.0,
            timestamp: timestamp.to_string(),
            healed_segments: 0,
        }
    }
}
