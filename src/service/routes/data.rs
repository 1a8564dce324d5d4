//! A disk's bytes, whole or by range: `curl` can restore a disk.

use std::future::{Ready, ready};
use std::ops::Range;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::future::Either;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::api::{Problem, Refusal};
use crate::manifest::ManifestReader;
use crate::progress::Silent;
use crate::restore::{RangePart, RangeReader, RangeWindow, RestoreError};
use crate::service::extract::Path;
use crate::service::limits::Held;
use crate::service::routes::backups::selector;
use crate::service::work::{Running, disk_reader, units};
use crate::service::{App, Caller, Refused, pump};

/// Up to this size of a segment, two threads fetch for a disk that is read alone.
const TWO_THREADS: u32 = 4 << 20;
/// What the zeros of a disk are sent from.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// A disk that is asked for.
struct Disk {
    manifest: ManifestReader,
    backup: String,
}

impl Disk {
    async fn open(app: &Arc<App>, caller: &Caller, backup: &str) -> Result<Self, Refused> {
        let asked = selector(backup)?;
        app.blocking(caller, move |app, caller| {
            let repository = app.repository();
            let seen = caller.view.sets(repository)?.0;
            let (set, backup) = caller.view.find(repository, &seen, &asked)?;
            let manifest = repository.manifest(set, backup)?;
            Ok(Self { manifest, backup: caller.view.backup_id(set, backup) })
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
    let disk = Disk::open(&app, &caller, &backup).await?;
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
    *answer.body_mut() = body(&app, &caller, disk.manifest, range).await?;
    Ok(answer)
}

/// A part of the answer, before it is read.
enum Piece {
    Zeros(usize),
    Segments(Arc<RangeWindow>, Range<usize>),
}

/// What came of reading a piece: its bytes up to a damaged segment, and that failure.
type Read = Vec<Result<Bytes, Refused>>;

/// The parts of a range that are still to be sent.
struct Parts<W> {
    windows: W,
    window: Option<Arc<RangeWindow>>,
    /// The number of the next part of the window.
    next: usize,
    /// Zeros of the part before it.
    zeros: u64,
}

impl<W: Iterator<Item = Range<u32>>> Parts<W> {
    async fn next(
        mut self,
        app: Arc<App>,
        caller: Caller,
        reader: Arc<RangeReader>,
    ) -> Result<Option<(Piece, Self)>, Refused> {
        loop {
            if self.zeros > 0 {
                let length = usize::try_from(self.zeros).unwrap_or(ZEROS.len()).min(ZEROS.len());
                self.zeros -= length as u64;
                return Ok(Some((Piece::Zeros(length), self)));
            }
            let part = self.window.as_ref().and_then(|window| Some((window, window.parts().get(self.next)?)));
            match part {
                Some((_, RangePart::Zeros(zeros))) => {
                    self.zeros = *zeros;
                    self.next += 1;
                }
                Some((window, RangePart::Segments(numbers))) => {
                    let piece = Piece::Segments(Arc::clone(window), numbers.clone());
                    self.next += 1;
                    return Ok(Some((piece, self)));
                }
                None => {
                    // The plan of one window is large: it goes before the next one is made.
                    self.window = None;
                    let Some(window) = self.windows.next() else { return Ok(None) };
                    let reader = Arc::clone(&reader);
                    let plan =
                        app.blocking(&caller, move |_, _| reader.window(window, &Silent).map_err(refused));
                    (self.window, self.next) = (Some(Arc::new(plan.await?)), 0);
                }
            }
        }
    }
}

/// Returns the body of a range. A failure before its first piece is a refusal.
async fn body(
    app: &Arc<App>,
    caller: &Caller,
    manifest: ManifestReader,
    range: Range<u64>,
) -> Result<Body, Refused> {
    let geometry = manifest.info().geometry;
    let (segment, plan) = (geometry.segment_size().bytes(), RangeReader::plan_bytes(geometry, &range));
    let reading = &app.work().reading;
    let jobs = if segment <= TWO_THREADS && reading.taken() == 0 { 2 } else { 1 };
    let memory = reading.take(&caller.who, units(disk_reader(geometry.segment_size(), jobs, plan))).await?;
    let open = move |app: &Arc<App>, _: &Caller| {
        RangeReader::open(app.repository(), manifest, range).map(Arc::new).map_err(refused)
    };
    let reader = app.blocking(caller, open).await?;
    let parts = Parts { windows: reader.windows(), window: None, next: 0, zeros: 0 };
    let (app, caller) = (Arc::clone(app), caller.clone());
    let pieces = {
        let (app, caller, reader) = (Arc::clone(&app), caller.clone(), Arc::clone(&reader));
        stream::try_unfold(parts, move |parts| {
            parts.next(Arc::clone(&app), caller.clone(), Arc::clone(&reader))
        })
    };
    // Each piece is read by a job of its own, which begins before it is looked at; `jobs` of them at a time.
    let read = move |piece| -> Either<Ready<Result<Read, Refused>>, Running<Read>> {
        match piece {
            Piece::Zeros(length) => {
                Either::Left(ready(Ok(vec![Ok(Bytes::from_static(&ZEROS).slice(..length))])))
            }
            Piece::Segments(window, numbers) => {
                let reader = Arc::clone(&reader);
                Either::Right(app.blocking(&caller, move |_, _| {
                    let (bytes, result) = reader.read(&window, numbers);
                    let bytes = (!bytes.is_empty()).then(|| Ok(bytes.into()));
                    Ok(bytes.into_iter().chain(result.err().map(|error| Err(refused(error)))).collect())
                }))
            }
        }
    };
    let pieces = pieces.map_ok(read).try_buffered(jobs).map_ok(stream::iter::<Read>).try_flatten();
    let mut pieces = Box::pin(pieces);
    let Some(first) = pieces.next().await else { return Ok(Body::empty()) };
    let pieces = stream::once(ready(Ok(first?))).chain(pieces);
    Ok(Body::new(Held::new(pump::cut_at_a_failure(pieces), memory)))
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
    let disk = Disk::open(&app, &caller, &backup).await?;
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
