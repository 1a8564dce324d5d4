//! Bringing an index into step with the packs.
//!
//! The index records each pack whose segments it holds, with the pack's size, only after the pack was
//! sealed and its segments were entered. So a pack that the index does not record is read: its table of
//! contents, or, if a crash left it without one, its records; it is then cut behind the last good one and
//! sealed. Doing any of it twice changes nothing.

use std::collections::HashSet;

use crate::error::ErrorKind;
use crate::storage::Storage;
use crate::store::StoreError;
use crate::store::entry::{Change, FreedPlace, SegmentEntry, Task};
use crate::store::index::IndexWriter;
use crate::store::index_error::IndexError;
use crate::store::pack::{
    BLOCK, ContentsEntry, DeadSegment, PackError, PackFolder, PackId, PackNumber, PackReader, PackScan,
    RecordKind, RecordPlace, ScanDepth,
};
use crate::store::writer::now;

/// How many places one task names at most.
const PLACES_IN_A_TASK: usize = 1 << 6;

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
pub(super) fn pack_numbers(
    storage: &dyn Storage,
    folder: &PackFolder,
) -> Result<Vec<PackNumber>, StoreError> {
    let names = storage.list(folder.path())?;
    let mut numbers: Vec<_> = names.iter().filter_map(|name| PackNumber::from_file_name(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Returns the highest number of the packs in a folder.
pub(super) fn highest_pack(
    storage: &dyn Storage,
    folder: &PackFolder,
) -> Result<Option<PackNumber>, StoreError> {
    Ok(pack_numbers(storage, folder)?.last().copied())
}

/// Enters the segments of every pack that the index does not record.
///
/// # Errors
/// The index records a pack that is gone or is shorter than it was: the error
/// [distrusts](StoreError::distrusts_index) the index.
pub fn reconcile_packs(
    storage: &dyn Storage,
    folder: &PackFolder,
    index: &mut IndexWriter,
) -> Result<Reconciled, StoreError> {
    let on_disk = pack_numbers(storage, folder)?;
    let recorded = index.index().packs()?;
    // Packs that garbage collection was about to remove hold nothing any longer.
    let going = index.index().going()?;
    let mut unrecorded = Vec::new();
    for number in on_disk.iter().filter(|number| !going.contains(number)) {
        match recorded.get(number).filter(|entry| entry.is_sealed()) {
            Some(entry) => {
                let size = storage.open_read(&folder.file(*number))?.size()?;
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
    let survey = Survey::of(storage, folder, &unrecorded)?;
    for pack in &survey.packs {
        let table = survey.table(storage, folder, *pack)?;
        let inserts =
            table.living.iter().map(|entry| Change::Insert(entry.key, SegmentEntry::new(pack.number, entry)));
        index.apply(&inserts.collect::<Vec<_>>())?;
        index.apply(&table.tasks(*pack))?;
        index.apply(&[Change::Seal(pack.number, pack.id, table.size, table.buried)])?;
    }
    Ok(survey.reconciled)
}

/// A pack that can be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct SurveyedPack {
    pub(super) number: PackNumber,
    pub(super) id: PackId,
}

/// What packs hold, as far as it must be known before any of it is entered.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) reconciled: Reconciled,
    pub(super) packs: Vec<SurveyedPack>,
    /// How many segments their tables list.
    pub(super) listed: u64,
    dead: HashSet<(PackId, u64)>,
    /// Whether what a table lists is there: every dead record could be read, and holes would show.
    trusted: bool,
}

/// What one pack holds.
#[derive(Debug)]
pub(super) struct PackTable {
    pub(super) living: Vec<ContentsEntry>,
    freed: Vec<ContentsEntry>,
    /// How many dead records it has.
    pub(super) buried: u64,
    pub(super) size: u64,
}

impl PackTable {
    /// Returns what gives freed places back: whether that was done before the index was lost is not known.
    pub(super) fn tasks(&self, pack: SurveyedPack) -> Vec<Change> {
        let place = |entry: &ContentsEntry| {
            let place = RecordPlace { pack: pack.number, offset: entry.offset };
            FreedPlace::new(entry.key, place, pack.id, entry.span())
        };
        let task = |freed: &[ContentsEntry]| {
            Change::Task(Task::Punch { places: freed.iter().map(place).collect(), buried: true })
        };
        self.freed.chunks(PLACES_IN_A_TASK).map(task).collect()
    }
}

impl Survey {
    /// Seals what a crash left unsealed, and reads which segments are dead.
    pub(super) fn of(
        storage: &dyn Storage,
        folder: &PackFolder,
        numbers: &[PackNumber],
    ) -> Result<Self, StoreError> {
        let mut result = Reconciled::default();
        let (mut packs, mut dead, mut unreadable) = (Vec::new(), HashSet::new(), Vec::new());
        let mut listed = 0;
        for number in numbers.iter().copied() {
            match seal_if_needed(storage, folder, number, &mut result, &mut unreadable) {
                Ok((id, entries)) => {
                    let pack = PackReader::open(storage, folder, number)?;
                    collect_dead(&pack, &entries, &mut dead, &mut result);
                    listed += entries.len() as u64;
                    packs.push(SurveyedPack { number, id });
                }
                Err(error @ (PackError::Storage(_) | PackError::NewerFormat { .. })) => {
                    return Err(error.into());
                }
                Err(error) => result.problems.push(error.to_string()),
            }
        }
        result.packs = packs.len() as u64;
        let trusted =
            result.problems.is_empty() && (packs.is_empty() || storage.gives_back(folder.path())?);
        // Where a freed record was, nothing can be read, and need not.
        let damaged = unreadable.into_iter().filter(|((id, offset), _)| !dead.contains(&(*id, *offset)));
        result.problems.extend(damaged.map(|(_, what)| what));
        Ok(Self { reconciled: result, packs, listed, dead, trusted })
    }

    /// Says whether the place of what was freed may be known by its hole alone, and nothing else was looked at.
    pub(super) fn shows_holes(&self) -> bool {
        self.trusted
    }

    /// Reads the table of a pack. They are read once more rather than kept: a dead record may stand in a later pack
    /// than what it names, and the tables of a large store together are larger than memory should be.
    pub(super) fn table(
        &self,
        storage: &dyn Storage,
        folder: &PackFolder,
        pack: SurveyedPack,
    ) -> Result<PackTable, StoreError> {
        let reader = PackReader::open(storage, folder, pack.number)?;
        let entries = reader.contents()?.unwrap_or_default();
        let buried = entries.iter().filter(|entry| entry.kind == RecordKind::Dead).count() as u64;
        let (mut living, mut freed) = (entries, Vec::new());
        living.retain(|entry| {
            let is_segment = entry.kind == RecordKind::Segment;
            let is_dead = is_segment && self.dead.contains(&(pack.id, entry.offset));
            if is_dead {
                freed.push(*entry);
            }
            is_segment && !is_dead
        });
        let holes = if self.trusted { reader.holes()? } else { Vec::new() };
        let mut there = Vec::with_capacity(living.len());
        for entry in living {
            // Of a record that was punched out, the first block that it had for itself is a hole; one that shares all
            // its blocks with others leaves none. A hole alone says nothing: a copy of the repository may have holes where
            // there were zeros.
            let block = entry.offset.next_multiple_of(BLOCK);
            let shows = self.trusted && block + BLOCK <= entry.offset + entry.span();
            let behind = holes.partition_point(|hole| hole.start <= block);
            let hole = behind.checked_sub(1).and_then(|at| holes.get(at)).filter(|hole| block < hole.end);
            if (shows && hole.is_none()) || has_record(&reader, entry.offset) {
                there.push(entry);
            }
        }
        living = there;
        Ok(PackTable { living, freed, buried, size: reader.size()? })
    }
}

/// Says whether what the table of a pack lists is there. If not it was freed, and the dead record that says so is lost. What the
/// disk does not give now counts as there.
pub(super) fn has_record(pack: &PackReader, offset: u64) -> bool {
    pack.record(offset).map_or_else(|error| error.kind() == ErrorKind::Io, |_| true)
}

fn changed(index: &IndexWriter, number: PackNumber, how: &str) -> StoreError {
    let what = format!("it records pack {number}, which {how}");
    IndexError::Damaged { path: index.index().path().to_owned(), what }.into()
}

/// Reads the table of a pack, after making it if there is none.
fn seal_if_needed(
    storage: &dyn Storage,
    folder: &PackFolder,
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
