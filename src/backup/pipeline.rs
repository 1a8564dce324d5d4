//! The threads of one backup: each reads a piece of the image, hashes, compares and stores; the caller's thread puts what
//! came of it in order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::backup::pieces::Pieces;
use crate::backup::plan::{Fate, Plan};
use crate::backup::worker::{Class, Worker};
use crate::backup::{BackupError, BackupOptions, BackupStats};
use crate::image::{Image, ReadBuffer};
use crate::manifest::{ManifestWriter, SegmentRef};
use crate::pace::Pace;
use crate::progress::Progress;
use crate::repository::{BackupDraft, RepositoryWriter};
use crate::segment::{Geometry, SegmentIndex};

/// What became of a segment.
pub(super) struct Outcome {
    pub(super) index: SegmentIndex,
    pub(super) class: Class,
    /// What the manifest says of it; nothing if it is zero.
    pub(super) segment: Option<SegmentRef>,
}

/// What became of a piece.
struct Done {
    sequence: u64,
    /// Where it ends, in bytes of the disk.
    end: u64,
    read_bytes: u64,
    outcomes: Vec<Outcome>,
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
    pace: &'a Pace,
    /// The number by which the threads ask for turns.
    job: usize,
    options: &'a BackupOptions,
    failure: Failure,
}

/// Reads of the image what is planned, stores what is new and writes the manifest's segments.
pub(super) fn run(
    writer: &RepositoryWriter,
    draft: &BackupDraft,
    manifest: &mut ManifestWriter,
    (image, plan): (&dyn Image, &Plan),
    options: &BackupOptions,
    progress: &dyn Progress,
) -> Result<Ran, BackupError> {
    let geometry = draft.info().geometry;
    let pace = options.pace.clone().unwrap_or_else(|| Arc::new(Pace::new(options.jobs, None)));
    let shared = Shared {
        image,
        geometry,
        plan,
        pieces: Mutex::new(Pieces::new(image, geometry, plan)),
        pace: &pace,
        job: pace.join(),
        options,
        failure: Failure::default(),
    };
    let threads = pace.jobs();
    let workers = (0..threads)
        .map(|_| Worker::new(writer.store(), draft, options, progress))
        .collect::<Result<Vec<_>, _>>()?;
    let (done_in, done) = bounded(threads * 4);
    let stats = std::thread::scope(|scope| {
        for worker in workers {
            let (shared, done) = (&shared, done_in.clone());
            scope.spawn(move || {
                if let Err(error) = run_worker(worker, shared, &done) {
                    shared.failure.set(error);
                }
            });
        }
        drop(done_in);
        let order = Order { draft, plan, manifest, next: 0, stats: BackupStats::default() };
        collect(&done, order, &shared.failure, progress)
    });
    match shared.failure.first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(BackupError::ListWrong { segment }) => Ok(Ran { stats: stats?, wrong: Some(segment) }),
        Some(error) => Err(error),
        None => Ok(Ran { stats: stats?, wrong: None }),
    }
}

fn run_worker(mut worker: Worker<'_>, shared: &Shared<'_>, done: &Sender<Done>) -> Result<(), BackupError> {
    let Shared { image, geometry, plan, pieces, pace, job, options, failure } = shared;
    let mut turn = pace.turn(*job);
    let mut buffer = ReadBuffer::new(Pieces::most_bytes(*geometry));
    while !failure.stopped() {
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
        let result = worker.process(piece.segments.start, bytes, plan, &mut outcomes);
        // The collector goes on until the last thread has ended. What was stored counts, whatever comes then.
        let _ = done.send(Done { sequence: piece.sequence, end, read_bytes, outcomes });
        result?;
        turn.give_way();
    }
    Ok(())
}

/// Puts the outcomes in order, counts them and writes the manifest's segments.
fn collect(
    done: &Receiver<Done>,
    mut order: Order<'_>,
    failure: &Failure,
    progress: &dyn Progress,
) -> Result<BackupStats, BackupError> {
    let geometry = order.draft.info().geometry;
    // What came before its turn: about as much as is processed while one piece is.
    let mut early = BTreeMap::new();
    let (mut next, mut told) = (0, 0);
    for one in done {
        order.stats.read_bytes += one.read_bytes;
        one.outcomes.iter().for_each(|outcome| count(&mut order.stats, outcome.class));
        early.insert(one.sequence, one);
        while let Some(Done { end, outcomes, .. }) = early.remove(&next) {
            next += 1;
            if let Err(error) = outcomes.iter().try_for_each(|outcome| order.push(outcome)) {
                failure.set(error);
            }
            progress.advance(end - told);
            told = end;
        }
    }
    let complete = early.is_empty();
    if !failure.stopped()
        && let Err(error) = order.keep_up_to(geometry.segments())
    {
        failure.set(error);
    }
    progress.advance(geometry.size_of_disk().saturating_sub(told));
    let mut stats = order.stats;
    stats.segments = u64::from(geometry.segments());
    stats.audited_segments = order.plan.audits();
    let others = stats.unchanged_segments + stats.deduplicated_segments + stats.new_segments;
    stats.zero_segments = stats.segments - others;
    if complete || failure.stopped() { Ok(stats) } else { Err(BackupError::WorkerLost) }
}

/// The manifest, filled in the order of the disk.
struct Order<'a> {
    draft: &'a BackupDraft,
    plan: &'a Plan,
    manifest: &'a mut ManifestWriter,
    /// The first segment of which nothing has been said.
    next: u32,
    stats: BackupStats,
}

impl Order<'_> {
    fn push(&mut self, outcome: &Outcome) -> Result<(), BackupError> {
        let Outcome { index, segment, .. } = *outcome;
        self.keep_up_to(index.0)?;
        self.next = index.0 + 1;
        if let Some(segment) = &segment {
            self.manifest.push(index, segment)?;
        }
        Ok(())
    }

    /// Takes over from the parent what was not read before `end`; the rest there is zero.
    fn keep_up_to(&mut self, end: u32) -> Result<(), BackupError> {
        let next = std::mem::replace(&mut self.next, end);
        let Some(parent) = self.draft.parent().filter(|_| next < end) else { return Ok(()) };
        for (run, fate) in self.plan.runs(next..end) {
            if !matches!(fate, Fate::Keep | Fate::Audit { zero: false }) {
                continue;
            }
            let mut cursor = parent.manifest.cursor(SegmentIndex(run.start));
            for index in run.map(SegmentIndex) {
                let Some(segment) = cursor.at(index) else { continue };
                if fate != Fate::Keep {
                    // The image has a hole where the parent has a segment.
                    return Err(BackupError::ListWrong { segment: index });
                }
                let segment = SegmentRef { base: parent.base(segment.base), ..segment };
                self.stats.unchanged_segments += 1;
                self.manifest.push(index, &segment)?;
            }
        }
        Ok(())
    }
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
