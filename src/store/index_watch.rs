//! Keeps calls into sled from waiting for ever.
//!
//! # What waits in sled 0.34.7, and what ends each wait
//!
//! | where | waits for | ends |
//! |---|---|---|
//! | `iobuf.rs`, `make_stable_inner`: `flush`, and every read of a page from the file (`logger.rs`, `Log::read`) | the condition variable `interval_updated`: a buffer is written | see below |
//! | `logger.rs`, `reserve_inner`: every change | spins until the sealed buffer is replaced | each round looks at the global error |
//! | `concurrency_control.rs`: every call; one lock for the whole process, for writing by `apply_batch`, for reading by all others | the calls of others | when those return |
//! | `segment.rs`, `next`, `initialize_from_snapshot`; `iterator.rs` | the promise of a thread of sled's pool | the promise is filled when it is dropped, even by a panic |
//! | mutexes of the segment accountant, of page numbers, of free pages | whoever holds them | held over file operations, never over one of the waits above |
//! | `flusher.rs` | its thread | not started: `flush_every_ms(None)` |
//!
//! A failed write of a buffer sets sled's *global error*. Three places do so. `maybe_seal_and_write_iobuf` then wakes all
//! waiters. The job that `exit_reservation` gives to the pool, and `Reservation::drop`, wake nobody: whoever waits on
//! `interval_updated` at that moment waits for ever. Every batch of ours ends in `exit_reservation`.
//!
//! # The watcher
//!
//! While calls are under way, a thread looks at the global error ten times a second, and if there is one it makes sled wake
//! all waiters ([`Watched::wake`]); each of them then sees the error and returns it. So a failed write ends every call within
//! a moment, lookups included, and a slow disk is never taken for a failed one. A lookup pays two atomic additions.
//!
//! It does *not* wake them by a second `flush`: `flush` takes the process-wide lock for reading. If a lookup waits in
//! `make_stable_inner`, and the store's thread waits for the lock for writing, a `flush` queues behind that and all three
//! wait. `open_tree` takes no such lock, and fails before it changes anything: a reservation looks at the global error first.
//!
//! # A call that does not return although no write failed
//!
//! That is a fault of sled's own, as a panic in a thread of its pool before the buffer is written. Such a call holds the
//! process-wide lock, so no index, a new one neither, can be used by this process again: an index that is built anew here
//! would wait, too. When a call has been under way for [`LIMIT`] seconds in which the index's file has not changed,
//! the watcher syncs that file and writes one of its own beside it. If the disk hangs (a path of iSCSI or multipath that fails
//! over, a frozen filesystem), the watcher waits with the call. If the disk answers and the call still does not return within
//! [`GRACE`] seconds, the index is *stuck*: further calls are refused, whoever waits for the store's thread gets [`IndexError::Stuck`], and the
//! program is told ([`when_index_is_stuck`]), which ends the process. The next process believes the index or builds a new one.
//! Seconds are counted by the watcher, so a process that was
//! stopped for an hour has not waited for an hour.
//!
//! # States
//!
//! A call: *not begun* -> *under way* (counted in `begun`) -> *ended*. An index: *open* -> *refusing* (it failed, is stuck,
//! or is being left) . The watcher of an index that was left ends when no call is under way. A caller counts itself before
//! it looks whether calls are refused, and the watcher looks for callers after calls are refused: so one of the two sees the other,
//! and no call begins that nobody watches.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::store::index_error::IndexError;

/// How often the watcher looks.
const LOOK: Duration = Duration::from_millis(100);
/// How many looks make a second.
const LOOKS: u32 = 10;
/// After how many seconds without a change of its file an index may be stuck that does not return from a call. Linux, too,
/// reports a thread that waits for a disk for so long (`hung_task_timeout_secs`).
pub(super) const LIMIT: u64 = 120;
/// How many seconds a call has to return after the disk has answered.
const GRACE: u64 = 10;
/// Calls are counted by the second in which they began, in a ring of so many.
const SECONDS: usize = 256;

static WHEN_STUCK: OnceLock<fn(&str)> = OnceLock::new();

/// Has a function called, on a thread of its own, when an index is stuck: this process cannot use an index again, and
/// should end. Only the first function counts.
pub fn when_index_is_stuck(call: fn(&str)) {
    let _ = WHEN_STUCK.set(call);
}

/// The calls into one index.
#[derive(Debug)]
pub(super) struct Calls {
    path: PathBuf,
    /// The seconds that the watcher has counted.
    second: AtomicU64,
    /// Calls under way, by the second in which they began.
    begun: [AtomicU32; SECONDS],
    refused: AtomicBool,
    stuck: AtomicBool,
}

/// A call that is under way.
#[derive(Debug)]
pub(super) struct Call<'a>(Option<&'a AtomicU32>);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if let Some(begun) = self.0 {
            begun.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Calls {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            second: AtomicU64::new(0),
            begun: [const { AtomicU32::new(0) }; SECONDS],
            refused: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
        }
    }

    /// Begins a call, unless no more are taken.
    pub(super) fn begin(&self) -> Result<Call<'_>, IndexError> {
        let begun = self.begun.get(slot(self.second.load(Ordering::Relaxed)));
        if let Some(begun) = begun {
            begun.fetch_add(1, Ordering::SeqCst);
        }
        // Counted first: see the module's page.
        let call = Call(begun);
        self.check()?;
        if self.refused.load(Ordering::SeqCst) {
            let what = "it has failed and is not used any longer".to_owned();
            return Err(IndexError::Damaged { path: self.path.clone(), what });
        }
        Ok(call)
    }

    /// Says whether the index still answers.
    ///
    /// # Errors
    /// [`IndexError::Stuck`].
    pub(super) fn check(&self) -> Result<(), IndexError> {
        if self.stuck.load(Ordering::SeqCst) {
            return Err(IndexError::Stuck { path: self.path.clone(), seconds: LIMIT });
        }
        Ok(())
    }

    /// Takes no more calls.
    pub(super) fn refuse(&self) {
        self.refused.store(true, Ordering::SeqCst);
    }

    fn set_stuck(&self) {
        self.stuck.store(true, Ordering::SeqCst);
        self.refuse();
    }

    #[cfg(test)]
    pub(super) fn make_stuck(&self) {
        self.set_stuck();
    }

    /// Waits until no call is under way, for a second at most. Says whether none is.
    pub(super) fn ended(&self) -> bool {
        (0..LOOKS).any(|_| {
            let ended = !self.are_under_way();
            if !ended {
                std::thread::sleep(LOOK);
            }
            ended
        })
    }

    fn are_under_way(&self) -> bool {
        self.begun.iter().any(|begun| begun.load(Ordering::SeqCst) > 0)
    }

    /// Returns for how many seconds the oldest call has been under way.
    fn oldest(&self) -> Option<u64> {
        let second = self.second.load(Ordering::Relaxed);
        let is_under_way = |age: &u64| {
            self.begun.get(slot(second.wrapping_sub(*age))).is_some_and(|it| it.load(Ordering::SeqCst) > 0)
        };
        (0..SECONDS as u64).rev().find(is_under_way)
    }
}

fn slot(second: u64) -> usize {
    usize::try_from(second % SECONDS as u64).unwrap_or(0)
}

/// What is watched.
pub(super) trait Watched: Send + Sync + 'static {
    /// If a write has failed, wakes all calls that wait for it. Says whether one has.
    fn wake(&self) -> bool;
}

/// How long and how new the index's file is.
type Look = (u64, i64, i64);

fn look(path: &Path) -> Option<Look> {
    std::fs::metadata(path.join("db")).ok().map(|it| (it.len(), it.mtime(), it.mtime_nsec()))
}

/// Waits until the disk of an index answers. What it answers does not matter.
fn wait_for_disk(path: &Path) {
    let synced = File::open(path.join("db")).and_then(|db| db.sync_data());
    let written = tempfile::tempfile_in(path).and_then(|mut file| {
        file.write_all(&[0; 4096])?;
        file.sync_data()
    });
    if let Err(error) = synced.and(written) {
        tracing::debug!(path = %path.display(), %error, "the disk of the index answers with an error");
    }
}

/// Tells a call that does not return from one that takes long.
#[derive(Debug, Default)]
struct Clock {
    /// For how many seconds calls have been under way and the file has not changed.
    still: u64,
    /// Whether the disk has answered since the file last changed.
    answered: bool,
    last: Option<Look>,
}

impl Clock {
    /// Counts a second. Says whether the index is stuck. Waits by `wait_for_disk` before it says so.
    fn second(
        &mut self,
        calls: &Calls,
        look: impl FnOnce() -> Option<Look>,
        wait_for_disk: impl FnOnce(),
    ) -> bool {
        calls.second.fetch_add(1, Ordering::Relaxed);
        let Some(oldest) = calls.oldest() else {
            *self = Self::default();
            return false;
        };
        let now = look();
        if now == self.last {
            self.still += 1;
        } else {
            *self = Self { last: now, ..Self::default() };
        }
        if oldest < LIMIT || self.still < LIMIT {
            return false;
        }
        if !self.answered {
            wait_for_disk();
            self.answered = true;
            self.still = LIMIT - GRACE;
            return false;
        }
        true
    }
}

/// The thread that watches an index. Unless it is stopped it goes on until no call is under way in an index that takes no more.
#[derive(Debug)]
pub(super) struct Watcher {
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    pub(super) fn start<W: Watched>(calls: Arc<Calls>, watched: Weak<W>) -> std::io::Result<Self> {
        let (stop, stopped) = bounded(1);
        let thread = std::thread::Builder::new()
            .name("ekko-index-watch".to_owned())
            .spawn(move || watch(&calls, &watched, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it: no call is under way, and none comes.
    pub(super) fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.stop.send(());
            // It does nothing that panics.
            let _ = thread.join();
        }
    }
}

fn watch<W: Watched>(calls: &Calls, watched: &Weak<W>, stop: &Receiver<()>) {
    let (mut clock, mut looks) = (Clock::default(), 0);
    loop {
        match stop.recv_timeout(LOOK) {
            Ok(()) => return,
            // Nobody will stop it any longer: the index was left.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
            Err(RecvTimeoutError::Timeout) => {}
        }
        // In this order: a caller that is not seen below sees that calls are refused.
        let refused = calls.refused.load(Ordering::SeqCst);
        if calls.are_under_way() {
            let Some(watched) = watched.upgrade() else { return };
            if watched.wake() {
                tracing::debug!(path = %calls.path.display(), "calls that wait for a failed write were woken");
            }
        } else if refused {
            return;
        }
        looks += 1;
        if looks == LOOKS {
            looks = 0;
            if clock.second(calls, || look(&calls.path), || wait_for_disk(&calls.path)) {
                calls.set_stuck();
                break;
            }
        }
    }
    if let Err(error) = calls.check() {
        if let Some(call) = WHEN_STUCK.get() {
            call(&error.to_string());
        } else {
            tracing::error!(%error, "the index is stuck");
        }
    }
}

#[cfg(test)]
#[path = "index_watch/tests.rs"]
pub(in crate::store) mod tests;
