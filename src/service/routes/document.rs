//! The document that describes the API (`OpenAPI`), and the page that shows it.

use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use utoipa::OpenApi;
use utoipa::openapi::path::{HttpMethod, Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Required, ResponseBuilder};

use crate::api::{Problem, version};

/// The head of the document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Ekko",
        description = "Block-based backups of virtual machines in one deduplicating store. Images belong to projects, and a \
                       token sees those of its own alone. A refusal has the form of RFC 9457, with a kind for programs.",
    ),
    servers((url = "/", description = "This service")),
    tags(
        (name = "backups", description = "Images and their backups"),
        (name = "restore", description = "The bytes of disks"),
        (name = "sessions", description = "Backups that are being made"),
        (name = "jobs", description = "Garbage collection, checks and policies"),
        (name = "service", description = "The service itself"),
    ),
    components(schemas(Problem))
)]
pub(super) struct Document;

/// What anybody may ask, by path.
const OPEN: [&str; 5] = ["/", "/healthz", "/readyz", "/v1/", "/v1/openapi.json"];

/// Refusals that every request may meet.
const EVERY: [(&str, &str); 7] = [
    ("400", "The request is wrong"),
    ("406", "The version asked for is not spoken"),
    ("408", "The request did not come in time"),
    ("429", "Too much at once; Retry-After says when to try again"),
    ("431", "The header is too large"),
    ("500", "The server failed, or stored bytes are damaged"),
    ("503", "The service is stopping or cannot take more; Retry-After says when to try again"),
];
/// Those that need a token.
const TOKEN: [(&str, &str); 2] =
    [("401", "Who asks is not known"), ("403", "Who asks is known, and may not do this")];
/// Those that touch the repository.
const REPOSITORY: [(&str, &str); 3] = [
    ("404", "There is no such thing, or none that may be known of"),
    ("409", "It is in use, or does not fit what is there"),
    ("507", "The quota is used up, or the server's disk is full"),
];
/// Those with a body.
const BODY: [(&str, &str); 3] = [
    ("413", "The body is too large"),
    ("415", "The body is of another type than is taken"),
    ("422", "The body is not what it is said to be"),
];

/// Adds what all requests have in common, so that no route has to say it.
pub(super) fn complete(document: &mut utoipa::openapi::OpenApi) {
    let components = document.components.get_or_insert_default();
    let bearer =
        HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("A token of this service"));
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer.build()));
    let keystone =
        ApiKeyValue::with_description("X-Auth-Token", "A token of Keystone, if the service knows one");
    components.add_security_scheme("keystone", SecurityScheme::ApiKey(ApiKey::Header(keystone)));
    for (path, item) in &mut document.paths.paths {
        let methods = [
            (HttpMethod::Get, &mut item.get),
            (HttpMethod::Put, &mut item.put),
            (HttpMethod::Post, &mut item.post),
            (HttpMethod::Delete, &mut item.delete),
            (HttpMethod::Head, &mut item.head),
            (HttpMethod::Patch, &mut item.patch),
        ];
        for (method, operation) in methods {
            if let Some(operation) = operation {
                describe(operation, OPEN.contains(&path.as_str()), method == HttpMethod::Head);
            }
        }
    }
}

fn describe(operation: &mut Operation, is_open: bool, is_head: bool) {
    let mut refusals = EVERY.to_vec();
    if !is_open {
        refusals.extend(TOKEN);
        refusals.extend(REPOSITORY);
        let scheme = |name: &str| SecurityRequirement::new::<_, [String; 0], String>(name, []);
        operation.security = Some(vec![scheme("bearer"), scheme("keystone")]);
    }
    if operation.request_body.is_some() {
        refusals.extend(BODY);
    }
    for (status, description) in refusals {
        let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response = ResponseBuilder::new().description(description);
        let response = if is_head { response } else { response.content("application/problem+json", problem) };
        let responses = &mut operation.responses.responses;
        responses.entry(status.to_owned()).or_insert_with(|| RefOr::T(response.build()));
    }
    let asked = ParameterBuilder::new()
        .name(version::HEADER)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some("The version of the API to use"))
        .schema(Some(
            ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["1.0", "latest"])).build(),
        ));
    operation.parameters.get_or_insert_default().push(RefOr::T(asked.build()));
}

/// The page that shows the document.
const PAGE: &str = include_str!("page.html");

/// Shows what can be asked, for a person with a browser.
#[utoipa::path(get, path = "/v1/", tag = "service", responses(
    (status = 200, description = "The page", body = String, content_type = "text/html"),
))]
pub(super) async fn page() -> Response {
    // Nothing runs on it but what is in it.
    let once = uuid::Uuid::new_v4().simple().to_string();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{once}'; style-src 'nonce-{once}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = Html(PAGE.replace("{once}", &once)).into_response();
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
