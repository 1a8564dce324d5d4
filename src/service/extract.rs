//! What requests bring, with refusals of our own shape.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

use crate::api::Refusal;
use crate::service::Refused;
use crate::service::limits::is_too_slow;

/// The query of a request.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        let refuse = |error: QueryRejection| Refused::new(Refusal::Invalid, error.body_text());
        query.map(|axum::extract::Query(query)| Self(query)).map_err(refuse)
    }
}

/// The parameters in the path of a request.
#[derive(Debug)]
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        let refuse = |error: PathRejection| Refused::new(Refusal::Invalid, error.body_text());
        path.map(|axum::extract::Path(path)| Self(path)).map_err(refuse)
    }
}

/// Says why a body that did not come whole is refused: every route that reads one as it comes asks this.
pub(super) fn body_failed(error: &(dyn std::error::Error + 'static)) -> Refused {
    if is_too_slow(error) {
        Refused::new(Refusal::Timeout, "the body did not come in time")
    } else {
        Refused::new(Refusal::Invalid, "the body did not come whole")
    }
}

/// A body of frames, no longer than the limits allow.
#[derive(Debug)]
pub(super) struct Frames(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Frames {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        Bytes::from_request(request, state).await.map(Self).map_err(|error| refuse_bytes(&error))
    }
}

fn refuse_bytes(error: &BytesRejection) -> Refused {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Refused::new(Refusal::TooLarge, "the body is longer than is taken"),
        _ => body_failed(error),
    }
}

/// A body of JSON, no longer than the limits allow.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let is_json = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|kind| kind.split(';').next().unwrap_or_default().trim() == "application/json");
        if !is_json {
            return Err(Refused::new(Refusal::Invalid, "the body is to be application/json"));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|error| refuse_bytes(&error))?;
        object(&bytes).map(Self)
    }
}

/// Reads an object of JSON.
fn object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refused> {
    // A list of a document's fields would pass for it.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refused::new(Refusal::Invalid, "the body is to be an object"));
    }
    let wrong = |error: serde_json::Error| Refused::new(Refusal::Invalid, format!("the body: {error}"));
    serde_json::from_slice(bytes).map_err(wrong)
}

/// A body of JSON, or none.
#[derive(Debug)]
pub(super) struct Optional<T>(pub(super) Option<T>);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Optional<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let bytes = Bytes::from_request(request, state).await.map_err(|error| refuse_bytes(&error))?;
        if bytes.is_empty() { Ok(Self(None)) } else { object(&bytes).map(|it| Self(Some(it))) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use axum::Router;
    use axum::body::Body;
    use axum::extract::DefaultBodyLimit;
    use axum::http::Request;
    use axum::routing::post;
    use futures_util::stream::{self, StreamExt};
    use tower::ServiceExt;

    use super::*;
    use crate::service::limits::PatientBody;

    /// Posts a body to what takes JSON of at most 100 bytes, and returns the status.
    fn post_json(body: impl Into<Body>) -> u16 {
        let take = |Json(object): Json<HashMap<String, u32>>| async move { object.len().to_string() };
        let router = Router::new().route("/", post(take)).layer(DefaultBodyLimit::max(100));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let body = Body::new(PatientBody::new(body.into(), Duration::from_millis(30), 1000));
            let request = Request::post("/").header(header::CONTENT_TYPE, "application/json").body(body);
            router.oneshot(request.unwrap()).await.unwrap().status().as_u16()
        })
    }

    #[test]
    fn a_body_is_refused_for_what_is_wrong_with_it() {
        type Piece = Result<&'static str, std::io::Error>;
        let silent = stream::once(async { Piece::Ok("1") }).chain(stream::pending());
        assert_eq!(post_json(r#"{"a": 17}"#), 200);
        assert_eq!(post_json("[17]"), 400);
        assert_eq!(post_json(Body::from_stream(silent)), 408);
        assert_eq!(post_json("1".repeat(101)), 413);
        let endless = stream::repeat_with(|| Piece::Ok(" "));
        assert_eq!(post_json(Body::from_stream(endless)), 413);
        let cut = stream::iter([Piece::Ok("1"), Err(std::io::Error::other("cut"))]);
        assert_eq!(post_json(Body::from_stream(cut)), 400);
        assert_eq!(post_json("{"), 400);
    }
}
