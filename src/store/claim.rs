//! Looking segments up for a job, and claiming those that are new.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::segment::{Fingerprint, SegmentHash, SegmentKey, Twin};
use crate::store::catalog::Catalog;
use crate::store::entry::SegmentEntry;
use crate::store::pack::RecordPlace;
use crate::store::pending::{Claimed, Found, Horizon, Identity, Indexed};
use crate::store::segments::{Poison, StoreState};
use crate::store::{SegmentStore, StoreError};

/// What came of [`SegmentStore::claim`].
#[derive(Debug)]
pub enum Claim {
    /// The segment is stored already, or is being stored by somebody else.
    Known(SegmentKey),
    /// The segment was stored by a backup that was not finished.
    Unfinished(SegmentKey),
    /// The caller is the one to store it.
    New(NewSegment),
}

/// A segment that the caller has claimed and must append: others count on it. Dropped without being
/// appended it stops the store, so that no backup is committed that names it.
#[derive(Debug)]
pub struct NewSegment {
    key: SegmentKey,
    identity: Identity,
    state: Option<Arc<StoreState>>,
    found_full: FoundFull,
    /// Whether earlier backups lack it.
    heals: bool,
    /// Where the copy lies that it takes the place of, because that was found damaged.
    damaged: Option<RecordPlace>,
    stored: Arc<StoredCounts>,
}

impl NewSegment {
    /// Returns the key it will have.
    pub fn key(&self) -> SegmentKey {
        self.key
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    pub(super) fn found_full(&self) -> &FoundFull {
        &self.found_full
    }

    pub(super) fn damaged(&self) -> Option<RecordPlace> {
        self.damaged
    }

    /// The writer has it, in so many stored bytes.
    pub(super) fn stored(&mut self, stored_bytes: u64) {
        self.stored.add(u64::from(self.identity.plain_length), stored_bytes, self.heals);
        if let Some(state) = self.state.take() {
            state.pending.settle(self.key);
        }
    }
}

/// What a segment is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its SHA-1.
    pub hash: SegmentHash,
    /// Its BLAKE3.
    pub fingerprint: Fingerprint,
    /// Its length in bytes.
    pub plain_length: u32,
}

/// What a job has stored.
#[derive(Debug, Default)]
struct StoredCounts {
    plain_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    healed_segments: AtomicU64,
}

impl StoredCounts {
    fn add(&self, plain_bytes: u64, stored_bytes: u64, heals: bool) {
        self.plain_bytes.fetch_add(plain_bytes, Ordering::Relaxed);
        self.stored_bytes.fetch_add(stored_bytes, Ordering::Relaxed);
        self.healed_segments.fetch_add(u64::from(heals), Ordering::Relaxed);
    }
}

/// What a job has stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Plain bytes of the segments that it was the first to store.
    pub plain_bytes: u64,
    /// Their encoded bytes.
    pub stored_bytes: u64,
    /// How many of them earlier backups lacked.
    pub healed_segments: u64,
}

/// A job that looks segments up, while it is there.
#[derive(Debug)]
pub struct StoreJob {
    number: u64,
    began: Horizon,
    state: Arc<StoreState>,
    found_full: FoundFull,
    stored: Arc<StoredCounts>,
}

/// Whether a job's own segments found the disk full. They are written by the store's thread, behind the job's back, so the
/// job is told by a failure that all others are told as well. Outlives the job and its store.
#[derive(Clone, Debug, Default)]
pub struct FoundFull(Arc<AtomicBool>);

impl FoundFull {
    /// Says whether they did.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl StoreJob {
    /// Returns what says whether its segments found the disk full.
    pub fn found_full(&self) -> FoundFull {
        self.found_full.clone()
    }

    /// Returns what it has stored so far.
    pub fn stored(&self) -> Stored {
        let counts = &self.stored;
        Stored {
            plain_bytes: counts.plain_bytes.load(Ordering::Relaxed),
            stored_bytes: counts.stored_bytes.load(Ordering::Relaxed),
            healed_segments: counts.healed_segments.load(Ordering::Relaxed),
        }
    }

    /// Says whether what the index says of a segment cannot change while this job runs: a backup counts it, or it
    /// was stored since the job began.
    fn is_safe(&self, entry: &SegmentEntry) -> bool {
        entry.refcount > 0 || (entry.zero_since == 0 && entry.place().pack >= self.began.pack)
    }
}

impl Drop for StoreJob {
    fn drop(&mut self) {
        self.state.pending.end_job(self.number);
    }
}

impl Drop for NewSegment {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            let reason = format!("segment {} was claimed and never stored", self.key);
            state.poison(Poison { reason, full: false, index: false });
            // Who waits for it is told after that.
            state.pending.settle(self.key);
        }
    }
}

impl SegmentStore {
    /// Returns the segments with this SHA-1 that are known, lost ones too: several if it has collisions. What was
    /// appended since the last flush is not among them. None is freed while the caller's [job](Self::begin_job) runs.
    pub fn find(&self, hash: SegmentHash) -> Result<Vec<(SegmentKey, SegmentEntry)>, StoreError> {
        loop {
            let moves = self.state.pending.moves();
            let twins = self.index()?.twins(hash)?.into_iter();
            let found: Vec<_> = twins.map(|(twin, entry)| (SegmentKey { hash, twin }, entry)).collect();
            let mut at_zero = found.iter().filter(|(_, entry)| entry.refcount == 0);
            if at_zero.all(|(key, _)| self.state.pending.touch(*key, moves)) {
                return Ok(found);
            }
        }
    }

    /// Registers a job that looks segments up, before its first lookup. While it runs, no segment is freed that it
    /// can have found.
    pub fn begin_job(&self) -> StoreJob {
        let (number, began) = self.state.pending.begin_job();
        let (state, stored) = (Arc::clone(&self.state), Arc::default());
        StoreJob { number, began, state, found_full: FoundFull::default(), stored }
    }

    /// Finds the segment with this SHA-1, BLAKE3 and length, or claims it for the caller to append. What was found
    /// is not freed while `job` runs.
    pub fn claim(
        &self,
        job: &StoreJob,
        hash: SegmentHash,
        fingerprint: Fingerprint,
        plain_length: u32,
    ) -> Result<Claim, StoreError> {
        let segment = Named { hash, fingerprint, plain_length };
        self.learn(&segment);
        self.claim_named(job, &segment)
    }

    /// Finds or claims several segments as [`Self::claim`] does one, all before the caller appends any: who meets the same
    /// segments meanwhile finds them. Ends with the first that fails; what was claimed before it is to be appended all the
    /// same.
    pub fn claim_each(&self, job: &StoreJob, segments: &[Named]) -> Vec<Result<Claim, StoreError>> {
        for segment in segments {
            self.learn(segment);
        }
        let mut claims = Vec::with_capacity(segments.len());
        for segment in segments {
            claims.push(self.claim_named(job, segment));
            if claims.last().is_some_and(Result::is_err) {
                break;
            }
        }
        claims
    }

    /// Remembers a name that was computed. Comes before anything is claimed, as others wait for what is.
    fn learn(&self, segment: &Named) {
        if self.names.computed(segment.fingerprint, segment.hash, segment.plain_length) {
            self.remember_packs();
        }
    }

    fn claim_named(&self, job: &StoreJob, segment: &Named) -> Result<Claim, StoreError> {
        self.state.check()?;
        let Named { hash, fingerprint, plain_length } = *segment;
        let identity = Identity { fingerprint, plain_length };
        match self.state.pending.claim(hash, identity, || self.indexed(job, hash))? {
            Claimed::Known(twin) => Ok(Claim::Known(SegmentKey { hash, twin })),
            Claimed::Unfinished(twin) => Ok(Claim::Unfinished(SegmentKey { hash, twin })),
            Claimed::New(twin) => {
                let key = SegmentKey { hash, twin };
                let mut new = NewSegment {
                    key,
                    identity,
                    state: Some(Arc::clone(&self.state)),
                    found_full: job.found_full(),
                    heals: false,
                    damaged: None,
                    stored: Arc::clone(&job.stored),
                };
                // It is claimed: what fails from now on must drop it.
                // Nearly always nothing is lost or damaged, and then the index is not asked once more.
                let known = if self.lacks_any()? { self.index()?.twins(hash)? } else { Vec::new() };
                if let Some((_, entry)) = known.iter().find(|(other, _)| *other == twin) {
                    new.heals = self.lacks(key, entry);
                    new.damaged = Some(entry.place()).filter(|_| new.heals && !entry.is_lost());
                }
                Ok(Claim::New(new))
            }
            Claimed::Full => {
                let key = SegmentKey { hash, twin: Twin(u16::MAX) };
                Err(StoreError::TooManyTwins { key })
            }
        }
    }

    /// Finds a segment by its BLAKE3 and length alone, if it is stored and its SHA-1 is remembered; the caller need not
    /// compute that then. What was found is not freed while `job` runs. Never claims.
    pub fn recall(
        &self,
        job: &StoreJob,
        fingerprint: Fingerprint,
        plain_length: u32,
    ) -> Result<Option<Claim>, StoreError> {
        match self.names.recall(&fingerprint) {
            Some(hash) => self.look(job, hash, fingerprint, plain_length),
            None => Ok(None),
        }
    }

    /// Finds the segment with this SHA-1, BLAKE3 and length, if it is stored or being stored. What was found is not freed
    /// while `job` runs. Never claims.
    pub fn look(
        &self,
        job: &StoreJob,
        hash: SegmentHash,
        fingerprint: Fingerprint,
        plain_length: u32,
    ) -> Result<Option<Claim>, StoreError> {
        self.state.check()?;
        let identity = Identity { fingerprint, plain_length };
        let found = self.state.pending.find(hash, identity, || self.indexed(job, hash))?;
        Ok(found.map(|Found { twin, unfinished }| {
            let known = if unfinished { Claim::Unfinished } else { Claim::Known };
            known(SegmentKey { hash, twin })
        }))
    }

    /// Says whether a job was begun with this store, and not with one that it has replaced.
    pub fn began(&self, job: &StoreJob) -> bool {
        Arc::ptr_eq(&self.state, &job.state)
    }

    /// Reads the stored bytes of a segment into `bytes`, and returns what the index says of it. Packs are opened through
    /// `catalog`. The bytes are not verified: whoever decodes them does that.
    ///
    /// # Errors
    ///
    /// If the segment is lost, or its pack cannot be read.
    pub fn read_stored(
        &self,
        catalog: &Catalog,
        key: SegmentKey,
        bytes: &mut Vec<u8>,
    ) -> Result<SegmentEntry, StoreError> {
        let read = |entry: &SegmentEntry, bytes: &mut Vec<u8>| -> Result<(), StoreError> {
            let RecordPlace { pack, offset } = entry.place();
            catalog.pack(pack)?.stored(key, offset, entry.stored_length, bytes)?;
            Ok(())
        };
        let mut entry = self.require(key)?;
        if entry.is_lost() {
            return Err(StoreError::Lost { key });
        }
        if let Err(error) = read(&entry, bytes) {
            // Garbage collection may have moved it since it was looked up.
            let now = self.require(key)?;
            if now.is_lost() || now.place() == entry.place() {
                return Err(error);
            }
            entry = now;
            read(&entry, bytes)?;
        }
        Ok(entry)
    }

    /// Returns what the index says of the segments with a SHA-1.
    fn indexed(&self, job: &StoreJob, hash: SegmentHash) -> Result<Vec<Indexed>, StoreError> {
        let stored = self.index()?.twins(hash)?.into_iter().map(|(twin, entry)| Indexed {
            twin,
            identity: (!entry.is_lost() || entry.is_known())
                .then(|| Identity { fingerprint: entry.fingerprint(), plain_length: entry.plain_length }),
            lost: self.lacks(SegmentKey { hash, twin }, &entry),
            at_zero: !job.is_safe(&entry),
            unfinished: entry.refcount == 0 && entry.zero_since == 0 && !job.is_safe(&entry),
        });
        Ok(stored.collect())
    }

    /// Remembers the names of the segments that were stored last, from the packs' tables. Without them more is computed.
    fn remember_packs(&self) {
        match Catalog::open(Arc::clone(&self.storage), &self.packs) {
            Ok(catalog) => catalog.recent(|it| self.names.remember_stored(it.fingerprint, it.key.hash)),
            Err(error) => tracing::warn!(%error, "the names of what is stored could not be read"),
        }
    }
}
