//! Lists of changes that are given by a file or a server.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::backup::{ChangesBase, TrackedChanges};
use crate::cli::args::CbtArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::error::ErrorKind;
use crate::image::{ChangeList, ImageError, ImageOptions, OpenImage, open_image};
use crate::machine::{Moment, is_moment};
use crate::manifest::{ImageName, TrackingId};
use crate::progress::Silent;
use crate::repository::Which;
use crate::segment::Fingerprint;

/// The longest list of changes, in bytes.
const LIST_LIMIT: u64 = 1 << 30;

/// What a person does who wants a backup all the same.
const HINT: &str = "add --cbt-fallback to read the whole disk";

/// Why a list is not taken for several disks.
pub(super) const OF_ONE_DISK: &str =
    "--cbt and --bitmap are of one disk: name one source, or --bitmap the disks of one --machine";

/// Opens a source. With `--cbt-fallback`, one that has not the bitmap is opened all the same.
pub(super) fn open(path: &Path, options: &ImageOptions, args: &CbtArgs) -> Result<OpenImage, ImageError> {
    let mut opened = open_image(path, options)?;
    match opened.changes.take() {
        Some(Err(error)) if !args.cbt_fallback => Err(ImageError::Untracked { source: error.into() }),
        changes => Ok(OpenImage { changes, ..opened }),
    }
}

/// Returns what is said of the changes of the image of `name`, by a list or by its server.
///
/// # Errors
///
/// If that is nothing, and the disk is not to be read in full then.
pub(super) fn changes(
    name: &ImageName,
    image: &OpenImage,
    args: &CbtArgs,
    context: &Context,
) -> Result<TrackedChanges, CliError> {
    let (list, id) = match (&args.cbt, &args.bitmap, &image.changes) {
        (Some(path), _, _) => match identified_list(path, image.image.size()) {
            Ok((list, fingerprint)) => (Ok(list), format!("blake3:{fingerprint}")),
            Err(error) => (Err(without(error, args)?), "none".to_owned()),
        },
        (None, Some(bitmap), Some(list)) => {
            let list = match list {
                Ok(list) => Ok(list.clone()),
                Err(error) => Err(error.to_string()),
            };
            (list, bitmap.clone())
        }
        _ => return Err(CliError::new(ErrorKind::Invalid, "nobody says what changed")),
    };
    let base = base(name, args, context)?;
    let id = args.cbt_id.clone().unwrap_or(id);
    let id = TrackingId::new(id);
    let id = id.map_err(|error| CliError::new(ErrorKind::Invalid, error.to_string()))?;
    let overlaid = image.overlaid.clone();
    Ok(TrackedChanges { list, base, id, overlaid, audit: args.cbt_audit, fallback: args.cbt_fallback })
}

/// Returns why there is no list or no base, if the disk is to be read in full then.
fn without(error: CliError, args: &CbtArgs) -> Result<String, CliError> {
    match error {
        CliError::Failed { message, .. } if args.cbt_fallback => Ok(message),
        CliError::Failed { kind, message } => Err(CliError::new(kind, format!("{message}; {HINT}"))),
        CliError::BrokenPipe | CliError::Told { .. } => Err(error),
    }
}

/// Returns since which backup the changes are: the one that was named, or, of a machine's moment, that of the disk `name`.
fn base(name: &ImageName, args: &CbtArgs, context: &Context) -> Result<ChangesBase, CliError> {
    let Some(selector) = &args.cbt_base else { return Ok(ChangesBase::NotSaid) };
    if selector.which == Which::Latest {
        let message = format!("--cbt-base {selector}: say its number, for the newest may be another by now");
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    match named_base(name, args, context) {
        // A repository that cannot be opened or read takes no backup either.
        Err(CliError::Failed { kind: kind @ (ErrorKind::NotFound | ErrorKind::Corrupt), message }) => {
            let why = without(CliError::new(kind, message), args)?;
            Ok(ChangesBase::Missing { why })
        }
        other => other,
    }
}

fn named_base(name: &ImageName, args: &CbtArgs, context: &Context) -> Result<ChangesBase, CliError> {
    let Some(selector) = &args.cbt_base else { return Ok(ChangesBase::NotSaid) };
    let repository = context.open()?;
    let (sets, _) = repository.backupsets()?;
    let (set, backup) = repository.find(&sets, selector)?;
    let manifest = repository.manifest(set, backup)?;
    if !is_moment(manifest.info()) {
        return Ok(ChangesBase::Is(set.id, backup.incremental));
    }
    let moment = Moment::read(&repository, &manifest, &Silent)?;
    match moment.disks.iter().find(|disk| disk.name == *name) {
        Some(disk) => Ok(ChangesBase::Is(disk.backupset, disk.incremental)),
        None => Err(CliError::new(ErrorKind::NotFound, format!("{selector} has no disk {name}"))),
    }
}

/// Reads a list of changes of a disk of `size` bytes.
pub(in crate::cli) fn read_list(path: &Path, size: u64) -> Result<ChangeList, CliError> {
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
