//! The client's side of a backup that is sent.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::api::frames::{self, Question, SegmentHead};
use crate::api::{Committed, NewSession, SourceFlaws};
use crate::backup::{
    BackupError, BackupOptions, BackupStats, BackupSummary, Class, InOrder, Outcome, SegmentWorker,
    WatchedSource, read_for, tell_shrunk, used_bytes,
};
use crate::codec::{CompressionSetting, Encoder};
use crate::image::{Extent, Image, ImageError};
use crate::manifest::{Flaws, ImageName, Incremental};
use crate::progress::{Notice, Part, Progress};
use crate::remote::memory::{Entry, Fresh, Memory, zeros};
use crate::remote::session::Session;
use crate::remote::tries::{Ended, Tries};
use crate::remote::{RemoteError, RemoteRepository};
use crate::repository::{BackupId, BackupNumber, CommittedBackup};
use crate::segment::{Fingerprint, SegmentHash, SegmentIndex, SegmentKey, Twin, is_zero};

/// How many entries of the manifest are sent at once.
const PART: usize = 4096;
/// How many sessions after another may be lost that found out nothing that the memory has room for.
const MOST_IN_VAIN: u32 = 10;

impl RemoteRepository {
    /// Backs `image` up as the next backup of `name`, compressed as `compression` or the repository says.
    ///
    /// When this returns, the backup is durable on the service's side. If the session is lost, the backup goes on in a new
    /// one: what was read is not read again, and what was sent is not sent again.
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
        let link = self.link.stopped_by(&options.stop);
        let new = NewSession {
            name: name.as_str().to_owned(),
            size_of_disk: image.size(),
            tags: options.tags.to_strings(),
            format: options.format.format.name().to_owned(),
            recognised: options.format.recognised,
            looks_like: options.format.looks_like.map(|it| it.name().to_owned()),
            in_use: options.in_use.as_ref().map(ToString::to_string),
            source: options.origin.source.as_ref().map(ToString::to_string),
            host: options.origin.host.as_ref().map(ToString::to_string),
            client: Some(uuid::Uuid::new_v4().to_string()),
        };
        let counted = Counted { source: WatchedSource::new(image, options), read_bytes: AtomicU64::new(0) };
        let mut told_shrunk = None;
        let mut memory = Memory::default();
        let mut tries = Tries::new(&link);
        let mut in_vain = 0;
        loop {
            // Waiting for a free place is no failure either.
            let asked = Instant::now();
            let session = Session::begin(&link, &new)?;
            let before = memory.places();
            let was = session.state.parent_size_of_disk.filter(|_| told_shrunk.is_none());
            told_shrunk = told_shrunk.or(tell_shrunk(name.as_str(), was, image.size(), progress));
            match session.run(&counted, compression, options, progress, &mut memory) {
                Ok((committed, stats, flaws)) => {
                    let backup = self.committed(&session.state.backupset, &committed)?;
                    let read_bytes = counted.read_bytes.into_inner();
                    let stats = BackupStats { read_bytes, ..stats };
                    let (size_of_disk, elapsed) = (image.size(), begun.elapsed());
                    let (tracking, shrank_from) = (None, told_shrunk);
                    return Ok(BackupSummary {
                        backup,
                        size_of_disk,
                        stats,
                        tracking,
                        flaws,
                        shrank_from,
                        elapsed,
                    });
                }
                Err(error) => {
                    session.give_up();
                    drop(session);
                    in_vain = if memory.places() > before { 0 } else { in_vain + 1 };
                    if in_vain == 0 || asked.elapsed() > link.timing().budget {
                        tries.progressed();
                    }
                    if in_vain >= MOST_IN_VAIN {
                        return Err(error);
                    }
                    if let ControlFlow::Break(error) = go_on(error, &mut tries) {
                        return Err(error);
                    }
                    tries.resumed();
                    let known = memory.places();
                    progress.notice(Notice::GoesOn {
                        what: format!(
                            "the service has ended the session of {name}: the backup goes on in a new one, and {known} \
                             segments are not read again"
                        ),
                    });
                }
            }
        }
    }

    /// Returns the backup that a session became. The image may have been renamed meanwhile, so its backupset tells it.
    fn committed(&self, backupset: &str, committed: &Committed) -> Result<CommittedBackup, RemoteError> {
        let misunderstood = |what: &dyn std::fmt::Display| self.link.misunderstood(what);
        if committed.backupset != backupset {
            return Err(misunderstood(&"it says that it made a backup of another image"));
        }
        let name = committed.backup.rsplit_once('@').map(|(name, _)| name.to_owned());
        let name = name.ok_or_else(|| misunderstood(&"it says no name of the backup that it made"))?;
        let incremental = Incremental(committed.incremental);
        Ok(CommittedBackup {
            id: BackupId { name, number: BackupNumber(committed.number) },
            backupset: committed.backupset.parse().map_err(|error: uuid::Error| misunderstood(&error))?,
            incremental,
            timestamp: committed.timestamp.parse().map_err(|error: jiff::Error| misunderstood(&error))?,
            healed_segments: committed.healed_segments,
            replace_index: false,
        })
    }
}

/// Goes on after the session was lost, with the service or with its index; after any other failure the backup ends.
fn go_on(error: BackupError, tries: &mut Tries<'_>) -> ControlFlow<BackupError> {
    let BackupError::Elsewhere { source, .. } = &error else { return ControlFlow::Break(error) };
    let Some(lost) = source.downcast_ref::<RemoteError>().filter(|error| error.is_gone()) else {
        return ControlFlow::Break(error);
    };
    match tries.wait(&lost.to_string(), None) {
        Ok(()) => ControlFlow::Continue(()),
        Err(Ended::Exhausted) => ControlFlow::Break(error),
        Err(Ended::Stopped) => ControlFlow::Break(BackupError::Stopped),
    }
}

impl Session<'_> {
    /// Reads what of the image is not known, sends what is lacking, and has the backup committed. What was found out is in
    /// the memory, however this ends.
    fn run(
        &self,
        image: &Counted<'_>,
        compression: Option<CompressionSetting>,
        options: &BackupOptions,
        progress: &dyn Progress,
        memory: &mut Memory,
    ) -> Result<(Committed, BackupStats, Flaws), BackupError> {
        self.recall(memory)?;
        let usual = self.state.compression.parse().map_err(|error| {
            let error: crate::codec::InvalidCompression = error;
            self.link.misunderstood(&error)
        })?;
        let worker = |_| {
            let encoder = Encoder::new(compression.unwrap_or(usual))?;
            Ok::<_, BackupError>(Worker { session: self, encoder, body: Vec::new() })
        };
        let workers = (0..options.pace().jobs()).map(worker).collect::<Result<_, _>>()?;
        let mut order = Order::new(self, memory);
        let part = Part::begin(progress, &self.state.name, image.allocated().unwrap_or_else(|| image.size()));
        let read = read_for((image, self.geometry, memory.known()), workers, &mut order, options, progress);
        drop(part);
        let Order { fresh, stats, parts, .. } = order;
        memory.learn(fresh);
        let read = read?;
        let zero_segments = zeros(&stats, self.geometry);
        let used_bytes = used_bytes(self.geometry, zero_segments);
        let stats = BackupStats { segments: read.segments, zero_segments, used_bytes, ..stats };
        let flaws = image.source.flaws(&self.state.name, progress)?;
        let report = SourceFlaws::of(&flaws, image.read_bytes.load(Ordering::Relaxed));
        let path = self.path(&format!("/commit?parts={parts}"));
        let committed = self.link.document("POST", &path, Some(&report))?;
        Ok((committed, stats, flaws))
    }
}

/// An image, and how much of it was read, by all sessions.
#[derive(Debug)]
struct Counted<'a> {
    source: WatchedSource<'a>,
    read_bytes: AtomicU64,
}

impl Image for Counted<'_> {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn size(&self) -> u64 {
        self.source.size()
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError> {
        self.source.next_data(from)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        self.read_bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.source.read_at(buffer, offset)
    }

    fn verify_unchanged(&self) -> Result<(), ImageError> {
        self.source.verify_unchanged()
    }

    fn allocated(&self) -> Option<u64> {
        self.source.allocated()
    }
}

/// What the manifest is to say of a segment that was read.
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
        let questions: Vec<_> = asked.iter().map(|(_, question, _)| *question).collect();
        let lacking = self.session.lacking(&questions)?;
        self.body.clear();
        let mut sent = Vec::new();
        for ((at, question, plain), _) in asked.iter().zip(lacking).filter(|(_, lacks)| *lacks) {
            let start = self.body.len();
            let stored_bytes = self.frame(question, plain);
            sent.push((*question, start..self.body.len()));
            if let Some(outcome) = outcomes.get_mut(*at) {
                outcome.class = Class::New { plain_bytes: plain.len() as u64, stored_bytes };
            }
        }
        if !self.body.is_empty() {
            self.session.send_segments(&self.body, &sent)?;
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

/// Sends the manifest, part after part: what was known before, and what is read now.
struct Order<'a> {
    session: &'a Session<'a>,
    memory: &'a Memory,
    /// How many entries of the memory were sent.
    recalled: usize,
    fresh: Fresh,
    stats: BackupStats,
    part: Vec<frames::Entry>,
    parts: u64,
}

impl InOrder<Named> for Order<'_> {
    fn push(&mut self, outcome: Outcome<Named>) -> Result<(), BackupError> {
        let Outcome { index, class, segment } = outcome;
        self.recall_up_to(index.0)?;
        if let Some(named) = segment {
            let entry = match named {
                Named::Kept => Entry::Kept { count: 1 },
                Named::Segment { hash, fingerprint } => {
                    let sent = match class {
                        Class::New { stored_bytes, .. } => {
                            Some(u32::try_from(stored_bytes).unwrap_or(u32::MAX))
                        }
                        _ => None,
                    };
                    Entry::Segment { hash, fingerprint, sent }
                }
            };
            self.fresh.push((index, entry), self.memory.entries().len());
            self.name(index, entry)?;
        }
        self.fresh.reached(index.0 + 1);
        Ok(())
    }

    fn finish(&mut self) -> Result<u64, BackupError> {
        self.recall_up_to(u32::MAX)?;
        self.fresh.reached(self.session.geometry.segments());
        self.send()?;
        Ok(0)
    }
}

impl<'a> Order<'a> {
    fn new(session: &'a Session<'a>, memory: &'a Memory) -> Self {
        Self {
            session,
            memory,
            recalled: 0,
            fresh: Fresh::default(),
            stats: BackupStats::default(),
            part: Vec::new(),
            parts: 0,
        }
    }

    /// Names what is remembered of the places before `end`.
    fn recall_up_to(&mut self, end: u32) -> Result<(), BackupError> {
        while let Some((index, entry)) = self.memory.entries().get(self.recalled)
            && index.0 < end
        {
            self.recalled += 1;
            self.name(*index, *entry)?;
        }
        Ok(())
    }

    fn name(&mut self, index: SegmentIndex, entry: Entry) -> Result<(), BackupError> {
        entry.add_to(&mut self.stats, self.session.geometry.length(index));
        match (entry, self.part.last_mut()) {
            (Entry::Kept { count }, Some(frames::Entry::Kept { first, count: before }))
                if first.0 + *before == index.0 =>
            {
                *before += count;
            }
            (Entry::Kept { count }, _) => self.part.push(frames::Entry::Kept { first: index, count }),
            (Entry::Segment { hash, fingerprint, .. }, _) => {
                self.part.push(frames::Entry::Segment { index, hash, fingerprint });
            }
        }
        if self.part.len() >= PART { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<(), BackupError> {
        if self.part.is_empty() {
            return Ok(());
        }
        let mut frames = Vec::with_capacity(self.part.len() * frames::Entry::LONGEST);
        for entry in self.part.drain(..) {
            entry.encode(&mut frames);
        }
        let path = format!("/entries?part={}", self.parts);
        self.session.send(&path, &frames).map_err(RemoteError::or_forgotten)?;
        self.parts += 1;
        Ok(())
    }
}
