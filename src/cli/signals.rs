//! Signals that end a restore: what it was writing never looks complete.
//!
//! The first INT, TERM, HUP or PIPE ends the process as soon as incomplete files are removed, or kept if that was asked for. The
//! process then dies of the signal, as its parent expects. If that hangs, a second INT or TERM ends it at once; one that comes within
//! [`PATIENCE`] means the same as the first, as `timeout` sends TERM to the process and to its group.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::{emulate_default_handler, signal_name};

use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::terminal;
use crate::error::ErrorKind;
use crate::restore::{Cleanup, TargetFate};

/// After a signal, how long another one means the same.
const PATIENCE: Duration = Duration::from_secs(1);

/// From now on a signal ends the restores that enter their targets in `cleanup`, and then the process.
pub(super) fn clean_up_after_signals(cleanup: Cleanup, context: &Context) -> Result<(), CliError> {
    let failed = |error: io::Error| {
        CliError::new(ErrorKind::Io, format!("cannot prepare for signals, so nothing was restored: {error}"))
    };
    let ends_now = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&ends_now)).map_err(failed)?;
    }
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGPIPE]).map_err(failed)?;
    let tell = context.teller();
    let wait = move || {
        // If nobody reads our output any longer, the write that failed says so.
        let is_meant = |signal: &i32| *signal != SIGPIPE || !terminal::is_reader_gone();
        let Some(signal) = signals.forever().find(is_meant) else { return };
        let patience = std::thread::Builder::new().name("ekko-patience".to_owned());
        // Without that thread a second signal means the same as the first.
        let _ = patience.spawn(move || {
            std::thread::sleep(PATIENCE);
            ends_now.store(true, Ordering::Release);
        });
        // Held until the process ends: no file gets its name after this.
        let stopped = cleanup.stop();
        let name = signal_name(signal).unwrap_or("a signal");
        tell(&CliError::new(ErrorKind::Io, message(name, stopped.fates())));
        let _ = emulate_default_handler(signal);
    };
    std::thread::Builder::new().name("ekko-signals".to_owned()).spawn(wait).map(drop).map_err(failed)
}

/// Says in one line what became of each target.
fn message(signal: &str, fates: &[TargetFate]) -> String {
    let mut fates: Vec<_> = fates.iter().map(ToString::to_string).collect();
    fates.dedup();
    if fates.is_empty() {
        fates.push(TargetFate::Untouched.to_string());
    }
    format!("stopped by {signal}: {}", fates.join("; "))
}
