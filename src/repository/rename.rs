//! How a disk gets another name, and how it is retired.

use std::sync::PoisonError;

use crate::manifest::ImageName;
use crate::repository::number::{MOST_FORMER_NAMES, check_new_name, next_number};
use crate::repository::select::Addressee;
use crate::repository::together::{Renaming, Together};
use crate::repository::{Backupset, Hint, Repository, RepositoryError, RepositoryWriter};
use crate::storage::replace;

impl RepositoryWriter {
    /// Gives all backups of a name another one, at one moment. They keep their numbers, and the manifests keep the name that their
    /// disk had. Returns how many backupsets they are in. When this returns, that is durable.
    ///
    /// # Errors
    /// There is none of the old name. The new name belongs to other backups, or did once: their numbers would mean two backups. A
    /// name that only these backups had before may be given back. They have had as many names as they may have.
    pub fn rename(&self, from: &ImageName, to: &ImageName) -> Result<u64, RepositoryError> {
        // Held over I/O, as by everybody who changes the lists.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        self.repository.keep_lists()?;
        let (sets, problems) = self.repository.backupsets_named("")?;
        if let Some(problem) = problems.into_iter().next() {
            return Err(problem);
        }
        let renamed: Vec<&Backupset> =
            sets.iter().map(AsRef::as_ref).filter(|set| set.name == *from).collect();
        if renamed.is_empty() {
            let full = |_: &str| Some(from.clone());
            Addressee::find(&sets, from.as_str(), full, |name| Some(name.as_str()))?;
            // It is the UUID of a backupset, which has no name of its own to change.
            return Err(RepositoryError::NoSuchBackup {
                path: self.repository.layout.root().to_owned(),
                what: from.to_string(),
            });
        }
        if from == to {
            return Err(RepositoryError::SameName { name: from.clone() });
        }
        // A first backup of one of the names would make a second image of it.
        let growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = [from, to].into_iter().find(|name| growing.is_first(name)) {
            return Err(RepositoryError::BackupRunning { name: name.clone() });
        }
        drop(growing);
        if sets.iter().any(|set| set.name != *from && set.ever_had(to)) {
            return Err(RepositoryError::NameTaken { from: from.clone(), to: to.clone() });
        }
        check_new_name(&sets, to)?;
        let next_number = next_number(&sets, to);
        let renaming = |set: &&Backupset| Renaming {
            backupset: set.id,
            from: from.clone(),
            to: to.clone(),
            next_number,
        };
        let renamings: Vec<_> = renamed.iter().map(renaming).collect();
        let mut changed: Vec<Backupset> = renamed.into_iter().cloned().collect();
        for (set, renaming) in changed.iter_mut().zip(&renamings) {
            renaming.apply(set);
        }
        if changed.iter().any(|set| set.former_names.len() > MOST_FORMER_NAMES) {
            return Err(RepositoryError::TooManyFormerNames { from: from.clone(), to: to.clone() });
        }
        let enrolled = changed.clone();
        let renamed = self.write_together(&Together::of_renamings(renamings), changed)?;
        self.repository.enroll(&enrolled);
        // An attempt of a name that nobody backs up under any longer.
        self.repository.drop_failure(from);
        Ok(renamed)
    }

    /// Retires a disk: no further backups of it are expected, until there is one. A disk that was never backed up is forgotten, with
    /// the attempt that failed. When this returns, that is durable.
    ///
    /// # Errors
    /// There is no disk of this name, and no attempt to back one up.
    pub fn retire(&self, name: &ImageName) -> Result<(), RepositoryError> {
        // Held over I/O, as by everybody who changes the lists.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        self.repository.keep_lists()?;
        let (sets, _) = self.repository.backupsets_named("")?;
        let attempted = self.repository.forget_failure(name)?;
        let Some(current) = Repository::current_set(&sets, name) else {
            if attempted {
                return Ok(());
            }
            Addressee::find(&sets, name.as_str(), |_| Some(name.clone()), |name| Some(name.as_str()))?;
            return Err(RepositoryError::UnknownName { name: name.to_string(), hint: Hint::None });
        };
        let mut set = Backupset::read(self.repository.storage.as_ref(), &self.repository.layout, current.id)?;
        set.retired = true;
        self.repository.write_set(&set).inspect_err(|error| self.poisoned_by(error))
    }

    /// Replaces several lists at one moment: `together` says the same of them as `sets`. Returns how many.
    pub(super) fn write_together(
        &self,
        together: &Together,
        sets: Vec<Backupset>,
    ) -> Result<u64, RepositoryError> {
        let (storage, layout) = (self.repository.storage.as_ref(), &self.repository.layout);
        let text = (sets.len() > 1).then(|| together.text(layout)).transpose()?;
        // Before anything is written: a list that is too long must not be found halfway.
        let texts = sets.iter().map(|set| set.text(layout)).collect::<Result<Vec<_>, _>>()?;
        if text.is_some() {
            Together::require_none(storage, layout)?;
        }
        let number = sets.len() as u64;
        let write = || {
            if let Some(text) = &text {
                Together::write(storage, layout, text)?;
            }
            for (set, text) in sets.iter().zip(&texts) {
                replace(storage, &layout.set_settings(set.id), text.as_bytes())?;
            }
            if text.is_some() {
                Together::remove(storage, layout)?;
            }
            Ok(())
        };
        write().inspect_err(|error| {
            self.repository.lists.forget();
            self.poisoned_by(error);
        })?;
        self.repository.lists.put(sets);
        Ok(number)
    }
}
