//! The roster: every backupset that has had a backup, and its name.
//!
//! A folder of `manifests` that somebody moved away leaves no trace in the other folders. Without a trace, nobody would miss its
//! backups, and a collection would free their data. The file `backupsets` is that trace. A backupset that is in it and has no
//! `set.toml` is lost: every reader of the lists says so, no collection frees anything, and nobody backs up under its name, until
//! the folder is back or a person gives it up.
//!
//! An opening and the first commit of a backupset add to the file. A backupset never leaves it by itself, because Ekko never
//! removes a backupset that has had a backup. The file is derived: without it, the next opening creates it from the lists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::ErrorKind;
use crate::manifest::{BackupsetId, ImageName};
use crate::repository::set_file::{read_sealed, seal};
use crate::repository::settings::{FORMAT, check_format, check_length};
use crate::repository::{Backupset, Repository, RepositoryError};
use crate::storage::replace;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    #[serde(default)]
    backupsets: BTreeMap<String, String>,
}

/// The backupsets that have had a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Roster {
    names: BTreeMap<BackupsetId, ImageName>,
}

impl Roster {
    /// Reads the file. A missing or damaged file is an empty roster.
    ///
    /// # Errors
    /// The file cannot be read now, or a newer release wrote it.
    pub(super) fn load(repository: &Repository) -> Result<Self, RepositoryError> {
        let path = repository.layout.roster();
        let text = match read_sealed(repository.storage.as_ref(), &path) {
            Ok(text) => text,
            Err(RepositoryError::Storage(error)) if error.is_not_found() => return Ok(Self::default()),
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        check_format(&path, &text)?;
        let file: File = toml::from_str(&text)
            .map_err(|error| RepositoryError::Settings { path, what: error.message().to_owned() })?;
        let entry = |(id, name): (String, String)| Some((id.parse().ok()?, ImageName::new(name).ok()?));
        Ok(Self { names: file.backupsets.into_iter().filter_map(entry).collect() })
    }

    fn save(&self, repository: &Repository) -> Result<(), RepositoryError> {
        let path = repository.layout.roster();
        let entry = |(id, name): (&BackupsetId, &ImageName)| (id.to_string(), name.to_string());
        let file = File { format: FORMAT, backupsets: self.names.iter().map(entry).collect() };
        let text = toml::to_string(&file)
            .map_err(|error| RepositoryError::Settings { path: path.clone(), what: error.to_string() })?;
        let text = seal(&text);
        check_length(&path, &text)?;
        Ok(replace(repository.storage.as_ref(), &path, text.as_bytes())?)
    }

    /// Says whether it has a backupset.
    pub(super) fn has(&self, id: BackupsetId) -> bool {
        self.names.contains_key(&id)
    }

    /// Returns an error for each backupset that is not among `found`.
    pub(super) fn lost<'a>(
        &'a self,
        repository: &'a Repository,
        found: &'a BTreeSet<BackupsetId>,
    ) -> impl Iterator<Item = RepositoryError> + 'a {
        let lost = self.names.iter().filter(|(id, _)| !found.contains(id));
        lost.map(|(id, name)| RepositoryError::ListLost {
            name: name.clone(),
            path: repository.layout.set(*id),
        })
    }
}

impl Repository {
    /// Adds backupsets to the roster. The next opening adds what this cannot add now.
    pub(super) fn enroll<'a>(&self, sets: impl IntoIterator<Item = &'a Backupset>) {
        let enrolled = Roster::load(self).and_then(|before| {
            let mut roster = before.clone();
            roster.names.extend(sets.into_iter().map(|set| (set.id, set.name.clone())));
            if roster == before { Ok(()) } else { roster.save(self) }
        });
        if let Err(error) = enrolled {
            tracing::warn!(%error, "the list of backupsets was not updated");
        }
    }

    /// Takes the lost backupsets out of the roster: somebody gave them up. Returns their names and folders. To be called under the
    /// lock of commits.
    pub(super) fn give_up_lost(&self) -> Result<Vec<(ImageName, PathBuf)>, RepositoryError> {
        let mut roster = Roster::load(self)?;
        let (_, problems) = self.all_backupsets()?;
        let lost = |problem| match problem {
            RepositoryError::ListLost { name, path } => Some((name, path)),
            _ => None,
        };
        let lost: Vec<_> = problems.into_iter().filter_map(lost).collect();
        if !lost.is_empty() {
            roster.names.retain(|id, _| !lost.iter().any(|(_, path)| *path == self.layout.set(*id)));
            roster.save(self)?;
        }
        Ok(lost)
    }
}
