//! How long a slow client is waited for.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

/// Time for a client to do its part. It is used up by waiting, and earned by bytes, never more than it began with: so no
/// pause is longer than that, and whoever sends a byte now and then is not waited for forever either. What the server
/// itself takes does not count.
#[derive(Debug)]
pub(super) struct Patience {
    left: Duration,
    most: Duration,
    /// Bytes that earn a second.
    slowest: u64,
    waits_since: Option<Instant>,
    end: Pin<Box<Sleep>>,
}

impl Patience {
    pub(super) fn new(most: Duration, slowest: u64) -> Self {
        let end = Box::pin(tokio::time::sleep(most));
        Self { left: most, most, slowest: slowest.max(1), waits_since: None, end }
    }

    /// To be asked when there is nothing to do but to wait; ready when there is no time left.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.waits_since.is_none() {
            let now = Instant::now();
            self.waits_since = Some(now);
            self.end.as_mut().reset(now + self.left);
        }
        self.end.as_mut().poll(cx)
    }

    /// To be told of what came, or of what was taken.
    pub(super) fn earn(&mut self, bytes: usize) {
        if let Some(since) = self.waits_since.take() {
            self.left = self.left.saturating_sub(since.elapsed());
        }
        let earned = Duration::from_micros((bytes as u64).saturating_mul(1_000_000) / self.slowest);
        self.left = self.left.saturating_add(earned).min(self.most);
    }
}

/// A client took too long to send a body.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the body did not come in time")]
pub(in crate::service) struct TooSlow;

/// Says whether something failed because a client took too long to send a body.
pub(in crate::service) fn is_too_slow(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<TooSlow>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// The body of a request, which fails when its client is too slow.
#[derive(Debug)]
pub(in crate::service) struct PatientBody {
    body: Body,
    patience: Patience,
}

impl PatientBody {
    /// Waits `most` between two pieces, and for no less than `slowest` bytes a second in the long run.
    pub(in crate::service) fn new(body: Body, most: Duration, slowest: u64) -> Self {
        Self { body, patience: Patience::new(most, slowest) }
    }
}

impl HttpBody for PatientBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                if let Some(Ok(frame)) = &frame {
                    self.patience.earn(frame.data_ref().map_or(0, Bytes::len));
                }
                Poll::Ready(frame)
            }
            Poll::Pending => self.patience.poll_end(cx).map(|()| Some(Err(axum::Error::new(TooSlow)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits `pause` of a second before each piece of `bytes`, up to `pieces` times, and says how many came.
    fn pieces_of(bytes: usize, pause: u64, pieces: usize) -> usize {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut patience = Patience::new(Duration::from_millis(40), 1000);
            for piece in 0..pieces {
                let mut wait = std::pin::pin!(tokio::time::sleep(Duration::from_millis(pause)));
                let ended = std::future::poll_fn(|cx| match wait.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(false),
                    Poll::Pending => patience.poll_end(cx).map(|()| true),
                });
                if ended.await {
                    return piece;
                }
                patience.earn(bytes);
            }
            pieces
        })
    }

    #[test]
    fn a_long_pause_ends_it_and_so_do_many_short_ones_for_nothing() {
        assert_eq!(pieces_of(1_000_000, 400, 2), 0, "one pause that is too long");
        assert!(pieces_of(1, 4, 100) < 12, "a byte now and then");
        assert_eq!(pieces_of(1_000, 1, 30), 30, "as fast as is asked for");
    }

    #[test]
    fn what_failed_for_slowness_is_told_from_the_rest() {
        assert!(is_too_slow(&axum::Error::new(axum::Error::new(TooSlow))));
        assert!(!is_too_slow(&axum::Error::new(std::io::Error::other("cut"))));
    }
}
