//! `set.toml`: a backupset and its backups.
//!
//! It is replaced atomically; a backup exists from the moment that it stands in here. Its last line is a
//! comment with the BLAKE3 of all before it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::manifest::{BackupsetId, ImageName, Incremental};
use crate::repository::layout::canonical;
use crate::repository::settings::{FORMAT, check_format, read_text};
use crate::repository::together::Together;
use crate::repository::{Layout, Repository, RepositoryError};
use crate::segment::Fingerprint;
use crate::storage::{Storage, replace};

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
}

/// What a backupset says about one of its backups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupRecord {
    /// Its number.
    pub incremental: Incremental,
    /// The BLAKE3 of the body of its manifest.
    pub manifest: Fingerprint,
    /// When it was begun.
    pub timestamp: jiff::Timestamp,
    /// The disk's size in bytes.
    pub size_of_disk: u64,
    /// How many segments the disk divides into.
    pub segments: u32,
    /// Words a person gave it.
    pub tags: Vec<String>,
    /// Whether it may not be deleted, ever or for some time.
    pub protection: Protection,
    /// A person's note.
    pub note: Option<String>,
    /// Why it may not be what the disk was, if that has been found out since.
    pub suspect: Option<String>,
}

/// One disk's chain of backups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backupset {
    /// Its id.
    pub id: BackupsetId,
    /// The name of the image.
    pub name: ImageName,
    /// When it began.
    pub created: jiff::Timestamp,
    /// Earlier backupsets of the disk; the order is that of the manifests' bases.
    pub bases: Vec<BackupsetId>,
    /// What the disk was restored from when the set began, if it was.
    pub origin: Option<Origin>,
    /// The number of the next backup: never given twice.
    pub next_incremental: u32,
    /// The backups, by number.
    pub backups: Vec<BackupRecord>,
    /// Backups that were deleted and can still be undeleted, by number: their manifests are there.
    pub deleted: Vec<BackupRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    backupset: String,
    name: String,
    created: String,
    bases: Vec<String>,
    next_incremental: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<FileOrigin>,
    #[serde(default, rename = "backup")]
    backups: Vec<FileBackup>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    deleted: Vec<FileBackup>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileOrigin {
    backupset: String,
    incremental: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileBackup {
    incremental: u32,
    manifest: String,
    timestamp: String,
    size_of_disk: u64,
    segments: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(default)]
    protected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    protected_until: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suspect: Option<String>,
}

impl FileBackup {
    pub(super) fn of(backup: &BackupRecord) -> Self {
        Self {
            incremental: backup.incremental.0,
            manifest: backup.manifest.to_string(),
            timestamp: backup.timestamp.to_string(),
            size_of_disk: backup.size_of_disk,
            segments: backup.segments,
            tags: backup.tags.clone(),
            protected: backup.protection == Protection::Always,
            protected_until: match backup.protection {
                Protection::Until(end) => Some(end.to_string()),
                Protection::None | Protection::Always => None,
            },
            note: backup.note.clone(),
            suspect: backup.suspect.clone(),
        }
    }

    pub(super) fn read(self) -> Result<BackupRecord, String> {
        let protection = match (self.protected, self.protected_until) {
            (true, _) => Protection::Always,
            (false, Some(end)) => Protection::Until(time(&end)?),
            (false, None) => Protection::None,
        };
        Ok(BackupRecord {
            incremental: Incremental(self.incremental),
            manifest: self
                .manifest
                .parse()
                .map_err(|error: crate::segment::InvalidHash| error.to_string())?,
            timestamp: time(&self.timestamp)?,
            size_of_disk: self.size_of_disk,
            segments: self.segments,
            tags: self.tags,
            protection,
            note: self.note,
            suspect: self.suspect,
        })
    }
}

fn time(text: &str) -> Result<jiff::Timestamp, String> {
    text.parse().map_err(|error: jiff::Error| error.to_string())
}

const CHECKSUM: &str = "# BLAKE3 of all before this line: ";

/// Adds the line by which it is seen that a text is what was written.
pub(super) fn seal(text: &str) -> String {
    let checksum = Fingerprint::of(text.as_bytes());
    format!("{text}{CHECKSUM}{checksum}\n")
}

/// Reads a file of which the last line has the BLAKE3 of the others, and makes sure that it and the format fit.
pub(super) fn read_sealed(storage: &dyn Storage, path: &Path) -> Result<String, RepositoryError> {
    let text = read_text(storage, path)?;
    let damaged =
        |what: &str| RepositoryError::SettingsDamaged { path: path.to_owned(), what: what.to_owned() };
    let (covered, checksum) = text.rsplit_once(CHECKSUM).ok_or_else(|| damaged("its last line is gone"))?;
    if checksum.strip_suffix('\n') != Some(Fingerprint::of(covered.as_bytes()).to_string().as_str()) {
        return Err(damaged("it does not fit the BLAKE3 in its last line"));
    }
    check_format(path, covered)?;
    Ok(covered.to_owned())
}

impl Backupset {
    fn encode(&self) -> Result<String, toml::ser::Error> {
        let origin = self.origin.map(|origin| FileOrigin {
            backupset: origin.backupset.to_string(),
            incremental: origin.incremental.0,
        });
        let file = File {
            format: FORMAT,
            backupset: self.id.to_string(),
            name: self.name.as_str().to_owned(),
            created: self.created.to_string(),
            bases: self.bases.iter().map(ToString::to_string).collect(),
            next_incremental: self.next_incremental,
            origin,
            backups: self.backups.iter().map(FileBackup::of).collect(),
            deleted: self.deleted.iter().map(FileBackup::of).collect(),
        };
        Ok(seal(&toml::to_string(&file)?))
    }

    fn decode(text: &str) -> Result<Self, String> {
        let wrong = |what: &dyn std::fmt::Display| what.to_string();
        let file: File = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        let id = |text: &str| text.parse::<BackupsetId>().map_err(|error| wrong(&error));
        let origin = match file.origin {
            None => None,
            Some(origin) => Some(Origin {
                backupset: id(&origin.backupset)?,
                incremental: Incremental(origin.incremental),
            }),
        };
        let read =
            |list: Vec<FileBackup>| list.into_iter().map(FileBackup::read).collect::<Result<Vec<_>, _>>();
        let (backups, deleted) = (read(file.backups)?, read(file.deleted)?);
        for list in [&backups, &deleted] {
            if !list.is_sorted_by(|a, b| a.incremental < b.incremental)
                || list.last().is_some_and(|last| last.incremental.0 >= file.next_incremental)
            {
                return Err("its backups are not in order".to_owned());
            }
        }
        if deleted.iter().any(|one| backups.iter().any(|other| one.incremental == other.incremental)) {
            return Err("it lists a backup as deleted that it lists".to_owned());
        }
        Ok(Self {
            id: id(&file.backupset)?,
            name: ImageName::new(file.name).map_err(|error| wrong(&error))?,
            created: time(&file.created)?,
            bases: file.bases.iter().map(|base| id(base)).collect::<Result<_, _>>()?,
            origin,
            next_incremental: file.next_incremental,
            backups,
            deleted,
        })
    }

    /// Says whether a backup with this number is listed, be it as deleted.
    pub(super) fn knows(&self, number: u32) -> bool {
        self.backups.iter().chain(&self.deleted).any(|record| record.incremental.0 == number)
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

    /// Replaces the settings of the backupset; durable when this returns.
    pub(super) fn write(&self, storage: &dyn Storage, layout: &Layout) -> Result<(), RepositoryError> {
        let path = layout.set_settings(self.id);
        let text = self
            .encode()
            .map_err(|error| RepositoryError::Settings { path: path.clone(), what: error.to_string() })?;
        Ok(replace(storage, &path, text.as_bytes())?)
    }

    /// Makes the folder of a new backupset and its settings; durable when this returns.
    pub(super) fn create(&self, storage: &dyn Storage, layout: &Layout) -> Result<(), RepositoryError> {
        storage.create_folder(&layout.set(self.id))?;
        storage.sync_folder(&layout.sets())?;
        self.write(storage, layout)
    }
}

impl Repository {
    /// Reads all backupsets, in the order of name and beginning. Those that cannot be read are left out
    /// and returned beside.
    pub fn backupsets(&self) -> Result<(Vec<Backupset>, Vec<RepositoryError>), RepositoryError> {
        let (mut sets, mut problems) = (Vec::new(), Vec::new());
        for name in self.storage.list(&self.layout.sets())? {
            let Some(id) = canonical::<BackupsetId>(&name) else { continue };
            match Backupset::read(self.storage.as_ref(), &self.layout, id) {
                Ok(set) => sets.push(set),
                // Its folder is made before its settings, and a crash may come between.
                Err(RepositoryError::Storage(error)) if error.is_not_found() && self.is_unborn(id) => {}
                Err(error) => problems.push(error),
            }
        }
        // After the sets: what comes to exist meanwhile stands here or there.
        match Together::read(self.storage.as_ref(), &self.layout) {
            Ok(None) => {}
            Ok(Some(together)) => together.apply(&mut sets, &self.layout, &mut problems),
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
        let leftover =
            |name: &String| Path::new(name).extension().is_some_and(|it| it == crate::storage::TEMPORARY);
        match self.storage.list(&self.layout.set(id)) {
            Ok(names) => names.iter().all(leftover) || is_newborn(&names),
            // It was given up meanwhile.
            Err(error) => error.is_not_found(),
        }
    }
}

/// Says whether a folder with these names in it is that of a backupset that an import has begun.
pub(super) fn is_newborn(names: &[String]) -> bool {
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    has(Layout::NEWBORN) && !has(Layout::SET_SETTINGS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::OsStorage;

    fn set() -> Backupset {
        let time: jiff::Timestamp = "2026-01-02T03:04:05.6Z".parse().unwrap();
        let record = |number| BackupRecord {
            incremental: Incremental(number),
            manifest: Fingerprint::of(b"m"),
            timestamp: time,
            size_of_disk: 1 << 40,
            segments: 1 << 18,
            tags: vec!["monthly".to_owned()],
            protection: match number {
                1 => Protection::Always,
                2 => Protection::Until(time),
                _ => Protection::None,
            },
            note: (number == 1).then(|| "before the \"upgrade\"\n# BLAKE3".to_owned()),
            suspect: (number == 1).then(|| "a list was wrong".to_owned()),
        };
        Backupset {
            id: BackupsetId::random(),
            name: ImageName::new("web").unwrap(),
            created: time,
            bases: vec![BackupsetId::random()],
            origin: Some(Origin { backupset: BackupsetId::random(), incremental: Incremental(4) }),
            next_incremental: 5,
            backups: vec![record(1), record(4)],
            deleted: vec![record(2)],
        }
    }

    #[test]
    fn settings_come_back_and_every_changed_byte_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        let set = set();
        std::fs::create_dir(layout.sets()).unwrap();
        set.create(&OsStorage, &layout).unwrap();
        assert_eq!(Backupset::read(&OsStorage, &layout, set.id).unwrap(), set);
        let path = layout.set_settings(set.id);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x04;
            std::fs::write(&path, &changed).unwrap();
            assert!(Backupset::read(&OsStorage, &layout, set.id).is_err(), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(Backupset::read(&OsStorage, &layout, set.id).is_err(), "cut at {at}");
        }
    }
}
