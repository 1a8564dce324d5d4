//! The index: sled, guarded. The only file that names it.
//!
//! Everything in it can be made anew from packs and manifests, so it is believed only so far. Every call
//! into sled runs under `catch_unwind`; an error, a panic, a value that does not decode, or a missing
//! segment that a manifest names means [`IndexError::distrusts`]: the caller stops using this index and
//! builds a new one.
//!
//! [`Index`] looks up, from any thread; the one [`IndexWriter`] alone changes. It keeps a sum over all
//! records (BLAKE3 of key and value, added lane by lane, so that the order does not matter) in the same
//! atomic batch as every change: after an unclean end, [`IndexWriter::verify_sum`] scans once and
//! compares.
//!
//! A call into sled may wait for a write that failed; [`crate::store::index_watch`] says why each of them returns.
//!
//! sled's `flush` hands dirty pages to the kernel with `sync_file_range`, which does not flush a disk's
//! own cache; so after it, the index's files are fsynced here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::segment::{Fingerprint, SegmentHash, SegmentKey, Twin};
use crate::storage::StorageError;
use crate::store::batch::{Batch, Finished, read, segment_entry};
use crate::store::entry::{ArchivedSegmentEntry, Change, SegmentEntry, key};
use crate::store::filter::Filter;
use crate::store::index_error::IndexError;
use crate::store::index_files::{digest, is_let_go, sync_files};
use crate::store::index_meta::Meta;
use crate::store::index_watch::{Calls, Watched, Watcher};
use crate::store::pack::PackNumber;

/// The most changes in one batch: more, and sled keeps gigabytes.
pub(super) const BATCH: usize = 64;

/// sled's page cache, in bytes.
const CACHE: u64 = 48 << 20;

thread_local! {
    static GUARDED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Says whether this thread is inside a call whose panic will be caught: a panic hook may then be quiet.
pub fn in_guarded_call() -> bool {
    GUARDED.get()
}

fn failed(path: &Path, operation: &'static str, error: &sled::Error) -> IndexError {
    let io = if let sled::Error::Io(source) = error { Some(source.kind()) } else { None };
    IndexError::Sled { path: path.to_owned(), operation, message: error.to_string(), io }
}

fn guarded<T>(
    path: &Path,
    operation: &'static str,
    call: impl FnOnce() -> Result<T, sled::Error>,
) -> Result<T, IndexError> {
    GUARDED.set(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(false);
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failed(path, operation, &error)),
        Err(_) => Err(IndexError::Panicked { path: path.to_owned(), operation }),
    }
}

/// Looks up in the index, from any thread.
#[derive(Clone, Debug)]
pub struct Index {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    db: sled::Db,
    calls: Arc<Calls>,
    /// How many entries have a twin number above 0. While there are none, a lookup is one `get`.
    twins: AtomicU64,
    segments: AtomicU64,
    lost: AtomicU64,
    /// Which hashes there are, once that is known.
    filter: Filter,
}

impl Watched for Shared {
    fn wake(&self) -> bool {
        let has_failed = self.db.context.global_error().is_err();
        if has_failed {
            // It fails before it changes anything, and wakes all who wait for what has failed.
            let _ = guarded(&self.path, "wake", || self.db.open_tree(WAKE).map(drop));
        }
        has_failed
    }
}

/// The name of a tree that is never made.
const WAKE: &[u8] = b"wake";

/// What the index's own records say, and the only way to change any.
#[derive(Debug)]
pub struct IndexWriter {
    index: Index,
    watcher: Watcher,
    meta: Meta,
    closed: bool,
    work: IndexWork,
}

/// What changing an index has taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct IndexWork {
    /// How many records were written or removed.
    pub records: u64,
    /// How long that took, with making them durable.
    pub busy: Duration,
}

impl Drop for IndexWriter {
    fn drop(&mut self) {
        if !self.closed {
            self.index.shared.calls.refuse();
            // Not an orderly end: this index may not be believed any longer, and must neither write again nor
            // panic while it is dropped. After a failed write sled does neither by itself. Else one handle that is
            // never dropped keeps it from both; its folder is not opened again by this process.
            if !self.index.has_failed() {
                std::mem::forget(self.index.clone());
            }
        }
    }
}

impl Index {
    pub(super) fn db(&self) -> &sled::Db {
        &self.shared.db
    }

    /// Returns the folder it lies in.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    pub(super) fn calls(&self) -> &Arc<Calls> {
        &self.shared.calls
    }

    /// Says whether a write of sled's has failed: it writes no more then.
    pub(super) fn has_failed(&self) -> bool {
        self.db().context.global_error().is_err()
    }

    /// Returns the write of sled's that has failed, if one has: whoever looks up may be the only one who met it.
    pub(super) fn failure(&self) -> Option<IndexError> {
        self.db().context.global_error().err().map(|error| failed(self.path(), "write", &error))
    }

    /// Calls sled.
    pub(super) fn call<T>(
        &self,
        operation: &'static str,
        call: impl FnOnce(&sled::Db) -> Result<T, sled::Error>,
    ) -> Result<T, IndexError> {
        let _call = self.shared.calls.begin()?;
        guarded(self.path(), operation, || call(self.db()))
    }

    pub(super) fn filter(&self) -> &Filter {
        &self.shared.filter
    }

    pub(super) fn segments_held(&self) -> u64 {
        self.shared.segments.load(Ordering::Relaxed)
    }

    /// Returns how many segments no pack holds.
    pub(super) fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Acquire)
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, IndexError> {
        self.call("look up", |db| db.get(key))
    }

    /// Returns what is known of a segment.
    pub fn lookup(&self, key: SegmentKey) -> Result<Option<SegmentEntry>, IndexError> {
        match self.get(&key::segment(key))? {
            Some(bytes) => Ok(Some(segment_entry(read::<ArchivedSegmentEntry>(&bytes, self.path())?))),
            None => Ok(None),
        }
    }

    /// Returns what is known of a segment that a manifest names: that it is missing is an error; that it is
    /// lost is known.
    pub fn require(&self, key: SegmentKey) -> Result<SegmentEntry, IndexError> {
        self.lookup(key)?.ok_or_else(|| IndexError::Missing { path: self.path().to_owned(), key })
    }

    /// Returns the entries of all segments with this SHA-1, by twin number.
    pub fn twins(&self, hash: SegmentHash) -> Result<Vec<(Twin, SegmentEntry)>, IndexError> {
        if self.shared.filter.lacks(&hash) {
            return Ok(Vec::new());
        }
        let first = SegmentKey { hash, twin: Twin(0) };
        if self.shared.twins.load(Ordering::Acquire) == 0 {
            let found = self.lookup(first)?;
            self.looked_up(found.is_none())?;
            return Ok(found.map(|entry| (Twin(0), entry)).into_iter().collect());
        }
        let last = SegmentKey { hash, twin: Twin(u16::MAX) };
        let found = self.call("look up", |db| {
            db.range(key::segment(first)..=key::segment(last)).collect::<Result<Vec<_>, _>>()
        })?;
        self.looked_up(found.is_empty())?;
        let entry = |(key, value): &(sled::IVec, sled::IVec)| {
            let key = key::read_segment(key).ok_or_else(|| self.damaged("a key does not decode"))?;
            Ok((key.twin, segment_entry(read::<ArchivedSegmentEntry>(value, self.path())?)))
        };
        found.iter().map(entry).collect()
    }

    pub(super) fn damaged(&self, what: impl Into<String>) -> IndexError {
        IndexError::Damaged { path: self.path().to_owned(), what: what.into() }
    }
}

const META: &str = "meta";

fn open_sled(path: &Path) -> Result<sled::Db, IndexError> {
    guarded(path, "open", || sled::Config::new().path(path).cache_capacity(CACHE).flush_every_ms(None).open())
}

impl IndexWriter {
    /// Makes an empty index in a folder that does not exist.
    pub fn create(path: &Path) -> Result<Self, IndexError> {
        let mut writer = Self::with(path, open_sled(path)?, Meta::default())?;
        writer.index.shared.filter.complete();
        match writer.apply(&[]) {
            Ok(()) => Ok(writer),
            Err(error) => {
                // Nobody refers to it: it must not stay open.
                let _ = writer.release();
                Err(error)
            }
        }
    }

    /// Opens an index that exists.
    pub fn open(path: &Path) -> Result<Self, IndexError> {
        let damaged = |what: &str| IndexError::Damaged { path: path.to_owned(), what: what.to_owned() };
        let db = open_sled(path)?;
        let meta = match guarded(path, "look up", || db.get(key::meta(META))) {
            Ok(Some(bytes)) => Meta::decode(&bytes)
                .map_err(|_| damaged("its own record does not decode"))
                .and_then(|meta| meta.ok_or_else(|| damaged("another release wrote it"))),
            Ok(None) => Err(damaged("it lacks its own record")),
            Err(error) => Err(error),
        };
        match meta {
            Ok(meta) => Self::with(path, db, meta),
            Err(error) => {
                std::mem::forget(db);
                Err(error)
            }
        }
    }

    fn with(path: &Path, db: sled::Db, meta: Meta) -> Result<Self, IndexError> {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            db,
            calls: Arc::new(Calls::new(path)),
            twins: AtomicU64::new(meta.twins),
            segments: AtomicU64::new(meta.segments),
            lost: AtomicU64::new(meta.lost),
            filter: Filter::default(),
        });
        let watcher = Watcher::start(Arc::clone(&shared.calls), Arc::downgrade(&shared))
            .map_err(|source| StorageError::new("start a thread for", path, source))?;
        Ok(Self { index: Index { shared }, watcher, meta, closed: false, work: IndexWork::default() })
    }

    /// Returns the part that looks up.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Returns the generation.
    pub fn generation(&self) -> u64 {
        self.meta.generation
    }

    /// Returns how many segments it holds.
    pub fn segments(&self) -> u64 {
        self.meta.segments
    }

    /// Scans all records and compares their sum with the one that was kept.
    pub fn verify_sum(&self) -> Result<(), IndexError> {
        let mut found = Meta::default();
        let own = key::meta(META);
        self.index.scan(&[], |key, value| {
            if key != own {
                found.add(key, value);
            }
            Ok(())
        })?;
        if found.sum == self.meta.sum {
            Ok(())
        } else {
            Err(self.index.damaged("its records do not give its sum"))
        }
    }

    /// Applies changes in batches of at most 64. A batch is atomic; a slice of at most 64 is one batch.
    /// Nothing is durable before [`Self::flush`].
    pub fn apply(&mut self, changes: &[Change]) -> Result<(), IndexError> {
        let begun = Instant::now();
        let applied = if changes.is_empty() {
            self.apply_batch(&[])
        } else {
            changes.chunks(BATCH).try_for_each(|batch| self.apply_batch(batch))
        };
        self.work.busy += begun.elapsed();
        applied
    }

    fn apply_batch(&mut self, changes: &[Change]) -> Result<(), IndexError> {
        let mut batch = Batch::new(&self.index, self.meta);
        changes.iter().try_for_each(|change| batch.change(change))?;
        let finished = batch.finish()?;
        self.write(finished)
    }

    /// Returns what the index says of itself.
    pub(super) fn meta(&self) -> Meta {
        self.meta
    }

    /// Writes records, not in a batch: for an index that is being made, of which a crash leaves nothing that is looked
    /// at. What it says of itself is to be written after.
    pub(super) fn insert_records(&self, records: Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), IndexError> {
        for (key, _) in &records {
            self.index.note(key);
        }
        self.index.call("write", |db| {
            records.into_iter().try_for_each(|(key, value)| db.insert(key, value).map(drop))
        })
    }

    pub(super) fn write(&mut self, finished: Finished) -> Result<(), IndexError> {
        let Finished { meta, records } = finished;
        self.work.records += records.len() as u64 + 1;
        let mut batch = sled::Batch::default();
        for (key, value) in records {
            match value {
                Some(value) => {
                    self.index.note(&key);
                    batch.insert(key, value);
                }
                None => batch.remove(key),
            }
        }
        batch.insert(key::meta(META), meta.encode());
        self.index.call("write", |db| db.apply_batch(batch))?;
        self.meta = meta;
        self.index.shared.twins.store(meta.twins, Ordering::Release);
        self.index.shared.segments.store(meta.segments, Ordering::Relaxed);
        self.index.shared.lost.store(meta.lost, Ordering::Release);
        Ok(())
    }

    /// Returns what changing it has taken since it was opened.
    pub fn work(&self) -> IndexWork {
        self.work
    }

    /// Returns the highest number that a pack of it has had.
    pub fn last_pack(&self) -> PackNumber {
        PackNumber(self.meta.last_pack)
    }

    /// Makes everything applied durable.
    pub fn flush(&mut self) -> Result<(), IndexError> {
        let begun = Instant::now();
        self.index.call("flush", |db| db.flush())?;
        sync_files(self.index.path())?;
        self.work.busy += begun.elapsed();
        Ok(())
    }

    /// Makes everything durable, closes the index, and returns the digest of its files.
    ///
    /// # Errors
    /// The index could not be closed; it is then not to be marked as clean.
    pub fn close(mut self) -> Result<Fingerprint, IndexError> {
        self.flush()?;
        let path = self.index.path().to_owned();
        self.release()?;
        sync_files(&path)?;
        Ok(digest(&path)?)
    }

    /// Lets an index go that nothing is wrong with, so that this process can open it again. Not an orderly
    /// end: its files are not durable when this returns.
    ///
    /// # Errors
    /// It could not be written. If it was sled that failed, the index is let go all the same.
    pub fn release(self) -> Result<(), IndexError> {
        // While it is watched: closing it writes nothing then, and has nothing to wait for.
        if let Err(error) = self.index.call("flush", |db| db.flush()) {
            if let Err(error) = self.let_go() {
                tracing::warn!(%error, "an index that failed is not let go");
            }
            return Err(error);
        }
        self.drop_handle()
    }

    /// Lets an index go of which a write has failed: sled writes no more to it, and what is in its file can be opened
    /// again, as after a crash. An index that did not fail by a write is left as it is, and open.
    pub(super) fn let_go(self) -> Result<(), IndexError> {
        self.index.shared.calls.refuse();
        if self.index.has_failed() && self.index.shared.calls.ended() {
            return self.drop_handle();
        }
        Ok(())
    }

    fn drop_handle(mut self) -> Result<(), IndexError> {
        self.watcher.stop();
        if Arc::strong_count(&self.index.shared) > 1 {
            return Err(self.index.damaged("it is still in use"));
        }
        self.closed = true;
        let path = self.index.path().to_owned();
        guarded(&path, "close", || {
            drop(self);
            Ok(())
        })?;
        if is_let_go(&path)? {
            return Ok(());
        }
        Err(IndexError::Damaged { path, what: "it is still in use after it was closed".to_owned() })
    }
}
