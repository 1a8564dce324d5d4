//! How jobs that change the repository are run, several at a time, whatever they do.
//!
//! # States
//!
//! *Open*: jobs run, each holding `open` for reading. *Stopped*: a write failed; every change is refused, so jobs end soon.
//! *Closed*: nothing is written, the lock is held. From *stopped* or *closed* a repository of a service becomes open again
//! by [`SharedWriter::reopen`], which waits until no job holds `open`: so no job ever sees two stores. A backup that was
//! begun with the store before is told from others by [`crate::store::SegmentStore::began`], and has ended.
//!
//! Whoever reopens tries to take `open` for writing and never queues for it: jobs that only read go on meanwhile. Nor does it
//! let a store that has stopped go before it knows that the repository can be written to: what only reads needs no more.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, RwLock, RwLockWriteGuard, TryLockError};
use std::time::{Duration, Instant};

use crate::progress::Progress;
use crate::repository::home::{Home, check_id};
use crate::repository::open::LockedRepository;
use crate::repository::{Repository, RepositoryError, RepositoryWriter};
use crate::store::StoreError;

/// For how long whoever reopens waits for the jobs on the old store to end.
const JOBS_END: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);
/// Between two tries to reopen lies at least this, ten times what the last one took, and, unless the repository stayed open
/// for long, twice what lay before that.
const LEAST_WAIT: Duration = Duration::from_secs(1);
const MOST_WAIT: Duration = Duration::from_mins(1);
/// The same after an opening that failed: it may have read everything to make an index.
const MOST_WAIT_UNOPENED: Duration = Duration::from_mins(10);
/// How long a repository is open before it counts as healthy.
const HEALTHY: Duration = Duration::from_mins(1);

impl JobError for RepositoryError {
    fn repository(&self) -> Option<&RepositoryError> {
        Some(self)
    }
}

/// A failure of a job.
pub trait JobError: From<RepositoryError> + std::fmt::Display {
    /// Returns the repository's part in it, if it was the repository that failed.
    fn repository(&self) -> Option<&RepositoryError>;
}

/// A repository that several threads of this process change at once.
///
/// Jobs run side by side; `docs/gc.md` says which of them wait for each other. When the index fails one of them,
/// it fails them all: the first to notice ends the others, makes the index anew, and each of them is
/// tried once more.
#[derive(Debug)]
pub struct SharedWriter {
    /// Jobs hold it for reading; who replaces the index or reopens the repository, for writing.
    open: RwLock<Open>,
    repository: Repository,
    service: Option<Service>,
}

#[derive(Debug)]
struct Open {
    held: Held,
    /// How often the store was replaced.
    replaced: u64,
    /// Why the index is to be made anew, while that has not succeeded.
    rebuild: Option<String>,
}

#[derive(Debug)]
enum Held {
    Open(Box<RepositoryWriter>),
    /// With why.
    Closed(LockedRepository, Why),
    /// Only while it is being changed, or after a panic in that.
    Nothing,
}

/// What came of a try to reopen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Open,
    /// It cannot be written to, or jobs go on: it was left as it is.
    Left,
    Unopened,
}

/// Why a repository is not open.
#[derive(Clone, Debug)]
struct Why {
    path: PathBuf,
    reason: String,
    full: bool,
}

impl From<Why> for RepositoryError {
    fn from(Why { path, reason, full }: Why) -> Self {
        if full { Self::Full { path, reason, found: true } } else { Self::Poisoned { reason } }
    }
}

impl Held {
    fn writer(&self) -> Result<&RepositoryWriter, RepositoryError> {
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

/// What a process that stays knows in addition.
#[derive(Debug)]
struct Service {
    home: Home,
    tries: Mutex<Tries>,
}

/// When it may be tried to reopen the repository.
#[derive(Debug, Default)]
struct Tries {
    last: Option<Instant>,
    wait: Duration,
}

impl Tries {
    /// Says whether the next one is due.
    fn is_due(&mut self, now: Instant, least: Duration) -> bool {
        let Some(last) = self.last else { return true };
        let since = now.saturating_duration_since(last);
        if since > self.wait + HEALTHY {
            self.wait = Duration::ZERO;
        }
        since >= self.wait.max(least)
    }

    /// Notes what came of one.
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
    /// Shares a repository.
    pub fn new(writer: RepositoryWriter) -> Self {
        let repository = writer.repository().clone();
        let open = Open { held: Held::Open(Box::new(writer)), replaced: 0, rebuild: None };
        Self { open: RwLock::new(open), repository, service: None }
    }

    /// Has the repository opened again after a failed write when its cause is gone, and refuses to work while its folder
    /// is not where it was opened. For a process that stays; another ends, and the next one opens it again.
    ///
    /// # Errors
    /// The folder cannot be opened.
    pub fn staying(self) -> Result<Self, RepositoryError> {
        let home = Home::open(&self.repository.layout)?;
        Ok(Self { service: Some(Service { home, tries: Mutex::default() }), ..self })
    }

    /// Returns the part that reads.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Ends in order, as [`RepositoryWriter::close`] does.
    pub fn close(self) -> Result<(), RepositoryError> {
        match self.open.into_inner().unwrap_or_else(PoisonError::into_inner).held {
            Held::Open(writer) => writer.close(),
            held => held.writer().map(drop),
        }
    }

    /// Returns the writer alone; nothing if it could not be opened again.
    pub fn into_inner(self) -> Option<RepositoryWriter> {
        match self.open.into_inner().unwrap_or_else(PoisonError::into_inner).held {
            Held::Open(writer) => Some(*writer),
            Held::Closed(..) | Held::Nothing => None,
        }
    }

    /// Runs a job that changes nothing by itself.
    pub fn with<T>(
        &self,
        job: impl FnOnce(&RepositoryWriter) -> Result<T, RepositoryError>,
    ) -> Result<T, RepositoryError> {
        self.home()?;
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        job(open.held.writer()?)
    }

    /// Runs a job that changes nothing by itself, unless that would wait.
    ///
    /// # Errors
    ///
    /// As those of the job, and if the index is being replaced.
    pub fn try_with<T>(
        &self,
        job: impl FnOnce(&RepositoryWriter) -> Result<T, RepositoryError>,
    ) -> Result<T, RepositoryError> {
        let open = match self.open.try_read() {
            Ok(open) => open,
            Err(TryLockError::Poisoned(open)) => open.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let path = self.repository.layout.root().to_owned();
                return Err(RepositoryError::IndexBeingReplaced { path });
            }
        };
        job(open.held.writer()?)
    }

    /// Says, without waiting for anything, whether changes are taken: the folder and the index are there, and no write has
    /// failed.
    ///
    /// # Errors
    ///
    /// With why they are not.
    pub fn readiness(&self) -> Result<(), RepositoryError> {
        self.home()?;
        self.try_with(RepositoryWriter::check)
    }

    /// Says whether the folder is where it was opened. Without [`Self::staying`] it is.
    ///
    /// # Errors
    /// [`RepositoryError::Moved`].
    pub fn home(&self) -> Result<(), RepositoryError> {
        let Some(service) = &self.service else { return Ok(()) };
        service.home.check(&self.repository.layout)
    }

    /// Runs a job that ends with a change that is durable. If the index fails it before that, the index is made
    /// anew and the job is tried once more; if it fails after, which `replace_index` says, the index is made anew,
    /// which counts the change; if the disk is full, the reserve is given up, so that what comes next has room to
    /// clean up.
    pub fn run_job<T, E: JobError>(
        &self,
        progress: &dyn Progress,
        replace_index: impl Fn(&T) -> bool,
        job: impl Fn(&RepositoryWriter) -> Result<T, E>,
    ) -> Result<T, E> {
        self.home()?;
        self.reopen(LEAST_WAIT, progress);
        let mut tries = 2;
        loop {
            tries -= 1;
            let (replaced, result) = self.attempt(&job);
            let error = match result {
                Ok(done) if replace_index(&done) => {
                    self.replace_index(replaced, "a change could not be counted in it", progress)?;
                    return Ok(done);
                }
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            match error.repository() {
                Some(cause) if cause.is_full() => return Err(self.full(cause).into()),
                Some(cause) if cause.distrusts_index() => {
                    self.stop_others(replaced, &error.to_string());
                    self.replace_index(replaced, &error.to_string(), progress)?;
                    if tries == 0 {
                        return Err(error);
                    }
                }
                _ => return Err(error),
            }
        }
    }

    /// Gives the reserve up: what comes next, if only the next opening, needs room.
    fn full(&self, cause: &RepositoryError) -> RepositoryError {
        let path = self.repository.layout.root().to_owned();
        if self.home().is_ok() {
            match &self.open.read().unwrap_or_else(PoisonError::into_inner).held {
                Held::Open(writer) => writer.release_reserve(),
                Held::Closed(locked, _) => locked.release_reserve(),
                Held::Nothing => {}
            }
        }
        let found = !matches!(cause, RepositoryError::Store(StoreError::Poisoned { .. }));
        RepositoryError::Full { path, reason: cause.to_string(), found }
    }

    /// Runs a job once. Says also how often the store had been replaced when it began.
    fn attempt<T, E: JobError>(
        &self,
        job: impl Fn(&RepositoryWriter) -> Result<T, E>,
    ) -> (u64, Result<T, E>) {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let result = match open.held.writer() {
            Ok(writer) => match &open.rebuild {
                None => job(writer),
                Some(reason) => Err(RepositoryError::Poisoned { reason: reason.clone() }.into()),
            },
            Err(error) => Err(error.into()),
        };
        (open.replaced, result)
    }

    /// Ends the jobs that run on an index that has failed, unless it has been replaced: what they find in it is not to be
    /// believed, and its replacement waits for them.
    fn stop_others(&self, replaced: u64, reason: &str) {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let (Held::Open(writer), true) = (&open.held, open.replaced == replaced) {
            writer.store.poison(reason, false, true);
        }
    }

    /// Replaces the index, unless somebody has since it was replaced `replaced` times.
    fn replace_index(
        &self,
        replaced: u64,
        reason: &str,
        progress: &dyn Progress,
    ) -> Result<(), RepositoryError> {
        // Waits for all jobs: on an index that has failed they end soon.
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.replaced == replaced { open.again(Some(reason), progress) } else { Ok(()) }
    }

    /// Says whether the repository has stopped writing, and nobody is changing that.
    fn has_stopped(&self) -> bool {
        matches!(self.try_with(RepositoryWriter::check), Err(error) if !is_busy(&error))
    }

    /// Opens the repository again if it has stopped writing, unless it was tried so shortly ago, or somebody else is about
    /// to. Whoever uses it next is told if it could not be opened.
    fn reopen(&self, least: Duration, progress: &dyn Progress) {
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
        // Somebody may have replaced the index while this waited.
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

    /// Says whether nothing can be done with the repository any longer: opening it again panicked, and its lock is gone.
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
            Held::Closed(locked, _) => Ok(locked),
            Held::Nothing => Err(lost()),
        }
    }

    /// Opens the repository again, with a new index if there is a reason to make one. A store that is there stays, for what
    /// only reads, while the repository cannot be written to.
    fn again(&mut self, rebuild: Option<&str>, progress: &dyn Progress) -> Result<(), RepositoryError> {
        if let Some(reason) = rebuild {
            self.rebuild = Some(reason.to_owned());
        }
        if let Held::Open(writer) = &self.held
            && let Err(error) = writer.probe()
        {
            if writer.check().is_ok() {
                writer.store.poison(&error.to_string(), error.is_full(), false);
            }
            return Err(error);
        }
        let locked = self.stop()?;
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
                self.held = Held::Closed(locked, why);
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use crate::repository::{InitOptions, OpenOptions};

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
            // Whoever finds `tries` taken, as here below, gives up.
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
    fn a_disk_that_fails_again_and_again_is_tried_ever_less_often() {
        let begun = Instant::now();
        let mut tries = Tries::default();
        let mut at = Duration::ZERO;
        let mut waits = Vec::new();
        for _ in 0..9 {
            assert!(tries.is_due(begun + at, LEAST_WAIT));
            tries.note(begun + at, Duration::from_millis(1), Outcome::Open);
            waits.push(tries.wait.as_secs());
            at += tries.wait;
            assert!(!tries.is_due(begun + at - Duration::from_millis(1), LEAST_WAIT));
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        // It was healthy for long.
        at += HEALTHY + Duration::from_secs(1);
        assert!(tries.is_due(begun + at, LEAST_WAIT));
        tries.note(begun + at, Duration::from_mins(2), Outcome::Unopened);
        assert_eq!(tries.wait, MOST_WAIT_UNOPENED);
        // Jobs that do not end, or a disk that stays full, do not make it slower.
        let mut tries = Tries::default();
        (0..9).for_each(|_| tries.note(begun, Duration::ZERO, Outcome::Left));
        assert_eq!(tries.wait, LEAST_WAIT);
    }
}
