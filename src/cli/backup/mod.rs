//! `ekko backup`

mod hooks;
mod lists;
mod machine;
mod place;
mod report;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

pub(super) use lists::read_list;

use crate::backup::{BackupError, BackupOptions, BackupSummary, SourceFormat, TrackedChanges, Tracking};
use crate::cli::Outcome;
use crate::cli::args::BackupArgs;
use crate::cli::backup::hooks::Hooks;
use crate::cli::backup::place::Place;
use crate::cli::backup::report::{Document, done, failed};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::progress::Console;
use crate::error::ErrorKind;
use crate::image::{Format, ImageError, ImageOptions, OpenImage, Reading, is_remote, source_use};
use crate::manifest::{ImageName, SourceUse};
use crate::pace::Pace;
use crate::progress::{Notice, Progress};

/// A source, and what came of opening it.
type Opened<'a> = (&'a Source, Result<OpenImage, ImageError>);

/// A source and the name it is backed up under.
struct Source {
    name: ImageName,
    path: PathBuf,
}

/// Reads `[NAME=]SOURCE`. A path that begins with `/`, `./` or `../` has no name before it, so that paths
/// with `=` in them can be said.
fn source(text: &OsStr) -> Result<Source, CliError> {
    let bytes = text.as_bytes();
    let is_path = ["/", "./", "../"].iter().any(|begin| bytes.starts_with(begin.as_bytes()));
    if is_remote(Path::new(text)) {
        let message = format!("what is no path needs a name of its own: NAME={}", text.display());
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    let invalid = |error: &dyn std::fmt::Display| CliError::new(ErrorKind::Invalid, error.to_string());
    if let Some(at) = bytes.iter().position(|byte| *byte == b'=').filter(|_| !is_path) {
        let (name, path) = (bytes.get(..at).unwrap_or_default(), bytes.get(at + 1..).unwrap_or_default());
        let not_text = |_| invalid(&format!("the name in {} is not UTF-8", text.display()));
        let name = std::str::from_utf8(name).map_err(not_text)?;
        let name = ImageName::new(name).map_err(|error| invalid(&error))?;
        return Ok(Source { name, path: PathBuf::from(OsStr::from_bytes(path)) });
    }
    let file_name = Path::new(text).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = ImageName::new(file_name)
        .map_err(|error| invalid(&format!("{error}; give it one with NAME={}", text.display())))?;
    Ok(Source { name, path: PathBuf::from(text) })
}

pub(super) fn run(args: &BackupArgs, context: &Context) -> Result<Outcome, CliError> {
    let sources = args.sources.iter().map(|text| source(text)).collect::<Result<Vec<_>, _>>()?;
    let mut names = HashSet::new();
    if let Some(twice) = sources.iter().find(|source| !names.insert(&source.name)) {
        let message = format!("the name {} is given twice: each source needs its own", twice.name);
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    machine::check_names(&args.machine, &sources)?;
    args.tags()?;
    let hooks = Hooks::new(&args.machine, context.progress());
    let done = back_up_sources(&sources, args, &hooks, context);
    // What was not let go yet is not open any longer.
    hooks.after(done.as_ref().is_ok_and(|done| done.document.failed.is_empty()));
    let Ran { document, was_wrong } = done?;
    report::print(&document, context)?;
    Ok(match (document.failed.is_empty(), document.backups.is_empty()) {
        (true, _) if context.progress().saw_problems() || was_wrong || hooks.failed() => Outcome::Problems,
        (true, _) => Outcome::Done,
        (false, false) => Outcome::Problems,
        (false, true) => Outcome::Failed,
    })
}

/// What was done.
struct Ran {
    document: Document,
    /// Whether a list of changes was wrong.
    was_wrong: bool,
}

/// Runs the command before, opens the sources and backs them up; when this returns they are closed.
fn back_up_sources(
    sources: &[Source],
    args: &BackupArgs,
    hooks: &Hooks<'_>,
    context: &Context,
) -> Result<Ran, CliError> {
    let mut place = Place::there(context)?;
    if place.is_none() && hooks.are_there() {
        // Waiting for the repository must not keep the machine frozen.
        place = Some(Place::Here(Box::new(context.open_shared(args.jobs())?)));
    } else if place.is_none() {
        // A missing repository is reported before anything is read.
        context.open()?;
    }
    let ran = open_and_back_up(sources, &mut place, args, hooks, context);
    if let Some(place) = place {
        place.close();
    }
    ran
}

fn open_and_back_up(
    sources: &[Source],
    place: &mut Option<Place>,
    args: &BackupArgs,
    hooks: &Hooks<'_>,
    context: &Context,
) -> Result<Ran, CliError> {
    hooks.before()?;
    let attached = machine::read_attached(&args.machine)?;
    let reading = if args.direct { Reading::Direct } else { Reading::Cached };
    let options = ImageOptions { bitmap: args.cbt.bitmap.clone(), ..args.image.options(reading) };
    let opened: Vec<Opened<'_>> =
        sources.iter().map(|source| (source, lists::open(&source.path, &options, &args.cbt))).collect();
    let changes = changes(&opened, args, context)?;
    let mut document = Document { machine: None, backups: Vec::new(), failed: Vec::new() };
    let enough = if args.machine.machine.is_some() {
        opened.iter().all(|(_, image)| image.is_ok())
    } else {
        opened.iter().any(|(_, image)| image.is_ok())
    };
    if !enough {
        for (source, image) in opened {
            if let Err(error) = image {
                document.failed.push(failed(source, &error, context));
            }
        }
        return Ok(Ran { document, was_wrong: false });
    }
    let place = if let Some(place) = place {
        place
    } else {
        place.insert(Place::Here(Box::new(context.open_shared(args.jobs())?)))
    };
    if changes.iter().any(Option::is_some) {
        place.here()?;
    }
    let how = How { place, args, hooks, pace: Arc::new(Pace::new(args.jobs(), args.limit_rate)) };
    if let Some(name) = &args.machine.machine {
        return machine::back_up(name, opened, &changes, attached, &how, document, context);
    }
    let results = back_up_all(&how, &opened, &changes, context.progress());
    let mut was_wrong = false;
    for ((source, image), result) in opened.into_iter().zip(results) {
        match (image, result) {
            (Err(error), _) => document.failed.push(failed(source, &error, context)),
            (Ok(_), None) => {}
            (Ok(image), Some(Ok(summary))) => {
                was_wrong |= summary.tracking.as_ref().is_some_and(Tracking::was_wrong);
                document.backups.push(done(source, source_format(&image), &summary));
            }
            (Ok(_), Some(Err(error))) => document.failed.push(failed(source, &error, context)),
        }
    }
    Ok(Ran { document, was_wrong })
}

/// Returns what is said of the changes of each source, in their order: nothing, or something of each that could be opened.
fn changes(
    opened: &[Opened<'_>],
    args: &BackupArgs,
    context: &Context,
) -> Result<Vec<Option<Arc<TrackedChanges>>>, CliError> {
    // A bitmap has one name on all disks of a machine, whose moments say since when it counts.
    let of_several = args.cbt.bitmap.is_some() && args.machine.machine.is_some();
    if args.cbt.cbt.is_none() && args.cbt.bitmap.is_none() {
        return Ok(vec![None; opened.len()]);
    }
    if opened.len() > 1 && !of_several {
        let message =
            "--cbt and --bitmap are of one disk: name one source, or --bitmap the disks of one --machine";
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    let of = |(source, image): &Opened<'_>| match image {
        Ok(image) => Ok(Some(Arc::new(lists::changes(&source.name, image, &args.cbt, context)?))),
        Err(_) => Ok(None),
    };
    opened.iter().map(of).collect()
}

/// How all sources are backed up.
struct How<'a> {
    place: &'a Place,
    args: &'a BackupArgs,
    hooks: &'a Hooks<'a>,
    pace: Arc<Pace>,
}

impl How<'_> {
    /// Returns how a source is backed up, and warns of who else uses it.
    fn options(
        &self,
        source: &Source,
        image: &OpenImage,
        changes: Option<Arc<TrackedChanges>>,
        progress: &Console,
    ) -> BackupOptions {
        let in_use = source_use(&source.path);
        if let Some(how) = in_use.clone() {
            progress.notice(Notice::SourceInUse { path: source.path.clone(), how });
        }
        if let Some(it) = image.looks_like {
            let (path, what) = (source.path.clone(), it.called());
            progress.notice(Notice::LooksLike { path, what, format: it.format().map(Format::name) });
        }
        let format = source_format(image);
        let in_use = in_use.as_deref().map(SourceUse::of_this_machine);
        BackupOptions { format, in_use, changes, stop: vec![self.hooks.stop()], ..self.plain_options() }
    }

    /// Returns how what is no source is backed up.
    fn plain_options(&self) -> BackupOptions {
        let compression = self.place.compression(self.args.compression);
        BackupOptions {
            // Looked at before anything was opened.
            tags: self.args.tags().unwrap_or_default(),
            pace: Some(Arc::clone(&self.pace)),
            ..BackupOptions::new(compression, self.args.jobs())
        }
    }
}

fn source_format(image: &OpenImage) -> SourceFormat {
    let OpenImage { format, recognised, looks_like, .. } = *image;
    SourceFormat { format, recognised, looks_like }
}

/// Backs all sources up that could be opened, several at once. Returns what came of each, in their order.
fn back_up_all(
    how: &How<'_>,
    opened: &[Opened<'_>],
    changes: &[Option<Arc<TrackedChanges>>],
    progress: &Console,
) -> Vec<Option<Result<BackupSummary, BackupError>>> {
    let results: Vec<_> = opened.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..usize::from(how.args.at_once).min(opened.len()) {
            scope.spawn(|| {
                while let Some((((source, image), changes), result)) =
                    opened.iter().zip(changes).zip(&results).nth(next.fetch_add(1, Ordering::Relaxed))
                {
                    let Ok(image) = image else { continue };
                    let options = how.options(source, image, changes.clone(), progress);
                    // Each is taken by one thread, so nothing is there yet.
                    let _ = result.set(how.place.back_up(
                        &source.name,
                        image.image.as_ref(),
                        how.args.compression,
                        &options,
                        progress,
                    ));
                }
            });
        }
    });
    results.into_iter().map(OnceLock::into_inner).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_told_apart() {
        let read = |text: &str| {
            source(OsStr::new(text)).ok().map(|it| (it.name.to_string(), it.path.display().to_string()))
        };
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
