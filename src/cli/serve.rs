//! `ekko serve`

use std::time::Duration;

use sd_notify::NotifyState;

use crate::cli::Outcome;
use crate::cli::args::ServeArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::service::{Keeper, ServiceSettings, TlsSettings, serve};

pub(super) fn run(args: &ServeArgs, context: &Context) -> Result<Outcome, CliError> {
    let settings = settings(args)?;
    let writer = context.open_with_reserve(settings.limits.blocking_threads)?;
    serve(writer, settings, &Supervisor { context, interval: sd_notify::watchdog_enabled() })?;
    Ok(Outcome::Done)
}

/// A person who reads stderr, and systemd, if it is that which started the service.
struct Supervisor<'a> {
    context: &'a Context,
    /// After what time without a word systemd takes the service for dead.
    interval: Option<Duration>,
}

impl Supervisor<'_> {
    fn notify(state: NotifyState<'_>) {
        // Where nobody waits for it, nothing is sent.
        let _ = sd_notify::notify(&[state]);
    }
}

impl Keeper for Supervisor<'_> {
    fn listening(&self, places: &[String]) {
        for place in places {
            self.context.progress().line(&format!("listening on {place}"));
        }
        Self::notify(NotifyState::Ready);
    }

    fn stopping(&self) {
        Self::notify(NotifyState::Stopping);
    }

    fn interval(&self) -> Option<Duration> {
        self.interval.map(|interval| interval / 3)
    }

    fn alive(&self) {
        Self::notify(NotifyState::Watchdog);
    }
}

/// What the file says, and what the command line says instead.
fn settings(args: &ServeArgs) -> Result<ServiceSettings, CliError> {
    let mut settings = match &args.config {
        Some(path) => ServiceSettings::read(path)?,
        None => ServiceSettings::default(),
    };
    if !args.listen.is_empty() {
        settings.listen.clone_from(&args.listen);
    }
    settings.insecure |= args.insecure;
    if let (Some(certificate), Some(key)) = (&args.tls_certificate, &args.tls_key) {
        let client_ca = args.tls_client_ca.clone();
        settings.tls = Some(TlsSettings { certificate: certificate.clone(), key: key.clone(), client_ca });
    }
    Ok(settings)
}
