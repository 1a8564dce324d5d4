//! What is looked up in a store that was opened again, before and after its filter was read from the index.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use ekko::backup::{BackupOptions, BackupStats, back_up};
use ekko::codec::{Codec, CompressionSetting};
use ekko::manifest::ImageName;
use ekko::progress::Silent;
use ekko::repository::{InitOptions, OpenOptions, Repository, RepositoryWriter, SharedWriter};
use ekko::segment::{Fingerprint, SegmentHash, SegmentSize};
use ekko::store::{Claim, SegmentStore, StoreJob};

fn hash(number: u32) -> SegmentHash {
    SegmentHash::of(&number.to_le_bytes())
}

/// Stores a segment of one byte unless it is there. Says whether it was not.
fn put(store: &SegmentStore, job: &StoreJob, number: u32) -> bool {
    match store.claim(job, hash(number), Fingerprint::of(&number.to_le_bytes()), 1).unwrap() {
        Claim::New(new) => {
            let mut buffer = store.buffer().unwrap();
            buffer.restart().push(1);
            store.append(new, Codec::default(), buffer).unwrap();
            true
        }
        Claim::Known(_) | Claim::Unfinished(_) => false,
    }
}

#[test]
fn what_was_stored_before_is_found_whatever_the_filter_knows() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    Repository::init(&root, &InitOptions::default()).unwrap();
    let open = || RepositoryWriter::open(&root, &OpenOptions::default(), &Silent).unwrap();
    let writer = open();
    let job = writer.store().begin_job();
    assert!((0..500).all(|number| put(writer.store(), &job, number)));
    drop(job);
    writer.close().unwrap();

    let writer = open();
    let (store, job) = (writer.store(), writer.store().begin_job());
    // Stored after the opening and before the filter is read; then enough lookups in vain that it is, and some more.
    assert!((500..700).all(|number| put(store, &job, number)));
    store.flush().unwrap();
    for round in 0..2 {
        assert!((0..700).all(|number| !put(store, &job, number)), "round {round}");
        assert!((0..700).all(|number| store.find(hash(number)).unwrap().len() == 1), "round {round}");
        assert!((10_000..16_000).all(|number| store.find(hash(number)).unwrap().is_empty()));
    }
    assert!((700..800).all(|number| put(store, &job, number)));
    store.flush().unwrap();
    assert!((0..800).all(|number| !put(store, &job, number)));
    drop(job);
    writer.close().unwrap();
}

#[test]
fn who_commits_waits_for_what_another_has_claimed_and_is_still_encoding() {
    let (_folder, _, writer) = common::fresh(&InitOptions::default(), &common::Told::default());
    let (store, job) = (writer.store(), writer.store().begin_job());
    let claim = || store.claim(&job, hash(1), Fingerprint::of(&1_u32.to_le_bytes()), 1).unwrap();
    let Claim::New(new) = claim() else { panic!("it is new") };
    let Claim::Known(key) = claim() else { panic!("it is claimed") };
    std::thread::scope(|scope| {
        let commit = scope.spawn(|| {
            store.flush().unwrap();
            store.require_stored(key)
        });
        // Right whatever the other has done by now; without the wait it would have flushed and looked in vain.
        std::thread::sleep(std::time::Duration::from_millis(200));
        let mut buffer = store.buffer().unwrap();
        buffer.restart().push(1);
        store.append(new, Codec::default(), buffer).unwrap();
        commit.join().unwrap().unwrap();
    });
    let Claim::New(never) = store.claim(&job, hash(2), Fingerprint::of(b"2"), 1).unwrap() else {
        panic!("it is new")
    };
    std::thread::scope(|scope| {
        let commit = scope.spawn(|| store.flush());
        drop(never);
        assert!(commit.join().unwrap().is_err(), "nobody waits for ever for what is never stored");
    });
}

/// A disk of `segments` different segments of 1 MiB, from the one with number `first` on.
fn disk(first: u32, segments: u32) -> common::MemoryImage {
    let mut bytes = Vec::new();
    for number in first..first + segments {
        let start = bytes.len();
        bytes.resize(start + (1 << 20), 7);
        bytes.get_mut(start..start + 4).unwrap().copy_from_slice(&number.to_le_bytes());
    }
    common::MemoryImage::new(&bytes, 4096)
}

#[test]
fn what_another_disk_has_stored_is_found_by_its_blake3_alone() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let init = InitOptions { segment_size: SegmentSize::new(1 << 20).unwrap(), ..InitOptions::default() };
    Repository::init(&root, &init).unwrap();
    let open = || SharedWriter::new(RepositoryWriter::open(&root, &OpenOptions::default(), &Silent).unwrap());
    let backup = |writer: &SharedWriter, name: &str, disk: &common::MemoryImage| -> BackupStats {
        // One thread: which segments come before the tables are read is certain then.
        let options = BackupOptions::new(CompressionSetting::default(), 1);
        back_up(writer, &ImageName::new(name).unwrap(), disk, &options, &Silent).unwrap().stats
    };
    let writer = open();
    assert_eq!(backup(&writer, "one", &disk(0, 40)).new_segments, 40);
    let again = backup(&writer, "two", &disk(0, 40));
    assert_eq!((again.deduplicated_segments, again.recalled_segments), (40, 40), "by the same process");
    writer.close().unwrap();
    let writer = open();
    // The SHA-1 of 32 MiB is computed before it looks worth the while to read the packs' tables.
    let third = backup(&writer, "three", &disk(0, 40));
    assert_eq!((third.deduplicated_segments, third.recalled_segments), (40, 8), "by another process");
    let fourth = backup(&writer, "four", &disk(20, 40));
    assert_eq!((fourth.new_segments, fourth.deduplicated_segments, fourth.recalled_segments), (20, 20, 20));
    writer.close().unwrap();
}

#[test]
fn a_claim_that_cannot_read_the_names_of_what_is_stored_is_one_all_the_same() {
    let (_folder, root, writer) = common::fresh(&InitOptions::default(), &common::Told::default());
    let (store, job) = (writer.store(), writer.store().begin_job());
    assert!(put(store, &job, 1));
    store.flush().unwrap();
    // So much was hashed by now that the names in the packs are worth reading: and they cannot be listed.
    let packs = root.join("packs");
    std::fs::rename(&packs, root.join("elsewhere")).unwrap();
    let claim = store.claim(&job, hash(2), Fingerprint::of(&2_u32.to_le_bytes()), 32 << 20);
    std::fs::rename(root.join("elsewhere"), &packs).unwrap();
    let Claim::New(new) = claim.unwrap() else { panic!("it is new") };
    let mut buffer = store.buffer().unwrap();
    buffer.restart().push(1);
    store.append(new, Codec::default(), buffer).unwrap();
    store.flush().unwrap();
    drop(job);
    writer.close().unwrap();
}

#[test]
fn all_segments_of_a_piece_are_claimed_before_the_first_is_encoded() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    Repository::init(&root, &InitOptions::default()).unwrap();
    // One buffer, which the backup waits for once it has claimed.
    let open = OpenOptions { buffers: 1, ..OpenOptions::default() };
    let writer = SharedWriter::new(RepositoryWriter::open(&root, &open, &Silent).unwrap());
    let segment = 4 << 20;
    let plain: Vec<u8> = (0..2 * segment).map(|at| if at < segment { 1 } else { 2 }).collect();
    let disk = common::MemoryImage::new(&plain, 4096);
    let all_known = |store: &SegmentStore, job: &StoreJob| {
        plain.chunks(segment).all(|plain| {
            let length = u32::try_from(plain.len()).unwrap();
            store.look(job, SegmentHash::of(plain), Fingerprint::of(plain), length).unwrap().is_some()
        })
    };
    let known = writer.with(|alone| {
        let (store, job) = (alone.store(), alone.store().begin_job());
        let Claim::New(own) = store.claim(&job, hash(1), Fingerprint::of(&1_u32.to_le_bytes()), 1)? else {
            panic!("it is new")
        };
        let mut buffer = store.buffer()?;
        Ok(std::thread::scope(|scope| {
            let backup = scope.spawn(|| {
                let options = BackupOptions::new(CompressionSetting::default(), 1);
                back_up(&writer, &ImageName::new("one").unwrap(), &disk, &options, &Silent).unwrap()
            });
            let begun = std::time::Instant::now();
            while !all_known(store, &job) && begun.elapsed().as_secs() < 20 {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            let known = all_known(store, &job);
            buffer.restart().push(1);
            store.append(own, Codec::default(), buffer).unwrap();
            assert_eq!(backup.join().unwrap().stats.new_segments, 2);
            known
        }))
    });
    assert!(known.unwrap(), "whoever meets the second meanwhile finds it");
    writer.close().unwrap();
}
