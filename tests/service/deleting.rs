//! Deletions and protections over the network: they change only the backups that were looked up first.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Served, disk, ekko_done};
use crate::tokens::token;

/// Makes a backup more of `web`, each of another disk.
fn back_up(served: &Served) {
    let source = served.folder().join("disk");
    let seed = std::fs::metadata(&source).map_or(1, |it| it.len());
    std::fs::write(&source, disk(seed, usize::try_from(seed).unwrap() + 70_000)).unwrap();
    ekko_done(&served.repository(), &["-q", "backup", &format!("blue:web={}", source.display())]);
}

fn run(address: &str, token: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
    command.env("EKKO_REPOSITORY", address).env("EKKO_TOKEN", token).args(arguments);
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
    let output = run(&served.address, &token, &["delete", "web@2-9", "web@2"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("deleted 1 backup\n"), "{text}");
    assert_eq!(names(&served), ["blue:web@0", "blue:web@1"]);
}

/// Passes a request on. After the first one, by which a backup is looked up, another one is made; the first answer to each change
/// is lost.
fn pass_on(served: &Served, token: &str, asked: &Mutex<Vec<String>>, stream: &TcpStream) {
    let (mut head, mut body) = (String::new(), Vec::new());
    let mut reader = BufReader::new(stream);
    while reader.read_line(&mut head).unwrap() > 2 {}
    let length =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    reader.take(length.unwrap_or(0)).read_to_end(&mut body).unwrap();
    let mut words = head.split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return };
    let answer = served.ask(method, path, Some(token), (!body.is_empty()).then_some(&body));
    let request = format!("{method} {path}");
    let mut asked = asked.lock().unwrap();
    let is_first = !asked.contains(&request);
    asked.push(request);
    if asked.len() == 1 {
        back_up(served);
    }
    if method != "GET" && !path.ends_with("dry_run=true") && is_first {
        return;
    }
    let (status, length) = (answer.status, answer.body.len());
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    let mut stream = stream;
    stream.write_all(&[head.as_bytes(), &answer.body].concat()).unwrap();
}

/// Runs a command against a service over a line that loses an answer. Returns its output and the requests.
fn run_over(served: &Served, arguments: &[&str]) -> (String, Vec<String>) {
    let token = token(&served.repository(), "blue", "operator");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (asked, is_over) = (Mutex::default(), AtomicBool::new(false));
    let output = std::thread::scope(|scope| {
        let ran = scope.spawn(|| {
            let output = run(&address, &token, arguments);
            is_over.store(true, Ordering::SeqCst);
            drop(TcpStream::connect(address.trim_start_matches("http://")));
            output
        });
        for stream in listener.incoming() {
            if is_over.load(Ordering::SeqCst) {
                break;
            }
            pass_on(served, &token, &asked, &stream.unwrap());
        }
        ran.join().unwrap()
    });
    let asked = asked.into_inner().unwrap();
    assert!(output.status.success(), "{asked:?}: {}", String::from_utf8_lossy(&output.stderr));
    (String::from_utf8(output.stdout).unwrap(), asked)
}

#[test]
fn a_deletion_whose_answer_is_lost_deletes_what_was_shown_and_nothing_else() {
    let served = Served::new();
    (0..2).for_each(|_| back_up(&served));
    let (output, asked) = run_over(&served, &["delete", "web@1-9"]);
    assert_eq!(asked.iter().filter(|it| it.ends_with("dry_run=false")).count(), 2, "{asked:?}");
    assert_eq!(names(&served), ["blue:web@0", "blue:web@2"]);
    assert!(output.contains("deleted 1 backup\n"), "{output}");
    // Neither a bare name nor "latest" is taken, by the service either.
    for name in ["web", "web%40latest"] {
        let path = format!("/v1/backups/blue%3A{name}");
        assert_eq!(served.owner("DELETE", &path, &[], None).status, 400, "{name}");
    }
    assert_eq!(names(&served).len(), 2);
}

#[test]
fn protecting_the_latest_backup_changes_one_backup_however_often_it_is_asked_for() {
    let served = Served::new();
    back_up(&served);
    let is_protected = |name: &String| {
        let path = format!("/v1/backups/{}", name.replace(':', "%3A"));
        served.owner("GET", &path, &[], None).json()["protected"] == true
    };
    let protected = || names(&served).into_iter().filter(is_protected).collect::<Vec<_>>();
    let changes = |asked: &[String]| asked.iter().filter(|it| !it.starts_with("GET")).count();
    let (output, asked) = run_over(&served, &["protect", "web@latest"]);
    assert_eq!((changes(&asked), protected()), (2, vec!["blue:web@0".to_owned()]), "{asked:?}");
    assert_eq!(output, "web@0 is protected\n");
    // All are protected, and the latest is not any longer.
    for backup in ["blue:web@0", "blue:web@1"] {
        ekko_done(&served.repository(), &["protect", backup]);
    }
    let (output, asked) = run_over(&served, &["unprotect", "web"]);
    assert_eq!((changes(&asked), protected()), (2, vec!["blue:web@0".to_owned()]), "{asked:?}");
    assert_eq!(output, "web@1 is not protected\n");
}
