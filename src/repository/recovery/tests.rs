//! What the next opening removes, and in which order.

use std::sync::Arc;

use super::*;
use crate::manifest::ImageName;
use crate::progress::Silent;
use crate::repository::InitOptions;
use crate::storage::{FaultPlan, FaultStorage, OsStorage};

fn fresh() -> (tempfile::TempDir, Repository, FaultStorage) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("R");
    Repository::init(&root, &InitOptions::default()).unwrap();
    let fault = FaultStorage::new(folder.path(), FaultPlan::Count).unwrap();
    let repository = Repository::open_with(Arc::new(fault.clone()), &root).unwrap();
    (folder, repository, fault)
}

/// A collection was killed when its `set.toml` had its name and that was not durable: it no longer lists backup 0.
#[test]
fn what_set_toml_says_is_durable_before_a_manifest_goes_that_it_does_not_list() {
    let (_folder, repository, fault) = fresh();
    let name = ImageName::new("web").unwrap();
    let mut set = Backupset::new(BackupsetId::random(), name, jiff::Timestamp::UNIX_EPOCH);
    set.next_incremental = 1;
    set.create(&OsStorage, &repository.layout).unwrap();
    let manifest = repository.layout.manifest(set.id, Incremental(0));
    std::fs::write(&manifest, b"manifest").unwrap();
    undo_unfinished(&repository, &Silent).unwrap();
    assert!(!manifest.exists());
    let log = fault.log();
    let first = |what: &str| log.iter().position(|line| line.ends_with(what));
    let synced = first(&format!("sync folder {}", repository.layout.set(set.id).display())).unwrap();
    let removed = first(&format!("remove {}", manifest.display())).unwrap();
    assert!(synced < removed, "{log:#?}");
    assert!(log.iter().skip(removed).any(|line| line.contains("sync folder")), "{log:#?}");
}

#[test]
fn temporary_files_beside_the_folders_go_and_what_ekko_did_not_name_stays() {
    let (_folder, repository, _) = fresh();
    let root = repository.layout.root();
    let names = ["checked.tmp", "ekko.toml.tmp", "tokens.toml.tmp", "letter.tmp", "checked.tmp.tmp"];
    for name in names {
        std::fs::write(root.join(name), b"half").unwrap();
    }
    undo_unfinished(&repository, &Silent).unwrap();
    let mut left = repository.storage.list(root).unwrap();
    left.retain(|name| names.contains(&name.as_str()));
    left.sort();
    // There is no lock of the tokens yet, so nobody writes them by Ekko's rules.
    assert_eq!(left, ["checked.tmp.tmp", "letter.tmp", "tokens.toml.tmp"]);
}
