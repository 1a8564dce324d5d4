//! Bodies that a thread writes that may block, and that a client reads that may be slow.
//!
//! Between the two are at most [`PIECES`] pieces of [`PIECE`] bytes. A client that goes, or takes no piece for as long as
//! the limits allow, ends the writing. What fails before the first piece is answered as any failure is; what fails behind
//! it cuts the connection, so that nobody takes a part for the whole.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use bytes::BytesMut;
use futures_util::stream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::api::Refusal;
use crate::service::{App, Refused};

/// The size of a piece, in bytes.
const PIECE: usize = 64 << 10;
/// How many pieces wait for the client.
const PIECES: usize = 8;

/// What the thread hands over.
enum Message {
    Piece(Bytes),
    /// All has come.
    End,
    Failed(Refused),
}

/// The end of the channel that the thread writes to.
struct Pieces {
    channel: mpsc::Sender<Message>,
    gathered: BytesMut,
    runtime: Handle,
    patience: Duration,
}

impl Pieces {
    fn send(&mut self, message: Message) -> io::Result<()> {
        let sent = self.runtime.block_on(async {
            // The timer is made here: it needs the runtime.
            tokio::time::timeout(self.patience, self.channel.send(message)).await
        });
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone")),
            Err(_) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client takes nothing any longer")),
        }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (taken, _) = bytes.split_at(bytes.len().min(PIECE - self.gathered.len()));
        self.gathered.extend_from_slice(taken);
        if self.gathered.len() == PIECE {
            let piece = std::mem::replace(&mut self.gathered, BytesMut::with_capacity(PIECE));
            self.send(Message::Piece(piece.freeze()))?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let rest = std::mem::take(&mut self.gathered);
        self.send(Message::Piece(rest.freeze()))
    }
}

/// Returns a body of what `write` writes.
///
/// # Errors
///
/// With what fails before the first piece is full.
pub(super) async fn body(
    app: &Arc<App>,
    write: impl FnOnce(&Arc<App>, &mut dyn Write) -> Result<(), Refused> + Send + 'static,
) -> Result<Body, Refused> {
    let (channel, mut pieces) = mpsc::channel(PIECES);
    let (runtime, patience) = (Handle::current(), app.settings().limits.body());
    let write = move |app: &Arc<App>| {
        let gathered = BytesMut::with_capacity(PIECE);
        let mut out = Pieces { channel, gathered, runtime, patience };
        let gone = |error: io::Error| Refused::internal(Refusal::Timeout, &error);
        let written = write(app, &mut out).and_then(|()| out.flush().map_err(gone));
        let last = match written {
            Ok(()) => Message::End,
            Err(refused) => {
                tracing::warn!(why = refused.for_the_log(), "a body ends early");
                Message::Failed(refused)
            }
        };
        // Nobody may be there any longer.
        let _ = out.send(last);
        Ok(())
    };
    let app = Arc::clone(app);
    tokio::spawn(async move { app.blocking(write).await });
    let first = match pieces.recv().await {
        Some(Message::Piece(piece)) => piece,
        Some(Message::End) => return Ok(Body::empty()),
        Some(Message::Failed(refused)) => return Err(refused),
        None => return Err(Refused::new(Refusal::Io, "the request was ended by a fault of the server")),
    };
    let rest = stream::unfold(Some(pieces), |pieces| async {
        let mut pieces = pieces?;
        match pieces.recv().await {
            Some(Message::Piece(piece)) => Some((Ok(piece), Some(pieces))),
            Some(Message::End) => None,
            // Also if the thread has ended without a word.
            Some(Message::Failed(_)) | None => Some((Err(io::Error::other("the body ends early")), None)),
        }
    });
    let first = stream::once(async { Ok::<_, io::Error>(first) });
    Ok(Body::from_stream(futures_util::StreamExt::chain(first, rest)))
}
