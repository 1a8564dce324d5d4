//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::api::Refusal;
use crate::repository::{Repository, SharedWriter};
use crate::service::sessions::Sessions;
use crate::service::{Refused, ServiceError, ServiceSettings};

/// The service's state.
#[derive(Debug)]
pub struct App {
    writer: SharedWriter,
    settings: ServiceSettings,
    sessions: Sessions,
    stopping: AtomicBool,
}

impl App {
    pub(super) fn new(writer: SharedWriter, settings: ServiceSettings) -> Self {
        let sessions = Sessions::new(writer.repository().layout().sessions());
        sessions.tidy();
        Self { writer, settings, sessions, stopping: AtomicBool::new(false) }
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
        match tokio::task::spawn_blocking(move || job(&app)).await {
            Ok(result) => result,
            // It has been told of on stderr where it happened.
            Err(_) => Err(Refused::new(Refusal::Io, "the request was ended by a fault of the server")),
        }
    }

    pub(super) fn close(self) -> Result<(), ServiceError> {
        Ok(self.writer.close()?)
    }
}
