//! Documents about images and backups.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::changes::end_of;
use crate::api::{ByteRange, View};
use crate::check::damaged_backups;
use crate::manifest::{
    BackupsetId, ImageName, Incremental, PROVENANCE, Provenance, SESSION, unreadable_ranges,
};
use crate::progress::{Notice, Progress, Silent};
use crate::repository::{
    BackupRecord, BackupSelector, Backupset, DeletedBackup, Protection, Repository, RepositoryError, Which,
};

/// The most rows of one answer.
pub const MOST_LISTED: u32 = 1000;

/// Which backups are listed.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct ListFilter {
    /// Only of this image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Only with this tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Only the deleted backups that can be undeleted, in place of those that there are.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// Only behind this one: the `next_marker` of the answer before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marker: Option<String>,
    /// At most so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u32>,
}

/// Backups, by name, beginning of the backupset and number.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BackupList {
    /// The backups.
    pub backups: Vec<BackupRow>,
    /// What to give as `marker` for those behind, if there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_marker: Option<String>,
}

/// What a list says of a backup.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[expect(clippy::struct_excessive_bools, reason = "each is a mark of its own")]
pub struct BackupRow {
    /// How it is named.
    pub backup: String,
    /// Its image.
    pub name: String,
    /// Its backupset.
    pub backupset: String,
    /// Its number among the backups of its image: the 7 of `web@7`.
    pub number: u32,
    /// Its number in its backupset.
    pub incremental: u32,
    /// When it was begun.
    #[schema(format = DateTime)]
    pub timestamp: String,
    /// The disk's size in bytes.
    pub size_of_disk: u64,
    /// How many segments the disk divides into.
    pub segments: u32,
    /// Bytes of the disk's segments that are not zero.
    #[serde(default)]
    pub used_bytes: u64,
    /// Plain bytes of the segments that the backup was the first to store.
    #[serde(default)]
    pub new_bytes: u64,
    /// Their encoded bytes: what the backup added to the store.
    #[serde(default)]
    pub stored_bytes: u64,
    /// Words a person gave it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Whether it may not be deleted now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub protected: bool,
    /// Whether it is a machine's moment, and not a disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub machine: bool,
    /// Whether it is a machine's moment, and the backup of a disk is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
    /// Whether the disk was larger in an earlier backup that still exists.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub smaller: bool,
    /// Whether a check found a segment of it damaged that no backup has stored again since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub damaged: bool,
    /// Why it may not be what the disk was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspect: Option<String>,
    /// How the source changed while it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inconsistent: Option<String>,
    /// How many bytes the ranges with unreadable sectors have: such sectors are zeros in the backup.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub unreadable_bytes: u64,
    /// When it was deleted, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub deleted: Option<String>,
    /// When it can be undeleted no longer, at the earliest, if it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub deleted_until: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_nothing(number: &u64) -> bool {
    *number == 0
}

fn tell(problems: Vec<RepositoryError>, progress: &dyn Progress) {
    for problem in problems {
        progress.notice(Notice::Problem { kind: problem.kind(), what: problem.to_string() });
    }
}

/// What pages are cut by: unique, and in the order of the list.
fn marker(set: &Backupset, backup: &BackupRecord) -> String {
    format!("{}@{}", set.id, backup.incremental)
}

/// Returns where a marker stands: the place of its backupset, and the number of its backup, which may be gone by now.
fn place(
    repository: &Repository,
    seen: &[Arc<Backupset>],
    marker: &str,
) -> Result<(usize, Incremental), RepositoryError> {
    let find = || {
        let asked: BackupSelector = marker.parse().ok()?;
        let Which::Number(number) = asked.which else { return None };
        Some((seen.iter().position(|set| set.id.to_string() == asked.name)?, Incremental(number)))
    };
    let path = repository.layout().root().to_owned();
    find().ok_or(RepositoryError::NoSuchBackup { path, what: marker.to_owned() })
}

/// Returns the backups that checks found damaged. What cannot be known is told of.
fn damaged(repository: &Repository, progress: &dyn Progress) -> BTreeSet<(BackupsetId, Incremental)> {
    damaged_backups(repository).unwrap_or_else(|error| {
        progress.notice(Notice::Problem { kind: error.kind(), what: error.to_string() });
        BTreeSet::new()
    })
}

/// Returns the backups of these names of which the disk was larger in an earlier backup that exists.
fn smaller(seen: &[Arc<Backupset>], names: &BTreeSet<&ImageName>) -> BTreeSet<(BackupsetId, Incremental)> {
    let mut of_names: BTreeMap<&ImageName, Vec<(&Backupset, &BackupRecord)>> = BTreeMap::new();
    for set in seen.iter().filter(|set| names.contains(&set.name)) {
        let disks = set.backups.iter().filter(|backup| !backup.is_machine);
        of_names.entry(&set.name).or_default().extend(disks.map(|backup| (&**set, backup)));
    }
    let mut smaller = BTreeSet::new();
    for mut backups in of_names.into_values() {
        backups.sort_unstable_by_key(|(_, backup)| backup.number);
        let mut largest = 0;
        for (set, backup) in backups {
            if backup.size_of_disk < largest {
                smaller.insert((set.id, backup.incremental));
            }
            largest = largest.max(backup.size_of_disk);
        }
    }
    smaller
}

/// Returns the backups of a set that are listed: those that there are, or those that are deleted.
fn wanted(
    set: &Backupset,
    deleted: bool,
) -> Box<dyn Iterator<Item = (&BackupRecord, Option<&DeletedBackup>)> + '_> {
    if deleted {
        Box::new(set.deleted.iter().map(|deleted| (&deleted.record, Some(deleted))))
    } else {
        Box::new(set.backups.iter().map(|backup| (backup, None)))
    }
}

/// Lists backups.
///
/// # Errors
///
/// If the folder of the manifests cannot be read. Backupsets that cannot be read are told of and left out.
pub fn list(
    repository: &Repository,
    view: &View,
    filter: &ListFilter,
    progress: &dyn Progress,
) -> Result<BackupList, RepositoryError> {
    let (seen, problems) = view.sets(repository)?;
    tell(problems, progress);
    let behind = filter.marker.as_deref().map(|marker| place(repository, &seen, marker)).transpose()?;
    let mut rows = seen
        .iter()
        .enumerate()
        .skip(behind.map_or(0, |(at, _)| at))
        .filter(|(_, set)| filter.name.as_ref().is_none_or(|name| view.shown(&set.name) == Some(name)))
        .flat_map(|(at, set)| {
            wanted(set, filter.deleted).map(move |(backup, deleted)| (at, set, backup, deleted))
        })
        .filter(|(at, _, backup, _)| behind.is_none_or(|behind| (*at, backup.incremental) > behind))
        .filter(|(_, _, backup, _)| filter.tag.as_ref().is_none_or(|tag| backup.tags.contains(tag)))
        .map(|(_, set, backup, deleted)| (&**set, backup, deleted));
    let limit = filter.limit.map_or(usize::MAX, |limit| limit.clamp(1, MOST_LISTED) as usize);
    let page: Vec<_> = rows.by_ref().take(limit).collect();
    let more = rows.next().is_some();
    let next_marker = page.last().filter(|_| more).map(|(set, backup, _)| marker(set, backup));
    let (left, now) = (repository.undelete_periods(&seen)?, crate::time::now());
    let damaged = damaged(repository, progress);
    let incomplete = repository.incomplete_moments(&seen)?;
    let smaller = smaller(&seen, &page.iter().map(|(set, _, _)| &set.name).collect());
    let row = |(set, backup, deleted): &(&Backupset, &BackupRecord, Option<&DeletedBackup>)| BackupRow {
        backup: view.backup_id(set, backup),
        name: view.shown(&set.name).unwrap_or_default().to_owned(),
        backupset: set.id.to_string(),
        number: backup.number.0,
        incremental: backup.incremental.0,
        timestamp: backup.timestamp.to_string(),
        size_of_disk: backup.size_of_disk,
        segments: backup.segments,
        used_bytes: backup.amounts.used_bytes,
        new_bytes: backup.amounts.new_bytes,
        stored_bytes: backup.amounts.stored_bytes,
        tags: backup.tags.clone(),
        protected: backup.protection.holds(now),
        machine: backup.is_machine,
        incomplete: deleted.is_none() && incomplete.contains_key(&(set.id, backup.incremental)),
        smaller: smaller.contains(&(set.id, backup.incremental)),
        damaged: damaged.contains(&(set.id, backup.incremental)),
        suspect: backup.suspect.clone(),
        inconsistent: backup.flaws.inconsistent.clone(),
        unreadable_bytes: backup.flaws.unreadable_bytes,
        deleted: deleted.map(|deleted| deleted.deleted.to_string()),
        deleted_until: deleted.map(|deleted| end_of(left.left(deleted))),
    };
    Ok(BackupList { backups: page.iter().map(row).collect(), next_marker })
}

/// All that is known of a backup.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BackupDetails {
    /// How it is named.
    pub backup: String,
    /// Its image.
    pub name: String,
    /// Its backupset.
    pub backupset: String,
    /// Its number among the backups of its image: the 7 of `web@7`.
    pub number: u32,
    /// Its number in its backupset.
    pub incremental: u32,
    /// When it was begun.
    #[schema(format = DateTime)]
    pub timestamp: String,
    /// The disk's size in bytes.
    pub size_of_disk: u64,
    /// The size of a segment in bytes.
    pub segment_size: u32,
    /// How many segments the disk divides into.
    pub segments: u32,
    /// How many of them are not zero.
    pub present_segments: u32,
    /// How many of them this backup was the first to have at their place.
    pub stored_by_this_backup: u64,
    /// Earlier backupsets of the disk.
    pub bases: Vec<String>,
    /// Words a person gave it.
    pub tags: Vec<String>,
    /// Whether it may not be deleted now.
    pub protected: bool,
    /// Until when it is protected, if not for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub protected_until: Option<String>,
    /// Bytes of the disk's segments that are not zero.
    #[serde(default)]
    pub used_bytes: u64,
    /// Plain bytes of the segments that the backup was the first to store.
    #[serde(default)]
    pub new_bytes: u64,
    /// Their encoded bytes: what the backup added to the store.
    #[serde(default)]
    pub stored_bytes: u64,
    /// Bytes that were read from the source; holes are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
    /// How long it took, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<f64>,
    /// The path or URL of the source on the machine that read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The machine that read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Whether a check found a segment of it damaged that no backup has stored again since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub damaged: bool,
    /// The backups of disks that it lacks, if it is a machine's moment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// A person's note.
    pub note: Option<String>,
    /// Why it may not be what the disk was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspect: Option<String>,
    /// How the source changed while it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inconsistent: Option<String>,
    /// The ranges with unreadable sectors: such sectors are zeros in the backup.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<ByteRange>,
    /// What its manifest says beside.
    pub attributes: BTreeMap<String, String>,
    /// The manifest's file on the machine that has the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// The manifest's size in bytes.
    pub manifest_bytes: u64,
    /// The BLAKE3 of the manifest's body.
    pub manifest_blake3: String,
}

/// Shows a backup.
///
/// # Errors
///
/// If there is none, or none that is seen, or if its manifest is damaged.
pub fn show(
    repository: &Repository,
    view: &View,
    asked: &BackupSelector,
) -> Result<BackupDetails, RepositoryError> {
    let (seen, _) = view.sets(repository)?;
    let (set, backup) = view.find(repository, &seen, asked)?;
    let mut incomplete = repository.incomplete_moments(&seen)?;
    let missing = incomplete.remove(&(set.id, backup.incremental)).unwrap_or_default();
    let manifest = repository.manifest(set, backup)?;
    manifest.verify()?;
    let info = manifest.info();
    let own = manifest
        .segments()
        .filter(|(_, segment)| segment.incremental == info.incremental && segment.base.0 == 0)
        .count();
    let Provenance { mut source, mut host, read_bytes, seconds } = Provenance::of(info);
    if view.project().is_some() && info.attribute(SESSION).is_none() {
        // They name a path of the machine that has the repository, and that machine: this concerns the owner alone.
        (source, host) = (None, None);
    }
    let attributes = info.attributes.iter().filter(|(key, _)| !PROVENANCE.contains(&key.as_str()));
    // A release to come may write what is no text.
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    Ok(BackupDetails {
        backup: view.backup_id(set, backup),
        // The manifest keeps the name that the disk had; it may have been renamed since.
        name: view.shown(&set.name).unwrap_or_default().to_owned(),
        backupset: info.backupset.to_string(),
        number: backup.number.0,
        incremental: info.incremental.0,
        timestamp: info.timestamp.to_string(),
        size_of_disk: info.geometry.size_of_disk(),
        segment_size: info.geometry.segment_size().bytes(),
        segments: info.geometry.segments(),
        present_segments: manifest.present(),
        stored_by_this_backup: own as u64,
        bases: info.bases.iter().map(ToString::to_string).collect(),
        tags: backup.tags.clone(),
        protected: backup.protection.holds(crate::time::now()),
        protected_until: match backup.protection {
            Protection::Until(end) if backup.protection.holds(crate::time::now()) => Some(end.to_string()),
            _ => None,
        },
        used_bytes: backup.amounts.used_bytes,
        new_bytes: backup.amounts.new_bytes,
        stored_bytes: backup.amounts.stored_bytes,
        read_bytes,
        duration_seconds: seconds,
        source,
        host,
        damaged: damaged(repository, &Silent).contains(&(set.id, backup.incremental)),
        missing: missing.iter().map(|disk| view.in_words(disk)).collect(),
        note: backup.note.clone(),
        suspect: backup.suspect.clone(),
        inconsistent: backup.flaws.inconsistent.clone(),
        // Of ranges in an unknown form, the attribute tells.
        unreadable: unreadable_ranges(info).unwrap_or_default().iter().map(ByteRange::from).collect(),
        attributes: attributes.map(|(key, value)| (key.clone(), text(value))).collect(),
        // Where it lies concerns the owner alone.
        manifest: view.project().is_none().then(|| manifest.path().display().to_string()),
        manifest_bytes: manifest.file_size(),
        manifest_blake3: manifest.fingerprint().to_string(),
    })
}

/// Images, by name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// The images.
    pub images: Vec<ImageRow>,
}

/// What is said of an image.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageRow {
    /// Its name.
    pub name: String,
    /// How many backups there are of it.
    pub backups: u64,
    /// The newest of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest: Option<BackupRow>,
}

/// Lists images.
///
/// # Errors
///
/// As [`list`].
pub fn images(
    repository: &Repository,
    view: &View,
    progress: &dyn Progress,
) -> Result<ImageList, RepositoryError> {
    let mut images: Vec<ImageRow> = Vec::new();
    for row in list(repository, view, &ListFilter::default(), progress)?.backups {
        match images.last_mut().filter(|image| image.name == row.name) {
            Some(image) => {
                image.backups += 1;
                image.latest = Some(row);
            }
            None => images.push(ImageRow { name: row.name.clone(), backups: 1, latest: Some(row) }),
        }
    }
    Ok(ImageList { images })
}
