//! The bytes of disks, over HTTP.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::harness::{Answer, Served, disk, ekko_done, until};

fn with_web(bytes: &[u8]) -> Served {
    Served::with(&[], |repository| {
        let source = repository.with_extension("raw");
        std::fs::write(&source, bytes).unwrap();
        ekko_done(repository, &["backup", &format!("web={}", source.display())]);
    })
}

fn part(served: &Served, headers: &[(&str, &str)]) -> Answer {
    served.owner("GET", "/v1/backups/web@0/data", headers, None)
}

#[test]
fn a_disk_comes_whole_and_by_ranges() {
    let bytes = disk(1, 300_001);
    let served = with_web(&bytes);
    let whole = part(&served, &[]);
    assert_eq!((whole.status, whole.body == bytes), (200, true));
    assert_eq!(whole.headers["content-length"], "300001");
    assert_eq!(whole.headers["content-type"], "application/octet-stream");
    assert_eq!(whole.headers["accept-ranges"], "bytes");
    assert_eq!(whole.headers["content-disposition"], "attachment; filename=\"web-0.raw\"");
    for (range, told, expected) in [
        ("bytes=0-0", "bytes 0-0/300001", 0..1),
        ("bytes=65535-65536", "bytes 65535-65536/300001", 65_535..65_537),
        ("bytes=100000-", "bytes 100000-300000/300001", 100_000..300_001),
        ("bytes=-7", "bytes 299994-300000/300001", 299_994..300_001),
        ("bytes=299990-999999999", "bytes 299990-300000/300001", 299_990..300_001),
    ] {
        let answer = part(&served, &[("Range", range)]);
        assert_eq!((answer.status, answer.header("content-range")), (206, told), "{range}");
        assert!(answer.body == bytes[expected], "{range}");
    }
    for range in ["bytes=300001-", "bytes=-0"] {
        let answer = part(&served, &[("Range", range)]);
        assert_eq!((answer.status, answer.header("content-range")), (416, "bytes */300001"), "{range}");
        assert_eq!(answer.kind(), "range_not_satisfiable");
    }
    for range in ["bytes=5-4", "bytes=0-1,3-4", "pages=1-2"] {
        assert_eq!(part(&served, &[("Range", range)]).status, 200, "{range}");
    }
}

#[test]
fn what_a_client_has_is_not_sent_and_a_range_of_another_disk_is_not_mixed_in() {
    let served = with_web(&disk(2, 200_000));
    let head = served.owner("HEAD", "/v1/backups/web/data", &[], None);
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, "200000", 0));
    let tag = head.header("etag").to_owned();
    let shown = served.owner("GET", "/v1/backups/web", &[], None).json();
    assert_eq!(tag, format!("\"{}\"", shown["manifest_blake3"].as_str().unwrap()));
    for method in ["GET", "HEAD"] {
        let answer = served.owner(method, "/v1/backups/web/data", &[("If-None-Match", &tag)], None);
        assert_eq!((answer.status, answer.header("etag"), answer.body.len()), (304, tag.as_str(), 0));
    }
    let range = ("Range", "bytes=0-9");
    assert_eq!(part(&served, &[range, ("If-Range", &tag)]).status, 206);
    assert_eq!(part(&served, &[range, ("If-Range", "\"another\"")]).status, 200);
    assert_eq!(part(&served, &[range, ("If-Range", "Sat, 29 Oct 1994 19:43:31 GMT")]).status, 200);
}

#[test]
fn an_empty_disk_and_zeros_are_disks_too() {
    let served = with_web(&[]);
    let answer = part(&served, &[]);
    assert_eq!((answer.status, answer.header("content-length"), answer.body.len()), (200, "0", 0));
    assert_eq!(part(&served, &[("Range", "bytes=0-")]).status, 416);
    let zeros = vec![0; 1_000_000];
    let served = with_web(&zeros);
    assert!(part(&served, &[]).body == zeros);
}

#[test]
fn a_damaged_segment_ends_the_answer_and_no_zeros_are_given_for_it() {
    let bytes = disk(3, 1 << 20);
    let served = Served::with(&[], |repository| {
        let source = repository.with_extension("raw");
        std::fs::write(&source, &bytes).unwrap();
        ekko_done(repository, &["backup", "--compression", "none", &format!("web={}", source.display())]);
        let packs = std::fs::read_dir(repository.join("packs")).unwrap();
        let pack = packs.map(|entry| entry.unwrap().path()).max_by_key(|path| path.metadata().unwrap().len());
        let pack = pack.unwrap();
        let mut stored = std::fs::read(&pack).unwrap();
        // Within the segment of the bytes from 8 x 64 KiB on.
        let wanted = &bytes[8 << 16..(8 << 16) + 64];
        let at = stored.windows(64).position(|window| window == wanted).unwrap();
        stored[at + 30] ^= 1;
        std::fs::write(&pack, stored).unwrap();
    });
    // What lies before it comes, and nothing of it: the rest is missing, and the link is cut.
    let raw = served.raw("GET /v1/backups/web@0/data HTTP/1.1\r\nHost: ekko\r\nConnection: close\r\n\r\n");
    let text = String::from_utf8_lossy(&raw[..1000]).into_owned();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("content-length: 1048576"), "{text}");
    let body = text.find("\r\n\r\n").unwrap() + 4;
    let came = &raw[body..];
    assert!(came.len() <= 8 << 16, "{} bytes came", came.len());
    assert!(*came == bytes[..came.len()], "what came is right");
    // A range that begins with it is refused as a whole; others come.
    let refused = part(&served, &[("Range", "bytes=524288-524289")]);
    assert_eq!((refused.status, refused.kind().as_str()), (500, "corrupt"));
    assert!(!String::from_utf8_lossy(&refused.body).contains('/'), "no path is told");
    let after = part(&served, &[("Range", "bytes=589824-")]);
    assert!(after.status == 206 && after.body == bytes[589_824..]);
}

#[test]
fn a_client_that_goes_ends_the_reading() {
    let served = with_web(&disk(4, 64 << 20));
    for _ in 0..12 {
        let mut stream = UnixStream::connect(served.socket()).unwrap();
        stream.write_all(b"GET /v1/backups/web@0/data HTTP/1.1\r\nHost: ekko\r\n\r\n").unwrap();
        let mut begin = vec![0; 20_000];
        stream.read_exact(&mut begin).unwrap();
    }
    // More than are read at a time have gone; the next one has its turn all the same.
    assert!(part(&served, &[("Range", "bytes=5-9")]).body == disk(4, 64 << 20)[5..10]);
    until("every thread is free", || served.metric("ekko_threads_busy") <= 1.0);
}

#[test]
fn a_client_that_takes_nothing_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("ekko.toml");
    std::fs::write(&settings, "[limits]\nbody_seconds = 1\n").unwrap();
    let served = Served::with(&["--config", settings.to_str().unwrap()], |repository| {
        let source = repository.with_extension("raw");
        std::fs::write(&source, disk(6, 32 << 20)).unwrap();
        ekko_done(repository, &["backup", &format!("web={}", source.display())]);
    });
    let mut stream = UnixStream::connect(served.socket()).unwrap();
    stream.write_all(b"GET /v1/backups/web@0/data HTTP/1.1\r\nHost: ekko\r\n\r\n").unwrap();
    stream.read_exact(&mut [0; 100]).unwrap();
    until("no thread waits for it", || served.metric("ekko_threads_busy") <= 1.0);
    // Longer than it may take nothing.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < 32 << 20, "it did not get all");
}

#[test]
fn sixteen_clients_read_at_once_and_each_gets_its_disk() {
    let bytes = disk(5, 4 << 20);
    let served = with_web(&bytes);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert!(part(&served, &[]).body == bytes));
        }
    });
}
