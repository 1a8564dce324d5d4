//! Commands that a service does which has the repository: one on another host, or one on this.

use std::io;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{
    BackupDetails, BackupRef, CheckedBackups, CollectedDocument, DeleteDocument, FailureDocument,
    FailureReport, ForgetDocument, GcDocument, JobDocument, JobRequest, JobResult, ProtectionDocument,
    ProtectionRequest, Refusal, RenameDocument, RenameRequest, RetireDocument, StatusDocument,
    UndeleteDocument, UndeleteRequest,
};
use crate::cli::args::{
    CheckArgs, DeleteArgs, ForgetArgs, GcArgs, RenameArgs, RetireArgs, StatusArgs, UndeleteArgs,
};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::terminal::Lines;
use crate::cli::{Outcome, check, delete, forget, format, gc};
use crate::error::ErrorKind;
use crate::progress::Part;
use crate::remote::{RemoteError, RemoteRepository, part};
use crate::repository::{BackupSelector, Protection, Which};

/// How often it is asked how far a job is.
const ASKS: Duration = Duration::from_millis(300);

/// Has a job done, and waits for it.
fn job(remote: &RemoteRepository, request: &JobRequest, context: &Context) -> Result<JobResult, CliError> {
    // Two collections are not to wait one behind the other because an answer was lost.
    let mut job: JobDocument = remote.send_once("/v1/jobs", request).map_err(|error| {
        let hint = if error.may_be_done() {
            "; the service may do the job all the same: \"GET /v1/jobs\" shows its jobs"
        } else {
            ""
        };
        CliError::new(error.kind(), format!("{error}{hint}"))
    })?;
    // The first answer comes soon: most jobs are short.
    let mut pause = Duration::from_millis(10);
    let mut shown = None;
    while !job.state.has_ended() {
        std::thread::sleep(pause);
        pause = (pause * 2).min(ASKS);
        job = remote.get(&format!("/v1/jobs/{}", part(&job.id)))?;
        if shown.is_none() && job.progress.total_bytes > 0 {
            let label = job.progress.part.as_deref().unwrap_or("job");
            shown = Some(Part::begin(context.progress(), label, job.progress.total_bytes));
        }
        if let Some(shown) = &mut shown {
            shown.reached(job.progress.done_bytes);
        }
    }
    drop(shown);
    for notice in &job.notices {
        context.progress().line(notice);
    }
    match (job.result, job.error) {
        (Some(result), _) => Ok(result),
        (None, Some(failure)) => {
            let message = format!("{} (job {})", failure.detail, job.id);
            Err(CliError::new(failure.kind.error_kind(), message))
        }
        (None, None) => Err(CliError::new(ErrorKind::Io, format!("job {} was cancelled", job.id))),
    }
}

fn unexpected() -> CliError {
    CliError::new(ErrorKind::Corrupt, "the service answers a job with the result of another kind")
}

/// What came of a collection, as far as it is told.
#[derive(Serialize)]
#[serde(untagged)]
enum Collected {
    All(GcDocument),
    OfProject(CollectedDocument),
}

impl Collected {
    fn of(result: JobResult) -> Result<Self, CliError> {
        match result {
            JobResult::Gc(document) => Ok(Self::All(document)),
            JobResult::Collected(document) => Ok(Self::OfProject(document)),
            JobResult::Check(_) | JobResult::Checked(_) | JobResult::Forget(_) => Err(unexpected()),
        }
    }

    fn describe(&self, out: &mut Lines) -> io::Result<()> {
        match self {
            Self::All(document) => gc::describe(document, out),
            Self::OfProject(CollectedDocument { problems: true, .. }) => {
                writeln!(out, "problem: not all garbage could be collected; the service's admin can see why")
            }
            Self::OfProject(CollectedDocument { dry_run: true, .. }) => {
                writeln!(out, "dry run: nothing was freed; only an admin is told how much would be")
            }
            Self::OfProject(CollectedDocument { kept_backups, kept_until, .. }) => {
                writeln!(out, "garbage was collected")?;
                let Some(until) = kept_until else { return Ok(()) };
                let (backups, until) =
                    (format::count(*kept_backups, "deleted backup"), format::time_text(until));
                writeln!(
                    out,
                    "{backups} can be undeleted until {until} at the earliest; \"ekko gc --now\" frees their space"
                )
            }
        }
    }

    fn outcome(&self, context: &Context) -> Outcome {
        match self {
            Self::All(document) => gc::outcome(Some(document), context),
            Self::OfProject(CollectedDocument { problems: true, .. }) => Outcome::Problems,
            Self::OfProject(_) => context.outcome(),
        }
    }
}

fn collected(remote: &RemoteRepository, context: &Context) -> Result<Collected, CliError> {
    Collected::of(job(
        remote,
        &JobRequest::Gc { dry_run: false, keep_unfinished: None, now: true, accept_lost: false },
        context,
    )?)
}

pub(super) fn gc(args: &GcArgs, remote: &RemoteRepository, context: &Context) -> Result<Outcome, CliError> {
    let keep_unfinished = args.keep_unfinished.as_ref().map(ToString::to_string);
    let request = JobRequest::Gc {
        dry_run: args.dry_run,
        keep_unfinished,
        now: args.now,
        accept_lost: args.accept_lost,
    };
    let collected = Collected::of(job(remote, &request, context)?)?;
    context.print(&collected, |out| collected.describe(out))?;
    Ok(collected.outcome(context))
}

pub(super) fn check(
    args: &CheckArgs,
    remote: &RemoteRepository,
    context: &Context,
) -> Result<Outcome, CliError> {
    let request = JobRequest::Check { read_data: args.read_data, repair: args.repair };
    match job(remote, &request, context)? {
        JobResult::Check(document) => check::tell(&document, args.read_data.is_some(), context),
        JobResult::Checked(document) => {
            let CheckedBackups { backups, damaged, unreadable_lists, .. } = &document;
            context.print(&document, |out| {
                damaged.iter().try_for_each(|backup| writeln!(out, "problem: {backup} is damaged"))?;
                if *unreadable_lists > 0 {
                    let lists = format::count(*unreadable_lists, "list");
                    writeln!(
                        out,
                        "problem: {lists} of backups cannot be read, so backups may be missing here"
                    )?;
                }
                let backups = format::count(*backups, "backup");
                writeln!(out, "{backups}, {} of them damaged", damaged.len())
            })?;
            let is_clean = damaged.is_empty() && *unreadable_lists == 0;
            Ok(if is_clean { context.outcome() } else { Outcome::Problems })
        }
        JobResult::Gc(_) | JobResult::Collected(_) | JobResult::Forget(_) => Err(unexpected()),
    }
}

pub(super) fn status(args: &StatusArgs, remote: &RemoteRepository) -> Result<StatusDocument, CliError> {
    let query = args.max_age.map_or_else(String::new, |span| format!("?max_age={}", part(&span.to_string())));
    Ok(remote.get(&format!("/v1/status{query}"))?)
}

/// What a deletion and the collection after it did.
#[derive(Serialize)]
struct Deleted<T> {
    #[serde(flatten)]
    document: T,
    #[serde(rename = "gc", skip_serializing_if = "Option::is_none")]
    collected: Option<Collected>,
}

impl<T> Deleted<T> {
    fn outcome(&self, context: &Context) -> Outcome {
        self.collected.as_ref().map_or_else(|| context.outcome(), |it| it.outcome(context))
    }
}

fn is_same(one: &BackupRef, other: &BackupRef) -> bool {
    (&one.backupset, one.incremental) == (&other.backupset, other.incremental)
}

fn delete_one(
    remote: &RemoteRepository,
    backup: &str,
    dry_run: bool,
    machine: bool,
) -> Result<DeleteDocument, RemoteError> {
    let machine = if machine { "&machine=true" } else { "" };
    remote.send("DELETE", &format!("/v1/backups/{}?dry_run={dry_run}{machine}", part(backup)), None::<&()>)
}

/// Deletes backups that were looked up before, and no others: what their names mean may have changed since. With `machine`, each is a
/// moment and goes with its disks. Returns how many bytes that frees, if it is known.
fn delete_all(
    remote: &RemoteRepository,
    backups: &[BackupRef],
    machine: bool,
) -> Result<Option<u64>, CliError> {
    let mut freed_bytes = Some(0);
    for (done, BackupRef { backupset, incremental, .. }) in backups.iter().enumerate() {
        let freed = match delete_one(remote, &format!("{backupset}@{incremental}"), false, machine) {
            Ok(one) => one.freed_bytes,
            // It was there a moment ago: most likely it went with a request whose answer was lost.
            Err(RemoteError::Refused { problem, .. }) if problem.kind == Refusal::NotFound => None,
            Err(error) if done == 0 => return Err(error.into()),
            Err(error) => {
                let message = format!("{done} of {} backups were deleted, then: {error}", backups.len());
                return Err(CliError::new(error.kind(), message));
            }
        };
        freed_bytes = freed_bytes.zip(freed).map(|(sum, freed)| sum + freed);
    }
    Ok(freed_bytes)
}

pub(super) fn delete(
    args: &DeleteArgs,
    remote: &RemoteRepository,
    context: &Context,
) -> Result<Outcome, CliError> {
    // First everything is only asked for: nothing goes if one of them may not.
    let mut all = DeleteDocument {
        dry_run: args.dry_run,
        deleted: Vec::new(),
        freed_bytes: None,
        keep_deleted_seconds: 0,
        gc: None,
    };
    let backups = &args.backups;
    let mut moments: Vec<BackupRef> = Vec::new();
    for backup in backups {
        if args.machine {
            moments.extend(delete_one(remote, &backup.to_string(), true, false)?.deleted);
        }
        let one = delete_one(remote, &backup.to_string(), true, args.machine)?;
        (all.freed_bytes, all.keep_deleted_seconds) = (one.freed_bytes, one.keep_deleted_seconds);
        let new = |row: &BackupRef| !all.deleted.iter().any(|other| is_same(other, row));
        let new: Vec<_> = one.deleted.into_iter().filter(new).collect();
        all.deleted.extend(new);
    }
    if !context.json {
        all.deleted.iter().for_each(|row| context.progress().line(&delete::shown(row).join("  ")));
    }
    if args.dry_run {
        if backups.len() > 1 {
            // What two of them free together is known once the first has gone.
            all.freed_bytes = None;
        }
    } else if !delete::must_ask(args.yes, context) || delete::agreed(all.deleted.len(), args.gc, context)? {
        let backups = if args.machine { &moments } else { &all.deleted };
        all.freed_bytes = delete_all(remote, backups, args.machine)?;
    } else {
        return Ok(Outcome::Failed);
    }
    let collected = (args.gc && !args.dry_run).then(|| collected(remote, context)).transpose()?;
    let deleted = Deleted { document: all, collected };
    context.print(&deleted, |out| {
        let (rows, is_gone) = (&deleted.document.deleted, args.dry_run || deleted.collected.is_some());
        writeln!(out, "{}", delete::done(rows.len(), args.dry_run))?;
        delete::undeletable(rows, deleted.document.keep_deleted_seconds, is_gone, out)?;
        deleted.collected.iter().try_for_each(|it| it.describe(out))
    })?;
    Ok(deleted.outcome(context))
}

/// Undeletes backups, all or none. Says too whether an answer was lost, so that the backups which the service lists as not deleted may have
/// been undeleted by this command.
pub(super) fn undelete(
    args: &UndeleteArgs,
    remote: &RemoteRepository,
) -> Result<(UndeleteDocument, bool), CliError> {
    let path = "/v1/undeletions";
    let request = UndeleteRequest { backups: args.backups.iter().map(ToString::to_string).collect() };
    match remote.send_once(path, &request) {
        Ok(document) => Ok((document, false)),
        Err(error @ RemoteError::Refused { .. }) => Err(error.into()),
        // To ask twice does no harm.
        Err(error) => match remote.send("POST", path, Some(&request)) {
            Ok(document) => Ok((document, error.may_be_done())),
            Err(again) if error.may_be_done() || again.may_be_done() => {
                let hint =
                    "the service may have done it all the same: \"ekko list\" shows which backups there are";
                Err(CliError::new(again.kind(), format!("{again}; {hint}")))
            }
            Err(again) => Err(again.into()),
        },
    }
}

/// Has an image changed. That is not repeated if the answer is lost.
fn change_image<T: DeserializeOwned>(
    name: &str,
    change: &str,
    body: &impl Serialize,
    remote: &RemoteRepository,
) -> Result<T, CliError> {
    remote.send_once(&format!("/v1/images/{}/{change}", part(name)), body).map_err(|error| {
        let hint = if error.may_be_done() { "; the service may have done it all the same" } else { "" };
        CliError::new(error.kind(), format!("{error}{hint}"))
    })
}

pub(super) fn rename(args: &RenameArgs, remote: &RemoteRepository) -> Result<RenameDocument, CliError> {
    let request = RenameRequest { to: args.to.to_string() };
    change_image(args.from.as_str(), "rename", &request, remote)
}

pub(super) fn retire(args: &RetireArgs, remote: &RemoteRepository) -> Result<RetireDocument, CliError> {
    change_image(args.name.as_str(), "retire", &serde_json::json!({}), remote)
}

/// Reports that an image was not backed up.
pub(super) fn report_failure(
    name: &str,
    report: &FailureReport,
    remote: &RemoteRepository,
) -> Result<(), RemoteError> {
    let _: FailureDocument = remote.send_once(&format!("/v1/images/{}/failure", part(name)), report)?;
    Ok(())
}

pub(super) fn forget(
    args: &ForgetArgs,
    remote: &RemoteRepository,
    context: &Context,
) -> Result<Outcome, CliError> {
    let request = |dry_run, plan| JobRequest::Forget {
        name: args.name.as_ref().map(ToString::to_string),
        keep: args.rules(),
        dry_run,
        allow_empty: args.allow_empty,
        plan,
    };
    let mut seen = None;
    if !args.dry_run && delete::must_ask(args.yes, context) {
        let JobResult::Forget(plan) = job(remote, &request(true, None), context)? else {
            return Err(unexpected());
        };
        forget::show_kept(&plan.kept, context);
        plan.deleted.iter().for_each(|row| context.progress().line(&delete::shown(row).join("  ")));
        if !plan.deleted.is_empty() && !delete::agreed(plan.deleted.len(), args.gc, context)? {
            return Ok(Outcome::Failed);
        }
        // Backups that the person has not seen stay.
        seen = plan.plan;
    }
    let JobResult::Forget(document) = job(remote, &request(args.dry_run, seen), context)? else {
        return Err(unexpected());
    };
    if !context.json {
        forget::show_kept(&document.kept, context);
        document.deleted.iter().for_each(|row| context.progress().line(&delete::shown(row).join("  ")));
    }
    let refused = forget::refused(&document, args.gc, context);
    let collected = (args.gc && !args.dry_run && document.is_complete())
        .then(|| collected(remote, context))
        .transpose()?;
    let deleted = Deleted { document, collected };
    context.print(&deleted, |out| {
        let ForgetDocument { kept, deleted: gone, .. } = &deleted.document;
        writeln!(out, "{}, {} kept", delete::done(gone.len(), args.dry_run), kept.len())?;
        let is_gone = args.dry_run || deleted.collected.is_some();
        delete::undeletable(gone, deleted.document.keep_deleted_seconds, is_gone, out)?;
        deleted.collected.iter().try_for_each(|it| it.describe(out))
    })?;
    Ok(refused.unwrap_or_else(|| deleted.outcome(context)))
}

pub(super) fn protect(
    backup: &BackupSelector,
    protection: Protection,
    shorten: bool,
    remote: &RemoteRepository,
) -> Result<ProtectionDocument, CliError> {
    // The request is repeated when its answer is lost, and "latest" may mean another backup by then: it is looked up once.
    let found = remote.get(&format!("/v1/backups/{}", part(&backup.to_string())));
    let exact = match found {
        Ok(BackupDetails { backupset, incremental, .. }) => format!("{backupset}@{incremental}"),
        // Its manifest is damaged. A number means the same backup the next time, and its protection may have to end.
        Err(RemoteError::Refused { problem, .. })
            if problem.kind == Refusal::Corrupt && backup.which != Which::Latest =>
        {
            backup.to_string()
        }
        Err(error) => return Err(error.into()),
    };
    let path = format!("/v1/backups/{}/protection", part(&exact));
    Ok(match protection {
        Protection::None => remote.send("DELETE", &path, None::<&()>)?,
        Protection::Always => remote.send("PUT", &path, Some(&ProtectionRequest::default()))?,
        Protection::Until(end) => {
            remote.send("PUT", &path, Some(&ProtectionRequest { until: Some(end.to_string()), shorten }))?
        }
    })
}
