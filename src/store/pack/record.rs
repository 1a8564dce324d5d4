//! A record: a 256-byte header, then the stored bytes, then zeros up to the next multiple of 512.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic `EKKOREC1` |
//! | 8 | 4 | kind: 1 segment, 2 mark, 3 dead, 4 contents |
//! | 12 | 4 | flags, 0 |
//! | 16 | 20 | SHA-1 of the plain bytes (segment) |
//! | 36 | 2 | twin number (segment) |
//! | 38 | 1 | compression id |
//! | 39 | 1 | encryption id |
//! | 40 | 32 | BLAKE3 of the plain bytes |
//! | 72 | 8 | length of the plain bytes |
//! | 80 | 8 | length of the stored bytes |
//! | 88 | 8 | time, seconds since 1970 |
//! | 96 | 32 | salt, zeros until an encryption needs it |
//! | 128 | 22 | base segment (SHA-1, twin number), zeros until a delta compression needs it |
//! | 150 | 74 | zeros, reserved |
//! | 224 | 32 | BLAKE3, keyed by the pack's key, of the record's offset and the 224 bytes before |

use crate::codec::{Codec, CodecError, Compression, Encryption};
use crate::segment::{Fingerprint, SegmentHash, SegmentKey, Twin};
use crate::storage::{FieldReader, FieldWriter, TooShort};
use crate::store::pack::contents::ENTRY_LENGTH;
use crate::store::pack::header::PackHeader;
use crate::store::pack::{DEAD_SEGMENTS, PACK_RECORDS, PackId, aligned};

const MAGIC: [u8; 8] = *b"EKKOREC1";

/// The length of a record's header in bytes: within one sector, so never torn.
pub(super) const HEADER_LENGTH: usize = 256;
const COVERED: usize = 224;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A segment (1).
    Segment,
    /// All before the offset that is its payload, a `u64`, is durable (2).
    Mark,
    /// Segments that were freed; their bytes may be punched away (3).
    Dead,
    /// The table of all records of the pack (4).
    Contents,
}

impl RecordKind {
    pub(super) const fn id(self) -> u32 {
        match self {
            Self::Segment => 1,
            Self::Mark => 2,
            Self::Dead => 3,
            Self::Contents => 4,
        }
    }

    /// Returns the most stored bytes that a record of ours of this kind has; nothing for a segment, whose length depends on
    /// the repository.
    pub(super) const fn longest_payload(self) -> Option<u64> {
        match self {
            Self::Segment => None,
            Self::Mark => Some(8),
            Self::Dead => Some((DEAD_SEGMENTS * DeadSegment::LENGTH) as u64),
            Self::Contents => Some((PACK_RECORDS * ENTRY_LENGTH) as u64),
        }
    }

    pub(super) const fn from_id(id: u32) -> Option<Self> {
        match id {
            1 => Some(Self::Segment),
            2 => Some(Self::Mark),
            3 => Some(Self::Dead),
            4 => Some(Self::Contents),
            _ => None,
        }
    }
}

/// What is known of a segment before it has a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentMeta {
    /// Its SHA-1 and twin number.
    pub key: SegmentKey,
    /// The BLAKE3 of its plain bytes.
    pub fingerprint: Fingerprint,
    /// The length of its plain bytes.
    pub plain_length: u32,
    /// How its stored bytes are encoded.
    pub codec: Codec,
}

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the record is.
    pub kind: RecordKind,
    /// SHA-1 and twin number; zeros but for a segment.
    pub key: SegmentKey,
    /// The compression id, as it stands on disk.
    pub compression: u8,
    /// The encryption id, as it stands on disk.
    pub encryption: u8,
    /// The BLAKE3 of the plain bytes.
    pub fingerprint: Fingerprint,
    /// The length of the plain bytes.
    pub plain_length: u64,
    /// The length of the stored bytes.
    pub stored_length: u64,
    /// When it was written, in seconds since 1970-01-01T00:00:00Z.
    pub time: u64,
}

impl RecordHeader {
    /// Makes the header of a segment.
    pub fn segment(meta: &SegmentMeta, stored_length: u64, time: u64) -> Self {
        Self {
            kind: RecordKind::Segment,
            key: meta.key,
            compression: meta.codec.compression.id(),
            encryption: meta.codec.encryption.id(),
            fingerprint: meta.fingerprint,
            plain_length: u64::from(meta.plain_length),
            stored_length,
            time,
        }
    }

    /// Makes the header of a record of ours, whose payload is stored as it is.
    pub fn own(kind: RecordKind, payload: &[u8], time: u64) -> Self {
        let key = SegmentKey { hash: SegmentHash::from_bytes([0; 20]), twin: Twin(0) };
        let length = payload.len() as u64;
        Self {
            kind,
            key,
            compression: 0,
            encryption: 0,
            fingerprint: Fingerprint::of(payload),
            plain_length: length,
            stored_length: length,
            time,
        }
    }

    /// Returns the stored bytes of a record that was read whole.
    pub(in crate::store) fn payload(record: &[u8]) -> &[u8] {
        record.get(HEADER_LENGTH..).unwrap_or(&[])
    }

    /// Returns how the stored bytes are encoded.
    pub fn codec(&self) -> Result<Codec, CodecError> {
        Ok(Codec {
            compression: Compression::from_id(self.compression)?,
            encryption: Encryption::from_id(self.encryption)?,
        })
    }

    /// Returns how many bytes of the pack the record takes.
    pub fn span(&self) -> u64 {
        // A contents record has room behind its payload for what finds it from the end.
        let trailer = if self.kind == RecordKind::Contents { TRAILER_LENGTH } else { 0 };
        record_span(self.stored_length.saturating_add(trailer))
    }

    /// Returns the header's bytes for a record at `offset` of a pack.
    pub(super) fn encode(&self, pack: &PackHeader, offset: u64) -> Vec<u8> {
        let fields = FieldWriter::with_capacity(HEADER_LENGTH)
            .bytes(&MAGIC)
            .u32(self.kind.id())
            .u32(0)
            .bytes(self.key.hash.as_bytes())
            .u16(self.key.twin.0)
            .u8(self.compression)
            .u8(self.encryption)
            .bytes(self.fingerprint.as_bytes())
            .u64(self.plain_length)
            .u64(self.stored_length)
            .u64(self.time)
            .zeros_to(COVERED);
        let checksum = pack.checksum(offset, fields.as_slice());
        fields.bytes(&checksum).finish()
    }

    /// Reads the header of the record at `offset` of a pack, or nothing if none is there.
    pub(super) fn decode(bytes: &[u8], pack: &PackHeader, offset: u64) -> Option<Self> {
        let covered = bytes.get(..COVERED)?;
        let checksum = bytes.get(COVERED..HEADER_LENGTH)?;
        // The magic first: it is what a hole or another program's bytes lack, and costs nothing.
        if covered.get(..8)? != MAGIC || pack.checksum(offset, covered) != checksum {
            return None;
        }
        let fields = |mut reader: FieldReader<'_>| -> Result<Option<Self>, TooShort> {
            reader.array::<8>()?;
            let Some(kind) = RecordKind::from_id(reader.u32()?) else { return Ok(None) };
            reader.u32()?;
            let hash = SegmentHash::from_bytes(reader.array()?);
            let key = SegmentKey { hash, twin: Twin(reader.u16()?) };
            Ok(Some(Self {
                kind,
                key,
                compression: reader.u8()?,
                encryption: reader.u8()?,
                fingerprint: Fingerprint::from_bytes(reader.array()?),
                plain_length: reader.u64()?,
                stored_length: reader.u64()?,
                time: reader.u64()?,
            }))
        };
        fields(FieldReader::new(covered)).ok().flatten()
    }
}

/// Returns how many bytes of a pack a record takes whose stored bytes are so long.
pub fn record_span(stored_length: u64) -> u64 {
    aligned((HEADER_LENGTH as u64).saturating_add(stored_length))
}

/// The bytes of one record under construction: room for the header, then what the encoder appends.
///
/// Re-used from record to record, so that storing a segment allocates nothing.
#[derive(Debug)]
pub struct RecordBuffer {
    bytes: Vec<u8>,
}

impl RecordBuffer {
    /// Makes an empty one.
    pub fn new() -> Self {
        Self { bytes: vec![0; HEADER_LENGTH] }
    }

    /// Empties it and returns what an encoder appends the stored bytes to.
    pub fn restart(&mut self) -> &mut Vec<u8> {
        self.bytes.clear();
        self.bytes.resize(HEADER_LENGTH, 0);
        &mut self.bytes
    }

    /// Returns the length of the stored bytes.
    pub fn stored_length(&self) -> u64 {
        self.bytes.len().saturating_sub(HEADER_LENGTH) as u64
    }

    /// Puts the header in and the padding behind, and returns the whole record.
    pub(super) fn seal(&mut self, header: &RecordHeader, pack: &PackHeader, offset: u64) -> &mut Vec<u8> {
        if let Some(room) = self.bytes.get_mut(..HEADER_LENGTH) {
            room.copy_from_slice(&header.encode(pack, offset));
        }
        self.bytes.resize(usize::try_from(header.span()).unwrap_or(usize::MAX), 0);
        &mut self.bytes
    }
}

impl Default for RecordBuffer {
    fn default() -> Self {
        Self::new()
    }
}

/// A freed segment, as a dead record names it: 32 bytes each in the record's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadSegment {
    /// The pack it lies in.
    pub pack: PackId,
    /// The offset of its record.
    pub offset: u64,
    /// How many bytes of the pack its record takes.
    pub span: u64,
}

impl DeadSegment {
    /// How many bytes of a dead record's payload name one.
    const LENGTH: usize = 32;

    /// Returns the payload of a dead record.
    pub fn encode(segments: &[Self]) -> Vec<u8> {
        let writer = FieldWriter::with_capacity(segments.len() * Self::LENGTH);
        segments.iter().fold(writer, |w, dead| w.bytes(&dead.pack.0).u64(dead.offset).u64(dead.span)).finish()
    }

    /// Reads the payload of a dead record.
    pub fn decode(payload: &[u8]) -> Result<Vec<Self>, TooShort> {
        let mut reader = FieldReader::new(payload);
        let mut segments = Vec::new();
        while !reader.is_empty() {
            segments.push(Self { pack: PackId(reader.array()?), offset: reader.u64()?, span: reader.u64()? });
        }
        Ok(segments)
    }
}

/// The length of what finds the contents record from the end of a sealed pack.
pub(super) const TRAILER_LENGTH: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::pack::PackNumber;

    fn pack() -> PackHeader {
        PackHeader::new(PackNumber(1), 0, [0; 16]).unwrap()
    }

    #[test]
    fn every_flipped_bit_another_offset_and_another_pack_are_refused() {
        let meta = SegmentMeta {
            key: SegmentKey { hash: SegmentHash::of(b"x"), twin: Twin(3) },
            fingerprint: Fingerprint::of(b"x"),
            plain_length: 1,
            codec: Codec::default(),
        };
        let header = RecordHeader::segment(&meta, 1, 99);
        let pack = pack();
        let bytes = header.encode(&pack, 8192);
        assert_eq!(bytes.len(), HEADER_LENGTH);
        assert_eq!(RecordHeader::decode(&bytes, &pack, 8192), Some(header));
        assert_eq!(RecordHeader::decode(&bytes, &pack, 12288), None);
        assert_eq!(RecordHeader::decode(&bytes, &self::pack(), 8192), None);
        for bit in 0..HEADER_LENGTH * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&flipped, &pack, 8192), None, "bit {bit}");
        }
    }

    #[test]
    fn dead_segments_come_back() {
        let dead = [
            DeadSegment { pack: PackId([1; 16]), offset: 8192, span: 4096 },
            DeadSegment { pack: PackId([2; 16]), offset: 4096, span: 8192 },
        ];
        let payload = DeadSegment::encode(&dead);
        assert_eq!(DeadSegment::decode(&payload).unwrap(), dead);
        assert!(DeadSegment::decode(&payload[..63]).is_err());
    }

    #[test]
    fn spans_are_whole_sectors_with_room_for_header_and_trailer() {
        let own = |kind, length: usize| RecordHeader::own(kind, &vec![0; length], 0).span();
        assert_eq!(own(RecordKind::Mark, 0), 512);
        assert_eq!(own(RecordKind::Dead, 4096 - 256), 4096);
        assert_eq!(own(RecordKind::Dead, 4096 - 255), 4608);
        assert_eq!(own(RecordKind::Contents, 4096 - 256 - 64), 4096);
        assert_eq!(own(RecordKind::Contents, 4096 - 256 - 63), 4608);
    }
}
