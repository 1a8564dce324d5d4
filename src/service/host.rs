//! The `Host` of a request.
//!
//! RFC 9112, section 3.2: a request of HTTP/1.1 without `Host`, and any request with more than one or with one that is none,
//! is answered with 400. A proxy that looks at one of two hosts, or makes one up, must not see another request than we do.

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Version, header};

use crate::api::Refusal;
use crate::service::Refused;

/// Makes sure that a request names its host as it must.
pub(super) fn check(request: &Request) -> Result<(), Refused> {
    check_in(request.headers(), request.version()).map_err(|why| Refused::new(Refusal::Invalid, why))
}

fn check_in(headers: &HeaderMap, version: Version) -> Result<(), &'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let Some(host) = hosts.next() else {
        // HTTP/1.0 knows none.
        return if version < Version::HTTP_11 { Ok(()) } else { Err("the header Host is missing") };
    };
    if hosts.next().is_some() {
        return Err("the header Host is there more than once");
    }
    // It is empty where the address has no host.
    let is_host = |text: &str| text.is_empty() || !text.contains('@') && text.parse::<Authority>().is_ok();
    if host.to_str().is_ok_and(is_host) { Ok(()) } else { Err("the header Host names no host") }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn is_taken(version: Version, hosts: &[&[u8]]) -> bool {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_bytes(host).unwrap());
        }
        check_in(&headers, version).is_ok()
    }

    #[test]
    fn a_request_names_its_host_once_and_rightly() {
        let new = Version::HTTP_11;
        for good in
            ["", "ekko", "backup.example.org:6800", "127.0.0.1:1", "[2001:db8::1]:6800", "[::1]", "a:"]
        {
            assert!(is_taken(new, &[good.as_bytes()]), "{good}");
            assert!(is_taken(Version::HTTP_10, &[good.as_bytes()]), "{good}");
        }
        for wrong in [&b"a b"[..], b"a/b", b"user@a", b"a?b", b"a\xff", b"[::1", b"a\tb", b"a,b:1:2"] {
            assert!(!is_taken(new, &[wrong]), "{wrong:?}");
            assert!(!is_taken(Version::HTTP_10, &[wrong]), "{wrong:?}");
        }
        assert!(!is_taken(new, &[]));
        assert!(is_taken(Version::HTTP_10, &[]));
        assert!(!is_taken(new, &[b"a", b"a"]));
        assert!(!is_taken(Version::HTTP_10, &[b"a", b"b"]));
    }
}
