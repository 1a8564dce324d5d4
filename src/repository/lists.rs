//! The lists of backups in memory, for the process that changes the repository.
//!
//! That process holds the repository's lock, so nobody else changes a list. It reads all of them once, and from then on it
//! takes down what it writes. So a backup, or a list of one project's backups, costs nothing for the backups of others.
//!
//! The files stay the truth. A commit, a deletion and a protection read the `set.toml` that they change, and a collection and
//! a check read all of them. There is nothing in memory
//!
//! - before the first backup begins, which reads all lists under the lock of commits;
//! - if a list cannot be read: then each question reads the files, and says so;
//! - after a write has failed, of which nobody knows how far it came;
//! - once there are more than [`MOST_RECORDS`] backups;
//! - when the writer is gone: who then opens the repository may be another process.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::manifest::{BackupsetId, ImageName};
use crate::repository::{Backupset, Repository, RepositoryError};

/// How many backups are kept in memory at most: some 300 MB.
const MOST_RECORDS: usize = 1 << 20;

/// The order of all lists: name, beginning, id.
type Place = (ImageName, jiff::Timestamp, BackupsetId);

/// The lists of backups in memory.
#[derive(Debug, Default)]
pub(super) struct Lists {
    state: RwLock<State>,
    /// How often all files were read.
    reads: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Whether a writer takes down what it writes.
    kept: bool,
    known: Option<Known>,
}

#[derive(Debug, Default)]
struct Known {
    sets: BTreeMap<Place, Backupset>,
    places: HashMap<BackupsetId, Place>,
    records: usize,
}

impl Known {
    fn put(&mut self, set: Backupset) {
        let records = |set: &Backupset| set.backups.len() + set.deleted.len();
        if let Some(before) = self.places.remove(&set.id).and_then(|place| self.sets.remove(&place)) {
            self.records -= records(&before);
        }
        if !set.is_unborn() {
            self.records += records(&set);
            let place = (set.name.clone(), set.created, set.id);
            self.places.insert(set.id, place.clone());
            self.sets.insert(place, set);
        }
    }

    /// Returns the backupsets whose names begin with `prefix`.
    fn named<'a>(&'a self, prefix: &'a str) -> Box<dyn Iterator<Item = &'a Backupset> + 'a> {
        let begins = move |set: &&Backupset| set.name.as_str().starts_with(prefix);
        match ImageName::new(prefix) {
            Ok(first) => {
                let from = (first, jiff::Timestamp::MIN, BackupsetId::from_bytes([0; 16]));
                Box::new(self.sets.range(from..).map(|(_, set)| set).take_while(begins))
            }
            // It is empty.
            Err(_) => Box::new(self.sets.values().filter(begins)),
        }
    }
}

impl Lists {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes down what lists say from now on, all at one moment.
    pub(super) fn put(&self, sets: impl IntoIterator<Item = Backupset>) {
        let mut state = self.write();
        let Some(known) = &mut state.known else { return };
        for set in sets {
            known.put(set);
        }
        if known.records > MOST_RECORDS {
            state.known = None;
        }
    }

    /// Forgets all lists: it is not known what the files say.
    pub(super) fn forget(&self) {
        self.write().known = None;
    }
}

/// Says that a writer takes down what it writes, as long as there is one.
#[derive(Debug)]
pub(super) struct ListsKept(Arc<Lists>);

impl ListsKept {
    pub(super) fn new(repository: &Repository) -> Self {
        let lists = Arc::clone(&repository.lists);
        *lists.write() = State { kept: true, known: None };
        Self(lists)
    }
}

impl Drop for ListsKept {
    fn drop(&mut self) {
        *self.0.write() = State::default();
    }
}

impl Repository {
    /// Reads all lists into memory, unless they are there. To be called under the lock of commits.
    ///
    /// # Errors
    /// A list cannot be read.
    pub(super) fn keep_lists(&self) -> Result<(), RepositoryError> {
        if self.lists.read().known.is_some() {
            return Ok(());
        }
        let (sets, problems) = self.backupsets()?;
        if let Some(problem) = problems.into_iter().next() {
            return Err(problem);
        }
        let mut state = self.lists.write();
        if state.kept {
            let mut known = Known::default();
            for set in sets {
                known.put(set);
            }
            state.known = Some(known).filter(|known| known.records <= MOST_RECORDS);
        }
        Ok(())
    }

    /// Returns the backupsets whose names begin with `prefix`, in the order of name and beginning, as
    /// [`Self::backupsets`] does: from memory, if this process changes the repository.
    pub fn backupsets_named(
        &self,
        prefix: &str,
    ) -> Result<(Vec<Backupset>, Vec<RepositoryError>), RepositoryError> {
        if let Some(known) = &self.lists.read().known {
            return Ok((known.named(prefix).cloned().collect(), Vec::new()));
        }
        let (mut sets, problems) = self.backupsets()?;
        sets.retain(|set| set.name.as_str().starts_with(prefix));
        Ok((sets, problems))
    }

    /// Counts the names that begin with `prefix`.
    pub(super) fn count_names(&self, prefix: &str) -> Result<usize, RepositoryError> {
        let count = |sets: &mut dyn Iterator<Item = &Backupset>| {
            sets.map(|set| &set.name).collect::<HashSet<_>>().len()
        };
        if let Some(known) = &self.lists.read().known {
            return Ok(count(&mut known.named(prefix)));
        }
        Ok(count(&mut self.backupsets_named(prefix)?.0.iter()))
    }

    /// Replaces the list of a backupset; durable when this returns.
    pub(super) fn write_set(&self, set: &Backupset) -> Result<(), RepositoryError> {
        set.write(self.storage.as_ref(), &self.layout).inspect_err(|_| self.lists.forget())?;
        self.lists.put([set.clone()]);
        Ok(())
    }

    /// Takes down that all lists are being read from their files.
    pub(super) fn count_read(&self) {
        self.lists.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how often all lists were read from their files.
    pub fn list_reads(&self) -> u64 {
        self.lists.reads.load(Ordering::Relaxed)
    }
}
