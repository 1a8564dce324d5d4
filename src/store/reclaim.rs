//! Giving back the space of what was freed: dead records, holes, and packs removed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use crate::error::ErrorKind;
use crate::store::StoreError;
use crate::store::entry::{Change, FreedPlace, PackEntry, Task};
use crate::store::gc::Collector;
use crate::store::pack::{BLOCK, DeadSegment, PackError, PackId, PackNumber, PackReader, RecordKind};
use crate::store::reconcile::pack_numbers;

/// How many tasks, of up to 64 places each, are done at a time.
const TASKS_AT_ONCE: usize = 1 << 12;

/// So many packs of dead records alone are made into one.
const IDLE_PACKS: usize = 16;

/// What was given back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// How many packs were removed.
    pub unlinked_packs: u64,
    /// How many bytes were punched out of packs.
    pub punched_bytes: u64,
    /// What could not be given back, in words.
    pub problems: Vec<String>,
}

/// Widens the range of dead records by what is left of their first and last block, if that is zeros too: filesystems give
/// back whole blocks, and neighbours may have died before. A record that became durable shares its blocks with none that
/// was appended later, so nobody writes to these blocks now.
///
/// A block that cannot be read cannot be written in part either: it stays.
fn blocks_around(pack: &PackReader, range: Range<u64>) -> Range<u64> {
    let before = range.start / BLOCK * BLOCK..range.start;
    let behind = range.end..range.end.next_multiple_of(BLOCK);
    let start = match pack.is_zeros(before.clone()) {
        Ok(true) => before.start,
        Ok(false) => range.start,
        Err(_) => range.start.next_multiple_of(BLOCK),
    };
    let end = match pack.is_zeros(behind.clone()) {
        Ok(true) => behind.end,
        Ok(false) => range.end,
        Err(_) => range.end / BLOCK * BLOCK,
    };
    start..end.max(start)
}

/// What became of a pack that was to be removed.
enum Unlinked {
    Done,
    /// There is no such pack.
    NotThere,
    /// It cannot be read now.
    Later,
}

fn is_empty(pack: &PackEntry) -> bool {
    pack.is_sealed() && pack.living == 0 && pack.uncounted == 0
}

impl Collector<'_> {
    /// Takes packs out of the index in which nothing lives, and that no dead record keeps.
    pub fn drop_empty_packs(&self) -> Result<(), StoreError> {
        let packs = self.store.packs()?;
        let empty = packs.iter().filter(|(_, pack)| is_empty(pack) && pack.dead == 0);
        for (number, _) in empty {
            if self.holds_nothing(*number)? {
                self.store.drop_packs(vec![*number])?;
            }
        }
        Ok(())
    }

    /// Makes sure that the index has no segment in a pack that it says is empty.
    fn holds_nothing(&self, number: PackNumber) -> Result<bool, StoreError> {
        let Ok(pack) = PackReader::open(self.storage.as_ref(), self.folder, number) else { return Ok(false) };
        let Ok(Some(entries)) = pack.contents() else { return Ok(false) };
        for entry in entries.iter().filter(|entry| entry.kind == RecordKind::Segment) {
            if self.store.lookup(entry.key)?.is_some_and(|indexed| indexed.place().pack == number) {
                return Err(self.store.distrust(format!("it says that nothing lives in pack {number}")));
            }
        }
        Ok(true)
    }

    /// Takes packs out of the index that hold nothing but dead records: where the packs that they name are gone,
    /// if `any_gone` says that one may be; and where there are many, after their records were written into one.
    /// Says whether there are any.
    pub fn drop_idle_packs(&self, any_gone: bool) -> Result<bool, StoreError> {
        let packs = self.store.packs()?;
        let mut idle: Vec<_> = packs
            .iter()
            .filter(|(number, pack)| is_empty(pack) && pack.dead > 0 && **number < self.horizon.pack)
            .map(|(number, _)| *number)
            .collect();
        idle.sort_unstable();
        let many = idle.len() >= IDLE_PACKS;
        if idle.is_empty() || !(any_gone || many) {
            return Ok(false);
        }
        let there = self.pack_ids()?;
        let (mut needed, mut drops) = (Vec::new(), Vec::new());
        for number in idle {
            let Some(dead) = self.needed_dead(number, there.as_ref()) else { continue };
            if dead.is_empty() || many {
                drops.push(number);
                needed.extend(dead);
            }
        }
        if !needed.is_empty() {
            self.store.bury(needed)?;
        }
        Ok(!self.store.drop_packs(drops)?.is_empty())
    }

    /// Returns what a pack's dead records name that is there still, or may be; nothing if they cannot be read.
    pub(super) fn needed_dead(
        &self,
        number: PackNumber,
        there: Option<&HashSet<PackId>>,
    ) -> Option<Vec<DeadSegment>> {
        let pack = PackReader::open(self.storage.as_ref(), self.folder, number).ok()?;
        let entries = pack.contents().ok()??;
        let mut needed = Vec::new();
        for entry in entries.iter().filter(|entry| entry.kind == RecordKind::Dead) {
            let dead = pack.dead_segments(entry.offset).ok()?.into_iter();
            needed.extend(dead.filter(|dead| there.is_none_or(|there| there.contains(&dead.pack))));
        }
        Some(needed)
    }

    /// Returns the ids of all packs that are there; nothing if one cannot be read that the index does not know: it may be
    /// any.
    pub(super) fn pack_ids(&self) -> Result<Option<HashSet<PackId>>, StoreError> {
        let recorded = self.store.packs()?;
        let mut ids: HashSet<_> = recorded.values().map(PackEntry::id).collect();
        for number in pack_numbers(self.storage.as_ref(), self.folder)? {
            match PackReader::open(self.storage.as_ref(), self.folder, number) {
                Ok(pack) => {
                    ids.insert(pack.header().id());
                }
                Err(_) if recorded.contains_key(&number) => {}
                Err(_) => return Ok(None),
            }
        }
        Ok(Some(ids))
    }

    /// Says whether anything is to be done to the packs' files.
    pub fn has_tasks(&self) -> Result<bool, StoreError> {
        Ok(!self.store.tasks(0, 1)?.is_empty())
    }

    /// Does to the packs' files what the index says is to be done. What freed the places is durable.
    pub fn give_back(&self) -> Result<Reclaimed, StoreError> {
        let mut reclaimed = Reclaimed::default();
        let going = self.store.going()?;
        let mut from = 0;
        loop {
            let tasks = self.store.tasks(from, TASKS_AT_ONCE)?;
            let Some((last, _)) = tasks.last() else { return Ok(reclaimed) };
            from = last.saturating_add(1);
            self.do_tasks(&tasks, &going, &mut reclaimed)?;
        }
    }

    fn do_tasks(
        &self,
        tasks: &[(u64, Task)],
        going: &HashSet<PackNumber>,
        reclaimed: &mut Reclaimed,
    ) -> Result<(), StoreError> {
        let mut places: BTreeMap<PackNumber, Vec<FreedPlace>> = BTreeMap::new();
        for (_, task) in tasks {
            let Task::Punch { places: freed, .. } = task else { continue };
            for place in freed.iter().filter(|place| !going.contains(&place.pack())) {
                places.entry(place.pack()).or_default().push(*place);
            }
        }
        // Before a dead record says of any place that nothing lives there.
        let mut unreadable = HashMap::new();
        for (number, places) in &mut places {
            places.sort_unstable_by_key(|place| place.offset);
            self.compare(*number, places, &mut unreadable, &mut reclaimed.problems)?;
        }
        let listed = |place: &FreedPlace| unreadable.get(&(place.pack(), place.offset)).copied();
        let is_readable = |place: &FreedPlace| listed(place).is_none();
        // Packs that are not written to: their places are buried below, and wait to be punched.
        let mut held = HashSet::new();
        let mut unburied = Vec::new();
        for (_, task) in tasks {
            if let Task::Punch { places, buried: false } = task {
                let known = places.iter().filter(|place| listed(place).unwrap_or(true));
                let there = known.filter(|place| !going.contains(&place.pack()));
                unburied.extend(there.map(FreedPlace::dead));
            }
        }
        if !unburied.is_empty() {
            self.store.bury(unburied)?;
        }
        for (number, mut places) in places {
            places.retain(is_readable);
            if places.is_empty() {
                continue;
            }
            match self.punch(number, &places) {
                Ok(bytes) => reclaimed.punched_bytes += bytes,
                // The dead records stand: a rebuild tries again.
                Err(StoreError::Pack(error @ PackError::NotAPack { .. })) => {
                    reclaimed.problems.push(error.to_string());
                }
                // A copy of hard links would lose what it was made to keep.
                Err(StoreError::Storage(error)) if error.has_several_names() => {
                    let what =
                        format!("{error}; what was freed in it is given back by the collection after that");
                    reclaimed.problems.push(what);
                    held.insert(number);
                }
                Err(error) => return Err(error),
            }
        }
        let listed = |place: &FreedPlace| {
            listed(place)
                .or_else(|| (held.contains(&place.pack()) && !going.contains(&place.pack())).then_some(true))
        };
        let (mut done, mut unlinked) = (Vec::new(), 0);
        for (number, task) in tasks {
            match task {
                Task::Unlink { pack, id } => {
                    match self.unlink(PackNumber(*pack), *id, &mut reclaimed.problems)? {
                        Unlinked::Done => unlinked += 1,
                        Unlinked::NotThere => {}
                        Unlinked::Later => continue,
                    }
                }
                Task::Punch { places, buried } => {
                    // What cannot be read is tried again by the next collection, and by itself.
                    let left = |is_listed: bool| -> Vec<_> {
                        places.iter().filter(|place| listed(place) == Some(is_listed)).copied().collect()
                    };
                    let left = [(left(true), true), (left(false), *buried)];
                    if left.iter().any(|(left, is_buried)| left.len() == places.len() && is_buried == buried)
                    {
                        continue;
                    }
                    let again = left.into_iter().filter(|(places, _)| !places.is_empty());
                    done.extend(again.map(|(places, buried)| Change::Task(Task::Punch { places, buried })));
                }
            }
            done.push(Change::TaskDone(*number));
        }
        if unlinked > 0 {
            self.storage.sync_folder(self.folder.path())?;
            reclaimed.unlinked_packs += unlinked;
        }
        self.store.apply(done)
    }

    /// Makes sure that the segments that were freed lie where the index said, unless they are gone or damaged
    /// already: nothing is to be punched that lives. What the disk does not give is put into `unreadable`, with whether the
    /// pack's table says the same of its place: then it may be buried, but not punched, as a part of a block cannot be
    /// written where the rest cannot be read.
    fn compare(
        &self,
        number: PackNumber,
        places: &[FreedPlace],
        unreadable: &mut HashMap<(PackNumber, u64), bool>,
        problems: &mut Vec<String>,
    ) -> Result<(), StoreError> {
        let mut unread = |place: &FreedPlace, is_listed: bool, error: &dyn std::fmt::Display| {
            if unreadable.is_empty() {
                problems.push(format!("{error}; what was freed there is not given back"));
            }
            unreadable.insert((number, place.offset), is_listed);
        };
        let pack = match PackReader::open(self.storage.as_ref(), self.folder, number) {
            Ok(pack) => pack,
            Err(PackError::Storage(error)) if !error.is_not_found() => {
                for place in places {
                    unread(place, false, &error);
                }
                return Ok(());
            }
            // What is no pack is not punched either.
            Err(_) => return Ok(()),
        };
        let id = pack.header().id();
        let mut table = None;
        for place in places.iter().filter(|place| place.dead().pack == id) {
            match pack.record(place.offset) {
                Ok(record) if record.key != place.key() || record.span() != place.span => {
                    let key = place.key();
                    return Err(self.store.distrust(format!("it has {key} where another segment lies")));
                }
                Err(PackError::Storage(error)) if error.kind() == ErrorKind::Io => {
                    let table =
                        table.get_or_insert_with(|| pack.contents().ok().flatten().unwrap_or_default());
                    let at = table.binary_search_by_key(&place.offset, |entry| entry.offset);
                    let entry = at.ok().and_then(|at| table.get(at));
                    let is_listed = entry.is_some_and(|it| it.key == place.key() && it.span() == place.span);
                    unread(place, is_listed, &error);
                }
                Ok(_) | Err(PackError::RecordDamaged { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Punches places, which are sorted, out of a pack. Returns how many bytes.
    fn punch(&self, number: PackNumber, places: &[FreedPlace]) -> Result<u64, StoreError> {
        let pack = match PackReader::open(self.storage.as_ref(), self.folder, number) {
            Ok(pack) => pack,
            // Nothing is left of it to be given back.
            Err(PackError::Storage(error)) if error.is_not_found() => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let id = pack.header().id();
        let file = self.storage.open(&self.folder.file(number))?;
        let (mut punched, mut supported) = (0, true);
        let places: Vec<_> = places.iter().filter(|place| place.dead().pack == id).collect();
        for run in places.chunk_by(|one, next| one.offset + one.span == next.offset) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let (start, end) = (first.offset, last.offset + last.span);
            if supported {
                let blocks = blocks_around(&pack, start..end);
                if blocks.is_empty() {
                    continue;
                }
                match file.punch(blocks.start, blocks.end - blocks.start) {
                    Ok(()) => {
                        punched += end - start;
                        continue;
                    }
                    Err(error) if error.is_unsupported() => supported = false,
                    Err(error) => return Err(error.into()),
                }
            }
            // The pack is moved when little lives in it. Until then nobody shall read these as records.
            for place in run {
                file.write_at(&[0; 512], place.offset)?;
            }
        }
        // Else a power loss would bring the bytes back, and nobody would know of them.
        file.sync()?;
        Ok(punched)
    }

    fn unlink(
        &self,
        number: PackNumber,
        id: [u8; 16],
        problems: &mut Vec<String>,
    ) -> Result<Unlinked, StoreError> {
        match PackReader::open(self.storage.as_ref(), self.folder, number) {
            Ok(pack) if pack.header().id().0 == id => {}
            Ok(_) => return Ok(Unlinked::NotThere),
            Err(PackError::Storage(error)) if error.is_not_found() => return Ok(Unlinked::NotThere),
            Err(error) => {
                problems.push(format!("{error}; it is not removed"));
                // What is no pack is none tomorrow.
                let later = matches!(error, PackError::Storage(_));
                return Ok(if later { Unlinked::Later } else { Unlinked::NotThere });
            }
        }
        self.storage.unlink(&self.folder.file(number))?;
        Ok(Unlinked::Done)
    }
}
