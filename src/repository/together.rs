//! `together.toml`: backups of several backupsets that have come to exist at one moment.
//!
//! A backup exists when its `set.toml` says so, and no two files can be replaced at once. So what several of them are to
//! say is written here first, in one file: **once it is there, all of these backups exist**, and whoever reads the sets
//! takes them as said. Then each `set.toml` is replaced, and the file goes. Whoever opens the repository after a crash
//! finishes that, before anything else is done; each step can be repeated.
//!
//! What a power loss leaves of the marker of a first backup (`newborn.tmp`), of `set.toml` and of this file. Each line is durable
//! before the next one is begun, in a commit and when it is finished after a crash:
//!
//! | step | what lies there after it | what the next opening takes it for |
//! |---|---|---|
//! | folder and marker | the marker, drafts | not born: it goes |
//! | `set.toml` without a backup, manifests | the same, with the marker beside it | not born: it goes, `set.toml` last |
//! | `together.toml` | the same, and the file | its backups exist: each `set.toml` is replaced |
//! | each `set.toml` | some with their backups, the others without | the same: one that has its backup stays as it is |
//! | the file is removed | every `set.toml` has its backup | done |
//!
//! The marker is removed after its `set.toml` has the backup, and nobody waits for that: beside a `set.toml` it says nothing. So
//! neither of the two files can be taken for the other's: without `together.toml`, a `set.toml` without backups is one of a commit
//! that never came so far, as the file goes only after all sets are durable.
//!
//! A backup whose number a set has given already is in it, or was and has been deleted: an old file that comes back in a
//! power loss does nothing.

use serde::{Deserialize, Serialize};

use crate::error::ErrorKind;
use crate::manifest::{BackupsetId, Incremental};
use crate::progress::{Notice, Progress};
use crate::repository::set_file::{FileBackup, read_sealed, seal};
use crate::repository::settings::{FORMAT, check_length};
use crate::repository::{BackupRecord, Backupset, Layout, Repository, RepositoryError};
use crate::storage::{Storage, replace};

/// What a backupset will say of a new backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Addition {
    pub(super) backupset: BackupsetId,
    pub(super) record: BackupRecord,
    /// Earlier backups that are suspect from now on, and why.
    pub(super) suspects: Vec<Incremental>,
    pub(super) why: String,
}

impl Addition {
    /// Adds the backup to its backupset. Says whether that was still to be done.
    pub(super) fn apply(&self, set: &mut Backupset) -> bool {
        let number = self.record.incremental.0;
        let Some(next) = number.checked_add(1).filter(|_| number >= set.next_incremental) else {
            return false;
        };
        for record in set.backups.iter_mut().chain(&mut set.deleted) {
            if self.suspects.contains(&record.incremental) {
                record.suspect = Some(self.why.clone());
            }
        }
        set.backups.push(self.record.clone());
        set.next_incremental = next;
        true
    }
}

/// Backups that exist together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Together {
    additions: Vec<Addition>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    #[serde(rename = "addition")]
    additions: Vec<FileAddition>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileAddition {
    backupset: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    suspects: Vec<u32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    why: String,
    backup: FileBackup,
}

impl FileAddition {
    fn read(self) -> Result<Addition, String> {
        Ok(Addition {
            backupset: self.backupset.parse().map_err(|_| format!("{:?} is no UUID", self.backupset))?,
            record: self.backup.read()?,
            suspects: self.suspects.into_iter().map(Incremental).collect(),
            why: self.why,
        })
    }
}

impl Together {
    pub(super) fn new(additions: Vec<Addition>) -> Self {
        Self { additions }
    }

    /// Reads the file; nothing if there is none.
    pub(super) fn read(storage: &dyn Storage, layout: &Layout) -> Result<Option<Self>, RepositoryError> {
        let path = layout.together();
        let text = match read_sealed(storage, &path) {
            Ok(text) => text,
            Err(RepositoryError::Storage(error)) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let settings = |what: String| RepositoryError::Settings { path: path.clone(), what };
        let file: File = toml::from_str(&text).map_err(|error| settings(error.message().to_owned()))?;
        let additions = file.additions.into_iter().map(FileAddition::read).collect::<Result<Vec<_>, _>>();
        Ok(Some(Self { additions: additions.map_err(settings)? }))
    }

    /// Returns what the file will say.
    ///
    /// # Errors
    /// It would be longer than Ekko reads. Nothing is written then.
    pub(super) fn text(&self, layout: &Layout) -> Result<String, RepositoryError> {
        let path = layout.together();
        let addition = |addition: &Addition| FileAddition {
            backupset: addition.backupset.to_string(),
            suspects: addition.suspects.iter().map(|number| number.0).collect(),
            why: addition.why.clone(),
            backup: FileBackup::of(&addition.record),
        };
        let file = File { format: FORMAT, additions: self.additions.iter().map(addition).collect() };
        let text = toml::to_string(&file)
            .map_err(|error| RepositoryError::Settings { path: path.clone(), what: error.to_string() })?;
        let text = seal(&text);
        check_length(&path, &text)?;
        Ok(text)
    }

    /// Writes the file, which will say `text`. When this returns, the backups exist.
    ///
    /// # Errors
    /// An earlier one is there still: what it says could not be finished, and must not be forgotten.
    pub(super) fn write(storage: &dyn Storage, layout: &Layout, text: &str) -> Result<(), RepositoryError> {
        let path = layout.together();
        if Self::read(storage, layout)?.is_some() {
            let what = "backups that it names could not be entered into their sets".to_owned();
            return Err(RepositoryError::SettingsDamaged { path, what });
        }
        Ok(replace(storage, &path, text.as_bytes())?)
    }

    /// Removes the file, durably: every set says what it said.
    pub(super) fn remove(storage: &dyn Storage, layout: &Layout) -> Result<(), RepositoryError> {
        storage.unlink(&layout.together())?;
        Ok(storage.sync_folder(&layout.sets())?)
    }

    /// Returns the backupsets that it names and that are not among `sets`.
    pub(super) fn missing(&self, sets: &[Backupset]) -> Vec<BackupsetId> {
        let ids = self.additions.iter().map(|addition| addition.backupset);
        ids.filter(|id| sets.iter().all(|set| set.id != *id)).collect()
    }

    /// Has a set say what it will say.
    pub(super) fn apply_to(&self, set: &mut Backupset) {
        let id = set.id;
        for addition in self.additions.iter().filter(|addition| addition.backupset == id) {
            addition.apply(set);
        }
    }

    /// Has all sets say what they will say. One that is not there is a problem, unless others tell of it.
    pub(super) fn apply(&self, sets: &mut [Backupset], layout: &Layout, problems: &mut Vec<RepositoryError>) {
        for set in sets.iter_mut() {
            self.apply_to(set);
        }
        let is_gone = |addition: &&Addition| sets.iter().all(|set| set.id != addition.backupset);
        if let Some(gone) = self.additions.iter().find(is_gone).filter(|_| problems.is_empty()) {
            let what = format!("the backupset {} that it names is not there", gone.backupset);
            problems.push(RepositoryError::SettingsDamaged { path: layout.together(), what });
        }
    }
}

/// Finishes what a crash cut short. Says whether it is known which backups exist: if the file is damaged, it is not, and a
/// manifest that no set knows may be that of one.
pub(super) fn finish(repository: &Repository, progress: &dyn Progress) -> Result<bool, RepositoryError> {
    let (storage, layout) = (repository.storage.as_ref(), &repository.layout);
    let together = match Together::read(storage, layout) {
        Ok(None) => return Ok(true),
        Ok(Some(together)) => together,
        Err(error) if error.kind() == ErrorKind::Io => return Err(error),
        // It is told with the sets that cannot be read.
        Err(_) => return Ok(false),
    };
    // A process that was killed may have given the file its name without a sync. Without this one, a power loss after the first
    // of the sets was replaced could take the file, and with it the rest of what it says.
    storage.sync_folder(&layout.sets())?;
    let (mut all, mut finished) = (true, 0);
    for addition in &together.additions {
        match Backupset::read(storage, layout, addition.backupset) {
            Ok(mut set) => {
                if addition.apply(&mut set) {
                    set.write(storage, layout)?;
                    finished += 1;
                } else {
                    // Its list may have its name without a sync, too.
                    storage.sync_folder(&layout.set(addition.backupset))?;
                }
            }
            Err(error) if error.kind() == ErrorKind::Io => return Err(error),
            // Its manifest stays, as does the file that says of it.
            Err(_) => all = false,
        }
    }
    if finished > 0 {
        let what = format!("{finished} backups that exist together were entered into their sets");
        progress.notice(Notice::Recovered { what });
    }
    if all {
        Together::remove(storage, layout)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::manifest::ImageName;
    use crate::progress::Silent;
    use crate::repository::{InitOptions, Protection};
    use crate::segment::Fingerprint;
    use crate::storage::{FaultPlan, FaultStorage, Keep, OsStorage};

    fn record(number: u32) -> BackupRecord {
        BackupRecord {
            incremental: Incremental(number),
            manifest: Fingerprint::of(&number.to_le_bytes()),
            timestamp: jiff::Timestamp::UNIX_EPOCH,
            size_of_disk: 5,
            segments: 1,
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
        (folder, repository, Together::new(additions))
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
        first.deleted.push(first.backups.remove(1));
        first.write(&OsStorage, &repository.layout).unwrap();
        write(&together, &repository).unwrap();
        assert_eq!(lengths(&repository).0.iter().sum::<usize>(), 3);
        assert!(finish(&repository, &Silent).unwrap());
        assert_eq!(lengths(&repository).0.iter().sum::<usize>(), 3);
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
        write(&Together::new(vec![more]), &repository).unwrap();
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
}
