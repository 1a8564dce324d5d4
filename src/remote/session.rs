//! The client's side of a session: what of the parent is where, and signs of life.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use crate::api::frames::{ParentSegment, Question, decode_answer};
use crate::api::{NewSession, Refusal, SessionState, sign_of_life};
use crate::remote::link::{Ask, Link, NOTHING, Sent};
use crate::remote::memory::{Entry, Memory};
use crate::remote::tries::{Ended, Tries};
use crate::remote::{RemoteError, part};
use crate::segment::{Geometry, SegmentIndex, SegmentSize};

/// How many segments of the parent are asked for at once, and how many times as many are kept.
const WINDOW: u32 = 4096;
const WINDOWS: usize = 4;
/// How many segments the service is asked about at once.
const QUESTIONS: usize = 4096;
/// How long the answer to a sign of life is waited for.
const ALIVE: Duration = Duration::from_secs(10);
/// How much later a session may yield than it was said to, before its client counts as alive: a second, for it is told in
/// whole ones, and a fifth of what was said, for an answer may come late.
const ROUNDING: Duration = Duration::from_secs(1);
const LATE: u32 = 5;
/// How long an image is waited for whose other session says nothing of itself.
const OTHER: Duration = Duration::from_mins(2);

/// A session, and what it knows of the parent.
#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) link: &'a Link,
    pub(super) state: SessionState,
    pub(super) geometry: Geometry,
    windows: Mutex<VecDeque<(u32, Arc<Window>)>>,
    _alive: Sender<()>,
}

/// Neighbouring segments of the parent, once they have come.
#[derive(Debug, Default)]
struct Window(Mutex<Option<Vec<ParentSegment>>>);

impl<'a> Session<'a> {
    /// Begins a session. One that another client has lost is waited for until it yields; beside one that is alive, the
    /// backup ends.
    pub(super) fn begin(link: &'a Link, new: &NewSession) -> Result<Self, RemoteError> {
        let mut tries = Tries::new(link);
        let (mut promised, mut silent_since) = (None::<Instant>, None::<Instant>);
        let state: SessionState = loop {
            let error = match link.document("POST", "/v1/sessions", Some(new)) {
                Ok(state) => break state,
                Err(error) => error,
            };
            let RemoteError::Refused { problem, retry_after, .. } = &error else { return Err(error) };
            if problem.kind != Refusal::Busy {
                return Err(error);
            }
            let now = Instant::now();
            let is_alive = match retry_after {
                // The other session was heard since: it yields later than was said at first.
                Some(yields) => {
                    let end = *promised.get_or_insert(now + *yields + ROUNDING + *yields / LATE);
                    now + *yields > end
                }
                None => now.duration_since(*silent_since.get_or_insert(now)) > OTHER,
            };
            if is_alive {
                return Err(error);
            }
            match tries.wait(&problem.detail, Some(Duration::from_secs(1))) {
                Ok(()) => {}
                Err(Ended::Exhausted) => return Err(error),
                Err(Ended::Stopped) => {
                    return Err(RemoteError::Stopped { address: link.address().to_string() });
                }
            }
        };
        tries.progressed();
        let size = SegmentSize::new(u64::from(state.segment_size));
        let size = size.map_err(|error| link.misunderstood(&error))?;
        let geometry = Geometry::new(new.size_of_disk, size).map_err(|error| link.misunderstood(&error))?;
        // What a service calls the image is of no interest.
        let state = SessionState { name: new.name.clone(), ..state };
        let alive = keep_alive(link, &path(&state, ""), sign_of_life(state.silence_seconds));
        Ok(Self { link, state, geometry, windows: Mutex::default(), _alive: alive })
    }

    pub(super) fn path(&self, what: &str) -> String {
        path(&self.state, what)
    }

    /// Gives it up; a service that is away does so by itself.
    pub(super) fn give_up(&self) {
        let path = self.path("");
        let ask = Ask { method: "DELETE", ..Ask::get(&path) };
        if let Err(error) = self.link.ask_once(ask, Some(ALIVE)) {
            tracing::debug!(%error, "the service gives the session up by itself");
        }
    }

    /// Forgets what of the memory is of no use to this session: what another parent had, and what the service lacks.
    pub(super) fn recall(&self, memory: &mut Memory) -> Result<(), RemoteError> {
        // A service that does not say which parent it is may have another one in each session.
        let parent = self.state.parent.as_ref().unwrap_or(&self.state.session);
        memory.fit(parent, self.state.segment_size);
        let mut lacking = Vec::new();
        let named: Vec<_> = memory
            .entries()
            .iter()
            .filter_map(|(index, entry)| match *entry {
                Entry::Kept { .. } => None,
                Entry::Segment { hash, fingerprint, .. } => {
                    let plain_length = self.geometry.length(*index);
                    Some((*index, Question { hash, fingerprint, plain_length }))
                }
            })
            .collect();
        for named in named.chunks(QUESTIONS) {
            let questions: Vec<_> = named.iter().map(|(_, question)| *question).collect();
            let lacks = self.lacking(&questions)?;
            lacking.extend(named.iter().zip(lacks).filter(|(_, lacks)| *lacks).map(|((index, _), _)| *index));
        }
        memory.forget(&lacking);
        Ok(())
    }

    /// Asks which segments are to be sent.
    pub(super) fn lacking(&self, questions: &[Question]) -> Result<Vec<bool>, RemoteError> {
        let mut frames = Vec::with_capacity(questions.len() * Question::LENGTH);
        for question in questions {
            question.encode(&mut frames);
        }
        let path = self.path("/lacking");
        let answer = self.link.bytes(Ask::post(&path, &frames), questions.len() as u64)?;
        decode_answer(&answer, questions.len()).map_err(|error| self.link.misunderstood(&error))
    }

    /// Sends segments, each of them frames. Over a link that breaks, what has come is not sent again, and the others go one by
    /// one: so each that comes is progress.
    pub(super) fn send_segments(
        &self,
        body: &[u8],
        sent: &[(Question, Range<usize>)],
    ) -> Result<(), RemoteError> {
        let path = self.path("/segments");
        let Err(error) = self.link.ask_once(Ask::post(&path, body), None) else { return Ok(()) };
        Tries::new(self.link).failed(error)?;
        let questions: Vec<_> = sent.iter().map(|(question, _)| *question).collect();
        let lacking = self.lacking(&questions)?;
        for ((_, range), _) in sent.iter().zip(lacking).filter(|(_, lacks)| *lacks) {
            self.send("/segments", body.get(range.clone()).unwrap_or_default())?;
        }
        Ok(())
    }

    /// Sends frames that are answered by nothing.
    pub(super) fn send(&self, what: &str, frames: &[u8]) -> Result<(), RemoteError> {
        self.link.bytes(Ask::post(&self.path(what), frames), NOTHING).map(drop)
    }

    /// Returns what the parent has at a place.
    pub(super) fn parent(&self, index: SegmentIndex) -> Result<Option<ParentSegment>, RemoteError> {
        if !self.state.has_parent {
            return Ok(None);
        }
        let first = index.0 / WINDOW * WINDOW;
        let window = self.window(first);
        // Held over I/O: whoever else comes wants the same window.
        let mut segments = window.0.lock().unwrap_or_else(PoisonError::into_inner);
        let segments = match &mut *segments {
            Some(segments) => segments,
            empty => empty.insert(self.ask_for_parent(first)?),
        };
        let found = segments.binary_search_by_key(&index, |segment| segment.index).ok();
        Ok(found.and_then(|at| segments.get(at)).copied())
    }

    fn window(&self, first: u32) -> Arc<Window> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, window)) = windows.iter().find(|(start, _)| *start == first) {
            return Arc::clone(window);
        }
        let window = Arc::new(Window::default());
        windows.push_back((first, Arc::clone(&window)));
        if windows.len() > WINDOWS {
            windows.pop_front();
        }
        window
    }

    fn ask_for_parent(&self, first: u32) -> Result<Vec<ParentSegment>, RemoteError> {
        let behind = first.saturating_add(WINDOW);
        let path = self.path(&format!("/parent?first={first}&behind={behind}"));
        let limit = u64::from(WINDOW) * ParentSegment::LENGTH as u64;
        let frames = self.link.bytes(Ask::get(&path), limit)?;
        ParentSegment::decode_range(&frames, first..behind).map_err(|error| self.link.misunderstood(&error))
    }
}

fn path(state: &SessionState, what: &str) -> String {
    // Whatever a service calls a session, no other path comes of it.
    format!("/v1/sessions/{}{what}", part(&state.session))
}

/// Gives a sign of life at an interval, until what this returns is dropped. The source may be read for hours without a word
/// to the service: it is zeros, or what the parent has.
fn keep_alive(link: &Link, path: &str, interval: Duration) -> Sender<()> {
    let (end, ended) = bounded(0);
    let (link, path) = (link.clone(), path.to_owned());
    let thread = std::thread::Builder::new().name("ekko-alive".to_owned());
    let started = thread.spawn(move || {
        let mut pause = interval;
        while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            // What came of the session is seen by whoever asks next for something of it.
            pause = match link.ask_once(Ask { sent: Sent::Nothing, ..Ask::get(&path) }, Some(ALIVE)) {
                Ok(_) => interval,
                Err(error) if error.is_gone() => return,
                Err(error) => {
                    tracing::debug!(%error, "a sign of life was not answered");
                    interval.min(ALIVE)
                }
            };
        }
    });
    if let Err(error) = started {
        tracing::warn!(%error, "the service may end the backup's session while nothing is sent");
    }
    end
}
