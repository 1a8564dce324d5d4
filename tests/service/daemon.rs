//! The service as a process: how it starts, what it tells, how it ends.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Served, disk, ekko_done, signal, until};
use crate::tokens::token;

#[test]
fn a_download_under_way_is_finished_and_new_requests_are_refused() {
    let bytes = disk(1, 32 << 20);
    let mut served = Served::with(&[], |repository| {
        let source = repository.with_extension("raw");
        std::fs::write(&source, &bytes).unwrap();
        ekko_done(repository, &["backup", &format!("web={}", source.display())]);
    });
    let mut download = UnixStream::connect(served.socket()).unwrap();
    download.write_all(b"GET /v1/backups/web@0/data HTTP/1.1\r\nHost: ekko\r\n\r\n").unwrap();
    let mut begin = vec![0; 4096];
    download.read_exact(&mut begin).unwrap();
    signal(served.process(), "TERM");
    // A connection that is idle at that moment ends without an answer.
    until("it stops", || served.status_if_answered("/readyz") == Some(503));
    let refused = served.get("/v1/backups");
    assert_eq!((refused.status, refused.kind().as_str()), (503, "unavailable"));
    assert!(refused.headers.contains_key("retry-after"));
    download.read_to_end(&mut begin).unwrap();
    let body = begin.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert!(begin[body..] == bytes, "the whole disk came");
    let status = served.process().wait().unwrap();
    assert_eq!(status.code(), Some(0), "it was closed in order");
    assert!(!served.socket().exists());
    let said = crate::harness::ekko(&served.repository(), &["check"]);
    assert!(said.status.success() && said.stderr.is_empty(), "{}", String::from_utf8_lossy(&said.stderr));
}

#[test]
fn neither_jobs_nor_clients_that_stall_keep_it_from_ending_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("ekko.toml");
    std::fs::write(&settings, "[limits]\ngrace_seconds = 1\n").unwrap();
    let log = folder.path().join("log");
    let repository = folder.path().join("store");
    ekko_done(&repository, &["init", "--segment-size", "64KiB"]);
    let source = folder.path().join("raw");
    std::fs::write(&source, disk(1, 64 << 20)).unwrap();
    ekko_done(&repository, &["backup", &format!("web={}", source.display())]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ekko"))
        .arg("-r")
        .arg(&repository)
        .args(["serve", "--listen", "127.0.0.1:0", "--config"])
        .arg(&settings)
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let socket = repository.join("ekko.sock");
    until("it listens", || UnixStream::connect(&socket).is_ok());
    let ask = |request: &str| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).unwrap();
        (stream, String::from_utf8_lossy(&begin).into_owned())
    };
    let stalled: Vec<_> =
        (0..4).map(|_| ask("GET /v1/backups/web@0/data HTTP/1.1\r\nHost: e\r\n\r\n")).collect();
    let body = "{\"kind\":\"check\",\"read_data\":100}";
    let post = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: e\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let posted: Vec<_> = (0..6).map(|_| ask(&post).1).collect();
    assert!(posted.iter().all(|begin| begin == "HTTP/1.1 202"), "{posted:?}");
    let begun = std::time::Instant::now();
    signal(&mut child, "TERM");
    let code = child.wait().unwrap().code();
    let said = std::fs::read_to_string(&log).unwrap();
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    drop(stalled);
}

#[test]
fn it_tells_systemd_how_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let told = UnixDatagram::bind(&path).unwrap();
    told.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    let repository = folder.path().join("store");
    ekko_done(&repository, &["init"]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ekko"))
        .arg("-r")
        .arg(&repository)
        .args(["serve", "--listen", "127.0.0.1:0"])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "300000")
        .env_remove("WATCHDOG_PID")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let next = || {
        let mut bytes = [0; 256];
        let length = told.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).trim().to_owned()
    };
    assert_eq!(next(), "READY=1");
    assert_eq!([next(), next()], ["WATCHDOG=1", "WATCHDOG=1"]);
    signal(&mut child, "TERM");
    let mut last = next();
    while last == "WATCHDOG=1" {
        last = next();
    }
    assert_eq!(last, "STOPPING=1");
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_log_is_json_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("store");
    ekko_done(&repository, &["init"]);
    let log = folder.path().join("log");
    let mut child = Command::new(env!("CARGO_BIN_EXE_ekko"))
        .arg("-r")
        .arg(&repository)
        .args(["serve", "--log-json", "--listen", "127.0.0.1:0"])
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let socket = repository.join("ekko.sock");
    let ask = || {
        let mut stream = UnixStream::connect(&socket).ok()?;
        stream.write_all(b"GET /v1/jobs/x HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok().map(|_| answer)
    };
    let answer = loop {
        match ask() {
            Some(answer) => break answer,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    signal(&mut child, "INT");
    assert!(child.wait().unwrap().success());
    let text = std::fs::read_to_string(&log).unwrap();
    let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
    let lines: Vec<Value> = text.lines().map(read).collect();
    let message = lines[0]["fields"]["message"].as_str().unwrap();
    assert!(message.starts_with("listening on http://"), "{message}");
    let request = lines.iter().find(|line| line["fields"]["path"] == "/v1/jobs/x").unwrap();
    let id = request["fields"]["request_id"].as_str().unwrap();
    assert!(answer.contains(id), "the client knows the id that the log has");
    assert_eq!(request["fields"]["status"], 404);
}

fn certificate(folder: &std::path::Path, name: &str) {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", &format!("/CN={name}"), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn certificates_are_read_again_at_once_when_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path(), "first");
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let arguments = ["--tls-certificate", &file("cert.pem"), "--tls-key", &file("key.pem")];
    let mut served = Served::with(&arguments, |_| {});
    let address = served.address.strip_prefix("https://").unwrap().to_owned();
    let subject = || {
        let asked = Command::new("openssl")
            .args(["s_client", "-connect", &address])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&asked.stdout)
            .lines()
            .find(|line| line.starts_with("subject="))
            .unwrap()
            .to_owned()
    };
    assert!(subject().ends_with("first"));
    certificate(folder.path(), "second");
    let begun = std::time::Instant::now();
    signal(served.process(), "HUP");
    until("it is read", || subject().ends_with("second"));
    assert!(begun.elapsed() < Duration::from_secs(4), "before it looks by itself");
}

#[test]
fn while_the_repositorys_folder_is_away_no_client_is_told_that_its_token_is_wrong() {
    let served = Served::new();
    let (root, away) = (served.repository(), served.folder().join("away"));
    let blue = token(&root, "blue", "operator");
    let images = || served.ask("GET", "/v1/images", Some(&blue), None);
    assert_eq!(images().status, 200);
    let is_away = || {
        for answer in [images(), served.get("/readyz"), served.ask("GET", "/v1/images", None, None)] {
            assert_eq!((answer.status, answer.kind().as_str()), (503, "unavailable"));
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains("moved or unmounted"), "{detail}");
        }
        assert_eq!(served.get("/healthz").status, 200);
    };
    std::fs::rename(&root, &away).unwrap();
    is_away();
    // As a mount point that is not mounted: nothing is made in it.
    std::fs::create_dir(&root).unwrap();
    is_away();
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
    std::fs::remove_dir(&root).unwrap();
    std::fs::rename(&away, &root).unwrap();
    assert_eq!((images().status, served.get("/readyz").status), (200, 200));
    let gc = served.owner("POST", "/v1/jobs", &[], Some(&serde_json::json!({"kind": "gc"})));
    assert_eq!(gc.status, 202);
}

#[test]
fn a_service_that_cannot_read_its_repository_or_its_tokens_is_not_ready() {
    let served = Served::new();
    let root = served.repository();
    token(&root, "blue", "operator");
    let ready = || {
        let answer = served.get("/readyz");
        let detail = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
        (answer.status, detail, served.metric("ekko_ready") > 0.5)
    };
    assert_eq!(ready(), (200, String::new(), true));
    for (file, what) in [
        ("tokens.toml", "the tokens cannot be read"),
        ("ekko.toml", "moved or unmounted|the repository cannot be read"),
        ("manifests", "the repository cannot be read"),
        ("packs", "the repository cannot be read"),
    ] {
        let (path, away) = (root.join(file), served.folder().join("away"));
        std::fs::rename(&path, &away).unwrap();
        if file == "tokens.toml" {
            // Without the file there are no tokens. With something else in its place it is unknown.
            assert_eq!(ready().0, 200);
            std::fs::create_dir(&path).unwrap();
        }
        let (status, detail, counted) = ready();
        assert_eq!((status, counted), (503, false), "{file}: {detail}");
        assert!(what.split('|').any(|what| detail.contains(what)), "{file}: {detail}");
        assert_eq!(served.get("/healthz").status, 200);
        let _ = std::fs::remove_dir(&path);
        std::fs::rename(&away, &path).unwrap();
        assert_eq!(ready(), (200, String::new(), true), "{file}");
    }
}
