//! Finding segments without the index, by the packs' tables of contents.
//!
//! Restores go this way always: it needs no lock, works beside a running backup and with a lost index, and
//! reads 80 bytes a stored segment in a few large reads.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::segment::SegmentKey;
use crate::storage::Storage;
use crate::store::StoreError;
use crate::store::pack::{
    ContentsEntry, PackError, PackFolder, PackId, PackNumber, PackReader, PackScan, RecordKind, RecordPlace,
    ScanDepth,
};
use crate::store::reconcile::pack_numbers;

/// The most packs that are kept open.
const OPEN_PACKS: usize = 128;

/// Where a copy of a segment lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentPlace {
    /// The segment.
    pub key: SegmentKey,
    /// Its record.
    pub place: RecordPlace,
    /// The length of its stored bytes.
    pub stored_length: u32,
    /// The length of its plain bytes.
    pub plain_length: u32,
}

/// A pack that could not be read.
#[derive(Debug)]
pub struct CatalogProblem {
    /// The pack.
    pub pack: PackNumber,
    /// Why.
    pub error: PackError,
}

/// The packs of a repository, for reading.
#[derive(Debug)]
pub struct Catalog {
    storage: Arc<dyn Storage>,
    folder: PackFolder,
    numbers: Vec<PackNumber>,
    open: Mutex<HashMap<PackNumber, Arc<PackReader>>>,
}

impl Catalog {
    /// Lists the packs in a folder.
    pub fn open(storage: Arc<dyn Storage>, folder: &PackFolder) -> Result<Self, StoreError> {
        let numbers = pack_numbers(storage.as_ref(), folder)?;
        Ok(Self { storage, folder: folder.clone(), numbers, open: Mutex::default() })
    }

    /// Returns a catalog of what the packs hold now, if a pack has gone since this one was made: what lived in it
    /// lies elsewhere then.
    pub fn renewed(&self) -> Result<Option<Self>, StoreError> {
        let renewed = Self::open(Arc::clone(&self.storage), &self.folder)?;
        let gone = self.numbers.iter().any(|number| renewed.numbers.binary_search(number).is_err());
        Ok(gone.then_some(renewed))
    }

    /// Opens a pack, or returns the handle that is open.
    pub fn pack(&self, number: PackNumber) -> Result<Arc<PackReader>, PackError> {
        // Opening happens outside the lock: two threads may both open a pack, and one handle is dropped.
        let open = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pack) = open().get(&number) {
            return Ok(Arc::clone(pack));
        }
        let pack = Arc::new(PackReader::open(self.storage.as_ref(), &self.folder, number)?);
        let mut open = open();
        if open.len() >= OPEN_PACKS {
            open.clear();
        }
        open.insert(number, Arc::clone(&pack));
        Ok(pack)
    }

    /// Returns how many records the tables of all packs list, about.
    pub fn listed(&self) -> u64 {
        self.numbers.iter().filter_map(|number| self.pack(*number).ok()?.listed().ok()).sum()
    }

    /// Calls `each` with every living segment's entry of every pack, pack by pack. What cannot be read is
    /// returned and left out.
    pub fn for_each_segment(
        &self,
        mut each: impl FnMut(PackNumber, &ContentsEntry),
    ) -> Result<Vec<CatalogProblem>, StoreError> {
        let mut problems = Vec::new();
        let mut dead: HashSet<(PackId, u64)> = HashSet::new();
        // Newest first: a dead record is younger than what it names, so it has been seen by then.
        for number in self.numbers.iter().rev() {
            match self.entries(*number, &mut dead, &mut problems) {
                Ok((id, entries)) => entries
                    .iter()
                    .filter(|entry| entry.kind == RecordKind::Segment && !dead.contains(&(id, entry.offset)))
                    .for_each(|entry| each(*number, entry)),
                Err(error @ PackError::NewerFormat { .. }) => return Err(error.into()),
                // A pack that gc unlinked since the folder was listed held nothing that is needed.
                Err(PackError::Storage(error)) if error.is_not_found() => {}
                Err(error) => problems.push(CatalogProblem { pack: *number, error }),
            }
        }
        Ok(problems)
    }

    /// Calls `each` with the segments in the tables of sealed packs, dead ones too, the newest packs first, until it
    /// wants no more. What cannot be read is left out.
    pub(super) fn recent(&self, mut each: impl FnMut(&ContentsEntry) -> bool) {
        for number in self.numbers.iter().rev() {
            let entries = self.pack(*number).and_then(|pack| pack.contents());
            let mut segments = entries.iter().flatten().flatten().filter(|it| it.kind == RecordKind::Segment);
            if !segments.all(&mut each) {
                return;
            }
        }
    }

    /// Reads what a pack lists. What cannot be read of it is a problem, and hides nothing else.
    fn entries(
        &self,
        number: PackNumber,
        dead: &mut HashSet<(PackId, u64)>,
        problems: &mut Vec<CatalogProblem>,
    ) -> Result<(PackId, Vec<ContentsEntry>), PackError> {
        let pack = self.pack(number)?;
        let mut tell = |error| problems.push(CatalogProblem { pack: number, error });
        // Without a table it is the pack that a running backup appends to, or one that a crash left. Every segment is
        // verified when it is read, so headers are enough here.
        let walk = || Ok::<_, PackError>(PackScan::of(&pack, ScanDepth::Headers)?.entries);
        let entries = match pack.contents() {
            Ok(Some(entries)) => entries,
            Ok(None) => walk()?,
            Err(error) => {
                tell(error);
                walk()?
            }
        };
        for entry in entries.iter().filter(|entry| entry.kind == RecordKind::Dead) {
            match pack.dead_segments(entry.offset) {
                Ok(segments) => dead.extend(segments.iter().map(|segment| (segment.pack, segment.offset))),
                // What it names may be listed then, and whoever reads that finds out.
                Err(error) => tell(error),
            }
        }
        Ok((pack.header().id(), entries))
    }

    /// Returns for each item what the packs' tables say of its segment; nothing of one that is in no pack. The items
    /// are sorted by their keys, and several may have one.
    pub fn describe<K, T: Clone>(
        &self,
        items: &[K],
        key: impl Fn(&K) -> SegmentKey,
        what: impl Fn(&ContentsEntry) -> T,
    ) -> Result<(Vec<Option<T>>, Vec<CatalogProblem>), StoreError> {
        let mut found = vec![None; items.len()];
        let problems = self.for_each_segment(|_, entry| {
            let first = items.partition_point(|item| key(item) < entry.key);
            let same = items.iter().skip(first).take_while(|item| key(item) == entry.key).count();
            if let Some(found) = found.get_mut(first..first + same).filter(|found| !found.is_empty()) {
                found.fill(Some(what(entry)));
            }
        })?;
        Ok((found, problems))
    }

    /// Finds the copies of the segments in `keys`, which are sorted. The result is sorted by key; a segment
    /// may have several copies, and one that has none is missing.
    pub fn locate(
        &self,
        keys: &[SegmentKey],
    ) -> Result<(Vec<SegmentPlace>, Vec<CatalogProblem>), StoreError> {
        let mut places = Vec::with_capacity(keys.len());
        let problems = self.for_each_segment(|number, entry| {
            if keys.binary_search(&entry.key).is_ok() {
                places.push(SegmentPlace {
                    key: entry.key,
                    place: RecordPlace { pack: number, offset: entry.offset },
                    stored_length: u32::try_from(entry.stored_length).unwrap_or(u32::MAX),
                    plain_length: entry.plain_length,
                });
            }
        })?;
        places.sort_unstable_by_key(|place| (place.key, place.place));
        Ok((places, problems))
    }
}
