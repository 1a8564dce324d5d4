//! Hostile OSDK files: whatever the bytes are, an import ends in an error or in a manifest that exports to a file
//! that says the same.
//!
//! The fuzzer's bytes are tried as they are, and as a head and a body whose checksums fit, so that what lies behind
//! them is reached; a part of the inputs changes a file that was good.
#![no_main]

mod shared;

use std::path::Path;
use std::sync::LazyLock;

use ekko::manifest::foreign::{self, ManifestFormat, NoStore, osdk};
use ekko::manifest::{ImageName, ManifestError, ManifestReader};
use ekko::progress::Silent;
use libfuzzer_sys::fuzz_target;

/// Where the head begins.
const HEAD: usize = 28;

struct Fixture {
    folder: tempfile::TempDir,
    good: Vec<u8>,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let folder = shared::folder();
    let path = folder.path().join("manifest");
    shared::write_manifest(&path, 0, Vec::new());
    let out = folder.path().join("good");
    export(&ManifestReader::read(&path).unwrap(), &out).unwrap();
    let good = std::fs::read(out).unwrap();
    Fixture { folder, good }
});

fn export(manifest: &ManifestReader, path: &Path) -> Result<(), ManifestError> {
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
