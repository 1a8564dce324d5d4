//! What is read of the index record after record, in order.

use std::collections::{HashMap, HashSet};

use rkyv::rancor;

use crate::manifest::{BackupsetId, Incremental};
use crate::segment::SegmentKey;
use crate::store::batch::{pack_entry, read, segment_entry};
use crate::store::entry::{
    ArchivedCounted, ArchivedSegmentEntry, ArchivedTask, Counted, PackEntry, SegmentEntry, Task, key,
};
use crate::store::index::{BATCH, Index};
use crate::store::index_error::IndexError;
use crate::store::pack::PackNumber;

impl Index {
    /// Calls `each` with every record whose key begins with `prefix`, in their order.
    pub(super) fn scan(
        &self,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        let mut records = self.call("scan", |db| Ok(db.scan_prefix(prefix)))?;
        while let Some((key, value)) = self.call("scan", |_| records.next().transpose())? {
            each(&key, &value)?;
        }
        Ok(())
    }

    /// Returns up to `most` segments whose refcount fell to 0 in a generation below `before`, in the order in
    /// which they did, from the one behind `after` on.
    pub fn zeros(
        &self,
        after: Option<(u64, SegmentKey)>,
        before: u64,
        most: usize,
    ) -> Result<Vec<(u64, SegmentKey)>, IndexError> {
        let from = match after {
            Some((since, key)) => std::ops::Bound::Excluded(key::zero(since, key)),
            None => std::ops::Bound::Included(vec![key::ZERO]),
        };
        let mut found = Vec::new();
        let mut records = self.call("scan", |db| {
            Ok(db.range::<Vec<u8>, _>((from, std::ops::Bound::Excluded(vec![key::ZERO + 1]))))
        })?;
        while found.len() < most
            && let Some((key, _)) = self.call("scan", |_| records.next().transpose())?
        {
            let listed = key::read_zero(&key).ok_or_else(|| self.damaged("a key does not decode"))?;
            if listed.0 >= before {
                break;
            }
            found.push(listed);
        }
        Ok(found)
    }

    /// Returns up to `most` of what is still to be done to the packs' files, in order, from number `from` on.
    pub fn tasks(&self, from: u64, most: usize) -> Result<Vec<(u64, Task)>, IndexError> {
        let mut tasks = Vec::new();
        let mut records =
            self.call("scan", |db| Ok(db.range::<Vec<u8>, _>(key::task(from)..=key::task(u64::MAX))))?;
        while tasks.len() < most
            && let Some((key, value)) = self.call("scan", |_| records.next().transpose())?
        {
            let number = key::read_task(&key).ok_or_else(|| self.damaged("a key does not decode"))?;
            let archived = read::<ArchivedTask>(&value, self.path())?;
            let task = rkyv::deserialize::<Task, rancor::Failure>(archived)
                .map_err(|_| self.damaged("a value does not decode"))?;
            tasks.push((number, task));
        }
        Ok(tasks)
    }

    /// Returns the packs whose segments are all in the index.
    pub fn packs(&self) -> Result<HashMap<PackNumber, PackEntry>, IndexError> {
        let mut packs = HashMap::new();
        self.scan(&[key::PACK], |key, value| {
            let number = key::read_pack(key).ok_or_else(|| self.damaged("a key does not decode"))?;
            packs.insert(number, pack_entry(value, self.path())?);
            Ok(())
        })?;
        Ok(packs)
    }

    /// Returns the packs that are to be removed.
    pub fn going(&self) -> Result<HashSet<PackNumber>, IndexError> {
        let mut going = HashSet::new();
        let mut from = 0;
        loop {
            let tasks = self.tasks(from, BATCH)?;
            let Some((last, _)) = tasks.last() else { return Ok(going) };
            from = last.saturating_add(1);
            going.extend(tasks.iter().filter_map(|(_, task)| task.unlinks()));
        }
    }

    /// Returns the backups whose segments are counted, wholly or in part.
    pub fn counted(&self) -> Result<HashMap<(BackupsetId, Incremental), Counted>, IndexError> {
        let mut counted = HashMap::new();
        self.scan(&[key::COUNTED], |key, value| {
            let id = key::read_counted(key).ok_or_else(|| self.damaged("a key does not decode"))?;
            counted.insert(id, self.read_counted(value)?);
            Ok(())
        })?;
        Ok(counted)
    }

    /// Returns how far the segments of one backup are counted.
    pub fn counted_of(
        &self,
        backupset: BackupsetId,
        incremental: Incremental,
    ) -> Result<Option<Counted>, IndexError> {
        let value = self.get(&key::counted(backupset, incremental))?;
        value.map(|value| self.read_counted(&value)).transpose()
    }

    fn read_counted(&self, value: &[u8]) -> Result<Counted, IndexError> {
        let archived = read::<ArchivedCounted>(value, self.path())?;
        rkyv::deserialize::<Counted, rancor::Failure>(archived)
            .map_err(|_| self.damaged("a value does not decode"))
    }

    /// Calls `each` with every segment, in the order of their keys.
    pub fn segments(&self, mut each: impl FnMut(SegmentKey, &SegmentEntry)) -> Result<(), IndexError> {
        self.scan(&[key::SEGMENT], |key, value| {
            let key = key::read_segment(key).ok_or_else(|| self.damaged("a key does not decode"))?;
            each(key, &segment_entry(read::<ArchivedSegmentEntry>(value, self.path())?));
            Ok(())
        })
    }

    /// Puts a record that is about to be written into the filter, if it is a segment's.
    pub(super) fn note(&self, key: &[u8]) {
        if key.first() == Some(&key::SEGMENT)
            && let Some(key) = key::read_segment(key)
        {
            self.filter().insert(&key.hash);
        }
    }

    /// Counts a lookup, and makes the filter when enough of them were in vain.
    pub(super) fn looked_up(&self, in_vain: bool) -> Result<(), IndexError> {
        if in_vain && self.filter().missed(self.segments_held()) { self.fill_filter() } else { Ok(()) }
    }

    /// Reads all hashes into the filter. What is inserted meanwhile its writer puts there.
    fn fill_filter(&self) -> Result<(), IndexError> {
        self.segments(|key, _| self.filter().insert(&key.hash))?;
        self.filter().complete();
        Ok(())
    }
}
