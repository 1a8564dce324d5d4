//! Documents about what changes a repository: backups that go, protection, garbage that is collected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::View;
use crate::manifest::ImageName;
use crate::progress::Progress;
use crate::repository::retention::{Candidate, FUTURE, NEWEST, PROTECTED, RetentionPolicy};
use crate::repository::{
    BackupRange, BackupRecord, BackupSelector, Backupset, Changed, Deletion, GcOptions, GcSummary,
    Protection, Repository, RepositoryError, SharedWriter,
};
use crate::segment::Fingerprint;

/// A backup that goes, comes back or stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupRef {
    /// How it is named.
    pub backup: String,
    /// Its backupset.
    pub backupset: String,
    /// Its number among the backups of its image: the 7 of `web@7`.
    pub number: u32,
    /// Its number in its backupset.
    pub incremental: u32,
    /// When it was begun.
    #[schema(format = DateTime)]
    pub timestamp: String,
}

impl BackupRef {
    /// Names a backup as it is seen in a view.
    pub fn of(view: &View, set: &Backupset, backup: &BackupRecord) -> Self {
        Self {
            backup: view.backup_id(set, backup),
            backupset: set.id.to_string(),
            number: backup.number.0,
            incremental: backup.incremental.0,
            timestamp: backup.timestamp.to_string(),
        }
    }
}

/// What a collection did, or would do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GcDocument {
    /// Whether it is only said what would be freed.
    pub dry_run: bool,
    /// Deleted backups that can be undeleted no longer.
    pub purged_backups: u64,
    /// Segments that were freed.
    pub freed_segments: u64,
    /// Bytes of packs that they took.
    pub freed_bytes: u64,
    /// Deleted backups that can still be undeleted.
    pub kept_backups: u64,
    /// Bytes of packs that they alone need.
    pub kept_bytes: u64,
    /// When the last of them can be undeleted no longer, at the earliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub kept_until: Option<String>,
    /// Packs that were removed as a whole.
    pub unlinked_packs: u64,
    /// Bytes that were moved out of packs in which little lived.
    pub moved_bytes: u64,
    /// Segments of unfinished backups that are kept for their next run.
    pub unfinished_segments: u64,
    /// Bytes of packs that they take.
    pub unfinished_bytes: u64,
    /// Bytes of manifests that were compared with what was to go.
    pub compared_bytes: u64,
    /// How long that took.
    pub comparing_seconds: f64,
    /// Why nothing, or not all, was freed.
    pub problems: Vec<String>,
    /// Whether it was ended before it was through: what it freed is free, the rest waits for the next one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelled: bool,
}

/// Collects garbage.
///
/// # Errors
///
/// As [`RepositoryWriter::gc`](crate::repository::RepositoryWriter::gc).
pub fn collect(
    writer: &SharedWriter,
    options: &GcOptions<'_>,
    progress: &dyn Progress,
) -> Result<GcDocument, RepositoryError> {
    let replace = |summary: &GcSummary| summary.replace_index;
    let summary = writer.run_job(progress, replace, |writer| writer.gc(options, progress))?;
    Ok(GcDocument {
        dry_run: options.dry_run,
        purged_backups: summary.purged_backups,
        freed_segments: summary.freed_segments,
        freed_bytes: summary.freed_bytes,
        kept_backups: summary.kept_backups,
        kept_bytes: summary.kept_bytes,
        kept_until: (summary.kept_backups > 0).then(|| end_of(summary.kept_for)),
        unlinked_packs: summary.unlinked_packs,
        moved_bytes: summary.moved_bytes,
        unfinished_segments: summary.unfinished_segments,
        unfinished_bytes: summary.unfinished_bytes,
        compared_bytes: summary.compared_bytes,
        comparing_seconds: summary.comparing.as_secs_f64(),
        problems: summary.problems,
        cancelled: summary.cancelled,
    })
}

/// Returns when a period ends of which so much is left, to the minute: it ends later if the machine is off meanwhile.
pub(super) fn end_of(left: Duration) -> String {
    let end = crate::time::now().checked_add(left).unwrap_or(jiff::Timestamp::MAX);
    end.round(jiff::Unit::Minute).unwrap_or(end).to_string()
}

/// Backups that were deleted, or would be.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeleteDocument {
    /// Whether it is only said what would be deleted.
    pub dry_run: bool,
    /// The backups.
    pub deleted: Vec<BackupRef>,
    /// How many bytes no backup needs any longer then. Nothing if a damaged manifest keeps it from being known, and
    /// never for a project: it would say what others have stored.
    pub freed_bytes: Option<u64>,
    /// For how many seconds they can be undeleted, unless they are collected before.
    #[serde(default)]
    pub keep_deleted_seconds: u64,
    /// What the collection did that came after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gc: Option<GcDocument>,
}

/// Backups that are to go.
#[derive(Clone, Debug, Default)]
pub struct DeletionPlan {
    /// Whether all of them go at one moment. Else those of each backupset do.
    pub together: bool,
    /// How they are named.
    pub rows: Vec<BackupRef>,
    /// How many bytes no backup needs any longer then, as [`DeleteDocument::freed_bytes`] has it.
    pub freed_bytes: Option<u64>,
    deletions: Vec<Deletion>,
}

/// Returns a text that is the same for the same backups under the same names, and another one for any others.
pub fn plan_of(rows: &[BackupRef]) -> String {
    let line = |row: &BackupRef| format!("{}@{} {}", row.backupset, row.incremental, row.backup);
    // No name contains a newline.
    let text = rows.iter().map(line).collect::<Vec<_>>().join("\n");
    Fingerprint::of(text.as_bytes()).to_string()
}

impl DeletionPlan {
    /// Finds backups that a person named.
    ///
    /// # Errors
    ///
    /// If one of them is not there, is not named exactly, or is protected.
    pub fn of(writer: &SharedWriter, view: &View, asked: &[BackupRange]) -> Result<Self, RepositoryError> {
        let seen = view.sets(writer.repository())?.0;
        let mut found = Vec::new();
        for range in asked {
            range.check()?;
            found.extend(range.backups(&view.addressee(&seen, &range.name)?)?);
        }
        Self::of_backups(writer, view, &found)
    }

    /// Makes a plan of backups that were found.
    ///
    /// # Errors
    ///
    /// If one of them is protected.
    pub fn of_backups(
        writer: &SharedWriter,
        view: &View,
        found: &[(&Backupset, &BackupRecord)],
    ) -> Result<Self, RepositoryError> {
        let mut plan = Self::default();
        for (set, backup) in found {
            let row = BackupRef::of(view, set, backup);
            if backup.protection.holds(crate::time::now()) {
                return Err(RepositoryError::Protected { backup: row.backup });
            }
            plan.add(row, set, backup);
        }
        plan.count(writer, view)?;
        Ok(plan)
    }

    fn add(&mut self, row: BackupRef, set: &Backupset, backup: &BackupRecord) {
        let deletion = Deletion { backupset: set.id, incremental: backup.incremental };
        if !self.deletions.contains(&deletion) {
            self.rows.push(row);
            self.deletions.push(deletion);
        }
    }

    /// Works out what becomes free, for whom that may concern.
    fn count(&mut self, writer: &SharedWriter, view: &View) -> Result<(), RepositoryError> {
        if view.project().is_none() {
            self.freed_bytes = writer.with(|writer| writer.would_free(&self.deletions))?;
        }
        Ok(())
    }

    /// Deletes them until that is through or it is told to stop: those of a backupset at one moment, or all of them. Says of how many
    /// that is durable.
    ///
    /// # Errors
    ///
    /// If some cannot be deleted; those before them are.
    pub fn apply(&self, writer: &SharedWriter, progress: &dyn Progress) -> Result<usize, RepositoryError> {
        let replace = |changed: &Changed| changed.replace_index;
        let same = |one: &Deletion, other: &Deletion| self.together || one.backupset == other.backupset;
        let mut done = 0;
        for group in self.deletions.chunk_by(same) {
            if progress.is_cancelled() {
                return Ok(done);
            }
            writer.run_job(progress, replace, |writer| writer.delete_all(group))?;
            done += group.len();
        }
        Ok(done)
    }
}

/// What a policy kept and what it deleted, or would.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ForgetDocument {
    /// Whether it is only said what would be deleted.
    pub dry_run: bool,
    /// What is kept.
    pub kept: Vec<KeptBackup>,
    /// What was deleted.
    pub deleted: Vec<BackupRef>,
    /// How many bytes no backup needs any longer then. Nothing if a damaged manifest keeps it from being known, and
    /// never for a project: it would say what others have stored.
    pub freed_bytes: Option<u64>,
    /// For how many seconds what was deleted can be undeleted, unless it is collected before.
    #[serde(default)]
    pub keep_deleted_seconds: u64,
    /// What the collection did that came after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gc: Option<GcDocument>,
    /// Names that were left alone, because the rules would keep none of their backups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
    /// Whether it was ended before it was through: what is listed as deleted is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelled: bool,
    /// Of a dry run: stands for these deletions. A job with this `plan` deletes these backups or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
}

/// A backup that is kept, and why.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct KeptBackup {
    /// The backup.
    #[serde(flatten)]
    pub row: BackupRef,
    /// The rules that keep it.
    pub reasons: Vec<String>,
}

/// The reason of a backup of a refused name.
pub const REFUSED: &str = "refused";

/// What a policy keeps, and what goes.
#[derive(Clone, Debug, Default)]
pub struct ForgetPlan {
    /// What is kept.
    pub kept: Vec<KeptBackup>,
    /// What goes.
    pub goes: DeletionPlan,
    /// Names of which the rules would keep no backup: all of theirs are kept.
    pub refused: Vec<String>,
}

impl ForgetPlan {
    /// Divides the backups of each name that is seen, or of the one that is named, into what is kept and what goes.
    ///
    /// The newest backup of a name is always kept. A name of which no rule keeps any backup is refused, and keeps all of them:
    /// the policy has a typo, or does not fit it. With `allow_empty`, it loses all of them.
    ///
    /// # Errors
    ///
    /// If there is none of that name, or a list of backups cannot be read: what it holds would be missing from the plan.
    pub fn of(
        writer: &SharedWriter,
        view: &View,
        policy: &RetentionPolicy,
        name: Option<&ImageName>,
        allow_empty: bool,
    ) -> Result<Self, RepositoryError> {
        let (seen, problems) = view.sets(writer.repository())?;
        if let Some(problem) = problems.into_iter().next() {
            return Err(problem);
        }
        let mut plan = Self::divide(view, &seen, policy, name, allow_empty);
        if let Some(name) = name.filter(|_| plan.kept.is_empty() && plan.goes.rows.is_empty()) {
            let path = writer.repository().layout().root().to_owned();
            let what = view.shown(name).unwrap_or_default().to_owned();
            if !what.is_empty() {
                // It has no backup, or it is no name.
                view.addressee(&seen, &what)?;
            }
            return Err(RepositoryError::NoSuchBackup { path, what });
        }
        plan.goes.count(writer, view)?;
        Ok(plan)
    }

    fn divide(
        view: &View,
        seen: &[Arc<Backupset>],
        policy: &RetentionPolicy,
        name: Option<&ImageName>,
        allow_empty: bool,
    ) -> Self {
        let now = crate::time::now();
        let mut names: BTreeMap<&ImageName, Vec<(&Backupset, &BackupRecord)>> = BTreeMap::new();
        for set in seen.iter().filter(|set| name.is_none_or(|name| set.name == *name)) {
            let backups = set.backups.iter().map(|backup| (&**set, backup));
            names.entry(&set.name).or_default().extend(backups);
        }
        let mut plan = Self::default();
        for (name, backups) in names {
            let candidates: Vec<_> = backups
                .iter()
                .map(|(_, backup)| Candidate {
                    timestamp: backup.timestamp,
                    order: backup.number.0,
                    tags: &backup.tags,
                    protected: backup.protection.holds(now),
                })
                .collect();
            let mut reasons = policy.apply(&candidates, now);
            // Neither protection nor a date in the future is a rule of the policy.
            let rules_keep = reasons.iter().flatten().any(|why| ![PROTECTED, FUTURE].contains(why));
            let would_delete = reasons.iter().any(Vec::is_empty);
            let is_refused = !rules_keep && would_delete && !allow_empty;
            if is_refused {
                plan.refused.push(view.shown(name).unwrap_or_default().to_owned());
            }
            let newest = Repository::newest(seen, name).map(|(set, backup)| (set.id, backup.incremental));
            for ((set, backup), why) in backups.iter().zip(&mut reasons) {
                let is_newest = newest == Some((set.id, backup.incremental));
                if why.is_empty() && (is_refused || is_newest && rules_keep) {
                    why.push(if is_refused { REFUSED } else { NEWEST });
                }
            }
            for ((set, backup), reasons) in backups.into_iter().zip(reasons) {
                let row = BackupRef::of(view, set, backup);
                if reasons.is_empty() {
                    plan.goes.add(row, set, backup);
                } else {
                    let reasons = reasons.into_iter().map(str::to_owned).collect();
                    plan.kept.push(KeptBackup { row, reasons });
                }
            }
        }
        plan
    }
}

/// How a backup is protected.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ProtectionRequest {
    /// Until when, if not for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub until: Option<String>,
    /// Whether the protection may end earlier than it does now.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shorten: bool,
}

/// Whether a backup may be deleted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProtectionDocument {
    /// The backup.
    pub backup: String,
    /// Whether it may not.
    pub protected: bool,
    /// Until when, if not for ever.
    #[schema(format = DateTime)]
    pub until: Option<String>,
}

/// Protects a backup from being deleted, or no longer.
///
/// # Errors
///
/// There is no such backup, or the view does not contain it. Without `shorten`: it is protected for longer.
pub fn protect(
    writer: &SharedWriter,
    view: &View,
    asked: &BackupSelector,
    protection: Protection,
    shorten: bool,
) -> Result<ProtectionDocument, RepositoryError> {
    let repository = writer.repository();
    let seen = view.sets(repository)?.0;
    let (set, backup) = view.find(repository, &seen, asked)?;
    let changed = Deletion { backupset: set.id, incremental: backup.incremental };
    writer.with(|writer| writer.protect(changed, protection, shorten)).map_err(|error| match error {
        RepositoryError::ProtectedLonger { until, longer, .. } => {
            RepositoryError::ProtectedLonger { backup: view.backup_id(set, backup), until, longer }
        }
        error => error,
    })?;
    Ok(ProtectionDocument {
        backup: view.backup_id(set, backup),
        protected: protection != Protection::None,
        until: match protection {
            Protection::Until(end) => Some(end.to_string()),
            Protection::None | Protection::Always => None,
        },
    })
}

#[cfg(test)]
mod tests;
