//! Moments of machines, for the commands that restore, show and delete them.

use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use crate::cli::args::RestoreArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::restore::{Damaged, tell_damaged};
use crate::cli::{Outcome, format};
use crate::error::ErrorKind;
use crate::machine::{MACHINE_FILE, Moment, is_moment};
use crate::manifest::ManifestReader;
use crate::repository::{Addressed, BackupRecord, Backupset, Repository};
use crate::restore::{RestoreOptions, restore_to_path};
use crate::storage::{NewFile, StorageError};

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
    let addressed = Addressed::of(sets);
    let disks = moment.disks.iter().map(|disk| {
        let found = disk.find(sets);
        Disk {
            name: disk.name.to_string(),
            file: disk.file.to_string(),
            backup: found
                .as_ref()
                .ok()
                .map(|(set, backup)| addressed.backup_id(set, backup.incremental).to_string()),
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

/// Returns the backups of a moment's disks that are there.
pub(super) fn disks_of<'a>(
    repository: &Repository,
    sets: &'a [Backupset],
    (set, backup): (&Backupset, &BackupRecord),
    context: &Context,
) -> Result<Vec<(&'a Backupset, &'a BackupRecord)>, CliError> {
    let manifest = repository.manifest(set, backup)?;
    let moment = Moment::read(repository, &manifest, context.progress())?;
    Ok(moment.disks.iter().filter_map(|disk| disk.find(sets).ok()).collect())
}

#[derive(Serialize)]
struct Document {
    backup: String,
    target: String,
    disks: Vec<Restored>,
    attached: Vec<String>,
    seconds: f64,
}

#[derive(Serialize)]
struct Restored {
    backup: String,
    target: String,
    segments: u64,
    written_bytes: u64,
    damaged: Vec<Damaged>,
}

/// Restores all of a moment into a folder.
pub(super) fn restore(args: &RestoreArgs, context: &Context) -> Result<Outcome, CliError> {
    let begun = Instant::now();
    let repository = context.open()?;
    let (sets, problems) = repository.backupsets()?;
    for problem in problems {
        context.progress().line(&format!("problem: {problem}"));
    }
    let (set, backup) = repository.find(&sets, &args.backup)?;
    let own = Addressed::of(&sets).backup_id(set, backup.incremental).to_string();
    let moment = Moment::read(&repository, &repository.manifest(set, backup)?, context.progress())?;
    // Sets are read one after the other, and it may have come to exist meanwhile.
    let sets = if moment.disks.iter().all(|disk| disk.find(&sets).is_ok()) {
        sets
    } else {
        repository.backupsets()?.0
    };
    let found: Vec<_> = moment.disks.iter().map(|disk| (disk, disk.find(&sets))).collect();
    let missing: Vec<_> = found.iter().filter_map(|(_, found)| found.as_ref().err().cloned()).collect();
    if !missing.is_empty() {
        let message = format!(
            "{} is not whole, and nothing was restored: {}; what is there can be restored disk by disk",
            args.backup,
            missing.join("; ")
        );
        return Err(CliError::new(ErrorKind::NotFound, message));
    }
    make_folder(&args.target, args.force)?;
    let options = RestoreOptions {
        jobs: args.jobs.number(),
        force: args.force,
        sync: !args.no_sync,
        range: None,
        limit: args.limit_rate,
        certificates: None,
    };
    let addressed = Addressed::of(&sets);
    let mut disks = Vec::new();
    for (disk, found) in &found {
        let Ok((set, backup)) = found else { continue };
        let manifest = repository.manifest(set, backup)?;
        let target = disk.file.within(&args.target);
        let summary = restore_to_path(&repository, &manifest, &target, &options, context.progress())?;
        let backup = addressed.backup_id(set, backup.incremental).to_string();
        let damaged: Vec<_> = summary.damaged.into_iter().map(Damaged::from).collect();
        // At once: the next disk may end in an error.
        tell_damaged(&damaged, &format!("of {backup} is left zero"), context);
        disks.push(Restored {
            backup,
            target: target.display().to_string(),
            segments: summary.segments,
            written_bytes: summary.written_bytes,
            damaged,
        });
    }
    for attachment in &moment.attached {
        write(&attachment.name.within(&args.target), &attachment.bytes, args.force)?;
    }
    write(&args.target.join(MACHINE_FILE), &moment.description(), args.force)?;
    let document = Document {
        backup: own,
        target: args.target.display().to_string(),
        disks,
        attached: moment.attached.iter().map(|attachment| attachment.name.to_string()).collect(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    context.print(&document, |out| {
        document.disks.iter().try_for_each(|disk| {
            let written = format::bytes(disk.written_bytes);
            writeln!(out, "restored {} to {}: {written} written", disk.backup, disk.target)
        })?;
        let (backup, files) = (&document.backup, document.attached.len());
        writeln!(
            out,
            "restored {backup} to {}: {} disks and {files} attached files in {:.1} s",
            document.target,
            document.disks.len(),
            document.seconds
        )
    })?;
    let whole = document.disks.iter().all(|disk| disk.damaged.is_empty());
    Ok(if whole { context.outcome() } else { Outcome::Problems })
}

/// Makes the folder that a machine is restored to. One that is there must be empty, unless files in it may be overwritten.
fn make_folder(path: &Path, force: bool) -> Result<(), CliError> {
    let failed =
        |error| CliError::new(ErrorKind::Io, format!("cannot make the folder {}: {error}", path.display()));
    match fs::read_dir(path) {
        Ok(mut entries) => {
            if force || entries.next().is_none() {
                return Ok(());
            }
            let message = format!(
                "{} is not empty: name a new folder, or use --force to overwrite files in it",
                path.display()
            );
            Err(CliError::new(ErrorKind::Invalid, message))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            DirBuilder::new().mode(0o700).create(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

fn write(path: &Path, bytes: &[u8], force: bool) -> Result<(), CliError> {
    let failed = |error: StorageError| CliError::new(error.kind(), error.to_string());
    let file = NewFile::begin(path, force).map_err(failed)?;
    // It may be a machine's description with passwords in it.
    let mut out = file.create().map_err(failed)?;
    out.write_all(bytes)
        .map_err(|error| CliError::new(ErrorKind::Io, format!("cannot write {}: {error}", path.display())))?;
    file.finish().map_err(failed)
}
