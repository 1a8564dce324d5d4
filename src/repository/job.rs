//! How a job that changes the repository is run, whatever it does.

use crate::progress::Progress;
use crate::repository::{CommittedBackup, RepositoryError, RepositoryWriter};

/// A failure of a job.
pub trait JobError: From<RepositoryError> + std::fmt::Display {
    /// Returns the repository's part in it, if it was the repository that failed.
    fn repository(&self) -> Option<&RepositoryError>;
}

impl RepositoryWriter {
    /// Runs a job that ends with a commit. If the index fails it, the index is made anew and the job is tried
    /// once more; if the disk is full, the reserve is given up, so that what comes next has room to clean up.
    ///
    /// # Errors
    /// The outer error means that the repository is lost to this process: it is to be opened again.
    pub fn run_job<T, E: JobError>(
        self,
        progress: &dyn Progress,
        committed: impl Fn(&T) -> &CommittedBackup,
        job: impl Fn(&Self) -> Result<T, E>,
    ) -> Result<(Self, Result<T, E>), RepositoryError> {
        let error = match job(&self) {
            Ok(done) if committed(&done).replace_index => {
                let reason = "it failed while a backup was counted";
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
