//! A connection whose client must read what it asked for.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::service::limits::patience::Patience;

/// A stream that fails when its client takes too long to take what is written.
#[derive(Debug)]
pub(in crate::service) struct Steady<S> {
    stream: S,
    patience: Patience,
}

impl<S> Steady<S> {
    pub(in crate::service) fn new(stream: S, most: Duration, slowest: u64) -> Self {
        Self { stream, patience: Patience::new(most, slowest) }
    }

    fn bound<T>(
        &mut self,
        result: Poll<io::Result<T>>,
        bytes: impl Fn(&T) -> usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(result) => {
                self.patience.earn(result.as_ref().map_or(0, bytes));
                Poll::Ready(result)
            }
            Poll::Pending => {
                let slow = || io::Error::new(io::ErrorKind::TimedOut, "the client does not read");
                self.patience.poll_end(cx).map(|()| Err(slow()))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Steady<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Steady<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bound(result, |written| *written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.bound(result, |written| *written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.bound(result, |()| 0, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.bound(result, |()| 0, cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn who_does_not_read_is_let_go_and_who_reads_steadily_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = tokio::io::duplex(1024);
            let mut ours = Steady::new(ours, Duration::from_millis(50), 10_000);
            let error = ours.write_all(&vec![1; 100_000]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            drop(theirs);
            let (ours, mut theirs) = tokio::io::duplex(1024);
            let mut ours = Steady::new(ours, Duration::from_millis(500), 1);
            let all = vec![1; 100_000];
            let read = async {
                let mut all = vec![0; 100_000];
                theirs.read_exact(&mut all).await.unwrap();
            };
            let (written, ()) = tokio::join!(ours.write_all(&all), read);
            written.unwrap();
        });
    }
}
