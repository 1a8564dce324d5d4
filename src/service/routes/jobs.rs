//! Jobs: garbage collection, checks, and policies.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};

use crate::api::{JobDocument, JobEvent, JobList, JobRequest};
use crate::escape::escaped_json;
use crate::service::extract::{Json, Path};
use crate::service::{App, Caller, Refused, Role, jobs};

/// The least time between two events of a job.
const BETWEEN: Duration = Duration::from_millis(300);
/// How often something is sent at least, so that nobody between believes that the link is dead.
const ALIVE: Duration = Duration::from_secs(10);

/// Asks for a job.
///
/// For an operator. Garbage collection and checks are of the whole store, whoever asks; a project is told of them what
/// concerns its own backups alone. A policy is of what the caller sees.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs", request_body = JobRequest, responses(
    (status = 202, description = "It is taken on", body = JobDocument),
))]
pub(super) async fn submit(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(request): Json<JobRequest>,
) -> Result<(StatusCode, axum::Json<JobDocument>), Refused> {
    let job = jobs::submit(&app, caller, request)?;
    Ok((StatusCode::ACCEPTED, axum::Json(job.document())))
}

/// Lists jobs: those of the caller's project, of late.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", responses(
    (status = 200, description = "The jobs, the newest first", body = JobList),
))]
pub(super) async fn list(State(app): State<Arc<App>>, caller: Caller) -> axum::Json<JobList> {
    let jobs = app.jobs().list(&caller).iter().map(|job| job.document()).collect();
    axum::Json(JobList { jobs })
}

/// Shows a job.
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job", body = JobDocument)))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<axum::Json<JobDocument>, Refused> {
    Ok(axum::Json(app.jobs().find(&caller, &id)?.document()))
}

/// Cancels a job.
///
/// For an operator. One that waits ends at once, one that runs between two of its steps: what a collection has freed is
/// free, and what a policy has deleted is deleted. The comparison of the index, in a check, is not cut short. One that has
/// ended stays as it is.
#[utoipa::path(delete, path = "/v1/jobs/{id}", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job, which may not have ended yet", body = JobDocument)))]
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<axum::Json<JobDocument>, Refused> {
    caller.must_be(Role::Operator)?;
    let job = app.jobs().find(&caller, &id)?;
    job.cancel();
    Ok(axum::Json(job.document()))
}

/// Follows a job.
///
/// Server-sent events, each with the job as its data: "progress" a few times a second while something changes, and "end",
/// with which the stream ends.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The events", body = JobEvent, content_type = "text/event-stream")))]
pub(super) async fn events(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refused> {
    let job = app.jobs().find(&caller, &id)?;
    let following = Following { changed: job.watch(), job, told: None };
    let events = stream::unfold(Some(following), |following| async {
        let mut following = following?;
        let document = following.next().await;
        let ended = document.state.has_ended();
        let event = Event::default().event(if ended { "end" } else { "progress" });
        let text = serde_json::to_string(&document).unwrap_or_default();
        let event = event.data(escaped_json(&text));
        Some((Ok(event), (!ended).then_some(following)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE)))
}

/// Somebody who follows a job.
struct Following {
    job: Arc<jobs::Job>,
    changed: tokio::sync::watch::Receiver<JobDocument>,
    /// The bytes that were told of last; nothing before the first event.
    told: Option<u64>,
}

impl Following {
    /// Waits until there is something new to tell.
    async fn next(&mut self) -> JobDocument {
        if self.told.is_some() {
            let mut is_new = false;
            while !is_new {
                // More than one change may have come by then.
                tokio::time::sleep(BETWEEN).await;
                let document = self.job.document();
                is_new = self.changed.has_changed().unwrap_or(true)
                    || self.told != Some(document.progress.done_bytes);
            }
        }
        self.changed.mark_unchanged();
        let document = self.job.document();
        self.told = Some(document.progress.done_bytes);
        document
    }
}
