//! Backups that are sent, and the command line over the network.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::harness::{Served, disk, ekko, ekko_done, signal, start, until};
use crate::tokens::token;

/// Runs `ekko` on a service, with a token.
fn over_network(served: &Served, token: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
    command.env("EKKO_REPOSITORY", &served.address).env("EKKO_TOKEN", token).args(arguments);
    command.output().unwrap()
}

fn done(served: &Served, token: &str, arguments: &[&str]) -> String {
    let output = over_network(served, token, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn document(served: &Served, token: &str, arguments: &[&str]) -> Value {
    let text = done(served, token, &[&["--json"], arguments].concat());
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"))
}

fn source(path: &Path, bytes: &[u8]) -> String {
    std::fs::write(path, bytes).unwrap();
    format!("web={}", path.display())
}

#[test]
fn what_a_raw_source_looks_like_is_told_and_written_down_over_the_network_too() {
    let served = Served::new();
    let token = token(&served.repository(), "blue", "operator");
    let web = source(&served.folder().join("disk"), b"# Disk DescriptorFile\nversion=1\n");
    let output = over_network(&served, &token, &["--json", "backup", &web]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && stderr.contains("looks like a VMDK image but is read as raw"),
        "{stderr}"
    );
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["backups"][0]["looks_like"], "vmdk");
    assert_eq!(document_of(&served, &token, "web@0")["attributes"]["looks-like"], "vmdk");
    let output = over_network(&served, &token, &["backup", "--format", "raw", &web]);
    assert!(!String::from_utf8(output.stderr).unwrap().contains("looks like"));
    assert!(document_of(&served, &token, "web@1")["attributes"].get("looks-like").is_none());
}

fn document_of(served: &Served, token: &str, backup: &str) -> Value {
    document(served, token, &["show", backup])
}

#[test]
fn every_command_works_over_the_network_as_it_does_beside_the_repository() {
    let served = Served::new();
    let token = token(&served.repository(), "blue", "operator");
    let (path, out) = (served.folder().join("disk"), served.folder().join("out"));
    let out_text = out.to_str().unwrap();
    let mut bytes = [disk(1, 1_000_000), vec![0; 500_000], disk(2, 300_001)].concat();
    let web = source(&path, &bytes);
    let first = document(&served, &token, &["backup", "--tag", "gold", &web]);
    let first = &first["backups"][0];
    assert_eq!((&first["backup"], &first["incremental"]), (&"web@0".into(), &0.into()));
    assert_eq!(first["segments"], 28);
    let before = bytes.clone();
    bytes[70_000] ^= 1;
    source(&path, &bytes);
    let second = document(&served, &token, &["backup", &web]);
    let counts = ["new_segments", "unchanged_segments"].map(|it| second["backups"][0][it].as_u64().unwrap());
    assert_eq!(counts[0], 1);
    assert_eq!(counts[1], first["new_segments"].as_u64().unwrap() - 1);
    for (backup, expected) in [("web@0", &before), ("web", &bytes)] {
        done(&served, &token, &["restore", "--force", backup, out_text]);
        assert!(std::fs::read(&out).unwrap() == *expected, "{backup}");
        let stdout = over_network(&served, &token, &["restore", backup, "-"]);
        assert!(stdout.status.success() && stdout.stdout == *expected, "{backup}");
    }
    let names = |value: &Value| -> Vec<String> {
        let rows = value["backups"].as_array().unwrap();
        rows.iter().map(|row| row["backup"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&document(&served, &token, &["list", "web"])), ["web@0", "web@1"]);
    let shown = document(&served, &token, &["show", "web@0"]);
    assert_eq!((&shown["tags"][0], &shown["source"]), (&"gold".into(), &path.to_str().unwrap().into()));
    assert_eq!(shown["read_bytes"], before.len());
    assert!(shown["host"].is_string() && shown["duration_seconds"].as_f64().unwrap() > 0.0, "{shown}");
    let diff = document(&served, &token, &["diff", "web@0", "web@1"]);
    assert_eq!(diff.as_array().unwrap().len(), 1);
    let sqlite = served.folder().join("web.sqlite");
    done(&served, &token, &["manifest", "export", "web@1", sqlite.to_str().unwrap()]);
    assert!(std::fs::read(&sqlite).unwrap().starts_with(b"SQLite format 3"));
    done(&served, &token, &["protect", "web@0"]);
    assert!(!over_network(&served, &token, &["delete", "web@0"]).status.success());
    done(&served, &token, &["unprotect", "web@0"]);
    let planned = document(&served, &token, &["forget", "--keep-last", "1", "--dry-run"]);
    assert_eq!(planned["deleted"][0]["backup"], "web@0");
    done(&served, &token, &["delete", "web@0"]);
    let gone = document(&served, &token, &["list", "--deleted"]);
    assert_eq!(names(&gone), ["web@0"]);
    assert!(gone["backups"][0]["deleted_until"].is_string());
    let collected = done(&served, &token, &["gc"]);
    assert!(collected.contains("1 deleted backup can be undeleted until"), "{collected}");
    done(&served, &token, &["undelete", "web@0"]);
    assert_eq!(names(&document(&served, &token, &["list"])), ["web@0", "web@1"]);
    let again = document(&served, &token, &["undelete", "web@0"]);
    assert_eq!(
        (&again["undeleted"], &again["not_deleted"][0]["backup"]),
        (&serde_json::json!([]), &"web@0".into())
    );
    done(&served, &token, &["delete", "web@0", "--gc"]);
    assert!(!over_network(&served, &token, &["undelete", "web@0"]).status.success());
    assert_eq!(names(&document(&served, &token, &["list"])), ["web@1"]);
    done(&served, &token, &["check", "--read-data"]);
    done(&served, &token, &["gc"]);
    done(&served, &token, &["restore", "--force", "web", out_text]);
    assert!(std::fs::read(&out).unwrap() == bytes);
    // What is not done over the network says so.
    for arguments in [["rebuild"].as_slice(), &["restore", "--over", "web", "web", "x"]] {
        let refused = over_network(&served, &token, arguments);
        assert_eq!(refused.status.code(), Some(1), "{arguments:?}");
    }
}

#[test]
fn of_equal_segments_one_is_sent() {
    let served = Served::new();
    let token = token(&served.repository(), "blue", "backup");
    // Three times the same segment of 64 KiB, and another; one piece of the disk.
    let bytes = [vec![1; 3 << 16], vec![2; 1 << 16]].concat();
    let web = source(&served.folder().join("disk"), &bytes);
    let made = document(&served, &token, &["backup", &web]);
    let counts = ["new_segments", "deduplicated_segments"].map(|it| made["backups"][0][it].as_u64().unwrap());
    assert_eq!(counts, [2, 2]);
    let restored = over_network(&served, &token, &["restore", "web", "-"]);
    assert!(restored.status.success() && restored.stdout == bytes);
}

#[test]
fn who_may_only_back_up_reads_its_own_and_takes_nothing_away() {
    let served = Served::new();
    let (blue, red) =
        (token(&served.repository(), "blue", "backup"), token(&served.repository(), "red", "admin"));
    let web = source(&served.folder().join("disk"), &disk(3, 200_000));
    done(&served, &blue, &["backup", &web]);
    done(&served, &blue, &["restore", "web", served.folder().join("out").to_str().unwrap()]);
    for arguments in
        [["delete", "web@0"].as_slice(), &["forget", "--keep-last", "1"], &["gc"], &["unprotect", "web"]]
    {
        let refused = over_network(&served, &blue, arguments);
        assert_eq!(refused.status.code(), Some(13), "{arguments:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("role"), "{arguments:?}");
    }
    for arguments in [["show", "web@0"], ["restore", "web@0"], ["delete", "web@0"], ["diff", "web@0"]] {
        let more = [arguments.as_slice(), &["x"]].concat();
        let arguments =
            if arguments[0] == "show" || arguments[0] == "delete" { &arguments[..] } else { &more };
        assert_eq!(over_network(&served, &red, arguments).status.code(), Some(1), "{arguments:?}");
    }
    assert_eq!(document(&served, &blue, &["list"])["backups"].as_array().unwrap().len(), 1);
    let restorer = token(&served.repository(), "blue", "restore");
    assert_eq!(over_network(&served, &restorer, &["backup", &web]).status.code(), Some(1), "the disk failed");
    assert_eq!(over_network(&served, "ekko_nonsense", &["list"]).status.code(), Some(13));
}

#[test]
fn on_its_own_machine_nobody_meets_the_lock_of_a_service() {
    let mut served = Served::new();
    let repository = served.repository();
    let web = source(&served.folder().join("disk"), &disk(4, 300_000));
    ekko_done(&repository, &["backup", &web]);
    ekko_done(&repository, &["backup", &web]);
    ekko_done(&repository, &["protect", "web@1"]);
    ekko_done(&repository, &["delete", "web@0"]);
    ekko_done(&repository, &["gc"]);
    ekko_done(&repository, &["check", "--read-data"]);
    let out = served.folder().join("out");
    ekko_done(&repository, &["restore", "web", out.to_str().unwrap()]);
    assert!(std::fs::read(&out).unwrap() == disk(4, 300_000));
    let rebuild = ekko(&repository, &["rebuild"]);
    assert!(String::from_utf8_lossy(&rebuild.stderr).contains("in use"));
    served.stop();
    // And when it has gone, the repository is opened as ever.
    ekko_done(&repository, &["backup", &web]);
    assert!(ekko_done(&repository, &["list"]).contains("web@2"));
}

#[test]
fn a_service_that_is_killed_in_mid_backup_is_waited_for_and_gone_on_with() {
    let mut served = Served::new();
    let repository = served.repository();
    // 16 MB at 8 MB a second.
    let bytes = disk(5, 16_000_000);
    let web = source(&served.folder().join("disk"), &bytes);
    let client = Command::new(env!("CARGO_BIN_EXE_ekko"))
        .arg("-r")
        .arg(&repository)
        .args(["--json", "backup", "--limit-rate", "8MiB", &web])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("something was sent", || served.metric("ekko_segments_stored_total") > 20.0);
    served.process().kill().unwrap();
    served.process().wait().unwrap();
    let (child, address) = start(&repository, &[]);
    served.replace(child, address);
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["backups"][0]["backup"], "web@0");
    let out = served.folder().join("out");
    ekko_done(&repository, &["restore", "web", out.to_str().unwrap()]);
    assert!(std::fs::read(&out).unwrap() == bytes);
    ekko_done(&repository, &["check", "--read-data"]);
}

#[test]
fn the_two_commands_of_the_documentation_make_a_first_backup_over_tls_with_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut host = Command::new("sh")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/setup.sh"))
        .args(["localhost", "blue"])
        .arg(folder.path().join("ekko"))
        .env("LISTEN", format!("127.0.0.1:{port}"))
        .env("EKKO", env!("CARGO_BIN_EXE_ekko"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(host.stdout.take().unwrap()).lines();
    let second = lines.find_map(|line| line.ok().filter(|line| line.contains("ekko backup"))).unwrap();
    until("it listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let bytes = disk(6, 300_000);
    let web = source(&folder.path().join("disk"), &bytes);
    let program = Path::new(env!("CARGO_BIN_EXE_ekko")).display().to_string();
    let run = |what: &str| {
        let line = second.replace("ekko backup NAME=DISK", &format!("{program} {what}"));
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(&format!("backup {web}"));
    let out = folder.path().join("out");
    run(&format!("restore web {}", out.display()));
    assert!(std::fs::read(&out).unwrap() == bytes);
    // Without the certificate nobody is believed, and without the token nobody is let in.
    for (without, code) in [("EKKO_CACERT=", 1), ("EKKO_TOKEN_FILE=", 13)] {
        let words: Vec<_> = second.split(' ').filter(|word| !word.starts_with(without)).collect();
        let line = words.join(" ").replace("ekko backup NAME=DISK", &format!("{program} list"));
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}");
    }
    signal(&mut host, "TERM");
    assert!(host.wait().unwrap().success());
}
