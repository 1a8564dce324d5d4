//! Progress bars and notices, on stderr.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::terminal::{Log, say};
use crate::escape::escaped;
use crate::progress::{Notice, Progress};

/// Tells a person at a terminal.
#[derive(Debug)]
pub(super) struct Console {
    bars: bool,
    notices: bool,
    log: Log,
    bar: Mutex<Option<Shown>>,
    problems: AtomicBool,
}

/// The bar, and how many parts that run side by side it shows.
#[derive(Debug)]
struct Shown {
    bar: ProgressBar,
    parts: usize,
}

impl Console {
    pub(super) fn new(bars: bool, notices: bool, log: Log) -> Self {
        Self { bars, notices, log, bar: Mutex::default(), problems: AtomicBool::new(false) }
    }

    /// Returns how lines are written where there is no console.
    pub(super) fn log(&self) -> Log {
        self.log
    }

    /// Says whether a problem was noticed: the exit code is then 3.
    pub(super) fn saw_problems(&self) -> bool {
        self.problems.load(Ordering::Acquire)
    }

    fn with_bar(&self, then: impl FnOnce(&ProgressBar)) {
        if self.bars
            && let Some(shown) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
        {
            then(&shown.bar);
        }
    }

    /// Tells something, on a line above the bar if there is one.
    pub(super) fn line(&self, text: &str) {
        match self.log {
            Log::Json => tracing::info!("{text}"),
            Log::Text => self.print(text),
        }
    }

    /// Tells of something that is wrong.
    fn problem(&self, text: &str) {
        match self.log {
            Log::Json => tracing::warn!("{text}"),
            Log::Text => self.print(text),
        }
    }

    /// Tells why the command failed.
    pub(super) fn failure(&self, text: &str) {
        match self.log {
            Log::Json => tracing::error!("{text}"),
            Log::Text => self.print(text),
        }
    }

    fn print(&self, text: &str) {
        let print = || say(format_args!("ekko: {text}"));
        let shown = self.bar.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|it| it.bar.clone());
        match shown {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Progress for Console {
    fn begin(&self, label: &str, bytes: u64) {
        if !self.bars {
            return;
        }
        let mut shown = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Shown { bar, parts }) = shown.as_mut() {
            *parts += 1;
            bar.inc_length(bytes);
            bar.set_prefix(format!("{parts} at once"));
            return;
        }
        let template = "{prefix:16!} {bar:30} {binary_bytes:>11} / {binary_total_bytes} {binary_bytes_per_sec:>13}, {eta} left";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(bytes).with_style(style).with_prefix(escaped(label).into_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        *shown = Some(Shown { bar, parts: 1 });
    }

    fn advance(&self, bytes: u64) {
        self.with_bar(|bar| bar.inc(bytes));
    }

    fn end(&self) {
        let mut shown = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        match shown.as_mut() {
            Some(Shown { parts, .. }) if *parts > 1 => *parts -= 1,
            _ => {
                if let Some(Shown { bar, .. }) = shown.take() {
                    bar.finish_and_clear();
                }
            }
        }
    }

    fn notice(&self, notice: Notice) {
        let text = match notice {
            Notice::IndexRebuilt { reason, segments } => {
                format!("the index was rebuilt with {segments} segments: {reason}")
            }
            Notice::Recovered { what } => format!("recovered: {what}"),
            Notice::SourceInUse { path, how } => {
                format!("warning: {} is {how}: the backup may mix what was and what is", path.display())
            }
            Notice::LooksLike { path, what, format } => {
                let path = path.display();
                let instead = match format {
                    Some(format) => format!("use --format {format}, or --format raw"),
                    None => "use --format raw".to_owned(),
                };
                format!("warning: {path} looks like {what} but is read as raw: {instead} to silence this")
            }
            Notice::ReadInFull { name, why } => {
                format!("warning: {name} is read in full: {why}")
            }
            Notice::Unleased { backup, job, why } => format!(
                "warning: cannot lease {backup}: {why}; if somebody deletes it and \"ekko gc\" runs before this {job} ends, the \
                 {job} loses its data: run no gc until then"
            ),
            Notice::TwinStored { hash } => {
                format!("warning: two different segments have the SHA-1 {hash}; both are kept")
            }
            Notice::Waiting { reason } => format!("waiting: {reason}"),
            Notice::GoesOn { what } => what,
            Notice::Problem { what, .. } => {
                self.problems.store(true, Ordering::Release);
                if self.notices {
                    self.problem(&format!("problem: {what}"));
                }
                return;
            }
        };
        if self.notices {
            self.line(&text);
        }
    }
}
