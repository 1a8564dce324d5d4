//! What a person may set, on the command line or in a file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::service::ServiceError;

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
    /// Tell what is counted to everybody, and not to an admin and to this machine alone.
    pub metrics_for_all: bool,
    /// How much is taken.
    pub limits: Limits,
}

impl Default for ServiceSettings {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 6800))],
            tls: None,
            insecure: false,
            metrics_for_all: false,
            limits: Limits::default(),
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

/// How much is taken, of everybody together and of each.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Threads that work on requests at a time.
    pub blocking_threads: usize,
    /// Seconds until the header of a request must have come, and that a connection may be idle.
    pub header_seconds: u64,
    /// Seconds that a client may take between two pieces of a body.
    pub body_seconds: u64,
    /// The longest body of a request that is no segments, in bytes.
    pub body_bytes: usize,
    /// Seconds that requests under way have to end when the service stops.
    pub grace_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2048,
            blocking_threads: 32,
            header_seconds: 10,
            body_seconds: 30,
            body_bytes: 1 << 20,
            grace_seconds: 30,
        }
    }
}

impl Limits {
    /// Returns how long a header may take.
    pub const fn header(&self) -> Duration {
        Duration::from_secs(self.header_seconds)
    }

    /// Returns how long a client may take between two pieces of a body.
    pub const fn body(&self) -> Duration {
        Duration::from_secs(self.body_seconds)
    }

    /// Returns how long requests under way have to end.
    pub const fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds)
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
        toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_refused() {
        let settings: ServiceSettings = toml::from_str(
            "listen = [\"[::1]:6800\"]\n[tls]\ncertificate = \"a\"\nkey = \"b\"\n[limits]\nconnections = 7\n",
        )
        .unwrap();
        assert_eq!(settings.limits.connections, 7);
        assert_eq!(settings.limits.header(), Duration::from_secs(10));
        for text in
            ["listn = []", "[limits]\nconections = 1", "[tls]\ncertificate = \"a\"", "listen = [\"x\"]"]
        {
            assert!(toml::from_str::<ServiceSettings>(text).is_err(), "{text}");
        }
    }
}
