//! Hostile OSDK files: whatever the bytes are, an import ends in an error or in a manifest that exports to a file
//! that says the same.
//!
//! The fuzzer's bytes are tried as they are, and as a head and a body whose checksums fit, so that what lies behind
//! them is reached; a part of the inputs changes a file that was good.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use ekko::manifest::foreign::{self, ManifestFormat, NoStore, osdk};
use ekko::manifest::{
    BackupsetId, BaseIndex, ImageName, Incremental, ManifestError, ManifestInfo, ManifestReader, ManifestWriter,
    SegmentRef,
};
use ekko::progress::Silent;
use ekko::segment::{Geometry, SegmentHash, SegmentIndex, SegmentKey, SegmentSize, Twin};
use ekko::storage::OsStorage;
use libfuzzer_sys::fuzz_target;

/// Where the head begins.
const HEAD: usize = 28;

struct Fixture {
    folder: tempfile::TempDir,
    good: Vec<u8>,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let folder = tempfile::tempdir_in(if PathBuf::from("/dev/shm").is_dir() { "/dev/shm" } else { "." }).unwrap();
    let path = folder.path().join("manifest");
    let info = ManifestInfo {
        backupset: BackupsetId::from_bytes([1; 16]),
        incremental: Incremental(3),
        name: ImageName::new("web").unwrap(),
        geometry: Geometry::new(10 << 16, SegmentSize::new(1 << 16).unwrap()).unwrap(),
        timestamp: "2026-01-02T03:04:05Z".parse().unwrap(),
        bases: vec![BackupsetId::from_bytes([2; 16])],
        attributes: Vec::new(),
    };
    let mut writer = ManifestWriter::create(&OsStorage, &path, info).unwrap();
    for (place, incremental, base) in [(0, 3, 0), (1, 3, 0), (4, 1, 1), (5, 1, 1), (9, 0, 0)] {
        let segment = SegmentRef {
            key: SegmentKey { hash: SegmentHash::from_bytes([place as u8; 20]), twin: Twin(0) },
            incremental: Incremental(incremental),
            base: BaseIndex(base),
        };
        writer.push(SegmentIndex(place), &segment).unwrap();
    }
    writer.finish().unwrap();
    let out = folder.path().join("good");
    export(&ManifestReader::read(&path).unwrap(), &out).unwrap();
    let good = std::fs::read(out).unwrap();
    Fixture { folder, good }
});

fn export(manifest: &ManifestReader, path: &PathBuf) -> Result<(), ManifestError> {
    osdk::export::<ManifestError>(manifest, path, true, &mut NoStore, &Silent)
}

fn try_file(bytes: &[u8]) {
    let at = |name: &str| FIXTURE.folder.path().join(name);
    std::fs::write(at("input"), bytes).unwrap();
    let name = ImageName::new("web").unwrap();
    let import = |from: &str, to: &str| {
        foreign::import(&at(from), ManifestFormat::Osdk, &name, &at(to), true, &Silent)
            .map(|()| ManifestReader::read(&at(to)).unwrap())
    };
    let Ok(first) = import("input", "first") else { return };
    first.verify().unwrap();
    let segments = first.info().geometry.segments();
    assert!(first.segments().all(|(index, _)| index.0 < segments));
    export(&first, &at("again")).unwrap();
    let second = import("again", "second").unwrap();
    assert_eq!(first.fingerprint(), second.fingerprint());
}

/// Makes both checksums fit.
fn with_checksums(mut file: Vec<u8>) -> Vec<u8> {
    let bases = file.get(HEAD + 20..HEAD + 22).map_or(0, |bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])));
    let end = (HEAD + 36 + 16 * bases).min(file.len());
    let body = (end + 16).min(file.len());
    if end > HEAD {
        let sums = [crc32fast::hash(&file[HEAD..end]), crc32fast::hash(&file[body..])];
        file[20..24].copy_from_slice(&sums[0].to_le_bytes());
        file[24..28].copy_from_slice(&sums[1].to_le_bytes());
    }
    file
}

fuzz_target!(|input: (u8, Vec<(u16, u8)>, &[u8])| {
    let (kind, changes, bytes) = input;
    match kind % 3 {
        0 => try_file(bytes),
        1 => try_file(&with_checksums([&FIXTURE.good[..HEAD], bytes].concat())),
        _ => {
            let mut file = FIXTURE.good.clone();
            for (at, value) in changes {
                let at = usize::from(at) % file.len();
                file[at] = value;
            }
            file.extend(bytes.iter().take(64));
            try_file(&with_checksums(file));
        }
    }
});
