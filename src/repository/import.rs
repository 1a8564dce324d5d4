//! How a backup that was made elsewhere comes in: with the backupset, number and time that it has.

use std::sync::PoisonError;

use crate::manifest::{ImageName, ManifestInfo};
use crate::repository::number::next_number;
use crate::repository::{BackupDraft, Backupset, Repository, RepositoryError, RepositoryWriter};

impl RepositoryWriter {
    /// Begins to import a backup as one of `name`: into its backupset, which is made if there is none. Until it
    /// is committed, nobody sees of a new backupset.
    ///
    /// # Errors
    /// It is there already, or has no place: its number lies before others of its backupset, the name has backups
    /// of a backupset that is neither its own nor related, or its segments have another size.
    pub fn begin_import(
        &self,
        name: &ImageName,
        info: &ManifestInfo,
    ) -> Result<BackupDraft, RepositoryError> {
        self.check()?;
        let repository = &self.repository;
        let cannot = |what: String| RepositoryError::CannotImport {
            backupset: info.backupset,
            incremental: info.incremental,
            name: name.clone(),
            what,
        };
        if info.incremental.0 == u32::MAX {
            return Err(cannot("no number would be left for the next backup".to_owned()));
        }
        let mut ids: Vec<_> = info.bases.iter().chain([&info.backupset]).collect();
        ids.sort_unstable();
        if ids.windows(2).any(|pair| matches!(pair, [one, other] if one == other)) {
            return Err(cannot("it names a backupset twice".to_owned()));
        }
        let (has, needs) = (repository.settings.segment_size, info.geometry.segment_size());
        if has != needs {
            let (has, needs) = (has.bytes(), needs.bytes());
            return Err(cannot(format!(
                "its segments have {needs} bytes, and the repository's have {has}: import it into a new repository"
            )));
        }
        let mut running = self.begin_running();
        // Held over I/O, as by everybody who changes the lists.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        repository.keep_lists()?;
        let (sets, problems) = repository.backupsets_named("")?;
        if let Some(problem) = problems.into_iter().find(|problem| problem.hinders(name)) {
            return Err(problem);
        }
        let info = ManifestInfo { name: name.clone(), ..info.clone() };
        if let Some(set) = sets.iter().find(|set| set.id == info.backupset) {
            fits_set(set, &info).map_err(cannot)?;
            running.grow(set, false)?;
            set.has_room(repository.storage.as_ref(), &repository.layout)?;
            let least_number = next_number(&sets, name);
            let set = Backupset::clone(set);
            return Ok(BackupDraft::new(repository, set, info, None, None, running, least_number));
        }
        if let Some(current) = Repository::current_set(&sets, name)
            && info.bases.contains(&current.id) == current.bases.contains(&info.backupset)
        {
            return Err(cannot(format!("{name} has backups of another disk already: choose another name")));
        }
        let mut set = self.new_set(name, info.timestamp, Some(info.backupset))?;
        set.bases.clone_from(&info.bases);
        running.grow(&set, true)?;
        let folder = self.begin_folder(set.id)?;
        let least_number = set.next_number;
        Ok(BackupDraft::new(repository, set, info, None, Some(folder), running, least_number))
    }
}

/// Says why a backup does not fit into its backupset.
fn fits_set(set: &Backupset, info: &ManifestInfo) -> Result<(), String> {
    let incremental = info.incremental;
    if set.name != info.name {
        return Err(format!("its backupset is there under the name {}", set.name));
    }
    if set.backups.iter().any(|backup| backup.incremental == incremental) {
        return Err("it is there already".to_owned());
    }
    if set.bases != info.bases {
        return Err("it names other earlier backupsets than its own backupset does".to_owned());
    }
    if incremental.0 < set.next_incremental {
        let next = set.next_incremental;
        return Err(format!("the next number of its backupset is {next}: import backups in their order"));
    }
    Ok(())
}
