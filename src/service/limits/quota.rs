//! How much a project may keep.
//!
//! What a project uses is the plain bytes of its backups, where a segment that stays the same at its place from one backup of
//! a backupset to the next counts once. That is a function of the project's own manifests: nothing in it tells what others
//! have stored, and what dedup and compression save is the operator's. Two neighbouring manifests are compared once, and the
//! result is kept, so that what is to be done for a new backup is one comparison.
//!
//! A backup that is being taken reserves what it adds. Is it given up, its segments lie in the packs until they are
//! collected: what it had reserved counts so long.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api::{Project, Refusal, View};
use crate::manifest::ManifestReader;
use crate::repository::{BackupRecord, Backupset, Repository, RepositoryError};
use crate::segment::{Fingerprint, SegmentIndex};
use crate::service::{QuotaSettings, Refused};

/// What was given up within this counts as given up at one time.
const SAME_TIME: Duration = Duration::from_mins(10);

/// Two neighbours of a backupset: the later one, and the one before it if there is one.
type Pair = (Option<Fingerprint>, Fingerprint);

/// What projects may keep, and what they do.
#[derive(Debug)]
pub(in crate::service) struct Quotas {
    settings: QuotaSettings,
    accounts: Mutex<HashMap<Project, Account>>,
}

/// One project's. There are only those of projects with a quota that have asked.
#[derive(Debug, Default)]
struct Account {
    /// What each backup adds to the one before it.
    added: HashMap<Pair, u64>,
    /// The bytes of its backups.
    used: u64,
    /// How many backups have been added to `used`.
    commits: u64,
    reserved: u64,
    given_up: Vec<(Instant, u64)>,
}

impl Account {
    fn all(&self) -> u64 {
        let given_up = self
            .given_up
            .iter()
            .map(|(_, bytes)| bytes)
            .fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        self.used.saturating_add(self.reserved).saturating_add(given_up)
    }
}

/// What a backup under way may still add. Dropped without [`Allowance::commit`], what it took counts until it is collected.
#[derive(Debug)]
pub(in crate::service) struct Allowance {
    /// Nothing if there is no limit.
    bound: Option<(Arc<Quotas>, Project, u64)>,
    taken: u64,
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

    /// Begins to count a backup of whoever has this view. Blocks.
    ///
    /// # Errors
    ///
    /// If the project has used up what it may keep, or if that cannot be counted.
    pub(in crate::service) fn begin(
        self: &Arc<Self>,
        repository: &Repository,
        view: &View,
    ) -> Result<Allowance, Refused> {
        let limited = view.project().and_then(|project| Some((project.clone(), self.limit(project)?)));
        let Some((project, limit)) = limited else { return Ok(Allowance { bound: None, taken: 0 }) };
        self.used(repository, &project)?;
        let mut allowance = Allowance { bound: Some((Arc::clone(self), project, limit)), taken: 0 };
        allowance.take(0)?;
        Ok(allowance)
    }

    /// To be told when garbage has been collected that was garbage for at least `kept`.
    pub(in crate::service) fn collected(&self, kept: Duration) {
        let now = Instant::now();
        for account in self.accounts().values_mut() {
            account.given_up.retain(|(when, _)| now.saturating_duration_since(*when) < kept);
        }
    }

    fn end(&self, project: &Project, taken: u64, is_committed: bool) {
        let mut accounts = self.accounts();
        let account = accounts.entry(project.clone()).or_default();
        account.reserved = account.reserved.saturating_sub(taken);
        let now = Instant::now();
        if is_committed {
            account.used = account.used.saturating_add(taken);
            account.commits += 1;
        } else if taken > 0 {
            match account.given_up.last_mut() {
                Some((when, bytes)) if now.saturating_duration_since(*when) < SAME_TIME => {
                    *bytes = bytes.saturating_add(taken);
                }
                _ => account.given_up.push((now, taken)),
            }
        }
    }
}

impl Allowance {
    /// Takes some of it: the plain bytes of segments that differ from what the backup before has at their places.
    ///
    /// # Errors
    ///
    /// If the project would have more than it may (507). Nothing was taken then.
    pub(in crate::service) fn take(&mut self, bytes: u64) -> Result<(), Refused> {
        let Some((quotas, project, limit)) = &self.bound else { return Ok(()) };
        let mut accounts = quotas.accounts();
        let account = accounts.entry(project.clone()).or_default();
        let all = account.all().saturating_add(bytes);
        if all > *limit || (bytes == 0 && all >= *limit) {
            let why = format!("the project would have {all} bytes, and {limit} is what it may have");
            return Err(Refused::new(Refusal::QuotaExceeded, why));
        }
        account.reserved = account.reserved.saturating_add(bytes);
        self.taken = self.taken.saturating_add(bytes);
        Ok(())
    }

    /// Ends it: the backup is there.
    pub(in crate::service) fn commit(mut self) {
        if let Some((quotas, project, _)) = self.bound.take() {
            quotas.end(&project, self.taken, true);
        }
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        if let Some((quotas, project, _)) = self.bound.take() {
            quotas.end(&project, self.taken, false);
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

/// Returns the plain bytes of the segments of a backup that the one before it does not have at their places.
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
    let mut bytes = 0;
    for (place, segment) in this.segments() {
        let stays =
            cursor.as_mut().and_then(|cursor| cursor.at(place)).is_some_and(|it| it.key == segment.key);
        bytes += if stays { 0 } else { u64::from(geometry.length(place)) };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use crate::backup::{BackupOptions, back_up};
    use crate::codec::CompressionSetting;
    use crate::image::RawImage;
    use crate::manifest::{ImageName, Incremental};
    use crate::progress::Silent;
    use crate::repository::{Deletion, InitOptions, OpenOptions, RepositoryWriter, SharedWriter};
    use crate::segment::SegmentSize;

    fn quotas(limit: u64) -> Arc<Quotas> {
        let projects = [("blue".parse().unwrap(), limit)].into();
        Arc::new(Quotas::new(QuotaSettings { default: None, projects }))
    }

    fn empty() -> (tempfile::TempDir, Repository) {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::init(&folder.path().join("store"), &InitOptions::default()).unwrap();
        (folder, repository)
    }

    fn blue() -> View {
        View::of("blue".parse().unwrap())
    }

    #[test]
    fn two_backups_at_once_share_what_is_left_and_one_that_is_given_up_counts_until_it_is_collected() {
        let (_folder, repository) = empty();
        let quotas = quotas(1000);
        let mut first = quotas.begin(&repository, &blue()).unwrap();
        let mut second = quotas.begin(&repository, &blue()).unwrap();
        first.take(600).unwrap();
        assert_eq!(second.take(401).unwrap_err().refusal(), Refusal::QuotaExceeded);
        second.take(400).unwrap();
        assert!(quotas.begin(&repository, &blue()).is_err(), "there is nothing left");
        drop(second);
        assert!(first.take(1).is_err(), "what was sent lies there all the same");
        quotas.collected(Duration::from_mins(1));
        assert!(first.take(1).is_err(), "it was kept for its next run");
        quotas.collected(Duration::ZERO);
        first.take(400).unwrap();
        first.commit();
        assert_eq!(quotas.accounts()[&"blue".parse().unwrap()].used, 1000);
    }

    const SEGMENT: u64 = 64 << 10;

    fn store(writer: &SharedWriter, disk: &Path, name: &str, segments: &[u8]) -> Deletion {
        let bytes: Vec<u8> = segments.iter().flat_map(|byte| vec![*byte; 64 << 10]).collect();
        std::fs::write(disk, bytes).unwrap();
        let (name, options) =
            (ImageName::new(name).unwrap(), BackupOptions::new(CompressionSetting::default(), 1));
        let stored =
            back_up(writer, &name, &RawImage::open(disk).unwrap(), &options, &Silent).unwrap().backup;
        Deletion { backupset: stored.backupset, incremental: stored.incremental }
    }

    #[test]
    fn a_project_uses_what_its_backups_say_whatever_others_have_stored() {
        let folder = tempfile::tempdir().unwrap();
        let (path, disk) = (folder.path().join("store"), folder.path().join("disk"));
        let segment_size = SegmentSize::new(SEGMENT).unwrap();
        Repository::init(&path, &InitOptions { segment_size, ..InitOptions::default() }).unwrap();
        let writer =
            SharedWriter::new(RepositoryWriter::open(&path, &OpenOptions::default(), &Silent).unwrap());
        let quotas = quotas(1 << 40);
        let used = || quotas.used(writer.repository(), &"blue".parse().unwrap()).unwrap() / SEGMENT;
        store(&writer, &disk, "red:db", &[1, 2, 3, 4]);
        store(&writer, &disk, "db", &[5, 6]);
        assert_eq!(used(), 0, "others' are others'");
        // Zeros are not stored; one segment at two places is two.
        store(&writer, &disk, "blue:web", &[1, 2, 0, 2]);
        assert_eq!(used(), 3);
        store(&writer, &disk, "blue:web", &[1, 2, 0, 2]);
        assert_eq!(used(), 3, "what stays counts once");
        let third = store(&writer, &disk, "blue:web", &[1, 3, 0, 0, 4]);
        assert_eq!(used(), 5);
        store(&writer, &disk, "blue:web", &[1, 2, 0, 2]);
        assert_eq!(used(), 7, "back again is new again");
        store(&writer, &disk, "blue:other", &[1]);
        assert_eq!(used(), 8, "another disk is counted for itself");
        assert_eq!(third.incremental, Incremental(2));
        let changed = writer.run_job(&Silent, |_| false, |writer| writer.delete(third));
        changed.map_err(|error: RepositoryError| error).unwrap();
        assert_eq!(used(), 4, "its neighbours are the same, and have become one stay");
        writer.close().unwrap();
    }

    #[test]
    fn who_has_no_quota_takes_what_they_like() {
        let (_folder, repository) = empty();
        let quotas = quotas(10);
        for view in [View::everything(), View::of("red".parse().unwrap())] {
            quotas.begin(&repository, &view).unwrap().take(u64::MAX).unwrap();
        }
        assert!(quotas.accounts().is_empty());
    }
}
