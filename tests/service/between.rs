//! A line between a client and the service on which answers are lost, or something happens meanwhile.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::Served;

/// What becomes of a request.
pub enum Fate {
    /// The service answers it.
    Pass,
    /// The service answers it, and the answer is lost.
    Lost,
    /// The line answers it with a status and a document.
    Answered(u16, &'static str),
}

/// A request: its method, its path and its body.
#[derive(Clone)]
pub struct Asked {
    pub what: String,
    pub body: Vec<u8>,
}

/// Runs a command with a token over a line. `fate` decides on each request; it gets how often the same one came before.
pub fn run_between(
    served: &Served,
    token: &str,
    arguments: &[&str],
    fate: impl Fn(&str, usize) -> Fate + Sync,
) -> (Output, Vec<Asked>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (asked, is_over) = (Mutex::<Vec<Asked>>::default(), AtomicBool::new(false));
    let output = std::thread::scope(|scope| {
        let ran = scope.spawn(|| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
            command.env("EKKO_REPOSITORY", &address).env("EKKO_TOKEN", token).args(arguments);
            let output = command.output().unwrap();
            is_over.store(true, Ordering::SeqCst);
            drop(TcpStream::connect(address.trim_start_matches("http://")));
            output
        });
        for stream in listener.incoming() {
            if is_over.load(Ordering::SeqCst) {
                break;
            }
            let (asked, fate) = (&asked, &fate);
            scope.spawn(move || pass_on(served, asked, fate, &stream.unwrap()));
        }
        ran.join().unwrap()
    });
    (output, asked.into_inner().unwrap())
}

fn pass_on(
    served: &Served,
    asked: &Mutex<Vec<Asked>>,
    fate: impl Fn(&str, usize) -> Fate,
    mut stream: &TcpStream,
) {
    let (mut head, mut body) = (String::new(), Vec::new());
    let mut reader = BufReader::new(stream);
    while reader.read_line(&mut head).unwrap_or(0) > 2 {}
    let lower = head.to_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let Some(what) = head.split_once(" HTTP/").map(|(what, _)| what.to_owned()) else { return };
    let is_read = if lower.contains("transfer-encoding: chunked") {
        read_chunks(&mut reader, &mut body)
    } else {
        reader.take(length.unwrap_or(0)).read_to_end(&mut body)
    };
    if is_read.is_err() {
        return;
    }
    let before = {
        let mut asked = asked.lock().unwrap();
        let before = asked.iter().filter(|it| it.what == what).count();
        asked.push(Asked { what: what.clone(), body: body.clone() });
        before
    };
    let fate = fate(&what, before);
    if let Fate::Answered(status, document) = fate {
        let length = document.len();
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        let _ = stream.write_all(&[head.as_bytes(), document.as_bytes()].concat());
        return;
    }
    // The service closes the connection when it has answered.
    let lines = head.trim_end().lines().filter(|line| !line.to_lowercase().starts_with("connection:"));
    let head = format!("{}\r\nConnection: close\r\n\r\n", lines.collect::<Vec<_>>().join("\r\n"));
    let mut service = TcpStream::connect(served.address.trim_start_matches("http://")).unwrap();
    let mut answer = Vec::new();
    if service.write_all(&[head.as_bytes(), &body].concat()).is_err()
        || service.read_to_end(&mut answer).is_err()
    {
        return;
    }
    if !matches!(fate, Fate::Lost) {
        let _ = stream.write_all(&answer);
    }
}

/// Reads a body in chunks, as it comes.
fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> std::io::Result<usize> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length = u64::from_str_radix(line.trim(), 16).unwrap();
        body.extend_from_slice(line.as_bytes());
        reader.take(length + 2).read_to_end(body)?;
        if length == 0 {
            return Ok(body.len());
        }
    }
}
