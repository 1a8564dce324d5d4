//! Images and backups.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::{
    self, BackupDetails, BackupList, ImageList, ListFilter, MOST_LISTED, Problem, Refusal, Statistics,
    StatusDocument,
};
use crate::check::{CheckError, StatusOptions};
use crate::progress::Silent;
use crate::repository::{BackupSelector, span};
use crate::service::extract::{Path, Query};
use crate::service::{App, Caller, Refused, Role};

/// Reads how a backup is named in a path. What can name none is as one that is not there.
pub(super) fn selector(text: &str) -> Result<BackupSelector, Refused> {
    text.parse().map_err(|error: crate::repository::InvalidSelector| {
        Refused::new(Refusal::NotFound, error.to_string())
    })
}

/// Lists the images of the caller's project.
#[utoipa::path(get, path = "/v1/images", tag = "backups", responses(
    (status = 200, description = "The images", body = ImageList),
))]
pub(super) async fn images(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<ImageList>, Refused> {
    app.blocking(&caller, move |app, caller| Ok(Json(api::images(app.repository(), &caller.view, &Silent)?)))
        .await
}

/// Lists backups of the caller's project.
#[utoipa::path(get, path = "/v1/backups", tag = "backups", params(ListFilter), responses(
    (status = 200, description = "The backups, at most 1000", body = BackupList),
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
    app.blocking(&caller, move |app, caller| {
        Ok(Json(api::list(app.repository(), &caller.view, &filter, &Silent)?))
    })
    .await
}

/// Shows a backup.
#[utoipa::path(get, path = "/v1/backups/{backup}", tag = "backups",
    params(("backup" = String, Path, description = "NAME@NUMBER, NAME@latest, or the backupset's UUID in place of the name")),
    responses(
        (status = 200, description = "The backup", body = BackupDetails),
        ))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(backup): Path<String>,
) -> Result<Json<BackupDetails>, Refused> {
    let asked = selector(&backup)?;
    app.blocking(&caller, move |app, caller| Ok(Json(api::show(app.repository(), &caller.view, &asked)?)))
        .await
}

/// Counts what the repository holds, over all projects.
#[utoipa::path(get, path = "/v1/statistics", tag = "service", responses(
    (status = 200, description = "The numbers", body = Statistics),
))]
pub(super) async fn statistics(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Statistics>, Refused> {
    caller.must_be(Role::Admin)?;
    app.blocking(&caller, move |app, _| Ok(Json(api::statistics(app.repository(), &Silent)?))).await
}

/// How fresh backups are to be.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StatusQuery {
    /// How old the newest backup of an image may be, as in 90m, 26h, 8d or PT90M.
    #[param(example = "26h")]
    max_age: Option<String>,
}

/// Says whether every image has a fresh, whole backup.
///
/// Of the images of the caller's project. That the segments decode is for a check to say.
#[utoipa::path(get, path = "/v1/status", tag = "backups", params(StatusQuery), responses(
    (status = 200, description = "How it stands with each image", body = StatusDocument),
))]
pub(super) async fn status(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(StatusQuery { max_age }): Query<StatusQuery>,
) -> Result<Json<StatusDocument>, Refused> {
    let wrong = || Refused::new(Refusal::Invalid, "\"max_age\" is a duration, as in 26h or 8d");
    let max_age = max_age.map(|text| span(&text).ok_or_else(wrong)).transpose()?;
    let options = StatusOptions { max_age, now: crate::time::now() };
    app.blocking(&caller, move |app, caller| {
        let status = api::status_of(app.repository(), &caller.view, &options, &Silent);
        status.map(Json).map_err(|error| match error {
            CheckError::Repository(error) => error.into(),
            error => Refused::internal(Refusal::from(error.kind()), &error),
        })
    })
    .await
}
