//! What is done with one segment.

use crate::backup::pipeline::{Outcome, SegmentWorker};
use crate::backup::plan::{Fate, Plan};
use crate::backup::{BackupError, BackupOptions, WatchedSource};
use crate::codec::{CompressionSetting, Encoder};
use crate::manifest::{BaseIndex, SegmentRef};
use crate::progress::{Notice, Progress};
use crate::repository::BackupDraft;
use crate::segment::{Fingerprint, SegmentHash, SegmentIndex, SegmentKey, Twin, is_zero};
use crate::store::{Claim, Named, SegmentStore, StoreJob};

/// What a segment turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// All zeros, and not stored.
    Zero,
    /// The parent's at the same place.
    Unchanged,
    /// Stored already.
    Deduplicated {
        /// Whether it was found by its BLAKE3 alone.
        recalled: bool,
    },
    /// Stored by a backup that was not finished.
    Resumed {
        /// Whether it was found by its BLAKE3 alone.
        recalled: bool,
    },
    /// Stored now.
    New {
        /// Its length.
        plain_bytes: u64,
        /// The length of what is stored of it.
        stored_bytes: u64,
    },
}

/// Stores segments that are not stored yet. One for each thread.
pub struct SegmentWriter<'a> {
    store: &'a SegmentStore,
    job: &'a StoreJob,
    progress: &'a dyn Progress,
    encoder: Encoder,
}

/// What became of a segment that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// Its key.
    pub key: SegmentKey,
    /// The length of its stored bytes, if it was not stored before.
    pub stored_bytes: Option<u64>,
    /// Whether a backup that was not finished had stored it.
    pub resumed: bool,
}

impl Put {
    /// Makes that of a segment that was stored before.
    pub fn found(key: SegmentKey) -> Self {
        Self { key, stored_bytes: None, resumed: false }
    }

    /// Says what a segment of so many bytes turned out to be.
    fn class(self, plain_bytes: u64) -> Class {
        match self.stored_bytes {
            Some(stored_bytes) => Class::New { plain_bytes, stored_bytes },
            None if self.resumed => Class::Resumed { recalled: false },
            None => Class::Deduplicated { recalled: false },
        }
    }
}

impl<'a> SegmentWriter<'a> {
    /// Makes a writer that compresses as `compression` says.
    pub fn new(
        store: &'a SegmentStore,
        job: &'a StoreJob,
        compression: CompressionSetting,
        progress: &'a dyn Progress,
    ) -> Result<Self, BackupError> {
        Ok(Self { store, job, progress, encoder: Encoder::new(compression)? })
    }

    /// Stores a segment whose hashes are these, unless it is stored already.
    pub fn put(
        &mut self,
        plain: &[u8],
        hash: SegmentHash,
        fingerprint: Fingerprint,
    ) -> Result<Put, BackupError> {
        let length = u32::try_from(plain.len()).unwrap_or(u32::MAX);
        let claim = self.store.claim(self.job, hash, fingerprint, length)?;
        self.append(plain, claim)
    }

    /// Stores a segment if it was claimed to be stored.
    fn append(&mut self, plain: &[u8], claim: Claim) -> Result<Put, BackupError> {
        let new = match claim {
            Claim::Known(key) => return Ok(Put::found(key)),
            Claim::Unfinished(key) => return Ok(Put { resumed: true, ..Put::found(key) }),
            Claim::New(new) => new,
        };
        let key = new.key();
        let mut buffer = self.store.buffer()?;
        let codec = self.encoder.encode(plain, buffer.restart());
        let stored_bytes = Some(buffer.stored_length());
        self.store.append(new, codec, buffer)?;
        if key.twin != Twin(0) {
            self.progress.notice(Notice::TwinStored { hash: key.hash.to_string() });
        }
        Ok(Put { stored_bytes, ..Put::found(key) })
    }
}

/// Hashes and compares segments. One for each thread.
pub(super) struct Worker<'a> {
    store: &'a SegmentStore,
    draft: &'a BackupDraft,
    plan: &'a Plan,
    source: &'a WatchedSource<'a>,
    writer: SegmentWriter<'a>,
}

/// A segment that was looked at.
struct Seen<'a> {
    index: SegmentIndex,
    /// What the parent has there.
    before: Option<SegmentRef>,
    found: Found<'a>,
}

/// What a look at a segment told.
enum Found<'a> {
    /// What it is.
    This(Class, Option<SegmentRef>),
    /// That its SHA-1 is needed to tell.
    Unnamed { plain: &'a [u8], fingerprint: Fingerprint },
}

impl SegmentWorker for Worker<'_> {
    type Segment = SegmentRef;

    /// What the plan says of those that are read to be compared is not taken for true: a difference ends the job.
    fn process(
        &mut self,
        first: SegmentIndex,
        bytes: &[u8],
        outcomes: &mut Vec<Outcome<SegmentRef>>,
    ) -> Result<(), BackupError> {
        let size = usize::try_from(self.draft.info().geometry.segment_size().bytes()).unwrap_or(usize::MAX);
        let mut parent = self.draft.parent().map(|parent| parent.manifest.cursor(first));
        let (mut seen, mut unnamed) = (Vec::new(), 0);
        let mut all = (first.0..).map(SegmentIndex).zip(bytes.chunks(size));
        let result = all.try_for_each(|(index, plain)| {
            let before = parent.as_mut().and_then(|cursor| cursor.at(index));
            let found = self.look(index, plain, before)?;
            unnamed += usize::from(matches!(found, Found::Unnamed { .. }));
            seen.push(Seen { index, before, found });
            if unnamed < SegmentHash::LANES {
                return Ok(());
            }
            // Not more at once, so that the bytes are still near when they are encoded.
            unnamed = 0;
            self.settle(&mut seen, outcomes)
        });
        // What fails here comes before what failed above.
        self.settle(&mut seen, outcomes).and(result)
    }
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        store: &'a SegmentStore,
        (draft, plan, source): (&'a BackupDraft, &'a Plan, &'a WatchedSource<'a>),
        options: &BackupOptions,
        progress: &'a dyn Progress,
    ) -> Result<Self, BackupError> {
        let writer = SegmentWriter::new(store, draft.job(), options.compression, progress)?;
        Ok(Self { store, draft, plan, source, writer })
    }

    /// Finds out what one segment is, of which the parent says `before`, as far as that needs no SHA-1.
    ///
    /// BLAKE3 comes first, as it is the faster hash: it alone tells that a segment is its parent's, or one whose SHA-1
    /// is remembered.
    fn look<'b>(
        &self,
        index: SegmentIndex,
        plain: &'b [u8],
        before: Option<SegmentRef>,
    ) -> Result<Found<'b>, BackupError> {
        let geometry = self.draft.info().geometry;
        let zero = is_zero(plain);
        if let Fate::Audit { zero: is_said_zero } = self.plan.fate(index.0) {
            let start = geometry.offset(index);
            // What cannot be read says nothing about the list.
            if self.source.could_not_audit(&(start..start + plain.len() as u64)) {
                let kept = before.filter(|_| !is_said_zero).zip(self.draft.parent());
                let kept = kept.map(|(it, parent)| SegmentRef { base: parent.base(it.base), ..it });
                let class = if kept.is_some() { Class::Unchanged } else { Class::Zero };
                return Ok(Found::This(class, kept));
            }
            if is_said_zero && !zero {
                return Err(BackupError::ListWrong { segment: index });
            }
        }
        if zero && !geometry.keeps_zeros(index) {
            return Ok(Found::This(Class::Zero, None));
        }
        let fingerprint = Fingerprint::of(plain);
        let length = geometry.length(index);
        if let (Some(parent), Some(segment)) = (self.draft.parent(), before) {
            let stored = self.store.require(segment.key)?;
            if !self.store.lacks(segment.key, &stored)
                && stored.fingerprint() == fingerprint
                && stored.plain_length == length
            {
                let segment = SegmentRef { base: parent.base(segment.base), ..segment };
                return Ok(Found::This(Class::Unchanged, Some(segment)));
            }
        }
        let (key, class) = match self.store.recall(self.draft.job(), fingerprint, length)? {
            Some(Claim::Known(key)) => (key, Class::Deduplicated { recalled: true }),
            Some(Claim::Unfinished(key)) => (key, Class::Resumed { recalled: true }),
            Some(Claim::New(_)) | None => return Ok(Found::Unnamed { plain, fingerprint }),
        };
        Ok(Found::This(class, Some(self.refer(key))))
    }

    /// Names those of `seen` that have no name yet, stores those that are new, and adds what became of each.
    fn settle(
        &mut self,
        seen: &mut Vec<Seen<'_>>,
        outcomes: &mut Vec<Outcome<SegmentRef>>,
    ) -> Result<(), BackupError> {
        let unnamed = seen.iter().filter_map(|it| match it.found {
            Found::This(..) => None,
            Found::Unnamed { plain, fingerprint } => Some((plain, fingerprint)),
        });
        let (plains, fingerprints): (Vec<_>, Vec<_>) = unnamed.unzip();
        let named = |(hash, (plain, fingerprint)): (_, (&&[u8], _))| {
            let plain_length = u32::try_from(plain.len()).unwrap_or(u32::MAX);
            Named { hash, fingerprint, plain_length }
        };
        let hashes = SegmentHash::of_each(&plains);
        let named: Vec<_> = hashes.into_iter().zip(plains.iter().zip(fingerprints)).map(named).collect();
        // All before the first is encoded, which takes longest: a backup of a disk with the same content, at the same place
        // by now, would name the second of them once more.
        let mut claims = self.store.claim_each(self.draft.job(), &named).into_iter();
        let mut result = Ok(());
        for Seen { index, before, found } in seen.drain(..) {
            let (class, segment) = match found {
                Found::This(class, segment) => (class, segment),
                Found::Unnamed { plain, .. } => {
                    // There is one for each, up to the first that fails.
                    let claim = claims.next().ok_or(BackupError::WorkerLost)?;
                    let put = self.writer.append(plain, claim?)?;
                    (put.class(plain.len() as u64), Some(self.refer(put.key)))
                }
            };
            outcomes.push(Outcome { index, class, segment });
            let audited = self.plan.fate(index.0) == (Fate::Audit { zero: false });
            if result.is_ok() && audited && !is_as_before(class, segment, before) {
                // What was claimed after it is stored all the same: others may have found it.
                result = Err(BackupError::ListWrong { segment: index });
            }
        }
        result
    }

    /// Returns what the manifest says of a segment that is not the parent's.
    fn refer(&self, key: SegmentKey) -> SegmentRef {
        SegmentRef { key, incremental: self.draft.info().incremental, base: BaseIndex(0) }
    }
}

/// Says whether a segment is what the parent has there.
fn is_as_before(class: Class, segment: Option<SegmentRef>, before: Option<SegmentRef>) -> bool {
    match class {
        Class::Unchanged => true,
        Class::Zero => before.is_none(),
        // The parent's may have been lost since the backup was planned: it is stored anew then, or was by another.
        Class::Deduplicated { .. } | Class::Resumed { .. } | Class::New { .. } => {
            segment.map(|segment| segment.key) == before.map(|before| before.key)
        }
    }
}
