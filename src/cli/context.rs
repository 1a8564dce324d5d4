//! What every command needs: where the repository is, and how to tell things.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::cli::args::Global;
use crate::cli::error::CliError;
use crate::cli::progress::Console;
use crate::cli::terminal::{self, Json, Lines, Log, Stream};
use crate::cli::{Outcome, address, limits};
use crate::error::ErrorKind;
use crate::progress::Progress;
use crate::remote::{Address, Credentials, RemoteError, RemoteRepository};
use crate::repository::{Layout, OpenOptions, Repository, RepositoryError, RepositoryWriter, SharedWriter};
use crate::storage::{RootStorage, Storage};

/// The command's surroundings.
#[derive(Debug)]
pub(super) struct Context {
    repository: Option<PathBuf>,
    cacert: Option<PathBuf>,
    token_file: Option<PathBuf>,
    pub(super) json: bool,
    quiet: bool,
    verbose: u8,
    log: Log,
    wait: Duration,
    console: Arc<Console>,
    /// Whether stdout carries a disk's data.
    data_on_stdout: AtomicBool,
    /// Whether whoever read the result went away before it was written.
    reader_gone: AtomicBool,
}

/// How long an answer is waited for of a service of which everything is asked once.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// How a link to a service is made.
type Linking = fn(Address, &Credentials, Arc<dyn Progress>) -> Result<RemoteRepository, RemoteError>;

#[derive(Serialize)]
struct ErrorDocument<'a> {
    error: ErrorBody<'a>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    kind: &'a str,
    message: &'a str,
}

/// Makes sure that a repository can be opened for changes.
fn check_threads() -> Result<(), CliError> {
    limits::has_threads().map_err(|error| {
        let message = format!("cannot start threads: {error}; raise the limit of processes (\"ulimit -u\")");
        CliError::new(ErrorKind::Io, message)
    })
}

impl Context {
    pub(super) fn new(global: &Global, log: Log) -> Self {
        let bars = !global.quiet && !global.json && log == Log::Text && terminal::is_watched();
        Self {
            repository: global.repository.clone(),
            cacert: global.cacert.clone(),
            token_file: global.token_file.clone(),
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            log,
            wait: global.wait,
            console: Arc::new(Console::new(bars, global.quiet, log)),
            data_on_stdout: AtomicBool::new(false),
            reader_gone: AtomicBool::new(false),
        }
    }

    /// Returns how much is logged, `usual` if nothing was said.
    fn log_level(&self, usual: tracing::Level) -> tracing::Level {
        match (self.quiet, self.verbose) {
            (true, _) => tracing::Level::ERROR,
            (false, 0) => usual,
            (false, 1) => tracing::Level::INFO.max(usual),
            (false, _) => tracing::Level::TRACE,
        }
    }

    /// Begins the log.
    pub(super) fn start_log(&self, usual: tracing::Level) {
        let log = tracing_subscriber::fmt().with_max_level(self.log_level(usual)).with_writer(self.log);
        let log = log.with_target(false);
        // Only a second start could fail, and there is none.
        let _ = match self.log {
            Log::Text => log.without_time().try_init(),
            Log::Json => log.json().try_init(),
        };
    }

    /// Returns how the repository was named: a folder, or a URL.
    pub(super) fn repository_name(&self) -> Result<&PathBuf, CliError> {
        let name = self.repository.as_ref().ok_or_else(|| {
            CliError::new(
                ErrorKind::Invalid,
                "no repository was named: use -r PATH or set EKKO_REPOSITORY to its path",
            )
        })?;
        match address::misspelled(&name.to_string_lossy()) {
            Some(message) => Err(CliError::new(ErrorKind::Invalid, message)),
            None => Ok(name),
        }
    }

    /// Returns the repository's folder.
    pub(super) fn repository_path(&self) -> Result<&PathBuf, CliError> {
        let path = self.repository_name()?;
        if path.to_str().is_some_and(Address::is_url) {
            let message = "this is done where the repository is, not over the network";
            return Err(CliError::new(ErrorKind::Unsupported, message));
        }
        Ok(path)
    }

    /// Returns the repository if it is another host's.
    pub(super) fn network(&self) -> Result<Option<RemoteRepository>, CliError> {
        self.network_through(RemoteRepository::new)
    }

    fn network_through(&self, link: Linking) -> Result<Option<RemoteRepository>, CliError> {
        let name = self.repository_name()?;
        let Some(url) = name.to_str().filter(|text| Address::is_url(text)) else { return Ok(None) };
        let token = match (&self.token_file, std::env::var("EKKO_TOKEN")) {
            (Some(path), _) => {
                let failed = |error: io::Error| {
                    CliError::new(ErrorKind::Io, format!("cannot read {}: {error}", path.display()))
                };
                let token = std::fs::read_to_string(path).map_err(failed)?.trim().to_owned();
                Some((token, path.display().to_string()))
            }
            (None, token) => {
                token.ok().filter(|token| !token.is_empty()).map(|token| (token, "EKKO_TOKEN".to_owned()))
            }
        };
        let token = token.map(|(token, from)| one_word(token, &from)).transpose()?;
        let credentials = Credentials { token, authority: self.cacert.clone() };
        Ok(Some(link(Address::of_url(url), &credentials, self.told())?))
    }

    /// Returns the service that has the repository: that of another host, or one on this machine.
    pub(super) fn service(&self) -> Result<Option<RemoteRepository>, CliError> {
        self.service_through(RemoteRepository::new)
    }

    /// Returns the same service, of which everything is asked once.
    pub(super) fn service_once(&self) -> Result<Option<RemoteRepository>, CliError> {
        let once: Linking = |address, credentials, progress| {
            RemoteRepository::without_patience(address, credentials, progress, ANSWER)
        };
        self.service_through(once)
    }

    fn service_through(&self, link: Linking) -> Result<Option<RemoteRepository>, CliError> {
        if let Some(remote) = self.network_through(link)? {
            return Ok(Some(remote));
        }
        let root = self.repository_path()?;
        let path = Layout::new(root).socket();
        // Somebody else's repository may have a link there to any socket of this machine.
        match RootStorage::at(root).examine(&path) {
            Ok(found) if found.file_type().is_socket() => {}
            Ok(_) => {
                let message = format!("cannot use {}: it is not a socket; remove it", path.display());
                return Err(CliError::new(ErrorKind::Corrupt, message));
            }
            Err(_) => return Ok(None),
        }
        // One that a service left which was killed is there, and nobody answers.
        if UnixStream::connect(&path).is_err() {
            return Ok(None);
        }
        let address = Address::Socket { path };
        Ok(Some(link(address, &Credentials::default(), self.told())?))
    }

    pub(super) fn open(&self) -> Result<Repository, CliError> {
        let repository = Repository::open(self.repository_path()?)?;
        if let Err(error) = repository.check_settings() {
            self.console.line(&format!("warning: {error}"));
        }
        Ok(repository)
    }

    pub(super) fn open_writer(&self, jobs: usize, rebuild: bool) -> Result<RepositoryWriter, CliError> {
        check_threads()?;
        let options = OpenOptions { wait: self.wait, buffers: jobs + 2, rebuild, ..OpenOptions::default() };
        Ok(RepositoryWriter::open(self.repository_path()?, &options, self.progress())?)
    }

    /// Opens the repository for writing, or says why that is not possible now.
    pub(super) fn try_writer(
        &self,
        jobs: usize,
    ) -> Result<Result<RepositoryWriter, RepositoryError>, CliError> {
        check_threads()?;
        let options = OpenOptions { wait: self.wait, buffers: jobs + 2, ..OpenOptions::default() };
        Ok(RepositoryWriter::open(self.repository_path()?, &options, self.progress()))
    }

    pub(super) fn open_shared(&self, jobs: usize) -> Result<SharedWriter, CliError> {
        Ok(SharedWriter::new(self.open_writer(jobs, false)?))
    }

    /// Opens the repository for a job that frees space, or changes little: it may use the reserve.
    pub(super) fn open_with_reserve(&self, jobs: usize) -> Result<SharedWriter, CliError> {
        check_threads()?;
        let options =
            OpenOptions { wait: self.wait, buffers: jobs + 2, uses_reserve: true, ..OpenOptions::default() };
        Ok(SharedWriter::new(RepositoryWriter::open(self.repository_path()?, &options, self.progress())?))
    }

    /// Returns the console for what outlives a borrow.
    fn told(&self) -> Arc<dyn Progress> {
        Arc::<Console>::clone(&self.console)
    }

    /// Returns the console for a thread of its own.
    pub(super) fn console(&self) -> Arc<Console> {
        Arc::clone(&self.console)
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
        self.data_on_stdout.store(true, Ordering::Release);
    }

    /// Says whether whoever read the result went away before it was written.
    pub(super) fn is_reader_gone(&self) -> bool {
        self.reader_gone.load(Ordering::Acquire)
    }

    /// Prints a result: as JSON if that was asked for, else as text. If nobody reads it, the command ends as it would have ended: what was
    /// done is done, and what was found is found.
    pub(super) fn print(
        &self,
        document: &impl Serialize,
        text: impl FnOnce(&mut Lines) -> io::Result<()>,
    ) -> Result<(), CliError> {
        let stream =
            if self.data_on_stdout.load(Ordering::Acquire) { Stream::Stderr } else { Stream::Stdout };
        let print = || {
            if self.json {
                return Json::to(stream).document(document);
            }
            let mut lines = Lines::to(stream);
            text(&mut lines)?;
            lines.finish()
        };
        self.printed(print())
    }

    /// Takes down that nobody reads the result, if that is why it was not printed.
    fn printed(&self, printed: io::Result<()>) -> Result<(), CliError> {
        match printed {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.reader_gone.store(true, Ordering::Release);
                Ok(())
            }
            printed => Ok(printed?),
        }
    }

    /// Prints a part of a result while the command goes on, if results are text. Long lines are broken where a terminal would.
    pub(super) fn print_meanwhile(
        &self,
        text: impl FnOnce(&mut Lines) -> io::Result<()>,
    ) -> Result<(), CliError> {
        if self.json {
            return Ok(());
        }
        let print = || {
            let mut lines = Lines::to(Stream::Stdout).broken_to_fit();
            text(&mut lines)?;
            lines.finish()
        };
        self.printed(print())
    }

    /// Returns what tells why the command failed, for another thread.
    pub(super) fn teller(&self) -> impl Fn(&CliError) + Send + use<> {
        let (console, json) = (Arc::clone(&self.console), self.json);
        let stream =
            if self.data_on_stdout.load(Ordering::Acquire) { Stream::Stderr } else { Stream::Stdout };
        move |error| {
            let (kind, message) = match error {
                CliError::Failed { kind, message } => (kind, message.as_str()),
                // A document would go where nobody reads.
                CliError::BrokenPipe => {
                    return console.failure("cannot write to stdout: nobody reads it any longer");
                }
                CliError::Told { .. } => return,
            };
            if json {
                let document = ErrorDocument { error: ErrorBody { kind: kind.name(), message } };
                let _ = Json::to(stream).document(&document);
            } else {
                console.failure(message);
            }
        }
    }

    /// Tells why the command failed. If nobody reads that either, nothing can be done.
    pub(super) fn fail(&self, error: &CliError) {
        self.teller()(error);
    }
}

/// Makes sure that a text can be a token.
///
/// # Errors
/// It is none: a certificate, say. Its content is not told.
fn one_word(token: String, from: &str) -> Result<String, CliError> {
    if !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(token);
    }
    let message = format!(
        "{from} does not hold a token: a token is one line without spaces, as \"ekko token create\" prints it"
    );
    Err(CliError::new(ErrorKind::Invalid, message))
}
