//! Failed backups that a client reports to the service, for `ekko status`.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::between::{Fate, run_between};
use crate::harness::Served;
use crate::tokens::token;

const TOO_MANY: &str =
    r#"{"kind":"too_many","status":429,"title":"x","detail":"too much at once","request_id":"1"}"#;

#[test]
fn a_refused_report_keeps_no_other_failure_from_being_reported() {
    let served = Served::new();
    let blue = token(&served.repository(), "blue", "backup");
    let backup = ["backup", "a=/gone", "b=/gone", "c=/gone"];
    let refuse = |what: &str, _| match what {
        "POST /v1/images/a/failure" => Fate::Answered(429, TOO_MANY),
        _ => Fate::Pass,
    };
    let (output, asked) = run_between(&served, &blue, &backup, refuse);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(asked.iter().filter(|it| it.what.ends_with("/failure")).count(), 3);
    let status = served.ask("GET", "/v1/status", Some(&blue), None).json();
    let names: Vec<_> = status["names"].as_array().unwrap().iter().map(|row| row["name"].clone()).collect();
    assert_eq!(names, ["b", "c"], "{status}");
    // One that cannot be reached is not asked again.
    let (_, asked) = run_between(&served, &blue, &backup, |_, _| Fate::Lost);
    assert_eq!(asked.iter().filter(|it| it.what.ends_with("/failure")).count(), 1);
}

#[test]
fn a_command_says_what_failed_before_it_reports_that_to_a_service_that_is_silent() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
        command.env("EKKO_REPOSITORY", &address).env("EKKO_TOKEN", "ekko_x").args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    // A result as JSON, the list of failures, and the failure of the whole call.
    for (arguments, is_stdout, said) in [
        (&["--json", "backup", "a=/gone"][..], true, "cannot open image /gone"),
        (&["backup", "a=/gone", "b=/gone"], false, "ekko: b: "),
        (&["backup", "--before", "false", "a=/dev/null"], false, "--before"),
    ] {
        let mut child = run(arguments);
        let (connection, _) = silent.accept().unwrap();
        let (line_read, lines) = mpsc::channel();
        let output: Box<dyn Read + Send> = if is_stdout {
            Box::new(child.stdout.take().unwrap())
        } else {
            Box::new(child.stderr.take().unwrap())
        };
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let _ = line_read.send(line.unwrap());
            }
        });
        let mut all = String::new();
        while !all.contains(said) {
            let line = lines.recv_timeout(Duration::from_secs(5));
            let line = line.unwrap_or_else(|_| {
                child.kill().unwrap();
                panic!("{arguments:?} has not said {said:?} while the service is silent: {all}")
            });
            all.push_str(&line);
            all.push('\n');
        }
        drop(connection);
        assert_eq!(child.wait().unwrap().code(), Some(1), "{all}");
        reader.join().unwrap();
        // It was said once.
        let rest: String = lines.iter().collect();
        assert!(!rest.contains(said), "{all}{rest}");
    }
}
