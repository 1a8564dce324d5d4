//! Reader, workers and collector of one backup.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::backup::worker::{Class, Worker};
use crate::backup::{BackupError, BackupOptions, BackupStats};
use crate::image::{Extent, Image};
use crate::manifest::{ManifestWriter, SegmentRef};
use crate::progress::Progress;
use crate::repository::{BackupDraft, RepositoryWriter};
use crate::segment::{Geometry, SegmentIndex};

/// A segment that was read: `bytes` has its length.
pub(super) struct Plain {
    /// Counts the segments that were read, so that their results can be put in order again.
    sequence: u64,
    pub(super) index: SegmentIndex,
    pub(super) bytes: Vec<u8>,
}

/// What became of a segment that was read.
struct Outcome {
    sequence: u64,
    index: SegmentIndex,
    class: Class,
    /// What the manifest says of it; nothing if it is zero.
    segment: Option<SegmentRef>,
}

/// The first failure of any thread, and that the others are to stop.
#[derive(Default)]
struct Failure {
    stop: AtomicBool,
    first: Mutex<Option<BackupError>>,
}

impl Failure {
    fn set(&self, error: BackupError) {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop.store(true, Ordering::Release);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// Reads the image, stores what is new and writes the manifest's segments.
pub(super) fn run(
    writer: &RepositoryWriter,
    draft: &BackupDraft,
    manifest: &mut ManifestWriter,
    image: &dyn Image,
    options: &BackupOptions,
    progress: &dyn Progress,
) -> Result<BackupStats, BackupError> {
    let geometry = draft.info().geometry;
    let jobs = options.jobs.max(1);
    let buffers = jobs + 2;
    let failure = Failure::default();
    let read_bytes = AtomicU64::new(0);
    let (free_in, free) = bounded(buffers);
    for _ in 0..buffers {
        // The channel has room for all of them; memory is taken when a buffer is first filled.
        let _ = free_in.send(Vec::new());
    }
    let (work_in, work) = bounded::<Plain>(buffers);
    let (done_in, done) = bounded::<Outcome>(buffers * 4);
    let workers = (0..jobs)
        .map(|_| Worker::new(writer.store(), draft, options, progress))
        .collect::<Result<Vec<_>, _>>()?;
    let stats = std::thread::scope(|scope| {
        let (failure, read_bytes) = (&failure, &read_bytes);
        scope.spawn(move || {
            let reader = Reader { image, geometry, free, work: work_in, failure, read_bytes, progress };
            if let Err(error) = reader.run() {
                failure.set(error);
            }
        });
        for worker in workers {
            let (work, free, done) = (work.clone(), free_in.clone(), done_in.clone());
            scope.spawn(move || run_worker(worker, &work, &free, &done, failure));
        }
        drop((work, free_in, done_in));
        collect(&done, manifest, geometry, failure)
    });
    if let Some(error) = failure.first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    Ok(BackupStats { read_bytes: read_bytes.into_inner(), ..stats? })
}

fn run_worker(
    mut worker: Worker<'_>,
    work: &Receiver<Plain>,
    free: &Sender<Vec<u8>>,
    done: &Sender<Outcome>,
    failure: &Failure,
) {
    // After a failure the channel is still emptied, so that the reader never waits for a buffer in vain.
    for plain in work {
        if !failure.stopped() {
            match worker.process(&plain) {
                Ok((class, segment)) => {
                    let Plain { sequence, index, .. } = plain;
                    // The collector goes on until the last worker has ended.
                    let _ = done.send(Outcome { sequence, index, class, segment });
                }
                Err(error) => failure.set(error),
            }
        }
        let _ = free.send(plain.bytes);
    }
}

/// Puts the outcomes in order, counts them and writes the manifest's segments.
fn collect(
    done: &Receiver<Outcome>,
    manifest: &mut ManifestWriter,
    geometry: Geometry,
    failure: &Failure,
) -> Result<BackupStats, BackupError> {
    let mut stats = BackupStats { segments: u64::from(geometry.segments()), ..BackupStats::default() };
    // Outcomes that came before their turn: about as many as segments are processed while one is.
    let mut early = BTreeMap::new();
    let mut next = 0;
    for outcome in done {
        early.insert(outcome.sequence, outcome);
        while let Some(outcome) = early.remove(&next) {
            next += 1;
            match outcome.class {
                Class::Zero => {}
                Class::Unchanged => stats.unchanged_segments += 1,
                Class::Deduplicated => stats.deduplicated_segments += 1,
                Class::Resumed => {
                    stats.deduplicated_segments += 1;
                    stats.resumed_segments += 1;
                }
                Class::New { plain_bytes, stored_bytes } => {
                    stats.new_segments += 1;
                    stats.new_bytes += plain_bytes;
                    stats.stored_bytes += stored_bytes;
                }
            }
            if let Some(segment) = &outcome.segment
                && let Err(error) = manifest.push(outcome.index, segment)
            {
                failure.set(error.into());
            }
        }
    }
    stats.zero_segments =
        stats.segments - stats.unchanged_segments - stats.deduplicated_segments - stats.new_segments;
    if early.is_empty() || failure.stopped() { Ok(stats) } else { Err(BackupError::WorkerLost) }
}

/// Reads what the image holds, segment after segment; holes are not read.
struct Reader<'a> {
    image: &'a dyn Image,
    geometry: Geometry,
    free: Receiver<Vec<u8>>,
    work: Sender<Plain>,
    failure: &'a Failure,
    read_bytes: &'a AtomicU64,
    progress: &'a dyn Progress,
}

impl Reader<'_> {
    fn run(&self) -> Result<(), BackupError> {
        let mut extent = self.image.next_data(0)?;
        let mut sequence = 0;
        let mut index = SegmentIndex(0);
        let mut told = 0;
        while index.0 < self.geometry.segments() && !self.failure.stopped() {
            let end = self.geometry.offset(index) + u64::from(self.geometry.length(index));
            let is_hole = extent.is_none_or(|extent| extent.offset >= end);
            if is_hole && !self.geometry.keeps_zeros(index) {
                index = self.skip_to(index, extent);
                continue;
            }
            let Ok(mut bytes) = self.free.recv() else { return Err(BackupError::WorkerLost) };
            bytes.resize(self.geometry.length(index) as usize, 0);
            extent = self.fill(index, extent, &mut bytes)?;
            if self.work.send(Plain { sequence, index, bytes }).is_err() {
                return Err(BackupError::WorkerLost);
            }
            sequence += 1;
            self.progress.advance(end - told);
            told = end;
            index.0 += 1;
        }
        self.progress.advance(self.geometry.size_of_disk().saturating_sub(told));
        Ok(())
    }

    /// Returns the next segment that holds data, or is kept although it does not.
    fn skip_to(&self, index: SegmentIndex, extent: Option<Extent>) -> SegmentIndex {
        let last = SegmentIndex(self.geometry.segments().saturating_sub(1));
        let next = extent.map_or(last, |extent| self.geometry.containing(extent.offset)).min(last);
        next.max(SegmentIndex(index.0 + 1))
    }

    /// Reads one segment; returns the first extent that reaches beyond it.
    fn fill(
        &self,
        index: SegmentIndex,
        mut extent: Option<Extent>,
        bytes: &mut [u8],
    ) -> Result<Option<Extent>, BackupError> {
        let start = self.geometry.offset(index);
        let end = start + bytes.len() as u64;
        let within = |offset: u64| usize::try_from(offset - start).unwrap_or(usize::MAX);
        let mut filled = start;
        let step =
            |filled: &mut u64, current: Extent, bytes: &mut [u8]| -> Result<ControlFlow<()>, BackupError> {
                if current.offset >= end {
                    return Ok(ControlFlow::Break(()));
                }
                let from = current.offset.max(start);
                let to = current.offset.saturating_add(current.length).min(end);
                if let Some(hole) = bytes.get_mut(within(*filled)..within(from)) {
                    hole.fill(0);
                }
                if let Some(data) = bytes.get_mut(within(from)..within(to)) {
                    self.image.read_at(data, from)?;
                    self.read_bytes.fetch_add(to - from, Ordering::Relaxed);
                }
                *filled = to;
                let more_here = to == end && current.offset.saturating_add(current.length) > end;
                Ok(if more_here { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            };
        while let Some(current) = extent {
            if step(&mut filled, current, bytes)?.is_break() {
                break;
            }
            extent = self.image.next_data(filled)?;
        }
        if let Some(hole) = bytes.get_mut(within(filled)..) {
            hole.fill(0);
        }
        Ok(extent)
    }
}
