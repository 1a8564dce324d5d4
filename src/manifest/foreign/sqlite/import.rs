//! Reading, as hostile.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Row};

use crate::manifest::foreign::builder::{ForeignInfo, ForeignSegment, ManifestBuilder};
use crate::manifest::foreign::sqlite::{TABLES, read_timestamp};
use crate::manifest::{BackupsetId, ImageName, ManifestError};
use crate::progress::Progress;
use crate::storage::StorageError;

/// The most backupsets that a manifest can name.
const BACKUPSETS: usize = 1 << 16;

/// The longest value of a foreign file that SQLite may take into memory, in bytes.
const LONGEST_VALUE: i32 = 1 << 20;

pub(in crate::manifest::foreign) fn import(
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
