//! Which versions are spoken, and whether the service is well.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::{Refusal, version};
use crate::repository::RepositoryWriter;
use crate::service::{App, Refused};

/// The versions of the API, as OpenStack's services tell them.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Versions {
    versions: Vec<VersionRow>,
}

#[derive(Debug, Serialize, ToSchema)]
struct VersionRow {
    id: &'static str,
    status: &'static str,
    min_version: String,
    version: String,
    links: Vec<Link>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Link {
    rel: &'static str,
    href: &'static str,
}

/// Tells which versions of the API are spoken.
#[utoipa::path(get, path = "/", tag = "service", responses(
    (status = 200, description = "The versions", body = Versions),
    (status = 406, description = "The version asked for is not spoken", body = crate::api::Problem, content_type = "application/problem+json"),
))]
pub(super) async fn versions() -> Json<Versions> {
    Json(Versions {
        versions: vec![VersionRow {
            id: "v1",
            status: "CURRENT",
            min_version: version::MINIMUM.to_string(),
            version: version::MAXIMUM.to_string(),
            links: vec![Link { rel: "self", href: "/v1/" }],
        }],
    })
}

/// Whether the process answers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    status: &'static str,
}

/// Says that the process answers.
#[utoipa::path(get, path = "/healthz", tag = "service", responses((status = 200, description = "It does", body = Health)))]
pub(super) async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Says whether requests are taken: the repository is open and has not stopped writing.
#[utoipa::path(get, path = "/readyz", tag = "service", responses(
    (status = 200, description = "They are", body = Health),
    (status = 503, description = "They are not", body = crate::api::Problem, content_type = "application/problem+json"),
))]
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Json<Health>, Refused> {
    let open = app.blocking(|app| Ok(app.writer().with(RepositoryWriter::prepare_for_growth))).await?;
    match open {
        Ok(()) => Ok(Json(Health { status: "ok" })),
        Err(error) => Err(Refused::internal(Refusal::Unavailable, &error).retry_after(5)),
    }
}
