//! A repository that is served, and what asks it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

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

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, None, None)
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
