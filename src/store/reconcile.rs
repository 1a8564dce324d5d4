//! Bringing an index into step with the packs; with an empty index that is the rebuild.
//!
//! The index records each pack whose segments it holds, with the pack's size, only after the pack was
//! sealed and its segments were entered. So a pack that the index does not record is read: its table of
//! contents, or, if a crash left it without one, its records; it is then cut behind the last good one and
//! sealed. Doing any of it twice changes nothing.

use std::collections::HashSet;
use std::path::Path;

use crate::storage::Storage;
use crate::store::StoreError;
use crate::store::entry::{Change, FreedPlace, SegmentEntry, Task};
use crate::store::index::IndexWriter;
use crate::store::index_error::IndexError;
use crate::store::pack::{
    ContentsEntry, DeadSegment, PackError, PackId, PackNumber, PackReader, PackScan, RecordKind, RecordPlace,
    ScanDepth,
};
use crate::store::writer::now;

/// How many places one task names at most.
const PLACES_IN_A_TASK: usize = 1 << 10;

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// How many packs were read.
    pub packs: u64,
    /// How many packs a crash had left without a table of contents.
    pub sealed: u64,
    /// What is damaged, in words.
    pub problems: Vec<String>,
}

/// Returns the numbers of the packs in a folder, in order.
pub(super) fn pack_numbers(storage: &dyn Storage, folder: &Path) -> Result<Vec<PackNumber>, StoreError> {
    let names = storage.list(folder)?;
    let mut numbers: Vec<_> = names.iter().filter_map(|name| PackNumber::from_file_name(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Returns the highest number of the packs in a folder.
pub(super) fn highest_pack(storage: &dyn Storage, folder: &Path) -> Result<Option<PackNumber>, StoreError> {
    Ok(pack_numbers(storage, folder)?.last().copied())
}

/// Enters the segments of every pack that the index does not record.
///
/// # Errors
/// The index records a pack that is gone or is shorter than it was: the error
/// [distrusts](StoreError::distrusts_index) the index.
pub fn reconcile_packs(
    storage: &dyn Storage,
    folder: &Path,
    index: &mut IndexWriter,
) -> Result<Reconciled, StoreError> {
    let on_disk = pack_numbers(storage, folder)?;
    let recorded = index.index().packs()?;
    // Packs that garbage collection was about to remove hold nothing any longer.
    let going: Vec<_> = index.index().tasks()?.into_iter().filter_map(|(_, task)| task.unlinks()).collect();
    let mut unrecorded = Vec::new();
    for number in on_disk.iter().filter(|number| !going.contains(number)) {
        match recorded.get(number).filter(|entry| entry.is_sealed()) {
            Some(entry) => {
                let size = storage.open_read(&folder.join(number.file_name()))?.size()?;
                if size != entry.size {
                    return Err(changed(index, *number, &format!("has {size} bytes and had {}", entry.size)));
                }
            }
            None => unrecorded.push(*number),
        }
    }
    let needed = recorded.iter().filter(|(_, entry)| entry.is_sealed() || entry.living > 0);
    if let Some(number) =
        needed.map(|(number, _)| number).find(|number| on_disk.binary_search(number).is_err())
    {
        return Err(changed(index, *number, "is gone"));
    }
    let mut result = Reconciled::default();
    let mut readable = Vec::new();
    let mut dead = HashSet::new();
    let mut unreadable = Vec::new();
    for number in unrecorded {
        match seal_if_needed(storage, folder, number, &mut result, &mut unreadable) {
            Ok((id, entries)) => {
                let pack = PackReader::open(storage, folder, number)?;
                collect_dead(&pack, &entries, &mut dead, &mut result);
                readable.push((number, id));
            }
            Err(error @ (PackError::Storage(_) | PackError::NewerFormat { .. })) => return Err(error.into()),
            Err(error) => result.problems.push(error.to_string()),
        }
    }
    // Where a freed record was, nothing can be read, and need not.
    let damaged = unreadable.into_iter().filter(|((id, offset), _)| !dead.contains(&(*id, *offset)));
    result.problems.extend(damaged.map(|(_, what)| what));
    // The tables are read a second time rather than kept: a dead record may stand in a later pack than what
    // it names, and the tables of a large store together are larger than memory should be.
    for (number, id) in readable {
        let pack = PackReader::open(storage, folder, number)?;
        let entries = pack.contents()?.unwrap_or_default();
        let segments = entries.iter().filter(|entry| entry.kind == RecordKind::Segment);
        let (freed, living): (Vec<&ContentsEntry>, Vec<&ContentsEntry>) =
            segments.partition(|entry| dead.contains(&(id, entry.offset)));
        let inserts = living.iter().map(|entry| Change::Insert(entry.key, SegmentEntry::new(number, entry)));
        index.apply(&inserts.collect::<Vec<_>>())?;
        // Whether their bytes were given back before the index was lost is not known: it is done again.
        let place = |entry: &&ContentsEntry| {
            FreedPlace::new(RecordPlace { pack: number, offset: entry.offset }, id, entry.span())
        };
        for freed in freed.chunks(PLACES_IN_A_TASK) {
            let places = freed.iter().map(place).collect();
            index.apply(&[Change::Task(Task::Punch { places, buried: true })])?;
        }
        let buried = entries.iter().filter(|entry| entry.kind == RecordKind::Dead).count() as u64;
        index.apply(&[Change::Seal(number, id, pack.size()?, buried)])?;
        result.packs += 1;
    }
    Ok(result)
}

fn changed(index: &IndexWriter, number: PackNumber, how: &str) -> StoreError {
    let what = format!("it records pack {number}, which {how}");
    IndexError::Damaged { path: index.index().path().to_owned(), what }.into()
}

/// Reads the table of a pack, after making it if there is none.
fn seal_if_needed(
    storage: &dyn Storage,
    folder: &Path,
    number: PackNumber,
    result: &mut Reconciled,
    unreadable: &mut Vec<((PackId, u64), String)>,
) -> Result<(PackId, Vec<ContentsEntry>), PackError> {
    let pack = PackReader::open(storage, folder, number)?;
    let id = pack.header().id();
    if let Some(entries) = pack.contents()? {
        return Ok((id, entries));
    }
    let scan = PackScan::of(&pack, ScanDepth::Tail)?;
    for offset in &scan.damaged {
        let what = pack.damaged(*offset, "no record can be read there").to_string();
        unreadable.push(((id, *offset), what));
    }
    scan.seal(storage, pack, now())?;
    result.sealed += 1;
    Ok((id, scan.entries))
}

fn collect_dead(
    pack: &PackReader,
    entries: &[ContentsEntry],
    dead: &mut HashSet<(PackId, u64)>,
    result: &mut Reconciled,
) {
    for entry in entries.iter().filter(|entry| entry.kind == RecordKind::Dead) {
        match pack.dead_segments(entry.offset) {
            Ok(segments) => {
                dead.extend(segments.iter().map(|DeadSegment { pack, offset, .. }| (*pack, *offset)));
            }
            Err(error) => result.problems.push(error.to_string()),
        }
    }
}
