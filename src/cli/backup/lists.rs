//! Lists of changes that are given by a file or a server.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::backup::TrackedChanges;
use crate::cli::args::CbtArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::error::ErrorKind;
use crate::image::{ChangeList, OpenImage};
use crate::machine::{Moment, is_moment};
use crate::manifest::{BackupsetId, ImageName, Incremental, TrackingId};
use crate::progress::Silent;
use crate::repository::Which;
use crate::segment::Fingerprint;

/// The longest list of changes, in bytes.
const LIST_LIMIT: u64 = 1 << 30;

/// Reads the list of changes of the image of `name`, unless a server has told them.
pub(super) fn changes(
    name: &ImageName,
    image: &OpenImage,
    args: &CbtArgs,
    context: &Context,
) -> Result<TrackedChanges, CliError> {
    let (list, id) = match (&args.cbt, &args.bitmap, &image.changes) {
        (Some(path), _, _) => {
            let (list, fingerprint) = identified_list(path, image.image.size())?;
            (list, format!("blake3:{fingerprint}"))
        }
        (None, Some(bitmap), Some(list)) => (list.clone(), bitmap.clone()),
        _ => return Err(CliError::new(ErrorKind::Invalid, "nobody says what changed")),
    };
    let base = base(name, args, context)?;
    let id = args.cbt_id.clone().unwrap_or(id);
    let id = TrackingId::new(id);
    let id = id.map_err(|error| CliError::new(ErrorKind::Invalid, error.to_string()))?;
    Ok(TrackedChanges { list, base, id, audit: args.cbt_audit, fallback: args.cbt_fallback })
}

/// Returns since which backup the changes are: the one that was named, or, of a machine's moment, that of the disk `name`.
fn base(
    name: &ImageName,
    args: &CbtArgs,
    context: &Context,
) -> Result<Option<(BackupsetId, Incremental)>, CliError> {
    let Some(selector) = &args.cbt_base else { return Ok(None) };
    if selector.which == Which::Latest {
        let message = format!("--cbt-base {selector}: say its number, for the newest may be another by now");
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    let repository = context.open()?;
    let (sets, _) = repository.backupsets()?;
    let (set, backup) = repository.find(&sets, selector)?;
    let manifest = repository.manifest(set, backup)?;
    if !is_moment(manifest.info()) {
        return Ok(Some((set.id, backup.incremental)));
    }
    let moment = Moment::read(&repository, &manifest, &Silent)?;
    match moment.disks.iter().find(|disk| disk.name == *name) {
        Some(disk) => Ok(Some((disk.backupset, disk.incremental))),
        None => Err(CliError::new(ErrorKind::Invalid, format!("{selector} has no disk {name}"))),
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
