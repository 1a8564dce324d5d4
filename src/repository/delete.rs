//! How a backup goes, and comes back.
//!
//! Deleting: in `set.toml` the backup moves to the list of deleted ones: **from here on it does not exist**; then
//! its counts are taken away, beside the neighbours that survive it; then the generation is raised. Its manifest
//! stays for the period `keep_deleted`, so that it can be undeleted: the same way back, with its counts added again.
//!
//! Several backups that are deleted or undeleted at once change their lists in one write, or, of several backupsets, by
//! `together.toml`. Then they are counted again or uncounted one after the other, by number: beside each stand the backups that survive and those that are still counted. A
//! crash after the first step is finished by recovery, which finds backups counted that are listed as deleted, and goes
//! on in the same order.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use crate::manifest::stays::Neighbours;
use crate::manifest::{BackupsetId, Incremental, ManifestReader};
use crate::repository::counting::{Counting, counted_side};
use crate::repository::together::{Removal, Together, Undeletion};
use crate::repository::{
    BackupId, BackupRecord, Backupset, DeletedBackup, Moments, Protection, Repository, RepositoryError,
    RepositoryWriter,
};
use crate::segment::{Fingerprint, SegmentKey};
use crate::store::{Counted, StoreError};

/// A backup to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Deletion {
    /// Its backupset.
    pub backupset: BackupsetId,
    /// Its number.
    pub incremental: Incremental,
}

/// How many segments' counts are summed at once when it is worked out what deletions free.
const SUMMED: u64 = 1 << 21;

/// A deleted backup that was found intact: its backupset, its number and its manifest.
type Intact = (BackupsetId, Incremental, Fingerprint);

/// What became of a change to the list of backups, which is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Whether the index broke, or cannot be kept in step, after the change was durable: the caller replaces it.
    pub replace_index: bool,
}

impl RepositoryWriter {
    /// Deletes a backup. When this returns, that is durable.
    ///
    /// # Errors
    /// There is no such backup, or it is protected.
    pub fn delete(&self, backup: Deletion) -> Result<Changed, RepositoryError> {
        self.delete_all(&[backup])
    }

    /// Deletes backups: all of them, or none. When this returns, that is durable.
    ///
    /// # Errors
    /// One of them is not there, is protected, or belongs to a machine's moment that stays: then nothing is deleted.
    pub fn delete_all(&self, backups: &[Deletion]) -> Result<Changed, RepositoryError> {
        // Held over I/O: changes of the list of backups are few, and their order is the point.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        let repository = &self.repository;
        let (storage, layout) = (repository.storage.as_ref(), &repository.layout);
        let mut of_sets: BTreeMap<BackupsetId, Vec<Incremental>> = BTreeMap::new();
        for backup in backups {
            of_sets.entry(backup.backupset).or_default().push(backup.incremental);
        }
        let mut before = Vec::with_capacity(of_sets.len());
        for (id, incrementals) in of_sets {
            let set = Backupset::read(storage, layout, id)?;
            for incremental in &incrementals {
                let record = set.backups.iter().find(|record| record.incremental == *incremental);
                let record = record.ok_or_else(|| self.no_such(id, *incremental))?;
                if record.protection.holds(crate::time::now()) {
                    return Err(RepositoryError::Protected {
                        backup: BackupId::of(&set, record).to_string(),
                    });
                }
            }
            before.push((set, incrementals));
        }
        let (all, _) = repository.backupsets_named("")?;
        check_parts(&all, backups)?;
        // Of all lists: if the file is lost, the count goes on from the highest, and it must not jump to that later.
        let latest = all.iter().flat_map(|set| &set.deleted).map(|deleted| deleted.deleted_clock).max();
        let clock = repository.clock(latest.unwrap_or(0))?;
        clock.write(repository).inspect_err(|error| self.poisoned_by(error))?;
        let (deleted, deleted_clock) = (crate::time::now(), clock.passed_seconds());
        let removal = |(set, incrementals): &(Backupset, Vec<Incremental>)| {
            let (backupset, incrementals) = (set.id, incrementals.clone());
            Removal { backupset, incrementals, deleted, deleted_clock }
        };
        let removals: Vec<_> = before.iter().map(removal).collect();
        let mut after: Vec<_> = before.iter().map(|(set, _)| set.clone()).collect();
        for (set, removal) in after.iter_mut().zip(&removals) {
            removal.apply(set);
        }
        let backed_up: HashSet<_> = after
            .iter()
            .chain(all.iter().map(|set| &**set).filter(|set| after.iter().all(|other| other.id != set.id)))
            .filter(|set| !set.backups.is_empty())
            .map(|set| set.name.clone())
            .collect();
        let names = after.iter().map(|set| set.name.clone());
        let emptied: Vec<_> = names.filter(|name| !backed_up.contains(name)).collect();
        self.write_together(&Together::of_removals(removals), after)?;
        for name in &emptied {
            repository.drop_failure(name);
        }
        let uncounted = before
            .iter()
            .try_fold(true, |all, (set, incrementals)| Ok(all && self.uncount(set.clone(), incrementals)?));
        self.settle(uncounted)
    }

    /// Takes a deletion back. When this returns, that is durable.
    ///
    /// # Errors
    /// As of [`Self::undelete_all`].
    pub fn undelete(&self, backup: Deletion) -> Result<Changed, RepositoryError> {
        self.undelete_all(&[backup])
    }

    /// Takes deletions back: all of them, or none. When this returns, that is durable.
    ///
    /// # Errors
    /// One of them is not a deleted backup, or its manifest or a segment is gone: then none comes back.
    pub fn undelete_all(&self, backups: &[Deletion]) -> Result<Changed, RepositoryError> {
        self.check()?;
        let mut of_sets: BTreeMap<BackupsetId, BTreeSet<Incremental>> = BTreeMap::new();
        for backup in backups {
            of_sets.entry(backup.backupset).or_default().insert(backup.incremental);
        }
        // That may take minutes, and nobody is to wait for it: the lock comes after it.
        let (intact, looked_up) = self.require_intact(&of_sets)?;
        tracing::debug!(backups = intact.len(), looked_up, "deleted backups are intact");
        // Held over I/O, as by everybody who changes the lists.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        let repository = &self.repository;
        let (storage, layout) = (repository.storage.as_ref(), &repository.layout);
        // What it says of this backup would be done again.
        Together::require_none(storage, layout)?;
        let (mut sets, mut undeletions) = (Vec::with_capacity(of_sets.len()), Vec::new());
        for (id, incrementals) in &of_sets {
            let set = Backupset::read(storage, layout, *id)?;
            for incremental in incrementals {
                // A collection takes a backup out of this list before it frees any segment, and a number is never given twice. So a
                // backup that is still in the list is the one that was checked, and has all its segments.
                let deleted = find_deleted(&set, *incremental);
                let deleted = deleted.filter(|it| intact.contains(&(*id, *incremental, it.record.manifest)));
                let deleted = deleted.ok_or_else(|| self.no_such(*id, *incremental))?;
                undeletions.push(Undeletion::of(*id, deleted));
            }
            sets.push(set);
        }
        let mut after = sets.clone();
        for set in &mut after {
            for undeletion in &undeletions {
                undeletion.apply(set);
            }
        }
        self.write_together(&Together::of_undeletions(undeletions.clone()), after)?;
        let counted =
            sets.into_iter().try_fold(true, |all, set| Ok(all && self.count_again(set, &undeletions)?));
        self.settle(counted)
    }

    /// Adds the counts of backups that were undeleted, to what was counted before: `set`. Each is counted beside those that have been
    /// counted, by number, as recovery does. Says whether that could be done.
    fn count_again(&self, mut set: Backupset, undeletions: &[Undeletion]) -> Result<bool, RepositoryError> {
        for undeletion in undeletions {
            if !undeletion.apply(&mut set) {
                continue;
            }
            let is_it = |record: &&BackupRecord| record.incremental == undeletion.incremental;
            let Some(record) = set.backups.iter().find(is_it) else { continue };
            let add = |counting: Counting<'_>| counting.add(None, |changes| self.store.apply(changes));
            if !self.beside(&set, record, add)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn no_such(&self, backupset: BackupsetId, incremental: Incremental) -> RepositoryError {
        RepositoryError::NoSuchBackup {
            path: self.repository.layout.root().to_owned(),
            what: format!("{backupset}@{incremental}"),
        }
    }

    /// Ends a change that is durable and was counted, if `counted` says so.
    fn settle(&self, counted: Result<bool, RepositoryError>) -> Result<Changed, RepositoryError> {
        match counted.and_then(|counted| self.raise_generation().map(|()| counted)) {
            Ok(counted) => Ok(Changed { replace_index: !counted }),
            Err(error) if error.distrusts_index() => Ok(Changed { replace_index: true }),
            Err(error) => {
                self.poisoned_by(&error);
                Err(error)
            }
        }
    }

    /// Takes the counts away of backups that have been deleted, from what was counted before: `set`. Says whether that could be
    /// done.
    fn uncount(&self, mut set: Backupset, deleted: &[Incremental]) -> Result<bool, RepositoryError> {
        let mut deleted = deleted.to_vec();
        deleted.sort_unstable();
        for incremental in deleted {
            let Some(at) = set.backups.iter().position(|record| record.incremental == incremental) else {
                continue;
            };
            let record = set.backups.remove(at);
            // Its manifest was damaged when the others were counted.
            let Some(counted) = self.store.counted_of(set.id, incremental)? else { continue };
            let done = self.beside(&set, &record, |counting| {
                counting.remove(Some(&counted), |changes| self.store.apply(changes))
            })?;
            if !done {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Counts a backup beside its neighbours in a set. Says whether that could be done.
    fn beside(
        &self,
        set: &Backupset,
        record: &BackupRecord,
        count: impl FnOnce(Counting<'_>) -> Result<bool, StoreError>,
    ) -> Result<bool, RepositoryError> {
        let counted = |incremental| self.store.counted_of(set.id, incremental);
        beside(&self.repository, set, record, counted, count)
    }

    /// Works out how many bytes of packs no backup would need any longer if these were deleted: exactly, from the
    /// refcounts. Memory: 2^21 segments at a time, the manifests are gone through as often as that takes.
    ///
    /// Nothing is returned if a manifest beside them, or their own, is damaged: then it cannot be known.
    pub fn would_free(&self, backups: &[Deletion]) -> Result<Option<u64>, RepositoryError> {
        let repository = &self.repository;
        let (sets, _) = repository.backupsets()?;
        let backups: HashSet<_> = backups.iter().copied().collect();
        let of_sets: HashSet<_> = backups.iter().map(|backup| backup.backupset).collect();
        let goes = |set: &Backupset, record: &BackupRecord| {
            backups.contains(&Deletion { backupset: set.id, incremental: record.incremental })
        };
        let chains: Vec<_> = sets.iter().filter(|set| of_sets.contains(&set.id)).collect();
        let mut present = 0;
        for set in &chains {
            for record in set.backups.iter().filter(|record| goes(set, record)) {
                let Some(manifest) = repository.readable_manifest(set, record)? else { return Ok(None) };
                present += u64::from(manifest.present());
            }
        }
        let parts = present.div_ceil(SUMMED).max(1);
        let mut freed = 0;
        for part in 0..parts {
            let mut losses: HashMap<SegmentKey, u64> = HashMap::new();
            for set in &chains {
                // Of one chain at a time: the system limits how many files a process maps.
                let mut chain = Vec::with_capacity(set.backups.len());
                for record in &set.backups {
                    let Some(manifest) = repository.readable_manifest(set, record)? else { return Ok(None) };
                    chain.push((manifest, goes(set, record)));
                }
                sum_losses(&chain, |key| part_of(key, parts) == part, &mut losses);
            }
            for (key, loss) in losses {
                let entry = self.store.require(key)?;
                if entry.refcount == loss && !entry.is_lost() {
                    freed += entry.span();
                }
            }
        }
        Ok(Some(freed))
    }

    /// Makes sure that deleted backups are intact. Returns which manifest each of them has, and how many segments were looked up.
    fn require_intact(
        &self,
        of_sets: &BTreeMap<BackupsetId, BTreeSet<Incremental>>,
    ) -> Result<(HashSet<Intact>, u64), RepositoryError> {
        let (storage, layout) = (self.repository.storage.as_ref(), &self.repository.layout);
        let (mut intact, mut looked_up) = (HashSet::new(), 0);
        for (id, incrementals) in of_sets {
            let set = Backupset::read(storage, layout, *id)?;
            let mut before = None;
            for incremental in incrementals {
                let deleted = find_deleted(&set, *incremental);
                let record = &deleted.ok_or_else(|| self.no_such(*id, *incremental))?.record;
                let manifest = self.repository.manifest(&set, record)?;
                manifest.verify()?;
                looked_up += self.require_segments(&manifest, before.as_ref())?;
                before = Some(manifest);
                intact.insert((*id, *incremental, record.manifest));
            }
        }
        Ok((intact, looked_up))
    }

    /// Makes sure that the segments of a deleted backup are stored. `before` is a backup of the same backupset of which that is
    /// known: what both have at one place is not looked up again. Returns how many segments were looked up.
    fn require_segments(
        &self,
        manifest: &ManifestReader,
        before: Option<&ManifestReader>,
    ) -> Result<u64, RepositoryError> {
        let neighbours = Neighbours { before, this: manifest, after: None };
        let mut looked_up = 0;
        for window in neighbours.windows() {
            for (key, _) in neighbours.gains(window) {
                // What the index does not know was freed, or was damaged when the index was made.
                let lost = |error: StoreError| {
                    if error.distrusts_index() { StoreError::Lost { key } } else { error }
                };
                self.store.require_stored(key).map_err(lost)?;
                looked_up += 1;
            }
        }
        Ok(looked_up)
    }

    /// Changes what is said about a backup; what it is stays. Durable when this returns.
    fn describe(
        &self,
        backup: Deletion,
        change: impl FnOnce(&mut BackupRecord, BackupId) -> Result<(), RepositoryError>,
    ) -> Result<(), RepositoryError> {
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        let (storage, layout) = (self.repository.storage.as_ref(), &self.repository.layout);
        let mut set = Backupset::read(storage, layout, backup.backupset)?;
        let name = set.name.as_str().to_owned();
        let record = set.backups.iter_mut().find(|record| record.incremental == backup.incremental);
        let record = record.ok_or_else(|| self.no_such(backup.backupset, backup.incremental))?;
        let id = BackupId { name, number: record.number };
        change(record, id)?;
        self.repository.write_set(&set).inspect_err(|error| self.poisoned_by(error))
    }

    /// Protects a backup from being deleted, or no longer.
    ///
    /// # Errors
    /// The protection would end earlier than it does, and not by taking it back, without `shorten`.
    pub fn protect(
        &self,
        backup: Deletion,
        protection: Protection,
        shorten: bool,
    ) -> Result<(), RepositoryError> {
        self.describe(backup, |record, id| {
            if let (Protection::Until(until), false) = (protection, shorten)
                && record.protection.outlasts(protection)
            {
                let longer = match record.protection {
                    Protection::Until(end) => format!("until {end}"),
                    Protection::None | Protection::Always => "for ever".to_owned(),
                };
                return Err(RepositoryError::ProtectedLonger { backup: id.to_string(), until, longer });
            }
            record.protection = protection;
            Ok(())
        })
    }
}

/// Makes sure that no backup goes that a machine's moment consists of which stays.
fn check_parts(all: &[Arc<Backupset>], backups: &[Deletion]) -> Result<(), RepositoryError> {
    let goes: HashSet<_> = backups.iter().map(|backup| (backup.backupset, backup.incremental)).collect();
    let moments = Moments::among(all);
    for set in all {
        for record in set.backups.iter().filter(|record| goes.contains(&(set.id, record.incremental))) {
            let mut stays = moments.with((set.id, record.incremental)).iter();
            if let Some((of, moment)) =
                stays.find(|(of, moment)| !goes.contains(&(of.id, moment.incremental)))
            {
                let (backup, moment) =
                    (BackupId::of(set, record).to_string(), BackupId::of(of, moment).to_string());
                return Err(RepositoryError::PartOfMachine { backup, moment });
            }
        }
    }
    Ok(())
}

fn find_deleted(set: &Backupset, incremental: Incremental) -> Option<&DeletedBackup> {
    set.deleted.iter().find(|deleted| deleted.record.incremental == incremental)
}

/// Adds up by how much the refcounts of the wanted segments fall when the backups of a chain go that are to go.
fn sum_losses(
    chain: &[(ManifestReader, bool)],
    wanted: impl Fn(SegmentKey) -> bool,
    losses: &mut HashMap<SegmentKey, u64>,
) {
    // One after the other, as they are deleted: before each stands what survives them all.
    let mut before = None;
    for (position, (this, goes)) in chain.iter().enumerate() {
        if !goes {
            before = Some(this);
            continue;
        }
        let after = chain.get(position + 1).map(|(manifest, _)| manifest);
        let neighbours = Neighbours { before, this, after };
        for window in neighbours.windows() {
            for (key, loss) in neighbours.gains(window).into_iter().filter(|(key, _)| wanted(*key)) {
                *losses.entry(key).or_insert(0) += u64::from(loss);
            }
        }
    }
}

/// Divides all segments into parts.
fn part_of(key: SegmentKey, parts: u64) -> u64 {
    let [a, b, c, d, ..] = *key.hash.as_bytes();
    u64::from(u32::from_le_bytes([a, b, c, d])) % parts
}

/// Counts a backup beside its neighbours in a set. Says whether that could be done.
fn beside(
    repository: &Repository,
    set: &Backupset,
    record: &BackupRecord,
    counted: impl Fn(Incremental) -> Result<Option<Counted>, StoreError>,
    count: impl FnOnce(Counting<'_>) -> Result<bool, StoreError>,
) -> Result<bool, RepositoryError> {
    // Beside a manifest that cannot be read nothing is certain; a new index counts what can be.
    let Some(manifest) = repository.readable_manifest(set, record)? else { return Ok(false) };
    let earlier = set.backups.iter().rev().filter(|other| other.incremental < record.incremental);
    let later = set.backups.iter().filter(|other| other.incremental > record.incremental);
    let before = counted_side(repository, set, earlier, &counted)?;
    let after = counted_side(repository, set, later, &counted)?;
    let (Ok(before), Ok(after)) = (before, after) else { return Ok(false) };
    let neighbours = Neighbours { before: before.as_ref(), this: &manifest, after: after.as_ref() };
    Ok(count(Counting { backupset: set.id, neighbours })?)
}

/// Finishes, at the opening, to take the counts of a deleted backup away. `this` is what the index says of it, and
/// `counted` what it says of the others in the set. Says whether that could be done.
pub(super) fn finish_deletion(
    repository: &Repository,
    set: &Backupset,
    record: &BackupRecord,
    this: &Counted,
    counted: impl Fn(Incremental) -> Result<Option<Counted>, StoreError>,
    apply: impl FnMut(Vec<crate::store::Change>) -> Result<(), StoreError>,
) -> Result<bool, RepositoryError> {
    beside(repository, set, record, counted, |counting| counting.remove(Some(this), apply))
}

#[cfg(test)]
mod tests;
