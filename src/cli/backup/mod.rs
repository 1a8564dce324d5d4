//! `ekko backup`

mod each;
mod failures;
mod hooks;
mod lists;
mod machine;
mod place;
mod report;
mod sources;

use std::path::Path;
use std::sync::Arc;

pub(super) use lists::read_list;

use crate::backup::{BackupOptions, SourceFormat, TrackedChanges};
use crate::cli::Outcome;
use crate::cli::args::BackupArgs;
use crate::cli::backup::hooks::Hooks;
use crate::cli::backup::place::Place;
use crate::cli::backup::report::{Document, Report};
use crate::cli::backup::sources::{Source, sources};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::limits;
use crate::cli::progress::Console;
use crate::error::ErrorKind;
use crate::image::{Format, Lookout, OpenImage};
use crate::manifest::{HostName, SourceName, SourceOrigin, SourceUse};
use crate::pace::Pace;
use crate::progress::{Notice, Progress};

pub(super) fn run(args: &BackupArgs, context: &Context) -> Result<Outcome, CliError> {
    let sources = sources(&args.sources)?;
    machine::check_names(&args.machine, &sources)?;
    args.tags()?;
    limits::raise_descriptors();
    if let Some(why) = limits::too_little_memory(args.jobs()) {
        let error = CliError::new(ErrorKind::Io, format!("cannot back up: {why}"));
        return Err(tell(error, &sources, args, context));
    }
    let console = context.progress();
    let hooks = Hooks::new(&args.machine, console);
    let report = Report::new(sources.len(), context);
    console.expect(sources.iter().map(|source| (source.name.to_string(), source.estimate())));
    let done = back_up_sources(&sources, args, &hooks, &report, context);
    console.expect_no_more();
    // What was not let go yet is not open any longer.
    hooks.after(done.as_ref().is_ok_and(|done| done.document.failed.is_empty()));
    let ran = done.map_err(|error| tell(error, &sources, args, context))?;
    // A service may be slow to take a report: the person learns first what failed.
    let printed = report.finish(&ran.document, hooks.is_stopped());
    let done = Ok(ran);
    failures::record(&sources, args.machine.machine.as_ref(), &done, context);
    let Ran { document, was_wrong } = done?;
    let outcome = match (document.failed.is_empty(), document.backups.is_empty()) {
        _ if hooks.is_stopped() => Outcome::Failed,
        (true, _) if console.saw_problems() || was_wrong || hooks.failed() => Outcome::Problems,
        (true, _) => Outcome::Done,
        (false, false) => Outcome::Problems,
        (false, true) => Outcome::Failed,
    };
    // A reader that has gone takes nothing from what was found.
    if outcome == Outcome::Done {
        printed?;
    }
    Ok(outcome)
}

/// Tells why the whole call failed, and then records it.
fn tell(error: CliError, sources: &[Source], args: &BackupArgs, context: &Context) -> CliError {
    context.fail(&error);
    let code = error.exit_code();
    failures::record(sources, args.machine.machine.as_ref(), &Err(error), context);
    CliError::Told { code }
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
    report: &Report<'_>,
    context: &Context,
) -> Result<Ran, CliError> {
    let mut place = Place::there(context)?;
    if place.is_none() && hooks.are_there() {
        // Waiting for the repository must not keep the machine frozen.
        Place::or_here(&mut place, args, context)?;
    } else if place.is_none() {
        // A missing repository is reported before anything is read.
        context.open()?;
    }
    let ran = begin(sources, &mut place, args, hooks, report, context);
    if let Some(place) = place {
        place.close();
    }
    ran
}

fn begin(
    sources: &[Source],
    place: &mut Option<Place>,
    args: &BackupArgs,
    hooks: &Hooks<'_>,
    report: &Report<'_>,
    context: &Context,
) -> Result<Ran, CliError> {
    hooks.before()?;
    match &args.machine.machine {
        Some(name) => machine::back_up(name, sources, place, args, hooks, report, context),
        None => each::back_up_each(sources, place, args, hooks, report, context),
    }
}

/// How all sources are backed up.
struct How<'a> {
    place: &'a Place,
    args: &'a BackupArgs,
    hooks: &'a Hooks<'a>,
    pace: Arc<Pace>,
    lookout: Arc<Lookout>,
}

impl<'a> How<'a> {
    fn new(place: &'a Place, args: &'a BackupArgs, hooks: &'a Hooks<'a>) -> Self {
        Self {
            place,
            args,
            hooks,
            pace: Arc::new(Pace::new(args.jobs(), args.limit_rate)),
            lookout: Arc::default(),
        }
    }

    /// Returns how a source is backed up, and warns of who else uses it.
    fn options(
        &self,
        source: &Source,
        image: &OpenImage,
        changes: Option<Arc<TrackedChanges>>,
        progress: &Console,
    ) -> BackupOptions {
        let in_use = self.lookout.source_use(&source.path);
        if let Some(how) = in_use.clone() {
            progress.notice(Notice::SourceInUse { path: source.path.clone(), how });
        }
        if let Some(it) = image.looks_like {
            let (path, what) = (source.path.clone(), it.called());
            progress.notice(Notice::LooksLike { path, what, format: it.format().map(Format::name) });
        }
        let format = source_format(image);
        let in_use = in_use.as_deref().map(SourceUse::of_this_machine);
        BackupOptions {
            format,
            in_use,
            origin: origin(&source.path),
            // A snapshot in a qcow2 image does not change, whoever has the image open.
            stands_still: self.args.machine.before.is_some() || self.args.image.snapshot.is_some(),
            skip_bad_sectors: self.args.skip_bad_sectors,
            lookout: Arc::clone(&self.lookout),
            changes,
            stop: vec![self.hooks.stop()],
            ..self.plain_options()
        }
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

/// Returns what is written down of a source and this machine.
fn origin(source: &Path) -> SourceOrigin {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    SourceOrigin {
        source: Some(SourceName::of_this_machine(&without_credentials(&source.to_string_lossy()))),
        host: host.map(|host| HostName::of_this_machine(host.trim())),
    }
}

/// Takes the user, the password and the keys out of the name of a source.
fn without_credentials(source: &str) -> String {
    if let Some((scheme, rest)) = source.split_once("://") {
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        return format!("{scheme}://{host}{path}");
    }
    // The options of QEMU's RBD driver follow the image, with colons between them.
    match source.strip_prefix("rbd:") {
        Some(image) => format!("rbd:{}", image.split(':').next().unwrap_or_default()),
        None => source.to_owned(),
    }
}

fn source_format(image: &OpenImage) -> SourceFormat {
    let OpenImage { format, recognised, looks_like, .. } = *image;
    SourceFormat { format, recognised, looks_like }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_of_a_source_has_no_credentials() {
        for (source, written) in [
            ("/dev/vg/web", "/dev/vg/web"),
            ("nbd://host:10809/web", "nbd://host:10809/web"),
            ("nbd://user:secret@host/web@1", "nbd://host/web@1"),
            ("nbd+unix:///web?socket=/run/x", "nbd+unix:///web?socket=/run/x"),
            ("rbd:pool/web@snap:id=admin:key=AQB0", "rbd:pool/web@snap"),
        ] {
            assert_eq!(without_credentials(source), written);
        }
    }
}
