//! Restoring to a stream: fetched on all cores, written in order.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_channel::bounded;

use crate::pace::Pace;
use crate::progress::Progress;
use crate::repository::RepositoryError;
use crate::restore::fetch::{Fetcher, check_length, damaged};
use crate::restore::plan::Plan;
use crate::restore::{DamagedSegment, RestoreError, RestoreSummary, SegmentError};
use crate::segment::{Geometry, SegmentIndex};
use crate::storage::StorageError;
use crate::store::Catalog;

/// How many zeros are written at once.
const ZEROS: usize = 1 << 18;

/// A stream that a disk is written to, and how far.
pub(super) struct Output<'a> {
    stream: &'a mut dyn Write,
    geometry: Geometry,
    /// What of the disk is written, in bytes.
    range: Range<u64>,
    /// Up to where it is, in bytes of the disk.
    position: u64,
    damaged: Vec<DamagedSegment>,
}

/// Tells workers to stop when this is dropped.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What a worker hands over: a buffer and whether it holds the segment.
struct Fetched {
    sequence: usize,
    index: SegmentIndex,
    plain: Vec<u8>,
    result: Result<(), SegmentError>,
}

impl<'a> Output<'a> {
    pub(super) fn new(stream: &'a mut dyn Write, geometry: Geometry, range: Range<u64>) -> Self {
        Self { stream, geometry, position: range.start, range, damaged: Vec::new() }
    }

    /// Writes a segment, as far as it lies in the range.
    fn segment(&mut self, index: SegmentIndex, plain: &[u8]) -> Result<(), RestoreError> {
        let start = self.geometry.offset(index);
        let within =
            |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX).min(plain.len());
        let wanted = within(self.range.start)..within(self.range.end);
        self.write(plain.get(wanted).unwrap_or(&[]))
    }

    fn failed(&self, source: std::io::Error) -> RestoreError {
        let Range { start, end } = self.range;
        RestoreError::Stream { written: self.position - start, size: end - start, source }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.stream.write_all(bytes).map_err(|source| self.failed(source))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn zeros_to(&mut self, end: u64, progress: &dyn Progress) -> Result<(), RestoreError> {
        let zeros = vec![0; ZEROS];
        let end = end.min(self.range.end);
        while self.position < end {
            let length = usize::try_from(end - self.position).unwrap_or(ZEROS).min(ZEROS);
            self.write(zeros.get(..length).unwrap_or(&[]))?;
            progress.advance(length as u64);
        }
        Ok(())
    }

    /// Writes a window.
    ///
    /// A worker takes a buffer *before* it takes the next segment, so the segment whose turn it is always
    /// has one, and no more than the buffers are ever ahead.
    pub(super) fn run(
        &mut self,
        catalog: &Catalog,
        plan: &Plan,
        pace: &Pace,
        progress: &dyn Progress,
    ) -> Result<(), RestoreError> {
        let jobs = pace.jobs();
        let buffers = 2 * jobs;
        let (free_in, free) = bounded(buffers);
        let (done_in, done) = bounded::<Fetched>(buffers);
        for _ in 0..buffers {
            // The channel has room for all of them.
            let _ = free_in.send(Vec::new());
        }
        let order = plan.in_order();
        let fetchers = (0..jobs).map(|_| Fetcher::new(catalog)).collect::<Result<Vec<_>, _>>()?;
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let geometry = self.geometry;
        std::thread::scope(|scope| {
            // The scope waits for its threads, however this ends. Those that wait, for a buffer or to hand one over, see then
            // that nobody listens any longer.
            let (free_in, done) = (free_in, done);
            let _stop = StopAtEnd(&stop);
            for mut fetcher in fetchers {
                let (free, done) = (free.clone(), done_in.clone());
                let (order, next, stop) = (&order, &next, &stop);
                let thread = std::thread::Builder::new().name("ekko-restore".to_owned());
                let started = thread.spawn_scoped(scope, move || {
                    while let Ok(mut plain) = free.recv() {
                        let sequence = next.fetch_add(1, Ordering::Relaxed);
                        let Some((index, item)) = order.get(sequence) else { return };
                        if stop.load(Ordering::Acquire) {
                            return;
                        }
                        pace.spend(u64::from(geometry.length(*index)), || stop.load(Ordering::Acquire));
                        let result = fetcher
                            .fetch(plan, item, &mut plain)
                            .and_then(|()| check_length(item, &plain, geometry, *index));
                        if done.send(Fetched { sequence, index: *index, plain, result }).is_err() {
                            return;
                        }
                    }
                });
                let failed = |source| StorageError::new("start a thread for", "the restore", source);
                started.map_err(|source| RepositoryError::from(failed(source)))?;
            }
            drop((done_in, free));
            self.write_in_order(&done, &free_in, progress)
        })
    }

    fn write_in_order(
        &mut self,
        done: &crossbeam_channel::Receiver<Fetched>,
        free: &crossbeam_channel::Sender<Vec<u8>>,
        progress: &dyn Progress,
    ) -> Result<(), RestoreError> {
        let mut early = BTreeMap::new();
        let mut next = 0;
        for fetched in done {
            early.insert(fetched.sequence, fetched);
            while let Some(Fetched { index, plain, result, .. }) = early.remove(&next) {
                next += 1;
                self.zeros_to(self.geometry.offset(index), progress)?;
                match result {
                    Ok(()) => {
                        self.segment(index, &plain)?;
                        progress.advance(plain.len() as u64);
                    }
                    // Its range is written as zeros before the next segment, or at the end.
                    Err(error) => self.damaged.push(damaged(self.geometry, index, &error)),
                }
                // A worker that has ended needs no buffer.
                let _ = free.try_send(plain);
            }
        }
        Ok(())
    }

    /// Writes the zeros up to the end of the disk.
    pub(super) fn finish(mut self, progress: &dyn Progress) -> Result<RestoreSummary, RestoreError> {
        self.zeros_to(self.range.end, progress)?;
        self.stream.flush().map_err(|source| self.failed(source))?;
        Ok(RestoreSummary {
            written_bytes: self.position - self.range.start,
            damaged: self.damaged,
            ..RestoreSummary::default()
        })
    }
}
