//! What projects use, and what is left for their backups.

use super::*;
use std::path::Path;

use crate::backup::{BackupOptions, back_up};
use crate::codec::CompressionSetting;
use crate::image::RawImage;
use crate::manifest::{ImageName, Incremental};
use crate::progress::Silent;
use crate::repository::{Deletion, InitOptions, OpenOptions, RepositoryWriter, SharedWriter};
use crate::segment::SegmentSize;

fn quotas(limit: u64) -> Arc<Quotas> {
    let projects = [("blue".parse().unwrap(), limit)].into();
    Arc::new(Quotas::new(QuotaSettings { default: None, projects }))
}

fn empty() -> (tempfile::TempDir, Repository) {
    let folder = tempfile::tempdir().unwrap();
    let repository = Repository::init(&folder.path().join("store"), &InitOptions::default()).unwrap();
    (folder, repository)
}

fn name(image: &str) -> ImageName {
    ImageName::new(format!("blue:{image}")).unwrap()
}

fn blue() -> View {
    View::of("blue".parse().unwrap())
}

#[test]
fn two_backups_at_once_share_what_is_left_and_one_that_is_given_up_counts_until_it_is_collected() {
    let (_folder, repository) = empty();
    let quotas = quotas(1000);
    let begin = |image: &str| quotas.begin(&repository, &blue(), &name(image));
    let mut first = begin("web").unwrap();
    let mut second = begin("db").unwrap();
    first.sent(600).unwrap();
    assert_eq!(second.sent(401).unwrap_err().refusal(), Refusal::QuotaExceeded);
    second.sent(400).unwrap();
    assert!(begin("mail").is_err(), "there is nothing left");
    drop(second);
    assert!(first.sent(1).is_err(), "what was sent lies there all the same");
    // Its next run has what it sent, and no more.
    let mut second = begin("db").unwrap();
    second.named(400).unwrap();
    assert!(second.named(1).is_err() && second.sent(1).is_err());
    drop(second);
    quotas.collected(Duration::from_mins(1));
    assert!(first.sent(1).is_err(), "it was kept for its next run");
    quotas.collected(Duration::ZERO);
    first.named(990).unwrap();
    for _ in 0..2 {
        first.manifest(10).unwrap();
    }
    first.sent(390).unwrap();
    assert!(first.named(1).is_err() && first.sent(1).is_err());
    first.commit();
    let accounts = quotas.accounts();
    let account = &accounts[&"blue".parse().unwrap()];
    assert_eq!((account.used, account.all()), (1000, 1000));
}

const SEGMENT: u64 = 64 << 10;

fn store(writer: &SharedWriter, disk: &Path, name: &str, segments: &[u8]) -> Deletion {
    let bytes: Vec<u8> = segments.iter().flat_map(|byte| vec![*byte; 64 << 10]).collect();
    std::fs::write(disk, bytes).unwrap();
    let (name, options) =
        (ImageName::new(name).unwrap(), BackupOptions::new(CompressionSetting::default(), 1));
    let stored = back_up(writer, &name, &RawImage::open(disk).unwrap(), &options, &Silent).unwrap().backup;
    Deletion { backupset: stored.backupset, incremental: stored.incremental }
}

#[test]
fn a_project_uses_what_its_backups_say_whatever_others_have_stored() {
    let folder = tempfile::tempdir().unwrap();
    let (path, disk) = (folder.path().join("store"), folder.path().join("disk"));
    let segment_size = SegmentSize::new(SEGMENT).unwrap();
    Repository::init(&path, &InitOptions { segment_size, ..InitOptions::default() }).unwrap();
    let writer = SharedWriter::new(RepositoryWriter::open(&path, &OpenOptions::default(), &Silent).unwrap());
    let quotas = quotas(1 << 40);
    let used = || quotas.used(writer.repository(), &"blue".parse().unwrap()).unwrap() / SEGMENT;
    store(&writer, &disk, "red:db", &[1, 2, 3, 4]);
    store(&writer, &disk, "db", &[5, 6]);
    assert_eq!(used(), 0, "others' are others'");
    // Zeros are not stored; one segment at two places is two.
    store(&writer, &disk, "blue:web", &[1, 2, 0, 2]);
    assert_eq!(used(), 3);
    store(&writer, &disk, "blue:web", &[1, 2, 0, 2]);
    assert_eq!(used(), 3, "what stays counts once");
    let third = store(&writer, &disk, "blue:web", &[1, 3, 0, 0, 4]);
    assert_eq!(used(), 5);
    store(&writer, &disk, "blue:web", &[1, 2, 0, 2]);
    assert_eq!(used(), 7, "back again is new again");
    store(&writer, &disk, "blue:other", &[1]);
    assert_eq!(used(), 8, "another disk is counted for itself");
    assert_eq!(third.incremental, Incremental(2));
    let changed = writer.run_job(&Silent, |_| false, |writer| writer.delete(third));
    changed.map_err(|error: RepositoryError| error).unwrap();
    assert_eq!(used(), 4, "its neighbours are the same, and have become one stay");
    writer.close().unwrap();
}

#[test]
fn who_has_no_quota_takes_what_they_like() {
    let (_folder, repository) = empty();
    let quotas = quotas(10);
    for view in [View::everything(), View::of("red".parse().unwrap())] {
        quotas.begin(&repository, &view, &name("web")).unwrap().sent(u64::MAX).unwrap();
    }
    assert!(quotas.accounts().is_empty());
}
