//! The document that describes the API, its page, and what is counted.

use crate::harness::Served;
use crate::tokens::{token, two_projects};

#[test]
fn every_answer_of_every_route_is_described() {
    let served = Served::new();
    let document = served.get("/v1/openapi.json").json();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 15, "{:?}", paths.keys());
    for (path, item) in paths {
        for (method, operation) in item.as_object().unwrap() {
            let responses = operation["responses"].as_object().unwrap();
            let what = format!("{method} {path}");
            for status in ["400", "406", "429", "431", "500", "503"] {
                assert!(responses.contains_key(status), "{what}: {status}");
            }
            let is_open = ["/", "/healthz", "/readyz", "/v1/"].contains(&path.as_str());
            assert_eq!(operation.get("security").is_some(), !is_open, "{what}");
            assert_eq!(responses.contains_key("401"), !is_open, "{what}");
            assert_eq!(responses.contains_key("413"), operation.get("requestBody").is_some(), "{what}");
            assert!(operation["summary"].as_str().is_some_and(|text| text.ends_with('.')), "{what}");
            assert_eq!(operation["tags"].as_array().map(Vec::len), Some(1), "{what}");
        }
    }
    assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    assert_eq!(document["components"]["securitySchemes"]["keystone"]["name"], "X-Auth-Token");
}

#[test]
fn the_page_runs_nothing_but_what_is_in_it() {
    let served = Served::new();
    let page = served.get("/v1/");
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'nonce-"), "{policy}");
    let once = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    let text = String::from_utf8(page.body.clone()).unwrap();
    assert_eq!(text.matches(&format!("nonce=\"{once}\"")).count(), 2);
    assert!(!text.contains("{once}") && !text.contains("http://") && !text.contains("https://"));
    assert_ne!(served.get("/v1/").header("content-security-policy"), policy, "it is another each time");
}

#[test]
fn what_happens_is_counted() {
    let served = Served::new();
    served.get("/v1/backups");
    served.get("/v1/backups/a");
    served.get("/v1/backups/b");
    served.get("/made-up/1");
    served.get("/made-up/2");
    served.owner("GET", "/v1/images", &[], None);
    let text = String::from_utf8(served.owner("GET", "/metrics", &[], None).body).unwrap();
    for line in [
        "ekko_http_requests_total{method=\"GET\",route=\"/v1/backups\",status=\"401\"} 1",
        "ekko_http_requests_total{method=\"GET\",route=\"/v1/backups/{backup}\",status=\"401\"} 2",
        "ekko_http_requests_total{method=\"GET\",route=\"none\",status=\"404\"} 2",
        "ekko_http_requests_total{method=\"GET\",route=\"/v1/images\",status=\"200\"} 1",
        "ekko_ready 1",
        "ekko_sessions_open 0",
        "ekko_jobs{state=\"queued\"} 0",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(served.metric("ekko_http_sent_bytes_total") > 500.0);
    assert!(served.metric("ekko_repository_bytes") > 0.0);
}

#[test]
fn numbers_are_told_to_the_owner_and_to_admins_and_to_nobody_who_shows_no_token() {
    let served = Served::with(&[], two_projects);
    // From this machine, as any proxy on it comes.
    assert_eq!(served.get("/metrics").status, 401);
    for (role, status) in [("restore", 403), ("backup", 403), ("operator", 403), ("admin", 200)] {
        let token = token(&served.repository(), "blue", role);
        assert_eq!(served.ask("GET", "/metrics", Some(&token), None).status, status, "{role}");
    }
    assert_eq!(served.owner("GET", "/metrics", &[], None).status, 200);
    let settings = served.folder().join("open.toml");
    std::fs::write(&settings, "metrics_for_all = true\n").unwrap();
    let open = Served::with(&["--config", settings.to_str().unwrap()], |_| {});
    assert_eq!(open.get("/metrics").status, 200);
}
