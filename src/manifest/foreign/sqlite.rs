//! The original's SQLite manifests.
//!
//! Three tables, made by exactly the original's statements: `metadata` (incremental, segment size, size of disk,
//! timestamp in seconds as text), `backupsets` (numbered from 0, the oldest first, the manifest's own one last)
//! and `segments`, one row for each present one.
//!
//! A file that is imported may be hostile. It is opened read-only, with SQLite's own defences on; its schema must
//! be these three tables and nothing else, so that no view, trigger or virtual table runs; and every value is
//! checked for its type and its bounds. (See "Defense Against The Dark Arts" in SQLite's documentation.)

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Row};

use crate::error::ErrorKind;
use crate::manifest::foreign::builder::{ForeignInfo, ForeignSegment, ManifestBuilder};
use crate::manifest::foreign::{CodecSource, STEP, backupset_number, backupsets};
use crate::manifest::{BackupsetId, ImageName, ManifestError, ManifestInfo, ManifestReader};
use crate::progress::{Part, Progress};
use crate::storage::{NewFile, StorageError};

/// The original's statements, to the letter: SQLite keeps them in the file.
const TABLES: [(&str, &str); 3] = [
    (
        "metadata",
        "CREATE TABLE metadata (
                        key TEXT PRIMARY KEY,
                        value TEXT
                    )",
    ),
    (
        "backupsets",
        "CREATE TABLE backupsets (
                        id INTEGER PRIMARY KEY,
                        backupset_id BLOB
                    )",
    ),
    (
        "segments",
        "CREATE TABLE segments (
                        incremental INTEGER,
                        segment INTEGER PRIMARY KEY,
                        compression TINYINT,
                        encryption TINYINT,
                        segment_hash BLOB,
                        backupset_id INTEGER,
                        FOREIGN KEY(backupset_id) REFERENCES backupsets(id)
                    )",
    ),
];

/// The most backupsets that a manifest can name.
const BACKUPSETS: usize = 1 << 16;

/// The longest value of a foreign file that SQLite may take into memory, in bytes.
const LONGEST_VALUE: i32 = 1 << 20;

/// Returns what kind of failure an error of SQLite's is.
pub(in crate::manifest) fn kind(error: &rusqlite::Error) -> ErrorKind {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => ErrorKind::Busy,
        Some(
            ErrorCode::CannotOpen
            | ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::OutOfMemory
            | ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied,
        ) => ErrorKind::Io,
        _ => ErrorKind::Corrupt,
    }
}

/// Writes a manifest as the original's SQLite to `path`. Durable when this returns; a failure leaves nothing
/// behind.
pub fn export<E: From<ManifestError>>(
    manifest: &ManifestReader,
    path: &Path,
    replace: bool,
    codecs: &mut dyn CodecSource<E>,
    progress: &dyn Progress,
) -> Result<(), E> {
    manifest.verify()?;
    let info = manifest.info();
    let timestamp = timestamp(manifest, path)?;
    let file = NewFile::begin(path, replace).map_err(ManifestError::from)?;
    let failed = |source| ManifestError::Sqlite { operation: "write", path: path.to_owned(), source };
    let database = new_database(&file.temporary()).map_err(failed)?;
    write_head(&database, info, &timestamp).map_err(failed)?;
    let mut part = Part::begin(progress, "export", info.geometry.size_of_disk());
    {
        let mut insert =
            database.prepare("INSERT INTO segments VALUES (?1, ?2, ?3, ?4, ?5, ?6)").map_err(failed)?;
        for (position, (index, segment)) in (1_u32..).zip(manifest.segments()) {
            let codec = codecs.codec(index)?;
            insert
                .execute((
                    segment.incremental.0,
                    index.0,
                    codec.compression,
                    codec.encryption,
                    &segment.key.hash.as_bytes()[..],
                    i64::try_from(backupset_number(info, segment.base)).unwrap_or(i64::MAX),
                ))
                .map_err(failed)?;
            if position.is_multiple_of(STEP) {
                manifest.release_pages();
                part.reached(info.geometry.offset(index));
            }
        }
    }
    database.execute_batch("COMMIT").map_err(failed)?;
    database.close().map_err(|(_, source)| failed(source))?;
    Ok(file.finish().map_err(ManifestError::from)?)
}

/// Makes sure that the format can say what a manifest says that is to be exported to `path`.
pub fn check(manifest: &ManifestReader, path: &Path) -> Result<(), ManifestError> {
    timestamp(manifest, path).map(drop)
}

fn timestamp(manifest: &ManifestReader, path: &Path) -> Result<String, ManifestError> {
    timestamp_text(manifest.info().timestamp).ok_or_else(|| ManifestError::CannotSay {
        path: path.to_owned(),
        what: "a time before 1970".to_owned(),
    })
}

fn new_database(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags)?;
    // No journal and no sync: the file is nobody's until it is whole, durable and renamed. Pages of 4 KiB, as the
    // original has them; 16 MiB of cache.
    database.execute_batch(
        "PRAGMA page_size = 4096; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
         PRAGMA locking_mode = EXCLUSIVE; PRAGMA cache_size = -16384; BEGIN",
    )?;
    Ok(database)
}

fn write_head(database: &Connection, info: &ManifestInfo, timestamp: &str) -> Result<(), rusqlite::Error> {
    for (_, statement) in TABLES {
        database.execute_batch(statement)?;
    }
    for (key, value) in [
        ("incremental", info.incremental.to_string().as_str()),
        ("segment_size", &info.geometry.segment_size().bytes().to_string()),
        ("size_of_disk", &info.geometry.size_of_disk().to_string()),
        ("timestamp", timestamp),
    ] {
        database.execute("INSERT INTO metadata VALUES (?1, ?2)", (key, value))?;
    }
    for (id, backupset) in (0_i64..).zip(backupsets(info)) {
        database.execute("INSERT INTO backupsets VALUES (?1, ?2)", (id, &backupset.as_bytes()[..]))?;
    }
    Ok(())
}

/// Writes a time as the original does: seconds with a fraction that has at least one digit and no zeros at its
/// end.
fn timestamp_text(timestamp: jiff::Timestamp) -> Option<String> {
    let (seconds, fraction) = (timestamp.as_second(), timestamp.subsec_nanosecond());
    if seconds < 0 || fraction < 0 {
        return None;
    }
    let digits = format!("{fraction:09}");
    let digits = digits.trim_end_matches('0');
    Some(format!("{seconds}.{}", if digits.is_empty() { "0" } else { digits }))
}

/// Reads such a time, to the nanosecond.
fn read_timestamp(text: &str) -> Option<jiff::Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(seconds) || !all_digits(fraction) || fraction.len() > 9 {
        return None;
    }
    jiff::Timestamp::new(seconds.parse().ok()?, format!("{fraction:0<9}").parse().ok()?).ok()
}

pub(super) fn import(
    from: &Path,
    name: &ImageName,
    to: &Path,
    progress: &dyn Progress,
) -> Result<(), ManifestError> {
    let failed = |source| ManifestError::Sqlite { operation: "read", path: from.to_owned(), source };
    let refused = |what: String| ManifestError::Foreign { path: from.to_owned(), what };
    check_first_page(from)?;
    let database = open_hostile(from).map_err(failed)?;
    // One transaction: everything is of one moment.
    database.execute_batch("BEGIN").map_err(failed)?;
    check_schema(&database, from)?;
    let info = read_head(&database, from)?;
    let mut builder = ManifestBuilder::begin(from, to, name, &info, progress)?;
    let mut select = database
        .prepare(
            "SELECT segment, incremental, compression, encryption, backupset_id, segment_hash
             FROM segments ORDER BY segment",
        )
        .map_err(failed)?;
    let mut rows = select.query(()).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let [segment, incremental, compression, encryption, backupset] = numbers(row).map_err(failed)?;
        let segment = segment.ok_or_else(|| refused("a segment has no number".to_owned()))?;
        let wrong = |column: &str| refused(format!("the {column} of segment {segment} is none"));
        // How the original stored it is no concern of a manifest of ours, but it must be possible.
        for (codec, column) in [(compression, "compression"), (encryption, "encryption")] {
            codec.and_then(|id| u8::try_from(id).ok()).ok_or_else(|| wrong(column))?;
        }
        let hash = match row.get_ref(5).map_err(failed)? {
            ValueRef::Blob(bytes) => bytes.try_into().map_err(|_| wrong("segment_hash"))?,
            _ => return Err(wrong("segment_hash")),
        };
        builder.push(&ForeignSegment {
            segment,
            incremental: incremental.ok_or_else(|| wrong("incremental"))?,
            backupset: backupset.ok_or_else(|| wrong("backupset_id"))?,
            hash,
        })?;
    }
    builder.finish()
}

/// Returns the first columns of a row, as far as they are numbers that are not negative.
fn numbers<const N: usize>(row: &Row<'_>) -> Result<[Option<u64>; N], rusqlite::Error> {
    let mut numbers = [None; N];
    for (column, number) in numbers.iter_mut().enumerate() {
        *number = match row.get_ref(column)? {
            ValueRef::Integer(value) => u64::try_from(value).ok(),
            _ => None,
        };
    }
    Ok(numbers)
}

/// Makes sure, before SQLite sees the file, that its schema is one page, as three tables' is, so that reading it
/// ends; and that it has no write-ahead log, which would be another file to believe. (SQLite's file format, 1.3 and
/// 1.6: at 18 and 19 stands how it is written and read, at 100 of what kind its first page is.)
fn check_first_page(path: &Path) -> Result<(), ManifestError> {
    let mut first = [0; 101];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut first, 0));
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
        Err(source) => return Err(StorageError::new("read", path, source).into()),
        Ok(()) => {}
    }
    let refused = |what: &str| Err(ManifestError::Foreign { path: path.to_owned(), what: what.to_owned() });
    match first {
        [.., 13] if first.get(18..20) == Some(&[1, 1]) => Ok(()),
        [.., 13] => {
            refused("it has a write-ahead log: open it with sqlite3 and say \"PRAGMA journal_mode = DELETE\"")
        }
        _ => refused("its schema is not that of the original"),
    }
}

fn open_hostile(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags)?;
    for (option, on) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
        (DbConfig::SQLITE_DBCONFIG_DQS_DML, false),
        (DbConfig::SQLITE_DBCONFIG_DQS_DDL, false),
    ] {
        database.set_db_config(option, on)?;
    }
    for (limit, value) in [
        (Limit::SQLITE_LIMIT_LENGTH, LONGEST_VALUE),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, 1 << 14),
        (Limit::SQLITE_LIMIT_COLUMN, 16),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, 8),
        (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 2),
        (Limit::SQLITE_LIMIT_VDBE_OP, 1 << 12),
        (Limit::SQLITE_LIMIT_FUNCTION_ARG, 4),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 0),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ] {
        database.set_limit(limit, value)?;
    }
    database
        .execute_batch("PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0; PRAGMA cache_size = -16384")?;
    Ok(database)
}

/// Makes sure that the file has the original's tables and nothing else.
fn check_schema(database: &Connection, path: &Path) -> Result<(), ManifestError> {
    let failed = |source| ManifestError::Sqlite { operation: "read", path: path.to_owned(), source };
    let refused = |what: String| ManifestError::Foreign { path: path.to_owned(), what };
    let mut select =
        database.prepare("SELECT type, name, coalesce(sql, '') FROM sqlite_schema").map_err(failed)?;
    let mut rows = select.query(()).map_err(failed)?;
    let mut tables = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let [kind, name, statement] =
            [row.get::<_, String>(0), row.get(1), row.get(2)].map(|text| text.map_err(failed));
        let (kind, name, statement) = (kind?, name?, statement?);
        match kind.as_str() {
            // What `PRIMARY KEY` on a text makes by itself.
            "index" if name == "sqlite_autoindex_metadata_1" && statement.is_empty() => {}
            "table" if TABLES.iter().any(|(table, text)| *table == name && same_words(text, &statement)) => {
                tables.push(name);
            }
            _ => return Err(refused(format!("{kind} \"{name}\" is not the original's"))),
        }
    }
    match TABLES.iter().find(|(table, _)| tables.iter().filter(|name| name == table).count() != 1) {
        Some((table, _)) => Err(refused(format!("it has no table \"{table}\", or several"))),
        None => Ok(()),
    }
}

/// Says whether two statements differ in nothing but white space.
fn same_words(one: &str, other: &str) -> bool {
    one.split_whitespace().eq(other.split_whitespace())
}

fn read_head(database: &Connection, path: &Path) -> Result<ForeignInfo, ManifestError> {
    let failed = |source| ManifestError::Sqlite { operation: "read", path: path.to_owned(), source };
    let refused = |what: String| ManifestError::Foreign { path: path.to_owned(), what };
    let (mut numbers, mut timestamp) = ([None; 3], None);
    let mut select = database.prepare("SELECT key, value FROM metadata").map_err(failed)?;
    let mut rows = select.query(()).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let (key, value): (String, String) = (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
        let wrong = || refused(format!("its {key} is \"{}\"", value.escape_debug()));
        let known = ["incremental", "segment_size", "size_of_disk"];
        let number = known.iter().zip(&mut numbers).find(|(name, _)| **name == key);
        let twice = match number {
            Some((_, number)) => {
                let digits = value.bytes().all(|byte| byte.is_ascii_digit());
                let read = value.parse::<u64>().ok().filter(|_| digits).ok_or_else(wrong)?;
                number.replace(read).is_some()
            }
            None if key == "timestamp" => {
                timestamp.replace(read_timestamp(&value).ok_or_else(wrong)?).is_some()
            }
            None => return Err(refused(format!("its metadata have a key \"{}\"", key.escape_debug()))),
        };
        if twice {
            return Err(refused(format!("its metadata name the {key} twice")));
        }
    }
    let ([Some(incremental), Some(segment_size), Some(size_of_disk)], Some(timestamp)) = (numbers, timestamp)
    else {
        return Err(refused("its metadata are not complete".to_owned()));
    };
    let mut backupsets = Vec::new();
    let mut select =
        database.prepare("SELECT id, backupset_id FROM backupsets ORDER BY id").map_err(failed)?;
    let mut rows = select.query(()).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let number = backupsets.len();
        let id = match (row.get_ref(0).map_err(failed)?, row.get_ref(1).map_err(failed)?) {
            (ValueRef::Integer(id), ValueRef::Blob(bytes)) if usize::try_from(id) == Ok(number) => {
                bytes.try_into().ok().map(BackupsetId::from_bytes)
            }
            _ => None,
        };
        backupsets.push(id.ok_or_else(|| refused(format!("its backupset {number} is none")))?);
        if backupsets.len() > BACKUPSETS {
            return Err(refused(format!("it has more than {BACKUPSETS} backupsets")));
        }
    }
    Ok(ForeignInfo { incremental, segment_size, size_of_disk, timestamp, backupsets })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_original_does_and_come_back() {
        for (text, time) in [
            ("1795385526.16252", "2026-11-22T22:12:06.16252Z"),
            ("0.0", "1970-01-01T00:00:00Z"),
            ("1.000000001", "1970-01-01T00:00:01.000000001Z"),
        ] {
            let time: jiff::Timestamp = time.parse().unwrap();
            assert_eq!(timestamp_text(time).as_deref(), Some(text));
            assert_eq!(read_timestamp(text), Some(time));
        }
        assert_eq!(read_timestamp("17"), Some(jiff::Timestamp::new(17, 0).unwrap()));
        for text in
            ["", ".", "1.", ".5", "-1.0", "+1", "1e9", "1.0000000001", "nan", "99999999999999999999", "1.5 "]
        {
            assert_eq!(read_timestamp(text), None, "{text}");
        }
        assert_eq!(timestamp_text(jiff::Timestamp::new(-1, 0).unwrap()), None);
    }
}
