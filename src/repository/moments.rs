//! Which backups of disks belong to which moments of machines.
//!
//! The list of backups says it of each moment. So it is known without reading a moment's archive, which may be damaged.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};

use crate::manifest::{BackupsetId, Incremental};
use crate::repository::{BackupId, BackupRecord, Backupset, Repository, RepositoryError};

/// The moments of machines among backupsets, and which backups those backupsets list.
#[derive(Debug, Default)]
pub struct Moments<'a> {
    of_disks: HashMap<(BackupsetId, Incremental), Vec<(&'a Backupset, &'a BackupRecord)>>,
    existing: HashSet<(BackupsetId, Incremental)>,
}

impl<'a> Moments<'a> {
    /// Finds the moments among backupsets.
    pub fn among<B: Borrow<Backupset>>(sets: &'a [B]) -> Self {
        let mut moments = Self::default();
        for set in sets.iter().map(Borrow::borrow) {
            for record in &set.backups {
                moments.existing.insert((set.id, record.incremental));
                for disk in &record.disks {
                    moments.of_disks.entry(*disk).or_default().push((set, record));
                }
            }
        }
        moments
    }

    /// Returns the existing moments that consist of a backup, among others.
    pub fn with(&self, disk: (BackupsetId, Incremental)) -> &[(&'a Backupset, &'a BackupRecord)] {
        self.of_disks.get(&disk).map_or(&[], Vec::as_slice)
    }

    /// Returns the backups of disks that a moment lacks.
    pub fn missing<'r>(
        &self,
        moment: &'r BackupRecord,
    ) -> impl Iterator<Item = (BackupsetId, Incremental)> + use<'_, 'r, 'a> {
        moment.disks.iter().copied().filter(|disk| !self.existing.contains(disk))
    }
}

/// Returns the moments that lack backups of disks.
fn incomplete<B: Borrow<Backupset>>(sets: &[B]) -> HashMap<(BackupsetId, Incremental), Vec<String>> {
    let moments = Moments::among(sets);
    let records = sets.iter().map(Borrow::borrow).flat_map(|set| set.backups.iter().map(move |it| (set, it)));
    let lacks = records.map(|(set, record)| {
        let missing = moments.missing(record).map(|disk| in_words(sets, disk)).collect::<Vec<_>>();
        ((set.id, record.incremental), missing)
    });
    lacks.filter(|(_, missing)| !missing.is_empty()).collect()
}

/// Names a backup that is not there.
fn in_words<B: Borrow<Backupset>>(sets: &[B], (id, incremental): (BackupsetId, Incremental)) -> String {
    let set = sets.iter().map(Borrow::borrow).find(|set| set.id == id);
    let deleted =
        set.and_then(|set| Some((set, set.deleted.iter().find(|it| it.record.incremental == incremental)?)));
    match (deleted, set) {
        (Some((set, deleted)), _) => {
            let backup = BackupId::of(set, &deleted.record);
            format!("{backup} (deleted: \"ekko undelete {backup}\" restores it)")
        }
        (None, Some(set)) => format!("a backup of {} ({id}@{incremental})", set.name),
        (None, None) => format!("{id}@{incremental}"),
    }
}

impl Repository {
    /// Returns the moments among backupsets that lack backups of disks, and names these.
    ///
    /// # Errors
    /// The lists of backups cannot be read.
    pub fn incomplete_moments<B: Borrow<Backupset>>(
        &self,
        sets: &[B],
    ) -> Result<HashMap<(BackupsetId, Incremental), Vec<String>>, RepositoryError> {
        let mut found = incomplete(sets);
        if !found.is_empty() {
            // Lists are read one after the other, and a machine may have been backed up or deleted meanwhile.
            let again = incomplete(&self.backupsets()?.0);
            found.retain(|moment, _| again.contains_key(moment));
        }
        Ok(found)
    }
}
