//! Backups and restores over networks that pause and cut, and beside other clients.

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Served, disk, until};
use crate::proxy::{Proxy, Rules};
use crate::tokens::token;

/// Serves with limits.
fn served(limits: &str) -> Served {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(file.path(), format!("[limits]\n{limits}\n")).unwrap();
    Served::with(&["--config", file.path().to_str().unwrap()], |_| {})
}

fn command(address: &str, token: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
    command.env("EKKO_REPOSITORY", address).env("EKKO_TOKEN", token).args(arguments);
    command
}

fn run(address: &str, token: &str, arguments: &[&str]) -> Output {
    command(address, token, arguments).output().unwrap()
}

fn done(address: &str, token: &str, arguments: &[&str]) -> Output {
    let output = run(address, token, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn begun(address: &str, token: &str, arguments: &[&str]) -> Child {
    let mut command = command(address, token, arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn source(served: &Served, name: &str, bytes: &[u8]) -> String {
    let path = served.folder().join(name);
    std::fs::write(&path, bytes).unwrap();
    format!("{name}={}", path.display())
}

/// Returns how many sessions were begun.
fn sessions(served: &Served) -> String {
    served.metric(r#"ekko_http_requests_total{method="POST",route="/v1/sessions",status="201"}"#).to_string()
}

fn restored(served: &Served, address: &str, token: &str, name: &str) -> Vec<u8> {
    let out = served.folder().join(format!("{name}.out"));
    done(address, token, &["restore", "--force", name, out.to_str().unwrap()]);
    std::fs::read(&out).unwrap()
}

#[test]
fn a_backup_that_sends_nothing_for_longer_than_the_silence_keeps_its_session() {
    // Given up after a second without a word; each backup reads for two and a half.
    let served = served("silence_seconds = 1");
    let token = token(&served.repository(), "blue", "backup");
    let slowly = ["--limit-rate", "8MiB", "--jobs", "1"];
    let zeros = source(&served, "zeros", &vec![0; 24 << 20]);
    done(&served.address, &token, &[&["backup", &zeros], slowly.as_slice()].concat());
    assert_eq!(sessions(&served), "1");
    let web = source(&served, "web", &disk(1, 24 << 20));
    done(&served.address, &token, &["backup", &web]);
    let unchanged = done(&served.address, &token, &[&["--json", "backup", &web], slowly.as_slice()].concat());
    let document: Value = serde_json::from_slice(&unchanged.stdout).unwrap();
    assert_eq!(document["backups"][0]["unchanged_segments"], 384);
    assert_eq!(sessions(&served), "3");
}

#[test]
fn of_two_backups_of_one_image_the_second_is_refused_with_who_is_first() {
    let served = served("silence_seconds = 5");
    let token = token(&served.repository(), "blue", "backup");
    let web = source(&served, "web", &disk(2, 24 << 20));
    let first =
        begun(&served.address, &token, &["--json", "backup", "--jobs", "1", "--limit-rate", "2560KiB", &web]);
    until("the first has begun", || served.metric("ekko_sessions_open") > 0.0);
    let second = run(&served.address, &token, &["backup", &web]);
    assert_eq!(second.status.code(), Some(1));
    let told = String::from_utf8_lossy(&second.stderr);
    assert!(told.contains("is being backed up by another client (token:"), "{told}");
    let first = first.wait_with_output().unwrap();
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    assert_eq!(sessions(&served), "1");
}

#[test]
fn a_backup_takes_the_place_of_one_whose_client_is_gone() {
    let served = served("silence_seconds = 5");
    let token = token(&served.repository(), "blue", "backup");
    let web = source(&served, "web", &disk(3, 24 << 20));
    let mut first = begun(&served.address, &token, &["backup", "--limit-rate", "3MiB", &web]);
    until("the first has begun", || served.metric("ekko_sessions_open") > 0.0);
    first.kill().unwrap();
    first.wait().unwrap();
    done(&served.address, &token, &["backup", &web]);
}

#[test]
fn a_backup_and_a_restore_come_through_a_network_that_cuts_every_connection() {
    let served = served("");
    let token = token(&served.repository(), "blue", "backup");
    let bytes = [disk(4, 1_200_000), vec![0; 500_000], disk(5, 600_001)].concat();
    let web = source(&served, "web", &bytes);
    let proxy = Proxy::new(&served.address, Rules { cut_every: Some(200_000), ..Rules::default() });
    done(&proxy.address, &token, &["backup", &web]);
    assert!(proxy.cuts() > 5, "{}", proxy.cuts());
    assert!(restored(&served, &served.address, &token, "web") == bytes);
    let before = proxy.cuts();
    assert!(restored(&served, &proxy.address, &token, "web") == bytes);
    assert!(proxy.cuts() > before + 5, "{}", proxy.cuts());
    let stream = done(&proxy.address, &token, &["restore", "web", "-"]);
    assert!(stream.stdout == bytes);
}

#[test]
fn a_backup_comes_through_a_pause_that_is_longer_than_the_service_waits() {
    let served = served("body_seconds = 1");
    let token = token(&served.repository(), "blue", "backup");
    let bytes = disk(6, 4_000_000);
    let web = source(&served, "web", &bytes);
    // In the middle of a body: the service answers 408 then.
    let rules = Rules { pause: Some((1_000_000, Duration::from_secs(3))), ..Rules::default() };
    let proxy = Proxy::new(&served.address, rules);
    done(&proxy.address, &token, &["backup", &web]);
    assert!(restored(&served, &served.address, &token, "web") == bytes);
    let proxy = Proxy::new(&served.address, rules);
    assert!(restored(&served, &proxy.address, &token, "web") == bytes);
}

#[test]
fn a_stream_ends_with_its_reader() {
    let served = served("");
    let token = token(&served.repository(), "blue", "backup");
    let web = source(&served, "web", &disk(7, 4_000_000));
    done(&served.address, &token, &["backup", &web]);
    let mut child = begun(&served.address, &token, &["restore", "web", "-"]);
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the restore to stdout is incomplete: its reader ended after"), "{said}");
}

#[test]
fn a_restore_over_the_network_touches_no_target_in_use_and_leaves_nothing_after_a_signal() {
    let served = served("");
    let token = token(&served.repository(), "blue", "backup");
    let bytes = disk(8, 1_000_000);
    done(&served.address, &token, &["backup", &source(&served, "web", &bytes)]);
    let out = served.folder().join("out");
    std::fs::write(&out, b"old").unwrap();
    let restore = ["restore", "--force", "web", out.to_str().unwrap()];
    let mut holder = Command::new("sh");
    holder.args(["-c", "exec 3>>\"$0\"; echo ready; read end"]).arg(&out);
    let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut [0; 6]).unwrap();
    let refused = run(&served.address, &token, &restore);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(11), "{said}");
    assert!(said.contains(&format!("open for writing by process {} (sh)", holder.id())), "{said}");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    let slow = [&restore[..], &["--limit-rate", "64KiB", "--jobs", "1"]].concat();
    let child = begun(&served.address, &token, &slow);
    until("the file is there", || served.folder().join("out.ekko-partial").exists());
    let kill = Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.starts_with("ekko: stopped by SIGTERM: the incomplete ") && said.lines().count() == 1,
        "{said}"
    );
    assert!(!served.folder().join("out.ekko-partial").exists());
    assert_eq!(std::fs::read(&out).unwrap(), b"old");
    done(&served.address, &token, &restore);
    assert!(std::fs::read(&out).unwrap() == bytes);
    // Nor a repository, a name of another format, or a file that no restore left.
    let partial = served.folder().join("new.ekko-partial");
    std::fs::write(&partial, b"precious").unwrap();
    let refused = [
        (served.repository().join("packs/new"), "lies in the repository "),
        (served.folder().join("new.qcow2"), "add --format qcow2, or --format raw"),
        (served.folder().join("new"), "is in the way"),
    ];
    for (target, why) in refused {
        let restore = ["restore", "web", target.to_str().unwrap()];
        let refused = run(&served.address, &token, &restore);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(refused.status.code() == Some(2) && said.contains(why), "{said}");
        assert!(!target.exists(), "{said}");
    }
    assert_eq!(std::fs::read(&partial).unwrap(), b"precious");
}

#[test]
fn status_and_verify_say_over_the_network_what_they_say_beside_the_repository() {
    let served = served("");
    let token = token(&served.repository(), "blue", "restore");
    let path = served.folder().join("disk");
    let bytes = [disk(8, 700_000), vec![0; 300_000], disk(9, 200_001)].concat();
    std::fs::write(&path, &bytes).unwrap();
    let here = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
        command
            .env_remove("EKKO_REPOSITORY")
            .arg("-r")
            .arg(served.repository())
            .args(arguments)
            .output()
            .unwrap()
    };
    assert!(here(&["backup", &format!("blue:web={}", path.display())]).status.success());
    let both = |arguments: &[&str]| {
        let local: Vec<_> =
            arguments.iter().map(|word| if *word == "web" { "blue:web" } else { *word }).collect();
        let (local, remote) = (here(&local), run(&served.address, &token, arguments));
        let text = |output: &Output| String::from_utf8_lossy(&output.stdout).replace("blue:", "");
        assert_eq!(text(&remote), text(&local), "{}", String::from_utf8_lossy(&remote.stderr));
        assert_eq!(remote.status.code(), local.status.code());
        (remote.status.code().unwrap(), text(&remote))
    };
    let source = path.to_str().unwrap().to_owned();
    assert_eq!(both(&["verify", "web", &source]).0, 0);
    assert_eq!(both(&["status"]), (0, "OK: 1 disk, each with an intact backup\n".to_owned()));
    assert_eq!(both(&["status", "--max-age", "8d"]).0, 0);
    for (at, byte) in [(70_000, 1), (900_000, 2), (1_200_000, 3)] {
        let mut changed = bytes.clone();
        changed[at] ^= byte;
        std::fs::write(&path, &changed).unwrap();
        let (code, text) = both(&["verify", "web", &source]);
        assert!(code == 3 && text.contains("differs"), "{text}");
    }
    // A disk of another size.
    std::fs::write(&path, &bytes[..1_000_000]).unwrap();
    assert_eq!(both(&["verify", "web", &source]).0, 3);
    let missing = run(&served.address, &token, &["verify", "db", &source]);
    assert_eq!(missing.status.code(), Some(1));
}
