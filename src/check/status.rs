//! Whether every disk has a fresh, whole backup: for monitoring.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::check::{CheckError, WINDOW, tell, wanted};
use crate::manifest::{ImageName, ManifestReader};
use crate::progress::{Notice, Progress};
use crate::repository::retention::is_to_come;
use crate::repository::{BackupId, BackupRecord, Backupset, Repository};
use crate::store::Catalog;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct StatusOptions {
    /// How old the newest backup of a name may be.
    pub max_age: Option<SignedDuration>,
    /// The time now.
    pub now: Timestamp,
}

/// How it stands with one name.
#[derive(Clone, Debug)]
pub struct NameStatus {
    /// The name.
    pub name: ImageName,
    /// Its newest backup, and when that was begun; nothing if it has none.
    pub newest: Option<(BackupId, Timestamp)>,
    /// What is wrong, in words; nothing if its newest backup is fresh and whole.
    pub problem: Option<String>,
}

/// Looks at the newest backup of every name: how old it is, and whether its manifest is whole and every segment of
/// it is in a pack. (That those decode is for a reading check to say.)
pub fn status(
    repository: &Repository,
    options: &StatusOptions,
    progress: &dyn Progress,
) -> Result<Vec<NameStatus>, CheckError> {
    let (sets, problems) = repository.backupsets()?;
    for problem in problems {
        progress.notice(Notice::Problem { kind: problem.kind(), what: problem.to_string() });
    }
    let mut names: BTreeMap<&ImageName, Option<(&Backupset, &BackupRecord)>> = BTreeMap::new();
    for set in &sets {
        let newest = names.entry(&set.name).or_default();
        let latest = set.backups.iter().max_by_key(|backup| (backup.timestamp, backup.incremental));
        let time = |it: &Option<(&Backupset, &BackupRecord)>| it.map(|(_, backup)| backup.timestamp);
        let latest = latest.map(|backup| (set, backup));
        if time(&latest) > time(newest) {
            *newest = latest;
        }
    }
    let catalog = repository.catalog()?;
    let status = |(name, newest): (&ImageName, Option<(&Backupset, &BackupRecord)>)| {
        let Some((set, backup)) = newest else {
            return Ok(NameStatus {
                name: name.clone(),
                newest: None,
                problem: Some("it has no backup".to_owned()),
            });
        };
        let id = BackupId::of(set, backup);
        let problem = match too_old(options, backup.timestamp) {
            Some(old) => Some(old),
            None => broken(repository, &catalog, set, backup, progress)?,
        };
        Ok(NameStatus { name: name.clone(), newest: Some((id, backup.timestamp)), problem })
    };
    names.into_iter().map(status).collect()
}

/// Says why a backup of that time is no fresh one.
fn too_old(options: &StatusOptions, timestamp: Timestamp) -> Option<String> {
    if is_to_come(timestamp, options.now) {
        let what = format!("its newest backup is of {timestamp}, which is still to come: a clock was wrong");
        return Some(what);
    }
    let (max_age, age) = (options.max_age?, options.now.duration_since(timestamp));
    (age > max_age).then(|| format!("its newest backup is {age:#} old, and {max_age:#} is allowed"))
}

/// Says what of a backup is not whole.
fn broken(
    repository: &Repository,
    catalog: &Catalog,
    set: &Backupset,
    backup: &BackupRecord,
    progress: &dyn Progress,
) -> Result<Option<String>, CheckError> {
    let opened = repository.manifest(set, backup).and_then(|manifest| {
        manifest.verify()?;
        Ok(manifest)
    });
    let manifest = match opened {
        Ok(manifest) => manifest,
        Err(error) => return Ok(Some(error.to_string())),
    };
    let missing = missing(&manifest, catalog, progress)?;
    Ok((missing > 0).then(|| format!("{missing} segments of it are in no pack that can be read")))
}

/// Counts the segments of a manifest that are in no pack.
fn missing(
    manifest: &ManifestReader,
    catalog: &Catalog,
    progress: &dyn Progress,
) -> Result<usize, CheckError> {
    let mut missing = 0;
    let mut first = 0;
    while first < manifest.info().geometry.segments() {
        let wanted = wanted(manifest, first);
        let (found, problems) = catalog.describe(&wanted, |(key, _)| *key, |_| ())?;
        tell(&problems, progress);
        missing += found.iter().filter(|found| found.is_none()).count();
        first = first.saturating_add(WINDOW);
    }
    Ok(missing)
}
