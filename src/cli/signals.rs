//! Signals that end a command: one line says what that means, and what a restore was writing never looks complete.
//!
//! The first INT, TERM, HUP or PIPE ends the process, a restore as soon as incomplete files are removed, or kept if that was asked
//! for. The process then dies of the signal, as its parent expects. If that hangs, a second INT or TERM ends it at once; one that comes within
//! [`PATIENCE`] means the same as the first, as `timeout` sends TERM to the process and to its group.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::{emulate_default_handler, signal_name};

use crate::cli::args::Command;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::terminal;
use crate::error::ErrorKind;
use crate::restore::{Cleanup, TargetFate};

/// After a signal, how long another one means the same.
const PATIENCE: Duration = Duration::from_secs(1);

/// What becomes of the data of a backup that was stopped.
const STORED_DATA: &str = "the next backup uses the data that was stored already";

/// Says what the end of a backup by a signal means, if so many disks of all are done.
pub(super) fn stopped_backup((done, all): (usize, usize)) -> String {
    let disks = if all == 1 { "disk is" } else { "disks are" };
    format!("{done} of {all} {disks} backed up; {STORED_DATA}")
}

/// Returns what the end of a command by a signal means. A restore says what became of its target, and a backup with commands
/// before or after it stops in order.
pub(super) fn meaning(command: &Command) -> Option<&'static str> {
    match command {
        Command::Backup(args) if args.machine.before.is_none() && args.machine.after.is_none() => {
            Some(STORED_DATA)
        }
        Command::Gc(_) => Some("no backup is harmed; the next \"ekko gc\" frees the rest"),
        Command::Check(_) => Some("the check is incomplete"),
        Command::Verify(_) => Some("the comparison is incomplete"),
        _ => None,
    }
}

/// From now on a signal ends the process with a line that says what that means.
pub(super) fn tell_of_signals(meaning: &'static str, context: &Context) -> Result<(), CliError> {
    let console = context.console();
    end_after(context, move |name, end| {
        end(match console.disks() {
            // It is no backup, or one that has not begun.
            (_, 0) => format!("stopped by {name}: {meaning}"),
            disks => format!("stopped by {name}: {}", stopped_backup(disks)),
        });
    })
}

/// From now on a signal ends the restores that enter their targets in `cleanup`, and then the process.
pub(super) fn clean_up_after_signals(cleanup: Cleanup, context: &Context) -> Result<(), CliError> {
    end_after(context, move |name, end| {
        // Held until the process ends: no file gets its name after this.
        let stopped = cleanup.stop();
        end(message(name, stopped.fates()));
    })
}

/// Has the first signal call `then` with its name, and with what tells a line and ends the process.
fn end_after(
    context: &Context,
    then: impl FnOnce(&str, &dyn Fn(String)) + Send + 'static,
) -> Result<(), CliError> {
    let failed = |error: io::Error| {
        CliError::new(ErrorKind::Io, format!("cannot prepare for signals, so nothing was done: {error}"))
    };
    let ends_now = Arc::new(AtomicBool::new(false));
    let ignored = ignored_signals();
    // What `nohup` or a shell's `&` has ignored stays ignored. (SIGPIPE is ignored by every Rust program.)
    let is_heard = |signal: &i32| *signal == SIGPIPE || ignored & (1 << (*signal - 1)) == 0;
    for signal in [SIGINT, SIGTERM].into_iter().filter(is_heard) {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&ends_now)).map_err(failed)?;
    }
    let heard = [SIGINT, SIGTERM, SIGHUP, SIGPIPE].into_iter().filter(is_heard);
    let mut signals = Signals::new(heard).map_err(failed)?;
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
        let name = signal_name(signal).unwrap_or("a signal");
        then(name, &|line| {
            tell(&CliError::new(ErrorKind::Io, line));
            let _ = emulate_default_handler(signal);
        });
    };
    std::thread::Builder::new().name("ekko-signals".to_owned()).spawn(wait).map(drop).map_err(failed)
}

/// Returns the signals that this process ignores, as bits: the first is that of signal 1.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
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
