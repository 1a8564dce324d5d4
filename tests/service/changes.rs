//! What changes backups, and what is told of manifests.

use serde_json::json;

use crate::harness::{Served, disk, ekko_done};

/// Two backups of web, one of db.
fn served() -> Served {
    Served::with(&[], |repository| {
        let source = repository.with_extension("raw");
        let mut bytes = disk(1, 640 << 10);
        for change in [0, 200_000] {
            bytes[change] ^= 1;
            std::fs::write(&source, &bytes).unwrap();
            ekko_done(repository, &["backup", &format!("web={}", source.display())]);
        }
        std::fs::write(&source, disk(2, 100_000)).unwrap();
        ekko_done(repository, &["backup", &format!("db={}", source.display())]);
    })
}

fn names(served: &Served) -> Vec<String> {
    let list = served.owner("GET", "/v1/backups", &[], None).json();
    let row = |row: &serde_json::Value| row["backup"].as_str().unwrap().to_owned();
    list["backups"].as_array().unwrap().iter().map(row).collect()
}

#[test]
fn a_backup_is_deleted_unless_it_is_only_asked_what_would_be() {
    let served = served();
    let dry = served.owner("DELETE", "/v1/backups/web@0?dry_run=true", &[], None);
    assert_eq!((dry.status, dry.json()["dry_run"] == true), (200, true));
    assert_eq!(names(&served), ["db@0", "web@0", "web@1"]);
    let deleted = served.owner("DELETE", "/v1/backups/web@0", &[], None).json();
    assert_eq!(deleted["deleted"][0]["backup"], "web@0");
    assert_eq!(deleted["freed_bytes"], dry.json()["freed_bytes"]);
    assert!(deleted["freed_bytes"].as_u64().unwrap() > 0);
    assert_eq!(names(&served), ["db@0", "web@1"]);
    assert_eq!(served.owner("DELETE", "/v1/backups/web@0", &[], None).kind(), "not_found");
    for wrong in ["web@0?dryrun=true", "web@0?dry_run=2", "a@b@c", "%00", "..%2Fstate"] {
        let answer = served.owner("DELETE", &format!("/v1/backups/{wrong}"), &[], None);
        assert!([400, 404].contains(&answer.status), "{wrong}: {}", answer.status);
    }
    // It is the service's owner who answers the same as the command line.
    assert_eq!(served.ask("DELETE", "/v1/backups/web@1", None, None).status, 401);
}

#[test]
fn a_protected_backup_is_not_deleted() {
    let served = served();
    let path = "/v1/backups/web@1/protection";
    let protected = served.owner("PUT", path, &[], Some(&json!({"until": "2999-01-01T00:00:00Z"})));
    assert_eq!(
        protected.json(),
        json!({"backup": "web@1", "protected": true, "until": "2999-01-01T00:00:00Z"})
    );
    let refused = served.owner("DELETE", "/v1/backups/web@1", &[], None);
    assert_eq!((refused.status, refused.kind().as_str()), (409, "conflict"));
    assert_eq!(served.owner("GET", "/v1/backups/web@1", &[], None).json()["protected"], true);
    let always = served.owner("PUT", path, &[], Some(&json!({})));
    assert_eq!(always.json()["until"], json!(null));
    for wrong in
        [json!({"unitl": "2999-01-01T00:00:00Z"}), json!({"until": "soon"}), json!([]), json!({"until": 5})]
    {
        assert_eq!(served.owner("PUT", path, &[], Some(&wrong)).status, 400, "{wrong}");
    }
    assert_eq!(served.owner("DELETE", path, &[], None).json()["protected"], false);
    assert_eq!(served.owner("DELETE", "/v1/backups/web@1", &[], None).status, 200);
}

#[test]
fn what_differs_is_told_as_the_command_line_tells_it() {
    let served = served();
    let diff = served.owner("GET", "/v1/backups/web@0/diff/web@1", &[], None);
    assert_eq!((diff.status, diff.header("content-type")), (200, "application/json"));
    assert_eq!(diff.json(), json!([{"offset": 196_608, "length": 65_536, "exists": "true"}]));
    let same = served.owner("GET", "/v1/backups/web@1/diff/web", &[], None);
    assert_eq!(same.json(), json!([]));
    assert_eq!(served.owner("GET", "/v1/backups/web@1/diff/web@7", &[], None).kind(), "not_found");
}

#[test]
fn manifests_come_in_every_format_as_the_command_line_exports_them() {
    let mut served = served();
    let export = |format: &str| {
        let path = format!("/v1/backups/web@1/manifest?format={format}");
        let answer = served.owner("GET", &path, &[], None);
        assert_eq!(answer.status, 200, "{format}");
        answer.body
    };
    let [ekko, sqlite, osdk] = ["ekko", "sqlite", "osdk"].map(export);
    assert_eq!(served.owner("GET", "/v1/backups/web@1/manifest?format=toml", &[], None).status, 400);
    assert_eq!(served.owner("GET", "/v1/backups/web@1/manifest", &[], None).body, ekko);
    let odd = served.owner("GET", "/v1/backups/db/manifest?format=osdk", &[], None);
    assert_eq!((odd.status, odd.kind().as_str()), (409, "conflict"), "100,000 is no multiple of 512");
    served.stop();
    let own = served.folder().join("own");
    std::fs::write(&own, &ekko).unwrap();
    let dump = |of: &str| ekko_done(&served.repository(), &["manifest", "dump", of]);
    assert_eq!(dump(own.to_str().unwrap()), dump("web@1"));
    for (format, bytes) in [("sqlite", sqlite), ("osdk", osdk)] {
        let out = served.folder().join(format);
        let arguments = ["manifest", "export", "web@1", out.to_str().unwrap(), "--format", format];
        ekko_done(&served.repository(), &arguments);
        assert!(std::fs::read(&out).unwrap() == bytes, "{format}");
    }
}

#[test]
fn the_status_names_images_without_a_fresh_backup() {
    let served = served();
    let status = served.owner("GET", "/v1/status", &[], None).json();
    let rows = status["names"].as_array().unwrap();
    assert!(rows.len() == 2 && rows.iter().all(|row| row["ok"] == true), "{status}");
    let old = served.owner("GET", "/v1/status?max_age=0s", &[], None).json();
    assert!(old["names"].as_array().unwrap().iter().all(|row| row["ok"] == false), "{old}");
    assert_eq!(served.owner("GET", "/v1/status?max_age=soon", &[], None).status, 400);
}
