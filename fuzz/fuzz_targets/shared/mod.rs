//! What several targets share.
#![allow(dead_code, reason = "each target uses a part of it")]

use std::path::{Path, PathBuf};

use ekko::manifest::{
    BackupsetId, BaseIndex, ImageName, Incremental, ManifestInfo, ManifestWriter, SegmentRef,
};
use ekko::segment::{Geometry, SegmentHash, SegmentIndex, SegmentKey, SegmentSize, Twin};
use ekko::storage::OsStorage;
use ekko::store::in_guarded_call;

/// Returns where files are made: in memory, if that is possible.
pub fn place() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

/// Makes a folder there.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(place()).unwrap()
}

/// Says of which backup a manifest is.
pub fn info(size_of_disk: u64, segment_size: u64) -> ManifestInfo {
    ManifestInfo {
        backupset: BackupsetId::from_bytes([1; 16]),
        incremental: Incremental(3),
        name: ImageName::new("web").unwrap(),
        geometry: Geometry::new(size_of_disk, SegmentSize::new(segment_size).unwrap()).unwrap(),
        timestamp: "2026-01-02T03:04:05Z".parse().unwrap(),
        bases: Vec::new(),
        attributes: Vec::new(),
    }
}

/// Writes a manifest of ten places and one base, of which five have a segment. One of those has this twin number.
pub fn write_manifest(path: &Path, twin: u16, attributes: Vec<(String, Vec<u8>)>) {
    let bases = vec![BackupsetId::from_bytes([2; 16])];
    let info = ManifestInfo { bases, attributes, ..info(10 << 16, 1 << 16) };
    let mut writer = ManifestWriter::create(&OsStorage, path, info).unwrap();
    for (place, incremental, base, twin) in
        [(0, 3, 0, 0), (1, 3, 0, 0), (4, 1, 1, 0), (5, 1, 1, twin), (9, 0, 0, 0)]
    {
        let segment = SegmentRef {
            key: SegmentKey { hash: SegmentHash::from_bytes([place as u8; 20]), twin: Twin(twin) },
            incremental: Incremental(incremental),
            base: BaseIndex(base),
        };
        writer.push(SegmentIndex(place), &segment).unwrap();
    }
    writer.finish().unwrap();
}

/// Ends the process at any panic, as the fuzzer's own hook does, but for those inside sled: the store catches them.
pub fn pass_over_panics_of_sled() {
    let fatal = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !in_guarded_call() {
            fatal(panic);
        }
    }));
}
