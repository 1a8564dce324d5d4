//! The one thread that changes packs and index.
//!
//! Order of a flush: the pack's bytes are fsynced, a mark says so, then the entries go into the index,
//! then they leave the table of pending segments. So whatever the index names is durable, and at every
//! moment a stored segment is found in one of the two.
//!
//! After a failed write or sync nothing more is written: the pack is cut at its last mark and every later
//! command is refused, until the repository is opened again.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender};

use crate::segment::Fingerprint;
use crate::storage::Storage;
use crate::store::StoreError;
use crate::store::entry::{Change, PackEntry, SegmentEntry};
use crate::store::index::IndexWriter;
use crate::store::pack::{
    Appended, PACK_LIMIT, PackHeader, PackNumber, PackWriter, RecordBuffer, SegmentMeta,
};
use crate::store::reconcile::highest_pack;
use crate::store::segments::{Poison, StoreFolders, StoreState};

/// A flush happens by itself after so many bytes...
const FLUSH_BYTES: u64 = 256 << 20;
/// ... or so many segments.
const FLUSH_SEGMENTS: usize = 1 << 14;

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
    Append { meta: SegmentMeta, buffer: RecordBuffer },
    Flush(Reply<()>),
    Apply(Vec<Change>, Reply<()>),
    Generation(u64, Reply<()>),
    Close(Reply<Closed>),
}

/// The pack that is being appended to.
#[derive(Debug)]
struct OpenPack {
    writer: PackWriter,
    segments: u64,
    /// Appended and not yet in the index.
    unflushed: Vec<Appended>,
    flushed_size: u64,
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
        let in_index = index.index().packs()?.into_keys().max();
        let last = on_disk.max(in_index);
        let next_pack = match last {
            None => PackNumber(1),
            Some(PackNumber(number)) => PackNumber(
                number
                    .checked_add(1)
                    .ok_or_else(|| StoreError::NoPackNumber { path: folders.packs.clone(), number })?,
            ),
        };
        Ok(Self { storage, folders, index, state, recycle, pack: None, next_pack })
    }

    pub(super) fn run(mut self, inbox: &Receiver<Command>) {
        while let Ok(command) = inbox.recv() {
            match command {
                Command::Append { meta, mut buffer } => {
                    // The failure is kept and told to the next who asks.
                    let _ = self.attempt(|writer| writer.append(meta, &mut buffer));
                    let _ = self.recycle.send(buffer);
                }
                Command::Flush(reply) => {
                    let _ = reply.send(self.attempt(Self::flush));
                }
                Command::Apply(changes, reply) => {
                    let _ = reply.send(self.attempt(|writer| Ok(writer.index.apply(&changes)?)));
                }
                Command::Generation(generation, reply) => {
                    let _ = reply.send(self.attempt(|writer| {
                        writer.index.apply(&[Change::Generation(generation)])?;
                        Ok(writer.index.flush()?)
                    }));
                }
                Command::Close(reply) => {
                    let sealed = self.attempt(|writer| {
                        writer.flush()?;
                        writer.seal()
                    });
                    let generation = self.index.generation();
                    let closed = sealed.and_then(|()| Ok(Closed { digest: self.index.close()?, generation }));
                    let _ = reply.send(closed);
                    return;
                }
            }
        }
    }

    /// Runs an operation unless an earlier one failed; if it fails, none runs after it.
    fn attempt(
        &mut self,
        operation: impl FnOnce(&mut Self) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.state.check()?;
        operation(self).inspect_err(|error| {
            let poison =
                Poison { reason: error.to_string(), full: error.is_full(), index: error.distrusts_index() };
            self.state.poison(poison);
            if let Some(pack) = self.pack.take()
                && let Err(error) = pack.writer.cut_unsynced()
            {
                tracing::warn!(%error, "the pack could not be cut at its last mark");
            }
        })
    }

    fn append(&mut self, meta: SegmentMeta, buffer: &mut RecordBuffer) -> Result<(), StoreError> {
        let pack = match &mut self.pack {
            Some(pack) => pack,
            empty => {
                let header = PackHeader::new(self.next_pack, now(), self.folders.repository)?;
                let writer = PackWriter::create(self.storage.as_ref(), &self.folders.packs, header)?;
                self.next_pack.0 = self.next_pack.0.saturating_add(1);
                let flushed_size = writer.size();
                empty.insert(OpenPack { writer, segments: 0, unflushed: Vec::new(), flushed_size })
            }
        };
        pack.unflushed.push(pack.writer.append(meta, buffer, now())?);
        pack.segments += 1;
        if pack.writer.size() >= PACK_LIMIT {
            self.flush()?;
            self.seal()?;
        } else if pack.writer.size() - pack.flushed_size >= FLUSH_BYTES
            || pack.unflushed.len() >= FLUSH_SEGMENTS
        {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        let Some(pack) = &mut self.pack else { return Ok(()) };
        pack.writer.sync(now())?;
        let changes: Vec<Change> = pack
            .unflushed
            .iter()
            .map(|appended| Change::Insert(appended.meta.key, SegmentEntry::appended(appended)))
            .collect();
        self.index.apply(&changes)?;
        self.state.pending.drain(pack.unflushed.drain(..).map(|appended| appended.meta.key));
        pack.flushed_size = pack.writer.size();
        Ok(())
    }

    /// Seals the pack; it must have been flushed.
    fn seal(&mut self) -> Result<(), StoreError> {
        if let Some(pack) = self.pack.take() {
            let number = pack.writer.number();
            let size = pack.writer.seal(now())?;
            self.index.apply(&[Change::Pack(number, PackEntry { size, segments: pack.segments })])?;
        }
        Ok(())
    }
}

/// Returns the seconds since 1970; 0 on a clock before that.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
