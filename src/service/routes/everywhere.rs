//! What every request may be answered, whatever it asks for: said once, and told in the document of each.

use utoipa::openapi::path::Operation;
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, Response, ResponseBuilder};

/// The refusals that come before anything is done.
const REFUSALS: [(&str, &str); 8] = [
    ("400", "The request is wrong"),
    ("401", "Who asks is not known"),
    ("403", "Keystone knows who asks, and they have no role here"),
    ("406", "The version asked for is not spoken"),
    ("408", "The body did not come in time"),
    ("413", "The body is longer than is taken"),
    ("429", "Too much at once; Retry-After says when to try again"),
    ("503", "The service is stopping, or cannot take more; Retry-After says when to try again"),
];

/// Adds to each operation what it does not say itself.
pub(super) fn describe_refusals(document: &mut OpenApi) {
    for path in document.paths.paths.values_mut() {
        let operations =
            [&mut path.get, &mut path.put, &mut path.post, &mut path.delete, &mut path.head, &mut path.patch];
        operations.into_iter().flatten().for_each(describe);
    }
}

fn describe(operation: &mut Operation) {
    for (status, what) in REFUSALS {
        let known = &mut operation.responses.responses;
        known.entry(status.to_owned()).or_insert_with(|| refusal(what).into());
    }
}

fn refusal(what: &str) -> Response {
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new().description(what).content("application/problem+json", problem).build()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_operation_tells_what_it_may_be_refused_with() {
        let document = serde_json::to_value(super::super::described().split_for_parts().1).unwrap();
        let paths = document["paths"].as_object().unwrap();
        assert!(paths.len() > 3);
        for (path, operations) in paths {
            for (method, operation) in operations.as_object().unwrap() {
                for status in ["401", "408", "413", "429", "503"] {
                    let content = &operation["responses"][status]["content"]["application/problem+json"];
                    assert_eq!(
                        content["schema"]["$ref"], "#/components/schemas/Problem",
                        "{method} {path}: {status}"
                    );
                }
            }
        }
    }
}
