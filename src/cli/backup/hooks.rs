//! Commands that a person has run before and after a backup: they freeze and thaw what is backed up, or make and drop what it
//! is read from.
//!
//! The one after runs once, whatever happens before: it undoes what the other has done. So signals that would end this
//! process only ask it to stop; then the sources are closed, the command runs, and the process ends by itself.
//!
//! A person who cannot wait for that sends another signal: INT or TERM end the process at once if they come [`PATIENCE`] after the
//! first one, or later. Ones that come sooner mean the same as the first: `timeout` sends TERM to the process and to its group. HUP
//! only asks, however often it comes: a terminal that closes sends it twice, and systemd after TERM.

use std::io::{self, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cli::args::MachineArgs;
use crate::cli::error::CliError;
use crate::cli::progress::Console;
use crate::cli::terminal::{Log, pass_on, say};
use crate::error::ErrorKind;

/// After a signal, how long another one means the same.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is told when that time is over.
const ENDS_IN_ORDER: &str = "a signal came: Ekko stops, and runs --after if it has not yet; another signal ends it at once, without that";
/// How often it is looked whether a signal has come.
const LOOK: Duration = Duration::from_millis(50);

/// The commands of one backup. Dropped before the one after has run, it runs.
#[derive(Debug)]
pub(super) struct Hooks<'a> {
    args: &'a MachineArgs,
    console: &'a Console,
    /// Whether a signal came.
    stop: Arc<AtomicBool>,
    after_ran: AtomicBool,
    after_failed: AtomicBool,
}

impl Drop for Hooks<'_> {
    fn drop(&mut self) {
        self.after(false);
    }
}

impl<'a> Hooks<'a> {
    /// Takes the commands.
    pub(super) fn new(args: &'a MachineArgs, console: &'a Console) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        // Nothing is owed before the command before has begun.
        let after_ran = AtomicBool::new(true);
        Self { args, console, stop, after_ran, after_failed: AtomicBool::new(false) }
    }

    /// Says whether there are any.
    pub(super) fn are_there(&self) -> bool {
        self.args.before.is_some() || self.args.after.is_some()
    }

    /// Returns what a signal sets.
    pub(super) fn stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// Says whether a signal has asked to stop.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Runs the command before. From now on the one after is owed, and signals only ask to stop.
    pub(super) fn before(&self) -> Result<(), CliError> {
        if self.are_there() {
            self.hear_signals().map_err(|error| {
                CliError::new(ErrorKind::Io, format!("cannot be told of signals: {error}"))
            })?;
        }
        self.after_ran.store(false, Ordering::Release);
        let Some(command) = &self.args.before else { return Ok(()) };
        let ran = run(self.shell(command));
        let failed = |how: &dyn std::fmt::Display| {
            let message = format!("nothing was backed up: --before ({command}) failed: {how}");
            Err(CliError::new(ErrorKind::Io, message))
        };
        match ran {
            Ok(status) if !status.success() => failed(&status),
            Err(error) => failed(&error),
            Ok(_) if self.stop.load(Ordering::Acquire) => failed(&"a signal came while it ran"),
            Ok(_) => Ok(()),
        }
    }

    /// Has the first signal ask to stop, and a later one end the process.
    fn hear_signals(&self) -> io::Result<()> {
        let ends_now = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if signal != SIGHUP {
                signal_hook::flag::register_conditional_default(signal, Arc::clone(&ends_now))?;
            }
            signal_hook::flag::register(signal, Arc::clone(&self.stop))?;
        }
        let (stop, log) = (Arc::clone(&self.stop), self.console.log());
        let wait = move || {
            while !stop.load(Ordering::Acquire) {
                std::thread::sleep(LOOK);
            }
            std::thread::sleep(PATIENCE);
            ends_now.store(true, Ordering::Release);
            match log {
                Log::Json => tracing::info!("{ENDS_IN_ORDER}"),
                Log::Text => say(format_args!("ekko: {ENDS_IN_ORDER}")),
            }
        };
        std::thread::Builder::new().name("ekko-signals".to_owned()).spawn(wait).map(drop)
    }

    /// Runs the command after, unless it has run or none is owed.
    pub(super) fn after(&self, done: bool) {
        if self.after_ran.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(command) = &self.args.after else { return };
        let mut shell = self.shell(command);
        shell.env("EKKO_RESULT", if done { "done" } else { "failed" });
        // What ends this process, or is meant to, is not to end what it owes.
        shell.process_group(0);
        let how = match run(shell) {
            Ok(status) if status.success() => return,
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        self.after_failed.store(true, Ordering::Release);
        self.console
            .line(&format!("problem: --after ({command}) failed: {how}; undo by hand what it undoes"));
    }

    /// Says whether the command after failed.
    pub(super) fn failed(&self) -> bool {
        self.after_failed.load(Ordering::Acquire)
    }

    fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).stdin(Stdio::null());
        shell.env_remove("EKKO_RESULT");
        match &self.args.machine {
            Some(name) => shell.env("EKKO_MACHINE", name.as_str()),
            None => shell.env_remove("EKKO_MACHINE"),
        };
        shell
    }
}

/// Runs a command to its end. What it writes goes to our stderr, line by line: our stdout is for our results alone, and it
/// may repeat what a guest says.
fn run(mut shell: Command) -> io::Result<ExitStatus> {
    let (output, input) = io::pipe()?;
    let mut own = input.try_clone()?;
    shell.stdout(input.try_clone()?).stderr(input);
    let end = format!("the end of {}", uuid::Uuid::new_v4());
    let (passed_on, is_passed_on) = mpsc::channel();
    let last = end.clone();
    let reader = std::thread::Builder::new().name("ekko-output".to_owned());
    reader.spawn(move || {
        let mut output = BufReader::new(output);
        let _ = pass_on(&mut output, &last);
        let _ = passed_on.send(());
        // Programs that the command has left running may go on writing.
        let _ = pass_on(&mut output, &last);
    })?;
    let child = shell.spawn();
    // Its ends of the pipe are closed with it.
    drop(shell);
    let status = child?.wait();
    // All that the command has written lies in the pipe before this.
    if writeln!(own, "\n{end}").is_ok() {
        let _ = is_passed_on.recv();
    }
    status
}
