//! A backup that has been begun and is not committed.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::manifest::{
    BackupsetId, BaseIndex, FinishedManifest, Incremental, ManifestError, ManifestInfo, ManifestReader,
};
use crate::repository::{Backupset, Layout, RepositoryError};
use crate::segment::{Fingerprint, Geometry};
use crate::storage::TEMPORARY;
use crate::store::StoreJob;

/// The backup that a new one is compared with.
#[derive(Debug)]
pub struct Parent {
    /// Its manifest.
    pub manifest: ManifestReader,
    /// What each of its base indices is in the new manifest.
    pub(super) bases: Vec<BaseIndex>,
}

impl Parent {
    /// Translates a base index of the parent's manifest into one of the new manifest's.
    pub fn base(&self, base: BaseIndex) -> BaseIndex {
        self.bases.get(usize::from(base.0)).copied().unwrap_or_default()
    }
}

/// A backup that has been begun and is not committed.
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
    /// Whether the backupset has no settings yet.
    pub(super) newborn: bool,
    pub(super) running: Running,
}

/// What keeps others from making a backup of the same backupset, and from freeing what this one finds.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) job: StoreJob,
    pub(super) growing: Arc<Mutex<HashSet<BackupsetId>>>,
    pub(super) set: Option<BackupsetId>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(set) = self.set {
            self.growing.lock().unwrap_or_else(PoisonError::into_inner).remove(&set);
        }
    }
}

impl BackupDraft {
    pub(super) fn new(
        layout: &Layout,
        set: Backupset,
        info: ManifestInfo,
        parent: Option<Parent>,
        running: Running,
    ) -> Self {
        let temporary = layout.manifest(set.id, info.incremental).with_added_extension(TEMPORARY);
        Self {
            set,
            info,
            temporary,
            parent,
            tags: Vec::new(),
            suspects: Vec::new(),
            why: String::new(),
            newborn: false,
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
    pub fn set_tags(&mut self, tags: &[String]) {
        self.tags = tags.to_vec();
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
    pub fn suspect_since(&mut self, full: Option<Incremental>, why: &str) -> Vec<Incremental> {
        // Those that were deleted can come back.
        let numbers = self.set.backups.iter().chain(&self.set.deleted).map(|backup| backup.incremental);
        self.suspects = numbers.filter(|number| full.is_none_or(|full| *number > full)).collect();
        self.suspects.sort_unstable();
        why.clone_into(&mut self.why);
        self.suspects.clone()
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
