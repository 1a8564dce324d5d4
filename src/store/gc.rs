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

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use crate::codec::Decoder;
use crate::segment::SegmentKey;
use crate::storage::Storage;
use crate::store::entry::{Candidate, Change, FreedPlace, Garbage, SegmentEntry, Task};
use crate::store::pack::{
    ContentsEntry, PackError, PackNumber, PackReader, RecordHeader, RecordKind, RecordPlace, SegmentMeta,
};
use crate::store::pending::Horizon;
use crate::store::reconcile::pack_numbers;
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

/// What was given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// How many packs were removed.
    pub unlinked_packs: u64,
    /// How many bytes were punched out of packs.
    pub punched_bytes: u64,
}

/// Collects garbage. One at a time.
#[derive(Debug)]
pub struct Collector<'a> {
    storage: Arc<dyn Storage>,
    folder: &'a Path,
    store: &'a SegmentStore,
    horizon: Horizon,
    /// How long, in seconds, a segment is kept that has never been counted.
    keep_unfinished: u64,
    /// Packs that are still to be looked through for what was never counted.
    packs: Vec<PackNumber>,
    /// How far the list of what fell to 0 was taken.
    zeros: Option<(u64, SegmentKey)>,
    /// Whether it was taken to its end.
    ended: bool,
    settle: bool,
}

impl<'a> Collector<'a> {
    /// Begins a collection of what nobody named before `horizon`. With `settle`, what is learned about packs is
    /// noted in the index.
    pub fn new(
        storage: Arc<dyn Storage>,
        folder: &'a Path,
        store: &'a SegmentStore,
        horizon: Horizon,
        keep_unfinished: u64,
        settle: bool,
    ) -> Result<Self, StoreError> {
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
        let Some(entries) = pack.contents()? else {
            list.problems.push(pack.damaged(0, "its table of contents cannot be read").to_string());
            return Ok(());
        };
        let mut found = 0;
        for entry in entries.iter().filter(|entry| entry.kind == RecordKind::Segment) {
            let Some(indexed) = self.store.lookup(entry.key)? else { continue };
            let place = RecordPlace { pack: number, offset: entry.offset };
            let copy = indexed.place() != place;
            if indexed.is_lost() || (!copy && (indexed.refcount > 0 || indexed.zero_since > 0)) {
                continue;
            }
            // What was freed stands in the table still, but there is no record any longer.
            let Ok(record) = pack.record(entry.offset) else { continue };
            found += 1;
            if copy {
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

    /// Takes packs out of the index in which nothing lives, and that no dead record keeps.
    pub fn drop_empty_packs(&self) -> Result<(), StoreError> {
        let packs = self.store.packs()?;
        let empty =
            |pack: &crate::store::PackEntry| pack.is_sealed() && pack.living == 0 && pack.uncounted == 0;
        let numbers = packs.iter().filter(|(_, pack)| empty(pack) && pack.dead == 0);
        let dropped = self.store.drop_packs(numbers.map(|(number, _)| *number).collect())?;
        if dropped.is_empty() {
            return Ok(());
        }
        // A dead record is needed as long as there is a pack that it names.
        let mut there = HashSet::new();
        for number in pack_numbers(self.storage.as_ref(), self.folder)? {
            if !dropped.contains(&number) {
                there.insert(PackReader::open(self.storage.as_ref(), self.folder, number)?.header().id());
            }
        }
        let mut idle = Vec::new();
        for (number, _) in packs.iter().filter(|(_, pack)| empty(pack) && pack.dead > 0) {
            let pack = PackReader::open(self.storage.as_ref(), self.folder, *number)?;
            let entries = pack.contents()?.unwrap_or_default();
            let mut needed = entries.is_empty();
            for entry in entries.iter().filter(|entry| entry.kind == RecordKind::Dead) {
                needed |= pack.dead_segments(entry.offset)?.iter().any(|dead| there.contains(&dead.pack));
            }
            if !needed {
                idle.push(*number);
            }
        }
        self.store.drop_packs(idle)?;
        Ok(())
    }

    /// Says whether anything is to be done to the packs' files.
    pub fn has_tasks(&self) -> Result<bool, StoreError> {
        Ok(!self.store.tasks()?.is_empty())
    }

    /// Does to the packs' files what the index says is to be done. What freed the places is durable.
    pub fn give_back(&self) -> Result<Reclaimed, StoreError> {
        let mut reclaimed = Reclaimed::default();
        let tasks = self.store.tasks()?;
        if tasks.is_empty() {
            return Ok(reclaimed);
        }
        let going: HashSet<_> = tasks.iter().filter_map(|(_, task)| task.unlinks()).collect();
        let mut unburied = Vec::new();
        let mut places: BTreeMap<PackNumber, Vec<FreedPlace>> = BTreeMap::new();
        for (_, task) in &tasks {
            let Task::Punch { places: freed, buried } = task else { continue };
            for place in freed.iter().filter(|place| !going.contains(&place.pack())) {
                places.entry(place.pack()).or_default().push(*place);
                if !buried {
                    unburied.push(*place);
                }
            }
        }
        if !unburied.is_empty() {
            self.store.bury(unburied)?;
        }
        for (number, mut places) in places {
            places.sort_unstable_by_key(|place| place.offset);
            reclaimed.punched_bytes += self.punch(number, &places)?;
        }
        for (_, task) in &tasks {
            let Task::Unlink { pack, id } = task else { continue };
            reclaimed.unlinked_packs += u64::from(self.unlink(PackNumber(*pack), *id)?);
        }
        if reclaimed.unlinked_packs > 0 {
            self.storage.sync_folder(self.folder)?;
        }
        let done: Vec<_> = tasks.iter().map(|(number, _)| Change::TaskDone(*number)).collect();
        self.store.apply(done)?;
        Ok(reclaimed)
    }

    /// Punches places, which are sorted, out of a pack. Returns how many bytes.
    fn punch(&self, number: PackNumber, places: &[FreedPlace]) -> Result<u64, StoreError> {
        let path = self.folder.join(number.file_name());
        let id = match PackReader::open(self.storage.as_ref(), self.folder, number) {
            Ok(pack) => pack.header().id(),
            // Nothing is left of it to be given back.
            Err(PackError::Storage(error)) if error.is_not_found() => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let file = self.storage.open(&path)?;
        let (mut punched, mut holes) = (0, self.storage.gives_back(self.folder)?);
        let mut rest = places.iter().filter(|place| place.dead().pack == id).peekable();
        while let Some(first) = rest.next() {
            let mut end = first.offset + first.span;
            while holes && let Some(next) = rest.next_if(|next| next.offset == end) {
                end = next.offset + next.span;
            }
            match file.punch(first.offset, end - first.offset) {
                Ok(()) => punched += end - first.offset,
                // The pack is moved when little lives in it. Until then nobody shall read these as records.
                Err(error) if error.is_unsupported() => {
                    holes = false;
                    file.write_at(&[0; 4096], first.offset)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        // Else a power loss would bring the bytes back, and nobody would know of them.
        file.sync()?;
        Ok(punched)
    }

    fn unlink(&self, number: PackNumber, id: [u8; 16]) -> Result<bool, StoreError> {
        match PackReader::open(self.storage.as_ref(), self.folder, number) {
            Ok(pack) if pack.header().id().0 == id => {}
            Ok(_) => return Ok(false),
            Err(PackError::Storage(error)) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        self.storage.unlink(&self.folder.join(number.file_name()))?;
        Ok(true)
    }

    /// Returns the packs of which less than a third lives, where punching holes gives nothing back.
    pub fn sparse_packs(&self) -> Result<Vec<PackNumber>, StoreError> {
        let packs = self.store.packs()?;
        let sparse = packs.iter().filter(|(number, pack)| {
            pack.is_sealed()
                && **number < self.horizon.pack
                && pack.living_bytes.saturating_mul(3) < pack.size
        });
        let mut sparse: Vec<_> =
            sparse.filter(|(_, pack)| pack.living > 0).map(|(number, _)| *number).collect();
        if sparse.is_empty() || self.storage.gives_back(self.folder)? {
            return Ok(Vec::new());
        }
        sparse.sort_unstable();
        Ok(sparse)
    }

    /// Copies what lives in a pack to the one that is appended to. When this returns, the copies are durable and
    /// the index names them; the pack can be dropped. Returns how many bytes were copied.
    pub fn move_living(&self, number: PackNumber, problems: &mut Vec<String>) -> Result<u64, StoreError> {
        let pack = PackReader::open(self.storage.as_ref(), self.folder, number)?;
        let mut decoder = Decoder::new()?;
        let (mut stored, mut plain) = (Vec::new(), Vec::new());
        let (mut moved, mut whole) = (0, true);
        for entry in pack.contents()?.unwrap_or_default() {
            let from = RecordPlace { pack: number, offset: entry.offset };
            let lives = entry.kind == RecordKind::Segment
                && self.store.lookup(entry.key)?.is_some_and(|indexed| indexed.place() == from);
            if !lives {
                continue;
            }
            let length = u32::try_from(entry.stored_length).unwrap_or(u32::MAX);
            match pack.segment(entry.key, entry.offset, length, &mut decoder, &mut stored, &mut plain) {
                Ok(record) => self.copy(&entry, &record, &stored, from)?,
                Err(PackError::Storage(error)) => return Err(error.into()),
                Err(error) => {
                    problems.push(error.to_string());
                    whole = false;
                    continue;
                }
            }
            moved += entry.span();
        }
        self.store.flush()?;
        if whole {
            self.store.apply(vec![Change::Settle(number, 0)])?;
        }
        Ok(moved)
    }

    fn copy(
        &self,
        entry: &ContentsEntry,
        record: &RecordHeader,
        stored: &[u8],
        from: RecordPlace,
    ) -> Result<(), StoreError> {
        let meta = SegmentMeta {
            key: entry.key,
            fingerprint: entry.fingerprint,
            plain_length: entry.plain_length,
            codec: record.codec()?,
        };
        let mut buffer = self.store.buffer()?;
        buffer.restart().extend_from_slice(RecordHeader::payload(stored));
        self.store.relocate(meta, buffer, from)
    }
}
