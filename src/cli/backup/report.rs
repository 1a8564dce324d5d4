//! What a backup says of itself when it is done.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::api::ByteRange;
use crate::backup::{BackupOptions, BackupSummary, SourceFormat, Tracking};
use crate::cli::backup::sources::Source;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::format;
use crate::cli::signals::stopped_backup;
use crate::cli::terminal::Lines;
use crate::image::{ListKind, LookAlike};
use crate::manifest::SourceUse;

#[derive(Default, Serialize)]
pub(super) struct Document {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) machine: Option<Machine>,
    pub(super) backups: Vec<Done>,
    pub(super) failed: Vec<Failed>,
}

/// The moment of a machine.
#[derive(Serialize)]
pub(super) struct Machine {
    pub(super) backup: String,
    pub(super) backupset: String,
    pub(super) incremental: u32,
    pub(super) timestamp: String,
    pub(super) attached: Vec<String>,
}

/// A backup that was made.
#[derive(Serialize)]
pub(super) struct Done {
    name: String,
    backup: String,
    backupset: String,
    incremental: u32,
    size_of_disk: u64,
    segments: u64,
    zero_segments: u64,
    unchanged_segments: u64,
    deduplicated_segments: u64,
    resumed_segments: u64,
    healed_segments: u64,
    new_segments: u64,
    used_bytes: u64,
    read_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    format: &'static str,
    /// What the source looks like that was read as raw.
    #[serde(skip_serializing_if = "Option::is_none")]
    looks_like: Option<&'static str>,
    /// Who else used the source when the backup began.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_use: Option<String>,
    /// How the source changed while it was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    inconsistent: Option<String>,
    /// The ranges with unreadable sectors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable: Vec<ByteRange>,
    /// The disk's size in the backup before, if that was larger.
    #[serde(skip_serializing_if = "Option::is_none")]
    shrank_from: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cbt: Option<Cbt>,
    seconds: f64,
}

/// What came of a list of changes.
#[derive(Serialize)]
struct Cbt {
    /// Nothing if there was no list.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    audited_segments: u64,
    /// Why the whole disk was read all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    full_read: Option<String>,
    /// Backups that are suspect now, because the list was wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    suspects: Vec<u32>,
}

/// A source that was not backed up.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Failed {
    pub(super) name: String,
    source: String,
    pub(super) error: String,
}

impl Failed {
    pub(super) fn of(source: &Source, error: &dyn std::fmt::Display) -> Self {
        let (name, path) = (source.name.to_string(), source.path.display().to_string());
        Self { name, source: path, error: error.to_string() }
    }
}

/// What is known of a source beside the backup of it.
pub(super) struct About {
    pub(super) format: SourceFormat,
    pub(super) in_use: Option<SourceUse>,
}

impl About {
    /// Returns what the options of the backup say.
    pub(super) fn of(options: &BackupOptions) -> Self {
        Self { format: options.format, in_use: options.in_use.clone() }
    }
}

/// Says what a backup did.
pub(super) fn done(source: &Source, about: &About, summary: &BackupSummary) -> Done {
    let BackupSummary { backup, size_of_disk, stats, tracking, flaws, shrank_from, elapsed } = summary;
    let About { format, in_use } = about;
    Done {
        name: source.name.to_string(),
        backup: backup.id.to_string(),
        backupset: backup.backupset.to_string(),
        incremental: backup.incremental.0,
        size_of_disk: *size_of_disk,
        segments: stats.segments,
        zero_segments: stats.zero_segments,
        unchanged_segments: stats.unchanged_segments,
        deduplicated_segments: stats.deduplicated_segments,
        resumed_segments: stats.resumed_segments,
        healed_segments: backup.healed_segments,
        new_segments: stats.new_segments,
        used_bytes: stats.used_bytes,
        read_bytes: stats.read_bytes,
        new_bytes: stats.new_bytes,
        stored_bytes: stats.stored_bytes,
        format: format.format.name(),
        looks_like: format.looks_like.map(LookAlike::name),
        in_use: in_use.as_ref().map(ToString::to_string),
        inconsistent: flaws.inconsistent.as_ref().map(ToString::to_string),
        unreadable: flaws.unreadable.iter().map(ByteRange::from).collect(),
        shrank_from: *shrank_from,
        cbt: tracking.as_ref().map(|Tracking { kind, full_read, suspects }| Cbt {
            kind: kind.map(ListKind::name),
            audited_segments: stats.audited_segments,
            full_read: full_read.as_ref().map(ToString::to_string),
            suspects: suspects.iter().map(|number| number.0).collect(),
        }),
        seconds: elapsed.as_secs_f64(),
    }
}

/// Prints what comes of each source when it is known, and a summary at the end.
pub(super) struct Report<'a> {
    context: &'a Context,
    sources: usize,
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Why a line could not be printed.
    error: Option<CliError>,
    /// Whether a failure was printed, and then a result.
    is_failure_above: bool,
    has_failure: bool,
}

impl<'a> Report<'a> {
    /// Begins a report on so many sources.
    pub(super) fn new(sources: usize, context: &'a Context) -> Self {
        Self { context, sources, begun: Instant::now(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn print(&self, text: impl FnOnce(&mut Lines) -> io::Result<()>) {
        if let Err(error) = self.context.print_meanwhile(text) {
            self.state().error.get_or_insert(error);
        }
    }

    /// Prints the result of a source.
    pub(super) fn done(&self, done: &Done) {
        self.context.progress().event("done", done);
        self.print(|out| done.describe(out));
        let mut state = self.state();
        state.is_failure_above |= state.has_failure;
    }

    /// Prints why a source was not backed up.
    pub(super) fn failed(&self, source: &Source, error: &dyn std::fmt::Display) -> Failed {
        let failed = Failed::of(source, error);
        self.state().has_failure = true;
        let progress = self.context.progress();
        progress.gives_up(source.name.as_str());
        if !progress.event("failed", &failed) && !self.context.json {
            progress.failure(&format!("{} was not backed up: {error}", source.name));
        }
        failed
    }

    /// Prints the summary, with the failures last, or the document.
    ///
    /// # Errors
    /// Something could not be printed.
    pub(super) fn finish(self, document: &Document, is_stopped: bool) -> Result<(), CliError> {
        let progress = self.context.progress();
        if self.context.json {
            self.context.print(document, |_| Ok(()))?;
        } else {
            self.print(|out| self.summarize(document, out));
        }
        let (done, failed) = (document.backups.len(), document.failed.len());
        if is_stopped {
            progress.failure(&format!("stopped by a signal: {}", stopped_backup((done, self.sources))));
        } else if !self.context.json && failed > 0 && (self.state().is_failure_above || failed > 1) {
            progress.failure(&format!("{failed} of {} disks failed:", self.sources));
            for Failed { name, error, .. } in &document.failed {
                progress.failure(&format!("{name}: {error}"));
            }
        }
        self.state().error.take().map_or(Ok(()), Err)
    }

    fn summarize(&self, document: &Document, out: &mut Lines) -> io::Result<()> {
        let done = &document.backups;
        if done.len() > 1 {
            let sum = |bytes: fn(&Done) -> u64| short(done.iter().map(bytes).sum());
            writeln!(
                out,
                "{} done in {}: {} in all, {} used, {} new, {} added to the store",
                format::count(done.len() as u64, "disk"),
                seconds(self.begun.elapsed().as_secs_f64()),
                sum(|done| done.size_of_disk),
                sum(|done| done.used_bytes),
                sum(|done| done.new_bytes),
                sum(|done| done.stored_bytes),
            )?;
        }
        let Some(Machine { backup, attached, .. }) = &document.machine else { return Ok(()) };
        let (disks, files) =
            (format::count(done.len() as u64, "disk"), format::count(attached.len() as u64, "attached file"));
        writeln!(out, "{backup}: {disks} and {files} at one moment")
    }
}

/// Returns a number of bytes without a fraction of zero.
fn short(number: u64) -> String {
    format::bytes(number).replace(".0 ", " ")
}

/// Returns a time for a person.
fn seconds(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "far less than 2^64 seconds")]
    let minutes = (seconds / 60.0) as u64;
    if minutes < 60 { format!("{minutes} min") } else { format!("{} h {} min", minutes / 60, minutes % 60) }
}

impl Done {
    fn describe(&self, out: &mut Lines) -> io::Result<()> {
        writeln!(
            out,
            "{} done in {}: {} disk, {} used, {} new, {} added to the store",
            self.backup,
            seconds(self.seconds),
            short(self.size_of_disk),
            short(self.used_bytes),
            short(self.new_bytes),
            short(self.stored_bytes),
        )?;
        if self.resumed_segments > 0 {
            let segments = format::count(self.resumed_segments, "segment");
            writeln!(
                out,
                "{}: {segments} were stored already by a backup that was interrupted",
                self.backup
            )?;
        }
        if self.healed_segments > 0 {
            let segments = format::count(self.healed_segments, "segment");
            writeln!(out, "{}: {segments} healed that earlier backups lacked", self.backup)?;
        }
        let Some(Cbt { kind, audited_segments, full_read, .. }) = &self.cbt else { return Ok(()) };
        match full_read {
            None => {
                let kind = kind.unwrap_or("list");
                writeln!(out, "{}: read by its {kind}, {audited_segments} segments compared", self.backup)
            }
            Some(why) => writeln!(out, "{}: the whole disk was read: {why}", self.backup),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_as_a_person_says_them() {
        let times =
            [(0.04, "0.0 s"), (59.9, "59.9 s"), (60.0, "1 min"), (3599.0, "59 min"), (7260.0, "2 h 1 min")];
        for (time, text) in times {
            assert_eq!(seconds(time), text);
        }
        assert_eq!(
            (short(8 << 30), short(3 << 29), short(0)),
            ("8 GiB".to_owned(), "1.5 GiB".to_owned(), "0 B".to_owned())
        );
    }
}
