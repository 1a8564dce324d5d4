//! Records the disks that were not backed up, where the repository is: "ekko status" shows them until a backup succeeds.

use crate::api::FailureReport;
use crate::cli::backup::Ran;
use crate::cli::backup::report::Failed;
use crate::cli::backup::sources::Source;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::over_service;
use crate::manifest::ImageName;
use crate::repository::BackupFailure;

/// Records what failed of a call. What cannot be recorded is logged: the call has failed, and says so itself.
pub(super) fn record(
    sources: &[Source],
    machine: Option<&ImageName>,
    done: &Result<Ran, CliError>,
    context: &Context,
) {
    let failed = match done {
        Ok(ran) => of_disks(&ran.document.failed, machine),
        Err(CliError::BrokenPipe) => Vec::new(),
        Err(CliError::Failed { message, .. }) => {
            let names = sources.iter().map(|source| &source.name).chain(machine);
            names.map(|name| (name.clone(), message.clone())).collect()
        }
    };
    if !failed.is_empty()
        && let Err(CliError::Failed { message, .. }) = record_all(failed, context)
    {
        tracing::info!(%message, "cannot record for \"ekko status\" that backups failed");
    }
}

/// Returns the names that failed, and why. A machine fails with each of its disks.
fn of_disks(failed: &[Failed], machine: Option<&ImageName>) -> Vec<(ImageName, String)> {
    let of_machine = machine.zip(failed.first());
    let of_machine = of_machine.map(|(name, disk)| (name.clone(), format!("{}: {}", disk.name, disk.error)));
    let of_disk = |failed: &Failed| Some((ImageName::new(&failed.name).ok()?, failed.error.clone()));
    failed.iter().filter_map(of_disk).chain(of_machine).collect()
}

fn record_all(failed: Vec<(ImageName, String)>, context: &Context) -> Result<(), CliError> {
    if let Some(remote) = context.service_once()? {
        // One that is gone is not waited for again: the first failure ends this.
        return failed.into_iter().try_for_each(|(name, reason)| {
            over_service::report_failure(name.as_str(), &FailureReport { reason }, &remote)
        });
    }
    let (repository, time) = (context.open()?, crate::time::now());
    failed.into_iter().try_for_each(|(name, reason)| {
        let failure = BackupFailure { name, time, reason: Some(reason), is_reported: false };
        repository.record_failure(&failure)?;
        Ok(())
    })
}
