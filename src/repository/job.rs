//! How jobs that change the repository are run, several at a time, whatever they do.
//!
//! # States
//!
//! *Open*: jobs run, each holding `open` for reading. *Stopped*: a write failed; every change is refused, so jobs end soon.
//! *Closed*: nothing is written, the lock is held. From *stopped* or *closed* a repository of a service becomes open again
//! by `SharedWriter::reopen`, which waits until no job holds `open`: so no job ever sees two stores. A backup that was
//! begun with the store before is told from others by [`crate::store::SegmentStore::began`], and has ended.

use std::sync::{Mutex, PoisonError, RwLock, TryLockError};

use crate::progress::Progress;
use crate::repository::home::Home;
use crate::repository::reopen::{Held, LEAST_WAIT, Open, Tries};
use crate::repository::{Repository, RepositoryError, RepositoryWriter};
use crate::store::StoreError;

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
    pub(super) open: RwLock<Open>,
    pub(super) repository: Repository,
    pub(super) service: Option<Service>,
}

/// What a process that stays knows in addition.
#[derive(Debug)]
pub(super) struct Service {
    home: Home,
    pub(super) tries: Mutex<Tries>,
}

impl SharedWriter {
    /// Shares a repository.
    pub fn new(writer: RepositoryWriter) -> Self {
        let repository = writer.repository().clone();
        let open = Open { held: Held::Open(Box::new(writer)), replaced: 0, rebuild: None, stays_full: false };
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
        let result = {
            let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
            open.held.writer().and_then(job)
        };
        result.map_err(|error| if error.is_full() { self.full(&error) } else { error })
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

    /// Says whether changes are taken: the folder and the index are there, and no write has failed. Blocks as [`Self::home`] does.
    ///
    /// # Errors
    ///
    /// With why they are not.
    pub fn readiness(&self) -> Result<(), RepositoryError> {
        self.home()?;
        self.readiness_at_home()
    }

    /// Says the same if the folder is where it was, without waiting for anything.
    ///
    /// # Errors
    ///
    /// With why they are not.
    pub fn readiness_at_home(&self) -> Result<(), RepositoryError> {
        self.try_with(RepositoryWriter::check)
    }

    /// Says whether the folder is where it was opened. Without [`Self::staying`] it is. Blocks if the server of its filesystem is
    /// away.
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
        let path = self.repository.layout.root();
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        // While the disk stays full, waiting does not help any job.
        let found = open.stays_full || !matches!(cause, RepositoryError::Store(StoreError::Poisoned { .. }));
        // The room before the reserve is removed.
        let error = RepositoryError::full(path, cause.to_string(), found);
        if self.home().is_ok() {
            match &open.held {
                Held::Open(writer) => writer.release_reserve(),
                Held::Closed(locked, _) => locked.release_reserve(),
                Held::Nothing => {}
            }
        }
        error
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
    pub(super) fn replace_index(
        &self,
        replaced: u64,
        reason: &str,
        progress: &dyn Progress,
    ) -> Result<(), RepositoryError> {
        // Waits for all jobs: on an index that has failed they end soon.
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.replaced == replaced { open.again(Some(reason), progress) } else { Ok(()) }
    }
}
