//! Manifests of disks that do not exist, for benchmarks: every segment present, with a random hash.

use std::path::Path;

use crate::manifest::{
    BackupsetId, BaseIndex, FinishedManifest, ImageName, Incremental, ManifestError, ManifestInfo,
    ManifestWriter, SegmentRef,
};
use crate::segment::{Geometry, SegmentHash, SegmentIndex, SegmentKey, Twin};
use crate::storage::{NewFile, OsStorage};

/// What to generate.
#[derive(Clone, Copy, Debug)]
pub struct GenerateOptions {
    /// The disk's size and its division into segments.
    pub geometry: Geometry,
    /// What all that is random follows from: the same seed gives the same file.
    pub seed: u64,
    /// Of a hundred segments, how many begin a run, as in a disk that was changed here and there.
    pub fragmented_percent: u8,
}

/// How many random hashes are made at once.
const BATCH: usize = 1 << 12;

/// Writes a generated manifest to `path`, which must not exist unless it is to be replaced. Durable when this
/// returns; a failure leaves nothing behind.
pub fn generate(
    path: &Path,
    replace: bool,
    options: &GenerateOptions,
) -> Result<FinishedManifest, ManifestError> {
    let file = NewFile::begin(path, replace)?;
    let finished = write(&file.temporary(), options)?;
    file.finish()?;
    Ok(finished)
}

fn write(path: &Path, options: &GenerateOptions) -> Result<FinishedManifest, ManifestError> {
    let GenerateOptions { geometry, seed, fragmented_percent } = *options;
    let random = |what: &str| {
        let mut hasher = blake3::Hasher::new_derive_key("ekko 2026 generated manifest");
        hasher.update(&seed.to_le_bytes()).update(what.as_bytes());
        hasher.finalize_xof()
    };
    let mut id = [0; 16];
    random("backupset").fill(&mut id);
    let (mut hash_source, mut run_source) = (random("hashes"), random("runs"));
    let incremental = u32::from(fragmented_percent > 0);
    let info = ManifestInfo {
        backupset: BackupsetId::from_bytes(id),
        incremental: Incremental(incremental),
        name: ImageName::new("generated")
            .map_err(|error| ManifestError::Invalid { path: path.to_owned(), what: error.to_string() })?,
        geometry,
        timestamp: jiff::Timestamp::UNIX_EPOCH,
        bases: Vec::new(),
        attributes: Vec::new(),
    };
    let mut writer = ManifestWriter::create(&OsStorage, path, info)?;
    let mut hashes = vec![[0; SegmentHash::LENGTH]; BATCH];
    let mut dice = vec![[0; 4]; BATCH];
    // A run begins where a fair draw from 2^32 numbers lies below this.
    let threshold = (u64::from(fragmented_percent) << 32) / 100;
    let mut run: u32 = 0;
    let mut places = 0..geometry.segments();
    while !places.is_empty() {
        hash_source.fill(hashes.as_flattened_mut());
        run_source.fill(dice.as_flattened_mut());
        for ((place, hash), dice) in places.by_ref().take(BATCH).zip(&hashes).zip(&dice) {
            run += u32::from(u64::from(u32::from_le_bytes(*dice)) < threshold);
            // Runs that touch must say different things: they come from this backup and from the one before in turn.
            let segment = SegmentRef {
                key: SegmentKey { hash: SegmentHash::from_bytes(*hash), twin: Twin(0) },
                incremental: Incremental(incremental - run % 2 * incremental),
                base: BaseIndex(0),
            };
            writer.push(SegmentIndex(place), &segment)?;
        }
    }
    writer.finish()
}
