//! A hostile service: whatever it answers, a restore ends in an error, or writes what the manifest names.
//!
//! The service is a thread behind a socket. It answers with the fuzzer's bytes as they are, or with a document, a manifest
//! and frames that were right and of which the fuzzer changes some bytes.
#![no_main]

mod shared;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use ekko::api::frames::{Entry, ParentSegment, Question, SegmentHead, decode_answer};
use ekko::api::{JobDocument, NewSession, Problem, SessionState, StatusDocument};
use ekko::manifest::{BaseIndex, Incremental, ManifestReader, ManifestWriter, SegmentRef};
use ekko::progress::Silent;
use ekko::remote::{Address, Credentials, RemoteRepository};
use ekko::restore::RestoreOptions;
use ekko::segment::{Fingerprint, SegmentHash, SegmentIndex, SegmentKey, Twin};
use ekko::storage::OsStorage;
use libfuzzer_sys::fuzz_target;

const SIZE: usize = 64 << 10;

struct Fixture {
    folder: tempfile::TempDir,
    address: String,
    /// What the service answers: to the first request, to that for the manifest, and to that for segments.
    answers: Arc<Mutex<[Vec<u8>; 3]>>,
    good: [Vec<u8>; 3],
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let folder = shared::folder();
    let path = folder.path().join("good");
    let info = shared::info(3 * SIZE as u64 + 5, SIZE as u64);
    let details = format!(
        r#"{{"backup":"web@3","name":"web","backupset":"{}","incremental":3,"timestamp":"2026-01-02T03:04:05Z","size_of_disk":{},"segment_size":{SIZE},"segments":4,"present_segments":3,"stored_by_this_backup":3,"bases":[],"tags":[],"protected":false,"note":null,"attributes":{{}},"manifest_bytes":1,"manifest_blake3":""}}"#,
        info.backupset,
        info.geometry.size_of_disk(),
    );
    let mut writer = ManifestWriter::create(&OsStorage, &path, info.clone()).unwrap();
    let mut frames = Vec::new();
    for place in [0, 2, 3] {
        let index = SegmentIndex(place);
        let plain = vec![place as u8 + 1; info.geometry.length(index) as usize];
        let key = SegmentKey { hash: SegmentHash::of(&plain), twin: Twin(0) };
        writer.push(index, &SegmentRef { key, incremental: Incremental(3), base: BaseIndex(0) }).unwrap();
        let length = plain.len() as u32;
        let head = SegmentHead {
            index,
            plain_length: length,
            stored_length: length,
            compression: 0,
            encryption: 0,
            key,
            fingerprint: Fingerprint::of(&plain),
        };
        head.encode(&mut frames);
        frames.extend(plain);
    }
    writer.finish().unwrap();
    let answer = |body: &[u8]| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    let manifest = std::fs::read(&path).unwrap();
    let good = [answer(details.as_bytes()), answer(&manifest), answer(&frames)];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let answers = Arc::new(Mutex::new(good.clone()));
    let shared = Arc::clone(&answers);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = serve(stream, &shared);
        }
    });
    Fixture { folder, address, answers, good }
});

fn serve(mut stream: TcpStream, answers: &Mutex<[Vec<u8>; 3]>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
    }
    let which = if first.contains("/segments?") {
        2
    } else if first.contains("/manifest?") {
        1
    } else {
        0
    };
    let answer = answers.lock().unwrap()[which].clone();
    stream.write_all(&answer)
}

/// Changes bytes of an answer, or takes the fuzzer's in its place.
fn changed(good: &[u8], kind: u8, changes: &[(u32, u8)], bytes: &[u8]) -> Vec<u8> {
    if kind % 4 == 0 {
        return bytes.to_vec();
    }
    let mut changed = good.to_vec();
    for (at, value) in changes {
        let at = *at as usize % changed.len();
        changed[at] = *value;
    }
    if kind % 4 == 1 {
        changed.truncate(bytes.len() * 997 % (good.len() + 1));
    }
    changed
}

fn frames_and_documents(bytes: &[u8]) {
    let _ = (Question::decode_all(bytes), Entry::decode_all(bytes), SegmentHead::decode(bytes));
    let _ = decode_answer(bytes, bytes.len() * 8);
    if let Ok(segments) = ParentSegment::decode_range(bytes, 5..100) {
        assert!(segments.is_sorted_by_key(|segment| segment.index));
        assert!(segments.iter().all(|segment| (5..100).contains(&segment.index.0)));
    }
    let _ = serde_json::from_slice::<Problem>(bytes);
    let _ = serde_json::from_slice::<SessionState>(bytes);
    let _ = serde_json::from_slice::<NewSession>(bytes);
    let _ = serde_json::from_slice::<JobDocument>(bytes);
    let _ = serde_json::from_slice::<StatusDocument>(bytes);
}

fuzz_target!(|input: (u8, u8, Vec<(u32, u8)>, &[u8])| {
    let (which, kind, changes, bytes) = input;
    frames_and_documents(bytes);
    let Fixture { folder, address, answers, good } = &*FIXTURE;
    let mut lies = good.clone();
    let lie = usize::from(which % 3);
    lies[lie] = changed(&good[lie], kind, &changes, bytes);
    *answers.lock().unwrap() = lies;
    let address = Address::of_url(address);
    let (credentials, patience) = (Credentials::default(), Duration::from_secs(30));
    let remote = RemoteRepository::without_patience(address, &credentials, Arc::new(Silent), patience).unwrap();
    let target = folder.path().join("out");
    let _ = std::fs::remove_file(&target);
    let options =
        RestoreOptions { jobs: 1, force: true, sync: false, ..RestoreOptions::default() };
    let Ok(manifest) = remote.manifest("web") else { return };
    let Ok(summary) = remote.restore(&manifest, &target, &options, &Silent) else { return };
    let written = std::fs::read(&target).unwrap();
    check(&manifest, &written, &summary.damaged.iter().map(|one| one.index.0).collect::<Vec<_>>());
});

/// All that was written is what the manifest names, or zeros.
fn check(manifest: &ManifestReader, written: &[u8], damaged: &[u32]) {
    let geometry = manifest.info().geometry;
    assert_eq!(written.len() as u64, geometry.size_of_disk());
    for index in (0..geometry.segments()).map(SegmentIndex) {
        let start = geometry.offset(index) as usize;
        let plain = &written[start..start + geometry.length(index) as usize];
        match manifest.lookup(index) {
            Some(segment) if !damaged.contains(&index.0) => assert_eq!(SegmentHash::of(plain), segment.key.hash),
            _ => assert!(plain.iter().all(|byte| *byte == 0)),
        }
    }
}
