//! Tokens, as the owner makes them and as clients show them.

use std::path::Path;

use serde_json::Value;

use crate::harness::{Served, ekko, ekko_done};

/// Makes a token of a repository, and returns its text.
pub fn token(repository: &Path, project: &str, role: &str) -> String {
    let text = ekko_done(repository, &["-q", "token", "create", "--project", project, "--role", role]);
    text.trim_end().to_owned()
}

/// The id in a token.
pub fn id_of(token: &str) -> &str {
    &token[5..21]
}

/// A repository with an image of each of two projects, and one of the owner's.
pub fn two_projects(repository: &Path) {
    let disk = repository.with_file_name("disk.raw");
    for (name, byte) in [("blue:web", 1u8), ("red:db", 2), ("own", 3)] {
        std::fs::write(&disk, vec![byte; 200_000]).unwrap();
        ekko_done(repository, &["-q", "backup", &format!("{name}={}", disk.display())]);
    }
}

fn names(list: &Value) -> Vec<String> {
    let rows = list["images"].as_array().unwrap();
    rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_token_lets_its_project_in_as_soon_as_it_is_made_and_no_longer_than_until_it_is_revoked() {
    let served = Served::with(&[], two_projects);
    let blue = token(&served.repository(), "blue", "restore");
    let answer = served.ask("GET", "/v1/images", Some(&blue), None);
    assert_eq!((answer.status, names(&answer.json())), (200, vec!["web".to_owned()]));
    let red = token(&served.repository(), "red", "operator");
    assert_eq!(names(&served.ask("GET", "/v1/images", Some(&red), None).json()), ["db"]);
    assert_eq!(served.ask("GET", "/v1/backups/web@0", Some(&blue), None).status, 200);
    ekko_done(&served.repository(), &["token", "revoke", id_of(&blue)]);
    let refused = served.ask("GET", "/v1/images", Some(&blue), None);
    assert_eq!((refused.status, refused.kind().as_str()), (401, "unauthorized"));
    assert_eq!(served.ask("GET", "/v1/images", Some(&red), None).status, 200, "the other one stays");
}

#[test]
fn tokens_are_listed_without_what_they_are() {
    let served = Served::new();
    let repository = served.repository();
    let made = ekko_done(
        &repository,
        &[
            "--json",
            "token",
            "create",
            "--project",
            "blue",
            "--role",
            "admin",
            "--expires",
            "90d",
            "--note",
            "host 7",
        ],
    );
    let made: Value = serde_json::from_str(&made).unwrap();
    let text = made["token"].as_str().unwrap();
    let listed = ekko_done(&repository, &["--json", "token", "list"]);
    let row = &serde_json::from_str::<Value>(&listed).unwrap()["tokens"][0];
    assert_eq!(row["id"], made["id"]);
    assert_eq!(
        (&row["project"], &row["role"], &row["note"]),
        (&"blue".into(), &"admin".into(), &"host 7".into())
    );
    assert_eq!(row["expired"], false);
    let secret = &text[22..];
    let table = ekko_done(&repository, &["token", "list"]);
    assert!(table.contains(id_of(text)), "{table}");
    for file in [table, listed, std::fs::read_to_string(repository.join("tokens.toml")).unwrap()] {
        assert!(!file.contains(secret), "{file}");
    }
    let wrong = [
        ["--project", "a:b", "--role", "admin", "--expires", "1d"],
        ["--project", "blue", "--role", "root", "--expires", "1d"],
        ["--project", "blue", "--role", "admin", "--expires", "2020-01-01"],
    ];
    for arguments in wrong {
        let output = ekko(&repository, &[&["token", "create"][..], &arguments[..]].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(ekko(&repository, &["token", "revoke", "0123456789abcdef"]).status.code(), Some(1));
}

#[test]
fn service_wide_numbers_are_for_the_role_admin_of_any_project() {
    let served = Served::with(&[], two_projects);
    for (role, status) in [("restore", 403), ("backup", 403), ("operator", 403), ("admin", 200)] {
        let token = token(&served.repository(), "blue", role);
        assert_eq!(served.ask("GET", "/v1/statistics", Some(&token), None).status, status, "{role}");
        let images = served.ask("GET", "/v1/images", Some(&token), None);
        assert_eq!(names(&images.json()), ["web"], "{role} sees the project's alone");
    }
}

#[test]
fn a_file_of_tokens_that_is_damaged_lets_nobody_in_and_serving_goes_on() {
    let served = Served::with(&[], two_projects);
    let repository = served.repository();
    let blue = token(&repository, "blue", "admin");
    assert_eq!(served.ask("GET", "/v1/images", Some(&blue), None).status, 200);
    let file = repository.join("tokens.toml");
    let whole = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, whole.replace("admin", "adnim")).unwrap();
    let refused = served.ask("GET", "/v1/images", Some(&blue), None);
    assert_eq!((refused.status, refused.kind().as_str()), (503, "unavailable"));
    assert!(!String::from_utf8_lossy(&refused.body).contains("tokens.toml"), "paths are the operator's");
    assert_eq!(served.get("/healthz").status, 200);
    std::fs::write(&file, whole).unwrap();
    assert_eq!(served.ask("GET", "/v1/images", Some(&blue), None).status, 200);
}

#[test]
fn a_client_is_told_who_it_is_and_how_much_of_its_quota_is_used() {
    let settings = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(settings.path(), "[quotas]\ndefault = 1_000_000\n[quotas.projects]\nred = 5\n").unwrap();
    let served = Served::with(&["--config", settings.path().to_str().unwrap()], two_projects);
    for (project, quota) in [("blue", 1_000_000), ("red", 5), ("green", 1_000_000)] {
        let token = token(&served.repository(), project, "restore");
        let own = served.ask("GET", "/v1/own", Some(&token), None).json();
        // The disk and its manifest.
        let used = if project == "green" { 0..1 } else { 200_001..201_000 };
        assert_eq!(own["who"], format!("token:{}", id_of(&token)));
        assert_eq!((&own["project"], &own["role"]), (&project.into(), &"restore".into()));
        assert_eq!(own["quota_bytes"], quota, "{project}");
        assert!(used.contains(&own["used_bytes"].as_u64().unwrap()), "{project}: {own}");
    }
}

#[test]
fn requests_with_a_wrong_token_count_as_requests() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("service.toml");
    std::fs::write(&settings, "[limits]\nrequests_per_second = 2\nfailures_per_minute = 1000\n").unwrap();
    let served = Served::with(&["--config", settings.to_str().unwrap()], two_projects);
    let good = token(&served.repository(), "blue", "restore");
    let wrong = format!("{}{}", &good[..22], "0".repeat(64));
    for wrong in [wrong.as_str(), "malformed"] {
        let status = |_| served.ask("GET", "/v1/images", Some(wrong), None).status;
        let statuses: Vec<_> = (0..20).map(status).collect();
        assert!(statuses.iter().filter(|status| **status == 429).count() > 5, "{wrong}: {statuses:?}");
    }
    assert_eq!(served.ask("GET", "/v1/images", Some(&good), None).status, 200, "its caller is another one");
}
