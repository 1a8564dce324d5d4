//! `ekko backup --machine`

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::backup::{TrackedChanges, Tracking};
use crate::cli::args::{BackupArgs, CbtArgs, MachineArgs};
use crate::cli::backup::hooks::Hooks;
use crate::cli::backup::lists;
use crate::cli::backup::place::Place;
use crate::cli::backup::report::{About, Document, Machine, Report, done};
use crate::cli::backup::sources::Source;
use crate::cli::backup::{How, Ran};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::limits::too_few_descriptors;
use crate::error::ErrorKind;
use crate::image::OpenImage;
use crate::machine::{
    ATTACHED_LIMIT, Attachment, FileName, MachineBackup, MachineError, MachineOptions, MachineSource,
    back_up_machine, machine_files,
};
use crate::manifest::ImageName;

/// Returns the name of an attached file.
fn attached_name(path: &Path) -> Result<FileName, CliError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    FileName::new(name).map_err(|error| CliError::from(MachineError::from(error)))
}

/// Makes sure, before anything is done, that the sources can be disks of the machine.
pub(super) fn check_names(args: &MachineArgs, sources: &[Source]) -> Result<(), CliError> {
    let Some(machine) = &args.machine else { return Ok(()) };
    let attached = args.attach.iter().map(|path| attached_name(path)).collect::<Result<Vec<_>, _>>()?;
    machine_files(machine, sources.iter().map(|source| &source.name), attached.iter())?;
    Ok(())
}

/// Reads the attached files.
fn read_attached(args: &MachineArgs) -> Result<Vec<Attachment>, CliError> {
    let mut left = ATTACHED_LIMIT;
    let read = |path: &std::path::PathBuf| {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(left + 1).read_to_end(&mut bytes));
        let failed = |error| CliError::new(ErrorKind::Io, format!("cannot read {}: {error}", path.display()));
        read.map_err(failed)?;
        let length = bytes.len() as u64;
        left = left
            .checked_sub(length)
            .ok_or(MachineError::TooLarge { bytes: ATTACHED_LIMIT - left + length })?;
        Ok(Attachment { name: attached_name(path)?, bytes })
    };
    args.attach.iter().map(read).collect()
}

/// Backs the machine up. Its disks are read at one moment, so all of them are opened first.
pub(super) fn back_up(
    name: &ImageName,
    sources: &[Source],
    place: &mut Option<Place>,
    args: &BackupArgs,
    hooks: &Hooks<'_>,
    report: &Report<'_>,
    context: &Context,
) -> Result<Ran, CliError> {
    let progress = context.progress();
    let attached = read_attached(&args.machine)?;
    if let Some(why) = too_few_descriptors(sources.len()) {
        return Err(CliError::new(ErrorKind::Io, format!("cannot back up {name}: {why}")));
    }
    let mut document = Document::default();
    let mut opened = Vec::with_capacity(sources.len());
    for source in sources {
        match lists::open(&source.path, &args.image_options(), &args.cbt) {
            Ok(image) => opened.push((source, image)),
            Err(error) => document.failed.push(report.failed(source, &error)),
        }
    }
    if !document.failed.is_empty() {
        return Ok(Ran { document, was_wrong: false });
    }
    let changes = changes(&opened, args, context)?;
    let place = Place::or_here(place, args, context)?;
    let how = How::new(place, args, hooks);
    let (mut sources, mut disks) = (Vec::new(), Vec::new());
    for ((source, image), changes) in opened.into_iter().zip(changes) {
        let options = how.options(source, &image, changes, progress);
        sources.push((source, About::of(&options)));
        disks.push(MachineSource { name: source.name.clone(), image: image.image, options });
    }
    let files = attached.iter().map(|attachment| attachment.name.to_string()).collect();
    let options = MachineOptions { at_once: usize::from(how.args.at_once), moment: how.plain_options() };
    let let_go = || how.hooks.after(true);
    let machine = MachineBackup::new(name.clone(), disks, attached, options, &let_go)?;
    let summary = match back_up_machine(how.place.here()?, &machine, progress) {
        Ok(summary) => summary,
        Err(MachineError::Disk { name, source: error }) => {
            // The machine is named by the disk that failed it.
            if let Some((source, _)) = sources.iter().find(|(source, _)| source.name == name) {
                let what = format!("{error}; nothing of the machine was committed");
                document.failed.push(report.failed(source, &what));
            }
            return Ok(Ran { document, was_wrong: false });
        }
        Err(error) => return Err(error.into()),
    };
    let was_wrong = summary.disks.iter().any(|disk| disk.tracking.as_ref().is_some_and(Tracking::was_wrong));
    document.backups =
        sources.iter().zip(&summary.disks).map(|((source, about), disk)| done(source, about, disk)).collect();
    document.machine = Some(Machine {
        backup: summary.backup.id.to_string(),
        backupset: summary.backup.backupset.to_string(),
        incremental: summary.backup.incremental.0,
        timestamp: summary.backup.timestamp.to_string(),
        attached: files,
    });
    document.backups.iter().for_each(|done| report.done(done));
    Ok(Ran { document, was_wrong })
}

/// Returns what is said of the changes of each disk, in their order.
fn changes(
    opened: &[(&Source, OpenImage)],
    args: &BackupArgs,
    context: &Context,
) -> Result<Vec<Option<Arc<TrackedChanges>>>, CliError> {
    let CbtArgs { cbt, bitmap, .. } = &args.cbt;
    if cbt.is_none() && bitmap.is_none() {
        return Ok(opened.iter().map(|_| None).collect());
    }
    // A bitmap has one name on all disks of a machine, whose moments say since when it counts.
    if cbt.is_some() && opened.len() > 1 {
        return Err(CliError::new(ErrorKind::Invalid, lists::OF_ONE_DISK));
    }
    let of = |(source, image): &(&Source, OpenImage)| {
        Ok(Some(Arc::new(lists::changes(&source.name, image, &args.cbt, context)?)))
    };
    opened.iter().map(of).collect()
}
