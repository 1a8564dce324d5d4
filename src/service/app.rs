//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Semaphore;

use crate::api::Refusal;
use crate::repository::{Repository, SharedWriter};
use crate::service::jobs::Jobs;
use crate::service::metrics::Metrics;
use crate::service::routes::READ_AT_ONCE;
use crate::service::{Refused, ServiceError, ServiceSettings};

/// The service's state.
#[derive(Debug)]
pub struct App {
    writer: SharedWriter,
    settings: ServiceSettings,
    stopping: AtomicBool,
    metrics: Metrics,
    jobs: Jobs,
    disks: Arc<Semaphore>,
}

impl App {
    pub(super) fn new(writer: SharedWriter, settings: ServiceSettings) -> Self {
        Self {
            writer,
            settings,
            stopping: AtomicBool::new(false),
            metrics: Metrics::new(),
            jobs: Jobs::default(),
            disks: Arc::new(Semaphore::new(READ_AT_ONCE)),
        }
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

    /// Returns what is counted.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Returns the jobs.
    pub(super) fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// Returns what keeps the number of disks small that are read at a time.
    pub(super) fn disks(&self) -> &Arc<Semaphore> {
        &self.disks
    }

    /// Says whether it is about to end: nothing new is begun then.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.jobs.cancel_all();
    }

    /// Runs what touches a disk on a thread that may block.
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        job: impl FnOnce(&Arc<Self>) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        let app = Arc::clone(self);
        let waits = Counted::of(&self.metrics.threads_wanted);
        let run = move || {
            drop(waits);
            let _works = Counted::of(&app.metrics.threads_busy);
            job(&app)
        };
        match tokio::task::spawn_blocking(run).await {
            Ok(result) => result,
            // It has been told of on stderr where it happened.
            Err(_) => Err(Refused::new(Refusal::Io, "the request was ended by a fault of the server")),
        }
    }

    pub(super) fn close(self) -> Result<(), ServiceError> {
        Ok(self.writer.close()?)
    }
}

/// Something that is counted while it is there.
struct Counted(Gauge);

impl Counted {
    fn of(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
