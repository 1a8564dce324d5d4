//! Reading a pack.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::codec::Decoder;
use crate::error::ErrorKind;
use crate::segment::{Fingerprint, SegmentKey};
use crate::storage::{Storage, StorageFile};
use crate::store::pack::contents::{ContentsEntry, ENTRY_LENGTH, decode_trailer};
use crate::store::pack::header::{FIRST_RECORD, HeaderError, PackHeader, PackNumber};
use crate::store::pack::record::{DeadSegment, HEADER_LENGTH, RecordHeader, RecordKind, TRAILER_LENGTH};
use crate::store::pack::{ALIGNMENT, BLOCK, PACK_RECORDS, PackError, PackFolder};

/// What is wrong with a segment that says that it is longer than any is.
const TOO_LONG: &str = "it is longer than a segment of this repository can be";

/// A pack that is open for reading. Shared between threads; every read is positioned.
#[derive(Debug)]
pub struct PackReader {
    file: Box<dyn StorageFile>,
    header: PackHeader,
    longest_segment: u32,
}

impl PackReader {
    /// Opens a pack and checks its header, or the copy of it if the first is damaged.
    pub fn open(storage: &dyn Storage, folder: &PackFolder, number: PackNumber) -> Result<Self, PackError> {
        let file = storage.open_read(&folder.file(number))?;
        let longest_segment = folder.longest_segment();
        let (mut newer, mut unread) = (None, None);
        for copy in [0, BLOCK] {
            let mut bytes = [0; 256];
            match file.read_at(&mut bytes, copy) {
                Ok(()) => {}
                // The file ends there.
                Err(error) if error.kind() == ErrorKind::Corrupt => continue,
                Err(error) => {
                    unread = Some(error);
                    continue;
                }
            }
            match PackHeader::decode(&bytes) {
                Ok(header) if header.number == number => return Ok(Self { file, header, longest_segment }),
                Ok(_) | Err(HeaderError::Damaged) => {}
                Err(HeaderError::Format(found)) => newer = Some(found),
            }
        }
        let path = file.path().to_owned();
        Err(match (newer, unread) {
            (Some(found), _) => PackError::NewerFormat { path, found },
            // What the disk does not give now says nothing of what it is.
            (None, Some(error)) => error.into(),
            (None, None) => PackError::NotAPack { path },
        })
    }

    /// Returns the pack's header.
    pub fn header(&self) -> &PackHeader {
        &self.header
    }

    /// Returns the path it was opened by.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Returns how many bytes the file has now.
    pub fn size(&self) -> Result<u64, PackError> {
        Ok(self.file.size()?)
    }

    /// Returns its holes, in order: places that were freed.
    pub fn holes(&self) -> Result<Vec<Range<u64>>, PackError> {
        Ok(self.file.holes()?)
    }

    pub(super) fn into_file(self) -> (Box<dyn StorageFile>, PackHeader) {
        (self.file, self.header)
    }

    pub(in crate::store) fn damaged(&self, offset: u64, what: &'static str) -> PackError {
        PackError::RecordDamaged { path: PathBuf::from(self.path()), offset, what }
    }

    /// Reads the header of the record at `offset`.
    pub fn record(&self, offset: u64) -> Result<RecordHeader, PackError> {
        let mut bytes = [0; HEADER_LENGTH];
        self.file.read_at(&mut bytes, offset)?;
        let record = RecordHeader::decode(&bytes, &self.header, offset)
            .ok_or_else(|| self.damaged(offset, "its header does not fit its checksum"))?;
        if record.stored_length > self.longest(record.kind) {
            return Err(self.damaged(offset, "it is longer than a record of its kind can be"));
        }
        Ok(record)
    }

    /// Returns the most stored bytes that a record of this kind has here.
    fn longest(&self, kind: RecordKind) -> u64 {
        kind.longest_payload().unwrap_or_else(|| self.longest_segment.into())
    }

    /// Reads the record at `offset`, whose stored bytes have `stored_length` bytes by what the caller
    /// knows, into `buffer`. Returns its header; the stored bytes are in `buffer` behind it. The caller has compared the
    /// length with what bounds it.
    fn read(&self, offset: u64, stored_length: u64, buffer: &mut Vec<u8>) -> Result<RecordHeader, PackError> {
        let length = usize::try_from(stored_length).ok().and_then(|length| length.checked_add(HEADER_LENGTH));
        buffer.resize(length.ok_or_else(|| self.damaged(offset, "it is impossibly long"))?, 0);
        self.file.read_at(buffer, offset)?;
        let header = RecordHeader::decode(buffer, &self.header, offset)
            .ok_or_else(|| self.damaged(offset, "its header does not fit its checksum"))?;
        if header.stored_length == stored_length {
            Ok(header)
        } else {
            Err(self.damaged(offset, "its length is not the one that was looked for"))
        }
    }

    /// Reads the stored bytes of the segment `key` at `offset` into `stored`. They are not verified: whoever decodes them does
    /// that.
    pub(in crate::store) fn stored(
        &self,
        key: SegmentKey,
        offset: u64,
        stored_length: u32,
        stored: &mut Vec<u8>,
    ) -> Result<(), PackError> {
        self.read_segment(key, offset, stored_length, stored)?;
        stored.drain(..HEADER_LENGTH.min(stored.len()));
        Ok(())
    }

    /// Reads the record of the segment `key` at `offset`.
    fn read_segment(
        &self,
        key: SegmentKey,
        offset: u64,
        stored_length: u32,
        stored: &mut Vec<u8>,
    ) -> Result<RecordHeader, PackError> {
        if stored_length > self.longest_segment {
            return Err(self.damaged(offset, TOO_LONG));
        }
        let header = self.read(offset, u64::from(stored_length), stored)?;
        if header.kind != RecordKind::Segment || header.key != key {
            return Err(self.damaged(offset, "it is not the segment that was looked for"));
        }
        Ok(header)
    }

    /// Reads, decodes and verifies the segment `key` at `offset`.
    ///
    /// `stored` is working memory; `plain` receives the segment's bytes. When this returns, their BLAKE3
    /// is the one in the record, whose header names `key`.
    pub fn segment(
        &self,
        key: SegmentKey,
        offset: u64,
        stored_length: u32,
        decoder: &mut Decoder,
        stored: &mut Vec<u8>,
        plain: &mut Vec<u8>,
    ) -> Result<RecordHeader, PackError> {
        let header = self.read_segment(key, offset, stored_length, stored)?;
        let undecodable =
            |source| PackError::SegmentUndecodable { key, path: self.path().into(), offset, source };
        let codec = header.codec().map_err(undecodable)?;
        let plain_length = u32::try_from(header.plain_length).ok().filter(|it| *it <= self.longest_segment);
        let plain_length = plain_length.ok_or_else(|| self.damaged(offset, TOO_LONG))?;
        let bytes = stored.get(HEADER_LENGTH..).unwrap_or(&[]);
        decoder.decode(codec, bytes, plain_length, plain).map_err(undecodable)?;
        if Fingerprint::of(plain) != header.fingerprint {
            return Err(PackError::SegmentCorrupt { key, path: self.path().into(), offset });
        }
        Ok(header)
    }

    /// Says whether all of a range, of at most a [`BLOCK`], is in the file and zeros: what a sync leaves behind the last
    /// record, and what is left of records that were punched out.
    pub(in crate::store) fn is_zeros(&self, range: Range<u64>) -> Result<bool, PackError> {
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut block = [0; 4096];
        let Some(bytes) = block.get_mut(..length).filter(|_| !range.is_empty()) else {
            return Ok(range.is_empty());
        };
        if range.end > self.size()? {
            return Ok(false);
        }
        self.file.read_at(bytes, range.start)?;
        Ok(bytes.iter().all(|byte| *byte == 0))
    }

    /// Reads the payload of one of our own records and verifies it.
    pub(super) fn own_payload(&self, offset: u64, record: &RecordHeader) -> Result<Vec<u8>, PackError> {
        if offset.saturating_add(record.span()) > self.size()? {
            return Err(self.damaged(offset, "it reaches beyond the end of the file"));
        }
        let mut payload = Vec::new();
        self.read(offset, record.stored_length, &mut payload)?;
        payload.drain(..HEADER_LENGTH.min(payload.len()));
        if Fingerprint::of(&payload) == record.fingerprint {
            Ok(payload)
        } else {
            Err(self.damaged(offset, "its BLAKE3 does not match"))
        }
    }

    /// Reads up to which offset the mark at `offset` says that the pack is durable; nothing if it is damaged.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn marked(&self, offset: u64, record: &RecordHeader) -> Result<Option<u64>, PackError> {
        let payload = match self.own_payload(offset, record) {
            Err(PackError::Storage(error)) => return Err(error.into()),
            payload => payload.ok(),
        };
        let durable = payload.and_then(|payload| Some(u64::from_le_bytes(payload.try_into().ok()?)));
        // A mark speaks of what was there before it.
        Ok(durable.filter(|durable| *durable <= offset))
    }

    /// Reads which segments the dead record at `offset` names.
    pub fn dead_segments(&self, offset: u64) -> Result<Vec<DeadSegment>, PackError> {
        let record = self.record(offset)?;
        if record.kind != RecordKind::Dead {
            return Err(self.damaged(offset, "it is not the dead record that was looked for"));
        }
        let payload = self.own_payload(offset, &record)?;
        DeadSegment::decode(&payload).map_err(|_| self.damaged(offset, "its list does not hold together"))
    }

    /// Returns how many entries the table of contents has, by what its record's header says; 0 if there is none.
    pub fn listed(&self) -> Result<u64, PackError> {
        let size = self.size()?;
        let Some(position) = size.checked_sub(TRAILER_LENGTH).filter(|at| *at >= FIRST_RECORD) else {
            return Ok(0);
        };
        let mut trailer = [0; 64];
        self.file.read_at(&mut trailer, position)?;
        let table = decode_trailer(&trailer, &self.header, size).map(|offset| self.record(offset));
        let entries = table.and_then(Result::ok).map_or(0, |table| table.stored_length / ENTRY_LENGTH as u64);
        Ok(entries.min(PACK_RECORDS as u64))
    }

    /// Reads the table of contents, or nothing if the pack is not sealed or its table is damaged.
    pub fn contents(&self) -> Result<Option<Vec<ContentsEntry>>, PackError> {
        let size = self.size()?;
        let Some(position) = size.checked_sub(TRAILER_LENGTH).filter(|at| *at >= FIRST_RECORD) else {
            return Ok(None);
        };
        let mut trailer = [0; 64];
        self.file.read_at(&mut trailer, position)?;
        let Some(offset) = decode_trailer(&trailer, &self.header, size) else { return Ok(None) };
        match self.table(offset) {
            Ok(entries) => Ok(Some(entries)),
            Err(PackError::Storage(error)) if error.kind() == ErrorKind::Io => Err(error.into()),
            Err(_) => Ok(None),
        }
    }

    fn table(&self, offset: u64) -> Result<Vec<ContentsEntry>, PackError> {
        let record = self.record(offset)?;
        if record.kind != RecordKind::Contents {
            return Err(self.damaged(offset, "it is not the table that was looked for"));
        }
        let payload = self.own_payload(offset, &record)?;
        let damaged = |_| self.damaged(offset, "its table does not hold together");
        let entries = ContentsEntry::decode(&payload).map_err(damaged)?;
        // What a table lists lies before it, where a record can begin, and is no longer than a record can be.
        let is_possible = |entry: &ContentsEntry| {
            entry.offset >= FIRST_RECORD
                && entry.offset.is_multiple_of(ALIGNMENT)
                && entry.stored_length <= self.longest(entry.kind)
                && u64::from(entry.plain_length) <= self.longest(entry.kind)
                && entry.offset.saturating_add(entry.span()) <= offset
        };
        if entries.iter().all(is_possible) {
            return Ok(entries);
        }
        Err(self.damaged(offset, "its table lists what a pack cannot have"))
    }
}
