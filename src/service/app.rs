//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::Mutex;

use crate::api::Refusal;
use crate::manifest::ImageName;
use crate::repository::{Repository, SharedWriter};
use crate::service::jobs::Jobs;
use crate::service::keystone::Keystone;
use crate::service::limits::{Address, Allowance, Flight, Quotas, Rates};
use crate::service::look::{Question, Seen};
use crate::service::metrics::Metrics;
use crate::service::pulse::Pulse;
use crate::service::sessions::Sessions;
use crate::service::tokens::{KnownTokens, TokenTable};
use crate::service::work::Work;
use crate::service::{Caller, Refused, ServiceError, ServiceSettings, TokenFile};

/// When the file of tokens was last read again, and what stood in it.
pub(super) type Renewal = Mutex<Option<(Instant, Arc<TokenTable>)>>;

/// The service's state.
#[derive(Debug)]
pub struct App {
    writer: SharedWriter,
    settings: ServiceSettings,
    sessions: Sessions,
    stopping: AtomicBool,
    tokens: KnownTokens,
    keystone: Option<Arc<Keystone>>,
    work: Work,
    /// When the file of tokens was last read again, and what stood in it.
    renewal: Renewal,
    /// Requests under way.
    flight: Arc<Flight>,
    /// Requests of each caller who is known.
    rates: Rates<String>,
    /// Requests of who is not, from each address: in a table of their own, so that no crowd of them takes a caller's place.
    strangers: Rates<Address>,
    /// Wrong tokens from each address.
    failures: Rates<Address>,
    /// Backups that each caller begins.
    begun: Rates<String>,
    /// Backups that each caller commits.
    committed: Rates<String>,
    quotas: Arc<Quotas>,
    metrics: Metrics,
    jobs: Jobs,
    pulse: Arc<Pulse>,
    looks: Question<Option<Seen>>,
    readings: Question<Option<Result<(), &'static str>>>,
    /// Whether the repository or its tokens could not be read when somebody looked last.
    unreadable: AtomicBool,
}

impl App {
    pub(super) fn new(writer: SharedWriter, settings: ServiceSettings) -> Result<Self, ServiceError> {
        let limits = &settings.limits;
        let (per_second, failures) =
            (f64::from(limits.requests_per_second), f64::from(limits.failures_per_minute));
        let keystone = settings.keystone.as_ref().map(Keystone::new).transpose()?;
        let repository = writer.repository();
        let sessions =
            Sessions::new(Arc::clone(repository.storage()), repository.layout().sessions(), limits);
        sessions.tidy()?;
        Ok(Self {
            sessions,
            metrics: Metrics::new(),
            jobs: Jobs::default(),
            pulse: Arc::default(),
            looks: Question::default(),
            readings: Question::default(),
            unreadable: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            keystone: keystone.map(Arc::new),
            tokens: KnownTokens::new(TokenFile::of(writer.repository())),
            work: Work::new(limits, writer.repository().settings().segment_size),
            renewal: Mutex::default(),
            flight: Arc::new(Flight::new(limits.requests, limits.requests_per_caller)),
            rates: Rates::new(per_second, 2.0 * per_second),
            strangers: Rates::new(per_second, 2.0 * per_second),
            failures: Rates::new(failures / 60.0, failures),
            begun: backups(limits.sessions_per_minute),
            committed: backups(limits.commits_per_minute),
            quotas: Arc::new(Quotas::new(settings.quotas.clone())),
            writer,
            settings,
        })
    }

    pub(super) fn keystone(&self) -> Option<&Arc<Keystone>> {
        self.keystone.as_ref()
    }

    pub(super) fn tokens(&self) -> &KnownTokens {
        &self.tokens
    }

    /// Begins to count what a backup of an image adds to this caller's project. Blocks.
    ///
    /// # Errors
    ///
    /// If the project has used up its quota.
    pub(super) fn allowance(&self, caller: &Caller, name: &ImageName) -> Result<Allowance, Refused> {
        self.quotas.begin(self.repository(), &caller.view, name)
    }

    /// Held while the file of tokens is read again.
    pub(super) fn renewal(&self) -> &Renewal {
        &self.renewal
    }

    pub(super) fn quotas(&self) -> &Arc<Quotas> {
        &self.quotas
    }

    pub(super) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// Counts a request, of a caller or of a stranger from an address; how many seconds are to be waited, if it is one too
    /// many.
    pub(super) fn count_request(&self, caller: Option<&Caller>, address: Address) -> Result<(), u32> {
        match caller {
            Some(caller) => self.rates.take(caller.who.clone()),
            None => self.strangers.take(address),
        }
    }

    /// Counts a backup that a caller begins.
    ///
    /// # Errors
    ///
    /// If the caller has begun too many; the answer says when to try again.
    pub(super) fn count_session(&self, caller: &Caller) -> Result<(), Refused> {
        count_backup(
            &self.begun,
            caller,
            "cannot begin a backup: this token has begun too many; try again later",
        )
    }

    /// Counts a renaming, or a failure that is reported, as a backup that begins: it costs the disk as much.
    ///
    /// # Errors
    ///
    /// As of [`Self::count_session`].
    pub(super) fn count_change(&self, caller: &Caller) -> Result<(), Refused> {
        let why =
            "cannot do this now: this token has begun, renamed or reported too many backups; try again later";
        count_backup(&self.begun, caller, why)
    }

    /// Takes back what was counted: it was not done.
    pub(super) fn uncount_session(&self, caller: &Caller) {
        self.begun.put_back(&caller.who);
    }

    /// Counts a backup that a caller commits.
    ///
    /// # Errors
    ///
    /// If the caller has committed too many; the answer says when to try again.
    pub(super) fn count_commit(&self, caller: &Caller) -> Result<(), Refused> {
        let why = "cannot commit the backup yet: this token has committed too many; try again later";
        count_backup(&self.committed, caller, why)
    }

    pub(super) fn failures(&self) -> &Rates<Address> {
        &self.failures
    }

    /// Returns the repository, for reading.
    pub fn repository(&self) -> &Repository {
        self.writer.repository()
    }

    /// Returns the repository, for changing it.
    pub fn writer(&self) -> &SharedWriter {
        &self.writer
    }

    /// Returns the settings.
    pub fn settings(&self) -> &ServiceSettings {
        &self.settings
    }

    /// Returns the backups that are being sent.
    pub(super) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Returns what is counted.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Returns the jobs.
    pub(super) fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// Returns the threads and the memory that requests share.
    pub(super) fn work(&self) -> &Work {
        &self.work
    }

    /// Returns how it is looked at the folder and the tokens.
    pub(super) fn looks(&self) -> &Question<Option<Seen>> {
        &self.looks
    }

    /// Returns how it is looked whether the repository and its tokens can be read.
    pub(super) fn readings(&self) -> &Question<Option<Result<(), &'static str>>> {
        &self.readings
    }

    /// Takes down whether the repository or its tokens cannot be read. Returns what was taken down before.
    pub(super) fn note_unreadable(&self, is_unreadable: bool) -> bool {
        self.unreadable.swap(is_unreadable, Ordering::AcqRel)
    }

    /// Returns what is known of the store's thread.
    pub(super) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Says whether it is about to end: nothing new is begun then.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.jobs.cancel_all();
    }

    pub(super) fn close(self) -> Result<(), ServiceError> {
        Ok(self.writer.close()?)
    }
}

/// Backups of each caller: ten times as many at once as in a minute, for the disks of a night that begin together.
fn backups(per_minute: u32) -> Rates<String> {
    let per_minute = f64::from(per_minute);
    Rates::new(per_minute / 60.0, 10.0 * per_minute)
}

/// Takes one from what a caller may do; the owner, who comes by the socket, may do as local commands.
fn count_backup(rates: &Rates<String>, caller: &Caller, why: &str) -> Result<(), Refused> {
    if caller.view.project().is_none() {
        return Ok(());
    }
    let taken = rates.take(caller.who.clone());
    taken.map_err(|seconds| Refused::new(Refusal::TooMany, why).retry_after(seconds))
}
