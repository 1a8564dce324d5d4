//! What happens between taking the lock and the first change: undoing what a crash left half made, and an
//! index that can be believed.

use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;

use crate::error::ErrorKind;
use crate::manifest::stays::Neighbours;
use crate::manifest::{BackupsetId, Incremental};
use crate::progress::{Notice, Progress};
use crate::repository::backupset::{is_leftover, is_newborn, remove_newborn};
use crate::repository::counting::{Counting, counted_side};
use crate::repository::delete::finish_deletion;
use crate::repository::layout::{
    NameTest, canonical, is_temporary_of_root, is_temporary_of_set, is_temporary_of_sets, is_temporary_pack,
};
use crate::repository::roster::Roster;
use crate::repository::state::State;
use crate::repository::together;
use crate::repository::{BackupId, BackupRecord, Backupset, Layout, Repository, RepositoryError};
use crate::segment::SegmentKey;
use crate::storage::TEMPORARY;
use crate::store::{
    Change, Counted, CountedState, IndexError, IndexPart, IndexWriter, Reconciled, StoreError,
    check_index_folder, digest, rebuild_index, reconcile_packs,
};

/// An index in step with packs and manifests.
#[derive(Debug)]
pub(super) struct OpenedIndex {
    /// Its number.
    pub(super) number: u64,
    pub(super) index: IndexWriter,
}

/// The lists of backups, read once for all that an opening does.
#[derive(Debug)]
pub(super) struct ReadLists {
    pub(super) sets: Vec<Backupset>,
    /// Those that cannot be read.
    pub(super) problems: Vec<RepositoryError>,
}

/// Stands for a state that cannot be read: no index is believed, and generations begin above every one
/// that can have been, at the seconds since 1970.
pub(super) fn unknown_state(blank: State) -> State {
    let now = crate::time::now().as_second();
    State { generation: u64::try_from(now).unwrap_or(0), clean: None, ..blank }
}

/// Finishes backups that came to exist together, then removes temporary files, and manifests that were named before their
/// backup was in `set.toml`: it was never acknowledged. A number is never given twice, so such a manifest has the next one.
///
/// Returns the lists of backups as they are then: until the repository is closed, only this process changes them.
pub(super) fn undo_unfinished(
    repository: &Repository,
    progress: &dyn Progress,
) -> Result<ReadLists, RepositoryError> {
    let (storage, layout) = (repository.storage.as_ref(), &repository.layout);
    // Before any manifest goes: it may be that of a backup that exists.
    let known = together::finish(repository, progress)?;
    let folders = [
        (layout.root().to_owned(), is_temporary_of_root as NameTest),
        (layout.packs(), is_temporary_pack as NameTest),
        (layout.sets(), is_temporary_of_sets as NameTest),
    ];
    for (folder, is_temporary) in folders {
        for name in storage.list(&folder)?.iter().filter(|name| is_temporary(name)) {
            storage.unlink(&folder.join(name))?;
        }
    }
    // Nothing depends on the records of failures.
    if let Err(error) = repository.remove_unfinished_failures() {
        progress.notice(Notice::Problem {
            kind: error.kind(),
            what: format!("cannot tidy up after failed backups: {error}"),
        });
    }
    let (mut sets, problems) = repository.all_backupsets()?;
    for name in storage.list(&layout.sets())? {
        let Some(id) = canonical::<BackupsetId>(&name) else { continue };
        let folder = layout.set(id);
        let set = sets.iter().find(|set| set.id == id);
        let mut changed = false;
        let names = storage.list(&folder)?;
        // A first backup that was not committed: the backupset was never born, whatever lies there.
        let unborn = known && set.is_some_and(Backupset::is_unborn);
        if is_newborn(&names) || is_leftover(&names) || unborn {
            let says_so = if unborn { Layout::SET_SETTINGS } else { Layout::NEWBORN };
            if let Some(other) = remove_newborn(storage, layout, id, says_so)? {
                let what = format!("cannot remove {}: Ekko did not make {other} in it", folder.display());
                progress.notice(Notice::Problem { kind: ErrorKind::Invalid, what });
            }
            continue;
        }
        for name in names {
            let path = folder.join(&name);
            let number = canonical::<u32>(&name);
            let is_new = |number: u32| set.is_some_and(|set| number >= set.next_incremental);
            let unfinished = known && number.is_some_and(is_new);
            // Its backup was deleted and collected.
            let collected =
                number.is_some_and(|number| set.is_some_and(|set| !set.knows(number)) && !is_new(number));
            if unfinished || collected || is_temporary_of_set(&name) {
                if !changed {
                    // Which manifests are superfluous is what `set.toml` says, and a process that was killed may have replaced
                    // it without a sync. Else a power loss could bring the old one back, which lists a manifest that is gone.
                    storage.sync_folder(&folder)?;
                }
                storage.unlink(&path)?;
                changed = true;
            }
            if unfinished {
                let what = format!("an unfinished backup ({}) was undone", path.display());
                progress.notice(Notice::Recovered { what });
            }
        }
        if changed {
            storage.sync_folder(&folder)?;
        }
    }
    remove_unfinished_tokens(repository)?;
    sets.retain(|set| !set.is_unborn());
    Ok(ReadLists { sets, problems })
}

/// Removes a list of tokens that a killed process has not finished. A process that writes one holds the lock of the tokens,
/// and not that of the repository, so this passes over a list whose lock is held.
fn remove_unfinished_tokens(repository: &Repository) -> Result<(), RepositoryError> {
    let layout = &repository.layout;
    let unfinished = layout.tokens().with_added_extension(TEMPORARY);
    let no_links = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or(0);
    let lock = || OpenOptions::new().read(true).custom_flags(no_links).open(layout.tokens_lock()).ok();
    if unfinished.symlink_metadata().is_ok()
        && let Some(lock) = lock()
        && lock.try_lock().is_ok()
    {
        repository.storage.unlink(&unfinished)?;
    }
    Ok(())
}

/// Opens the index that `state` names if it can be believed, or makes a new one, as it also does if `rebuild`
/// gives a reason to; either way it is then in step with packs and manifests.
pub(super) fn open_index(
    repository: &Repository,
    state: &State,
    lists: &ReadLists,
    rebuild: Option<&str>,
    progress: &dyn Progress,
) -> Result<OpenedIndex, RepositoryError> {
    let reason = match rebuild {
        Some(reason) => reason.to_owned(),
        None => match believe(repository, state, lists, progress) {
            Ok(index) => return Ok(OpenedIndex { number: state.index, index }),
            Err(error) if error.distrusts_index() || error.kind() == ErrorKind::NotFound => error.to_string(),
            Err(error) => return Err(error),
        },
    };
    build(repository, state, lists, &reason, progress)
}

/// Opens the index and checks everything that would make it unbelievable.
fn believe(
    repository: &Repository,
    state: &State,
    lists: &ReadLists,
    progress: &dyn Progress,
) -> Result<IndexWriter, RepositoryError> {
    let path = repository.layout.index(state.index);
    let distrust = |what: &str| -> RepositoryError {
        StoreError::from(IndexError::Damaged { path: path.clone(), what: what.to_owned() }).into()
    };
    let storage = repository.storage.as_ref();
    if state.index == 0 || storage.examine(&path).is_err() {
        return Err(distrust("it is missing"));
    }
    // sled opens whatever has the names of its files.
    check_index_folder(storage, &path).map_err(|error| distrust(&error.to_string()))?;
    // Before sled touches it: after an orderly end its files are those whose digest the state keeps.
    let clean = match state.clean {
        Some(expected) => match digest(&path) {
            Ok(found) if found == expected => true,
            Ok(_) => return Err(distrust("its files have changed since they were closed")),
            Err(error) => return Err(distrust(&error.to_string())),
        },
        None => false,
    };
    let mut index = IndexWriter::open(&path).map_err(StoreError::from)?;
    if index.generation() < state.generation {
        return Err(distrust("it is older than the repository"));
    }
    let mut check = || -> Result<(), RepositoryError> {
        if !clean {
            index.verify_sum().map_err(StoreError::from)?;
        }
        reconcile(repository, &mut index, lists, &[], progress)?;
        if !clean {
            index.flush().map_err(StoreError::from)?;
        }
        Ok(())
    };
    match check() {
        Ok(()) => Ok(index),
        Err(error) => {
            // Nothing is wrong with it if it is something else that failed: this process is to open it again.
            if !error.distrusts_index() {
                let_go(index);
            }
            Err(error)
        }
    }
}

/// Builds a new index beside the old ones.
fn build(
    repository: &Repository,
    state: &State,
    lists: &ReadLists,
    reason: &str,
    progress: &dyn Progress,
) -> Result<OpenedIndex, RepositoryError> {
    let layout = &repository.layout;
    let names = match repository.storage.list(&layout.indexes()) {
        Ok(names) => names,
        Err(error) if error.is_not_found() => {
            // Somebody removed `index` whole, as the documentation allows.
            repository.storage.create_folder(&layout.indexes())?;
            repository.storage.sync_folder(layout.root())?;
            Vec::new()
        }
        Err(error) => return Err(error.into()),
    };
    let taken = names.iter().filter_map(|name| canonical::<u64>(name)).max().unwrap_or(0);
    let Some(number) = taken.max(state.index).checked_add(1) else {
        let what = "no number is left for another one: remove the folders in it".to_owned();
        return Err(StoreError::from(IndexError::Damaged { path: layout.indexes(), what }).into());
    };
    // What others left half made takes room that this one may need.
    drop_other_indexes(repository, state.index);
    let path = layout.index(number);
    // Its folder is for the owner alone, and in no link's way: sled would make it as the umask says.
    repository.storage.create_folder(&path)?;
    let built =
        IndexWriter::create(&path).map_err(|error| StoreError::from(error).into()).and_then(|mut index| {
            match make(repository, state, lists, &mut index, reason, progress) {
                Ok(()) => Ok(OpenedIndex { number, index }),
                Err(error) => {
                    let_go(index);
                    Err(error)
                }
            }
        });
    if built.is_err()
        && let Err(error) = repository.storage.remove_folder(&path)
    {
        tracing::warn!(%error, "an index that could not be made stays");
    }
    built
}

/// Closes an index that is not used further, so that neither memory nor a lock stays with this process.
pub(super) fn let_go(index: IndexWriter) {
    if let Err(error) = index.release() {
        tracing::debug!(%error, "an index that is not used was not closed in order");
    }
}

/// Makes an empty index one that is in step with packs and manifests, and durable.
fn make(
    repository: &Repository,
    state: &State,
    lists: &ReadLists,
    index: &mut IndexWriter,
    reason: &str,
    progress: &dyn Progress,
) -> Result<(), RepositoryError> {
    let generation = state.generation.saturating_add(1);
    index.apply(&[Change::Generation(generation)]).map_err(StoreError::from)?;
    // A pack may be gone; what manifests name of it is then known to be lost, and everything else goes on.
    let (packs, lost) = fill(repository, lists, index)?;
    tell_packs(&packs, &[], progress);
    // Nothing is left to be done, but to tell which manifests could not be read.
    reconcile(repository, index, lists, &packs.problems, progress)?;
    if lost > 0 {
        let what = format!(
            "{lost} segments that backups name are in no pack; a restore names what it lacks, and the next backup \
             of a disk that holds them stores them anew"
        );
        progress.notice(Notice::Problem { kind: ErrorKind::Corrupt, what });
    }
    index.flush().map_err(StoreError::from)?;
    repository.storage.sync_folder(&repository.layout.indexes())?;
    // A new repository has no index yet; that is nothing to tell.
    if state.index != 0 || index.segments() > 0 {
        progress.notice(Notice::IndexRebuilt { reason: reason.to_owned(), segments: index.segments() });
    }
    Ok(())
}

/// Fills an empty index from packs and manifests. Returns also how many segments are lost.
fn fill(
    repository: &Repository,
    ReadLists { sets, .. }: &ReadLists,
    index: &mut IndexWriter,
) -> Result<(Reconciled, u64), RepositoryError> {
    let mut whole: BTreeMap<(BackupsetId, Incremental), Change> = BTreeMap::new();
    let mut counts = |part: IndexPart, count: &mut dyn FnMut(SegmentKey, u32)| {
        for set in sets {
            let mut before = None;
            for backup in &set.backups {
                // One that is damaged counts for nothing, and is reported when the index is brought into step.
                let Some(manifest) = repository.readable_manifest(set, backup)? else { continue };
                let neighbours = Neighbours { before: before.as_ref(), this: &manifest, after: None };
                for window in neighbours.windows() {
                    let gains = neighbours.gains(window).into_iter();
                    gains.filter(|(key, _)| part.holds(*key)).for_each(|(key, gain)| count(key, gain));
                }
                let counted = Change::Counted(set.id, backup.incremental, Counted::whole(backup.manifest));
                whole.insert((set.id, backup.incremental), counted);
                manifest.release_pages();
                before = Some(manifest);
            }
        }
        Ok::<(), RepositoryError>(())
    };
    let folder = repository.packs();
    let result = rebuild_index(repository.storage.as_ref(), &folder, index, &mut counts)?;
    index.apply(&whole.into_values().collect::<Vec<_>>()).map_err(StoreError::from)?;
    Ok(result)
}

/// Tells what was found about packs, but for what was told.
fn tell_packs(packs: &Reconciled, told: &[String], progress: &dyn Progress) {
    if packs.sealed > 0 {
        let what = format!("{} unfinished pack(s) were sealed; what they hold is used again", packs.sealed);
        progress.notice(Notice::Recovered { what });
    }
    for what in packs.problems.iter().filter(|what| !told.contains(what)) {
        progress.notice(Notice::Problem { kind: ErrorKind::Corrupt, what: what.clone() });
    }
}

/// Brings an index into step with packs and manifests.
fn reconcile(
    repository: &Repository,
    index: &mut IndexWriter,
    ReadLists { sets, problems }: &ReadLists,
    told: &[String],
    progress: &dyn Progress,
) -> Result<(), RepositoryError> {
    let packs = reconcile_packs(repository.storage.as_ref(), &repository.packs(), index)?;
    tell_packs(&packs, told, progress);
    for error in problems {
        progress.notice(Notice::Problem { kind: error.kind(), what: error.to_string() });
    }
    let mut counted = index.index().counted().map_err(StoreError::from)?;
    for set in sets {
        // What is counted of deleted backups goes first: that is what the others are counted beside. Several that were deleted
        // together go in the order of their numbers, as `delete_all` takes them.
        let mut still_counted = set.clone();
        let is_counted = |record: &BackupRecord| counted.contains_key(&(set.id, record.incremental));
        let gone: Vec<_> =
            set.deleted.iter().map(|deleted| &deleted.record).filter(|record| is_counted(record)).collect();
        still_counted.backups.extend(gone.iter().map(|record| (*record).clone()));
        still_counted.backups.sort_by_key(|record| record.incremental);
        for record in gone {
            let Some(entry) = counted.remove(&(set.id, record.incremental)) else { continue };
            still_counted.backups.retain(|other| other.incremental != record.incremental);
            let of = |incremental| Ok(counted.get(&(set.id, incremental)).copied());
            let apply = |changes: Vec<Change>| Ok(index.apply(&changes)?);
            if !finish_deletion(repository, &still_counted, record, &entry, of, apply)? {
                let path = index.index().path().to_owned();
                let what = format!("it counts {}@{}, which was deleted", set.id, record.incremental);
                return Err(StoreError::from(IndexError::Damaged { path, what }).into());
            }
        }
        count_set(repository, set, index, &mut counted, progress)?;
    }
    // What is left was counted for a backup that no set names. A set that cannot be read, or is lost, may still name it.
    let roster = Roster::load(repository)?;
    let gone = |id: BackupsetId| {
        sets.iter().any(|set| set.id == id) || (is_missing(repository, id) && !roster.has(id))
    };
    match counted.keys().find(|(id, _)| gone(*id)) {
        None => Ok(()),
        Some((id, incremental)) => {
            let path = index.index().path().to_owned();
            let what = format!("it counts backup {id}@{incremental}, which does not exist");
            Err(StoreError::from(IndexError::Damaged { path, what }).into())
        }
    }
}

/// Counts what is not counted yet of one backupset's backups, and takes what is out of `counted`.
fn count_set(
    repository: &Repository,
    set: &Backupset,
    index: &mut IndexWriter,
    counted: &mut HashMap<(BackupsetId, Incremental), Counted>,
    progress: &dyn Progress,
) -> Result<(), RepositoryError> {
    let distrust = |index: &IndexWriter, what: String| -> RepositoryError {
        StoreError::from(IndexError::Damaged { path: index.index().path().to_owned(), what }).into()
    };
    let of_set = set.backups.iter().map(|backup| backup.incremental);
    let mut entries: HashMap<_, _> = of_set
        .filter_map(|incremental| Some((incremental, counted.remove(&(set.id, incremental))?)))
        .collect();
    for (position, backup) in set.backups.iter().enumerate() {
        let entry = entries.get(&backup.incremental).copied();
        if let Some(entry) = entry
            && entry.manifest != *backup.manifest.as_bytes()
        {
            return Err(distrust(
                index,
                format!("it counts another manifest as {}@{}", set.id, backup.incremental),
            ));
        }
        if entry.is_some_and(|entry| entry.state == CountedState::Whole) {
            continue;
        }
        let verified = repository.manifest(set, backup).and_then(|manifest| {
            manifest.verify()?;
            Ok(manifest)
        });
        let manifest = match verified {
            Ok(manifest) => manifest,
            Err(error) if error.kind() == ErrorKind::Io => return Err(error),
            Err(error) => {
                let what = format!("{error}; backup {} is not counted", BackupId::of(set, backup));
                progress.notice(Notice::Problem { kind: error.kind(), what });
                continue;
            }
        };
        // The neighbours are the nearest backups that are counted: before, and, if this one comes late, after.
        let of = |incremental| Ok(entries.get(&incremental).copied());
        let (earlier, later) = set.backups.split_at(position);
        let before = counted_side(repository, set, earlier.iter().rev(), of)?;
        let after = counted_side(repository, set, later.iter().skip(1), of)?;
        let (before, after) = match (before, after) {
            (Ok(before), Ok(after)) => (before, after),
            (Err(other), _) | (_, Err(other)) => {
                let what = format!("it counts {}@{other}, which cannot be read", set.id);
                return Err(distrust(index, what));
            }
        };
        let neighbours = Neighbours { before: before.as_ref(), this: &manifest, after: after.as_ref() };
        let counting = Counting { backupset: set.id, neighbours };
        if !counting.add(entry.as_ref(), |changes| Ok(index.apply(&changes)?))? {
            return Err(distrust(
                index,
                format!("it counts {}@{} beside others", set.id, backup.incremental),
            ));
        }
        entries.insert(backup.incremental, Counted::whole(backup.manifest));
    }
    Ok(())
}

fn is_missing(repository: &Repository, id: BackupsetId) -> bool {
    repository.storage.examine(&repository.layout.set(id)).is_err_and(|error| error.is_not_found())
}

/// Removes the indexes that are not in use. One that cannot be removed does no harm, and one with anything in it that sled
/// does not make stays.
pub(super) fn drop_other_indexes(repository: &Repository, number: u64) {
    let (storage, layout) = (repository.storage.as_ref(), &repository.layout);
    let Ok(names) = storage.list(&layout.indexes()) else { return };
    for other in names.iter().filter_map(|name| canonical::<u64>(name)).filter(|other| *other != number) {
        let path = layout.index(other);
        let removed = check_index_folder(storage, &path).and_then(|()| storage.remove_folder(&path));
        if let Err(error) = removed {
            tracing::warn!(%error, "an old index stays");
        }
    }
}

#[cfg(test)]
mod tests;
