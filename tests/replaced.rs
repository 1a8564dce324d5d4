//! An index that fails while several jobs run in one process.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Noise, SEGMENT, Told, backup, fresh, small_segments};
use ekko::check::{CheckIndex, CheckOptions, ReadData, check_with_index};
use ekko::progress::Silent;
use ekko::repository::{RepositoryError, RepositoryWriter, SharedWriter};
use ekko::segment::{SegmentHash, SegmentKey, Twin};

#[test]
fn an_index_that_fails_one_job_ends_the_others_and_all_are_tried_once_more() {
    let told = Told::default();
    let (_folder, _, writer) = fresh(&small_segments(), &told);
    let (writer, _) = backup(writer, "web", &Noise::new(21).bytes(4 * SEGMENT), &told);
    let shared = SharedWriter::new(writer);
    let (runs, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let absent = SegmentKey { hash: SegmentHash::of(b"nobody has stored this"), twin: Twin(0) };
    // Has nothing to ask of the index for as long as it runs, as a check that reads data.
    let long = |writer: &RepositoryWriter| {
        let deadline = Instant::now() + Duration::from_mins(1);
        if runs.fetch_add(1, Ordering::AcqRel) > 0 {
            return Ok::<_, RepositoryError>(());
        }
        loop {
            writer.store().check()?;
            assert!(Instant::now() < deadline, "nobody ends it, and it is waited for");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let asks = |writer: &RepositoryWriter| {
        if !failed.swap(true, Ordering::AcqRel) {
            writer.store().require(absent)?;
        }
        Ok::<_, RepositoryError>(())
    };
    std::thread::scope(|scope| {
        scope.spawn(|| shared.run_job(&told, |()| false, long).unwrap());
        while runs.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        shared.run_job(&told, |()| false, asks).unwrap();
    });
    assert_eq!((runs.into_inner(), told.rebuilds()), (2, 1));
    let options = CheckOptions { read_data: ReadData::All, jobs: 2 };
    let summary = check_with_index(&shared, &options, false, &Silent).unwrap();
    assert!(summary.is_clean() && summary.index == CheckIndex::Agrees, "{:?}", summary.problems);
    shared.close().unwrap();
}
