//! One atomic batch of changes to the index, worked out before it is written.
//!
//! A segment's entry, the list of what fell to 0, the numbers of its pack and the sum over all records change
//! together or not at all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;

use rkyv::api::high::{HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;

use crate::segment::{SegmentKey, Twin};
use crate::store::entry::{
    ArchivedPackEntry, ArchivedSegmentEntry, Candidate, Change, FreedPlace, Garbage, LOST, PackEntry,
    SegmentEntry, Task, key,
};
use crate::store::index::Index;
use crate::store::index_error::IndexError;
use crate::store::index_meta::Meta;
use crate::store::pack::{PackNumber, RecordPlace};

/// Reads a value in place.
pub(super) fn read<'a, T>(bytes: &'a [u8], path: &Path) -> Result<&'a T, IndexError>
where
    T: rkyv::Portable + for<'v> CheckBytes<HighValidator<'v, rancor::Failure>>,
{
    rkyv::access::<T, rancor::Failure>(bytes).map_err(|_| IndexError::Damaged {
        path: path.to_owned(),
        what: "a value does not decode".to_owned(),
    })
}

pub(super) fn segment_entry(archived: &ArchivedSegmentEntry) -> SegmentEntry {
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

pub(super) fn pack_entry(value: &[u8], path: &Path) -> Result<PackEntry, IndexError> {
    let archived = read::<ArchivedPackEntry>(value, path)?;
    Ok(PackEntry {
        id: archived.id,
        size: archived.size.to_native(),
        dead: archived.dead.to_native(),
        living: archived.living.to_native(),
        living_bytes: archived.living_bytes.to_native(),
        uncounted: archived.uncounted.to_native(),
    })
}

/// What can be a value.
pub(super) trait Encodable:
    for<'s> rkyv::Serialize<HighSerializer<AlignedVec, ArenaHandle<'s>, rancor::Error>>
{
}

impl<T> Encodable for T where
    T: for<'s> rkyv::Serialize<HighSerializer<AlignedVec, ArenaHandle<'s>, rancor::Error>>
{
}

/// Returns the bytes of a value.
pub(super) fn encode(value: &impl Encodable) -> Result<Vec<u8>, rancor::Error> {
    Ok(rkyv::to_bytes::<rancor::Error>(value)?.into_vec())
}

type Value = Option<Vec<u8>>;

/// A batch under construction.
pub(super) struct Batch<'a> {
    index: &'a Index,
    meta: Meta,
    /// What each record was and is to be; nothing stands for one that is not there.
    records: HashMap<Vec<u8>, (Value, Value)>,
    /// Packs change with every segment: they are encoded once, at the end.
    packs: HashMap<PackNumber, Option<PackEntry>>,
}

/// A batch that is ready to be written: all of it, and the index's own numbers after it.
pub(super) struct Finished {
    pub(super) meta: Meta,
    pub(super) records: Vec<(Vec<u8>, Value)>,
}

impl<'a> Batch<'a> {
    /// Begins a batch.
    pub(super) fn new(index: &'a Index, meta: Meta) -> Self {
        Self { index, meta, records: HashMap::new(), packs: HashMap::new() }
    }

    /// Adds a change.
    pub(super) fn change(&mut self, change: &Change) -> Result<(), IndexError> {
        match change {
            Change::Insert(key, entry) => self.insert(*key, entry),
            Change::Count(key, difference) => self.count(*key, *difference),
            Change::Move(key, entry, from) => self.relocate(*key, entry, *from),
            Change::Heal(key, entry, damaged) => self.heal(*key, entry, *damaged),
            Change::Quarantine(key, place, span) => self.quarantine(*key, *place, *span),
            Change::Seal(number, id, size, dead) => {
                self.meta.last_pack = self.meta.last_pack.max(number.0);
                let pack = self.pack(*number)?;
                (pack.id, pack.size, pack.dead) = (id.0, *size, *dead);
                Ok(())
            }
            Change::Settle(number, most) => {
                let pack = self.pack(*number)?;
                pack.uncounted = pack.uncounted.min(*most);
                Ok(())
            }
            Change::Task(task) => {
                let number = self.meta.next_task;
                self.meta.next_task += 1;
                let value = self.encode(task)?;
                self.set(key::task(number), Some(value))
            }
            Change::TaskDone(number) => self.set(key::task(*number), None),
            Change::Counted(backupset, incremental, counted) => {
                let value = self.encode(counted)?;
                self.set(key::counted(*backupset, *incremental), Some(value))
            }
            Change::Uncounted(backupset, incremental) => {
                self.set(key::counted(*backupset, *incremental), None)
            }
            Change::Generation(number) => {
                self.meta.generation = self.meta.generation.max(*number);
                Ok(())
            }
        }
    }

    fn insert(&mut self, key: SegmentKey, entry: &SegmentEntry) -> Result<(), IndexError> {
        match self.segment(key)? {
            // A lost segment has come back: who names it still does.
            Some(SegmentEntry { refcount, zero_since, pack: LOST, .. }) => {
                self.meta.lost = self.meta.lost.saturating_sub(1);
                self.enter(entry.place().pack, entry.span(), 0)?;
                self.set_segment(key, &SegmentEntry { refcount, zero_since, ..*entry })
            }
            Some(old) if old.place() == entry.place() => Ok(()),
            // A second copy, as a crash in the midst of a move leaves it.
            Some(_) => {
                self.pack(entry.place().pack)?.uncounted += 1;
                Ok(())
            }
            None => {
                self.meta.segments += 1;
                self.meta.twins += u64::from(key.twin != Twin(0));
                self.enter(entry.place().pack, entry.span(), 1)?;
                self.set_segment(key, entry)
            }
        }
    }

    fn count(&mut self, key: SegmentKey, difference: i64) -> Result<(), IndexError> {
        let missing = || IndexError::Missing { path: self.index.path().to_owned(), key };
        let mut entry = self.segment(key)?.ok_or_else(missing)?;
        let before = entry;
        entry.refcount = entry.refcount.checked_add_signed(difference).ok_or_else(|| {
            self.index.damaged(format!("the refcount of segment {key} would fall below zero"))
        })?;
        match (before.refcount, entry.refcount) {
            (0, 0) => {}
            (0, _) if before.zero_since > 0 => self.set(key::zero(before.zero_since, key), None)?,
            (0, _) if !before.is_lost() => {
                let pack = self.pack(before.place().pack)?;
                pack.uncounted = pack.uncounted.saturating_sub(1);
            }
            _ => {}
        }
        entry.zero_since = 0;
        if entry.refcount == 0 {
            self.list_zero(key, &mut entry)?;
        }
        self.set_segment(key, &entry)
    }

    /// Lists a segment among those that nobody names, since now.
    fn list_zero(&mut self, key: SegmentKey, entry: &mut SegmentEntry) -> Result<(), IndexError> {
        entry.zero_since = self.meta.generation.max(1);
        self.set(key::zero(entry.zero_since, key), Some(Vec::new()))
    }

    /// The damaged copy stays in its pack until a collection has read the new one.
    fn heal(&mut self, key: SegmentKey, to: &SegmentEntry, damaged: RecordPlace) -> Result<(), IndexError> {
        if self.segment(key)?.is_none_or(|old| old.place() != damaged) {
            return self.insert(key, to);
        }
        self.relocate(key, to, damaged)?;
        self.pack(damaged.pack)?.uncounted += 1;
        Ok(())
    }

    fn relocate(&mut self, key: SegmentKey, to: &SegmentEntry, from: RecordPlace) -> Result<(), IndexError> {
        let Some(old) = self.segment(key)?.filter(|old| old.place() == from) else {
            self.pack(to.place().pack)?.uncounted += 1;
            return Ok(());
        };
        let never = u64::from(old.refcount == 0 && old.zero_since == 0);
        self.leave(from.pack, old.span(), never)?;
        self.enter(to.place().pack, to.span(), never)?;
        let SegmentEntry { refcount, zero_since, .. } = old;
        self.set_segment(key, &SegmentEntry { refcount, zero_since, ..*to })
    }

    fn quarantine(&mut self, key: SegmentKey, place: RecordPlace, span: u64) -> Result<(), IndexError> {
        let id = self.pack(place.pack)?.id();
        match self.segment(key)? {
            Some(entry) if entry.place() == place => {
                let never = entry.refcount == 0 && entry.zero_since == 0;
                self.leave(place.pack, entry.span(), u64::from(never))?;
                let mut damaged = entry.damaged();
                // A backup that runs may have found it, and is told at its commit that it is lost.
                if never {
                    self.list_zero(key, &mut damaged)?;
                }
                self.meta.lost += 1;
                self.set_segment(key, &damaged)?;
            }
            _ => {
                let pack = self.pack(place.pack)?;
                pack.uncounted = pack.uncounted.saturating_sub(1);
            }
        }
        let places = vec![FreedPlace::new(key, place, id, span)];
        self.change(&Change::Task(Task::Punch { places, buried: false }))
    }

    /// Frees a copy of a segment if nobody names it by now. Returns the place that is free.
    pub(super) fn free(
        &mut self,
        candidate: &Candidate,
        before: u64,
    ) -> Result<Option<FreedPlace>, IndexError> {
        let Candidate { key, place, why, .. } = *candidate;
        let Some(entry) = self.segment(key)? else {
            // Its first copy was freed just now.
            let copy = why == Garbage::SecondCopy && self.pack(place.pack)?.is_sealed();
            return if copy { self.free_copy(candidate).map(Some) } else { Ok(None) };
        };
        if entry.is_lost() && entry.place() == place {
            if entry.refcount == 0 && entry.zero_since < before {
                self.forget(key, &entry)?;
            }
            return Ok(None);
        }
        let pack = self.pack(place.pack)?;
        let id = pack.id();
        if !pack.is_sealed() {
            return Ok(None);
        }
        if entry.place() != place {
            let copy = why == Garbage::SecondCopy;
            return if copy { self.free_copy(candidate).map(Some) } else { Ok(None) };
        }
        let never = entry.zero_since == 0;
        if entry.refcount > 0 || never != (why == Garbage::Uncounted) || entry.zero_since >= before {
            return Ok(None);
        }
        self.leave(place.pack, entry.span(), u64::from(never))?;
        self.forget(key, &entry)?;
        Ok(Some(FreedPlace::new(key, place, id, entry.span())))
    }

    fn free_copy(&mut self, candidate: &Candidate) -> Result<FreedPlace, IndexError> {
        let Candidate { key, place, span, .. } = *candidate;
        let pack = self.pack(place.pack)?;
        pack.uncounted = pack.uncounted.saturating_sub(1);
        Ok(FreedPlace::new(key, place, pack.id(), span))
    }

    fn forget(&mut self, key: SegmentKey, entry: &SegmentEntry) -> Result<(), IndexError> {
        if entry.zero_since > 0 {
            self.set(key::zero(entry.zero_since, key), None)?;
        }
        self.meta.segments = self.meta.segments.saturating_sub(1);
        self.meta.twins = self.meta.twins.saturating_sub(u64::from(key.twin != Twin(0)));
        self.meta.lost = self.meta.lost.saturating_sub(u64::from(entry.is_lost()));
        self.set(key::segment(key).to_vec(), None)
    }

    /// Takes a sealed pack out in which nothing lives. Says whether it did.
    pub(super) fn drop_pack(&mut self, number: PackNumber) -> Result<bool, IndexError> {
        let pack = *self.pack(number)?;
        if pack.living > 0 || !pack.is_sealed() {
            return Ok(false);
        }
        self.packs.insert(number, None);
        self.change(&Change::Task(Task::Unlink { pack: number.0, id: pack.id }))?;
        Ok(true)
    }

    fn enter(&mut self, number: PackNumber, span: u64, uncounted: u64) -> Result<(), IndexError> {
        let pack = self.pack(number)?;
        pack.living += 1;
        pack.living_bytes += span;
        pack.uncounted += uncounted;
        Ok(())
    }

    fn leave(&mut self, number: PackNumber, span: u64, uncounted: u64) -> Result<(), IndexError> {
        let wrong = |index: &Index| index.damaged(format!("less lives in pack {number} than it has"));
        let index = self.index;
        let pack = self.pack(number)?;
        pack.living = pack.living.checked_sub(1).ok_or_else(|| wrong(index))?;
        pack.living_bytes = pack.living_bytes.checked_sub(span).ok_or_else(|| wrong(index))?;
        pack.uncounted = pack.uncounted.saturating_sub(uncounted);
        Ok(())
    }

    fn pack(&mut self, number: PackNumber) -> Result<&mut PackEntry, IndexError> {
        if !self.packs.contains_key(&number) {
            let old = self.get(&key::pack(number))?;
            let old = old.map(|value| pack_entry(&value, self.index.path())).transpose()?;
            self.packs.insert(number, old);
        }
        Ok(self.packs.entry(number).or_default().get_or_insert_default())
    }

    fn segment(&mut self, key: SegmentKey) -> Result<Option<SegmentEntry>, IndexError> {
        let path = self.index.path();
        let value = self.get(&key::segment(key))?;
        value.map(|bytes| Ok(segment_entry(read(&bytes, path)?))).transpose()
    }

    fn set_segment(&mut self, key: SegmentKey, entry: &SegmentEntry) -> Result<(), IndexError> {
        let value = self.encode(entry)?;
        self.set(key::segment(key).to_vec(), Some(value))
    }

    fn get(&mut self, key: &[u8]) -> Result<Value, IndexError> {
        if let Some((_, new)) = self.records.get(key) {
            return Ok(new.clone());
        }
        let old = self.index.get(key)?.map(|value| value.to_vec());
        self.records.insert(key.to_vec(), (old.clone(), old.clone()));
        Ok(old)
    }

    fn set(&mut self, key: Vec<u8>, value: Value) -> Result<(), IndexError> {
        match self.records.entry(key) {
            Entry::Occupied(mut record) => record.get_mut().1 = value,
            Entry::Vacant(record) => {
                let old = self.index.get(record.key())?.map(|value| value.to_vec());
                record.insert((old, value));
            }
        }
        Ok(())
    }

    fn encode(&self, value: &impl Encodable) -> Result<Vec<u8>, IndexError> {
        encode(value).map_err(|error| self.index.damaged(error.to_string()))
    }

    /// Ends the batch: what is to be written of it, and the sum over all records after it.
    pub(super) fn finish(mut self) -> Result<Finished, IndexError> {
        for (number, pack) in std::mem::take(&mut self.packs) {
            let value = pack.map(|pack| self.encode(&pack)).transpose()?;
            self.set(key::pack(number), value)?;
        }
        let Self { mut meta, records, .. } = self;
        let changed = records.into_iter().filter(|(_, (old, new))| old != new);
        let records = changed.map(|(key, (old, new))| {
            if let Some(old) = old {
                meta.take(&key, &old);
            }
            if let Some(new) = &new {
                meta.add(&key, new);
            }
            (key, new)
        });
        let records = records.collect();
        Ok(Finished { meta, records })
    }
}
