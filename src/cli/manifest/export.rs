//! `ekko manifest export`

use serde::Serialize;

use crate::cli::args::{ExportArgs, Format};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::manifest::{Named, check_output, open_named, refuse_repository};
use crate::cli::{Outcome, restored};
use crate::error::ErrorKind;
use crate::exchange::{ExportOptions, ExportSummary, ForeignFormat, export_backup, export_file};

#[derive(Serialize)]
struct Document {
    file: String,
    format: &'static str,
    segments: u32,
    written_segment_files: u64,
    present_segment_files: u64,
    damaged: Vec<restored::Damaged>,
}

pub(super) fn run(args: &ExportArgs, context: &Context) -> Result<Outcome, CliError> {
    check_output(&args.out, args.force, args.target_in_use)?;
    let Named { manifest, repository } = open_named(&args.source, context)?;
    if let Some(folder) = &args.segments {
        refuse_repository(&folder.join(manifest.info().backupset.to_string()))?;
    }
    let (format, name) = match args.format {
        Format::Sqlite => (ForeignFormat::Sqlite, "sqlite"),
        Format::Osdk => (ForeignFormat::Osdk, "osdk"),
    };
    let options = ExportOptions {
        format,
        segments: args.segments.as_deref(),
        replace: args.force,
        jobs: args.jobs.number(),
    };
    let summary = match (&repository, &args.segments) {
        (Some(repository), _) => {
            export_backup(repository, &manifest, &args.out, &options, context.progress())?
        }
        (None, Some(_)) => {
            let message = format!("{} is a file and has no segments: name a backup", args.source);
            return Err(CliError::new(ErrorKind::Invalid, message));
        }
        (None, None) => {
            export_file(&manifest, &args.out, format, args.force, context.progress())?;
            ExportSummary::default()
        }
    };
    let document = Document {
        file: args.out.display().to_string(),
        format: name,
        segments: manifest.present(),
        written_segment_files: summary.written_segments,
        present_segment_files: summary.present_segments,
        damaged: summary.damaged.into_iter().map(restored::Damaged::from).collect(),
    };
    restored::tell_damaged(&document.damaged, "has no file", context);
    context.print(&document, |out| {
        let Document { file, segments, .. } = &document;
        writeln!(out, "exported {segments} segments to {file}")?;
        if args.segments.is_some() {
            let (written, present) = (document.written_segment_files, document.present_segment_files);
            writeln!(out, "{written} segment files were written, {present} were there already")?;
        }
        Ok(())
    })?;
    let whole = document.damaged.is_empty() && !context.progress().saw_problems();
    Ok(if whole { Outcome::Done } else { Outcome::Problems })
}
