//! Opening a repository to change it, and closing it in order.
//!
//! Order of opening: lock; undo what a crash left half made; read `state`, and from then on it says "not
//! closed in order"; open the index, or make a new one if it cannot be believed; bring it into step with
//! packs and manifests. Order of closing: seal the pack, close the index and sync its files, then `state`
//! says "closed in order" and names the digest of the index's files.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::ErrorKind;
use crate::progress::{Notice, Progress};
use crate::repository::draft::Growing;
use crate::repository::lists::ListsKept;
use crate::repository::lock::Lock;
use crate::repository::owner::check_owner;
use crate::repository::recovery::{self, OpenedIndex, ReadLists};
use crate::repository::room::refill_reserve;
use crate::repository::state::{State, StateFile};
use crate::repository::{Repository, RepositoryError};
use crate::storage::{RootStorage, Storage, StorageError};
use crate::store::{SegmentStore, StoreFolders};

/// How a repository is opened for writing.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// How long to wait for another process to let the repository go.
    pub wait: Duration,
    /// How many segments may be encoded at once: one buffer of a segment's size for each.
    pub buffers: usize,
    /// Make a new index, whatever the old one is worth.
    pub rebuild: bool,
    /// Whether the job frees space, or changes so little that it must succeed on a full disk. It then removes the reserve if the
    /// disk is full. A backup does not: it would use the room that a later deletion needs.
    pub uses_reserve: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { wait: Duration::ZERO, buffers: 4, rebuild: false, uses_reserve: false }
    }
}

/// A repository that this process alone may change.
///
/// [`Self::close`] ends it in order. Dropping it does not: the next opening then checks the index against
/// its sum and brings it into step, as after a crash.
#[derive(Debug)]
pub struct RepositoryWriter {
    pub(super) repository: Repository,
    pub(super) state: Mutex<StateFile>,
    pub(super) store: SegmentStore,
    /// One change of the lists of backups at a time.
    pub(super) committing: Mutex<()>,
    /// One garbage collection at a time.
    pub(super) collecting: Mutex<()>,
    /// What backups are being made of.
    pub(super) growing: Arc<Mutex<Growing>>,
    options: OpenOptions,
    // Before the lock: nobody else changes the lists until they are forgotten.
    _lists: ListsKept,
    _lock: Lock,
}

impl RepositoryWriter {
    /// Opens the repository at `path`.
    pub fn open(
        path: &Path,
        options: &OpenOptions,
        progress: &dyn Progress,
    ) -> Result<Self, RepositoryError> {
        let storage: Arc<dyn Storage> = Arc::new(RootStorage::at(path));
        Self::open_with(&storage, path, options, progress)
    }

    /// Opens the repository at `path` through a storage of the caller's.
    pub fn open_with(
        storage: &Arc<dyn Storage>,
        path: &Path,
        options: &OpenOptions,
        progress: &dyn Progress,
    ) -> Result<Self, RepositoryError> {
        let repository = Repository::open_with(Arc::clone(storage), path)?;
        repository.check_settings()?;
        check_owner(storage.as_ref(), &repository.layout)?;
        let lock = Lock::take(storage.as_ref(), &repository.layout, options.wait)?;
        let asked = options.rebuild.then_some("it was asked for");
        let locked = LockedRepository { repository, options: *options, lock };
        if options.uses_reserve {
            locked.repository.release_reserve_if_needed();
        }
        let (locked, error) = match locked.open(asked, progress) {
            Ok(writer) => return Ok(writer),
            Err(failed) => *failed,
        };
        if !error.is_full() {
            return Err(error);
        }
        if !options.uses_reserve {
            return Err(RepositoryError::full(path, error.to_string(), true));
        }
        // A quota can be used up on a disk that has room.
        locked.release_reserve();
        locked.open(asked, progress).map_err(|failed| match failed.1 {
            error if error.is_full() => RepositoryError::full(path, error.to_string(), true),
            error => error,
        })
    }

    /// Returns the part that reads.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Returns the store.
    pub fn store(&self) -> &SegmentStore {
        &self.store
    }

    /// Runs something while no backup comes or goes and nothing is collected.
    pub fn quiet<T>(&self, job: impl FnOnce() -> T) -> T {
        // Held over I/O, in the order in which a collection takes them: that is the point.
        let _collecting = self.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        let _committing = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        job()
    }

    /// Makes sure that the reserve is there: a backup on a disk without room for it is not begun.
    pub fn prepare_for_growth(&self) -> Result<(), RepositoryError> {
        self.check()?;
        Ok(refill_reserve(self.repository.storage.as_ref(), &self.repository.layout)?)
    }

    /// Gives the reserve up after the disk was found full, so that what comes next has room to clean up.
    pub fn release_reserve(&self) {
        self.repository.release_reserve();
    }

    /// Finds out whether the repository can be written to; gives the reserve up if the disk is full. For when no job runs.
    pub(super) fn probe(&self) -> Result<(), RepositoryError> {
        match try_to_write(&self.repository) {
            Err(error) if error.is_full() => {
                self.release_reserve();
                Ok(try_to_write(&self.repository)?)
            }
            result => Ok(result?),
        }
    }

    /// Stops writing, not in order, and keeps the lock. What was appended and not flushed is found in the packs.
    pub(super) fn stop(self) -> LockedRepository {
        let Self { repository, store, options, _lists: lists, _lock: lock, .. } = self;
        // The store's thread ends, and lets the index go.
        drop(store);
        // The next writer keeps lists of its own.
        drop(lists);
        LockedRepository { repository, options, lock }
    }

    /// Ends in order; when this returns, the next opening need not check the index.
    pub fn close(self) -> Result<(), RepositoryError> {
        self.check()?;
        let Self { repository, state, store, .. } = self;
        let closed = store.close()?;
        let mut file = state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let state = file.state();
        let generation = state.generation.max(closed.generation);
        file.write(State { generation, clean: Some(closed.digest), ..state })?;
        repository.restore_reserve();
        Ok(())
    }

    pub(super) fn state(&self) -> MutexGuard<'_, StateFile> {
        // The state in memory changes only after the write succeeded.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses to go on after a failed write.
    pub(super) fn check(&self) -> Result<(), RepositoryError> {
        Ok(self.store.check()?)
    }

    /// Keeps a failure so that nothing is written after it, by a collection beside it neither: what it has just counted,
    /// or not, decides what is garbage.
    pub(super) fn poisoned_by(&self, error: &RepositoryError) {
        if matches!(error, RepositoryError::TooLong { .. }) {
            // It was found before anything was written.
            return;
        }
        self.store.poison(&error.to_string(), error.is_full(), false);
        if error.is_full() {
            self.release_reserve();
        }
    }
}

/// A repository that this process has locked and does not write to.
#[derive(Debug)]
pub(super) struct LockedRepository {
    repository: Repository,
    options: OpenOptions,
    lock: Lock,
}

impl LockedRepository {
    /// Opens it for writing, as after a crash; with a new index if there is a reason to make one.
    ///
    /// # Errors
    /// Then it is still locked.
    pub(super) fn open(
        self,
        rebuild: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<RepositoryWriter, Box<(Self, RepositoryError)>> {
        match start(&self.repository, &self.options, rebuild, progress) {
            Ok((file, store, lists)) => Ok(RepositoryWriter {
                _lists: ListsKept::new(&self.repository, lists),
                repository: self.repository,
                state: Mutex::new(file),
                store,
                committing: Mutex::default(),
                collecting: Mutex::default(),
                growing: Arc::default(),
                options: self.options,
                _lock: self.lock,
            }),
            Err(error) => Err(Box::new((self, error))),
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.repository.layout.root()
    }

    /// Does as [`RepositoryWriter::release_reserve`] does.
    pub(super) fn release_reserve(&self) {
        self.repository.release_reserve();
    }
}

/// What is written to find out whether a repository can be written to: more than what opening it writes before it makes an
/// index.
const PROBE: usize = 1 << 20;

/// Opens `state` for writing, and makes, fills, syncs and removes a file.
fn try_to_write(repository: &Repository) -> Result<(), StorageError> {
    let (storage, layout) = (repository.storage.as_ref(), &repository.layout);
    match storage.open(&layout.state()) {
        // It would be made anew.
        Err(error) if !error.is_not_found() => return Err(error),
        _ => {}
    }
    let path = layout.probe();
    let remove = || match storage.unlink(&path) {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    };
    remove()?;
    let written = storage.create(&path).and_then(|file| {
        file.write_at(&vec![0; PROBE], 0)?;
        file.sync()
    });
    written.and(remove())
}

/// Brings the repository into a state that can be written to, and starts the store over it.
fn start(
    repository: &Repository,
    options: &OpenOptions,
    rebuild: Option<&str>,
    progress: &dyn Progress,
) -> Result<(StateFile, SegmentStore, ReadLists), RepositoryError> {
    let lists = recovery::undo_unfinished(repository, progress)?;
    repository.enroll(&lists.sets);
    let (mut file, found) = StateFile::open(repository.storage.as_ref(), &repository.layout.state())?;
    let found = found.unwrap_or_else(|| {
        let what = "the file \"state\" is gone or damaged and was made anew".to_owned();
        progress.notice(Notice::Problem { kind: ErrorKind::Corrupt, what });
        recovery::unknown_state(file.state())
    });
    file.write(State { clean: None, ..found })?;
    let opened = recovery::open_index(repository, &found, &lists, rebuild, progress)?;
    let store = start_store(repository, &mut file, opened, options)?;
    Ok((file, store, lists))
}

/// Makes the index's generation, then the state's, higher than any before, and starts the store over it.
fn start_store(
    repository: &Repository,
    file: &mut StateFile,
    opened: OpenedIndex,
    options: &OpenOptions,
) -> Result<SegmentStore, RepositoryError> {
    let OpenedIndex { number, index } = opened;
    let state = file.state();
    let generation = index.generation();
    if state.index != number || state.generation < generation {
        let generation = state.generation.max(generation);
        if let Err(error) = file.write(State { generation, index: number, clean: None, ..state }) {
            // It stays: what was written of the state may name it.
            recovery::let_go(index);
            return Err(error.into());
        }
    }
    recovery::drop_other_indexes(repository, number);
    let folders =
        StoreFolders { packs: repository.packs(), repository: *repository.settings.repository.as_bytes() };
    Ok(SegmentStore::start(
        Arc::clone(&repository.storage),
        folders,
        index,
        options.buffers,
        repository.settings.segment_size,
    )?)
}
