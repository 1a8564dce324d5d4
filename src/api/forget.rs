//! What a policy keeps and what it deletes.
//!
//! The rules of [`retention`](crate::repository::retention) look at one name. This module adds what no rule may overlook:
//!
//! - A machine's moment and the backups of its disks stay together. A backup that a moment consists of which stays is kept.
//! - A backup with a flaw takes no place of a rule, and the newest intact backup of a name stays.
//! - The newest backup that is larger than the newest one stays: the disk shrank, or something else was backed up in its place.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::deletion::find;
use crate::api::{BackupRef, DeletionPlan, GcDocument, View};
use crate::check::{CheckError, damaged_backups};
use crate::manifest::{BackupsetId, ImageName, Incremental};
use crate::repository::retention::{
    Candidate, FUTURE, INTACT, LARGER, NEWEST, PROTECTED, RetentionPolicy, is_to_come,
};
use crate::repository::{BackupRecord, Backupset, Moments, Repository, RepositoryError, SharedWriter};

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

impl ForgetDocument {
    /// Says whether everything was done: only then is the space of deleted backups freed at once.
    pub fn is_complete(&self) -> bool {
        self.refused.is_empty() && !self.cancelled
    }
}

/// A backup that is kept, and why.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct KeptBackup {
    /// The backup.
    #[serde(flatten)]
    pub row: BackupRef,
    /// The rules that keep it.
    pub reasons: Vec<String>,
    /// The flaw because of which it takes no place of a rule, as `list` marks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flaw: Option<String>,
}

/// The reason of a backup of a refused name.
pub const REFUSED: &str = "refused";

/// A backup by its backupset.
type Key = (BackupsetId, Incremental);

fn key((set, backup): &(&Backupset, &BackupRecord)) -> Key {
    (set.id, backup.incremental)
}

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
    /// The newest backup of a name is always kept, and the newest intact one. A name of which no rule keeps any backup is refused, and
    /// keeps all of them: the policy has a typo, or does not fit it. With `allow_empty`, it loses all of them. If a machine is named,
    /// moments of it that go take the backups of their disks with them.
    ///
    /// # Errors
    ///
    /// If there is none of that name, or a list of backups cannot be read: what it holds would be missing from the plan. If it cannot
    /// be found out which backups are damaged.
    pub fn of(
        writer: &SharedWriter,
        view: &View,
        policy: &RetentionPolicy,
        name: Option<&ImageName>,
        allow_empty: bool,
    ) -> Result<Self, RepositoryError> {
        let repository = writer.repository();
        let (seen, problems) = view.sets(repository)?;
        if let Some(problem) = problems.into_iter().next() {
            return Err(problem);
        }
        let mut damaged = damaged_backups(repository).or_else(|error| match error {
            CheckError::Repository(error) => Err(error),
            // No image is read.
            _ => Ok(BTreeSet::new()),
        })?;
        for backup in seen.iter().flat_map(|set| set.backups.iter().map(|backup| (&**set, backup))) {
            if repository.manifest(backup.0, backup.1).is_err() {
                damaged.insert(key(&backup));
            }
        }
        let mut plan = Division { view, seen: &seen, policy, name, allow_empty }.plan(&damaged);
        if let Some(name) = name.filter(|_| plan.kept.is_empty() && plan.goes.rows.is_empty()) {
            let path = repository.layout().root().to_owned();
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
}

/// The question which backups go.
#[derive(Clone, Copy, Debug)]
struct Division<'a> {
    view: &'a View,
    seen: &'a [Arc<Backupset>],
    policy: &'a RetentionPolicy,
    name: Option<&'a ImageName>,
    allow_empty: bool,
}

/// Why backups are kept. A backup without an entry is none that the policy looked at.
type Reasons = HashMap<Key, Vec<String>>;

impl<'a> Division<'a> {
    fn plan(self, damaged: &BTreeSet<Key>) -> ForgetPlan {
        let mut names: BTreeMap<&ImageName, Vec<(&Backupset, &BackupRecord)>> = BTreeMap::new();
        for set in self.seen {
            names.entry(&set.name).or_default().extend(set.backups.iter().map(|backup| (&**set, backup)));
        }
        let moments = Moments::among(self.seen);
        let flaws = flaws(&names, &moments, damaged);
        let larger = larger(&names, &moments, &flaws);
        names.retain(|name, backups| !backups.is_empty() && self.name.is_none_or(|wanted| *name == wanted));
        let mut plan = ForgetPlan::default();
        let mut reasons = Reasons::new();
        // Moments first: the backups of disks follow them.
        let is_machine =
            |backups: &[(&Backupset, &BackupRecord)]| backups.iter().any(|(_, it)| it.is_machine);
        for machines in [true, false] {
            for (name, backups) in names.iter().filter(|(_, backups)| is_machine(backups) == machines) {
                let parts = |backup: Key| self.part_of(&moments, &reasons, backup);
                let (found, is_refused) = self.reasons(name, backups, (&flaws, &larger), parts);
                if is_refused {
                    plan.refused.push(self.view.shown(name).unwrap_or_default().to_owned());
                }
                reasons.extend(backups.iter().map(key).zip(found));
            }
        }
        plan.refused.sort_unstable();
        let disks = self.disks_of_machine(&names, &moments, &mut reasons);
        for (set, backup) in names.into_values().flatten().chain(disks) {
            let row = BackupRef::of(self.view, set, backup);
            let reasons = reasons.remove(&(set.id, backup.incremental)).unwrap_or_default();
            if reasons.is_empty() {
                plan.goes.add(row, set, backup);
            } else {
                let flaw = flaws.get(&(set.id, backup.incremental)).map(|flaw| (*flaw).to_owned());
                plan.kept.push(KeptBackup { row, reasons, flaw });
            }
        }
        plan.goes.group(&moments);
        plan
    }

    /// Returns why each backup of a name is kept, and whether the name is refused.
    fn reasons(
        self,
        name: &ImageName,
        backups: &[(&Backupset, &BackupRecord)],
        (flaws, larger): (&HashMap<Key, &'static str>, &HashSet<Key>),
        part_of: impl Fn(Key) -> Option<(String, bool)>,
    ) -> (Vec<Vec<String>>, bool) {
        let now = crate::time::now();
        let candidates: Vec<_> = backups
            .iter()
            .map(|backup| Candidate {
                timestamp: backup.1.timestamp,
                order: backup.1.number.0,
                tags: &backup.1.tags,
                protected: backup.1.protection.holds(now),
                flawed: flaws.contains_key(&key(backup)),
            })
            .collect();
        let of_rules = self.policy.apply(&candidates, now);
        // Neither protection nor a date in the future is a rule of the policy.
        let mut rules_keep = of_rules.iter().flatten().any(|why| is_rule(why));
        let mut reasons: Vec<Vec<String>> =
            of_rules.into_iter().map(|why| why.into_iter().map(str::to_owned).collect()).collect();
        for (backup, why) in backups.iter().zip(&mut reasons) {
            if let Some((part, by_rule)) = part_of(key(backup)) {
                rules_keep |= by_rule;
                why.push(part);
            }
        }
        let is_refused = !rules_keep && reasons.iter().any(Vec::is_empty) && !self.allow_empty;
        let newest = Repository::newest(self.seen, name).as_ref().map(key);
        let is_intact = |set: &Backupset, backup: &BackupRecord| {
            !flaws.contains_key(&(set.id, backup.incremental)) && !is_to_come(backup.timestamp, now)
        };
        let intact = Repository::newest_such(self.seen, name, is_intact).as_ref().map(key);
        for (backup, why) in backups.iter().zip(&mut reasons).filter(|(_, why)| why.is_empty()) {
            let is = |other: Option<Key>| other == Some(key(backup));
            if is_refused {
                why.push(REFUSED.to_owned());
            } else if rules_keep {
                let kept =
                    [(is(newest), NEWEST), (is(intact), INTACT), (larger.contains(&key(backup)), LARGER)];
                why.extend(kept.into_iter().find(|(holds, _)| *holds).map(|(_, reason)| reason.to_owned()));
            }
        }
        (reasons, is_refused)
    }

    /// Says which moment that stays consists of a backup, and whether a rule keeps that moment.
    fn part_of(self, moments: &Moments<'_>, reasons: &Reasons, backup: Key) -> Option<(String, bool)> {
        let stays = |moment: &&(&Backupset, &BackupRecord)| {
            // A moment that the policy did not look at stays.
            reasons.get(&key(moment)).is_none_or(|why| !why.is_empty())
        };
        let moment = moments.with(backup).iter().find(stays)?;
        let by_rule = reasons.get(&key(moment)).is_some_and(|why| why.iter().any(|why| is_rule(why)));
        Some((format!("part of {}", self.view.backup_id(moment.0, moment.1)), by_rule))
    }

    /// Returns the backups of disks of the moments of the named machine that go. Those of them that stay get their reason.
    fn disks_of_machine(
        self,
        names: &BTreeMap<&ImageName, Vec<(&'a Backupset, &'a BackupRecord)>>,
        moments: &Moments<'_>,
        reasons: &mut Reasons,
    ) -> Vec<(&'a Backupset, &'a BackupRecord)> {
        if self.name.is_none() {
            // The policy looked at all disks.
            return Vec::new();
        }
        let now = crate::time::now();
        let mut disks = Vec::new();
        let goes =
            |moment: &(&Backupset, &BackupRecord)| reasons.get(&key(moment)).is_some_and(Vec::is_empty);
        let moments_that_go = names.values().flatten().filter(|moment| goes(moment));
        let parts: BTreeSet<Key> =
            moments_that_go.flat_map(|(_, moment)| moment.disks.iter().copied()).collect();
        for backup in parts {
            let Some((set, record)) = find(self.seen, backup) else { continue };
            let newest = Repository::newest(self.seen, &set.name).as_ref().map(key);
            let kept = if record.protection.holds(now) {
                Some(PROTECTED.to_owned())
            } else if newest == Some(backup) {
                Some(NEWEST.to_owned())
            } else {
                self.part_of(moments, reasons, backup).map(|(part, _)| part)
            };
            reasons.insert(backup, kept.into_iter().collect());
            disks.push((set, record));
        }
        disks.sort_unstable_by_key(|(set, record)| (&set.name, record.number));
        disks
    }
}

/// Says whether a reason is one of the policy's rules.
pub fn is_rule(reason: &str) -> bool {
    ![REFUSED, PROTECTED, FUTURE, NEWEST, INTACT, LARGER].contains(&reason) && !reason.starts_with("part of ")
}

/// Returns which backups may not be what their disks were, each with the word for it that `list` has.
fn flaws(
    names: &BTreeMap<&ImageName, Vec<(&Backupset, &BackupRecord)>>,
    moments: &Moments<'_>,
    damaged: &BTreeSet<Key>,
) -> HashMap<Key, &'static str> {
    let mut flaws = HashMap::new();
    for backups in names.values() {
        let is_empty = |record: &BackupRecord| {
            let had_more = |(_, other): &(&Backupset, &BackupRecord)| {
                other.number < record.number && other.size_of_disk > 0
            };
            record.size_of_disk == 0 && backups.iter().any(had_more)
        };
        for backup in backups {
            let record = backup.1;
            let words = [
                (damaged.contains(&key(backup)), "damaged"),
                (record.suspect.is_some(), "suspect"),
                (record.flaws.inconsistent.is_some(), "inconsistent"),
                (record.flaws.unreadable_bytes > 0, "bad-sectors"),
                (moments.missing(record).next().is_some(), "incomplete"),
                (is_empty(record), "empty"),
            ];
            flaws.extend(words.into_iter().find(|(holds, _)| *holds).map(|(_, word)| (key(backup), word)));
        }
    }
    // A moment is what its disks are.
    for moment in names.values().flatten().filter(|(_, record)| record.is_machine) {
        if let Some(flaw) = moment.1.disks.iter().find_map(|disk| flaws.get(disk).copied()) {
            flaws.entry(key(moment)).or_insert(flaw);
        }
    }
    flaws
}

/// Returns of each name the newest backup that is larger than its newest one, the newest that is larger than that one, and so on, and the
/// moments of machines that consist of these. An intact one goes before others.
fn larger(
    names: &BTreeMap<&ImageName, Vec<(&Backupset, &BackupRecord)>>,
    moments: &Moments<'_>,
    flaws: &HashMap<Key, &'static str>,
) -> HashSet<Key> {
    let mut larger = HashSet::new();
    for backups in names.values() {
        let is_intact = |backup: &(&Backupset, &BackupRecord)| !flaws.contains_key(&key(backup));
        let mut newest = backups.iter().copied().max_by_key(|(_, record)| record.number);
        while let Some((_, record)) = newest {
            let all = || backups.iter().copied();
            newest = record.larger_before(all().filter(is_intact)).or_else(|| record.larger_before(all()));
            larger.extend(newest.iter().map(key));
            larger.extend(newest.iter().flat_map(|found| moments.with(key(found))).map(key));
        }
    }
    larger
}

#[cfg(test)]
mod tests;
