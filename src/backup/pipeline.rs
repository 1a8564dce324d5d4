//! The threads of one backup: each reads a piece of the image, hashes, compares and stores; the caller's thread puts what
//! came of it in order. None begins a piece that is too far ahead of the order ([`Leaves`]): what waits for its turn has a bound,
//! however long one piece takes.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::backup::leave::{Leave, Leaves};
use crate::backup::pieces::Pieces;
use crate::backup::plan::Plan;
use crate::backup::worker::Class;
use crate::backup::{BackupError, BackupOptions, BackupStats};
use crate::image::Image;
use crate::pace::Pace;
use crate::progress::Progress;
use crate::segment::{Geometry, SegmentIndex};
use crate::storage::{AlignedBuffer, StorageError};
use crate::store::StoreError;

/// What became of a segment.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<S> {
    /// Its place.
    pub index: SegmentIndex,
    /// What it turned out to be.
    pub class: Class,
    /// What the manifest says of it; nothing if it is zero.
    pub segment: Option<S>,
}

/// Finds out what segments are and has the new ones stored: here, or elsewhere. One for each thread.
pub trait SegmentWorker: Send {
    /// What the manifest is to say of a segment.
    type Segment: Send;

    /// Finds out what the segments are whose bytes these are, from `first` on, and adds what became of each to `outcomes`:
    /// of those before it, too, if one fails.
    ///
    /// # Errors
    ///
    /// The backup ends then.
    fn process(
        &mut self,
        first: SegmentIndex,
        bytes: &[u8],
        outcomes: &mut Vec<Outcome<Self::Segment>>,
    ) -> Result<(), BackupError>;
}

/// Takes what became of segments in the order of the disk; what is left out was not read.
pub trait InOrder<S> {
    /// Takes the next one.
    ///
    /// # Errors
    ///
    /// The backup ends then.
    fn push(&mut self, outcome: Outcome<S>) -> Result<(), BackupError>;

    /// Is told that no more come. Returns how many segments that were not read are the parent's.
    ///
    /// # Errors
    ///
    /// The backup ends then.
    fn finish(&mut self) -> Result<u64, BackupError>;
}

/// What became of a piece.
struct Done<S> {
    sequence: u64,
    /// Where it ends, in bytes of the disk.
    end: u64,
    read_bytes: u64,
    outcomes: Vec<Outcome<S>>,
    _leave: Leave,
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

/// Stops the others if the thread that has it panics: nothing comes of what they would still read.
struct StopOnPanic<'a>(&'a Failure);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.set(BackupError::WorkerLost);
        }
    }
}

/// What was done.
pub(super) struct Ran {
    pub(super) stats: BackupStats,
    /// A segment that is not what the list of changes says: the manifest is of no use then.
    pub(super) wrong: Option<SegmentIndex>,
}

/// What the threads share.
struct Shared<'a> {
    image: &'a dyn Image,
    geometry: Geometry,
    plan: &'a Plan,
    pieces: Mutex<Pieces<'a>>,
    leaves: Leaves,
    pace: &'a Pace,
    /// The number by which the threads ask for turns.
    job: usize,
    options: &'a BackupOptions,
    failure: Failure,
}

/// Reads of the image what is planned, has `workers` process it, a thread each, and gives `order` what became of it.
pub(super) fn run<W: SegmentWorker>(
    (image, geometry, plan): (&dyn Image, Geometry, &Plan),
    workers: Vec<W>,
    order: &mut dyn InOrder<W::Segment>,
    options: &BackupOptions,
    progress: &dyn Progress,
) -> Result<Ran, BackupError> {
    let pace = options.pace();
    let shared = Shared {
        image,
        geometry,
        plan,
        pieces: Mutex::new(Pieces::new(image, geometry, plan)),
        leaves: Leaves::new(workers.len()),
        pace: &pace,
        job: pace.join(),
        options,
        failure: Failure::default(),
    };
    let (done_in, done) = bounded(workers.len() * 4);
    let stats = std::thread::scope(|scope| {
        // The scope waits for its threads, however this ends: they are to stop then, and to see that nobody listens.
        let (shared, done) = (&shared, done);
        let _stop = StopOnPanic(&shared.failure);
        let start = |worker| {
            let done = done_in.clone();
            let thread = std::thread::Builder::new().name("ekko-backup".to_owned());
            thread.spawn_scoped(scope, move || {
                let _last = shared.leaves.one_more();
                let _stop = StopOnPanic(&shared.failure);
                if let Err(error) = run_worker(worker, shared, &done) {
                    shared.failure.set(error);
                }
            })
        };
        let mut threads = Vec::with_capacity(workers.len());
        for worker in workers {
            match start(worker) {
                Ok(thread) => threads.push(thread),
                // Those that have started do all of it.
                Err(error) if !threads.is_empty() => {
                    tracing::info!(%error, "the backup goes on with fewer threads");
                    break;
                }
                Err(source) => {
                    let error = StorageError::new("start a thread for", "the backup", source);
                    shared.failure.set(StoreError::from(error).into());
                    break;
                }
            }
        }
        drop(done_in);
        let stats = collect(&done, order, shared, progress);
        // One that panicked has said so in the failure.
        for thread in threads {
            drop(thread.join());
        }
        stats
    });
    match shared.failure.first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(BackupError::ListWrong { segment }) => Ok(Ran { stats: stats?, wrong: Some(segment) }),
        Some(error) => Err(error),
        None => Ok(Ran { stats: stats?, wrong: None }),
    }
}

fn run_worker<W: SegmentWorker>(
    mut worker: W,
    shared: &Shared<'_>,
    done: &Sender<Done<W::Segment>>,
) -> Result<(), BackupError> {
    let Shared { image, geometry, pieces, leaves, pace, job, options, failure, .. } = shared;
    let mut turn = pace.turn(*job);
    let mut buffer = AlignedBuffer::new(Pieces::most_bytes(*geometry));
    loop {
        let leave = leaves.take();
        if failure.stopped() {
            break;
        }
        let next = {
            // Held while the image is asked where its next data lies: the answer is what the next thread goes on from.
            let mut pieces = pieces.lock().unwrap_or_else(PoisonError::into_inner);
            pieces.next()?
        };
        let Some(piece) = next else { break };
        let read_bytes = piece.data_bytes();
        pace.spend(read_bytes, || failure.stopped() || options.is_stopped());
        if options.is_stopped() {
            return Err(BackupError::Stopped);
        }
        let start = geometry.offset(SegmentIndex(piece.segments.start));
        let last = SegmentIndex(piece.segments.end.saturating_sub(1));
        let end = geometry.offset(last) + u64::from(geometry.length(last));
        let bytes = buffer.of(usize::try_from(end - start).unwrap_or(usize::MAX));
        piece.read(*image, start, bytes)?;
        let mut outcomes = Vec::with_capacity(piece.segments.len());
        let result = worker.process(SegmentIndex(piece.segments.start), bytes, &mut outcomes);
        // Before what there is of the piece is taken in, which would miss the rest.
        let failed = result.map_err(|error| failure.set(error)).is_err();
        // The collector goes on until the last thread has ended. What was stored counts, whatever comes then.
        let _ = done.send(Done { sequence: piece.sequence, end, read_bytes, outcomes, _leave: leave });
        if failed {
            break;
        }
        turn.give_way();
    }
    Ok(())
}

/// Returns about how many bytes of data are read.
pub(super) fn expected_bytes(image: &dyn Image, geometry: Geometry, plan: &Plan) -> u64 {
    let size = geometry.size_of_disk();
    match image.allocated() {
        Some(allocated) => {
            allocated.min(plan.reads().saturating_mul(geometry.segment_size().bytes().into())).min(size)
        }
        None => size,
    }
}

/// Puts the outcomes in order and counts them.
fn collect<S>(
    done: &Receiver<Done<S>>,
    order: &mut dyn InOrder<S>,
    shared: &Shared<'_>,
    progress: &dyn Progress,
) -> Result<BackupStats, BackupError> {
    let Shared { image, geometry, plan, failure, .. } = shared;
    let expected = expected_bytes(*image, *geometry, plan);
    // Where data lies is known in part only: then holes count as well.
    let by_place = image.allocated().is_none();
    let mut stats = BackupStats::default();
    // What came before its turn.
    let mut early = BTreeMap::new();
    let (mut next, mut told) = (0, 0);
    for one in done {
        stats.read_bytes += one.read_bytes;
        if !by_place {
            progress.advance(one.read_bytes);
            told += one.read_bytes;
        }
        one.outcomes.iter().for_each(|outcome| count(&mut stats, outcome.class));
        early.insert(one.sequence, one);
        while let Some(Done { end, outcomes, .. }) = early.remove(&next) {
            next += 1;
            if !failure.stopped()
                && let Err(error) = outcomes.into_iter().try_for_each(|outcome| order.push(outcome))
            {
                failure.set(error);
            }
            if by_place {
                progress.advance(end - told);
                told = end;
            }
        }
    }
    let complete = early.is_empty();
    if !failure.stopped() {
        match order.finish() {
            Ok(kept) => stats.unchanged_segments += kept,
            Err(error) => failure.set(error),
        }
    }
    progress.advance(expected.saturating_sub(told));
    stats.segments = u64::from(geometry.segments());
    stats.audited_segments = plan.audits();
    let others = stats.unchanged_segments + stats.deduplicated_segments + stats.new_segments;
    stats.zero_segments = stats.segments - others;
    stats.used_bytes = used_bytes(*geometry, stats.zero_segments);
    if complete || failure.stopped() { Ok(stats) } else { Err(BackupError::WorkerLost) }
}

/// Returns how many bytes the segments have that are not zeros. A short last segment is kept, so those of zeros are full.
pub fn used_bytes(geometry: Geometry, zero_segments: u64) -> u64 {
    geometry.size_of_disk().saturating_sub(zero_segments * u64::from(geometry.segment_size().bytes()))
}

fn count(stats: &mut BackupStats, class: Class) {
    match class {
        Class::Zero => {}
        Class::Unchanged => stats.unchanged_segments += 1,
        Class::Deduplicated { recalled } => {
            stats.deduplicated_segments += 1;
            stats.recalled_segments += u64::from(recalled);
        }
        Class::Resumed { recalled } => {
            stats.deduplicated_segments += 1;
            stats.resumed_segments += 1;
            stats.recalled_segments += u64::from(recalled);
        }
        Class::New { plain_bytes, stored_bytes } => {
            stats.new_segments += 1;
            stats.new_bytes += plain_bytes;
            stats.stored_bytes += stored_bytes;
        }
    }
}
