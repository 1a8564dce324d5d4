//! The client's side of a backup that is sent.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::api::frames::{Entry, ParentSegment, Question, SegmentHead, decode_answer};
use crate::api::{Committed, NewSession, Refusal, SessionState};
use crate::backup::{
    BackupError, BackupOptions, BackupStats, BackupSummary, Class, InOrder, Outcome, SegmentWorker, read_for,
};
use crate::codec::{CompressionSetting, Encoder};
use crate::image::Image;
use crate::manifest::{ImageName, Incremental};
use crate::progress::{Part, Progress};
use crate::remote::link::{Link, Sent};
use crate::remote::{RemoteError, RemoteRepository};
use crate::repository::{BackupId, CommittedBackup};
use crate::segment::{
    Fingerprint, Geometry, SegmentHash, SegmentIndex, SegmentKey, SegmentSize, Twin, is_zero,
};

/// How many segments of the parent are asked for at once, and how many times as many are kept.
const WINDOW: u32 = 4096;
const WINDOWS: usize = 4;
/// How many entries of the manifest are sent at once.
const PART: usize = 4096;
/// How often a backup begins anew after its session was lost.
const ATTEMPTS: u32 = 100;
/// How long an image that another session has is waited for.
const PATIENCE: Duration = Duration::from_mins(2);

impl RemoteRepository {
    /// Backs `image` up as the next backup of `name`, compressed as `compression` or the repository says.
    ///
    /// When this returns, the backup is durable on the service's side. If the session is lost, the backup begins anew and
    /// goes on with what was sent.
    ///
    /// # Errors
    ///
    /// If the image or the service fails, or refuses.
    pub fn back_up(
        &self,
        name: &ImageName,
        image: &dyn Image,
        compression: Option<CompressionSetting>,
        options: &BackupOptions,
        progress: &dyn Progress,
    ) -> Result<BackupSummary, BackupError> {
        let begun = Instant::now();
        let new = NewSession {
            name: name.as_str().to_owned(),
            size_of_disk: image.size(),
            tags: options.tags.clone(),
            format: options.format.format.name().to_owned(),
            recognised: options.format.recognised,
            in_use: options.in_use.clone(),
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let session = Session::begin(&self.link, &new)?;
            match session.run(image, compression, options, progress) {
                Ok((committed, stats)) => {
                    let backup = self.committed(&committed)?;
                    let (size_of_disk, elapsed) = (image.size(), begun.elapsed());
                    return Ok(BackupSummary { backup, size_of_disk, stats, tracking: None, elapsed });
                }
                Err(error) => {
                    session.give_up();
                    if !is_lost(&error) || attempts >= ATTEMPTS {
                        return Err(error);
                    }
                    tracing::info!(%error, "the backup begins anew, with what was sent");
                }
            }
        }
    }

    fn committed(&self, committed: &Committed) -> Result<CommittedBackup, RemoteError> {
        let misunderstood = |what: &dyn std::fmt::Display| self.link.misunderstood(what);
        let (name, _) = committed.backup.rsplit_once('@').ok_or_else(|| misunderstood(&"no backup"))?;
        let incremental = Incremental(committed.incremental);
        Ok(CommittedBackup {
            id: BackupId { name: name.to_owned(), incremental },
            backupset: committed.backupset.parse().map_err(|error: uuid::Error| misunderstood(&error))?,
            incremental,
            timestamp: committed.timestamp.parse().map_err(|error: jiff::Error| misunderstood(&error))?,
            replace_index: false,
        })
    }
}

/// Says whether the session was lost, with the service or with its index.
fn is_lost(error: &BackupError) -> bool {
    let BackupError::Elsewhere { source, .. } = error else { return false };
    match source.downcast_ref::<RemoteError>() {
        Some(RemoteError::Refused { problem, .. }) => {
            matches!(problem.kind, Refusal::NotFound | Refusal::Gone)
        }
        _ => false,
    }
}

/// A session, and what it knows of the parent.
#[derive(Debug)]
struct Session<'a> {
    link: &'a Link,
    state: SessionState,
    geometry: Geometry,
    windows: Mutex<VecDeque<(u32, Arc<Window>)>>,
}

/// Neighbouring segments of the parent, once they have come.
#[derive(Debug, Default)]
struct Window(Mutex<Option<Vec<ParentSegment>>>);

impl<'a> Session<'a> {
    fn begin(link: &'a Link, new: &NewSession) -> Result<Self, RemoteError> {
        let begun = Instant::now();
        let state: SessionState = loop {
            match link.document("POST", "/v1/sessions", Some(new)) {
                // A session that its client has lost is given up after some time.
                Err(RemoteError::Refused { problem, .. })
                    if problem.kind == Refusal::Busy && begun.elapsed() < PATIENCE =>
                {
                    std::thread::sleep(Duration::from_secs(2));
                }
                state => break state?,
            }
        };
        let size = SegmentSize::new(u64::from(state.segment_size));
        let size = size.map_err(|error| link.misunderstood(&error))?;
        let geometry = Geometry::new(new.size_of_disk, size).map_err(|error| link.misunderstood(&error))?;
        Ok(Self { link, state, geometry, windows: Mutex::default() })
    }

    fn path(&self, what: &str) -> String {
        format!("/v1/sessions/{}{what}", self.state.session)
    }

    /// Reads the image, sends what is lacking, and has the backup committed.
    fn run(
        &self,
        image: &dyn Image,
        compression: Option<CompressionSetting>,
        options: &BackupOptions,
        progress: &dyn Progress,
    ) -> Result<(Committed, BackupStats), BackupError> {
        let usual = self.state.compression.parse().map_err(|error| {
            let error: crate::codec::InvalidCompression = error;
            self.link.misunderstood(&error)
        })?;
        let worker = |_| {
            let encoder = Encoder::new(compression.unwrap_or(usual))?;
            Ok::<_, BackupError>(Worker { session: self, encoder, body: Vec::new() })
        };
        let workers = (0..options.pace().jobs()).map(worker).collect::<Result<_, _>>()?;
        let mut order = Order { session: self, entries: Vec::new(), parts: 0 };
        let part = Part::begin(progress, &self.state.name, image.size());
        let stats = read_for(image, self.geometry, workers, &mut order, options, progress);
        drop(part);
        let stats = stats?;
        let path = self.path(&format!("/commit?parts={}", order.parts));
        Ok((self.link.document("POST", &path, None::<&()>)?, stats))
    }

    fn give_up(&self) {
        // One that is lost is not there to be given up.
        let given_up = self.link.bytes("DELETE", &self.path(""), Sent::Nothing, 1 << 20);
        if let Err(error) = given_up {
            tracing::debug!(%error, "the service gives the session up by itself");
        }
    }

    /// Returns what the parent has at a place.
    fn parent(&self, index: SegmentIndex) -> Result<Option<ParentSegment>, RemoteError> {
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
        let path = self.path(&format!("/parent?first={first}&behind={}", first.saturating_add(WINDOW)));
        let limit = u64::from(WINDOW) * ParentSegment::LENGTH as u64;
        let frames = self.link.bytes("GET", &path, Sent::Nothing, limit)?;
        ParentSegment::decode_all(&frames).map_err(|error| self.link.misunderstood(&error))
    }
}

/// What the manifest is to say of a segment.
#[derive(Clone, Copy, Debug)]
enum Named {
    Kept,
    Segment { hash: SegmentHash, fingerprint: Fingerprint },
}

/// Hashes segments, asks which are lacking, and sends those.
struct Worker<'a> {
    session: &'a Session<'a>,
    encoder: Encoder,
    body: Vec<u8>,
}

impl SegmentWorker for Worker<'_> {
    type Segment = Named;

    fn process(
        &mut self,
        first: SegmentIndex,
        bytes: &[u8],
        outcomes: &mut Vec<Outcome<Named>>,
    ) -> Result<(), BackupError> {
        let geometry = self.session.geometry;
        let size = usize::try_from(geometry.segment_size().bytes()).unwrap_or(usize::MAX);
        let mut unnamed: Vec<(usize, Fingerprint, &[u8])> = Vec::new();
        for (index, plain) in (first.0..).map(SegmentIndex).zip(bytes.chunks(size)) {
            if !geometry.keeps_zeros(index) && is_zero(plain) {
                outcomes.push(Outcome { index, class: Class::Zero, segment: None });
                continue;
            }
            let (fingerprint, plain_length) = (Fingerprint::of(plain), geometry.length(index));
            let before = self.session.parent(index)?;
            if before.is_some_and(|it| it.fingerprint == fingerprint && it.plain_length == plain_length) {
                outcomes.push(Outcome { index, class: Class::Unchanged, segment: Some(Named::Kept) });
                continue;
            }
            unnamed.push((outcomes.len(), fingerprint, plain));
            outcomes.push(Outcome { index, class: Class::Deduplicated { recalled: false }, segment: None });
        }
        let hashes = SegmentHash::of_each(&unnamed.iter().map(|(_, _, plain)| *plain).collect::<Vec<_>>());
        let (mut asked, mut names) = (Vec::with_capacity(unnamed.len()), HashSet::new());
        for ((at, fingerprint, plain), hash) in unnamed.into_iter().zip(hashes) {
            let Some(outcome) = outcomes.get_mut(at) else { continue };
            outcome.segment = Some(Named::Segment { hash, fingerprint });
            // Of equal ones the first is sent.
            if !names.insert((hash, *fingerprint.as_bytes())) {
                continue;
            }
            let plain_length = geometry.length(outcome.index);
            asked.push((at, Question { hash, fingerprint, plain_length }, plain));
        }
        if asked.is_empty() { Ok(()) } else { self.send(&asked, outcomes) }
    }
}

impl Worker<'_> {
    /// Asks which segments are lacking, and sends those.
    fn send(
        &mut self,
        asked: &[(usize, Question, &[u8])],
        outcomes: &mut [Outcome<Named>],
    ) -> Result<(), BackupError> {
        let Session { link, .. } = *self.session;
        let mut questions = Vec::with_capacity(asked.len() * Question::LENGTH);
        for (_, question, _) in asked {
            question.encode(&mut questions);
        }
        let limit = asked.len() as u64;
        let answer = link.bytes("POST", &self.session.path("/lacking"), Sent::Frames(&questions), limit)?;
        let lacking = decode_answer(&answer, asked.len()).map_err(|error| link.misunderstood(&error))?;
        self.body.clear();
        for ((at, question, plain), _) in asked.iter().zip(lacking).filter(|(_, lacks)| *lacks) {
            let stored_bytes = self.frame(question, plain);
            if let Some(outcome) = outcomes.get_mut(*at) {
                outcome.class = Class::New { plain_bytes: plain.len() as u64, stored_bytes };
            }
        }
        if !self.body.is_empty() {
            link.bytes("POST", &self.session.path("/segments"), Sent::Frames(&self.body), 1 << 20)?;
        }
        Ok(())
    }

    /// Appends a segment to what is sent. Returns the length of its stored bytes.
    fn frame(&mut self, question: &Question, plain: &[u8]) -> u64 {
        let at = self.body.len();
        self.body.resize(at + SegmentHead::LENGTH, 0);
        let codec = self.encoder.encode(plain, &mut self.body);
        let stored = self.body.len() - at - SegmentHead::LENGTH;
        let head = SegmentHead {
            index: SegmentIndex(0),
            plain_length: question.plain_length,
            stored_length: u32::try_from(stored).unwrap_or(u32::MAX),
            compression: codec.compression.id(),
            encryption: codec.encryption.id(),
            key: SegmentKey { hash: question.hash, twin: Twin(0) },
            fingerprint: question.fingerprint,
        };
        let mut bytes = Vec::with_capacity(SegmentHead::LENGTH);
        head.encode(&mut bytes);
        if let Some(room) = self.body.get_mut(at..at + SegmentHead::LENGTH) {
            room.copy_from_slice(&bytes);
        }
        stored as u64
    }
}

/// Sends the manifest, part after part.
struct Order<'a> {
    session: &'a Session<'a>,
    entries: Vec<Entry>,
    parts: u64,
}

impl InOrder<Named> for Order<'_> {
    fn push(&mut self, outcome: Outcome<Named>) -> Result<(), BackupError> {
        let Outcome { index, segment, .. } = outcome;
        match (segment, self.entries.last_mut()) {
            (None, _) => {}
            (Some(Named::Kept), Some(Entry::Kept { first, count })) if first.0 + *count == index.0 => {
                *count += 1;
            }
            (Some(Named::Kept), _) => self.entries.push(Entry::Kept { first: index, count: 1 }),
            (Some(Named::Segment { hash, fingerprint }), _) => {
                self.entries.push(Entry::Segment { index, hash, fingerprint });
            }
        }
        if self.entries.len() >= PART { self.send() } else { Ok(()) }
    }

    fn finish(&mut self) -> Result<u64, BackupError> {
        self.send()?;
        Ok(0)
    }
}

impl Order<'_> {
    fn send(&mut self) -> Result<(), BackupError> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let mut frames = Vec::with_capacity(self.entries.len() * Entry::LONGEST);
        for entry in self.entries.drain(..) {
            entry.encode(&mut frames);
        }
        let path = self.session.path(&format!("/entries?part={}", self.parts));
        self.session.link.bytes("POST", &path, Sent::Frames(&frames), 1 << 20)?;
        self.parts += 1;
        Ok(())
    }
}
