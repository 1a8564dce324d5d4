use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::progress::Silent;
use crate::repository::{BackupNumber, InitOptions, Protection};
use crate::segment::Fingerprint;
use crate::storage::{FaultPlan, FaultStorage, Keep, OsStorage};

fn record(number: u32) -> BackupRecord {
    BackupRecord {
        number: BackupNumber(number),
        incremental: Incremental(number),
        manifest: Fingerprint::of(&number.to_le_bytes()),
        timestamp: jiff::Timestamp::UNIX_EPOCH,
        size_of_disk: 5,
        segments: 1,
        amounts: crate::repository::BackupAmounts::default(),
        is_machine: false,
        disks: Vec::new(),
        tags: vec!["monthly".to_owned()],
        protection: Protection::None,
        note: None,
        suspect: None,
        flaws: crate::manifest::FlawMarks::default(),
    }
}

/// A repository with two sets of a backup each, and what adds one to both.
fn two() -> (tempfile::TempDir, Repository, Together) {
    let folder = tempfile::tempdir().unwrap();
    let repository = Repository::init(&folder.path().join("R"), &InitOptions::default()).unwrap();
    let mut additions = Vec::new();
    for name in ["web/vda", "web/vdb"] {
        let set = Backupset {
            id: BackupsetId::random(),
            name: ImageName::new(name).unwrap(),
            next_number: 1,
            retired: false,
            former_names: Vec::new(),
            created: jiff::Timestamp::UNIX_EPOCH,
            bases: Vec::new(),
            origin: None,
            next_incremental: 1,
            backups: vec![record(0)],
            deleted: Vec::new(),
        };
        set.create(&OsStorage, &repository.layout).unwrap();
        let (suspects, why) = (vec![Incremental(0)], "a list was wrong".to_owned());
        additions.push(Addition { backupset: set.id, record: record(1), suspects, why });
    }
    (folder, repository, Together::of_additions(additions))
}

fn write(together: &Together, repository: &Repository) -> Result<(), RepositoryError> {
    Together::write(&OsStorage, &repository.layout, &together.text(&repository.layout)?)
}

fn lengths(repository: &Repository) -> (Vec<usize>, usize) {
    let (sets, problems) = repository.backupsets().unwrap();
    (sets.iter().map(|set| set.backups.len()).collect(), problems.len())
}

#[test]
fn from_the_moment_of_the_file_all_its_backups_exist_and_finishing_can_be_repeated() {
    let (_folder, repository, together) = two();
    assert_eq!(lengths(&repository), (vec![1, 1], 0));
    write(&together, &repository).unwrap();
    assert_eq!(Together::read(&OsStorage, &repository.layout).unwrap(), Some(together.clone()));
    assert_eq!(lengths(&repository), (vec![2, 2], 0), "readers see them");
    assert!(write(&together, &repository).is_err(), "what is not finished stays");
    // A crash after the first of the sets.
    let mut first = repository.backupset(together.additions[0].backupset).unwrap();
    assert_eq!(first.backups[0].suspect.as_deref(), Some("a list was wrong"));
    first.write(&OsStorage, &repository.layout).unwrap();
    assert!(finish(&repository, &Silent).unwrap());
    assert!(!repository.layout.together().exists());
    assert_eq!(lengths(&repository), (vec![2, 2], 0));
    // The file comes back after one of them was deleted: it does nothing.
    let record = first.backups.remove(1);
    first.deleted.push(DeletedBackup { record, deleted: jiff::Timestamp::UNIX_EPOCH, deleted_clock: 0 });
    first.write(&OsStorage, &repository.layout).unwrap();
    write(&together, &repository).unwrap();
    assert_eq!(lengths(&repository).0.iter().sum::<usize>(), 3);
    assert!(finish(&repository, &Silent).unwrap());
    assert_eq!(lengths(&repository).0.iter().sum::<usize>(), 3);
}

#[test]
fn an_undeletion_takes_back_the_deletion_that_it_names_and_no_later_one() {
    let (_folder, repository, together) = two();
    let ids: Vec<_> = together.additions.iter().map(|addition| addition.backupset).collect();
    let delete = |deleted_clock: u64| {
        for id in &ids {
            let mut set = Backupset::read(&OsStorage, &repository.layout, *id).unwrap();
            let record = set.backups.remove(0);
            let deleted = jiff::Timestamp::UNIX_EPOCH;
            set.deleted.push(DeletedBackup { record, deleted, deleted_clock });
            set.write(&OsStorage, &repository.layout).unwrap();
        }
    };
    delete(5);
    let sets = repository.backupsets().unwrap().0;
    let undeletions = sets.iter().map(|set| Undeletion::of(set.id, &set.deleted[0])).collect();
    let together = Together::of_undeletions(undeletions);
    write(&together, &repository).unwrap();
    assert_eq!(Together::read(&OsStorage, &repository.layout).unwrap(), Some(together.clone()));
    assert_eq!(lengths(&repository), (vec![1, 1], 0), "readers see them");
    // A crash after the first of the sets.
    let first = repository.backupset(ids[0]).unwrap();
    assert!(first.deleted.is_empty());
    first.write(&OsStorage, &repository.layout).unwrap();
    for _ in 0..2 {
        assert!(finish(&repository, &Silent).unwrap());
        assert_eq!(lengths(&repository), (vec![1, 1], 0));
    }
    // The file comes back after they were deleted again: it does nothing.
    delete(6);
    write(&together, &repository).unwrap();
    assert_eq!(lengths(&repository), (vec![0, 0], 0));
    assert!(finish(&repository, &Silent).unwrap());
    assert_eq!(lengths(&repository), (vec![0, 0], 0));
}

#[test]
fn a_damaged_file_is_told_and_nothing_is_known_then() {
    let (_folder, repository, together) = two();
    write(&together, &repository).unwrap();
    let path = repository.layout.together();
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x04;
        std::fs::write(&path, &changed).unwrap();
        assert!(!finish(&repository, &Silent).unwrap(), "byte {at}");
        assert_eq!(lengths(&repository), (vec![1, 1], 1), "byte {at}");
    }
    assert!(path.exists());
}

#[test]
fn a_set_that_cannot_be_read_keeps_the_file_and_the_others_are_finished() {
    let (_folder, repository, together) = two();
    write(&together, &repository).unwrap();
    let path = repository.layout.set_settings(together.additions[0].backupset);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, b"harmed").unwrap();
    assert!(finish(&repository, &Silent).unwrap());
    assert!(repository.layout.together().exists());
    assert_eq!(lengths(&repository), (vec![2], 1));
    std::fs::write(&path, whole).unwrap();
    assert!(finish(&repository, &Silent).unwrap());
    assert_eq!(lengths(&repository), (vec![2, 2], 0));
    assert!(!repository.layout.together().exists());
    // A set that is gone, folder and all, is told of by the file alone.
    let more = Addition { record: record(2), ..together.additions[0].clone() };
    write(&Together::of_additions(vec![more]), &repository).unwrap();
    std::fs::remove_dir_all(repository.layout.set(together.additions[0].backupset)).unwrap();
    assert_eq!(lengths(&repository), (vec![2], 1));
}

/// Writes a file as a process does that is killed before it syncs the folder. Takes four operations.
fn put_without_sync_of_the_name(storage: &FaultStorage, path: &Path, text: &str) {
    let temporary = path.with_extension("other");
    let file = storage.create(&temporary).unwrap();
    file.write_at(text.as_bytes(), 0).unwrap();
    file.sync().unwrap();
    storage.rename(&temporary, path).unwrap();
}

/// A process is killed when the file has its name, or when the first set was replaced as well, before that is durable; the
/// next one is cut off by a power loss at any operation.
#[test]
fn a_power_loss_while_a_crash_is_finished_leaves_all_of_them_or_none() {
    for first_is_replaced in [false, true] {
        let (mut at, mut seen) = (0, Vec::new());
        loop {
            let (folder, before, together) = two();
            let (root, layout) = (before.layout.root().to_owned(), before.layout.clone());
            let prepared = if first_is_replaced { 9 } else { 4 };
            let plan = FaultPlan::PowerLoss { at: at + prepared, keep: Keep::Nothing };
            let fault = FaultStorage::new(folder.path(), plan).unwrap();
            let repository = Repository::open_with(Arc::new(fault.clone()), &root).unwrap();
            put_without_sync_of_the_name(&fault, &layout.together(), &together.text(&layout).unwrap());
            if first_is_replaced {
                let addition = &together.additions[0];
                let mut set = Backupset::read(&fault, &layout, addition.backupset).unwrap();
                assert!(addition.apply(&mut set));
                fault.sync_folder(&layout.sets()).unwrap();
                put_without_sync_of_the_name(
                    &fault,
                    &layout.set_settings(set.id),
                    &set.text(&layout).unwrap(),
                );
            }
            let finished = finish(&repository, &Silent).is_ok();
            fault.lose_power().unwrap();
            let after = Repository::open(&root).unwrap();
            if first_is_replaced {
                // The file is durable: until all of it is, it stays.
                assert!(finish(&after, &Silent).unwrap());
            }
            let (lengths, problems) = lengths(&after);
            assert!(problems == 0 && lengths[0] == lengths[1], "{lengths:?} after {:#?}", fault.log());
            assert!(finish(&after, &Silent).unwrap());
            seen.push(lengths[0]);
            if finished {
                break;
            }
            at += 1;
        }
        let first = if first_is_replaced { 2 } else { 1 };
        assert_eq!((seen.first(), seen.last()), (Some(&first), Some(&2)), "{seen:?}");
    }
}
