//! What changes the name of an image, or tells what became of its backup.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use crate::api::{
    self, FailureDocument, FailureReport, Problem, RenameDocument, RenameRequest, RetireDocument,
};
use crate::service::extract::{self, Path};
use crate::service::{App, Caller, Refused, Role};

/// Renames an image.
///
/// For an operator. All backups of the image keep their numbers. A name that other backups have, or had once, is refused.
#[utoipa::path(post, path = "/v1/images/{image}/rename", tag = "backups", request_body = RenameRequest,
    params(("image" = String, Path, description = "The name of the image")),
    responses(
        (status = 200, description = "It has the new name", body = RenameDocument),
        (status = 409, description = "The new name is taken, the image has had too many names, or a backup is running", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn rename(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(image): Path<String>,
    extract::Json(RenameRequest { to }): extract::Json<RenameRequest>,
) -> Result<Json<RenameDocument>, Refused> {
    caller.must_be(Role::Operator)?;
    let (from, to) = (caller.view.full(&image)?, caller.view.full(&to)?);
    app.count_change(&caller)?;
    app.blocking(&caller, move |app, caller| {
        // A renaming that is refused costs the disk nothing.
        let document = api::rename(app.writer(), &caller.view, &from, &to)
            .inspect_err(|_| app.uncount_session(caller))?;
        tracing::info!(who = caller.who, %from, %to, "an image was renamed");
        Ok(Json(document))
    })
    .await
}

/// Retires an image.
///
/// For an operator. `GET /v1/status` expects no backups of it until one is made. An image that was never backed up is
/// forgotten with its failed attempt.
#[utoipa::path(post, path = "/v1/images/{image}/retire", tag = "backups",
    params(("image" = String, Path, description = "The name of the image")),
    responses((status = 200, description = "No backups of it are expected", body = RetireDocument)))]
pub(super) async fn retire(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(image): Path<String>,
) -> Result<Json<RetireDocument>, Refused> {
    caller.must_be(Role::Operator)?;
    let name = caller.view.full(&image)?;
    app.blocking(&caller, move |app, caller| {
        let document = api::retire(app.writer(), &caller.view, &name)?;
        tracing::info!(who = caller.who, image = %name, "an image was retired");
        Ok(Json(document))
    })
    .await
}

/// Reports that a backup of an image failed.
///
/// For a backup token. `GET /v1/status` shows the last failure of an image until a backup succeeds.
#[utoipa::path(post, path = "/v1/images/{image}/failure", tag = "backups", request_body = FailureReport,
    params(("image" = String, Path, description = "The name of the image")),
    responses((status = 200, description = "It was recorded, or there is no room", body = FailureDocument)))]
pub(super) async fn failure(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(image): Path<String>,
    extract::Json(report): extract::Json<FailureReport>,
) -> Result<Json<FailureDocument>, Refused> {
    caller.must_be(Role::Backup)?;
    let name = caller.view.full(&image)?;
    // A report costs the disk as much as the beginning of a backup does.
    app.count_change(&caller)?;
    app.blocking(&caller, move |app, caller| {
        let document = api::report_failure(app.writer(), &caller.view, &name, report)?;
        tracing::info!(who = caller.who, image = %name, "a client reports that a backup failed");
        Ok(Json(document))
    })
    .await
}
