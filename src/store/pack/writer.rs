//! Appending to a pack.

use std::path::Path;
use std::sync::Arc;

use crate::storage::{AlignedBuffer, Storage, StorageError, StorageFile, TEMPORARY};
use crate::store::pack::contents::{ContentsEntry, encode_trailer};
use crate::store::pack::header::{FIRST_RECORD, PackHeader, PackId, PackNumber};
use crate::store::pack::record::{
    DeadSegment, RecordBuffer, RecordHeader, RecordKind, SegmentMeta, TRAILER_LENGTH,
};
use crate::store::pack::{BLOCK, PACK_LIMIT, PACK_RECORDS, PackError, RecordPlace};

/// A segment that was appended; it is durable after the next [`PackWriter::sync`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Where its record lies.
    pub place: RecordPlace,
    /// What the record is.
    pub meta: SegmentMeta,
    /// The length of its stored bytes.
    pub stored_length: u32,
}

/// Makes durable what was appended to a pack until now, while more is appended.
#[derive(Debug)]
pub struct PackSync {
    file: Arc<dyn StorageFile>,
    end: u64,
}

impl PackSync {
    /// Syncs; when this returns an offset, everything in the pack before it is durable.
    pub fn run(self) -> Result<u64, PackError> {
        self.file.sync()?;
        Ok(self.end)
    }
}

/// A pack that this process appends to.
///
/// What is appended waits in memory until there is enough for one large write, past the page cache, or something is to be
/// made durable.
///
/// Durable are: the pack's name, after `create`; what was appended before `begin_sync`, after its `run`
/// returned, and everything after `sync` returned; that the pack is complete, after `seal`.
#[derive(Debug)]
pub struct PackWriter {
    file: Arc<dyn StorageFile>,
    header: PackHeader,
    end: u64,
    /// The end of what is known to be durable.
    synced: u64,
    entries: Vec<ContentsEntry>,
    own: RecordBuffer,
    /// What lies before `end` and is not yet written, in front; it begins on a block of the pack.
    staged: AlignedBuffer,
    /// How many bytes that are.
    waiting: usize,
}

/// How many bytes are written at once: whole blocks.
const WRITTEN_AT_ONCE: usize = 1 << 20;

impl PackWriter {
    /// Creates a pack in `folder`. It gets its name once its header is durable, so that a pack is never seen
    /// without one; the name is durable when this returns.
    pub fn create(storage: &dyn Storage, folder: &Path, header: PackHeader) -> Result<Self, PackError> {
        let path = folder.join(header.number.file_name());
        let temporary = path.with_added_extension(TEMPORARY);
        let file = storage.create(&temporary)?;
        file.write_at(&header.encode(), 0)?;
        file.sync()?;
        drop(file);
        storage.rename_new(&temporary, &path)?;
        storage.sync_folder(folder)?;
        let file = storage.open(&path)?;
        Ok(Self::resume(file, header, FIRST_RECORD, Vec::new()))
    }

    /// Goes on with a pack whose records up to `end`, the end of a block, have been scanned and are durable: to seal it.
    pub(super) fn resume(
        file: Box<dyn StorageFile>,
        header: PackHeader,
        end: u64,
        entries: Vec<ContentsEntry>,
    ) -> Self {
        let file = Arc::from(file);
        let staged = AlignedBuffer::new(WRITTEN_AT_ONCE);
        Self { file, header, end, synced: end, entries, own: RecordBuffer::new(), staged, waiting: 0 }
    }

    /// Returns the pack's number.
    pub fn number(&self) -> PackNumber {
        self.header.number
    }

    /// Returns the pack's id.
    pub fn id(&self) -> PackId {
        self.header.id()
    }

    /// Returns how many bytes it has.
    pub fn size(&self) -> u64 {
        self.end
    }

    /// Says whether it has as much as a pack should.
    pub fn is_full(&self) -> bool {
        self.end >= PACK_LIMIT || self.entries.len() >= PACK_RECORDS
    }

    /// Appends a segment whose stored bytes are in `buffer`.
    pub fn append(
        &mut self,
        meta: SegmentMeta,
        buffer: &mut RecordBuffer,
        time: u64,
    ) -> Result<Appended, PackError> {
        let stored_length = buffer.stored_length();
        let record = RecordHeader::segment(&meta, stored_length, time);
        let offset = self.end;
        self.write(&record, buffer)?;
        let place = RecordPlace { pack: self.header.number, offset };
        // A segment has at most 64 MiB, and is never stored longer than it is.
        let stored_length = u32::try_from(stored_length).unwrap_or(u32::MAX);
        Ok(Appended { place, meta, stored_length })
    }

    fn write(&mut self, record: &RecordHeader, buffer: &mut RecordBuffer) -> Result<(), StorageError> {
        let offset = self.end;
        let mut bytes = buffer.seal(record, &self.header, offset).as_slice();
        while !bytes.is_empty() {
            let room = self.staged.of(WRITTEN_AT_ONCE).get_mut(self.waiting..).unwrap_or_default();
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            if let Some(room) = room.get_mut(..now.len()) {
                room.copy_from_slice(now);
            }
            self.waiting += now.len();
            self.end += now.len() as u64;
            bytes = later;
            if self.waiting >= WRITTEN_AT_ONCE {
                self.write_staged()?;
            }
        }
        self.entries.extend(ContentsEntry::of(record, offset));
        Ok(())
    }

    /// Writes what waits, which is whole blocks.
    fn write_staged(&mut self) -> Result<(), StorageError> {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting > 0 {
            self.file.write_direct_at(self.staged.of(waiting), self.end - waiting as u64)?;
        }
        Ok(())
    }

    /// Fills the last block up with zeros, so that what is appended later leaves it alone, and writes what waits.
    fn write_out(&mut self) -> Result<(), StorageError> {
        let end = self.end.next_multiple_of(BLOCK);
        let zeros = usize::try_from(end - self.end).unwrap_or(0);
        // There is room, as there is for whole blocks alone.
        if let Some(rest) = self.staged.of(WRITTEN_AT_ONCE).get_mut(self.waiting..self.waiting + zeros) {
            rest.fill(0);
        }
        self.waiting += zeros;
        self.end = end;
        self.write_staged()
    }

    /// Writes a mark that waits, and lets it wait on: with what comes behind it its block is written once more, as a whole.
    fn write_mark(&mut self) -> Result<(), StorageError> {
        self.file.write_at(self.staged.of(self.waiting), self.end - self.waiting as u64)
    }

    fn write_own(&mut self, kind: RecordKind, payload: &[u8], time: u64) -> Result<(), StorageError> {
        let record = RecordHeader::own(kind, payload, time);
        let mut buffer = std::mem::take(&mut self.own);
        buffer.restart().extend_from_slice(payload);
        let written = self.write(&record, &mut buffer);
        self.own = buffer;
        written
    }

    /// Appends a record that says which segments are dead. When it is durable, their bytes may go.
    pub fn bury(&mut self, segments: &[DeadSegment], time: u64) -> Result<(), PackError> {
        Ok(self.write_own(RecordKind::Dead, &DeadSegment::encode(segments), time)?)
    }

    /// Writes what waits and returns what makes everything durable that is appended by now; [`Self::mark`] it when it
    /// has run.
    pub fn begin_sync(&mut self) -> Result<PackSync, PackError> {
        self.write_out()?;
        Ok(PackSync { file: Arc::clone(&self.file), end: self.end })
    }

    /// Appends a mark that says that everything before `durable`, which a [`PackSync`] returned, is.
    ///
    /// The mark itself need not be durable: without it a scan decodes a few records more.
    pub fn mark(&mut self, durable: u64, time: u64) -> Result<(), PackError> {
        if durable > self.synced {
            self.write_own(RecordKind::Mark, &durable.to_le_bytes(), time)?;
            self.synced = durable;
        }
        Ok(())
    }

    /// Makes everything appended durable and appends a mark that says so.
    pub fn sync(&mut self, time: u64) -> Result<(), PackError> {
        // A mark alone is nothing to sync.
        if self.entries.last().is_some_and(|entry| entry.offset >= self.synced) {
            let durable = self.begin_sync()?.run()?;
            self.mark(durable, time)?;
            self.write_mark()?;
        }
        Ok(())
    }

    /// Cuts off what is not known to be durable, after a failed write or sync: the page cache may show
    /// bytes that never reached the disk.
    pub fn cut_unsynced(mut self, time: u64) -> Result<(), PackError> {
        self.file.truncate(self.synced)?;
        if self.synced > FIRST_RECORD {
            // The mark that said so went with the rest: without it, what is durable would have to be whole to be kept.
            self.end = self.synced;
            self.waiting = 0;
            self.write_own(RecordKind::Mark, &self.synced.to_le_bytes(), time)?;
            self.write_mark()?;
        }
        Ok(())
    }

    /// Appends the table of contents and makes the pack durable. It is never appended to again.
    ///
    /// Returns its final size.
    pub fn seal(mut self, time: u64) -> Result<u64, PackError> {
        self.sync(time)?;
        self.write_out()?;
        let payload = ContentsEntry::encode(&self.entries);
        let record = RecordHeader::own(RecordKind::Contents, &payload, time);
        let size = self.end + record.span();
        self.own.restart().extend_from_slice(&payload);
        let offset = self.end;
        let bytes = self.own.seal(&record, &self.header, offset);
        let trailer = encode_trailer(&self.header, offset, size);
        let room = bytes.len().saturating_sub(usize::try_from(TRAILER_LENGTH).unwrap_or(usize::MAX));
        bytes.truncate(room);
        bytes.extend_from_slice(&trailer);
        let written = self.file.write_at(bytes, offset).and_then(|()| self.file.sync());
        if let Err(error) = written {
            // The page cache may show a table that never reached the disk: nobody shall believe it. If this fails too,
            // the first error says why.
            let _ = self.file.truncate(offset);
            return Err(error.into());
        }
        Ok(size)
    }
}
