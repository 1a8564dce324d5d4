//! Where an NBD export is: the URIs of the NBD project (`doc/uri.md`).

use std::path::PathBuf;

/// What a URI names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NbdUri {
    pub(super) place: Place,
    /// The export's name; the default one has none.
    pub(super) export: String,
    /// Whether the link is encrypted.
    pub(super) tls: bool,
    /// Whom the server's certificate is to name.
    pub(super) host: String,
}

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// The port of NBD.
const PORT: u16 = 10809;

/// The schemes, and whether each is of a socket file and of TLS.
const SCHEMES: [(&str, bool, bool); 4] = [
    ("nbd://", false, false),
    ("nbds://", false, true),
    ("nbd+unix://", true, false),
    ("nbds+unix://", true, true),
];

/// Says whether a source is named by a URI of NBD.
pub(super) fn is_uri(text: &str) -> bool {
    SCHEMES.iter().any(|(scheme, _, _)| text.starts_with(scheme))
}

impl NbdUri {
    /// Reads a URI; the error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let found =
            SCHEMES.iter().find_map(|(scheme, unix, tls)| Some((text.strip_prefix(scheme)?, *unix, *tls)));
        let (rest, unix, tls) = found.ok_or("its scheme is not one of NBD")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decoded(path).ok_or("the export's name cannot be read")?;
        if export.len() > 4096 {
            return Err("the export's name is longer than 4096 bytes");
        }
        let (mut socket, mut hostname) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("socket", path)) => socket = decoded(path),
                Some(("tls-hostname", name)) if tls => hostname = decoded(name),
                _ => {
                    return Err(
                        "only socket= and, with TLS, tls-hostname= can be said behind the question mark",
                    );
                }
            }
        }
        let place = match (unix, socket) {
            (true, Some(path)) if authority.is_empty() && !path.is_empty() => {
                Place::Unix(PathBuf::from(path))
            }
            (true, _) => return Err("it has the form nbd+unix:///EXPORT?socket=PATH"),
            (false, Some(_)) => return Err("socket= goes with nbd+unix"),
            (false, None) => tcp(authority)?,
        };
        let host = hostname.unwrap_or_else(|| match &place {
            Place::Tcp { host, .. } => host.clone(),
            Place::Unix(_) => "localhost".to_owned(),
        });
        Ok(Self { place, export, tls, host })
    }
}

/// Reads `HOST`, `HOST:PORT` or `[IPV6]:PORT`.
fn tcp(authority: &str) -> Result<Place, &'static str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("its address has no end")?;
            (host, rest.strip_prefix(':'))
        }
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = match port {
        None | Some("") => PORT,
        Some(port) => port.parse().map_err(|_| "its port is no number up to 65535")?,
    };
    if host.is_empty() || host.contains('@') {
        return Err("it names no host");
    }
    Ok(Place::Tcp { host: host.to_owned(), port })
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let digits = tail.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = tail.get(2..)?;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read() {
        let tcp = |host: &str, port| Place::Tcp { host: host.to_owned(), port };
        for (text, place, export, tls, host) in [
            ("nbd://host", tcp("host", 10809), "", false, "host"),
            ("nbd://host:10810/", tcp("host", 10810), "", false, "host"),
            ("nbds://host/a/b", tcp("host", 10809), "a/b", true, "host"),
            ("nbds://host/?tls-hostname=other", tcp("host", 10809), "", true, "other"),
            ("nbd://[::1]:5/x%20y", tcp("::1", 5), "x y", false, "::1"),
            ("nbd://[::1]", tcp("::1", 10809), "", false, "::1"),
            ("nbd+unix:///vda?socket=/run/a%26b", Place::Unix("/run/a&b".into()), "vda", false, "localhost"),
            ("nbds+unix:///?socket=s", Place::Unix("s".into()), "", true, "localhost"),
        ] {
            assert!(is_uri(text));
            assert_eq!(
                NbdUri::parse(text),
                Ok(NbdUri { place, export: export.to_owned(), tls, host: host.to_owned() }),
                "{text}"
            );
        }
        assert!(!is_uri("/dev/nbd0") && !is_uri("nbd:host:5") && !is_uri("nbd"));
    }

    #[test]
    fn what_names_no_export_is_refused() {
        for text in [
            "nbd://",
            "nbd:///x",
            "nbd://host:port/",
            "nbd://host:70000",
            "nbd://[::1",
            "nbd://user@host/",
            "nbd://host/%zz",
            "nbd://host/%ff",
            "nbd://host/?socket=/x",
            "nbd://host/?tls=1",
            "nbd://host/?tls-hostname=other",
            "nbd+unix:///x",
            "nbd+unix://host/x?socket=/y",
            "nbd+unix:///x?socket=",
            "http://host",
        ] {
            assert!(NbdUri::parse(text).is_err(), "{text}");
        }
    }
}
