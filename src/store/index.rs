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
//! sled's `flush` hands dirty pages to the kernel with `sync_file_range`, which does not flush a disk's
//! own cache; so after it, the index's files are fsynced here.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rkyv::api::high::HighValidator;
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;

use crate::manifest::{BackupsetId, Incremental};
use crate::segment::{Fingerprint, SegmentHash, SegmentKey, Twin};
use crate::store::entry::{
    ArchivedCounted, ArchivedPackEntry, ArchivedSegmentEntry, Change, Counted, LOST, PackEntry, SegmentEntry,
    key,
};
use crate::store::index_error::IndexError;
use crate::store::index_files::{digest, is_let_go, sync_files};
use crate::store::index_meta::Meta;
use crate::store::pack::PackNumber;

/// The most changes in one batch: more, and sled keeps gigabytes.
pub(super) const BATCH: usize = 64;

/// sled's page cache, in bytes.
const CACHE: u64 = 64 << 20;

thread_local! {
    static GUARDED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Says whether this thread is inside a call whose panic will be caught: a panic hook may then be quiet.
pub fn in_guarded_call() -> bool {
    GUARDED.get()
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
        Ok(Err(error)) => {
            let io = if let sled::Error::Io(source) = &error { Some(source.kind()) } else { None };
            Err(IndexError::Sled { path: path.to_owned(), operation, message: error.to_string(), io })
        }
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
    /// How many entries have a twin number above 0. While there are none, a lookup is one `get`.
    twins: AtomicU64,
}

/// What the index's own records say, and the only way to change any.
#[derive(Debug)]
pub struct IndexWriter {
    index: Index,
    meta: Meta,
    closed: bool,
    /// How many segments were found lost, while that is tolerated.
    lost: Option<u64>,
}

impl Drop for IndexWriter {
    fn drop(&mut self) {
        if !self.closed {
            // Not an orderly end: this index may not be believed any longer, and must neither write again nor
            // panic while it is dropped. One handle that is never dropped keeps sled from doing either; its
            // folder is not opened again by this process.
            std::mem::forget(self.index.clone());
        }
    }
}

fn read<'a, T>(bytes: &'a [u8], path: &Path) -> Result<&'a T, IndexError>
where
    T: rkyv::Portable + for<'v> CheckBytes<HighValidator<'v, rancor::Failure>>,
{
    rkyv::access::<T, rancor::Failure>(bytes).map_err(|_| IndexError::Damaged {
        path: path.to_owned(),
        what: "a value does not decode".to_owned(),
    })
}

fn segment_entry(archived: &ArchivedSegmentEntry) -> SegmentEntry {
    SegmentEntry {
        fingerprint: archived.fingerprint,
        refcount: archived.refcount.to_native(),
        zero_since: archived.zero_since.to_native(),
        pack: archived.pack.to_native(),
        offset: archived.offset.to_native(),
        stored_length: archived.stored_length.to_native(),
        plain_length: archived.plain_length.to_native(),
        compression: archived.compression,
        encryption: archived.encryption,
    }
}

impl Index {
    fn db(&self) -> &sled::Db {
        &self.shared.db
    }

    /// Returns the folder it lies in.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, IndexError> {
        guarded(self.path(), "look up", || self.db().get(key))
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
        let first = SegmentKey { hash, twin: Twin(0) };
        if self.shared.twins.load(Ordering::Acquire) == 0 {
            return Ok(self.lookup(first)?.map(|entry| (Twin(0), entry)).into_iter().collect());
        }
        let last = SegmentKey { hash, twin: Twin(u16::MAX) };
        let found = guarded(self.path(), "look up", || {
            self.db().range(key::segment(first)..=key::segment(last)).collect::<Result<Vec<_>, _>>()
        })?;
        let entry = |(key, value): &(sled::IVec, sled::IVec)| {
            let key = key::read_segment(key).ok_or_else(|| self.damaged("a key does not decode"))?;
            Ok((key.twin, segment_entry(read::<ArchivedSegmentEntry>(value, self.path())?)))
        };
        found.iter().map(entry).collect()
    }

    fn damaged(&self, what: impl Into<String>) -> IndexError {
        IndexError::Damaged { path: self.path().to_owned(), what: what.into() }
    }

    /// Calls `each` with every record whose key begins with `prefix`, in their order.
    fn scan(
        &self,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        let mut records = guarded(self.path(), "scan", || Ok(self.db().scan_prefix(prefix)))?;
        while let Some((key, value)) = guarded(self.path(), "scan", || records.next().transpose())? {
            each(&key, &value)?;
        }
        Ok(())
    }

    /// Returns the packs whose segments are all in the index.
    pub fn packs(&self) -> Result<HashMap<PackNumber, PackEntry>, IndexError> {
        let mut packs = HashMap::new();
        self.scan(&[key::PACK], |key, value| {
            let number = key::read_pack(key).ok_or_else(|| self.damaged("a key does not decode"))?;
            let entry = read::<ArchivedPackEntry>(value, self.path())?;
            let entry = PackEntry { size: entry.size.to_native(), segments: entry.segments.to_native() };
            packs.insert(number, entry);
            Ok(())
        })?;
        Ok(packs)
    }

    /// Returns the backups whose segments are counted, wholly or in part.
    pub fn counted(&self) -> Result<HashMap<(BackupsetId, Incremental), Counted>, IndexError> {
        let mut counted = HashMap::new();
        self.scan(&[key::COUNTED], |key, value| {
            let id = key::read_counted(key).ok_or_else(|| self.damaged("a key does not decode"))?;
            let archived = read::<ArchivedCounted>(value, self.path())?;
            let value = rkyv::deserialize::<Counted, rancor::Failure>(archived)
                .map_err(|_| self.damaged("a value does not decode"))?;
            counted.insert(id, value);
            Ok(())
        })?;
        Ok(counted)
    }

    /// Calls `each` with every segment, in the order of their keys.
    pub fn segments(&self, mut each: impl FnMut(SegmentKey, &SegmentEntry)) -> Result<(), IndexError> {
        self.scan(&[key::SEGMENT], |key, value| {
            let key = key::read_segment(key).ok_or_else(|| self.damaged("a key does not decode"))?;
            each(key, &segment_entry(read::<ArchivedSegmentEntry>(value, self.path())?));
            Ok(())
        })
    }
}

const META: &str = "meta";

fn open_sled(path: &Path) -> Result<sled::Db, IndexError> {
    guarded(path, "open", || sled::Config::new().path(path).cache_capacity(CACHE).flush_every_ms(None).open())
}

impl IndexWriter {
    /// Makes an empty index in a folder that does not exist.
    pub fn create(path: &Path) -> Result<Self, IndexError> {
        let mut writer = Self::with(path, open_sled(path)?, Meta::default());
        writer.apply(&[])?;
        Ok(writer)
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
            Ok(meta) => Ok(Self::with(path, db, meta)),
            Err(error) => {
                std::mem::forget(db);
                Err(error)
            }
        }
    }

    fn with(path: &Path, db: sled::Db, meta: Meta) -> Self {
        let shared = Shared { path: path.to_owned(), db, twins: AtomicU64::new(meta.twins) };
        Self { index: Index { shared: Arc::new(shared) }, meta, closed: false, lost: None }
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

    /// From now on, a count of a segment that is not there enters it as lost: all packs have been read. Or no
    /// longer. Returns how many were entered since it was last said.
    pub fn tolerate_lost(&mut self, tolerate: bool) -> u64 {
        std::mem::replace(&mut self.lost, tolerate.then_some(0)).unwrap_or(0)
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
        if changes.is_empty() {
            return self.apply_batch(&[]);
        }
        changes.chunks(BATCH).try_for_each(|batch| self.apply_batch(batch))
    }

    fn apply_batch(&mut self, changes: &[Change]) -> Result<(), IndexError> {
        // The values this batch leaves, for keys that it changes twice; nothing stands for a removed one.
        let mut values: HashMap<Vec<u8>, Option<Vec<u8>>> = HashMap::with_capacity(changes.len());
        let (mut meta, mut lost) = (self.meta, self.lost);
        for change in changes {
            let key = match change {
                Change::Insert(key, _) | Change::Count(key, _) => key::segment(*key).to_vec(),
                Change::Pack(number, _) => key::pack(*number),
                Change::Counted(backupset, incremental, _) | Change::Uncounted(backupset, incremental) => {
                    key::counted(*backupset, *incremental)
                }
                Change::Generation(number) => {
                    meta.generation = meta.generation.max(*number);
                    continue;
                }
            };
            let old = match values.get(&key) {
                Some(value) => value.clone(),
                None => self.index.get(&key)?.map(|value| value.to_vec()),
            };
            let new = match change {
                Change::Insert(key, entry) => {
                    let Some(entry) = self.inserted(&mut meta, *key, entry, old.as_deref())? else {
                        continue;
                    };
                    Some(self.encode(&entry)?)
                }
                Change::Count(key, difference) => {
                    let counted = self.counted(&mut meta, &mut lost, *key, *difference, old.as_deref())?;
                    Some(self.encode(&counted)?)
                }
                Change::Pack(_, entry) => Some(self.encode(entry)?),
                Change::Counted(_, _, entry) => Some(self.encode(entry)?),
                Change::Uncounted(..) => None,
                Change::Generation(_) => continue,
            };
            if let Some(old) = old {
                meta.take(&key, &old);
            }
            if let Some(new) = &new {
                meta.add(&key, new);
            }
            values.insert(key, new);
        }
        let mut batch = sled::Batch::default();
        for (key, value) in values {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        batch.insert(key::meta(META), meta.encode());
        guarded(self.index.path(), "write", || self.index.db().apply_batch(batch))?;
        (self.meta, self.lost) = (meta, lost);
        self.index.shared.twins.store(meta.twins, Ordering::Release);
        Ok(())
    }

    fn decode(&self, value: Option<&[u8]>) -> Result<Option<SegmentEntry>, IndexError> {
        value.map(|bytes| Ok(segment_entry(read(bytes, self.index.path())?))).transpose()
    }

    /// Returns the entry that an insertion leaves; nothing if the old one stays.
    fn inserted(
        &self,
        meta: &mut Meta,
        key: SegmentKey,
        entry: &SegmentEntry,
        old: Option<&[u8]>,
    ) -> Result<Option<SegmentEntry>, IndexError> {
        match self.decode(old)? {
            // A lost segment has come back: who names it still does.
            Some(SegmentEntry { refcount, zero_since, pack: LOST, .. }) => {
                Ok(Some(SegmentEntry { refcount, zero_since, ..*entry }))
            }
            Some(_) => Ok(None),
            None => {
                meta.segments += 1;
                meta.twins += u64::from(key.twin != Twin(0));
                Ok(Some(SegmentEntry { zero_since: meta.generation, ..*entry }))
            }
        }
    }

    /// Returns the entry that a count leaves.
    fn counted(
        &self,
        meta: &mut Meta,
        lost: &mut Option<u64>,
        key: SegmentKey,
        difference: i64,
        old: Option<&[u8]>,
    ) -> Result<SegmentEntry, IndexError> {
        let mut entry = match (self.decode(old)?, lost) {
            (Some(entry), _) => entry,
            (None, Some(lost)) => {
                *lost += 1;
                meta.segments += 1;
                meta.twins += u64::from(key.twin != Twin(0));
                SegmentEntry::lost()
            }
            (None, None) => return Err(IndexError::Missing { path: self.index.path().to_owned(), key }),
        };
        entry.refcount = entry.refcount.checked_add_signed(difference).ok_or_else(|| {
            self.index.damaged(format!("the refcount of segment {key} would fall below zero"))
        })?;
        if entry.refcount == 0 {
            entry.zero_since = meta.generation;
        }
        Ok(entry)
    }

    fn encode(
        &self,
        value: &impl for<'a> rkyv::Serialize<
            rkyv::api::high::HighSerializer<
                rkyv::util::AlignedVec,
                rkyv::ser::allocator::ArenaHandle<'a>,
                rancor::Error,
            >,
        >,
    ) -> Result<Vec<u8>, IndexError> {
        let bytes = rkyv::to_bytes::<rancor::Error>(value);
        Ok(bytes.map_err(|error| self.index.damaged(error.to_string()))?.into_vec())
    }

    /// Makes everything applied durable.
    pub fn flush(&self) -> Result<(), IndexError> {
        guarded(self.index.path(), "flush", || self.index.db().flush())?;
        Ok(sync_files(self.index.path())?)
    }

    /// Makes everything durable, closes the index, and returns the digest of its files.
    ///
    /// # Errors
    /// The index could not be closed; it is then not to be marked as clean.
    pub fn close(self) -> Result<Fingerprint, IndexError> {
        self.flush()?;
        let path = self.index.path().to_owned();
        self.release()?;
        sync_files(&path)?;
        Ok(digest(&path)?)
    }

    /// Lets an index go that nothing is wrong with, so that this process can open it again. Not an orderly
    /// end: nothing is durable that was not.
    pub fn release(mut self) -> Result<(), IndexError> {
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
