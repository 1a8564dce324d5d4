//! Jobs: what takes longer than a request should.
//!
//! A few run at a time, in the order in which they came; the others wait. What has ended is remembered for a while, in
//! memory alone: a service that is started anew knows of none.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, watch};

use crate::api::{JobDocument, JobFailure, JobProgress, JobRequest, JobResult, JobState, Project, Refusal};
use crate::progress::{Notice, Progress};
use crate::service::{App, Caller, Refused};

mod run;

/// How many jobs run at a time.
const AT_ONCE: usize = 2;
/// How many jobs of a project, or of those who belong to none, may wait or run.
const WAITING: usize = 8;
/// How many of all.
const WAITING_IN_ALL: usize = 64;
/// How many ended ones of a project, or of those who belong to none, are remembered.
const REMEMBERED: usize = 32;
/// How many notices of a job are kept.
const NOTICES: usize = 100;

/// The jobs that are known.
#[derive(Debug)]
pub(super) struct Jobs {
    /// The oldest first.
    known: Mutex<VecDeque<Arc<Job>>>,
    turns: Semaphore,
}

/// A job.
#[derive(Debug)]
pub(super) struct Job {
    caller: Caller,
    request: JobRequest,
    shown: watch::Sender<JobDocument>,
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    cancelled: AtomicBool,
}

impl Default for Jobs {
    fn default() -> Self {
        Self { known: Mutex::default(), turns: Semaphore::new(AT_ONCE) }
    }
}

impl Jobs {
    fn known(&self) -> MutexGuard<'_, VecDeque<Arc<Job>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the jobs that a caller may know of, the newest first.
    pub(super) fn list(&self, caller: &Caller) -> Vec<Arc<Job>> {
        self.known().iter().rev().filter(|job| job.is_seen(caller)).map(Arc::clone).collect()
    }

    /// Returns a job that a caller may know of.
    pub(super) fn find(&self, caller: &Caller, id: &str) -> Result<Arc<Job>, Refused> {
        let found = self.list(caller).into_iter().find(|job| job.shown.borrow().id == id);
        found.ok_or_else(|| Refused::new(Refusal::NotFound, "there is no such job"))
    }

    /// Returns the number of jobs in a state.
    pub(super) fn count(&self, state: JobState) -> usize {
        self.known().iter().filter(|job| job.state() == state).count()
    }

    /// Ends them all: the service stops.
    pub(super) fn cancel_all(&self) {
        let all: Vec<_> = self.known().iter().map(Arc::clone).collect();
        for job in &all {
            job.cancel();
        }
    }

    fn add(&self, job: &Arc<Job>) -> Result<(), Refused> {
        let mut known = self.known();
        let is_own = |other: &Job| other.project() == job.project();
        let waiting = |other: &&Arc<Job>| !other.state().has_ended();
        let (all, own) = (known.iter().filter(waiting).count(), || {
            known.iter().filter(waiting).filter(|it| is_own(it)).count()
        });
        if own() >= WAITING {
            return Err(Refused::new(Refusal::TooMany, "too many jobs are waiting").retry_after(30));
        }
        if all >= WAITING_IN_ALL {
            return Err(Refused::new(Refusal::Unavailable, "too many jobs are waiting").retry_after(30));
        }
        let ended = known.iter().filter(|it| is_own(it) && it.state().has_ended()).count();
        if ended >= REMEMBERED {
            let oldest = known.iter().position(|it| is_own(it) && it.state().has_ended());
            oldest.and_then(|at| known.remove(at));
        }
        known.push_back(Arc::clone(job));
        Ok(())
    }
}

/// Takes a job on.
///
/// # Errors
///
/// If the caller may not, if the request cannot be meant, or if too many wait.
pub(super) fn submit(app: &Arc<App>, caller: Caller, request: JobRequest) -> Result<Arc<Job>, Refused> {
    run::allow(&caller, &request)?;
    let shown = JobDocument {
        id: uuid::Uuid::new_v4().to_string(),
        kind: request.kind(),
        state: JobState::Queued,
        created: crate::time::now().to_string(),
        started: None,
        ended: None,
        progress: JobProgress::default(),
        notices: Vec::new(),
        result: None,
        error: None,
    };
    let job = Arc::new(Job {
        caller,
        request,
        shown: watch::Sender::new(shown),
        done_bytes: AtomicU64::new(0),
        total_bytes: AtomicU64::new(0),
        cancelled: AtomicBool::new(false),
    });
    app.jobs().add(&job)?;
    tracing::info!(job = job.shown.borrow().id, who = job.caller.who, kind = ?job.request.kind(), "a job was taken on");
    tokio::spawn(wait_and_run(Arc::clone(app), Arc::clone(&job)));
    Ok(job)
}

async fn wait_and_run(app: Arc<App>, job: Arc<Job>) {
    // It is never closed.
    let Ok(_turn) = app.jobs().turns.acquire().await else { return };
    if !job.begin() {
        return;
    }
    let running = Arc::clone(&job);
    let result = app.aside(move |app| run::run(app, &running)).await;
    if let Err(refused) = &result {
        let (id, why) = (job.shown.borrow().id.clone(), refused.for_the_log().to_owned());
        if refused.refusal().status() >= 500 {
            tracing::error!(job = id, why, "a job failed");
        } else {
            tracing::info!(job = id, why, "a job was refused");
        }
    }
    job.end(result);
    app.metrics().job_ended(&job.document());
}

impl Job {
    fn project(&self) -> Option<&Project> {
        self.caller.view.project()
    }

    fn is_seen(&self, caller: &Caller) -> bool {
        caller.view.project().is_none_or(|project| self.project() == Some(project))
    }

    fn state(&self) -> JobState {
        self.shown.borrow().state
    }

    /// Returns what is known of it now.
    pub(super) fn document(&self) -> JobDocument {
        let mut document = self.shown.borrow().clone();
        let bytes = |of: &AtomicU64| of.load(Ordering::Relaxed);
        document.progress.done_bytes = bytes(&self.done_bytes);
        document.progress.total_bytes = bytes(&self.total_bytes);
        document
    }

    /// Returns what tells that something has changed, but for bytes that are done.
    pub(super) fn watch(&self) -> watch::Receiver<JobDocument> {
        self.shown.subscribe()
    }

    /// Ends it: at once if it waits, else between two of its steps.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.shown.send_if_modified(|shown| {
            let waits = shown.state == JobState::Queued;
            if waits {
                shown.state = JobState::Cancelled;
                shown.ended = Some(crate::time::now().to_string());
            }
            waits
        });
    }

    /// Says whether it is still to be done.
    fn begin(&self) -> bool {
        self.shown.send_if_modified(|shown| {
            let waits = shown.state == JobState::Queued;
            if waits {
                shown.state = JobState::Running;
                shown.started = Some(crate::time::now().to_string());
            }
            waits
        })
    }

    fn end(&self, result: Result<JobResult, Refused>) {
        self.shown.send_modify(|shown| {
            shown.ended = Some(crate::time::now().to_string());
            match result {
                Ok(result) => {
                    shown.state =
                        if run::is_cancelled(&result) { JobState::Cancelled } else { JobState::Done };
                    shown.result = Some(result);
                }
                Err(refused) => {
                    shown.state = JobState::Failed;
                    let detail = refused.detail().to_owned();
                    shown.error = Some(JobFailure { kind: refused.refusal(), detail });
                }
            }
        });
    }
}

impl Progress for Job {
    fn begin(&self, label: &str, bytes: u64) {
        self.total_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shown.send_modify(|shown| shown.progress.part = Some(label.to_owned()));
    }

    fn advance(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    fn notice(&self, notice: Notice) {
        let id = self.shown.borrow().id.clone();
        tracing::warn!(job = id, ?notice, "a job has something to tell");
        // They name paths, and what others have.
        let (None, Some(text)) = (self.project(), run::told(notice)) else { return };
        self.shown.send_if_modified(|shown| {
            let has_room = shown.notices.len() < NOTICES;
            if has_room {
                shown.notices.push(text);
            }
            has_room
        });
    }
}
