//! Threads that panic, and pieces far ahead of the order.

use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::*;
use crate::backup::leave::AHEAD;
use crate::codec::CompressionSetting;
use crate::image::RawImage;
use crate::progress::Silent;
use crate::segment::SegmentSize;

/// Panics over the first piece when the other thread has come so far as it may.
struct Panics<'a> {
    others: u64,
    processed: &'a AtomicU64,
}

impl SegmentWorker for Panics<'_> {
    type Segment = ();

    fn process(
        &mut self,
        first: SegmentIndex,
        _: &[u8],
        _: &mut Vec<Outcome<()>>,
    ) -> Result<(), BackupError> {
        if first.0 > 0 {
            self.processed.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        while self.processed.load(Ordering::Relaxed) < self.others {
            std::thread::yield_now();
        }
        // Time to come further, which it may not.
        std::thread::sleep(Duration::from_millis(100));
        panic!("as if there was a mistake");
    }
}

/// Says whether it was told that no more come.
struct Finished(bool);

impl InOrder<()> for Finished {
    fn push(&mut self, _: Outcome<()>) -> Result<(), BackupError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<u64, BackupError> {
        self.0 = true;
        Ok(0)
    }
}

/// Makes a disk of so many pieces.
fn disk_of(pieces: u64) -> (tempfile::TempDir, RawImage, Geometry) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let file = std::fs::File::create(&path).unwrap();
    let size = SegmentSize::new(4 << 20).unwrap();
    let piece = Pieces::most_bytes(Geometry::new(1 << 30, size).unwrap()) as u64;
    file.set_len(pieces * piece).unwrap();
    for offset in (0..pieces * piece).step_by(4 << 20) {
        file.write_all_at(b"1", offset).unwrap();
    }
    let image = RawImage::open(&path).unwrap();
    (folder, image, Geometry::new(pieces * piece, size).unwrap())
}

/// Backs up a disk of so many pieces with two threads.
fn run_pieces(pieces: u64, others: u64) -> (u64, bool, Result<Ran, BackupError>) {
    let (_folder, image, geometry) = disk_of(pieces);
    let plan = Plan::full(geometry);
    let processed = AtomicU64::new(0);
    let worker = || Panics { others, processed: &processed };
    let mut order = Finished(false);
    let options = BackupOptions::new(CompressionSetting::default(), 2);
    let ran = run((&image, geometry, &plan), vec![worker(), worker()], &mut order, &options, &Silent);
    (processed.load(Ordering::Relaxed), order.0, ran)
}

#[test]
fn a_thread_that_panics_ends_the_backup_with_an_error() {
    let (_, finished, ran) = run_pieces(1, 0);
    assert!(matches!(ran, Err(BackupError::WorkerLost)));
    assert!(!finished);
}

/// Panics over what it is given first.
struct PanicsInOrder;

impl InOrder<()> for PanicsInOrder {
    fn push(&mut self, _: Outcome<()>) -> Result<(), BackupError> {
        panic!("as if there was a mistake");
    }

    fn finish(&mut self) -> Result<u64, BackupError> {
        Ok(0)
    }
}

/// Gives each segment to the order.
struct Passes;

impl SegmentWorker for Passes {
    type Segment = ();

    fn process(
        &mut self,
        index: SegmentIndex,
        _: &[u8],
        outcomes: &mut Vec<Outcome<()>>,
    ) -> Result<(), BackupError> {
        outcomes.push(Outcome { index, class: Class::Unchanged, segment: None });
        Ok(())
    }
}

#[test]
fn a_panic_of_the_one_who_puts_pieces_in_order_leaves_no_thread_waiting() {
    // More than are ever under way.
    let (_folder, image, geometry) = disk_of(4 * AHEAD as u64);
    let plan = Plan::full(geometry);
    let options = BackupOptions::new(CompressionSetting::default(), 2);
    let ran = std::panic::catch_unwind(|| {
        let disk = (&image as &dyn Image, geometry, &plan);
        run(disk, vec![Passes, Passes], &mut PanicsInOrder, &options, &Silent).is_ok()
    });
    ran.unwrap_err();
}

#[test]
fn no_thread_goes_far_ahead_of_a_piece_that_takes_long_nor_waits_for_one_that_never_comes() {
    let ahead = 2 * AHEAD as u64;
    let (processed, finished, ran) = run_pieces(ahead + 20, ahead - 1);
    assert!(matches!(ran, Err(BackupError::WorkerLost)));
    assert!(!finished);
    // What the thread had that panicked may have been taken by the other before it saw why.
    assert!((ahead - 1..=ahead).contains(&processed), "{processed}");
}
