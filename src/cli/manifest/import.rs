//! `ekko manifest import`

use std::path::Path;

use serde::Serialize;

use crate::cli::args::ImportArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::manifest::check_output;
use crate::cli::{Outcome, format};
use crate::error::ErrorKind;
use crate::exchange::{ImportOptions, ImportSummary, import_backup};
use crate::manifest::foreign::{self, ManifestFormat};
use crate::manifest::{ImageName, ManifestReader};
use crate::storage::private_folder;

#[derive(Serialize)]
struct Imported {
    backup: String,
    backupset: String,
    incremental: u32,
    timestamp: String,
    segments: u64,
    deduplicated_segments: u64,
    new_segments: u64,
    stored_bytes: u64,
}

#[derive(Serialize)]
struct Converted {
    file: String,
    segments: u32,
    bytes: u64,
}

pub(super) fn run(args: &ImportArgs, context: &Context) -> Result<Outcome, CliError> {
    let format = ManifestFormat::of(&args.file)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => name_of(&args.file)?,
    };
    if let Some(output) = &args.output {
        check_output(output, args.force, args.target_in_use)?;
        foreign::import(&args.file, format, &name, output, args.force, context.progress())?;
        return converted(output, context);
    }
    if format == ManifestFormat::Ekko {
        return into_repository(&ManifestReader::read(&args.file)?, &name, args, context);
    }
    // Turned into one of ours first, and checked on the way: the repository is not touched before.
    let failed = |error| CliError::new(ErrorKind::Io, format!("cannot make a temporary folder: {error}"));
    let folder = private_folder("ekko-", None).map_err(failed)?;
    let path = folder.path().join("manifest");
    foreign::import(&args.file, format, &name, &path, false, context.progress())?;
    into_repository(&ManifestReader::read(&path)?, &name, args, context)
}

fn name_of(file: &Path) -> Result<ImageName, CliError> {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    ImageName::new(stem).map_err(|error| {
        CliError::new(ErrorKind::Invalid, format!("{error}; give it another one with --name NAME"))
    })
}

fn converted(output: &Path, context: &Context) -> Result<Outcome, CliError> {
    let manifest = ManifestReader::read(output)?;
    let document = Converted {
        file: output.display().to_string(),
        segments: manifest.present(),
        bytes: manifest.file_size(),
    };
    context.print(&document, |out| {
        let Converted { file, segments, bytes } = &document;
        writeln!(out, "imported {segments} segments to {file}, {}", format::bytes(*bytes))
    })?;
    Ok(Outcome::Done)
}

fn into_repository(
    manifest: &ManifestReader,
    name: &ImageName,
    args: &ImportArgs,
    context: &Context,
) -> Result<Outcome, CliError> {
    let jobs = args.jobs.number();
    if let Some(folder) = args.segments.as_deref().filter(|folder| !folder.is_dir()) {
        let message = format!("{} is no folder of segment files", folder.display());
        return Err(CliError::new(ErrorKind::NotFound, message));
    }
    let writer = context.open_shared(jobs)?;
    let options = ImportOptions {
        segments: args.segments.as_deref(),
        compression: args.compression.unwrap_or_else(|| writer.repository().compression()),
        jobs,
    };
    let result = import_backup(&writer, manifest, name, &options, context.progress());
    let closed = writer.close();
    let ImportSummary { backup, stats } = result?;
    closed?;
    let document = Imported {
        backup: backup.id.to_string(),
        backupset: backup.backupset.to_string(),
        incremental: backup.incremental.0,
        timestamp: backup.timestamp.to_string(),
        segments: stats.segments,
        deduplicated_segments: stats.deduplicated_segments,
        new_segments: stats.new_segments,
        stored_bytes: stats.stored_bytes,
    };
    context.print(&document, |out| {
        let Imported { backup, segments, new_segments, deduplicated_segments, .. } = &document;
        let stored = format::bytes(document.stored_bytes);
        writeln!(
            out,
            "{backup}: imported {segments} segments: {new_segments} new (stored as {stored}), \
             {deduplicated_segments} stored already",
        )
    })?;
    Ok(context.outcome())
}
