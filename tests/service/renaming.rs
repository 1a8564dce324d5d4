//! Images that are renamed while a backup of them is sent, or very often.

use serde_json::json;

use crate::between::{Fate, run_between};
use crate::harness::{Served, disk, ekko_done};
use crate::tokens::{token, two_projects};

#[test]
fn a_backup_of_an_image_that_is_renamed_meanwhile_is_reported_by_the_name_that_it_has() {
    let served = Served::with(&[], two_projects);
    let blue = token(&served.repository(), "blue", "backup");
    let source = served.folder().join("disk");
    for (from, to, is_lost) in [("web", "www", false), ("www", "shop", true)] {
        std::fs::write(&source, disk(from.len() as u64, 200_000)).unwrap();
        let image = format!("{from}={}", source.display());
        let (output, asked) = run_between(&served, &blue, &["backup", &image], |what, before| {
            if !what.contains("/commit?") || before > 0 {
                return Fate::Pass;
            }
            ekko_done(&served.repository(), &["rename", &format!("blue:{from}"), &format!("blue:{to}")]);
            if is_lost { Fate::Lost } else { Fate::Pass }
        });
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(0), "{text}");
        let commits = asked.iter().filter(|it| it.what.contains("/commit?")).count();
        assert_eq!(commits, if is_lost { 2 } else { 1 });
        let number = if is_lost { 2 } else { 1 };
        assert!(text.contains(&format!("{to}@{number} done")), "{text}");
        let shown = format!("/v1/backups/{to}@{number}");
        assert_eq!(served.ask("GET", &shown, Some(&blue), None).status, 200, "{text}");
    }
}

#[test]
fn an_image_has_a_bounded_number_of_former_names_and_may_get_back_each_of_them() {
    let served = Served::with(&[], two_projects);
    let rename = |from: u32, to: u32| {
        let [from, to] = [from, to].map(|it| if it == 0 { "own".to_owned() } else { format!("own{it}") });
        served.owner("POST", &format!("/v1/images/{from}/rename"), &[], Some(&json!({ "to": to })))
    };
    let refused = (0..200).find(|number| rename(*number, number + 1).status != 200).unwrap();
    assert_eq!(refused, 64);
    let answer = rename(64, 65);
    assert_eq!((answer.status, answer.kind().as_str()), (409, "conflict"));
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert_eq!(
        detail,
        "cannot rename the image: it has had 64 other names already; rename it back to one of them, or back it up under the new name"
    );
    assert_eq!(rename(64, 7).status, 200);
    assert_eq!(rename(7, 65).status, 409);
    assert_eq!(rename(7, 64).status, 200);
}

#[test]
fn a_token_that_renames_without_end_is_told_to_wait() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("service.toml");
    std::fs::write(&settings, "[limits]\nsessions_per_minute = 1\n").unwrap();
    let served = Served::with(&["--config", settings.to_str().unwrap()], two_projects);
    let blue = token(&served.repository(), "blue", "operator");
    let rename = |from: &str, to: &str| {
        let body = json!({ "to": to }).to_string();
        served.ask("POST", &format!("/v1/images/{from}/rename"), Some(&blue), Some(body.as_bytes()))
    };
    // One that is refused is not counted.
    for _ in 0..20 {
        assert_eq!(rename("web", "web").status, 409);
    }
    let names = ["web", "www"];
    let refused =
        (0..30).map(|turn| rename(names[turn % 2], names[(turn + 1) % 2])).find(|it| it.status != 200);
    let refused = refused.unwrap();
    assert_eq!((refused.status, refused.kind().as_str()), (429, "too_many"));
    assert!(!refused.header("retry-after").is_empty());
}
