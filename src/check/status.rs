//! Whether every disk has a fresh, whole backup: for monitoring.

use std::collections::{BTreeMap, HashSet};

use jiff::{SignedDuration, Timestamp};

use crate::check::{CheckError, WINDOW, tell, wanted};
use crate::error::ErrorKind;
use crate::manifest::{ImageName, ManifestReader, SegmentRef};
use crate::progress::{Notice, Progress};
use crate::repository::retention::is_to_come;
use crate::repository::{
    BackupFailure, BackupId, BackupNumber, BackupRecord, Backupset, Findings, MOST_FAILURES, Repository,
};
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
    /// What is wrong; nothing if its newest backup is fresh, intact and without flaws.
    pub problem: Option<StatusProblem>,
    /// The last attempt to back it up, if that failed.
    pub failure: Option<BackupFailure>,
}

/// What is wrong with the newest backup of a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatusProblem {
    /// There is none, and an attempt to make one failed.
    #[error("no backup")]
    NoBackup,
    /// It is fresh and intact, and a later attempt failed.
    #[error("its newest backup is intact, but a later attempt failed")]
    LaterFailed,
    /// Its date is in the future.
    #[error("its newest backup is of {timestamp}, which is still to come: a clock was wrong")]
    ToCome {
        /// Its date.
        timestamp: Timestamp,
    },
    /// It is older than it may be.
    #[error("its newest backup is {} old (limit {})", words(*age), words(*limit))]
    TooOld {
        /// Its age.
        age: SignedDuration,
        /// The highest age.
        limit: SignedDuration,
    },
    /// Its manifest is damaged or missing.
    #[error("{what}")]
    Manifest {
        /// What is wrong, with the file's path.
        what: String,
    },
    /// Segments of it are missing.
    #[error("{segments} segments of it are in no pack that can be read")]
    Missing {
        /// How many.
        segments: usize,
    },
    /// A check found segments of it damaged.
    #[error("a check found {segments} segments of it damaged")]
    Damaged {
        /// How many.
        segments: usize,
    },
    /// It is a machine's moment, and backups of its disks are gone.
    #[error("its newest backup lacks the backup of a disk: {}", disks.join(", "))]
    Incomplete {
        /// Which, in words.
        disks: Vec<String>,
    },
    /// Something that was found out later makes it suspect.
    #[error("its newest backup is suspect: {why}")]
    Suspect {
        /// What.
        why: String,
    },
    /// The source changed while it was read.
    #[error("its newest backup is inconsistent: {how}")]
    Inconsistent {
        /// How.
        how: String,
    },
    /// The disk was larger in an earlier backup that still exists.
    #[error(
        "its newest backup has {bytes} bytes, and the disk of {earlier} had {was}: check its source; if the disk was made \
         smaller, delete its larger backups (\"ekko delete {earlier}\")"
    )]
    Shrank {
        /// The size of the disk in the newest backup.
        bytes: u64,
        /// The newest backup of which the disk was larger.
        earlier: BackupId,
        /// The size of the disk in that one.
        was: u64,
    },
    /// Sectors of the source could not be read.
    #[error("its newest backup has zeros in place of {bytes} bytes that could not be read")]
    UnreadableSource {
        /// How many bytes the ranges with such sectors have.
        bytes: u64,
    },
}

/// Looks at the newest backup of every name: how old it is, whether its manifest is intact and every segment of
/// it is in a pack, and whether its source had flaws. (A check that reads the data knows whether the segments decode.) A name
/// that no backup was ever made of is known by the attempt that failed.
pub fn status(
    repository: &Repository,
    options: &StatusOptions,
    progress: &dyn Progress,
) -> Result<Vec<NameStatus>, CheckError> {
    // Before the lists: a backup that succeeds meanwhile is in them.
    let failures = repository.failures().unwrap_or_else(|error| {
        let what = format!("cannot read the records of failed backups: {error}");
        progress.notice(Notice::Problem { kind: error.kind(), what });
        Vec::new()
    });
    let mut failures: BTreeMap<ImageName, BackupFailure> =
        failures.into_iter().map(|failure| (failure.name.clone(), failure)).collect();
    tell_full(&failures, progress);
    let (sets, problems) = repository.backupsets()?;
    for problem in problems {
        progress.notice(Notice::Problem { kind: problem.kind(), what: problem.to_string() });
    }
    let mut names: BTreeMap<ImageName, Option<(&Backupset, &BackupRecord)>> = BTreeMap::new();
    // A failure that was recorded after a retirement says that somebody backs the disk up still.
    let is_retired = |name: &ImageName| {
        Repository::current_set(&sets, name).is_some_and(|set| set.retired) && !failures.contains_key(name)
    };
    names.extend(failures.keys().map(|name| (name.clone(), None)));
    // What was deleted on purpose is not asked for.
    for set in sets.iter().filter(|set| !set.backups.is_empty() && !is_retired(&set.name)) {
        let newest = names.entry(set.name.clone()).or_default();
        let latest = set.backups.iter().max_by_key(|backup| (backup.timestamp, backup.incremental));
        let time = |it: &Option<(&Backupset, &BackupRecord)>| it.map(|(_, backup)| backup.timestamp);
        let latest = latest.map(|backup| (set, backup));
        if time(&latest) > time(newest) {
            *newest = latest;
        }
    }
    let catalog = repository.catalog()?;
    let mut incomplete = repository.incomplete_moments(&sets)?;
    let mut shrank = shrank(&sets, &names);
    let damaged = Findings::load(repository).unhealed(&catalog)?.keys();
    let status = |(name, newest): (ImageName, Option<(&Backupset, &BackupRecord)>)| {
        let failure = failures.remove(&name);
        let Some((set, backup)) = newest else {
            return Ok(NameStatus { name, newest: None, problem: Some(StatusProblem::NoBackup), failure });
        };
        let problem = if let Some(old) = too_old(options, backup.timestamp) {
            Some(old)
        } else {
            let missing = incomplete.remove(&(set.id, backup.incremental));
            broken(repository, (&catalog, &damaged), set, backup, progress)?
                .or(missing.map(|disks| StatusProblem::Incomplete { disks }))
                .or_else(|| flawed(backup))
                .or_else(|| shrank.remove(&name))
        };
        // A crash may leave or bring back a record that a backup removes: the note that this one began, or an earlier failure.
        let failure = failure.filter(|failure| failure.time > backup.timestamp);
        let later = failure.is_some().then_some(StatusProblem::LaterFailed);
        let problem = problem.or(later);
        Ok(NameStatus { name, newest: Some((BackupId::of(set, backup), backup.timestamp)), problem, failure })
    };
    names.into_iter().map(status).collect()
}

/// Returns the disks that were larger in an earlier backup than in their newest one, and says so.
fn shrank(
    sets: &[Backupset],
    names: &BTreeMap<ImageName, Option<(&Backupset, &BackupRecord)>>,
) -> BTreeMap<ImageName, StatusProblem> {
    let mut found: BTreeMap<&ImageName, (BackupNumber, StatusProblem)> = BTreeMap::new();
    for set in sets {
        let Some(Some((_, newest))) = names.get(&set.name) else { continue };
        let backups = set.backups.iter().map(|backup| (set, backup));
        let Some((_, larger)) = newest.larger_before(backups) else { continue };
        let (bytes, was) = (newest.size_of_disk, larger.size_of_disk);
        let problem = StatusProblem::Shrank { bytes, earlier: BackupId::of(set, larger), was };
        if found.get(&set.name).is_none_or(|(number, _)| *number < larger.number) {
            found.insert(&set.name, (larger.number, problem));
        }
    }
    found.into_iter().map(|(name, (_, problem))| (name.clone(), problem)).collect()
}

/// Says of which projects no further failures are recorded.
fn tell_full(failures: &BTreeMap<ImageName, BackupFailure>, progress: &dyn Progress) {
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    for failure in failures.values() {
        *numbers.entry(failure.project()).or_default() += 1;
    }
    for (project, number) in numbers.into_iter().filter(|(_, number)| *number >= MOST_FAILURES) {
        let of = if project.is_empty() { String::new() } else { format!(" of the project {project}") };
        let what = format!(
            "the last backup of {number} disks{of} failed; failures of further disks are not recorded, so some may be missing here"
        );
        progress.notice(Notice::Problem { kind: ErrorKind::Busy, what });
    }
}

/// Says why a backup of that time is no fresh one.
fn too_old(options: &StatusOptions, timestamp: Timestamp) -> Option<StatusProblem> {
    if is_to_come(timestamp, options.now) {
        return Some(StatusProblem::ToCome { timestamp });
    }
    let (limit, age) = (options.max_age?, options.now.duration_since(timestamp));
    (age > limit).then_some(StatusProblem::TooOld { age, limit })
}

/// Says why a backup may not be what the disk was, though nothing of it is lost.
fn flawed(backup: &BackupRecord) -> Option<StatusProblem> {
    let suspect = backup.suspect.clone().map(|why| StatusProblem::Suspect { why });
    let inconsistent = || backup.flaws.inconsistent.clone().map(|how| StatusProblem::Inconsistent { how });
    let bytes = backup.flaws.unreadable_bytes;
    suspect.or_else(inconsistent).or_else(|| (bytes > 0).then_some(StatusProblem::UnreadableSource { bytes }))
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

/// Says what of a backup is not intact.
fn broken(
    repository: &Repository,
    (catalog, damaged): (&Catalog, &HashSet<SegmentKey>),
    set: &Backupset,
    backup: &BackupRecord,
    progress: &dyn Progress,
) -> Result<Option<StatusProblem>, CheckError> {
    let opened = repository.manifest(set, backup).and_then(|manifest| {
        manifest.verify()?;
        Ok(manifest)
    });
    let manifest = match opened {
        Ok(manifest) => manifest,
        Err(error) => return Ok(Some(StatusProblem::Manifest { what: error.to_string() })),
    };
    let segments = missing(&manifest, catalog, progress)?;
    if segments > 0 {
        return Ok(Some(StatusProblem::Missing { segments }));
    }
    let is_damaged = |segment: &SegmentRef| damaged.contains(&segment.key);
    let segments = if damaged.is_empty() {
        0
    } else {
        manifest.segments().filter(|(_, segment)| is_damaged(segment)).count()
    };
    Ok((segments > 0).then_some(StatusProblem::Damaged { segments }))
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
