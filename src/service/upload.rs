//! Segments that a client sends, gathered before a thread works on them.
//!
//! Memory for a segment is taken when its head has come, by what the head says, and no earlier: whoever sends slowly holds what
//! their segment takes, out of their own share. An upload that finds no memory has what it gathered stored first and then
//! waits with nothing in hand, so that uploads never wait for each other.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;

use crate::api::Refusal;
use crate::api::frames::SegmentHead;
use crate::segment::SegmentSize;
use crate::service::extract::body_failed;
use crate::service::limits::{Share, Shares};
use crate::service::sessions::receive::{Received, check_head};
use crate::service::work::units;
use crate::service::{App, Caller, Refused};

/// How many bytes of segments are stored together, at least one segment.
const TOGETHER: usize = 4 << 20;
/// What a segment takes beside its stored bytes, in bytes.
const BESIDE: usize = 256;

/// Segments that are complete.
pub(super) struct Batch {
    pub(super) segments: Vec<Received>,
    _memory: Vec<Share>,
}

/// The body of an upload.
pub(super) struct Upload {
    body: Body,
    /// What came of the body and has not been used.
    piece: Bytes,
    /// A head that was read, and whose segment did not fit.
    head: Option<SegmentHead>,
    memory: Arc<Shares>,
    who: String,
    size: SegmentSize,
}

impl Upload {
    pub(super) fn new(app: &App, caller: &Caller, body: Body) -> Self {
        Self {
            body,
            piece: Bytes::new(),
            head: None,
            memory: Arc::clone(&app.work().arriving),
            who: caller.who.clone(),
            size: app.repository().settings().segment_size,
        }
    }

    /// Reads the next segments, as many as are stored together; nothing at the end of the body.
    ///
    /// # Errors
    ///
    /// If the body is cut, too slow or wrong, or if there is no memory for it in time.
    pub(super) async fn batch(&mut self) -> Result<Option<Batch>, Refused> {
        let (mut segments, mut memory, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes < TOGETHER
            && let Some(head) = self.head().await?
        {
            let length = head.stored_length as usize;
            let needed = units(length + BESIDE);
            match self.memory.try_take(&self.who, needed) {
                Some(share) => memory.push(share),
                None if segments.is_empty() => memory.push(self.memory.take(&self.who, needed).await?),
                None => {
                    self.head = Some(head);
                    break;
                }
            }
            let mut stored = Vec::with_capacity(length);
            self.read(length, &mut stored).await?;
            bytes += head.plain_length as usize + BESIDE;
            segments.push(Received { head, stored });
        }
        Ok((!segments.is_empty()).then_some(Batch { segments, _memory: memory }))
    }

    /// Reads the next head; nothing at the end of the body.
    async fn head(&mut self) -> Result<Option<SegmentHead>, Refused> {
        if let Some(head) = self.head.take() {
            return Ok(Some(head));
        }
        if !self.more().await? {
            return Ok(None);
        }
        let mut frame = Vec::with_capacity(SegmentHead::LENGTH);
        self.read(SegmentHead::LENGTH, &mut frame).await?;
        let head = SegmentHead::decode(&frame).map_err(|_| cut())?;
        // What it says of its length is held to a bound before there is room made for it.
        check_head(&head, self.size)?;
        Ok(Some(head))
    }

    /// Makes sure that there is a piece. Says whether the body goes on.
    async fn more(&mut self) -> Result<bool, Refused> {
        while self.piece.is_empty() {
            match self.body.frame().await {
                None => return Ok(false),
                Some(Ok(frame)) => self.piece = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Err(body_failed(&error)),
            }
        }
        Ok(true)
    }

    /// Appends the next `length` bytes.
    async fn read(&mut self, length: usize, bytes: &mut Vec<u8>) -> Result<(), Refused> {
        let mut left = length;
        while left > 0 {
            if !self.more().await? {
                return Err(cut());
            }
            let taken = self.piece.split_to(left.min(self.piece.len()));
            bytes.extend_from_slice(&taken);
            left -= taken.len();
        }
        Ok(())
    }
}

fn cut() -> Refused {
    Refused::new(Refusal::Invalid, "the body is cut")
}
