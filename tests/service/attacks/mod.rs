//! What clients do that mean no good. Each is refused with the right status, and the service still answers after.

mod much;
mod shapes;
mod who;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::Served;
use crate::tokens::{token, two_projects};

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

    /// Says whether the document of the API has this.
    fn can_be_asked(&self, method: &str, template: &str) -> bool {
        let document = self.served.get("/v1/openapi.json").json();
        document["paths"][template].get(method.to_lowercase()).is_some()
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
