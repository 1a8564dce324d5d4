//! What changes backups: deleting them, and protecting them from it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::{
    self, DeleteDocument, DeletionPlan, ProtectionDocument, ProtectionRequest, Refusal, UndeleteDocument,
    UndeleteRequest,
};
use crate::progress::Silent;
use crate::repository::{BackupRange, InvalidRange, Protection};
use crate::service::extract::{self, Path, Query};
use crate::service::routes::backups::selector;
use crate::service::{App, Caller, Refused, Role};

/// How a backup is deleted.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DeleteOptions {
    /// Only say what would be deleted.
    dry_run: bool,
    /// They are moments of machines: delete the backups of their disks with them, at one moment.
    machine: bool,
}

/// Deletes a backup.
///
/// For an operator. It can be undeleted for a day, unless the repository's owner has set another time.
#[utoipa::path(delete, path = "/v1/backups/{backup}", tag = "backups",
    params(
        ("backup" = String, Path, description = "NAME@NUMBER, NAME@FIRST-LAST, NAME@all, or the backupset's UUID in place of \
            the name"),
        DeleteOptions,
    ),
    responses(
        (status = 200, description = "It is deleted, or would be", body = DeleteDocument),
        (status = 409, description = "It is protected, or belongs to a machine's moment that stays", body = api::Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(backup): Path<String>,
    Query(DeleteOptions { dry_run, machine }): Query<DeleteOptions>,
) -> Result<Json<DeleteDocument>, Refused> {
    caller.must_be(Role::Operator)?;
    let asked = range(&backup)?;
    app.blocking(&caller, move |app, caller| {
        let plan = DeletionPlan::of(app.writer(), &caller.view, &[asked], machine)?;
        if !dry_run {
            plan.apply(app.writer(), &Silent)?;
            tracing::info!(who = caller.who, backup, "a backup was deleted");
        }
        let DeletionPlan { rows, freed_bytes, .. } = plan;
        let keep_deleted_seconds = app.repository().settings().keep_deleted.as_secs();
        Ok(Json(DeleteDocument { dry_run, deleted: rows, freed_bytes, keep_deleted_seconds, gc: None }))
    })
    .await
}

/// Undeletes backups.
///
/// For an operator. `GET /v1/backups?deleted=true` lists the backups that can be undeleted.
#[utoipa::path(post, path = "/v1/backups/{backup}/undelete", tag = "backups",
    params(
        ("backup" = String, Path, description = "NAME@NUMBER, NAME@FIRST-LAST, NAME@all, or the backupset's UUID in place of \
            the name"),
    ),
    responses((status = 200, description = "They are undeleted, or were not deleted", body = UndeleteDocument)))]
pub(super) async fn undelete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(backup): Path<String>,
) -> Result<Json<UndeleteDocument>, Refused> {
    caller.must_be(Role::Operator)?;
    let asked = range(&backup)?;
    app.blocking(&caller, move |app, caller| {
        let document = api::undelete(app.writer(), &caller.view, &[asked], &Silent)?;
        tracing::info!(who = caller.who, backup, "a backup was undeleted");
        Ok(Json(document))
    })
    .await
}

/// Undeletes backups of several images: all of them, or none.
///
/// For an operator. Those that are not deleted stay as they are, and are listed: the same request twice does no harm.
#[utoipa::path(post, path = "/v1/undeletions", tag = "backups", request_body = UndeleteRequest,
    responses((status = 200, description = "They are undeleted, or were not deleted", body = UndeleteDocument)))]
pub(super) async fn undelete_all(
    State(app): State<Arc<App>>,
    caller: Caller,
    extract::Json(UndeleteRequest { backups }): extract::Json<UndeleteRequest>,
) -> Result<Json<UndeleteDocument>, Refused> {
    caller.must_be(Role::Operator)?;
    if backups.is_empty() {
        return Err(Refused::new(Refusal::Invalid, "no backup is named"));
    }
    let asked = backups.iter().map(|text| range(text)).collect::<Result<Vec<_>, _>>()?;
    app.blocking(&caller, move |app, caller| {
        let document = api::undelete(app.writer(), &caller.view, &asked, &Silent)?;
        tracing::info!(who = caller.who, ?backups, "backups were undeleted");
        Ok(Json(document))
    })
    .await
}

/// Reads which backups a path names. What can name none is as such that are not there.
fn range(text: &str) -> Result<BackupRange, Refused> {
    text.parse().map_err(|error: InvalidRange| Refused::new(Refusal::NotFound, error.to_string()))
}

/// Protects a backup.
///
/// For an operator. It is not deleted, by no policy either, until that ends or is taken back.
#[utoipa::path(put, path = "/v1/backups/{backup}/protection", tag = "backups",
    request_body = ProtectionRequest,
    params(("backup" = String, Path, description = "NAME@NUMBER, NAME@latest, or the backupset's UUID in place of the name")),
    responses((status = 200, description = "It is protected, or belongs to a machine's moment that stays", body = ProtectionDocument)))]
pub(super) async fn protect(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(backup): Path<String>,
    extract::Json(request): extract::Json<ProtectionRequest>,
) -> Result<Json<ProtectionDocument>, Refused> {
    let wrong = |_| Refused::new(Refusal::Invalid, "\"until\" is a time, as in 2027-01-31T12:00:00Z");
    let until: Option<jiff::Timestamp> = request.until.map(|text| text.parse().map_err(wrong)).transpose()?;
    if until.is_some_and(|until| until <= crate::time::now()) {
        return Err(Refused::new(Refusal::Invalid, "\"until\" is in the past"));
    }
    set(&app, caller, backup, until.map_or(Protection::Always, Protection::Until), request.shorten).await
}

/// Takes the protection of a backup back.
///
/// For an operator.
#[utoipa::path(delete, path = "/v1/backups/{backup}/protection", tag = "backups",
    params(("backup" = String, Path, description = "NAME@NUMBER, NAME@latest, or the backupset's UUID in place of the name")),
    responses((status = 200, description = "It can be deleted", body = ProtectionDocument)))]
pub(super) async fn unprotect(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(backup): Path<String>,
) -> Result<Json<ProtectionDocument>, Refused> {
    set(&app, caller, backup, Protection::None, false).await
}

async fn set(
    app: &Arc<App>,
    caller: Caller,
    backup: String,
    protection: Protection,
    shorten: bool,
) -> Result<Json<ProtectionDocument>, Refused> {
    caller.must_be(Role::Operator)?;
    let asked = selector(&backup)?;
    app.blocking(&caller, move |app, caller| {
        let document = api::protect(app.writer(), &caller.view, &asked, protection, shorten)?;
        tracing::info!(
            who = caller.who,
            backup,
            protected = document.protected,
            "a backup's protection was set"
        );
        Ok(Json(document))
    })
    .await
}
