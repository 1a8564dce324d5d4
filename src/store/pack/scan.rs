//! Walking a pack that has no usable table of contents.
//!
//! A walk goes from record to record and never looks inside a payload, with one exception: where a header
//! is damaged, its length is unknown, and the walk looks for the next header on the multiples of 512
//! behind it. That is safe only because a header's checksum is keyed by the pack and its offset.
//!
//! What a sync made durable ends on a multiple of 4,096: zeros up to there are no damage.
//!
//! A mark says up to which offset the pack was durable when it was written. Behind the highest such offset
//! nothing is known to be: there each record is decoded and its BLAKE3 compared, one that fails is left out, and
//! the pack ends behind the last that holds. One that fails there is no news, as a crash leaves such. Those behind
//! it are kept all the same: a sync whose mark was lost may have made them durable, and a backup may need them.
//! A record that fails *before* it is damage: it is passed over and reported.

use std::ops::Range;

use crate::codec::Decoder;
use crate::storage::Storage;
use crate::store::pack::contents::ContentsEntry;
use crate::store::pack::header::FIRST_RECORD;
use crate::store::pack::reader::PackReader;
use crate::store::pack::record::{RecordHeader, RecordKind};
use crate::store::pack::writer::PackWriter;
use crate::store::pack::{ALIGNMENT, BLOCK, PACK_RECORDS, PackError};

/// The most records of any kind that a walk takes in: there are fewer marks than other records.
const MOST_RECORDS: usize = 2 * PACK_RECORDS;
const TOO_MANY: &str = "the pack has more records than one can have";

/// How much of a pack is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanDepth {
    /// Headers alone: enough to look for segments beside the process that is writing the pack. It decides nothing, so
    /// what the disk does not give is passed over.
    Headers,
    /// Also the bytes behind what was durable: what a pack is sealed with.
    Tail,
}

/// What a walk found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackScan {
    /// The segments and dead records, in order.
    pub entries: Vec<ContentsEntry>,
    /// Where the last good record ends, or what was durable.
    pub end: u64,
    /// Offsets in what was durable at which a record should begin and none can be read.
    pub damaged: Vec<u64>,
}

impl PackScan {
    /// Walks a pack.
    pub fn of(pack: &PackReader, depth: ScanDepth) -> Result<Self, PackError> {
        let size = pack.size()?;
        // A hole holds no record: without them the walk takes as long as what is on the disk, however long the file is.
        let holes = pack.holes()?;
        let mut records: Vec<(u64, RecordHeader)> = Vec::new();
        let mut gaps = Vec::new();
        let mut offset = FIRST_RECORD;
        while let Some(found) = next_record(pack, depth, offset, size, &holes)? {
            if records.len() >= MOST_RECORDS {
                return Err(pack.damaged(offset, TOO_MANY));
            }
            let padded = found.0 == offset.next_multiple_of(BLOCK)
                && passed_over(depth, pack.is_zeros(offset..found.0))?.unwrap_or(false);
            if found.0 != offset && !padded {
                gaps.push(offset);
            }
            offset = found.0.saturating_add(found.1.span());
            records.push(found);
        }
        let mut durable = FIRST_RECORD;
        for (offset, record) in records.iter().filter(|(_, record)| record.kind == RecordKind::Mark) {
            let marked = passed_over(depth, pack.marked(*offset, record))?.flatten();
            durable = marked.unwrap_or(0).max(durable);
        }
        let mut scan = Self { entries: Vec::new(), end: durable, damaged: Vec::new() };
        scan.damaged.extend(gaps.iter().filter(|gap| **gap < durable));
        let mut tail = Tail::new()?;
        for (offset, record) in records {
            let whole = offset < durable
                || match record.kind {
                    // It was cut short, or is damaged: it is made anew.
                    RecordKind::Contents => false,
                    _ => depth == ScanDepth::Headers || tail.holds(pack, offset, &record)?,
                };
            if whole {
                scan.end = scan.end.max(offset + record.span());
                scan.entries.extend(ContentsEntry::of(&record, offset));
            }
        }
        if scan.entries.len() > PACK_RECORDS {
            return Err(pack.damaged(FIRST_RECORD, TOO_MANY));
        }
        Ok(scan)
    }

    /// Cuts a pack behind its last good record and seals it with a table of what it holds.
    pub fn seal(&self, storage: &dyn Storage, pack: PackReader, time: u64) -> Result<u64, PackError> {
        let (file, header) = pack.into_file();
        let file = storage.open(file.path())?;
        // Cut, then filled up with zeros, as a sync would have left it.
        let end = self.end.next_multiple_of(BLOCK);
        if file.size()? > self.end {
            file.truncate(self.end)?;
        }
        file.truncate(end)?;
        // What is behind the highest mark was read from the page cache; make sure of it.
        file.sync()?;
        PackWriter::resume(file, header, end, self.entries.clone()).seal(time)
    }
}

/// Takes nothing for what the disk does not give, where that decides nothing.
fn passed_over<T>(depth: ScanDepth, read: Result<T, PackError>) -> Result<Option<T>, PackError> {
    match read {
        Err(PackError::Storage(_)) if depth == ScanDepth::Headers => Ok(None),
        read => read.map(Some),
    }
}

/// Finds the first readable record header at or behind `offset` whose record ends inside the file.
fn next_record(
    pack: &PackReader,
    depth: ScanDepth,
    mut offset: u64,
    size: u64,
    holes: &[Range<u64>],
) -> Result<Option<(u64, RecordHeader)>, PackError> {
    while offset.saturating_add(ALIGNMENT) <= size {
        let next = holes.partition_point(|hole| hole.end <= offset);
        if let Some(hole) = holes.get(next).filter(|hole| hole.start <= offset) {
            offset = hole.end.next_multiple_of(ALIGNMENT);
            continue;
        }
        match passed_over(depth, pack.record(offset)) {
            Ok(Some(record)) if offset.saturating_add(record.span()) <= size => {
                return Ok(Some((offset, record)));
            }
            Ok(Some(_)) | Err(PackError::RecordDamaged { .. }) => offset += ALIGNMENT,
            // Nor does it give the rest of the block.
            Ok(None) => offset = (offset / BLOCK + 1) * BLOCK,
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Verifies records that are not known to be durable.
struct Tail {
    decoder: Decoder,
    stored: Vec<u8>,
    plain: Vec<u8>,
}

impl Tail {
    fn new() -> Result<Self, PackError> {
        let decoder = Decoder::new().map_err(|source| PackError::Decoder { source })?;
        Ok(Self { decoder, stored: Vec::new(), plain: Vec::new() })
    }

    /// Says whether a record is whole.
    ///
    /// # Errors
    /// It cannot be read now: that says nothing of it, and must not decide where the pack ends.
    fn holds(&mut self, pack: &PackReader, offset: u64, record: &RecordHeader) -> Result<bool, PackError> {
        let read = match record.kind {
            RecordKind::Segment => {
                let Ok(stored_length) = u32::try_from(record.stored_length) else { return Ok(false) };
                let Self { decoder, stored, plain } = self;
                pack.segment(record.key, offset, stored_length, decoder, stored, plain).map(drop)
            }
            RecordKind::Dead => pack.own_payload(offset, record).map(drop),
            RecordKind::Mark => return Ok(pack.marked(offset, record)?.is_some()),
            RecordKind::Contents => return Ok(false),
        };
        match read {
            Ok(()) => Ok(true),
            Err(PackError::Storage(error)) => Err(error.into()),
            Err(_) => Ok(false),
        }
    }
}
