//! Damaged segments are taken away while a backup runs that counts on them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use common::{MemoryImage, Noise, SEGMENT, Told, fresh, name, options, small_segments};
use ekko::backup::{BackupOptions, ChangesBase, SegmentWriter, TrackedChanges, back_up};
use ekko::check::{CheckIndex, CheckOptions, ReadData, check_with_index};
use ekko::image::{ChangeList, Extent, Image, ImageError};
use ekko::manifest::{BaseIndex, SegmentRef};
use ekko::progress::Silent;
use ekko::repository::{
    CommittedBackup, DamagedCopy, Deletion, GcOptions, RepositoryError, RepositoryWriter, SharedWriter,
};
use ekko::segment::{Fingerprint, SegmentHash, SegmentIndex, SegmentKey};
use ekko::store::pack::RecordPlace;
use ekko::store::{SegmentPlace, StoreError};

/// Returns the one copy of a segment.
fn copy_of(writer: &RepositoryWriter, bytes: &[u8]) -> DamagedCopy {
    writer.store().seal().unwrap();
    let (key, entry) = writer.store().find(SegmentHash::of(bytes)).unwrap()[0];
    let (place, stored_length, plain_length) = (entry.place(), entry.stored_length, entry.plain_length);
    let place = SegmentPlace { key, place, stored_length, plain_length };
    DamagedCopy { place, other: None }
}

/// Damages the one copy of a segment and puts it into quarantine.
fn quarantine(writer: &RepositoryWriter, bytes: &[u8]) {
    let copy = copy_of(writer, bytes);
    let RecordPlace { pack, offset } = copy.place.place;
    let pack = writer.repository().layout().packs().join(pack.file_name());
    std::fs::File::options().write(true).open(pack).unwrap().write_all_at(&[0; 64], offset + 300).unwrap();
    assert_eq!(writer.quarantine(&[copy]).unwrap(), []);
}

/// Makes a backup of a disk of one segment, and something between storing that and the commit.
fn back_up_one(
    writer: &RepositoryWriter,
    image: &str,
    bytes: &[u8],
    between: impl FnOnce(SegmentKey),
) -> Result<CommittedBackup, RepositoryError> {
    let draft = writer.begin_backup(&name(image), bytes.len() as u64).unwrap();
    let mut manifest = writer.create_manifest(&draft).unwrap();
    let mut segments =
        SegmentWriter::new(writer.store(), draft.job(), writer.repository().compression(), &Silent).unwrap();
    let put = segments.put(bytes, SegmentHash::of(bytes), Fingerprint::of(bytes)).unwrap();
    between(put.key);
    let incremental = draft.info().incremental;
    manifest
        .push(SegmentIndex(0), &SegmentRef { key: put.key, incremental, base: BaseIndex::default() })
        .unwrap();
    writer.commit(draft, manifest)
}

fn is_clean(writer: RepositoryWriter) {
    let shared = SharedWriter::new(writer);
    let checked =
        check_with_index(&shared, &CheckOptions { read_data: ReadData::All, jobs: 2 }, false, &Silent)
            .unwrap();
    assert!(checked.is_clean(), "{:?} {:?}", checked.problems, checked.damaged);
    assert_eq!(checked.index, CheckIndex::Agrees);
    shared.close().unwrap();
}

#[test]
fn a_backup_whose_segment_is_lost_before_its_commit_fails_alone() {
    let told = Told::default();
    let (_folder, root, writer) = fresh(&small_segments(), &told);
    let bytes = Noise::new(1).bytes(SEGMENT);

    let failed = back_up_one(&writer, "web", &bytes, |_| quarantine(&writer, &bytes)).unwrap_err();
    assert!(matches!(failed, RepositoryError::Store(StoreError::Lost { .. })), "{failed}");
    assert!(!failed.distrusts_index(), "the index was right");
    let files = common::files_below(&root).into_iter();
    let left: Vec<_> = files.filter(|path| path.extension().is_some_and(|it| it == "tmp")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(writer.store().lost_segments().unwrap(), 1);

    // The repository is as good as before; who brings the segment again stores it anew.
    let backup = back_up_one(&writer, "web", &bytes, |_| ()).unwrap();
    assert_eq!(backup.incremental.0, 0);
    assert_eq!(writer.store().lost_segments().unwrap(), 0);
    assert_eq!(told.rebuilds(), 0);
    is_clean(writer);
}

#[test]
fn a_copy_that_is_whole_after_all_is_left_alone() {
    let (_folder, _, writer) = fresh(&small_segments(), &Told::default());
    let bytes = Noise::new(4).bytes(SEGMENT);
    back_up_one(&writer, "web", &bytes, |_| ()).unwrap();
    let copy = copy_of(&writer, &bytes);
    assert_eq!(writer.quarantine(&[copy]).unwrap(), [copy]);
    assert_eq!(writer.store().lost_segments().unwrap(), 0);
    is_clean(writer);
}

#[test]
fn a_lost_segment_that_nobody_names_is_forgotten_by_the_next_collection() {
    let (_folder, _, writer) = fresh(&small_segments(), &Told::default());
    let bytes = Noise::new(2).bytes(SEGMENT);
    back_up_one(&writer, "web", &bytes, |_| quarantine(&writer, &bytes)).unwrap_err();
    assert_eq!(writer.store().lost_segments().unwrap(), 1);
    let options = GcOptions {
        dry_run: false,
        now: Some(""),
        keep_unfinished: Some(Duration::ZERO),
        accept_lost: false,
        jobs: 1,
    };
    writer.gc(&options, &Silent).unwrap();
    assert_eq!(writer.store().lost_segments().unwrap(), 0);
    assert!(writer.store().find(SegmentHash::of(&bytes)).unwrap().is_empty());
    is_clean(writer);
}

/// A disk that does something when it is read first.
struct Trap<'a> {
    disk: MemoryImage,
    first_read: std::sync::Once,
    then: &'a (dyn Fn() + Sync),
}

impl std::fmt::Debug for Trap<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.disk.fmt(f)
    }
}

impl Image for Trap<'_> {
    fn path(&self) -> &Path {
        self.disk.path()
    }

    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError> {
        self.disk.next_data(from)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        self.first_read.call_once(self.then);
        self.disk.read_at(buffer, offset)
    }

    fn verify_unchanged(&self) -> Result<(), ImageError> {
        self.disk.verify_unchanged()
    }
}

#[test]
fn a_list_of_changes_is_not_wrong_about_a_segment_that_was_lost_meanwhile() {
    let (_folder, _, writer) = fresh(&small_segments(), &Told::default());
    let writer = SharedWriter::new(writer);
    let bytes = Noise::new(3).bytes(4 * SEGMENT);
    let disk = || MemoryImage::new(&bytes, 4096);
    let full = back_up(&writer, &name("web"), &disk(), &options(), &Silent).unwrap().backup;

    let take = |writer: &RepositoryWriter| {
        quarantine(writer, &bytes[SEGMENT..2 * SEGMENT]);
        Ok(())
    };
    let then = || writer.with(take).unwrap();
    let trap = Trap { disk: disk(), first_read: std::sync::Once::new(), then: &then };
    let changes = TrackedChanges {
        list: Ok(ChangeList::parse(b"[]", trap.size()).unwrap()),
        base: ChangesBase::Is(full.backupset, full.incremental),
        id: "none".parse().unwrap(),
        overlaid: Vec::new(),
        audit: 100.0,
        fallback: false,
    };
    let audited = BackupOptions { changes: Some(changes.into()), ..options() };
    let summary = back_up(&writer, &name("web"), &trap, &audited, &Silent).unwrap();
    assert!(!summary.tracking.unwrap().was_wrong());
    assert_eq!((summary.stats.new_segments, summary.stats.unchanged_segments), (1, 3));
    assert_eq!(writer.with(|writer| Ok(writer.store().lost_segments()?)).unwrap(), 0);
    is_clean(writer.into_inner().unwrap());
}

#[test]
fn a_damaged_copy_that_was_collected_since_is_passed_over() {
    let told = Told::default();
    let (_folder, _, writer) = fresh(&small_segments(), &told);
    let bytes = Noise::new(31).bytes(SEGMENT);
    let committed = back_up_one(&writer, "web", &bytes, |_| {}).unwrap();
    let copy = copy_of(&writer, &bytes);
    let (sets, _) = writer.repository().backupsets().unwrap();
    let incremental = committed.incremental;
    writer.delete(Deletion { backupset: sets[0].id, incremental }).unwrap();
    let options = GcOptions { now: Some(""), keep_unfinished: Some(Duration::ZERO), ..GcOptions::default() };
    assert_eq!(writer.gc(&options, &told).unwrap().freed_segments, 1);

    assert_eq!(writer.quarantine(&[copy]).unwrap(), []);
    assert!(!writer.repository().layout().quarantine().exists());
    is_clean(writer);
}
