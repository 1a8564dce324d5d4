//! A restore from a service that fails, or lies about a disk.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use crate::api::BackupDetails;
use crate::api::frames::SegmentHead;
use crate::manifest::{
    BackupsetId, BaseIndex, ImageName, Incremental, ManifestInfo, ManifestReader, ManifestWriter, SegmentRef,
};
use crate::progress::Silent;
use crate::remote::tests::repository;
use crate::remote::tests::scripted::{Answer, Scripted, answer, head, raw};
use crate::restore::{RestoreError, RestoreOptions, RestoreSummary};
use crate::segment::{Fingerprint, Geometry, SegmentHash, SegmentIndex, SegmentKey, SegmentSize, Twin};
use crate::storage::OsStorage;

const SIZE: usize = 64 << 10;
const SEGMENTS: u32 = 12;

/// A disk of segments, of which the fourth is zeros, as a service has it.
#[derive(Clone)]
struct Disk {
    details: BackupDetails,
    manifest: Vec<u8>,
    plain: Vec<Vec<u8>>,
}

fn plain(index: u32) -> Vec<u8> {
    if index == 3 { vec![0; SIZE] } else { vec![u8::try_from(index).unwrap() + 1; SIZE] }
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manifest");
        let size = SegmentSize::new(SIZE as u64).unwrap();
        let info = ManifestInfo {
            backupset: BackupsetId::from_bytes([7; 16]),
            incremental: Incremental(2),
            name: ImageName::new("web").unwrap(),
            geometry: Geometry::new(u64::from(SEGMENTS) * SIZE as u64, size).unwrap(),
            timestamp: "2026-01-02T03:04:05Z".parse().unwrap(),
            bases: Vec::new(),
            attributes: Vec::new(),
        };
        let mut writer = ManifestWriter::create(&OsStorage, &path, info.clone()).unwrap();
        let plain: Vec<_> = (0..SEGMENTS).map(plain).collect();
        for (index, plain) in (0..).zip(&plain).filter(|(index, _)| *index != 3) {
            let key = SegmentKey { hash: SegmentHash::of(plain), twin: Twin(0) };
            let segment = SegmentRef { key, incremental: Incremental(2), base: BaseIndex(0) };
            writer.push(SegmentIndex(index), &segment).unwrap();
        }
        writer.finish().unwrap();
        let reader = ManifestReader::open(&OsStorage, &path).unwrap();
        let details = BackupDetails {
            backup: "web@2".to_owned(),
            name: "web".to_owned(),
            backupset: info.backupset.to_string(),
            number: 2,
            incremental: 2,
            timestamp: info.timestamp.to_string(),
            size_of_disk: info.geometry.size_of_disk(),
            segment_size: size.bytes(),
            segments: SEGMENTS,
            present_segments: SEGMENTS - 1,
            stored_by_this_backup: 0,
            bases: Vec::new(),
            tags: Vec::new(),
            protected: false,
            protected_until: None,
            read_bytes: None,
            duration_seconds: None,
            source: None,
            host: None,
            used_bytes: 0,
            new_bytes: 0,
            stored_bytes: 0,
            damaged: false,
            missing: Vec::new(),
            note: None,
            suspect: None,
            inconsistent: None,
            unreadable: Vec::new(),
            attributes: std::collections::BTreeMap::new(),
            manifest: None,
            manifest_bytes: reader.file_size(),
            manifest_blake3: reader.fingerprint().to_string(),
        };
        Self { details, manifest: std::fs::read(&path).unwrap(), plain }
    }

    /// Answers for a segment whose bytes are `plain`: all that it says of itself is right.
    fn frame(&self, index: u32, plain: &[u8]) -> Vec<u8> {
        let head = SegmentHead {
            index: SegmentIndex(index),
            plain_length: u32::try_from(plain.len()).unwrap(),
            stored_length: u32::try_from(plain.len()).unwrap(),
            compression: 0,
            encryption: 0,
            key: SegmentKey { hash: SegmentHash::of(&self.plain[index as usize]), twin: Twin(0) },
            fingerprint: Fingerprint::of(plain),
        };
        let mut frame = Vec::new();
        head.encode(&mut frame);
        frame.extend_from_slice(plain);
        frame
    }

    fn frames(&self, first: u32) -> Vec<u8> {
        let wanted = (first..SEGMENTS).filter(|index| *index != 3);
        wanted.flat_map(|index| self.frame(index, &self.plain[index as usize])).collect()
    }

    /// Answers rightly.
    fn answer(&self, path: &str) -> Answer {
        if path.contains("/segments") {
            answer(200, &[], &self.frames(number(path, "first=")))
        } else if path.contains("/manifest") {
            answer(200, &[], &self.manifest[number(path, "from=") as usize..])
        } else {
            answer(200, &["Content-Type: application/json"], &serde_json::to_vec(&self.details).unwrap())
        }
    }
}

fn number(path: &str, name: &str) -> u32 {
    let text = path.split(name).nth(1).unwrap();
    text.split('&').next().unwrap().parse().unwrap()
}

fn restore(service: &Scripted, target: &Path) -> Result<RestoreSummary, RestoreError> {
    let options = RestoreOptions { jobs: 2, sync: false, ..RestoreOptions::default() };
    let remote = repository(&service.address);
    remote.restore(&remote.manifest("web")?, target, &options, &Silent)
}

/// Restores from a service that answers what a function does not like to answer; what it wrote, and what came of it.
fn restored(
    lie: impl Fn(&Disk, &str, usize) -> Option<Answer> + Send + Sync + 'static,
) -> (Option<Vec<u8>>, Result<RestoreSummary, RestoreError>, usize) {
    let disk = Disk::new();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    let service = Scripted::new(move |path, n| lie(&disk, path, n).unwrap_or_else(|| disk.answer(path)));
    let result = restore(&service, &target);
    (std::fs::read(&target).ok(), result, service.asked().len())
}

fn whole() -> Vec<u8> {
    Disk::new().plain.concat()
}

#[test]
fn a_disk_comes_intact_however_often_its_answers_are_cut() {
    let (bytes, result, _) = restored(|_, _, _| None);
    assert!(result.unwrap().damaged.is_empty() && bytes.unwrap() == whole());
    // Every answer is cut: behind its head and a part of the document, behind some of the manifest or in the next segment.
    let (bytes, result, asked) = restored(|disk, path, number| {
        let bytes = if path.contains("/segments") {
            disk.frames(self::number(path, "first="))
        } else if path.contains("/manifest") {
            disk.manifest[self::number(path, "from=") as usize..].to_vec()
        } else {
            return (number < 2).then(|| raw("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{"));
        };
        let cut = bytes.len().min(if path.contains("/segments") { SIZE + SIZE / 2 } else { 100 });
        let is_all = cut == bytes.len();
        let head = head(200, &[], bytes.len());
        Some(raw([head.as_bytes(), &bytes[..if is_all { cut } else { cut - 1 }]].concat()))
            .filter(|_| !is_all)
    });
    assert!(result.unwrap().damaged.is_empty() && bytes.unwrap() == whole());
    assert!(asked > 12, "{asked}");
}

#[test]
fn a_segment_must_have_the_sha1_that_the_manifest_names() {
    // Its head names the right SHA-1, and the BLAKE3 of other bytes: all that the service says fits.
    let (bytes, result, _) = restored(|disk, path, _| {
        path.contains("/segments").then(|| {
            let wanted = (self::number(path, "first=")..SEGMENTS).filter(|index| *index != 3);
            let other = |index| if index == 5 { vec![99; SIZE] } else { plain(index) };
            let frames: Vec<u8> = wanted.flat_map(|index| disk.frame(index, &other(index))).collect();
            answer(200, &[], &frames)
        })
    });
    let damaged = result.unwrap().damaged;
    assert_eq!(damaged.iter().map(|one| one.index.0).collect::<Vec<_>>(), [5]);
    assert!(damaged[0].error.contains("SHA-1"), "{}", damaged[0].error);
    let mut expected = whole();
    expected[5 * SIZE..6 * SIZE].fill(0);
    assert!(bytes.unwrap() == expected);
}

#[test]
fn a_segment_that_came_wrong_once_is_fetched_again() {
    let first = std::sync::atomic::AtomicBool::new(true);
    let (bytes, result, _) = restored(move |disk, path, _| {
        let is_first = path.contains("/segments") && first.swap(false, std::sync::atomic::Ordering::AcqRel);
        is_first.then(|| {
            let mut frames = disk.frames(0);
            frames[2 * (SegmentHead::LENGTH + SIZE) + 1000] ^= 1;
            answer(200, &[], &frames)
        })
    });
    assert!(result.unwrap().damaged.is_empty() && bytes.unwrap() == whole());
}

#[test]
fn frames_that_make_no_sense_end_a_restore() {
    let lie = |change: fn(&mut Vec<u8>)| {
        restored(move |disk, path, _| {
            path.contains("/segments").then(|| {
                let mut frames = disk.frames(0);
                change(&mut frames);
                answer(200, &[], &frames)
            })
        })
    };
    let (bytes, result, asked) = lie(|frames| frames[0] = 7);
    assert!(result.unwrap_err().to_string().contains("another segment"));
    assert_eq!((bytes, asked), (None, 3), "it is not asked for again");
    let (bytes, result, _) = lie(|frames| frames[8..12].copy_from_slice(&u32::MAX.to_le_bytes()));
    assert!(result.unwrap_err().to_string().contains("longer than its place"));
    assert_eq!(bytes, None);
}

#[test]
fn a_manifest_has_no_more_bytes_than_its_disk_allows() {
    let (bytes, result, _) = restored(|_, path, _| {
        path.contains("/manifest").then(|| -> Answer {
            Box::new(|stream| {
                stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
                loop {
                    stream.write_all(&vec![0; 1 << 20])?;
                }
            })
        })
    });
    assert!(result.unwrap_err().to_string().contains("a manifest of more than"));
    assert_eq!(bytes, None);
}

#[test]
fn a_manifest_of_another_backup_or_another_disk_is_refused() {
    type Change = fn(&mut BackupDetails);
    let changes: [Change; 4] = [
        |details| details.incremental = 3,
        |details| details.size_of_disk += 1,
        |details| details.segment_size *= 2,
        |details| details.backupset = BackupsetId::from_bytes([8; 16]).to_string(),
    ];
    for change in changes {
        let (bytes, result, _) = restored(move |disk, path, _| {
            let is_details = !path.contains("/manifest") && !path.contains("/segments");
            is_details.then(|| {
                let mut disk = disk.clone();
                change(&mut disk.details);
                disk.answer(path)
            })
        });
        assert!(result.unwrap_err().to_string().contains("manifest of another backup"));
        assert_eq!(bytes, None);
    }
    for size in [0, 3, u32::MAX] {
        let (_, result, _) = restored(move |disk, path, _| {
            let mut disk = disk.clone();
            disk.details.segment_size = size;
            Some(disk.answer(path))
        });
        assert!(result.unwrap_err().to_string().contains("cannot understand"));
    }
}

#[test]
fn a_stream_is_written_in_order_through_cuts() {
    let disk = Arc::new(Disk::new());
    let frames = Arc::clone(&disk);
    let service = Scripted::new(move |path, _| {
        if !path.contains("/segments") {
            return frames.answer(path);
        }
        let bytes = frames.frames(number(path, "first="));
        let cut = bytes.len().min(2 * SIZE);
        raw([head(200, &[], bytes.len()).as_bytes(), &bytes[..cut]].concat())
    });
    let options = RestoreOptions { jobs: 4, sync: false, ..RestoreOptions::default() };
    let mut out = Vec::new();
    let remote = repository(&service.address);
    let manifest = remote.manifest("web").unwrap();
    let summary = remote.restore_to_stream(&manifest, &mut out, &options, &Silent).unwrap();
    assert!(out == disk.plain.concat() && summary.damaged.is_empty());
    assert_eq!(summary.written_bytes, out.len() as u64);
}
