//! `ekko restore`

use std::path::Path;

use serde::Serialize;

use crate::check::{VerifyOptions, verify};
use crate::cli::args::{RestoreArgs, RestoreFormat};
use crate::cli::backup::read_list;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::restored::{Lacks, tell_flaws, words};
use crate::cli::signals::clean_up_after_signals;
use crate::cli::{Outcome, format, terminal};
use crate::error::ErrorKind;
use crate::image::{Format, ImageOptions, is_nbd, open_image};
use crate::machine::is_moment;
use crate::manifest::ManifestReader;
use crate::remote::RemoteRepository;
use crate::repository::{BackupId, Repository};
use crate::restore::{
    Cleanup, CleanupEntry, InPlaceRanges, RestoreError, RestoreOptions, TargetFormat, TargetPlan,
    plan_in_place, restore_in_place, restore_to_path, restore_to_stream,
};

#[derive(Serialize)]
struct Document {
    backup: String,
    target: String,
    complete: bool,
    segments: u64,
    written_bytes: u64,
    #[serde(flatten)]
    lacks: Lacks,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_backupset: Option<String>,
}

const QCOW2_TO_STDOUT: &str = "qcow2 cannot be written to stdout: name a file";

fn is_qcow2(args: &RestoreArgs) -> bool {
    args.format == Some(RestoreFormat::Qcow2)
}

/// Makes sure that all of a disk is restored if it becomes a qcow2 file.
fn refuse_part_of_qcow2(args: &RestoreArgs) -> Result<(), CliError> {
    let is_part = args.in_place || args.delta.is_some() || args.offset.is_some() || args.length.is_some();
    if is_qcow2(args) && is_part {
        let message = "cannot restore with --format qcow2: --in-place, --delta, --offset and --length write raw bytes; leave \
                       --format out";
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    Ok(())
}

/// Returns how a person wants a disk restored.
pub(super) fn options_of(args: &RestoreArgs) -> RestoreOptions {
    RestoreOptions {
        jobs: args.jobs.number(),
        force: args.force,
        target_in_use: args.target_in_use,
        ignore_space: args.ignore_space,
        keep_partial: args.keep_partial,
        format: match args.format {
            None => TargetFormat::Unsaid,
            Some(RestoreFormat::Raw) => TargetFormat::Raw,
            Some(RestoreFormat::Qcow2) => TargetFormat::Qcow2,
        },
        sync: !args.no_sync,
        range: None,
        limit: args.limit_rate,
        certificates: args.tls.tls_certificates.clone(),
        cleanup: Cleanup::default(),
    }
}

/// Returns the ranges in which a target is to be written: those that are said to have changed, or that differ.
fn differing(
    args: &RestoreArgs,
    target: &Path,
    repository: &Repository,
    manifest: &ManifestReader,
    context: &Context,
) -> Result<InPlaceRanges, CliError> {
    let certificates = args.tls.tls_certificates.clone();
    let options = ImageOptions { format: Some(Format::Raw), certificates, ..ImageOptions::default() };
    let image = open_image(target, &options)?.image;
    let size = manifest.info().geometry.size_of_disk();
    let Some(path) = &args.delta else {
        let options = VerifyOptions { jobs: args.jobs.number() };
        let found = verify(repository, manifest, image.as_ref(), &options, context.progress())?;
        if !found.unreadable.is_empty() {
            let ranges = words(found.unreadable.iter());
            let line = format!(
                "warning: the target cannot read {ranges}: Ekko writes every segment that this touches"
            );
            context.progress().line(&line);
        }
        // What nobody can say anything of is tried, and named as damaged.
        let differing = [found.differing, found.unknown].concat();
        return Ok(InPlaceRanges { differing, unreadable: found.unreadable });
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
    Ok(InPlaceRanges { differing: ranges, unreadable: Vec::new() })
}

/// A machine's archive is no disk: it never goes over one.
fn refuse_archive(args: &RestoreArgs, target: &Path, manifest: &ManifestReader) -> Result<(), CliError> {
    if !is_moment(manifest.info()) || target == Path::new("-") {
        return Ok(());
    }
    let over = args.in_place || args.delta.is_some() || args.over.is_some();
    let exists = is_nbd(target) || std::fs::symlink_metadata(target).is_ok();
    if over || exists || is_qcow2(args) {
        let (backup, target) = (&args.backup, target.display());
        let message = format!(
            "cannot restore {backup} to {target}: {backup} is a machine, and its archive is no disk; use --machine with a folder, \
             or with --to DISK=TARGET for each disk, or restore one disk ({}/DISK)",
            manifest.info().name
        );
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    Ok(())
}

/// Makes sure that stdout can take a disk, and returns what says that it is incomplete until then.
fn begin_stdout(args: &RestoreArgs, options: &RestoreOptions) -> Result<CleanupEntry, CliError> {
    if terminal::data_is_watched() {
        let backup = &args.backup;
        let message = format!(
            "cannot restore {backup} to a terminal: redirect stdout, for example to a program (| PROGRAM) or a file (> FILE)"
        );
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    let entry = options.cleanup.direct(Path::new("-"));
    entry.touch();
    Ok(entry)
}

/// Enters stdout as complete if the disk is restored.
fn complete_stdout<T>(entry: CleanupEntry, restored: Result<T, RestoreError>) -> Result<T, RestoreError> {
    let restored = restored?;
    entry.complete(|| Ok::<_, RestoreError>(()))?;
    Ok(restored)
}

pub(super) fn run(args: &RestoreArgs, context: &Context) -> Result<Outcome, CliError> {
    // The parser lets nothing else through.
    let target = args.target.as_deref().unwrap_or(Path::new("-"));
    let to_stdout = target == Path::new("-");
    if to_stdout {
        context.reserve_stdout();
    }
    refuse_part_of_qcow2(args)?;
    let mut options = options_of(args);
    clean_up_after_signals(options.cleanup.clone(), context)?;
    if let Some(remote) = context.network()? {
        return from_service(args, target, &remote, &options, context);
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
    refuse_archive(args, target, &manifest)?;
    let size = manifest.info().geometry.size_of_disk();
    options.range = (args.offset.is_some() || args.length.is_some()).then(|| {
        let start = args.offset.unwrap_or(0);
        start..args.length.map_or(size.max(start), |length| start.saturating_add(length))
    });
    let in_place = args.in_place || args.delta.is_some();
    if in_place && to_stdout {
        return Err(CliError::new(ErrorKind::Invalid, "stdout holds nothing that could be compared"));
    }
    if to_stdout && is_qcow2(args) {
        return Err(CliError::new(ErrorKind::Invalid, QCOW2_TO_STDOUT));
    }
    if args.over.is_some() {
        // Else it would be known after hours that somebody else has the repository.
        context.open_writer(1, false)?.close()?;
    }
    let name = BackupId::of(set, backup).to_string();
    tell_flaws(&manifest, &name, in_place, context);
    let progress = context.progress();
    let summary = if in_place {
        let plan = plan_in_place(&manifest, target, &options)?;
        if !options.ignore_space {
            TargetPlan::check_room([&plan])?;
        }
        let ranges = differing(args, target, &repository, &manifest, context)?;
        restore_in_place(&repository, &manifest, plan, &ranges, &options, progress)?
    } else if to_stdout {
        let entry = begin_stdout(args, &options)?;
        let mut stdout = terminal::data();
        let restored = restore_to_stream(&repository, &manifest, &mut stdout, &options, progress);
        complete_stdout(entry, restored)?
    } else {
        restore_to_path(&repository, &manifest, target, &options, progress)?
    };
    let (segments, written_bytes, seconds) =
        (summary.segments, summary.written_bytes, summary.elapsed.as_secs_f64());
    let lacks = Lacks::of(summary, &manifest, in_place);
    lacks.tell(None, context);
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
        backup: name,
        target: target.display().to_string(),
        complete: lacks.is_complete(),
        segments,
        written_bytes,
        lacks,
        seconds,
        new_backupset,
    };
    tell(&document, context)
}

/// Tells what a restore did; damaged segments have been named.
fn tell(document: &Document, context: &Context) -> Result<Outcome, CliError> {
    let Document { backup, target, seconds, complete, .. } = document;
    context.print(document, |out| {
        let written = format::bytes(document.written_bytes);
        let restored = format!("restored {backup} to {target}: {written} written in {seconds:.1} s");
        if let Some(never_read) = document.lacks.never_read() {
            writeln!(out, "{never_read}")?;
        }
        match document.lacks.words() {
            None => writeln!(out, "{restored}"),
            Some(lacks) => writeln!(out, "INCOMPLETE: {restored}, but {lacks}"),
        }
    })?;
    Ok(if *complete { Outcome::Done } else { Outcome::Problems })
}

/// Restores a backup that another host has.
fn from_service(
    args: &RestoreArgs,
    target: &Path,
    remote: &RemoteRepository,
    options: &RestoreOptions,
    context: &Context,
) -> Result<Outcome, CliError> {
    let part_of_disk = args.offset.is_some() || args.length.is_some();
    if args.in_place || args.delta.is_some() || args.over.is_some() || part_of_disk {
        let message = "a restore over the network is of a whole disk, to a new place";
        return Err(CliError::new(ErrorKind::Unsupported, message));
    }
    let to_stdout = target == Path::new("-");
    if to_stdout && is_qcow2(args) {
        return Err(CliError::new(ErrorKind::Invalid, QCOW2_TO_STDOUT));
    }
    let (name, manifest) = remote.named_manifest(&args.backup.to_string())?;
    refuse_archive(args, target, &manifest)?;
    tell_flaws(&manifest, &name, false, context);
    let summary = if to_stdout {
        let entry = begin_stdout(args, options)?;
        let mut stdout = terminal::data();
        let restored = remote.restore_to_stream(&manifest, &mut stdout, options, context.progress());
        complete_stdout(entry, restored)?
    } else {
        remote.restore(&manifest, target, options, context.progress())?
    };
    let (segments, written_bytes, seconds) =
        (summary.segments, summary.written_bytes, summary.elapsed.as_secs_f64());
    let lacks = Lacks::of(summary, &manifest, false);
    lacks.tell(None, context);
    let document = Document {
        backup: name,
        target: target.display().to_string(),
        complete: lacks.is_complete(),
        segments,
        written_bytes,
        lacks,
        seconds,
        new_backupset: None,
    };
    tell(&document, context)
}
