//! What a backup says of itself when it is done.

use std::io;

use serde::Serialize;

use crate::backup::{BackupSummary, SourceFormat, Tracking};
use crate::cli::backup::Source;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::format;
use crate::cli::terminal::Lines;
use crate::image::{ListKind, LookAlike};

#[derive(Serialize)]
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
    new_segments: u64,
    read_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    format: &'static str,
    /// What the source looks like that was read as raw.
    #[serde(skip_serializing_if = "Option::is_none")]
    looks_like: Option<&'static str>,
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

#[derive(Serialize)]
pub(super) struct Failed {
    source: String,
    error: String,
}

/// Says what a backup did.
pub(super) fn done(source: &Source, format: SourceFormat, summary: &BackupSummary) -> Done {
    let BackupSummary { backup, size_of_disk, stats, tracking, elapsed } = summary;
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
        new_segments: stats.new_segments,
        read_bytes: stats.read_bytes,
        new_bytes: stats.new_bytes,
        stored_bytes: stats.stored_bytes,
        format: format.format.name(),
        looks_like: format.looks_like.map(LookAlike::name),
        cbt: tracking.as_ref().map(|Tracking { kind, full_read, suspects }| Cbt {
            kind: kind.map(ListKind::name),
            audited_segments: stats.audited_segments,
            full_read: full_read.as_ref().map(ToString::to_string),
            suspects: suspects.iter().map(|number| number.0).collect(),
        }),
        seconds: elapsed.as_secs_f64(),
    }
}

/// Tells why a source was not backed up.
pub(super) fn failed(source: &Source, error: &dyn std::fmt::Display, context: &Context) -> Failed {
    if !context.json {
        context.progress().line(&format!("{} was not backed up: {error}", source.name));
    }
    Failed { source: source.path.display().to_string(), error: error.to_string() }
}

/// Prints what was done.
pub(super) fn print(document: &Document, context: &Context) -> Result<(), CliError> {
    context.print(document, |out| {
        for done in &document.backups {
            done.describe(out)?;
        }
        let Some(Machine { backup, attached, .. }) = &document.machine else { return Ok(()) };
        let (disks, files) = (document.backups.len(), attached.len());
        writeln!(out, "{backup}: {disks} disks and {files} attached files at one moment")
    })
}

impl Done {
    fn describe(&self, out: &mut Lines) -> io::Result<()> {
        writeln!(
            out,
            "{}: {} in {} segments: {} new ({}, stored as {}), {} deduplicated, {} unchanged, {} zero; {:.1} s",
            self.backup,
            format::bytes(self.size_of_disk),
            self.segments,
            self.new_segments,
            format::bytes(self.new_bytes),
            format::bytes(self.stored_bytes),
            self.deduplicated_segments,
            self.unchanged_segments,
            self.zero_segments,
            self.seconds,
        )?;
        if self.resumed_segments > 0 {
            let (backup, segments) = (&self.backup, self.resumed_segments);
            writeln!(out, "{backup}: {segments} segments were there from a backup that was cut off")?;
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
