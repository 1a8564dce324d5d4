//! What happens to every request: it gets an id, a version is agreed on, it is found out who asks, it is logged, and refusals
//! get their shape.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api::{Refusal, version};
use crate::service::identity::{Asking, identify};
use crate::service::limits::{Address, Held, Pass, PatientBody, Seat};
use crate::service::metrics::Counting;
use crate::service::printable::printable;
use crate::service::unread::Unread;
use crate::service::{App, Caller, Refused, host};

/// The header that tells a request's id, as those of `OpenStack` have it.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-openstack-request-id");

/// What the paths of requests begin with that a session consists of.
const IN_A_SESSION: &str = "/v1/sessions/";

/// Paths that are answered however many requests are under way: they wait for nothing and take nothing.
const PROBES: [&str; 2] = ["/healthz", "/readyz"];

/// Where a connection comes from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// The socket in the repository: whoever may open it owns the repository.
    Owner,
    /// A network, and the connection's place.
    Network(std::net::SocketAddr, Arc<Seat>),
}

/// Who asked, for the log.
#[derive(Clone, Debug)]
struct Who(String);

/// Wraps every request.
pub(super) async fn every_request(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let id = format!("req-{}", uuid::Uuid::new_v4());
    let (method, path, begun) = (request.method().clone(), request.uri().path().to_owned(), Instant::now());
    let asked = request.headers().get(version::HEADER).cloned();
    let asked = asked.as_ref().map(|value| value.to_str().unwrap_or("?"));
    let agreed = version::negotiate(asked);
    let peer = match request.extensions().get::<Origin>() {
        Some(Origin::Network(peer, _)) => peer.to_string(),
        Some(Origin::Owner) | None => "socket".to_owned(),
    };
    let named = host::check(&request);
    let is_misnamed = named.is_err();
    let (counting, request) = Counting::begin(&app, request);
    let (unread, request) = Unread::watch(request);
    let response = match (&agreed, named) {
        (_, Err(refused)) => refused.into_response(),
        (Err(why), _) => Refused::new(Refusal::NotAcceptable, why.clone()).into_response(),
        (Ok(_), Ok(())) => admit(&app, request, next, &id).await,
    };
    let who = response.extensions().get::<Who>().map_or("", |Who(who)| who).to_owned();
    let mut response = printable(with_shape(response, &id)).await;
    let headers = response.headers_mut();
    let mut tell = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    tell(REQUEST_ID, &id);
    tell(HeaderName::from_static(version::HEADER), &agreed.unwrap_or(version::MAXIMUM).to_string());
    tell(HeaderName::from_static(version::MINIMUM_HEADER), &version::MINIMUM.to_string());
    tell(HeaderName::from_static(version::MAXIMUM_HEADER), &version::MAXIMUM.to_string());
    headers.insert(header::VARY, HeaderValue::from_static(version::HEADER));
    // After a wrong host name, a proxy may take what follows for somebody else's.
    if unread.remains().await || is_misnamed {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let status = response.status().as_u16();
    let seconds = begun.elapsed().as_secs_f64();
    // A backup is sent in thousands of requests: only its beginning, its end and what goes wrong are told.
    if status < 400 && path.starts_with(IN_A_SESSION) && !path.ends_with("/commit") {
        tracing::debug!(request_id = %id, who, peer, %method, path, status, seconds, "request");
    } else {
        tracing::info!(request_id = %id, who, peer, %method, path, status, seconds, "request");
    }
    counting.end(response)
}

/// Finds out who asks, counts what they ask for, and lets the request go on.
async fn admit(app: &Arc<App>, mut request: Request, next: Next, id: &str) -> Response {
    if app.is_stopping() {
        let refused = Refused::new(Refusal::Unavailable, "the service is stopping");
        return refused.retry_after(5).into_response();
    }
    // What is missing in another folder is not missing in the repository: nobody is told that a token or a backup is unknown.
    let came = Instant::now();
    if request.uri().path().starts_with("/v1/")
        && let Err(refused) = app.at_home(came).await
    {
        return refused.into_response();
    }
    let (address, seat) = match request.extensions().get::<Origin>() {
        Some(Origin::Network(peer, seat)) => (Address::from(peer.ip()), Arc::clone(seat)),
        Some(Origin::Owner) => {
            let owner = Caller::owner();
            let who = Who(owner.who.clone());
            request.extensions_mut().insert(owner);
            return with(who, next.run(request).await);
        }
        // Nobody can come by neither; a caller that nothing is known of sees nothing.
        None => return next.run(request).await,
    };
    let busy = seat.begin();
    let asking = Asking { address, came, request_id: id };
    let (who, pass) = match let_in(app, &mut request, asking).await {
        Ok(let_in) => let_in,
        Err(refused) => return with(Who(format!("address:{address}")), refused.into_response()),
    };
    let limits = &app.settings().limits;
    let patient = |body| Body::new(PatientBody::new(body, limits.body(), limits.slowest_bytes));
    let response = next.run(request.map(patient)).await;
    // It is under way until the last of its answer has been taken.
    with(who, response.map(|body| Body::new(Held::new(body, (busy, pass)))))
}

fn with(who: Who, mut response: Response) -> Response {
    response.extensions_mut().insert(who);
    response
}

/// Finds out who asks over a network, and says so to what comes behind.
async fn let_in(
    app: &Arc<App>,
    request: &mut Request,
    asking: Asking<'_>,
) -> Result<(Who, Option<Pass>), Refused> {
    let address = asking.address;
    let caller = identify(app, request.headers(), asking).await?;
    let who = caller.as_ref().map_or_else(|| format!("address:{address}"), |caller| caller.who.clone());
    let is_probe = PROBES.contains(&request.uri().path());
    let pass = if is_probe { None } else { Some(app.flight().begin(&who)?) };
    if let Some(caller) = caller {
        request.extensions_mut().insert(caller);
    }
    Ok((Who(who), pass))
}

/// Gives refusals their shape, whoever made them.
fn with_shape(response: Response, id: &str) -> Response {
    let refused = response.extensions().get::<Refused>().cloned();
    let status = response.status();
    let refused = match refused {
        Some(refused) => refused,
        None if status.is_client_error() || status.is_server_error() => {
            Refused::new(of_status(status), of_status(status).title())
        }
        None => return response,
    };
    if status.is_server_error() {
        tracing::error!(request_id = %id, why = refused.for_the_log(), "a request failed");
    } else if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        // The answer does not tell all of it, and whoever looks after the service is asked why.
        tracing::info!(request_id = %id, why = refused.for_the_log(), "a request was refused");
    } else {
        tracing::debug!(request_id = %id, why = refused.for_the_log(), "a request was refused");
    }
    let mut shaped = refused.answer(id);
    for name in [header::ALLOW, header::CONTENT_RANGE] {
        if let Some(value) = response.headers().get(&name) {
            shaped.headers_mut().insert(name, value.clone());
        }
    }
    shaped
}

fn of_status(status: StatusCode) -> Refusal {
    match status {
        StatusCode::NOT_FOUND => Refusal::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Refusal::MethodNotAllowed,
        StatusCode::REQUEST_TIMEOUT => Refusal::Timeout,
        StatusCode::PAYLOAD_TOO_LARGE => Refusal::TooLarge,
        StatusCode::RANGE_NOT_SATISFIABLE => Refusal::RangeNotSatisfiable,
        _ if status.is_client_error() => Refusal::Invalid,
        _ => Refusal::Io,
    }
}
