//! `ekko backup --machine`

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::backup::{TrackedChanges, Tracking};
use crate::cli::args::MachineArgs;
use crate::cli::backup::report::{Document, Machine, done, failed};
use crate::cli::backup::{How, Opened, Ran, Source, source_format};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::error::ErrorKind;
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
pub(super) fn read_attached(args: &MachineArgs) -> Result<Vec<Attachment>, CliError> {
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

/// Backs the machine up. All of its disks could be opened.
pub(super) fn back_up(
    name: &ImageName,
    opened: Vec<Opened<'_>>,
    changes: &[Option<Arc<TrackedChanges>>],
    attached: Vec<Attachment>,
    how: &How<'_>,
    mut document: Document,
    context: &Context,
) -> Result<Ran, CliError> {
    let progress = context.progress();
    let (mut sources, mut disks) = (Vec::new(), Vec::new());
    for ((source, image), changes) in opened.into_iter().zip(changes) {
        let image = image?;
        let options = how.options(source, &image, changes.clone(), progress);
        sources.push((source, source_format(&image)));
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
                document.failed.push(failed(source, &what, context));
            }
            return Ok(Ran { document, was_wrong: false });
        }
        Err(error) => return Err(error.into()),
    };
    let was_wrong = summary.disks.iter().any(|disk| disk.tracking.as_ref().is_some_and(Tracking::was_wrong));
    document.backups = sources
        .iter()
        .zip(&summary.disks)
        .map(|((source, format), disk)| done(source, *format, disk))
        .collect();
    document.machine = Some(Machine {
        backup: summary.backup.id.to_string(),
        backupset: summary.backup.backupset.to_string(),
        incremental: summary.backup.incremental.0,
        timestamp: summary.backup.timestamp.to_string(),
        attached: files,
    });
    Ok(Ran { document, was_wrong })
}
