//! What servers answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use serde_json::{Value, json};

use super::{FORGED, Said, evil};
use crate::harness::{World, noise};

/// Starts a server that does the same with each client, and returns its port.
fn serve(speak: impl Fn(TcpStream) -> std::io::Result<()> + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // It ends with the test's process.
    std::thread::spawn(move || listener.incoming().flatten().for_each(|client| drop(speak(client))));
    port
}

/// Reads a request with its body, and returns its path.
fn request(client: &TcpStream) -> std::io::Result<String> {
    let mut reader = BufReader::new(client);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if let Some(text) = line.to_lowercase().strip_prefix("content-length:") {
            length = text.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    reader.read_exact(&mut vec![0; length])?;
    Ok(first.split(' ').nth(1).unwrap_or_default().to_owned())
}

/// Starts a service that answers each request with what `answer` makes of its path.
fn service(answer: impl Fn(&str) -> (String, Vec<u8>) + Send + 'static) -> String {
    let port = serve(move |mut client| {
        let (head, body) = answer(&request(&client)?);
        let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        client.write_all(&[head.as_bytes(), &body].concat())
    });
    format!("http://127.0.0.1:{port}")
}

/// Runs each command that works over the network.
fn all_commands(url: &str, said: &mut Said) {
    let world = World::new();
    world.write("disk", &noise(1, 70_000));
    for arguments in [
        &["list"][..],
        &["show", "web@0"],
        &["stats"],
        &["check"],
        &["gc"],
        &["forget", "--keep-last", "1"],
        &["delete", "web@0"],
        &["protect", "web@0"],
        &["manifest", "info", "web@0"],
        &["restore", "web@0", "out"],
        &["backup", "web=disk"],
    ] {
        said.hear_of(&world, url, arguments);
    }
}

#[test]
fn no_refusal_of_a_service_reaches_a_terminal_as_it_is() {
    let mut said = Said::default();
    // By kinds that are not worth another attempt.
    for (status, kind) in [(404, "not_found"), (403, "forbidden"), (409, "conflict"), (500, "corrupt")] {
        let problem = json!({
            "kind": kind, "status": status, "title": evil("title"), "detail": evil("detail"), "request_id": evil("request"),
        });
        let url = service(move |_| {
            (
                format!("{status} x\r\nContent-Type: application/problem+json"),
                problem.to_string().into_bytes(),
            )
        });
        all_commands(&url, &mut said);
    }
    said.assert_held("detail");
    said.assert_held("request");
    // What is no answer of a service at all.
    let words = evil("junk").replace(['\r', '\n', '\0'], "");
    for head in [
        format!("418 {words}"),
        format!("200 OK\r\nContent-Type: {words}"),
        format!("301 Moved\r\nLocation: http://{words}/"),
        "200 OK\r\nContent-Type: application/json".to_owned(),
        "404 Not found\r\nContent-Type: application/problem+json".to_owned(),
    ] {
        let url = service(move |_| (head.clone(), evil("body").into_bytes()));
        all_commands(&url, &mut Said::default());
    }
}

/// Replaces texts by hostile ones, but for those that are read as something else.
fn harmed(value: &mut Value, key: &str) {
    let parsed = ["timestamp", "manifest_blake3", "kind", "state", "id"];
    match value {
        Value::String(text) if !parsed.contains(&key) => *text = evil(key),
        Value::Array(values) => values.iter_mut().for_each(|value| harmed(value, key)),
        Value::Object(fields) => fields.iter_mut().for_each(|(key, value)| harmed(value, key)),
        _ => {}
    }
}

#[test]
fn no_document_of_a_service_reaches_a_terminal_as_it_is() {
    let local = World::new();
    local.init_small();
    local.write("disk", &noise(1, 70_000));
    local.run(&["backup", "--tag", "word", "web=disk"]).exits(0);
    let row = json!({ "backup": "b", "name": "n", "backupset": "s", "incremental": 0, "timestamp": "2026-01-01T00:00:00Z",
        "size_of_disk": 1, "segments": 1 });
    let mut documents = vec![
        ("/v1/backups?", local.json(&["list"])),
        ("/v1/backups/", local.json(&["show", "web@0"])),
        ("/v1/statistics", local.json(&["stats"])),
        (
            "DELETE",
            json!({ "dry_run": true, "deleted": [row], "freed_bytes": 0, "backup": "b", "protected": true, "until": "u" }),
        ),
        (
            "/v1/jobs",
            json!({
                "id": "j", "kind": "check", "state": "failed", "notices": ["notice"],
                "created": "c", "progress": { "part": "part", "done_bytes": 0, "total_bytes": 9 },
                "error": { "kind": "io", "status": 500, "title": "t", "detail": "failure", "request_id": "r" },
            }),
        ),
    ];
    for (_, document) in &mut documents {
        harmed(document, "");
    }
    let url = service(move |path| {
        let found = documents.iter().find(|(begin, _)| path.starts_with(begin));
        let found = found.or_else(|| documents.first()).unwrap();
        ("200 OK\r\nContent-Type: application/json".to_owned(), found.1.to_string().into_bytes())
    });
    let mut said = Said::default();
    all_commands(&url, &mut said);
    for label in ["name", "tags", "backupset"] {
        said.assert_held(label);
    }
}

#[test]
fn what_an_nbd_server_says_reaches_no_terminal_as_it_is() {
    let port = serve(|mut client| {
        client.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
        client.read_exact(&mut [0; 4])?;
        loop {
            let mut head = [0; 16];
            client.read_exact(&mut head)?;
            let length = u32::from_be_bytes(head[12..].try_into().unwrap());
            client.read_exact(&mut vec![0; length as usize])?;
            let words = evil("export");
            let mut reply = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
            reply.extend(&head[8..12]);
            // A policy of the server's.
            reply.extend((0x8000_0002_u32).to_be_bytes());
            reply.extend(u32::try_from(words.len()).unwrap().to_be_bytes());
            reply.extend(words.as_bytes());
            client.write_all(&reply)?;
        }
    });
    let world = World::new();
    world.init_small();
    world.write("disk", &noise(1, 70_000));
    world.run(&["backup", "web=disk"]).exits(0);
    let mut said = Said::default();
    for scheme in ["nbd", "nbds"] {
        let url = format!("{scheme}://127.0.0.1:{port}/{FORGED}");
        said.hear_both(&world, &["backup", &format!("web={url}")]);
        said.hear_both(&world, &["verify", "web@0", &url]);
        said.hear_both(&world, &["restore", "web@0", &url, "--force"]);
    }
    said.assert_held("export");
}
