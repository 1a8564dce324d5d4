//! Requests to a service, asked again where that does no harm.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Request, Response, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use crate::api::{Problem, Refusal, version};
use crate::remote::RemoteError;
use crate::remote::unix::{Here, SocketConnector};

/// How long a service that was there may be away.
const PATIENCE: Duration = Duration::from_mins(3);
/// How long it takes at most until a connection is there, and until the answer to a request begins.
const CONNECT: Duration = Duration::from_secs(20);
const ANSWER: Duration = Duration::from_mins(15);
/// How long a link may be silent in the middle of an answer.
const SILENCE: Duration = Duration::from_mins(2);
/// The longest document, in bytes.
const MOST_BYTES: u64 = 256 << 20;
/// How much is sent and received at once, in bytes.
const BUFFER: usize = 256 << 10;

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `https://HOST:PORT`, or `http://` without encryption.
    Network {
        /// The URL, without a slash at its end.
        url: String,
    },
    /// A socket on this machine.
    Socket {
        /// Its path.
        path: PathBuf,
    },
}

impl Address {
    /// Says whether a text names a service and not a folder.
    pub fn is_url(text: &str) -> bool {
        text.starts_with("https://") || text.starts_with("http://")
    }

    /// Reads a URL.
    pub fn of_url(url: &str) -> Self {
        Self::Network { url: url.trim_end_matches('/').to_owned() }
    }

    fn base(&self) -> &str {
        match self {
            Self::Network { url } => url,
            Self::Socket { .. } => "http://ekko",
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Network { url } => f.write_str(url),
            Self::Socket { path } => path.display().fmt(f),
        }
    }
}

/// Who asks, and whom they believe.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The token.
    pub token: Option<String>,
    /// The roots of certificates that are believed, in PEM; without one, those of the machine.
    pub authority: Option<PathBuf>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token is nobody's business.
        f.debug_struct("Credentials").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// A link to a service. Shared between threads, each of which has a connection of its own while it asks.
#[derive(Debug)]
pub(super) struct Link {
    agent: Agent,
    address: Address,
    token: Option<String>,
    /// Whether the service has ever answered: one that has not is not waited for.
    met: AtomicBool,
}

/// What a request brings.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sent<'a> {
    Nothing,
    Json(&'a [u8]),
    Frames(&'a [u8]),
}

impl Link {
    pub(super) fn new(address: Address, credentials: &Credentials) -> Result<Self, RemoteError> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("ekko/", env!("CARGO_PKG_VERSION")))
            .input_buffer_size(BUFFER)
            .output_buffer_size(BUFFER)
            .max_idle_connections(64)
            .max_idle_connections_per_host(64)
            .max_idle_age(Duration::from_secs(5))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .timeout_per_read(Some(SILENCE));
        let agent = match &address {
            Address::Network { url } => {
                if credentials.token.is_some() && goes_in_the_clear(url) {
                    tracing::warn!(
                        url,
                        "the token is sent without encryption: whoever is on the way can read it"
                    );
                }
                let config = config.tls_config(tls(url, credentials.authority.as_deref())?);
                config.build().new_agent()
            }
            Address::Socket { path } => {
                Agent::with_parts(config.build(), SocketConnector { path: path.clone() }, Here)
            }
        };
        Ok(Self { agent, address, token: credentials.token.clone(), met: AtomicBool::new(false) })
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Asks, and asks again while the service is away or busy; what is asked can be asked twice.
    pub(super) fn ask(
        &self,
        method: &str,
        path: &str,
        sent: Sent<'_>,
        headers: &[(&str, &str)],
    ) -> Result<Response<Body>, RemoteError> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(100);
        loop {
            let error = match self.ask_once(method, path, sent, headers) {
                Ok(response) => {
                    self.met.store(true, Ordering::Relaxed);
                    return Ok(response);
                }
                Err(error) => error,
            };
            let again = match &error {
                RemoteError::Refused { problem, .. } => {
                    self.met.store(true, Ordering::Relaxed);
                    matches!(problem.kind, Refusal::TooMany | Refusal::Unavailable)
                }
                RemoteError::Unreachable { .. } => self.met.load(Ordering::Relaxed),
                _ => false,
            };
            if !again || begun.elapsed() > PATIENCE {
                return Err(error);
            }
            tracing::debug!(%error, "asking again");
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    fn ask_once(
        &self,
        method: &str,
        path: &str,
        sent: Sent<'_>,
        headers: &[(&str, &str)],
    ) -> Result<Response<Body>, RemoteError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.address.base()))
            .header(version::HEADER, version::MAXIMUM.to_string());
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let unreachable =
            |source: ureq::Error| RemoteError::Unreachable { address: self.address.to_string(), source };
        let wrong = |error: ureq::http::Error| unreachable(error.into());
        let response = match sent {
            Sent::Nothing => self.agent.run(request.body(()).map_err(wrong)?),
            Sent::Json(bytes) => {
                let request = request.header(header::CONTENT_TYPE, "application/json");
                self.agent.run(request.body(bytes).map_err(wrong)?)
            }
            Sent::Frames(bytes) => {
                let request = request.header(header::CONTENT_TYPE, "application/octet-stream");
                self.agent.run(request.body(bytes).map_err(wrong)?)
            }
        };
        let mut response = response.map_err(unreachable)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let bytes = response.body_mut().with_config().limit(1 << 20).read_to_vec().map_err(unreachable)?;
        // A proxy refuses in a shape of its own.
        Err(match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => RemoteError::Refused { address: self.address.to_string(), problem },
            Err(_) if matches!(status, 502..=504) => RemoteError::Unreachable {
                address: self.address.to_string(),
                source: ureq::Error::StatusCode(status),
            },
            Err(_) => RemoteError::NotAService { address: self.address.to_string(), status },
        })
    }

    /// Asks for a body, which is read whole: one that is cut is asked for again.
    pub(super) fn bytes(
        &self,
        method: &str,
        path: &str,
        sent: Sent<'_>,
        limit: u64,
    ) -> Result<Vec<u8>, RemoteError> {
        let begun = Instant::now();
        loop {
            let mut response = self.ask(method, path, sent, &[])?;
            match response.body_mut().with_config().limit(limit).read_to_vec() {
                Ok(bytes) => return Ok(bytes),
                Err(source) if begun.elapsed() > PATIENCE => {
                    return Err(RemoteError::Unreachable { address: self.address.to_string(), source });
                }
                Err(error) => {
                    tracing::debug!(%error, "an answer was cut; asking again");
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        }
    }

    /// Asks for a document.
    pub(super) fn document<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, RemoteError> {
        let body = body.map(serde_json::to_vec).transpose().map_err(|error| self.misunderstood(&error))?;
        let sent = body.as_deref().map_or(Sent::Nothing, Sent::Json);
        let bytes = self.bytes(method, path, sent, MOST_BYTES)?;
        serde_json::from_slice(&bytes).map_err(|error| self.misunderstood(&error))
    }

    /// Asks for a body that is read as it comes.
    pub(super) fn reader(&self, path: &str, headers: &[(&str, &str)]) -> Result<impl Read, RemoteError> {
        let response = self.ask("GET", path, Sent::Nothing, headers)?;
        Ok(response.into_body().into_with_config().limit(u64::MAX).reader())
    }

    pub(super) fn misunderstood(&self, error: &dyn std::fmt::Display) -> RemoteError {
        RemoteError::Misunderstood { address: self.address.to_string(), what: error.to_string() }
    }
}

/// Says whether others can read what is sent to a URL.
fn goes_in_the_clear(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let host = rest.split(['/', ':']).next().unwrap_or_default();
    let is_here = |address: std::net::Ipv4Addr| address.is_loopback();
    host != "localhost" && !host.parse().is_ok_and(is_here) && !rest.starts_with("[::1]")
}

/// Returns what links are encrypted with.
fn tls(url: &str, authority: Option<&Path>) -> Result<TlsConfig, RemoteError> {
    let config = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
    if !url.starts_with("https://") {
        return Ok(config.build());
    }
    let roots: Vec<CertificateDer<'static>> = match authority {
        Some(path) => {
            let wrong = |error: rustls::pki_types::pem::Error| RemoteError::Certificates {
                path: path.to_owned(),
                what: error.to_string(),
            };
            let all = CertificateDer::pem_file_iter(path).map_err(wrong)?;
            all.collect::<Result<_, _>>().map_err(wrong)?
        }
        None => rustls_native_certs::load_native_certs().certs,
    };
    let roots: Vec<_> = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
    Ok(config.root_certs(RootCerts::new_with_certs(&roots)).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_can_read_is_known() {
        for url in [
            "https://h:6800",
            "http://localhost:6800",
            "http://127.0.0.1:6800",
            "http://[::1]:6800/",
            "http://127.9.9.9",
        ] {
            assert!(!goes_in_the_clear(url), "{url}");
        }
        for url in [
            "http://h:6800",
            "http://127.evil.example",
            "http://localhost.evil.example/",
            "http://10.0.0.1:6800",
        ] {
            assert!(goes_in_the_clear(url), "{url}");
        }
    }
}
