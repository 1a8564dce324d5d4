//! What is not what it seems.

use std::fmt::Write as _;

use std::io::{Read, Write};
use std::time::Duration;

use super::{Target, status_of};

#[test]
fn paths_lead_nowhere_but_to_names() {
    let mut target = Target::new("");
    let good = target.token.clone();
    let mut names: Vec<String> = [
        "../red:db",
        "..",
        ".",
        "%2e%2e",
        "%2e%2e%2fred:db",
        "..%2f..%2ftokens.toml",
        "web%00@0",
        "%00",
        "web@0%00",
        "web%2f..%2fdb",
        "%c0%ae%c0%ae",
        "%c0%af",
        "%ff",
        "%e0%80%ae",
        "%",
        "%zz",
        "web@",
        "@0",
        "web@-1",
        "web@4294967296",
        "web@0@0",
        "web@0/..",
        "web@0//",
        "%2Fetc%2Fpasswd",
        "web%0d%0aX: 1",
        "web;db@0",
        "web@0%20",
        "%20web@0",
        "web@0\\",
        "..\\red:db",
        "WEB@0",
        "red%3adb@0",
        "%72ed:db@0",
        "web@latest%00",
        "\u{202e}bew@0",
        "web@٠",
    ]
    .map(str::to_owned)
    .to_vec();
    names.push(format!("{}@0", "x".repeat(5000)));
    for name in names {
        for path in
            [format!("/v1/backups/{name}"), format!("/v1/backups/{name}/data"), format!("/{name}/v1/backups")]
        {
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {good}\r\n\r\n"
            );
            let answer = target.raw(request.as_bytes());
            let status = status_of(&answer);
            assert!([400, 404].contains(&status), "{path}: {answer}");
            assert!(!answer.contains("size_of_disk") && !answer.contains("root:"), "{path}: {answer}");
        }
    }
    target.still_serves();
}

#[test]
fn a_request_is_not_hidden_in_another() {
    let mut target = Target::new("");
    let good = target.token.clone();
    let hidden = format!("GET /v1/images HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {good}\r\n\r\n");
    let head = "POST /healthz HTTP/1.1\r\nHost: x\r\n";
    let length = hidden.len() + 5;
    // Where it is not clear where a request ends, nothing behind it is answered: the connection is closed.
    for (lines, body, refused) in [
        (format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"), "0\r\n\r\n", false),
        (format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"), "0\r\n\r\n", false),
        ("Content-Length: 0\r\nContent-Length: 5\r\n".to_owned(), "", true),
        ("Content-Length: 0, 5\r\n".to_owned(), "", true),
        ("Transfer-Encoding: identity\r\n".to_owned(), "", true),
        ("Transfer-Encoding: chunked, identity\r\n".to_owned(), "0\r\n\r\n", true),
        ("Transfer-Encoding: xchunked\r\n".to_owned(), "0\r\n\r\n", true),
        ("Transfer-Encoding : chunked\r\n".to_owned(), "0\r\n\r\n", true),
        ("Content-Length : 5\r\n".to_owned(), "", true),
        ("Transfer-Encoding: chunked\r\n".to_owned(), "zz\r\n\r\n", false),
        ("Transfer-Encoding: chunked\r\n".to_owned(), "ffffffffffffffffff\r\n\r\n", false),
        ("X: 1\r\n folded: 1\r\nContent-Length: 0\r\n".to_owned(), "", true),
        ("X\0: 1\r\n".to_owned(), "", true),
    ] {
        let answer = target.raw(format!("{head}{lines}\r\n{body}{hidden}").as_bytes());
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{lines:?}: {answer}");
        assert!(!answer.contains("\"images\""), "{lines:?}: {answer}");
        let expected: &[u16] = if refused { &[400] } else { &[400, 405] };
        assert!(expected.contains(&status_of(&answer)), "{lines:?}: {answer}");
    }
    let old = format!("POST /healthz HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}");
    assert_eq!(status_of(&target.raw(old.as_bytes())), 400);
    target.still_serves();
}

#[test]
fn a_request_without_its_host_or_with_two_is_refused_and_is_the_last_of_its_connection() {
    let mut target = Target::new("");
    let hidden = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for (version, hosts) in [
        ("1.1", ""),
        ("1.1", "Host: a\r\nHost: a\r\n"),
        ("1.1", "Host: a b\r\n"),
        ("1.1", "Host: a/b\r\n"),
        ("1.1", "Host: u@a\r\n"),
        ("1.0", "Host: a\r\nHost: b\r\n"),
    ] {
        let answer = target.raw(format!("GET /healthz HTTP/{version}\r\n{hosts}\r\n{hidden}").as_bytes());
        assert_eq!(status_of(&answer), 400, "{hosts:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{hosts:?}: {answer}");
    }
    for (version, hosts) in [("1.1", "Host: \r\n"), ("1.1", "Host: [::1]:6800\r\n"), ("1.0", "")] {
        let answer =
            target.raw(format!("GET /healthz HTTP/{version}\r\n{hosts}Connection: close\r\n\r\n").as_bytes());
        assert_eq!(status_of(&answer), 200, "{hosts:?}: {answer}");
    }
    target.still_serves();
}

#[test]
fn what_is_no_http_is_not_answered_for_long() {
    let mut target = Target::new("[limits]\nheader_seconds = 1\n");
    let mut tls = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    tls.extend([7; 100]);
    let noise: Vec<u8> =
        (0..100_000u32).map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
    for bytes in [
        &tls[..],
        &noise,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
    ] {
        let answer = target.raw(bytes);
        assert!(answer.is_empty() || status_of(&answer) >= 400, "{answer}");
    }
    let mut methods = String::new();
    for method in ["TRACE", "CONNECT", "PROPFIND", "get", "DELETE"] {
        let answer = target
            .raw(format!("{method} /v1/images HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes());
        write!(methods, "{} ", status_of(&answer)).unwrap();
    }
    assert!(methods.split_whitespace().all(|status| status.starts_with('4')), "{methods}");
    target.still_serves();
}

/// Reads one answer without a body that is longer than it says.
fn answer(stream: &mut std::net::TcpStream) -> String {
    let mut text = String::new();
    let mut byte = [0];
    while !text.ends_with("\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "the connection ended: {text}");
        text.push(byte[0].into());
    }
    let length =
        text.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap()];
    stream.read_exact(&mut body).unwrap();
    text
}

#[test]
fn a_refused_request_with_a_body_does_not_break_the_next_one() {
    let target = Target::new("");
    let head = |token: &str, more: &str, length: usize| {
        format!(
            "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{more}\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let ends = |answer: &str| answer.to_lowercase().contains("connection: close");
    // The bodies come later than the heads, as most clients send them.
    let mut stream = target.connect();
    for _ in 0..3 {
        stream.write_all(head("wrong", "", 1000).as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        stream.write_all(&[b'x'; 1000]).unwrap();
        let answer = answer(&mut stream);
        assert_eq!((status_of(&answer), ends(&answer)), (401, false), "{answer}");
    }
    // A long body, one that does not come, and one that waits for a word are not read: the client learns that it must connect
    // again.
    for (more, sent) in [("", 100 << 10), ("", 0), ("Expect: 100-continue\r\n", 0)] {
        let mut stream = target.connect();
        stream.write_all(head("wrong", more, 1 << 20).as_bytes()).unwrap();
        stream.write_all(&vec![b'x'; sent]).unwrap();
        let answer = answer(&mut stream);
        assert_eq!((status_of(&answer), ends(&answer)), (401, true), "{answer}");
    }
}
