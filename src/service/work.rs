//! Threads for requests, and the memory that requests share.
//!
//! No thread waits for a client. Memory does, for the parts of a body that were read from the disk or have arrived, and each caller
//! has a share of it:
//!
//! | what | shared out | held |
//! |---|---|---|
//! | threads that may block | `blocking_threads` | while a job runs, never while a client reads or sends |
//! | memory for segments that arrive | [`ARRIVING`], or six segments | from a segment's head until the segment is stored |
//! | decoders | [`DECODING`], at two segments each | while segments are verified and stored |
//! | memory for segments that are read | [`READING`], or twelve segments | until the answer has been taken |
//! | exported manifests | [`EXPORTS`] | until the answer has been taken |
//!
//! Every request takes memory first, then a decoder, then a thread, and never waits for more memory while it holds some. So no two
//! requests wait for each other.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use prometheus_client::metrics::gauge::Gauge;
use tokio::task::JoinHandle;

use crate::api::Refusal;
use crate::restore::RangeReader;
use crate::segment::SegmentSize;
use crate::service::limits::Shares;
use crate::service::{App, Caller, Limits, Refused};

/// Memory for segments that arrive, in bytes.
const ARRIVING: usize = 128 << 20;
/// Memory for segments that are decoded and stored, in bytes.
const DECODING: usize = 128 << 20;
/// Memory for segments that are read, in bytes.
const READING: usize = 320 << 20;
/// How many callers read a disk each at one time, whatever one of them does, as far as the memory is enough for that.
const READERS: usize = 8;
/// Manifests that are exported at a time: each may have a temporary file.
const EXPORTS: usize = 32;
/// Threads that the owner finds free, whatever callers do.
const KEPT_THREADS: usize = 4;
/// Threads that no request waits for: they look tokens up, count, run jobs, and look after sessions and certificates.
const ASIDE: usize = 16;
/// Memory is shared out in units of this many bytes.
const UNIT: usize = 1 << 10;

/// What requests share.
#[derive(Debug)]
pub(super) struct Work {
    threads: Arc<Shares>,
    /// For numbers: whoever watches the service gets them under load too.
    numbers: Arc<Shares>,
    /// In units of [`UNIT`] bytes.
    pub(super) arriving: Arc<Shares>,
    pub(super) decoding: Arc<Shares>,
    /// In units of [`UNIT`] bytes.
    pub(super) reading: Arc<Shares>,
    pub(super) exports: Arc<Shares>,
}

/// Returns how many threads that may block the service has.
pub(super) fn threads(limits: &Limits) -> usize {
    limits.blocking_threads + KEPT_THREADS + ASIDE
}

/// Returns the units that so many bytes of memory are.
pub(super) const fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT)
}

/// Returns the memory that reading a disk takes, in bytes, with `jobs` threads at a time and such a plan: a segment is sent, and
/// each thread has one as it is stored and one as it was.
pub(super) fn disk_reader(size: SegmentSize, jobs: usize, plan_bytes: u64) -> usize {
    (1 + 2 * jobs) * size.bytes() as usize + usize::try_from(plan_bytes).unwrap_or(usize::MAX / 2)
}

impl Work {
    pub(super) fn new(limits: &Limits, size: SegmentSize) -> Self {
        let segment = size.bytes() as usize;
        let shares = |what, all, kept| Arc::new(Shares::new(what, all, kept, limits.wait()));
        let arriving = ARRIVING.max(6 * segment);
        let reading = READING.max(12 * segment);
        let reader = disk_reader(size, 1, RangeReader::MOST_PLAN_BYTES);
        // With large segments few readers fit. A caller who is alone must still get several.
        let spare = ((READERS - 1) * units(reader)).min(units(reading) / 2);
        let decoders = (DECODING / (2 * segment)).clamp(2, limits.blocking_threads.max(2));
        Self {
            threads: shares("its threads", limits.blocking_threads, KEPT_THREADS),
            numbers: shares("the threads that count", 2, 1),
            arriving: shares("its memory for uploads", units(arriving), units(2 * segment)),
            decoding: shares("its decoders", decoders, 1),
            reading: Arc::new(
                Shares::new("its memory for reading", units(reading), units(reader), limits.wait())
                    .sparing(spare),
            ),
            exports: shares("its files for manifests", EXPORTS, 2),
        }
    }
}

/// A job that runs, or waits for its thread. It goes on whether or not anybody looks at it, so that a client that reads nothing
/// holds no thread; dropped before it has a thread, it does not begin.
#[derive(Debug)]
pub(super) struct Running<T>(JoinHandle<Result<T, Refused>>);

impl<T> Future for Running<T> {
    type Output = Result<T, Refused>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|result| result.unwrap_or_else(|_| Err(ended_by_a_fault())))
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn ended_by_a_fault() -> Refused {
    // The panic itself is on stderr.
    Refused::new(Refusal::Io, "the request was ended by a fault of the server")
}

impl App {
    /// Starts a caller's job that touches a disk, on a thread that may block. The job must not wait for a client.
    pub(super) fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        caller: &Caller,
        job: impl FnOnce(&Arc<Self>, &Caller) -> Result<T, Refused> + Send + 'static,
    ) -> Running<T> {
        let who = caller.clone();
        self.on_a_thread(&self.work().threads, &caller.who, move |app| job(app, &who))
    }

    /// Starts a job that counts something, on a thread that requests for backups do not use.
    pub(super) fn counting<T: Send + 'static>(
        self: &Arc<Self>,
        who: &str,
        job: impl FnOnce(&Arc<Self>) -> Result<T, Refused> + Send + 'static,
    ) -> Running<T> {
        self.on_a_thread(&self.work().numbers, who, job)
    }

    fn on_a_thread<T: Send + 'static>(
        self: &Arc<Self>,
        threads: &Arc<Shares>,
        who: &str,
        job: impl FnOnce(&Arc<Self>) -> Result<T, Refused> + Send + 'static,
    ) -> Running<T> {
        let (app, threads, who) = (Arc::clone(self), Arc::clone(threads), who.to_owned());
        Running(tokio::spawn(async move {
            let waits = Counted::of(&app.metrics().threads_wanted);
            let thread = threads.take(&who, 1).await?;
            drop(waits);
            let run = move || {
                let _thread = thread;
                let _works = Counted::of(&app.metrics().threads_busy);
                job(&app)
            };
            tokio::task::spawn_blocking(run).await.unwrap_or_else(|_| Err(ended_by_a_fault()))
        }))
    }

    /// Runs a job that is no request's, on a thread that requests do not use.
    pub(super) async fn aside<T: Send + 'static>(
        self: &Arc<Self>,
        job: impl FnOnce(&Arc<Self>) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        let app = Arc::clone(self);
        let run = move || {
            let _works = Counted::of(&app.metrics().threads_busy);
            job(&app)
        };
        tokio::task::spawn_blocking(run).await.unwrap_or_else(|_| Err(ended_by_a_fault()))
    }
}

/// Something that a gauge counts while it is there.
struct Counted(Gauge);

impl Counted {
    fn of(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Geometry;

    #[test]
    fn slow_readers_of_eight_callers_read_large_disks_whatever_one_of_them_does() {
        let size = SegmentSize::new(4 << 20).unwrap();
        let work = Work::new(&Limits::default(), size);
        let geometry = Geometry::new(16 << 40, size).unwrap();
        let plan = RangeReader::plan_bytes(geometry, &(0..16 << 40));
        let reader = |jobs: usize| units(disk_reader(size, jobs, plan));
        let mut held = vec![work.reading.try_take("greedy", reader(2)).unwrap()];
        held.extend(std::iter::from_fn(|| work.reading.try_take("greedy", reader(1))));
        assert!(held.len() >= 4, "{}", held.len());
        for number in 0..7 {
            let who = format!("caller {number}");
            let first = work.reading.try_take(&who, reader(1));
            held.push(first.unwrap_or_else(|| panic!("{who} gets nothing")));
            held.extend(std::iter::from_fn(|| work.reading.try_take(&who, reader(1))));
        }
    }
}
