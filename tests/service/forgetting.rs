//! Policies and periods over the service: they mean there what they mean in a local command.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::between::{Fate, run_between};
use crate::harness::{Served, disk, ekko, ekko_done};
use crate::tokens::token;

/// Makes a backup more of `blue:web`.
fn back_up(served: &Served, seed: u64) {
    let source = served.folder().join("disk");
    std::fs::write(&source, disk(seed, 100_000)).unwrap();
    ekko_done(&served.repository(), &["-q", "backup", &format!("blue:web={}", source.display())]);
}

fn names(served: &Served) -> Vec<String> {
    let list = served.owner("GET", "/v1/backups", &[], None).json();
    let row = |row: &serde_json::Value| row["backup"].as_str().unwrap().to_owned();
    list["backups"].as_array().unwrap().iter().map(row).collect()
}

/// Answers a request with a refusal, so that the command ends.
const REFUSED: &str = r#"{"kind":"invalid","status":400,"title":"x","detail":"seen","request_id":"1"}"#;

#[test]
fn a_period_of_minutes_is_one_of_minutes_for_the_service_too() {
    let served = Served::new();
    let blue = token(&served.repository(), "blue", "admin");
    (0..3).for_each(|seed| back_up(&served, seed));
    // The owner's commands go through the socket.
    let kept = ekko_done(&served.repository(), &["forget", "--keep-within", "30m", "--yes"]);
    assert!(kept.contains("deleted 0 backups, 3 kept"), "{kept}");
    let (output, _) =
        run_between(&served, &blue, &["forget", "--keep-within", "90s", "-n"], |_, _| Fate::Pass);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("would delete 0 backups, 3 kept"), "{text}");
    let status = ekko(&served.repository(), &["status", "--max-age", "30m"]);
    assert_eq!(status.status.code(), Some(0), "{}", String::from_utf8_lossy(&status.stdout));
    // Parts of a second, and more than 9,999 hours.
    for (said, sent) in [("30m", "PT30M"), ("1500ms", "PT1.5S"), ("36500d", "PT876000H")] {
        for (arguments, place) in [
            (["gc", "--keep-unfinished", said, "-n"], format!("\"keep_unfinished\":\"{sent}\"")),
            (["forget", "--keep-within", said, "-n"], format!("\"within\":\"{sent}\"")),
            (["-q", "status", "--max-age", said], format!("max_age={sent}")),
        ] {
            let (_, asked) = run_between(&served, &blue, &arguments, |_, _| Fate::Answered(400, REFUSED));
            let all = format!("{} {}", asked[0].what, String::from_utf8_lossy(&asked[0].body));
            assert!(all.contains(&place), "{arguments:?}: {all}");
        }
    }
}

#[test]
fn a_policy_deletes_the_backups_that_a_person_saw_and_no_others() {
    let served = Served::new();
    let blue = token(&served.repository(), "blue", "operator");
    (0..3).for_each(|seed| back_up(&served, seed));
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap();
    let terminal = File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap();
    let mut master = File::from(master);
    let mut forget = |meanwhile: &dyn Fn()| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ekko"))
            .env("EKKO_REPOSITORY", &served.address)
            .env("EKKO_TOKEN", &blue)
            .args(["forget", "web", "--keep-last", "1"])
            .stdin(Stdio::from(OwnedFd::from(terminal.try_clone().unwrap())))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut said, mut byte) = (String::new(), [0]);
        let mut stderr = child.stderr.take().unwrap();
        while !said.ends_with("[y/N] ") {
            assert_eq!(stderr.read(&mut byte).unwrap(), 1, "{said}");
            said.push(char::from(byte[0]));
        }
        assert!(said.contains("Delete 2 backups?"), "{said}");
        meanwhile();
        master.write_all(b"y\n").unwrap();
        stderr.read_to_string(&mut said).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code().unwrap(), format!("{said}{}", String::from_utf8(output.stdout).unwrap()))
    };
    let (code, text) = forget(&|| back_up(&served, 3));
    assert_eq!((code, names(&served).len()), (11, 4), "{text}");
    assert!(text.contains("nothing was deleted: the backups have changed since they were shown"), "{text}");
    assert!(text.contains("run the command again"), "{text}");
    ekko_done(&served.repository(), &["delete", "blue:web@0", "--yes"]);
    let (code, text) = forget(&|| {});
    assert_eq!((code, names(&served)), (0, vec!["blue:web@3".to_owned()]), "{text}");
}
