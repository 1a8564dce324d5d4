use std::path::Path;

use super::*;
use crate::storage::OsStorage;
use crate::store::IndexError;
use crate::store::index_watch::tests::limited;

/// Starts a store over an empty folder.
fn start(folder: &Path) -> SegmentStore {
    let packs = folder.join("packs");
    std::fs::create_dir(&packs).unwrap();
    let index = IndexWriter::create(&folder.join("index")).unwrap();
    let size = SegmentSize::new(1 << 20).unwrap();
    let folders = StoreFolders { packs: PackFolder::new(packs, size), repository: [7; 16] };
    SegmentStore::start(Arc::new(OsStorage), folders, index, 1, size).unwrap()
}

#[test]
fn whoever_waits_for_the_stores_thread_is_told_that_the_index_is_stuck() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = start(folder.path());
    assert!(store.answers(Duration::from_mins(1)));
    // From now on commands reach nobody, as if the thread waited for the index.
    let (commands, inbox) = bounded(1);
    let running = store.commands.replace(commands);
    let (keep, free) = bounded(1);
    store.free = free;
    assert!(!store.answers(Duration::from_millis(1)));
    // One that has much to do and goes on with it does not hang.
    std::thread::scope(|scope| {
        let (state, (done, is_done)) = (&store.state, bounded::<()>(1));
        scope.spawn(move || {
            while is_done.recv_timeout(Duration::from_millis(10)).is_err() {
                state.step();
            }
        });
        let goes_on = store.answers(Duration::from_millis(200));
        done.send(()).unwrap();
        assert!(goes_on);
    });
    store.calls.make_stuck();
    let is_stuck = |error: StoreError| matches!(error, StoreError::Index(IndexError::Stuck { .. }));
    // The queue is full: the first cannot even send, and none of them waits for ever.
    assert!(is_stuck(store.flush().unwrap_err()));
    assert!(is_stuck(store.seal().unwrap_err()));
    assert!(is_stuck(store.buffer().unwrap_err()));
    assert!(is_stuck(store.packs().unwrap_err()));
    // Nor does dropping it wait for the thread.
    drop(store);
    drop((running, inbox, keep));
}

/// The store's own thread has nothing to do then, so nobody else tells that the index has failed.
#[test]
fn a_failed_write_of_the_index_that_a_lookup_alone_meets_stops_the_store() {
    if limited::is_so() {
        let folder = tempfile::tempdir().unwrap();
        let store = start(folder.path());
        let index = store.index().unwrap();
        #[expect(clippy::default_trait_access, reason = "one file alone names sled")]
        let write = || index.call("write", |db| db.apply_batch(Default::default()));
        store.check().unwrap();
        while write().is_ok() {}
        let stopped = store.check().unwrap_err();
        assert!(matches!(stopped, StoreError::Poisoned { .. }), "{stopped:?}");
        assert!(store.flush().is_err() && store.seal().is_err());
        limited::done();
        return;
    }
    limited::run();
}
