//! The service: many hosts back up to one repository over HTTP.
//!
//! ```text
//! listener -> TLS -> HTTP/1.1 -> who asks, which version -> route -> (a thread that may block) -> repository
//! ```
//!
//! One process owns the repository. tokio lives here; whatever touches a disk runs on threads that may block, a bounded
//! number at a time. Owns listeners, who may do what, limits, jobs and sessions; knows nothing of the command line. What is
//! said is in [`crate::api`].

mod app;
mod caller;
mod error;
mod extract;
mod guard;
mod host;
mod identity;
mod jobs;
mod keeper;
mod keystone;
mod last_resort;
mod limits;
mod listen;
mod look;
mod metrics;
mod printable;
mod pulse;
mod pump;
mod refused;
mod routes;
mod sessions;
mod settings;
mod tls;
mod tokens;
mod unread;
mod upload;
mod work;

use std::sync::Arc;

pub use app::App;
pub use caller::{Caller, InvalidRole, Role};
pub use error::ServiceError;
pub use keeper::Keeper;
pub use keystone::{Hidden, KeystoneSettings, ProjectKey};
pub use last_resort::end_process;
pub use refused::Refused;
pub use settings::{Limits, QuotaSettings, ServiceSettings, TlsSettings};
pub use tokens::{InvalidTokenId, NewToken, Token, TokenFile, TokenId, TokenText};

use crate::repository::SharedWriter;
use crate::service::last_resort::{LastResort, Stage};

/// Serves a repository until the process is told to stop (SIGTERM or SIGINT), then ends in order: new requests are refused,
/// those under way are finished, jobs are cancelled, the repository is closed. SIGHUP reads certificates anew. A process
/// that has not ended `grace_seconds` and `close_seconds` after the signal is ended, with 1.
///
/// # Errors
///
/// If it cannot listen, or if the repository cannot be closed in order.
pub fn serve(
    writer: SharedWriter,
    settings: ServiceSettings,
    keeper: &dyn Keeper,
) -> Result<(), ServiceError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(work::threads(&settings.limits))
        .build()
        .map_err(|source| ServiceError::Start { source })?;
    let last_resort = LastResort::start(settings.limits.last_resort())?;
    let app = Arc::new(App::new(writer.staying()?, settings)?);
    let looking = pulse::start(&app)?;
    runtime.block_on(listen::run(&app, keeper, &last_resort))?;
    // They can be gone on from when the service is there again.
    last_resort.at(Stage::Sessions);
    sessions::give_up_silent(&app, true);
    // What is left of requests that did not end in time ends here.
    last_resort.at(Stage::Threads);
    drop(runtime);
    looking.end();
    last_resort.at(Stage::Closing);
    Arc::into_inner(app).ok_or(ServiceError::StillInUse)?.close()
}
