//! The store as jobs use it: look up, claim, append, flush.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};

use crate::codec::Codec;
use crate::manifest::{BackupsetId, Incremental};
use crate::segment::{SegmentKey, SegmentSize};
use crate::storage::Storage;
use crate::store::distrusted::Distrusted;
use crate::store::entry::{Candidate, Change, Counted, FreedPlace, PackEntry, SegmentEntry, Task};
use crate::store::index::{Index, IndexWork, IndexWriter};
use crate::store::index_watch::Calls;
use crate::store::names::Names;
use crate::store::pack::{DeadSegment, PackFolder, PackNumber, RecordBuffer, SegmentMeta};
use crate::store::pending::{Horizon, Pending};
use crate::store::writer::{Closed, Command, Moved, Origin, StoreWriter};
use crate::store::{NewSegment, StoreError};

/// The room of one buffer, in bytes, and how many small ones share it at most.
const ROOM: u64 = 4 << 20;
const MOST_SMALL: u64 = 16;

/// How often whoever waits for the store's thread looks whether the index is stuck, in which that thread waits.
const LOOK: Duration = Duration::from_secs(1);

/// Where a store writes.
#[derive(Clone, Debug)]
pub struct StoreFolders {
    /// The folder of the packs.
    pub packs: PackFolder,
    /// The repository's id, which every pack carries.
    pub repository: [u8; 16],
}

/// Why a store has stopped writing.
#[derive(Clone, Debug)]
pub(super) struct Poison {
    pub(super) reason: String,
    pub(super) full: bool,
    pub(super) index: bool,
}

/// What the store's threads share.
#[derive(Debug, Default)]
pub(super) struct StoreState {
    pub(super) pending: Pending,
    pub(super) distrusted: Distrusted,
    poison: OnceLock<Poison>,
    /// How many steps the store's thread has done.
    steps: AtomicU64,
}

impl StoreState {
    /// Says that the store's thread has done a step.
    pub(super) fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    pub(super) fn poison(&self, poison: Poison) {
        // Whoever asks next is told; the log has the moment.
        tracing::info!(reason = poison.reason, "the repository stops writing");
        // The first failure is the one to tell of.
        let _ = self.poison.set(poison);
    }

    pub(super) fn check(&self) -> Result<(), StoreError> {
        match self.poison.get() {
            None => Ok(()),
            Some(Poison { reason, full, index }) => {
                Err(StoreError::Poisoned { reason: reason.clone(), full: *full, index: *index })
            }
        }
    }
}

/// A store that is open for writing. Shared between threads; one thread of its own does all writing.
///
/// Memory: `buffers` record buffers of a segment each, and about 300 bytes for each segment appended since the last flush
/// or full pack, of 2^18 at most.
#[derive(Debug)]
pub struct SegmentStore {
    pub(super) state: Arc<StoreState>,
    pub(super) names: Names,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) packs: PackFolder,
    index: Option<Index>,
    calls: Arc<Calls>,
    commands: Option<Sender<Command>>,
    free: Receiver<RecordBuffer>,
    thread: Option<JoinHandle<()>>,
}

impl SegmentStore {
    /// Starts the store's thread over an index that is in step with the packs.
    ///
    /// `buffers` is how many record buffers of a segment there are, at least one for each thread that appends; of small
    /// segments there are as many as take the room of so many of 4 MiB.
    pub fn start(
        storage: Arc<dyn Storage>,
        folders: StoreFolders,
        index: IndexWriter,
        buffers: usize,
        segment_size: SegmentSize,
    ) -> Result<Self, StoreError> {
        let small = (ROOM / u64::from(segment_size.bytes())).clamp(1, MOST_SMALL);
        let buffers = buffers.max(1).saturating_mul(usize::try_from(small).unwrap_or(1));
        let state = Arc::new(StoreState::default());
        state.pending.set_generation(index.generation());
        let lookups = index.index().clone();
        let calls = Arc::clone(lookups.calls());
        let (commands, inbox) = bounded(buffers);
        let (recycle, free) = bounded(buffers);
        for _ in 0..buffers {
            // The channel has room for all of them.
            let _ = recycle.send(RecordBuffer::new());
        }
        let packs = folders.packs.clone();
        let writer = StoreWriter::new(Arc::clone(&storage), folders, index, Arc::clone(&state), recycle)?;
        let thread = std::thread::Builder::new()
            .name("ekko-store".to_owned())
            .spawn(move || writer.run(&inbox))
            .map_err(|source| crate::storage::StorageError::new("start a thread for", "the store", source))?;
        Ok(Self {
            state,
            names: Names::default(),
            storage,
            packs,
            index: Some(lookups),
            calls,
            commands: Some(commands),
            free,
            thread: Some(thread),
        })
    }

    pub(super) fn index(&self) -> Result<&Index, StoreError> {
        self.index.as_ref().ok_or_else(stopped)
    }

    /// Returns what is stored of a segment that a manifest names: that the index lacks it is an error that
    /// [distrusts](StoreError::distrusts_index) it.
    pub fn require(&self, key: SegmentKey) -> Result<SegmentEntry, StoreError> {
        Ok(self.index()?.require(key)?)
    }

    /// Says whether it takes changes: it stops at the first that fails.
    ///
    /// # Errors
    ///
    /// With the failure.
    pub fn check(&self) -> Result<(), StoreError> {
        self.state.check()?;
        if let Some(error) = self.index.as_ref().and_then(Index::failure) {
            self.poison(&error.to_string(), error.is_full(), error.distrusts());
        }
        self.state.check()
    }

    /// Takes no more changes, as after a write of its own that failed. With `index`, that is what is not to be believed.
    pub fn poison(&self, reason: &str, full: bool, index: bool) {
        self.state.poison(Poison { reason: reason.to_owned(), full, index });
    }

    /// Returns how many segments no pack holds, and backups may name.
    pub fn lost_segments(&self) -> Result<u64, StoreError> {
        Ok(self.index()?.lost())
    }

    /// Makes sure that a segment which a new manifest names is stored.
    pub fn require_stored(&self, key: SegmentKey) -> Result<(), StoreError> {
        if self.lacks(key, &self.require(key)?) {
            return Err(StoreError::Lost { key });
        }
        Ok(())
    }

    /// Returns how far the segments of a backup are counted.
    pub fn counted_of(
        &self,
        backupset: BackupsetId,
        incremental: Incremental,
    ) -> Result<Option<Counted>, StoreError> {
        Ok(self.index()?.counted_of(backupset, incremental)?)
    }

    /// Makes the error that says why the index is not to be believed.
    pub fn distrust(&self, what: String) -> StoreError {
        match self.index() {
            Ok(index) => index.damaged(what).into(),
            Err(error) => error,
        }
    }

    /// Waits for a free buffer to encode a segment into.
    pub fn buffer(&self) -> Result<RecordBuffer, StoreError> {
        self.receive(&self.free).map_err(|error| self.state.check().err().unwrap_or(error))
    }

    /// Hands a claimed segment, whose stored bytes are in `buffer`, to the writer. It is durable after the
    /// next [`Self::flush`].
    pub fn append(
        &self,
        mut segment: NewSegment,
        codec: Codec,
        buffer: RecordBuffer,
    ) -> Result<(), StoreError> {
        let meta = SegmentMeta {
            key: segment.key(),
            fingerprint: segment.identity().fingerprint,
            plain_length: segment.identity().plain_length,
            codec,
        };
        let stored_bytes = buffer.stored_length();
        let origin = Origin::Job(segment.found_full().clone(), segment.damaged());
        self.send(Command::Append { meta, buffer, origin })?;
        segment.stored(stored_bytes);
        self.state.check()
    }

    /// Hands a copy of a stored segment, whose stored bytes are in `buffer`, to the writer: after the next
    /// [`Self::flush`] it is durable, and the segment lies there instead of where it comes from.
    pub(super) fn relocate(
        &self,
        meta: SegmentMeta,
        buffer: RecordBuffer,
        from: Moved,
    ) -> Result<(), StoreError> {
        self.send(Command::Append { meta, buffer, origin: Origin::Moved(from) })?;
        self.state.check()
    }

    /// Returns up to `most` segments that fell to a refcount of 0 in a generation below `before`, behind `after`.
    pub(super) fn zeros(
        &self,
        after: Option<(u64, SegmentKey)>,
        before: u64,
        most: usize,
    ) -> Result<Vec<(u64, SegmentKey)>, StoreError> {
        Ok(self.index()?.zeros(after, before, most)?)
    }

    /// Returns what the index says of the packs.
    pub fn packs(&self) -> Result<HashMap<PackNumber, PackEntry>, StoreError> {
        Ok(self.index()?.packs()?)
    }

    pub(super) fn lookup(&self, key: SegmentKey) -> Result<Option<SegmentEntry>, StoreError> {
        Ok(self.index()?.lookup(key)?)
    }

    /// Returns what is still to be done to the packs' files.
    pub(super) fn tasks(&self, from: u64, most: usize) -> Result<Vec<(u64, Task)>, StoreError> {
        Ok(self.index()?.tasks(from, most)?)
    }

    /// Returns the packs that are to be removed.
    pub(super) fn going(&self) -> Result<HashSet<PackNumber>, StoreError> {
        Ok(self.index()?.going()?)
    }

    /// Returns the moment before which what nobody names may be freed.
    pub fn horizon(&self) -> Horizon {
        self.state.pending.horizon()
    }

    /// Takes those candidates out of the index that nobody uses by now. Returns the places that are free, once this
    /// is durable.
    pub(super) fn free(
        &self,
        candidates: Vec<Candidate>,
        before: u64,
    ) -> Result<Vec<FreedPlace>, StoreError> {
        let dying = self.state.pending.begin_dying(candidates, before, |candidate| candidate.key);
        let freed = self.ask(|reply| Command::Free(dying, before, reply));
        self.state.pending.end_dying();
        freed
    }

    /// Takes empty packs out of the index. Returns which.
    pub(super) fn drop_packs(&self, numbers: Vec<PackNumber>) -> Result<Vec<PackNumber>, StoreError> {
        self.ask(|reply| Command::DropPacks(numbers, reply))
    }

    /// Writes durably that these places are free.
    pub(super) fn bury(&self, places: Vec<DeadSegment>) -> Result<(), StoreError> {
        self.ask(|reply| Command::Bury(places, reply))
    }

    /// Seals the pack that is being appended to, if there is one.
    pub fn seal(&self) -> Result<(), StoreError> {
        self.ask(Command::Seal)
    }

    /// Returns what changing the index has taken since it was opened.
    pub fn index_work(&self) -> Result<IndexWork, StoreError> {
        self.ask(Command::IndexWork)
    }

    /// Calls `each` with every segment that the index holds, in the order of their keys.
    pub fn for_each_entry(&self, each: impl FnMut(SegmentKey, &SegmentEntry)) -> Result<(), StoreError> {
        Ok(self.index()?.segments(each)?)
    }

    /// Makes everything claimed so far durable in packs and puts it into the index. The caller has no claim of its own
    /// that it has not appended.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.state.pending.wait_for_claimed();
        self.ask(Command::Flush)
    }

    /// Changes the index, in batches of at most 64, each atomic. Not durable by itself.
    pub fn apply(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.ask(|reply| Command::Apply(changes, reply))
    }

    /// Returns the index's generation.
    pub fn generation(&self) -> u64 {
        self.state.pending.generation()
    }

    /// Raises the index's generation, not durably: what falls to a refcount of 0 from now on is told from what
    /// did before.
    pub fn begin_generation(&self) -> Result<(), StoreError> {
        let generation = self.state.pending.generation().saturating_add(1);
        self.apply(vec![Change::Generation(generation)])
    }

    /// Raises the index's generation and makes the index durable.
    pub fn raise_generation(&self, generation: u64) -> Result<(), StoreError> {
        self.ask(|reply| Command::Generation(generation, reply))
    }

    /// Seals the pack, closes the index, and returns the digest of its files.
    pub fn close(mut self) -> Result<Closed, StoreError> {
        let (reply, answer) = bounded(1);
        self.index = None;
        self.send(Command::Close(reply))?;
        let closed = self.receive(&answer)?;
        self.stop();
        closed
    }

    /// Says whether the store's thread answers in time, or goes on with what it was told before.
    pub fn answers(&self, within: Duration) -> bool {
        let Some(commands) = &self.commands else { return false };
        let (begun, steps) = (Instant::now(), self.state.steps());
        let (reply, answer) = bounded(1);
        let answered = commands.send_timeout(Command::Answer(reply), within).is_ok()
            && answer.recv_timeout(within.saturating_sub(begun.elapsed())).is_ok();
        answered || self.state.steps() != steps
    }

    fn ask<T>(
        &self,
        command: impl FnOnce(Sender<Result<T, StoreError>>) -> Command,
    ) -> Result<T, StoreError> {
        let (reply, answer) = bounded(1);
        self.send(command(reply))?;
        self.receive(&answer)?
    }

    /// Waits for what the store's thread gives, but not if that thread waits for an index that is stuck.
    fn receive<T>(&self, from: &Receiver<T>) -> Result<T, StoreError> {
        loop {
            match from.recv_timeout(LOOK) {
                Ok(given) => return Ok(given),
                Err(RecvTimeoutError::Disconnected) => return Err(stopped()),
                Err(RecvTimeoutError::Timeout) => self.calls.check()?,
            }
        }
    }

    fn send(&self, mut command: Command) -> Result<(), StoreError> {
        let commands = self.commands.as_ref().ok_or_else(stopped)?;
        loop {
            command = match commands.send_timeout(command, LOOK) {
                Ok(()) => return Ok(()),
                Err(SendTimeoutError::Disconnected(_)) => return Err(stopped()),
                Err(SendTimeoutError::Timeout(command)) => command,
            };
            self.calls.check()?;
        }
    }

    fn stop(&mut self) {
        self.commands = None;
        let Some(thread) = self.thread.take() else { return };
        // It gives buffers back until it ends. One that waits for an index that is stuck does not end.
        while self.receive(&self.free).is_ok() {}
        if self.calls.check().is_ok() {
            // A panic in the writer has been answered with `stopped` to whoever waited for it.
            let _ = thread.join();
        }
    }
}

impl Drop for SegmentStore {
    fn drop(&mut self) {
        self.index = None;
        self.stop();
    }
}

fn stopped() -> StoreError {
    StoreError::Poisoned { reason: "its writer has ended".to_owned(), full: false, index: false }
}

#[cfg(test)]
mod tests;
