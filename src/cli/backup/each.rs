//! Disks that have nothing to do with each other: each source is opened when its turn comes, and each result is printed when
//! its disk is done.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::backup::{TrackedChanges, Tracking};
use crate::cli::args::BackupArgs;
use crate::cli::backup::hooks::Hooks;
use crate::cli::backup::place::Place;
use crate::cli::backup::report::{About, Document, Done, Failed, Report, done};
use crate::cli::backup::sources::Source;
use crate::cli::backup::{How, Ran, lists};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::error::ErrorKind;
use crate::image::OpenImage;
use crate::pace::on_threads;

/// What came of a source.
enum Fate {
    Done {
        done: Box<Done>,
        /// Whether its list of changes was wrong.
        was_wrong: bool,
    },
    Failed(Failed),
}

/// Whose turn is next. The image of the first is open already.
struct Turns(Mutex<(usize, Option<OpenImage>)>);

impl Turns {
    fn next(&self) -> (usize, Option<OpenImage>) {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = next.0;
        next.0 += 1;
        (number, next.1.take())
    }
}

/// Opens each source when its turn comes and backs it up, several at once.
///
/// The repository is opened when a source could be: if none can, nothing is done to it.
pub(super) fn back_up_each(
    sources: &[Source],
    place: &mut Option<Place>,
    args: &BackupArgs,
    hooks: &Hooks<'_>,
    report: &Report<'_>,
    context: &Context,
) -> Result<Ran, CliError> {
    let has_list = args.cbt.cbt.is_some() || args.cbt.bitmap.is_some();
    if has_list && sources.len() > 1 {
        return Err(CliError::new(ErrorKind::Invalid, lists::OF_ONE_DISK));
    }
    let mut failed = Vec::new();
    let mut first = None;
    for (number, source) in sources.iter().enumerate() {
        match lists::open(&source.path, &args.image_options(), &args.cbt) {
            Ok(image) => {
                first = Some((number, image));
                break;
            }
            Err(error) => failed.push(report.failed(source, &error)),
        }
    }
    let Some((number, first)) = first else {
        return Ok(Ran { document: Document { failed, ..Document::default() }, was_wrong: false });
    };
    let changes = match sources.first().filter(|_| has_list) {
        Some(source) => Some(Arc::new(lists::changes(&source.name, &first, &args.cbt, context)?)),
        None => None,
    };
    let place = Place::or_here(place, args, context)?;
    if changes.is_some() {
        place.here()?;
    }
    let how = How::new(place, args, hooks);
    let fates: Vec<OnceLock<Fate>> = sources.iter().map(|_| OnceLock::new()).collect();
    let turns = Turns(Mutex::new((number, Some(first))));
    on_threads(usize::from(args.at_once).min(sources.len() - number), "ekko-disk", || {
        while !hooks.is_stopped() {
            let (number, image) = turns.next();
            let Some((source, fate)) = sources.get(number).zip(fates.get(number)) else { break };
            // Each is taken by one thread, so nothing is there yet.
            let _ = fate.set(back_up_one(source, image, changes.clone(), &how, report, context));
        }
    });
    let (mut document, mut was_wrong) = (Document { failed, ..Document::default() }, false);
    for (source, fate) in sources.iter().zip(fates).skip(number) {
        match fate.into_inner() {
            Some(Fate::Done { done, was_wrong: wrong }) => {
                was_wrong |= wrong;
                document.backups.push(*done);
            }
            Some(Fate::Failed(failed)) => document.failed.push(failed),
            None => document.failed.push(Failed::of(source, &"stopped before it began")),
        }
    }
    Ok(Ran { document, was_wrong })
}

/// Backs one source up, and prints what came of it. It is closed when this returns.
fn back_up_one(
    source: &Source,
    image: Option<OpenImage>,
    changes: Option<Arc<TrackedChanges>>,
    how: &How<'_>,
    report: &Report<'_>,
    context: &Context,
) -> Fate {
    let progress = context.progress();
    let _shown = progress.disk(source.name.as_str());
    let image = match image {
        Some(image) => image,
        None => match lists::open(&source.path, &how.args.image_options(), &how.args.cbt) {
            Ok(image) => image,
            Err(error) => return Fate::Failed(report.failed(source, &error)),
        },
    };
    let options = how.options(source, &image, changes, progress);
    let image = image.image;
    match how.place.back_up(&source.name, image.as_ref(), how.args.compression, &options, progress) {
        Ok(summary) => {
            drop(image);
            let was_wrong = summary.tracking.as_ref().is_some_and(Tracking::was_wrong);
            let done = Box::new(done(source, &About::of(&options), &summary));
            report.done(&done);
            Fate::Done { done, was_wrong }
        }
        Err(error) => Fate::Failed(report.failed(source, &error)),
    }
}
