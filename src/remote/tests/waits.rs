//! How long a client waits, and what it tells.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::remote::link::Ask;
use crate::remote::tests::scripted::{Scripted, answer, head, raw};
use crate::remote::tests::{Told, link, quick};
use crate::remote::tries::Timing;
use crate::remote::{Address, Credentials, RemoteError, RemoteRepository};

const PROBLEM: &str = r#"{"kind":"KIND","status":STATUS,"title":"t","detail":"d","request_id":"req-1"}"#;

fn problem(status: u16, kind: &str) -> String {
    PROBLEM.replace("KIND", kind).replace("STATUS", &status.to_string())
}

#[test]
fn what_is_refused_for_now_and_what_is_cut_is_asked_for_again() {
    let service = Scripted::new(|_, number| match number {
        0 => answer(408, &[], b"<html>"),
        1 => answer(429, &["Retry-After: 0"], problem(429, "too_many").as_bytes()),
        2 => answer(502, &["Content-Type: text/html"], b"<html>"),
        3 => answer(503, &[], problem(503, "unavailable").as_bytes()),
        4 => answer(504, &[], b""),
        5 => answer(408, &[], problem(408, "timeout").as_bytes()),
        // Nothing, half a head, and half a body.
        6 => raw(""),
        7 => raw("HTTP/1.1 200 OK\r\nContent-Le"),
        8 => raw([head(200, &[], 5).as_bytes(), b"he"].concat()),
        _ => answer(200, &[], b"hello"),
    });
    let link = link(&service.address, quick(), &Arc::default());
    assert_eq!(link.bytes(Ask::get("/x"), 5).unwrap(), b"hello");
    assert_eq!(service.asked().len(), 10);
}

#[test]
fn what_will_not_pass_is_asked_once() {
    for status in [400, 401, 403, 404, 413, 500] {
        let service = Scripted::new(move |_, _| answer(status, &[], b"no"));
        let link = link(&service.address, quick(), &Arc::default());
        assert!(link.bytes(Ask::get("/x"), 5).is_err(), "{status}");
        assert_eq!(service.asked().len(), 1, "{status}");
    }
    // A service that was never there is most likely a mistake.
    let told = Arc::<Told>::default();
    let link = link("http://127.0.0.1:1", quick(), &told);
    assert!(matches!(link.bytes(Ask::get("/x"), 5), Err(RemoteError::Unreachable { .. })));
    assert_eq!(told.texts(), Vec::<String>::new());
}

#[test]
fn one_budget_serves_all_requests_of_a_call() {
    let service = Scripted::new(|_, _| answer(200, &[], b"hello"));
    let timing = Timing { budget: Duration::from_secs(2), ..quick() };
    let link = link(&service.address, timing, &Arc::default());
    link.bytes(Ask::get("/x"), 5).unwrap();
    service.end();
    let begun = Instant::now();
    for _ in 0..6 {
        assert!(link.bytes(Ask::get("/x"), 5).is_err());
    }
    // Each with a budget of its own took 12 s.
    let taken = begun.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(7)).contains(&taken), "{taken:?}");
}

#[test]
fn progress_renews_the_budget_and_a_request_that_alone_fails_ends() {
    // Cut again and again, for longer than the budget; the other request is never answered rightly.
    let service = Scripted::new(|path, _| match path {
        "/good" => answer(200, &[], b"hello"),
        _ => answer(503, &[], b""),
    });
    let timing = Timing { budget: Duration::from_millis(700), ..quick() };
    let link = link(&service.address, timing, &Arc::default());
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(std::sync::atomic::Ordering::Acquire) {
                link.bytes(Ask::get("/good"), 5).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let refused = link.bytes(Ask::get("/bad"), 5);
        ended.store(true, std::sync::atomic::Ordering::Release);
        assert!(matches!(refused, Err(RemoteError::Gateway { status: 503, .. })), "{refused:?}");
    });
}

#[test]
fn a_wait_is_told_with_its_reason_and_so_is_its_end() {
    let told = Arc::<Told>::default();
    let service = Scripted::new(|path, number| match (path, number) {
        ("/refused", ..8) => answer(503, &[], b""),
        ("/slow", _) => Box::new(|stream| {
            std::thread::sleep(Duration::from_millis(300));
            answer(200, &[], b"hello")(stream)
        }),
        _ => answer(200, &[], b"hello"),
    });
    let link = link(&service.address, quick(), &told);
    let wait_for = |number: usize| {
        let begun = Instant::now();
        while told.texts().len() < number {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", told.texts());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    link.bytes(Ask::get("/refused"), 5).unwrap();
    wait_for(2);
    link.bytes(Ask::get("/slow"), 5).unwrap();
    wait_for(4);
    let texts = told.texts();
    assert!(texts[0].starts_with("waiting: ") && texts[0].contains("503"), "{texts:?}");
    assert!(texts[1].starts_with("the service answers again"), "{texts:?}");
    assert!(texts[2].contains("does not answer"), "{texts:?}");
    assert!(texts[3].starts_with("the service answers again"), "{texts:?}");
    // What is quick is not worth a word.
    link.bytes(Ask::get("/good"), 5).unwrap();
    assert_eq!(told.texts().len(), 4);
}

#[test]
fn a_service_that_is_full_is_waited_for_beyond_the_budget() {
    let told = Arc::<Told>::default();
    let service = Scripted::new(|path, number| match (path, number) {
        ("/x", 15) => answer(503, &[], b""),
        ("/x", ..15) | ("/always", _) => {
            answer(429, &["Retry-After: 0"], problem(429, "too_many").as_bytes())
        }
        _ => answer(200, &[], b"hello"),
    });
    let (budget, tell_again) = (Duration::from_millis(200), Duration::from_millis(200));
    let timing = Timing { budget, tell_again, ..quick() };
    let begun = Instant::now();
    assert_eq!(link(&service.address, timing, &told).bytes(Ask::get("/x"), 5).unwrap(), b"hello");
    // A failure after it has the whole budget.
    assert!(begun.elapsed() > 2 * budget && service.asked().len() == 17);
    let texts = told.texts();
    let waits = texts.iter().filter(|text| text.starts_with("waiting: a free place at the service: d"));
    assert!(waits.count() > 1, "{texts:?}");
    // That has a bound too.
    let timing = Timing { queue: Duration::from_millis(200), ..quick() };
    let refused = link(&service.address, timing, &told).bytes(Ask::get("/always"), 5);
    assert!(matches!(refused, Err(RemoteError::Refused { .. })), "{refused:?}");
}

#[test]
fn what_is_not_to_be_done_twice_is_asked_again_only_if_the_service_refused_it() {
    let service = Scripted::new(|_, number| match number {
        0 => answer(429, &["Retry-After: 0"], problem(429, "too_many").as_bytes()),
        1 => answer(503, &[], problem(503, "unavailable").as_bytes()),
        2 => answer(200, &[], b"7"),
        3 => raw(""),
        _ => answer(504, &[], b""),
    });
    let link = link(&service.address, quick(), &Arc::default());
    assert_eq!(link.document_once::<u32>("/x", &()).unwrap(), 7);
    for asked in [4, 5] {
        let lost = link.document_once::<u32>("/x", &()).unwrap_err();
        assert!(lost.may_be_done() && service.asked().len() == asked, "{lost}");
    }
    let nobody = super::link("http://127.0.0.1:1", quick(), &Arc::default());
    assert!(!nobody.document_once::<u32>("/x", &()).unwrap_err().may_be_done());
}

#[test]
fn a_stop_ends_a_wait() {
    let service = Scripted::new(|_, _| answer(503, &["Retry-After: 1000"], b""));
    let timing = Timing { budget: Duration::from_mins(10), longest_pause: Duration::from_mins(5), ..quick() };
    let stop = Arc::new(AtomicBool::new(false));
    let link = link(&service.address, timing, &Arc::default()).stopped_by(&[Arc::clone(&stop)]);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| link.bytes(Ask::get("/x"), 5));
        while service.asked().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, std::sync::atomic::Ordering::Release);
        // It would wait for ten minutes.
        assert!(matches!(asked.join().unwrap(), Err(RemoteError::Stopped { .. })));
    });
}

#[test]
fn a_link_without_patience_ends_soon_with_a_service_that_accepts_and_says_nothing() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::of_url(&format!("http://{}", silent.local_addr().unwrap()));
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let patience = Duration::from_millis(200);
        let once = RemoteRepository::without_patience(
            address,
            &Credentials::default(),
            Arc::<Told>::default(),
            patience,
        );
        let _ = ended.send(once.unwrap().send_once::<serde_json::Value>("/x", &serde_json::json!({})));
    });
    let error = end.recv_timeout(Duration::from_secs(20)).unwrap().unwrap_err();
    assert!(matches!(error, RemoteError::Unreachable { .. }) && error.may_be_done(), "{error}");
}
