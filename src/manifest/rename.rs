//! A manifest under another name.

use std::path::Path;

use crate::manifest::{ImageName, ManifestError, ManifestInfo, ManifestReader, ManifestWriter};
use crate::storage::OsStorage;

/// Writes what a manifest says to a new file at `path`, but for the name of its image.
///
/// # Errors
/// The file exists or cannot be written; what was begun of it stays.
pub fn renamed(manifest: &ManifestReader, name: ImageName, path: &Path) -> Result<(), ManifestError> {
    let info = ManifestInfo { name, ..manifest.info().clone() };
    let mut writer = ManifestWriter::create(&OsStorage, path, info)?;
    for (index, segment) in manifest.segments() {
        writer.push(index, &segment)?;
    }
    writer.finish().map(|_| ())
}
