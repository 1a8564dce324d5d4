//! A process that stays: an index that fails while several jobs run, a write that fails, a folder that goes away.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{
    MemoryImage, Noise, SEGMENT, Told, backup, copy_folder, fresh, name, open, options, restore,
    small_segments,
};
use ekko::backup::{BackupError, BackupSummary, back_up};
use ekko::check::{CheckIndex, CheckOptions, ReadData, check_with_index};
use ekko::manifest::Incremental;
use ekko::progress::{Progress, Silent};
use ekko::repository::{
    Changed, Deletion, GcOptions, OpenOptions, Repository, RepositoryError, RepositoryWriter, SharedWriter,
};
use ekko::segment::{SegmentHash, SegmentKey, Twin};
use ekko::storage::{FaultPlan, FaultStorage, Keep, Storage};

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

fn back(shared: &SharedWriter, image: &str, disk: &[u8], told: &Told) -> Result<BackupSummary, BackupError> {
    back_up(shared, &name(image), &MemoryImage::new(disk, 4096), &options(), told)
}

/// Restores every backup, checks everything, and returns the names that were restored.
fn all_is_whole(shared: &SharedWriter, disks: &[(&str, &[u8])]) -> Vec<String> {
    let (sets, problems) = shared.repository().backupsets().unwrap();
    assert!(problems.is_empty());
    let mut names = Vec::new();
    for set in &sets {
        for record in &set.backups {
            let disk = disks.iter().find(|(name, _)| *name == set.name.as_str()).unwrap().1;
            assert!(
                restore(shared.repository(), set, record).0 == disk,
                "{}@{}",
                set.name,
                record.incremental
            );
            names.push(set.name.to_string());
        }
    }
    let options = CheckOptions { read_data: ReadData::All, jobs: 2 };
    let summary = check_with_index(shared, &options, false, &Silent).unwrap();
    assert!(summary.is_clean() && summary.index == CheckIndex::Agrees, "{:?}", summary.problems);
    names.sort();
    names
}

/// Opens a repository for a process that stays, on a storage with a fault.
fn faulty(root: &Path, plan: FaultPlan, told: &Told) -> (FaultStorage, SharedWriter) {
    let faults = FaultStorage::new(root.parent().unwrap(), plan).unwrap();
    let storage: Arc<dyn Storage> = Arc::new(faults.clone());
    let writer = RepositoryWriter::open_with(&storage, root, &OpenOptions::default(), told).unwrap();
    (faults, SharedWriter::new(writer).staying().unwrap())
}

#[test]
fn after_a_write_that_failed_the_next_job_works_without_a_new_process() {
    let disks: [(&str, Vec<u8>); 3] = [
        ("old", Noise::new(1).bytes(3 * SEGMENT)),
        ("big", Noise::new(2).bytes(9 * SEGMENT)),
        ("small", vec![7; 99]),
    ];
    let of = |image: &str| disks.iter().find(|(name, _)| *name == image).unwrap().1.as_slice();
    let known: Vec<(&str, &[u8])> = disks.iter().map(|(name, disk)| (*name, disk.as_slice())).collect();
    let prepare = || {
        let (folder, root, writer) = fresh(&small_segments(), &Told::default());
        let (writer, _) = backup(writer, "old", of("old"), &Told::default());
        writer.close().unwrap();
        (folder, root)
    };
    let (from, until) = {
        let (_folder, root) = prepare();
        let told = Told::default();
        let (faults, shared) = faulty(&root, FaultPlan::Count, &told);
        let from = faults.operations();
        back(&shared, "big", of("big"), &told).unwrap();
        (from, faults.operations())
    };
    let errors = [std::io::ErrorKind::StorageFull, std::io::ErrorKind::Other];
    let mut failed = 0;
    for (at, error) in (from..until).zip(errors.into_iter().cycle()) {
        let (_folder, root) = prepare();
        let told = Told::default();
        // The reserve is there already, so the operations are those that were counted.
        let (_, shared) = faulty(&root, FaultPlan::Fail { at, error }, &told);
        let first = back(&shared, "big", of("big"), &told);
        let is_full = matches!(first, Err(BackupError::Repository(RepositoryError::Full { .. })));
        assert!(!is_full || error == std::io::ErrorKind::StorageFull, "operation {at}: {first:?}");
        failed += u32::from(first.is_err());
        // At once, in the same process.
        shared
            .run_job(
                &told,
                |_| false,
                |writer| {
                    writer.gc(
                        &GcOptions {
                            dry_run: false,
                            now: Some(""),
                            keep_unfinished: None,
                            accept_lost: false,
                            jobs: 2,
                        },
                        &told,
                    )
                },
            )
            .unwrap();
        back(&shared, "small", of("small"), &told).unwrap();
        shared.readiness().unwrap();
        let mut expected = vec!["old", "small"];
        expected.extend(first.is_ok().then_some("big"));
        expected.sort_unstable();
        let held = all_is_whole(&shared, &known);
        let counted = first.is_err() && held.len() == 3;
        // A change may be durable though its last step failed.
        assert!(counted || held == expected, "operation {at}: {held:?}");
        // It was opened as after a crash: nothing was wrong with the index.
        assert_eq!(told.rebuilds(), 0, "operation {at}: {:?}", told.all());
        shared.close().unwrap();
        assert_eq!(told.problems(), Vec::<String>::new());
        let again = Told::default();
        open(&root, &again).close().unwrap();
        assert_eq!(again.all(), [], "operation {at}");
    }
    assert!(failed > 10, "{failed} of {}", until - from);
}

#[test]
fn reading_goes_on_while_nothing_can_be_written() {
    let told = Told::default();
    let disk = Noise::new(6).bytes(3 * SEGMENT);
    let (_folder, root, writer) = fresh(&small_segments(), &told);
    let (writer, _) = backup(writer, "web", &disk, &told);
    writer.close().unwrap();
    let opening = {
        let (faults, shared) = faulty(&root, FaultPlan::Count, &told);
        let operations = faults.operations();
        shared.close().unwrap();
        operations
    };
    let plan = FaultPlan::PowerLoss { at: opening + 3, keep: Keep::Nothing };
    let (_, shared) = faulty(&root, plan, &told);
    // The first operation that fails may be one that stops nothing.
    for _ in 0..3 {
        back(&shared, "web", &Noise::new(7).bytes(3 * SEGMENT), &told).unwrap_err();
    }
    shared.readiness().unwrap_err();
    shared.look_after(&told).unwrap();
    shared.readiness().unwrap_err();
    shared.with(|writer| Ok(writer.store().lost_segments()?)).unwrap();
    let (sets, _) = shared.repository().backupsets().unwrap();
    assert!(restore(shared.repository(), &sets[0], &sets[0].backups[0]).0 == disk);
    back(&shared, "web", &disk, &told).unwrap_err();
}

/// Fills the disk once while a check reads data, then lets the repository be reopened.
struct FullMeanwhile<'a> {
    shared: &'a SharedWriter,
    told: &'a Told,
    done: AtomicBool,
}

impl Progress for FullMeanwhile<'_> {
    fn advance(&self, _: u64) {
        if self.done.swap(true, Ordering::AcqRel) {
            return;
        }
        let fill = |writer: &RepositoryWriter| {
            writer.store().poison("No space left on device", true, false);
            Ok::<_, RepositoryError>(writer.store().check()?)
        };
        self.shared.run_job(self.told, |()| false, fill).unwrap_err();
        self.shared.look_after(self.told).unwrap();
        self.shared.readiness().unwrap();
        back(self.shared, "small", &[7; 99], self.told).unwrap();
    }
}

#[test]
fn a_check_that_reads_data_keeps_no_repository_from_being_opened_again() {
    let told = Told::default();
    let (_folder, _, writer) = fresh(&small_segments(), &told);
    let (writer, _) = backup(writer, "web", &Noise::new(9).bytes(3 * SEGMENT), &told);
    let shared = SharedWriter::new(writer).staying().unwrap();
    let full = FullMeanwhile { shared: &shared, told: &told, done: AtomicBool::new(false) };
    let options = CheckOptions { read_data: ReadData::All, jobs: 1 };
    let summary = check_with_index(&shared, &options, false, &full).unwrap();
    assert!(full.done.into_inner(), "no data was read");
    assert!(summary.is_clean() && summary.index == CheckIndex::Agrees, "{:?}", summary.problems);
    shared.close().unwrap();
}

#[test]
fn an_index_that_cannot_be_finished_leaves_nothing() {
    let rebuild = OpenOptions { rebuild: true, ..OpenOptions::default() };
    let told = Told::default();
    let prepare = || {
        let (folder, root, writer) = fresh(&small_segments(), &told);
        let (writer, _) = backup(writer, "web", &Noise::new(8).bytes(3 * SEGMENT), &told);
        writer.close().unwrap();
        (folder, root)
    };
    let open_with = |root: &Path, plan| {
        let faults = FaultStorage::new(root.parent().unwrap(), plan).unwrap();
        let storage: Arc<dyn Storage> = Arc::new(faults.clone());
        (faults, RepositoryWriter::open_with(&storage, root, &rebuild, &told))
    };
    let last = {
        let (_folder, root) = prepare();
        let (faults, opened) = open_with(&root, FaultPlan::Count);
        opened.unwrap().close().unwrap();
        let is_last = |line: &String| line.contains("sync folder") && line.ends_with("/index");
        faults.log().iter().position(is_last).unwrap() as u64
    };
    let (_folder, root) = prepare();
    let names = || {
        let entries = std::fs::read_dir(root.join("index")).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
    };
    let before = names();
    let plan = FaultPlan::Fail { at: last, error: std::io::ErrorKind::Other };
    open_with(&root, plan).1.unwrap_err();
    assert_eq!(names(), before);
    let still_open: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|path| path.starts_with(root.join("index")))
        .collect();
    assert_eq!(still_open, Vec::<std::path::PathBuf>::new());
    open(&root, &told).close().unwrap();
}

#[test]
fn nothing_is_done_in_another_folder_while_that_of_the_repository_is_away() {
    let told = Told::default();
    let disk = Noise::new(5).bytes(3 * SEGMENT);
    let (folder, root, writer) = fresh(&small_segments(), &told);
    let shared = SharedWriter::new(writer).staying().unwrap();
    back(&shared, "web", &disk, &told).unwrap();
    let away = folder.path().join("away");
    let is_away = |result: Result<BackupSummary, BackupError>| {
        matches!(result, Err(BackupError::Repository(RepositoryError::Moved { .. })))
    };
    let refuses = || {
        assert!(matches!(shared.readiness(), Err(RepositoryError::Moved { .. })));
        assert!(matches!(shared.look_after(&told), Err(RepositoryError::Moved { .. })));
        assert!(is_away(back(&shared, "web", &disk, &told)));
        assert!(shared.with(|_| Ok(())).is_err());
    };
    std::fs::rename(&root, &away).unwrap();
    refuses();
    // As a mount point that is not mounted.
    std::fs::create_dir(&root).unwrap();
    refuses();
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
    // Another repository is not that one.
    std::fs::remove_dir(&root).unwrap();
    Repository::init(&root, &small_segments()).unwrap();
    refuses();
    std::fs::remove_dir_all(&root).unwrap();
    // It is back.
    std::fs::rename(&away, &root).unwrap();
    shared.readiness().unwrap();
    back(&shared, "web", &disk, &told).unwrap();
    // A copy is not it.
    std::fs::rename(&root, &away).unwrap();
    copy_folder(&away, &root);
    refuses();
    std::fs::remove_dir_all(&root).unwrap();
    std::fs::rename(&away, &root).unwrap();
    assert_eq!(all_is_whole(&shared, &[("web", disk.as_slice())]), ["web", "web"]);
    shared.close().unwrap();
}

/// A disk on three nights.
struct Nights {
    told: Told,
    _folder: tempfile::TempDir,
    root: PathBuf,
    disks: [Vec<u8>; 3],
}

impl Nights {
    /// Three disks. The last has the first one's segment 0 and the second one's segment 1, and nothing else is shared.
    fn new() -> (Self, RepositoryWriter) {
        let told = Told::default();
        let (folder, root, writer) = fresh(&small_segments(), &told);
        let mut disks = [1, 2, 3].map(|seed| Noise::new(seed).bytes(4 * SEGMENT));
        let [first, second, third] = &mut disks;
        third[..SEGMENT].copy_from_slice(&first[..SEGMENT]);
        third[SEGMENT..2 * SEGMENT].copy_from_slice(&second[SEGMENT..2 * SEGMENT]);
        (Self { told, _folder: folder, root, disks }, writer)
    }

    fn back_up(&self, writer: RepositoryWriter, nights: &[usize]) -> RepositoryWriter {
        nights.iter().fold(writer, |writer, night| backup(writer, "web", &self.disks[*night], &self.told).0)
    }

    fn manifest(&self, night: u32) -> PathBuf {
        let set = &Repository::open(&self.root).unwrap().backupsets().unwrap().0[0];
        self.root.join("manifests").join(set.id.to_string()).join(night.to_string())
    }

    /// Deletes a backup, opens the repository again, which counts the one that was put back, frees the garbage, and
    /// restores the rest.
    fn delete_and_collect(&self, writer: RepositoryWriter, night: u32) {
        let shared = SharedWriter::new(writer);
        let set = shared.repository().backupsets().unwrap().0.remove(0);
        let deletion = Deletion { backupset: set.id, incremental: Incremental(night) };
        let replace = |changed: &Changed| changed.replace_index;
        shared.run_job(&self.told, replace, |writer| writer.delete(deletion)).unwrap();
        shared.close().unwrap();
        let shared = SharedWriter::new(open(&self.root, &self.told));
        self.index_agrees(&shared);
        let options =
            GcOptions { now: Some(""), keep_unfinished: Some(Duration::ZERO), ..GcOptions::default() };
        shared.with(|writer| writer.gc(&options, &self.told)).unwrap();
        let set = shared.repository().backupsets().unwrap().0.remove(0);
        for record in &set.backups {
            let (bytes, summary) = restore(shared.repository(), &set, record);
            assert!(summary.damaged.is_empty(), "{}: {:?}", record.incremental, summary.damaged);
            assert!(bytes == self.disks[record.incremental.0 as usize], "{}", record.incremental);
        }
        assert_eq!(set.backups.len(), 2);
        self.index_agrees(&shared);
        shared.close().unwrap();
    }

    fn index_agrees(&self, shared: &SharedWriter) {
        let options = CheckOptions { read_data: ReadData::All, jobs: 2 };
        let summary = check_with_index(shared, &options, false, &self.told).unwrap();
        assert!(summary.is_clean() && summary.index == CheckIndex::Agrees, "{:?}", summary.problems);
    }
}

#[test]
fn a_manifest_that_was_put_back_while_a_process_runs_costs_no_other_backup_its_segments() {
    for deleted in 0..3 {
        let (nights, writer) = Nights::new();
        nights.back_up(writer, &[0, 1, 2]).close().unwrap();
        let (manifest, aside) = (nights.manifest(1), nights.root.with_extension("aside"));
        fs::rename(&manifest, &aside).unwrap();
        fs::remove_dir_all(nights.root.join("index")).unwrap();
        // The others are counted without it.
        let writer = open(&nights.root, &nights.told);
        fs::rename(&aside, &manifest).unwrap();
        nights.delete_and_collect(writer, deleted);
    }
}

#[test]
fn a_backup_is_not_counted_beside_an_older_one_because_the_newest_cannot_be_read() {
    for deleted in 0..3 {
        let (nights, writer) = Nights::new();
        let writer = nights.back_up(writer, &[0, 1]);
        let (manifest, aside) = (nights.manifest(1), nights.root.with_extension("aside"));
        fs::rename(&manifest, &aside).unwrap();
        let writer = nights.back_up(writer, &[2]);
        fs::rename(&aside, &manifest).unwrap();
        nights.delete_and_collect(writer, deleted);
    }
}

#[test]
fn a_backup_is_not_counted_beside_one_that_is_not_counted() {
    for deleted in 0..3 {
        let (nights, writer) = Nights::new();
        nights.back_up(writer, &[0, 1]).close().unwrap();
        let (manifest, aside) = (nights.manifest(1), nights.root.with_extension("aside"));
        fs::rename(&manifest, &aside).unwrap();
        fs::remove_dir_all(nights.root.join("index")).unwrap();
        let writer = open(&nights.root, &nights.told);
        fs::rename(&aside, &manifest).unwrap();
        let writer = nights.back_up(writer, &[2]);
        nights.delete_and_collect(writer, deleted);
    }
}
