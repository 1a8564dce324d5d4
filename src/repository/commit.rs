//! How a backup comes into being.
//!
//! 1. everything it stored is made durable in packs and entered into the index;
//! 2. its manifest is made durable under a temporary name;
//! 3. every segment that it gains is looked up in the index: whoever stored it, it is there;
//! 4. the manifest gets its name, without replacing any, and the folder is synced;
//! 5. `set.toml` is replaced: **from here on the backup exists**;
//! 6. the refcounts are applied;
//! 7. the generation is raised, first in the index, then in `state`, each durably;
//! 8. the backup is acknowledged.
//!
//! A crash before 5 leaves garbage, which recovery removes (files) or the next backup re-uses (segments);
//! after 5 recovery finishes 6 and 7.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::manifest::stays::{COUNTED_WINDOW, Neighbours};
use crate::manifest::{
    BackupsetId, BaseIndex, ImageName, Incremental, ManifestInfo, ManifestReader, ManifestWriter,
};
use crate::repository::counting::{Counting, neighbour};
use crate::repository::state::State;
use crate::repository::{
    BackupId, BackupRecord, Backupset, Layout, Origin, Protection, Repository, RepositoryError,
    RepositoryWriter,
};
use crate::segment::Geometry;
use crate::storage::TEMPORARY;
use crate::store::StoreJob;

/// The backup that a new one is compared with.
#[derive(Debug)]
pub struct Parent {
    /// Its manifest.
    pub manifest: ManifestReader,
    /// What each of its base indices is in the new manifest.
    bases: Vec<BaseIndex>,
}

impl Parent {
    /// Translates a base index of the parent's manifest into one of the new manifest's.
    pub fn base(&self, base: BaseIndex) -> BaseIndex {
        self.bases.get(usize::from(base.0)).copied().unwrap_or_default()
    }
}

/// A backup that has been begun and is not committed.
#[derive(Debug)]
pub struct BackupDraft {
    set: Backupset,
    info: ManifestInfo,
    temporary: PathBuf,
    parent: Option<Parent>,
    tags: Vec<String>,
    /// Backups that have turned out to be suspect, and why.
    suspects: Vec<Incremental>,
    why: String,
    /// Whether the backupset has no settings yet.
    pub(super) newborn: bool,
    running: Running,
}

/// What keeps others from making a backup of the same backupset, and from freeing what this one finds.
#[derive(Debug)]
pub(super) struct Running {
    job: StoreJob,
    growing: Arc<Mutex<HashSet<BackupsetId>>>,
    set: Option<BackupsetId>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(set) = self.set {
            self.growing.lock().unwrap_or_else(PoisonError::into_inner).remove(&set);
        }
    }
}

impl BackupDraft {
    pub(super) fn new(
        layout: &Layout,
        set: Backupset,
        info: ManifestInfo,
        parent: Option<Parent>,
        running: Running,
    ) -> Self {
        let temporary = layout.manifest(set.id, info.incremental).with_added_extension(TEMPORARY);
        Self {
            set,
            info,
            temporary,
            parent,
            tags: Vec::new(),
            suspects: Vec::new(),
            why: String::new(),
            newborn: false,
            running,
        }
    }

    /// Returns the backup that this one is compared with.
    pub fn parent(&self) -> Option<&Parent> {
        self.parent.as_ref()
    }

    /// Returns what keeps the segments that are found for it from being freed.
    pub fn job(&self) -> &StoreJob {
        &self.running.job
    }

    /// Gives the backup tags.
    pub fn set_tags(&mut self, tags: &[String]) {
        self.tags = tags.to_vec();
    }

    /// Has the manifest say `value` under `key`.
    pub fn set_attribute(&mut self, key: &str, value: Vec<u8>) {
        self.remove_attribute(key);
        self.info.attributes.push((key.to_owned(), value));
    }

    /// Has the manifest say nothing under `key`.
    pub fn remove_attribute(&mut self, key: &str) {
        self.info.attributes.retain(|(other, _)| other != key);
    }

    /// Has the backups of its backupset behind the number `full`, or all, marked as suspect when it is committed. Returns
    /// their numbers.
    pub fn suspect_since(&mut self, full: Option<Incremental>, why: &str) -> Vec<Incremental> {
        // Those that were deleted can come back.
        let numbers = self.set.backups.iter().chain(&self.set.deleted).map(|backup| backup.incremental);
        self.suspects = numbers.filter(|number| full.is_none_or(|full| *number > full)).collect();
        self.suspects.sort_unstable();
        why.clone_into(&mut self.why);
        self.suspects.clone()
    }

    /// Returns what its manifest will say about the whole.
    pub fn info(&self) -> &ManifestInfo {
        &self.info
    }
}

/// A backup that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedBackup {
    /// How it is named.
    pub id: BackupId,
    /// Its backupset.
    pub backupset: BackupsetId,
    /// Its number.
    pub incremental: Incremental,
    /// When it was begun.
    pub timestamp: jiff::Timestamp,
    /// Whether the index broke after the backup came to exist: the caller replaces it, which counts the
    /// backup, before the backup is acknowledged.
    pub replace_index: bool,
}

impl RepositoryWriter {
    /// Begins a backup of the image `name`: the next one of its backupset, or the first of a new one.
    pub fn begin_backup(&self, name: &ImageName, size_of_disk: u64) -> Result<BackupDraft, RepositoryError> {
        self.check()?;
        let mut running = self.begin_running();
        // Held over I/O: two first backups of one name would make two backupsets.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        let repository = &self.repository;
        let (sets, problems) = repository.backupsets()?;
        // A damaged `set.toml` may be that of this very name: a new set beside it could not be told from it.
        if let Some(problem) = problems.into_iter().next() {
            return Err(problem);
        }
        let timestamp = jiff::Timestamp::now();
        let set = match Repository::current_set(&sets, name) {
            Some(set) => set.clone(),
            None => self.create_set(name, timestamp, None)?,
        };
        self.begin_growing(&mut running, &set)?;
        let parent = self.parent(&sets, &set)?;
        let geometry = Geometry::new(size_of_disk, repository.settings.segment_size)
            .map_err(|error| self.geometry(&set, &error))?;
        let incremental = Incremental(set.next_incremental);
        if incremental.0 == u32::MAX {
            return Err(RepositoryError::NoIncremental { backupset: set.id.to_string() });
        }
        let info = ManifestInfo {
            backupset: set.id,
            incremental,
            name: set.name.clone(),
            geometry,
            timestamp,
            bases: set.bases.clone(),
            attributes: Vec::new(),
        };
        Ok(BackupDraft::new(&repository.layout, set, info, parent, running))
    }

    /// Registers a backup before anything is looked up for it.
    pub(super) fn begin_running(&self) -> Running {
        Running { job: self.store.begin_job(), growing: Arc::clone(&self.growing), set: None }
    }

    /// Refuses a second backup of a backupset at the same time.
    pub(super) fn begin_growing(
        &self,
        running: &mut Running,
        set: &Backupset,
    ) -> Result<(), RepositoryError> {
        let mut growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if !growing.insert(set.id) {
            return Err(RepositoryError::BackupRunning { name: set.name.clone() });
        }
        running.set = Some(set.id);
        Ok(())
    }

    fn geometry(&self, set: &Backupset, error: &crate::segment::GeometryError) -> RepositoryError {
        let path = self.repository.layout.set(set.id);
        crate::manifest::ManifestError::Invalid { path, what: error.to_string() }.into()
    }

    fn create_set(
        &self,
        name: &ImageName,
        created: jiff::Timestamp,
        from: Option<(&Backupset, Incremental)>,
    ) -> Result<Backupset, RepositoryError> {
        let set = Backupset {
            id: BackupsetId::random(),
            name: name.clone(),
            created,
            bases: from.map_or_else(Vec::new, |(set, _)| {
                std::iter::once(set.id).chain(set.bases.iter().copied()).collect()
            }),
            origin: from.map(|(set, incremental)| Origin { backupset: set.id, incremental }),
            next_incremental: 0,
            backups: Vec::new(),
            deleted: Vec::new(),
        };
        let created = set.create(self.repository.storage.as_ref(), &self.repository.layout);
        created.inspect_err(|error| self.poisoned_by(error))?;
        Ok(set)
    }

    /// Starts a new backupset for a disk that is being restored over its source.
    pub fn begin_set_after_restore(
        &self,
        name: &ImageName,
        from: &Backupset,
        incremental: Incremental,
    ) -> Result<BackupsetId, RepositoryError> {
        // Held over I/O, as by everybody who changes the lists.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        Ok(self.create_set(name, jiff::Timestamp::now(), Some((from, incremental)))?.id)
    }

    /// Opens what the next backup of `set` is compared with: its latest readable backup, or, before its
    /// first one, the backup that the disk was restored from.
    fn parent(&self, sets: &[Backupset], set: &Backupset) -> Result<Option<Parent>, RepositoryError> {
        let (from, before) = match (set.backups.len(), set.origin) {
            (0, None) => return Ok(None),
            (0, Some(origin)) => {
                let Some(from) = sets.iter().find(|other| other.id == origin.backupset) else {
                    return Ok(None);
                };
                let at = from.backups.iter().position(|backup| backup.incremental == origin.incremental);
                (from, at.into_iter().collect::<Vec<_>>())
            }
            (length, _) => (set, (0..length).rev().collect()),
        };
        let Some(manifest) = neighbour(&self.repository, from, before.into_iter())? else { return Ok(None) };
        // A backup of another segment size has other segments at its places.
        if manifest.info().geometry.segment_size() != self.repository.settings.segment_size {
            return Ok(None);
        }
        let own = std::iter::once(&from.id).chain(&manifest.info().bases);
        let position = |id: &BackupsetId| {
            let all = std::iter::once(&set.id).chain(&set.bases);
            all.zip(0..).find(|(other, _)| *other == id).map(|(_, position)| BaseIndex(position))
        };
        let bases: Option<Vec<_>> = own.map(position).collect();
        Ok(bases.map(|bases| Parent { manifest, bases }))
    }

    /// Begins the manifest of a draft, under its temporary name.
    pub fn create_manifest(&self, draft: &BackupDraft) -> Result<ManifestWriter, RepositoryError> {
        let storage = self.repository.storage.as_ref();
        match storage.unlink(&draft.temporary) {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
        Ok(ManifestWriter::create(storage, &draft.temporary, draft.info.clone())?)
    }

    /// Removes what a draft left that will not be committed.
    pub fn abandon(&self, draft: &BackupDraft) {
        let storage = self.repository.storage.as_ref();
        let removed = if draft.newborn {
            storage.remove_folder(&self.repository.layout.set(draft.set.id))
        } else {
            storage.unlink(&draft.temporary)
        };
        match removed {
            Err(error) if !error.is_not_found() => tracing::warn!(%error, "recovery will remove it"),
            _ => {}
        }
    }

    /// Commits a backup whose manifest is complete. When this returns, the backup is durable.
    pub fn commit(
        &self,
        draft: BackupDraft,
        manifest: ManifestWriter,
    ) -> Result<CommittedBackup, RepositoryError> {
        // Held over I/O: commits are few, each changes `set.toml` and generation, and their order is the point.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        self.try_commit(draft, manifest).inspect_err(|error| {
            if !error.distrusts_index() {
                self.poisoned_by(error);
            }
        })
    }

    fn try_commit(
        &self,
        draft: BackupDraft,
        manifest: ManifestWriter,
    ) -> Result<CommittedBackup, RepositoryError> {
        let (repository, storage) = (&self.repository, self.repository.storage.as_ref());
        // What this backup found is not freed before it is counted.
        let BackupDraft { mut set, info, temporary, tags, suspects, why, newborn, running: _running, .. } =
            draft;
        if !newborn {
            // Others may have been deleted, protected or renamed since it was begun.
            set = Backupset::read(storage, &repository.layout, set.id)?;
        }
        self.store.flush()?;
        let finished = manifest.finish()?;
        let before = neighbour(repository, &set, (0..set.backups.len()).rev())?;
        {
            let written = ManifestReader::open(&temporary)?;
            let neighbours = Neighbours { before: before.as_ref(), this: &written, after: None };
            for window in neighbours.windows_of(COUNTED_WINDOW) {
                for (key, _) in neighbours.gains(window) {
                    self.store.require_stored(key)?;
                }
            }
        }
        let path = repository.layout.manifest(set.id, info.incremental);
        storage.rename_new(&temporary, &path)?;
        storage.sync_folder(&repository.layout.set(set.id))?;
        for record in set.backups.iter_mut().chain(&mut set.deleted) {
            if suspects.contains(&record.incremental) {
                record.suspect = Some(why.clone());
            }
        }
        set.backups.push(BackupRecord {
            incremental: info.incremental,
            manifest: finished.fingerprint,
            timestamp: info.timestamp,
            size_of_disk: info.geometry.size_of_disk(),
            segments: info.geometry.segments(),
            tags,
            protection: Protection::None,
            note: None,
            suspect: None,
        });
        set.next_incremental = info
            .incremental
            .0
            .checked_add(1)
            .ok_or_else(|| RepositoryError::NoIncremental { backupset: set.id.to_string() })?;
        set.write(storage, &repository.layout)?;
        if newborn {
            storage.unlink(&repository.layout.newborn(set.id))?;
        }
        let committed = ManifestReader::open(&path)?;
        let neighbours = Neighbours { before: before.as_ref(), this: &committed, after: None };
        let counting = Counting { backupset: set.id, neighbours };
        let counted = counting.add(None, |changes| self.store.apply(changes)).map_err(RepositoryError::from);
        let replace_index = match counted.and_then(|_| self.raise_generation()) {
            Ok(()) => false,
            Err(error) if error.distrusts_index() => true,
            Err(error) => return Err(error),
        };
        Ok(CommittedBackup {
            id: BackupId { name: set.name.as_str().to_owned(), incremental: info.incremental },
            backupset: set.id,
            incremental: info.incremental,
            timestamp: info.timestamp,
            replace_index,
        })
    }

    /// Raises the generation, first in the index, then in `state`: an index from before this moment is not
    /// believed any longer.
    pub(super) fn raise_generation(&self) -> Result<(), RepositoryError> {
        // Held over I/O: nobody else wants it while a commit is under way, and the order of the two is the point.
        let mut file = self.state();
        let state = file.state();
        // A collection may have raised that of the index further.
        let generation = state.generation.max(self.store.generation()).saturating_add(1);
        self.store.raise_generation(generation)?;
        Ok(file.write(State { generation, ..state })?)
    }
}
