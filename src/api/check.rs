//! Documents about what a check found, and whether every image has a fresh, whole backup.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::View;
use crate::check::{
    CheckError, CheckIndex, CheckSummary, DamagedSegmentReport, NameStatus, StatusOptions, StatusProblem,
    status,
};
use crate::progress::{Notice, Progress};
use crate::repository::{BackupId, Repository, RepositoryError};

/// What a check found.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CheckDocument {
    /// How many backups there are.
    pub backups: u64,
    /// How many copies of segments are stored.
    pub segments: u64,
    /// How many of them no backup names: garbage, and no problem.
    pub garbage_segments: u64,
    /// Stored bytes that were read and decoded.
    pub read_bytes: u64,
    /// What became of the index.
    pub index: CheckedIndex,
    /// Damaged copies that were put into quarantine.
    pub quarantined_segments: u64,
    /// What is wrong with backupsets, manifests, packs as a whole and the index, in words.
    pub problems: Vec<String>,
    /// Which segments are damaged or missing.
    pub damaged: Vec<DamagedRow>,
    /// Whether it was ended before it was through: then nothing else is said.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelled: bool,
}

impl CheckDocument {
    /// Says whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty() && self.damaged.is_empty()
    }
}

/// What a check found about the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum CheckedIndex {
    /// It was not compared.
    #[serde(rename = "not compared")]
    NotCompared,
    /// It says what packs and manifests say.
    #[serde(rename = "agrees")]
    Agrees,
    /// It says something else.
    #[serde(rename = "differs")]
    Differs,
    /// It said something else, and was made anew.
    #[serde(rename = "replaced")]
    Replaced,
}

impl From<CheckIndex> for CheckedIndex {
    fn from(index: CheckIndex) -> Self {
        match index {
            CheckIndex::NotCompared => Self::NotCompared,
            CheckIndex::Agrees => Self::Agrees,
            CheckIndex::Differs => Self::Differs,
            CheckIndex::Replaced => Self::Replaced,
        }
    }
}

/// A segment that is not what it must be.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DamagedRow {
    /// Its SHA-1.
    pub segment: String,
    /// Its twin number.
    pub twin: u16,
    /// What is wrong, in words.
    pub error: String,
    /// Where each of its damaged copies lies.
    pub places: Vec<String>,
    /// The backups that cannot be restored in full.
    pub backups: Vec<String>,
}

impl From<DamagedSegmentReport> for DamagedRow {
    fn from(damaged: DamagedSegmentReport) -> Self {
        Self {
            segment: damaged.key.hash.to_string(),
            twin: damaged.key.twin.0,
            error: damaged.error,
            places: damaged.places.iter().map(ToString::to_string).collect(),
            backups: damaged.backups.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<CheckSummary> for CheckDocument {
    fn from(summary: CheckSummary) -> Self {
        Self {
            backups: summary.backups,
            segments: summary.segments,
            garbage_segments: summary.garbage_segments,
            read_bytes: summary.read_bytes,
            index: summary.index.into(),
            quarantined_segments: summary.quarantined_segments,
            problems: summary.problems,
            damaged: summary.damaged.into_iter().map(DamagedRow::from).collect(),
            cancelled: summary.cancelled,
        }
    }
}

/// What a project is told of a check of the whole repository: what concerns its own backups.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CheckedBackups {
    /// How many backups the project has.
    pub backups: u64,
    /// Those that cannot be restored in full: their manifest is damaged, or a segment of theirs is.
    pub damaged: Vec<String>,
    /// How many lists of backups cannot be read: backups of the project may be missing here.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub unreadable_lists: u64,
    /// Whether it was ended before it was through: then nothing else is said.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelled: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_nothing(number: &u64) -> bool {
    *number == 0
}

impl CheckedBackups {
    /// Takes from what a check found what is seen in a view. The manifests that are seen are looked at once more.
    ///
    /// # Errors
    ///
    /// If the lists of backups cannot be read.
    pub fn of(summary: &CheckSummary, repository: &Repository, view: &View) -> Result<Self, RepositoryError> {
        let (sets, problems) = repository.backupsets()?;
        let hurt: BTreeSet<_> =
            summary.damaged.iter().flat_map(|segment| &segment.backups).map(ToString::to_string).collect();
        let seen = view.seen(sets);
        let incomplete = repository.incomplete_moments(&seen)?;
        let unreadable_lists = problems.len() as u64;
        let (damaged, cancelled) = (Vec::new(), summary.cancelled);
        let mut document = Self { backups: 0, damaged, unreadable_lists, cancelled };
        for (set, backup) in seen.iter().flat_map(|set| set.backups.iter().map(move |backup| (set, backup))) {
            document.backups += 1;
            let opened = repository.manifest(set, backup).and_then(|manifest| Ok(manifest.verify()?));
            // The check named it as the owner does.
            let id = BackupId::of(set, backup).to_string();
            if opened.is_err() || hurt.contains(&id) || incomplete.contains_key(&(set.id, backup.incremental))
            {
                document.damaged.push(view.backup_id(set, backup));
            }
        }
        Ok(document)
    }
}

/// Whether every image has a fresh, whole backup.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct StatusDocument {
    /// How it stands with each image, by name.
    pub names: Vec<StatusRow>,
    /// What could not be read, so that images may be missing here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

impl StatusDocument {
    /// Says whether there are images, and all is well with each of them.
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty() && !self.names.is_empty() && self.names.iter().all(|name| name.ok)
    }
}

/// How it stands with one image.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct StatusRow {
    /// Its name.
    pub name: String,
    /// Whether its newest backup is fresh and whole.
    pub ok: bool,
    /// Its newest backup.
    pub backup: Option<String>,
    /// When that was begun.
    #[schema(format = DateTime)]
    pub timestamp: Option<String>,
    /// What is wrong, in words.
    pub problem: Option<String>,
    /// The last attempt to back it up, if that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureRow>,
}

/// A backup that failed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FailureRow {
    /// When.
    #[schema(format = DateTime)]
    pub time: String,
    /// Why, in words; nothing of a first backup that is running or was interrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a client reports of a backup that failed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailureReport {
    /// Why, in words. Ekko keeps the first 500 bytes.
    pub reason: String,
}

/// What a project is told of lists and packs that cannot be read: they may be those of others.
const UNREADABLE: &str = "a list of backups or a pack cannot be read, so images may be missing here; the owner of the repository can see which";
/// What a project is told of a damaged manifest.
const MANIFEST_DAMAGED: &str = "the manifest of its newest backup is damaged or missing";
/// What a project is told of a backup that failed on the machine that has the repository.
const FAILED_HERE: &str = "the owner of the repository can see why";

/// Notes problems that are told.
struct Noted<'a> {
    progress: &'a dyn Progress,
    problems: Mutex<Vec<String>>,
}

impl Progress for Noted<'_> {
    fn notice(&self, notice: Notice) {
        match notice {
            Notice::Problem { what, .. } => {
                self.problems.lock().unwrap_or_else(PoisonError::into_inner).push(what);
            }
            notice => self.progress.notice(notice),
        }
    }

    fn is_cancelled(&self) -> bool {
        self.progress.is_cancelled()
    }
}

/// Looks at the newest backup of every image that is seen.
///
/// # Errors
///
/// As [`status`].
pub fn status_of(
    repository: &Repository,
    view: &View,
    options: &StatusOptions,
    progress: &dyn Progress,
) -> Result<StatusDocument, CheckError> {
    let row = |status: NameStatus| {
        let name = view.shown(&status.name)?.to_owned();
        let backup = status.newest.as_ref().map(|(id, _)| format!("{name}@{}", id.number));
        Some(StatusRow {
            ok: status.problem.is_none(),
            backup,
            timestamp: status.newest.map(|(_, timestamp)| timestamp.to_string()),
            problem: status.problem.map(|problem| match problem {
                // It names the path of a file, which concerns the owner alone.
                StatusProblem::Manifest { .. } if view.project().is_some() => MANIFEST_DAMAGED.to_owned(),
                StatusProblem::Shrank { .. } | StatusProblem::Incomplete { .. } => {
                    view.in_words(&problem.to_string())
                }
                problem => problem.to_string(),
            }),
            failure: status.failure.map(|failure| FailureRow {
                time: failure.time.to_string(),
                reason: match view.project() {
                    // It may name paths of this machine.
                    Some(_) if !failure.is_reported => failure.reason.map(|_| FAILED_HERE.to_owned()),
                    _ => failure.reason,
                },
            }),
            name,
        })
    };
    let noted = Noted { progress, problems: Mutex::default() };
    let names = status(repository, options, &noted)?.into_iter().filter_map(row).collect();
    let mut problems = noted.problems.into_inner().unwrap_or_else(PoisonError::into_inner);
    if view.project().is_some() && !problems.is_empty() {
        problems = vec![UNREADABLE.to_owned()];
    }
    Ok(StatusDocument { names, problems })
}
