//! Images that are renamed or retired over the network, and backups that failed on their client.

use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::{Served, disk, ekko_done, start};
use crate::tokens::{token, two_projects};

fn run(served: &Served, token: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
    command.env("EKKO_REPOSITORY", &served.address).env("EKKO_TOKEN", token).args(arguments);
    command.output().unwrap()
}

/// Runs a command, which must end with this code, and returns all that it prints.
fn exits(code: i32, served: &Served, token: &str, arguments: &[&str]) -> String {
    let output = run(served, token, arguments);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

fn row(served: &Served, token: &str, name: &str) -> Value {
    let status = served.ask("GET", "/v1/status", Some(token), None).json();
    let rows = status["names"].as_array().unwrap();
    rows.iter().find(|row| row["name"] == name).unwrap_or(&Value::Null).clone()
}

#[test]
fn an_operator_renames_and_retires_the_images_of_the_project_alone() {
    let served = Served::with(&[], two_projects);
    let [backup, operator] = ["backup", "operator"].map(|role| token(&served.repository(), "blue", role));
    for (path, body) in [("/v1/images/web/rename", r#"{"to":"www"}"#), ("/v1/images/web/retire", "{}")] {
        assert_eq!(served.ask("POST", path, Some(&backup), Some(body.as_bytes())).status, 403, "{path}");
    }
    exits(13, &served, &backup, &["rename", "web", "www"]);
    assert_eq!(exits(0, &served, &operator, &["rename", "web", "www"]), "web is now www\n");
    for (wrong, says) in [
        (&["rename", "wwww", "x"][..], "(did you mean \"www\"?)"),
        (&["rename", "web", "x"], "it was renamed to \"www\""),
        (&["rename", "db", "x"], "no disk named \"db\""),
        (&["rename", "red:db", "x"], "no disk named \"red:db\""),
        (&["retire", "db"], "no disk named \"db\""),
        (&["retire", "wwww"], "(did you mean \"www\"?)"),
        (&["list", "wwww"], "(did you mean \"www\"?)"),
        (&["show", "wwww"], "(did you mean \"www\"?)"),
        (&["protect", "wwww"], "(did you mean \"www\"?)"),
        (&["verify", "wwww", "/etc/hostname"], "(did you mean \"www\"?)"),
        (&["delete", "wwww@0"], "(did you mean \"www\"?)"),
        (&["forget", "--keep-last", "1", "wwww"], "(did you mean \"www\"?)"),
    ] {
        let text = exits(1, &served, &operator, wrong);
        assert!(text.contains(says) && !text.contains("own"), "{wrong:?}: {text}");
    }
    let owners = served.owner("GET", "/v1/images", &[], None).json();
    let names: Vec<_> = owners["images"].as_array().unwrap().iter().map(|row| row["name"].clone()).collect();
    assert_eq!(names, ["blue:www", "own", "red:db"]);
    exits(3, &served, &operator, &["status", "--max-age", "0h"]);
    assert!(exits(0, &served, &operator, &["retire", "www"]).starts_with("www is retired: "));
    let none = exits(3, &served, &operator, &["status", "--max-age", "0h"]);
    assert!(none.contains("no disk is expected"), "{none}");
    // The owner's commands go through the socket.
    ekko_done(&served.repository(), &["rename", "own", "mine"]);
    ekko_done(&served.repository(), &["retire", "red:db"]);
    let left = served.owner("GET", "/v1/status", &[], None).json();
    assert_eq!(left["names"].as_array().unwrap().len(), 1, "{left}");
    let document = served.get("/v1/openapi.json").json();
    for path in ["rename", "retire", "failure"] {
        assert!(document["paths"][format!("/v1/images/{{image}}/{path}")]["post"].is_object(), "{path}");
    }
}

#[test]
fn a_backup_that_fails_on_its_client_is_in_the_status_of_its_project() {
    let served = Served::with(&[], two_projects);
    let [blue, red] = ["blue", "red"].map(|project| token(&served.repository(), project, "operator"));
    let restore = token(&served.repository(), "blue", "restore");
    exits(1, &served, &blue, &["backup", "db=/gone"]);
    let text = exits(3, &served, &blue, &["status"]);
    assert!(text.contains("db: no backup; the attempt of 20"), "{text}");
    assert!(text.contains(" failed: cannot open image /gone: "), "{text}");
    let other = row(&served, &red, "db");
    assert_eq!((&other["ok"], other.get("failure")), (&true.into(), None), "another project's");
    let body = br#"{"reason":"x"}"#;
    assert_eq!(served.ask("POST", "/v1/images/db/failure", Some(&restore), Some(body)).status, 403);
    // What failed on the service's own machine may name its paths.
    let owner = Command::new(env!("CARGO_BIN_EXE_ekko"))
        .args(["backup", "blue:mail=/secret", "-r"])
        .arg(served.repository())
        .env_remove("EKKO_REPOSITORY")
        .output()
        .unwrap();
    assert_eq!(owner.status.code(), Some(1));
    let reason = |row: Value| row["failure"]["reason"].as_str().unwrap().to_owned();
    assert_eq!(reason(row(&served, &blue, "mail")), "the owner of the repository can see why");
    let owners = served.owner("GET", "/v1/status", &[], None).json();
    let mail = owners["names"].as_array().unwrap().iter().find(|row| row["name"] == "blue:mail").unwrap();
    assert!(reason(mail.clone()).contains("/secret"), "{mail}");
    let source = served.folder().join("disk");
    std::fs::write(&source, disk(1, 70_000)).unwrap();
    exits(0, &served, &blue, &["backup", &format!("db={}", source.display())]);
    assert_eq!(row(&served, &blue, "db").get("failure"), None);
    exits(0, &served, &blue, &["retire", "mail"]);
    exits(0, &served, &blue, &["status"]);
    exits(1, &served, &blue, &["retire", "mail"]);
}

#[test]
fn a_client_that_goes_away_leaves_its_first_backup_in_the_status() {
    let served = Served::new();
    let blue = token(&served.repository(), "blue", "backup");
    let body = br#"{"name":"web","size_of_disk":200000,"format":"raw"}"#;
    let begun = served.ask("POST", "/v1/sessions", Some(&blue), Some(body));
    assert_eq!(begun.status, 201);
    let found = row(&served, &blue, "web");
    assert_eq!((&found["problem"], found["failure"].get("reason")), (&"no backup".into(), None));
    let path = format!("/v1/sessions/{}", begun.json()["session"].as_str().unwrap());
    assert_eq!(served.ask("DELETE", &path, Some(&blue), None).status, 204);
    assert_eq!(row(&served, &blue, "web")["ok"], false);
}

#[test]
fn a_list_that_cannot_be_read_is_a_problem_for_every_project_and_names_no_file() {
    let mut served = Served::with(&[], two_projects);
    let blue = token(&served.repository(), "blue", "operator");
    exits(0, &served, &blue, &["status"]);
    served.stop();
    let sets = std::fs::read_dir(served.repository().join("manifests")).unwrap();
    let lists: Vec<_> =
        sets.map(|set| set.unwrap().path().join("set.toml")).filter(|list| list.exists()).collect();
    let list = lists.iter().find(|list| std::fs::read_to_string(list).unwrap().contains("red:")).unwrap();
    let mut bytes = std::fs::read(list).unwrap();
    bytes[30] ^= 1;
    std::fs::write(list, bytes).unwrap();
    let (child, address) = start(&served.repository(), &[]);
    served.replace(child, address);
    let text = exits(3, &served, &blue, &["status"]);
    assert!(
        text.contains("a list of backups or a pack cannot be read") && !text.contains("set.toml"),
        "{text}"
    );
    let text = exits(3, &served, &blue, &["check"]);
    assert!(text.contains("problem: 1 list of backups cannot be read"), "{text}");
    let owners = served.owner("GET", "/v1/status", &[], None).json();
    assert!(owners["problems"][0].as_str().unwrap().contains("set.toml"), "{owners}");
}
