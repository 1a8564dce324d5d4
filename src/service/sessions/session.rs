//! One backup that is being sent.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::api::frames::{Entry, ParentSegment, Question};
use crate::api::{Committed, Refusal, SessionState, View};
use crate::manifest::{BaseIndex, Flaws, ImageName, ManifestError, ManifestWriter, ReadEffort, SegmentRef};
use crate::repository::{BackupDraft, CommittedBackup, RepositoryError, RepositoryWriter};
use crate::segment::{Geometry, SegmentIndex, SegmentKey};
use crate::service::limits::{Allowance, Pass};
use crate::service::sessions::known::Known;
use crate::service::sessions::receive::{Decoders, Received, RepositoryOrRefused};
use crate::service::{Caller, Refused};
use crate::store::{Claim, FoundFull};

/// How many segments of the parent are told at once.
pub(in crate::service) const MOST_PARENT_SEGMENTS: u32 = 1 << 13;

/// A backup that is being sent.
#[derive(Debug)]
pub(in crate::service) struct Session {
    pub(super) id: String,
    pub(super) name: ImageName,
    view: View,
    who: String,
    /// Read by all that look up and store. Nothing once the backup is committed, or was given up: it has the memory of a
    /// session.
    work: RwLock<Option<Work>>,
    manifest: Mutex<Growing>,
    /// Whether what it sent found the disk full.
    pub(super) found_full: FoundFull,
    /// What its project may still keep. Nothing once the backup is committed, or was given up.
    allowance: Mutex<Option<Allowance>>,
    begun: Instant,
    seen: Mutex<Instant>,
    /// The word that the client has chosen for its backup.
    client: Option<String>,
    /// How many parts of the manifest have come: told without waiting for what is being written.
    parts: AtomicU64,
    /// Whether the backup is committed, or was given up: told without waiting for what is being written.
    over: AtomicBool,
    state: SessionState,
}

/// What a session works with until it is committed.
#[derive(Debug)]
struct Work {
    draft: BackupDraft,
    known: Known,
    /// Its place among the sessions that are open.
    _place: Pass,
}

/// The manifest as far as it has come.
#[derive(Debug)]
struct Growing {
    /// Nothing once the backup is committed, or was given up.
    writer: Option<ManifestWriter>,
    /// How many parts have come.
    parts: u64,
    committed: Option<Committed>,
}

type Result<T> = std::result::Result<T, RepositoryOrRefused>;

fn refuse<T>(refusal: Refusal, detail: &str) -> Result<T> {
    Err(Refused::new(refusal, detail).into())
}

/// The session is not there any longer, or what it had was lost with the index.
fn gone<T>() -> Result<T> {
    refuse(Refusal::Gone, "the session has ended: begin a new one that goes on from it")
}

impl Session {
    pub(super) fn new(
        caller: &Caller,
        (draft, manifest): (BackupDraft, ManifestWriter),
        (known, place): (Known, Pass),
        allowance: Allowance,
        state: SessionState,
        client: Option<String>,
    ) -> Self {
        Self {
            id: state.session.clone(),
            name: draft.info().name.clone(),
            found_full: draft.job().found_full(),
            view: caller.view.clone(),
            who: caller.who.clone(),
            work: RwLock::new(Some(Work { draft, known, _place: place })),
            allowance: Mutex::new(Some(allowance)),
            manifest: Mutex::new(Growing { writer: Some(manifest), parts: 0, committed: None }),
            begun: Instant::now(),
            seen: Mutex::new(Instant::now()),
            client,
            parts: AtomicU64::new(0),
            over: AtomicBool::new(false),
            state,
        }
    }

    /// Says whether it is that of a caller.
    pub(super) fn belongs_to(&self, caller: &Caller) -> bool {
        self.view == caller.view && self.who == caller.who
    }

    /// Says in the log what has become of it.
    pub(in crate::service) fn log(&self, what: &'static str) {
        let (session, number) = (&self.id, self.state.incremental);
        tracing::info!(session, who = self.who, image = %self.name, number, "{what}");
    }

    /// Says for how long nothing was heard of the client.
    pub(super) fn silence(&self) -> Duration {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    pub(in crate::service) fn heard(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Says whether a client has begun it that chose this word.
    pub(super) fn is_of_client(&self, word: Option<&str>) -> bool {
        word.is_some() && self.client.as_deref() == word
    }

    /// Says who has begun it, and how long ago.
    pub(super) fn origin(&self) -> (&str, Duration) {
        (&self.who, self.begun.elapsed())
    }

    /// Returns what is told of it. Never waits: clients ask for it as a sign of life, while the backup is committed too.
    pub(in crate::service) fn state(&self) -> SessionState {
        SessionState { entries: self.parts.load(Ordering::Acquire), ..self.state.clone() }
    }

    fn manifest(&self) -> MutexGuard<'_, Growing> {
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Does something with the draft, unless it is gone or was begun with a store that has been replaced.
    fn with_draft<T>(&self, writer: &RepositoryWriter, job: impl FnOnce(&Work) -> Result<T>) -> Result<T> {
        let work = self.work.read().unwrap_or_else(PoisonError::into_inner);
        match work.as_ref().filter(|work| writer.store().began(work.draft.job())) {
            Some(work) => job(work),
            // The store may have been opened again before its client is told that it has filled the disk.
            None if self.found_full.is_set() => {
                let path = writer.repository().layout().root();
                let reason = "the backup's segments found it full".to_owned();
                Err(RepositoryError::full(path, reason, true).into())
            }
            None => gone(),
        }
    }

    /// Takes what it works with, so that its memory is free.
    fn take_work(&self) -> Option<Work> {
        self.work.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns what segments of the parent are compared with, frame after frame.
    pub(super) fn parent(&self, writer: &RepositoryWriter, (first, behind): (u32, u32)) -> Result<Vec<u8>> {
        let mut frames = Vec::new();
        self.with_draft(writer, |Work { draft, .. }| {
            let Some(parent) = draft.parent() else { return Ok(()) };
            let most = first.saturating_add(MOST_PARENT_SEGMENTS);
            let segments = behind.min(most).min(parent.manifest.info().geometry.segments());
            let mut cursor = parent.manifest.cursor(SegmentIndex(first));
            for index in (first..segments).map(SegmentIndex) {
                let Some(segment) = cursor.at(index) else { continue };
                let stored = writer.store().require(segment.key)?;
                // A lost one is equal to nothing, so that it is sent again.
                if !writer.store().lacks(segment.key, &stored) {
                    let (plain_length, fingerprint) = (stored.plain_length, stored.fingerprint());
                    ParentSegment { index, plain_length, fingerprint }.encode(&mut frames);
                }
            }
            Ok(())
        })?;
        Ok(frames)
    }

    /// Says of each segment whether the client is to send it.
    pub(super) fn lacking(&self, writer: &RepositoryWriter, questions: &[Question]) -> Result<Vec<bool>> {
        self.with_draft(writer, |work| {
            let lacks = |question: &Question| Ok(work.find(writer, *question)?.is_none());
            questions.iter().map(lacks).collect()
        })
    }

    fn allowance(&self) -> MutexGuard<'_, Option<Allowance>> {
        self.allowance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes segments in: verifies them and stores those that are lacking. Returns how many that were.
    pub(super) fn receive(
        &self,
        writer: &RepositoryWriter,
        decoders: &Decoders,
        segments: &[Received],
    ) -> Result<u64> {
        self.with_draft(writer, |Work { draft, known, .. }| {
            // What was sent before is in the packs: a client that goes on after a break may send it once more.
            let new = segments.iter().filter(|it| !known.was_sent(&it.head.key));
            let bytes = new.map(|it| u64::from(it.head.plain_length)).sum();
            if let Some(allowance) = self.allowance().as_mut() {
                allowance.sent(bytes)?;
            }
            let size = draft.info().geometry.segment_size();
            let stored = decoders.store(writer.store(), draft.job(), segments, size)?;
            let keys: Vec<_> = stored.iter().map(|(key, _)| *key).collect();
            known.sent(&keys);
            Ok(stored.iter().filter(|(_, new)| *new).count() as u64)
        })
    }

    /// Takes the next part of the manifest; one that was taken before is taken for the same.
    pub(super) fn extend(&self, writer: &RepositoryWriter, part: u64, entries: &[Entry]) -> Result<()> {
        // Held over I/O: parts are taken one after the other, in order.
        let mut manifest = self.manifest();
        if part < manifest.parts {
            return Ok(());
        }
        if part > manifest.parts {
            return refuse(Refusal::Conflict, "the part before has not come");
        }
        self.with_draft(writer, |work| {
            let draft = &work.draft;
            // Everything is looked up before anything is written: a refused part leaves no trace.
            let resolved = work.resolve(writer, entries)?;
            let named = resolved.iter().map(|part| part.named(draft.info().geometry)).sum();
            if let Some(allowance) = self.allowance().as_mut() {
                allowance.named(named)?;
            }
            let Some(target) = manifest.writer.as_mut() else { return gone() };
            if let Err(error) = resolved.into_iter().try_for_each(|part| part.write(draft, target)) {
                manifest.writer = None;
                self.over.store(true, Ordering::Release);
                return Err(RepositoryError::from(error).into());
            }
            manifest.parts += 1;
            self.parts.store(manifest.parts, Ordering::Release);
            Ok(())
        })
    }

    /// Commits the backup; asked again, it says the same.
    pub(super) fn commit(
        &self,
        writer: &RepositoryWriter,
        parts: u64,
        (flaws, read_bytes): (&Flaws, Option<u64>),
    ) -> Result<(Committed, Option<CommittedBackup>)> {
        let mut manifest = self.manifest();
        if let Some(committed) = &manifest.committed {
            return Ok((committed.clone(), None));
        }
        if manifest.parts != parts {
            return refuse(Refusal::Conflict, "not all parts of the manifest have come");
        }
        self.with_draft(writer, |_| Ok(()))?;
        let effort = ReadEffort { read_bytes, elapsed: self.begun.elapsed() };
        self.describe_source(manifest.writer.as_mut(), flaws, effort)?;
        if let (Some(allowance), Some(target)) = (self.allowance().as_mut(), &manifest.writer) {
            allowance.manifest(target.size_at_most())?;
        }
        let taken = self.take_work();
        self.over.store(true, Ordering::Release);
        let (Some(Work { draft, known, _place: place }), Some(target)) = (taken, manifest.writer.take())
        else {
            return gone();
        };
        let backup = writer.commit(draft, target)?;
        drop(place);
        let place = (backup.backupset, backup.incremental);
        // It may have been renamed since the session began.
        let name = ImageName::new(&backup.id.name).unwrap_or_else(|_| self.name.clone());
        let committed = Committed::of(&self.view, &name, place, backup.id.number, backup.timestamp);
        let committed = Committed { healed_segments: backup.healed_segments, ..committed };
        manifest.committed = Some(committed.clone());
        if let Some(allowance) = self.allowance().take() {
            allowance.commit();
        }
        known.forget();
        Ok((committed, Some(backup)))
    }

    /// Writes down the flaws of the source that the client found, and what it took to read it.
    fn describe_source(
        &self,
        manifest: Option<&mut ManifestWriter>,
        flaws: &Flaws,
        effort: ReadEffort,
    ) -> Result<()> {
        let mut work = self.work.write().unwrap_or_else(PoisonError::into_inner);
        if let (Some(Work { draft, .. }), Some(manifest)) = (work.as_mut(), manifest) {
            draft.set_flaws(manifest, flaws).map_err(RepositoryError::from)?;
            draft.set_effort(manifest, effort).map_err(RepositoryError::from)?;
        }
        Ok(())
    }

    /// Returns the disk's size in bytes.
    pub(super) fn size_of_disk(&self) -> u64 {
        self.state.size_of_disk
    }

    /// To be told that the backup exists, though its commit had failed.
    pub(super) fn became(&self, committed: &Committed) {
        let mut manifest = self.manifest();
        manifest.committed.get_or_insert_with(|| committed.clone());
        if let Some(allowance) = self.allowance().take() {
            allowance.commit();
        }
    }

    /// Gives the backup up, if it is not committed. What was sent can be gone on from.
    pub(super) fn give_up(&self) {
        let mut manifest = self.manifest();
        self.over.store(true, Ordering::Release);
        self.end(&mut manifest);
    }

    /// Gives the backup up, unless it is being committed, or a part of its manifest is being written. Says whether it was given up.
    pub(super) fn try_give_up(&self) -> bool {
        let Ok(mut manifest) = self.manifest.try_lock() else { return false };
        if self.over.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.end(&mut manifest);
        true
    }

    fn end(&self, manifest: &mut Growing) {
        manifest.writer = None;
        *self.allowance() = None;
        drop(self.take_work());
    }
}

impl Work {
    /// Finds a segment that is stored and that this session may name.
    fn find(
        &self,
        writer: &RepositoryWriter,
        Question { hash, fingerprint, plain_length }: Question,
    ) -> Result<Option<SegmentKey>> {
        let found = writer.store().look(self.draft.job(), hash, fingerprint, plain_length)?;
        Ok(match found {
            Some(Claim::Known(key) | Claim::Unfinished(key)) if self.known.may_name(&key) => Some(key),
            Some(_) | None => None,
        })
    }

    /// Looks up what the entries of a part name.
    fn resolve(&self, writer: &RepositoryWriter, entries: &[Entry]) -> Result<Vec<Resolved>> {
        let draft = &self.draft;
        let geometry = draft.info().geometry;
        let mut resolved = Vec::with_capacity(entries.len());
        let mut next = 0;
        for entry in entries {
            let (first, behind) = match *entry {
                Entry::Kept { first, count } => (first.0, first.0.checked_add(count)),
                Entry::Segment { index, .. } => (index.0, index.0.checked_add(1)),
            };
            let Some(behind) = behind.filter(|behind| first >= next && *behind <= geometry.segments()) else {
                return refuse(Refusal::Invalid, "entries are in order, and lie on the disk");
            };
            next = behind;
            resolved.push(match *entry {
                Entry::Kept { .. } if can_keep(draft, geometry, behind - 1) => Resolved::Kept(first..behind),
                Entry::Kept { .. } => {
                    return refuse(Refusal::Invalid, "the backup before has no such segments there");
                }
                Entry::Segment { index, hash, fingerprint } => {
                    let plain_length = geometry.length(index);
                    let question = Question { hash, fingerprint, plain_length };
                    let Some(key) = self.find(writer, question)? else {
                        return refuse(Refusal::Conflict, "a segment was named that was not sent");
                    };
                    let incremental = draft.info().incremental;
                    Resolved::Segment(index, SegmentRef { key, incremental, base: BaseIndex(0) })
                }
            });
        }
        Ok(resolved)
    }
}

/// An entry that can be written.
enum Resolved {
    Kept(Range<u32>),
    Segment(SegmentIndex, SegmentRef),
}

impl Resolved {
    /// Returns how many bytes it names that are not the parent's.
    fn named(&self, geometry: Geometry) -> u64 {
        match self {
            Self::Kept(_) => 0,
            Self::Segment(index, _) => u64::from(geometry.length(*index)),
        }
    }

    fn write(
        self,
        draft: &BackupDraft,
        manifest: &mut ManifestWriter,
    ) -> std::result::Result<(), ManifestError> {
        match self {
            Self::Segment(index, segment) => manifest.push(index, &segment),
            Self::Kept(range) => {
                let Some(parent) = draft.parent() else { return Ok(()) };
                let mut cursor = parent.manifest.cursor(SegmentIndex(range.start));
                for index in range.map(SegmentIndex) {
                    if let Some(segment) = cursor.at(index) {
                        let base = parent.base(segment.base);
                        manifest.push(index, &SegmentRef { base, ..segment })?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// Says whether the parent has segments up to `last`, of the length that they have on the new disk.
fn can_keep(draft: &BackupDraft, geometry: Geometry, last: u32) -> bool {
    draft.parent().is_some_and(|parent| {
        let before = parent.manifest.info().geometry;
        // Only a last one can be shorter than the others.
        last < before.segments() && before.length(SegmentIndex(last)) == geometry.length(SegmentIndex(last))
    })
}
