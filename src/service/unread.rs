//! Bodies of requests that the service answers without reading them, such as those that it refuses.
//!
//! HTTP cannot skip a body: what remains of it would be read as the next request. So the service reads the rest of a short
//! body and drops it, and announces the end of the connection otherwise. Without the announcement, a client sends its next
//! request into a connection that is about to close, and gets a broken pipe instead of an answer.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};

/// How much of a body is read only to drop it, in bytes.
const SHORT: usize = 64 << 10;
/// How long the service waits for the rest of a short body.
const PATIENCE: Duration = Duration::from_secs(1);

/// The part of a request's body that was not read, once nobody reads it any longer.
#[derive(Debug)]
pub(super) struct Unread {
    rest: Arc<Mutex<Option<Body>>>,
    /// Whether the client sends the body only when it is asked to (`Expect: 100-continue`).
    waits: bool,
}

/// A body that leaves what was not read of it behind when it is dropped.
struct Watched {
    body: Body,
    ended: bool,
    rest: Arc<Mutex<Option<Body>>>,
}

impl Unread {
    /// Watches the body of a request.
    pub(super) fn watch(request: Request) -> (Self, Request) {
        let rest = Arc::default();
        let unread = Self { rest: Arc::clone(&rest), waits: request.headers().contains_key(header::EXPECT) };
        let watch = |body: Body| {
            if body.is_end_stream() { body } else { Body::new(Watched { body, ended: false, rest }) }
        };
        (unread, request.map(watch))
    }

    /// Reads the rest of a short body. Returns whether the connection must end, because a part of the body remains unread.
    pub(super) async fn remains(self) -> bool {
        let rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(body) = rest else { return false };
        if self.waits {
            return true;
        }
        !matches!(tokio::time::timeout(PATIENCE, skip(body)).await, Ok(true))
    }
}

/// Drops a body that is short. Returns whether it ended.
async fn skip(mut body: Body) -> bool {
    let mut left = SHORT;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        let length = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(length) else { return false };
        left = rest;
    }
    true
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) || self.body.is_end_stream() {
            self.ended = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.ended {
            let body = std::mem::take(&mut self.body);
            *self.rest.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}
