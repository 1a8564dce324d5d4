//! Making an index anew from packs and manifests.
//!
//! Everything is put together in memory first, a part of all segments at a time in the order of their keys, and
//! then written once: places from the packs' tables, refcounts from the manifests. So each record is written a
//! single time, without being looked up, and next to the one before.

use std::collections::{HashMap, HashSet};

use crossbeam_channel::{Sender, bounded};

use crate::segment::{SegmentKey, Twin};
use crate::storage::{Storage, StorageError};
use crate::store::StoreError;
use crate::store::batch::{Finished, encode};
use crate::store::entry::{PackEntry, SegmentEntry, key};
use crate::store::index::{BATCH, IndexWriter};
use crate::store::index_error::IndexError;
use crate::store::index_files::sync_files;
use crate::store::pack::{PackFolder, PackNumber, PackReader, RecordPlace};
use crate::store::reconcile::{Reconciled, Survey, has_record, pack_numbers};

/// How many records are made ready at a time while an index is made.
const LOADED_AT_ONCE: usize = 1 << 12;

/// After so many times what was written is synced beside.
const SYNCED_AFTER: usize = 16;

/// How many segments are put together at a time, about: 104 bytes of memory each.
const PART: u64 = 1 << 20;

/// A part of all segments: those whose SHA-1 begins in its share of all numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexPart {
    number: u64,
    of: u64,
}

impl IndexPart {
    /// Says whether a segment belongs to it.
    pub fn holds(self, key: SegmentKey) -> bool {
        let [a, b, c, d, ..] = *key.hash.as_bytes();
        (u64::from(u32::from_be_bytes([a, b, c, d])) * self.of) >> 32 == self.number
    }
}

/// Gives refcounts: calls its second argument with each segment of the part, and by how much its refcount grows.
pub type Counts<'a, E> = &'a mut dyn FnMut(IndexPart, &mut dyn FnMut(SegmentKey, u32)) -> Result<(), E>;

/// Fills an empty index with the segments of all packs. `counts` is called once for each part. Returns also how many
/// segments it gave a refcount that no pack holds: they are lost.
pub fn rebuild_index<E: From<StoreError>>(
    storage: &dyn Storage,
    folder: &PackFolder,
    index: &mut IndexWriter,
    counts: Counts<'_, E>,
) -> Result<(Reconciled, u64), E> {
    let survey = Survey::of(storage, folder, &pack_numbers(storage, folder)?)?;
    let mut packs: HashMap<PackNumber, PackEntry> = HashMap::new();
    let of = survey.listed.div_ceil(PART).max(1);
    let (mut lost, mut tasks) = (0, Vec::new());
    for number in 0..of {
        let part = IndexPart { number, of };
        // As much as is needed, and not up to twice as much, as a vector that grows takes.
        let expected = usize::try_from(survey.listed / of).unwrap_or(0);
        let mut entries: Vec<(SegmentKey, SegmentEntry)> = Vec::with_capacity(expected + expected / 32);
        for pack in &survey.packs {
            let table = survey.table(storage, folder, *pack)?;
            let living = table.living.iter().filter(|entry| part.holds(entry.key));
            entries.extend(living.map(|entry| (entry.key, SegmentEntry::new(pack.number, entry))));
            if number == 0 {
                tasks.extend(table.tasks(*pack));
                let entry = packs.entry(pack.number).or_default();
                (entry.id, entry.size, entry.dead) = (pack.id.0, table.size, table.buried);
            }
        }
        entries.sort_unstable_by_key(|(key, entry)| (*key, entry.place()));
        let take_out_gone = |entries: &mut Vec<_>, suspects| {
            if survey.shows_holes() { take_out_gone(storage, folder, entries, suspects) } else { Ok(()) }
        };
        let several = |entries: &[(SegmentKey, SegmentEntry)], at: usize| {
            let key = |at: Option<usize>| Some(entries.get(at?)?.0);
            let own = key(Some(at));
            own == key(at.checked_sub(1)) || own == key(at.checked_add(1))
        };
        take_out_gone(&mut entries, &several)?;
        entries.dedup_by(|second, first| {
            let same = first.0 == second.0;
            if same {
                packs.entry(second.1.place().pack).or_default().uncounted += 1;
            }
            same
        });
        let mut absent: HashMap<SegmentKey, u64> = HashMap::new();
        counts(part, &mut |key, gain| match entries.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(at) => {
                if let Some((_, entry)) = entries.get_mut(at) {
                    entry.refcount = entry.refcount.saturating_add(u64::from(gain));
                }
            }
            Err(_) => *absent.entry(key).or_default() += u64::from(gain),
        })?;
        take_out_gone(&mut entries, &|entries, at| {
            entries.get(at).is_some_and(|(_, entry)| entry.refcount == 0)
        })?;
        for (_, entry) in &entries {
            let pack = packs.entry(entry.place().pack).or_default();
            pack.living += 1;
            pack.living_bytes += entry.span();
            pack.uncounted += u64::from(entry.refcount == 0);
        }
        lost += absent.len() as u64;
        if !absent.is_empty() {
            let lost = |(key, refcount)| (key, SegmentEntry { refcount, ..SegmentEntry::lost() });
            entries.extend(absent.into_iter().map(lost));
            entries.sort_unstable_by_key(|(key, _)| *key);
        }
        index.load(&entries).map_err(StoreError::from)?;
    }
    index.load_packs(&packs).map_err(StoreError::from)?;
    index.apply(&tasks).map_err(StoreError::from)?;
    Ok((survey.reconciled, lost))
}

/// Says of the one at a place of all segments whether it may be gone.
type Suspects<'a> = &'a dyn Fn(&[(SegmentKey, SegmentEntry)], usize) -> bool;

/// Takes the suspects out whose record is not there. What a manifest names was never freed, unless it was stored again; of the
/// rest the dead record may be lost, and a copy of the repository may have zeros where there were holes.
fn take_out_gone(
    storage: &dyn Storage,
    folder: &PackFolder,
    entries: &mut Vec<(SegmentKey, SegmentEntry)>,
    suspects: Suspects<'_>,
) -> Result<(), StoreError> {
    let suspect = |(at, (_, entry)): (usize, &(SegmentKey, SegmentEntry))| {
        suspects(entries, at).then(|| (entry.place(), at))
    };
    // In the order of the packs, so that a disk that turns goes one way.
    let mut suspected: Vec<(RecordPlace, usize)> = entries.iter().enumerate().filter_map(suspect).collect();
    suspected.sort_unstable();
    let mut gone = HashSet::new();
    for of_pack in suspected.chunk_by(|(one, _), (next, _)| one.pack == next.pack) {
        let Some((first, _)) = of_pack.first() else { continue };
        let pack = PackReader::open(storage, folder, first.pack)?;
        gone.extend(of_pack.iter().filter(|(place, _)| !has_record(&pack, place.offset)).map(|(_, at)| *at));
    }
    let mut at = 0;
    entries.retain(|_| {
        at += 1;
        !gone.contains(&(at - 1))
    });
    Ok(())
}

impl IndexWriter {
    /// Writes segments that an index which is being made does not have yet, best sorted by their keys. Not in batches:
    /// what a crash leaves of it is never looked at, and each costs less.
    fn load(&mut self, entries: &[(SegmentKey, SegmentEntry)]) -> Result<(), IndexError> {
        let path = self.index().path().to_owned();
        let (wake, woken) = bounded::<()>(1);
        // The disk works beside: at the end little is left to wait for.
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("ekko-sync".to_owned());
            let syncing = thread
                .spawn_scoped(scope, move || woken.iter().try_for_each(|()| sync_files(&path)))
                .map_err(|error| StorageError::new("start a thread for", self.index().path(), error))?;
            let loaded = self.load_beside(entries, &wake);
            drop(wake);
            let synced = syncing.join().unwrap_or_else(|_| {
                let ended = std::io::Error::other("the syncing thread ended");
                Err(StorageError::new("sync", self.index().path(), ended))
            });
            loaded.and(synced.map_err(IndexError::from))
        })
    }

    fn load_beside(
        &mut self,
        entries: &[(SegmentKey, SegmentEntry)],
        wake: &Sender<()>,
    ) -> Result<(), IndexError> {
        let mut meta = self.meta();
        for (number, part) in entries.chunks(LOADED_AT_ONCE).enumerate() {
            if number % SYNCED_AFTER == SYNCED_AFTER - 1 {
                // If it is busy still, it takes this part with the next.
                let _ = wake.try_send(());
            }
            let record = |(key, entry): &(SegmentKey, SegmentEntry)| {
                let value = encode(entry).map_err(|error| self.index().damaged(error.to_string()))?;
                Ok((key::segment(*key).to_vec(), value))
            };
            let records = part.iter().map(record).collect::<Result<Vec<_>, IndexError>>()?;
            for (key, value) in &records {
                meta.add(key, value);
            }
            self.insert_records(records)?;
        }
        meta.segments += entries.len() as u64;
        meta.twins += entries.iter().filter(|(key, _)| key.twin != Twin(0)).count() as u64;
        meta.lost += entries.iter().filter(|(_, entry)| entry.is_lost()).count() as u64;
        self.write(Finished { meta, records: Vec::new() })
    }

    /// Writes packs that the index does not have yet.
    fn load_packs(&mut self, packs: &HashMap<PackNumber, PackEntry>) -> Result<(), IndexError> {
        let mut packs: Vec<_> = packs.iter().collect();
        packs.sort_unstable_by_key(|(number, _)| **number);
        for part in packs.chunks(BATCH) {
            let mut meta = self.meta();
            let mut records = Vec::with_capacity(part.len());
            for (number, pack) in part {
                let value = encode(*pack).map_err(|error| self.index().damaged(error.to_string()))?;
                let key = key::pack(**number);
                meta.add(&key, &value);
                meta.last_pack = meta.last_pack.max(number.0);
                records.push((key, Some(value)));
            }
            self.write(Finished { meta, records })?;
        }
        Ok(())
    }
}
