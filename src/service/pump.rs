//! Bodies that are made piece by piece, for clients that may be slow.
//!
//! A [`Source`] makes a piece each time it is asked, on a thread that may block, and then lets the thread go: while a client
//! reads, its body is a place in a file or in a manifest, and no thread. Two pieces are in memory at most, one that is
//! sent and one that is made meanwhile. A failure before the first piece is answered like any failure; a later one cuts the
//! connection, so that nobody takes a part for the whole.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use futures_util::stream::{self, Stream};

use crate::api::Refusal;
use crate::service::limits::Share;
use crate::service::work::Running;
use crate::service::{App, Caller, Refused};

/// The size of a piece, in bytes, about.
pub(super) const PIECE: usize = 128 << 10;

/// Makes a body.
pub(super) trait Source: Send + 'static {
    /// Makes the next piece, which is not empty; nothing at the end. Blocks, but never for a client.
    ///
    /// # Errors
    ///
    /// If the rest of the body cannot be made.
    fn next(&mut self) -> Result<Option<Bytes>, Refused>;
}

type Made<S> = Result<Option<(Bytes, S)>, Refused>;

fn make<S: Source>(mut source: S) -> Made<S> {
    Ok(source.next()?.map(|piece| (piece, source)))
}

/// What a stream of pieces does next.
enum Next<S> {
    Send(Bytes, S),
    Await(Running<Option<(Bytes, S)>>),
}

/// Returns the body that the source makes that `open` opens.
///
/// # Errors
///
/// If the source cannot be opened, or its first piece cannot be made.
pub(super) async fn body<S: Source>(
    app: &Arc<App>,
    caller: &Caller,
    open: impl FnOnce(&Arc<App>, &Caller) -> Result<S, Refused> + Send + 'static,
) -> Result<Body, Refused> {
    let first = app.blocking(caller, move |app, caller| make(open(app, caller)?)).await?;
    let Some((piece, source)) = first else { return Ok(Body::empty()) };
    let (app, caller) = (Arc::clone(app), caller.clone());
    let pieces = stream::try_unfold(Some(Next::Send(piece, source)), move |next| {
        let (app, caller) = (Arc::clone(&app), caller.clone());
        async move {
            let made = match next {
                None => None,
                Some(Next::Send(piece, source)) => Some((piece, source)),
                Some(Next::Await(making)) => making.await?,
            };
            Ok(made.map(|(piece, source)| {
                let making = app.blocking(&caller, move |_, _| make(source));
                (piece, Some(Next::Await(making)))
            }))
        }
    });
    Ok(cut_at_a_failure(pieces))
}

/// Returns a body of pieces; the first failure cuts it.
pub(super) fn cut_at_a_failure(pieces: impl Stream<Item = Result<Bytes, Refused>> + Send + 'static) -> Body {
    Body::from_stream(futures_util::TryStreamExt::map_err(pieces, |refused| {
        tracing::warn!(why = refused.for_the_log(), "a body ends early");
        io::Error::other("the body ends early")
    }))
}

/// A file, from its beginning to its end.
pub(super) struct FileSource {
    file: File,
    /// What this file takes of something that is shared out.
    _share: Option<Share>,
}

impl FileSource {
    pub(super) fn new(file: File, share: Option<Share>) -> Self {
        Self { file, _share: share }
    }
}

impl Source for FileSource {
    fn next(&mut self) -> Result<Option<Bytes>, Refused> {
        let mut piece = Vec::with_capacity(PIECE);
        let read = (&mut self.file).take(PIECE as u64).read_to_end(&mut piece);
        read.map_err(|error| Refused::internal(Refusal::Io, &error))?;
        Ok((!piece.is_empty()).then(|| piece.into()))
    }
}
