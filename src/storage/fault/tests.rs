use super::*;
use crate::storage::OsStorage;
use crate::storage::replace;

const ERROR: io::ErrorKind = io::ErrorKind::Other;
const NOTHING: FaultPlan = FaultPlan::PowerLoss { at: u64::MAX, keep: Keep::Nothing };
const HALF: FaultPlan = FaultPlan::PowerLoss { at: u64::MAX, keep: Keep::Half };

/// A folder with files that are durable, and a storage over it.
struct Place {
    folder: tempfile::TempDir,
    storage: FaultStorage,
}

impl Place {
    fn new(plan: FaultPlan, files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        let storage = FaultStorage::new(folder.path(), plan).unwrap();
        Self { folder, storage }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self, name: &str) -> Box<dyn StorageFile> {
        self.storage.open(&self.path(name)).unwrap()
    }

    fn sync_folder(&self) {
        self.storage.sync_folder(self.folder.path()).unwrap();
    }

    /// Returns the names in the folder with their contents; a folder's is the names in it.
    fn content(&self) -> Vec<(String, String)> {
        let content = |name: String| {
            let text = match fs::read(self.path(&name)) {
                Ok(bytes) => String::from_utf8(bytes).unwrap(),
                Err(_) => OsStorage.list(&self.path(&name)).unwrap().join(" "),
            };
            (name, text)
        };
        self.storage.list(self.folder.path()).unwrap().into_iter().map(content).collect()
    }

    #[track_caller]
    fn assert(&self, expected: &[(&str, &str)]) {
        let content = self.content();
        let content: Vec<_> = content.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(content, expected, "after {:#?}", self.storage.log());
    }

    #[track_caller]
    fn assert_after_power_loss(&self, expected: &[(&str, &str)]) {
        self.storage.lose_power().unwrap();
        self.assert(expected);
    }
}

/// Does each operation once, and returns what each of them answered.
fn every_operation(place: &Place) -> Vec<Result<(), StorageError>> {
    let (storage, path) = (&place.storage, |name: &str| place.path(name));
    let file = storage.open(&path("a")).unwrap();
    vec![
        storage.create(&path("new")).map(drop),
        file.write_at(b"A", 0),
        file.sync(),
        file.truncate(2),
        file.allocate(4096),
        file.punch(0, 1),
        storage.rename(&path("b"), &path("c")),
        storage.rename_new(&path("c"), &path("d")),
        storage.unlink(&path("d")),
        storage.create_folder(&path("folder")),
        storage.remove_folder(&path("folder")),
        storage.sync_folder(place.folder.path()),
    ]
}

#[test]
fn every_operation_that_changes_something_is_counted_and_no_other() {
    let place = Place::new(FaultPlan::Count, &[("a", "aaa"), ("b", "b")]);
    every_operation(&place).into_iter().for_each(Result::unwrap);
    assert_eq!(place.storage.operations(), 12);
    let file = place.storage.open_read(&place.path("a")).unwrap();
    file.read_at(&mut [0; 2], 0).unwrap();
    place.content();
    assert_eq!(place.storage.operations(), 12);
    let log = place.storage.log();
    assert_eq!(log[1], format!("1: write {} (1 bytes at 0)", place.path("a").display()));
}

#[test]
fn only_the_chosen_operation_fails_and_it_is_not_done() {
    for at in 0..12 {
        let place = Place::new(FaultPlan::Fail { at, error: ERROR }, &[("a", "aaa"), ("b", "b"), ("c", "c")]);
        let results = every_operation(&place);
        let number = usize::try_from(at).unwrap();
        let error = results[number].as_ref().unwrap_err();
        assert_eq!(error.source.raw_os_error(), Some(Errno::IO.raw_os_error()));
        // A rename or a folder that did not come about is missed by those that need it.
        let needs_it = |later: usize| matches!((number, later), (6 | 7, 8) | (9, 10));
        for (later, result) in results.iter().enumerate() {
            assert!(result.is_ok() || later == number || needs_it(later), "{at}: {later}: {result:?}");
        }
    }
    let place = Place::new(FaultPlan::Fail { at: 0, error: io::ErrorKind::StorageFull }, &[("a", "aaa")]);
    let file = place.open("a");
    let error = file.write_at(b"A", 0).unwrap_err();
    assert!(error.is_full());
    assert!(error.to_string().starts_with(&format!("cannot write {}: ", place.path("a").display())));
    place.assert(&[("a", "aaa")]);
    file.write_at(b"A", 0).unwrap();
    place.assert(&[("a", "Aaa")]);
}

#[test]
fn a_torn_write_leaves_its_first_half_in_whole_sectors() {
    for (length, written) in [(4096, 2048), (3000, 1024), (1023, 0), (1024, 512), (0, 0)] {
        let place = Place::new(FaultPlan::Torn { at: 0 }, &[("a", "")]);
        let file = place.open("a");
        file.write_at(&vec![b'x'; length], 0).unwrap_err();
        place.assert(&[("a", &"x".repeat(written))]);
        file.write_at(b"y", 0).unwrap();
        place.assert_after_power_loss(&[("a", "")]);
    }
}

#[test]
fn unsynced_changes_of_a_file_are_lost_and_synced_ones_are_not() {
    let place = Place::new(NOTHING, &[("a", "0123456789"), ("b", "b"), ("c", "c")]);
    let [a, b, c] = ["a", "b", "c"].map(|name| place.open(name));
    a.write_at(b"AB", 0).unwrap();
    a.sync().unwrap();
    a.write_at(b"__", 1).unwrap();
    a.truncate(5).unwrap();
    a.write_at(b"more and more", 3).unwrap();
    a.punch(0, 4).unwrap();
    a.allocate(100).unwrap();
    // A second handle of the same file makes durable what the first has written.
    b.write_at(b"bbb", 1).unwrap();
    place.storage.open_read(&place.path("b")).unwrap().sync().unwrap();
    c.truncate(3).unwrap();
    place.assert_after_power_loss(&[("a", "AB23456789"), ("b", "bbbb"), ("c", "c")]);
}

#[test]
fn half_of_the_unsynced_writes_of_each_file_may_survive() {
    let place = Place::new(HALF, &[("a", ""), ("b", "")]);
    let [a, b] = ["a", "b"].map(|name| place.open(name));
    for (offset, byte) in (0..).zip([b"1", b"2", b"3", b"4", b"5"]) {
        a.write_at(byte, offset).unwrap();
    }
    b.write_at(b"alone", 0).unwrap();
    place.assert_after_power_loss(&[("a", "123"), ("b", "alone")]);
}

#[test]
fn from_the_power_loss_on_every_operation_fails_and_reading_does_not() {
    for at in 0..12 {
        let files = [("a", "aaa"), ("b", "b"), ("c", "c")];
        let place = Place::new(FaultPlan::PowerLoss { at, keep: Keep::Nothing }, &files);
        for (number, result) in (0..).zip(every_operation(&place)) {
            assert_eq!(result.is_err(), number >= at, "{at}: {number}");
        }
        // The sync is operation 2, and no folder is synced before the last.
        place.assert_after_power_loss(&[("a", if at > 2 { "Aaa" } else { "aaa" }), ("b", "b"), ("c", "c")]);
        place.storage.unlink(&place.path("a")).unwrap_err();
    }
}

#[test]
fn names_are_lost_until_their_folder_is_synced() {
    let files = [("gone", "gone"), ("new", "new"), ("old", "old")];
    let change = |place: &Place| {
        let (storage, path) = (&place.storage, |name: &str| place.path(name));
        storage.rename(&path("new"), &path("old")).unwrap();
        storage.unlink(&path("gone")).unwrap();
        storage.create(&path("made")).unwrap();
        storage.rename_new(&path("made"), &path("named")).unwrap();
        storage.create_folder(&path("folder")).unwrap();
        storage.create(&path("folder/in")).unwrap();
        storage.sync_folder(&path("folder")).unwrap();
    };
    let after = [("folder", "in"), ("named", ""), ("old", "new")];

    let place = Place::new(NOTHING, &files);
    change(&place);
    place.assert(&after);
    place.assert_after_power_loss(&files);

    let place = Place::new(NOTHING, &files);
    change(&place);
    place.sync_folder();
    place.assert_after_power_loss(&after);

    let place = Place::new(HALF, &files);
    change(&place);
    place.assert_after_power_loss(&[("made", ""), ("old", "new")]);
}

#[test]
fn a_removed_folder_comes_back_with_all_that_was_in_it_unless_that_was_made_durable() {
    for durable in [false, true] {
        let place = Place::new(NOTHING, &[]);
        let path = |name: &str| place.path(name);
        fs::create_dir(path("folder")).unwrap();
        fs::write(path("folder/a"), "a").unwrap();
        place.storage.unlink(&path("folder/a")).unwrap();
        place.storage.create(&path("folder/b")).unwrap();
        place.storage.remove_folder(&path("folder")).unwrap();
        if durable {
            place.sync_folder();
            place.storage.create_folder(&path("folder")).unwrap();
            place.sync_folder();
            place.storage.create(&path("folder/c")).unwrap();
        }
        place.assert_after_power_loss(&[("folder", if durable { "" } else { "a" })]);
    }
}

#[test]
fn a_new_file_that_is_synced_has_a_durable_name_only_after_its_folder_is() {
    for (sync_file, sync_folder, expected) in
        [(true, false, &[][..]), (false, true, &[("a", "")]), (true, true, &[("a", "text")])]
    {
        let place = Place::new(NOTHING, &[]);
        let file = place.storage.create(&place.path("a")).unwrap();
        file.write_at(b"text", 0).unwrap();
        if sync_file {
            file.sync().unwrap();
        }
        if sync_folder {
            place.sync_folder();
        }
        place.assert_after_power_loss(expected);
    }
}

#[test]
fn a_rename_that_is_lost_leaves_the_synced_bytes_under_the_old_name() {
    let place = Place::new(NOTHING, &[("a.tmp", "")]);
    let file = place.open("a.tmp");
    file.write_at(b"text", 0).unwrap();
    file.sync().unwrap();
    place.storage.rename(&place.path("a.tmp"), &place.path("a")).unwrap();
    file.write_at(b"lost", 0).unwrap();
    place.assert_after_power_loss(&[("a.tmp", "text")]);
}

#[test]
fn what_a_failed_sync_has_lost_no_later_sync_brings_back() {
    let place = Place::new(FaultPlan::Fail { at: 3, error: ERROR }, &[("a", "")]);
    let file = place.open("a");
    file.write_at(b"kept", 0).unwrap();
    file.sync().unwrap();
    file.write_at(b"KEPT lost", 0).unwrap();
    file.sync().unwrap_err();
    place.assert(&[("a", "KEPT lost")]);
    file.truncate(6).unwrap();
    file.write_at(b"later", 6).unwrap();
    file.sync().unwrap();
    place.assert_after_power_loss(&[("a", "kept\0\0later")]);
}

#[test]
fn replace_cut_at_any_operation_leaves_the_old_or_the_new_content_whole() {
    let work = |place: &Place| replace(&place.storage, &place.path("set.toml"), &[b'n'; 2048]);
    let (old, new) = ("old".to_owned(), "n".repeat(2048));
    let read = |place: &Place| fs::read_to_string(place.path("set.toml")).unwrap();
    for leftover in [&[("set.toml", "old")][..], &[("set.toml", "old"), ("set.toml.tmp", "half")]] {
        let counted = Place::new(FaultPlan::Count, leftover);
        work(&counted).unwrap();
        let operations = counted.storage.operations();
        assert_eq!(operations, 6);
        counted.assert_after_power_loss(&[("set.toml", &new)]);
        for at in 0..operations {
            for plan in [
                FaultPlan::Fail { at, error: ERROR },
                FaultPlan::Torn { at },
                FaultPlan::PowerLoss { at, keep: Keep::Nothing },
                FaultPlan::PowerLoss { at, keep: Keep::Half },
            ] {
                let place = Place::new(plan, leftover);
                let result = work(&place);
                let seen = read(&place);
                place.storage.lose_power().unwrap();
                let left = read(&place);
                for content in [&seen, &left] {
                    assert!([&old, &new].contains(&content), "{plan:?} {:#?}", place.storage.log());
                }
                assert!(result.is_err() || left == new, "{plan:?} {:#?}", place.storage.log());
                let after =
                    Place { storage: FaultStorage::new(place.folder.path(), NOTHING).unwrap(), ..place };
                work(&after).unwrap();
                after.assert_after_power_loss(&[("set.toml", &new)]);
            }
        }
    }
}

#[test]
fn the_side_folder_is_hidden_and_goes_with_the_storage() {
    let Place { folder, storage } = Place::new(NOTHING, &[("a", "a")]);
    storage.unlink(&folder.path().join("a")).unwrap();
    assert_eq!(storage.list(folder.path()).unwrap(), [""; 0]);
    assert_eq!(OsStorage.list(folder.path()).unwrap().len(), 1);
    drop(storage);
    assert_eq!(OsStorage.list(folder.path()).unwrap(), [""; 0]);
}
