//! Moments of machines, for the commands that restore, show and delete them.

use std::io;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use crate::cli::args::RestoreArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::restore::options_of;
use crate::cli::restored::{Lacks, tell_flaws};
use crate::cli::signals::clean_up_after_signals;
use crate::cli::terminal::Lines;
use crate::cli::{Outcome, format};
use crate::error::ErrorKind;
use crate::machine::{MachineTargets, Moment, is_moment, restore_machine};
use crate::manifest::ManifestReader;
use crate::repository::{BackupId, Backupset, Repository};

/// What a moment consists of.
#[derive(Serialize)]
pub(super) struct Parts {
    machine: String,
    disks: Vec<Disk>,
    attached: Vec<Attached>,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "they are the names in the document")]
struct Disk {
    name: String,
    file: String,
    /// How the backup is named; nothing if it is not there.
    backup: Option<String>,
    backupset: String,
    incremental: u32,
    size_of_disk: u64,
    format: String,
    manifest_blake3: String,
    /// Why it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
}

#[derive(Serialize)]
struct Attached {
    name: String,
    size: u64,
}

/// Returns what a backup consists of if it is a machine's moment.
pub(super) fn parts(
    repository: &Repository,
    sets: &[Backupset],
    manifest: &ManifestReader,
    context: &Context,
) -> Result<Option<Parts>, CliError> {
    if !is_moment(manifest.info()) {
        return Ok(None);
    }
    let moment = Moment::read(repository, manifest, context.progress())?;
    let disks = moment.disks.iter().map(|disk| {
        let found = disk.find(sets);
        Disk {
            name: disk.name.to_string(),
            file: disk.file.to_string(),
            backup: found.as_ref().ok().map(|(set, backup)| BackupId::of(set, backup).to_string()),
            backupset: disk.backupset.to_string(),
            incremental: disk.incremental.0,
            size_of_disk: disk.size_of_disk,
            format: disk.format.clone(),
            manifest_blake3: disk.manifest.to_string(),
            missing: found.err(),
        }
    });
    let attached = moment.attached.iter().map(|attachment| Attached {
        name: attachment.name.to_string(),
        size: attachment.bytes.len() as u64,
    });
    Ok(Some(Parts {
        machine: moment.machine.to_string(),
        disks: disks.collect(),
        attached: attached.collect(),
    }))
}

impl Parts {
    /// Returns names and values for a person.
    pub(super) fn pairs(&self) -> Vec<(&str, String)> {
        let disk = |disk: &Disk| match (&disk.backup, &disk.missing) {
            (Some(backup), _) => format!("{backup}: {}, {}", format::bytes(disk.size_of_disk), disk.format),
            (None, Some(why)) => format!("missing: {why}"),
            (None, None) => String::new(),
        };
        let disks = self.disks.iter().map(|it| ("disk", disk(it)));
        let attached =
            self.attached.iter().map(|it| ("attached", format!("{}: {}", it.name, format::bytes(it.size))));
        disks.chain(attached).collect()
    }
}

#[derive(Serialize)]
struct Document {
    backup: String,
    /// The folder, if one was named.
    target: Option<String>,
    complete: bool,
    disks: Vec<Restored>,
    attached: Vec<String>,
    /// Attached files that have no target.
    skipped: Vec<String>,
    seconds: f64,
}

#[derive(Serialize)]
struct Restored {
    backup: String,
    target: String,
    segments: u64,
    written_bytes: u64,
    #[serde(flatten)]
    lacks: Lacks,
}

/// Restores all of a moment: into a folder, to targets of its own, or both.
pub(super) fn restore(args: &RestoreArgs, context: &Context) -> Result<Outcome, CliError> {
    let begun = Instant::now();
    if args.target.as_deref() == Some(Path::new("-")) {
        return Err(CliError::new(
            ErrorKind::Invalid,
            "a machine cannot be restored to stdout: name a folder",
        ));
    }
    let options = options_of(args);
    clean_up_after_signals(options.cleanup.clone(), context)?;
    let repository = context.open()?;
    let (sets, problems) = repository.backupsets()?;
    for problem in problems {
        context.progress().line(&format!("problem: {problem}"));
    }
    let (set, backup) = repository.find(&sets, &args.backup)?;
    let own = BackupId::of(set, backup).to_string();
    let moment = Moment::read(&repository, &repository.manifest(set, backup)?, context.progress())?;
    // Sets are read one after the other, and it may have come to exist meanwhile.
    let sets = if moment.disks.iter().all(|disk| disk.find(&sets).is_ok()) {
        sets
    } else {
        repository.backupsets()?.0
    };
    let targets = MachineTargets {
        folder: args.target.clone(),
        named: args.to.iter().map(|it| (it.name.clone(), it.target.clone())).collect(),
    };
    // In the order of the disks that are restored: if one is missing, none is.
    let mut manifests = Vec::new();
    for (set, backup) in moment.disks.iter().filter_map(|disk| disk.find(&sets).ok()) {
        let manifest = repository.manifest(set, backup)?;
        tell_flaws(&manifest, &BackupId::of(set, backup).to_string(), false, context);
        manifests.push(manifest);
    }
    let restored = restore_machine(&repository, &moment, &sets, &targets, &options, context.progress())?;
    let disks = restored.disks.into_iter().zip(&manifests).map(|(part, manifest)| {
        let (set, backup) = part.backup;
        let backup = BackupId::of(set, backup).to_string();
        let (segments, written_bytes) = (part.summary.segments, part.summary.written_bytes);
        let lacks = Lacks::of(part.summary, manifest, false);
        lacks.tell(Some(&backup), context);
        Restored { backup, target: part.target.display().to_string(), segments, written_bytes, lacks }
    });
    let disks: Vec<_> = disks.collect();
    let document = Document {
        backup: own,
        target: args.target.as_ref().map(|target| target.display().to_string()),
        complete: disks.iter().all(|disk| disk.lacks.is_complete()),
        disks,
        attached: restored.attached.iter().map(ToString::to_string).collect(),
        skipped: restored.skipped.iter().map(ToString::to_string).collect(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    context.print(&document, |out| print(&document, out))?;
    Ok(if document.complete { context.outcome() } else { Outcome::Problems })
}

fn print(document: &Document, out: &mut Lines) -> io::Result<()> {
    for disk in &document.disks {
        let written = format::bytes(disk.written_bytes);
        writeln!(out, "restored {} to {}: {written} written", disk.backup, disk.target)?;
        if let Some(never_read) = disk.lacks.never_read() {
            writeln!(out, "{}: {never_read}", disk.target)?;
        }
    }
    if !document.skipped.is_empty() {
        let files = document.skipped.join(", ");
        writeln!(out, "not restored: {files}; add --to NAME=FILE, or name a folder")?;
    }
    let Document { backup, seconds, .. } = document;
    let to = document.target.as_ref().map_or_else(String::new, |target| format!(" to {target}"));
    let (disks, files) = (document.disks.len(), document.attached.len());
    let restored =
        format!("restored {backup}{to}: {disks} disks and {files} attached files in {seconds:.1} s");
    if document.complete {
        return writeln!(out, "{restored}");
    }
    let lacks = document.disks.iter().filter_map(|disk| Some((&disk.target, disk.lacks.words()?)));
    let lacking = lacks.map(|(target, lacks)| format!("of {target}, {lacks}"));
    writeln!(out, "INCOMPLETE: {restored}, but {}", lacking.collect::<Vec<_>>().join("; "))
}
