//! How much a project may keep.
//!
//! What a project uses is the plain bytes of its backups, where a segment that stays the same at its place from one backup of
//! a backupset to the next counts once. That is a function of the project's own manifests: nothing in it tells what others
//! have stored, and what dedup and compression save is the operator's. Two neighbouring manifests are compared once, and the
//! result is kept, so that what is to be done for a new backup is one comparison.
//!
//! The length of each manifest counts as well, so a backup of an unchanged disk is not free.
//!
//! A backup that is being taken reserves what it adds. If it is given up, its segments lie in the packs until they are
//! collected, and count until then. The next backup of the image uses them again: what it names of them does not count once
//! more ([`account`]).

mod account;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api::{Project, Refusal, View};
use crate::manifest::{ImageName, ManifestReader};
use crate::repository::{BackupRecord, Backupset, Repository, RepositoryError};
use crate::segment::SegmentIndex;
use crate::service::limits::quota::account::{Account, Added, Pair};
use crate::service::{QuotaSettings, Refused};

/// What projects may keep, and what they do.
#[derive(Debug)]
pub(in crate::service) struct Quotas {
    settings: QuotaSettings,
    accounts: Mutex<HashMap<Project, Account>>,
}

/// What a backup under way may still add. Dropped without [`Allowance::commit`], what was sent counts until it is collected.
#[derive(Debug)]
pub(in crate::service) struct Allowance {
    /// Nothing if there is no limit.
    bound: Option<Bound>,
    added: Added,
}

#[derive(Debug)]
struct Bound {
    quotas: Arc<Quotas>,
    project: Project,
    name: ImageName,
    /// In bytes.
    limit: u64,
}

impl Quotas {
    pub(in crate::service) fn new(settings: QuotaSettings) -> Self {
        Self { settings, accounts: Mutex::default() }
    }

    /// Returns how many bytes a project may keep, if that is limited.
    pub(in crate::service) fn limit(&self, project: &Project) -> Option<u64> {
        self.settings.projects.get(project).copied().or(self.settings.default)
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<Project, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what a project uses. Reads manifests, so it blocks.
    ///
    /// # Errors
    ///
    /// If the backupsets cannot be read. A damaged manifest counts for nothing, and is told of in the log.
    pub(in crate::service) fn used(
        &self,
        repository: &Repository,
        project: &Project,
    ) -> Result<u64, Refused> {
        let (known, commits) = {
            let mut accounts = self.accounts();
            let account = accounts.entry(project.clone()).or_default();
            (account.added.clone(), account.commits)
        };
        let (sets, _) = View::of(project.clone()).sets(repository)?;
        let mut added = HashMap::new();
        for set in sets {
            count(repository, &set, &known, &mut added);
        }
        let used = added.values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        let mut accounts = self.accounts();
        let account = accounts.entry(project.clone()).or_default();
        // What has been added meanwhile may have been read, or not.
        account.used = if account.commits == commits { used } else { used.max(account.used) };
        account.added = added;
        Ok(account.used)
    }

    /// Begins to count a backup of an image, of whoever has this view. Blocks.
    ///
    /// # Errors
    ///
    /// If the project has used up what it may keep without what this image's backup had sent when it was cut off, or if that
    /// cannot be counted.
    pub(in crate::service) fn begin(
        self: &Arc<Self>,
        repository: &Repository,
        view: &View,
        name: &ImageName,
    ) -> Result<Allowance, Refused> {
        let limited = view.project().and_then(|project| Some((project.clone(), self.limit(project)?)));
        let Some((project, limit)) = limited else {
            return Ok(Allowance { bound: None, added: Added::default() });
        };
        self.used(repository, &project)?;
        let others = self.accounts().entry(project.clone()).or_default().without(name);
        if others >= limit {
            return Err(exceeded(others, limit));
        }
        let bound = Bound { quotas: Arc::clone(self), project, name: name.clone(), limit };
        Ok(Allowance { bound: Some(bound), added: Added::default() })
    }

    /// To be told when garbage has been collected that was garbage for at least `kept`.
    pub(in crate::service) fn collected(&self, kept: Duration) {
        let now = Instant::now();
        for account in self.accounts().values_mut() {
            account.collected(now, kept);
        }
    }
}

fn exceeded(all: u64, limit: u64) -> Refused {
    let why = format!("the project would have {all} bytes, and {limit} is what it may have");
    Refused::new(Refusal::QuotaExceeded, why)
}

impl Allowance {
    /// Takes some of it: the plain bytes of segments that were sent.
    ///
    /// # Errors
    ///
    /// If the project would have more than it may (507). Nothing was taken then.
    pub(in crate::service) fn sent(&mut self, bytes: u64) -> Result<(), Refused> {
        self.add(Added { sent: bytes, ..Added::default() })
    }

    /// Takes some of it: the plain bytes of segments that are named and that the backup before does not have at their places.
    ///
    /// # Errors
    ///
    /// As [`Self::sent`].
    pub(in crate::service) fn named(&mut self, bytes: u64) -> Result<(), Refused> {
        self.add(Added { named: bytes, ..Added::default() })
    }

    /// Takes what the complete manifest has in bytes. Told again, it is taken once.
    ///
    /// # Errors
    ///
    /// As [`Self::sent`].
    pub(in crate::service) fn manifest(&mut self, bytes: u64) -> Result<(), Refused> {
        self.add(Added { manifest: bytes.saturating_sub(self.added.manifest), ..Added::default() })
    }

    fn add(&mut self, more: Added) -> Result<(), Refused> {
        let Some(Bound { quotas, project, name, limit }) = &self.bound else { return Ok(()) };
        let mut accounts = quotas.accounts();
        let account = accounts.entry(project.clone()).or_default();
        let before = account.all();
        account.add(name, more);
        let all = account.all();
        // What counts already is never refused.
        if all > before && all > *limit {
            account.remove(name, more);
            return Err(exceeded(all, *limit));
        }
        self.added.sent = self.added.sent.saturating_add(more.sent);
        self.added.named = self.added.named.saturating_add(more.named);
        self.added.manifest = self.added.manifest.saturating_add(more.manifest);
        Ok(())
    }

    /// Ends it: the backup is there.
    pub(in crate::service) fn commit(mut self) {
        if let Some(Bound { quotas, project, name, .. }) = self.bound.take() {
            quotas.accounts().entry(project).or_default().commit(&name, self.added);
        }
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        if let Some(Bound { quotas, project, name, .. }) = self.bound.take() {
            quotas.accounts().entry(project).or_default().give_up(&name, self.added);
        }
    }
}

/// Counts a backupset into `added`, by what is known where it is.
fn count(
    repository: &Repository,
    set: &Backupset,
    known: &HashMap<Pair, u64>,
    added: &mut HashMap<Pair, u64>,
) {
    let mut before: Option<&BackupRecord> = None;
    for backup in &set.backups {
        let pair = (before.map(|before| before.manifest), backup.manifest);
        let bytes = known.get(&pair).copied().map_or_else(|| compare(repository, set, before, backup), Ok);
        match bytes {
            Ok(bytes) => {
                added.insert(pair, bytes);
                before = Some(backup);
            }
            // Perhaps it has just been deleted.
            Err(error) => tracing::warn!(%error, "a backup counts for nothing in its project's quota"),
        }
    }
}

/// Returns the plain bytes of the segments of a backup that the one before it does not have at their places, and the length
/// of its manifest.
fn compare(
    repository: &Repository,
    set: &Backupset,
    before: Option<&BackupRecord>,
    backup: &BackupRecord,
) -> Result<u64, RepositoryError> {
    let open = |backup| -> Result<ManifestReader, RepositoryError> {
        let manifest = repository.manifest(set, backup)?;
        manifest.verify()?;
        Ok(manifest)
    };
    let this = open(backup)?;
    let before = before.map(open).transpose()?;
    let geometry = this.info().geometry;
    let mut cursor = before.as_ref().map(|before| before.cursor(SegmentIndex(0)));
    let mut bytes = this.file_size();
    for (place, segment) in this.segments() {
        let stays =
            cursor.as_mut().and_then(|cursor| cursor.at(place)).is_some_and(|it| it.key == segment.key);
        bytes += if stays { 0 } else { u64::from(geometry.length(place)) };
    }
    Ok(bytes)
}
