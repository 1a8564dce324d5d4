//! A service that is not traced, for clients that are.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::stage::ekko;
use crate::tracer::LIMIT;

#[derive(Debug)]
pub struct Served {
    child: Child,
    /// `http://127.0.0.1:PORT`
    pub address: String,
    /// A token of the project that owns what was there before.
    pub token: String,
}

impl Served {
    /// Serves a repository.
    pub fn start(repository: &Path) -> Result<Self, String> {
        let command = || {
            let mut command = Command::new(ekko());
            command.env_remove("EKKO_REPOSITORY").arg("-r").arg(repository).stdin(Stdio::null());
            command
        };
        let token =
            command().args(["-q", "token", "create", "--project", "blue", "--role", "operator"]).output();
        let token = token.map_err(|error| error.to_string())?.stdout;
        let token = String::from_utf8_lossy(&token).trim().to_owned();
        let mut child = command()
            .args(["serve", "--listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut lines = BufReader::new(child.stderr.take().ok_or("no stderr")?).lines().map_while(Result::ok);
        let listening = |line: String| Some(format!("http{}", line.strip_prefix("ekko: listening on http")?));
        let address = lines.by_ref().find_map(listening).ok_or("the service does not start")?;
        // Nobody is to wait for a reader of its log.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { child, address, token })
    }

    /// Stops the service in order.
    pub fn stop(mut self) -> Result<(), String> {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            match self.child.try_wait() {
                Ok(Some(_)) => return Ok(()),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        Err("the service does not stop".to_owned())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
