//! A disk's bytes, whole or by range: `curl` can restore a disk.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;

use crate::api::{Problem, Refusal};
use crate::manifest::ManifestReader;
use crate::progress::Silent;
use crate::restore::{RestoreError, stream_exactly};
use crate::service::extract::Path;
use crate::service::routes::backups::selector;
use crate::service::{App, Caller, Refused, pump};

/// How many disks are read at a time. Each has one thread that fetches, and takes three segments of memory; one that is read
/// alone, two threads and six segments.
pub(in crate::service) const READ_AT_ONCE: usize = 8;
/// How long a request waits for others to end.
const TURN: Duration = Duration::from_secs(20);
/// Up to this size of a segment, two threads fetch for a disk that is read alone.
const TWO_THREADS: u32 = 4 << 20;

/// A disk that is asked for.
struct Disk {
    manifest: ManifestReader,
    backup: String,
}

impl Disk {
    async fn open(app: &Arc<App>, caller: Caller, backup: &str) -> Result<Self, Refused> {
        let asked = selector(backup)?;
        app.blocking(move |app| {
            let repository = app.repository();
            let seen = caller.view.sets(repository)?.0;
            let (set, backup) = caller.view.find(repository, &seen, &asked)?;
            let manifest = repository.manifest(set, backup)?;
            Ok(Self { manifest, backup: caller.view.backup_id(&seen, set, backup) })
        })
        .await
    }

    fn size(&self) -> u64 {
        self.manifest.info().geometry.size_of_disk()
    }

    /// Returns what tells this disk from all others: it never changes.
    fn tag(&self) -> String {
        format!("\"{}\"", self.manifest.fingerprint())
    }

    fn answer(&self, status: StatusCode) -> Response {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = status;
        let safe = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        let file = self.backup.replace('@', "-").replace(|letter| !safe(letter), "_");
        let mut tell = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                answer.headers_mut().insert(name, value);
            }
        };
        tell(header::ETAG, &self.tag());
        tell(header::ACCEPT_RANGES, "bytes");
        // It is the guest's: no proxy is to keep it.
        tell(header::CACHE_CONTROL, "private, no-cache");
        tell(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        if status != StatusCode::NOT_MODIFIED {
            tell(header::CONTENT_TYPE, "application/octet-stream");
            tell(header::CONTENT_DISPOSITION, &format!("attachment; filename=\"{file}.raw\""));
        }
        answer
    }
}

/// Which part of a disk is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    All,
    Of(Range<u64>),
    /// None of its bytes.
    Outside,
}

impl Part {
    /// Reads a `Range` (RFC 9110, section 14). What is not understood, and several ranges at once, are as if nothing were
    /// said.
    fn of(text: &str, size: u64) -> Self {
        Self::parse(text, size).unwrap_or(Self::All)
    }

    fn parse(text: &str, size: u64) -> Option<Self> {
        let (unit, range) = text.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = range.trim().split_once('-')?;
        // Numbers that no disk has are behind the end of each.
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
        };
        let range = match (number(first), number(last)) {
            (Some(first), None) if last.is_empty() => first..size,
            (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(size),
            (None, Some(last)) if first.is_empty() => size.saturating_sub(last)..size,
            _ => return None,
        };
        Some(if range.is_empty() { Self::Outside } else { Self::Of(range) })
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Says whether a client has the disk already.
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    text(headers, header::IF_NONE_MATCH).is_some_and(|known| {
        known.split(',').map(str::trim).any(|one| one == "*" || one.trim_start_matches("W/") == tag)
    })
}

/// Reads a disk.
///
/// The bytes of the disk as it was, zeros included. One range can be asked for. If a segment turns out to be damaged, the
/// answer ends early, with a cut connection: what has come is right.
#[utoipa::path(get, path = "/v1/backups/{backup}/data", tag = "restore",
    params(
        ("backup" = String, Path, description = "NAME@NUMBER, NAME@latest, or the backupset's UUID in place of the name"),
        ("Range" = Option<String>, Header, description = "The bytes: bytes=FIRST-LAST, bytes=FIRST- or bytes=-LENGTH"),
        ("If-Range" = Option<String>, Header, description = "Take the range only of the disk with this ETag, else all of it"),
        ("If-None-Match" = Option<String>, Header, description = "The ETag of what the client has"),
    ),
    responses(
        (status = 200, description = "The disk", body = Vec<u8>, content_type = "application/octet-stream", headers(
            ("ETag" = String, description = "The BLAKE3 of the manifest, in quotes"),
            ("Accept-Ranges" = String, description = "bytes"),
        )),
        (status = 206, description = "The range", body = Vec<u8>, content_type = "application/octet-stream", headers(
            ("Content-Range" = String, description = "Which bytes these are, and how many the disk has"),
        )),
        (status = 304, description = "The client has it"),
        (status = 416, description = "The disk has no such bytes", body = Problem, content_type = "application/problem+json",
            headers(("Content-Range" = String, description = "How many bytes the disk has"))),
    ))]
pub(super) async fn data(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(backup): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let disk = Disk::open(&app, caller, &backup).await?;
    let (size, tag) = (disk.size(), disk.tag());
    if is_known(&headers, &tag) {
        return Ok(disk.answer(StatusCode::NOT_MODIFIED));
    }
    let is_same = text(&headers, header::IF_RANGE).is_none_or(|known| known.trim() == tag);
    let part =
        text(&headers, header::RANGE).filter(|_| is_same).map_or(Part::All, |range| Part::of(range, size));
    let (mut answer, range) = match part {
        Part::All => (disk.answer(StatusCode::OK), 0..size),
        Part::Of(range) => {
            let mut answer = disk.answer(StatusCode::PARTIAL_CONTENT);
            let told = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            answer.headers_mut().insert(header::CONTENT_RANGE, header_value(&told));
            (answer, range)
        }
        Part::Outside => {
            let refused = Refused::new(Refusal::RangeNotSatisfiable, format!("the disk has {size} bytes"));
            return Ok(refused.with_header(header::CONTENT_RANGE, &format!("bytes */{size}")));
        }
    };
    answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    let busy = || {
        let refused = Refused::new(Refusal::Unavailable, "too many disks are being read");
        refused.retry_after(5)
    };
    let turn = tokio::time::timeout(TURN, Arc::clone(app.disks()).acquire_owned()).await;
    let turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
    let body = pump::body(&app, move |app, out| {
        let _turn = turn;
        let small = disk.manifest.info().geometry.segment_size().bytes() <= TWO_THREADS;
        let is_alone = app.disks().available_permits() + 1 == READ_AT_ONCE;
        let jobs = if small && is_alone { 2 } else { 1 };
        stream_exactly(app.repository(), &disk.manifest, out, range, jobs, &Silent).map_err(refused)
    });
    *answer.body_mut() = body.await?;
    Ok(answer)
}

/// Says what a disk is, without its bytes.
#[utoipa::path(head, path = "/v1/backups/{backup}/data", tag = "restore",
    params(
        ("backup" = String, Path, description = "NAME@NUMBER, NAME@latest, or the backupset's UUID in place of the name"),
        ("If-None-Match" = Option<String>, Header, description = "The ETag of what the client has"),
    ),
    responses(
        (status = 200, description = "The disk's size is the Content-Length", headers(
            ("ETag" = String, description = "The BLAKE3 of the manifest, in quotes"),
            ("Accept-Ranges" = String, description = "bytes"),
        )),
        (status = 304, description = "The client has it"),
    ))]
pub(super) async fn head(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(backup): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let disk = Disk::open(&app, caller, &backup).await?;
    if is_known(&headers, &disk.tag()) {
        return Ok(disk.answer(StatusCode::NOT_MODIFIED));
    }
    let mut answer = disk.answer(StatusCode::OK);
    answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(disk.size()));
    Ok(answer)
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

fn refused(error: RestoreError) -> Refused {
    match error {
        RestoreError::Repository(error) => error.into(),
        error => Refused::internal(Refusal::from(error.kind()), &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        for (text, part) in [
            ("bytes=0-0", Part::Of(0..1)),
            ("bytes=0-99", Part::Of(0..100)),
            ("bytes=10-", Part::Of(10..100)),
            ("bytes=90-1000", Part::Of(90..100)),
            ("Bytes= 5-9 ", Part::Of(5..10)),
            ("bytes=-1", Part::Of(99..100)),
            ("bytes=-1000", Part::Of(0..100)),
            ("bytes=0-99999999999999999999999", Part::Of(0..100)),
            ("bytes=100-", Part::Outside),
            ("bytes=99999999999999999999999-", Part::Outside),
            ("bytes=-0", Part::Outside),
        ] {
            assert_eq!(Part::of(text, 100), part, "{text}");
        }
        for text in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=5-4",
            "bytes=a-b",
            "bytes=0-1,5-6",
            "lines=0-1",
            "bytes=+1-2",
        ] {
            assert_eq!(Part::of(text, 100), Part::All, "{text}");
        }
        assert_eq!(Part::of("bytes=0-", 0), Part::Outside);
        assert_eq!(Part::of("bytes=-5", 0), Part::Outside);
    }

    #[test]
    fn what_a_client_has_is_recognized() {
        let headers = |value: &'static str| {
            HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::from_static(value))])
        };
        for known in ["\"a\"", "*", "\"b\", \"a\"", "W/\"a\""] {
            assert!(is_known(&headers(known), "\"a\""), "{known}");
        }
        assert!(!is_known(&headers("\"b\", a"), "\"a\"") && !is_known(&HeaderMap::new(), "\"a\""));
    }
}
