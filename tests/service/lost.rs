//! Lost lists and known damage while the service runs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use serde_json::{Value, json};

use crate::harness::{Served, disk, ekko, ekko_done, until};

/// Runs a collection as the repository's owner, to its end.
fn collect(served: &Served, request: &Value) -> Value {
    let answer = served.owner("POST", "/v1/jobs", &[], Some(request));
    let path = format!("/v1/jobs/{}", answer.json()["id"].as_str().unwrap());
    let job = || served.owner("GET", &path, &[], None).json();
    until("the job ends", || !["queued", "running"].contains(&job()["state"].as_str().unwrap()));
    job()["result"]["gc"].clone()
}

#[test]
fn a_folder_of_manifests_that_is_lost_stops_collections_and_only_an_admin_gives_it_up() {
    let served = Served::with(&[], |repository| {
        let source = repository.with_extension("raw");
        fs::write(&source, disk(1, 300_000)).unwrap();
        ekko_done(repository, &["backup", "--compression", "none", &format!("web={}", source.display())]);
    });
    let (repository, elsewhere) = (served.repository(), served.folder().join("elsewhere"));
    let sets = fs::read_dir(repository.join("manifests")).unwrap().map(|entry| entry.unwrap().path());
    let set = sets.into_iter().find(|path| path.is_dir()).unwrap();
    fs::rename(&set, &elsewhere).unwrap();
    let gc = collect(&served, &json!({"kind": "gc", "now": true}));
    let problem = gc["problems"][0].as_str().unwrap();
    assert!(
        problem.contains("nothing is freed") && problem.contains("cannot find the backups of web"),
        "{gc}"
    );
    assert_eq!(ekko(&repository, &["gc", "--now"]).status.code(), Some(3));
    let operator = ekko_done(&repository, &["token", "create", "--project", "blue", "--role", "operator"]);
    let accept = b"{\"kind\":\"gc\",\"accept_lost\":true}";
    assert_eq!(served.ask("POST", "/v1/jobs", Some(operator.trim()), Some(accept)).status, 403);
    fs::rename(&elsewhere, &set).unwrap();
    assert_eq!(collect(&served, &json!({"kind": "gc", "now": true}))["problems"], json!([]));
    ekko_done(&repository, &["check", "--read-data"]);
    fs::rename(&set, &elsewhere).unwrap();
    assert_eq!(ekko(&repository, &["gc"]).status.code(), Some(3));
    assert_eq!(ekko(&repository, &["gc", "--accept-lost"]).status.code(), Some(0));
    assert_eq!(ekko(&repository, &["gc"]).status.code(), Some(0));
}

#[test]
fn a_backup_over_the_service_stores_again_what_was_found_damaged_meanwhile() {
    let bytes = disk(1, 300_000);
    let served = Served::with(&[], |repository| {
        let source = repository.with_extension("raw");
        fs::write(&source, &bytes).unwrap();
        ekko_done(repository, &["backup", "--compression", "none", &format!("web={}", source.display())]);
    });
    let repository = served.repository();
    let path = repository.join("packs/0000000000000001.pack");
    let pack = fs::read(&path).unwrap();
    let wanted = &bytes[2 << 16..][..64];
    let at = pack.windows(64).position(|window| window == wanted).unwrap() + 1000;
    File::options().write(true).open(&path).unwrap().write_all_at(&[pack[at] ^ 1], at as u64).unwrap();
    // Who reads a disk through the service finds it.
    let request = "GET /v1/backups/web@0/data HTTP/1.1\r\nHost: ekko\r\nConnection: close\r\n\r\n";
    assert!(served.raw(request).len() < bytes.len());
    assert_eq!(ekko(&repository, &["status"]).status.code(), Some(3));
    let source = format!("web={}", repository.with_extension("raw").display());
    let backup = ekko_done(&repository, &["--json", "backup", &source]);
    let backup: Value = serde_json::from_str(&backup).unwrap();
    assert_eq!(backup["backups"][0]["healed_segments"], 1);
    ekko_done(&repository, &["status"]);
    let answer = served.owner("GET", "/v1/backups/web@0/data", &[], None);
    assert!(answer.status == 200 && answer.body == bytes);
}
