//! The restore job: from a manifest to a disk.
//!
//! Segments are found through the packs' tables of contents, read in the order of the packs, decoded and
//! verified on every core, and written with positioned writes; to a stream they are written in order. Owns
//! targets and the plan; knows nothing of the index.
//!
//! Memory: the plan covers 2^18 segments at a time (about 40 MB), and each thread has buffers for one
//! segment, whatever the disk's size.

mod cleanup;
mod error;
mod fetch;
mod in_place;
mod options;
mod plan;
mod range;
mod stream;
mod supply;
mod target;

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

pub use cleanup::{Cleanup, CleanupEntry, Stopped, TargetFate};
pub use error::{RestoreError, SegmentError};
pub use in_place::{InPlaceRanges, plan_in_place, restore_in_place};
pub use options::{RestoreOptions, TargetFormat};
pub use range::{RangePart, RangeReader, RangeWindow};
pub use supply::{PreparedSegments, SegmentSink, SegmentSupply};
pub use target::{PartialFolder, RestoredFile, TargetPlan};

use crate::manifest::{ManifestReader, unreadable_ranges};
use crate::pace::Pace;
use crate::progress::{Notice, Part, Progress};
use crate::repository::Repository;
use crate::restore::supply::PackedSegments;
use crate::restore::target::{Target, Written};
use crate::segment::{Geometry, SegmentIndex};
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

/// A range of a target that could not be written.
#[derive(Clone, Debug)]
pub struct UnwrittenRange {
    /// The range on the disk, in bytes.
    pub range: Range<u64>,
    /// Why, in words.
    pub error: String,
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
    /// The ranges of a target that could be neither read nor written, in order. Only a restore in place goes on past them.
    pub unwritten: Vec<UnwrittenRange>,
    /// The ranges that could not be read when the backup was made, in order. The backup has zeros there. A restore in place leaves
    /// what the target has there.
    pub never_read: Vec<Range<u64>>,
    /// How long it took.
    pub elapsed: Duration,
}

/// A disk that is restored and durable. A file has its temporary name until it is published.
#[derive(Debug)]
pub struct RestoredDisk {
    target: Target,
    sync: bool,
    summary: RestoreSummary,
}

impl RestoredDisk {
    /// Ends the restore if the target has no temporary name: it is complete, whatever fails later.
    #[must_use]
    pub fn publish_direct(mut self) -> Self {
        self.target.publish_direct();
        self
    }

    /// Gives a file its name.
    ///
    /// # Errors
    ///
    /// If somebody uses the file that is replaced, or has made one meanwhile. The disk then keeps its temporary name.
    pub fn publish(self) -> Result<RestoreSummary, RestoreError> {
        self.target.publish(self.sync)?;
        Ok(self.summary)
    }
}

/// Examines a target for a backup and changes nothing. [`TargetPlan::check_room`] comes next.
///
/// # Errors
///
/// If the target cannot be restored to.
pub fn plan_target(
    manifest: &ManifestReader,
    target: &Path,
    options: &RestoreOptions,
) -> Result<TargetPlan, RestoreError> {
    let geometry = manifest.info().geometry;
    let range = options.bytes_of(geometry)?;
    let size = range.end - range.start;
    TargetPlan::new(target, size, data_bytes(manifest).min(size), Written::All, options)
}

/// Examines a target for a small file, which is always a file.
///
/// # Errors
///
/// If the target cannot be written to.
pub fn plan_bytes(target: &Path, length: u64, options: &RestoreOptions) -> Result<TargetPlan, RestoreError> {
    let raw = RestoreOptions { format: TargetFormat::Raw, ..options.clone() };
    let plan = TargetPlan::new(target, length, length, Written::All, &raw)?;
    if plan.is_file() { Ok(plan) } else { Err(RestoreError::NotATarget { path: target.to_owned() }) }
}

/// Writes a small file to a target that was examined.
///
/// # Errors
///
/// If writing fails.
pub fn restore_bytes(
    plan: TargetPlan,
    bytes: &[u8],
    options: &RestoreOptions,
) -> Result<RestoredFile, RestoreError> {
    RestoredFile::write(plan, bytes, options)
}

/// Returns how many bytes the present segments have at most.
fn data_bytes(manifest: &ManifestReader) -> u64 {
    u64::from(manifest.present()) * u64::from(manifest.info().geometry.segment_size().bytes())
}

/// Restores a backup to a file, which is made sparse, or to a block device, whose other bytes are zeroed up
/// to the disk's size.
///
/// A file appears under its name when it is complete. A damaged segment does not stop the restore: the segment is named in the
/// summary and its range left zero.
///
/// # Errors
///
/// If the target cannot be restored to (nothing is changed then), or if reading or writing fails: the error says what became of
/// the target.
pub fn restore_to_path(
    repository: &Repository,
    manifest: &ManifestReader,
    target: &Path,
    options: &RestoreOptions,
    progress: &dyn Progress,
) -> Result<RestoreSummary, RestoreError> {
    restore_from(repository, manifest, target, options, progress)
}

/// The same, wherever the segments come from.
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
    let plan = plan_target(manifest, target, options)?;
    if !options.ignore_space {
        TargetPlan::check_room([&plan])?;
    }
    restore_planned(supply, manifest, plan, options, progress)?.publish()
}

/// Restores a backup to a target that was examined.
///
/// # Errors
///
/// As [`restore_from`].
pub fn restore_planned(
    supply: &dyn SegmentSupply,
    manifest: &ManifestReader,
    plan: TargetPlan,
    options: &RestoreOptions,
    progress: &dyn Progress,
) -> Result<RestoredDisk, RestoreError> {
    let begun = Instant::now();
    manifest.verify()?;
    let geometry = manifest.info().geometry;
    let range = options.bytes_of(geometry)?;
    let touched = segments_of(geometry, &range);
    let prepared = supply.prepare(manifest, vec![touched.clone()], progress)?;
    let never_read = never_read(manifest, &range);
    let part = Part::begin(progress, "restore", range.end - range.start);
    let target = Target::begin(plan, geometry, range, None, options)?;
    let fetched = prepared.fetch(&target, &options.pace(), progress);
    let restored = fetched.and_then(|damaged| {
        target.finish_zeros(manifest, &[touched], &damaged, progress)?;
        Ok(damaged)
    });
    drop(part);
    let segments = u64::from(geometry.segments());
    finished(target, restored, segments, never_read, options, begun)
}

/// Makes a target durable that all was written to, or ends it.
fn finished(
    mut target: Target,
    restored: Result<Vec<DamagedSegment>, RestoreError>,
    segments: u64,
    never_read: Vec<Range<u64>>,
    options: &RestoreOptions,
    begun: Instant,
) -> Result<RestoredDisk, RestoreError> {
    let restored = restored.and_then(|damaged| target.complete(options.sync).map(|()| damaged));
    let damaged = restored.map_err(|error| error.with_fate(target.abandon()))?;
    let written_bytes = target.written_bytes();
    let unwritten = target.unwritten();
    let elapsed = begun.elapsed();
    let summary = RestoreSummary { segments, written_bytes, damaged, unwritten, never_read, elapsed };
    Ok(RestoredDisk { target, sync: options.sync, summary })
}

/// Fetches every present segment of a backup for an export and gives it to `sink`, in the order of the packs. Returns what
/// could not be had, in the order of the places. Begins no part of the progress; the caller does.
pub fn fetch_segments(
    repository: &Repository,
    manifest: &ManifestReader,
    sink: &dyn SegmentSink,
    pace: &Pace,
    progress: &dyn Progress,
) -> Result<Vec<DamagedSegment>, RestoreError> {
    let all = 0..manifest.info().geometry.segments();
    let prepared = PackedSegments::prepare(repository, manifest, vec![all], "export", progress)?;
    Box::new(prepared).fetch(sink, pace, progress)
}

/// Restores a backup to a stream, in order, zeros included.
pub fn restore_to_stream(
    repository: &Repository,
    manifest: &ManifestReader,
    stream: &mut dyn Write,
    options: &RestoreOptions,
    progress: &dyn Progress,
) -> Result<RestoreSummary, RestoreError> {
    read_to_stream(repository, manifest, stream, options, "restore", progress)
}

/// The same for a job that is not a restore: "command".
pub fn read_to_stream(
    repository: &Repository,
    manifest: &ManifestReader,
    stream: &mut dyn Write,
    options: &RestoreOptions,
    job: &str,
    progress: &dyn Progress,
) -> Result<RestoreSummary, RestoreError> {
    let begun = Instant::now();
    manifest.verify()?;
    let geometry = manifest.info().geometry;
    // Until this ends, no garbage collection takes what the backup names, even if it is deleted meanwhile.
    let _lease = repository.lease_for(job, manifest.info(), progress)?;
    let catalog = repository.catalog()?;
    let range = options.bytes_of(geometry)?;
    let segments = segments_of(geometry, &range);
    let within = range.clone();
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
    summary.never_read = never_read(manifest, &within);
    note(repository, manifest, &summary.damaged);
    summary.segments = u64::from(geometry.segments());
    summary.elapsed = begun.elapsed();
    Ok(summary)
}

/// Returns the parts of a range of a disk that could not be read when the backup was made.
fn never_read(manifest: &ManifestReader, range: &Range<u64>) -> Vec<Range<u64>> {
    // In an unknown form, `show` tells of them.
    let all = unreadable_ranges(manifest.info()).unwrap_or_default();
    let within = all.into_iter().map(|it| it.start.max(range.start)..it.end.min(range.end));
    within.filter(|it| it.start < it.end).collect()
}

/// Returns the segments that a range of bytes of a disk touches.
fn segments_of(geometry: Geometry, range: &Range<u64>) -> Range<u32> {
    let behind = geometry.containing(range.end.saturating_sub(1)).0.saturating_add(1);
    geometry.containing(range.start).0..behind.min(geometry.segments())
}

/// Has the repository remember which segments could not be read.
fn note(repository: &Repository, manifest: &ManifestReader, damaged: &[DamagedSegment]) {
    let noted: Vec<_> = damaged.iter().map(|damaged| (damaged.index, damaged.error.clone())).collect();
    repository.note_damage(manifest, &noted);
}

fn tell(problems: &[CatalogProblem], progress: &dyn Progress) {
    for problem in problems {
        progress.notice(Notice::Problem { kind: problem.error.kind(), what: problem.error.to_string() });
    }
}
