//! What a client is told of itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use crate::api::{Own, Problem};
use crate::service::{App, Caller, Refused};

/// Tells who asks: project, role, and how much of the project's quota is used.
#[utoipa::path(get, path = "/v1/own", tag = "service", responses(
    (status = 200, description = "Who asks", body = Own),
    (status = 401, description = "Who asks is not known", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn own(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Own>, Refused> {
    let count = move |app: &Arc<App>, caller: &Caller| {
        let project = caller.view.project();
        let used = project.map(|project| app.quotas().used(app.repository(), project)).transpose()?;
        Ok(Json(Own {
            who: caller.who.clone(),
            role: caller.role.to_string(),
            project: project.map(ToString::to_string),
            used_bytes: used,
            quota_bytes: project.and_then(|project| app.quotas().limit(project)),
        }))
    };
    app.blocking(&caller, count).await
}
