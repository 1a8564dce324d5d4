//! What goes wrong between a client and a service, in words, and whether it may pass.

use std::path::PathBuf;
use std::time::Duration;

use crate::api::{Problem, Refusal};
use crate::backup::BackupError;
use crate::error::ErrorKind;
use crate::escape::escaped;
use crate::restore::RestoreError;

/// The longest text of a service that is passed on, in characters.
const LONGEST: usize = 1000;

/// A service that could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// It cannot be reached, or the link broke.
    #[error("cannot reach the service at {address}: {}", reason(source, address))]
    Unreachable {
        /// Where it is to be.
        address: String,
        /// What went wrong.
        source: ureq::Error,
    },
    /// A proxy says that the service behind it cannot be reached, or is too slow.
    #[error(
        "cannot reach the service at {address}: a proxy before it answers with status {status}; check that \"ekko serve\" runs there"
    )]
    Gateway {
        /// Where it is to be.
        address: String,
        /// The HTTP status.
        status: u16,
        /// When to ask again, as the proxy says.
        retry_after: Option<Duration>,
    },
    /// It refused.
    #[error("the service at {address} refused: {} ({})", problem.detail, problem.request_id)]
    Refused {
        /// Where it is.
        address: String,
        /// Why.
        problem: Problem,
        /// When to ask again, as the service says.
        retry_after: Option<Duration>,
    },
    /// A proxy takes no request as large as a segment.
    #[error(
        "cannot send to the service at {address}: a proxy before it refuses requests of this size (status 413); \
         in nginx, set client_max_body_size 0"
    )]
    TooLarge {
        /// Where it is to be.
        address: String,
    },
    /// It is somewhere else.
    #[error("cannot use the service at {address}: it redirects to {to}; use that address if you trust it")]
    Redirected {
        /// Where it is to be.
        address: String,
        /// Where it says it is.
        to: String,
    },
    /// Something else answers there.
    #[error(
        "cannot use the service at {address}: what answers there is no Ekko service (status {status}); check the address"
    )]
    NotAService {
        /// Where it is to be.
        address: String,
        /// The HTTP status.
        status: u16,
    },
    /// Its answer does not make sense.
    #[error("cannot understand the service at {address}: {what}")]
    Misunderstood {
        /// Where it is.
        address: String,
        /// What does not fit.
        what: String,
    },
    /// Somebody asked for the job to be stopped while it waited.
    #[error("stopped while waiting for the service at {address}")]
    Stopped {
        /// Where it is.
        address: String,
    },
    /// The roots of certificates cannot be read.
    #[error("{}: {what}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// Returns why a service cannot be reached, with what to do about it.
fn reason(source: &ureq::Error, address: &str) -> String {
    let said = source.to_string();
    let host = address.split_once("://").map_or(address, |(_, host)| host);
    // The library below says so in words alone.
    if said.contains("invalid peer certificate") {
        return "its certificate is not trusted: give the certificate of its authority with --cacert FILE"
            .to_owned();
    }
    if address.starts_with("http://") && said.contains("protocol") {
        return format!("what answers does not speak HTTP: if the service has TLS, use -r https://{host}");
    }
    if address.starts_with("https://") && said.contains("corrupt message") {
        return format!("what answers does not speak TLS: if the service has none, use -r http://{host}");
    }
    said
}

impl RemoteError {
    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreachable { .. } | Self::Gateway { .. } | Self::Stopped { .. } => ErrorKind::Io,
            Self::Refused { problem, .. } => problem.kind.error_kind(),
            Self::NotAService { .. }
            | Self::Certificates { .. }
            | Self::Redirected { .. }
            | Self::TooLarge { .. } => ErrorKind::Invalid,
            Self::Misunderstood { .. } => ErrorKind::Corrupt,
        }
    }

    /// Makes one of an answer that is no success, with what of its body was read.
    pub(super) fn of_answer(
        address: String,
        status: u16,
        headers: &ureq::http::HeaderMap,
        body: &[u8],
    ) -> Self {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let seconds = header("retry-after").and_then(|text| text.trim().parse::<u32>().ok());
        let retry_after = seconds.map(|seconds| Duration::from_secs(u64::from(seconds)));
        if (300..400).contains(&status) {
            let to = header("location").map_or_else(|| "nowhere".to_owned(), printable);
            return Self::Redirected { address, to };
        }
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => {
                let (detail, request_id) = (printable(&problem.detail), printable(&problem.request_id));
                let problem = Problem { detail, request_id, ..problem };
                Self::Refused { address, problem, retry_after }
            }
            // A proxy refuses in a shape of its own, which is never shown.
            Err(_) => match status {
                408 | 429 | 502..=504 => Self::Gateway { address, status, retry_after },
                413 => Self::TooLarge { address },
                _ => Self::NotAService { address, status },
            },
        }
    }

    /// Says whether it may be otherwise soon; of a service that was never met, nothing is hoped.
    pub(super) fn may_pass(&self, met: bool) -> bool {
        match self {
            Self::Unreachable { .. } => met,
            Self::Gateway { .. } => true,
            Self::Refused { problem, .. } => {
                matches!(problem.kind, Refusal::TooMany | Refusal::Unavailable | Refusal::Timeout)
            }
            Self::TooLarge { .. }
            | Self::Redirected { .. }
            | Self::NotAService { .. }
            | Self::Misunderstood { .. }
            | Self::Stopped { .. }
            | Self::Certificates { .. } => false,
        }
    }

    /// Returns when to ask again, if somebody said so.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Gateway { retry_after, .. } | Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Says whether the service answers well, and has no room for this now: it says when to ask again.
    pub(super) fn is_queued(&self) -> bool {
        match self {
            Self::Refused { problem, retry_after, .. } => {
                problem.kind == Refusal::TooMany && retry_after.is_some()
            }
            _ => false,
        }
    }

    /// Says whether the service may have done what was asked for all the same: the answer is what was lost.
    pub fn may_be_done(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => match source {
                ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => false,
                ureq::Error::Io(error) => error.kind() != std::io::ErrorKind::ConnectionRefused,
                _ => true,
            },
            Self::Gateway { .. } => true,
            _ => false,
        }
    }

    /// Takes the refusal of what was named for the end of the session: the service has forgotten in the meantime what it
    /// knew when it was asked about it, and a new session asks again.
    pub(super) fn or_forgotten(mut self) -> Self {
        if let Self::Refused { problem, .. } = &mut self
            && problem.kind == Refusal::Conflict
        {
            problem.kind = Refusal::Gone;
        }
        self
    }

    /// Says whether what the request was about is not there, or not any longer.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Refused { problem, .. } => matches!(problem.kind, Refusal::NotFound | Refusal::Gone),
            _ => false,
        }
    }
}

/// Returns a text of a service so that a terminal can show it: not all of it, if it is long.
fn printable(text: &str) -> String {
    let end = text.char_indices().nth(LONGEST).map_or(text.len(), |(end, _)| end);
    escaped(text.get(..end).unwrap_or_default()).into_owned()
}

impl From<RemoteError> for BackupError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Stopped { .. } => Self::Stopped,
            error => Self::Elsewhere { kind: error.kind(), source: Box::new(error) },
        }
    }
}

impl From<RemoteError> for RestoreError {
    fn from(error: RemoteError) -> Self {
        Self::Elsewhere { kind: error.kind(), source: Box::new(error) }
    }
}

#[cfg(test)]
mod tests {
    use ureq::http::HeaderMap;

    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &str)], body: &str) -> RemoteError {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (ureq::http::HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        RemoteError::of_answer("https://backup:6800".to_owned(), status, &headers, body.as_bytes())
    }

    #[test]
    fn an_answer_of_a_proxy_says_what_to_do_and_shows_nothing_of_its_page() {
        let page = "<html>\u{1b}[2Jsecret</html>";
        let told = |status, headers: &[(&'static str, &str)]| answer(status, headers, page).to_string();
        assert!(told(413, &[]).contains("client_max_body_size 0"));
        let redirected = told(308, &[("location", "https://new:6800/v1/images")]);
        assert!(redirected.contains("https://new:6800/v1/images"), "{redirected}");
        assert!(told(302, &[]).contains("redirects to nowhere"));
        assert!(told(502, &[]).contains("status 502") && told(502, &[]).contains("ekko serve"));
        assert!(told(403, &[]).contains("no Ekko service (status 403)"));
        for status in [301, 400, 403, 408, 413, 429, 500, 502, 503, 504] {
            let text = told(status, &[]);
            assert!(!text.contains("secret") && !text.contains('\u{1b}'), "{status}: {text}");
        }
    }

    #[test]
    fn statuses_that_may_pass_are_asked_again_and_others_are_not() {
        for (status, passes) in [
            (301, false),
            (400, false),
            (403, false),
            (408, true),
            (413, false),
            (429, true),
            (500, false),
            (502, true),
            (503, true),
            (504, true),
        ] {
            assert_eq!(answer(status, &[], "").may_pass(true), passes, "{status}");
        }
        assert_eq!(answer(503, &[("retry-after", "7")], "").retry_after(), Some(Duration::from_secs(7)));
        assert_eq!(answer(503, &[("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")], "").retry_after(), None);
    }

    #[test]
    fn a_refusal_shows_no_control_characters_and_has_a_bound() {
        let detail = format!("\\u001b[2J{}", "x".repeat(5000));
        let body = format!(
            r#"{{"kind":"conflict","status":409,"title":"t","detail":"{detail}","request_id":"a\u0007b"}}"#
        );
        let text = answer(409, &[], &body).to_string();
        assert!(!text.contains(char::is_control) && text.len() < 2000, "{text}");
        assert!(text.contains("\\u{1b}[2J"), "{text}");
    }
}
