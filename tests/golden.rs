//! Golden repositories: one for every released format, as that release wrote it. They are never made anew.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Noise, Told, backup, copy_folder, files_below, open, restore};
use ekko::error::ErrorKind;
use ekko::repository::{BackupSelector, Repository};
use ekko::segment::Fingerprint;

/// The formats that have been released.
const FORMATS: [u32; 1] = [1];

fn golden(format: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/format-{format}"))
}

fn copy(format: u32) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    copy_folder(&golden(format).join("store"), &root);
    // Folders without files are not kept by the source's repository.
    (folder, root)
}

/// The backups of a golden repository: name, size, SHA-256.
fn expected(format: u32) -> Vec<(String, usize, String)> {
    let text = fs::read_to_string(golden(format).join("expected")).unwrap();
    let fields = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    text.lines()
        .map(fields)
        .map(|field| (field[0].clone(), field[1].parse().unwrap(), field[2].clone()))
        .collect()
}

fn restored(repository: &Repository, name: &str) -> Vec<u8> {
    let (sets, problems) = repository.backupsets().unwrap();
    assert!(problems.is_empty());
    let (set, record) = repository.find(&sets, &name.parse::<BackupSelector>().unwrap()).unwrap();
    let (bytes, summary) = restore(repository, set, record);
    assert!(summary.damaged.is_empty(), "{name}: {:?}", summary.damaged);
    bytes
}

fn check_all(repository: &Repository, format: u32) {
    let expected = expected(format);
    assert!(expected.len() >= 6);
    for (name, size, sha256) in expected {
        let bytes = restored(repository, &name);
        assert_eq!(bytes.len(), size, "{name}");
        assert_eq!(sha256_of(&bytes), sha256, "{name}");
    }
}

fn sha256_of(bytes: &[u8]) -> String {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut command = Command::new("sha256sum");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()[..64].to_owned()
}

#[test]
fn no_golden_repository_is_forgotten() {
    let folders = fs::read_dir(golden(1).parent().unwrap()).unwrap();
    let mut found: Vec<_> = folders
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_prefix("format-")?.parse::<u32>().ok())
        .collect();
    found.sort_unstable();
    assert_eq!(found, FORMATS);
}

#[test]
fn every_backup_of_every_format_restores_without_an_index() {
    for format in FORMATS {
        let (_folder, root) = copy(format);
        check_all(&Repository::open(&root).unwrap(), format);
    }
}

#[test]
fn hash_lists_are_as_they_were() {
    for format in FORMATS {
        let repository = Repository::open(&golden(format).join("store")).unwrap();
        let (sets, _) = repository.backupsets().unwrap();
        let mut lists = 0;
        for path in files_below(&golden(format)) {
            let Some(name) = path.file_name().unwrap().to_str().unwrap().strip_suffix(".hashes") else {
                continue;
            };
            let (set, record) = repository.find(&sets, &name.parse::<BackupSelector>().unwrap()).unwrap();
            let manifest = repository.manifest(set, record).unwrap();
            let hashes: Vec<_> =
                manifest.segments().map(|(_, segment)| segment.key.hash.to_string()).collect();
            let listed = hashes.join("\n") + "\n";
            assert_eq!(listed, fs::read_to_string(&path).unwrap(), "{name}");
            lists += 1;
        }
        assert_eq!(lists, 2);
    }
}

#[test]
fn a_repository_of_every_format_can_be_added_to() {
    for format in FORMATS {
        let (_folder, root) = copy(format);
        let told = Told::default();
        let writer = open(&root, &told);
        assert_eq!((told.rebuilds(), told.problems()), (1, Vec::new()));
        let old = restored(writer.repository(), "web");
        let (writer, summary) = backup(writer, "web", &old, &told);
        assert_eq!(summary.stats.new_segments + summary.stats.deduplicated_segments, 0, "it is what it was");
        let disk = Noise::new(1).bytes(100_000);
        let (writer, summary) = backup(writer, "new", &disk, &told);
        assert_eq!(summary.stats.new_segments, 2);
        assert_eq!(restored(writer.repository(), "new"), disk);
        // `web@0` and the others mean what they meant.
        check_all(writer.repository(), format);
        writer.close().unwrap();
    }
}

#[test]
fn packs_and_manifests_of_a_newer_format_are_refused_as_such() {
    let (_folder, root) = copy(1);
    let repository = Repository::open(&root).unwrap();
    let (sets, _) = repository.backupsets().unwrap();
    let set = sets.iter().find(|set| !set.backups.is_empty()).unwrap();
    // A manifest: its format is at 16, the checksum of its first 96 bytes at 96.
    let path = root.join(format!("manifests/{}/{}", set.id, set.backups[0].incremental));
    let mut bytes = fs::read(&path).unwrap();
    bytes[16] = 2;
    let checksum = Fingerprint::of(&bytes[..96]);
    bytes[96..128].copy_from_slice(checksum.as_bytes());
    fs::write(&path, bytes).unwrap();
    let error = repository.manifest(set, &set.backups[0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("format 2"), "{error}");
    // A pack: its format is at 8, the checksum of its first 224 bytes at 224, and all of it again at 4096.
    let path = files_below(&root.join("packs")).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    for copy in [0, 4096] {
        bytes[copy + 8] = 2;
        let checksum = Fingerprint::of(&bytes[copy..copy + 224]);
        bytes[copy + 224..copy + 256].copy_from_slice(checksum.as_bytes());
    }
    fs::write(&path, bytes).unwrap();
    let error = repository.catalog().unwrap().for_each_segment(|_, _| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("format 2"), "{error}");
}
