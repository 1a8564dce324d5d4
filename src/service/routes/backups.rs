//! Images and backups.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use crate::api::{
    self, BackupDetails, BackupList, ImageList, ListFilter, MOST_LISTED, Problem, Refusal, Statistics,
};
use crate::progress::Silent;
use crate::repository::BackupSelector;
use crate::service::extract::{Path, Query};
use crate::service::{App, Caller, Refused, Role};

/// Reads how a backup is named in a path.
pub(super) fn selector(text: &str) -> Result<BackupSelector, Refused> {
    text.parse().map_err(|error: crate::repository::InvalidSelector| {
        Refused::new(Refusal::Invalid, error.to_string())
    })
}

/// Lists the images of the caller's project.
#[utoipa::path(get, path = "/v1/images", tag = "backups", responses(
    (status = 200, description = "The images", body = ImageList),
    (status = 401, description = "Who asks is not known", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn images(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<ImageList>, Refused> {
    app.blocking(move |app| Ok(Json(api::images(app.repository(), &caller.view, &Silent)?))).await
}

/// Lists backups of the caller's project.
#[utoipa::path(get, path = "/v1/backups", tag = "backups", params(ListFilter), responses(
    (status = 200, description = "The backups, at most 1000", body = BackupList),
    (status = 400, description = "The query is wrong", body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Who asks is not known", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "There is no such marker", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(filter): Query<ListFilter>,
) -> Result<Json<BackupList>, Refused> {
    if filter.limit.is_some_and(|limit| !(1..=MOST_LISTED).contains(&limit)) {
        return Err(Refused::new(Refusal::Invalid, format!("a limit is from 1 to {MOST_LISTED}")));
    }
    let filter = ListFilter { limit: filter.limit.or(Some(MOST_LISTED)), ..filter };
    app.blocking(move |app| Ok(Json(api::list(app.repository(), &caller.view, &filter, &Silent)?))).await
}

/// Shows a backup.
#[utoipa::path(get, path = "/v1/backups/{backup}", tag = "backups",
    params(("backup" = String, Path, description = "NAME@NUMBER, NAME@latest, or the backupset's UUID in place of the name")),
    responses(
        (status = 200, description = "The backup", body = BackupDetails),
        (status = 400, description = "No backup can be named so", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "Who asks is not known", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is none", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(backup): Path<String>,
) -> Result<Json<BackupDetails>, Refused> {
    let asked = selector(&backup)?;
    app.blocking(move |app| Ok(Json(api::show(app.repository(), &caller.view, &asked)?))).await
}

/// Counts what the repository holds, over all projects.
#[utoipa::path(get, path = "/v1/statistics", tag = "service", responses(
    (status = 200, description = "The numbers", body = Statistics),
    (status = 401, description = "Who asks is not known", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "The role does not allow it", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn statistics(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Statistics>, Refused> {
    caller.must_be(Role::Admin)?;
    app.blocking(move |app| Ok(Json(api::statistics(app.repository(), &Silent)?))).await
}
