//! What the service's log says, and what neither the log nor an answer may hold.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use serde_json::{Value, json};

use crate::harness::{disk, ekko_done, until};
use crate::tokens::{id_of, token};

/// A service whose log is kept.
struct Logged {
    folder: tempfile::TempDir,
    child: Child,
    address: String,
}

impl Drop for Logged {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Logged {
    fn new(arguments: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("store");
        ekko_done(&repository, &["init", "--segment-size", "64KiB"]);
        prepare(&repository);
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_ekko"))
            .env_remove("EKKO_REPOSITORY")
            .arg("-r")
            .arg(&repository)
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .stderr(log)
            .spawn()
            .unwrap();
        let mut logged = Self { folder, child, address: String::new() };
        until("it listens", || logged.log().contains("listening on unix:"));
        let log = logged.log();
        let (_, rest) = log.split_once("listening on http://").unwrap();
        rest.split(['\n', '"']).next().unwrap().clone_into(&mut logged.address);
        logged
    }

    fn repository(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn log(&self) -> String {
        String::from_utf8(std::fs::read(self.folder.path().join("log")).unwrap()).unwrap()
    }

    /// The events of the log with this message.
    fn events(&self, message: &str) -> Vec<Value> {
        let log = self.log();
        // The last line may not be whole yet.
        let lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let events =
            lines.map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line}")));
        events.map(|event| event["fields"].clone()).filter(|fields| fields["message"] == message).collect()
    }

    /// Sends a request with these lines in its head, and returns all of the answer.
    fn ask(&self, first: &str, lines: &[String], body: &str) -> Vec<u8> {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let mut head = format!("{first} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        for line in lines {
            head.extend([line.as_str(), "\r\n"]);
        }
        write!(head, "Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    }

    fn status(&self, first: &str, token: &str) -> String {
        let answer = self.ask(first, &[format!("Authorization: Bearer {token}")], "");
        String::from_utf8_lossy(&answer[9..12]).into_owned()
    }
}

/// Changes a file of which the last line has the BLAKE3 of the others.
fn change_sealed(path: &Path, change: impl FnOnce(&mut toml::Table)) {
    const CHECKSUM: &str = "# BLAKE3 of all before this line: ";
    let text = std::fs::read_to_string(path).unwrap();
    let mut table: toml::Table = text.split(CHECKSUM).next().unwrap().parse().unwrap();
    change(&mut table);
    let text = table.to_string();
    std::fs::write(path, format!("{text}{CHECKSUM}{}\n", blake3::hash(text.as_bytes()))).unwrap();
}

#[test]
fn the_log_says_which_token_was_refused_and_why() {
    let served = Logged::new(&["--log-json"], |_| {});
    let repository = served.repository();
    let make = |role| token(&repository, "blue", role);
    let (revoked, expired, good) = (make("backup"), make("backup"), make("restore"));
    let unknown = format!("ekko_{}_{}", "0".repeat(16), &good[22..]);
    let wrong = format!("{}{}", &good[..22], &expired[22..]);
    ekko_done(&repository, &["token", "revoke", id_of(&revoked)]);
    change_sealed(&repository.join("tokens.toml"), |table| {
        for token in table["token"].as_array_mut().unwrap() {
            if token["id"].as_str() == Some(id_of(&expired)) {
                token.as_table_mut().unwrap().insert("expires".to_owned(), "2026-01-02T03:04:05Z".into());
            }
        }
    });
    let cut = good[..60].to_owned();
    let all = [&revoked, &expired, &unknown, &wrong, &cut];
    for shown in all {
        assert_eq!(served.status("GET /v1/images", shown), "401");
    }
    assert_eq!(served.status("DELETE /v1/backups/web@0", &good), "403");
    until("all is in the log", || served.events("a token was refused").len() == all.len());
    let events = served.events("a token was refused");
    let reasons = [
        "it was revoked at 20",
        "it expired at 2026-01-02T03:04:05Z",
        "no token has this id",
        "its secret is wrong",
        "it has not the form of a token",
    ];
    for ((event, shown), reason) in events.iter().zip(all).zip(reasons) {
        assert!(event["why"].as_str().unwrap().starts_with(reason), "{event}");
        assert_eq!(event["address"], "127.0.0.1");
        let is_named = shown != &cut;
        assert_eq!(event["token"].as_str(), is_named.then(|| id_of(shown)), "{event}");
        let request = served.events("request").into_iter().find(|it| it["request_id"] == event["request_id"]);
        assert_eq!(request.expect("the request has the same id")["status"], 401, "{event}");
    }
    until("the refusal is in the log", || !served.events("a request was refused").is_empty());
    let refused = served.events("a request was refused");
    let why = |event: &&Value| event["why"].as_str().unwrap().contains("takes the role operator");
    let refused = refused.iter().find(why).unwrap();
    let requests = served.events("request");
    let request = requests.iter().find(|it| it["request_id"] == refused["request_id"]).unwrap();
    assert_eq!(request["who"], format!("token:{}", id_of(&good)));
    assert!(request["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{request}");
    let log = served.log();
    for secret in all.map(|shown| &shown[22..]) {
        assert!(!log.contains(secret), "no secret is told");
    }
}

#[test]
fn the_log_says_whose_each_backup_is_what_of_and_what_became_of_it() {
    let served = Logged::new(&["--log-json"], |_| {});
    let blue = token(&served.repository(), "blue", "backup");
    let source = served.folder.path().join("raw");
    std::fs::write(&source, disk(1, 200_000)).unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_ekko"))
        .args(["-r", &format!("http://{}", served.address), "backup", &format!("web={}", source.display())])
        .env("EKKO_TOKEN", &blue)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let new = json!({ "name": "db", "size_of_disk": 0, "format": "raw", "recognised": false, "tags": [] });
    let lines = [format!("Authorization: Bearer {blue}"), "Content-Type: application/json".to_owned()];
    let answer = String::from_utf8(served.ask("POST /v1/sessions", &lines, &new.to_string())).unwrap();
    let session: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let session = session["session"].as_str().unwrap();
    assert_eq!(served.status(&format!("DELETE /v1/sessions/{session}"), &blue), "204");
    until("all is in the log", || !served.events("a backup was given up by its client").is_empty());
    let begun = served.events("a backup has begun");
    let committed = served.events("a backup is committed");
    let given_up = served.events("a backup was given up by its client");
    assert_eq!((begun.len(), committed.len(), given_up.len()), (2, 1, 1), "{}", served.log());
    let who = format!("token:{}", id_of(&blue));
    for (begin, end, image) in [(&begun[0], &committed[0], "blue:web"), (&begun[1], &given_up[0], "blue:db")]
    {
        for event in [begin, end] {
            assert_eq!(
                (&event["image"], &event["who"], &event["number"]),
                (&image.into(), &who.clone().into(), &0.into())
            );
        }
        assert_eq!(begin["session"], end["session"]);
    }
}

/// All 65 control characters, and some that reorder or hide text.
fn evil(label: &str) -> String {
    let controls: String = ('\0'..='\u{1f}').chain('\u{7f}'..='\u{9f}').collect();
    format!("{label}{controls}\u{202e}\u{2028}\u{200b}\nFORGED a\u{1b}[2J\u{9b}2J")
}

fn assert_harmless(what: &str, text: &str) {
    let bad =
        text.chars().find(|it| it.is_control() && *it != '\n' || "\u{202e}\u{2028}\u{200b}".contains(*it));
    assert_eq!(bad, None, "{what}: {text:?}");
    assert!(!text.lines().any(|line| line.starts_with("FORGED")), "{what}: {text}");
}

#[test]
fn neither_the_log_nor_an_answer_holds_what_a_terminal_obeys() {
    for arguments in [&["-vv"][..], &["-vv", "--log-json"]] {
        let served = Logged::new(arguments, |repository| {
            let source = repository.with_extension("raw");
            std::fs::write(&source, disk(1, 200_000)).unwrap();
            ekko_done(repository, &["backup", "--tag", "x", &format!("blue:web={}", source.display())]);
            ekko_done(repository, &["backup", &format!("blue:bad={}", source.display())]);
            for entry in std::fs::read_dir(repository.join("manifests")).unwrap() {
                change_sealed(&entry.unwrap().path().join("set.toml"), |table| {
                    let is_bad = table["name"].as_str() == Some("blue:bad");
                    let backup = table["backup"][0].as_table_mut().unwrap();
                    backup.insert("tags".to_owned(), vec![evil("tag")].into());
                    backup.insert("note".to_owned(), evil("note").into());
                    backup.insert("suspect".to_owned(), evil("suspect").into());
                    if is_bad {
                        backup.insert("manifest".to_owned(), "0".repeat(64).into());
                        backup.insert(evil("unknown"), "x".into());
                    }
                });
            }
        });
        let blue = token(&served.repository(), "blue", "admin");
        let authorized =
            [format!("Authorization: Bearer {blue}"), "Content-Type: application/json".to_owned()];
        // Bytes that a path and a header can hold.
        let path: String = ('\u{7f}'..='\u{9f}').chain(['\u{202e}', '\u{2028}']).collect();
        let escaped: Vec<_> = (0..0x20_u8).chain([0x7f]).map(|byte| format!("%{byte:02x}")).collect();
        let escaped = escaped.concat();
        let session = json!({ "name": evil("name"), "size_of_disk": 0, "format": evil("format"), "recognised": false,
            "tags": [evil("tag")], "in_use": evil("user"), evil("field"): 1 });
        let named = json!({ "name": "new", "size_of_disk": 0, "format": "raw", "recognised": false,
            "tags": [evil("tag").chars().take(20).collect::<String>()], "in_use": evil("user") });
        let mut bodies = String::new();
        for (first, lines, body) in [
            ("GET /v1/images".to_owned(), &authorized[..], String::new()),
            ("GET /v1/backups".to_owned(), &authorized, String::new()),
            ("GET /v1/backups/web@0".to_owned(), &authorized, String::new()),
            ("GET /v1/status".to_owned(), &authorized, String::new()),
            ("GET /v1/statistics".to_owned(), &authorized, String::new()),
            (format!("GET /v1/backups/{path}"), &authorized, String::new()),
            (format!("GET /v1/backups/web{escaped}@0"), &authorized, String::new()),
            (format!("GET /v1/backups?name={escaped}&{path}=1"), &authorized, String::new()),
            (format!("GET /{path}"), &[], String::new()),
            ("GET /v1/".to_owned(), &[format!("X-OpenStack-Ekko-API-Version: {path}")], String::new()),
            ("GET /v1/images".to_owned(), &[format!("X-Auth-Token: {path}")], String::new()),
            ("POST /v1/sessions".to_owned(), &authorized, session.to_string()),
            ("POST /v1/sessions".to_owned(), &authorized, named.to_string()),
            ("POST /v1/jobs".to_owned(), &authorized, json!({ "kind": evil("kind") }).to_string()),
            ("POST /v1/jobs".to_owned(), &authorized, json!({ "kind": "check" }).to_string()),
            (
                "POST /v1/jobs".to_owned(),
                &authorized,
                json!({ "kind": "forget", "keep": { "last": 1 }, "dry_run": true }).to_string(),
            ),
            ("GET /v1/jobs".to_owned(), &authorized, String::new()),
        ] {
            let answer = String::from_utf8(served.ask(&first, lines, &body)).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert_harmless(&first, &head.replace("\r\n", "\n"));
            assert_harmless(&first, body.trim_end());
            bodies.push_str(body);
        }
        for label in ["tag", "suspect"] {
            assert!(bodies.contains(&format!("{label}\\u0000\\u0001")), "{label}: {bodies}");
        }
        let log = served.log();
        assert_harmless("the log", &log);
        assert!(log.contains("\\u{80}") || log.contains("\\u0080"), "{log}");
    }
}
