//! The one thread that changes packs and index.
//!
//! Order of a flush: the pack's bytes are fsynced, a mark says so, then the entries go into the index,
//! then they leave the table of pending segments. So whatever the index names is durable, and at every
//! moment a stored segment is found in one of the two. While much is appended, the fsync runs beside, on a
//! thread of its own, so that a commit has little left to wait for; its result is taken in before anything
//! else is flushed. Entries wait for as many as there may be and go in sorted: one by one, as they come, each
//! would change another page of an index that is larger than its cache.
//!
//! After a failed write or sync nothing more is written: the pack is cut at its last mark and every later
//! command is refused, until the repository is opened again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use crate::segment::Fingerprint;
use crate::storage::{Storage, StorageError};
use crate::store::StoreError;
use crate::store::claim::FoundFull;
use crate::store::entry::{Candidate, Change, FreedPlace, SegmentEntry};
use crate::store::index::{IndexWork, IndexWriter};
use crate::store::pack::{
    Appended, DEAD_SEGMENTS, DeadSegment, PackError, PackHeader, PackNumber, PackWriter, RecordBuffer,
    RecordPlace, SegmentMeta,
};
use crate::store::reconcile::highest_pack;
use crate::store::segments::{Poison, StoreFolders, StoreState};

/// A sync in the background begins by itself after so many bytes...
const SYNC_BYTES: u64 = 64 << 20;
/// ... or so many segments. While one runs, up to four times as much is appended before the writer waits.
const SYNC_SEGMENTS: usize = 1 << 12;
/// So many segments that are durable go into the index at once, or fewer when somebody flushes or a pack is full. Until then
/// they take about 300 bytes each.
const ENTERED_AT_ONCE: usize = 1 << 18;
/// How many changes of them are made up before they are applied.
const CHANGES_AT_ONCE: usize = 1 << 12;

/// What became of a store that was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The digest of the index's files.
    pub digest: Fingerprint,
    /// The index's generation.
    pub generation: u64,
}

type Reply<T> = Sender<Result<T, StoreError>>;

/// What the writer can be told to do.
#[derive(Debug)]
pub(super) enum Command {
    /// A new segment, or a copy of one that lies elsewhere.
    Append {
        meta: SegmentMeta,
        buffer: RecordBuffer,
        origin: Origin,
    },
    Flush(Reply<()>),
    Seal(Reply<()>),
    Free(Vec<Candidate>, u64, Reply<Vec<FreedPlace>>),
    DropPacks(Vec<PackNumber>, Reply<Vec<PackNumber>>),
    Bury(Vec<DeadSegment>, Reply<()>),
    IndexWork(Reply<IndexWork>),
    /// Answered at once: says that the thread is there.
    Answer(Sender<()>),
    Apply(Vec<Change>, Reply<()>),
    Generation(u64, Reply<()>),
    Close(Reply<Closed>),
}

/// Why a segment is appended.
#[derive(Debug)]
pub(super) enum Origin {
    /// It is new, and of this job; or it takes the place of a copy that was found damaged.
    Job(FoundFull, Option<RecordPlace>),
    /// It is a copy.
    Moved(Moved),
}

/// Where a copy of a segment comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    pub(super) place: RecordPlace,
    /// When the segment was stored, in seconds since 1970.
    pub(super) time: u64,
}

/// Which copy of a segment the index had before.
#[derive(Clone, Copy, Debug)]
enum Former {
    None,
    Moved(RecordPlace),
    Damaged(RecordPlace),
}

/// The pack that is being appended to.
#[derive(Debug)]
struct OpenPack {
    writer: PackWriter,
    dead: u64,
    /// Appended and not yet in the index, in the order of their offsets, and where they were before.
    unflushed: VecDeque<(Appended, Former)>,
    /// Where the last sync, finished or not, ends.
    sync_begun: u64,
    /// Whose segments were appended since the last flush.
    jobs: Vec<FoundFull>,
    /// How many of `unflushed`, from the first on, are known to be durable.
    durable: usize,
    /// How many of `unflushed` the sync that is running covers, and where its result comes from.
    syncing: Option<(usize, Receiver<Result<u64, PackError>>)>,
}

impl OpenPack {
    fn new(writer: PackWriter) -> Self {
        let sync_begun = writer.size();
        Self {
            writer,
            dead: 0,
            unflushed: VecDeque::new(),
            jobs: Vec::new(),
            durable: 0,
            sync_begun,
            syncing: None,
        }
    }

    /// Says whether `times` the amount was appended at which a sync begins by itself.
    fn wants_sync(&self, times: usize) -> bool {
        let covered = self.syncing.as_ref().map_or(self.durable, |(segments, _)| *segments);
        self.writer.size() - self.sync_begun >= SYNC_BYTES * times as u64
            || self.unflushed.len() - covered >= SYNC_SEGMENTS * times
    }

    /// Begins a sync on a thread of its own.
    fn begin_sync(&mut self) -> Result<(), StoreError> {
        let (done, result) = bounded(1);
        let sync = self.writer.begin_sync()?;
        std::thread::Builder::new()
            .name("ekko-sync".to_owned())
            // If nobody waits any longer, the writer has ended, and nothing depends on it.
            .spawn(move || drop(done.send(sync.run())))
            .map_err(|source| StorageError::new("start a thread for", "the store", source))?;
        self.sync_begun = self.writer.size();
        self.syncing = Some((self.unflushed.len(), result));
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct StoreWriter {
    storage: Arc<dyn Storage>,
    folders: StoreFolders,
    index: IndexWriter,
    state: Arc<StoreState>,
    recycle: Sender<RecordBuffer>,
    pack: Option<OpenPack>,
    next_pack: PackNumber,
    /// Whose segment is being written.
    writes_for: Option<FoundFull>,
}

impl StoreWriter {
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        folders: StoreFolders,
        index: IndexWriter,
        state: Arc<StoreState>,
        recycle: Sender<RecordBuffer>,
    ) -> Result<Self, StoreError> {
        let on_disk = highest_pack(storage.as_ref(), &folders.packs)?;
        // A number is not given twice while the index remembers it: readers may have the old pack open.
        let in_index = index.index().packs()?.into_keys().max().max(Some(index.last_pack()));
        let last = on_disk.max(in_index).filter(|last| last.0 > 0);
        let next_pack =
            match last {
                None => PackNumber(1),
                Some(PackNumber(number)) => PackNumber(number.checked_add(1).ok_or_else(|| {
                    StoreError::NoPackNumber { path: folders.packs.path().to_owned(), number }
                })?),
            };
        state.pending.set_open_pack(next_pack);
        Ok(Self { storage, folders, index, state, recycle, pack: None, next_pack, writes_for: None })
    }

    pub(super) fn run(mut self, inbox: &Receiver<Command>) {
        while let Ok(command) = inbox.recv() {
            self.state.step();
            match command {
                Command::Append { meta, mut buffer, origin } => {
                    // The failure is kept and told to the next who asks.
                    let _ = self.attempt(|writer| writer.append(meta, &mut buffer, origin));
                    let _ = self.recycle.send(buffer);
                }
                Command::Flush(reply) => {
                    let _ = reply.send(self.attempt(Self::flush));
                }
                Command::Seal(reply) => {
                    let _ = reply.send(self.attempt(|writer| {
                        writer.flush()?;
                        writer.seal()
                    }));
                }
                Command::Free(candidates, before, reply) => {
                    let _ = reply.send(self.attempt(|writer| Ok(writer.index.free(&candidates, before)?)));
                }
                Command::DropPacks(numbers, reply) => {
                    let _ = reply.send(self.attempt(|writer| Ok(writer.index.drop_packs(&numbers)?)));
                }
                Command::Bury(places, reply) => {
                    let _ = reply.send(self.attempt(|writer| writer.bury(&places)));
                }
                Command::IndexWork(reply) => {
                    let _ = reply.send(Ok(self.index.work()));
                }
                Command::Answer(reply) => {
                    let _ = reply.send(());
                }
                Command::Apply(changes, reply) => {
                    let _ = reply.send(self.attempt(|writer| {
                        writer.index.apply(&changes)?;
                        writer.state.pending.set_generation(writer.index.generation());
                        Ok(())
                    }));
                }
                Command::Generation(generation, reply) => {
                    let _ = reply.send(self.attempt(|writer| {
                        writer.index.apply(&[Change::Generation(generation)])?;
                        writer.state.pending.set_generation(generation);
                        Ok(writer.index.flush()?)
                    }));
                }
                Command::Close(reply) => {
                    let sealed = self.attempt(|writer| {
                        writer.flush()?;
                        writer.seal()
                    });
                    let generation = self.index.generation();
                    self.leave_pack();
                    let closed = sealed.and_then(|()| Ok(Closed { digest: self.index.close()?, generation }));
                    let _ = reply.send(closed);
                    return;
                }
            }
        }
        self.leave_pack();
        // Dropped without being closed. The index is let go, so that it can be opened again, unless it is not believed.
        let distrusts = self.state.check().is_err_and(|error| error.distrusts_index());
        let let_go = if distrusts { self.index.let_go() } else { self.index.release() };
        if let Err(error) = let_go {
            tracing::warn!(%error, "the index was not let go in order");
        }
    }

    /// Waits for a sync that is still running. One that failed is told of once: whoever opens the pack next would take for
    /// durable what the page cache shows, so that is cut off.
    fn leave_pack(&mut self) {
        let Some(mut pack) = self.pack.take() else { return };
        let Some((_, result)) = pack.syncing.take() else { return };
        if !matches!(result.recv(), Ok(Ok(_)))
            && let Err(error) = pack.writer.cut_unsynced(now())
        {
            tracing::warn!(%error, "the pack could not be cut at its last mark");
        }
    }

    /// Runs an operation unless an earlier one failed; if it fails, none runs after it.
    fn attempt<T>(
        &mut self,
        operation: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.state.check()?;
        operation(self).inspect_err(|error| {
            let poison =
                Poison { reason: error.to_string(), full: error.is_full(), index: error.distrusts_index() };
            self.blame(error);
            self.state.poison(poison);
            if let Some(pack) = self.pack.take()
                && let Err(error) = pack.writer.cut_unsynced(now())
            {
                tracing::warn!(%error, "the pack could not be cut at its last mark");
            }
        })
    }

    /// Takes down whose segments found the disk full: the one that was being written, or, if a sync did, all that it was for.
    fn blame(&mut self, error: &StoreError) {
        let one = self.writes_for.take();
        if !error.is_full() {
            return;
        }
        match (&one, &self.pack) {
            (Some(job), _) => job.set(),
            (None, Some(pack)) => pack.jobs.iter().for_each(FoundFull::set),
            (None, None) => {}
        }
    }

    /// Returns the pack to append to; makes it if there is none.
    fn pack(&mut self) -> Result<&mut OpenPack, StoreError> {
        Ok(match &mut self.pack {
            Some(pack) => pack,
            empty => {
                let header = PackHeader::new(self.next_pack, now(), self.folders.repository)?;
                let writer = PackWriter::create(self.storage.as_ref(), self.folders.packs.path(), header)?;
                self.state.pending.set_open_pack(self.next_pack);
                self.next_pack.0 = self.next_pack.0.saturating_add(1);
                empty.insert(OpenPack::new(writer))
            }
        })
    }

    fn append(
        &mut self,
        meta: SegmentMeta,
        buffer: &mut RecordBuffer,
        origin: Origin,
    ) -> Result<(), StoreError> {
        let (former, time, job) = match origin {
            Origin::Job(job, None) => (Former::None, now(), Some(job)),
            Origin::Job(job, Some(damaged)) => (Former::Damaged(damaged), now(), Some(job)),
            Origin::Moved(from) => (Former::Moved(from.place), from.time, None),
        };
        self.writes_for.clone_from(&job);
        let pack = self.pack()?;
        pack.unflushed.push_back((pack.writer.append(meta, buffer, time)?, former));
        if let Some(job) = job.filter(|job| !pack.jobs.iter().any(|other| other.is_same(job))) {
            pack.jobs.push(job);
        }
        self.writes_for = None;
        let Some(pack) = &mut self.pack else { return Ok(()) };
        if pack.writer.is_full() {
            self.flush()?;
            return self.seal();
        }
        if pack.syncing.is_none() && pack.wants_sync(1) {
            return pack.begin_sync();
        }
        let wait = pack.wants_sync(4);
        self.end_sync(wait)
    }

    /// Takes in the result of a sync in the background, if it is there or is to be waited for.
    fn end_sync(&mut self, wait: bool) -> Result<(), StoreError> {
        let Some(pack) = &mut self.pack else { return Ok(()) };
        let Some((segments, result)) = &pack.syncing else { return Ok(()) };
        let durable = if wait {
            result.recv().map_err(|_| lost_sync())?
        } else {
            match result.try_recv() {
                Ok(durable) => durable,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(lost_sync()),
            }
        };
        pack.durable = *segments;
        pack.syncing = None;
        pack.writer.mark(durable?, now())?;
        if pack.durable >= ENTERED_AT_ONCE { self.enter() } else { Ok(()) }
    }

    /// Puts the segments that are known to be durable into the index, in the order of their keys: neighbours there change
    /// the same page.
    fn enter(&mut self) -> Result<(), StoreError> {
        let Some(pack) = &mut self.pack else { return Ok(()) };
        let durable = std::mem::take(&mut pack.durable);
        let mut entered: Vec<(Appended, Former)> =
            pack.unflushed.drain(..durable.min(pack.unflushed.len())).collect();
        entered.sort_by_key(|(appended, _)| appended.meta.key);
        for part in entered.chunks(CHANGES_AT_ONCE) {
            let change = |(appended, former): &(Appended, Former)| {
                let (key, entry) = (appended.meta.key, SegmentEntry::appended(appended));
                match *former {
                    Former::None => Change::Insert(key, entry),
                    Former::Moved(place) => Change::Move(key, entry, place),
                    Former::Damaged(place) => Change::Heal(key, entry, place),
                }
            };
            let changes: Vec<Change> = part.iter().map(change).collect();
            self.index.apply(&changes)?;
            self.state.step();
            self.state.pending.drain(part.iter().map(|(appended, _)| appended.meta.key));
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.end_sync(true)?;
        let Some(pack) = &mut self.pack else { return Ok(()) };
        pack.writer.sync(now())?;
        pack.sync_begun = pack.writer.size();
        pack.durable = pack.unflushed.len();
        pack.jobs.clear();
        self.enter()
    }

    /// Seals the pack; it must have been flushed.
    fn seal(&mut self) -> Result<(), StoreError> {
        if let Some(pack) = self.pack.take() {
            let (number, id) = (pack.writer.number(), pack.writer.id());
            let size = pack.writer.seal(now())?;
            self.index.apply(&[Change::Seal(number, id, size, pack.dead)])?;
            self.state.pending.set_open_pack(self.next_pack);
        }
        Ok(())
    }

    /// Writes durably which segments are dead.
    fn bury(&mut self, places: &[DeadSegment]) -> Result<(), StoreError> {
        for dead in places.chunks(DEAD_SEGMENTS) {
            let pack = self.pack()?;
            pack.writer.bury(dead, now())?;
            pack.dead += 1;
            if pack.writer.is_full() {
                self.flush()?;
                self.seal()?;
            }
        }
        self.flush()
    }
}

fn lost_sync() -> StoreError {
    let reason = "the thread that synced a pack has ended".to_owned();
    StoreError::Poisoned { reason, full: false, index: false }
}

/// Returns the seconds since 1970; 0 on a clock before that.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
