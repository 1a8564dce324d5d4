//! `ekko restore`

use std::ops::Range;
use std::path::Path;

use serde::Serialize;

use crate::check::{VerifyOptions, verify};
use crate::cli::args::RestoreArgs;
use crate::cli::backup::read_list;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::{Outcome, format, terminal};
use crate::error::ErrorKind;
use crate::image::{Format, ImageOptions, open_image};
use crate::manifest::ManifestReader;
use crate::remote::RemoteRepository;
use crate::repository::{Addressed, Repository};
use crate::restore::{DamagedSegment, RestoreOptions, restore_in_place, restore_to_path, restore_to_stream};

#[derive(Serialize)]
struct Document {
    backup: String,
    target: String,
    segments: u64,
    written_bytes: u64,
    damaged: Vec<Damaged>,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_backupset: Option<String>,
}

/// A segment that could not be had.
#[derive(Serialize)]
pub(super) struct Damaged {
    segment: u32,
    offset: u64,
    length: u64,
    error: String,
}

impl From<DamagedSegment> for Damaged {
    fn from(damaged: DamagedSegment) -> Self {
        let DamagedSegment { index, range, error } = damaged;
        Self { segment: index.0, offset: range.start, length: range.end - range.start, error }
    }
}

/// Tells of segments that could not be had, and what that means for each, unless a document does.
pub(super) fn tell_damaged(damaged: &[Damaged], means: &str, context: &Context) {
    if context.json {
        return;
    }
    for Damaged { segment, offset, length, error } in damaged {
        let line = format!("problem: segment {segment} ({length} bytes at {offset}) {means}: {error}");
        context.progress().line(&line);
    }
}

/// Returns the ranges in which a target is to be written: those that are said to have changed, or that differ.
fn differing(
    args: &RestoreArgs,
    repository: &Repository,
    manifest: &ManifestReader,
    context: &Context,
) -> Result<Vec<Range<u64>>, CliError> {
    let certificates = args.tls.tls_certificates.clone();
    let options = ImageOptions { format: Some(Format::Raw), certificates, ..ImageOptions::default() };
    let image = open_image(&args.target, &options)?.image;
    let size = manifest.info().geometry.size_of_disk();
    let Some(path) = &args.delta else {
        let options = VerifyOptions { jobs: args.jobs.number() };
        let found = verify(repository, manifest, image.as_ref(), &options, context.progress())?;
        // What nobody can say anything of is tried, and named as damaged.
        let mut ranges = [found.differing, found.unknown].concat();
        ranges.sort_unstable_by_key(|range| range.start);
        return Ok(ranges);
    };
    let list = read_list(path, image.size())?;
    if !list.kind().is_of_changes() {
        let message = format!(
            "{} is a {}, which says where data lies and not what changed",
            path.display(),
            list.kind()
        );
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    let mut ranges: Vec<_> = list.ranges().iter().map(|(range, _)| range.clone()).collect();
    // What the disk had and the target has not is not in any list of the target.
    if image.size() < size {
        ranges.push(image.size()..size);
    }
    Ok(ranges)
}

pub(super) fn run(args: &RestoreArgs, context: &Context) -> Result<Outcome, CliError> {
    let to_stdout = args.target == Path::new("-");
    if to_stdout {
        context.reserve_stdout();
    }
    if let Some(remote) = context.network()? {
        return from_service(args, &remote, context);
    }
    let repository = context.open()?;
    let (sets, problems) = repository.backupsets()?;
    for problem in problems {
        context.progress().line(&format!("problem: {problem}"));
    }
    let (set, backup) = repository.find(&sets, &args.backup)?;
    if let Some(name) = &args.over
        && set.name != *name
    {
        let message = format!("{} is a backup of {}, not of {name}", args.backup, set.name);
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    let manifest = repository.manifest(set, backup)?;
    let size = manifest.info().geometry.size_of_disk();
    let range = (args.offset.is_some() || args.length.is_some()).then(|| {
        let start = args.offset.unwrap_or(0);
        start..args.length.map_or(size.max(start), |length| start.saturating_add(length))
    });
    let options = RestoreOptions {
        jobs: args.jobs.number(),
        force: args.force,
        sync: !args.no_sync,
        range,
        limit: args.limit_rate,
        certificates: args.tls.tls_certificates.clone(),
    };
    let in_place = args.in_place || args.delta.is_some();
    if in_place && to_stdout {
        return Err(CliError::new(ErrorKind::Invalid, "stdout holds nothing that could be compared"));
    }
    if args.over.is_some() {
        // Else it would be known after hours that somebody else has the repository.
        context.open_writer(1, false)?.close()?;
    }
    let summary = if in_place {
        let ranges = differing(args, &repository, &manifest, context)?;
        restore_in_place(&repository, &manifest, &args.target, &ranges, &options, context.progress())?
    } else if to_stdout {
        let mut stdout = terminal::data();
        restore_to_stream(&repository, &manifest, &mut stdout, &options, context.progress())?
    } else {
        restore_to_path(&repository, &manifest, &args.target, &options, context.progress())?
    };
    let damaged: Vec<_> = summary.damaged.into_iter().map(Damaged::from).collect();
    tell_damaged(&damaged, if in_place { "is left as it was" } else { "is left zero" }, context);
    let begin_set = |name| {
        let writer = context.open_writer(1, false)?;
        let id = writer.begin_set_after_restore(name, set, backup.incremental)?;
        writer.close()?;
        Ok::<_, CliError>(id.to_string())
    };
    let new_backupset = args.over.as_ref().map(begin_set).transpose();
    let new_backupset =
        new_backupset.map_err(|error| error.after("the disk is restored, but no new backupset was begun"))?;
    let document = Document {
        backup: Addressed::of(&sets).backup_id(set, backup.incremental).to_string(),
        target: args.target.display().to_string(),
        segments: summary.segments,
        written_bytes: summary.written_bytes,
        damaged,
        seconds: summary.elapsed.as_secs_f64(),
        new_backupset,
    };
    tell(&document, context)
}

/// Tells what a restore did; damaged segments have been named.
fn tell(document: &Document, context: &Context) -> Result<Outcome, CliError> {
    context.print(document, |out| {
        writeln!(
            out,
            "restored {} to {}: {} written in {:.1} s",
            document.backup,
            document.target,
            format::bytes(document.written_bytes),
            document.seconds,
        )
    })?;
    Ok(if document.damaged.is_empty() { Outcome::Done } else { Outcome::Problems })
}

/// Restores a backup that another host has.
fn from_service(
    args: &RestoreArgs,
    remote: &RemoteRepository,
    context: &Context,
) -> Result<Outcome, CliError> {
    let part_of_disk = args.offset.is_some() || args.length.is_some();
    if args.in_place || args.delta.is_some() || args.over.is_some() || part_of_disk {
        let message = "a restore over the network is of a whole disk, to a new place";
        return Err(CliError::new(ErrorKind::Unsupported, message));
    }
    let backup = args.backup.to_string();
    let options = RestoreOptions {
        jobs: args.jobs.number(),
        force: args.force,
        sync: !args.no_sync,
        range: None,
        limit: args.limit_rate,
        certificates: args.tls.tls_certificates.clone(),
    };
    let (manifest, summary) = if args.target == Path::new("-") {
        remote.restore_to_stream(&backup, &mut terminal::data(), &options, context.progress())?
    } else {
        remote.restore(&backup, &args.target, &options, context.progress())?
    };
    let damaged: Vec<_> = summary.damaged.into_iter().map(Damaged::from).collect();
    tell_damaged(&damaged, "is left zero", context);
    let document = Document {
        backup: format!("{}@{}", args.backup.name, manifest.info().incremental),
        target: args.target.display().to_string(),
        segments: summary.segments,
        written_bytes: summary.written_bytes,
        damaged,
        seconds: summary.elapsed.as_secs_f64(),
        new_backupset: None,
    };
    tell(&document, context)
}
