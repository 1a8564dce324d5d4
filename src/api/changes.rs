//! Documents about what changes a repository: backups that go, protection, garbage that is collected.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::View;
use crate::progress::Progress;
use crate::repository::{
    BackupRecord, BackupSelector, Backupset, Deletion, GcOptions, GcSummary, Protection, RepositoryError,
    SharedWriter,
};

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
