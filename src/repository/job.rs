//! How jobs that change the repository are run, several at a time, whatever they do.

use std::sync::{PoisonError, RwLock, TryLockError};

use crate::progress::Progress;
use crate::repository::{Repository, RepositoryError, RepositoryWriter};

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
    /// Jobs hold it for reading; who replaces the index, for writing. Nothing is left if that failed.
    open: RwLock<Open>,
    repository: Repository,
}

#[derive(Debug)]
struct Open {
    writer: Option<RepositoryWriter>,
    /// How often the index was replaced.
    replaced: u64,
}

impl SharedWriter {
    /// Shares a repository.
    pub fn new(writer: RepositoryWriter) -> Self {
        let repository = writer.repository().clone();
        Self { open: RwLock::new(Open { writer: Some(writer), replaced: 0 }), repository }
    }

    /// Returns the part that reads.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Ends in order, as [`RepositoryWriter::close`] does.
    pub fn close(self) -> Result<(), RepositoryError> {
        match self.into_inner() {
            Some(writer) => writer.close(),
            None => Err(self::gone()),
        }
    }

    /// Returns the writer alone; nothing if it was lost with its index.
    pub fn into_inner(self) -> Option<RepositoryWriter> {
        self.open.into_inner().unwrap_or_else(PoisonError::into_inner).writer
    }

    /// Runs a job that changes nothing by itself.
    pub fn with<T>(
        &self,
        job: impl FnOnce(&RepositoryWriter) -> Result<T, RepositoryError>,
    ) -> Result<T, RepositoryError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        job(open.writer.as_ref().ok_or_else(gone)?)
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
        job(open.writer.as_ref().ok_or_else(gone)?)
    }

    /// Says, without waiting for anything, whether changes are taken: the index is there, and no write has failed.
    ///
    /// # Errors
    ///
    /// With why they are not.
    pub fn readiness(&self) -> Result<(), RepositoryError> {
        self.try_with(RepositoryWriter::check)
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
        let _ = self.with(|writer| {
            writer.release_reserve();
            Ok(())
        });
        RepositoryError::Full { path, reason: cause.to_string() }
    }

    /// Runs a job once. Says also how often the index had been replaced when it began.
    fn attempt<T, E: JobError>(
        &self,
        job: impl Fn(&RepositoryWriter) -> Result<T, E>,
    ) -> (u64, Result<T, E>) {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let result = match &open.writer {
            Some(writer) => job(writer),
            None => Err(gone().into()),
        };
        (open.replaced, result)
    }

    /// Ends the jobs that run on an index that has failed, unless it has been replaced: what they find in it is not to be
    /// believed, and its replacement waits for them.
    fn stop_others(&self, replaced: u64, reason: &str) {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = open.writer.as_ref().filter(|_| open.replaced == replaced) {
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
        if open.replaced == replaced {
            let writer = open.writer.take().ok_or_else(gone)?;
            open.writer = Some(writer.replace_index(reason, progress)?);
            open.replaced += 1;
        }
        Ok(())
    }
}

fn gone() -> RepositoryError {
    RepositoryError::Poisoned { reason: "its index could not be made anew".to_owned() }
}
