//! The lists of backups in memory, for the process that changes the repository.
//!
//! That process holds the repository's lock, so nobody else changes a list. It reads all of them once, and from then on it
//! takes down what it writes. So a backup, or a list of one project's backups, costs nothing for the backups of others.
//!
//! The files stay the truth. A commit, a deletion and a protection read the `set.toml` that they change, and a collection and
//! a check read all of them. There is nothing in memory
//!
//! - if a list could not be read at the opening: then each question reads the files, and says so, until a backup begins, which reads
//!   all of them under the lock of commits;
//! - after a write has failed, of which nobody knows how far it came;
//! - once they would take more than [`MOST_BYTES`], until the writer is gone;
//! - when the writer is gone: who then opens the repository may be another process.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::manifest::{BackupsetId, ImageName};
use crate::repository::number::FormerName;
use crate::repository::recovery::ReadLists;
use crate::repository::{BackupRecord, Backupset, Repository, RepositoryError};

/// How many bytes of lists are kept in memory at most: a million backups without tags.
const MOST_BYTES: usize = if cfg!(test) { 1 << 20 } else { 256 << 20 };

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
    /// Whether there is more than is kept: then it is not read in vain with every backup that begins.
    too_many: bool,
    known: Option<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Whoever asks gets these, never a copy: tags and notes make a list long.
    sets: BTreeMap<Place, Arc<Backupset>>,
    places: HashMap<BackupsetId, Place>,
    bytes: usize,
}

impl Known {
    fn put(&mut self, set: Backupset) {
        if let Some(before) = self.places.remove(&set.id).and_then(|place| self.sets.remove(&place)) {
            self.bytes = self.bytes.saturating_sub(bytes(&before));
        }
        if !set.is_unborn() {
            self.bytes = self.bytes.saturating_add(bytes(&set));
            let place = (set.name.clone(), set.created, set.id);
            self.places.insert(set.id, place.clone());
            self.sets.insert(place, Arc::new(set));
        }
    }

    /// Returns the backupsets whose names begin with `prefix`.
    fn named<'a>(&'a self, prefix: &'a str) -> Box<dyn Iterator<Item = &'a Arc<Backupset>> + 'a> {
        let begins = move |set: &&Arc<Backupset>| set.name.as_str().starts_with(prefix);
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
        if known.bytes > MOST_BYTES {
            state.known = None;
            state.too_many = true;
        }
    }

    /// Keeps all lists that there are, unless they are too many.
    fn keep(&self, sets: Vec<Backupset>) {
        let mut state = self.write();
        let all = sets.iter().map(bytes).fold(0_usize, usize::saturating_add);
        if state.kept && all > MOST_BYTES {
            state.too_many = true;
        } else if state.kept {
            let mut known = Known::default();
            for set in sets {
                known.put(set);
            }
            state.known = Some(known);
        }
    }

    /// Forgets all lists: it is not known what the files say.
    pub(super) fn forget(&self) {
        self.write().known = None;
    }
}

/// Returns how much memory a list takes, about.
fn bytes(set: &Backupset) -> usize {
    let of_record = |record: &BackupRecord| {
        let tags = record.tags.iter().map(|tag| size_of::<String>() + tag.len()).sum::<usize>();
        let texts = [&record.note, &record.suspect, &record.flaws.inconsistent]
            .into_iter()
            .flatten()
            .map(String::len)
            .sum::<usize>();
        let disks = size_of_val(record.disks.as_slice());
        size_of::<BackupRecord>() + tags + texts + disks
    };
    let records = set.all_records().map(of_record).sum::<usize>();
    // Its name is in its place, too, and there are two of those.
    let names = 3 * set.name.as_str().len() + 2 * size_of::<Place>();
    let former = set.former_names.iter().map(|former| size_of::<FormerName>() + former.name.as_str().len());
    let names = names + former.sum::<usize>();
    size_of::<Backupset>() + names + set.bases.len() * size_of::<BackupsetId>() + records
}

/// Says that a writer takes down what it writes, as long as there is one.
#[derive(Debug)]
pub(super) struct ListsKept(Arc<Lists>);

impl ListsKept {
    /// Begins with what the opening has read.
    pub(super) fn new(repository: &Repository, ReadLists { sets, problems }: ReadLists) -> Self {
        let lists = Arc::clone(&repository.lists);
        *lists.write() = State { kept: true, ..State::default() };
        if problems.is_empty() {
            lists.keep(sets);
        }
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
        {
            let state = self.lists.read();
            if state.known.is_some() || state.too_many {
                return Ok(());
            }
        }
        let mut all = 0_usize;
        let (sets, problems) = self.read_sets(&mut |set| {
            // One more than are kept, so that it is seen.
            let fits = all <= MOST_BYTES;
            all = all.saturating_add(bytes(set));
            fits
        })?;
        let is_lost = |problem: &RepositoryError| matches!(problem, RepositoryError::ListLost { .. });
        match problems.into_iter().partition::<Vec<_>, _>(is_lost) {
            (lost, others) if others.is_empty() => {
                // Whoever asks is to hear of lost ones, so the files are read each time.
                if lost.is_empty() {
                    self.lists.keep(sets);
                }
            }
            (_, others) => return others.into_iter().next().map_or(Ok(()), Err),
        }
        Ok(())
    }

    /// Returns the backupsets whose names begin with `prefix`, in the order of name and beginning, as
    /// [`Self::backupsets`] does: from memory, if this process changes the repository.
    pub fn backupsets_named(
        &self,
        prefix: &str,
    ) -> Result<(Vec<Arc<Backupset>>, Vec<RepositoryError>), RepositoryError> {
        if let Some(known) = &self.lists.read().known {
            return Ok((known.named(prefix).cloned().collect(), Vec::new()));
        }
        let (sets, problems) =
            self.read_sets(&mut |set| !set.is_unborn() && set.name.as_str().starts_with(prefix))?;
        Ok((sets.into_iter().map(Arc::new).collect(), problems))
    }

    /// Counts the names that begin with `prefix` and have a backup, be it a deleted one that is not collected.
    pub(super) fn count_names(&self, prefix: &str) -> Result<usize, RepositoryError> {
        let count = |sets: &mut dyn Iterator<Item = &Arc<Backupset>>| {
            sets.filter(|set| set.records() > 0).map(|set| &set.name).collect::<HashSet<_>>().len()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Incremental;
    use crate::progress::Silent;
    use crate::repository::{BackupNumber, InitOptions, OpenOptions, Protection, RepositoryWriter};
    use crate::segment::Fingerprint;

    /// Writes a list of one backup beside those that there are.
    fn list(repository: &Repository, name: &str, note: usize) {
        let now = crate::time::now();
        let record = BackupRecord {
            number: BackupNumber(0),
            incremental: Incremental(0),
            manifest: Fingerprint::of(b""),
            timestamp: now,
            size_of_disk: 0,
            segments: 0,
            amounts: crate::repository::BackupAmounts::default(),
            is_machine: false,
            disks: Vec::new(),
            tags: Vec::new(),
            protection: Protection::None,
            note: Some("x".repeat(note)),
            suspect: None,
            flaws: crate::manifest::FlawMarks::default(),
        };
        let new = Backupset::new(BackupsetId::random(), ImageName::new(name).unwrap(), now);
        let set = Backupset { next_number: 1, next_incremental: 1, backups: vec![record], ..new };
        set.create(repository.storage.as_ref(), &repository.layout).unwrap();
    }

    fn with_lists(lists: usize, note: usize, test: impl FnOnce(&RepositoryWriter)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        Repository::init(&path, &InitOptions::default()).unwrap();
        let repository = Repository::open(&path).unwrap();
        for number in 0..lists {
            list(&repository, &format!("blue:{number}"), note);
        }
        list(&repository, "red:web", 1);
        let writer = RepositoryWriter::open(&path, &OpenOptions::default(), &Silent).unwrap();
        test(&writer);
    }

    #[test]
    fn whoever_asks_shares_the_lists_with_all_others_who_ask() {
        with_lists(3, 10, |writer| {
            let repository = writer.repository();
            repository.keep_lists().unwrap();
            let (one, two) =
                (repository.backupsets_named("blue:").unwrap().0, repository.backupsets_named("").unwrap().0);
            assert_eq!((one.len(), two.len()), (3, 4));
            assert!(one.iter().zip(&two).all(|(one, two)| Arc::ptr_eq(one, two)));
        });
    }

    #[test]
    fn lists_that_take_too_much_memory_are_not_kept_and_not_read_again_to_find_that_out() {
        // A record more, or a longer note: what counts is the memory.
        with_lists(4, MOST_BYTES / 4, |writer| {
            let repository = writer.repository();
            repository.keep_lists().unwrap();
            assert!(repository.lists.read().known.is_none());
            let reads = repository.list_reads();
            repository.keep_lists().unwrap();
            assert_eq!(repository.list_reads(), reads);
            let (red, problems) = repository.backupsets_named("red:").unwrap();
            assert_eq!((red.len(), problems.len()), (1, 0), "it comes from the files");
            assert_eq!(repository.list_reads(), reads + 1);
        });
        with_lists(3, MOST_BYTES / 4, |writer| {
            let repository = writer.repository();
            repository.keep_lists().unwrap();
            assert!(repository.lists.read().known.is_some());
            let red = repository.backupsets_named("red:").unwrap().0.remove(0);
            let mut more = Backupset::clone(&red);
            more.backups[0].note = Some("x".repeat(MOST_BYTES / 3));
            repository.lists.put([more]);
            assert!(repository.lists.read().known.is_none(), "a list that grew");
            let reads = repository.list_reads();
            repository.keep_lists().unwrap();
            assert_eq!(repository.list_reads(), reads);
        });
    }

    #[test]
    fn a_list_that_is_replaced_gives_its_memory_back() {
        with_lists(1, 10, |writer| {
            let repository = writer.repository();
            repository.keep_lists().unwrap();
            let of = |lists: &Lists| lists.read().known.as_ref().unwrap().bytes;
            let before = of(&repository.lists);
            let red = repository.backupsets_named("red:").unwrap().0.remove(0);
            for length in [10_000, 1] {
                let mut set = Backupset::clone(&red);
                set.backups[0].note = Some("x".repeat(length));
                repository.lists.put([set]);
                assert_eq!(of(&repository.lists), before - 1 + length);
            }
        });
    }
}
