//! A repository that is served, and what asks it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A service that runs until this is dropped.
pub struct Served {
    folder: tempfile::TempDir,
    child: Child,
    /// `http://127.0.0.1:PORT`
    pub address: String,
}

/// An answer: status, body, and the headers.
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    pub headers: ureq::http::HeaderMap,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn kind(&self) -> String {
        self.json()["kind"].as_str().unwrap().to_owned()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `ekko` on a repository.
pub fn ekko(repository: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
    command.env_remove("EKKO_REPOSITORY").arg("-r").arg(repository).args(arguments);
    command.output().unwrap()
}

/// The same, and it must do what it is asked.
pub fn ekko_done(repository: &Path, arguments: &[&str]) -> String {
    let output = ekko(repository, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Served {
    /// Serves a new repository.
    pub fn new() -> Self {
        Self::with(&[], |_| {})
    }

    /// Serves a repository that `prepare` has filled, with more arguments.
    pub fn with(arguments: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("store");
        ekko_done(&repository, &["init", "--segment-size", "64KiB"]);
        prepare(&repository);
        let (child, address) = start(&repository, arguments);
        Self { folder, child, address }
    }

    pub fn repository(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// A folder that lives as long as the service.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn process(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Another process serves it now.
    pub fn replace(&mut self, child: Child, address: String) {
        (self.child, self.address) = (child, address);
    }

    /// Asks with a token, or without one.
    pub fn ask(&self, method: &str, path: &str, token: Option<&str>, body: Option<&[u8]>) -> Answer {
        let mut request =
            ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.address));
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header("Content-Type", "application/json");
        }
        let config =
            ureq::Agent::config_builder().http_status_as_error(false).allow_non_standard_methods(true);
        let agent = config.build().new_agent();
        let response = match body {
            Some(body) => agent.run(request.body(body).unwrap()),
            None => agent.run(request.body(()).unwrap()),
        };
        let mut response = response.unwrap();
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.body_mut().with_config().limit(1 << 30).read_to_vec().unwrap(),
        }
    }

    /// Returns the status, or nothing if the connection ends without an answer.
    pub fn status_if_answered(&self, path: &str) -> Option<u16> {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let answer = config.build().new_agent().get(format!("{}{path}", self.address)).call();
        Some(answer.ok()?.status().as_u16())
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, None, None)
    }

    /// The socket by which the repository's owner comes.
    pub fn socket(&self) -> PathBuf {
        self.repository().join("ekko.sock")
    }

    /// Sends bytes as the owner, and returns all that comes until the link is cut.
    pub fn raw(&self, request: &str) -> Vec<u8> {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A link that is cut in the middle is an answer too.
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    /// Asks as the owner.
    pub fn owner(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
        let mut lines =
            vec![format!("{method} {path} HTTP/1.1"), "Host: ekko".into(), "Connection: close".into()];
        lines.extend(headers.iter().map(|(name, value)| format!("{name}: {value}")));
        let body = body.map(ToString::to_string);
        if let Some(body) = &body {
            lines
                .extend(["Content-Type: application/json".into(), format!("Content-Length: {}", body.len())]);
        }
        let request = format!("{}\r\n\r\n{}", lines.join("\r\n"), body.unwrap_or_default());
        answer(&self.raw(&request), method == "HEAD")
    }

    /// Stops the service in order.
    pub fn stop(&mut self) {
        signal(&mut self.child, "TERM");
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }

    /// Returns a number that is counted.
    pub fn metric(&self, name: &str) -> f64 {
        let text = String::from_utf8(self.owner("GET", "/metrics", &[], None).body).unwrap();
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.unwrap_or_else(|| panic!("no {name}: {text}")).parse().unwrap()
    }
}

/// Starts a service and waits until it listens.
pub fn start(repository: &Path, arguments: &[&str]) -> (Child, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ekko"))
        .env_remove("EKKO_REPOSITORY")
        .arg("-r")
        .arg(repository)
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(arguments)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = String::new();
    let address = loop {
        let line = lines.next().unwrap_or_else(|| panic!("it ended: {said}")).unwrap();
        if let Some(address) = line.strip_prefix("ekko: listening on http") {
            break format!("http{address}");
        }
        said.push_str(&line);
    };
    // Nobody is to wait for a reader of its log.
    std::thread::spawn(move || lines.for_each(drop));
    (child, address)
}

/// Reads an answer of HTTP/1.1 that ended with its link.
fn answer(raw: &[u8], is_head: bool) -> Answer {
    let end = raw.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let text = std::str::from_utf8(&raw[..end]).unwrap();
    let mut lines = text.trim_end().split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = ureq::http::HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap_or((line, ""));
        let name = ureq::http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.insert(name, value.parse().unwrap());
    }
    let rest = &raw[end..];
    let is_chunked = headers.get("transfer-encoding").is_some_and(|value| value == "chunked");
    let body = if is_chunked { unchunked(rest) } else { rest.to_vec() };
    if let Some(length) = headers.get("content-length").filter(|_| !is_head && status != 304) {
        assert_eq!(length.to_str().unwrap(), body.len().to_string(), "the answer came whole");
    }
    Answer { status, body, headers }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n").unwrap();
        let length = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&bytes[end + 2..end + 2 + length]);
        bytes = &bytes[end + 4 + length..];
    }
}

/// Waits until something is so.
pub fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_mins(1), "it does not come that {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sends a signal to a process.
pub fn signal(child: &mut Child, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// A disk of noise that follows from a number.
pub fn disk(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
