//! Machines over the network: a moment and the backups of its disks stay together.

use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::{Served, disk, ekko, ekko_done};
use crate::tokens::token;

/// Serves a repository with moments of a machine of two disks.
fn served(moments: usize) -> Served {
    Served::with(&[], |repository| {
        let sources = [1, 2].map(|seed| {
            let path = repository.with_file_name(format!("disk{seed}"));
            std::fs::write(&path, disk(seed, 200_000)).unwrap();
            format!("blue:web/vd{seed}={}", path.display())
        });
        for _ in 0..moments {
            ekko_done(repository, &["-q", "backup", "--machine", "blue:web", &sources[0], &sources[1]]);
        }
    })
}

fn run(served: &Served, token: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
    command.env("EKKO_REPOSITORY", &served.address).env("EKKO_TOKEN", token).args(arguments);
    command.output().unwrap()
}

fn names(served: &Served) -> Vec<String> {
    let list = served.owner("GET", "/v1/backups", &[], None).json();
    let row = |row: &Value| row["backup"].as_str().unwrap().to_owned();
    list["backups"].as_array().unwrap().iter().map(row).collect()
}

#[test]
fn a_moment_and_its_disks_stay_together_over_the_network() {
    let served = served(3);
    let token = token(&served.repository(), "blue", "operator");
    let done = |arguments: &[&str]| {
        let output = run(&served, &token, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let refused = run(&served, &token, &["delete", "web/vd1@0"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{why}");
    assert!(why.contains("\"ekko delete --machine web@0\"") && !why.contains("blue:"), "{why}");
    // Those of each moment at one moment.
    let text = done(&["delete", "--machine", "web@0-1"]);
    assert!(text.contains("deleted 6 backups\n"), "{text}");
    assert_eq!(names(&served), ["blue:web@2", "blue:web/vd1@2", "blue:web/vd2@2"]);
    // A policy that refuses a name ends no period.
    let typo = run(&served, &token, &["forget", "--keep-tag", "typo", "--gc"]);
    let why = String::from_utf8_lossy(&typo.stderr).into_owned();
    assert!(typo.status.code() == Some(1) && why.contains("no space was freed"), "{why}");
    done(&["undelete", "web@0"]);
    assert_eq!(names(&served).len(), 6);
    done(&["protect", "web@0"]);
    let kept = done(&["--json", "forget", "--keep-last", "1"]);
    assert!(kept.contains("part of web@0"), "{kept}");
    assert_eq!(names(&served).len(), 6);
    done(&["unprotect", "web@0"]);
    done(&["forget", "web", "--keep-last", "1", "--gc"]);
    assert_eq!(names(&served), ["blue:web@2", "blue:web/vd1@2", "blue:web/vd2@2"]);
    let out = served.folder().join("out");
    ekko_done(&served.repository(), &["restore", "--machine", "blue:web@2", out.to_str().unwrap()]);
}

#[test]
fn a_policy_over_the_network_counts_intact_backups() {
    let served = Served::with(&[], |repository| {
        let path = repository.with_file_name("disk");
        let source = format!("blue:web={}", path.display());
        for (length, code) in [(200_000, 0), (0, 3), (0, 0)] {
            std::fs::write(&path, disk(1, length)).unwrap();
            assert_eq!(ekko(repository, &["-q", "backup", &source]).status.code(), Some(code));
        }
    });
    let token = token(&served.repository(), "blue", "operator");
    let status = run(&served, &token, &["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert_eq!(status.status.code(), Some(3), "{text}");
    assert!(text.contains("web: its newest backup has 0 bytes, and the disk of web@0 had 200000"), "{text}");
    let forgotten = run(&served, &token, &["--json", "forget", "--keep-last", "1", "--gc"]);
    let plan: Value = serde_json::from_slice(&forgotten.stdout).unwrap();
    assert_eq!(plan["deleted"][0]["backup"], "web@1");
    let kept =
        plan["kept"].as_array().unwrap().iter().map(|row| (row["backup"].as_str(), row["flaw"].as_str()));
    assert_eq!(kept.collect::<Vec<_>>(), [(Some("web@0"), None), (Some("web@2"), Some("empty"))]);
    assert_eq!(names(&served), ["blue:web@0", "blue:web@2"]);
}
