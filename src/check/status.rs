//! Whether every disk has a fresh, whole backup: for monitoring.

use std::collections::{BTreeMap, HashSet};

use jiff::{SignedDuration, Timestamp};

use crate::check::findings::Findings;
use crate::check::{CheckError, WINDOW, tell, wanted};
use crate::manifest::{ImageName, ManifestReader, SegmentRef};
use crate::progress::{Notice, Progress};
use crate::repository::retention::is_to_come;
use crate::repository::{BackupId, BackupRecord, Backupset, Repository};
use crate::segment::SegmentKey;
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
    let current = |name: &ImageName| Repository::current_set(&sets, name).is_some_and(|set| set.retired);
    // What was deleted on purpose is not asked for.
    let expected = |set: &&Backupset| !current(&set.name);
    for set in sets.iter().filter(expected).filter(|set| !set.backups.is_empty()) {
        let newest = names.entry(&set.name).or_default();
        let latest = set.backups.iter().max_by_key(|backup| (backup.timestamp, backup.incremental));
        let time = |it: &Option<(&Backupset, &BackupRecord)>| it.map(|(_, backup)| backup.timestamp);
        let latest = latest.map(|backup| (set, backup));
        if time(&latest) > time(newest) {
            *newest = latest;
        }
    }
    let catalog = repository.catalog()?;
    let damaged = Findings::load(repository).unhealed(&catalog)?.keys();
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
            None => broken(repository, (&catalog, &damaged), set, backup, progress)?,
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
    (age > max_age).then(|| format!("its newest backup is {} old (limit {})", words(age), words(max_age)))
}

/// Writes a span of time in one unit that a person uses.
fn words(span: SignedDuration) -> String {
    let seconds = span.as_secs();
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_801 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Says what of a backup is not whole.
fn broken(
    repository: &Repository,
    (catalog, damaged): (&Catalog, &HashSet<SegmentKey>),
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
    if missing > 0 {
        return Ok(Some(format!("{missing} segments of it are in no pack that can be read")));
    }
    let is_damaged = |segment: &SegmentRef| damaged.contains(&segment.key);
    let segments = if damaged.is_empty() {
        0
    } else {
        manifest.segments().filter(|(_, segment)| is_damaged(segment)).count()
    };
    Ok((segments > 0).then(|| format!("a check found {segments} segments of it damaged")))
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
