//! The restore job: from a manifest to a disk.
//!
//! Segments are found through the packs' tables of contents, read in the order of the packs, decoded and
//! verified on every core, and written with positioned writes; to a stream they are written in order. Owns
//! targets and the plan; knows nothing of the index.
//!
//! Memory: the plan covers 2^18 segments at a time (about 40 MB), and each thread has buffers for one
//! segment, whatever the disk's size.

mod error;
mod fetch;
mod medium;
mod plan;
mod range;
mod stream;
mod target;

use std::io::Write;
use std::num::NonZeroU64;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use error::{RestoreError, SegmentError};
pub use range::{RangePart, RangeReader, RangeWindow};

use crate::manifest::ManifestReader;
use crate::pace::Pace;
use crate::progress::{Notice, Part, Progress};
use crate::repository::Repository;
use crate::segment::{Geometry, SegmentIndex, SegmentKey};
use crate::store::CatalogProblem;

/// A segment that could not be restored; its range in the target is zero.
#[derive(Debug)]
pub struct DamagedSegment {
    /// Its place.
    pub index: SegmentIndex,
    /// Its range on the disk, in bytes.
    pub range: Range<u64>,
    /// Why, in words.
    pub error: String,
}

/// Where the segments of a backup come from: a repository here, or a service elsewhere.
pub trait SegmentSupply: Sync {
    /// Fetches the present segments of a backup and gives them to `sink`, in whatever order. Returns what could not be had,
    /// in the order of the places. Begins no part of the progress; the caller does.
    ///
    /// # Errors
    ///
    /// If nothing more can be had, or `sink` refuses.
    fn fetch_all(
        &self,
        manifest: &ManifestReader,
        sink: &dyn SegmentSink,
        pace: &Pace,
        progress: &dyn Progress,
    ) -> Result<Vec<DamagedSegment>, RestoreError>;
}

impl SegmentSupply for Repository {
    fn fetch_all(
        &self,
        manifest: &ManifestReader,
        sink: &dyn SegmentSink,
        pace: &Pace,
        progress: &dyn Progress,
    ) -> Result<Vec<DamagedSegment>, RestoreError> {
        fetch_segments(self, manifest, sink, pace, progress)
    }
}

/// Where segments go, in whatever order they are fetched. Called from several threads.
pub trait SegmentSink: Sync {
    /// Takes the verified bytes of the segment at `index`.
    fn segment(&self, index: SegmentIndex, key: SegmentKey, plain: &[u8]) -> Result<(), RestoreError>;

    /// Is told of a segment that cannot be had.
    fn damaged(&self, damaged: &DamagedSegment) -> Result<(), RestoreError>;
}

/// How a disk is restored.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// How many threads read, decode and verify, at least one.
    pub jobs: usize,
    /// Whether a target that exists is overwritten.
    pub force: bool,
    /// Whether the target is made durable before this returns.
    pub sync: bool,
    /// Which bytes of the disk are restored, to the beginning of the target; all if nothing is said.
    pub range: Option<Range<u64>>,
    /// The most bytes that are restored a second.
    pub limit: Option<NonZeroU64>,
    /// The folder with the certificates for an encrypted link to an NBD server.
    pub certificates: Option<PathBuf>,
}

impl RestoreOptions {
    fn pace(&self) -> Pace {
        Pace::new(self.jobs, self.limit)
    }

    /// Returns the bytes of a disk that are restored.
    fn bytes_of(&self, geometry: Geometry) -> Result<Range<u64>, RestoreError> {
        let size = geometry.size_of_disk();
        let range = self.range.clone().unwrap_or(0..size);
        if range.start <= range.end && range.end <= size {
            Ok(range)
        } else {
            Err(RestoreError::OutsideDisk { start: range.start, end: range.end, size })
        }
    }
}

/// What a restore did.
#[derive(Debug, Default)]
pub struct RestoreSummary {
    /// Segments that the disk divides into.
    pub segments: u64,
    /// Bytes written to the target; holes are not.
    pub written_bytes: u64,
    /// What could not be restored, in the order of the places.
    pub damaged: Vec<DamagedSegment>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Restores a backup to a file, which is made sparse, or to a block device, whose other bytes are zeroed up
/// to the disk's size.
///
/// A damaged segment does not stop it: the segment is named in the summary and its range left zero.
pub fn restore_to_path(
    repository: &Repository,
    manifest: &ManifestReader,
    target: &Path,
    options: &RestoreOptions,
    progress: &dyn Progress,
) -> Result<RestoreSummary, RestoreError> {
    if options.range.is_some() {
        return range_to_path(repository, manifest, target, options, progress);
    }
    restore_from(repository, manifest, target, options, progress)
}

/// The same of a whole disk, wherever its segments come from.
///
/// # Errors
///
/// As [`restore_to_path`], and if the supply fails.
pub fn restore_from(
    supply: &dyn SegmentSupply,
    manifest: &ManifestReader,
    target: &Path,
    options: &RestoreOptions,
    progress: &dyn Progress,
) -> Result<RestoreSummary, RestoreError> {
    let begun = Instant::now();
    manifest.verify()?;
    let geometry = manifest.info().geometry;
    let mut summary =
        RestoreSummary { segments: u64::from(geometry.segments()), ..RestoreSummary::default() };
    let target = target::Target::open(target, geometry.size_of_disk(), geometry, options)?;
    let part = Part::begin(progress, "restore", geometry.size_of_disk());
    let result = target
        .zero_gaps(manifest, 0..geometry.segments(), progress)
        .and_then(|()| supply.fetch_all(manifest, &target, &options.pace(), progress));
    drop(part);
    summary.written_bytes = target.written_bytes();
    target.finish(result.is_ok(), options.sync)?;
    summary.damaged = result?;
    summary.elapsed = begun.elapsed();
    Ok(summary)
}

/// Rolls a disk that exists back: writes the segments that the ranges, in bytes and in order, touch, and no others. What is
/// not in them must be what the backup has. A damaged segment is named in the summary and its range left as it is.
pub fn restore_in_place(
    repository: &Repository,
    manifest: &ManifestReader,
    target: &Path,
    ranges: &[Range<u64>],
    options: &RestoreOptions,
    progress: &dyn Progress,
) -> Result<RestoreSummary, RestoreError> {
    let begun = Instant::now();
    manifest.verify()?;
    let geometry = manifest.info().geometry;
    let mut touched: Vec<Range<u32>> = Vec::new();
    for range in ranges.iter().filter(|range| range.start < geometry.size_of_disk() && !range.is_empty()) {
        let first = geometry.containing(range.start).0;
        let behind = geometry.containing(range.end.min(geometry.size_of_disk()) - 1).0 + 1;
        match touched.last_mut() {
            Some(last) if last.end >= first => last.end = last.end.max(behind),
            _ => touched.push(first..behind),
        }
    }
    let length = |index: u32| u64::from(geometry.length(SegmentIndex(index)));
    let bytes = touched.iter().cloned().flatten().map(length).sum();
    let target = target::Target::open_in_place(target, geometry, options)?;
    let part = Part::begin(progress, "restore", bytes);
    let zeroed = touched.iter().try_for_each(|run| target.zero_gaps(manifest, run.clone(), progress));
    let result =
        zeroed.and_then(|()| fetch_some(repository, manifest, &touched, &target, &options.pace(), progress));
    drop(part);
    target.finish(result.is_ok(), options.sync)?;
    Ok(RestoreSummary {
        segments: touched.iter().map(|run| u64::from(run.end - run.start)).sum(),
        written_bytes: target.written_bytes(),
        damaged: result?,
        elapsed: begun.elapsed(),
    })
}

/// Restores a part of a disk to the beginning of a target, in order.
fn range_to_path(
    repository: &Repository,
    manifest: &ManifestReader,
    target: &Path,
    options: &RestoreOptions,
    progress: &dyn Progress,
) -> Result<RestoreSummary, RestoreError> {
    let geometry = manifest.info().geometry;
    let range = options.bytes_of(geometry)?;
    let target = target::Target::open(target, range.end - range.start, geometry, options)?;
    let result = restore_to_stream(repository, manifest, &mut target.stream(), options, progress);
    target.finish(result.is_ok(), options.sync)?;
    Ok(RestoreSummary { written_bytes: target.written_bytes(), ..result? })
}

/// Fetches every present segment of a backup and gives it to `sink`, in the order of the packs. Returns what
/// could not be had, in the order of the places. Begins no part of the progress; the caller does.
pub fn fetch_segments(
    repository: &Repository,
    manifest: &ManifestReader,
    sink: &dyn SegmentSink,
    pace: &Pace,
    progress: &dyn Progress,
) -> Result<Vec<DamagedSegment>, RestoreError> {
    manifest.verify()?;
    let all = 0..manifest.info().geometry.segments();
    fetch_some(repository, manifest, &[all], sink, pace, progress)
}

/// The same of some segments: runs in order, which do not overlap.
fn fetch_some(
    repository: &Repository,
    manifest: &ManifestReader,
    runs: &[Range<u32>],
    sink: &dyn SegmentSink,
    pace: &Pace,
    progress: &dyn Progress,
) -> Result<Vec<DamagedSegment>, RestoreError> {
    let info = manifest.info();
    let geometry = info.geometry;
    // Until this ends, no garbage collection takes what the backup names, even if it is deleted meanwhile.
    let _lease = repository.lease(info.backupset, info.incremental)?;
    let catalog = repository.catalog()?;
    let mut damaged = Vec::new();
    let (first, behind) = (runs.first().map_or(0, |run| run.start), runs.last().map_or(0, |run| run.end));
    let is_wanted = |index: SegmentIndex| {
        let at = runs.partition_point(|run| run.end <= index.0);
        runs.get(at).is_some_and(|run| run.start <= index.0)
    };
    for window in plan::windows(first..behind) {
        let (plan, problems) = plan::Plan::of(manifest, &catalog, window, is_wanted)?;
        tell(&problems, progress);
        damaged.extend(fetch::run(&catalog, &plan, sink, geometry, pace, progress)?);
    }
    damaged.sort_by_key(|damaged| damaged.index);
    Ok(damaged)
}

/// Restores a backup to a stream, in order, zeros included.
pub fn restore_to_stream(
    repository: &Repository,
    manifest: &ManifestReader,
    stream: &mut dyn Write,
    options: &RestoreOptions,
    progress: &dyn Progress,
) -> Result<RestoreSummary, RestoreError> {
    let begun = Instant::now();
    manifest.verify()?;
    let geometry = manifest.info().geometry;
    let info = manifest.info();
    // Until this ends, no garbage collection takes what the backup names, even if it is deleted meanwhile.
    let _lease = repository.lease(info.backupset, info.incremental)?;
    let catalog = repository.catalog()?;
    let range = options.bytes_of(geometry)?;
    let segments = segments_of(geometry, &range);
    progress.begin("restore", range.end - range.start);
    let mut output = stream::Output::new(stream, geometry, range);
    let pace = options.pace();
    let result = plan::windows(segments).try_for_each(|window| {
        let (plan, problems) = plan::Plan::of(manifest, &catalog, window, |_| true)?;
        tell(&problems, progress);
        output.run(&catalog, &plan, &pace, progress)
    });
    let result = result.and_then(|()| output.finish(progress));
    progress.end();
    let mut summary = result?;
    summary.segments = u64::from(geometry.segments());
    summary.elapsed = begun.elapsed();
    Ok(summary)
}

/// Returns the segments that a range of bytes of a disk touches.
fn segments_of(geometry: Geometry, range: &Range<u64>) -> Range<u32> {
    let behind = geometry.containing(range.end.saturating_sub(1)).0.saturating_add(1);
    geometry.containing(range.start).0..behind.min(geometry.segments())
}

fn tell(problems: &[CatalogProblem], progress: &dyn Progress) {
    for problem in problems {
        progress.notice(Notice::Problem { kind: problem.error.kind(), what: problem.error.to_string() });
    }
}
