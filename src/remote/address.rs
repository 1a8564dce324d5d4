//! Where a service is, who asks there, and whom they trust.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use crate::remote::RemoteError;

/// The port of a service that a URL does not name.
const PORT: &str = ":6800";

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

    /// Reads a URL. Without a port it is that of a service, 6800.
    pub fn of_url(url: &str) -> Self {
        let url = url.trim_end_matches('/');
        let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
        let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let after_host = host.rsplit_once(']').map_or(host, |(_, after)| after);
        let port = if after_host.contains(':') { "" } else { PORT };
        Self::Network { url: format!("{scheme}://{host}{port}{path}") }
    }

    pub(super) fn base(&self) -> &str {
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

/// Says whether others can read what is sent to a URL.
pub(super) fn goes_in_the_clear(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let host = rest.split(['/', ':']).next().unwrap_or_default();
    let is_here = |address: std::net::Ipv4Addr| address.is_loopback();
    host != "localhost" && !host.parse().is_ok_and(is_here) && !rest.starts_with("[::1]")
}

/// Returns what links are encrypted with.
pub(super) fn tls(url: &str, authority: Option<&Path>) -> Result<TlsConfig, RemoteError> {
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

    #[test]
    fn a_url_without_a_port_is_that_of_a_service() {
        for (url, base) in [
            ("https://h", "https://h:6800"),
            ("https://h/", "https://h:6800"),
            ("https://h:443/", "https://h:443"),
            ("http://[::1]", "http://[::1]:6800"),
            ("http://[::1]:80", "http://[::1]:80"),
            ("https://h/ekko/", "https://h:6800/ekko"),
        ] {
            assert_eq!(Address::of_url(url).base(), base);
        }
    }
}
