//! Quarantine: damaged copies of segments leave the packs, so that the next backup stores them anew.
//!
//! The bytes of each damaged record are written to a file of their own in `quarantine`, durably; then its entry
//! in the index becomes a lost one, which keeps its refcount; then a dead record names it and its place is given
//! back, in the order of garbage collection. So nothing is deleted that a person might still save something from.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

use crate::codec::Decoder;
use crate::repository::{RepositoryError, RepositoryWriter};
use crate::segment::{SegmentHash, SegmentKey};
use crate::storage::{Storage, StorageError};
use crate::store::pack::{ALIGNMENT, PackError, RecordPlace, record_span};
use crate::store::{Change, Collector, SegmentEntry, SegmentPlace, StoreError};

/// A damaged copy of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedCopy {
    /// What and where it is.
    pub place: SegmentPlace,
    /// Where a whole copy of the same segment lies, if there is one.
    pub other: Option<RecordPlace>,
}

impl RepositoryWriter {
    /// Puts damaged copies into quarantine. When this returns, that is durable.
    ///
    /// Each is read once more before anything is done to it: a disk may not have given for a while what it has. Returns
    /// those that are whole; they are left alone. Copies that gc has freed meanwhile are ignored.
    pub fn quarantine(&self, damaged: &[DamagedCopy]) -> Result<Vec<DamagedCopy>, RepositoryError> {
        if damaged.is_empty() {
            return Ok(Vec::new());
        }
        // Held over I/O: it frees places, as a collection does.
        let _one = self.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        self.store.seal()?;
        let (whole, damaged) = self.whole_after_all(&self.still_there(damaged)?)?;
        if damaged.is_empty() {
            return Ok(whole);
        }
        let (storage, layout) = (self.repository.storage.as_ref(), &self.repository.layout);
        let folder = layout.quarantine();
        storage.create_folder(&folder)?;
        storage.sync_folder(layout.root())?;
        for copy in &damaged {
            let RecordPlace { pack, offset } = copy.place.place;
            let from = layout.packs().join(pack.file_name());
            let to = folder.join(format!("{}-{offset}.record", pack.file_name()));
            save(storage, &from, offset, span(copy), &to)?;
        }
        storage.sync_folder(&folder)?;
        for copy in &damaged {
            let mut changes = vec![Change::Quarantine(copy.place.key, copy.place.place, span(copy))];
            if let Some(entry) = self.other_copy(copy.place.key, copy.other)? {
                changes.push(Change::Insert(copy.place.key, entry));
            }
            self.store.apply(changes)?;
        }
        self.raise_generation()?;
        let packs = self.repository.packs();
        let storage = Arc::clone(&self.repository.storage);
        let collector = Collector::new(storage, &packs, &self.store, self.store.horizon(), 0, false)?;
        for problem in collector.give_back()?.problems {
            tracing::warn!(%problem, "quarantine");
        }
        Ok(whole)
    }

    /// Returns the copies that gc has not freed meanwhile.
    fn still_there(&self, damaged: &[DamagedCopy]) -> Result<Vec<DamagedCopy>, RepositoryError> {
        let at = |copy: &DamagedCopy| (copy.place.place, copy.place.key);
        let other = |copy: &DamagedCopy| copy.other.map(|place| (place, copy.place.key));
        let named: HashSet<_> =
            damaged.iter().flat_map(|copy| [Some(at(copy)), other(copy)]).flatten().collect();
        let mut there = HashSet::new();
        let problems = self.repository.catalog()?.for_each_segment(|pack, entry| {
            let place = (RecordPlace { pack, offset: entry.offset }, entry.key);
            if named.contains(&place) {
                there.insert(place);
            }
        })?;
        // Nothing is known of the copies in a pack whose table cannot be read now.
        let unknown: HashSet<_> = problems.iter().map(|problem| problem.pack).collect();
        let is_there =
            |copy: &&DamagedCopy| there.contains(&at(copy)) || unknown.contains(&copy.place.place.pack);
        let known = |copy: &DamagedCopy| DamagedCopy {
            other: other(copy).filter(|place| there.contains(place)).map(|(place, _)| place),
            ..*copy
        };
        Ok(damaged.iter().filter(is_there).map(known).collect())
    }

    /// Reads copies once more, and divides them into those that are whole and those that are not.
    fn whole_after_all(
        &self,
        damaged: &[DamagedCopy],
    ) -> Result<(Vec<DamagedCopy>, Vec<DamagedCopy>), RepositoryError> {
        let catalog = self.repository.catalog()?;
        let mut decoder = Decoder::new().map_err(|source| StoreError::from(PackError::Decoder { source }))?;
        let (mut stored, mut plain) = (Vec::new(), Vec::new());
        Ok(damaged.iter().partition(|copy| {
            let SegmentPlace { key, place, stored_length, plain_length } = copy.place;
            let read = catalog.pack(place.pack).and_then(|pack| {
                pack.segment(key, place.offset, stored_length, &mut decoder, &mut stored, &mut plain)
            });
            read.is_ok_and(|record| record.plain_length == u64::from(plain_length))
                && SegmentHash::of(&plain) == key.hash
        }))
    }

    fn other_copy(
        &self,
        key: SegmentKey,
        place: Option<RecordPlace>,
    ) -> Result<Option<SegmentEntry>, RepositoryError> {
        let Some(place) = place else { return Ok(None) };
        let catalog = self.repository.catalog()?;
        // Without a table it is not taken: a rebuild finds it.
        let entries = catalog.pack(place.pack)?.contents().ok().flatten().unwrap_or_default();
        let entry = entries.iter().find(|entry| entry.key == key && entry.offset == place.offset);
        Ok(entry.map(|entry| SegmentEntry::new(place.pack, entry)))
    }
}

fn span(copy: &DamagedCopy) -> u64 {
    record_span(u64::from(copy.place.stored_length))
}

/// Copies a range of a pack to a file of its own, durably. Blocks that cannot be read are zeros in it.
fn save(
    storage: &dyn Storage,
    from: &std::path::Path,
    offset: u64,
    length: u64,
    to: &std::path::Path,
) -> Result<(), StorageError> {
    let pack = storage.open_read(from)?;
    match storage.unlink(to) {
        Err(error) if !error.is_not_found() => return Err(error),
        _ => {}
    }
    let file = storage.create(to)?;
    let mut block = vec![0; usize::try_from(ALIGNMENT).unwrap_or(4096)];
    for at in (0..length).step_by(block.len()) {
        if let Err(error) = pack.read_at(&mut block, offset + at) {
            tracing::warn!(%error, "this block is zeros in quarantine");
            block.fill(0);
        }
        file.write_at(&block, at)?;
    }
    file.sync()
}
