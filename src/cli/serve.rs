//! `ekko serve`

use std::io;

use crate::cli::Outcome;
use crate::cli::args::ServeArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::service::{ServiceSettings, TlsSettings, serve};

pub(super) fn run(args: &ServeArgs, context: &Context) -> Result<Outcome, CliError> {
    let settings = settings(args)?;
    let writer = context.open_shared(settings.limits.blocking_threads)?;
    serve(writer, settings, |places| {
        for place in places {
            context.progress().line(&format!("listening on {place}"));
        }
        // Whoever started the service and waits for this: systemd, if it is that.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    })?;
    Ok(Outcome::Done)
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

/// Begins the log of a service.
pub(super) fn start_log(args: &ServeArgs, level: tracing::Level) {
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).with_target(false);
    // Only a second start could fail, and there is none.
    let _ = if args.log_json { log.json().try_init() } else { log.without_time().try_init() };
}
