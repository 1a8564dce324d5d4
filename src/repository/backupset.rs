//! A backupset and its backups, which `set.toml` lists.
//!
//! The file is replaced atomically; a backup exists from the moment that it stands in there. A backupset exists from its
//! first backup on, or from the restore that it begins with: one without either is what a crash left of a commit, and
//! nobody sees it.

use std::collections::BTreeSet;
use std::path::Path;

use crate::manifest::{BackupsetId, FlawMarks, ImageName, Incremental};
use crate::repository::layout::{canonical, is_temporary_of_set};
use crate::repository::roster::Roster;
use crate::repository::set_file::read_sealed;
use crate::repository::settings::{NEW_BACKUPS_LIMIT, check_length};
use crate::repository::together::Together;
use crate::repository::{BackupNumber, FormerName, Layout, Repository, RepositoryError};
use crate::segment::Fingerprint;
use crate::storage::{Storage, StorageError, replace};

/// The backup that a disk was restored from when a backupset began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its backupset.
    pub backupset: BackupsetId,
    /// Its number.
    pub incremental: Incremental,
}

/// Whether a backup may be deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protection {
    /// It may.
    #[default]
    None,
    /// It may not before this time.
    Until(jiff::Timestamp),
    /// It may not, until somebody says otherwise.
    Always,
}

impl Protection {
    /// Says whether it holds at `now`.
    pub fn holds(self, now: jiff::Timestamp) -> bool {
        match self {
            Self::None => false,
            Self::Until(end) => now < end,
            Self::Always => true,
        }
    }

    /// Says whether this protection ends later than another one.
    pub fn outlasts(self, other: Self) -> bool {
        match (self, other) {
            (Self::None, _) | (_, Self::Always) => false,
            (Self::Always | Self::Until(_), Self::None) | (Self::Always, Self::Until(_)) => true,
            (Self::Until(this), Self::Until(other)) => this > other,
        }
    }
}

/// How much of a disk is in use, and how much a backup of it added to the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupAmounts {
    /// Bytes of the disk's segments that are not zero.
    pub used_bytes: u64,
    /// Plain bytes of the segments that the backup was the first to store.
    pub new_bytes: u64,
    /// Their encoded bytes.
    pub stored_bytes: u64,
}

/// What a backupset says about one of its backups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupRecord {
    /// Its number among the backups of its name: the 7 of `web@7`.
    pub number: BackupNumber,
    /// Its number in its backupset.
    pub incremental: Incremental,
    /// The BLAKE3 of the body of its manifest.
    pub manifest: Fingerprint,
    /// When it was begun.
    pub timestamp: jiff::Timestamp,
    /// The disk's size in bytes.
    pub size_of_disk: u64,
    /// How many segments the disk divides into.
    pub segments: u32,
    /// How much of the disk is in use, and how much of that is new.
    pub amounts: BackupAmounts,
    /// Whether it is a machine's moment, and not a disk.
    pub is_machine: bool,
    /// The backups of disks that a machine's moment consists of.
    pub disks: Vec<(BackupsetId, Incremental)>,
    /// Words a person gave it.
    pub tags: Vec<String>,
    /// Whether it may not be deleted, ever or for some time.
    pub protection: Protection,
    /// A person's note.
    pub note: Option<String>,
    /// Why it may not be what the disk was, if that has been found out since.
    pub suspect: Option<String>,
    /// Flaws of the source that were found while it was read.
    pub flaws: FlawMarks,
}

impl BackupRecord {
    /// Returns the newest of the earlier backups of its name of which the disk was larger. A machine's moment has none.
    pub fn larger_before<'a>(
        &self,
        others: impl Iterator<Item = (&'a Backupset, &'a BackupRecord)>,
    ) -> Option<(&'a Backupset, &'a BackupRecord)> {
        let is_larger = |(_, other): &(&Backupset, &BackupRecord)| {
            other.number < self.number && other.size_of_disk > self.size_of_disk
        };
        if self.is_machine { None } else { others.filter(is_larger).max_by_key(|(_, other)| other.number) }
    }
}

/// A backup that was deleted and can be undeleted: its manifest is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedBackup {
    /// What its backupset said of it.
    pub record: BackupRecord,
    /// When it was deleted, by the date of that moment.
    pub deleted: jiff::Timestamp,
    /// The same by the repository's count of seconds, which no date changes (see `clock`).
    pub deleted_clock: u64,
}

/// One disk's chain of backups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backupset {
    /// Its id.
    pub id: BackupsetId,
    /// The name of the image.
    pub name: ImageName,
    /// The number that the next backup of the name gets, as far as this backupset knows.
    pub next_number: u32,
    /// Whether no further backups of its disk are expected.
    pub retired: bool,
    /// The names that it had before.
    pub former_names: Vec<FormerName>,
    /// When it began.
    pub created: jiff::Timestamp,
    /// Earlier backupsets of the disk; the order is that of the manifests' bases.
    pub bases: Vec<BackupsetId>,
    /// What the disk was restored from when the set began, if it was.
    pub origin: Option<Origin>,
    /// The number that the next backup gets in this backupset: never given twice.
    pub next_incremental: u32,
    /// The backups, by number.
    pub backups: Vec<BackupRecord>,
    /// Backups that were deleted and can still be undeleted, by number.
    pub deleted: Vec<DeletedBackup>,
}

impl Backupset {
    /// Makes a backupset that has no backup yet.
    pub(crate) fn new(id: BackupsetId, name: ImageName, created: jiff::Timestamp) -> Self {
        Self {
            id,
            name,
            next_number: 0,
            retired: false,
            former_names: Vec::new(),
            created,
            bases: Vec::new(),
            origin: None,
            next_incremental: 0,
            backups: Vec::new(),
            deleted: Vec::new(),
        }
    }

    /// Says whether no backup was ever committed into it, and no restore began it.
    pub(super) fn is_unborn(&self) -> bool {
        let Self { origin, next_incremental, backups, deleted, .. } = self;
        origin.is_none() && *next_incremental == 0 && backups.is_empty() && deleted.is_empty()
    }

    /// Returns what it is before its first backup is committed.
    pub(super) fn unborn(&self) -> Self {
        let Self { next_number, bases, .. } = self.clone();
        Self { next_number, bases, ..Self::new(self.id, self.name.clone(), self.created) }
    }

    /// Returns how many backups it lists, with those that are deleted.
    pub(super) fn records(&self) -> usize {
        self.backups.len() + self.deleted.len()
    }

    /// Says whether a backup with this number is listed, be it as deleted.
    pub(super) fn knows(&self, number: u32) -> bool {
        self.all_records().any(|record| record.incremental.0 == number)
    }

    /// Returns its backups, then those that are deleted.
    pub(super) fn all_records(&self) -> impl Iterator<Item = &BackupRecord> {
        self.backups.iter().chain(self.deleted.iter().map(|deleted| &deleted.record))
    }

    /// Reads the settings of the backupset `id`.
    pub(super) fn read(
        storage: &dyn Storage,
        layout: &Layout,
        id: BackupsetId,
    ) -> Result<Self, RepositoryError> {
        let path = layout.set_settings(id);
        let text = read_sealed(storage, &path)?;
        let set =
            Self::decode(&text).map_err(|what| RepositoryError::Settings { path: path.clone(), what })?;
        if set.id == id {
            return Ok(set);
        }
        Err(RepositoryError::SettingsDamaged { path, what: "it belongs to another backupset".to_owned() })
    }

    /// Returns what `set.toml` will say of it.
    ///
    /// # Errors
    /// The file would be longer than Ekko reads. Nothing is written then.
    pub(super) fn text(&self, layout: &Layout) -> Result<String, RepositoryError> {
        let path = layout.set_settings(self.id);
        let text = self
            .encode()
            .map_err(|error| RepositoryError::Settings { path: path.clone(), what: error.to_string() })?;
        check_length(&path, &text)?;
        Ok(text)
    }

    /// Replaces the settings of the backupset; durable when this returns.
    pub(super) fn write(&self, storage: &dyn Storage, layout: &Layout) -> Result<(), RepositoryError> {
        let text = self.text(layout)?;
        Ok(replace(storage, &layout.set_settings(self.id), text.as_bytes())?)
    }

    /// Makes the folder of a new backupset and its settings; durable when this returns.
    pub(super) fn create(&self, storage: &dyn Storage, layout: &Layout) -> Result<(), RepositoryError> {
        storage.create_folder(&layout.set(self.id))?;
        storage.sync_folder(&layout.sets())?;
        self.write(storage, layout)
    }

    /// Makes sure that another backup may be added: a long list makes every commit slow, and what Ekko reads beyond this stays
    /// free for deletions and protections, which must always be possible.
    ///
    /// # Errors
    /// The list is too long.
    pub(super) fn has_room(&self, storage: &dyn Storage, layout: &Layout) -> Result<(), RepositoryError> {
        let path = layout.set_settings(self.id);
        let bytes = storage.open_read(&path)?.size()?;
        if bytes <= NEW_BACKUPS_LIMIT {
            return Ok(());
        }
        Err(RepositoryError::ListFull { path, name: self.name.clone(), bytes })
    }
}

impl Repository {
    /// Reads all backupsets, in the order of name and beginning. Those that cannot be read are left out
    /// and returned beside.
    pub fn backupsets(&self) -> Result<(Vec<Backupset>, Vec<RepositoryError>), RepositoryError> {
        let (mut sets, problems) = self.all_backupsets()?;
        sets.retain(|set| !set.is_unborn());
        Ok((sets, problems))
    }

    /// Reads all backupsets, with those that a commit has begun and that have no backup yet.
    pub(super) fn all_backupsets(&self) -> Result<(Vec<Backupset>, Vec<RepositoryError>), RepositoryError> {
        self.read_sets(&mut |_| true)
    }

    /// Reads all backupsets, with those that have no backup yet, and returns those that are to be kept. No others stay in
    /// memory while the rest is read.
    pub(super) fn read_sets(
        &self,
        keep: &mut dyn FnMut(&Backupset) -> bool,
    ) -> Result<(Vec<Backupset>, Vec<RepositoryError>), RepositoryError> {
        self.count_read();
        let (mut sets, mut problems) = (Vec::new(), Vec::new());
        // Before the folders: what comes to exist meanwhile is in none of them, and not in the roster.
        let roster = Roster::load(self).unwrap_or_else(|error| {
            problems.push(error);
            Roster::default()
        });
        let mut found = BTreeSet::new();
        for name in self.storage.list(&self.layout.sets())? {
            let Some(id) = canonical::<BackupsetId>(&name) else { continue };
            match Backupset::read(self.storage.as_ref(), &self.layout, id) {
                Ok(set) => {
                    found.insert(id);
                    sets.extend(Some(set).filter(|set| keep(set)));
                }
                // Its folder is made before its settings, and a crash may come between.
                Err(RepositoryError::Storage(error)) if error.is_not_found() && self.is_unborn(id) => {}
                Err(error) => {
                    found.insert(id);
                    problems.push(error);
                }
            }
        }
        problems.extend(roster.lost(self, &found));
        // After the sets: what comes to exist meanwhile stands here or there.
        match Together::read(self.storage.as_ref(), &self.layout) {
            Ok(None) => {}
            Ok(Some(together)) => {
                let kept = sets.len();
                // A set of a first backup may have got its settings since.
                for id in together.missing(&sets) {
                    sets.extend(Backupset::read(self.storage.as_ref(), &self.layout, id).ok());
                }
                let before: Vec<_> = sets.iter().map(|set| set.name.clone()).collect();
                together.apply(&mut sets, &self.layout, &mut problems);
                let mut at = 0;
                sets.retain(|set| {
                    at += 1;
                    // What was kept by the name that it had is looked at by the one that it has.
                    let was_kept = before.get(at - 1).is_some_and(|name| at <= kept && *name == set.name);
                    was_kept || keep(set)
                });
            }
            Err(error) => problems.push(error),
        }
        sets.sort_by(|a, b| (&a.name, a.created, a.id).cmp(&(&b.name, b.created, b.id)));
        Ok((sets, problems))
    }

    /// Reads one backupset.
    pub(super) fn backupset(&self, id: BackupsetId) -> Result<Backupset, RepositoryError> {
        let mut set = Backupset::read(self.storage.as_ref(), &self.layout, id)?;
        if let Some(together) = Together::read(self.storage.as_ref(), &self.layout)? {
            together.apply_to(&mut set);
        }
        Ok(set)
    }

    fn is_unborn(&self, id: BackupsetId) -> bool {
        let is_temporary =
            |name: &String| Path::new(name).extension().is_some_and(|it| it == crate::storage::TEMPORARY);
        match self.storage.list(&self.layout.set(id)) {
            Ok(names) => names.iter().all(is_temporary) || is_newborn(&names),
            // It was given up meanwhile.
            Err(error) => error.is_not_found(),
        }
    }
}

/// Says whether a folder with these names in it is that of a backupset whose first backup, or import, is not committed.
pub(super) fn is_newborn(names: &[String]) -> bool {
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    has(Layout::NEWBORN) && !has(Layout::SET_SETTINGS)
}

/// Says whether nothing but temporary files that Ekko makes has these names.
pub(super) fn is_leftover(names: &[String]) -> bool {
    names.iter().all(|name| is_temporary_of_set(name))
}

/// Removes the folder of a backupset that was not born. What says so goes last: what a crash leaves of it is still not born.
///
/// Returns a name in it that Ekko did not give; then the folder stays.
pub(super) fn remove_newborn(
    storage: &dyn Storage,
    layout: &Layout,
    id: BackupsetId,
    says_so: &str,
) -> Result<Option<String>, StorageError> {
    let folder = layout.set(id);
    let names = storage.list(&folder)?;
    let is_ours =
        |name: &String| name == says_so || is_temporary_of_set(name) || canonical::<u32>(name).is_some();
    if let Some(other) = names.iter().find(|name| !is_ours(name)) {
        return Ok(Some(other.clone()));
    }
    for name in names.iter().filter(|name| *name != says_so) {
        storage.unlink(&folder.join(name))?;
    }
    storage.sync_folder(&folder)?;
    storage.remove_folder(&folder)?;
    Ok(None)
}

#[cfg(test)]
mod tests;
