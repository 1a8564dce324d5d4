//! The table that seals a pack: what a reader needs to find any of its segments without the index.
//!
//! The payload is 80 bytes for each record that is neither a mark nor a table:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | offset of the record |
//! | 8 | 8 | length of the stored bytes |
//! | 16 | 4 | length of the plain bytes |
//! | 20 | 4 | kind |
//! | 24 | 20 | SHA-1 |
//! | 44 | 2 | twin number |
//! | 46 | 1 | compression id |
//! | 47 | 1 | encryption id |
//! | 48 | 32 | BLAKE3 of the plain bytes |
//!
//! The last 64 bytes of the file say where the record begins:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic `EKKOEND1` |
//! | 8 | 8 | offset of the contents record |
//! | 16 | 16 | zeros, reserved |
//! | 32 | 32 | BLAKE3, keyed by the pack's key, of the trailer's own offset and the 32 bytes before |

use crate::segment::{Fingerprint, SegmentHash, SegmentKey, Twin};
use crate::storage::{FieldReader, FieldWriter, TooShort};
use crate::store::pack::aligned;
use crate::store::pack::header::PackHeader;
use crate::store::pack::record::{HEADER_LENGTH, RecordHeader, RecordKind, TRAILER_LENGTH};

const MAGIC: [u8; 8] = *b"EKKOEND1";

/// The length of one entry in bytes.
pub(super) const ENTRY_LENGTH: usize = 80;

/// What the table says of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentsEntry {
    /// The record's offset.
    pub offset: u64,
    /// The length of its stored bytes.
    pub stored_length: u64,
    /// The length of its plain bytes.
    pub plain_length: u32,
    /// Segment or dead.
    pub kind: RecordKind,
    /// SHA-1 and twin number, for a segment.
    pub key: SegmentKey,
    /// The compression id.
    pub compression: u8,
    /// The encryption id.
    pub encryption: u8,
    /// The BLAKE3 of the plain bytes.
    pub fingerprint: Fingerprint,
}

impl ContentsEntry {
    /// Makes the entry of a record at `offset`; marks and tables have none.
    pub fn of(record: &RecordHeader, offset: u64) -> Option<Self> {
        match record.kind {
            RecordKind::Segment | RecordKind::Dead => Some(Self {
                offset,
                stored_length: record.stored_length,
                plain_length: u32::try_from(record.plain_length).ok()?,
                kind: record.kind,
                key: record.key,
                compression: record.compression,
                encryption: record.encryption,
                fingerprint: record.fingerprint,
            }),
            RecordKind::Mark | RecordKind::Contents => None,
        }
    }

    /// Returns how many bytes of the pack the record takes.
    pub fn span(&self) -> u64 {
        aligned((HEADER_LENGTH as u64).saturating_add(self.stored_length))
    }

    /// Returns the payload of a contents record.
    pub(super) fn encode(entries: &[Self]) -> Vec<u8> {
        let writer = FieldWriter::with_capacity(entries.len() * ENTRY_LENGTH);
        let append = |writer: FieldWriter, entry: &Self| {
            writer
                .u64(entry.offset)
                .u64(entry.stored_length)
                .u32(entry.plain_length)
                .u32(entry.kind.id())
                .bytes(entry.key.hash.as_bytes())
                .u16(entry.key.twin.0)
                .u8(entry.compression)
                .u8(entry.encryption)
                .bytes(entry.fingerprint.as_bytes())
        };
        entries.iter().fold(writer, append).finish()
    }

    /// Reads the payload of a contents record; entries of unknown kinds make it unreadable.
    pub(super) fn decode(payload: &[u8]) -> Result<Vec<Self>, TooShort> {
        let mut reader = FieldReader::new(payload);
        let mut entries = Vec::with_capacity(payload.len() / ENTRY_LENGTH);
        while !reader.is_empty() {
            let (offset, stored_length, plain_length) = (reader.u64()?, reader.u64()?, reader.u32()?);
            let kind = RecordKind::from_id(reader.u32()?).ok_or(TooShort)?;
            let hash = SegmentHash::from_bytes(reader.array()?);
            entries.push(Self {
                offset,
                stored_length,
                plain_length,
                kind,
                key: SegmentKey { hash, twin: Twin(reader.u16()?) },
                compression: reader.u8()?,
                encryption: reader.u8()?,
                fingerprint: Fingerprint::from_bytes(reader.array()?),
            });
        }
        Ok(entries)
    }
}

/// Returns the trailer of a pack that will have `pack_size` bytes.
pub(super) fn encode_trailer(pack: &PackHeader, contents_offset: u64, pack_size: u64) -> Vec<u8> {
    let fields = FieldWriter::default().bytes(&MAGIC).u64(contents_offset).zeros_to(32);
    let checksum = pack.checksum(pack_size.saturating_sub(TRAILER_LENGTH), fields.as_slice());
    fields.bytes(&checksum).finish()
}

/// Reads the trailer of a pack of `pack_size` bytes: the offset of its contents record.
pub(super) fn decode_trailer(bytes: &[u8], pack: &PackHeader, pack_size: u64) -> Option<u64> {
    let covered = bytes.get(..32)?;
    let position = pack_size.checked_sub(TRAILER_LENGTH)?;
    if bytes.get(32..)? != pack.checksum(position, covered) {
        return None;
    }
    let mut reader = FieldReader::new(covered);
    (reader.array().ok()? == MAGIC).then(|| reader.u64().ok()).flatten()
}
