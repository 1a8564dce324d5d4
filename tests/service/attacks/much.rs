//! Too much, too long, or for too long.

use std::io::Write;
use std::time::{Duration, Instant};

use super::{Target, all_of, status_of};
use crate::tokens::token;

#[test]
fn one_token_that_asks_too_fast_is_told_to_wait_and_another_is_not() {
    let mut target = Target::new("[limits]\nrequests_per_second = 2\n");
    let fast = token(&target.served.repository(), "blue", "restore");
    let status = |token: &str| target.served.ask("GET", "/v1/images", Some(token), None).status;
    let told = (0..40).filter(|_| status(&fast) == 429).count();
    assert!(told > 20, "{told}");
    target.still_serves();
}

/// Returns how many descriptors this process may still open, `wanted` at most, leaving some to others.
fn descriptors(wanted: u64) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let has = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(wanted.min(has.saturating_sub(500))).unwrap()
}

#[test]
fn ten_thousand_silent_connections_keep_nobody_out() {
    let mut target = Target::new("");
    let many = descriptors(10_000);
    let mut silent = Vec::with_capacity(many);
    for number in 0..many {
        silent.push(target.connect());
        if number % 1000 == 0 {
            assert_eq!(target.served.get("/healthz").status, 200, "after {number}");
        }
    }
    target.still_serves();
    let process = target.served.process().id();
    let open = || std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    // Those that made room are closed, if not at once.
    let until = Instant::now() + Duration::from_secs(20);
    while open() > 256 + 100 {
        assert!(Instant::now() < until, "{} descriptors are open, of {many} connections", open());
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(silent);
    target.still_serves();
}

#[test]
fn who_says_nothing_or_says_it_slowly_is_let_go() {
    let mut target = Target::new("[limits]\nheader_seconds = 1\n");
    let begun = Instant::now();
    let mut silent = target.connect();
    let mut kept = target.connect();
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut slow = target.connect();
    let mut sent = 0;
    // A byte now and then does not help.
    while slow.write_all(if sent == 0 { b"GET / HTTP/1.1\r\n" } else { b"X" }).is_ok() {
        sent += 1;
        std::thread::sleep(Duration::from_millis(100));
        assert!(begun.elapsed() < Duration::from_secs(20), "it is still heard");
    }
    assert_eq!(all_of(&mut silent), "");
    assert_eq!(status_of(&all_of(&mut kept)), 200);
    assert!(begun.elapsed() < Duration::from_secs(20));
    target.still_serves();
}

#[test]
fn a_slow_body_is_not_waited_for() {
    let mut target = Target::new("[limits]\nbody_seconds = 1\n");
    let mut stream = target.connect();
    let good = token(&target.served.repository(), "blue", "operator");
    write!(
        stream,
        "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {good}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"
    )
    .unwrap();
    let begun = Instant::now();
    let answer = all_of(&mut stream);
    // What is not there is told so before.
    let expected = if target.can_be_asked("POST", "/v1/jobs") { 408 } else { 404 };
    assert_eq!(status_of(&answer), expected, "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(15));
    target.still_serves();
}

#[test]
fn a_header_without_an_end_is_refused_before_it_takes_memory() {
    let mut target = Target::new("");
    for begin in ["GET / HTTP/1.1\r\nX-Long: ", "GET /", "G", "GET / HTTP/1.1\r\n"] {
        let mut stream = target.connect();
        stream.write_all(begin.as_bytes()).unwrap();
        let piece = if begin.ends_with("\r\n") { "X-Many: 1\r\n".repeat(4096) } else { "a".repeat(64 << 10) };
        // Ten gigabytes, if it took them.
        let mut sent = 0;
        while sent < 10 << 30 && stream.write_all(piece.as_bytes()).is_ok() {
            sent += piece.len();
        }
        assert!(sent < 16 << 20, "{sent} bytes of {begin:?} were taken");
        // The answer may have been overtaken by the connection's end.
        let answer = all_of(&mut stream);
        assert!(answer.is_empty() || [400, 414, 431].contains(&status_of(&answer)), "{begin:?}: {answer}");
    }
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}", "a".repeat(64 << 10));
    let mut stream = target.connect();
    stream.write_all(&long.as_bytes()[..40 << 10]).unwrap();
    assert_eq!(status_of(&all_of(&mut stream)), 431);
    target.still_serves();
}

#[test]
fn a_body_that_is_said_to_be_huge_takes_nothing() {
    let mut target = Target::new("");
    let good = target.token.clone();
    for length in [
        "9223372036854775807",
        "18446744073709551615",
        "99999999999999999999999",
        "-1",
        "+5",
        "0x10",
        "5 5",
        "",
    ] {
        for method in ["GET", "POST"] {
            let request = format!(
                "{method} /v1/backups HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {good}\r\nContent-Length: {length}\r\n\r\n{{"
            );
            let status = status_of(&target.raw(request.as_bytes()));
            // A GET of a list does not read a body, however long it is said to be.
            let fine = method == "GET" && status == 200 && length.starts_with(['9', '1']);
            assert!(fine || [400, 405, 413, 431].contains(&status), "{method} of {length}: {status}");
        }
    }
    target.still_serves();
}
