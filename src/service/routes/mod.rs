//! What can be asked: a file for each kind of thing.

mod backups;
mod everywhere;
mod own;
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

/// The head of the document that describes the API.
#[derive(OpenApi)]
#[openapi(
    info(title = "Ekko", description = "Block-based backups of virtual machines in one deduplicating store"),
    components(schemas(crate::api::Problem))
)]
struct Document;

/// Returns everything that can be asked.
pub(super) fn router(app: &Arc<App>) -> Router {
    let (router, document) = described().split_for_parts();
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
    let mut router = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(versions::versions))
        .routes(routes!(versions::health))
        .routes(routes!(versions::ready))
        .routes(routes!(own::own))
        .routes(routes!(backups::images))
        .routes(routes!(backups::list))
        .routes(routes!(backups::show))
        .routes(routes!(backups::statistics));
    everywhere::describe_refusals(router.get_openapi_mut());
    router
}
