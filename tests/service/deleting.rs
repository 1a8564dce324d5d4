//! Deletions and protections over the network: they change only the backups that were looked up first.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::between::{Fate, run_between};
use crate::harness::{Served, disk, ekko, ekko_done};
use crate::tokens::token;

/// Makes a backup more of `web`, each of another disk.
fn back_up(served: &Served) {
    let source = served.folder().join("disk");
    let seed = std::fs::metadata(&source).map_or(1, |it| it.len());
    std::fs::write(&source, disk(seed, usize::try_from(seed).unwrap() + 70_000)).unwrap();
    ekko_done(&served.repository(), &["-q", "backup", &format!("blue:web={}", source.display())]);
}

fn run(address: &str, token: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
    command.env("EKKO_REPOSITORY", address).env("EKKO_TOKEN", token).args(arguments);
    command.output().unwrap()
}

fn names(served: &Served) -> Vec<String> {
    let list = served.owner("GET", "/v1/backups", &[], None).json();
    let row = |row: &serde_json::Value| row["backup"].as_str().unwrap().to_owned();
    list["backups"].as_array().unwrap().iter().map(row).collect()
}

#[test]
fn a_backup_that_is_named_twice_is_deleted_once() {
    let served = Served::new();
    let token = token(&served.repository(), "blue", "operator");
    (0..3).for_each(|_| back_up(&served));
    let output = run(&served.address, &token, &["delete", "web@2-9", "web@2"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("deleted 1 backup\n"), "{text}");
    assert_eq!(names(&served), ["blue:web@0", "blue:web@1"]);
}

/// Runs a command over a line. After the first request, by which a backup is looked up, another one is made; the first answer to each
/// change is lost. Returns the output and the requests.
fn run_over(served: &Served, arguments: &[&str]) -> (String, Vec<String>) {
    let token = token(&served.repository(), "blue", "operator");
    let asked = AtomicUsize::new(0);
    let (output, asked) = run_between(served, &token, arguments, |what, before| {
        if asked.fetch_add(1, Ordering::SeqCst) == 1 {
            back_up(served);
        }
        let is_change = !what.starts_with("GET") && !what.ends_with("dry_run=true");
        if is_change && before == 0 { Fate::Lost } else { Fate::Pass }
    });
    let asked: Vec<_> = asked.into_iter().map(|it| it.what).collect();
    assert!(output.status.success(), "{asked:?}: {}", String::from_utf8_lossy(&output.stderr));
    (String::from_utf8(output.stdout).unwrap(), asked)
}

#[test]
fn a_deletion_whose_answer_is_lost_deletes_what_was_shown_and_nothing_else() {
    let served = Served::new();
    (0..2).for_each(|_| back_up(&served));
    let (output, asked) = run_over(&served, &["delete", "web@1-9"]);
    assert_eq!(asked.iter().filter(|it| it.ends_with("dry_run=false")).count(), 2, "{asked:?}");
    assert_eq!(names(&served), ["blue:web@0", "blue:web@2"]);
    assert!(output.contains("deleted 1 backup\n"), "{output}");
    // Neither a bare name nor "latest" is taken, by the service either.
    for name in ["web", "web%40latest"] {
        let path = format!("/v1/backups/blue%3A{name}");
        assert_eq!(served.owner("DELETE", &path, &[], None).status, 400, "{name}");
    }
    assert_eq!(names(&served).len(), 2);
}

#[test]
fn protecting_the_latest_backup_changes_one_backup_however_often_it_is_asked_for() {
    let served = Served::new();
    back_up(&served);
    let is_protected = |name: &String| {
        let path = format!("/v1/backups/{}", name.replace(':', "%3A"));
        served.owner("GET", &path, &[], None).json()["protected"] == true
    };
    let protected = || names(&served).into_iter().filter(is_protected).collect::<Vec<_>>();
    let changes = |asked: &[String]| asked.iter().filter(|it| !it.starts_with("GET")).count();
    let (output, asked) = run_over(&served, &["protect", "web@latest"]);
    assert_eq!((changes(&asked), protected()), (2, vec!["blue:web@0".to_owned()]), "{asked:?}");
    assert_eq!(output, "web@0 is protected\n");
    // All are protected, and the latest is not any longer.
    for backup in ["blue:web@0", "blue:web@1"] {
        ekko_done(&served.repository(), &["protect", backup]);
    }
    let (output, asked) = run_over(&served, &["unprotect", "web"]);
    assert_eq!((changes(&asked), protected()), (2, vec!["blue:web@0".to_owned()]), "{asked:?}");
    assert_eq!(output, "web@1 is not protected\n");
}

#[test]
fn an_undeletion_restores_all_that_one_command_names_or_none_and_says_so_though_an_answer_is_lost() {
    let served = Served::new();
    let blue = token(&served.repository(), "blue", "operator");
    (0..2).for_each(|_| back_up(&served));
    let source = served.folder().join("disk");
    ekko_done(&served.repository(), &["-q", "backup", &format!("blue:db={}", source.display())]);
    let delete = || ekko_done(&served.repository(), &["delete", "blue:web@0", "blue:db@0", "--yes"]);
    delete();
    let output = run(&served.address, &blue, &["undelete", "web@0", "db@0", "web@7"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(names(&served), ["blue:web@1"], "{}", String::from_utf8_lossy(&output.stderr));
    // Through the socket as well.
    let output = ekko(&served.repository(), &["undelete", "blue:web@0", "blue:db@3"]);
    assert_eq!((output.status.code(), names(&served)), (Some(1), vec!["blue:web@1".to_owned()]));
    let lose_first =
        |what: &str, before| if what.starts_with("POST") && before == 0 { Fate::Lost } else { Fate::Pass };
    let (output, asked) = run_between(&served, &blue, &["undelete", "web@0", "db@0"], lose_first);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!((output.status.code(), asked.len()), (Some(0), 2), "{text}");
    assert_eq!(names(&served), ["blue:db@0", "blue:web@0", "blue:web@1"]);
    assert_eq!(
        text,
        "web@0 is not deleted: a request whose answer was lost has undeleted it, or it was not deleted before\n\
         db@0 is not deleted: a request whose answer was lost has undeleted it, or it was not deleted before\n"
    );
    // The service never answers.
    delete();
    let refuse = |_: &str, before| match before {
        0 => Fate::Lost,
        _ => Fate::Answered(
            400,
            r#"{"kind":"invalid","status":400,"title":"x","detail":"no","request_id":"1"}"#,
        ),
    };
    let (output, _) = run_between(&served, &blue, &["undelete", "web@0"], refuse);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("; the service may have done it all the same: \"ekko list\" shows"), "{text}");
}
