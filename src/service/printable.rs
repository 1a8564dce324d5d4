//! Answers in JSON that are safe to look at: `curl` shows them at a terminal, and tags, notes and messages in them are the words
//! of others.

use std::borrow::Cow;

use axum::body::{Body, HttpBody, to_bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::api::Refusal;
use crate::escape::escaped_json;
use crate::service::Refused;

/// The types of documents in JSON.
const JSON: [&str; 2] = ["application/json", "application/problem+json"];

/// Replaces what a terminal would obey by its escapes, in documents that are there as a whole. Those that are written as they
/// are found have numbers alone, and events are made safe where they are made.
pub(super) async fn printable(response: Response) -> Response {
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let is_json = kind.is_some_and(|kind| JSON.iter().any(|json| kind.starts_with(json)));
    if !is_json || response.body().size_hint().exact().is_none() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, usize::MAX).await else {
        return Refused::new(Refusal::Io, "the request was ended by a fault of the server").into_response();
    };
    let body = match std::str::from_utf8(&bytes).map(escaped_json) {
        Ok(Cow::Owned(text)) => {
            // It is longer now; the connection counts it.
            parts.headers.remove(header::CONTENT_LENGTH);
            Body::from(text)
        }
        _ => Body::from(bytes),
    };
    Response::from_parts(parts, body)
}
