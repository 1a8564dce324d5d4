//! Garbage collection, as the store sees it: which segments nobody names, and giving their space back.
//!
//! What may go is listed, not searched for: what fell to a refcount of 0 stands in a list of the index, and what
//! was stored and never counted lies in packs that say so. So the work follows the garbage, not the store.
//!
//! The order, for a part of the candidates at a time; `docs/gc.md` says why each step is safe:
//!
//! 1. [`Collector::free`]: entries out of the index, tasks in, each batch atomic;
//! 2. the caller makes that durable, and older indexes unbelievable, by raising the generation;
//! 3. [`Collector::give_back`]: a dead record names the places, durably; then they are punched, packs in which
//!    nothing lives are removed, and the tasks are done.
//!
//! A crash after 1 leaves tasks in the index; the next collection finishes them. Owns none of the reasons why a
//! segment is needed: the caller compares the candidates with what manifests name before it frees any.

use std::sync::Arc;

use crate::codec::Decoder;
use crate::error::ErrorKind;
use crate::segment::SegmentKey;
use crate::storage::Storage;
use crate::store::batch::Batch;
use crate::store::entry::{Candidate, Change, FreedPlace, Garbage, SegmentEntry, Task};
use crate::store::index::{BATCH, IndexWriter};
use crate::store::index_error::IndexError;
use crate::store::pack::{
    PackError, PackFolder, PackNumber, PackReader, RecordHeader, RecordKind, RecordPlace,
};
use crate::store::pending::Horizon;
use crate::store::writer::now;
use crate::store::{SegmentStore, StoreError};

/// How many segments are freed in one atomic batch.
const FREED_AT_ONCE: usize = 64;

/// What a listing found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CandidateList {
    /// What may be freed, if no manifest names it.
    pub candidates: Vec<Candidate>,
    /// Segments that were stored too lately by a backup that was not finished: it may be run again.
    pub unfinished: u64,
    /// The bytes they take.
    pub unfinished_bytes: u64,
    /// What is damaged, in words.
    pub problems: Vec<String>,
}

/// Collects garbage. One at a time.
#[derive(Debug)]
pub struct Collector<'a> {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) folder: &'a PackFolder,
    pub(super) store: &'a SegmentStore,
    pub(super) horizon: Horizon,
    /// How long, in seconds, a segment is kept that has never been counted.
    keep_unfinished: u64,
    /// Packs that are still to be looked through for what was never counted.
    packs: Vec<PackNumber>,
    /// How far the list of what fell to 0 was taken.
    zeros: Option<(u64, SegmentKey)>,
    /// Whether it was taken to its end.
    ended: bool,
    settle: bool,
    /// Whether holes give their space back here.
    pub(super) holes: bool,
}

impl<'a> Collector<'a> {
    /// Begins a collection of what nobody named before `horizon`. With `settle`, what is learned about packs is
    /// noted in the index.
    pub fn new(
        storage: Arc<dyn Storage>,
        folder: &'a PackFolder,
        store: &'a SegmentStore,
        horizon: Horizon,
        keep_unfinished: u64,
        settle: bool,
    ) -> Result<Self, StoreError> {
        let holes = storage.gives_back(folder.path())?;
        let packs = store.packs()?;
        let old = packs
            .iter()
            .filter(|(number, pack)| pack.uncounted > 0 && pack.is_sealed() && **number < horizon.pack);
        let mut packs: Vec<_> = old.map(|(number, _)| *number).collect();
        packs.sort_unstable();
        packs.reverse();
        Ok(Self {
            storage,
            folder,
            store,
            horizon,
            keep_unfinished,
            packs,
            zeros: None,
            ended: false,
            settle,
            holes,
        })
    }

    /// Lists about `most` candidates more, sorted by their keys; none when all have been listed.
    pub fn list(&mut self, most: usize) -> Result<CandidateList, StoreError> {
        let mut list = CandidateList::default();
        while list.candidates.len() < most
            && let Some(number) = self.packs.pop()
        {
            self.list_uncounted(number, &mut list)?;
        }
        if !self.ended
            && let Some(room) = most.checked_sub(list.candidates.len()).filter(|room| *room > 0)
        {
            let zeros = self.store.zeros(self.zeros, self.horizon.generation, room)?;
            self.zeros = zeros.last().copied();
            self.ended = zeros.is_empty();
            for (_, key) in zeros {
                if let Some(entry) = self.store.lookup(key)? {
                    let (place, span) = (entry.place(), if entry.is_lost() { 0 } else { entry.span() });
                    list.candidates.push(Candidate { key, place, span, why: Garbage::Zero });
                }
            }
        }
        list.candidates.sort_unstable();
        Ok(list)
    }

    /// Lists what has never been counted in a pack, and second copies.
    fn list_uncounted(&self, number: PackNumber, list: &mut CandidateList) -> Result<(), StoreError> {
        let pack = match PackReader::open(self.storage.as_ref(), self.folder, number) {
            Ok(pack) => pack,
            Err(error) => {
                list.problems.push(error.to_string());
                return Ok(());
            }
        };
        let entries = match pack.contents() {
            Ok(Some(entries)) => entries,
            unread => {
                let damaged = pack.damaged(0, "its table of contents cannot be read");
                list.problems.push(unread.err().unwrap_or(damaged).to_string());
                return Ok(());
            }
        };
        let mut found = 0;
        for entry in entries.iter().filter(|entry| entry.kind == RecordKind::Segment) {
            let Some(indexed) = self.store.lookup(entry.key)? else { continue };
            let place = RecordPlace { pack: number, offset: entry.offset };
            let copy = indexed.place() != place;
            if indexed.is_lost() || (!copy && (indexed.refcount > 0 || indexed.zero_since > 0)) {
                continue;
            }
            let record = match pack.record(entry.offset) {
                Ok(record) => record,
                Err(PackError::Storage(error)) if error.kind() == ErrorKind::Io => {
                    list.problems.push(format!("{error}; what is there is kept"));
                    found += 1;
                    continue;
                }
                // What was freed stands in the table still, but there is no record any longer.
                Err(_) => continue,
            };
            found += 1;
            if copy {
                let same =
                    indexed.fingerprint() == entry.fingerprint && indexed.plain_length == entry.plain_length;
                if !same {
                    let key = entry.key;
                    list.problems.push(format!(
                        "{place} holds another segment {key} than the index names; it is kept"
                    ));
                    continue;
                }
                match self.verify(entry.key, &indexed) {
                    Ok(()) => {}
                    Err(StoreError::Pack(error)) => {
                        list.problems.push(format!("{error}; its copy in {place} is kept"));
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            } else if self.is_young(&record) {
                list.unfinished += 1;
                list.unfinished_bytes += entry.span();
                continue;
            }
            let why = if copy { Garbage::SecondCopy } else { Garbage::Uncounted };
            list.candidates.push(Candidate { key: entry.key, place, span: entry.span(), why });
        }
        if self.settle {
            self.store.apply(vec![Change::Settle(number, found)])?;
        }
        Ok(())
    }

    fn is_young(&self, record: &RecordHeader) -> bool {
        // A clock that was wrong once keeps nothing for ever.
        record.time.abs_diff(now()) < self.keep_unfinished
    }

    /// Reads a stored segment and makes sure that it is what it should be.
    fn verify(&self, key: SegmentKey, entry: &SegmentEntry) -> Result<(), StoreError> {
        let mut decoder = Decoder::new()?;
        let (mut stored, mut plain) = (Vec::new(), Vec::new());
        let place = entry.place();
        let pack = PackReader::open(self.storage.as_ref(), self.folder, place.pack)?;
        pack.segment(key, place.offset, entry.stored_length, &mut decoder, &mut stored, &mut plain)?;
        Ok(())
    }

    /// Takes candidates out of the index; what is in use by now stays. Returns how many went, and their bytes.
    pub fn free(&self, candidates: &[Candidate]) -> Result<(u64, u64), StoreError> {
        let (mut segments, mut bytes) = (0, 0);
        for batch in candidates.chunks(FREED_AT_ONCE) {
            let freed = self.store.free(batch.to_vec(), self.horizon.generation)?;
            segments += freed.len() as u64;
            bytes += freed.iter().map(|place| place.span).sum::<u64>();
        }
        Ok((segments, bytes))
    }
}

impl IndexWriter {
    /// Takes segments out that nobody names, with what is to be done to their packs: one atomic batch. What is
    /// named by now, or fell to 0 in the generation `before` or later, stays.
    ///
    /// Returns the places that are free.
    pub fn free(&mut self, candidates: &[Candidate], before: u64) -> Result<Vec<FreedPlace>, IndexError> {
        let mut all = Vec::with_capacity(candidates.len());
        for part in candidates.chunks(BATCH) {
            let mut batch = Batch::new(self.index(), self.meta());
            let mut freed = Vec::with_capacity(part.len());
            for candidate in part {
                freed.extend(batch.free(candidate, before)?);
            }
            if !freed.is_empty() {
                let task = Task::Punch { places: freed.clone(), buried: false };
                batch.change(&Change::Task(task))?;
            }
            let finished = batch.finish()?;
            self.write(finished)?;
            all.append(&mut freed);
        }
        Ok(all)
    }

    /// Takes those packs out that hold nothing that lives: their files are to be removed. Returns which.
    pub fn drop_packs(&mut self, numbers: &[PackNumber]) -> Result<Vec<PackNumber>, IndexError> {
        let mut all = Vec::new();
        for part in numbers.chunks(BATCH) {
            let mut batch = Batch::new(self.index(), self.meta());
            for number in part {
                if batch.drop_pack(*number)? {
                    all.push(*number);
                }
            }
            let finished = batch.finish()?;
            self.write(finished)?;
        }
        Ok(all)
    }
}
