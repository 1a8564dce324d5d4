//! Hostile manifests: whatever the bytes are, reading ends in an error or in answers that agree with each other.
//!
//! The fuzzer's bytes are tried as they are, and as the body of a manifest whose header and checksums fit, so that
//! the archive's checks are reached; a part of the inputs changes a body that was good.
#![no_main]

mod shared;

use std::sync::LazyLock;

use ekko::manifest::ManifestReader;
use ekko::segment::{Fingerprint, SegmentIndex};
use libfuzzer_sys::fuzz_target;

const HEADER: usize = 128;

struct Fixture {
    folder: tempfile::TempDir,
    good: Vec<u8>,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let folder = shared::folder();
    let path = folder.path().join("good");
    shared::write_manifest(&path, 2, vec![("key".to_owned(), b"value".to_vec())]);
    let good = std::fs::read(&path).unwrap();
    Fixture { folder, good }
});

fn try_file(bytes: &[u8]) {
    let path = FIXTURE.folder.path().join("input");
    std::fs::write(&path, bytes).unwrap();
    let Ok(manifest) = ManifestReader::read(&path) else { return };
    let segments: Vec<_> = manifest.segments().collect();
    assert_eq!(segments.len(), manifest.present() as usize);
    assert!(segments.is_sorted_by(|a, b| a.0 < b.0));
    let all = manifest.info().geometry.segments();
    let mut cursor = manifest.cursor(SegmentIndex(0));
    let mut expected = segments.iter().peekable();
    for place in (0..all.min(1 << 12)).map(SegmentIndex) {
        let there = expected.next_if(|(index, _)| *index == place).map(|(_, segment)| *segment);
        assert_eq!(cursor.at(place), there);
        assert_eq!(manifest.lookup(place), there);
    }
    assert!(manifest.lookup(SegmentIndex(all)).is_none());
    assert!(manifest.lookup(SegmentIndex(u32::MAX)).is_none());
}

/// Puts a header before a body that fits it.
fn with_header(body: &[u8]) -> Vec<u8> {
    let mut file = FIXTURE.good[..24].to_vec();
    file.extend((body.len() as u64).to_le_bytes());
    file.extend(Fingerprint::of(body).as_bytes());
    file.resize(96, 0);
    let checksum = Fingerprint::of(&file);
    file.extend(checksum.as_bytes());
    file.extend(body);
    file
}

fuzz_target!(|input: (u8, Vec<(u16, u8)>, &[u8])| {
    let (kind, changes, bytes) = input;
    match kind % 3 {
        0 => try_file(bytes),
        1 => try_file(&with_header(bytes)),
        _ => {
            let mut body = FIXTURE.good[HEADER..].to_vec();
            for (at, value) in changes {
                let at = usize::from(at) % body.len();
                body[at] = value;
            }
            body.extend(bytes.iter().take(64));
            try_file(&with_header(&body));
        }
    }
});
