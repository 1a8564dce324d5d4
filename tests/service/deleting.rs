//! Deletions over the network: no other backup goes than those that were looked up first.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::Mutex;

use crate::harness::{Served, disk, ekko_done};
use crate::tokens::token;

/// Makes a backup more of `web`, each of another disk.
fn back_up(served: &Served) {
    let source = served.folder().join("disk");
    let seed = std::fs::metadata(&source).map_or(1, |it| it.len());
    std::fs::write(&source, disk(seed, usize::try_from(seed).unwrap() + 70_000)).unwrap();
    ekko_done(&served.repository(), &["-q", "backup", &format!("blue:web={}", source.display())]);
}

fn delete(address: &str, token: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
    command.env("EKKO_REPOSITORY", address).env("EKKO_TOKEN", token).arg("delete").args(arguments);
    command.output().unwrap()
}

fn names(served: &Served) -> Vec<String> {
    let list = served.owner("GET", "/v1/backups", &[], None).json();
    let row = |row: &serde_json::Value| row["backup"].as_str().unwrap().to_owned();
    list["backups"].as_array().unwrap().iter().map(row).collect()
}

#[test]
fn a_backup_that_is_named_twice_is_deleted_once() {
    let served = Served::new();
    let token = token(&served.repository(), "blue", "operator");
    (0..3).for_each(|_| back_up(&served));
    let output = delete(&served.address, &token, &["web@latest", "web", "web@2"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("web@2 ") && text.contains("deleted 1 backups"), "{text}");
    assert_eq!(names(&served), ["blue:web@0", "blue:web@1"]);
}

/// Passes a request on. The answer to a deletion is lost; before it, when it is only asked for, another backup is made.
fn pass_on(served: &Served, token: &str, asked: &Mutex<Vec<String>>, stream: &TcpStream) {
    let mut head = String::new();
    let mut reader = BufReader::new(stream);
    while reader.read_line(&mut head).unwrap() > 2 {}
    let mut words = head.split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return };
    let answer = served.ask(method, path, Some(token), None);
    let request = format!("{method} {path}");
    let is_first = !asked.lock().unwrap().contains(&request);
    asked.lock().unwrap().push(request);
    if method == "DELETE" && path.ends_with("dry_run=true") {
        back_up(served);
    } else if method == "DELETE" && is_first {
        return;
    }
    let (status, length) = (answer.status, answer.body.len());
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    let mut stream = stream;
    stream.write_all(&[head.as_bytes(), &answer.body].concat()).unwrap();
}

#[test]
fn the_latest_backup_is_that_which_was_shown_however_often_it_is_asked_for() {
    let served = Served::new();
    let token = token(&served.repository(), "blue", "operator");
    (0..2).for_each(|_| back_up(&served));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Mutex::default();
    let output = std::thread::scope(|scope| {
        let deleted = scope.spawn(|| {
            let output = delete(&address, &token, &["web@latest"]);
            drop(TcpStream::connect(address.trim_start_matches("http://")));
            output
        });
        for stream in listener.incoming() {
            if deleted.is_finished() {
                break;
            }
            pass_on(&served, &token, &asked, &stream.unwrap());
        }
        deleted.join().unwrap()
    });
    let asked = asked.into_inner().unwrap();
    assert!(output.status.success(), "{asked:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(asked.iter().filter(|it| it.ends_with("dry_run=false")).count(), 2, "{asked:?}");
    assert_eq!(names(&served), ["blue:web@0", "blue:web@2"]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("web@1 "));
}
