//! Asking Keystone. All of this blocks.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::http::Response;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::service::keystone::KeystoneSettings;
use crate::service::keystone::answer::{Document, Said};
use crate::service::{Hidden, ServiceError};

/// The longest answer that is read, in bytes.
const LONGEST: u64 = 1 << 20;
/// How long it may take until a connection stands.
const CONNECT: Duration = Duration::from_secs(3);
/// How long before its end a token of the service's own is not used any longer.
const MARGIN: Duration = Duration::from_mins(1);
/// Where systems have the roots that they trust.
const ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Keystone could not be asked, or did not answer so that it can be believed. Nobody is let in by that.
#[derive(Debug, thiserror::Error)]
#[error("Keystone cannot be asked: {what}")]
pub(super) struct Unreachable {
    what: String,
}

impl Unreachable {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into() }
    }
}

impl From<ureq::Error> for Unreachable {
    fn from(error: ureq::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// What came of one question.
enum Heard {
    Said(Said),
    /// The service's own token was not taken.
    OwnRefused,
    /// An answer that cannot be believed, perhaps because of the token.
    Failure(Unreachable),
}

/// The service's own token.
#[derive(Debug)]
struct Own {
    text: Hidden,
    until: Instant,
}

/// What is known of the service's own token.
#[derive(Debug, Default)]
struct OwnNow {
    token: Option<Own>,
    /// When it was last asked for in vain.
    failed: Option<Instant>,
}

/// A client of Keystone.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    /// Where tokens are made and looked up.
    tokens: String,
    /// What the service says of itself.
    credentials: Credentials,
    own: Mutex<OwnNow>,
}

#[derive(Debug)]
enum Credentials {
    Password { domain: String, user: String, password: Hidden, project: String },
    Application { id: String, secret: Hidden },
}

impl Credentials {
    fn of(settings: &KeystoneSettings) -> Option<Self> {
        if let (Some(id), Some(secret)) = (&settings.application_credential, &settings.secret) {
            return Some(Self::Application { id: id.clone(), secret: secret.clone() });
        }
        Some(Self::Password {
            domain: settings.domain.clone(),
            user: settings.user.clone()?,
            password: settings.password.clone()?,
            project: settings.user_project.clone()?,
        })
    }

    fn document(&self) -> Value {
        match self {
            Self::Application { id, secret } => json!({ "auth": { "identity": {
                "methods": ["application_credential"],
                "application_credential": { "id": id, "secret": secret.reveal() },
            } } }),
            Self::Password { domain, user, password, project } => json!({ "auth": {
                "identity": { "methods": ["password"], "password": { "user": {
                    "name": user, "domain": { "id": domain }, "password": password.reveal(),
                } } },
                "scope": { "project": { "name": project, "domain": { "id": domain } } },
            } }),
        }
    }
}

impl Client {
    pub(super) fn new(settings: &KeystoneSettings) -> Result<Self, ServiceError> {
        let wrong = |what: &str| ServiceError::Keystone { what: what.to_owned() };
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // Tokens go to Keystone and to nobody that it, or the environment, names.
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(settings.timeout()))
            .timeout_connect(Some(CONNECT.min(settings.timeout())));
        if settings.url.starts_with("https:") {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
            config = config.tls_config(tls.root_certs(roots(settings.ca.as_deref())?).build());
        }
        Ok(Self {
            agent: config.build().new_agent(),
            tokens: format!("{}/auth/tokens", settings.url.trim_end_matches('/')),
            credentials: Credentials::of(settings)
                .ok_or_else(|| wrong("the service's own user is not named"))?,
            own: Mutex::default(),
        })
    }

    /// Asks whose a token is.
    ///
    /// A question that is refused (4xx) is refused because of the token: everything else in it is always the same. That is an
    /// answer. So is a failure of the server (5xx) or an answer that makes no sense, if a question about the service's own
    /// token is answered well: then this token alone makes the server fail.
    pub(super) fn look_up(&self, token: &str) -> Result<Said, Unreachable> {
        match self.ask_twice(token)? {
            Heard::Said(said) => Ok(said),
            Heard::Failure(failure) => {
                let own = self.own()?;
                match self.ask_once(&own, own.reveal()) {
                    Ok(Heard::Said(Said::Of(_))) => {
                        tracing::warn!(%failure, "Keystone fails at one token");
                        Ok(Said::Nothing)
                    }
                    _ => Err(failure),
                }
            }
            Heard::OwnRefused => {
                Err(Unreachable::new("it does not take the token that it has just given to the service"))
            }
        }
    }

    /// Asks, and asks again with a new token of the service's own if need be: the old one may have been revoked.
    fn ask_twice(&self, token: &str) -> Result<Heard, Unreachable> {
        let heard = self.ask_once(&self.own()?, token)?;
        if !matches!(heard, Heard::OwnRefused) {
            return Ok(heard);
        }
        self.own.lock().unwrap_or_else(PoisonError::into_inner).token = None;
        self.ask_once(&self.own()?, token)
    }

    fn ask_once(&self, own: &Hidden, token: &str) -> Result<Heard, Unreachable> {
        let question = self.agent.get(format!("{}?nocatalog=true", self.tokens));
        let mut answer =
            question.header("X-Auth-Token", own.reveal()).header("X-Subject-Token", token).call()?;
        Ok(match answer.status().as_u16() {
            200 => match read::<Document>(&mut answer) {
                Ok(document) => Heard::Said(Said::Of(document.token)),
                Err(failure) => Heard::Failure(failure),
            },
            401 => Heard::OwnRefused,
            403 => Heard::Said(Said::Forbidden),
            // The server is busy, or a proxy wants to know who asks: that has nothing to do with the token.
            status @ (407 | 408 | 425 | 429) => {
                return Err(Unreachable::new(format!("it answered a question with {status}")));
            }
            404 => Heard::Said(Said::Nothing),
            status @ 400..500 => {
                tracing::info!(status, "Keystone refuses the question about a token");
                Heard::Said(Said::Nothing)
            }
            status => Heard::Failure(Unreachable::new(format!("it answered a question with {status}"))),
        })
    }

    /// Returns the service's own token, a new one if need be.
    fn own(&self) -> Result<Hidden, Unreachable> {
        let came = Instant::now();
        // Held while one is asked for: everybody else waits for the same, and takes a failure for their own.
        let mut now = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = now.token.as_ref().filter(|own| Instant::now() < own.until) {
            return Ok(own.text.clone());
        }
        if now.failed.is_some_and(|failed| failed >= came) {
            return Err(Unreachable::new("it has just given the service no token"));
        }
        match self.new_own() {
            Ok(own) => Ok(now.token.insert(own).text.clone()),
            Err(error) => {
                now.failed = Some(Instant::now());
                Err(error)
            }
        }
    }

    fn new_own(&self) -> Result<Own, Unreachable> {
        let credentials = serde_json::to_vec(&self.credentials.document());
        let credentials = credentials.map_err(|error| Unreachable::new(error.to_string()))?;
        let question = self.agent.post(&self.tokens).header("Content-Type", "application/json");
        let mut answer = question.send(&credentials[..])?;
        match answer.status().as_u16() {
            201 => {}
            401 => {
                return Err(Unreachable::new(
                    "it does not take what the service says of itself: see [keystone]",
                ));
            }
            status => return Err(Unreachable::new(format!("it gave the service no token: {status}"))),
        }
        let text =
            answer.headers().get("x-subject-token").and_then(|token| token.to_str().ok()).map(Hidden::from);
        let text = text.ok_or_else(|| Unreachable::new("it gave the service no token"))?;
        let end = read::<Document>(&mut answer)?.token.expires_at.parse::<jiff::Timestamp>();
        let left = end.map(|end| end.duration_since(crate::time::now()));
        let left = left.ok().and_then(|left| Duration::try_from(left).ok()).unwrap_or_default();
        Ok(Own { text, until: Instant::now() + left.saturating_sub(MARGIN) })
    }
}

fn read<T: serde::de::DeserializeOwned>(answer: &mut Response<Body>) -> Result<T, Unreachable> {
    let bytes = answer.body_mut().with_config().limit(LONGEST).read_to_vec()?;
    // What it said is not told: it may hold secrets.
    serde_json::from_slice(&bytes).map_err(|_| Unreachable::new("its answer is not of the identity API v3"))
}

/// Reads the roots of a certificate.
fn roots(named: Option<&Path>) -> Result<RootCerts, ServiceError> {
    let place = named.or_else(|| ROOTS.iter().map(Path::new).find(|path| path.exists()));
    let Some(path) = place else {
        let what = "this machine has no file of roots: name those of Keystone's certificate in ca".to_owned();
        return Err(ServiceError::Keystone { what });
    };
    let wrong = |what: String| ServiceError::Settings { path: path.to_owned(), what };
    let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let mut roots: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(root) = item.map_err(|error| wrong(error.to_string()))? {
            roots.push(root);
        }
    }
    if roots.is_empty() {
        return Err(wrong("it holds no certificate".to_owned()));
    }
    Ok(RootCerts::new_with_certs(&roots))
}
