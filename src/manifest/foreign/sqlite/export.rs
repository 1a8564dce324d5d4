//! Writing.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::manifest::foreign::sqlite::{TABLES, timestamp_text};
use crate::manifest::foreign::{CodecSource, STEP, backupset_number, backupsets};
use crate::manifest::{ManifestError, ManifestInfo, ManifestReader};
use crate::progress::{Part, Progress};
use crate::storage::NewFile;

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
    // SQLite gives its journal the mode of the file, which is there before.
    drop(file.create().map_err(ManifestError::from)?);
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
