//! Which versions are spoken, and whether the service is well.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::{Refusal, version};
use crate::service::pulse::unready_at_home;
use crate::service::{App, Caller, Refused, Role};

/// The versions of the API, as those of `OpenStack` tell them.
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

/// Says whether changes are taken: the repository's folder and its index are there, the repository and its tokens can be read, no
/// write has failed, and the store's thread answers. If not, the detail says why. Waits five seconds at most, and only for a disk that does not answer.
#[utoipa::path(get, path = "/readyz", tag = "service", responses(
    (status = 200, description = "They are", body = Health),
))]
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Json<Health>, Refused> {
    let not_ok = |why: &str| Refused::new(Refusal::Unavailable, format!("not ok: {why}")).retry_after(5);
    // Side by side: each may wait for the disk.
    let came = Instant::now();
    let (home, readable) = tokio::join!(app.at_home(came), app.readable(came));
    home.and(readable).map_err(|refused| not_ok(refused.detail()))?;
    unready_at_home(&app).map_or_else(|| Ok(Json(Health { status: "ok" })), |why| Err(not_ok(&why)))
}

/// Tells what is counted, for Prometheus.
///
/// For an admin, and for the owner through the socket in the repository; for everybody if the settings say `metrics_for_all`.
#[utoipa::path(get, path = "/metrics", tag = "service", responses(
    (status = 200, description = "The numbers", body = String, content_type = "application/openmetrics-text"),
))]
pub(super) async fn metrics(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refused> {
    let (mut parts, _) = request.into_parts();
    let caller = Caller::from_request_parts(&mut parts, &()).await;
    let who = match caller.and_then(|caller| caller.must_be(Role::Admin).map(|()| caller.who)) {
        Ok(who) => who,
        // All of them together have one share.
        Err(_) if app.settings().metrics_for_all => "anybody".to_owned(),
        Err(refused) => return Err(refused),
    };
    let text = app.counting(&who, |app| app.metrics().text(app)).await?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
