//! What clients do that mean no good. Each is refused with the right status, and the service still answers after.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Served, ekko_done};
use crate::tokens::{id_of, token, two_projects};

/// What a service may take beyond what it takes with nothing to do, in KiB: attacks cost it no more.
const MORE_MEMORY: u64 = 96 << 10;

/// A service that has been started, and what it took then.
struct Target {
    served: Served,
    /// Lives as long as the service: its settings are in it.
    _settings: tempfile::TempDir,
    token: String,
    memory: u64,
}

impl Target {
    fn new(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("service.toml");
        std::fs::write(&file, settings).unwrap();
        let mut served = Served::with(&["--config", file.to_str().unwrap()], two_projects);
        let token = token(&served.repository(), "blue", "backup");
        assert_eq!(served.ask("GET", "/v1/images", Some(&token), None).status, 200);
        let memory = memory_of(served.process().id(), "VmRSS");
        Self { served, _settings: folder, token, memory }
    }

    /// It still answers, to whoever knows nothing and to whoever has a token, and has not grown.
    fn still_serves(&mut self) {
        assert_eq!(self.served.get("/healthz").status, 200);
        let images = self.served.ask("GET", "/v1/images", Some(&self.token), None);
        assert_eq!((images.status, images.json()["images"][0]["name"].clone()), (200, "web".into()));
        let peak = memory_of(self.served.process().id(), "VmHWM");
        assert!(peak < self.memory + MORE_MEMORY, "{peak} KiB, and {} KiB before", self.memory);
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.served.address.strip_prefix("http://").unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends bytes, and returns all that comes until the service closes the connection.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // Perhaps it has heard enough.
        let _ = stream.write_all(bytes);
        all_of(&mut stream)
    }
}

fn all_of(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => all.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("it was not closed: {error}; {}", String::from_utf8_lossy(&all)),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn status_of(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status: {answer:?}"))
}

/// Returns a figure of a process in KiB.
fn memory_of(process: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

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
        for tail in ["", "/data", "/manifest", "/manifest?format=sqlite"] {
            detail(&format!("/v1/backups/{name}@0{tail}"));
        }
        detail(&format!("/v1/backups/{name}@latest"));
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

/// What takes something away: no `backup` token may, and neither may what only reads.
const TAKING_AWAY: &[(&str, &str, Option<&str>)] = &[
    ("DELETE", "/v1/backups/web@0", None),
    ("DELETE", "/v1/images/web", None),
    ("PUT", "/v1/backups/web@0/protection", Some("{\"protected\":false}")),
    ("POST", "/v1/jobs", Some("{\"job\":\"gc\"}")),
    ("POST", "/v1/jobs", Some("{\"job\":\"forget\",\"keep_last\":1}")),
];

#[test]
fn a_backup_token_takes_nothing_away() {
    let mut target = Target::new("");
    for (method, path, body) in TAKING_AWAY {
        for role in ["restore", "backup"] {
            let token = token(&target.served.repository(), "blue", role);
            let answer = target.served.ask(method, path, Some(&token), body.map(str::as_bytes));
            assert!([403, 404, 405].contains(&answer.status), "{role}: {method} {path}: {}", answer.status);
        }
    }
    let shown = target.served.ask("GET", "/v1/backups/web@0", Some(&target.token), None);
    assert_eq!(shown.status, 200, "it is still there");
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
    assert_eq!(status_of(&target.raw(request.as_bytes())), 400);
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
fn one_token_that_asks_too_fast_is_told_to_wait_and_another_is_not() {
    let mut target = Target::new("[limits]\nrequests_per_second = 2\n");
    let fast = token(&target.served.repository(), "blue", "restore");
    let status = |token: &str| target.served.ask("GET", "/v1/images", Some(token), None).status;
    let told = (0..40).filter(|_| status(&fast) == 429).count();
    assert!(told > 20, "{told}");
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
            && let Some((address, _)) = rest.split_once('\n')
        {
            return address.to_owned();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("it does not listen: {}", std::fs::read_to_string(log).unwrap());
}

/// Returns how many descriptors this process may still open, `wanted` at most, leaving some to others.
fn descriptors(wanted: u64) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let has = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(wanted.min(has.saturating_sub(2000))).unwrap()
}

#[test]
fn ten_thousand_silent_connections_keep_nobody_out() {
    let mut target = Target::new("");
    let many = descriptors(10_000);
    let mut silent = Vec::with_capacity(many);
    for number in 0..many {
        silent.push(target.connect());
        if number % 1000 == 0 {
            assert_eq!(target.served.get("/healthz").status, 200, "after {number}");
        }
    }
    target.still_serves();
    let process = target.served.process().id();
    let open = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    assert!(open < 256 + 100, "{open} descriptors are open, of {many} connections");
    drop(silent);
    target.still_serves();
}

#[test]
fn who_says_nothing_or_says_it_slowly_is_let_go() {
    let mut target = Target::new("[limits]\nheader_seconds = 1\n");
    let begun = Instant::now();
    let mut silent = target.connect();
    let mut kept = target.connect();
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut slow = target.connect();
    let mut sent = 0;
    // A byte now and then does not help.
    while slow.write_all(if sent == 0 { b"GET / HTTP/1.1\r\n" } else { b"X" }).is_ok() {
        sent += 1;
        std::thread::sleep(Duration::from_millis(100));
        assert!(begun.elapsed() < Duration::from_secs(20), "it is still heard");
    }
    assert_eq!(all_of(&mut silent), "");
    assert_eq!(status_of(&all_of(&mut kept)), 200);
    assert!(begun.elapsed() < Duration::from_secs(20));
    target.still_serves();
}

#[test]
fn a_slow_body_is_not_waited_for() {
    let mut target = Target::new("[limits]\nbody_seconds = 1\n");
    let mut stream = target.connect();
    let good = &target.token;
    write!(
        stream,
        "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {good}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"
    )
    .unwrap();
    let begun = Instant::now();
    let answer = all_of(&mut stream);
    // The last two: who may not, or what is not there, is told so before.
    assert!([408, 403, 404, 405].contains(&status_of(&answer)), "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(15));
    target.still_serves();
}

#[test]
fn a_header_without_an_end_is_refused_before_it_takes_memory() {
    let mut target = Target::new("");
    for begin in ["GET / HTTP/1.1\r\nX-Long: ", "GET /", "G", "GET / HTTP/1.1\r\n"] {
        let mut stream = target.connect();
        stream.write_all(begin.as_bytes()).unwrap();
        let piece = if begin.ends_with("\r\n") { "X-Many: 1\r\n".repeat(4096) } else { "a".repeat(64 << 10) };
        // Ten gigabytes, if it took them.
        let mut sent = 0;
        while sent < 10 << 30 && stream.write_all(piece.as_bytes()).is_ok() {
            sent += piece.len();
        }
        assert!(sent < 16 << 20, "{sent} bytes of {begin:?} were taken");
        // The answer may have been overtaken by the connection's end.
        let answer = all_of(&mut stream);
        assert!(answer.is_empty() || [400, 414, 431].contains(&status_of(&answer)), "{begin:?}: {answer}");
    }
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}", "a".repeat(64 << 10));
    let mut stream = target.connect();
    stream.write_all(&long.as_bytes()[..40 << 10]).unwrap();
    assert_eq!(status_of(&all_of(&mut stream)), 431);
    target.still_serves();
}

#[test]
fn a_body_that_is_said_to_be_huge_takes_nothing() {
    let mut target = Target::new("");
    let good = target.token.clone();
    for length in [
        "9223372036854775807",
        "18446744073709551615",
        "99999999999999999999999",
        "-1",
        "+5",
        "0x10",
        "5 5",
        "",
    ] {
        for method in ["GET", "POST"] {
            let request = format!(
                "{method} /v1/backups HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {good}\r\nContent-Length: {length}\r\n\r\n{{"
            );
            let status = status_of(&target.raw(request.as_bytes()));
            // A GET of a list does not read a body, however long it is said to be.
            let fine = method == "GET" && status == 200 && length.starts_with(['9', '1']);
            assert!(fine || [400, 405, 413, 431].contains(&status), "{method} of {length}: {status}");
        }
    }
    target.still_serves();
}

#[test]
fn paths_lead_nowhere_but_to_names() {
    let mut target = Target::new("");
    let good = target.token.clone();
    let mut names: Vec<String> = [
        "../red:db",
        "..",
        ".",
        "%2e%2e",
        "%2e%2e%2fred:db",
        "..%2f..%2ftokens.toml",
        "web%00@0",
        "%00",
        "web@0%00",
        "web%2f..%2fdb",
        "%c0%ae%c0%ae",
        "%c0%af",
        "%ff",
        "%e0%80%ae",
        "%",
        "%zz",
        "web@",
        "@0",
        "web@-1",
        "web@4294967296",
        "web@0@0",
        "web@0/..",
        "web@0//",
        "%2Fetc%2Fpasswd",
        "web%0d%0aX: 1",
        "web;db@0",
        "web@0%20",
        "%20web@0",
        "web@0\\",
        "..\\red:db",
        "WEB@0",
        "red%3adb@0",
        "%72ed:db@0",
        "web@latest%00",
        "\u{202e}bew@0",
        "web@٠",
    ]
    .map(str::to_owned)
    .to_vec();
    names.push(format!("{}@0", "x".repeat(5000)));
    for name in names {
        for path in
            [format!("/v1/backups/{name}"), format!("/v1/backups/{name}/data"), format!("/{name}/v1/backups")]
        {
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {good}\r\n\r\n"
            );
            let answer = target.raw(request.as_bytes());
            let status = status_of(&answer);
            assert!([400, 404].contains(&status), "{path}: {answer}");
            assert!(!answer.contains("size_of_disk") && !answer.contains("root:"), "{path}: {answer}");
        }
    }
    target.still_serves();
}

#[test]
fn a_request_is_not_hidden_in_another() {
    let mut target = Target::new("");
    let good = target.token.clone();
    let hidden = format!("GET /v1/images HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {good}\r\n\r\n");
    let head = "POST /healthz HTTP/1.1\r\nHost: x\r\n";
    let length = hidden.len() + 5;
    // Where it is not clear where a request ends, nothing behind it is answered: the connection is closed.
    for (lines, body, refused) in [
        (format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"), "0\r\n\r\n", false),
        (format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"), "0\r\n\r\n", false),
        ("Content-Length: 0\r\nContent-Length: 5\r\n".to_owned(), "", true),
        ("Content-Length: 0, 5\r\n".to_owned(), "", true),
        ("Transfer-Encoding: identity\r\n".to_owned(), "", true),
        ("Transfer-Encoding: chunked, identity\r\n".to_owned(), "0\r\n\r\n", true),
        ("Transfer-Encoding: xchunked\r\n".to_owned(), "0\r\n\r\n", true),
        ("Transfer-Encoding : chunked\r\n".to_owned(), "0\r\n\r\n", true),
        ("Content-Length : 5\r\n".to_owned(), "", true),
        ("Transfer-Encoding: chunked\r\n".to_owned(), "zz\r\n\r\n", false),
        ("Transfer-Encoding: chunked\r\n".to_owned(), "ffffffffffffffffff\r\n\r\n", false),
        ("X: 1\r\n folded: 1\r\nContent-Length: 0\r\n".to_owned(), "", true),
        ("X\0: 1\r\n".to_owned(), "", true),
    ] {
        let answer = target.raw(format!("{head}{lines}\r\n{body}{hidden}").as_bytes());
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{lines:?}: {answer}");
        assert!(!answer.contains("\"images\""), "{lines:?}: {answer}");
        let expected: &[u16] = if refused { &[400] } else { &[400, 405] };
        assert!(expected.contains(&status_of(&answer)), "{lines:?}: {answer}");
    }
    let old = format!("POST /healthz HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}");
    assert_eq!(status_of(&target.raw(old.as_bytes())), 400);
    target.still_serves();
}

#[test]
fn what_is_no_http_is_not_answered_for_long() {
    let mut target = Target::new("[limits]\nheader_seconds = 1\n");
    let mut tls = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    tls.extend([7; 100]);
    let noise: Vec<u8> =
        (0..100_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for bytes in [
        &tls[..],
        &noise,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
    ] {
        let answer = target.raw(bytes);
        assert!(answer.is_empty() || status_of(&answer) >= 400, "{answer}");
    }
    let mut methods = String::new();
    for method in ["TRACE", "CONNECT", "PROPFIND", "get", "DELETE"] {
        let answer = target
            .raw(format!("{method} /v1/images HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes());
        write!(methods, "{} ", status_of(&answer)).unwrap();
    }
    assert!(methods.split_whitespace().all(|status| status.starts_with('4')), "{methods}");
    target.still_serves();
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
