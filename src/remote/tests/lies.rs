//! Answers that are meant to harm.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use crate::remote::RemoteError;
use crate::remote::link::Ask;
use crate::remote::tests::scripted::{Answer, Scripted, answer, head, raw};
use crate::remote::tests::{link, quick};

/// Asks once for at most five bytes, and returns the failure.
fn failure(answer: impl Fn() -> Answer + Send + Sync + 'static) -> RemoteError {
    let service = Scripted::new(move |_, _| answer());
    let link = link(&service.address, quick(), &Arc::default());
    link.bytes(Ask::get("/x"), 5).unwrap_err()
}

#[test]
fn a_redirect_is_not_followed_and_the_token_goes_nowhere() {
    let other = Scripted::new(|_, _| answer(200, &[], b"hello"));
    for status in [301, 302, 303, 307, 308] {
        let location = format!("Location: {}/x\u{1}", other.address);
        let location = location.trim_end_matches('\u{1}').to_owned();
        let error = failure(move || answer(status, &[&location], b""));
        assert!(
            matches!(&error, RemoteError::Redirected { to, .. } if *to == format!("{}/x", other.address))
        );
    }
    assert_eq!(other.asked().len(), 0);
}

#[test]
fn an_endless_body_ends_with_its_bound() {
    let endless = || -> Answer {
        Box::new(|stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[b'x'; 1 << 13])?;
            }
        })
    };
    let error = failure(endless);
    assert!(
        matches!(&error, RemoteError::Misunderstood { what, .. } if what.contains("more than 5 bytes")),
        "{error}"
    );
    // So does that of a refusal.
    let error = failure(|| -> Answer {
        Box::new(|stream| {
            stream.write_all(b"HTTP/1.1 403 X\r\nConnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[b'x'; 1 << 13])?;
            }
        })
    });
    assert!(matches!(error, RemoteError::NotAService { status: 403, .. }), "{error}");
}

#[test]
fn an_endless_header_ends_with_its_bound() {
    let error = failure(|| -> Answer {
        Box::new(|stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nX: ")?;
            loop {
                stream.write_all(&[b'x'; 1 << 13])?;
            }
        })
    });
    assert!(matches!(error, RemoteError::Unreachable { .. }), "{error}");
}

#[test]
fn a_body_is_as_long_as_it_was_said_to_be_or_is_none() {
    let error = failure(|| raw([head(200, &[], 5).as_bytes(), b"hell"].concat()));
    assert!(matches!(error, RemoteError::Unreachable { .. }), "{error}");
    let error = failure(|| raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhell\r\n"));
    assert!(matches!(error, RemoteError::Unreachable { .. }), "{error}");
    let error = failure(|| raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhell\r\n"));
    assert!(matches!(error, RemoteError::Unreachable { .. }), "{error}");
    // What follows a body belongs to no other request.
    let service = Scripted::new(|_, number| match number {
        0 => raw(
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong",
        ),
        _ => answer(200, &[], b"right"),
    });
    let link = link(&service.address, quick(), &Arc::default());
    assert_eq!(link.bytes(Ask::get("/x"), 5).unwrap(), b"hello");
    assert_eq!(link.bytes(Ask::get("/y"), 5).unwrap(), b"right");
}

#[test]
fn a_web_page_and_a_compressed_answer_are_no_answers() {
    let error = failure(|| answer(200, &["Content-Type: text/html; charset=utf-8"], b"<html>"));
    assert!(matches!(error, RemoteError::NotAService { status: 200, .. }), "{error}");
    let error = failure(|| answer(200, &["Content-Encoding: gzip"], b"hello"));
    assert!(error.to_string().contains("compresses"), "{error}");
    let service = Scripted::new(|_, _| answer(200, &["Content-Encoding: identity"], b"hello"));
    assert!(link(&service.address, quick(), &Arc::default()).bytes(Ask::get("/x"), 5).is_ok());
}

#[test]
fn an_answer_that_drips_is_not_waited_for() {
    for begin in ["HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", "HTTP/1.1 200 OK\r\nX: "] {
        let service = Scripted::new(move |_, _| -> Answer {
            Box::new(move |stream| {
                stream.write_all(begin.as_bytes())?;
                loop {
                    std::thread::sleep(Duration::from_millis(50));
                    stream.write_all(b"x")?;
                }
            })
        });
        let link = link(&service.address, quick(), &Arc::default());
        let error = link.bytes(Ask::get("/x"), 100_000).unwrap_err();
        assert!(matches!(error, RemoteError::Unreachable { .. }), "{error}");
    }
}
