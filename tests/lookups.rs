//! What is looked up in a store that was opened again, before and after its filter was read from the index.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use ekko::codec::Codec;
use ekko::progress::Silent;
use ekko::repository::{InitOptions, OpenOptions, Repository, RepositoryWriter};
use ekko::segment::{Fingerprint, SegmentHash};
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
