//! The bytes of `set.toml`. Its last line is a comment with the BLAKE3 of all before it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::manifest::{BackupsetId, FlawMarks, ImageName, Incremental};
use crate::repository::settings::{FORMAT, check_format, read_text};
use crate::repository::{
    BackupAmounts, BackupNumber, BackupRecord, Backupset, DeletedBackup, FormerName, Origin, Protection,
    RepositoryError,
};
use crate::segment::Fingerprint;
use crate::storage::Storage;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    backupset: String,
    name: String,
    next_number: u32,
    created: String,
    bases: Vec<String>,
    next_incremental: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    retired: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<FileOrigin>,
    #[serde(default, rename = "former_name", skip_serializing_if = "Vec::is_empty")]
    former_names: Vec<FileFormerName>,
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
struct FileFormerName {
    name: String,
    next_number: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileBackup {
    number: u32,
    incremental: u32,
    manifest: String,
    timestamp: String,
    size_of_disk: u64,
    segments: u32,
    used_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    machine: bool,
    /// Of a machine's moment: the backups of its disks, as `UUID@N`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    disks: Vec<String>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    inconsistent: Option<String>,
    #[serde(default, skip_serializing_if = "is_nothing")]
    unreadable_bytes: u64,
    /// Of a deleted backup alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted_clock: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_nothing(number: &u64) -> bool {
    *number == 0
}

impl FileFormerName {
    fn of(former: &FormerName) -> Self {
        Self { name: former.name.as_str().to_owned(), next_number: former.next_number }
    }

    fn read(self) -> Result<FormerName, String> {
        let name = ImageName::new(self.name).map_err(|error| error.to_string())?;
        Ok(FormerName { name, next_number: self.next_number })
    }
}

impl FileBackup {
    pub(super) fn of(backup: &BackupRecord) -> Self {
        Self {
            number: backup.number.0,
            incremental: backup.incremental.0,
            manifest: backup.manifest.to_string(),
            timestamp: backup.timestamp.to_string(),
            size_of_disk: backup.size_of_disk,
            segments: backup.segments,
            used_bytes: backup.amounts.used_bytes,
            new_bytes: backup.amounts.new_bytes,
            stored_bytes: backup.amounts.stored_bytes,
            machine: backup.is_machine,
            disks: backup.disks.iter().map(|(set, number)| format!("{set}@{number}")).collect(),
            tags: backup.tags.clone(),
            protected: backup.protection == Protection::Always,
            protected_until: match backup.protection {
                Protection::Until(end) => Some(end.to_string()),
                Protection::None | Protection::Always => None,
            },
            note: backup.note.clone(),
            suspect: backup.suspect.clone(),
            inconsistent: backup.flaws.inconsistent.clone(),
            unreadable_bytes: backup.flaws.unreadable_bytes,
            deleted: None,
            deleted_clock: None,
        }
    }

    fn of_deleted(deleted: &DeletedBackup) -> Self {
        Self {
            deleted: Some(deleted.deleted.to_string()),
            deleted_clock: Some(deleted.deleted_clock),
            ..Self::of(&deleted.record)
        }
    }

    fn read_deleted(mut self) -> Result<DeletedBackup, String> {
        let missing = || "a deleted backup does not say when it was deleted".to_owned();
        let deleted = time(&self.deleted.take().ok_or_else(missing)?)?;
        let deleted_clock = self.deleted_clock.take().ok_or_else(missing)?;
        Ok(DeletedBackup { record: self.read()?, deleted, deleted_clock })
    }

    pub(super) fn read(self) -> Result<BackupRecord, String> {
        if self.deleted.is_some() || self.deleted_clock.is_some() {
            return Err("a backup that is listed says when it was deleted".to_owned());
        }
        let protection = match (self.protected, self.protected_until) {
            (true, _) => Protection::Always,
            (false, Some(end)) => Protection::Until(time(&end)?),
            (false, None) => Protection::None,
        };
        Ok(BackupRecord {
            number: BackupNumber(self.number),
            incremental: Incremental(self.incremental),
            manifest: self
                .manifest
                .parse()
                .map_err(|error: crate::segment::InvalidHash| error.to_string())?,
            timestamp: time(&self.timestamp)?,
            size_of_disk: self.size_of_disk,
            segments: self.segments,
            amounts: BackupAmounts {
                used_bytes: self.used_bytes,
                new_bytes: self.new_bytes,
                stored_bytes: self.stored_bytes,
            },
            is_machine: self.machine,
            disks: self.disks.iter().map(|text| disk(text)).collect::<Result<_, _>>()?,
            tags: self.tags,
            protection,
            note: self.note,
            suspect: self.suspect,
            flaws: FlawMarks { inconsistent: self.inconsistent, unreadable_bytes: self.unreadable_bytes },
        })
    }
}

/// Reads which backup a moment consists of.
fn disk(text: &str) -> Result<(BackupsetId, Incremental), String> {
    let read = || {
        let (set, number) = text.split_once('@')?;
        Some((set.parse().ok()?, Incremental(number.parse().ok()?)))
    };
    read().ok_or_else(|| format!("{text:?} names no backup of a disk"))
}

pub(super) fn time(text: &str) -> Result<jiff::Timestamp, String> {
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
    pub(super) fn encode(&self) -> Result<String, toml::ser::Error> {
        let origin = self.origin.map(|origin| FileOrigin {
            backupset: origin.backupset.to_string(),
            incremental: origin.incremental.0,
        });
        let file = File {
            format: FORMAT,
            backupset: self.id.to_string(),
            name: self.name.as_str().to_owned(),
            next_number: self.next_number,
            created: self.created.to_string(),
            bases: self.bases.iter().map(ToString::to_string).collect(),
            next_incremental: self.next_incremental,
            retired: self.retired,
            origin,
            former_names: self.former_names.iter().map(FileFormerName::of).collect(),
            backups: self.backups.iter().map(FileBackup::of).collect(),
            deleted: self.deleted.iter().map(FileBackup::of_deleted).collect(),
        };
        Ok(seal(&toml::to_string(&file)?))
    }

    pub(super) fn decode(text: &str) -> Result<Self, String> {
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
        let backups = file.backups.into_iter().map(FileBackup::read).collect::<Result<Vec<_>, _>>()?;
        let deleted =
            file.deleted.into_iter().map(FileBackup::read_deleted).collect::<Result<Vec<_>, _>>()?;
        let gone: Vec<_> = deleted.iter().map(|deleted| &deleted.record).collect();
        for list in [backups.iter().collect(), gone.clone()] {
            let list: Vec<&BackupRecord> = list;
            if !list.is_sorted_by(|a, b| a.incremental < b.incremental)
                || list.last().is_some_and(|last| last.incremental.0 >= file.next_incremental)
            {
                return Err("its backups are not in order".to_owned());
            }
            if !list.is_sorted_by(|a, b| a.number < b.number)
                || list.last().is_some_and(|last| last.number.0 >= file.next_number)
            {
                return Err("the numbers of its backups are not in order".to_owned());
            }
        }
        let is_same =
            |a: &BackupRecord, b: &BackupRecord| a.incremental == b.incremental || a.number == b.number;
        if gone.iter().any(|one| backups.iter().any(|other| is_same(one, other))) {
            return Err("it lists a backup as deleted that it lists".to_owned());
        }
        let former_names = file.former_names.into_iter().map(FileFormerName::read);
        Ok(Self {
            id: id(&file.backupset)?,
            name: ImageName::new(file.name).map_err(|error| wrong(&error))?,
            next_number: file.next_number,
            former_names: former_names.collect::<Result<_, _>>()?,
            created: time(&file.created)?,
            bases: file.bases.iter().map(|base| id(base)).collect::<Result<_, _>>()?,
            origin,
            next_incremental: file.next_incremental,
            retired: file.retired,
            backups,
            deleted,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::Layout;
    use crate::storage::OsStorage;

    fn set() -> Backupset {
        let time: jiff::Timestamp = "2026-01-02T03:04:05.6Z".parse().unwrap();
        let record = |number| BackupRecord {
            number: BackupNumber(number + 3),
            incremental: Incremental(number),
            manifest: Fingerprint::of(b"m"),
            timestamp: time,
            size_of_disk: 1 << 40,
            segments: 1 << 18,
            amounts: BackupAmounts { used_bytes: 3, new_bytes: 2, stored_bytes: 1 },
            is_machine: number == 4,
            disks: (0..number / 4)
                .map(|disk| (BackupsetId::from_bytes([9; 16]), Incremental(disk)))
                .collect(),
            tags: vec!["monthly".to_owned()],
            protection: match number {
                1 => Protection::Always,
                2 => Protection::Until(time),
                _ => Protection::None,
            },
            note: (number == 1).then(|| "before the \"upgrade\"\n# BLAKE3".to_owned()),
            suspect: (number == 1).then(|| "a list was wrong".to_owned()),
            flaws: match number {
                2 => FlawMarks { inconsistent: Some("it grew".to_owned()), unreadable_bytes: 512 },
                _ => FlawMarks::default(),
            },
        };
        Backupset {
            id: BackupsetId::random(),
            name: ImageName::new("web").unwrap(),
            next_number: 9,
            retired: true,
            former_names: vec![FormerName { name: ImageName::new("www").unwrap(), next_number: 2 }],
            created: time,
            bases: vec![BackupsetId::random()],
            origin: Some(Origin { backupset: BackupsetId::random(), incremental: Incremental(4) }),
            next_incremental: 5,
            backups: vec![record(1), record(4)],
            deleted: vec![DeletedBackup { record: record(2), deleted: time, deleted_clock: 77 }],
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
