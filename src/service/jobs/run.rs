//! What jobs do, for whom.

use std::sync::Arc;
use std::time::Duration;

use crate::api::{
    self, CheckDocument, CheckedBackups, CollectedDocument, ForgetDocument, ForgetPlan, JobRequest,
    JobResult, KeepRules, Refusal,
};
use crate::check::{CheckError, CheckOptions, ReadData, check_with_index};
use crate::manifest::InvalidName;
use crate::progress::Notice;
use crate::repository::{GcOptions, span};
use crate::service::jobs::Job;
use crate::service::{App, Caller, Refused, Role};

/// How many threads a collection compares manifests with, and a check reads with.
const THREADS: usize = 2;

/// Says whether a caller may ask for a job, and whether it can be meant.
pub(super) fn allow(caller: &Caller, request: &JobRequest) -> Result<(), Refused> {
    caller.must_be(Role::Operator)?;
    let invalid = |what: String| Refused::new(Refusal::Invalid, what);
    if matches!(request, JobRequest::Gc { accept_lost: true, .. }) {
        // Others' backups are at stake.
        caller.must_be(Role::Admin)?;
    }
    match request {
        JobRequest::Gc { keep_unfinished: None, .. }
        | JobRequest::Check { read_data: None, repair: false } => {}
        JobRequest::Gc { keep_unfinished: Some(text), .. } => {
            // What others have not finished is at stake.
            caller.must_be(Role::Admin)?;
            keep(text)
                .ok_or_else(|| invalid("\"keep_unfinished\" is a duration, as in 12h or 2d".to_owned()))?;
        }
        JobRequest::Check { read_data, repair } => {
            if *repair {
                caller.must_be(Role::Admin)?;
            }
            if read_data.is_some_and(|percent| !(percent > 0.0 && percent <= 100.0)) {
                return Err(invalid("a share is above 0 and up to 100".to_owned()));
            }
        }
        JobRequest::Forget { name, keep, .. } => {
            keep.policy().map_err(|error| invalid(error.to_string()))?;
            // What can name none is as one that is not there.
            let missing = |error: InvalidName| Refused::new(Refusal::NotFound, error.to_string());
            name.as_deref().map(|name| caller.view.full(name)).transpose().map_err(missing)?;
        }
    }
    Ok(())
}

fn keep(text: &str) -> Option<Duration> {
    Duration::try_from(span(text)?).ok()
}

/// Does a job, on a thread that may block.
pub(super) fn run(app: &Arc<App>, job: &Arc<Job>) -> Result<JobResult, Refused> {
    match &job.request {
        JobRequest::Gc { dry_run, keep_unfinished, now, accept_lost } => {
            let keep_unfinished = keep_unfinished.as_deref().and_then(keep);
            let prefix = job.caller.view.prefix();
            let now = now.then_some(prefix.as_str());
            let options = GcOptions {
                dry_run: *dry_run,
                now,
                keep_unfinished,
                accept_lost: *accept_lost,
                jobs: THREADS,
            };
            let document = api::collect(app.writer(), &options, job.as_ref())?;
            if !document.dry_run {
                app.metrics().freed(&document);
            }
            // One that ended early, or that freed nothing because of a problem, left the garbage that quotas count.
            if !document.dry_run && !document.cancelled && document.problems.is_empty() {
                let kept = options.keep_unfinished;
                app.quotas().collected(kept.unwrap_or_else(|| app.repository().settings().keep_unfinished));
            }
            let view = &job.caller.view;
            Ok(if job.project().is_none() {
                JobResult::Gc(document)
            } else {
                JobResult::Collected(CollectedDocument::of(&document, app.repository(), view)?)
            })
        }
        JobRequest::Check { read_data, repair } => {
            let read_data = match read_data {
                None => ReadData::None,
                Some(percent) if *percent >= 100.0 => ReadData::All,
                Some(percent) => ReadData::Percent(*percent),
            };
            let options = CheckOptions { read_data, jobs: THREADS };
            let summary = check_with_index(app.writer(), &options, *repair, job.as_ref()).map_err(refused)?;
            Ok(match job.project() {
                None => JobResult::Check(CheckDocument::from(summary)),
                Some(_) => {
                    JobResult::Checked(CheckedBackups::of(&summary, app.repository(), &job.caller.view)?)
                }
            })
        }
        JobRequest::Forget { name, keep, dry_run, allow_empty, plan } => {
            forget(app, job, (name.as_deref(), plan.as_deref()), keep, *dry_run, *allow_empty)
        }
    }
}

fn forget(
    app: &Arc<App>,
    job: &Arc<Job>,
    (name, shown): (Option<&str>, Option<&str>),
    keep: &KeepRules,
    dry_run: bool,
    allow_empty: bool,
) -> Result<JobResult, Refused> {
    let view = &job.caller.view;
    let name = name.map(|name| view.full(name)).transpose()?;
    let policy = keep.policy().map_err(|error| Refused::new(Refusal::Invalid, error.to_string()))?;
    let plan = ForgetPlan::of(app.writer(), view, &policy, name.as_ref(), allow_empty)?;
    let ForgetPlan { kept, goes, refused } = plan;
    let plan = api::plan_of(&goes.rows);
    if shown.is_some_and(|shown| shown != plan) {
        let why =
            "nothing was deleted: the backups have changed since they were shown; run the command again";
        return Err(Refused::new(Refusal::Busy, why));
    }
    let done = if dry_run { goes.rows.len() } else { goes.apply(app.writer(), job.as_ref())? };
    let cancelled = done < goes.rows.len();
    let (mut deleted, freed_bytes) = (goes.rows, goes.freed_bytes);
    deleted.truncate(done);
    let freed_bytes = freed_bytes.filter(|_| !cancelled);
    Ok(JobResult::Forget(ForgetDocument {
        dry_run,
        kept,
        deleted,
        freed_bytes,
        keep_deleted_seconds: app.repository().settings().keep_deleted.as_secs(),
        gc: None,
        refused,
        cancelled,
        plan: dry_run.then_some(plan),
    }))
}

/// Says whether a job was ended before it was through.
pub(super) fn is_cancelled(result: &JobResult) -> bool {
    match result {
        JobResult::Gc(document) => document.cancelled,
        JobResult::Collected(document) => document.cancelled,
        JobResult::Check(document) => document.cancelled,
        JobResult::Checked(document) => document.cancelled,
        JobResult::Forget(document) => document.cancelled,
    }
}

fn refused(error: CheckError) -> Refused {
    match error {
        CheckError::Repository(error) => error.into(),
        error => Refused::internal(Refusal::from(error.kind()), &error),
    }
}

/// Returns a notice in words; nothing if it is none of a job's.
pub(super) fn told(notice: Notice) -> Option<String> {
    match notice {
        Notice::IndexRebuilt { reason, segments } => {
            Some(format!("the index was rebuilt with {segments} segments: {reason}"))
        }
        Notice::Recovered { what } => Some(format!("recovered: {what}")),
        Notice::Problem { what, .. } => Some(what),
        Notice::SourceInUse { .. }
        | Notice::Inconsistent { .. }
        | Notice::Unreadable { .. }
        | Notice::Shrank { .. }
        | Notice::DoubtfulClock { .. }
        | Notice::LooksLike { .. }
        | Notice::ReadInFull { .. }
        | Notice::TwinStored { .. }
        | Notice::Unleased { .. }
        | Notice::Waiting { .. }
        | Notice::GoesOn { .. } => None,
    }
}
