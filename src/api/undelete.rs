//! Documents about deleted backups that are restored to their lists.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::{BackupRef, View};
use crate::manifest::{BackupsetId, Incremental};
use crate::progress::Progress;
use crate::repository::{
    BackupRange, BackupRecord, Backupset, Changed, Deletion, RepositoryError, RepositoryWriter, SharedWriter,
};

/// Deleted backups that are to be undeleted: all of them, or none.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UndeleteRequest {
    /// `NAME@NUMBER`, `NAME@FIRST-LAST` or `NAME@all`, with a backupset's UUID in place of the name if need be.
    #[schema(min_items = 1)]
    pub backups: Vec<String>,
}

/// Backups that were undeleted.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct UndeleteDocument {
    /// The backups.
    pub undeleted: Vec<BackupRef>,
    /// Those that were asked for and are not deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_deleted: Vec<BackupRef>,
    /// Moments of machines of which the backup of a disk is gone: they lack it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<BackupRef>,
}

/// Undeletes backups: all of them, or none. Those that are not deleted stay as they are. A machine's moment brings the deleted backups
/// of its disks with it.
///
/// # Errors
///
/// There are no such deleted backups, or several are meant by a bare name. One cannot be undeleted, because its manifest or a segment
/// is gone. Then none comes back.
pub fn undelete(
    writer: &SharedWriter,
    view: &View,
    asked: &[BackupRange],
    progress: &dyn Progress,
) -> Result<UndeleteDocument, RepositoryError> {
    let seen = view.sets(writer.repository())?.0;
    let (mut undeleted, mut not_deleted, mut incomplete) = (Vec::new(), Vec::new(), Vec::new());
    let (mut backups, mut known) = (Vec::new(), HashSet::new());
    for range in asked {
        let addressee = view.addressee(&seen, &range.name)?;
        let deleted = range.deleted(&addressee)?;
        if deleted.is_empty() {
            // Most likely an earlier answer was lost, or the command was typed twice.
            let there = range.backups(&addressee);
            let there = there.map_err(|_| RepositoryError::NoneDeleted { what: range.to_string() })?;
            not_deleted.extend(there.into_iter().map(|(set, record)| BackupRef::of(view, set, record)));
            continue;
        }
        for (set, moment) in deleted {
            let record = &moment.record;
            let disks: Vec<_> = record.disks.iter().map(|disk| Disk::find(&seen, *disk)).collect();
            if disks.contains(&Disk::Gone) {
                incomplete.push(BackupRef::of(view, set, record));
            }
            let disks = disks.into_iter().filter_map(|disk| match disk {
                Disk::Deleted(set, record) => Some((set, record)),
                Disk::Exists | Disk::Gone => None,
            });
            for (set, record) in disks.chain([(set, record)]) {
                let backup = Deletion { backupset: set.id, incremental: record.incremental };
                if known.insert(backup) {
                    backups.push(backup);
                    undeleted.push(BackupRef::of(view, set, record));
                }
            }
        }
    }
    let undelete = |writer: &RepositoryWriter| writer.undelete_all(&backups);
    writer.run_job(progress, |changed: &Changed| changed.replace_index, undelete)?;
    Ok(UndeleteDocument { undeleted, not_deleted, incomplete })
}

/// The backup of a disk of a deleted moment.
#[derive(Debug, PartialEq, Eq)]
enum Disk<'a> {
    Exists,
    Deleted(&'a Backupset, &'a BackupRecord),
    Gone,
}

impl<'a> Disk<'a> {
    fn find(seen: &'a [Arc<Backupset>], (id, incremental): (BackupsetId, Incremental)) -> Self {
        let Some(set) = seen.iter().find(|set| set.id == id) else { return Self::Gone };
        let is_it = |record: &&BackupRecord| record.incremental == incremental;
        match set.deleted.iter().map(|deleted| &deleted.record).find(is_it) {
            Some(record) => Self::Deleted(set, record),
            None if set.backups.iter().any(|record| is_it(&record)) => Self::Exists,
            None => Self::Gone,
        }
    }
}
