//! What can be asked: a file for each kind of thing.

mod backups;
mod changes;
mod data;
mod document;
mod fingerprints;
mod images;
mod jobs;
mod manifests;
mod own;
mod segments;
mod sessions;
mod versions;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use axum::{Json, Router};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::Refusal;
use crate::service::{App, Refused, guard};

/// Returns everything that can be asked.
pub(super) fn router(app: &Arc<App>) -> Router {
    let (router, mut document) = described().split_for_parts();
    document::complete(&mut document);
    let document = Arc::new(document);
    router
        .route("/v1/openapi.json", get(move || async move { Json(document.as_ref().clone()) }))
        .fallback(|| async { Refused::new(Refusal::NotFound, "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            Refused::new(Refusal::MethodNotAllowed, "this cannot be asked with this method")
        })
        .layer(DefaultBodyLimit::max(app.settings().limits.body_bytes))
        .layer(from_fn_with_state(Arc::clone(app), guard::every_request))
        .with_state(Arc::clone(app))
}

fn described() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(document::Document::openapi())
        .routes(routes!(versions::versions))
        .routes(routes!(versions::health))
        .routes(routes!(versions::ready))
        .routes(routes!(own::own))
        .routes(routes!(backups::images))
        .routes(routes!(backups::list))
        .routes(routes!(backups::show, changes::delete))
        .routes(routes!(backups::status))
        .routes(routes!(backups::statistics))
        .routes(routes!(segments::segments))
        .routes(routes!(fingerprints::fingerprints))
        .routes(routes!(sessions::begin, sessions::list))
        .routes(routes!(sessions::show, sessions::give_up))
        .routes(routes!(sessions::parent))
        .routes(routes!(sessions::lacking))
        .routes(routes!(sessions::segments))
        .routes(routes!(sessions::entries))
        .routes(routes!(sessions::commit))
        .routes(routes!(changes::undelete))
        .routes(routes!(changes::undelete_all))
        .routes(routes!(changes::protect, changes::unprotect))
        .routes(routes!(images::rename))
        .routes(routes!(images::retire))
        .routes(routes!(images::failure))
        .routes(routes!(data::data, data::head))
        .routes(routes!(document::page))
        .routes(routes!(jobs::submit, jobs::list))
        .routes(routes!(jobs::show, jobs::cancel))
        .routes(routes!(jobs::events))
        .routes(routes!(manifests::diff))
        .routes(routes!(manifests::export))
        .routes(routes!(versions::metrics))
}
