//! Restoring into a disk that exists, where only parts of it are written.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use crate::manifest::ManifestReader;
use crate::progress::{Part, Progress};
use crate::repository::Repository;
use crate::restore::target::{InPlace, Target, Written};
use crate::restore::{
    RestoreError, RestoreOptions, RestoreSummary, SegmentSupply, TargetPlan, data_bytes, finished, never_read,
};
use crate::segment::SegmentIndex;

/// What is to be written to a disk that exists, in bytes of the disk. What lies in no range must be what the backup has.
#[derive(Clone, Debug, Default)]
pub struct InPlaceRanges {
    /// The ranges that differ, or may differ.
    pub differing: Vec<Range<u64>>,
    /// The ranges that the disk cannot read. They may differ, too. If one cannot be written either, the restore goes on.
    pub unreadable: Vec<Range<u64>>,
}

/// Examines a disk that exists and is to be rolled back, and changes nothing.
///
/// # Errors
///
/// If the disk cannot be written to.
pub fn plan_in_place(
    manifest: &ManifestReader,
    target: &Path,
    options: &RestoreOptions,
) -> Result<TargetPlan, RestoreError> {
    let size = manifest.info().geometry.size_of_disk();
    TargetPlan::new(target, size, data_bytes(manifest).min(size), Written::Some, options)
}

/// Rolls a disk that exists back: writes the segments that the ranges touch, and no others. A damaged segment is named in the
/// summary and its range left as it is. So are the ranges that could not be read when the backup was made.
///
/// # Errors
///
/// If the disk is in use by now (nothing is changed then), or if reading or writing fails: the error says what became of the disk.
pub fn restore_in_place(
    repository: &Repository,
    manifest: &ManifestReader,
    plan: TargetPlan,
    ranges: &InPlaceRanges,
    options: &RestoreOptions,
    progress: &dyn Progress,
) -> Result<RestoreSummary, RestoreError> {
    let begun = Instant::now();
    manifest.verify()?;
    let geometry = manifest.info().geometry;
    let size = geometry.size_of_disk();
    let mut all: Vec<_> = ranges.differing.iter().chain(&ranges.unreadable).collect();
    all.sort_unstable_by_key(|range| range.start);
    let mut touched: Vec<Range<u32>> = Vec::new();
    for range in all.into_iter().filter(|range| range.start < size && !range.is_empty()) {
        let first = geometry.containing(range.start).0;
        let behind = geometry.containing(range.end.min(size) - 1).0 + 1;
        match touched.last_mut() {
            Some(last) if last.end >= first => last.end = last.end.max(behind),
            _ => touched.push(first..behind),
        }
    }
    let offset =
        |index: u32| if index < geometry.segments() { geometry.offset(SegmentIndex(index)) } else { size };
    let written: Vec<_> = touched.iter().map(|run| offset(run.start)..offset(run.end)).collect();
    let bytes = written.iter().map(|run| run.end - run.start).sum();
    let segments = touched.iter().map(|run| u64::from(run.end - run.start)).sum();
    let kept: Vec<_> = written.iter().flat_map(|run| never_read(manifest, run)).collect();
    let prepared = repository.prepare(manifest, touched.clone(), progress)?;
    let in_place = InPlace { kept: kept.clone(), unreadable: ranges.unreadable.clone() };
    let target = Target::begin(plan, geometry, 0..size, Some(in_place), options)?;
    let part = Part::begin(progress, "restore", bytes);
    let fetched = prepared.fetch(&target, &options.pace(), progress);
    let restored = fetched.and_then(|damaged| {
        target.finish_zeros(manifest, &touched, &damaged, progress)?;
        Ok(damaged)
    });
    drop(part);
    finished(target, restored, segments, kept, options, begun)?.publish()
}
