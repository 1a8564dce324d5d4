//! One caller who reads and sends slowly, as often as they may: everybody else is served all the same.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ekko::api::frames::{Entry, SegmentHead};
use ekko::segment::{Fingerprint, SegmentHash, SegmentIndex, SegmentKey, Twin};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::harness::{Served, disk, ekko_done, start, until};
use crate::tokens::{token, two_projects};

/// The size of a segment, so that a few uploads would fill the memory for uploads.
const SEGMENT: usize = 4 << 20;
/// All slow clients are let in, and who waits in vain is told so soon.
const LIMITS: &str = "[limits]\nrequests = 1024\nrequests_per_caller = 512\nconnections_per_address = 1024\nwait_seconds = 2\n";
/// The size of an entry that names a segment, at most.
const PART: usize = 1 << 14;

/// A link that hides little of a slow client: small segments of TCP, and hardly any buffer on the client's side.
fn narrow(served: &Served) -> TcpStream {
    let address: SocketAddr = served.address.strip_prefix("http://").unwrap().parse().unwrap();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_tcp_mss(1400).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.set_send_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream: TcpStream = socket.into();
    stream.set_nonblocking(true).unwrap();
    stream
}

/// Asks, and fails if there is no answer in ten seconds.
fn ask(served: &Served, method: &str, path: &str, token: &str, body: Option<&[u8]>) -> (u16, Vec<u8>) {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(10)));
    let request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", served.address));
    let request = request.header("Authorization", format!("Bearer {token}"));
    let request = request.header("Content-Type", "application/json");
    let agent = config.build().new_agent();
    let response = match body {
        Some(body) => agent.run(request.body(body).unwrap()),
        None => agent.run(request.body(()).unwrap()),
    };
    let mut response = response.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
    let status = response.status().as_u16();
    (status, response.body_mut().with_config().limit(1 << 30).read_to_vec().unwrap())
}

fn begin(served: &Served, token: &str, name: &str, size: u64) -> String {
    let new = json!({ "name": name, "size_of_disk": size, "format": "raw" }).to_string();
    let (status, body) = ask(served, "POST", "/v1/sessions", token, Some(new.as_bytes()));
    assert_eq!(status, 201, "{}", String::from_utf8_lossy(&body));
    let state: Value = serde_json::from_slice(&body).unwrap();
    state["session"].as_str().unwrap().to_owned()
}

/// A segment as it is sent, not compressed.
fn frame(plain: &[u8]) -> Vec<u8> {
    let length = u32::try_from(plain.len()).unwrap();
    let head = SegmentHead {
        index: SegmentIndex(0),
        plain_length: length,
        stored_length: length,
        compression: 0,
        encryption: 0,
        key: SegmentKey { hash: SegmentHash::of(plain), twin: Twin(0) },
        fingerprint: Fingerprint::of(plain),
    };
    let mut frame = Vec::new();
    head.encode(&mut frame);
    frame.extend_from_slice(plain);
    frame
}

/// Backs up a disk that has one segment again and again, at every second place: its manifest has megabytes.
fn back_up_a_large_manifest(served: &Served, token: &str, places: u32) {
    let plain = disk(7, SEGMENT);
    let session = begin(served, token, "wide", u64::from(places) * SEGMENT as u64);
    let sent = ask(served, "POST", &format!("/v1/sessions/{session}/segments"), token, Some(&frame(&plain)));
    assert_eq!(sent.0, 204);
    let entries: Vec<_> = (0..places).step_by(2).collect();
    let (hash, fingerprint) = (SegmentHash::of(&plain), Fingerprint::of(&plain));
    for (number, part) in entries.chunks(PART).enumerate() {
        let mut frames = Vec::new();
        for index in part {
            Entry::Segment { index: SegmentIndex(*index), hash, fingerprint }.encode(&mut frames);
        }
        let path = format!("/v1/sessions/{session}/entries?part={number}");
        assert_eq!(ask(served, "POST", &path, token, Some(&frames)).0, 204);
    }
    let parts = entries.len().div_ceil(PART);
    let path = format!("/v1/sessions/{session}/commit?parts={parts}");
    assert_eq!(ask(served, "POST", &path, token, None).0, 200);
}

/// A service whose limits let one caller have many requests under way, with segments of 4 MiB.
fn served() -> Served {
    let mut served = Served::with(&[], |_| {});
    served.stop();
    let repository = served.folder().join("large");
    ekko_done(&repository, &["init", "--segment-size", "4MiB"]);
    let settings = served.folder().join("fair.toml");
    std::fs::write(&settings, LIMITS).unwrap();
    let (child, address) = start(&repository, &["--config", settings.to_str().unwrap()]);
    served.replace(child, address);
    served
}

/// Slow clients, whose links move a few hundred bytes ten times a second until this is over.
fn drip(readers: &mut [TcpStream], writers: &mut [TcpStream], over: &AtomicBool) -> (usize, usize) {
    let mut heads = vec![Vec::new(); readers.len()];
    let mut is_answered = vec![false; writers.len()];
    let some = [1; 400];
    while !over.load(Ordering::Relaxed) {
        for (stream, head) in readers.iter_mut().zip(&mut heads) {
            let mut piece = [0; 400];
            if let Ok(read) = stream.read(&mut piece) {
                head.extend_from_slice(&piece[..read.min(20)]);
            }
        }
        for (stream, is_answered) in writers.iter_mut().zip(&mut is_answered) {
            let _ = stream.write(&some);
            let ended = |result: std::io::Result<usize>| match result {
                Ok(_) => true,
                Err(error) => error.kind() != ErrorKind::WouldBlock,
            };
            *is_answered |= ended(stream.peek(&mut [0]));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    // Those that are in the middle of their answer or their body.
    let reading = heads.iter().filter(|head| head.starts_with(b"HTTP/1.1 20")).count();
    (reading, is_answered.iter().filter(|is_answered| !**is_answered).count())
}

#[test]
fn a_hundred_slow_readers_and_a_hundred_slow_writers_of_one_token_keep_nobody_waiting() {
    let served = served();
    let repository = served.folder().join("large");
    let (slow, other) = (token(&repository, "slow", "backup"), token(&repository, "other", "backup"));
    back_up_a_large_manifest(&served, &slow, 1 << 18);
    let (size, plain) = (SEGMENT as u64, disk(9, SEGMENT));
    let session = begin(&served, &slow, "writes", 100 * size);
    let mut readers: Vec<_> = (0..100).map(|_| narrow(&served)).collect();
    for (number, reader) in readers.iter_mut().enumerate() {
        let what = ["manifest", "data", "manifest", "segments?first=0&behind=9999"][number % 4];
        let request = format!(
            "GET /v1/backups/wide@0/{what} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {slow}\r\n\r\n"
        );
        reader.write_all(request.as_bytes()).unwrap();
    }
    let mut writers: Vec<_> = (0..100).map(|_| narrow(&served)).collect();
    let upload = frame(&plain);
    for writer in &mut writers {
        let head = format!(
            "POST /v1/sessions/{session}/segments HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {slow}\r\n\
             Content-Length: {}\r\n\r\n",
            upload.len()
        );
        writer.write_all(head.as_bytes()).unwrap();
        writer.write_all(&upload[..SegmentHead::LENGTH]).unwrap();
    }
    let over = AtomicBool::new(false);
    let waits = Mutex::new(Vec::new());
    let timed = |what: &'static str, job: &mut dyn FnMut()| {
        let begun = Instant::now();
        job();
        waits.lock().unwrap_or_else(PoisonError::into_inner).push((begun.elapsed(), what));
    };
    let (reading, writing) = std::thread::scope(|scope| {
        let dripping = scope.spawn(|| drip(&mut readers, &mut writers, &over));
        let _stop = Stop(&over);
        std::thread::sleep(Duration::from_secs(1));
        for round in 0..8 {
            timed("list", &mut || assert_eq!(ask(&served, "GET", "/v1/images", &other, None).0, 200));
            let mut session = String::new();
            timed("begin", &mut || session = begin(&served, &other, "web", size));
            let path = format!("/v1/sessions/{session}");
            let upload = frame(&disk(100 + round, SEGMENT));
            timed("upload", &mut || {
                let sent = ask(&served, "POST", &format!("{path}/segments"), &other, Some(&upload));
                assert_eq!(sent.0, 204);
            });
            timed("give up", &mut || assert_eq!(ask(&served, "DELETE", &path, &other, None).0, 204));
            timed("ready", &mut || assert_eq!(ask(&served, "GET", "/readyz", &other, None).0, 200));
            timed("health", &mut || assert_eq!(served.get("/healthz").status, 200));
        }
        over.store(true, Ordering::Relaxed);
        dripping.join().unwrap()
    });
    assert!(reading >= 25, "{reading} readers were in the middle of an answer");
    assert!(writing >= 20, "{writing} writers were in the middle of a body");
    let mut waits = waits.into_inner().unwrap();
    waits.sort();
    assert!(waits[waits.len() / 2].0 < Duration::from_secs(1), "{waits:?}");
    // On a machine that does much else; without shares there is no answer at all.
    assert!(waits.last().unwrap().0 < Duration::from_secs(5), "{waits:?}");
}

/// Ends the slow clients, also if the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn slow_readers_of_disks_leave_room_for_another_project() {
    let served = served();
    let repository = served.folder().join("large");
    let (slow, other) = (token(&repository, "slow", "restore"), token(&repository, "other", "restore"));
    let source = served.folder().join("raw");
    std::fs::write(&source, disk(3, 4 * SEGMENT)).unwrap();
    for project in ["slow", "other"] {
        let backup = format!("{project}:web={}", source.display());
        ekko_done(&repository, &["-q", "backup", &backup]);
    }
    let mut readers: Vec<_> = (0..40).map(|_| narrow(&served)).collect();
    for reader in &mut readers {
        let request =
            format!("GET /v1/backups/web@0/data HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {slow}\r\n\r\n");
        reader.write_all(request.as_bytes()).unwrap();
    }
    let begun = |stream: &TcpStream| stream.peek(&mut [0]).is_ok();
    until("some read", || readers.iter().filter(|stream| begun(stream)).count() >= 5);
    let answer = ask(&served, "GET", "/v1/backups/web@0/data", &other, None);
    assert!(answer.0 == 200 && answer.1 == disk(3, 4 * SEGMENT), "{}", answer.0);
    // Those who got no room are refused in the end, and told to come back.
    let refused = |stream: &TcpStream| {
        let mut head = [0; 12];
        stream.peek(&mut head).is_ok() && &head == b"HTTP/1.1 503"
    };
    until("the others are refused", || readers.iter().any(refused));
}

#[test]
fn probes_are_answered_when_no_more_requests_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("service.toml");
    std::fs::write(&settings, "[limits]\nrequests = 1\n").unwrap();
    let served = Served::with(&["--config", settings.to_str().unwrap()], two_projects);
    let (slow, other) =
        (token(&served.repository(), "blue", "operator"), token(&served.repository(), "red", "restore"));
    let mut stream = narrow(&served);
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {slow}\r\nContent-Type: application/json\r\n\
         Content-Length: 100\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).unwrap();
    until("no more requests are taken", || ask(&served, "GET", "/v1/images", &other, None).0 == 503);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(served.get(path).status, 200, "{path}");
    }
    assert_eq!(served.owner("GET", "/v1/images", &[], None).status, 200);
}
