//! Progress and notices, on stderr: a line that is drawn over and over on a terminal, or lines of JSON for programs.

mod line;
mod meter;
mod notices;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cli::progress::meter::{Meter, Reading};
use crate::cli::progress::notices::{Weight, described};
use crate::cli::terminal::{self, Log, say, say_json};
use crate::progress::{Notice, Progress};

/// How often the line is drawn.
const TICK: Duration = Duration::from_millis(200);
/// How often programs are told.
const JSON_TICK: Duration = Duration::from_secs(1);

/// Tells a person at a terminal, or a program.
#[derive(Debug)]
pub(super) struct Console {
    shown: Arc<Shown>,
    quiet: bool,
    log: Log,
    problems: AtomicBool,
}

/// What the thread that draws shares.
#[derive(Debug)]
struct Shown {
    /// Whether a line is drawn on a terminal.
    draws: bool,
    /// Whether everything is lines of JSON.
    json: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    meter: Meter,
    /// Whether a thread draws.
    is_ticking: bool,
}

impl Shown {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_json(&self) -> bool {
        self.json.load(Ordering::Acquire)
    }

    /// Draws the line, or tells a program.
    fn draw(&self, state: &State) {
        let reading = state.meter.read(Instant::now());
        if self.is_json() {
            tell("progress", &reading);
        } else if self.draws {
            terminal::draw_status(&line::fitted(&reading, terminal::columns_of_stderr()));
        }
    }

    /// Draws until nothing goes on any longer.
    fn tick(self: &Arc<Self>) {
        let shown = Arc::clone(self);
        let run = move || {
            loop {
                std::thread::sleep(if shown.is_json() { JSON_TICK } else { TICK });
                let mut state = shown.state();
                if !state.meter.is_running() {
                    state.is_ticking = false;
                    return;
                }
                shown.draw(&state);
            }
        };
        // Without a thread, nothing is drawn.
        let thread = std::thread::Builder::new().name("ekko-progress".to_owned()).spawn(run);
        self.state().is_ticking = thread.is_ok();
    }
}

/// An event for programs.
#[derive(Serialize)]
struct Event<'a, T> {
    event: &'a str,
    #[serde(flatten)]
    of: T,
}

#[derive(Serialize)]
struct Text<'a> {
    text: &'a str,
}

fn tell(event: &str, of: &impl Serialize) {
    say_json(&Event { event, of });
}

/// A disk that is shown as one of those that are read, until this is dropped.
#[derive(Debug)]
pub(super) struct ShownDisk<'a> {
    console: &'a Console,
    name: String,
}

impl Drop for ShownDisk<'_> {
    fn drop(&mut self) {
        self.console.shown.state().meter.end_disk(&self.name);
    }
}

impl Console {
    pub(super) fn new(draws: bool, quiet: bool, log: Log) -> Self {
        let shown = Shown { draws, json: AtomicBool::new(false), state: Mutex::default() };
        Self { shown: Arc::new(shown), quiet, log, problems: AtomicBool::new(false) }
    }

    /// Returns how lines are written where there is no console.
    pub(super) fn log(&self) -> Log {
        self.log
    }

    /// Says whether a problem was noticed: the exit code is then 3.
    pub(super) fn saw_problems(&self) -> bool {
        self.problems.load(Ordering::Acquire)
    }

    /// From now on everything is told in lines of JSON.
    pub(super) fn emit_json(&self) {
        terminal::emit_json_lines();
        self.shown.json.store(true, Ordering::Release);
    }

    /// Takes down which disks will be read, and about how many bytes of data each has.
    pub(super) fn expect(&self, disks: impl Iterator<Item = (String, u64)>) {
        self.shown.state().meter.expect(disks);
        self.start();
    }

    /// Takes down that no more disks will be read.
    pub(super) fn expect_no_more(&self) {
        let mut state = self.shown.state();
        state.meter.expect_no_more();
        self.clear();
    }

    /// Shows a disk as one of those that are read.
    pub(super) fn disk(&self, name: &str) -> ShownDisk<'_> {
        self.shown.state().meter.begin_disk(name);
        ShownDisk { console: self, name: name.to_owned() }
    }

    /// Takes down that a disk will not be read, or not any further.
    pub(super) fn gives_up(&self, name: &str) {
        self.shown.state().meter.give_up(name);
    }

    /// Returns how many disks are done, and how many there are.
    pub(super) fn disks(&self) -> (usize, usize) {
        let Reading { disks_done, disks_total, .. } = self.shown.state().meter.read(Instant::now());
        (disks_done, disks_total)
    }

    /// Tells programs of something, if everything is told in lines of JSON. Says whether it was.
    pub(super) fn event(&self, event: &str, of: &impl Serialize) -> bool {
        let is_json = self.shown.is_json();
        if is_json {
            tell(event, of);
        }
        is_json
    }

    /// Takes the line of progress from the terminal.
    fn clear(&self) {
        if self.shown.draws && !self.shown.is_json() {
            terminal::draw_status("");
        }
    }

    fn start(&self) {
        let is_shown = self.shown.draws || self.shown.is_json();
        if is_shown && !std::mem::replace(&mut self.shown.state().is_ticking, true) {
            self.shown.tick();
        }
    }

    /// Tells something, on a line above the progress if there is any.
    pub(super) fn line(&self, text: &str) {
        match self.log {
            Log::Json => tracing::info!("{text}"),
            Log::Text => self.print("notice", text),
        }
    }

    /// Tells of something that is wrong.
    fn problem(&self, text: &str) {
        match self.log {
            Log::Json => tracing::warn!("{text}"),
            Log::Text => self.print("problem", text),
        }
    }

    /// Tells why the command failed.
    pub(super) fn failure(&self, text: &str) {
        match self.log {
            Log::Json => tracing::error!("{text}"),
            Log::Text => self.print("failure", text),
        }
    }

    fn print(&self, event: &str, text: &str) {
        if !self.event(event, &Text { text }) {
            say(format_args!("ekko: {text}"));
        }
    }
}

impl Progress for Console {
    fn begin(&self, label: &str, bytes: u64) {
        self.shown.state().meter.begin(label, bytes);
        self.start();
    }

    fn advance(&self, bytes: u64) {
        self.shown.state().meter.advance(bytes, Instant::now());
    }

    fn end(&self) {
        let mut state = self.shown.state();
        state.meter.end();
        if !state.meter.is_running() {
            self.clear();
        }
    }

    fn notice(&self, notice: Notice) {
        let (weight, text) = described(notice);
        if weight == Weight::Problem {
            self.problems.store(true, Ordering::Release);
        }
        match weight {
            Weight::News if self.quiet => {}
            Weight::News => self.line(&text),
            Weight::Warning | Weight::Problem => self.problem(&text),
        }
    }
}
