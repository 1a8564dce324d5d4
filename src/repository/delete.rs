//! How a backup goes, and comes back.
//!
//! Deleting: in `set.toml` the backup moves to the list of deleted ones: **from here on it does not exist**; then
//! its counts are taken away, beside the neighbours that survive it; then the generation is raised. Its manifest
//! stays until garbage collection, so that it can be undeleted: the same way back, with its counts added again.
//!
//! A crash after the first step is finished by recovery, which finds a backup counted that is listed as deleted,
//! or listed and not counted. Each backup is a step of its own: what was deleted before a failure stays deleted.

use std::collections::HashMap;
use std::sync::PoisonError;

use crate::manifest::stays::Neighbours;
use crate::manifest::{BackupsetId, ImageName, Incremental, ManifestReader};
use crate::repository::counting::{Counting, neighbour};
use crate::repository::{BackupRecord, Backupset, Protection, Repository, RepositoryError, RepositoryWriter};
use crate::segment::SegmentKey;
use crate::store::Counted;

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

/// What became of a change to the list of backups, which is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Whether the index broke, or cannot be kept in step, after the change was durable: the caller replaces it.
    pub replace_index: bool,
}

/// Which way a backup moves between the two lists of its backupset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Delete,
    Undelete,
}

impl RepositoryWriter {
    /// Deletes a backup. When this returns, that is durable.
    ///
    /// # Errors
    /// There is no such backup, or it is protected.
    pub fn delete(&self, backup: Deletion) -> Result<Changed, RepositoryError> {
        self.move_backup(backup, Move::Delete)
    }

    /// Takes a deletion back. When this returns, that is durable.
    ///
    /// # Errors
    /// There is no such deleted backup, or its manifest or a segment of it is gone.
    pub fn undelete(&self, backup: Deletion) -> Result<Changed, RepositoryError> {
        self.move_backup(backup, Move::Undelete)
    }

    fn move_backup(&self, backup: Deletion, way: Move) -> Result<Changed, RepositoryError> {
        // Held over I/O: changes of the list of backups are few, and their order is the point.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        let repository = &self.repository;
        let mut set = Backupset::read(repository.storage.as_ref(), &repository.layout, backup.backupset)?;
        let record = set.take(backup.incremental, way).ok_or_else(|| RepositoryError::NoSuchBackup {
            path: repository.layout.root().to_owned(),
            what: format!("{}@{}", backup.backupset, backup.incremental),
        })?;
        match way {
            Move::Delete if record.protection.holds(jiff::Timestamp::now()) => {
                let backup = format!("{}@{}", set.name, backup.incremental);
                return Err(RepositoryError::Protected { backup });
            }
            Move::Delete => {}
            Move::Undelete => self.require_segments(&set, &record)?,
        }
        set.put(record.clone(), way);
        repository.write_set(&set).inspect_err(|error| self.poisoned_by(error))?;
        match self.count(&set, &record, way).and_then(|counted| self.raise_generation().map(|()| counted)) {
            Ok(counted) => Ok(Changed { replace_index: !counted }),
            Err(error) if error.distrusts_index() => Ok(Changed { replace_index: true }),
            Err(error) => {
                self.poisoned_by(&error);
                Err(error)
            }
        }
    }

    /// Works out how many bytes of packs no backup would need any longer if these were deleted: exactly, from the
    /// refcounts. Memory: 2^21 segments at a time, the manifests are gone through as often as that takes.
    ///
    /// Nothing is returned if a manifest beside them, or their own, is damaged: then it cannot be known.
    pub fn would_free(&self, backups: &[Deletion]) -> Result<Option<u64>, RepositoryError> {
        let repository = &self.repository;
        let (sets, _) = repository.backupsets()?;
        let chains = sets.iter().filter(|set| backups.iter().any(|backup| backup.backupset == set.id));
        let mut all = Vec::new();
        for set in chains {
            let mut chain = Vec::with_capacity(set.backups.len());
            for record in &set.backups {
                let goes = backups.contains(&Deletion { backupset: set.id, incremental: record.incremental });
                let Some(manifest) = readable(repository, set, record)? else { return Ok(None) };
                chain.push((manifest, goes));
            }
            all.push(chain);
        }
        let going = all.iter().flatten().filter(|(_, goes)| *goes);
        let present: u64 = going.map(|(manifest, _)| u64::from(manifest.present())).sum();
        let parts = present.div_ceil(SUMMED).max(1);
        let mut freed = 0;
        for part in 0..parts {
            let mut losses: HashMap<SegmentKey, u64> = HashMap::new();
            for chain in &all {
                sum_losses(chain, |key| part_of(key, parts) == part, &mut losses);
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

    /// Makes sure that a deleted backup is whole.
    fn require_segments(&self, set: &Backupset, record: &BackupRecord) -> Result<(), RepositoryError> {
        let manifest = self.repository.manifest(set, record)?;
        manifest.verify()?;
        // No collection frees them meanwhile: it takes backups out of the list of deleted ones before.
        for (_, segment) in manifest.segments() {
            self.store.require_stored(segment.key)?;
        }
        Ok(())
    }

    /// Brings the counts into step with a set whose list has changed. Says whether that could be done.
    fn count(&self, set: &Backupset, record: &BackupRecord, way: Move) -> Result<bool, RepositoryError> {
        let repository = &self.repository;
        // Beside a manifest that cannot be read nothing is certain; a new index counts what can be.
        let Some(manifest) = readable(repository, set, record)? else { return Ok(false) };
        let mut sides = [None, None];
        for (side, other) in sides.iter_mut().zip(set.neighbours(record.incremental)) {
            if let Some(other) = other {
                let Some(manifest) = readable(repository, set, other)? else { return Ok(false) };
                *side = Some(manifest);
            }
        }
        let [before, after] = &sides;
        let neighbours = Neighbours { before: before.as_ref(), this: &manifest, after: after.as_ref() };
        let counting = Counting { backupset: set.id, neighbours };
        Ok(match way {
            Move::Delete => {
                let counted = Counted::whole(record.manifest);
                counting.remove(Some(&counted), |changes| self.store.apply(changes))?
            }
            Move::Undelete => counting.add(None, |changes| self.store.apply(changes))?,
        })
    }

    /// Changes what is said about a backup; what it is stays. Durable when this returns.
    fn describe(
        &self,
        backup: Deletion,
        change: impl FnOnce(&mut BackupRecord),
    ) -> Result<(), RepositoryError> {
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        let (storage, layout) = (self.repository.storage.as_ref(), &self.repository.layout);
        let mut set = Backupset::read(storage, layout, backup.backupset)?;
        let record = set.backups.iter_mut().find(|record| record.incremental == backup.incremental);
        let record = record.ok_or_else(|| RepositoryError::NoSuchBackup {
            path: layout.root().to_owned(),
            what: format!("{}@{}", backup.backupset, backup.incremental),
        })?;
        change(record);
        self.repository.write_set(&set).inspect_err(|error| self.poisoned_by(error))
    }

    /// Protects a backup from being deleted, or no longer.
    pub fn protect(&self, backup: Deletion, protection: Protection) -> Result<(), RepositoryError> {
        self.describe(backup, |record| record.protection = protection)
    }

    /// Gives all backups of a name another one. Each backupset is a step of its own; the manifests keep the name
    /// that their disk had.
    ///
    /// # Errors
    /// There is none of the old name, or there is one of the new that is not of the same disk.
    pub fn rename(&self, from: &ImageName, to: &ImageName) -> Result<u64, RepositoryError> {
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        let (sets, problems) = self.repository.backupsets()?;
        if let Some(problem) = problems.into_iter().next() {
            return Err(problem);
        }
        // A first backup of one of the names would make a second image of it.
        let growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = [from, to].into_iter().find(|name| growing.is_first(name)) {
            return Err(RepositoryError::BackupRunning { name: name.clone() });
        }
        drop(growing);
        let of = |name: &ImageName| sets.iter().filter(|set| set.name == *name).cloned().collect::<Vec<_>>();
        let (old, new) = (of(from), of(to));
        // A renaming that was cut short is gone on with: its backupsets descend from each other.
        let related = |set: &Backupset| {
            old.iter().any(|other| other.bases.contains(&set.id) || set.bases.contains(&other.id))
        };
        if !new.iter().all(related) {
            return Err(RepositoryError::NameTaken { name: to.clone() });
        }
        if old.is_empty() {
            let path = self.repository.layout.root().to_owned();
            return Err(RepositoryError::NoSuchBackup { path, what: from.to_string() });
        }
        let renamed = old.len() as u64;
        for mut set in old {
            set.name = to.clone();
            self.repository.write_set(&set).inspect_err(|error| self.poisoned_by(error))?;
        }
        Ok(renamed)
    }
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

/// Opens a manifest; nothing if it is damaged or gone.
fn readable(
    repository: &Repository,
    set: &Backupset,
    record: &BackupRecord,
) -> Result<Option<ManifestReader>, RepositoryError> {
    match repository.manifest(set, record).and_then(|manifest| {
        manifest.verify()?;
        Ok(manifest)
    }) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(error) if error.kind() == crate::error::ErrorKind::Io => Err(error),
        Err(_) => Ok(None),
    }
}

impl Backupset {
    fn lists(&mut self, way: Move) -> (&mut Vec<BackupRecord>, &mut Vec<BackupRecord>) {
        match way {
            Move::Delete => (&mut self.backups, &mut self.deleted),
            Move::Undelete => (&mut self.deleted, &mut self.backups),
        }
    }

    /// Takes a backup out of the list that it leaves.
    fn take(&mut self, incremental: Incremental, way: Move) -> Option<BackupRecord> {
        let (from, _) = self.lists(way);
        let at = from.iter().position(|record| record.incremental == incremental)?;
        Some(from.remove(at))
    }

    /// Puts a backup into the list that it comes to.
    fn put(&mut self, record: BackupRecord, way: Move) {
        let (_, to) = self.lists(way);
        let at = to.partition_point(|other| other.incremental < record.incremental);
        to.insert(at, record);
    }

    /// Returns the surviving backups before and after a number.
    pub(super) fn neighbours(&self, incremental: Incremental) -> [Option<&BackupRecord>; 2] {
        let before = self.backups.iter().rev().find(|record| record.incremental < incremental);
        [before, self.backups.iter().find(|record| record.incremental > incremental)]
    }
}

/// Finishes, at the opening, to take the counts of a deleted backup away, with what the index says of it. Says
/// whether that could be done.
pub(super) fn finish_deletion(
    repository: &Repository,
    set: &Backupset,
    record: &BackupRecord,
    counted: &Counted,
    apply: impl FnMut(Vec<crate::store::Change>) -> Result<(), crate::store::StoreError>,
) -> Result<bool, RepositoryError> {
    let Some(manifest) = readable(repository, set, record)? else { return Ok(false) };
    let position = |side: Option<&BackupRecord>| {
        side.and_then(|side| set.backups.iter().position(|other| other.incremental == side.incremental))
    };
    let mut sides = [None, None];
    for (side, other) in sides.iter_mut().zip(set.neighbours(record.incremental)) {
        *side = neighbour(repository, set, position(other).into_iter())?;
        if side.is_none() && other.is_some() {
            return Ok(false);
        }
    }
    let [before, after] = &sides;
    let neighbours = Neighbours { before: before.as_ref(), this: &manifest, after: after.as_ref() };
    Ok(Counting { backupset: set.id, neighbours }.remove(Some(counted), apply)?)
}
