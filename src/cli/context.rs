//! What every command needs: where the repository is, and how to tell things.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::cli::Outcome;
use crate::cli::args::Global;
use crate::cli::error::CliError;
use crate::cli::progress::Console;
use crate::error::ErrorKind;
use crate::repository::{OpenOptions, Repository, RepositoryError, RepositoryWriter, SharedWriter};

/// The command's surroundings.
#[derive(Debug)]
pub(super) struct Context {
    repository: Option<PathBuf>,
    pub(super) json: bool,
    quiet: bool,
    verbose: u8,
    wait: Duration,
    console: Console,
    /// Whether stdout carries a disk's data.
    data_on_stdout: std::cell::Cell<bool>,
}

#[derive(Serialize)]
struct ErrorDocument<'a> {
    error: ErrorBody<'a>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    kind: &'a str,
    message: &'a str,
}

impl Context {
    pub(super) fn new(global: &Global) -> Self {
        let bars = !global.quiet && !global.json && io::stderr().is_terminal();
        Self {
            repository: global.repository.clone(),
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            wait: global.wait,
            console: Console::new(bars, !global.quiet),
            data_on_stdout: std::cell::Cell::new(false),
        }
    }

    /// Returns how much is logged, `usual` if nothing was said.
    pub(super) fn log_level(&self, usual: tracing::Level) -> tracing::Level {
        match (self.quiet, self.verbose) {
            (true, _) => tracing::Level::ERROR,
            (false, 0) => usual,
            (false, 1) => tracing::Level::INFO.max(usual),
            (false, _) => tracing::Level::TRACE,
        }
    }

    pub(super) fn start_log(&self) {
        let level = self.log_level(tracing::Level::WARN);
        let log = tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).without_time();
        // Only a second start could fail, and there is none.
        let _ = log.with_target(false).try_init();
    }

    pub(super) fn repository_path(&self) -> Result<&PathBuf, CliError> {
        self.repository.as_ref().ok_or_else(|| {
            CliError::new(
                ErrorKind::Invalid,
                "no repository was named: use -r PATH or set EKKO_REPOSITORY to its path",
            )
        })
    }

    pub(super) fn open(&self) -> Result<Repository, CliError> {
        Ok(Repository::open(self.repository_path()?)?)
    }

    pub(super) fn open_writer(&self, jobs: usize, rebuild: bool) -> Result<RepositoryWriter, CliError> {
        let options = OpenOptions { wait: self.wait, buffers: jobs + 2, rebuild };
        Ok(RepositoryWriter::open(self.repository_path()?, &options, self.progress())?)
    }

    /// Opens the repository for writing, or says why that is not possible now.
    pub(super) fn try_writer(
        &self,
        jobs: usize,
    ) -> Result<Result<RepositoryWriter, RepositoryError>, CliError> {
        let options = OpenOptions { wait: self.wait, buffers: jobs + 2, rebuild: false };
        Ok(RepositoryWriter::open(self.repository_path()?, &options, self.progress()))
    }

    pub(super) fn open_shared(&self, jobs: usize) -> Result<SharedWriter, CliError> {
        Ok(SharedWriter::new(self.open_writer(jobs, false)?))
    }

    pub(super) fn progress(&self) -> &Console {
        &self.console
    }

    /// Returns how a command ended that did what it was to do.
    pub(super) fn outcome(&self) -> Outcome {
        if self.console.saw_problems() { Outcome::Problems } else { Outcome::Done }
    }

    /// From now on stdout carries a disk's data, and everything else goes to stderr.
    pub(super) fn reserve_stdout(&self) {
        self.data_on_stdout.set(true);
    }

    /// Prints a result: as JSON if that was asked for, else as text.
    pub(super) fn print(
        &self,
        document: &impl Serialize,
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), CliError> {
        let mut bytes = Vec::new();
        if self.json {
            serde_json::to_writer_pretty(&mut bytes, document).map_err(io::Error::from)?;
            bytes.push(b'\n');
        } else {
            text(&mut bytes)?;
        }
        if self.data_on_stdout.get() {
            io::stderr().lock().write_all(&bytes)?;
        } else {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&bytes)?;
            stdout.flush()?;
        }
        Ok(())
    }

    /// Tells why the command failed. If nobody reads that either, nothing can be done.
    pub(super) fn fail(&self, error: &CliError) {
        let CliError::Failed { kind, message } = error else { return };
        if self.json {
            let document = ErrorDocument { error: ErrorBody { kind: kind.name(), message } };
            let _ = self.print(&document, |_| Ok(()));
        } else {
            let _ = writeln!(io::stderr().lock(), "ekko: {message}");
        }
    }
}
