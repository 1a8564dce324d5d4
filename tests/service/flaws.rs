//! Flaws of a source over the service: the client finds them, and the commit carries them.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Served, disk, ekko};
use crate::tokens::token;

/// A process that has a file open for writing until its input ends.
fn holder(path: &Path) -> Child {
    let script = format!("exec 3<>'{}'; echo ready; read line", path.display());
    let mut sh = Command::new("sh");
    let mut child = sh.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    child
}

fn list(served: &Served) -> Value {
    let output = ekko(&served.repository(), &["--json", "list"]);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn an_inconsistent_source_is_marked_and_a_shrunk_disk_is_told_over_the_service_too() {
    let served = Served::new();
    let path = served.folder().join("web.raw");
    std::fs::write(&path, disk(1, 5 << 16)).unwrap();
    let source = format!("web={}", path.display());
    let backup = || ekko(&served.repository(), &["-q", "--json", "backup", &source]);
    let mut holder = holder(&path);
    let output = backup();
    assert_eq!(output.status.code(), Some(3));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains(
            "this backup of web is inconsistent: it was in use while it was read: open for writing by process"
        ),
        "{told}"
    );
    let row = list(&served)["backups"][0].clone();
    assert!(row["inconsistent"].as_str().unwrap().contains("open for writing"), "{row}");
    let show = ekko(&served.repository(), &["--json", "show", "web"]);
    let show: Value = serde_json::from_slice(&show.stdout).unwrap();
    assert!(show["attributes"]["inconsistent"].as_str().unwrap().contains("open for writing"), "{show}");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    assert_eq!(backup().status.code(), Some(0));
    assert_eq!(list(&served)["backups"][1].get("inconsistent"), None);
    std::fs::write(&path, b"").unwrap();
    let output = backup();
    assert_eq!(output.status.code(), Some(3));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["backups"][0]["shrank_from"], 5 << 16);
}

#[test]
fn flaws_that_no_disk_can_have_are_refused_and_others_are_recorded() {
    let served = Served::new();
    let ask = |path: &str, body: &Value| served.owner("POST", path, &[], Some(body));
    let begin = |size: u64| {
        let body = json!({ "name": "blue:web", "size_of_disk": size, "format": "raw" });
        let answer = ask("/v1/sessions", &body);
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
        format!("/v1/sessions/{}/commit?parts=0", answer.json()["session"].as_str().unwrap())
    };
    let commit = begin(10 << 16);
    let range = |offset: u64, length: u64| json!({ "offset": offset, "length": length });
    let many: Vec<_> = (0..1025).map(|number| range(2 * number, 1)).collect();
    for flaws in [
        json!({ "inconsistent": "" }),
        json!({ "inconsistent": "a\nb" }),
        json!({ "unreadable": [range(0, 0)] }),
        json!({ "unreadable": [range(0, 11 << 16)] }),
        json!({ "unreadable": [range(u64::MAX, 2)] }),
        json!({ "unreadable": [range(512, 512), range(0, 512)] }),
        json!({ "unreadable": many }),
        json!({ "other": 1 }),
    ] {
        let answer = ask(&commit, &flaws);
        assert_eq!((answer.status, answer.kind().as_str()), (400, "invalid"), "{flaws}");
    }
    let flaws = json!({ "inconsistent": "it grew", "unreadable": [range(512, 512), range(4096, 1024)] });
    assert_eq!(ask(&commit, &flaws).status, 200);
    let row = list(&served)["backups"][0].clone();
    assert_eq!((&row["inconsistent"], &row["unreadable_bytes"]), (&"it grew".into(), &1536.into()));
    // A restore over the network tells of both.
    let token = token(&served.repository(), "blue", "restore");
    let restore = |flag: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
        command.env("EKKO_REPOSITORY", &served.address).env("EKKO_TOKEN", &token);
        command.args([flag, "restore", "--force", "web"]).arg(served.folder().join("out")).output().unwrap()
    };
    let output = restore("-q");
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("warning: web@0 is inconsistent: it grew"), "{told}");
    assert!(told.contains("web@0 has zeros in place of 1.5 KiB that could not be read"), "{told}");
    let document: Value = serde_json::from_slice(&restore("--json").stdout).unwrap();
    assert_eq!(document["never_read"], json!([range(512, 512), range(4096, 1024)]));
}
