//! Sectors that a disk does not give, or that rot where no segment lies: what else is there is restored and collected all
//! the same, and nothing is taken away that may come back.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::{Noise, SEGMENT, Told, backup, name, open, small_segments};
use ekko::check::{CheckIndex, CheckOptions, ReadData, check_with_index};
use ekko::progress::{Progress, Silent};
use ekko::repository::{
    Deletion, GcOptions, GcSummary, OpenOptions, Repository, RepositoryWriter, SharedWriter,
};
use ekko::restore::{RestoreOptions, restore_to_stream};
use ekko::segment::SegmentSize;
use ekko::storage::{FaultPlan, FaultStorage, OsStorage, Storage};
use ekko::store::pack::{ContentsEntry, PackFolder, PackNumber, PackReader, RecordKind};

fn collect(writer: &RepositoryWriter, told: &Told) -> GcSummary {
    let options = GcOptions { now: Some(""), keep_unfinished: Some(Duration::ZERO), ..GcOptions::default() };
    writer.gc(&options, told).unwrap()
}

fn delete(writer: &RepositoryWriter, image: &str) {
    let (sets, _) = writer.repository().backupsets().unwrap();
    let set = sets.iter().find(|set| set.name == name(image)).unwrap();
    let incremental = set.backups[0].incremental;
    writer.delete(Deletion { backupset: set.id, incremental }).unwrap();
}

/// Restores the first backup of a disk. Returns what was told.
fn restores(repository: &Repository, image: &str, disk: &[u8]) -> Vec<String> {
    let (sets, _) = repository.backupsets().unwrap();
    let set = sets.iter().find(|set| set.name == name(image)).unwrap();
    let manifest = repository.manifest(set, &set.backups[0]).unwrap();
    let options = RestoreOptions { jobs: 2, sync: false, ..RestoreOptions::default() };
    let (mut bytes, told) = (Vec::new(), Told::default());
    let summary = restore_to_stream(repository, &manifest, &mut bytes, &options, &told).unwrap();
    assert!(summary.damaged.is_empty(), "{image}: {:?}", summary.damaged);
    assert!(bytes == disk, "{image}");
    told.problems()
}

fn pack(root: &Path, number: u64) -> PathBuf {
    root.join("packs").join(PackNumber(number).file_name())
}

fn entries(root: &Path, number: u64) -> Vec<ContentsEntry> {
    let pack = PackReader::open(
        &OsStorage,
        &PackFolder::new(root.join("packs"), SegmentSize::MAX),
        PackNumber(number),
    )
    .unwrap();
    pack.contents().unwrap().unwrap()
}

fn checked(writer: RepositoryWriter) {
    let shared = SharedWriter::new(writer);
    let options = CheckOptions { read_data: ReadData::All, jobs: 2 };
    let summary = check_with_index(&shared, &options, false, &Silent).unwrap();
    assert!(summary.is_clean(), "{:?} {:?}", summary.problems, summary.damaged);
    shared.close().unwrap();
}

/// Makes a repository, in `store`, on a disk that can be told to give less.
fn faulty() -> (tempfile::TempDir, FaultStorage) {
    let folder = tempfile::tempdir().unwrap();
    let fault = FaultStorage::new(folder.path(), FaultPlan::Count).unwrap();
    Repository::init_with(Arc::new(fault.clone()), &folder.path().join("store"), &small_segments()).unwrap();
    (folder, fault)
}

/// Makes a repository in which the second pack holds a dead record, and the segments of `c` behind it.
fn with_a_dead_record(root: &Path) -> [(&'static str, Vec<u8>); 2] {
    let (told, mut noise) = (Told::default(), Noise::new(11));
    let [a, b, c] = [4, 4, 5].map(|segments| noise.bytes(segments * SEGMENT));
    Repository::init(root, &small_segments()).unwrap();
    let (writer, _) = backup(open(root, &told), "a", &a, &told);
    let (writer, _) = backup(writer, "b", &b, &told);
    delete(&writer, "a");
    assert_eq!(collect(&writer, &told).freed_segments, 4);
    let (writer, _) = backup(writer, "c", &c, &told);
    writer.close().unwrap();
    [("b", b), ("c", c)]
}

#[test]
fn a_dead_record_that_rots_hides_no_segment() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let disks = with_a_dead_record(&root);
    let dead = entries(&root, 2).into_iter().find(|entry| entry.kind == RecordKind::Dead).unwrap();
    let pack = pack(&root, 2);
    let mut bytes = fs::read(&pack).unwrap();
    bytes[usize::try_from(dead.offset).unwrap() + 256 + 20] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let repository = Repository::open(&root).unwrap();
    for (image, disk) in disks {
        let problems = restores(&repository, image, &disk);
        assert!(problems.iter().any(|what| what.contains("0000000000000002.pack")), "{problems:?}");
    }
}

#[test]
fn a_table_of_contents_that_the_disk_does_not_give_hides_no_segment() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let disks = with_a_dead_record(&root);
    let second = pack(&root, 2);
    let size = fs::metadata(&second).unwrap().len();
    let fault = FaultStorage::new(folder.path(), FaultPlan::Count).unwrap();
    let repository = Repository::open_with(Arc::new(fault.clone()), &root).unwrap();
    // Of the table, the trailer that finds it, and the header of the pack with its copy.
    for (byte, told) in [(size - 1024 + 300, true), (size - 1, true), (10, false), (4096 + 10, false)] {
        fault.set_unreadable(Some((&second, byte..byte + 1)));
        for (image, disk) in &disks {
            let problems = restores(&repository, image, disk);
            assert_eq!(!problems.is_empty(), told, "{byte}: {problems:?}");
        }
    }
}

#[test]
fn a_collection_gives_back_what_the_disk_gives_and_the_rest_when_it_does() {
    let (folder, fault) = faulty();
    let root = folder.path().join("store");
    let storage: Arc<dyn Storage> = Arc::new(fault.clone());
    let (told, mut noise) = (Told::default(), Noise::new(12));
    let disks = [4, 4].map(|segments| noise.bytes(segments * SEGMENT));
    let writer = RepositoryWriter::open_with(&storage, &root, &OpenOptions::default(), &told).unwrap();
    let (writer, _) = backup(writer, "a", &disks[0], &told);
    let (writer, _) = backup(writer, "b", &disks[1], &told);
    delete(&writer, "a");
    writer.store().seal().unwrap();
    let second = entries(&root, 1)[1];
    let freed = || fault.log().iter().filter(|line| line.contains("punch")).count();

    fault.set_unreadable(Some((&pack(&root, 1), second.offset + 10..second.offset + 10 + 1)));
    assert_eq!(collect(&writer, &told).freed_segments, 4);
    assert_eq!(told.problems().len(), 1, "{:?}", told.problems());
    // Before it and behind it.
    assert_eq!(freed(), 2);
    // Nothing else waits for it, however often it is tried.
    collect(&writer, &told);
    assert_eq!((freed(), told.problems().len()), (2, 2));
    // Nor where the whole pack cannot be read: its header, and the copy of that.
    fault.set_unreadable(Some((&pack(&root, 1), 0..u64::MAX)));
    collect(&writer, &told);
    assert_eq!(freed(), 2);
    let (writer, _) = backup(writer, "c", &disks[0], &told);

    fault.set_unreadable(None);
    told.clear();
    collect(&writer, &told);
    assert_eq!((freed(), told.problems()), (3, vec![]));
    collect(&writer, &told);
    assert_eq!(freed(), 3);
    checked(writer);
    assert_eq!(restores(&Repository::open(&root).unwrap(), "b", &disks[1]), Vec::<String>::new());
}

/// Closes a repository and opens it with a new index.
fn rebuilt(writer: RepositoryWriter, storage: &Arc<dyn Storage>, root: &Path) -> RepositoryWriter {
    writer.close().unwrap();
    fs::remove_dir_all(root.join("index")).unwrap();
    RepositoryWriter::open_with(storage, root, &OpenOptions::default(), &Silent).unwrap()
}

/// Makes the disk give everything again when data has been read.
struct Returns<'a>(&'a FaultStorage);

impl Progress for Returns<'_> {
    fn end(&self) {
        self.0.set_unreadable(None);
    }
}

#[test]
fn a_segment_that_could_not_be_read_for_a_while_is_not_taken_away() {
    let (folder, fault) = faulty();
    let root = folder.path().join("store");
    let storage: Arc<dyn Storage> = Arc::new(fault.clone());
    let (told, disk) = (Told::default(), Noise::new(13).bytes(4 * SEGMENT));
    let writer = RepositoryWriter::open_with(&storage, &root, &OpenOptions::default(), &told).unwrap();
    let (writer, _) = backup(writer, "a", &disk, &told);
    writer.store().seal().unwrap();
    let second = entries(&root, 1)[1];

    let shared = SharedWriter::new(writer);
    let options = CheckOptions { read_data: ReadData::All, jobs: 2 };
    fault.set_unreadable(Some((&pack(&root, 1), second.offset + 300..second.offset + 300 + 1)));
    let summary = check_with_index(&shared, &options, true, &Returns(&fault)).unwrap();
    assert_eq!((summary.damaged.len(), summary.quarantined_segments), (1, 0));
    assert!(summary.problems.iter().any(|what| what.contains("can be read now")), "{:?}", summary.problems);
    assert!(!fault.log().iter().any(|line| line.contains("punch")));

    // One that stays so, its header as well, is stored anew by the next backup, and told of no more.
    fault.set_unreadable(Some((&pack(&root, 1), second.offset..second.offset + 400)));
    let summary = check_with_index(&shared, &options, true, &Silent).unwrap();
    assert_eq!((summary.damaged.len(), summary.quarantined_segments), (1, 1));
    let summary = check_with_index(&shared, &options, true, &Silent).unwrap();
    assert_eq!((summary.quarantined_segments, summary.index), (0, CheckIndex::Agrees));
    assert!(summary.damaged.iter().all(|it| it.places.is_empty()), "{:?}", summary.damaged);
    let (writer, backup) = backup(shared.into_inner().unwrap(), "a", &disk, &told);
    assert_eq!(backup.stats.new_segments, 1);
    assert_eq!(restores(writer.repository(), "a", &disk), Vec::<String>::new());
    let writer = rebuilt(writer, &storage, &root);
    let (writer, backup) = crate::backup(writer, "a", &disk, &told);
    assert_eq!(backup.stats.unchanged_segments, 4);
    checked(writer);
}
