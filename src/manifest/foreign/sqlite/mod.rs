//! The original's SQLite manifests.
//!
//! Three tables, made by exactly the original's statements: `metadata` (incremental, segment size, size of disk,
//! timestamp in seconds as text), `backupsets` (numbered from 0, the oldest first, the manifest's own one last)
//! and `segments`, one row for each present one.
//!
//! A file that is imported may be hostile. It is opened read-only, with SQLite's own defences on; its schema must
//! be these three tables and nothing else, so that no view, trigger or virtual table runs; and every value is
//! checked for its type and its bounds. (See "Defense Against The Dark Arts" in SQLite's documentation.)

mod export;
mod import;

pub use export::{check, export};
pub(super) use import::import;

use crate::error::ErrorKind;

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
