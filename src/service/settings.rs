//! What a person may set, on the command line or in a file.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::api::Project;
use crate::service::{KeystoneSettings, ServiceError};

/// How a repository is served. The file that says so is TOML with these names.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceSettings {
    /// The addresses to listen on, beside the socket in the repository.
    pub listen: Vec<SocketAddr>,
    /// Encryption; without it only addresses of this machine are listened on.
    pub tls: Option<TlsSettings>,
    /// Listen without encryption on addresses that others reach.
    pub insecure: bool,
    /// A Keystone that knows clients, beside the tokens of the repository.
    pub keystone: Option<KeystoneSettings>,
    /// Tell what is counted to everybody, and not to an admin and the owner alone.
    pub metrics_for_all: bool,
    /// How much is taken.
    pub limits: Limits,
    /// How much is kept of each project.
    pub quotas: QuotaSettings,
}

impl Default for ServiceSettings {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 6800))],
            tls: None,
            insecure: false,
            keystone: None,
            metrics_for_all: false,
            limits: Limits::default(),
            quotas: QuotaSettings::default(),
        }
    }
}

/// Encryption of links. The files are read again when they change.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// The certificate and what leads from it to a root, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
    /// The roots of clients' certificates, in PEM: clients without one are refused.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
}

/// How many bytes each project may keep: the plain bytes of its backups, where a segment that stays the same at its place from
/// one backup of a backupset to the next counts once.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuotaSettings {
    /// Of projects that are not named; without it, as much as they like.
    pub default: Option<u64>,
    /// Of projects by their names.
    pub projects: BTreeMap<Project, u64>,
}

/// How much is taken, of everybody together and of each.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections at a time. When there is no room, the one goes that has been silent for longest.
    pub connections: usize,
    /// Connections at a time from one address (of IPv6, from one network of 64 bits).
    pub connections_per_address: usize,
    /// Requests under way at a time; more are refused with 503.
    pub requests: usize,
    /// Requests under way at a time of one caller (token, or user of Keystone); more are refused with 429.
    pub requests_per_caller: usize,
    /// Requests in a second of one caller, in the long run; twice as many at once. More are refused with 429.
    pub requests_per_second: u32,
    /// Wrong tokens in a minute from one address; more are refused with 429, and Keystone is not asked about them.
    pub failures_per_minute: u32,
    /// Threads that work on requests at a time. One caller has three quarters of them at most.
    pub blocking_threads: usize,
    /// Seconds that a request waits for a thread or for memory; it is refused with 503 then.
    pub wait_seconds: u64,
    /// Seconds until the header of a request must have come, and that a connection may be idle.
    pub header_seconds: u64,
    /// The longest request line and header, in bytes, 8 KiB at least; longer ones are refused with 431.
    pub header_bytes: usize,
    /// Seconds that a client may take between two pieces of a body, and to read what was sent to it.
    pub body_seconds: u64,
    /// Bytes in a second that a client sends and reads, in the long run: a slower one has used up `body_seconds` at some
    /// time.
    pub slowest_bytes: u64,
    /// The longest body of a request that is no segments, in bytes.
    pub body_bytes: usize,
    /// Backups that are sent at a time.
    pub sessions: usize,
    /// Backups that one caller sends at a time.
    pub sessions_each: usize,
    /// Backups that one caller begins in a minute, in the long run; ten times as many at once. More are refused with 429.
    pub sessions_per_minute: u32,
    /// Backups that one caller commits in a minute, in the long run; ten times as many at once. More are refused with 429.
    pub commits_per_minute: u32,
    /// Backups that an image may have, with those that were deleted and are not collected; more are refused with 507.
    pub backups_per_name: usize,
    /// Names that a project may have; more are refused with 507.
    pub names_per_project: usize,
    /// Seconds of silence after which a backup that is being sent is given up.
    pub silence_seconds: u64,
    /// Seconds that requests under way have to end when the service stops.
    pub grace_seconds: u64,
    /// Seconds that closing the repository may take after that; then the process ends, whatever hangs.
    pub close_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2048,
            connections_per_address: 256,
            requests: 256,
            requests_per_caller: 128,
            requests_per_second: 500,
            failures_per_minute: 20,
            blocking_threads: 32,
            wait_seconds: 20,
            header_seconds: 10,
            header_bytes: 32 << 10,
            body_seconds: 30,
            slowest_bytes: 4 << 10,
            body_bytes: 1 << 20,
            sessions: 128,
            sessions_each: 32,
            sessions_per_minute: 120,
            commits_per_minute: 120,
            backups_per_name: 10_000,
            names_per_project: 10_000,
            silence_seconds: 600,
            grace_seconds: 30,
            close_seconds: 120,
        }
    }
}

impl Limits {
    /// Returns the name of a limit that lets nobody do anything.
    fn nothing(&self) -> Option<&'static str> {
        let all = [
            ("connections", self.connections as u64),
            ("connections_per_address", self.connections_per_address as u64),
            ("requests", self.requests as u64),
            ("requests_per_caller", self.requests_per_caller as u64),
            ("requests_per_second", u64::from(self.requests_per_second)),
            ("sessions_per_minute", u64::from(self.sessions_per_minute)),
            ("commits_per_minute", u64::from(self.commits_per_minute)),
            ("backups_per_name", self.backups_per_name as u64),
            ("names_per_project", self.names_per_project as u64),
            ("blocking_threads", self.blocking_threads as u64),
            ("header_seconds", self.header_seconds),
            ("body_seconds", self.body_seconds),
        ];
        all.into_iter().find(|(_, limit)| *limit == 0).map(|(name, _)| name)
    }

    /// Returns how long a header may take.
    pub const fn header(&self) -> Duration {
        Duration::from_secs(self.header_seconds)
    }

    /// Returns how long a client may take between two pieces of a body.
    pub const fn body(&self) -> Duration {
        Duration::from_secs(self.body_seconds)
    }

    /// Returns how long a request waits for a thread or for memory.
    pub const fn wait(&self) -> Duration {
        Duration::from_secs(self.wait_seconds)
    }

    /// Returns how long requests under way have to end.
    pub const fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds)
    }

    /// Returns how long after a signal the process ends at the latest.
    pub const fn last_resort(&self) -> Duration {
        Duration::from_secs(self.grace_seconds.saturating_add(self.close_seconds))
    }
}

impl ServiceSettings {
    /// Reads a file of settings.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or says what is not known.
    pub fn read(path: &Path) -> Result<Self, ServiceError> {
        let wrong = |what: String| ServiceError::Settings { path: path.to_owned(), what };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let settings: Self = toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?;
        match settings.limits.nothing() {
            None => Ok(settings),
            Some(name) => Err(wrong(format!("with {name} = 0 nobody could be served"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_let_nobody_do_anything_are_refused() {
        assert_eq!(Limits::default().nothing(), None);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("service.toml");
        std::fs::write(&file, "[limits]\nrequests = 0\n").unwrap();
        let error = ServiceSettings::read(&file).unwrap_err();
        assert!(error.to_string().contains("requests = 0"), "{error}");
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let settings: ServiceSettings = toml::from_str(
            "listen = [\"[::1]:6800\"]\n[tls]\ncertificate = \"a\"\nkey = \"b\"\n[limits]\nconnections = 7\n\
             [quotas]\ndefault = 1000\n[quotas.projects]\nblue = 1_099_511_627_776\n",
        )
        .unwrap();
        assert_eq!(settings.limits.connections, 7);
        assert_eq!(settings.limits.header(), Duration::from_secs(10));
        assert_eq!(settings.quotas.projects[&"blue".parse().unwrap()], 1 << 40);
        for text in [
            "listn = []",
            "[limits]\nconections = 1",
            "[tls]\ncertificate = \"a\"",
            "[quotas.projects]\n\"a:b\" = 1",
            "listen = [\"x\"]",
        ] {
            assert!(toml::from_str::<ServiceSettings>(text).is_err(), "{text}");
        }
    }
}
