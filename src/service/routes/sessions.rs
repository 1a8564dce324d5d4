//! Backups that are being sent.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::frames::{Entry, Question, encode_answer};
use crate::api::{Committed, NewSession, Problem, Refusal, SessionState, SourceFlaws};
use crate::service::extract::{Frames, Json as JsonBody, Optional, Path, Query};
use crate::service::sessions::session::{MOST_PARENT_SEGMENTS, Session};
use crate::service::upload::Upload;
use crate::service::{App, Caller, Refused, Role, sessions};

/// The most questions, or entries, of one request.
const MOST_AT_ONCE: usize = 1 << 14;

fn find(app: &Arc<App>, caller: &Caller, id: &str) -> Result<Arc<Session>, Refused> {
    caller.must_be(Role::Backup)?;
    app.sessions().find(caller, id)
}

fn cut() -> Refused {
    Refused::new(Refusal::Invalid, "the body is cut, or longer than is taken at once")
}

/// Begins a backup.
#[utoipa::path(post, path = "/v1/sessions", tag = "sessions", request_body = NewSession, responses(
    (status = 201, description = "It has begun", body = SessionState),
    (status = 400, description = "The request is wrong", body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Who asks is not known", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "The role does not allow it", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "A backup of the image is being made", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "As many are being sent as are taken at once, or the caller has begun too many", body = Problem, content_type = "application/problem+json"),
    (status = 507, description = "The image has as many backups, or the project as many images or bytes, as it may have", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn begin(
    State(app): State<Arc<App>>,
    caller: Caller,
    JsonBody(new): JsonBody<NewSession>,
) -> Result<(StatusCode, Json<SessionState>), Refused> {
    caller.must_be(Role::Backup)?;
    app.blocking(&caller, move |app, caller| {
        let state = sessions::begin(app, caller, &new)?;
        let (session, image) = (&state.session, caller.view.full(&state.name)?);
        tracing::info!(session, who = caller.who, %image, number = state.incremental, "a backup has begun");
        Ok((StatusCode::CREATED, Json(state)))
    })
    .await
}

/// Lists the caller's sessions.
#[utoipa::path(get, path = "/v1/sessions", tag = "sessions", responses(
    (status = 200, description = "The sessions", body = Vec<SessionState>),
    (status = 401, description = "Who asks is not known", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "The role does not allow it", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<SessionState>>, Refused> {
    caller.must_be(Role::Backup)?;
    Ok(Json(app.sessions().list(&caller)))
}

/// Shows a session.
#[utoipa::path(get, path = "/v1/sessions/{session}", tag = "sessions", params(("session" = String, Path, description = "Its id")), responses(
    (status = 200, description = "The session", body = SessionState),
    (status = 401, description = "Who asks is not known", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "The role does not allow it", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "There is none", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<SessionState>, Refused> {
    Ok(Json(find(&app, &caller, &id)?.state()))
}

/// Gives a session up. What was sent can be gone on from.
#[utoipa::path(delete, path = "/v1/sessions/{session}", tag = "sessions", params(("session" = String, Path, description = "Its id")), responses(
    (status = 204, description = "It is given up"),
    (status = 401, description = "Who asks is not known", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "The role does not allow it", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "There is none", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn give_up(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refused> {
    let session = find(&app, &caller, &id)?;
    app.blocking(&caller, move |app, _| {
        sessions::give_up(app, &session);
        session.log("a backup was given up by its client");
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// A range of places on a disk.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Places {
    /// The first place.
    first: u32,
    /// The place behind the last one.
    behind: u32,
}

impl Places {
    pub(super) fn first(&self) -> u32 {
        self.first
    }

    pub(super) fn behind(&self) -> u32 {
        self.behind
    }
}

/// Returns what segments of the backup before are compared with: 40 bytes for each that is not zero.
#[utoipa::path(get, path = "/v1/sessions/{session}/parent", tag = "sessions",
    params(("session" = String, Path, description = "Its id"), Places),
    responses(
        (status = 200, description = "Frames of place, length and BLAKE3", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 400, description = "More places than are told at once", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "Who asks is not known", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The role does not allow it", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such session", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The session has ended", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn parent(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(Places { first, behind }): Query<Places>,
) -> Result<impl IntoResponse, Refused> {
    let session = find(&app, &caller, &id)?;
    if behind.saturating_sub(first) > MOST_PARENT_SEGMENTS {
        return Err(Refused::new(
            Refusal::Invalid,
            format!("at most {MOST_PARENT_SEGMENTS} places are told at once"),
        ));
    }
    let frames =
        app.blocking(&caller, move |app, _| sessions::parent(app, &session, (first, behind))).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], frames))
}

/// Says which segments are to be sent: those that neither the project's backups hold nor this session has sent.
#[utoipa::path(post, path = "/v1/sessions/{session}/lacking", tag = "sessions",
    params(("session" = String, Path, description = "Its id")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "56 bytes for each segment: SHA-1, BLAKE3, length"),
    responses(
        (status = 200, description = "A bit for each", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 400, description = "The body is cut, or too long", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "Who asks is not known", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The role does not allow it", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such session", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The session has ended", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn lacking(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Frames(body): Frames,
) -> Result<impl IntoResponse, Refused> {
    let session = find(&app, &caller, &id)?;
    if body.len() > MOST_AT_ONCE * Question::LENGTH {
        return Err(cut());
    }
    let questions = Question::decode_all(&body).map_err(|_| cut())?;
    let lacking = app.blocking(&caller, move |app, _| sessions::lacking(app, &session, &questions)).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], encode_answer(&lacking)))
}

/// Takes segments in: each is decoded and verified before it is stored.
#[utoipa::path(post, path = "/v1/sessions/{session}/segments", tag = "sessions",
    params(("session" = String, Path, description = "Its id")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "A head of 68 bytes and the stored bytes for each segment"),
    responses(
        (status = 204, description = "They are stored; durable once the backup is committed"),
        (status = 400, description = "The body is cut", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "Who asks is not known", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The role does not allow it", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such session", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The session has ended", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A segment is not what it is said to be", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn segments(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    body: Body,
) -> Result<StatusCode, Refused> {
    let session = find(&app, &caller, &id)?;
    let mut upload = Upload::new(&app, &caller, body);
    while let Some(batch) = upload.batch().await? {
        session.heard();
        let decoder = app.work().decoding.take(&caller.who, 1).await?;
        let session = Arc::clone(&session);
        let store = move |app: &Arc<App>, _: &Caller| {
            let _decoder = decoder;
            sessions::receive(app, &session, &batch.segments)
        };
        app.blocking(&caller, store).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Which part of a manifest it is.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    /// Its number, from 0.
    part: u64,
}

/// Takes the next part of the manifest. A part that has come before is not taken again.
#[utoipa::path(post, path = "/v1/sessions/{session}/entries", tag = "sessions",
    params(("session" = String, Path, description = "Its id"), Part),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "Entries in the order of the disk"),
    responses(
        (status = 204, description = "It is taken"),
        (status = 400, description = "The body is cut, or not in order", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "Who asks is not known", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The role does not allow it", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such session", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The part before has not come, or a segment is named that was not sent", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The session has ended", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn entries(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(Part { part }): Query<Part>,
    Frames(body): Frames,
) -> Result<StatusCode, Refused> {
    let session = find(&app, &caller, &id)?;
    if body.len() > MOST_AT_ONCE * Entry::LONGEST {
        return Err(cut());
    }
    let entries = Entry::decode_all(&body).map_err(|_| cut())?;
    app.blocking(&caller, move |app, _| sessions::extend(app, &session, part, &entries)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// How many parts a manifest has.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Parts {
    /// Their number.
    parts: u64,
}

/// Commits the backup: once this answers, it is durable. Asked again, it answers the same, also after the service was restarted.
#[utoipa::path(post, path = "/v1/sessions/{session}/commit", tag = "sessions",
    params(("session" = String, Path, description = "Its id"), Parts),
    request_body(content = Option<SourceFlaws>, description = "What was found out about the source while it was read"),
    responses(
        (status = 200, description = "The backup exists", body = Committed),
        (status = 400, description = "The query or the body is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "Who asks is not known", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The role does not allow it", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such session", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Not all parts have come", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "The caller has committed too many; try again later", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The session has ended", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn commit(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(Parts { parts }): Query<Parts>,
    Optional(flaws): Optional<SourceFlaws>,
) -> Result<Json<Committed>, Refused> {
    caller.must_be(Role::Backup)?;
    let flaws = flaws.unwrap_or_default();
    let commit = move |app: &Arc<App>, caller: &Caller| {
        sessions::commit_named(app, caller, &id, parts, &flaws).map(Json)
    };
    app.blocking(&caller, commit).await
}
