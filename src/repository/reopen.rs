//! How a long-running process reopens a repository that has stopped writing.
//!
//! The thread that reopens polls `open` and never queues for it, so jobs that only read continue. It keeps the stopped store
//! until it knows that the repository is writable: until then, reads need that store.

use std::path::PathBuf;
use std::sync::{RwLockWriteGuard, TryLockError};
use std::time::{Duration, Instant};

use crate::progress::Progress;
use crate::repository::home::check_id;
use crate::repository::job::SharedWriter;
use crate::repository::open::LockedRepository;
use crate::repository::{RepositoryError, RepositoryWriter};

/// How long the thread that reopens waits for the jobs on the old store to end.
const JOBS_END: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);
/// The shortest wait between two attempts to reopen. The wait is at least ten times as long as the last attempt took, and
/// doubles while the repository does not stay healthy.
pub(super) const LEAST_WAIT: Duration = Duration::from_secs(1);
const MOST_WAIT: Duration = Duration::from_mins(1);
/// The longest wait after a failed opening, which may have read all packs to rebuild the index.
const MOST_WAIT_UNOPENED: Duration = Duration::from_mins(10);
/// How long a repository is open before it counts as healthy.
const HEALTHY: Duration = Duration::from_mins(1);

/// The state behind the lock that jobs hold.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) held: Held,
    /// How often the store was replaced.
    pub(super) replaced: u64,
    /// Why the index must be rebuilt. Set until a rebuild succeeds.
    pub(super) rebuild: Option<String>,
    /// Whether the last attempt to reopen found the disk full, even without the reserve.
    pub(super) stays_full: bool,
}

/// A repository in one of its states.
#[derive(Debug)]
pub(super) enum Held {
    Open(Box<RepositoryWriter>),
    /// With why.
    Closed(Box<LockedRepository>, Why),
    /// While a thread changes the state, and after a panic of that thread.
    Nothing,
}

/// Why a repository is not open.
#[derive(Clone, Debug)]
pub(super) struct Why {
    path: PathBuf,
    reason: String,
    full: bool,
}

impl From<Why> for RepositoryError {
    fn from(Why { path, reason, full }: Why) -> Self {
        if full { Self::full(&path, reason, true) } else { Self::Poisoned { reason } }
    }
}

impl Held {
    pub(super) fn writer(&self) -> Result<&RepositoryWriter, RepositoryError> {
        match self {
            Self::Open(writer) => Ok(writer),
            Self::Closed(_, why) => Err(why.clone().into()),
            Self::Nothing => Err(lost()),
        }
    }
}

fn lost() -> RepositoryError {
    RepositoryError::Poisoned { reason: "it could not be opened again".to_owned() }
}

/// The outcome of an attempt to reopen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Open,
    /// The repository is not writable, or jobs still run: the old store stays.
    Left,
    Unopened,
}

/// When the repository may be reopened.
#[derive(Debug, Default)]
pub(super) struct Tries {
    last: Option<Instant>,
    wait: Duration,
}

impl Tries {
    /// Says whether the next attempt is due.
    fn is_due(&mut self, now: Instant, least: Duration) -> bool {
        let Some(before) = self.last else { return true };
        let since = now.saturating_duration_since(before);
        if since > self.wait + HEALTHY {
            self.wait = Duration::ZERO;
        }
        since >= self.wait.max(least)
    }

    /// Records an attempt.
    fn note(&mut self, now: Instant, took: Duration, outcome: Outcome) {
        let (factor, most) = match outcome {
            Outcome::Open => (2, MOST_WAIT),
            Outcome::Left => (1, MOST_WAIT),
            Outcome::Unopened => (2, MOST_WAIT_UNOPENED),
        };
        self.wait = (self.wait * factor).max(took * 10).clamp(LEAST_WAIT, most);
        self.last = Some(now);
    }
}

impl SharedWriter {
    /// Says whether the repository has stopped writing and no other thread is reopening it.
    fn has_stopped(&self) -> bool {
        matches!(self.try_with(RepositoryWriter::check), Err(error) if !is_busy(&error))
    }

    /// Reopens the repository if it has stopped writing, unless the last attempt was too recent or another thread is at it.
    /// The next job gets the error if the repository could not be opened.
    pub(super) fn reopen(&self, least: Duration, progress: &dyn Progress) {
        let Some(service) = &self.service else { return };
        if !self.has_stopped() {
            return;
        }
        let mut tries = match service.tries.try_lock() {
            Ok(tries) => tries,
            Err(TryLockError::Poisoned(tries)) => tries.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if !self.has_stopped() || !tries.is_due(Instant::now(), least) {
            return;
        }
        let Some(mut open) = self.write_when_jobs_end() else {
            tries.note(Instant::now(), Duration::ZERO, Outcome::Left);
            return;
        };
        // Another thread may have replaced the index while this one waited.
        if open.held.writer().is_ok_and(|writer| writer.check().is_ok()) {
            return;
        }
        let begun = Instant::now();
        let result = open.again(None, progress);
        let outcome = match (&result, &open.held) {
            (Ok(()), _) => Outcome::Open,
            (Err(_), Held::Open(_)) => Outcome::Left,
            (Err(_), _) => Outcome::Unopened,
        };
        drop(open);
        tries.note(Instant::now(), begun.elapsed(), outcome);
        match result {
            Ok(()) => tracing::info!("the repository writes again"),
            Err(error) => tracing::warn!(%error, "the repository could not be opened again"),
        }
    }

    /// Takes `open` for writing as soon as no job holds it. A job that waits for this one is not kept waiting long.
    fn write_when_jobs_end(&self) -> Option<RwLockWriteGuard<'_, Open>> {
        let begun = Instant::now();
        loop {
            match self.open.try_write() {
                Ok(open) => return Some(open),
                Err(TryLockError::Poisoned(open)) => return Some(open.into_inner()),
                Err(TryLockError::WouldBlock) if begun.elapsed() < JOBS_END => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => return None,
            }
        }
    }

    /// Says whether this process can no longer use the repository: an attempt to reopen it panicked, and its lock is gone.
    pub fn is_lost(&self) -> bool {
        let open = match self.open.try_read() {
            Ok(open) => open,
            Err(TryLockError::Poisoned(open)) => open.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        matches!(open.held, Held::Nothing)
    }

    /// Looks after a repository that is to stay open: opens it again if it has stopped writing. Blocks.
    ///
    /// # Errors
    /// [`RepositoryError::Moved`] while the repository is not at its path.
    pub fn look_after(&self, progress: &dyn Progress) -> Result<(), RepositoryError> {
        self.home()?;
        check_id(&self.repository)?;
        self.reopen(LEAST_WAIT * 2, progress);
        Ok(())
    }
}

fn is_busy(error: &RepositoryError) -> bool {
    matches!(error, RepositoryError::IndexBeingReplaced { .. })
}

impl Open {
    /// Stops writing, unless it has stopped.
    fn stop(&mut self) -> Result<LockedRepository, RepositoryError> {
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Open(writer) => Ok(writer.stop()),
            Held::Closed(locked, _) => Ok(*locked),
            Held::Nothing => Err(lost()),
        }
    }

    /// Reopens the repository, and rebuilds the index if `rebuild` gives a reason. While the repository is not writable, the
    /// old store stays for reads.
    pub(super) fn again(
        &mut self,
        rebuild: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<(), RepositoryError> {
        if let Some(reason) = rebuild {
            self.rebuild = Some(reason.to_owned());
        }
        if let Held::Open(writer) = &self.held
            && let Err(error) = writer.probe()
        {
            self.stays_full = error.is_full();
            if writer.check().is_ok() {
                writer.store.poison(&error.to_string(), error.is_full(), false);
            }
            return Err(error);
        }
        let locked = self.stop()?;
        self.stays_full = false;
        self.replaced += 1;
        match locked.open(self.rebuild.as_deref(), progress) {
            Ok(writer) => {
                self.held = Held::Open(Box::new(writer));
                self.rebuild = None;
                Ok(())
            }
            Err(failed) => {
                let (locked, error) = *failed;
                if error.is_full() {
                    locked.release_reserve();
                }
                let path = locked.path().to_owned();
                let why = Why { path, reason: error.to_string(), full: error.is_full() };
                self.held = Held::Closed(Box::new(locked), why);
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use crate::repository::{InitOptions, OpenOptions, Repository};

    #[test]
    fn who_waited_to_reopen_leaves_a_store_alone_that_another_has_made() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("repository");
        Repository::init(&root, &InitOptions::default()).unwrap();
        let writer = RepositoryWriter::open(&root, &OpenOptions::default(), &Silent).unwrap();
        let shared = SharedWriter::new(writer).staying().unwrap();
        std::thread::scope(|scope| {
            let job = shared.open.read().unwrap();
            job.held.writer().unwrap().store.poison("a test", false, true);
            // A thread that finds `tries` locked, as the loop below locks it, gives up.
            scope.spawn(|| {
                while shared.readiness().is_err() {
                    shared.look_after(&Silent).unwrap();
                }
            });
            while shared.service.as_ref().unwrap().tries.try_lock().is_ok() {
                std::thread::yield_now();
            }
            scope.spawn(|| shared.replace_index(0, "a test", &Silent).unwrap());
            // It waits for the job.
            while shared.open.try_read().is_ok() {
                std::thread::yield_now();
            }
            drop(job);
        });
        shared.readiness().unwrap();
        assert_eq!(shared.open.read().unwrap().replaced, 1);
        shared.close().unwrap();
    }

    #[test]
    fn a_repository_whose_opening_panicked_is_lost_to_this_process() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("repository");
        Repository::init(&root, &InitOptions::default()).unwrap();
        let writer = RepositoryWriter::open(&root, &OpenOptions::default(), &Silent).unwrap();
        let shared = SharedWriter::new(writer).staying().unwrap();
        assert!(!shared.is_lost());
        let panicked = std::thread::scope(|scope| {
            let opening = scope.spawn(|| {
                let mut open = shared.open.write().unwrap();
                open.stop().unwrap();
                panic!("a bug while opening");
            });
            opening.join().is_err()
        });
        assert!(panicked && shared.is_lost());
        shared.readiness().unwrap_err();
    }

    #[test]
    fn a_disk_that_fails_again_and_again_is_tried_ever_less_often() {
        let begun = Instant::now();
        let mut tries = Tries::default();
        let mut at = Duration::ZERO;
        let mut waits = Vec::new();
        for _ in 0..9 {
            assert!(tries.is_due(begun + at, LEAST_WAIT));
            tries.note(begun + at, Duration::from_millis(1), Outcome::Open);
            waits.push(tries.wait.as_secs());
            assert!(!tries.is_due(begun + at + tries.wait / 2, LEAST_WAIT));
            at += tries.wait;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        // The repository was healthy for a long time.
        at += HEALTHY + Duration::from_secs(1);
        assert!(tries.is_due(begun + at, LEAST_WAIT));
        tries.note(begun + at, Duration::from_mins(2), Outcome::Unopened);
        assert_eq!(tries.wait, MOST_WAIT_UNOPENED);
        // Jobs that do not end, or a disk that stays full, do not lengthen the wait.
        let mut tries = Tries::default();
        (0..9).for_each(|_| tries.note(begun, Duration::ZERO, Outcome::Left));
        assert_eq!(tries.wait, LEAST_WAIT);
    }
}
