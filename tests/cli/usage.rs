use std::fs;
use std::process::Command;

use crate::harness::{World, keys, noise};

const COMMANDS: [&[&str]; 15] = [
    &["init"],
    &["backup"],
    &["restore"],
    &["list"],
    &["show"],
    &["stats"],
    &["rebuild"],
    &["manifest", "dump"],
    &["manifest", "info"],
    &["token", "create"],
    &["token", "list"],
    &["token", "revoke"],
    &["completions"],
    &["man"],
    &[],
];

#[test]
fn the_help_of_every_command_has_an_example() {
    let world = World::new();
    for command in COMMANDS {
        let help = world.run(&[command, &["--help"]].concat()).exits(0).text();
        assert!(help.contains("Example:\n  ekko "), "{command:?}: {help}");
    }
    assert!(world.run(&["--version"]).exits(0).text().starts_with("ekko "));
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let world = World::new();
    for arguments in [
        &["frobnicate"][..],
        &["restore", "web"],
        &["init", "--segment-size", "3MiB"],
        &["init", "--segment-size", "32KiB"],
        &["--wait", "soon", "list"],
        &["backup", "--jobs", "0", "x"],
    ] {
        world.run(arguments).exits(2);
    }
}

#[test]
fn the_repository_must_be_named() {
    let world = World::new();
    world.init_small();
    let mut bare = Command::new(env!("CARGO_BIN_EXE_ekko"));
    bare.arg("list").env_remove("EKKO_REPOSITORY");
    crate::harness::ran(bare.output().unwrap()).exits(2).says("EKKO_REPOSITORY");
    crate::harness::ran(bare.env("EKKO_REPOSITORY", world.path("R")).output().unwrap()).exits(0);
    let error = World::new().run(&["--json", "list"]).exits(1).json();
    assert_eq!(keys(&error), ["error"]);
    assert_eq!(keys(&error["error"]), ["kind", "message"]);
    assert_eq!(error["error"]["kind"], "not_found");
}

#[test]
fn init_makes_a_repository_once_and_never_over_something_else() {
    let world = World::new();
    fs::create_dir(world.path("R")).unwrap();
    let document = world.json(&["init", "--segment-size", "1MiB", "--compression", "zlib:3"]);
    assert_eq!(keys(&document), ["compression", "id", "repository", "segment_size"]);
    assert_eq!((&document["segment_size"], &document["compression"]), (&(1 << 20).into(), &"zlib:3".into()));
    world.run(&["init"]).exits(2).says("already");
    world.write("web", &noise(1, 3 << 20));
    assert_eq!(world.json(&["backup", "web"])["backups"][0]["segments"], 3);
    let other = World::new();
    fs::create_dir(other.path("R")).unwrap();
    other.write("R/photo.jpg", b"");
    other.run(&["init"]).exits(2).says("something else");
    let file = World::new();
    file.write("R", b"");
    file.run(&["init"]).exits(2).says("something else");
}

#[test]
fn texts_with_control_characters_or_too_long_are_refused_before_anything_is_made() {
    let world = World::new();
    world.init_small();
    world.write("web", &noise(1, 1 << 16));
    let long = "x".repeat(65);
    for tag in ["", "a\nb", "\u{1b}[2J", "\u{9b}x", "a b", &long] {
        world.run(&["backup", "web", "--tag", tag]).exits(2).says("as a tag");
    }
    let many = ["--tag", "x"].repeat(17);
    world.run(&[&["backup", "web"][..], &many].concat()).exits(2).says("16 is the most");
    assert_eq!(fs::read_dir(world.path("R/manifests")).unwrap().count(), 0);
    world.run(&[&["backup", "web"][..], &many[..32]].concat()).exits(0);
    world.write("list", b"[]");
    let list = ["backup", "web", "--cbt", "list", "--cbt-base", "web@0", "--cbt-id"];
    world.run(&[&list[..], &["a\u{7}"]].concat()).exits(2).says("tracking of changes");
    let token = ["token", "create", "--project", "blue", "--role", "backup", "--note"];
    for note in ["a\nb", &"x".repeat(257)] {
        world.run(&[&token[..], &[note]].concat()).exits(2).says("as a note");
    }
    world.run(&[&token[..], &[&"x".repeat(256)]].concat()).exits(0);
}

#[test]
fn completions_and_manual_pages_are_written() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(world.run(&["completions", shell]).exits(0).text().contains("backup"), "{shell}");
    }
    world.run(&["completions", "tcsh"]).exits(2);
    assert!(world.run(&["man"]).exits(0).text().contains(".TH"));
    world.run(&["man", "pages"]).exits(0);
    for page in ["ekko.1", "ekko-backup.1", "ekko-restore.1", "ekko-manifest-dump.1"] {
        assert!(world.path("pages").join(page).exists(), "{page}");
    }
}

#[test]
fn the_quick_start_of_the_readme_works() {
    let root = env!("CARGO_MANIFEST_DIR");
    let readme = fs::read_to_string(format!("{root}/README.md")).unwrap();
    assert!(readme.contains("\nsh tests/quickstart.sh\n") && readme.contains("\ncargo test\n"));
    let mut script = Command::new("sh");
    let output =
        script.arg("tests/quickstart.sh").current_dir(root).env("EKKO", env!("CARGO_BIN_EXE_ekko")).output();
    let ran = crate::harness::ran(output.unwrap()).exits(0);
    assert!(ran.text().ends_with("Both days came back bit for bit.\n"));
}
