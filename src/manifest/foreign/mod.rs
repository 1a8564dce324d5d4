//! The original's manifests: its SQLite files and its OSDK files of version 0.
//!
//! Owns what the two have in common: backupsets are numbered in the order of their age, the manifest's own one
//! last, where our base index counts from the own one (0) back; and every segment carries its codec ids, which
//! are facts of the store, so that whoever exports says where they come from. `docs/format.md` has the mapping.
//!
//! Imports go to a manifest of ours, whole or not at all; everything in the foreign file is checked on the way.

mod builder;
pub mod osdk;
pub mod sqlite;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::manifest::{BackupsetId, BaseIndex, ImageName, ManifestError, ManifestInfo};
use crate::progress::Progress;
use crate::segment::SegmentIndex;
use crate::storage::{NewFile, StorageError};

/// How a segment is stored, as the original's manifests say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodecIds {
    /// The compression id.
    pub compression: u8,
    /// The encryption id.
    pub encryption: u8,
}

impl CodecIds {
    /// The ids of a segment of which nobody knows how it is stored.
    pub const UNKNOWN: Self = Self { compression: 255, encryption: 255 };
}

/// Says how the segments of a manifest are stored. Asked in the order of the places.
pub trait CodecSource<E> {
    /// Returns the codec ids of the segment at `index`.
    fn codec(&mut self, index: SegmentIndex) -> Result<CodecIds, E>;
}

/// What a manifest file says, which knows no store.
#[derive(Clone, Copy, Debug)]
pub struct NoStore;

impl<E> CodecSource<E> for NoStore {
    fn codec(&mut self, _: SegmentIndex) -> Result<CodecIds, E> {
        Ok(CodecIds::UNKNOWN)
    }
}

/// The kinds of manifest files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestFormat {
    /// Our own.
    Ekko,
    /// The original's SQLite.
    Sqlite,
    /// The original's OSDK.
    Osdk,
}

impl ManifestFormat {
    /// Recognizes a file by its first 16 bytes.
    pub fn of(path: &Path) -> Result<Self, ManifestError> {
        let failed = |source| StorageError::new("open", path, source);
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(ManifestError::UnknownFormat { path: path.to_owned() });
        }
        let mut begin = Vec::with_capacity(16);
        File::open(path).and_then(|file| file.take(16).read_to_end(&mut begin)).map_err(failed)?;
        match begin.as_slice() {
            begin if *begin == crate::manifest::header::SIGNATURE => Ok(Self::Ekko),
            begin if *begin == osdk::SIGNATURE => Ok(Self::Osdk),
            b"SQLite format 3\0" => Ok(Self::Sqlite),
            _ => Err(ManifestError::UnknownFormat { path: path.to_owned() }),
        }
    }
}

/// Turns the foreign manifest `from` into one of ours at `to`, for an image called `name`.
///
/// # Errors
/// The file is damaged, or says what no manifest can say. Nothing is at `to` then that was not there before.
pub fn import(
    from: &Path,
    format: ManifestFormat,
    name: &ImageName,
    to: &Path,
    replace: bool,
    progress: &dyn Progress,
) -> Result<(), ManifestError> {
    let file = NewFile::begin(to, replace)?;
    match format {
        ManifestFormat::Ekko => {
            let manifest = crate::manifest::ManifestReader::read(from)?;
            manifest.verify()?;
            builder::rename(&manifest, name, &file.temporary(), progress)?;
        }
        ManifestFormat::Sqlite => sqlite::import(from, name, &file.temporary(), progress)?,
        ManifestFormat::Osdk => osdk::import(from, name, &file.temporary(), progress)?,
    }
    Ok(file.finish()?)
}

/// Returns a manifest's backupsets in the original's order: the oldest first, its own one last.
pub fn backupsets(info: &ManifestInfo) -> Vec<BackupsetId> {
    info.bases.iter().rev().copied().chain([info.backupset]).collect()
}

/// Returns the number of a base in [`backupsets`].
pub fn backupset_number(info: &ManifestInfo, base: BaseIndex) -> u64 {
    (info.bases.len() as u64).saturating_sub(u64::from(base.0))
}

/// After how many segments progress is told and the pages of a manifest are given back.
const STEP: u32 = 1 << 16;
