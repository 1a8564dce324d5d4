//! Requests to a service, repeated where that does no harm.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Request, Response, header};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, DefaultConnector};
use ureq::{Agent, Body};

use crate::api::version;
use crate::progress::Progress;
use crate::remote::address::{goes_in_the_clear, tls};
use crate::remote::tries::{Timing, Tries};
use crate::remote::unix::{Here, SocketConnector};
use crate::remote::watch::{Ticker, Watch, Watching};
use crate::remote::{Address, Credentials, RemoteError};

/// The longest document, in bytes.
const MOST_BYTES: u64 = 256 << 20;
/// The longest answer to a request that asks for nothing, in bytes.
pub(super) const NOTHING: u64 = 64 << 10;
/// How much of the answer to a request that failed is read, in bytes.
const REFUSAL: u64 = 64 << 10;
/// How much is sent and received at once, in bytes; the headers of an answer are no longer.
const BUFFER: usize = 256 << 10;

/// A link to a service. Shared between threads, each of which has a connection of its own while it asks.
#[derive(Clone, Debug)]
pub(super) struct Link {
    shared: Arc<Shared>,
    /// Each of these ends what waits, once it is set.
    stop: Vec<Arc<AtomicBool>>,
}

#[derive(Debug)]
struct Shared {
    agent: Agent,
    address: Address,
    token: Option<String>,
    /// Whether the service has ever answered: one that has not is not waited for.
    met: AtomicBool,
    timing: Timing,
    watch: Arc<Watch>,
    _ticker: Ticker,
}

/// What a request brings.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sent<'a> {
    Nothing,
    Json(&'a [u8]),
    Frames(&'a [u8]),
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) sent: Sent<'a>,
    pub(super) headers: &'a [(&'a str, &'a str)],
    /// Whether the service has to work for the answer, or has it at hand.
    pub(super) takes_work: bool,
}

impl<'a> Ask<'a> {
    /// Asks for something that is at hand.
    pub(super) fn get(path: &'a str) -> Self {
        Self { method: "GET", path, sent: Sent::Nothing, headers: &[], takes_work: false }
    }

    /// Sends frames.
    pub(super) fn post(path: &'a str, frames: &'a [u8]) -> Self {
        Self { method: "POST", sent: Sent::Frames(frames), ..Self::get(path) }
    }
}

impl Link {
    pub(super) fn new(
        address: Address,
        credentials: &Credentials,
        timing: Timing,
        progress: Arc<dyn Progress>,
    ) -> Result<Self, RemoteError> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("ekko/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .input_buffer_size(BUFFER)
            .output_buffer_size(BUFFER)
            .max_response_header_size(BUFFER / 4)
            .max_idle_connections(64)
            .max_idle_connections_per_host(64)
            .max_idle_age(Duration::from_secs(5))
            .timeout_connect(Some(timing.connect))
            .timeout_per_write(Some(timing.silence));
        let watch = Watch::new(address.to_string(), progress, &timing);
        let watching = Watching(Arc::clone(&watch));
        let agent = match &address {
            Address::Network { url } => {
                if credentials.token.is_some() && goes_in_the_clear(url) {
                    tracing::warn!(
                        url,
                        "the token is sent without encryption: whoever is on the way can read it"
                    );
                }
                let config = config.tls_config(tls(url, credentials.authority.as_deref())?);
                let connector = DefaultConnector::default().chain(watching);
                Agent::with_parts(config.build(), connector, DefaultResolver::default())
            }
            Address::Socket { path } => {
                let connector = SocketConnector { path: path.clone() }.chain(watching);
                Agent::with_parts(config.build(), connector, Here)
            }
        };
        let (token, met) = (credentials.token.clone(), AtomicBool::new(false));
        let ticker = watch.start();
        let shared = Shared { agent, address, token, met, timing, watch, _ticker: ticker };
        Ok(Self { shared: Arc::new(shared), stop: Vec::new() })
    }

    /// Returns the same link for a job that is stopped by these.
    pub(super) fn stopped_by(&self, stop: &[Arc<AtomicBool>]) -> Self {
        Self { shared: Arc::clone(&self.shared), stop: stop.to_vec() }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.iter().any(|stop| stop.load(Ordering::Acquire)) || self.watch().is_cancelled()
    }

    pub(super) fn address(&self) -> &Address {
        &self.shared.address
    }

    pub(super) fn timing(&self) -> &Timing {
        &self.shared.timing
    }

    pub(super) fn watch(&self) -> &Arc<Watch> {
        &self.shared.watch
    }

    /// Says whether the service has ever answered.
    pub(super) fn is_met(&self) -> bool {
        self.shared.met.load(Ordering::Relaxed)
    }

    fn unreachable(&self, source: ureq::Error) -> RemoteError {
        RemoteError::Unreachable { address: self.address().to_string(), source }
    }

    /// Says what became of a body that was read in part: the link broke, or what came makes no sense.
    pub(super) fn broken(&self, error: std::io::Error) -> RemoteError {
        self.unreachable(ureq::Error::from(error))
    }

    /// Asks until there is an answer, as long as `tries` allows.
    pub(super) fn ask(&self, ask: Ask<'_>, tries: &mut Tries<'_>) -> Result<Response<Body>, RemoteError> {
        loop {
            match self.ask_once(ask, None) {
                Ok(response) => return Ok(response),
                Err(error) => tries.failed(error)?,
            }
        }
    }

    /// Asks once, and waits for the answer for as long as is said, or as is usual.
    pub(super) fn ask_once(
        &self,
        ask: Ask<'_>,
        answer: Option<Duration>,
    ) -> Result<Response<Body>, RemoteError> {
        let Shared { agent, token, met, timing, .. } = &*self.shared;
        let mut request = Request::builder()
            .method(ask.method)
            .uri(format!("{}{}", self.address().base(), ask.path))
            .header(version::HEADER, version::MAXIMUM.to_string());
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in ask.headers {
            request = request.header(*name, *value);
        }
        let (kind, bytes) = match ask.sent {
            Sent::Nothing => (None, None),
            Sent::Json(bytes) => (Some("application/json"), Some(bytes)),
            Sent::Frames(bytes) => (Some("application/octet-stream"), Some(bytes)),
        };
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let wrong = |error: ureq::http::Error| self.unreachable(error.into());
        let answer = answer.unwrap_or(if ask.takes_work { timing.work } else { timing.silence });
        // Each read has that much: before an answer begins it takes as long as the work does.
        let response = {
            let _busy = self.watch().busy();
            match bytes {
                None => {
                    let request = agent.configure_request(request.body(()).map_err(wrong)?);
                    agent.run(
                        request.timeout_recv_response(Some(answer)).timeout_per_read(Some(answer)).build(),
                    )
                }
                Some(bytes) => {
                    let request = agent.configure_request(request.body(bytes).map_err(wrong)?);
                    agent.run(
                        request.timeout_recv_response(Some(answer)).timeout_per_read(Some(answer)).build(),
                    )
                }
            }
        };
        let mut response = response.map_err(|error| self.unreachable(error))?;
        met.store(true, Ordering::Relaxed);
        let status = response.status().as_u16();
        if !response.status().is_success() {
            // What of it does not come is not needed.
            let mut body = Vec::new();
            let _ = self.incoming(response.body_mut().as_reader()).take(REFUSAL).read_to_end(&mut body);
            let address = self.address().to_string();
            return Err(RemoteError::of_answer(address, status, response.headers(), &body));
        }
        let is = |name, what: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with(what))
        };
        if is(header::CONTENT_TYPE, "text/html") {
            return Err(RemoteError::NotAService { address: self.address().to_string(), status });
        }
        if response.headers().contains_key(header::CONTENT_ENCODING)
            && !is(header::CONTENT_ENCODING, "identity")
        {
            return Err(
                self.misunderstood(&"a proxy before it compresses answers: switch that off for this address")
            );
        }
        self.watch().succeeded();
        Ok(response)
    }

    /// Asks for a body of at most `limit` bytes, which is read whole: one that is cut is asked for again.
    pub(super) fn bytes(&self, ask: Ask<'_>, limit: u64) -> Result<Vec<u8>, RemoteError> {
        let mut tries = Tries::new(self);
        loop {
            let mut response = self.ask(ask, &mut tries)?;
            let mut bytes = Vec::new();
            let body = self.incoming(response.body_mut().as_reader());
            match body.take(limit.saturating_add(1)).read_to_end(&mut bytes) {
                Ok(read) if read as u64 > limit => {
                    let what = format!("an answer has more than {limit} bytes");
                    return Err(self.misunderstood(&what));
                }
                Ok(_) => {
                    tries.progressed();
                    return Ok(bytes);
                }
                Err(error) => tries.failed(self.broken(error))?,
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
        let bytes = self.bytes(Ask { method, path, sent, headers: &[], takes_work: true }, MOST_BYTES)?;
        serde_json::from_slice(&bytes).map_err(|error| self.misunderstood(&error))
    }

    /// Asks for something that is not to be done twice: it is repeated only while the service itself refuses it.
    pub(super) fn document_once<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, RemoteError> {
        let body = serde_json::to_vec(body).map_err(|error| self.misunderstood(&error))?;
        let ask = Ask { method: "POST", takes_work: true, sent: Sent::Json(&body), ..Ask::get(path) };
        let mut tries = Tries::new(self);
        let mut response = loop {
            match self.ask_once(ask, None) {
                Ok(response) => break response,
                Err(error @ RemoteError::Refused { .. }) => tries.failed(error)?,
                Err(error) => return Err(error),
            }
        };
        tries.progressed();
        let mut bytes = Vec::new();
        let body = self.incoming(response.body_mut().as_reader());
        body.take(MOST_BYTES).read_to_end(&mut bytes).map_err(|error| self.broken(error))?;
        serde_json::from_slice(&bytes).map_err(|error| self.misunderstood(&error))
    }

    /// Reads a body, and holds it to the slowest speed.
    pub(super) fn incoming<R: Read>(&self, body: R) -> Incoming<R> {
        let Timing { silence, slowest, .. } = self.shared.timing;
        Incoming { body, watch: Arc::clone(self.watch()), left: silence, silence, slowest }
    }

    pub(super) fn misunderstood(&self, error: &dyn std::fmt::Display) -> RemoteError {
        RemoteError::Misunderstood { address: self.address().to_string(), what: error.to_string() }
    }
}

/// A body as it comes. One that comes too slowly in the long run fails: a byte now and then is no answer.
#[derive(Debug)]
pub(super) struct Incoming<R> {
    body: R,
    watch: Arc<Watch>,
    /// Time that is left to wait: used up by waiting, earned by bytes.
    left: Duration,
    silence: Duration,
    slowest: u64,
}

impl<R: Read> Read for Incoming<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let begun = Instant::now();
        let read = {
            let _busy = self.watch.busy();
            self.body.read(buffer)?
        };
        let earned = Duration::from_micros((read as u64).saturating_mul(1_000_000) / self.slowest.max(1));
        let Some(left) = (self.left + earned).checked_sub(begun.elapsed()) else {
            let why = format!("it sends less than {} bytes per second", self.slowest);
            return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, why));
        };
        self.left = left.min(self.silence);
        Ok(read)
    }
}
