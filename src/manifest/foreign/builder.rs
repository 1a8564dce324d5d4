//! From a foreign manifest to one of ours.

use std::path::{Path, PathBuf};

use crate::manifest::foreign::STEP;
use crate::manifest::{
    BackupsetId, BaseIndex, ImageName, Incremental, ManifestError, ManifestInfo, ManifestReader,
    ManifestWriter, SegmentRef,
};
use crate::progress::{Part, Progress};
use crate::segment::{Geometry, SegmentHash, SegmentIndex, SegmentKey, SegmentSize, Twin};
use crate::storage::OsStorage;

/// What a foreign manifest says about the whole, not yet checked.
#[derive(Debug)]
pub(super) struct ForeignInfo {
    pub(super) incremental: u64,
    pub(super) segment_size: u64,
    pub(super) size_of_disk: u64,
    pub(super) timestamp: jiff::Timestamp,
    /// The oldest first, the manifest's own one last.
    pub(super) backupsets: Vec<BackupsetId>,
}

impl ForeignInfo {
    /// Returns how many segments the disk has; 0 for a segment size that is none.
    pub(super) fn segments(&self) -> u64 {
        if self.segment_size == 0 { 0 } else { self.size_of_disk.div_ceil(self.segment_size) }
    }
}

/// What a foreign manifest says about one segment, not yet checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct ForeignSegment {
    pub(super) segment: u64,
    pub(super) incremental: u64,
    pub(super) backupset: u64,
    pub(super) hash: [u8; SegmentHash::LENGTH],
}

/// Writes one of our manifests from a foreign one, and checks everything on the way.
pub(super) struct ManifestBuilder<'a> {
    from: PathBuf,
    writer: ManifestWriter,
    own: Incremental,
    backupsets: u64,
    segments: u64,
    segment_size: u64,
    pushed: u32,
    part: Part<'a>,
}

impl<'a> ManifestBuilder<'a> {
    pub(super) fn begin(
        from: &Path,
        to: &Path,
        name: &ImageName,
        info: &ForeignInfo,
        progress: &'a dyn Progress,
    ) -> Result<Self, ManifestError> {
        let refused = |what: String| ManifestError::Foreign { path: from.to_owned(), what };
        let own = u32::try_from(info.incremental).ok().filter(|number| *number < u32::MAX);
        let own = own.ok_or_else(|| refused(format!("{} is no incremental", info.incremental)))?;
        let segment_size = SegmentSize::new(info.segment_size).map_err(|error| refused(error.to_string()))?;
        let geometry =
            Geometry::new(info.size_of_disk, segment_size).map_err(|error| refused(error.to_string()))?;
        let (backupset, earlier) =
            info.backupsets.split_last().ok_or_else(|| refused("it names no backupset".to_owned()))?;
        let mut all = info.backupsets.clone();
        all.sort_unstable();
        if all.windows(2).any(|pair| matches!(pair, [one, other] if one == other)) {
            return Err(refused("it names a backupset twice".to_owned()));
        }
        if u16::try_from(earlier.len()).is_err() {
            return Err(refused(format!("it names {} backupsets", info.backupsets.len())));
        }
        let writer = ManifestWriter::create(
            &OsStorage,
            to,
            ManifestInfo {
                backupset: *backupset,
                incremental: Incremental(own),
                name: name.clone(),
                geometry,
                timestamp: info.timestamp,
                bases: earlier.iter().rev().copied().collect(),
                attributes: Vec::new(),
            },
        )?;
        Ok(Self {
            from: from.to_owned(),
            writer,
            own: Incremental(own),
            backupsets: info.backupsets.len() as u64,
            segments: u64::from(geometry.segments()),
            segment_size: info.segment_size,
            pushed: 0,
            part: Part::begin(progress, "import", info.size_of_disk),
        })
    }

    pub(super) fn push(&mut self, segment: &ForeignSegment) -> Result<(), ManifestError> {
        let ForeignSegment { segment: place, incremental, backupset, hash } = *segment;
        let index = u32::try_from(place).ok().filter(|_| place < self.segments);
        let index = index.ok_or_else(|| self.refused(format!("segment {place} lies outside the disk")))?;
        let base = self.backupsets.checked_sub(1).and_then(|last| last.checked_sub(backupset));
        let base = base.and_then(|base| u16::try_from(base).ok()).ok_or_else(|| {
            self.refused(format!("segment {place} names backupset {backupset}, which is not listed"))
        })?;
        let number = u32::try_from(incremental).ok().filter(|number| base != 0 || *number <= self.own.0);
        let number = number.ok_or_else(|| {
            let own = self.own;
            self.refused(format!("segment {place} names incremental {incremental}, and the backup is {own}"))
        })?;
        let segment = SegmentRef {
            key: SegmentKey { hash: SegmentHash::from_bytes(hash), twin: Twin(0) },
            incremental: Incremental(number),
            base: BaseIndex(base),
        };
        self.writer.push(SegmentIndex(index), &segment).map_err(|error| match error {
            // Of the file that is read, not of the one that is made.
            ManifestError::Invalid { what, .. } => self.refused(what),
            other => other,
        })?;
        self.pushed += 1;
        if self.pushed.is_multiple_of(STEP) {
            self.part.reached(place * self.segment_size);
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<(), ManifestError> {
        self.writer.finish()?;
        self.part.reached(self.segments * self.segment_size);
        Ok(())
    }

    pub(super) fn refused(&self, what: String) -> ManifestError {
        ManifestError::Foreign { path: self.from.clone(), what }
    }
}

/// Writes a manifest anew under another image name.
pub(super) fn rename(
    manifest: &ManifestReader,
    name: &ImageName,
    to: &Path,
    progress: &dyn Progress,
) -> Result<(), ManifestError> {
    let info = ManifestInfo { name: name.clone(), ..manifest.info().clone() };
    let geometry = info.geometry;
    let mut part = Part::begin(progress, "import", geometry.size_of_disk());
    let mut writer = ManifestWriter::create(&OsStorage, to, info)?;
    for (index, segment) in manifest.segments() {
        writer.push(index, &segment)?;
        if index.0.is_multiple_of(STEP) {
            manifest.release_pages();
            part.reached(geometry.offset(index));
        }
    }
    writer.finish()?;
    Ok(())
}
