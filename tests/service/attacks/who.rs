//! Who is somebody else, or may less than they try.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Target, all_of, status_of};
use crate::harness::ekko_done;
use crate::tokens::{id_of, token};

fn backupset_of(repository: &Path, backup: &str) -> String {
    let shown: Value = serde_json::from_str(&ekko_done(repository, &["--json", "show", backup])).unwrap();
    shown["backupset"].as_str().unwrap().to_owned()
}

#[test]
fn another_projects_backup_is_not_there_by_whatever_name() {
    let mut target = Target::new("");
    let set = backupset_of(&target.served.repository(), "red:db@0");
    let owners = backupset_of(&target.served.repository(), "own@0");
    let nobodys = "00000000-0000-4000-8000-000000000000";
    let detail = |path: &str| {
        let answer = target.served.ask("GET", path, Some(&target.token), None);
        assert_eq!((answer.status, answer.kind().as_str()), (404, "not_found"), "{path}");
        answer.json()["detail"].as_str().unwrap().to_owned()
    };
    for name in ["db", "red:db", "own", ":own", "blue:web", "blue:red:db", &set, &owners] {
        for tail in
            ["", "/data", "/manifest", "/manifest?format=sqlite", "/segments?first=0&behind=9", "/diff/web@0"]
        {
            detail(&format!("/v1/backups/{name}@0{tail}"));
        }
        detail(&format!("/v1/backups/{name}@latest"));
        detail(&format!("/v1/backups/web@0/diff/{name}@0"));
    }
    // What is another's is answered as what is nobody's.
    let path = |set: &str| format!("/v1/backups/{set}@0");
    assert_eq!(detail(&path(&set)).replace(&set, ""), detail(&path(nobodys)).replace(nobodys, ""));
    let marker = |set: &str| format!("/v1/backups?marker={set}@0");
    assert_eq!(detail(&marker(&set)).replace(&set, ""), detail(&marker(nobodys)).replace(nobodys, ""));
    for query in ["name=red:db", "name=own", "name=db", "tag=x"] {
        let list = target.served.ask("GET", &format!("/v1/backups?{query}"), Some(&target.token), None);
        assert_eq!((list.status, list.json()["backups"].clone()), (200, Value::Array(vec![])), "{query}");
    }
    target.still_serves();
}

/// What takes something away, as the document of the API has it, and with what is asked: no `backup` token may, and neither
/// may what only reads.
const TAKING_AWAY: &[(&str, &str, &str, Option<&str>)] = &[
    ("DELETE", "/v1/backups/{backup}", "/v1/backups/web@0", None),
    ("PUT", "/v1/backups/{backup}/protection", "/v1/backups/web@0/protection", Some("{}")),
    ("DELETE", "/v1/backups/{backup}/protection", "/v1/backups/web@0/protection", None),
    ("POST", "/v1/jobs", "/v1/jobs", Some("{\"kind\":\"gc\"}")),
    ("POST", "/v1/jobs", "/v1/jobs", Some("{\"kind\":\"gc\",\"keep_unfinished\":\"0h\"}")),
    ("POST", "/v1/jobs", "/v1/jobs", Some("{\"kind\":\"gc\",\"accept_lost\":true}")),
    ("POST", "/v1/jobs", "/v1/jobs", Some("{\"kind\":\"check\",\"repair\":true}")),
    ("POST", "/v1/jobs", "/v1/jobs", Some("{\"kind\":\"forget\",\"keep\":{\"last\":1}}")),
    ("DELETE", "/v1/jobs/{id}", "/v1/jobs/00000000-0000-4000-8000-000000000000", None),
];

#[test]
fn a_backup_token_takes_nothing_away() {
    let mut target = Target::new("");
    let repository = target.served.repository();
    let tokens = ["restore", "backup"].map(|role| token(&repository, "blue", role));
    for (method, template, path, body) in TAKING_AWAY {
        let is_there = target.can_be_asked(method, template);
        for token in &tokens {
            let answer = target.served.ask(method, path, Some(token), body.map(str::as_bytes));
            let expected: &[u16] = if is_there { &[403] } else { &[404, 405] };
            assert!(expected.contains(&answer.status), "{method} {path} {body:?}: {}", answer.status);
        }
    }
    let shown = target.served.ask("GET", "/v1/backups/web@0", Some(&target.token), None);
    assert_eq!((shown.status, shown.json()["protected"].clone()), (200, false.into()), "it is as it was");
    target.still_serves();
}

/// Writes another end into the file of tokens, as if time had passed.
fn end_in(repository: &Path, year: &str) {
    let path = repository.join("tokens.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (covered, _) = text.rsplit_once("# BLAKE3").unwrap();
    let covered = covered.replace("expires = \"2099", &format!("expires = \"{year}"));
    let sum = blake3::hash(covered.as_bytes());
    std::fs::write(&path, format!("{covered}# BLAKE3 of all before this line: {sum}\n")).unwrap();
}

#[test]
fn tokens_that_are_expired_revoked_malformed_cut_or_of_another_repository_let_nobody_in() {
    let mut target = Target::new("[limits]\nfailures_per_minute = 1000\n");
    let repository = target.served.repository();
    let make = ["-q", "token", "create", "--project", "blue", "--role", "admin", "--expires", "2099-01-01"];
    let expired = ekko_done(&repository, &make).trim_end().to_owned();
    assert_eq!(target.served.ask("GET", "/v1/images", Some(&expired), None).status, 200);
    end_in(&repository, "2020");
    let revoked = token(&repository, "blue", "admin");
    ekko_done(&repository, &["token", "revoke", id_of(&revoked)]);
    let elsewhere = target.served.folder().join("elsewhere");
    ekko_done(&elsewhere, &["init", "--segment-size", "64KiB"]);
    let foreign = token(&elsewhere, "blue", "admin");
    let good = target.token.clone();
    let (head, secret) = good.split_at(22);
    let mut wrong = vec![
        expired,
        revoked.clone(),
        foreign.clone(),
        // Another one's secret under a name that is known, and the other way around.
        format!("{head}{}", &foreign[22..]),
        format!("{}{secret}", &foreign[..22]),
        format!("{head}{}", "0".repeat(64)),
        good.to_uppercase(),
        format!("{good}0"),
        format!("{good}{good}"),
        good[5..].to_owned(),
        secret.to_owned(),
        format!("ekko_{}", "f".repeat(20_000)),
        "ekko__".to_owned(),
        "../../tokens.toml".to_owned(),
        "' or 1=1".to_owned(),
    ];
    wrong.extend((0..good.len()).step_by(7).map(|cut| good[..cut].to_owned()));
    for last in ["0", "1"] {
        let flipped = format!("{}{last}", &good[..good.len() - 1]);
        wrong.extend((flipped != good).then_some(flipped));
    }
    for token in &wrong {
        for header in ["Authorization: Bearer ", "X-Auth-Token: "] {
            let request =
                format!("GET /v1/images HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}{token}\r\n\r\n");
            assert_eq!(status_of(&target.raw(request.as_bytes())), 401, "{header}{token}");
        }
    }
    target.still_serves();
}

#[test]
fn two_tokens_at_once_are_refused() {
    let mut target = Target::new("");
    let good = &target.token;
    let request = format!(
        "GET /v1/images HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {good}\r\nX-Auth-Token: {good}\r\n\r\n"
    );
    assert_eq!(status_of(&target.raw(request.as_bytes())), 401);
    target.still_serves();
}

#[test]
fn who_guesses_is_told_to_wait_and_others_at_the_same_address_are_let_in() {
    let mut target = Target::new("[limits]\nfailures_per_minute = 5\n");
    let guess = |number: usize| format!("ekko_{number:016x}_{number:064x}");
    let answers: Vec<_> =
        (0..40).map(|number| target.served.ask("GET", "/v1/images", Some(&guess(number)), None)).collect();
    let told = answers.iter().filter(|answer| answer.status == 429).count();
    assert!(answers[..5].iter().all(|answer| answer.status == 401) && told > 30, "{told}");
    let last = answers.last().unwrap();
    let wait: u32 = last.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=12).contains(&wait), "{wait}");
    target.still_serves();
}

#[test]
fn no_log_holds_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("store");
    ekko_done(&repository, &["init", "--segment-size", "64KiB"]);
    let good = token(&repository, "blue", "admin");
    for json in [false, true] {
        let log = folder.path().join(format!("log-{json}"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
        command.env_remove("EKKO_REPOSITORY").arg("-vv").arg("-r").arg(&repository);
        command
            .args(["serve", "--listen", "127.0.0.1:0"])
            .stderr(Stdio::from(std::fs::File::create(&log).unwrap()));
        command.args(json.then_some("--log-json"));
        let mut child = command.spawn().unwrap();
        let address = listening(&log);
        let wrong = format!("{}{}", &good[..22], "5".repeat(64));
        let keystones = format!("gAAAAAB{}", "k".repeat(100));
        for shown in [
            format!("Authorization: Bearer {good}"),
            format!("Authorization: Bearer {wrong}"),
            format!("Authorization: Basic {good}"),
            format!("X-Auth-Token: {good}"),
            format!("X-Auth-Token: {keystones}"),
        ] {
            let mut stream = TcpStream::connect(&address).unwrap();
            let path = "/v1/images";
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{shown}\r\n\r\n").unwrap();
            all_of(&mut stream);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(text.contains(id_of(&good)) && text.contains("/v1/images"), "who asked is told: {text}");
        for secret in [&good[22..], &wrong[22..], &keystones[7..]] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

fn listening(log: &Path) -> String {
    let until = Instant::now() + Duration::from_secs(30);
    while Instant::now() < until {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        if let Some((_, rest)) = text.split_once("listening on http://")
            && let Some((address, _)) = rest.split_once(['\n', '"'])
        {
            return address.to_owned();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("it does not listen: {}", std::fs::read_to_string(log).unwrap());
}

#[test]
fn the_socket_lets_the_owner_in_and_files_are_for_them_alone() {
    use std::os::unix::fs::PermissionsExt;
    let target = Target::new("");
    let repository: PathBuf = target.served.repository();
    assert_eq!(
        repository.metadata().unwrap().permissions().mode() & 0o077,
        0,
        "nobody else reaches what is in it"
    );
    for file in ["tokens.toml", "tokens.lock", "ekko.sock"] {
        let mode = repository.join(file).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let mut stream = std::os::unix::net::UnixStream::connect(repository.join("ekko.sock")).unwrap();
    stream.write_all(b"GET /v1/images HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("blue:web") && answer.contains("\"own\""), "{answer}");
}

#[test]
fn another_user_is_not_let_in_by_the_socket_whatever_its_mode() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let mut target = Target::new("");
    let repository = target.served.repository();
    let socket = repository.join("ekko.sock");
    let ask = |user: Option<u32>| {
        let mut command = Command::new("curl");
        command.args(["-s", "--max-time", "10", "--unix-socket"]).arg(&socket).arg("http://x/v1/images");
        user.map(|user| command.uid(user));
        command.output().map(|output| String::from_utf8(output.stdout).unwrap())
    };
    // Only root can ask as somebody else, and only with curl.
    let Ok(owner) = ask(None) else { return };
    assert!(owner.contains("blue:web"), "{owner}");
    for path in [target.served.folder(), &repository, &socket] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    if let Ok(other) = ask(Some(65_534)) {
        assert_eq!(other, "", "nothing is answered");
    }
    target.still_serves();
}
