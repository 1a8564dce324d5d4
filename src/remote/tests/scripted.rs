//! A service that answers with whatever bytes a test likes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A service that answers each connection once, and closes it.
pub(super) struct Scripted {
    pub(super) address: String,
    asked: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
}

/// What is sent, piece after piece; a writer that goes on for ever ends with its client.
pub(super) type Answer = Box<dyn FnOnce(&mut TcpStream) -> std::io::Result<()>>;

impl Scripted {
    /// Answers the request with the number `n` for the path `path`, query included.
    pub(super) fn new(answer: impl Fn(&str, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (asked, ended) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default());
        let (list, end, answer) = (Arc::clone(&asked), Arc::clone(&ended), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::Acquire) {
                    return;
                }
                let (list, answer) = (Arc::clone(&list), Arc::clone(&answer));
                std::thread::spawn(move || stream.and_then(|stream| serve(stream, &list, &*answer)));
            }
        });
        Self { address, asked, ended }
    }

    /// Returns the heads of the requests that came.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Listens no longer.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address.trim_start_matches("http://"));
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.end();
    }
}

fn serve(
    stream: TcpStream,
    asked: &Mutex<Vec<String>>,
    answer: &(impl Fn(&str, usize) -> Answer + ?Sized),
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    reader.take(length).read_to_end(&mut Vec::new())?;
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let number = {
        let mut asked = asked.lock().unwrap();
        asked.push(head);
        asked.len() - 1
    };
    let mut stream = stream;
    answer(&path, number)(&mut stream)?;
    stream.shutdown(Shutdown::Write)
}

/// An answer of bytes as they are.
pub(super) fn raw(bytes: impl Into<Vec<u8>>) -> Answer {
    let bytes = bytes.into();
    Box::new(move |stream| stream.write_all(&bytes))
}

/// An answer with a status, headers and a body of the right length.
pub(super) fn answer(status: u16, headers: &[&str], body: &[u8]) -> Answer {
    raw([head(status, headers, body.len()).as_bytes(), body].concat())
}

pub(super) fn head(status: u16, headers: &[&str], length: usize) -> String {
    let headers: String = headers.iter().flat_map(|header| [*header, "\r\n"]).collect();
    format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n")
}
