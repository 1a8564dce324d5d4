//! How a backup comes into being.
//!
//! 1. everything it stored is made durable in packs and entered into the index;
//! 2. its manifest is made durable under a temporary name;
//! 3. every segment that it gains is looked up in the index: whoever stored it, it is there;
//! 4. the manifest gets its name, without replacing any, and the folder is synced;
//! 5. `set.toml` is replaced: **from here on the backup exists**;
//! 6. the refcounts are applied;
//! 7. the generation is raised, first in the index, then in `state`, each durably;
//! 8. the backup is acknowledged.
//!
//! A crash before 5 leaves garbage, which recovery removes (files) or the next backup re-uses (segments);
//! after 5 recovery finishes 6 and 7. A failure before 4 is that of this backup alone, but for one of packs or index,
//! after which the store stops; after one from 4 on nothing more is written until the repository is opened again, which finds
//! out how far it came.
//!
//! Several backups that exist together or not at all take each step for all of them, and one more before 5: a file that
//! says what every `set.toml` is to say of them ([`Together`]). **From then on all of them exist**; when each `set.toml`
//! says so, the file goes. A crash before it leaves none of them, after it recovery finishes 5.
//!
//! A backup of a new name has no `set.toml` before 5, only a folder with a marker in it: it leaves no name behind if it
//! fails. Of several, those of new names get one without a backup before 4, since the file of all of them may name only
//! backupsets that are there. Nobody sees such a backupset, and recovery removes it, unless it is known to be damaged what
//! the file says.

use std::sync::PoisonError;

use crate::manifest::stays::{COUNTED_WINDOW, Neighbours};
use crate::manifest::{BackupsetId, Incremental, ManifestReader, ManifestWriter};
use crate::repository::counting::{Counting, Side, counted_side};
use crate::repository::draft::Unfinished;
use crate::repository::number::next_number;
use crate::repository::state::State;
use crate::repository::together::{Addition, Together};
use crate::repository::{
    BackupAmounts, BackupDraft, BackupId, BackupNumber, BackupRecord, Backupset, FinishedDraft, Protection,
    RepositoryError, RepositoryWriter,
};
use crate::storage::replace;

/// A backup that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedBackup {
    /// How it is named.
    pub id: BackupId,
    /// Its backupset.
    pub backupset: BackupsetId,
    /// Its number in its backupset.
    pub incremental: Incremental,
    /// When it was begun.
    pub timestamp: jiff::Timestamp,
    /// How many segments it stored that earlier backups lacked.
    pub healed_segments: u64,
    /// Whether the index broke after the backup came to exist: the caller replaces it, which counts the
    /// backup, before the backup is acknowledged.
    pub replace_index: bool,
}

/// A backup of which nothing is missing: it lacks its name, and to be said of in its backupset.
#[derive(Debug)]
struct Ready<'a> {
    draft: &'a BackupDraft,
    /// The backupset as it will be.
    set: Backupset,
    /// What its file will say.
    text: String,
    /// The backup that it is counted beside.
    before: Side,
    addition: Addition,
}

/// Backups of which nothing is missing.
#[derive(Debug)]
struct Entry<'a> {
    ready: Vec<Ready<'a>>,
    /// What says that they exist, if they are several.
    together: Option<String>,
}

impl RepositoryWriter {
    /// Begins the manifest of a draft, under its temporary name.
    pub fn create_manifest(&self, draft: &BackupDraft) -> Result<ManifestWriter, RepositoryError> {
        let storage = self.repository.storage.as_ref();
        match storage.unlink(&draft.temporary) {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
        Ok(ManifestWriter::create(storage, &draft.temporary, draft.info.clone())?)
    }

    /// Completes the manifest of a draft and makes it durable, still under its temporary name.
    pub fn finish_draft(
        &self,
        draft: BackupDraft,
        manifest: ManifestWriter,
    ) -> Result<FinishedDraft, RepositoryError> {
        self.check()?;
        let finished = manifest.finish()?;
        Ok(FinishedDraft { draft, finished })
    }

    /// Commits a backup whose manifest is complete. When this returns, the backup is durable.
    pub fn commit(
        &self,
        draft: BackupDraft,
        manifest: ManifestWriter,
    ) -> Result<CommittedBackup, RepositoryError> {
        let finished = self.finish_draft(draft, manifest)?;
        let mut committed = self.commit_all(vec![finished])?;
        committed
            .pop()
            .ok_or_else(|| RepositoryError::Poisoned { reason: "nothing was committed".to_owned() })
    }

    /// Commits several backups, of as many disks: after a failure or a crash there are all of them or none. When this
    /// returns, all are durable; they are returned in their order.
    ///
    /// # Errors
    /// As of one.
    pub fn commit_all(
        &self,
        mut drafts: Vec<FinishedDraft>,
    ) -> Result<Vec<CommittedBackup>, RepositoryError> {
        // Held over I/O: commits are few, each changes `set.toml` and generation, and their order is the point.
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        // Nothing is written yet that anybody reads: what fails here fails these backups alone, and their files go.
        let unfinished: Vec<_> = drafts.iter_mut().filter_map(|it| it.draft.unfinished.take()).collect();
        let entry = self.ready(&drafts)?;
        unfinished.into_iter().for_each(Unfinished::keep);
        self.enter(&entry).inspect_err(|error| {
            self.repository.lists.forget();
            if !error.distrusts_index() {
                self.poisoned_by(error);
            }
        })
    }

    /// Makes what backups are of durable, and sure that nothing of it is missing.
    fn ready<'a>(&self, drafts: &'a [FinishedDraft]) -> Result<Entry<'a>, RepositoryError> {
        self.store.flush()?;
        let mut ready: Vec<Ready<'a>> = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let one = self.ready_one(draft, &ready)?;
            ready.push(one);
        }
        let additions = || ready.iter().map(|one| one.addition.clone()).collect();
        let several =
            (ready.len() > 1).then(|| Together::of_additions(additions()).text(&self.repository.layout));
        let together = several.transpose()?;
        Ok(Entry { ready, together })
    }

    /// Has backups come to exist: all of them or none.
    fn enter(&self, Entry { ready, together }: &Entry<'_>) -> Result<Vec<CommittedBackup>, RepositoryError> {
        let (storage, layout) = (self.repository.storage.as_ref(), &self.repository.layout);
        if together.is_some() {
            // The file names backupsets, so they are there before it; nobody sees one without a backup.
            for Ready { draft, .. } in ready.iter().filter(|one| one.draft.newborn) {
                draft.set.unborn().write(storage, layout)?;
            }
        }
        for Ready { draft, .. } in ready {
            storage.rename_new(&draft.temporary, &layout.manifest(draft.set.id, draft.info.incremental))?;
            storage.sync_folder(&layout.set(draft.set.id))?;
        }
        if let Some(text) = together {
            Together::write(storage, layout, text)?;
        }
        for Ready { draft, set, text, .. } in ready {
            replace(storage, &layout.set_settings(set.id), text.as_bytes())?;
            if draft.newborn {
                storage.unlink(&layout.newborn(set.id))?;
            }
        }
        if together.is_some() {
            Together::remove(storage, layout)?;
        }
        self.repository.lists.put(ready.iter().map(|one| one.set.clone()));
        self.repository.enroll(ready.iter().filter(|one| one.draft.newborn).map(|one| &one.set));
        for one in ready {
            self.repository.drop_failure(&one.set.name);
        }
        let counted = ready.iter().try_for_each(|one| self.count_new(one));
        let replace_index = match counted.and_then(|()| self.raise_generation()) {
            Ok(()) => false,
            Err(error) if error.distrusts_index() => true,
            Err(error) => return Err(error),
        };
        let committed = |Ready { draft, set, addition, .. }: &Ready<'_>| CommittedBackup {
            id: BackupId { name: set.name.as_str().to_owned(), number: addition.record.number },
            backupset: set.id,
            incremental: draft.info.incremental,
            timestamp: draft.info.timestamp,
            healed_segments: draft.job().stored().healed_segments,
            replace_index,
        };
        Ok(ready.iter().map(committed).collect())
    }

    /// Makes sure that every segment that a backup gains is stored, and works out what its backupset will say.
    fn ready_one<'a>(
        &self,
        FinishedDraft { draft, finished }: &'a FinishedDraft,
        others: &[Ready<'_>],
    ) -> Result<Ready<'a>, RepositoryError> {
        let repository = &self.repository;
        let mut set = if draft.newborn {
            draft.set.clone()
        } else {
            // Others may have been deleted, protected or renamed since it was begun.
            Backupset::read(repository.storage.as_ref(), &repository.layout, draft.set.id)?
        };
        let counted = |incremental| self.store.counted_of(set.id, incremental);
        let before = counted_side(repository, &set, set.backups.iter().rev(), counted)?;
        let written = ManifestReader::open(repository.storage.as_ref(), &draft.temporary)?;
        let known = before.as_ref().ok().and_then(Option::as_ref);
        let neighbours = Neighbours { before: known, this: &written, after: None };
        for window in neighbours.windows_of(COUNTED_WINDOW) {
            for (key, _) in neighbours.gains(window) {
                self.store.require_stored(key)?;
            }
        }
        let (info, stored) = (&draft.info, draft.job().stored());
        let used_bytes = u64::from(written.present()) * u64::from(info.geometry.segment_size().bytes());
        let record = BackupRecord {
            number: self.next_number(&set, draft, others)?,
            incremental: info.incremental,
            manifest: finished.fingerprint,
            timestamp: info.timestamp,
            size_of_disk: info.geometry.size_of_disk(),
            segments: info.geometry.segments(),
            amounts: BackupAmounts {
                used_bytes: used_bytes.min(info.geometry.size_of_disk()),
                new_bytes: stored.plain_bytes,
                stored_bytes: stored.stored_bytes,
            },
            is_machine: draft.is_machine,
            disks: draft.disks.clone(),
            tags: draft.tags.clone(),
            protection: Protection::None,
            note: None,
            suspect: None,
            flaws: draft.flaws.clone(),
        };
        let (suspects, why) = (draft.suspects.clone(), draft.why.clone());
        let addition = Addition { backupset: set.id, record, suspects, why };
        if !addition.apply(&mut set) {
            return Err(RepositoryError::NoIncremental { backupset: set.id.to_string() });
        }
        let text = set.text(&repository.layout)?;
        Ok(Ready { draft, set, text, before, addition })
    }

    /// Returns the number that a backup gets, if it is committed with others.
    fn next_number(
        &self,
        set: &Backupset,
        draft: &BackupDraft,
        others: &[Ready<'_>],
    ) -> Result<BackupNumber, RepositoryError> {
        // A list that has been damaged since the backup began knew no higher number then.
        let (sets, _) = self.repository.backupsets_named(set.name.as_str())?;
        let others =
            others.iter().filter(|other| other.set.name == set.name).map(|other| other.set.next_number);
        let next = next_number(&sets, &set.name).max(set.next_number).max(draft.least_number);
        match others.fold(next, u32::max) {
            u32::MAX => Err(RepositoryError::NoIncremental { backupset: set.id.to_string() }),
            number => Ok(BackupNumber(number)),
        }
    }

    fn count_new(&self, Ready { draft, set, before, .. }: &Ready<'_>) -> Result<(), RepositoryError> {
        let path = self.repository.layout.manifest(set.id, draft.info.incremental);
        let committed = ManifestReader::open(self.repository.storage.as_ref(), &path)?;
        let before = match before {
            Ok(before) => before.as_ref(),
            Err(other) => {
                let what = format!("it counts {}@{other}, which cannot be read", set.id);
                return Err(self.store.distrust(what).into());
            }
        };
        let neighbours = Neighbours { before, this: &committed, after: None };
        let counting = Counting { backupset: set.id, neighbours };
        counting.add(None, |changes| self.store.apply(changes))?;
        Ok(())
    }

    /// Raises the generation, first in the index, then in `state`: an index from before this moment is not
    /// believed any longer.
    pub(super) fn raise_generation(&self) -> Result<(), RepositoryError> {
        // Held over I/O: nobody else wants it while a commit is under way, and the order of the two is the point.
        let mut file = self.state();
        let state = file.state();
        // A collection may have raised that of the index further.
        let generation = state.generation.max(self.store.generation()).saturating_add(1);
        self.store.raise_generation(generation)?;
        Ok(file.write(State { generation, ..state })?)
    }
}
