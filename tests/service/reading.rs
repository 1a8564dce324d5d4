//! What anybody may ask, and what reads.

use crate::harness::Served;

#[test]
fn versions_are_told_and_one_that_is_not_spoken_is_refused() {
    let served = Served::new();
    let versions = served.get("/");
    assert_eq!(versions.status, 200);
    assert_eq!(versions.json()["versions"][0]["version"], "1.0");
    assert_eq!(versions.headers["x-openstack-ekko-api-version"], "1.0");
    let config = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let ask = |version: &str| {
        let request = config.get(&served.address).header("X-OpenStack-Ekko-API-Version", version);
        request.call().unwrap()
    };
    assert_eq!(ask("latest").status(), 200);
    let refused = ask("2.0");
    assert_eq!(refused.status(), 406);
    assert_eq!(refused.headers()["x-openstack-ekko-api-maximum-version"], "1.0");
}

#[test]
fn who_says_nothing_of_themselves_sees_nothing() {
    let served = Served::new();
    for path in ["/v1/images", "/v1/backups", "/v1/backups/web@0", "/v1/statistics"] {
        let answer = served.get(path);
        assert_eq!((answer.status, answer.kind().as_str()), (401, "unauthorized"), "{path}");
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        let id = answer.json()["request_id"].as_str().unwrap().to_owned();
        assert_eq!(answer.headers["x-openstack-request-id"], id.as_str());
    }
    assert_eq!(served.get("/healthz").status, 200);
    assert_eq!(served.get("/readyz").status, 200);
    assert_eq!(served.get("/nothing").kind(), "not_found");
    assert_eq!(served.ask("POST", "/v1/backups", None, None).status, 405);
}
