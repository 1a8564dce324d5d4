//! What a project sees of what jobs and deletions say: its own, and nothing from which others' could be told.

use std::path::Path;

use ekko::api::{self, CheckedBackups, DeletionPlan, ForgetPlan, ListFilter, View};
use ekko::check::{CheckOptions, ReadData, StatusOptions, check};
use ekko::manifest::{ImageName, ManifestReader, renamed};
use ekko::progress::Silent;
use ekko::repository::retention::{Keep, RetentionPolicy};
use ekko::repository::{
    OpenOptions, Protection, Repository, RepositoryError, RepositoryWriter, SharedWriter,
};

use crate::harness::{disk, ekko_done};

/// Two projects with the same disk, and another of the owner's.
fn store(folder: &Path) -> SharedWriter {
    let repository = folder.join("store");
    let source = folder.join("raw");
    ekko_done(&repository, &["init", "--segment-size", "64KiB"]);
    for day in 0..3 {
        std::fs::write(&source, disk(day, 300_000)).unwrap();
        for name in ["blue:web", "red:web", "web"] {
            ekko_done(&repository, &["backup", &format!("{name}={}", source.display())]);
        }
    }
    SharedWriter::new(RepositoryWriter::open(&repository, &OpenOptions::default(), &Silent).unwrap())
}

fn blue() -> View {
    View::of("blue".parse().unwrap())
}

#[test]
fn a_project_deletes_its_own_and_is_not_told_what_that_frees() {
    let folder = tempfile::tempdir().unwrap();
    let writer = store(folder.path());
    let ask = |name: &str| [name.parse().unwrap()];
    let plan = DeletionPlan::of(&writer, &blue(), &ask("web@0"), false).unwrap();
    assert_eq!((plan.rows[0].backup.as_str(), plan.freed_bytes), ("web@0", None));
    let owners = DeletionPlan::of(&writer, &View::everything(), &ask("blue:web@0"), false).unwrap();
    assert_eq!(owners.freed_bytes, Some(0), "others have the same");
    let (sets, _) = writer.repository().backupsets().unwrap();
    let red = sets.iter().find(|set| set.name.as_str() == "red:web").unwrap();
    for other in ["red:web@0".to_owned(), format!("{}@0", red.id)] {
        let refused = DeletionPlan::of(&writer, &blue(), &ask(&other), false).unwrap_err();
        assert!(matches!(refused, RepositoryError::UnknownName { .. }), "{other}: {refused}");
        assert!(!refused.to_string().contains("did you mean \"red"), "{refused}");
        let refused =
            api::protect(&writer, &blue(), &other.parse().unwrap(), Protection::Always, false).unwrap_err();
        assert!(matches!(refused, RepositoryError::UnknownName { .. }), "{other}: {refused}");
        assert!(!refused.to_string().contains("did you mean \"red"), "{refused}");
    }
    assert_eq!(plan.apply(&writer, &Silent).unwrap(), 1);
    let left = |view: &View| {
        api::list(writer.repository(), view, &ListFilter::default(), &Silent).unwrap().backups.len()
    };
    assert_eq!((left(&blue()), left(&View::everything())), (2, 8));
}

#[test]
fn a_policy_is_of_what_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let writer = store(folder.path());
    let policy = RetentionPolicy { last: Keep::Number(1), ..RetentionPolicy::default() };
    let plan = ForgetPlan::of(&writer, &blue(), &policy, None, false).unwrap();
    let names = |rows: &[api::BackupRef]| rows.iter().map(|row| row.backup.clone()).collect::<Vec<_>>();
    assert_eq!(names(&plan.goes.rows), ["web@0", "web@1"]);
    assert_eq!((plan.kept[0].row.backup.as_str(), plan.goes.freed_bytes), ("web@2", None));
    let red = ImageName::new("red:web").unwrap();
    let none = ForgetPlan::of(&writer, &blue(), &policy, Some(&red), false).unwrap_err();
    assert!(matches!(none, RepositoryError::NoSuchBackup { .. }), "{none}");
    plan.goes.apply(&writer, &Silent).unwrap();
    let all = ForgetPlan::of(&writer, &View::everything(), &policy, None, false).unwrap();
    assert_eq!(names(&all.goes.rows), ["red:web@0", "red:web@1", "web@0", "web@1"]);
}

#[test]
fn a_check_tells_a_project_of_its_own_backups_alone() {
    let folder = tempfile::tempdir().unwrap();
    let writer = store(folder.path());
    let repository = writer.repository().clone();
    drop(writer);
    let (sets, _) = repository.backupsets().unwrap();
    let manifest = |name: &str| {
        let set = sets.iter().find(|set| set.name.as_str() == name).unwrap();
        repository.layout().manifest(set.id, set.backups[1].incremental)
    };
    for name in ["blue:web", "red:web"] {
        let mut bytes = std::fs::read(manifest(name)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(manifest(name), bytes).unwrap();
    }
    let summary = check(&repository, &CheckOptions { read_data: ReadData::None, jobs: 1 }, &Silent).unwrap();
    assert_eq!(summary.problems.len(), 2);
    let told = |view: &View| CheckedBackups::of(&summary, &repository, view).unwrap();
    assert_eq!((told(&blue()).backups, told(&blue()).damaged), (3, vec!["web@1".to_owned()]));
    let green = View::of("green".parse().unwrap());
    assert_eq!((told(&green).backups, told(&green).damaged.len()), (0, 0));
    let options = StatusOptions { max_age: None, now: ekko::time::now() };
    let status = api::status_of(&repository, &blue(), &options, &Silent).unwrap();
    assert_eq!((status.names.len(), status.names[0].name.as_str()), (1, "web"));
    assert_eq!(status.names[0].backup.as_deref(), Some("web@2"));
}

#[test]
fn a_manifest_under_another_name_says_all_else_as_it_did() {
    let folder = tempfile::tempdir().unwrap();
    drop(store(folder.path()));
    let repository = Repository::open(&folder.path().join("store")).unwrap();
    let (sets, _) = repository.backupsets().unwrap();
    let set = sets.iter().find(|set| set.name.as_str() == "blue:web").unwrap();
    let manifest = repository.manifest(set, &set.backups[2]).unwrap();
    let path = folder.path().join("renamed");
    renamed(&manifest, ImageName::new("web").unwrap(), &path).unwrap();
    let other = ManifestReader::read(&path).unwrap();
    let mut info = other.info().clone();
    assert_eq!(info.name.as_str(), "web");
    info.name = manifest.info().name.clone();
    assert_eq!(info, *manifest.info());
    assert!(manifest.segments().eq(other.segments()));
    assert!(!std::fs::read(&path).unwrap().windows(4).any(|window| window == b"blue"));
}
