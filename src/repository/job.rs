//! How a job that changes the repository is run, whatever it does.

use crate::progress::Progress;
use crate::repository::{RepositoryError, RepositoryWriter};

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

impl RepositoryWriter {
    /// Runs a job that ends with a change that is durable. If the index fails it before that, the index is made
    /// anew and the job is tried once more; if it fails after, which `replace_index` says, the index is made anew,
    /// which counts the change; if the disk is full, the reserve is given up, so that what comes next has room to clean up.
    ///
    /// # Errors
    /// The outer error means that the repository is lost to this process: it is to be opened again.
    pub fn run_job<T, E: JobError>(
        self,
        progress: &dyn Progress,
        replace_index: impl Fn(&T) -> bool,
        job: impl Fn(&Self) -> Result<T, E>,
    ) -> Result<(Self, Result<T, E>), RepositoryError> {
        let error = match job(&self) {
            Ok(done) if replace_index(&done) => {
                let reason = "a change could not be counted in it";
                return Ok((self.replace_index(reason, progress)?, Ok(done)));
            }
            Ok(done) => return Ok((self, Ok(done))),
            Err(error) => error,
        };
        match error.repository() {
            Some(cause) if cause.is_full() => {
                // What comes next, if only the next opening, needs room.
                self.release_reserve();
                let path = self.repository.layout.root().to_owned();
                let full = RepositoryError::Full { path, reason: cause.to_string() };
                Ok((self, Err(full.into())))
            }
            Some(cause) if cause.distrusts_index() => {
                let reason = error.to_string();
                let writer = self.replace_index(&reason, progress)?;
                let second = job(&writer);
                Ok((writer, second))
            }
            _ => Ok((self, Err(error))),
        }
    }
}
