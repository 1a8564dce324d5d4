//! Hostile SQLite files: whatever the bytes are, an import ends in an error or in a manifest that exports to a file
//! that says the same.
//!
//! The fuzzer's bytes are tried as they are, and as changes to a file that was good. (SQLite's own code is not
//! instrumented; what is looked for is what it lets through.)
#![no_main]

mod shared;

use std::sync::LazyLock;

use ekko::manifest::foreign::{self, ManifestFormat, NoStore, sqlite};
use ekko::manifest::{ImageName, ManifestError, ManifestReader};
use ekko::progress::Silent;
use libfuzzer_sys::fuzz_target;

static GOOD: &[u8] = include_bytes!("../../tests/data/original/manifest.sqlite");

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(shared::folder);

fn try_file(bytes: &[u8]) {
    let at = |name: &str| FOLDER.path().join(name);
    std::fs::write(at("input"), bytes).unwrap();
    let name = ImageName::new("web").unwrap();
    let import = |from: &str, to: &str| {
        foreign::import(&at(from), ManifestFormat::Sqlite, &name, &at(to), true, &Silent)
            .map(|()| ManifestReader::read(&at(to)).unwrap())
    };
    let Ok(first) = import("input", "first") else { return };
    let segments = first.info().geometry.segments();
    assert!(first.segments().all(|(index, _)| index.0 < segments));
    sqlite::export::<ManifestError>(&first, &at("again"), true, &mut NoStore, &Silent).unwrap();
    let second = import("again", "second").unwrap();
    assert_eq!(first.fingerprint(), second.fingerprint());
}

fuzz_target!(|input: (bool, Vec<(u16, u8)>, &[u8])| {
    let (whole, changes, bytes) = input;
    if whole {
        return try_file(bytes);
    }
    let mut file = GOOD.to_vec();
    for (at, value) in changes {
        let at = usize::from(at) % file.len();
        file[at] = value;
    }
    try_file(&file);
});
