//! The backup job: from an image to a committed backup.
//!
//! ```text
//! threads: read a piece -> hash, compare, encode -> the store's writer
//!                                   \-> collector: puts the results in order -> manifest
//! ```
//!
//! Owns the pipeline and what it counts. Each thread reads for itself: the bytes stay near the core that hashes them, and
//! while one waits for the disk the others compute. Memory: each has a buffer of a segment, at least 8 MiB, and what an
//! encoder works with; the store has buffers for what is encoded. None of it depends on the disk's size.

pub mod benchmark;
mod changes;
mod fleece;
mod leave;
mod order;
mod pieces;
mod pipeline;
mod plan;
mod source;
mod tell;
mod worker;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use changes::{ChangesBase, FullRead, KIND, TrackedChanges, Tracking, describe};
pub use pipeline::{InOrder, Outcome, SegmentWorker, used_bytes};
pub use source::WatchedSource;
pub use tell::tell_shrunk;
pub use worker::{Class, Put, SegmentWriter};

use crate::backup::changes::Prepared;
use crate::backup::order::Order;
use crate::backup::pipeline::Ran;
use crate::backup::plan::{Fate, Plan};
use crate::backup::tell::{tell_clock, tell_full_read};
use crate::backup::worker::Worker;
use crate::codec::{CodecError, CompressionSetting};
use crate::error::ErrorKind;
use crate::image::{Format, Image, ImageError, LookAlike, Lookout};
use crate::manifest::{
    Flaws, ImageName, ManifestError, ManifestWriter, ReadEffort, SourceOrigin, SourceUse, Tags,
};
use crate::pace::Pace;
use crate::progress::Progress;
use crate::repository::{
    BackupDraft, CommittedBackup, FinishedDraft, JobError, RepositoryError, RepositoryWriter, SharedWriter,
};
use crate::segment::{Geometry, SegmentIndex};
use crate::store::StoreError;

/// A backup that was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The source failed.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A codec could not be set up.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A list of changes does not say what was done to the disk since the parent, and the disk was not to be read in
    /// full instead.
    #[error("the list of changes cannot be used: {reason}; --cbt-fallback reads the whole disk instead")]
    ListUnusable {
        /// Why not.
        reason: FullRead,
    },
    /// The export reads old content from a fleecing image that was used before.
    #[error(
        "the fleecing image of the export was used before: {same} of {compared} blocks in it that changed hold what the backup \
         before holds; end the export, create a new fleecing image and export it"
    )]
    UsedFleece {
        /// How many blocks hold what they held before.
        same: u32,
        /// How many were compared.
        compared: u32,
    },
    /// What a list of changes says is not so.
    #[error("the list of changes is wrong about segment {segment}")]
    ListWrong {
        /// The first segment of which it was found.
        segment: SegmentIndex,
    },
    /// The content of a source looks like another format than the earlier backups of its name had.
    #[error(
        "the source looks like {now}, and the backup before was read as {before}: a guest can write such a beginning into a \
         raw disk; say with --format which it is"
    )]
    FormatChanged {
        /// The format of the backup before.
        before: String,
        /// What the source looks like.
        now: String,
    },
    /// The name is that of what is no disk, or the other way round.
    #[error("{name} names {was} already: choose another name")]
    OtherKind {
        /// The name.
        name: ImageName,
        /// What it names, with its article.
        was: &'static str,
    },
    /// The service that it is made for failed, or refused.
    #[error("{source}")]
    Elsewhere {
        /// The kind of failure.
        kind: ErrorKind,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Somebody asked for it to be stopped.
    #[error("stopped before it was done")]
    Stopped,
    /// A thread of the pipeline ended before its work did.
    #[error("a worker ended unexpectedly; the backup was not committed")]
    WorkerLost,
}

impl From<StoreError> for BackupError {
    fn from(error: StoreError) -> Self {
        Self::Repository(error.into())
    }
}

impl From<ManifestError> for BackupError {
    fn from(error: ManifestError) -> Self {
        Self::Repository(error.into())
    }
}

impl BackupError {
    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Image(error) => error.kind(),
            Self::Repository(error) => error.kind(),
            Self::Codec(error) => error.kind(),
            Self::Elsewhere { kind, .. } => *kind,
            Self::ListUnusable { .. }
            | Self::UsedFleece { .. }
            | Self::FormatChanged { .. }
            | Self::OtherKind { .. } => ErrorKind::Invalid,
            Self::ListWrong { .. } => ErrorKind::Corrupt,
            Self::Stopped | Self::WorkerLost => ErrorKind::Io,
        }
    }
}

impl JobError for BackupError {
    fn repository(&self) -> Option<&RepositoryError> {
        match self {
            Self::Repository(error) => Some(error),
            _ => None,
        }
    }
}

/// The format of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceFormat {
    /// Which it is.
    pub format: Format,
    /// Whether it was recognised by content that a guest may have written.
    pub recognised: bool,
    /// What the source looks like, if it is read as raw and nobody said that it is.
    pub looks_like: Option<LookAlike>,
}

/// How a backup is made.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// How new segments are compressed.
    pub compression: CompressionSetting,
    /// How many threads read, hash and compress, at least one; with two more than there are cores some read while the
    /// others compute.
    pub jobs: usize,
    /// Words that it is found by.
    pub tags: Tags,
    /// The format that the image was opened as.
    pub format: SourceFormat,
    /// Who else may have been changing the source, in words, to be written down.
    pub in_use: Option<SourceUse>,
    /// Whether somebody sees to it that the source does not change: then whoever has it open makes it no inconsistent backup.
    pub stands_still: bool,
    /// What finds out who may be changing the source. Backups that run side by side share one.
    pub lookout: Arc<Lookout>,
    /// Whether unreadable sectors are read around: they become zeros, and the manifest lists them.
    pub skip_bad_sectors: bool,
    /// What changed since the backup before, as somebody says; nothing if the whole disk is to be read.
    pub changes: Option<Arc<TrackedChanges>>,
    /// Which source it is, and which machine reads it, to be written down.
    pub origin: SourceOrigin,
    /// What else its manifest says, by keys.
    pub attributes: Vec<(&'static str, Vec<u8>)>,
    /// Each of these stops it once it is set, if it has not been read in full by then.
    pub stop: Vec<Arc<AtomicBool>>,
    /// What it shares with jobs that run beside it, instead of `jobs` of its own and no limit.
    pub pace: Option<Arc<Pace>>,
}

impl BackupOptions {
    /// Reads all of a raw image with so many threads.
    pub fn new(compression: CompressionSetting, jobs: usize) -> Self {
        let format = SourceFormat { format: Format::Raw, recognised: false, looks_like: None };
        Self {
            compression,
            jobs,
            tags: Tags::default(),
            format,
            in_use: None,
            stands_still: false,
            skip_bad_sectors: false,
            lookout: Arc::default(),
            changes: None,
            origin: SourceOrigin::default(),
            attributes: Vec::new(),
            stop: Vec::new(),
            pace: None,
        }
    }

    /// Returns what it shares with jobs that run beside it, or what it has for itself.
    pub fn pace(&self) -> Arc<Pace> {
        self.pace.clone().unwrap_or_else(|| Arc::new(Pace::new(self.jobs, None)))
    }

    fn is_stopped(&self) -> bool {
        self.stop.iter().any(|stop| stop.load(Ordering::Acquire))
    }
}

/// What a backup did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupStats {
    /// Segments that the disk divides into: the sum of the four below that are no part of another.
    pub segments: u64,
    /// Segments of zeros, which are not stored.
    pub zero_segments: u64,
    /// Segments that are the parent's at the same place.
    pub unchanged_segments: u64,
    /// Other segments that were stored already.
    pub deduplicated_segments: u64,
    /// Those of them that a backup had stored which was cut off.
    pub resumed_segments: u64,
    /// Those of the deduplicated ones that were found by their BLAKE3 alone.
    pub recalled_segments: u64,
    /// Segments that this backup stored.
    pub new_segments: u64,
    /// Segments that were only read to see whether the list of changes is right about them.
    pub audited_segments: u64,
    /// Bytes of the segments that are not zeros.
    pub used_bytes: u64,
    /// Bytes read from the source; holes are not.
    pub read_bytes: u64,
    /// Plain bytes of the new segments.
    pub new_bytes: u64,
    /// Encoded bytes of the new segments.
    pub stored_bytes: u64,
}

impl BackupStats {
    /// Counts what a run before had read and stored, whose segments this one found.
    fn add_what_was_stored(&mut self, before: &Self) {
        self.read_bytes += before.read_bytes;
        self.audited_segments += before.audited_segments;
        self.deduplicated_segments = self.deduplicated_segments.saturating_sub(before.new_segments);
        self.new_segments += before.new_segments;
        self.new_bytes += before.new_bytes;
        self.stored_bytes += before.stored_bytes;
    }
}

/// A backup that exists, and what making it did.
#[derive(Clone, Debug)]
pub struct BackupSummary {
    /// The backup.
    pub backup: CommittedBackup,
    /// The disk's size in bytes.
    pub size_of_disk: u64,
    /// What was done.
    pub stats: BackupStats,
    /// What came of the list of changes, if there was one.
    pub tracking: Option<Tracking>,
    /// Flaws of the source that were found while it was read.
    pub flaws: Flaws,
    /// The disk's size in bytes in the backup before, if it has become smaller since.
    pub shrank_from: Option<u64>,
    /// How long it took, the commit included.
    pub elapsed: Duration,
}

/// Backs `image` up as the next backup of `name`.
///
/// When this returns a summary, the backup is durable. A failure leaves the repository as it was, but for
/// segments that the next backup re-uses; if it was the index that failed, the index is made anew and the
/// backup tried once more.
///
/// Backups of other disks may run at the same time.
pub fn back_up(
    writer: &SharedWriter,
    name: &ImageName,
    image: &dyn Image,
    options: &BackupOptions,
    progress: &dyn Progress,
) -> Result<BackupSummary, BackupError> {
    writer.run_job(
        progress,
        |summary: &BackupSummary| summary.backup.replace_index,
        |writer| attempt(writer, name, image, options, progress),
    )
}

fn attempt(
    writer: &RepositoryWriter,
    name: &ImageName,
    image: &dyn Image,
    options: &BackupOptions,
    progress: &dyn Progress,
) -> Result<BackupSummary, BackupError> {
    let begun = Instant::now();
    writer.prepare_for_growth()?;
    let draft = writer.begin_backup(name, image.size())?;
    let DiskRead { draft, stats, tracking, flaws, shrank_from } =
        read_disk(writer, draft, image, options, progress)?;
    let size_of_disk = draft.draft().info().geometry.size_of_disk();
    // One comes of one.
    let backup = writer.commit_all(vec![draft])?.pop().ok_or(BackupError::WorkerLost)?;
    let elapsed = begun.elapsed();
    Ok(BackupSummary { backup, size_of_disk, stats, tracking, flaws, shrank_from, elapsed })
}

/// A disk that was read and stored for a backup that is not committed.
#[derive(Debug)]
pub struct DiskRead {
    /// The backup.
    pub draft: FinishedDraft,
    /// What was done.
    pub stats: BackupStats,
    /// What came of the list of changes, if there was one.
    pub tracking: Option<Tracking>,
    /// Flaws of the source that were found while it was read.
    pub flaws: Flaws,
    /// The disk's size in bytes in the backup before, if it has become smaller since.
    pub shrank_from: Option<u64>,
}

/// Reads a disk for a backup that has been begun: all but the commit. After a failure nothing is left of the draft.
pub fn read_disk(
    writer: &RepositoryWriter,
    mut draft: BackupDraft,
    image: &dyn Image,
    options: &BackupOptions,
    progress: &dyn Progress,
) -> Result<DiskRead, BackupError> {
    draft.set_tags(&options.tags);
    // What is no disk may have any size.
    let parent = draft.parent().filter(|_| draft.attribute(KIND).is_none());
    let before = parent.map(|parent| parent.manifest.info().geometry.size_of_disk());
    let shrank_from = tell_shrunk(draft.info().name.as_str(), before, image.size(), progress);
    tell_clock(&draft, progress);
    let prepared = changes::prepare(writer, &mut draft, options).and_then(|prepared| {
        check_fleece(writer, &draft, image, &prepared, options)?;
        Ok(prepared)
    });
    if let Ok(Prepared { tracking: Some(tracking), .. }) = &prepared {
        tell_full_read(&draft, tracking, progress);
    }
    let expected = match &prepared {
        Ok(Prepared { plan, .. }) => pipeline::expected_bytes(image, draft.info().geometry, plan),
        Err(_) => 0,
    };
    progress.begin(draft.info().name.as_str(), expected);
    let result = prepared.and_then(|plan| read(writer, &mut draft, image, plan, options, progress));
    progress.end();
    let DiskScan { manifest, stats, tracking, flaws } = result?;
    Ok(DiskRead { draft: writer.finish_draft(draft, manifest)?, stats, tracking, flaws, shrank_from })
}

/// A disk that was read, and whose manifest is not finished.
struct DiskScan {
    manifest: ManifestWriter,
    stats: BackupStats,
    tracking: Option<Tracking>,
    flaws: Flaws,
}

/// Refuses an export that reads from a fleecing image which was used before, where that can be seen.
fn check_fleece(
    writer: &RepositoryWriter,
    draft: &BackupDraft,
    image: &dyn Image,
    prepared: &Prepared,
    options: &BackupOptions,
) -> Result<(), BackupError> {
    let is_used = prepared.tracking.as_ref().is_some_and(|tracking| tracking.full_read.is_none());
    match (draft.parent(), &options.changes) {
        (Some(parent), Some(changes)) if is_used => fleece::check(writer, parent, image, changes),
        _ => Ok(()),
    }
}

/// Reads what is planned, or everything, if it turns out that the list of changes is wrong.
fn read(
    writer: &RepositoryWriter,
    draft: &mut BackupDraft,
    image: &dyn Image,
    prepared: Prepared,
    options: &BackupOptions,
    progress: &dyn Progress,
) -> Result<DiskScan, BackupError> {
    let begun = Instant::now();
    let Prepared { plan, mut tracking } = prepared;
    let source = WatchedSource::new(image, options);
    let mut manifest = writer.create_manifest(draft)?;
    let mut ran = run_plan(writer, draft, &mut manifest, (&source, &plan), options, progress)?;
    if let Some(segment) = ran.wrong {
        drop(manifest);
        source.distrust_list();
        let before = ran.stats;
        let plan = changes::distrust(draft, segment, &mut tracking);
        if let Some(tracking) = &tracking {
            tell_full_read(draft, tracking, progress);
        }
        manifest = writer.create_manifest(draft)?;
        ran = run_plan(writer, draft, &mut manifest, (&source, &plan), options, progress)?;
        ran.stats.add_what_was_stored(&before);
    }
    let stats = ran.stats;
    let flaws = source.flaws(draft.info().name.as_str(), progress)?;
    draft.set_flaws(&mut manifest, &flaws)?;
    draft.set_effort(
        &mut manifest,
        ReadEffort { read_bytes: Some(stats.read_bytes), elapsed: begun.elapsed() },
    )?;
    Ok(DiskScan { manifest, stats, tracking, flaws })
}

fn run_plan(
    writer: &RepositoryWriter,
    draft: &BackupDraft,
    manifest: &mut ManifestWriter,
    (source, plan): (&WatchedSource<'_>, &Plan),
    options: &BackupOptions,
    progress: &dyn Progress,
) -> Result<Ran, BackupError> {
    let workers = (0..options.pace().jobs())
        .map(|_| Worker::new(writer.store(), (draft, plan, source), options, progress))
        .collect::<Result<_, _>>()?;
    let mut order = Order::new(draft, plan, manifest);
    pipeline::run((source, draft.info().geometry, plan), workers, &mut order, options, progress)
}

/// Reads an image that is backed up elsewhere, but for places that are known, and has `workers` process it, a thread each.
/// The known places are sorted and do not overlap; `order` knows what to say of them.
///
/// # Errors
///
/// If the image, a worker or `order` fails.
pub fn read_for<W: SegmentWorker>(
    (image, geometry, known): (&dyn Image, Geometry, &[Range<u32>]),
    workers: Vec<W>,
    order: &mut dyn InOrder<W::Segment>,
    options: &BackupOptions,
    progress: &dyn Progress,
) -> Result<BackupStats, BackupError> {
    let plan = Plan::full(geometry).with(known, |_| Fate::Keep);
    let ran = pipeline::run((image, geometry, &plan), workers, order, options, progress)?;
    Ok(ran.stats)
}
