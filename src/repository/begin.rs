//! How a backup begins: in which backupset, compared with which backup, and whether there is room for it.

use std::sync::PoisonError;

use crate::manifest::{
    BackupsetId, BaseIndex, ImageName, Incremental, MOST_BASES, ManifestError, ManifestInfo,
};
use crate::repository::counting::counted_side;
use crate::repository::draft::{Parent, Running, Unfinished};
use crate::repository::number::{check_new_name, next_number};
use crate::repository::{BackupDraft, Backupset, Origin, Repository, RepositoryError, RepositoryWriter};
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
        if let Some(problem) = problems.into_iter().find(|problem| problem.hinders(name)) {
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
        if let Some(problem) = problems.into_iter().find(|problem| problem.hinders(name)) {
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
        self.distrust_findings();
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
}
