//! Which backups go, found and checked before the first of them does.

use std::collections::{HashMap, HashSet};

use crate::api::{BackupRef, View};
use crate::manifest::{BackupsetId, Incremental};
use crate::progress::Progress;
use crate::repository::{
    BackupRange, BackupRecord, Backupset, Changed, Deletion, Moments, RepositoryError, SharedWriter,
};
use crate::segment::Fingerprint;

/// Backups that are to go.
#[derive(Clone, Debug, Default)]
pub struct DeletionPlan {
    /// How they are named.
    pub rows: Vec<BackupRef>,
    /// How many bytes no backup needs any longer then, as [`DeleteDocument::freed_bytes`](crate::api::DeleteDocument::freed_bytes)
    /// has it.
    pub freed_bytes: Option<u64>,
    deletions: Vec<Deletion>,
    /// How many of them go at one moment, one number for each moment.
    groups: Vec<usize>,
}

/// Returns a text that is the same for the same backups under the same names, and another one for any others.
pub fn plan_of(rows: &[BackupRef]) -> String {
    let line = |row: &BackupRef| format!("{}@{} {}", row.backupset, row.incremental, row.backup);
    // No name contains a newline.
    let text = rows.iter().map(line).collect::<Vec<_>>().join("\n");
    Fingerprint::of(text.as_bytes()).to_string()
}

impl DeletionPlan {
    /// Finds backups that a person named: with `machines`, moments of machines, and the backups of their disks.
    ///
    /// # Errors
    ///
    /// If one of them is not there, is not named exactly, is protected, belongs to a machine's moment that stays, or, with
    /// `machines`, is no moment of a machine.
    pub fn of(
        writer: &SharedWriter,
        view: &View,
        asked: &[BackupRange],
        machines: bool,
    ) -> Result<Self, RepositoryError> {
        let seen = view.sets(writer.repository())?.0;
        let mut found = Vec::new();
        for range in asked {
            range.check()?;
            for moment in range.backups(&view.addressee(&seen, &range.name)?)? {
                if machines {
                    let (set, backup) = moment;
                    if !backup.is_machine {
                        return Err(RepositoryError::NotAMachine { backup: view.backup_id(set, backup) });
                    }
                    found.extend(backup.disks.iter().filter_map(|disk| find(&seen, *disk)));
                }
                found.push(moment);
            }
        }
        let mut plan = Self::default();
        for (set, backup) in found {
            let row = BackupRef::of(view, set, backup);
            if backup.protection.holds(crate::time::now()) {
                return Err(RepositoryError::Protected { backup: row.backup });
            }
            plan.add(row, set, backup);
        }
        let moments = Moments::among(&seen);
        plan.check_parts(view, &moments)?;
        plan.group(&moments);
        if machines {
            plan.groups = vec![plan.deletions.len()];
        }
        plan.count(writer, view)?;
        Ok(plan)
    }

    /// Adds a backup, unless it is there.
    pub(super) fn add(&mut self, row: BackupRef, set: &Backupset, backup: &BackupRecord) {
        let deletion = Deletion { backupset: set.id, incremental: backup.incremental };
        if !self.deletions.contains(&deletion) {
            self.rows.push(row);
            self.deletions.push(deletion);
        }
    }

    /// Makes sure that no backup goes that a machine's moment consists of which stays.
    fn check_parts(&self, view: &View, moments: &Moments<'_>) -> Result<(), RepositoryError> {
        let goes: HashSet<_> = self.deletions.iter().map(key).collect();
        for (row, deletion) in self.rows.iter().zip(&self.deletions) {
            let mut stays = moments.with(key(deletion)).iter();
            if let Some((set, moment)) =
                stays.find(|(set, moment)| !goes.contains(&(set.id, moment.incremental)))
            {
                let (backup, moment) = (row.backup.clone(), view.backup_id(set, moment));
                return Err(RepositoryError::PartOfMachine { backup, moment });
            }
        }
        Ok(())
    }

    /// Puts beside each other what goes at one moment: the backups of a backupset, and moments of machines with their disks.
    pub(super) fn group(&mut self, moments: &Moments<'_>) {
        let sets: HashSet<_> = self.deletions.iter().map(|deletion| deletion.backupset).collect();
        let mut parents: HashMap<BackupsetId, BackupsetId> = HashMap::new();
        let links = self.deletions.iter().flat_map(|deletion| {
            moments.with(key(deletion)).iter().map(move |(moment, _)| (deletion.backupset, moment.id))
        });
        for (disk, machine) in links.filter(|(_, machine)| sets.contains(machine)) {
            let (disk, machine) = (root(&parents, disk), root(&parents, machine));
            if disk != machine {
                parents.insert(disk, machine);
            }
        }
        let mut places: HashMap<BackupsetId, usize> = HashMap::new();
        for deletion in &self.deletions {
            let next = places.len();
            places.entry(root(&parents, deletion.backupset)).or_insert(next);
        }
        let place = |deletion: &Deletion| places.get(&root(&parents, deletion.backupset)).copied();
        let rows = std::mem::take(&mut self.rows);
        let mut sorted: Vec<_> = rows.into_iter().zip(std::mem::take(&mut self.deletions)).collect();
        sorted.sort_by_key(|(_, deletion)| place(deletion));
        (self.rows, self.deletions) = sorted.into_iter().unzip();
        let groups = self.deletions.chunk_by(|one, other| place(one) == place(other));
        self.groups = groups.map(<[Deletion]>::len).collect();
    }

    /// Works out what becomes free, for whom that may concern.
    pub(super) fn count(&mut self, writer: &SharedWriter, view: &View) -> Result<(), RepositoryError> {
        if view.project().is_none() {
            self.freed_bytes = writer.with(|writer| writer.would_free(&self.deletions))?;
        }
        Ok(())
    }

    /// Deletes them until that is through or it is told to stop: those of a backupset at one moment, and those of a machine. Says of
    /// how many that is durable.
    ///
    /// # Errors
    ///
    /// If some cannot be deleted; those before them are.
    pub fn apply(&self, writer: &SharedWriter, progress: &dyn Progress) -> Result<usize, RepositoryError> {
        let replace = |changed: &Changed| changed.replace_index;
        let (mut done, mut rest) = (0, self.deletions.as_slice());
        for length in &self.groups {
            let Some((group, others)) = rest.split_at_checked(*length) else { break };
            if progress.is_cancelled() {
                return Ok(done);
            }
            writer.run_job(progress, replace, |writer| writer.delete_all(group))?;
            done += group.len();
            rest = others;
        }
        Ok(done)
    }
}

fn key(deletion: &Deletion) -> (BackupsetId, Incremental) {
    (deletion.backupset, deletion.incremental)
}

/// Returns what stands for all backupsets that are linked with one.
fn root(parents: &HashMap<BackupsetId, BackupsetId>, mut set: BackupsetId) -> BackupsetId {
    while let Some(parent) = parents.get(&set) {
        set = *parent;
    }
    set
}

/// Finds a backup by its backupset.
pub(super) fn find<B: std::borrow::Borrow<Backupset>>(
    sets: &[B],
    (id, incremental): (BackupsetId, Incremental),
) -> Option<(&Backupset, &BackupRecord)> {
    let set = sets.iter().map(std::borrow::Borrow::borrow).find(|set: &&Backupset| set.id == id)?;
    Some((set, set.backups.iter().find(|record| record.incremental == incremental)?))
}
