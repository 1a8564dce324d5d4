//! Faults at every single operation of a script of backups, of machines as well, deletions and an import: a failed one, a full disk, a torn write, a power loss.
//!
//! The script's operations are counted first; then it runs once for each of them and each fault. After every run
//! the repository opens by itself, every acknowledged backup restores bit for bit, everything that is listed
//! restores, the next backup works, and a second opening finds nothing left to say.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use common::{
    MemoryImage, Noise, SEGMENT, Told, backup, copy_folder, name, open, options, restore, small_segments,
};
use ekko::backup::{BackupSummary, back_up};
use ekko::check::{CheckIndex, CheckOptions, CheckSummary, ReadData, check_with_index};
use ekko::exchange::{ExportOptions, ForeignFormat, ImportOptions, export_backup, import_backup};
use ekko::machine::{
    Attachment, FileName, MachineBackup, MachineOptions, MachineSource, Moment, back_up_machine,
};
use ekko::manifest::foreign::{self, ManifestFormat};
use ekko::manifest::{BackupsetId, Incremental, ManifestReader};
use ekko::progress::Silent;
use ekko::repository::{
    BackupRecord, Backupset, Changed, Deletion, GcOptions, GcSummary, OpenOptions, Repository,
    RepositoryError, RepositoryWriter, SharedWriter,
};
use ekko::storage::{FaultPlan, FaultStorage, Keep, Storage};

/// A backup that was acknowledged.
struct Acknowledged {
    set: BackupsetId,
    incremental: Incremental,
    disk: usize,
    /// Whether it was deleted; nothing where that is not known.
    deleted: Option<bool>,
}

/// What the index is after a power loss: sled's files are its own, so every state that a crash could leave is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IndexThen {
    AsItIs,
    Gone,
    Old,
}

/// The disks of the script: a first state and a later one of two machines.
fn disks() -> Vec<Vec<u8>> {
    let mut noise = Noise::new(7);
    let web = noise.bytes(2 * SEGMENT + 100);
    let mut db = [noise.bytes(SEGMENT), vec![0; SEGMENT], web[..SEGMENT].to_vec()].concat();
    let web_later = [&web[..SEGMENT], &noise.bytes(SEGMENT)].concat();
    let first_db = db.clone();
    db[SEGMENT + 5] = 1;
    db[5] ^= 1;
    // What is imported shares a segment with what is backed up.
    let old = [noise.bytes(SEGMENT), vec![0; SEGMENT], web[..SEGMENT].to_vec(), noise.bytes(7)].concat();
    vec![web, first_db, web_later, db, old]
}

/// The number of the disk that is imported.
const OLD: usize = 4;

/// A backup as the original has it: a manifest, and a folder of segment files.
static ORIGINAL: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let told = Told::default();
    Repository::init(&at("store"), &small_segments()).unwrap();
    let (writer, summary) = backup(open(&at("store"), &told), "old", &disks()[OLD], &told);
    let (sets, _) = writer.repository().backupsets().unwrap();
    let set = sets.iter().find(|set| set.id == summary.backup.backupset).unwrap();
    let manifest = writer.repository().manifest(set, &set.backups[0]).unwrap();
    let segments = at("segments");
    let options =
        ExportOptions { format: ForeignFormat::Sqlite, segments: Some(&segments), replace: false, jobs: 2 };
    export_backup(writer.repository(), &manifest, &at("sqlite"), &options, &told).unwrap();
    foreign::import(&at("sqlite"), ManifestFormat::Sqlite, &name("old"), &at("manifest"), false, &Silent)
        .unwrap();
    folder
});

/// Imports the original's backup.
fn import(writer: &SharedWriter, told: &Told) -> Option<Acknowledged> {
    let manifest = ManifestReader::read(&ORIGINAL.path().join("manifest")).unwrap();
    let segments = ORIGINAL.path().join("segments");
    let options = ImportOptions { segments: Some(&segments), compression: options().compression, jobs: 2 };
    let summary = import_backup(writer, &manifest, &name("old"), &options, told).ok()?;
    let (set, incremental) = (summary.backup.backupset, summary.backup.incremental);
    Some(Acknowledged { set, incremental, disk: OLD, deleted: Some(false) })
}

/// The disks of the machine of the script, by number, at its two moments.
const MACHINE: [[(&str, usize); 2]; 2] = [[("m/a", 2), ("m/b", 3)], [("m/a", 3), ("m/b", 2)]];

/// Backs the machine up: two disks, and a file beside them.
fn back_up_both(
    writer: &SharedWriter,
    moment: [(&str, usize); 2],
    disks: &[Vec<u8>],
    told: &Told,
) -> Vec<Acknowledged> {
    let source = |(image, disk): (&str, usize)| MachineSource {
        name: name(image),
        image: Box::new(MemoryImage::new(&disks[disk], 4096)),
        options: options(),
    };
    let attached = vec![Attachment { name: FileName::new("m.xml").unwrap(), bytes: b"<m/>".to_vec() }];
    // One after the other, so that the operations have an order.
    let how = MachineOptions { at_once: 1, moment: options() };
    let machine = MachineBackup::new(name("m"), moment.map(source).into(), attached, how, &|| {}).unwrap();
    let Ok(summary) = back_up_machine(writer, &machine, told) else { return Vec::new() };
    let done = |(disk, (_, number)): (BackupSummary, _)| Acknowledged {
        set: disk.backup.backupset,
        incremental: disk.backup.incremental,
        disk: number,
        deleted: Some(false),
    };
    summary.disks.into_iter().zip(moment).map(done).collect()
}

/// Makes sure that of each moment of the machine all is there or nothing.
fn check_machines(repository: &Repository, sets: &[Backupset], case: &str) {
    let backups = |of: &str| -> usize {
        sets.iter().filter(|set| set.name.as_str() == of).map(|set| set.backups.len()).sum()
    };
    let moments = backups("m");
    assert_eq!((backups("m/a"), backups("m/b")), (moments, moments), "{case}: half a machine");
    for set in sets.iter().filter(|set| set.name.as_str() == "m") {
        for record in &set.backups {
            let moment = Moment::read(repository, &repository.manifest(set, record).unwrap(), &Silent);
            let moment = moment.unwrap_or_else(|error| panic!("{case}: {error}"));
            assert_eq!(
                (moment.disks.len(), moment.attached[0].bytes.as_slice()),
                (2, &b"<m/>"[..]),
                "{case}"
            );
            for disk in &moment.disks {
                let (_, found) = disk.find(sets).unwrap_or_else(|why| panic!("{case}: {why}"));
                assert_eq!(found.timestamp, record.timestamp, "{case}");
            }
        }
    }
}

/// Runs the script as a process would that goes on after a failed backup. Returns what was acknowledged.
fn script(storage: &Arc<dyn Storage>, root: &Path, disks: &[Vec<u8>], holes: bool) -> Vec<Acknowledged> {
    let mut acknowledged = Vec::new();
    let told = Told::default();
    if Repository::init_with(Arc::clone(storage), root, &small_segments()).is_err() {
        return acknowledged;
    }
    for (life, work) in [&[("web", 0), ("db", 1)][..], &[("web", 2), ("db", 3)]].into_iter().enumerate() {
        let Ok(writer) = RepositoryWriter::open_with(storage, root, &OpenOptions::default(), &told) else {
            return acknowledged;
        };
        let writer = SharedWriter::new(writer);
        for (image, disk) in work {
            let source = MemoryImage::new(&disks[*disk], 4096);
            if let Ok(summary) = back_up(&writer, &name(image), &source, &options(), &told) {
                let (set, incremental) = (summary.backup.backupset, summary.backup.incremental);
                acknowledged.push(Acknowledged { set, incremental, disk: *disk, deleted: Some(false) });
            }
        }
        if life == 1 {
            acknowledged.extend(back_up_both(&writer, MACHINE[0], disks, &told));
            change_machine(&writer, &mut acknowledged, &told);
            // The first backups go, and one of them comes back: what was said to be gone or there, is.
            change_backups(&writer, &mut acknowledged, holes, &told);
            // What is garbage then goes, and what is stored after it lies behind the dead records.
            let _ = collect(&writer, &told);
            acknowledged.extend(import(&writer, &told));
            let _ = collect(&writer, &told);
            acknowledged.extend(back_up_both(&writer, MACHINE[1], disks, &told));
        }
        let _ = writer.close();
        if life == 0 && root.join("index").is_dir() {
            copy_folder(&root.join("index"), &root.with_extension("old-index"));
        }
    }
    acknowledged
}

/// Collects all garbage, what unfinished backups stored as well.
fn collect(writer: &SharedWriter, told: &Told) -> Result<GcSummary, RepositoryError> {
    let options = GcOptions { now: Some(""), keep_unfinished: Some(Duration::ZERO), ..GcOptions::default() };
    writer.run_job(told, |summary: &GcSummary| summary.replace_index, |writer| writer.gc(&options, told))
}

/// Deletes the first two backups and undeletes the second, unless little is to live in the first pack. What was
/// acknowledged is kept in step.
fn change_backups(writer: &SharedWriter, acknowledged: &mut [Acknowledged], undelete: bool, told: &Told) {
    let changes = [(0, true), (1, true), (1, false)];
    for (number, deletes) in changes.into_iter().take(if undelete { 3 } else { 2 }) {
        let first = |disk: usize| move |it: &Acknowledged| it.disk == disk;
        let Some(at) = acknowledged.iter().position(first(number)) else { return };
        let id = Deletion { backupset: acknowledged[at].set, incremental: acknowledged[at].incremental };
        let job = |writer: &RepositoryWriter| if deletes { writer.delete(id) } else { writer.undelete(id) };
        let result = writer.run_job(told, |changed: &Changed| changed.replace_index, job);
        // Where it is not known whether it happened, either is right.
        acknowledged[at].deleted = match (deletes, result.is_ok()) {
            (true, true) => Some(true),
            (false, true) => Some(false),
            (_, false) => None,
        };
        if result.is_err() {
            return;
        }
    }
}

/// Deletes all backups of the machine at once, and undeletes them at once. What was acknowledged is kept in step.
fn change_machine(writer: &SharedWriter, acknowledged: &mut [Acknowledged], told: &Told) {
    let Ok((sets, _)) = writer.repository().backupsets() else { return };
    let of_machine = sets.iter().filter(|set| ["m", "m/a", "m/b"].contains(&set.name.as_str()));
    let backups = of_machine.flat_map(|set| {
        let of_set = |record: &BackupRecord| Deletion { backupset: set.id, incremental: record.incremental };
        set.backups.iter().map(of_set).collect::<Vec<_>>()
    });
    let backups: Vec<_> = backups.collect();
    for deletes in [true, false] {
        let job = |writer: &RepositoryWriter| {
            if deletes { writer.delete_all(&backups) } else { writer.undelete_all(&backups) }
        };
        let result = writer.run_job(told, |changed: &Changed| changed.replace_index, job);
        let is_one = |it: &&mut Acknowledged| {
            backups.contains(&Deletion { backupset: it.set, incremental: it.incremental })
        };
        // Where it is not known whether it happened, either is right, but of all of them.
        acknowledged.iter_mut().filter(is_one).for_each(|it| it.deleted = result.is_ok().then_some(deletes));
        if result.is_err() {
            return;
        }
    }
}

/// Checks everything that must hold after a fault.
fn check(root: &Path, acknowledged: &[Acknowledged], disks: &[Vec<u8>], case: &str) {
    let told = Told::default();
    match Repository::open(root) {
        Ok(_) => {}
        Err(
            RepositoryError::NotFound { .. }
            | RepositoryError::EmptyFolder { .. }
            | RepositoryError::Incomplete { .. },
        ) => {
            assert!(acknowledged.is_empty(), "{case}: the repository is gone");
            Repository::init(root, &small_segments())
                .unwrap_or_else(|error| panic!("{case}: init again: {error}"));
        }
        Err(error) => panic!("{case}: {error}"),
    }
    let writer = RepositoryWriter::open(root, &OpenOptions::default(), &told);
    let writer = writer.unwrap_or_else(|error| panic!("{case}: {error}"));
    assert_eq!(told.problems(), Vec::<String>::new(), "{case}");
    assert!(!root.join("manifests/together.toml").exists(), "{case}: what was cut short is not finished");
    let (sets, problems) = writer.repository().backupsets().unwrap();
    assert!(problems.is_empty(), "{case}: {problems:?}");
    // Of a first backup, or an import, that was not committed nothing stays: no name, no folder, no file.
    for entry in fs::read_dir(root.join("manifests")).unwrap() {
        let (id, path) = (entry.as_ref().unwrap().file_name(), entry.unwrap().path());
        let set = sets.iter().find(|set| set.id.to_string() == id.to_string_lossy());
        let set = set.unwrap_or_else(|| panic!("{case}: {} is nobody's", path.display()));
        assert!(set.next_incremental > 0, "{case}: {} has no backup", set.name);
        let files = fs::read_dir(&path).unwrap().map(|file| file.unwrap().file_name());
        let known = set.backups.len() + set.deleted.len();
        assert_eq!(files.count(), known + 1, "{case}: {} has files of no backup", set.name);
    }
    for acknowledged in acknowledged {
        let set = sets
            .iter()
            .find(|set| set.id == acknowledged.set)
            .unwrap_or_else(|| panic!("{case}: a set is gone"));
        let record = set.backups.iter().find(|record| record.incremental == acknowledged.incremental);
        let record = match (record, acknowledged.deleted) {
            (Some(record), Some(false) | None) => record,
            (None, Some(true) | None) => continue,
            (Some(_), Some(true)) => panic!("{case}: a deleted backup is there"),
            (None, Some(false)) => panic!("{case}: an acknowledged backup is gone"),
        };
        let (bytes, summary) = restore(writer.repository(), set, record);
        assert!(summary.damaged.is_empty(), "{case}: {:?}", summary.damaged);
        assert!(bytes == disks[acknowledged.disk], "{case}: an acknowledged backup differs");
    }
    check_machines(writer.repository(), &sets, case);
    let of_disks = || sets.iter().filter(|set| set.name.as_str() != "m");
    for (set, record) in of_disks().flat_map(|set| set.backups.iter().map(move |record| (set, record))) {
        let (bytes, summary) = restore(writer.repository(), set, record);
        assert!(summary.damaged.is_empty(), "{case}: {:?}", summary.damaged);
        assert!(disks.contains(&bytes), "{case}: what is listed is no disk that was backed up");
    }
    // What is left over goes, and takes nothing with it.
    let shared = SharedWriter::new(writer);
    assert_consistent(&shared, case);
    let collected = collect(&shared, &told).unwrap_or_else(|error| panic!("{case}: gc: {error}"));
    assert_eq!(collected.problems, Vec::<String>::new(), "{case}");
    let summary = assert_consistent(&shared, case);
    assert_eq!(summary.garbage_segments, 0, "{case}: garbage stays");
    let writer = shared.into_inner().unwrap();
    check_machines(writer.repository(), &sets, case);
    for (set, record) in of_disks().flat_map(|set| set.backups.iter().map(move |record| (set, record))) {
        let (bytes, summary) = restore(writer.repository(), set, record);
        assert!(summary.damaged.is_empty() && disks.contains(&bytes), "{case}: after a collection");
    }
    let (writer, _) = backup(writer, "web", &disks[2], &told);
    let (writer, summary) = backup(writer, "web", &disks[2], &told);
    assert_eq!(
        summary.stats.new_segments + summary.stats.deduplicated_segments,
        0,
        "{case}: nothing changed"
    );
    writer.close().unwrap_or_else(|error| panic!("{case}: {error}"));
    let told = Told::default();
    let writer = open(root, &told);
    assert_eq!(told.all(), [], "{case}: the second opening");
    let (sets, _) = writer.repository().backupsets().unwrap();
    let set = Repository::current_set(&sets, &name("web")).unwrap();
    let (bytes, _) = restore(writer.repository(), set, set.backups.last().unwrap());
    assert!(bytes == disks[2], "{case}: the next backup");
    writer.close().unwrap();
}

/// Checks the whole repository: nothing is wrong with it.
fn assert_consistent(writer: &SharedWriter, case: &str) -> CheckSummary {
    let options = CheckOptions { read_data: ReadData::All, jobs: 1 };
    let summary = check_with_index(writer, &options, false, &Silent).unwrap();
    assert!(summary.is_clean(), "{case}: {:?} {:?}", summary.problems, summary.damaged);
    assert_eq!(summary.index, CheckIndex::Agrees, "{case}");
    summary
}

/// Runs the script under a plan and checks what is left of it, in a copy: this process may still hold the old index.
fn run(plan: FaultPlan, index: &[IndexThen], holes: bool) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let fault = FaultStorage::new(folder.path(), plan).unwrap();
    let fault = if holes { fault } else { fault.without_holes() };
    let disks = disks();
    let storage: Arc<dyn Storage> = Arc::new(fault.clone());
    let acknowledged = script(&storage, &root, &disks, holes);
    if matches!(plan, FaultPlan::PowerLoss { .. }) {
        fault.lose_power().unwrap();
    }
    for then in index {
        let left = folder.path().join(format!("left-{then:?}"));
        if root.exists() {
            copy_folder(&root, &left);
            let old = root.with_extension("old-index");
            match then {
                IndexThen::AsItIs => {}
                IndexThen::Gone => drop(fs::remove_dir_all(left.join("index"))),
                IndexThen::Old if old.exists() => {
                    let _ = fs::remove_dir_all(left.join("index"));
                    copy_folder(&old, &left.join("index"));
                }
                IndexThen::Old => continue,
            }
        }
        let at = match plan {
            FaultPlan::Count => 0,
            FaultPlan::Fail { at, .. } | FaultPlan::Torn { at } | FaultPlan::PowerLoss { at, .. } => at,
        };
        let operation = fault.log().get(usize::try_from(at).unwrap()).cloned().unwrap_or_default();
        check(&left, &acknowledged, &disks, &format!("{plan:?} ({operation}), index {then:?}"));
    }
    fault.operations()
}

fn at_every_operation(plan: impl Fn(u64) -> FaultPlan, index: &[IndexThen], holes: bool) {
    let operations = run(FaultPlan::Count, &[IndexThen::AsItIs], holes);
    assert!(operations > 50, "the script does {operations} operations");
    for at in 0..operations {
        run(plan(at), index, holes);
    }
}

#[test]
fn a_failed_operation_anywhere_costs_nothing_that_was_acknowledged() {
    at_every_operation(|at| FaultPlan::Fail { at, error: ErrorKind::Other }, &[IndexThen::AsItIs], true);
}

#[test]
fn a_full_disk_anywhere_costs_nothing_that_was_acknowledged() {
    at_every_operation(
        |at| FaultPlan::Fail { at, error: ErrorKind::StorageFull },
        &[IndexThen::AsItIs],
        true,
    );
}

#[test]
fn a_torn_write_anywhere_costs_nothing_that_was_acknowledged() {
    at_every_operation(|at| FaultPlan::Torn { at }, &[IndexThen::AsItIs], true);
}

#[test]
fn a_power_loss_anywhere_that_takes_all_unsynced_work_costs_nothing_that_was_acknowledged() {
    let plan = |at| FaultPlan::PowerLoss { at, keep: Keep::Nothing };
    at_every_operation(plan, &[IndexThen::AsItIs, IndexThen::Gone, IndexThen::Old], true);
}

#[test]
fn a_power_loss_anywhere_that_leaves_half_the_unsynced_work_costs_nothing_that_was_acknowledged() {
    let plan = |at| FaultPlan::PowerLoss { at, keep: Keep::Half };
    at_every_operation(plan, &[IndexThen::AsItIs, IndexThen::Gone, IndexThen::Old], true);
}

#[test]
fn where_holes_give_nothing_back_a_failure_or_a_power_loss_anywhere_costs_nothing_either() {
    let plan = |at| FaultPlan::Fail { at, error: ErrorKind::Other };
    at_every_operation(plan, &[IndexThen::AsItIs], false);
    let plan = |at| FaultPlan::PowerLoss { at, keep: Keep::Nothing };
    at_every_operation(plan, &[IndexThen::AsItIs, IndexThen::Gone], false);
}

#[test]
fn after_a_failure_in_a_pack_no_change_is_taken_before_the_next_opening() {
    let disk = MemoryImage::new(&Noise::new(9).bytes(SEGMENT), 4096);
    let back = |plan| {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        let fault = FaultStorage::new(folder.path(), plan).unwrap();
        let storage: Arc<dyn Storage> = Arc::new(fault.clone());
        Repository::init_with(Arc::clone(&storage), &root, &small_segments()).unwrap();
        let open = || {
            RepositoryWriter::open_with(&storage, &root, &OpenOptions::default(), &Silent)
                .map(SharedWriter::new)
        };
        let writer = open().unwrap();
        let done = back_up(&writer, &name("web"), &disk, &options(), &Silent);
        let ready = writer.readiness();
        let stopped = writer.with(|writer| Ok(writer.store().check()?)).is_err();
        assert_eq!(ready.is_err(), stopped, "nothing that runs beside it changes anything either");
        drop(writer);
        let again = back_up(&open().unwrap(), &name("web"), &disk, &options(), &Silent);
        (fault.log(), done.is_ok(), ready.is_ok(), again.is_ok())
    };
    let (log, done, ready, again) = back(FaultPlan::Count);
    assert!(done && ready && again);
    let is_sync =
        |line: &String| line.contains(": sync ") && line.contains(".pack") && !line.contains(".pack.tmp");
    let at = log.iter().position(is_sync).unwrap() as u64;
    // The set names the backup by then, and it is not counted yet.
    let mut renames =
        (0..).zip(&log).filter(|(_, line)| line.contains("rename") && line.contains("set.toml"));
    let named = renames.next().unwrap().0 + 1;
    for at in [at, named] {
        let (log, done, ready, again) = back(FaultPlan::Fail { at, error: ErrorKind::Other });
        let operation = &log[usize::try_from(at).unwrap()];
        assert_eq!((done, ready, again), (false, false, true), "{operation}");
    }
}

#[test]
fn little_that_lives_is_moved_where_holes_give_nothing_back() {
    let folder = tempfile::tempdir().unwrap();
    let fault = FaultStorage::new(folder.path(), FaultPlan::Count).unwrap().without_holes();
    let storage: Arc<dyn Storage> = Arc::new(fault.clone());
    let root = folder.path().join("store");
    script(&storage, &root, &disks(), false);
    assert!(!fault.log().iter().any(|line| line.contains("punch")), "{:#?}", fault.log());
    assert!(!root.join("packs/0000000000000001.pack").exists(), "what lived in it is elsewhere");
}

#[test]
fn a_power_loss_after_the_last_operation_keeps_every_acknowledged_backup() {
    let disks = disks();
    let plan = FaultPlan::PowerLoss { at: u64::MAX, keep: Keep::Nothing };
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let fault = FaultStorage::new(folder.path(), plan).unwrap();
    let storage: Arc<dyn Storage> = Arc::new(fault.clone());
    let acknowledged = script(&storage, &root, &disks, true);
    assert_eq!(acknowledged.len(), 9);
    fault.lose_power().unwrap();
    check(&root, &acknowledged, &disks, "power loss at the end");
}
