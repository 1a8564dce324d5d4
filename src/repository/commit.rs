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
//! after 5 recovery finishes 6 and 7. A failure before 4 is that of this backup alone, but for one of packs or index,
//! after which the store stops; after one from 4 on nothing more is written until the repository is opened again, which finds
//! out how far it came.
//!
//! Several backups that exist together or not at all take each step for all of them, and one more before 5: a file that
//! says what every `set.toml` is to say of them ([`Together`]). **From then on all of them exist**; when each `set.toml`
//! says so, the file goes. A crash before it leaves none of them, after it recovery finishes 5.

use std::sync::{Arc, PoisonError};

use crate::manifest::stays::{COUNTED_WINDOW, Neighbours};
use crate::manifest::{
    BackupsetId, BaseIndex, ImageName, Incremental, ManifestInfo, ManifestReader, ManifestWriter,
};
use crate::repository::counting::{Counting, neighbour};
use crate::repository::draft::{Parent, Running};
use crate::repository::import::remove_newborn;
use crate::repository::state::State;
use crate::repository::together::{Addition, Together};
use crate::repository::{
    BackupDraft, BackupId, BackupRecord, Backupset, FinishedDraft, Origin, Protection, Repository,
    RepositoryError, RepositoryWriter,
};
use crate::segment::Geometry;

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

/// A backup of which nothing is missing: it lacks its name, and to be said of in its backupset.
#[derive(Debug)]
struct Ready<'a> {
    draft: &'a BackupDraft,
    /// The backupset as it will be.
    set: Backupset,
    /// The backup before it.
    before: Option<ManifestReader>,
    addition: Addition,
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
        // What one left that was begun before the repository was opened again is removed, and another draft may have the
        // same file now.
        if !self.store.began(draft.job()) {
            return;
        }
        let storage = self.repository.storage.as_ref();
        let removed = if draft.newborn {
            remove_newborn(storage, &self.repository.layout, draft.set.id).map(drop)
        } else {
            storage.unlink(&draft.temporary)
        };
        match removed {
            Err(error) if !error.is_not_found() => tracing::warn!(%error, "recovery will remove it"),
            _ => {}
        }
    }

    /// Completes the manifest of a draft and makes it durable, still under its temporary name.
    pub fn finish_draft(
        &self,
        draft: BackupDraft,
        manifest: ManifestWriter,
    ) -> Result<FinishedDraft, RepositoryError> {
        self.check()?;
        let finished = manifest.finish().inspect_err(|_| self.abandon(&draft))?;
        Ok(FinishedDraft { draft, finished })
    }

    /// Commits a backup whose manifest is complete. When this returns, the backup is durable.
    pub fn commit(
        &self,
        draft: BackupDraft,
        manifest: ManifestWriter,
    ) -> Result<CommittedBackup, RepositoryError> {
        let finished = self.finish_draft(draft, manifest)?;
        let mut committed = self.commit_all(vec![finished])?;
        // One comes of one.
        committed
            .pop()
            .ok_or_else(|| RepositoryError::Poisoned { reason: "nothing was committed".to_owned() })
    }

    /// Commits several backups, of as many disks: after a failure or a crash there are all of them or none. When this
    /// returns, all are durable; they are returned in their order.
    ///
    /// # Errors
    /// As of one; imports of new backupsets are committed one by one.
    #[expect(clippy::needless_pass_by_value, reason = "what was committed is not committed again")]
    pub fn commit_all(&self, drafts: Vec<FinishedDraft>) -> Result<Vec<CommittedBackup>, RepositoryError> {
        // Held over I/O: commits are few, each changes `set.toml` and generation, and their order is the point.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        // The folder of a new backupset of an import stands for nothing before its settings are there.
        if let [one, _, ..] = drafts.as_slice()
            && let Some(import) = drafts.iter().find(|it| it.draft.newborn)
        {
            let what = format!("it is to be committed with {}, and imports go alone", one.draft.info.name);
            let ManifestInfo { backupset, incremental, ref name, .. } = import.draft.info;
            return Err(RepositoryError::CannotImport { backupset, incremental, name: name.clone(), what });
        }
        // Nothing is written yet that anybody reads: what fails here fails these backups alone.
        let ready = self.ready(&drafts).inspect_err(|_| {
            for FinishedDraft { draft, .. } in &drafts {
                self.abandon(draft);
            }
        })?;
        self.enter(&ready).inspect_err(|error| {
            if !error.distrusts_index() {
                self.poisoned_by(error);
            }
        })
    }

    /// Makes what backups are of durable, and sure that nothing of it is missing.
    fn ready<'a>(&self, drafts: &'a [FinishedDraft]) -> Result<Vec<Ready<'a>>, RepositoryError> {
        self.store.flush()?;
        drafts.iter().map(|draft| self.ready_one(draft)).collect()
    }

    /// Has backups come to exist: all of them or none.
    fn enter(&self, ready: &[Ready<'_>]) -> Result<Vec<CommittedBackup>, RepositoryError> {
        let (storage, layout) = (self.repository.storage.as_ref(), &self.repository.layout);
        for Ready { draft, .. } in ready {
            storage.rename_new(&draft.temporary, &layout.manifest(draft.set.id, draft.info.incremental))?;
            storage.sync_folder(&layout.set(draft.set.id))?;
        }
        let together = ready.len() > 1;
        if together {
            Together::new(ready.iter().map(|one| one.addition.clone()).collect()).write(storage, layout)?;
        }
        for Ready { draft, set, .. } in ready {
            set.write(storage, layout)?;
            if draft.newborn {
                storage.unlink(&layout.newborn(set.id))?;
            }
        }
        if together {
            Together::remove(storage, layout)?;
        }
        let counted = ready.iter().try_for_each(|one| self.count_new(one));
        let replace_index = match counted.and_then(|()| self.raise_generation()) {
            Ok(()) => false,
            Err(error) if error.distrusts_index() => true,
            Err(error) => return Err(error),
        };
        let committed = |Ready { draft, set, .. }: &Ready<'_>| CommittedBackup {
            id: BackupId { name: set.name.as_str().to_owned(), incremental: draft.info.incremental },
            backupset: set.id,
            incremental: draft.info.incremental,
            timestamp: draft.info.timestamp,
            replace_index,
        };
        Ok(ready.iter().map(committed).collect())
    }

    /// Makes sure that every segment that a backup gains is stored, and works out what its backupset will say.
    fn ready_one<'a>(
        &self,
        FinishedDraft { draft, finished }: &'a FinishedDraft,
    ) -> Result<Ready<'a>, RepositoryError> {
        let repository = &self.repository;
        let mut set = if draft.newborn {
            draft.set.clone()
        } else {
            // Others may have been deleted, protected or renamed since it was begun.
            Backupset::read(repository.storage.as_ref(), &repository.layout, draft.set.id)?
        };
        let before = neighbour(repository, &set, (0..set.backups.len()).rev())?;
        let written = ManifestReader::open(repository.storage.as_ref(), &draft.temporary)?;
        let neighbours = Neighbours { before: before.as_ref(), this: &written, after: None };
        for window in neighbours.windows_of(COUNTED_WINDOW) {
            for (key, _) in neighbours.gains(window) {
                self.store.require_stored(key)?;
            }
        }
        let info = &draft.info;
        let record = BackupRecord {
            incremental: info.incremental,
            manifest: finished.fingerprint,
            timestamp: info.timestamp,
            size_of_disk: info.geometry.size_of_disk(),
            segments: info.geometry.segments(),
            tags: draft.tags.clone(),
            protection: Protection::None,
            note: None,
            suspect: None,
        };
        let (suspects, why) = (draft.suspects.clone(), draft.why.clone());
        let addition = Addition { backupset: set.id, record, suspects, why };
        if !addition.apply(&mut set) {
            return Err(RepositoryError::NoIncremental { backupset: set.id.to_string() });
        }
        Ok(Ready { draft, set, before, addition })
    }

    fn count_new(&self, Ready { draft, set, before, .. }: &Ready<'_>) -> Result<(), RepositoryError> {
        let path = self.repository.layout.manifest(set.id, draft.info.incremental);
        let committed = ManifestReader::open(self.repository.storage.as_ref(), &path)?;
        let neighbours = Neighbours { before: before.as_ref(), this: &committed, after: None };
        let counting = Counting { backupset: set.id, neighbours };
        counting.add(None, |changes| self.store.apply(changes))?;
        Ok(())
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
