//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Semaphore;

use crate::api::Refusal;
use crate::repository::{Repository, SharedWriter};
use crate::service::keystone::Keystone;
use crate::service::limits::{Address, Allowance, Flight, Quotas, Rates};
use crate::service::tokens::KnownTokens;
use crate::service::{Caller, Refused, ServiceError, ServiceSettings};

/// The service's state.
#[derive(Debug)]
pub struct App {
    writer: SharedWriter,
    settings: ServiceSettings,
    stopping: AtomicBool,
    tokens: KnownTokens,
    keystone: Option<Arc<Keystone>>,
    /// One for each thread that may block.
    workers: Arc<Semaphore>,
    /// Requests under way.
    flight: Arc<Flight>,
    /// Requests of each caller who is known.
    rates: Rates<String>,
    /// Requests of who is not, from each address: in a table of their own, so that no crowd of them takes a caller's place.
    strangers: Rates<Address>,
    /// Wrong tokens from each address.
    failures: Rates<Address>,
    quotas: Arc<Quotas>,
}

impl App {
    pub(super) fn new(writer: SharedWriter, settings: ServiceSettings) -> Result<Self, ServiceError> {
        let limits = &settings.limits;
        let (per_second, failures) =
            (f64::from(limits.requests_per_second), f64::from(limits.failures_per_minute));
        let keystone = settings.keystone.as_ref().map(Keystone::new).transpose()?;
        Ok(Self {
            stopping: AtomicBool::new(false),
            keystone: keystone.map(Arc::new),
            tokens: KnownTokens::new(writer.repository().layout()),
            workers: Arc::new(Semaphore::new(limits.blocking_threads)),
            flight: Arc::new(Flight::new(limits.requests, limits.requests_per_caller)),
            rates: Rates::new(per_second, 2.0 * per_second),
            strangers: Rates::new(per_second, 2.0 * per_second),
            failures: Rates::new(failures / 60.0, failures),
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

    /// Begins to count what a backup of this caller adds to the project. Blocks.
    ///
    /// # Errors
    ///
    /// If the project has used up its quota.
    #[allow(dead_code, reason = "upload sessions and jobs call it; goes with the first of them")]
    pub(super) fn allowance(&self, caller: &Caller) -> Result<Allowance, Refused> {
        self.quotas.begin(self.repository(), &caller.view)
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

    /// Says whether it is about to end: nothing new is begun then.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Runs what touches a disk on a thread that may block.
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        job: impl FnOnce(&Arc<Self>) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        let app = Arc::clone(self);
        // Waited for here, where it ends with the client that goes away: what has been begun cannot be ended, and whoever
        // asks and goes, again and again, is not to leave a queue behind.
        let room = Arc::clone(&self.workers).acquire_owned().await;
        let work = move || {
            let _room = room;
            job(&app)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            // It has been told of on stderr where it happened.
            Err(_) => Err(Refused::new(Refusal::Io, "the request was ended by a fault of the server")),
        }
    }

    pub(super) fn close(self) -> Result<(), ServiceError> {
        Ok(self.writer.close()?)
    }
}
