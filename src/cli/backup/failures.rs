//! Records the disks that were not backed up, where the repository is: "ekko status" shows them until a backup succeeds.
//!
//! A service that refuses one report may take the next one. One that does not answer is not asked again, and all reports together have
//! [`PATIENCE`]: a command that has failed is not to hang as well.

use std::time::{Duration, Instant};

use crate::api::FailureReport;
use crate::cli::backup::Ran;
use crate::cli::backup::report::Failed;
use crate::cli::backup::sources::Source;
use crate::cli::context::{ANSWER, Context};
use crate::cli::error::CliError;
use crate::cli::over_service;
use crate::error::ErrorKind;
use crate::manifest::ImageName;
use crate::remote::RemoteError;
use crate::repository::BackupFailure;

/// How long all reports of a call may take. The last one begins early enough to be answered in this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Records what failed of a call. What cannot be recorded is logged: the call has failed, and says so itself.
pub(super) fn record(
    sources: &[Source],
    machine: Option<&ImageName>,
    done: &Result<Ran, CliError>,
    context: &Context,
) {
    let failed = match done {
        Ok(ran) => of_disks(&ran.document.failed, machine),
        Err(CliError::BrokenPipe | CliError::Told { .. }) => Vec::new(),
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
        let begun = Instant::now();
        let report = |name: &ImageName, reason: &str| {
            over_service::report_failure(name.as_str(), &FailureReport { reason: reason.to_owned() }, &remote)
        };
        let unreported = report_each(&failed, || begun.elapsed() + ANSWER <= PATIENCE, report);
        return unreported.map_or(Ok(()), |(number, why)| {
            let message = format!("cannot report {number} of {} failures: {why}", failed.len());
            Err(CliError::new(ErrorKind::Io, message))
        });
    }
    let (repository, time) = (context.open()?, crate::time::now());
    failed.into_iter().try_for_each(|(name, reason)| {
        let failure = BackupFailure { name, time, reason: Some(reason), is_reported: false };
        repository.record_failure(&failure)?;
        Ok(())
    })
}

/// Reports failures one after the other: a refused one keeps no other from being reported. Ends when the service does not answer, or when no
/// time is left. Returns how many were not reported, and why the first of them was not.
fn report_each(
    failed: &[(ImageName, String)],
    is_time_left: impl Fn() -> bool,
    report: impl Fn(&ImageName, &str) -> Result<(), RemoteError>,
) -> Option<(usize, String)> {
    let mut reported = 0;
    let mut why = None;
    for (name, reason) in failed {
        if !is_time_left() {
            why.get_or_insert_with(|| "the service takes too long".to_owned());
            break;
        }
        match report(name, reason) {
            Ok(()) => reported += 1,
            Err(error) => {
                why.get_or_insert_with(|| error.to_string());
                if !matches!(error, RemoteError::Refused { .. }) {
                    break;
                }
            }
        }
    }
    why.map(|why| (failed.len() - reported, why))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::api::{Problem, Refusal};

    /// How a service does not take a report; nothing if it does.
    type Answer = Option<fn() -> RemoteError>;

    #[test]
    fn reports_end_when_the_service_does_not_answer_or_no_time_is_left() {
        let name = |text: &str| (ImageName::new(text).unwrap(), "gone".to_owned());
        let failed = ["a", "b", "c", "d"].map(name);
        let refused = || {
            let problem = Problem {
                kind: Refusal::TooMany,
                status: 429,
                title: String::new(),
                detail: "too many".to_owned(),
                request_id: String::new(),
            };
            RemoteError::Refused { address: String::new(), problem, retry_after: None }
        };
        let silent = || RemoteError::Stopped { address: String::new() };
        let run = |time: usize, answers: [Answer; 4]| {
            let asked = Cell::new(0);
            let report = |_: &ImageName, _: &str| {
                let answer = answers[asked.replace(asked.get() + 1)];
                answer.map_or(Ok(()), |error| Err(error()))
            };
            let unreported = report_each(&failed, || asked.get() < time, report);
            (asked.get(), unreported.map(|(number, _)| number))
        };
        let (refused, silent): (Answer, Answer) = (Some(refused), Some(silent));
        assert_eq!(run(9, [None; 4]), (4, None));
        assert_eq!(run(9, [refused, None, refused, None]), (4, Some(2)));
        assert_eq!(run(9, [None, silent, None, None]), (2, Some(3)));
        assert_eq!(run(2, [None; 4]), (2, Some(2)));
    }
}
