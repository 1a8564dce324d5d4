//! `together.toml`: what several backupsets change at one moment: new backups that exist together, backups that are deleted or
//! undeleted together, or their name.
//!
//! A backup exists when its `set.toml` says so, and no two files can be replaced at once. So what several of them are to
//! say is written here first, in one file: **once it is there, all of these backups exist**, and whoever reads the sets
//! takes them as said. Then each `set.toml` is replaced, and the file goes. Whoever opens the repository after a crash
//! finishes that, before anything else is done; each step can be repeated.
//!
//! What a power loss leaves of the marker of a first backup (`newborn.tmp`), of `set.toml` and of this file. Each line is durable
//! before the next one is begun, in a commit and when it is finished after a crash:
//!
//! | step | what lies there after it | what the next opening takes it for |
//! |---|---|---|
//! | folder and marker | the marker, drafts | not born: it goes |
//! | `set.toml` without a backup, manifests | the same, with the marker beside it | not born: it goes, `set.toml` last |
//! | `together.toml` | the same, and the file | its backups exist: each `set.toml` is replaced |
//! | each `set.toml` | some with their backups, the others without | the same: one that has its backup stays as it is |
//! | the file is removed | every `set.toml` has its backup | done |
//!
//! The marker is removed after its `set.toml` has the backup, and nobody waits for that: beside a `set.toml` it says nothing. So
//! neither of the two files can be taken for the other's: without `together.toml`, a `set.toml` without backups is one of a commit
//! that never came so far, as the file goes only after all sets are durable.
//!
//! A backup whose number a set has given already is in it, or was and has been deleted: an old file that comes back in a
//! power loss does nothing. Nor does a renaming whose backupset does not have the old name any longer, a deletion of a backup
//! that is not listed, or an undeletion of a backup that was deleted at another time than the file says.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::error::ErrorKind;
use crate::manifest::{BackupsetId, ImageName, Incremental};
use crate::progress::{Notice, Progress};
use crate::repository::set_file::{FileBackup, read_sealed, seal, time};
use crate::repository::settings::{FORMAT, check_length};
use crate::repository::{BackupRecord, Backupset, DeletedBackup, Layout, Repository, RepositoryError};
use crate::storage::{Storage, replace};

/// What a backupset will say of a new backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Addition {
    pub(super) backupset: BackupsetId,
    pub(super) record: BackupRecord,
    /// Earlier backups that are suspect from now on, and why.
    pub(super) suspects: Vec<Incremental>,
    pub(super) why: String,
}

impl Addition {
    /// Adds the backup to its backupset. Says whether that was still to be done.
    pub(super) fn apply(&self, set: &mut Backupset) -> bool {
        let number = self.record.incremental.0;
        let Some(next) = number.checked_add(1).filter(|_| number >= set.next_incremental) else {
            return false;
        };
        let deleted = set.deleted.iter_mut().map(|deleted| &mut deleted.record);
        for record in set.backups.iter_mut().chain(deleted) {
            if self.suspects.contains(&record.incremental) {
                record.suspect = Some(self.why.clone());
            }
        }
        set.next_number = set.next_number.max(self.record.number.0.saturating_add(1));
        set.backups.push(self.record.clone());
        set.retired = false;
        set.next_incremental = next;
        true
    }
}

/// The name that a backupset gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Renaming {
    pub(super) backupset: BackupsetId,
    pub(super) from: ImageName,
    pub(super) to: ImageName,
    /// The number that the next backup of the new name gets at least.
    pub(super) next_number: u32,
}

impl Renaming {
    /// Renames the backupset. Says whether that was still to be done.
    pub(super) fn apply(&self, set: &mut Backupset) -> bool {
        let is_due = set.name == self.from;
        if is_due {
            set.rename(&self.to, self.next_number);
        }
        is_due
    }
}

/// Backups of a backupset that are deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Removal {
    pub(super) backupset: BackupsetId,
    pub(super) incrementals: Vec<Incremental>,
    /// When, by the date and by the repository's count of seconds.
    pub(super) deleted: jiff::Timestamp,
    pub(super) deleted_clock: u64,
}

impl Removal {
    /// Deletes those of the backups that the backupset lists. Says whether there were any.
    pub(super) fn apply(&self, set: &mut Backupset) -> bool {
        let goes = |record: &BackupRecord| self.incrementals.contains(&record.incremental);
        let (gone, stays): (Vec<_>, Vec<_>) = set.backups.drain(..).partition(goes);
        set.backups = stays;
        let (deleted, deleted_clock) = (self.deleted, self.deleted_clock);
        let is_due = !gone.is_empty();
        set.deleted.extend(gone.into_iter().map(|record| DeletedBackup { record, deleted, deleted_clock }));
        set.deleted.sort_by_key(|deleted| deleted.record.incremental);
        is_due
    }
}

/// A deleted backup that comes back. The deletion is named by its time, so a later deletion of the same backup stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Undeletion {
    pub(super) backupset: BackupsetId,
    pub(super) incremental: Incremental,
    /// When it was deleted, by the date and by the repository's count of seconds.
    pub(super) deleted: jiff::Timestamp,
    pub(super) deleted_clock: u64,
}

impl Undeletion {
    /// Takes back one deletion.
    pub(super) fn of(backupset: BackupsetId, deleted: &DeletedBackup) -> Self {
        let DeletedBackup { record, deleted, deleted_clock } = deleted;
        let (deleted, deleted_clock) = (*deleted, *deleted_clock);
        Self { backupset, incremental: record.incremental, deleted, deleted_clock }
    }

    /// Takes the deletion back if it is this backupset that lists it. Says whether it is.
    pub(super) fn apply(&self, set: &mut Backupset) -> bool {
        let id = set.id;
        let is_it = |it: &DeletedBackup| *self == Self::of(id, it);
        let Some(at) = set.deleted.iter().position(is_it) else { return false };
        let record = set.deleted.remove(at).record;
        let at = set.backups.partition_point(|other| other.incremental < record.incremental);
        set.backups.insert(at, record);
        true
    }
}

/// What several backupsets change together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Together {
    additions: Vec<Addition>,
    renamings: Vec<Renaming>,
    removals: Vec<Removal>,
    undeletions: Vec<Undeletion>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    #[serde(default, rename = "addition", skip_serializing_if = "Vec::is_empty")]
    additions: Vec<FileAddition>,
    #[serde(default, rename = "renaming", skip_serializing_if = "Vec::is_empty")]
    renamings: Vec<FileRenaming>,
    #[serde(default, rename = "removal", skip_serializing_if = "Vec::is_empty")]
    removals: Vec<FileRemoval>,
    #[serde(default, rename = "undeletion", skip_serializing_if = "Vec::is_empty")]
    undeletions: Vec<FileUndeletion>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileUndeletion {
    backupset: String,
    incremental: u32,
    deleted: String,
    deleted_clock: u64,
}

impl FileUndeletion {
    fn of(undeletion: &Undeletion) -> Self {
        Self {
            backupset: undeletion.backupset.to_string(),
            incremental: undeletion.incremental.0,
            deleted: undeletion.deleted.to_string(),
            deleted_clock: undeletion.deleted_clock,
        }
    }

    fn read(self) -> Result<Undeletion, String> {
        Ok(Undeletion {
            backupset: id(&self.backupset)?,
            incremental: Incremental(self.incremental),
            deleted: time(&self.deleted)?,
            deleted_clock: self.deleted_clock,
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRemoval {
    backupset: String,
    incrementals: Vec<u32>,
    deleted: String,
    deleted_clock: u64,
}

impl FileRemoval {
    fn of(removal: &Removal) -> Self {
        Self {
            backupset: removal.backupset.to_string(),
            incrementals: removal.incrementals.iter().map(|number| number.0).collect(),
            deleted: removal.deleted.to_string(),
            deleted_clock: removal.deleted_clock,
        }
    }

    fn read(self) -> Result<Removal, String> {
        Ok(Removal {
            backupset: id(&self.backupset)?,
            incrementals: self.incrementals.into_iter().map(Incremental).collect(),
            deleted: time(&self.deleted)?,
            deleted_clock: self.deleted_clock,
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRenaming {
    backupset: String,
    from: String,
    to: String,
    next_number: u32,
}

impl FileRenaming {
    fn of(renaming: &Renaming) -> Self {
        Self {
            backupset: renaming.backupset.to_string(),
            from: renaming.from.as_str().to_owned(),
            to: renaming.to.as_str().to_owned(),
            next_number: renaming.next_number,
        }
    }

    fn read(self) -> Result<Renaming, String> {
        let name = |text: String| ImageName::new(text).map_err(|error| error.to_string());
        Ok(Renaming {
            backupset: id(&self.backupset)?,
            from: name(self.from)?,
            to: name(self.to)?,
            next_number: self.next_number,
        })
    }
}

fn id(text: &str) -> Result<BackupsetId, String> {
    text.parse().map_err(|_| format!("{text:?} is no UUID"))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileAddition {
    backupset: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    suspects: Vec<u32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    why: String,
    backup: FileBackup,
}

impl FileAddition {
    fn read(self) -> Result<Addition, String> {
        Ok(Addition {
            backupset: id(&self.backupset)?,
            record: self.backup.read()?,
            suspects: self.suspects.into_iter().map(Incremental).collect(),
            why: self.why,
        })
    }
}

impl Together {
    /// New backups that exist together.
    pub(super) fn of_additions(additions: Vec<Addition>) -> Self {
        Self { additions, ..Self::default() }
    }

    /// Backupsets that get another name together.
    pub(super) fn of_renamings(renamings: Vec<Renaming>) -> Self {
        Self { renamings, ..Self::default() }
    }

    /// Backups of several backupsets that are deleted together.
    pub(super) fn of_removals(removals: Vec<Removal>) -> Self {
        Self { removals, ..Self::default() }
    }

    /// Backups of several backupsets that are undeleted together.
    pub(super) fn of_undeletions(undeletions: Vec<Undeletion>) -> Self {
        Self { undeletions, ..Self::default() }
    }

    /// Reads the file; nothing if there is none.
    pub(super) fn read(storage: &dyn Storage, layout: &Layout) -> Result<Option<Self>, RepositoryError> {
        let path = layout.together();
        let text = match read_sealed(storage, &path) {
            Ok(text) => text,
            Err(RepositoryError::Storage(error)) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let settings = |what: String| RepositoryError::Settings { path: path.clone(), what };
        let file: File = toml::from_str(&text).map_err(|error| settings(error.message().to_owned()))?;
        let additions = file.additions.into_iter().map(FileAddition::read).collect::<Result<Vec<_>, _>>();
        let renamings = file.renamings.into_iter().map(FileRenaming::read).collect::<Result<Vec<_>, _>>();
        let removals = file.removals.into_iter().map(FileRemoval::read).collect::<Result<Vec<_>, _>>();
        let undeletions =
            file.undeletions.into_iter().map(FileUndeletion::read).collect::<Result<Vec<_>, _>>();
        Ok(Some(Self {
            additions: additions.map_err(settings)?,
            renamings: renamings.map_err(settings)?,
            removals: removals.map_err(settings)?,
            undeletions: undeletions.map_err(settings)?,
        }))
    }

    /// Returns what the file will say.
    ///
    /// # Errors
    /// It would be longer than Ekko reads. Nothing is written then.
    pub(super) fn text(&self, layout: &Layout) -> Result<String, RepositoryError> {
        let path = layout.together();
        let addition = |addition: &Addition| FileAddition {
            backupset: addition.backupset.to_string(),
            suspects: addition.suspects.iter().map(|number| number.0).collect(),
            why: addition.why.clone(),
            backup: FileBackup::of(&addition.record),
        };
        let file = File {
            format: FORMAT,
            additions: self.additions.iter().map(addition).collect(),
            renamings: self.renamings.iter().map(FileRenaming::of).collect(),
            removals: self.removals.iter().map(FileRemoval::of).collect(),
            undeletions: self.undeletions.iter().map(FileUndeletion::of).collect(),
        };
        let text = toml::to_string(&file)
            .map_err(|error| RepositoryError::Settings { path: path.clone(), what: error.to_string() })?;
        let text = seal(&text);
        check_length(&path, &text)?;
        Ok(text)
    }

    /// Writes the file, which will say `text`. When this returns, the backups exist.
    ///
    /// # Errors
    /// An earlier one is there still: what it says could not be finished, and must not be forgotten.
    pub(super) fn write(storage: &dyn Storage, layout: &Layout, text: &str) -> Result<(), RepositoryError> {
        Self::require_none(storage, layout)?;
        Ok(replace(storage, &layout.together(), text.as_bytes())?)
    }

    /// Makes sure that no earlier change is unfinished.
    ///
    /// # Errors
    /// One is.
    pub(super) fn require_none(storage: &dyn Storage, layout: &Layout) -> Result<(), RepositoryError> {
        if Self::read(storage, layout)?.is_none() {
            return Ok(());
        }
        let what = "an earlier change that it describes could not be finished".to_owned();
        Err(RepositoryError::SettingsDamaged { path: layout.together(), what })
    }

    /// Removes the file, durably: every set says what it said.
    pub(super) fn remove(storage: &dyn Storage, layout: &Layout) -> Result<(), RepositoryError> {
        storage.unlink(&layout.together())?;
        Ok(storage.sync_folder(&layout.sets())?)
    }

    /// Returns the backupsets that it names and that are not among `sets`.
    pub(super) fn missing(&self, sets: &[Backupset]) -> Vec<BackupsetId> {
        self.backupsets().into_iter().filter(|id| sets.iter().all(|set| set.id != *id)).collect()
    }

    /// Returns the backupsets that it names.
    fn backupsets(&self) -> BTreeSet<BackupsetId> {
        let added = self.additions.iter().map(|addition| addition.backupset);
        let renamed = self.renamings.iter().map(|renaming| renaming.backupset);
        let removed = self.removals.iter().map(|removal| removal.backupset);
        let undeleted = self.undeletions.iter().map(|undeletion| undeletion.backupset);
        added.chain(renamed).chain(removed).chain(undeleted).collect()
    }

    /// Has a set say what it will say. Says whether it did not say so before.
    pub(super) fn apply_to(&self, set: &mut Backupset) -> bool {
        let (id, mut changed) = (set.id, false);
        for addition in self.additions.iter().filter(|addition| addition.backupset == id) {
            changed |= addition.apply(set);
        }
        for renaming in self.renamings.iter().filter(|renaming| renaming.backupset == id) {
            changed |= renaming.apply(set);
        }
        for removal in self.removals.iter().filter(|removal| removal.backupset == id) {
            changed |= removal.apply(set);
        }
        for undeletion in &self.undeletions {
            changed |= undeletion.apply(set);
        }
        changed
    }

    /// Has all sets say what they will say. One that is not there is a problem, unless others tell of it.
    pub(super) fn apply(&self, sets: &mut [Backupset], layout: &Layout, problems: &mut Vec<RepositoryError>) {
        for set in sets.iter_mut() {
            self.apply_to(set);
        }
        if let Some(gone) = self.missing(sets).first().filter(|_| problems.is_empty()) {
            let what = format!("the backupset {gone} that it names is not there");
            problems.push(RepositoryError::SettingsDamaged { path: layout.together(), what });
        }
    }
}

/// Finishes what a crash cut short. Says whether it is known which backups exist: if the file is damaged, it is not, and a
/// manifest that no set knows may be that of one.
pub(super) fn finish(repository: &Repository, progress: &dyn Progress) -> Result<bool, RepositoryError> {
    let (storage, layout) = (repository.storage.as_ref(), &repository.layout);
    let together = match Together::read(storage, layout) {
        Ok(None) => {
            // A process that was killed may have removed it without a sync: it must not come back after what is done next.
            storage.sync_folder(&layout.sets())?;
            return Ok(true);
        }
        Ok(Some(together)) => together,
        Err(error) if error.kind() == ErrorKind::Io => return Err(error),
        // It is told with the sets that cannot be read.
        Err(_) => return Ok(false),
    };
    // A process that was killed may have given the file its name without a sync. Without this one, a power loss after the first
    // of the sets was replaced could take the file, and with it the rest of what it says.
    storage.sync_folder(&layout.sets())?;
    let (mut all, mut finished) = (true, 0);
    for id in together.backupsets() {
        match Backupset::read(storage, layout, id) {
            Ok(mut set) => {
                if together.apply_to(&mut set) {
                    set.write(storage, layout)?;
                    finished += 1;
                } else {
                    // Its list may have its name without a sync, too.
                    storage.sync_folder(&layout.set(id))?;
                }
            }
            Err(error) if error.kind() == ErrorKind::Io => return Err(error),
            // Its manifest stays, as does the file that says of it.
            Err(_) => all = false,
        }
    }
    if finished > 0 {
        let what = format!("an interrupted change of several backup lists was finished ({finished} lists)");
        progress.notice(Notice::Recovered { what });
    }
    if all {
        Together::remove(storage, layout)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
