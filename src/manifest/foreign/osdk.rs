//! OSDK, version 0: the original's experimental format, 32 bytes a segment.
//!
//! All little-endian: signature (16); `u32` version, CRC-32 of the head and of the body; the head: `i32`
//! timestamp, `u32` incremental, `u32` segment size, `u64` sectors of 512 bytes, `u16` number of bases, 14
//! zeros, and 16 bytes a base; the signature again; the body: `u32` segment, `u32` incremental, `u16` base, `u8`
//! encryption, `u8` compression, SHA-1. The bases are the backupsets in the original's order.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::manifest::foreign::builder::{ForeignInfo, ForeignSegment, ManifestBuilder};
use crate::manifest::foreign::{CodecSource, backupset_number, backupsets};
use crate::manifest::{BackupsetId, ImageName, ManifestError, ManifestReader};
use crate::progress::{Part, Progress};
use crate::storage::{FieldReader, FieldWriter, NewFile, StorageError, WriteBehind};

/// The UUID d326503a-b5ca-49ad-ac56-c89eb0b8ef08: an OSDK manifest.
pub(super) const SIGNATURE: [u8; 16] =
    [0xd3, 0x26, 0x50, 0x3a, 0xb5, 0xca, 0x49, 0xad, 0xac, 0x56, 0xc8, 0x9e, 0xb0, 0xb8, 0xef, 0x08];

/// The only version.
const VERSION: u32 = 0;
/// The unit of a disk's size, in bytes.
const SECTOR: u64 = 512;
/// The signature, version and checksums, in bytes.
const BEGIN: usize = 28;
/// The head without its bases, in bytes.
const HEAD: usize = 36;
/// A segment in the body, in bytes.
const RECORD: usize = 32;
/// The size of reads and writes, in bytes.
const BUFFER: usize = 1 << 20;

/// Writes a manifest as OSDK to `path`. Durable when this returns; a failure leaves nothing behind.
///
/// The format has whole seconds for the time, which is cut; what else it cannot say is an error: a disk whose
/// size is no multiple of 512, a time behind 2038, more than 65,535 backupsets.
pub fn export<E: From<ManifestError>>(
    manifest: &ManifestReader,
    path: &Path,
    replace: bool,
    codecs: &mut dyn CodecSource<E>,
    progress: &dyn Progress,
) -> Result<(), E> {
    manifest.verify()?;
    let head = head(manifest, path)?;
    let file = NewFile::begin(path, replace).map_err(ManifestError::from)?;
    let failed = |source: io::Error| ManifestError::from(StorageError::new("write", path, source));
    let out = file.create().map_err(ManifestError::from)?;
    let info = manifest.info();
    let mut part = Part::begin(progress, "export", info.geometry.size_of_disk());
    let begin = |body: u32| {
        let begin = FieldWriter::with_capacity(BEGIN).bytes(&SIGNATURE).u32(VERSION);
        begin.u32(crc32fast::hash(&head)).u32(body).finish()
    };
    let mut writer = WriteBehind::new(out).map_err(failed)?;
    writer.write_all(&[&begin(0), head.as_slice(), &SIGNATURE].concat()).map_err(failed)?;
    let mut checksum = crc32fast::Hasher::new();
    // Summed and written in large parts: a CRC of 32 bytes at a time takes four times as long.
    let mut records = Vec::with_capacity(BUFFER);
    let mut segments = manifest.segments().peekable();
    while let Some((index, segment)) = segments.next() {
        let codec = codecs.codec(index)?;
        let base = u16::try_from(backupset_number(info, segment.base)).unwrap_or(u16::MAX);
        records.extend_from_slice(&index.0.to_le_bytes());
        records.extend_from_slice(&segment.incremental.0.to_le_bytes());
        records.extend_from_slice(&base.to_le_bytes());
        records.extend_from_slice(&[codec.encryption, codec.compression]);
        records.extend_from_slice(segment.key.hash.as_bytes());
        if records.len() >= BUFFER || segments.peek().is_none() {
            checksum.update(&records);
            writer.write_all(&records).map_err(failed)?;
            records.clear();
            manifest.release_pages();
            part.reached(info.geometry.offset(index));
        }
    }
    let out = writer.finish().map_err(failed)?;
    out.write_all_at(&begin(checksum.finalize()), 0).map_err(failed)?;
    Ok(file.finish().map_err(ManifestError::from)?)
}

/// Makes sure that the format can say what a manifest says that is to be exported to `path`.
pub fn check(manifest: &ManifestReader, path: &Path) -> Result<(), ManifestError> {
    head(manifest, path).map(drop)
}

/// Returns the head with its bases.
fn head(manifest: &ManifestReader, path: &Path) -> Result<Vec<u8>, ManifestError> {
    let cannot = |what: String| ManifestError::CannotSay { path: path.to_owned(), what };
    let info = manifest.info();
    let size = info.geometry.size_of_disk();
    if !size.is_multiple_of(SECTOR) {
        return Err(cannot(format!("a disk of {size} bytes, which is no multiple of {SECTOR}")));
    }
    let seconds = i32::try_from(info.timestamp.as_second())
        .map_err(|_| cannot(format!("the time {}: its seconds have 32 bits", info.timestamp)))?;
    let backupsets = backupsets(info);
    let number = u16::try_from(backupsets.len())
        .map_err(|_| cannot(format!("{} backupsets: it counts to 65535", backupsets.len())))?;
    let head = FieldWriter::with_capacity(HEAD)
        .bytes(&seconds.to_le_bytes())
        .u32(info.incremental.0)
        .u32(info.geometry.segment_size().bytes())
        .u64(size / SECTOR)
        .u16(number)
        .zeros_to(HEAD);
    Ok(backupsets.iter().fold(head, |head, id| head.bytes(id.as_bytes())).finish())
}

/// Where the body lies, and what it must sum up to.
struct Body {
    offset: u64,
    records: u64,
    checksum: u32,
}

pub(super) fn import(
    from: &Path,
    name: &ImageName,
    to: &Path,
    progress: &dyn Progress,
) -> Result<(), ManifestError> {
    let failed = |source| ManifestError::from(StorageError::new("read", from, source));
    let file = File::open(from).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let (info, body) = read_head(&file, size, from)?;
    let damaged = |what: &str| ManifestError::Damaged { path: from.to_owned(), what: what.to_owned() };
    if body.records > info.segments() {
        let what = format!("it has {} segments, and its disk {}", body.records, info.segments());
        return Err(ManifestError::Foreign { path: from.to_owned(), what });
    }
    // The checksum before a single record is believed; it also says whether the records are in order.
    let (mut sum, mut last, mut sorted) = (crc32fast::Hasher::new(), None, true);
    each_record(&file, &body, from, |_, record| {
        sum.update(record);
        sorted &= last.is_none_or(|last| last < place(record));
        last = Some(place(record));
        Ok(())
    })?;
    if sum.finalize() != body.checksum {
        return Err(damaged("its body does not fit its CRC-32"));
    }
    let mut builder = ManifestBuilder::begin(from, to, name, &info, progress)?;
    let mut again = crc32fast::Hasher::new();
    if sorted {
        each_record(&file, &body, from, |_, record| {
            again.update(record);
            builder.push(&decode(record))
        })?;
    } else {
        // The original's writer takes them out of a hash table. 8 bytes of memory a segment. Read in another order
        // they are summed in one that does not matter.
        let sum = |sum: u64, record: &[u8; RECORD]| sum.wrapping_add(u64::from(crc32fast::hash(record)));
        let (mut order, mut before, mut after) = (Vec::new(), 0, 0);
        each_record(&file, &body, from, |position, record| {
            order.push((place(record), position));
            again.update(record);
            before = sum(before, record);
            Ok(())
        })?;
        order.sort_unstable();
        for (_, position) in order {
            let mut record = [0; RECORD];
            let offset = body.offset + u64::from(position) * RECORD as u64;
            file.read_exact_at(&mut record, offset).map_err(failed)?;
            after = sum(after, &record);
            builder.push(&decode(&record))?;
        }
        if before != after {
            return Err(damaged("it was changed while it was read"));
        }
    }
    if again.finalize() != body.checksum {
        return Err(damaged("it was changed while it was read"));
    }
    builder.finish()
}

fn read_head(file: &File, size: u64, from: &Path) -> Result<(ForeignInfo, Body), ManifestError> {
    let failed = |source| ManifestError::from(StorageError::new("read", from, source));
    let damaged = |what: &str| ManifestError::Damaged { path: from.to_owned(), what: what.to_owned() };
    let read = |offset: u64, length: usize| {
        // Checked against the file before anything is allocated.
        if offset + length as u64 > size {
            return Err(damaged("it ends in the middle of its head"));
        }
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset).map_err(failed)?;
        Ok(bytes)
    };
    let short = |_| damaged("it ends in the middle of its head");
    let begin = read(0, BEGIN)?;
    let mut fields = FieldReader::new(&begin);
    if fields.array::<16>().map_err(short)? != SIGNATURE {
        return Err(ManifestError::UnknownFormat { path: from.to_owned() });
    }
    let version = fields.u32().map_err(short)?;
    if version != VERSION {
        let what = format!("it has version {version} of OSDK; this release reads version {VERSION}");
        return Err(ManifestError::Foreign { path: from.to_owned(), what });
    }
    let (head_checksum, checksum) = (fields.u32().map_err(short)?, fields.u32().map_err(short)?);
    let head = read(BEGIN as u64, HEAD)?;
    let mut fields = FieldReader::new(&head);
    let timestamp = i32::from_le_bytes(fields.array().map_err(short)?);
    let incremental = fields.u32().map_err(short)?;
    let segment_size = fields.u32().map_err(short)?;
    let sectors = fields.u64().map_err(short)?;
    let number = fields.u16().map_err(short)?;
    let bases = read((BEGIN + HEAD) as u64, usize::from(number) * 16)?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head);
    crc.update(&bases);
    if crc.finalize() != head_checksum {
        return Err(damaged("its head does not fit its CRC-32"));
    }
    if !fields.reserved(14).map_err(short)? {
        return Err(damaged("its padding is not zero"));
    }
    let behind = (BEGIN + HEAD + bases.len()) as u64;
    if read(behind, SIGNATURE.len())? != SIGNATURE {
        return Err(damaged("the signature behind its head is not there"));
    }
    let offset = behind + SIGNATURE.len() as u64;
    let length = size - offset;
    if !length.is_multiple_of(RECORD as u64) {
        return Err(damaged("it ends in the middle of a segment"));
    }
    let size_of_disk = sectors
        .checked_mul(SECTOR)
        .ok_or_else(|| damaged("its disk has more bytes than a number can say"))?;
    let info = ForeignInfo {
        incremental: u64::from(incremental),
        segment_size: u64::from(segment_size),
        size_of_disk,
        timestamp: jiff::Timestamp::new(i64::from(timestamp), 0)
            .map_err(|_| damaged("its time is impossible"))?,
        backupsets: bases.as_chunks().0.iter().map(|bytes| BackupsetId::from_bytes(*bytes)).collect(),
    };
    Ok((info, Body { offset, records: length / RECORD as u64, checksum }))
}

/// Calls `each` with the number and the bytes of every record.
fn each_record(
    file: &File,
    body: &Body,
    from: &Path,
    mut each: impl FnMut(u32, &[u8; RECORD]) -> Result<(), ManifestError>,
) -> Result<(), ManifestError> {
    let failed = |source| ManifestError::from(StorageError::new("read", from, source));
    let mut file = BufReader::with_capacity(BUFFER, file);
    io::Seek::seek(&mut file, io::SeekFrom::Start(body.offset)).map_err(failed)?;
    let records = u32::try_from(body.records).map_err(|_| ManifestError::Foreign {
        path: from.to_owned(),
        what: "it has more segments than a manifest can number".to_owned(),
    })?;
    let mut record = [0; RECORD];
    for position in 0..records {
        file.read_exact(&mut record).map_err(failed)?;
        each(position, &record)?;
    }
    Ok(())
}

fn place(record: &[u8; RECORD]) -> u32 {
    let [a, b, c, d, ..] = *record;
    u32::from_le_bytes([a, b, c, d])
}

/// Takes a record apart. Its codec ids say how the original stored the segment, which is no concern of a
/// manifest of ours.
#[expect(clippy::many_single_char_names, reason = "the bytes have no other names")]
fn decode(record: &[u8; RECORD]) -> ForeignSegment {
    let [_, _, _, _, a, b, c, d, e, f, _encryption, _compression, hash @ ..] = *record;
    ForeignSegment {
        segment: u64::from(place(record)),
        incremental: u64::from(u32::from_le_bytes([a, b, c, d])),
        backupset: u64::from(u16::from_le_bytes([e, f])),
        hash,
    }
}
