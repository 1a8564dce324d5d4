//! Garbage collection, checks and policies, over HTTP.

use serde_json::{Value, json};

use crate::harness::{Answer, Served, disk, ekko_done, until};

/// Four backups of web, of which each but the first has a segment of its own.
fn served() -> Served {
    Served::with(&[], |repository| {
        let source = repository.with_extension("raw");
        let mut bytes = disk(1, 640 << 10);
        for change in 0..4 {
            bytes[change << 16] ^= 1;
            std::fs::write(&source, &bytes).unwrap();
            ekko_done(repository, &["backup", &format!("web={}", source.display())]);
        }
    })
}

fn submit(served: &Served, request: &Value) -> Answer {
    served.owner("POST", "/v1/jobs", &[], Some(request))
}

/// Runs a job to its end.
fn done(served: &Served, request: &Value) -> Value {
    let answer = submit(served, request);
    assert_eq!(answer.status, 202, "{}", answer.json());
    let path = format!("/v1/jobs/{}", answer.json()["id"].as_str().unwrap());
    let job = || served.owner("GET", &path, &[], None).json();
    until("the job ends", || !["queued", "running"].contains(&job()["state"].as_str().unwrap()));
    job()
}

#[test]
fn a_policy_deletes_and_a_collection_gives_the_space_back() {
    let served = served();
    let keep = json!({"kind": "forget", "name": "web", "keep": {"last": 1}, "dry_run": true});
    let planned = done(&served, &keep);
    assert_eq!(planned["state"], "done");
    assert_eq!(planned["result"]["forget"]["deleted"].as_array().unwrap().len(), 3);
    assert_eq!(served.owner("GET", "/v1/backups", &[], None).json()["backups"].as_array().unwrap().len(), 4);
    let typo = done(&served, &json!({"kind": "forget", "keep": {"tags": ["typo"]}}));
    assert_eq!(typo["result"]["forget"]["refused"].as_array().unwrap().len(), 1);
    assert_eq!(typo["result"]["forget"]["deleted"], json!([]));
    let forgotten = done(&served, &json!({"kind": "forget", "keep": {"last": 1}}));
    assert_eq!(forgotten["result"]["forget"]["kept"][0]["backup"], "web@3");
    assert_eq!(forgotten["result"]["forget"]["kept"][0]["reasons"], json!(["last"]));
    let kept = done(&served, &json!({"kind": "gc"}));
    assert_eq!(
        (&kept["result"]["gc"]["purged_backups"], &kept["result"]["gc"]["kept_backups"]),
        (&json!(0), &json!(3))
    );
    let collected = done(&served, &json!({"kind": "gc", "now": true}));
    let gc = &collected["result"]["gc"];
    assert_eq!((gc["purged_backups"].as_u64(), gc["problems"].clone()), (Some(3), json!([])));
    let freed = gc["freed_bytes"].as_u64().unwrap();
    assert!(freed > 0);
    assert_eq!(served.metric("ekko_gc_freed_bytes_total").to_string(), freed.to_string());
    let checked = done(&served, &json!({"kind": "check", "read_data": 100}));
    let check = &checked["result"]["check"];
    assert_eq!((check["index"].clone(), check["damaged"].clone()), (json!("agrees"), json!([])));
    assert_eq!(checked["progress"]["done_bytes"], checked["progress"]["total_bytes"]);
    let list = served.owner("GET", "/v1/jobs", &[], None).json();
    let kinds: Vec<_> = list["jobs"].as_array().unwrap().iter().map(|job| job["kind"].clone()).collect();
    assert_eq!(kinds, ["check", "gc", "gc", "forget", "forget", "forget"]);
}

#[test]
fn a_request_that_cannot_be_meant_is_refused() {
    let served = served();
    for wrong in [
        json!({}),
        json!({"kind": "rebuild"}),
        json!({"kind": "gc", "dryrun": true}),
        json!({"kind": "gc", "keep_unfinished": "soon"}),
        json!({"kind": "check", "read_data": 0}),
        json!({"kind": "check", "read_data": 101}),
        json!({"kind": "forget"}),
        json!({"kind": "forget", "keep": {}}),
        json!({"kind": "forget", "keep": {"last": 0}}),
        json!({"kind": "forget", "keep": {"daily": "all"}}),
    ] {
        let answer = submit(&served, &wrong);
        assert_eq!((answer.status, answer.kind().as_str()), (400, "invalid"), "{wrong}");
    }
    let missing = done(&served, &json!({"kind": "forget", "name": "db", "keep": {"last": 1}}));
    assert_eq!(
        (missing["state"].clone(), missing["error"]["kind"].clone()),
        (json!("failed"), json!("not_found"))
    );
    let nobody = submit(&served, &json!({"kind": "forget", "name": "../x", "keep": {"last": 1}}));
    assert_eq!(nobody.kind(), "not_found");
    assert_eq!(served.owner("GET", "/v1/jobs/none", &[], None).kind(), "not_found");
    assert_eq!(served.owner("DELETE", "/v1/jobs/none", &[], None).kind(), "not_found");
    assert_eq!(served.ask("POST", "/v1/jobs", None, Some(b"{\"kind\":\"gc\"}")).status, 401);
}

#[test]
fn jobs_wait_for_their_turn_can_be_cancelled_and_are_not_taken_without_bound() {
    let served = served();
    let mut ids = Vec::new();
    let refused = loop {
        let answer = submit(&served, &json!({"kind": "check", "read_data": 100}));
        if answer.status != 202 {
            break answer;
        }
        ids.push(answer.json()["id"].as_str().unwrap().to_owned());
        assert!(ids.len() < 200, "jobs end faster than they come");
    };
    assert_eq!((refused.status, refused.kind().as_str()), (429, "too_many"));
    assert_eq!(refused.header("retry-after"), "30");
    for id in &ids {
        assert_eq!(served.owner("DELETE", &format!("/v1/jobs/{id}"), &[], None).status, 200);
    }
    let jobs = || served.owner("GET", "/v1/jobs", &[], None).json()["jobs"].as_array().unwrap().clone();
    let ended = |job: &Value| ["done", "cancelled"].contains(&job["state"].as_str().unwrap());
    until("all end", || jobs().iter().all(ended));
    assert!(jobs().iter().any(|job| job["state"] == "cancelled"));
    // The store is as it was.
    assert_eq!(
        done(&served, &json!({"kind": "check", "read_data": 100}))["result"]["check"]["damaged"],
        json!([])
    );
}

#[test]
fn a_job_is_followed_to_its_end() {
    let served = served();
    let answer = submit(&served, &json!({"kind": "check", "read_data": 100}));
    let path = format!("/v1/jobs/{}/events", answer.json()["id"].as_str().unwrap());
    for _ in 0..2 {
        // The stream ends with the job; of one that has ended, it says so at once.
        let events = served.owner("GET", &path, &[], None);
        assert_eq!(events.header("content-type"), "text/event-stream");
        let text = String::from_utf8(events.body).unwrap();
        let last = text.trim_end().rsplit("\n\n").next().unwrap();
        let data = last.strip_prefix("event: end\ndata: ").unwrap_or_else(|| panic!("{text}"));
        assert_eq!(serde_json::from_str::<Value>(data).unwrap()["state"], "done");
    }
}

#[test]
fn of_jobs_that_have_ended_a_bounded_number_is_remembered() {
    let served = served();
    for _ in 0..40 {
        done(&served, &json!({"kind": "gc", "dry_run": true}));
    }
    let list = served.owner("GET", "/v1/jobs", &[], None).json();
    assert!(list["jobs"].as_array().unwrap().len() <= 33, "{}", list["jobs"].as_array().unwrap().len());
}
