//! A backup that has been begun and is not committed.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::manifest::{
    BackupsetId, BaseIndex, FinishedManifest, FlawMarks, Flaws, ImageName, Incremental, ManifestError,
    ManifestInfo, ManifestReader, ManifestWriter, ReadEffort, Tags,
};
use crate::repository::backupset::remove_newborn;
use crate::repository::{BackupNumber, Backupset, Layout, Repository, RepositoryError};
use crate::segment::{Fingerprint, Geometry};
use crate::storage::{Storage, TEMPORARY};
use crate::store::StoreJob;

/// The backup that a new one is compared with.
#[derive(Debug)]
pub struct Parent {
    /// Its manifest.
    pub manifest: ManifestReader,
    /// Its number.
    pub number: BackupNumber,
    /// What each of its base indices is in the new manifest.
    pub(super) bases: Vec<BaseIndex>,
}

impl Parent {
    /// Translates a base index of the parent's manifest into one of the new manifest's.
    pub fn base(&self, base: BaseIndex) -> BaseIndex {
        self.bases.get(usize::from(base.0)).copied().unwrap_or_default()
    }
}

/// A backup that has been begun and is not committed. Dropped, nothing is left of it but segments that the next one
/// re-uses.
#[derive(Debug)]
pub struct BackupDraft {
    pub(super) set: Backupset,
    pub(super) info: ManifestInfo,
    pub(super) temporary: PathBuf,
    parent: Option<Parent>,
    pub(super) tags: Vec<String>,
    /// Backups that have turned out to be suspect, and why.
    pub(super) suspects: Vec<Incremental>,
    pub(super) why: String,
    /// What the list of backups will say of the source's flaws.
    pub(super) flaws: FlawMarks,
    /// Whether the backupset has no settings yet.
    pub(super) newborn: bool,
    /// Whether it is of a machine's moment.
    pub(super) is_machine: bool,
    /// The backups of disks that the moment consists of.
    pub(super) disks: Vec<(BackupsetId, Incremental)>,
    /// The number that the backup gets at least.
    pub(super) least_number: u32,
    // Before `running`: who begins the same backup after this one finds nothing of it.
    pub(super) unfinished: Option<Unfinished>,
    pub(super) running: Running,
}

/// What backups are being made of.
#[derive(Debug, Default)]
pub(super) struct Growing {
    sets: HashSet<BackupsetId>,
    /// Names that have no backup yet, or none any longer.
    names: HashSet<ImageName>,
}

impl Growing {
    /// Says whether a first backup of a name is being made.
    pub(super) fn is_first(&self, name: &ImageName) -> bool {
        self.names.contains(name)
    }

    /// Counts the first backups of names that begin with `prefix`.
    pub(super) fn count(&self, prefix: &str) -> usize {
        self.names.iter().filter(|name| name.as_str().starts_with(prefix)).count()
    }
}

/// What keeps others from making a backup of the same disk, and from freeing what this one finds.
#[derive(Debug)]
pub(super) struct Running {
    job: StoreJob,
    growing: Arc<Mutex<Growing>>,
    set: Option<BackupsetId>,
    name: Option<ImageName>,
}

impl Running {
    pub(super) fn new(job: StoreJob, growing: &Arc<Mutex<Growing>>) -> Self {
        Self { job, growing: Arc::clone(growing), set: None, name: None }
    }

    /// Registers what the backup is of.
    ///
    /// # Errors
    /// Another backup of it is being made.
    pub(super) fn grow(&mut self, set: &Backupset, is_first: bool) -> Result<(), RepositoryError> {
        let mut growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if growing.sets.contains(&set.id) || (is_first && growing.names.contains(&set.name)) {
            return Err(RepositoryError::BackupRunning { name: set.name.clone() });
        }
        growing.sets.insert(set.id);
        self.set = Some(set.id);
        if is_first {
            growing.names.insert(set.name.clone());
            self.name = Some(set.name.clone());
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(set) = self.set {
            growing.sets.remove(&set);
        }
        if let Some(name) = &self.name {
            growing.names.remove(name);
        }
    }
}

/// The files of a draft: its manifest, or the folder of its backupset if that is new. Dropped before they are kept, they are
/// removed.
#[derive(Debug)]
pub(super) struct Unfinished {
    storage: Arc<dyn Storage>,
    place: Option<Place>,
}

#[derive(Debug)]
enum Place {
    Manifest(PathBuf),
    Set(Layout, BackupsetId),
}

impl Unfinished {
    fn manifest(storage: &Arc<dyn Storage>, path: PathBuf) -> Self {
        Self { storage: Arc::clone(storage), place: Some(Place::Manifest(path)) }
    }

    pub(super) fn set(storage: &Arc<dyn Storage>, layout: &Layout, id: BackupsetId) -> Self {
        Self { storage: Arc::clone(storage), place: Some(Place::Set(layout.clone(), id)) }
    }

    /// Leaves the files where they are: from now on recovery decides what becomes of them.
    pub(super) fn keep(mut self) {
        self.place = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let storage = self.storage.as_ref();
        let removed = match self.place.take() {
            None => return,
            Some(Place::Manifest(path)) => storage.unlink(&path),
            // One that has settings stays: somebody else has committed a backup into it.
            Some(Place::Set(layout, id)) => remove_newborn(storage, &layout, id, Layout::NEWBORN).map(drop),
        };
        match removed {
            Err(error) if !error.is_not_found() => tracing::warn!(%error, "recovery will remove it"),
            _ => {}
        }
    }
}

impl BackupDraft {
    pub(super) fn new(
        repository: &Repository,
        set: Backupset,
        info: ManifestInfo,
        parent: Option<Parent>,
        newborn: Option<Unfinished>,
        running: Running,
        least_number: u32,
    ) -> Self {
        // Nobody else's, whatever becomes of others with this number.
        let ending = format!("{}.{TEMPORARY}", uuid::Uuid::new_v4().simple());
        let temporary = repository.layout.manifest(set.id, info.incremental).with_added_extension(ending);
        let is_newborn = newborn.is_some();
        let unfinished =
            newborn.unwrap_or_else(|| Unfinished::manifest(&repository.storage, temporary.clone()));
        Self {
            set,
            info,
            temporary,
            parent,
            tags: Vec::new(),
            suspects: Vec::new(),
            why: String::new(),
            flaws: FlawMarks::default(),
            newborn: is_newborn,
            is_machine: false,
            disks: Vec::new(),
            least_number,
            unfinished: Some(unfinished),
            running,
        }
    }

    /// Returns the backup that this one is compared with.
    pub fn parent(&self) -> Option<&Parent> {
        self.parent.as_ref()
    }

    /// Returns what keeps the segments that are found for it from being freed.
    pub fn job(&self) -> &StoreJob {
        &self.running.job
    }

    /// Gives the backup tags.
    pub fn set_tags(&mut self, tags: &Tags) {
        self.tags = tags.to_strings();
    }

    /// Has the backup be that of a machine's moment, which consists of these backups of disks.
    pub fn set_machine(&mut self, disks: Vec<(BackupsetId, Incremental)>) {
        self.is_machine = true;
        self.disks = disks;
    }

    /// Has the backup be of another moment than that at which it was begun.
    pub fn set_timestamp(&mut self, timestamp: jiff::Timestamp) {
        self.info.timestamp = timestamp;
    }

    /// Says how large the disk is, of which that was not known when the backup was begun.
    ///
    /// # Errors
    /// No manifest holds so many segments.
    pub fn set_size_of_disk(&mut self, size: u64) -> Result<(), RepositoryError> {
        self.info.geometry = Geometry::new(size, self.info.geometry.segment_size()).map_err(|error| {
            let what = error.to_string();
            RepositoryError::Manifest(ManifestError::Invalid { path: self.temporary.clone(), what })
        })?;
        Ok(())
    }

    /// Returns what the manifest will say under `key`.
    pub fn attribute(&self, key: &str) -> Option<&[u8]> {
        self.info.attribute(key)
    }

    /// Has the manifest say `value` under `key`.
    pub fn set_attribute(&mut self, key: &str, value: Vec<u8>) {
        self.remove_attribute(key);
        self.info.attributes.push((key.to_owned(), value));
    }

    /// Has the manifest say nothing under `key`.
    pub fn remove_attribute(&mut self, key: &str) {
        self.info.attributes.retain(|(other, _)| other != key);
    }

    /// Has the backups of its backupset behind the number `full`, or all, marked as suspect when it is committed. Returns
    /// their numbers.
    pub fn suspect_since(&mut self, full: Option<Incremental>, why: &str) -> Vec<BackupNumber> {
        // Those that were deleted can come back.
        let suspects =
            self.set.all_records().filter(|backup| full.is_none_or(|full| backup.incremental > full));
        let (incrementals, mut numbers): (Vec<_>, Vec<_>) =
            suspects.map(|backup| (backup.incremental, backup.number)).unzip();
        self.suspects = incrementals;
        self.suspects.sort_unstable();
        numbers.sort_unstable();
        why.clone_into(&mut self.why);
        numbers
    }

    /// Records the flaws of the source that were found while it was read, in the manifest and for the list of backups.
    ///
    /// # Errors
    /// The manifest has no room for them.
    pub fn set_flaws(&mut self, manifest: &mut ManifestWriter, flaws: &Flaws) -> Result<(), ManifestError> {
        for (key, value) in flaws.attributes() {
            manifest.set_attribute(key, &value)?;
        }
        self.flaws = flaws.marks();
        Ok(())
    }

    /// Records in the manifest what it took to read the source.
    ///
    /// # Errors
    /// The manifest has no room for it.
    pub fn set_effort(&self, manifest: &mut ManifestWriter, effort: ReadEffort) -> Result<(), ManifestError> {
        effort.attributes().try_for_each(|(key, value)| manifest.set_attribute(key, &value))
    }

    /// Returns when the newest backup of its backupset was begun.
    pub fn newest(&self) -> Option<jiff::Timestamp> {
        self.set.backups.last().map(|backup| backup.timestamp)
    }

    /// Returns what its manifest will say about the whole.
    pub fn info(&self) -> &ManifestInfo {
        &self.info
    }
}

/// A draft whose manifest is complete and durable, under its temporary name.
#[derive(Debug)]
pub struct FinishedDraft {
    pub(super) draft: BackupDraft,
    pub(super) finished: FinishedManifest,
}

impl FinishedDraft {
    /// Returns the draft.
    pub fn draft(&self) -> &BackupDraft {
        &self.draft
    }

    /// Returns the BLAKE3 of the body of its manifest.
    pub fn manifest(&self) -> Fingerprint {
        self.finished.fingerprint
    }
}
