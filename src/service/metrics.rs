//! What is counted, for Prometheus.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::api::{GcDocument, JobDocument, JobKind, JobState};
use crate::repository::RepositoryWriter;
use crate::service::pulse::unready;
use crate::service::{App, Refused};

/// How long a walk through the repository's files is believed.
const WALKED: Duration = Duration::from_mins(1);
/// Seconds that requests are counted up to.
const SECONDS: [f64; 11] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    method: String,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    kind: Word<JobKind>,
    state: Word<JobState>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Standing {
    state: Word<JobState>,
}

/// A label that is called as in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Word<T>(T);

impl<T: fmt::Debug> EncodeLabelValue for Word<T> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        EncodeLabelValue::encode(&format!("{:?}", self.0).to_lowercase(), encoder)
    }
}

/// The service's counters.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Asked, Counter>,
    seconds: Seconds,
    received_bytes: Counter,
    sent_bytes: Counter,
    jobs_ended: Family<Ended, Counter>,
    jobs: Family<Standing, Gauge>,
    gc_freed_bytes: Counter,
    gc_freed_segments: Counter,
    /// Segments whose bytes clients sent.
    pub(super) segments_received: Counter,
    /// Segments that clients had and did not need to send, or that were stored already when they came.
    pub(super) segments_deduplicated: Counter,
    /// Segments that were stored.
    pub(super) segments_stored: Counter,
    /// Sessions that are open.
    pub(super) sessions_open: Gauge,
    /// Requests that wait for a thread that may block.
    pub(super) threads_wanted: Gauge,
    /// Threads that work on requests and jobs.
    pub(super) threads_busy: Gauge,
    ready: Gauge,
    index_records: Gauge,
    index_busy_seconds: Gauge<f64, AtomicU64>,
    repository_bytes: Gauge,
    walked: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Seconds(Family<Route, Histogram, fn() -> Histogram>);

impl Default for Seconds {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(SECONDS)))
    }
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut it = Self::default();
        let mut registry = Registry::with_prefix("ekko");
        let mut told =
            |name: &str, help: &str, metric: &dyn Metric| metric.register(name, help, &mut registry);
        told("http_requests", "Requests by method, route and status", &it.requests);
        told(
            "http_request_seconds",
            "How long the answers to requests took to begin, by route",
            &it.seconds.0,
        );
        told("http_received_bytes", "Bytes of requests' bodies", &it.received_bytes);
        told("http_sent_bytes", "Bytes of answers' bodies", &it.sent_bytes);
        told("segments_received", "Segments whose bytes clients sent", &it.segments_received);
        told("segments_deduplicated", "Segments that were stored already", &it.segments_deduplicated);
        told("segments_stored", "Segments that were stored", &it.segments_stored);
        told("sessions_open", "Backups that are under way", &it.sessions_open);
        told("jobs_ended", "Jobs that have ended, by kind and state", &it.jobs_ended);
        told("jobs", "Jobs that wait or run", &it.jobs);
        told("gc_freed_bytes", "Bytes of packs that garbage collection freed", &it.gc_freed_bytes);
        told("gc_freed_segments", "Segments that garbage collection freed", &it.gc_freed_segments);
        told("threads_wanted", "Requests and jobs that wait for a thread", &it.threads_wanted);
        told("threads_busy", "Threads that work on requests and jobs", &it.threads_busy);
        told("ready", "Whether changes are taken", &it.ready);
        told("index_records", "Records of the index written since it was opened", &it.index_records);
        told("index_busy_seconds", "How long that took", &it.index_busy_seconds);
        told("repository_bytes", "What the repository's files take", &it.repository_bytes);
        it.registry = registry;
        it
    }

    /// Counts a job that has ended.
    pub(super) fn job_ended(&self, job: &JobDocument) {
        self.jobs_ended.get_or_create(&Ended { kind: Word(job.kind), state: Word(job.state) }).inc();
    }

    /// Counts what a collection freed.
    pub(super) fn freed(&self, collected: &GcDocument) {
        self.gc_freed_bytes.inc_by(collected.freed_bytes);
        self.gc_freed_segments.inc_by(collected.freed_segments);
    }

    /// Returns all of it as text, with what is looked at now. Blocks.
    pub(super) fn text(&self, app: &App) -> Result<String, Refused> {
        self.ready.set(i64::from(unready(app).is_none() && !app.is_stopping()));
        for state in [JobState::Queued, JobState::Running] {
            let number = i64::try_from(app.jobs().count(state)).unwrap_or(i64::MAX);
            self.jobs.get_or_create(&Standing { state: Word(state) }).set(number);
        }
        self.sessions_open.set(i64::try_from(app.sessions().count()).unwrap_or(i64::MAX));
        // While the index is made anew there is nothing to say of it.
        // Nor while the store's thread does not answer: who asks for numbers is not to wait for it.
        let work = |writer: &RepositoryWriter| Ok(writer.store().index_work()?);
        if let (Ok(work), None) = (app.writer().try_with(work), app.pulse().silence()) {
            self.index_records.set(i64::try_from(work.records).unwrap_or(i64::MAX));
            self.index_busy_seconds.set(work.busy.as_secs_f64());
        }
        let is_old = |walked: Instant| walked.elapsed() > WALKED;
        let mut walked = self.walked.lock().unwrap_or_else(PoisonError::into_inner);
        if walked.is_none_or(is_old) {
            let bytes = app.repository().disk_bytes();
            self.repository_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
            *walked = Some(Instant::now());
        }
        drop(walked);
        let mut out = String::new();
        text::encode(&mut out, &self.registry)
            .map_err(|error| Refused::internal(crate::api::Refusal::Io, &error))?;
        Ok(out)
    }
}

/// What can be registered, whatever it counts.
trait Metric {
    fn register(&self, name: &str, help: &str, registry: &mut Registry);
}

impl<T: prometheus_client::registry::Metric + Clone> Metric for T {
    fn register(&self, name: &str, help: &str, registry: &mut Registry) {
        registry.register(name, help, self.clone());
    }
}

/// A request that is counted when its answer begins.
pub(super) struct Counting {
    app: Arc<App>,
    method: String,
    route: String,
    begun: Instant,
}

impl Counting {
    /// Begins to count a request, and the bytes of its body as they come.
    pub(super) fn begin(app: &Arc<App>, request: Request) -> (Self, Request) {
        let route = request.extensions().get::<MatchedPath>();
        // What clients make up does not become labels.
        let route = route.map_or_else(|| "none".to_owned(), |route| route.as_str().to_owned());
        let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::PATCH];
        let known = known.contains(request.method()).then(|| request.method().to_string());
        let method = known.unwrap_or_else(|| "other".to_owned());
        let counter = app.metrics().received_bytes.clone();
        let request = request.map(|body| Body::new(Counted { body, counter }));
        (Self { app: Arc::clone(app), method, route, begun: Instant::now() }, request)
    }

    /// Counts it, and the bytes of the answer as they go.
    pub(super) fn end(self, response: Response) -> Response {
        let metrics = self.app.metrics();
        let status = response.status().as_u16();
        metrics
            .seconds
            .0
            .get_or_create(&Route { route: self.route.clone() })
            .observe(self.begun.elapsed().as_secs_f64());
        metrics.requests.get_or_create(&Asked { method: self.method, route: self.route, status }).inc();
        let counter = metrics.sent_bytes.clone();
        response.map(|body| Body::new(Counted { body, counter }))
    }
}

/// A body whose bytes are counted.
struct Counted {
    body: Body,
    counter: Counter,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.counter.inc_by(data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
