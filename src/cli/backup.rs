//! `ekko backup`

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::iter;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use serde::Serialize;

use crate::backup::{
    BackupError, BackupOptions, BackupSummary, SourceFormat, TrackedChanges, Tracking, back_up,
};
use crate::cli::args::{BackupArgs, CbtArgs};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::progress::Console;
use crate::cli::{Outcome, format};
use crate::error::ErrorKind;
use crate::image::{
    ChangeList, ImageError, ImageOptions, OpenImage, Reading, is_remote, open_image, source_use,
};
use crate::manifest::ImageName;
use crate::pace::Pace;
use crate::progress::{Notice, Progress};
use crate::repository::{InitOptions, Repository, RepositoryError, SharedWriter, Which};
use crate::segment::Fingerprint;

/// The longest list of changes, in bytes.
const LIST_LIMIT: u64 = 1 << 30;

#[derive(Serialize)]
struct Document {
    created_repository: bool,
    backups: Vec<Done>,
    failed: Vec<Failed>,
}

#[derive(Serialize)]
struct Done {
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
    #[serde(skip_serializing_if = "Option::is_none")]
    cbt: Option<Cbt>,
    seconds: f64,
}

/// What came of a list of changes.
#[derive(Serialize)]
struct Cbt {
    kind: &'static str,
    audited_segments: u64,
    /// Why the whole disk was read all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    full_read: Option<String>,
    /// Backups that are suspect now, because the list was wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    suspects: Vec<u32>,
}

#[derive(Serialize)]
struct Failed {
    source: String,
    error: String,
}

/// A source and the name it is backed up under.
struct Source {
    name: ImageName,
    path: PathBuf,
}

/// Reads `[NAME=]SOURCE`. A path that begins with `/`, `./` or `../` has no name before it, so that paths
/// with `=` in them can be said.
fn source(text: &str) -> Result<Source, CliError> {
    let is_path = ["/", "./", "../"].iter().any(|begin| text.starts_with(begin));
    if is_remote(Path::new(text)) {
        let message = format!("what is no path needs a name of its own: NAME={text}");
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    let invalid = |error: &dyn std::fmt::Display| CliError::new(ErrorKind::Invalid, error.to_string());
    if let Some((name, path)) = text.split_once('=').filter(|_| !is_path) {
        let name = ImageName::new(name).map_err(|error| invalid(&error))?;
        return Ok(Source { name, path: PathBuf::from(path) });
    }
    let file_name = Path::new(text).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = ImageName::new(file_name)
        .map_err(|error| invalid(&format!("{error}; give it one with NAME={text}")))?;
    Ok(Source { name, path: PathBuf::from(text) })
}

pub(super) fn run(args: &BackupArgs, context: &Context) -> Result<Outcome, CliError> {
    let sources = args.sources.iter().map(|text| source(text)).collect::<Result<Vec<_>, _>>()?;
    let mut names = HashSet::new();
    if let Some(twice) = sources.iter().find(|source| !names.insert(&source.name)) {
        let message = format!("the name {} is given twice: each source needs its own", twice.name);
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    // Opened before the repository is touched: none is made for a run that could not back anything up.
    let reading = if args.direct { Reading::Direct } else { Reading::Cached };
    let options = ImageOptions { bitmap: args.cbt.bitmap.clone(), ..args.image.options(reading) };
    let opened: Vec<_> = sources.iter().map(|source| (source, open_image(&source.path, &options))).collect();
    let wanted = args.cbt.cbt.is_some() || args.cbt.bitmap.is_some();
    let changes = match (wanted, opened.as_slice()) {
        (false, _) | (true, [(_, Err(_))]) => None,
        (true, [(_, Ok(image))]) => Some(Arc::new(changes(image, &args.cbt, context)?)),
        (true, _) => {
            let message = "--cbt and --bitmap are of one disk: name one source";
            return Err(CliError::new(ErrorKind::Invalid, message));
        }
    };
    let (created_repository, writer) = if opened.iter().any(|(_, image)| image.is_ok()) {
        let (created, writer) = open_or_create(&InitOptions::default(), args.jobs(), context)?;
        (created, Some(writer))
    } else {
        (false, None)
    };
    let mut was_wrong = false;
    let mut document = Document { created_repository, backups: Vec::new(), failed: Vec::new() };
    let results = match &writer {
        Some(writer) => back_up_all(writer, &opened, changes.as_ref(), args, context.progress()),
        None => Vec::new(),
    };
    for ((source, image), result) in
        opened.into_iter().zip(results.into_iter().chain(iter::repeat_with(|| None)))
    {
        match (image, result) {
            (Err(error), _) => document.failed.push(failed(source, &error.into(), context)),
            (Ok(_), None) => {}
            (Ok(image), Some(Ok(summary))) => {
                was_wrong |= summary.tracking.as_ref().is_some_and(Tracking::was_wrong);
                document.backups.push(done(source, &image, &summary));
            }
            (Ok(_), Some(Err(error))) => document.failed.push(failed(source, &error, context)),
        }
    }
    if let Some(writer) = writer
        && let Err(error) = writer.close()
    {
        // Every backup above is durable; the next opening checks the index. If a failure is the reason, it has
        // been told already.
        tracing::info!(%error, "the repository was not closed in order");
    }
    context.print(&document, |out| {
        document.backups.iter().try_for_each(|done| {
            writeln!(
                out,
                "{}: {} in {} segments: {} new ({}, stored as {}), {} deduplicated, {} unchanged, {} zero; {:.1} s",
                done.backup,
                format::bytes(done.size_of_disk),
                done.segments,
                done.new_segments,
                format::bytes(done.new_bytes),
                format::bytes(done.stored_bytes),
                done.deduplicated_segments,
                done.unchanged_segments,
                done.zero_segments,
                done.seconds,
            )?;
            if done.resumed_segments > 0 {
                let (backup, segments) = (&done.backup, done.resumed_segments);
                writeln!(out, "{backup}: {segments} segments were there from a backup that was cut off")?;
            }
            let Some(Cbt { kind, audited_segments, full_read, .. }) = &done.cbt else { return Ok(()) };
            match full_read {
                None => writeln!(out, "{}: read by its {kind}, {audited_segments} segments compared", done.backup)?,
                Some(why) => writeln!(out, "{}: the whole disk was read: {why}", done.backup)?,
            }
            Ok(())
        })
    })?;
    Ok(match (document.failed.is_empty(), document.backups.is_empty()) {
        (true, _) if context.progress().saw_problems() || was_wrong => Outcome::Problems,
        (true, _) => Outcome::Done,
        (false, false) => Outcome::Problems,
        (false, true) => Outcome::Failed,
    })
}

/// Reads the list of changes of an image, unless a server has told them.
fn changes(image: &OpenImage, args: &CbtArgs, context: &Context) -> Result<TrackedChanges, CliError> {
    let (list, id) = match (&args.cbt, &args.bitmap, &image.changes) {
        (Some(path), _, _) => {
            let (list, fingerprint) = identified_list(path, image.image.size())?;
            (list, format!("blake3:{fingerprint}"))
        }
        (None, Some(bitmap), Some(list)) => (list.clone(), bitmap.clone()),
        _ => return Err(CliError::new(ErrorKind::Invalid, "nobody says what changed")),
    };
    let base = match &args.cbt_base {
        None => None,
        Some(selector) if selector.which == Which::Latest => {
            let message =
                format!("--cbt-base {selector}: say its number, for the newest may be another by now");
            return Err(CliError::new(ErrorKind::Invalid, message));
        }
        Some(selector) => {
            let repository = context.open()?;
            let (sets, _) = repository.backupsets()?;
            let (set, backup) = repository.find(&sets, selector)?;
            Some((set.id, backup.incremental))
        }
    };
    let id = args.cbt_id.clone().unwrap_or(id);
    Ok(TrackedChanges { list, base, id, audit: args.cbt_audit, fallback: args.cbt_fallback })
}

/// Reads a list of changes of a disk of `size` bytes.
pub(super) fn read_list(path: &Path, size: u64) -> Result<ChangeList, CliError> {
    Ok(identified_list(path, size)?.0)
}

/// The same, with the list's BLAKE3.
fn identified_list(path: &Path, size: u64) -> Result<(ChangeList, Fingerprint), CliError> {
    let invalid = |what: &dyn std::fmt::Display| {
        CliError::new(ErrorKind::Invalid, format!("the list of changes {}: {what}", path.display()))
    };
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LIST_LIMIT + 1).read_to_end(&mut bytes));
    read.map_err(|error| CliError::new(ErrorKind::Io, format!("cannot read {}: {error}", path.display())))?;
    if bytes.len() as u64 > LIST_LIMIT {
        return Err(invalid(&"it has more than 1 GiB"));
    }
    let list = ChangeList::parse(&bytes, size).map_err(|error| invalid(&error))?;
    Ok((list, Fingerprint::of(&bytes)))
}

/// Backs all sources up that could be opened, several at once. Returns what came of each, in their order.
fn back_up_all(
    writer: &SharedWriter,
    opened: &[(&Source, Result<OpenImage, ImageError>)],
    changes: Option<&Arc<TrackedChanges>>,
    args: &BackupArgs,
    progress: &Console,
) -> Vec<Option<Result<BackupSummary, BackupError>>> {
    let pace = Arc::new(Pace::new(args.jobs(), args.limit_rate));
    let options = |image: &OpenImage, in_use: Option<String>| BackupOptions {
        compression: args.compression.unwrap_or_else(|| writer.repository().compression()),
        jobs: args.jobs(),
        tags: args.tags.clone(),
        format: SourceFormat { format: image.format, recognised: image.recognised },
        in_use,
        changes: changes.cloned(),
        pace: Some(Arc::clone(&pace)),
    };
    let results: Vec<_> = opened.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..usize::from(args.at_once).min(opened.len()) {
            scope.spawn(|| {
                while let Some(((source, image), result)) =
                    opened.iter().zip(&results).nth(next.fetch_add(1, Ordering::Relaxed))
                {
                    let Ok(image) = image else { continue };
                    let in_use = source_use(&source.path);
                    if let Some(how) = in_use.clone() {
                        progress.notice(Notice::SourceInUse { path: source.path.clone(), how });
                    }
                    // Each is taken by one thread, so nothing is there yet.
                    let _ = result.set(back_up(
                        writer,
                        &source.name,
                        image.image.as_ref(),
                        &options(image, in_use),
                        progress,
                    ));
                }
            });
        }
    });
    results.into_iter().map(OnceLock::into_inner).collect()
}

/// Opens the repository for writing, or makes it first if its folder does not exist. Says whether it did.
pub(super) fn open_or_create(
    init: &InitOptions,
    jobs: usize,
    context: &Context,
) -> Result<(bool, SharedWriter), CliError> {
    let path = context.repository_path()?;
    let created = match Repository::open(path) {
        Ok(_) => false,
        Err(RepositoryError::NotFound { .. }) => {
            Repository::init(path, init)?;
            context.progress().line(&format!("made the repository {}", path.display()));
            true
        }
        Err(error) => return Err(error.into()),
    };
    Ok((created, context.open_shared(jobs)?))
}

fn done(source: &Source, image: &OpenImage, summary: &BackupSummary) -> Done {
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
        format: image.format.name(),
        cbt: tracking.as_ref().map(|Tracking { kind, full_read, suspects }| Cbt {
            kind: kind.name(),
            audited_segments: stats.audited_segments,
            full_read: full_read.as_ref().map(ToString::to_string),
            suspects: suspects.iter().map(|number| number.0).collect(),
        }),
        seconds: elapsed.as_secs_f64(),
    }
}

fn failed(source: &Source, error: &BackupError, context: &Context) -> Failed {
    if !context.json {
        context.progress().line(&format!("{} was not backed up: {error}", source.name));
    }
    Failed { source: source.path.display().to_string(), error: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_told_apart() {
        let read = |text| source(text).ok().map(|it| (it.name.to_string(), it.path.display().to_string()));
        let pair = |name: &str, path: &str| Some((name.to_owned(), path.to_owned()));
        assert_eq!(read("web=/dev/vg/web"), pair("web", "/dev/vg/web"));
        assert_eq!(read("web/vda=a=b"), pair("web/vda", "a=b"));
        assert_eq!(read("/srv/a=b/disk.raw"), pair("disk.raw", "/srv/a=b/disk.raw"));
        assert_eq!(read("./x=y"), None, "its file name has a = in it, so it needs a name");
        assert_eq!(read("disk.raw"), pair("disk.raw", "disk.raw"));
        assert_eq!(read("a@b=disk"), None);
        assert_eq!(read("/"), None);
    }
}
