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
//!
//! A backup of a new name has no `set.toml` before 5, only a folder with a marker in it: it leaves no name behind if it
//! fails. Of several, those of new names get one without a backup before 4, since the file of all of them may name only
//! backupsets that are there. Nobody sees such a backupset, and recovery removes it, unless it is known to be damaged what
//! the file says.

use std::sync::PoisonError;

use crate::manifest::stays::{COUNTED_WINDOW, Neighbours};
use crate::manifest::{
    BackupsetId, BaseIndex, ImageName, Incremental, MOST_BASES, ManifestError, ManifestInfo, ManifestReader,
    ManifestWriter,
};
use crate::repository::counting::{Counting, Side, counted_side};
use crate::repository::draft::{Parent, Running, Unfinished};
use crate::repository::number::{check_new_name, next_number};
use crate::repository::state::State;
use crate::repository::together::{Addition, Together};
use crate::repository::{
    BackupAmounts, BackupDraft, BackupId, BackupNumber, BackupRecord, Backupset, FinishedDraft, Origin,
    Protection, Repository, RepositoryError, RepositoryWriter,
};
use crate::segment::Geometry;
use crate::storage::replace;

/// How many backups and names there may be for a backup to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrowthLimits {
    /// Backups of the name, with those that were deleted and are not collected.
    pub backups_per_name: usize,
    /// What the names begin with that are counted together.
    pub prefix: String,
    /// How many of these names may have a backup.
    pub names: usize,
}

/// A backup that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedBackup {
    /// How it is named.
    pub id: BackupId,
    /// Its backupset.
    pub backupset: BackupsetId,
    /// Its number in its backupset.
    pub incremental: Incremental,
    /// When it was begun.
    pub timestamp: jiff::Timestamp,
    /// How many segments it stored that earlier backups lacked.
    pub healed_segments: u64,
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
    /// What its file will say.
    text: String,
    /// The backup that it is counted beside.
    before: Side,
    addition: Addition,
}

/// Backups of which nothing is missing.
#[derive(Debug)]
struct Entry<'a> {
    ready: Vec<Ready<'a>>,
    /// What says that they exist, if they are several.
    together: Option<String>,
}

impl RepositoryWriter {
    /// Begins a backup of the image `name`: the next one of its backupset, or the first of a new one.
    pub fn begin_backup(&self, name: &ImageName, size_of_disk: u64) -> Result<BackupDraft, RepositoryError> {
        self.begin_backup_within(name, size_of_disk, None)
    }

    /// Begins a backup as [`Self::begin_backup`] does, unless there are as many as there may be.
    ///
    /// # Errors
    /// A limit is reached.
    pub fn begin_backup_within(
        &self,
        name: &ImageName,
        size_of_disk: u64,
        limits: Option<&GrowthLimits>,
    ) -> Result<BackupDraft, RepositoryError> {
        self.check()?;
        let mut running = self.begin_running();
        // Held over I/O: two first backups of one name would make two backupsets.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        let repository = &self.repository;
        // A damaged `set.toml` may be that of this very name: a new set beside it could not be told from it.
        repository.keep_lists()?;
        let (sets, problems) = repository.backupsets_named(name.as_str())?;
        if let Some(problem) = problems.into_iter().next() {
            return Err(problem);
        }
        let timestamp = crate::time::now();
        let current = Repository::current_set(&sets, name).cloned();
        let least_number = next_number(&sets, name);
        let newborn = current.is_none();
        let set = match current {
            Some(set) => Backupset::clone(&set),
            None => self.new_set(name, timestamp, None)?,
        };
        let backups = sets.iter().filter(|set| set.name == *name).map(|set| set.records()).sum();
        if let Some(limits) = limits {
            self.check_limits(name, backups, limits)?;
        }
        running.grow(&set, backups == 0)?;
        if !newborn {
            set.has_room(repository.storage.as_ref(), &repository.layout)?;
        }
        let parent = self.parent(&set)?;
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
        let folder = newborn.then(|| self.begin_folder(set.id)).transpose()?;
        if newborn {
            repository.note_first_backup(name, timestamp);
        }
        let least_number = least_number.max(set.next_number);
        Ok(BackupDraft::new(repository, set, info, parent, folder, running, least_number))
    }

    /// Makes a backupset of a name that has none, or none that goes on: of its own id, or of a new one. Its numbers go on from
    /// those that the name ever had. To be called under the lock of commits.
    ///
    /// # Errors
    /// The name is new, and means a backupset already.
    pub(super) fn new_set(
        &self,
        name: &ImageName,
        created: jiff::Timestamp,
        id: Option<BackupsetId>,
    ) -> Result<Backupset, RepositoryError> {
        let (sets, problems) = self.repository.backupsets_named("")?;
        // It may have had the name, and know a higher number.
        if let Some(problem) = problems.into_iter().next() {
            return Err(problem);
        }
        check_new_name(&sets, name)?;
        let id = id.unwrap_or_else(BackupsetId::random);
        Ok(Backupset { next_number: next_number(&sets, name), ..Backupset::new(id, name.clone(), created) })
    }

    /// Makes sure that there is room for another backup of a name that has `backups`, and for the name.
    fn check_limits(
        &self,
        name: &ImageName,
        backups: usize,
        limits: &GrowthLimits,
    ) -> Result<(), RepositoryError> {
        if backups >= limits.backups_per_name {
            let (name, most) = (name.clone(), limits.backups_per_name);
            return Err(RepositoryError::TooManyBackups { name, backups, most });
        }
        // A name that has none may be that of an empty backupset.
        if backups == 0 {
            let growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner).count(&limits.prefix);
            let names = self.repository.count_names(&limits.prefix)? + growing;
            if names >= limits.names {
                return Err(RepositoryError::TooManyNames { name: name.clone(), names, most: limits.names });
            }
        }
        Ok(())
    }

    /// Registers a backup before anything is looked up for it.
    pub(super) fn begin_running(&self) -> Running {
        Running::new(self.store.begin_job(), &self.growing)
    }

    /// Makes the folder of a new backupset. Until its settings are in it, what lies there stands for nothing, and
    /// recovery removes it: a marker says so.
    pub(super) fn begin_folder(&self, id: BackupsetId) -> Result<Unfinished, RepositoryError> {
        let (storage, layout) = (&self.repository.storage, &self.repository.layout);
        let folder = Unfinished::set(storage, layout, id);
        let made = || {
            storage.create_folder(&layout.set(id))?;
            storage.sync_folder(&layout.sets())?;
            replace(storage.as_ref(), &layout.newborn(id), b"")
        };
        made().map_err(RepositoryError::from).inspect_err(|error| {
            // A full disk is this backup's failure alone: nothing that was written counts.
            if !error.is_full() {
                self.poisoned_by(error);
            }
        })?;
        Ok(folder)
    }

    fn geometry(&self, set: &Backupset, error: &crate::segment::GeometryError) -> RepositoryError {
        let path = self.repository.layout.set(set.id);
        crate::manifest::ManifestError::Invalid { path, what: error.to_string() }.into()
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
        let mut set = self.new_set(name, crate::time::now(), None)?;
        set.bases = std::iter::once(from.id).chain(from.bases.iter().copied()).collect();
        if set.bases.len() > MOST_BASES {
            let path = self.repository.layout.set(set.id);
            let what = format!("it would name more than {MOST_BASES} earlier backupsets");
            return Err(ManifestError::Invalid { path, what }.into());
        }
        set.origin = Some(Origin { backupset: from.id, incremental });
        let created = set.create(self.repository.storage.as_ref(), &self.repository.layout);
        created.inspect_err(|error| {
            self.repository.lists.forget();
            self.poisoned_by(error);
        })?;
        let id = set.id;
        self.repository.lists.put([set]);
        Ok(id)
    }

    /// Opens what the next backup of `set` is compared with: its latest readable and counted backup, or, before its
    /// first one, the backup that the disk was restored from.
    fn parent(&self, set: &Backupset) -> Result<Option<Parent>, RepositoryError> {
        let origin;
        let (from, before) = match (set.backups.len(), set.origin) {
            (0, None) => return Ok(None),
            (0, Some(Origin { backupset, incremental })) => {
                origin = match self.repository.backupset(backupset) {
                    Ok(origin) => origin,
                    Err(RepositoryError::Storage(error)) if error.is_not_found() => return Ok(None),
                    Err(error) => return Err(error),
                };
                let backups = origin.backups.iter().filter(|backup| backup.incremental == incremental);
                (&origin, backups.collect::<Vec<_>>())
            }
            _ => (set, set.backups.iter().rev().collect()),
        };
        // One that is not counted may lack segments.
        let counted = |incremental| self.store.counted_of(from.id, incremental);
        let readable = before.into_iter().find_map(|record| {
            match counted_side(&self.repository, from, [record], counted) {
                Ok(Ok(manifest)) => manifest.map(Ok),
                Ok(Err(_)) => None,
                Err(error) => Some(Err(error)),
            }
        });
        let Some(manifest) = readable.transpose()? else { return Ok(None) };
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
        let incremental = manifest.info().incremental;
        let number = from.backups.iter().find(|backup| backup.incremental == incremental);
        Ok(bases.zip(number).map(|(bases, record)| Parent { manifest, number: record.number, bases }))
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

    /// Completes the manifest of a draft and makes it durable, still under its temporary name.
    pub fn finish_draft(
        &self,
        draft: BackupDraft,
        manifest: ManifestWriter,
    ) -> Result<FinishedDraft, RepositoryError> {
        self.check()?;
        let finished = manifest.finish()?;
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
        committed
            .pop()
            .ok_or_else(|| RepositoryError::Poisoned { reason: "nothing was committed".to_owned() })
    }

    /// Commits several backups, of as many disks: after a failure or a crash there are all of them or none. When this
    /// returns, all are durable; they are returned in their order.
    ///
    /// # Errors
    /// As of one.
    pub fn commit_all(
        &self,
        mut drafts: Vec<FinishedDraft>,
    ) -> Result<Vec<CommittedBackup>, RepositoryError> {
        // Held over I/O: commits are few, each changes `set.toml` and generation, and their order is the point.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        // Nothing is written yet that anybody reads: what fails here fails these backups alone, and their files go.
        let unfinished: Vec<_> = drafts.iter_mut().filter_map(|it| it.draft.unfinished.take()).collect();
        let entry = self.ready(&drafts)?;
        unfinished.into_iter().for_each(Unfinished::keep);
        self.enter(&entry).inspect_err(|error| {
            self.repository.lists.forget();
            if !error.distrusts_index() {
                self.poisoned_by(error);
            }
        })
    }

    /// Makes what backups are of durable, and sure that nothing of it is missing.
    fn ready<'a>(&self, drafts: &'a [FinishedDraft]) -> Result<Entry<'a>, RepositoryError> {
        self.store.flush()?;
        let mut ready: Vec<Ready<'a>> = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let one = self.ready_one(draft, &ready)?;
            ready.push(one);
        }
        let additions = || ready.iter().map(|one| one.addition.clone()).collect();
        let several =
            (ready.len() > 1).then(|| Together::of_additions(additions()).text(&self.repository.layout));
        let together = several.transpose()?;
        Ok(Entry { ready, together })
    }

    /// Has backups come to exist: all of them or none.
    fn enter(&self, Entry { ready, together }: &Entry<'_>) -> Result<Vec<CommittedBackup>, RepositoryError> {
        let (storage, layout) = (self.repository.storage.as_ref(), &self.repository.layout);
        if together.is_some() {
            // The file names backupsets, so they are there before it; nobody sees one without a backup.
            for Ready { draft, .. } in ready.iter().filter(|one| one.draft.newborn) {
                draft.set.unborn().write(storage, layout)?;
            }
        }
        for Ready { draft, .. } in ready {
            storage.rename_new(&draft.temporary, &layout.manifest(draft.set.id, draft.info.incremental))?;
            storage.sync_folder(&layout.set(draft.set.id))?;
        }
        if let Some(text) = together {
            Together::write(storage, layout, text)?;
        }
        for Ready { draft, set, text, .. } in ready {
            replace(storage, &layout.set_settings(set.id), text.as_bytes())?;
            if draft.newborn {
                storage.unlink(&layout.newborn(set.id))?;
            }
        }
        if together.is_some() {
            Together::remove(storage, layout)?;
        }
        self.repository.lists.put(ready.iter().map(|one| one.set.clone()));
        for one in ready {
            self.repository.drop_failure(&one.set.name);
        }
        let counted = ready.iter().try_for_each(|one| self.count_new(one));
        let replace_index = match counted.and_then(|()| self.raise_generation()) {
            Ok(()) => false,
            Err(error) if error.distrusts_index() => true,
            Err(error) => return Err(error),
        };
        let committed = |Ready { draft, set, addition, .. }: &Ready<'_>| CommittedBackup {
            id: BackupId { name: set.name.as_str().to_owned(), number: addition.record.number },
            backupset: set.id,
            incremental: draft.info.incremental,
            timestamp: draft.info.timestamp,
            healed_segments: draft.job().stored().healed_segments,
            replace_index,
        };
        Ok(ready.iter().map(committed).collect())
    }

    /// Makes sure that every segment that a backup gains is stored, and works out what its backupset will say.
    fn ready_one<'a>(
        &self,
        FinishedDraft { draft, finished }: &'a FinishedDraft,
        others: &[Ready<'_>],
    ) -> Result<Ready<'a>, RepositoryError> {
        let repository = &self.repository;
        let mut set = if draft.newborn {
            draft.set.clone()
        } else {
            // Others may have been deleted, protected or renamed since it was begun.
            Backupset::read(repository.storage.as_ref(), &repository.layout, draft.set.id)?
        };
        let counted = |incremental| self.store.counted_of(set.id, incremental);
        let before = counted_side(repository, &set, set.backups.iter().rev(), counted)?;
        let written = ManifestReader::open(repository.storage.as_ref(), &draft.temporary)?;
        let known = before.as_ref().ok().and_then(Option::as_ref);
        let neighbours = Neighbours { before: known, this: &written, after: None };
        for window in neighbours.windows_of(COUNTED_WINDOW) {
            for (key, _) in neighbours.gains(window) {
                self.store.require_stored(key)?;
            }
        }
        let (info, stored) = (&draft.info, draft.job().stored());
        let used_bytes = u64::from(written.present()) * u64::from(info.geometry.segment_size().bytes());
        let record = BackupRecord {
            number: self.next_number(&set, draft, others)?,
            incremental: info.incremental,
            manifest: finished.fingerprint,
            timestamp: info.timestamp,
            size_of_disk: info.geometry.size_of_disk(),
            segments: info.geometry.segments(),
            amounts: BackupAmounts {
                used_bytes: used_bytes.min(info.geometry.size_of_disk()),
                new_bytes: stored.plain_bytes,
                stored_bytes: stored.stored_bytes,
            },
            is_machine: draft.is_machine,
            tags: draft.tags.clone(),
            protection: Protection::None,
            note: None,
            suspect: None,
            flaws: draft.flaws.clone(),
        };
        let (suspects, why) = (draft.suspects.clone(), draft.why.clone());
        let addition = Addition { backupset: set.id, record, suspects, why };
        if !addition.apply(&mut set) {
            return Err(RepositoryError::NoIncremental { backupset: set.id.to_string() });
        }
        let text = set.text(&repository.layout)?;
        Ok(Ready { draft, set, text, before, addition })
    }

    /// Returns the number that a backup gets, if it is committed with others.
    fn next_number(
        &self,
        set: &Backupset,
        draft: &BackupDraft,
        others: &[Ready<'_>],
    ) -> Result<BackupNumber, RepositoryError> {
        // A list that has been damaged since the backup began knew no higher number then.
        let (sets, _) = self.repository.backupsets_named(set.name.as_str())?;
        let others =
            others.iter().filter(|other| other.set.name == set.name).map(|other| other.set.next_number);
        let next = next_number(&sets, &set.name).max(set.next_number).max(draft.least_number);
        match others.fold(next, u32::max) {
            u32::MAX => Err(RepositoryError::NoIncremental { backupset: set.id.to_string() }),
            number => Ok(BackupNumber(number)),
        }
    }

    fn count_new(&self, Ready { draft, set, before, .. }: &Ready<'_>) -> Result<(), RepositoryError> {
        let path = self.repository.layout.manifest(set.id, draft.info.incremental);
        let committed = ManifestReader::open(self.repository.storage.as_ref(), &path)?;
        let before = match before {
            Ok(before) => before.as_ref(),
            Err(other) => {
                let what = format!("it counts {}@{other}, which cannot be read", set.id);
                return Err(self.store.distrust(what).into());
            }
        };
        let neighbours = Neighbours { before, this: &committed, after: None };
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
